"""Waiting with a limit that a cancel always ends.

``asyncio.wait_for`` forgets a cancel that comes together with the result (until Python 3.12), and a Hub that shuts
down waits for ever for the task that did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def is_set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Waits until the event is set, at most so long; whether it is."""
    if not event.is_set():
        await _finish(asyncio.ensure_future(event.wait()), timeout_s)
    return event.is_set()


async def within(act: Awaitable[T], timeout_s: float) -> T:
    """The act's result. Raises ``asyncio.TimeoutError``, and cancels the act, when there is none in time."""
    task = asyncio.ensure_future(act)
    await _finish(task, timeout_s)
    if not task.done() or task.cancelled():
        raise asyncio.TimeoutError
    return task.result()


async def _finish(task: asyncio.Future[T], timeout_s: float) -> None:
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    finally:
        # Where a cancel came first, nobody asks for the error any more, and the loop would print it as one forgotten.
        task.add_done_callback(_hear)
        if not task.done():
            task.cancel()


def _hear(task: asyncio.Future[T]) -> None:
    if not task.cancelled():
        task.exception()
