"""What is added to a streamed response, with a stand-in for vLLM's generator: order, errors, and what leaving does."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_infogain.patches import openai_choices
from waiting import PATIENCE

from vllm_infogain import compat
from vllm_infogain.serving.progress import Progress
from vllm_infogain.serving.streams import CanvasStream, ReportStream

HEADER = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "tiny"}


@dataclass
class Engine:
    """A source of outputs that notes how it ended."""

    items: Iterable[Any]
    waits: bool = False  # for ever behind the last item
    ended: str = "not"
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    async def outputs(self):
        try:
            for item in self.items:
                if isinstance(item, Exception):
                    raise item
                yield item
            if self.waits:
                self.waiting.set()
                await asyncio.Event().wait()
            self.ended = "whole"
        except (asyncio.CancelledError, GeneratorExit):
            self.ended = "aborted"
            raise


def sample(text: str = "", *, index: int = 0, finish: str | None = None, progress: Progress | None = None, steps=()):
    """One CompletionOutput, a token per character, and what the scheduler said with it."""
    progress = progress or Progress()
    progress.update({"report": {"forwards": len(text)}, "steps": list(steps)})
    return SimpleNamespace(
        index=index, text=text, token_ids=[ord(letter) for letter in text], finish_reason=finish, infogain=progress
    )


def item(*outputs) -> SimpleNamespace:
    return SimpleNamespace(outputs=list(outputs), prompt_token_ids=[5, 6, 7])


def step(*tokens: int) -> dict[str, Any]:
    return {"tokens": list(tokens)}


async def vllms_generator(results, opening: bool = False, samples: int = 1):
    """As vLLM's are: one line per output, none for outputs without text before the first, errors as a line."""
    is_first, begun = True, set()
    try:
        async for result in results:
            prompt, result = result if isinstance(result, tuple) else (0, result)
            if is_first and opening:
                yield line(index=0, role="assistant")
            is_first = False
            for output in result.outputs:
                index = prompt * samples + output.index
                if output.token_ids or index in begun:
                    begun.add(index)
                    yield line(index=index, text=output.text, finish_reason=output.finish_reason)
    except ValueError as error:
        yield f"data: {json.dumps({'error': {'message': str(error)}})}\n\n"
    yield "data: [DONE]\n\n"


def line(**choice) -> str:
    return f"data: {json.dumps({**HEADER, 'choices': [choice]})}\n\n"


def report_stream(engine: Engine, samples: int = 1, **options) -> ReportStream:
    return ReportStream(engine.outputs(), samples, **({"blank": {"text": ""}, "header": HEADER} | options))


def canvas_stream(engine: Engine, samples: int = 1, **options) -> CanvasStream:
    options = {"blank": {"text": ""}, "header": HEADER, "decode": chr} | options
    return CanvasStream(engine.outputs(), samples, **options)


def told(line: str) -> Any:
    """A line in short: the text of a choice, the texts of its steps, or what else it is."""
    data = line.removeprefix("data: ").strip()
    if data == "[DONE]":
        return data
    chunk = json.loads(data)
    if "error" in chunk:
        return chunk["error"]["message"]
    (choice,) = chunk["choices"]
    if "infogain_steps" in choice:
        return ["".join(step["text"]) for step in choice["infogain_steps"]]
    return choice.get("role", choice.get("text"))


def lines_of(stream: ReportStream, **generator) -> list[str]:
    async def collect():
        return [line async for line in stream.lines(vllms_generator(stream.outputs(), **generator))]

    return asyncio.run(collect())


# Reports.


def test_only_the_chunk_with_the_finish_reason_carries_the_report():
    progress = Progress()
    items = [item(sample("ab", progress=progress)), item(sample("cd", finish="length", progress=progress))]
    lines = lines_of(report_stream(Engine(items)))
    assert [told(line) for line in lines] == ["ab", "cd", "[DONE]"]
    first, last = (json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:2])
    assert "infogain" not in first
    assert last["infogain"] == {"forwards": 2}


def test_every_line_but_the_last_passes_unchanged():
    items = [item(sample("ab")), item(sample("cä"))]
    lines = lines_of(report_stream(Engine(items)))
    assert lines == [line(index=0, text=text, finish_reason=None) for text in ("ab", "cä")] + ["data: [DONE]\n\n"]


def test_choices_of_several_prompts_and_samples_get_their_own_reports():
    ends = [(0, 0, "a"), (1, 1, "bb"), (0, 1, "ccc"), (1, 0, "dddd")]
    items = [(prompt, item(sample(text, index=index, finish="length"))) for prompt, index, text in ends]
    lines = lines_of(report_stream(Engine(items), 2), samples=2)
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]
    assert {choice["index"]: choice["infogain"]["forwards"] for choice in choices} == {0: 1, 3: 2, 1: 3, 2: 4}


