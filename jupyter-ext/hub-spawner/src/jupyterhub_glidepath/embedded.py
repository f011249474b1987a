"""The service that a Hub starts by itself when no ``service_url`` is set; knows no JupyterHub.

In: a state folder and what the service must know of its Hub. Out: its address. One service per folder. It runs
detached, so that a Hub that is killed takes nothing with it; the next Hub finds it by its attach file and takes it
over when it is alive, of the same version and of the same config, or else ends it kindly and starts anew: servers
live on through that. While a Hub runs, a service that dies is started again at once, with the listeners of the last
one: whoever connects meanwhile waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from jupyterhub_glidepath.client import BadSecretFile, Unreachable, read_secret
from jupyterhub_glidepath.listeners import Listeners
from jupyterhub_glidepath.waiting import is_set_within, within

BINARY = "glidepath-spawner"
#: Names the binary to use instead of the one that came with this package.
BINARY_ENV = "GLIDEPATH_SPAWNER_BIN"
#: The service has bound its listeners after so long, or it will not.
START_WITHIN_S = 30.0
#: A drain ends after so long by a kill; servers live on either way.
DRAIN_WITHIN_S = 30.0
#: Between two starts of a service that dies at once: the first, and the most.
RESTART_FIRST_S = 0.05
RESTART_MOST_S = 30.0
#: A service that lived so long did start well.
LIVED_WELL_S = 20.0
LOG_MAX_BYTES = 20 * 1024 * 1024


class EmbeddedProblem(Exception):
    """The service cannot be started; the text is for the operator and names the remedy."""


@dataclass(frozen=True)
class HubFacts:
    """What the embedded service must know of its Hub."""

    name: str
    #: As the service reaches it: ``http://127.0.0.1:8081/hub/api``.
    api_url: str
    #: ``/`` or ``/jhub/``.
    base_url: str


@dataclass
class Attached:
    """A running service."""

    pid: int
    version: str
    api: str
    raw: dict[str, Any] = field(default_factory=dict)


class Embedded:
    """One embedded service. :meth:`run` is the task that keeps it alive; whoever makes this owns that task."""

    def __init__(
        self,
        state_dir: Path,
        hub: HubFacts,
        settings: dict[str, Any],
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        stops_with_hub: Callable[[], bool] = lambda: False,
    ) -> None:
        self.state_dir = state_dir
        self._hub = hub
        self._settings = settings
        self._log = log
        self._stops_with_hub = stops_with_hub
        self._attached: Attached | None = None
        self._up = asyncio.Event()
        self._problem: EmbeddedProblem | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._listeners = Listeners(state_dir, log)

    @property
    def secret_file(self) -> Path:
        """Where this Hub's secret lies."""
        return secret_file(self.state_dir, self._hub.name)

    @property
    def problem(self) -> EmbeddedProblem | None:
        """Why there is no service at present."""
        return self._problem

    async def address(self) -> str:
        """The API's base URL. Waits a moment for a service that is being started."""
        await is_set_within(self._up, START_WITHIN_S)
        if self._attached is None:
            raise Unreachable(str(self._problem or "the embedded service is not up"))
        return self._attached.api

    async def first_problem(self) -> EmbeddedProblem | None:
        """Waits for the outcome of the first start."""
        await self._up.wait()
        return self._problem

    async def run(self) -> None:
        """Attaches or starts, and starts again whenever the service dies. Ends by being cancelled: then the service
        goes on, unless it is to stop with its Hub."""
        wait_s = RESTART_FIRST_S
        try:
            while True:
                began = time.monotonic()
                try:
                    attached = await self._attach_or_start()
                    self._attached, self._problem = attached, None
                    self._up.set()
                    await self._until_dead(attached.pid)
                    self._log.warning("Glidepath's service (pid %d) has ended; starting it again", attached.pid)
                except Exception as error:  # whatever it is, it passes some time, and then there must be a service
                    self._listeners.forget()
                    self._tell(error)
                self._attached = None
                if self._problem is None:
                    self._up.clear()
                wait_s = RESTART_FIRST_S if time.monotonic() - began > LIVED_WELL_S else wait_s
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RESTART_MOST_S)
        except asyncio.CancelledError:
            self._listeners.close()
            if self._stops_with_hub():
                await self._end_all()
            raise

    async def _end_all(self) -> None:
        """Ends the service, also one that is only just starting or about to be replaced."""
        found = read_attached(self.state_dir)
        pids = {each.pid for each in (self._attached, found) if each is not None}
        if self._child is not None and self._child.poll() is None:
            pids.add(self._child.pid)
        for pid in pids:
            self._log.info("Stopping Glidepath's service (pid %d) with its Hub", pid)
            try:
                await self._drain(pid)
            except EmbeddedProblem as problem:
                self._log.error("%s", problem)

    def _tell(self, error: Exception) -> None:
        """Whoever waits for the service learns why there is none; the log hears each reason once."""
        problem = _in_a_sentence(error, self.state_dir)
        if str(problem) != str(self._problem):
            unforeseen = error if not isinstance(error, EmbeddedProblem | OSError) else None
            self._log.error("Glidepath's service cannot be started: %s", problem, exc_info=unforeseen)
        self._problem = problem
        self._up.set()

    async def _attach_or_start(self) -> Attached:
        binary = find_binary()
        version = await _version(binary)
        config = self.state_dir / "config.json"
        new = await asyncio.to_thread(self._write_new_config)
        changed = new is not None
        self._listeners.open()
        found = read_attached(self.state_dir)
        if found is not None and not changed and found.version == version and await self._well(found):
            self._log.info("Attached to Glidepath's service at %s (pid %d)", found.api, found.pid)
            return found
        with self._listeners.handed_over() as (environ, descriptors):
            await check(binary, str(new or config), environ, descriptors)
        if new is not None:
            new.replace(config)
        if found is not None:
            why = "its config changed" if changed else f"version {found.version} was found, {version} is wanted"
            why = why if changed or found.version != version else "it does not answer"
            self._log.info("Replacing Glidepath's service (pid %d): %s", found.pid, why)
            await self._drain(found.pid)
        if changed:
            self._listeners.forget()  # it may listen elsewhere
        return await self._start(binary, str(config))

    async def _start(self, binary: str, config: str) -> Attached:
        log_file = self.state_dir / "service.log"
        # In no thread: a cancel would come between the process and our knowing of it.
        with self._listeners.handed_over() as handed_over:
            self._child = child = _spawn_detached([binary, "--config", config, "serve"], log_file, *handed_over)
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise EmbeddedProblem(
                    f"{binary} ended with status {child.returncode}; its last words in {log_file}:\n"
                    + _last_lines(log_file)
                )
            found = read_attached(self.state_dir)
            if found is not None and found.pid == child.pid and await self._well(found):
                self._log.info("Started Glidepath's service at %s (pid %d)", found.api, found.pid)
                return found
            await asyncio.sleep(0.05)
        child.terminate()
        raise EmbeddedProblem(f"{binary} was not ready after {START_WITHIN_S:.0f} s; see {log_file}")

    async def _well(self, attached: Attached) -> bool:
        """True when it answers its Hub. A service that hangs is not attached to, but replaced."""
        try:
            secret = read_secret(self.secret_file)
        except BadSecretFile as error:
            raise EmbeddedProblem(str(error)) from error
        url = f"{attached.api.rstrip('/')}/v1/hubs/{self._hub.name}/servers"
        timeout = aiohttp.ClientTimeout(total=10)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(url, headers={"Authorization": f"Bearer {secret}"}) as reply,
            ):
                return reply.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return False

    async def _until_dead(self, pid: int) -> None:
        """Waits for the end of a process, whether or not it is our child."""
        child = self._child if self._child is not None and self._child.pid == pid else None
        try:
            descriptor = os.pidfd_open(pid)
        except (ProcessLookupError, AttributeError, OSError):
            descriptor = None
        if descriptor is None:
            while _alive(pid) and (child is None or child.poll() is None):  # noqa: ASYNC110
                await asyncio.sleep(0.25)
        else:
            loop, dead = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(descriptor, dead.set)
            try:
                await dead.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        if child is not None:
            child.poll()  # reap it

    async def _drain(self, pid: int) -> None:
        """Ends a service kindly and waits until it is gone. What it started lives on."""
        for signum, within_s in ((signal.SIGTERM, DRAIN_WITHIN_S), (signal.SIGKILL, 5.0)):
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                return
            except PermissionError:
                raise EmbeddedProblem(
                    f"the service of {self.state_dir} (pid {pid}) belongs to another account and has to be replaced; "
                    "end it, or set c.GlidepathSpawner.state_dir to a folder of this Hub's own"
                ) from None
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._until_dead(pid), within_s)
                return
            self._log.warning("Glidepath's service (pid %d) did not end within %.0f s", pid, within_s)

    def _write_new_config(self) -> Path | None:
        """Makes the hub's secret and, when the config differs from what lies there, writes it beside the old one."""
        try:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_secret(self.secret_file)
            text = json.dumps(self.config(), indent=2, sort_keys=True) + "\n"
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if (self.state_dir / "config.json").read_text(encoding="utf-8") == text:
                    return None
            new = self.state_dir / "config.new.json"
            _write_private(new, text)
        except OSError as error:
            raise EmbeddedProblem(
                f"the state folder {self.state_dir} cannot be written: {error}; "
                "set c.GlidepathSpawner.state_dir to a folder that the Hub may write"
            ) from error
        return new

    def config(self) -> dict[str, Any]:
        """The service's config: what the operator set, and this Hub."""
        return service_config(self.state_dir, self._hub, self._settings)


