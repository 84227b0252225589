"""Checks that take long: in a thread, so that the event loop goes on, and before the response to a request starts.

Imports neither torch nor vLLM.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

# One: threads that compute share the interpreter, and the loop is one of them.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="infogain-checks")
# Checks that the request now served has started; None outside of one.
_started: ContextVar[list["asyncio.Task[None]"] | None] = ContextVar("infogain_checks", default=None)


def generate_checked(
    slow: Callable[[], Any], check: Callable[[], Any], generate: Callable[[], AsyncGenerator[T, None]]
) -> AsyncGenerator[T, None]:
    """What `generate` yields, once `slow` (in the thread) and then `check` have found nothing to refuse.

    Both start now; a response that is made of the outputs waits for them, see `after_checks`.
    """

    async def run() -> None:
        await asyncio.get_running_loop().run_in_executor(_thread, slow)
        check()

    checking = asyncio.get_running_loop().create_task(run())
    checking.add_done_callback(_retrieve)
    if (started := _started.get()) is not None:
        started.append(checking)

    async def checked() -> AsyncGenerator[T, None]:
        await checking
        async with aclosing(generate()) as outputs:
            async for output in outputs:
                yield output

    return checked()


async def after_checks(respond: Callable[[], Awaitable[Any]]) -> Any:
    """The response to a request, once every check that making it has started is done.

    Raises:
        whatever the first failing check does: a stream that it concerns has not begun.
    """
    started: list[asyncio.Task[None]] = []
    token = _started.set(started)
    response = None
    try:
        response = await respond()
        await asyncio.gather(*started)
    except BaseException:
        for checking in started:
            checking.cancel()
        if (background := getattr(response, "background", None)) is not None:
            await background()  # it would have run at the end of the response
        raise
    finally:
        _started.reset(token)
    return response


def _retrieve(checking: "asyncio.Task[None]") -> None:
    """Whoever awaits a check gets its error; where nobody does any more, it is not worth a warning."""
    if not checking.cancelled():
        checking.exception()
