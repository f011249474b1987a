"""Runs rows of benchmarks, one after the other, and prints their tables.

make bench [ROW=link] [REPS=3]

A row module is `rows/NAME.py` with `rows(bench)`, which yields what it measured. Tables are printed as each module
finishes and once more, all together, at the end; `results/latest.json` keeps the rows.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from given import Bench
from net import need_root
from table import Row, keep, told, write

#: In the order in which they run.
ORDER = ("link", "wide", "relay", "recovery", "memory", "spawn", "waiting", "placement", "size")

#: Asked for by its name alone. Its bounds are judged, its figures are not kept.
GUARD = "guard"


def main() -> int:
    args = arguments()
    need_root()
    names = chosen(args.row)
    if not names:
        sys.exit(f"no row begins with {args.row!r}; there are: {' '.join(there())}")
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gp-bench.", dir="/tmp") as folder:
        Path(folder).chmod(0o711)  # users' accounts run programs from here
        for name in names:
            bench = Bench(args.reps, Path(folder) / name, args.programs)
            bench.folder.mkdir()
            found, why = measured(name, bench)
            rows += found
            print_table(name, found)
            if name == GUARD:
                why = why or slower(found)
            else:
                keep(found)
            for sentence in [*bench.failures, *([f"FAILED: {why}"] if why else [])]:
                failed.append(f"{name}: {sentence}")
                print(f"\n{failed[-1]}\n", flush=True)
            if bench.busy > 0.3:
                print(f"\nThe machine was not quiet: others had up to {bench.busy * 100:.0f} % of it.")
    if args.write and GUARD not in names:
        write()
    if len(names) > 1:
        print_table(f"everything, on {machine()}", rows)
    for sentence in failed:
        print(sentence, file=sys.stderr)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--row", default="", help="a row module, or what its name begins with; all when empty")
    asked.add_argument("--reps", type=int, default=3, help="how often everything is measured")
    asked.add_argument("--programs", type=Path, default=Bench.programs, help="where the programs of the release are")
    asked.add_argument("--write", action="store_true", help="put all figures that are kept into docs/performance.md")
    return asked.parse_args()


def there() -> list[str]:
    return [name for name in ORDER if (Path(__file__).parent / "rows" / f"{name}.py").exists()]


def chosen(row: str) -> list[str]:
    return [GUARD] if row == GUARD else [name for name in there() if name.startswith(row)]


def slower(rows: Sequence[Row]) -> str:
    """Which bounds of the guard do not hold; empty when all do."""
    bad = [row.name.removeprefix("guard: ") for row in rows if row.as_json()["met"] is not True]
    return f"beyond its bound: {', '.join(bad)}" if bad else ""


def measured(name: str, bench: Bench) -> tuple[list[Row], str]:
    """What a module yields until it ends or fails, and why it failed."""
    found: list[Row] = []
    try:
        for row in importlib.import_module(f"rows.{name}").rows(bench):
            found.append(row)
    except Exception as error:
        traceback.print_exc()
        return found, f"{type(error).__name__}: {error}"
    return found, ""


def print_table(title: str, rows: Sequence[Row]) -> None:
    print(f"\n## {title}\n\n{told([row.as_json() for row in rows])}\n", flush=True)


def machine() -> str:
    return (
        f"{os.cpu_count()} CPUs, {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    sys.exit(main())