def service_config(state_dir: Path, hub: HubFacts, settings: dict[str, Any]) -> dict[str, Any]:
    """The service's config for one Hub: defaults for this machine below what the operator set, the Hub above it."""
    # Servers' accounts must be able to enter their folders, so these lie beside the closed state folder.
    here = {
        "name": "here",
        "title": "This machine",
        "backend": "process",
        "reach": "direct",
        "process": {"work_root": f"{state_dir}-jobs"},
    }
    config: dict[str, Any] = {"site": [here], **settings}
    ours = {
        "name": hub.name,
        "secret_file": str(secret_file(state_dir, hub.name)),
        "api_url": hub.api_url,
        "base_url": hub.base_url,
    }
    others = []
    for other in settings.get("hub", []):
        if other.get("name") == hub.name:
            ours = {**other, **ours}
        else:
            others.append(other)
    return {**config, "state_dir": str(state_dir), "hub": [ours, *others]}


def secret_file(state_dir: Path, hub: str) -> Path:
    """Where the secret of an embedded service's Hub lies."""
    return state_dir / f"hub-{hub}.secret"


def make_secret(path: Path) -> None:
    """Makes a random secret, readable by its owner alone, unless there is one."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
        return
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)


def find_binary() -> str:
    """The service's program: the one that the environment names, the one beside this Python, the one on the path."""
    named = os.environ.get(BINARY_ENV)
    if named:
        if os.access(named, os.X_OK):
            return named
        raise EmbeddedProblem(f"{BINARY_ENV} is {named!r}, which cannot be run")
    for folder in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent)):
        beside = Path(folder) / BINARY
        if os.access(beside, os.X_OK):
            return str(beside)
    found = shutil.which(BINARY)
    if found is None:
        raise EmbeddedProblem(
            f"{BINARY} was not found; install jupyterhub-glidepath from a wheel, set {BINARY_ENV}, "
            "or set c.GlidepathSpawner.service_url to a service that runs elsewhere"
        )
    return found


