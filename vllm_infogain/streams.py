"""What our requests add to a streamed response of the OpenAI API. Imports neither torch nor vLLM.

vLLM's own generator makes the lines of the response out of the engine's outputs, and stays as it is: the outputs are
watched on their way in, the lines amended or preceded on their way out.
"""

import asyncio
import copy
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

PREFIX = "data: "  # of an event's line
HEADER = ("id", "object", "created", "model")  # what all chunks of a response have in common


class ReportStream:
    """Adds each choice's report to the chunk that carries its finish_reason.

    Args:
        source: the engine's outputs, as vLLM's generator takes them: RequestOutputs, or with several prompts pairs of
            the prompt's index and one.
        samples: `n`, the number of choices per prompt.
    """

    def __init__(self, source: AsyncGenerator[Any, None], samples: int) -> None:
        self._source = source
        self._samples = samples
        self._ended: dict[int, dict[str, Any]] = {}  # by choice: reports whose chunk has not passed yet

    async def outputs(self) -> AsyncGenerator[Any, None]:
        """The engine's outputs, for vLLM's generator."""
        async for item in self._source:
            self._note_ended(item)
            yield item

    async def lines(self, made: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The response's lines, from those that vLLM's generator made of `outputs()`."""
        try:
            async for line in made:
                yield self._reported(line)
        finally:
            # Whoever drops the response ends the request, now and not when its parts are collected as garbage.
            await made.aclose()
            await self._source.aclose()

    def _choices(self, item: Any) -> Iterator[tuple[int, Any]]:
        """(index of the choice, CompletionOutput) of one item of the source."""
        prompt, result = item if isinstance(item, tuple) else (0, item)
        for output in result.outputs:
            yield prompt * self._samples + output.index, output

    def _note_ended(self, item: Any) -> None:
        for index, output in self._choices(item):
            if output.finish_reason is not None and hasattr(output, "infogain"):
                self._ended[index] = output.infogain.report

    def _reported(self, line: str) -> str:
        if not self._ended or not line.startswith(PREFIX + "{"):
            return line
        chunk = json.loads(line.removeprefix(PREFIX))
        for choice in chunk.get("choices", ()):
            if choice.get("finish_reason") is not None and choice["index"] in self._ended:
                choice["infogain"] = self._ended.pop(choice["index"])
        return _line(chunk)


class CanvasStream(ReportStream):
    """Also sends decoding steps as soon as they are taken, each time as a chunk without text, before any text that they
    complete.

    vLLM's generator is not shown outputs that bring steps only: it would pass over some of them, make empty chunks of
    others. It therefore waits while steps arrive, and runs as a task beside the response.

    Args:
        source, samples: as of ReportStream.
        blank: what a choice of a chunk without text holds.
        decode: text of one token by its id.
        header: the response's HEADER; None: that of its first line.
    """

    def __init__(
        self,
        source: AsyncGenerator[Any, None],
        samples: int,
        *,
        blank: dict[str, Any],
        decode: Callable[[int], str],
        header: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(source, samples)
        self._blank = blank
        self._decode = decode
        self._header = header
        # Lines ready to be sent, None behind the last. A canvas is finite, and so is what can wait here.
        self._ready: asyncio.Queue[str | None] = asyncio.Queue()

    async def outputs(self) -> AsyncGenerator[Any, None]:
        is_open = False
        async for item in self._source:
            if not is_open:
                # What vLLM opens a response with (in chat the role) comes before the first step.
                yield _narrowed(item, [])
                is_open = True
            for index, output in self._choices(item):
                if hasattr(output, "infogain") and (steps := output.infogain.take_steps()):
                    self._ready.put_nowait(self._event(index, steps))
            self._note_ended(item)
            said = [output for _, output in self._choices(item) if output.token_ids or output.finish_reason is not None]
            if said:
                yield _narrowed(item, said)

    async def lines(self, made: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        maker = asyncio.create_task(self._make_ready(made))
        try:
            while (line := await self._ready.get()) is not None:
                yield line
            await maker  # done; for what it may have raised
        finally:
            # Cancelled where it waits for the engine, it has the request aborted. Awaited through `wait`: a second
            # cancellation of the response must not reach it in the midst of that.
            maker.cancel()
            await asyncio.wait({maker})

    async def _make_ready(self, made: AsyncGenerator[str, None]) -> None:
        try:
            async for line in made:
                if self._header is None:
                    chunk = json.loads(line.removeprefix(PREFIX))
                    self._header = {name: chunk[name] for name in HEADER if name in chunk}
                self._ready.put_nowait(self._reported(line))
        finally:
            self._ready.put_nowait(None)

    def _event(self, index: int, steps: list[dict[str, Any]]) -> str:
        told = [step | {"text": [self._decode(token) for token in step["tokens"]]} for step in steps]
        choice = {"index": index, **self._blank, "logprobs": None, "finish_reason": None, "infogain_steps": told}
        return _line({**(self._header or {}), "choices": [choice]})


def _line(chunk: dict[str, Any]) -> str:
    return f"{PREFIX}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _narrowed(item: Any, outputs: list[Any]) -> Any:
    """An item of the source with these outputs only."""
    if isinstance(item, tuple):
        return (item[0], _narrowed(item[1], outputs))
    narrowed = copy.copy(item)
    narrowed.outputs = outputs
    return narrowed
