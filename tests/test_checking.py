"""Checks that take long: the loop goes on meanwhile, and no stream begins before them."""

import asyncio
import threading

import pytest

from vllm_infogain.serving.checking import after_checks, generate_checked

PATIENCE = 60  # seconds that a thread waits for a loop which stands still; where none does, it is never waited for


async def outputs():
    for number in range(3):
        yield number


def nothing() -> None: ...


def refuse() -> None:
    raise ValueError("refused")


async def collected(generator) -> list:
    return [item async for item in generator]


def test_the_event_loop_goes_on_while_a_check_computes():
    ticked = threading.Event()

    def slow() -> None:
        assert ticked.wait(PATIENCE), "the loop stands still until the check is done"

    async def serve() -> list:
        generator = generate_checked(slow, nothing, outputs)
        asyncio.get_running_loop().call_later(0, ticked.set)
        return await collected(generator)

    assert asyncio.run(serve()) == [0, 1, 2]


@pytest.mark.parametrize("which", ["slow", "check"])
def test_what_is_refused_is_never_generated(which):
    begun = []

    async def watched():
        begun.append(True)
        yield 0

    async def serve() -> None:
        checks = {"slow": nothing, "check": nothing} | {which: refuse}
        await collected(generate_checked(checks["slow"], checks["check"], watched))

    with pytest.raises(ValueError, match="refused"):
        asyncio.run(serve())
    assert not begun


def test_a_response_waits_for_the_checks_that_making_it_started_wherever_it_did():
    order = []

    async def respond():
        async def handler():  # vLLM's handlers run in a task of their own
            return generate_checked(nothing, lambda: order.append("checked"), outputs)

        stream = await asyncio.create_task(handler())
        order.append("made")
        return stream

    async def serve() -> list:
        stream = await after_checks(respond)
        order.append("started")
        return await collected(stream)

    assert asyncio.run(serve()) == [0, 1, 2]
    assert order == ["made", "checked", "started"]


def test_a_stream_that_a_check_refuses_does_not_start_and_what_would_follow_it_is_done():
    done = []

    class Response:
        async def background(self) -> None:
            done.append(True)

    async def respond():
        generate_checked(refuse, nothing, outputs)
        return Response()

    with pytest.raises(ValueError, match="refused"):
        asyncio.run(after_checks(respond))
    assert done


def test_checks_of_an_endpoint_that_failed_are_given_up():
    checked = []

    async def respond():
        generate_checked(nothing, lambda: checked.append(True), outputs)
        raise KeyError("failed")

    with pytest.raises(KeyError):
        asyncio.run(after_checks(respond))
    assert not checked


def test_closing_checked_outputs_closes_what_they_are_made_of():
    closed = []

    async def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    async def serve() -> None:
        generator = generate_checked(nothing, nothing, endless)
        await anext(generator)
        await generator.aclose()
        assert closed

    asyncio.run(serve())
