"""Stands in for the service's program in tests of the embedded life cycle: as much of it as a Hub can see.

Run as ``glidepath-spawner``; version and faults come from the environment.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VERSION = os.environ.get("GLIDEPATH_STUB_VERSION", "0.1.0")


def main() -> None:
    if "--version" in sys.argv:
        print(f"glidepath-spawner {VERSION}")
        return
    config_file = Path(sys.argv[sys.argv.index("--config") + 1])
    config = json.loads(config_file.read_text())
    if sys.argv[-1] == "check":
        problems = [f"site[{at}].name: is missing" for at, site in enumerate(config["site"]) if not site.get("name")]
        problems += [f"{key}: no such key" for key in config if key not in ("state_dir", "hub", "site", "log")]
        print("\n".join(problems))
        sys.exit(1 if problems else 0)
    if os.environ.get("GLIDEPATH_STUB_DIES"):
        print("cannot bind 127.0.0.1:1: permission denied")
        sys.exit(3)
    serve(config)


def serve(config: dict) -> None:
    secret = Path(config["hub"][0]["secret_file"]).read_text().strip()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.headers.get("Authorization") == f"Bearer {secret}"
            if self.path.endswith("/events"):
                self.send_response(200)
                self.end_headers()
                while True:
                    self.wfile.write(b": still here\n\n")
                    self.wfile.flush()
                    time.sleep(0.2)
            self.send_response(200 if good else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"servers": []}).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api = f"http://127.0.0.1:{server.server_address[1]}"
    state = Path(config["state_dir"])
    write_whole(state / "environment.json", dict(os.environ))
    write_whole(state / "service.json", {"pid": os.getpid(), "version": VERSION, "api": api})

    def drain(*_: object) -> None:
        (state / "drained").write_text(str(os.getpid()))
        os._exit(0)

    signal.signal(signal.SIGTERM, drain)
    server.serve_forever()


def write_whole(path: Path, content: dict) -> None:
    """As the service does: a reader finds the old content or the new one, never half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


if __name__ == "__main__":
    main()
