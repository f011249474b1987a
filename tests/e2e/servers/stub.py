"""A single-user server that answers at once, or goes wrong in the way its first argument names.

Stands where the number of servers or their faults matter and Jupyter itself does not. Speaks HTTP on the unix socket
that it is told by `--ServerApp.sock`, or on `JUPYTERHUB_SERVICE_URL`.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import socketserver
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

MODE = sys.argv[1] if len(sys.argv) > 1 else "well"
SOCKET = next((arg.partition("=")[2] for arg in sys.argv if arg.startswith("--ServerApp.sock=")), "")
PREFIX = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
#: A line for each time that a server of this user was started; kept with the home.
STARTS = Path.home() / "starts"
#: A line for each time that any server of this Hub was started, by attempt; where a test wants to know.
ALL_STARTS = os.environ.get("HOUSE_STARTS", "")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.endswith("/slow"):
            time.sleep(4)
        if self.path.endswith("/quit"):
            print("the moon has set", flush=True)
            os._exit(7)
        status = 500 if MODE == "fails" else 200
        told = {"version": "stub", "path": self.path, "pid": os.getpid(), "user": os.environ["JUPYTERHUB_USER"]}
        told["starts"] = len(STARTS.read_text().splitlines())
        if self.path.endswith("/self"):
            told |= {"argv": sys.argv, "environ": dict(os.environ), "folder": os.getcwd()}
        told |= {"key": os.environ.get("GLIDEPATH_KEY"), "attempt": os.environ.get("GLIDEPATH_ATTEMPT")}
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "somebody"

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


class TcpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = True


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with STARTS.open("a") as starts:
        print(os.getpid(), file=starts)
    if ALL_STARTS:
        with Path(ALL_STARTS).open("a") as starts:
            print(os.environ["GLIDEPATH_ATTEMPT"], os.getpid(), file=starts)
    print("stub: up with mode", MODE, flush=True)
    if MODE == "exits" or (MODE == "fickle" and len(STARTS.read_text().splitlines()) == 1):
        print("cannot open the configuration of the moon", flush=True)
        print('<img src=x onerror="document.title=666">', flush=True)
        sys.exit(3)
    if MODE == "says":
        sys.stdout.buffer.write(Path(__file__).with_name("says").read_bytes())
        sys.exit(3)
    if MODE == "silent":
        while True:
            time.sleep(60)
    os.umask(0o177)
    if SOCKET:
        Server(SOCKET, Handler).serve_forever()
    url = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    TcpServer((url.hostname or "", url.port or 0), Handler).serve_forever()


main()
