"""Waiting with a limit."""

from __future__ import annotations

import asyncio
import contextlib
import gc

from jupyterhub_glidepath.waiting import within


async def test_an_error_that_comes_with_a_cancel_is_not_printed():
    loop, printed = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _loop, context: printed.append(context["message"]))
    act = loop.create_future()
    waiting = asyncio.create_task(within(act, 5))
    await asyncio.sleep(0)
    act.set_exception(OSError("the service is away"))
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    del act, waiting
    gc.collect()
    await asyncio.sleep(0)
    assert printed == []