def read_attached(state_dir: Path) -> Attached | None:
    """The service that the attach file names, when that process is alive and holds the folder."""
    try:
        raw = json.loads((state_dir / "service.json").read_text(encoding="utf-8"))
        attached = Attached(int(raw["pid"]), str(raw["version"]), str(raw["api"]), raw)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return attached if _alive(attached.pid) and _serves(attached.pid, state_dir) else None


async def check(binary: str, config: str, environ: dict[str, str], descriptors: list[int]) -> None:
    """Has the service check its config, with the listeners that it will be given. Raises with *all* of its problems."""
    status, told = await _run([binary, "--config", config, "check"], 30, environ, descriptors)
    if status != 0:
        raise EmbeddedProblem(f"the config of the embedded service is refused:\n{told.strip()}")


async def _version(binary: str) -> str:
    status, told = await _run([binary, "--version"], 10, {}, [])
    words = told.split()
    if status != 0 or not words:
        raise EmbeddedProblem(f"{binary} --version ended with status {status}: {told.strip()[:400]}")
    return words[-1] if len(words) < 3 else words[1]


async def _run(argv: list[str], timeout_s: float, environ: dict[str, str], descriptors: list[int]) -> tuple[int, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | environ,
            pass_fds=descriptors,
        )
    except OSError as error:
        raise EmbeddedProblem(f"{argv[0]} cannot be run: {error}") from error
    try:
        told, _ = await within(process.communicate(), timeout_s)
    except asyncio.TimeoutError:
        raise EmbeddedProblem(f"{' '.join(argv)} did not end within {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, told.decode("utf-8", "replace")


def _spawn_detached(
    argv: list[str], log_file: Path, environ: dict[str, str], descriptors: list[int]
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, that gets no signal meant for the Hub and none of its secrets."""
    with contextlib.suppress(FileNotFoundError):
        if log_file.stat().st_size > LOG_MAX_BYTES:
            log_file.replace(log_file.with_suffix(".log.1"))
    kept = {name: value for name, value in os.environ.items() if _may_pass(name)}
    with os.fdopen(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        return subprocess.Popen(  # noqa: S603
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=kept | environ,
            pass_fds=descriptors,
            cwd="/",
        )


def _may_pass(name: str) -> bool:
    """The Hub's environment holds its secrets (CONFIGPROXY_AUTH_TOKEN, JUPYTERHUB_CRYPT_KEY, client secrets)."""
    return name in _PASSED or name.startswith(("GLIDEPATH_", "LC_", "RUST_"))


_PASSED = frozenset(
    {
        "CONDOR_CONFIG",
        "HOME",
        "HTTPS_PROXY",
        "KUBECONFIG",
        "LANG",
        "LOGNAME",
        "NO_PROXY",
        "PATH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
        "XDG_RUNTIME_DIR",
        "https_proxy",
        "no_proxy",
    }
)


def _write_private(path: Path, text: str) -> None:
    """Writes a file for its owner alone, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError, IndexError):
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        return after_name.split()[0] not in ("Z", "X")
    return True


def _serves(pid: int, state_dir: Path) -> bool:
    """False when the pid was given to something else meanwhile, be it another Hub's service: what serves a folder was
    told the config in it. Where that cannot be seen, the answer tells."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        told = [Path(os.fsdecode(word)) for option, word in pairwise(words) if option == b"--config"]
        return (state_dir / "config.json").resolve() in [config.resolve() for config in told]
    return True


def _in_a_sentence(error: Exception, state_dir: Path) -> EmbeddedProblem:
    if isinstance(error, EmbeddedProblem):
        return error
    if isinstance(error, OSError):
        return EmbeddedProblem(f"{error}; the Hub must be able to read and write all in {state_dir}")
    return EmbeddedProblem(f"{type(error).__name__}: {error}; the Hub's log has more")


def _last_lines(log_file: Path, count: int = 15) -> str:
    with contextlib.suppress(OSError):
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-count:])
    return "(none)"
