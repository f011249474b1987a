#!/usr/bin/python3 -IS
"""Stands in for glidepath-agent in tests: the same two subcommands, with the manners of bad neighbours.

The manner comes from the dial file. Every process notes its number in the home, every start a line, so that a test
can count both without asking the backend.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time

LIMITS = {
    "core": resource.RLIMIT_CORE,
    "data": resource.RLIMIT_DATA,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
}


def confine(words):
    end = words.index("--")
    flags, command = words[:end], words[end + 1 :]
    given = {}
    while flags:
        flag = flags.pop(0)
        given.setdefault(flag, []).append(None if flag == "--new-session" else flags.pop(0))
    for claim in given.pop("--claim"):
        come_late(f"{os.path.dirname(claim)}/../../late")
        try:
            os.unlink(claim)
        except FileNotFoundError:
            sys.exit(76)
    for group in given.pop("--cgroup", []):
        with open(f"{group}/cgroup.procs", "w") as procs:
            procs.write("0\n")
    if given.pop("--new-session", None):
        os.setsid()
    for limit in given.pop("--rlimit", []):
        name, value = limit.split("=")
        soft, _, hard = value.partition(":")
        resource.setrlimit(LIMITS[name], (int(soft), int(hard or soft)))
    os.umask(int(given.pop("--umask")[0], 8))
    groups = given.pop("--groups", [""])[0]
    if "--uid" in given:
        os.setgroups([int(group) for group in groups.split(",") if group])
        gid, uid = int(given.pop("--gid")[0]), int(given.pop("--uid")[0])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    if os.getuid() == 0:
        sys.exit("the stand-in never runs as root")
    os.chdir(given.pop("--chdir")[0])
    if given:
        sys.exit(f"unknown flags {given}")
    os.execv(command[0], command)


def come_late(marker):
    """A test can make the next start slow; only that one."""
    try:
        os.unlink(marker)
    except FileNotFoundError:
        return
    time.sleep(2)


def note(home, what, text):
    with open(f"{home}/{what}-{os.environ['GLIDEPATH_ATTEMPT']}", "a") as notes:
        notes.write(f"{text}\n")


def child(home, deaf, own_way):
    """A process of the job; `own_way`: of another session, and nobody's child."""
    if os.fork():
        return
    if own_way:
        os.setsid()
        if os.fork():
            os._exit(0)
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(home, "pids", os.getpid())
    time.sleep(600)
    os._exit(0)


def mask(home):
    """Becomes something that looks like a thread of the kernel, without parent and label, and ends its agent when the
    test says so: it would be found and ended before it was seen."""
    agent = os.getpid()
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    note(home, "pids", os.getpid())
    code = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while not os.path.exists({os.path.join(home, "strike")!r}):
    time.sleep(0.01)
os.kill({agent}, signal.SIGKILL)
time.sleep(600)
"""
    os.execve(sys.executable, ["[kworker/0:1]", "-ISc", code], {})


def take(megabytes):
    memory = bytearray(megabytes * 1024 * 1024)
    memory[::4096] = b"x" * len(memory[::4096])


def bomb():
    while True:
        with contextlib.suppress(OSError):
            os.fork()


def run(words):
    given = dict(zip(words[::2], words[1::2], strict=True))
    home = given["--home"]
    with open(given["--dial-file"]) as dial_file:
        dial = json.load(dial_file)
    manner = dial["manner"]
    if manner.startswith("exits"):
        note(home, "starts", "start")
        print("the last words of a job that exits", file=sys.stderr, flush=True)
        sys.exit(int(manner.split()[1]))
    if manner == "bomb":
        bomb()
    if manner == "masked":
        note(home, "agent", os.getpid())
        mask(home)
        time.sleep(600)
    server = socket.socket(socket.AF_UNIX)
    server.bind(given["--socket-dir"] + "/server.sock")
    server.listen()
    deaf = manner in ("stubborn", "litters")
    child(home, deaf=deaf, own_way=manner == "litters")
    if manner == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:

        def end(_signal, _frame):
            if manner == "calm":
                with open(f"{home}/pids-{os.environ['GLIDEPATH_ATTEMPT']}") as pids:
                    others = [int(line) for line in pids if int(line) != os.getpid()]
                for pid in others:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            os._exit(0)

        signal.signal(signal.SIGTERM, end)
    note(home, "pids", os.getpid())
    note(home, "agent", os.getpid())
    note(home, "starts", "start")
    if "child_hog_mb" in dial:
        hog = os.fork()
        if not hog:
            take(dial["child_hog_mb"])
            os._exit(0)
        note(home, "hog", os.waitpid(hog, 0)[1])
    take(dial.get("hog_mb", 0))
    time.sleep(600)


if __name__ == "__main__":
    {"confine": confine, "run": run}[sys.argv[1]](sys.argv[2:])
