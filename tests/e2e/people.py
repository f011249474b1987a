"""A user with a browser: cookies, forms, pages; and what JupyterLab does for them, over its own protocols."""

from __future__ import annotations

import base64
import html
import json
import re
import time
import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as quote_all
from urllib.parse import urljoin

import requests
import websocket

from waiting import NotInTime, eventually

if TYPE_CHECKING:
    from house import House


class Person:
    """One user. Every method is something that the user does."""

    def __init__(self, house: House, name: str) -> None:
        self.house = house
        self.name = name
        self.session = requests.Session()
        self._token = ""

    # ---- pages of the Hub ---------------------------------------------------------------------------------------

    def login(self) -> None:
        """Types name and password."""
        page = self.session.get(self.house.url + "hub/login", timeout=30)
        reply = self.session.post(
            self.house.url + "hub/login",
            data={"username": self.name, "password": "demo", "_xsrf": _xsrf(page.text)},
            headers={"Referer": page.url},
            timeout=30,
            allow_redirects=False,
        )
        assert reply.status_code == 302, f"login of {self.name}: {reply.status_code} {_text(reply.text)[:500]}"

    def page(self, path: str, **more: Any) -> requests.Response:
        """Opens a page below the Hub's base URL, as a browser follows it."""
        return _utf8(self.session.get(self.house.url + path, timeout=60, **more))

    def form(self, server: str = "") -> str:
        """The spawn form, as HTML."""
        reply = self.page(self._spawn_path(server))
        assert reply.status_code == 200, reply.text
        return reply.text

    def choose(self, server: str = "", **fields: Any) -> requests.Response:
        """Sends the spawn form; the answer is the page that the browser shows then."""
        page = self.page(self._spawn_path(server))
        action = re.search(r'<form[^>]*id="spawn_form"[^>]*action="([^"]*)"', page.text)
        assert action, f"no spawn form on this page: {_text(page.text)[:500]}"
        where = urljoin(page.url, html.unescape(action.group(1)))
        data = {name: str(value) for name, value in fields.items()}
        headers = {"Referer": page.url}
        # A form with a field for files is sent in parts.
        parts = {name: (None, value) for name, value in data.items()} or {"": (None, "")}
        return _utf8(self.session.post(where, files=parts, headers=headers, timeout=60))

    def _spawn_path(self, server: str) -> str:
        return f"hub/spawn/{quote(self.name)}/{quote(server)}".rstrip("/")

    def progress(self, server: str = "", within_s: float = 60) -> list[dict[str, Any]]:
        """What the waiting page shows, until it is ready or failed."""
        name = f"servers/{quote(server)}" if server else "server"
        url = f"{self.house.url}hub/api/users/{quote(self.name)}/{name}/progress"
        events: list[dict[str, Any]] = []
        deadline = time.monotonic() + within_s
        headers = {"Authorization": f"token {self.token}"}
        with requests.get(url, headers=headers, stream=True, timeout=within_s) as reply:
            for line in reply.iter_lines():
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    events.append(event)
                    if event.get("ready") or event.get("failed"):
                        return events
                if time.monotonic() > deadline:
                    break
        raise NotInTime(f"progress of {self.name} has no end: {events[-3:]}")

    # ---- the server ---------------------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """An API token of the user's own, for what the user may do."""
        if not self._token:
            reply = self.house.api("POST", f"/users/{quote(self.name)}/tokens", {"note": "tests"})
            assert reply.status_code == 201, reply.text
            self._token = reply.json()["token"]
        return self._token

    def url(self, path: str = "", server: str = "") -> str:
        """Of the user's own server, as the outside sees it."""
        name = f"{quote(server)}/" if server else ""
        home = self.house.url
        if self.house.settings["subdomain_host"]:
            home = home.replace("http://", f"http://{self.name}.", 1)
        return f"{home}user/{quote(self.name)}/{name}{path}"

    def ask(self, method: str, path: str, server: str = "", **more: Any) -> requests.Response:
        """The server's own API, with a token."""
        headers = {"Authorization": f"token {self.token}"} | more.pop("headers", {})
        return requests.request(method, self.url(path, server), headers=headers, timeout=120, **more)

    def lab(self, server: str = "") -> requests.Response:
        """Opens JupyterLab with the browser's cookies: Hub, OAuth, server."""
        return _utf8(self.session.get(self.url("lab", server), timeout=60))

    def upload(self, name: str, content: bytes, server: str = "") -> None:
        """As JupyterLab does it: in pieces."""
        piece_bytes = 8 * 1024 * 1024
        pieces = [content[at : at + piece_bytes] for at in range(0, len(content), piece_bytes)]
        for number, piece in enumerate(pieces, 1):
            body = {"type": "file", "format": "base64", "name": name, "path": name}
            body["content"] = base64.b64encode(piece).decode()
            chunk = {} if len(pieces) == 1 else {"chunk": -1 if number == len(pieces) else number}
            reply = self.ask("PUT", f"api/contents/{quote(name)}", server, json=body | chunk)
            assert reply.status_code in (200, 201), f"piece {number}: {reply.status_code} {reply.text[:300]}"

    def download(self, name: str, server: str = "", pause: Any = None, home: str = "") -> bytes:
        """The whole file. `pause(read_bytes)` is called after each piece. `home` stands for the Hub's own address."""
        url = self.url(f"files/{quote(name)}", server)
        url = url.replace(self.house.url, home, 1) if home else url
        got = bytearray()
        headers = {"Authorization": f"token {self.token}"}
        with requests.get(url, headers=headers, stream=True, timeout=150) as reply:
            assert reply.status_code == 200, reply.text[:300]
            for piece in reply.iter_content(256 * 1024):
                got += piece
                if pause is not None:
                    pause(len(got))
        return bytes(got)

    def kernel(self, server: str = "") -> Kernel:
        """A new kernel, connected."""
        reply = self.ask("POST", "api/kernels", server, json={"name": "python3"})
        assert reply.status_code == 201, reply.text
        return Kernel(self, server, reply.json()["id"])


