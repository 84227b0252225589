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
    """Adds each choice's report to the chunk that carries its finish_reason, which every choice gets.

    vLLM 0.32's generator makes no chunk of an output without any token, not even of an end, and 0.33's does. A request
    that is ended before its first block is finished has no other.

    Args:
        source: the engine's outputs, as vLLM's generator takes them: RequestOutputs, or with several prompts pairs of
            the prompt's index and one.
        samples: `n`, the number of choices per prompt.
        blank: what a choice of a chunk without text holds.
        header: the response's HEADER; None: that of its first line.
        counts_tokens: whether every chunk tells the usage so far.
    """

    def __init__(
        self,
        source: AsyncGenerator[Any, None],
        samples: int,
        *,
        blank: dict[str, Any],
        header: dict[str, Any] | None = None,
        counts_tokens: bool = False,
    ) -> None:
        self._source = source
        self._samples = samples
        self._blank = blank
        self._header = header
        self._counts_tokens = counts_tokens
        self._tokens: dict[int, tuple[int, int]] = {}  # by choice: of its prompt, of its text so far
        # By choice: what its last chunk, which has not passed yet, tells beside its text.
        self._ended: dict[int, dict[str, Any]] = {}

    async def outputs(self) -> AsyncGenerator[Any, None]:
        """The engine's outputs, for vLLM's generator."""
        async for item in self._source:
            self._note(item)
            yield item

    async def lines(self, made: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The response's lines, from those that vLLM's generator made of `outputs()`."""
        try:
            async for line in made:
                for complete in self._completed(line):
                    yield complete
        finally:
            # Whoever drops the response ends the request, now and not when its parts are collected as garbage.
            await made.aclose()
            await self._source.aclose()

    def _choices(self, item: Any) -> Iterator[tuple[int, Any, Any]]:
        """(index of the choice, RequestOutput, CompletionOutput) of one item of the source."""
        prompt, result = item if isinstance(item, tuple) else (0, item)
        for output in result.outputs:
            yield prompt * self._samples + output.index, result, output

    def _note(self, item: Any) -> None:
        for index, result, output in self._choices(item):
            self._count(index, result, len(output.token_ids))
            if output.finish_reason is not None:
                self._ended[index] = {"finish_reason": output.finish_reason}
                if hasattr(output, "infogain"):
                    self._ended[index]["infogain"] = output.infogain.report

    def _count(self, index: int, result: Any, new: int) -> None:
        if self._counts_tokens:
            _, before = self._tokens.get(index, (0, 0))
            self._tokens[index] = (len(result.prompt_token_ids), before + new)

    def _completed(self, line: str) -> Iterator[str]:
        """One of vLLM's lines with the reports that belong to it, behind the chunks that it left out."""
        if not self._ended and self._header is not None:
            yield line
            return
        chunk = json.loads(line.removeprefix(PREFIX)) if line.startswith(PREFIX + "{") else {}
        if self._header is None:
            self._header = {name: chunk[name] for name in HEADER if name in chunk}
        if "error" in chunk:
            self._ended.clear()
        if not chunk.get("choices"):  # the usage, or the end: no text follows
            for index, end in sorted(self._ended.items()):
                yield self._chunk(index, **end)
            self._ended.clear()
        has_report = False
        for choice in chunk.get("choices", ()):
            if choice.get("finish_reason") is not None:
                end = self._ended.pop(choice["index"])
                if "infogain" in end:
                    choice["infogain"], has_report = end["infogain"], True
        yield _line(chunk) if has_report else line

    def _chunk(self, index: int, **fields: Any) -> str:
        """A line of our own: a chunk without text."""
        choice = {"index": index, **self._blank, "logprobs": None, "finish_reason": None, **fields}
        chunk = {**(self._header or {}), "choices": [choice]}
        if self._counts_tokens:
            prompt, text = self._tokens[index]
            chunk["usage"] = {"prompt_tokens": prompt, "total_tokens": prompt + text, "completion_tokens": text}
        return _line(chunk)


class CanvasStream(ReportStream):
    """Also sends decoding steps as soon as they are taken, each time as a chunk without text, before any text that they
    complete.

    vLLM's generator is not shown outputs that bring steps only: it would pass over some of them, make empty chunks of
    others. It therefore waits while steps arrive, and runs as a task beside the response.

    Args:
        source, samples, others: as of ReportStream.
        decode: text of one token by its id.
    """

    def __init__(
        self, source: AsyncGenerator[Any, None], samples: int, *, decode: Callable[[int], str], **others: Any
    ) -> None:
        super().__init__(source, samples, **others)
        self._decode = decode
        # Lines ready to be sent, None behind the last. A canvas is finite, and so is what can wait here.
        self._ready: asyncio.Queue[str | None] = asyncio.Queue()

    async def outputs(self) -> AsyncGenerator[Any, None]:
        is_open = False
        async for item in self._source:
            if not is_open:
                # What vLLM opens a response with (in chat the role) comes before the first step.
                yield _narrowed(item, [])
                is_open = True
            for index, result, output in self._choices(item):
                if hasattr(output, "infogain") and (steps := output.infogain.take_steps()):
                    self._count(index, result, 0)  # its tokens come behind the steps
                    self._ready.put_nowait(self._event(index, steps))
            self._note(item)
            said = [
                output for *_, output in self._choices(item) if output.token_ids or output.finish_reason is not None
            ]
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
                for complete in self._completed(line):
                    self._ready.put_nowait(complete)
        finally:
            self._ready.put_nowait(None)

    def _event(self, index: int, steps: list[dict[str, Any]]) -> str:
        told = [step | {"text": [self._decode(token) for token in step["tokens"]]} for step in steps]
        return self._chunk(index, infogain_steps=told)


def _line(chunk: dict[str, Any]) -> str:
    return f"{PREFIX}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _narrowed(item: Any, outputs: list[Any]) -> Any:
    """An item of the source with these outputs only."""
    if isinstance(item, tuple):
        return (item[0], _narrowed(item[1], outputs))
    narrowed = copy.copy(item)
    narrowed.outputs = outputs
    return narrowed
