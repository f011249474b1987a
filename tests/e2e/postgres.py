"""A PostgreSQL server of a test's own, below its folder. It ends with the test, however that ends."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

from waiting import NotInTime

PASSWORD = "pw-of-e2e-t3sts"
REMEDY = "PostgreSQL is not found, and these tests need it: run scripts/setup test, or apt-get install postgresql"
#: Waits for the end of its input, then ends the server.
REAPER = """
cat >/dev/null
pid=$(head -n 1 "$1/postmaster.pid" 2>/dev/null)
[ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = postgres ] && kill -QUIT "$pid"
"""


class Postgres:
    """One server with one database, `glidepath`, and its user of the same name."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "pg"
        self.data.mkdir(mode=0o700)
        self.programs = programs()
        self.user: int | None = None
        self.group: int | None = None
        if os.geteuid() == 0:
            self.user, self.group = account()
            os.chown(self.data, self.user, self.group)
        self._reaper = subprocess.Popen(
            ["sh", "-c", REAPER, "sh", str(self.data)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._run("initdb", "--no-sync", "-U", "postgres", "-A", "trust", "-E", "UTF8", "-D", str(self.data))
        hba = "local all postgres trust\nlocal all all scram-sha-256\n"
        (self.data / "pg_hba.conf").write_text(hba)
        self.process: subprocess.Popen[bytes] | None = None
        self.serve()
        self.sql(f"CREATE ROLE glidepath LOGIN PASSWORD '{PASSWORD}'", "postgres")
        self.sql("CREATE DATABASE glidepath OWNER glidepath", "postgres")
        self.url_file = folder / "store.url"
        self.url_file.touch(mode=0o600)
        socket = str(self.data).replace("/", "%2F")
        self.url_file.write_text(f"postgresql://glidepath:{PASSWORD}@{socket}/glidepath\n")

    def serve(self) -> None:
        """Starts it and waits until it answers."""
        with (self.data / "log").open("ab") as log:
            settings = [f"-c{line}" for line in ("listen_addresses=", "fsync=off", "shared_buffers=16MB")]
            self.process = subprocess.Popen(
                [str(self.programs / "postgres"), "-D", str(self.data), "-k", str(self.data), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.data,
                user=self.user,
                group=self.group,
                extra_groups=None if self.user is None else [],
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.data / "log").read_text()
            try:
                self.sql("SELECT 1", "postgres")
                return
            except subprocess.CalledProcessError:
                time.sleep(0.1)
        raise NotInTime("PostgreSQL does not answer")

    def end(self) -> None:
        """As an operator restarts it: sessions are ended, everything is written."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        self.process = None

    def sql(self, sql: str, database: str = "glidepath") -> str:
        """What its administrator reads, row by row."""
        where = ["-h", str(self.data), "-U", "postgres", "-d", database]
        return self._run("psql", *where, "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql)

    def close(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)
        self._reaper.communicate(timeout=30)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.data,
            user=self.user,
            group=self.group,
            extra_groups=None if self.user is None else [],
        )
        return done.stdout


def programs() -> Path:
    """Debian keeps the server's programs out of everybody's way."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(":")]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all(shutil.which(name, path=str(folder)) for name in ("initdb", "postgres", "psql")):
            return folder
    raise AssertionError(REMEDY)


def account() -> tuple[int, int]:
    """Who a server runs as that root starts: it refuses root."""
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        return (65534, 65534)
    return (found.pw_uid, found.pw_gid)