@pytest.mark.parametrize("make", [report_stream, canvas_stream])
@pytest.mark.parametrize("opening", [False, True])
def test_a_choice_that_ends_without_any_text_gets_a_chunk_that_says_so_before_the_end(make, opening):
    ended = [(0, item(sample(finish="abort"))), (1, item(sample("ab"))), (1, item(sample("c", finish="length")))]
    header = None if opening else HEADER
    *_, whole, late, done = lines_of(make(Engine(ended), header=header), opening=opening)
    assert [told(line) for line in (whole, late, done)] == ["c", "", "[DONE]"]
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "abort", "infogain": {"forwards": 0}}
    assert json.loads(late.removeprefix("data: ")) == {**HEADER, "choices": [choice]}


def test_of_a_choice_that_nothing_is_known_about_the_end_is_told_all_the_same():
    output = SimpleNamespace(index=0, text="", token_ids=[], finish_reason="abort")
    (late, _) = lines_of(report_stream(Engine([item(output)])))
    (choice,) = json.loads(late.removeprefix("data: "))["choices"]
    assert choice == {"index": 0, "text": "", "logprobs": None, "finish_reason": "abort"}


@pytest.mark.parametrize("make", [report_stream, canvas_stream])
def test_nothing_is_told_of_ends_behind_an_error(make):
    engine = Engine([item(sample(finish="error")), ValueError("the engine died")])
    assert [told(line) for line in lines_of(make(engine))] == ["the engine died", "[DONE]"]


def test_our_own_chunks_count_tokens_where_vllms_do():
    def items():
        progress = Progress()
        yield item(sample(progress=progress, steps=[step(97)]))
        yield item(sample("ab", progress=progress))
        yield item(sample(progress=progress, steps=[step(99)]), sample(index=1, finish="abort"))

    lines = lines_of(canvas_stream(Engine(items()), samples=2, counts_tokens=True), samples=2)
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    usages = [chunk["usage"] for chunk in chunks if "usage" in chunk]
    # Two chunks of steps around the text, and the end of the other choice.
    assert [usage["completion_tokens"] for usage in usages] == [0, 2, 0]
    assert [usage["prompt_tokens"] for usage in usages] == [3, 3, 3]
    assert [usage["total_tokens"] for usage in usages] == [3, 5, 3]


def test_an_output_of_another_engine_passes_without_a_report():
    output = SimpleNamespace(index=0, text="a", token_ids=[1], finish_reason="stop")
    lines = lines_of(report_stream(Engine([item(output)])))
    assert lines[0] == line(index=0, text="a", finish_reason="stop")


# Steps.


def test_steps_come_before_the_text_they_complete_and_as_soon_as_they_are_taken():
    def items():
        progress = Progress()
        yield item(sample(progress=progress, steps=[step(98)]))
        yield item(sample("ab", progress=progress, steps=[step(97)]))
        yield item(sample(progress=progress, steps=[step(99), step(100)]))
        yield item(sample("cd", finish="length", progress=progress))

    lines = lines_of(canvas_stream(Engine(items())))
    assert [told(line) for line in lines] == [["b"], ["a"], "ab", ["c", "d"], "cd", "[DONE]"]


def test_a_step_is_sent_while_vllms_generator_waits_for_text():
    async def first_line():
        engine = Engine([item(sample(steps=[step(97)]))], waits=True)
        stream = canvas_stream(engine)
        lines = stream.lines(vllms_generator(stream.outputs()))
        async with asyncio.timeout(PATIENCE):
            line = await anext(lines)
        await lines.aclose()
        return line

    assert told(asyncio.run(first_line())) == ["a"]


def test_a_chunk_of_steps_is_an_ordinary_chunk_without_text():
    lines = lines_of(canvas_stream(Engine([(1, item(sample("ab", steps=[step(98, 97)])))]), samples=3), samples=3)
    choice = {"index": 3, "text": "", "logprobs": None, "finish_reason": None}
    choice["infogain_steps"] = [{"tokens": [98, 97], "text": ["b", "a"]}]
    assert json.loads(lines[0].removeprefix("data: ")) == {**HEADER, "choices": [choice]}


def test_the_opening_of_a_chat_comes_before_the_first_step_whose_chunk_takes_its_header():
    items = [item(sample("ab", finish="length", steps=[step(97)]))]
    lines = lines_of(canvas_stream(Engine(items), header=None), opening=True)
    assert [told(line) for line in lines] == ["assistant", ["a"], "ab", "[DONE]"]
    assert json.loads(lines[1].removeprefix("data: ")).items() >= HEADER.items()


