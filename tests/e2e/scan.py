"""Looks for secrets wherever the account that runs it can look. A program of its own, for any account.

In, as JSON on standard input: the secrets by name, folders, paths for somebody who cannot list their folders but may
know their names, and the folders that everybody shares, of which what is younger than a moment counts. Out, as JSON:
what was found where, how much was looked at, and the names in the folders. Secrets come by no argument and no variable,
or it would find itself.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

#: Of a file of any size so much is looked at.
FILE_MAX_BYTES = 64 * 1024 * 1024


def spellings(secret: str) -> set[bytes]:
    """As it is, in an address, and in base64 however it lies between the groups of three bytes."""
    plain = secret.encode()
    found = {plain, quote(secret, safe="").encode()}
    for before in range(3):
        shifted = base64.b64encode(b"\0" * before + plain)
        found.add(shifted[(before * 8 + 5) // 6 : (before + len(plain)) * 8 // 6])  # letters of the secret alone
    return found


def processes() -> Iterator[tuple[str, bytes]]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            argv = read(f"/proc/{pid}/cmdline")
            uid = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            continue
        called = argv.replace(b"\0", b" ")[:80].decode(errors="replace")
        yield f"argv {pid} uid={uid} {called}", argv
        try:
            yield f"environ {pid} uid={uid} {called}", read(f"/proc/{pid}/environ")
        except OSError:
            continue


def files(root: str) -> Iterator[tuple[str, bytes]]:
    for folder, _, names in os.walk(root, onerror=None):
        for name in names:
            path = os.path.join(folder, name)
            yield f"name {path}", os.fsencode(path)
            yield from one_file(path)


def young(root: str, but: str, since: float) -> Iterator[tuple[str, bytes]]:
    """Files below a folder that others use too, without the one that holds the tests' own."""
    for folder, below, names in os.walk(root, onerror=None):
        below[:] = [name for name in below if os.path.join(folder, name) != but]
        for name in names:
            path = os.path.join(folder, name)
            try:
                is_young = os.lstat(path).st_ctime >= since
            except OSError:
                continue
            if is_young:
                yield from ((f"shared {place}", content) for place, content in one_file(path))


def one_file(path: str) -> Iterator[tuple[str, bytes]]:
    try:
        if os.path.islink(path):
            yield f"link {path}", os.fsencode(os.readlink(path))
        elif os.path.isfile(path):
            yield f"file {path}", read(path)
    except OSError:
        return


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(FILE_MAX_BYTES)


def main(told: dict[str, Any]) -> dict[str, Any]:
    wanted = {name: spellings(secret) for name, secret in told["secrets"].items()}
    found: list[tuple[str, str]] = []
    seen: dict[str, int] = {}
    names: list[str] = []
    by_name = (one_file(path) for path in told["paths"])
    shared = (young(root, told["but"], told["since"]) for root in told["shared"])
    for places in (processes(), *(files(root) for root in told["folders"]), *by_name, *shared):
        for place, content in places:
            kind = place.partition(" ")[0]
            seen[kind] = seen.get(kind, 0) + 1
            names += [place[5:]] if kind == "name" else []
            found += [(name, place) for name, all_of in wanted.items() if any(one in content for one in all_of)]
    return {"found": found, "seen": seen, "names": names}


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout)