class Kernel:
    """A kernel and one WebSocket to it. The session id stays when it reconnects, as Lab's does."""

    def __init__(self, person: Person, server: str, kernel_id: str) -> None:
        self.person = person
        self.server = server
        self.id = kernel_id
        self.session_id = uuid.uuid4().hex
        #: What code printed so far whose end is still to come; over all WebSockets of this session.
        self._heard: dict[str, str] = {}
        self.socket: websocket.WebSocket | None = None
        self.connect()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.socket is not None:
            self.socket.close()

    def connect(self, within_s: float = 30) -> None:
        """Opens the WebSocket; again after it was lost."""
        path = f"api/kernels/{self.id}/channels?session_id={self.session_id}"
        url = self.person.url(path, self.server).replace("http://", "ws://", 1)

        def dial() -> websocket.WebSocket | None:
            try:
                return websocket.create_connection(
                    url, header=[f"Authorization: token {self.person.token}"], timeout=20
                )
            except (websocket.WebSocketException, OSError):
                return None

        self.socket = eventually("the kernel's WebSocket is open", dial, within_s, every_s=0.5)

    def send(self, code: str) -> str:
        """Asks the kernel to run it; the id under which its output comes."""
        assert self.socket is not None
        message_id = uuid.uuid4().hex
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "user_expressions": {}}
        header = {
            "msg_id": message_id,
            "username": self.person.name,
            "session": self.session_id,
            "msg_type": "execute_request",
            "version": "5.3",
        }
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self.socket.send(json.dumps(message | {"buffers": []}))
        return message_id

    def output(self, message_id: str, within_s: float = 60) -> str:
        """What that code printed, once the kernel is done with it; also what came before a WebSocket was lost."""
        assert self.socket is not None
        text, deadline = self._heard.get(message_id, ""), time.monotonic() + within_s
        while time.monotonic() < deadline:
            self.socket.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                kind_of_frame, raw = self.socket.recv_data(
                    control_frame=True
                )  # a ping is a moment to look at the clock
            except websocket.WebSocketTimeoutException:
                break
            if kind_of_frame == websocket.ABNF.OPCODE_CLOSE:
                raise ConnectionError("the kernel's WebSocket was closed")
            if kind_of_frame in (websocket.ABNF.OPCODE_PING, websocket.ABNF.OPCODE_PONG):
                continue
            message = json.loads(raw)
            if message.get("parent_header", {}).get("msg_id") != message_id:
                continue
            kind, content = message["header"]["msg_type"], message["content"]
            if kind == "stream":
                text += content["text"]
            elif kind == "error":
                text += "\n".join(content["traceback"])
            elif kind == "execute_result":
                text += content["data"].get("text/plain", "")
            elif kind == "status" and content["execution_state"] == "idle":
                self._heard.pop(message_id, None)
                return text
            self._heard[message_id] = text
        raise NotInTime(f"the kernel was not done within {within_s:.0f} s; it printed {text[-300:]!r}")

    def run(self, code: str, within_s: float = 60) -> str:
        return self.output(self.send(code), within_s).strip()


def lost_ticks(output: str, count: int) -> set[int]:
    """Which of the lines `tick 0` and so on are not there. Those that are must be in order, and none twice."""
    numbers = [int(word) for word in output.split() if word.isdigit()]
    assert numbers == sorted(set(numbers)), output
    return set(range(count)) - set(numbers)


def quote(name: str) -> str:
    """As the Hub writes names in addresses: what Jupyter itself compares letter by letter."""
    return quote_all(name, safe="@~")


def _utf8(reply: requests.Response) -> requests.Response:
    """The Hub's pages name their encoding inside, where requests does not look."""
    reply.encoding = "utf-8"
    return reply


def _xsrf(page: str) -> str:
    found = re.search(r'name="_xsrf"\s+value="([^"]*)"', page)
    assert found, f"no form on this page: {_text(page)[:500]}"
    return html.unescape(found.group(1))


def _text(page: str) -> str:
    """What a person reads of a page."""
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page))).strip()


text_of = _text
