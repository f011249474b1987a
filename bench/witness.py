"""Conversations that are open before a line goes dead, and what becomes of them: numbers that must all come, in order.

Runs in the thread that calls it, which is in the space of the users.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from net import Failed

HOST = "127.0.0.1"
EVERY_S = 0.05
#: A new request is given up after this, and another one begins so often.
ASK_WITHIN_S, ASK_EVERY_S = 5, 0.1
READY_WITHIN_S = 10
#: How long conversations go on before the event and after they came back.
BEFORE_S, AFTER_S = 1.5, 1.5
#: What was sent last has this time to come back.
LAST_WITHIN_S = 10

WEB_SOCKET = (
    b"GET /ws HTTP/1.1\r\nHost: users\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
DRIP = f"GET /drip?ms={EVERY_S * 1000:.0f}&n=1000000 HTTP/1.1\r\nHost: users\r\n\r\n".encode()
ASK = b"GET / HTTP/1.1\r\nHost: users\r\nConnection: close\r\n\r\n"


class Numbers:
    """One conversation: 0, 1, 2 and so on arrive, or it is not whole."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.next = 0
        #: When the latest came, and why no more will.
        self.latest = 0.0
        self.lost = ""

    async def follow(self, numbers: AsyncIterator[int]) -> None:
        """Until it ends. What ends it is kept; a number that is not the next one fails at once."""
        try:
            async for number in numbers:
                if number != self.next:
                    raise Failed(f"{self.name}: {number} came where {self.next} was due")
                self.next, self.latest = number + 1, time.monotonic()
            self.lost = "it ended"
        except (OSError, EOFError) as error:
            self.lost = f"{type(error).__name__}: {error}"


@dataclass
class Seen:
    """What became of everything after the event, in seconds since its end."""

    #: Until the first request that began after it was answered.
    request_s: float
    #: By name, until the next number came; of those that were not lost.
    went_on_s: dict[str, float]
    #: By name, why.
    lost: dict[str, str]


async def witness(port: int, event: Callable[[], Awaitable[None]], within_s: float) -> Seen:
    """Opens both conversations, lets the event happen, and watches until all is back or lost."""
    stop, sent = asyncio.Event(), [0]
    web_socket, drip = both = Numbers("open WebSocket"), Numbers("open streaming response")
    following = [
        asyncio.create_task(web_socket.follow(echoed(port, sent, stop))),
        asyncio.create_task(drip.follow(dripped(port))),
    ]

    def whole(done: bool) -> bool:
        for task in following:
            if task.done():
                task.result()  # raises when a conversation was not whole
        return done

    try:
        await until(lambda: whole(all(each.next for each in both)), READY_WITHIN_S, "both conversations")
        await asyncio.sleep(BEFORE_S)
        await event()
        since, went_on = time.monotonic(), dict[str, float]()
        answered = asyncio.create_task(answer(port, within_s))

        def back() -> bool:
            for each in both:
                if each.latest > since:
                    went_on.setdefault(each.name, each.latest - since)
            return whole(answered.done() and all(each.lost or each.name in went_on for each in both))

        await until(back, within_s, "everything back")
        await asyncio.sleep(AFTER_S)
        stop.set()
        await asyncio.sleep(2 * EVERY_S)
        last = "the last echoes"
        await until(lambda: whole(bool(web_socket.lost) or web_socket.next == sent[0]), LAST_WITHIN_S, last)
        lost = {each.name: each.lost for each in both if each.lost}
        kept = {name: after_s for name, after_s in went_on.items() if name not in lost}
        return Seen(await answered - since, kept, lost)
    finally:
        for task in following:
            task.cancel()


async def until(done: Callable[[], bool], within_s: float, what: str) -> None:
    end = time.monotonic() + within_s
    while not done():
        if time.monotonic() > end:
            raise Failed(f"{what}: not there within {within_s:g} s")
        await asyncio.sleep(0.005)


async def echoed(port: int, sent: list[int], stop: asyncio.Event) -> AsyncIterator[int]:
    """Sends numbers over a WebSocket until it is told to stop, and yields what comes back."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(WEB_SOCKET)
    if b" 101 " not in await reader.readuntil(b"\r\n\r\n"):
        raise Failed("no WebSocket")

    async def send() -> None:
        with contextlib.suppress(OSError):  # the reader hears of it too
            while not stop.is_set():
                number = b"%08d" % sent[0]
                writer.write(bytes([0x82, 0x80 | len(number), 0, 0, 0, 0]) + number)
                sent[0] += 1
                await writer.drain()
                await asyncio.sleep(EVERY_S)

    sending = asyncio.create_task(send())
    try:
        while True:
            head = await reader.readexactly(2)
            if head != b"\x82\x08":
                raise Failed(f"the WebSocket brought a frame that nobody sent: {head.hex()}")
            yield int(await reader.readexactly(8))
    finally:
        sending.cancel()
        writer.close()


async def dripped(port: int) -> AsyncIterator[int]:
    """Lines of an answer that goes on and on."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(DRIP)
    if b" 200 " not in await reader.readuntil(b"\r\n\r\n"):
        raise Failed("no streaming response")
    try:
        while True:
            chunk = await reader.readuntil(b"\n\r\n")
            size, line, _ = chunk.split(b"\n", 2)
            if size != b"9\r" or len(line) != 8:
                raise Failed(f"the streaming response brought {chunk!r}")
            yield int(line)
    finally:
        writer.close()


async def answer(port: int, within_s: float) -> float:
    """Begins a request again and again. When the first of them had its answer."""
    asking: set[asyncio.Task[float]] = set()
    end = time.monotonic() + within_s
    try:
        while time.monotonic() < end:
            asking.add(asyncio.create_task(ask(port)))
            done, asking = await asyncio.wait(asking, timeout=ASK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if times := [task.result() for task in done if task.exception() is None]:
                return min(times)
            if done:
                await asyncio.sleep(ASK_EVERY_S)
    finally:
        for task in asking:
            task.cancel()
    raise Failed(f"no new request was answered within {within_s:g} s")


async def ask(port: int) -> float:
    """One request on a connection of its own. When its answer was there."""

    async def asked() -> bytes:
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(ASK)
            return await reader.read()
        finally:
            writer.close()

    reply = await asyncio.wait_for(asked(), ASK_WITHIN_S)
    if b" 200 " not in reply or not reply.endswith(b"x\n"):
        raise OSError("no whole answer")
    return time.monotonic()
