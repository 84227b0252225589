"""What decodes the questions: an `LLM` in this process, a running server, or the library without vLLM."""

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.paper.experiment import Cell
from benchmarks.paper.problems import Question
from vllm_infogain.serving.progress import Progress

SEEDS_PER_RUN = 1_000_000
SECONDS_OF_A_REQUEST = 3600.0


@dataclass(frozen=True)
class Request:
    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    stop: tuple[str, ...]
    knobs: dict[str, Any]

    @classmethod
    def of(cls, cell: Cell, question: Question) -> "Request":
        return cls(
            prompt=question.prompt,
            max_tokens=cell.max_tokens or question.max_tokens,
            temperature=question.temperature if cell.temperature is None else cell.temperature,
            seed=cell.run * SEEDS_PER_RUN + question.index,  # its tokens depend on nothing that was decoded beside it
            stop=question.stop,
            knobs=cell.knobs,
        )

    def chat(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class Output:
    text: str
    tokens: list[int] | None  # None: the server did not say
    report: dict[str, Any]
    seconds: float | None  # its share of the batch's
    cpu_seconds: float | None  # None: the engine's processes are not this one


class Engine(Protocol):
    def decode(self, requests: Sequence[Request]) -> list[Output]:
        """In the order of the requests."""
        ...


class InProcess:
    """A `vllm.LLM`. Chats, where the checkpoint has a template for them."""

    def __init__(self, llm: Any, plain: bool = False) -> None:
        self.llm = llm
        self.chats = not plain and bool(getattr(llm.get_tokenizer(), "chat_template", None))

    def decode(self, requests: Sequence[Request]) -> list[Output]:
        import vllm_infogain

        params = [_sampling_params(request) for request in requests]
        start, cpu_start = time.perf_counter(), time.process_time()
        if self.chats:
            outputs = self.llm.chat([request.chat() for request in requests], params, use_tqdm=False)
        else:
            outputs = self.llm.generate([request.prompt for request in requests], params, use_tqdm=False)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return [
            Output(
                output.outputs[0].text, list(output.outputs[0].token_ids), vllm_infogain.report(output),
                seconds / len(requests), cpu_seconds / len(requests),
            )
            for output in outputs
        ]  # fmt: skip


def _sampling_params(request: Request) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=request.max_tokens, temperature=request.temperature, seed=request.seed, stop=list(request.stop),
        extra_args=request.knobs,
    )  # fmt: skip


@contextlib.contextmanager
def in_process(model: str | None, engine_args: dict[str, Any], plain: bool = False) -> Iterator[InProcess]:
    from benchmarks.llm import started

    with started(model, **engine_args) as llm:
        yield InProcess(llm, plain)


class Library:
    """`InfoGainSampler`, one question at a time: torch without vLLM, for the embedded model and LLaDA."""

    def __init__(self, sampler: Any, encode: Any) -> None:
        self.sampler = sampler
        self.encode = encode  # text -> ids

    def decode(self, requests: Sequence[Request]) -> list[Output]:
        return [self._decode(request) for request in requests]

    def _decode(self, request: Request) -> Output:
        start, cpu_start = time.perf_counter(), time.process_time()
        (sample,) = self.sampler.sample(
            self.encode(request.prompt), request.max_tokens, temperature=request.temperature, seed=request.seed,
            **{"return_trajectory": False, **request.knobs},
        )  # fmt: skip
        text = sample.text
        for stop in request.stop:
            text = text.partition(stop)[0]
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return Output(text, sample.tokens, _report(sample.report, request), seconds, cpu_seconds)


def _report(report: Any, request: Request) -> dict[str, Any]:
    """As the engine gives it."""
    if not request.knobs.get("return_trajectory"):
        return report.totals()
    progress = Progress()
    steps = [asdict(step) for step in report.trajectory]
    progress.update({"report": report.totals(), "steps": steps, "canvas_length": request.max_tokens})
    return progress.report


def library(model: str | None) -> Library:
    from transformers import AutoTokenizer

    from vllm_infogain import InfoGainSampler, engine_defaults
    from vllm_infogain.reference.llada import LLaDA

    path = engine_defaults.model_args(model)["model"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    return Library(InfoGainSampler(LLaDA.from_checkpoint(path), tokenizer), tokenizer.encode)


class Server:
    """A server of ours, by its OpenAI routes."""

    def __init__(self, url: str, model: str, concurrency: int = 16, plain: bool = False) -> None:
        self.url = url
        self.model = model
        self.concurrency = concurrency
        self.plain = plain

    def decode(self, requests: Sequence[Request]) -> list[Output]:
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self._ask, requests))

    def _ask(self, request: Request) -> Output:
        body: dict[str, Any] = {
            "model": self.model, "max_tokens": request.max_tokens, "temperature": request.temperature,
            "seed": request.seed, "vllm_xargs": request.knobs, "return_token_ids": True,
        }  # fmt: skip
        if request.stop:
            body["stop"] = list(request.stop)
        start = time.perf_counter()
        if self.plain:
            choice = ask(self.url, "completions", body | {"prompt": request.prompt})["choices"][0]
            text = choice["text"]
        else:
            choice = ask(self.url, "chat/completions", body | {"messages": request.chat()})["choices"][0]
            text = choice["message"]["content"] or ""
        seconds = time.perf_counter() - start
        return Output(text, choice.get("token_ids"), choice["infogain"], seconds, None)


def served_model(url: str) -> str:
    """The first name that a server gives its model."""
    return ask(url, "models")["data"][0]["id"]


def ask(url: str, route: str, body: dict[str, Any] | None = None) -> Any:
    """A server's answer; another status than 200 is an error."""
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/{route}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_OF_A_REQUEST) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{address} answers {error.code}: {error.read().decode()[:2000]}") from error


def has_chat_template(model: str | None) -> bool:
    from transformers import AutoTokenizer

    from vllm_infogain import engine_defaults

    return bool(AutoTokenizer.from_pretrained(engine_defaults.model_args(model)["model"]).chat_template)


def attends_in_blocks(model: str | None) -> bool:
    """Whether a checkpoint's attention is causal over blocks: it has no whole-canvas block."""
    if model is None:
        return False
    from transformers import AutoConfig

    from vllm_infogain.plugin import register

    register()
    return getattr(AutoConfig.from_pretrained(model), "attention_kind", "full") == "block_causal"