def test_the_text_is_that_of_a_stream_without_steps_line_by_line():
    def items():
        one, two = Progress(), Progress()
        yield item(sample(progress=one, steps=[step(97)]), sample("xy", index=1, progress=two, steps=[step(120)]))
        yield item(sample("ab", progress=one))
        yield item(sample("z", index=1, progress=two, finish="stop"))
        yield item(sample("c", progress=one, finish="length"))

    canvas = lines_of(canvas_stream(Engine(items()), samples=2))
    block = lines_of(report_stream(Engine(items()), 2))
    texts = [line for line in canvas if "infogain_steps" not in line]
    assert texts == [line for line in block if '"text":""' not in line.replace(" ", "")]
    assert len(canvas) == len(texts) + 2


# Errors and leaving.


@pytest.mark.parametrize("make", [report_stream, canvas_stream])
def test_an_error_of_the_engine_ends_the_stream_as_vllm_says_it(make):
    engine = Engine([item(sample("ab")), ValueError("the engine died")])
    assert [told(line) for line in lines_of(make(engine))] == ["ab", "the engine died", "[DONE]"]


def test_an_error_in_a_step_ends_the_stream_as_vllm_says_it():
    engine = Engine([item(sample("ab", steps=[step(-1)]))])
    (message, done) = [told(line) for line in lines_of(canvas_stream(engine))]
    assert "chr()" in message
    assert done == "[DONE]"


def test_an_error_of_the_generator_itself_is_not_lost():
    async def broken(results):
        async for _ in results:
            raise RuntimeError("broken")
        yield ""

    async def collect():
        stream = canvas_stream(Engine([item(sample("ab"))]))
        return [line async for line in stream.lines(broken(stream.outputs()))]

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(collect())


@pytest.mark.parametrize("make", [report_stream, canvas_stream])
@pytest.mark.parametrize("leave", ["cancelled while it waits", "closed between two lines", "cancelled twice"])
def test_leaving_aborts_the_request_at_once(make, leave):
    async def run():
        engine = Engine([item(sample("ab")), item(sample("cd"))], waits=True)
        stream = make(engine)
        lines = stream.lines(vllms_generator(stream.outputs()))
        if leave == "closed between two lines":
            assert told(await anext(lines)) == "ab"
            await lines.aclose()
        else:

            async def read():
                async for _ in lines:
                    pass

            reader = asyncio.create_task(read())
            await engine.waiting.wait()
            reader.cancel()
            if leave == "cancelled twice":
                await asyncio.sleep(0)
                reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
        assert engine.ended == "aborted"

    asyncio.run(run())


def test_a_second_cancellation_does_not_reach_the_engine_in_the_midst_of_the_abort():
    async def run():
        waiting, aborting, told, aborted = (asyncio.Event() for _ in range(4))

        async def outputs():
            try:
                waiting.set()
                await asyncio.Event().wait()
                yield
            except asyncio.CancelledError:
                aborting.set()
                await told.wait()  # the message to the engine
                aborted.set()
                raise

        stream = CanvasStream(outputs(), 1, blank={}, decode=chr, header=HEADER)
        lines = stream.lines(vllms_generator(stream.outputs()))
        reader = asyncio.create_task(anext(lines))
        async with asyncio.timeout(PATIENCE):
            await waiting.wait()
            reader.cancel()
            await aborting.wait()
            for _ in range(3):
                reader.cancel()
                for _ in range(10):  # whatever is to run because of it
                    await asyncio.sleep(0)
            told.set()
            await aborted.wait()
            await asyncio.wait([reader])
        assert reader.cancelled()

    asyncio.run(run())


# Engines that are not ours.


@pytest.mark.parametrize(
    ("server", "name", "arguments"),
    [
        (
            "OpenAIServingCompletion",
            "completion_stream_generator",
            ("request", "inputs", "results", "id", 5, "model", 1),
        ),
        (
            "OpenAIServingChat",
            "chat_completion_stream_generator",
            ("request", "results", "id", "model", "conversation", "tokenizer"),
        ),
    ],
)
def test_a_stream_of_another_engine_is_vllms_own(monkeypatch, server, name, arguments):
    config = SimpleNamespace(scheduler_config=SimpleNamespace(scheduler_cls="some.Scheduler"))
    serving = SimpleNamespace(engine_client=SimpleNamespace(vllm_config=config))
    calls = []

    def vllms(*args, **kwargs):
        calls.append((args, kwargs))
        return "vLLM's own"

    monkeypatch.setattr(getattr(compat, server), name, vllms)
    openai_choices.apply()
    named = {"tokenizer": "tokenizer"} if server == "OpenAIServingCompletion" else {}
    assert getattr(getattr(compat, server), name)(serving, *arguments, **named) == "vLLM's own"
    assert calls == [((serving, *arguments), named)]
