"""Answers as JupyterHub's mock of a server does, which itself takes a second of processor time to start.

    python mock_server.py [FOLDER]

`.../args` and `.../env` tell what it was started with, any other path tells itself. With a folder it is slow: it
answers once `FOLDER/go` is there, and asked kindly to end, it waits for as many seconds as `FOLDER/delay` says.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        told = {"args": sys.argv, "env": dict(os.environ, MOCK_PID=str(os.getpid()))}.get(path.rpartition("/")[2])
        body = (path if told is None else json.dumps(told)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if told is None else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def be_slow(folder: Path) -> None:
    def go_slowly(*_: object) -> None:
        time.sleep(float((folder / "delay").read_text()))
        os._exit(0)

    signal.signal(signal.SIGTERM, go_slowly)
    (folder / "begun").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        be_slow(Path(sys.argv[1]))
    port = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).port
    ThreadingHTTPServer(("127.0.0.1", port or 0), Answer).serve_forever()
