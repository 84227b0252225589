"""Starting and stopping real vLLM engines inside the test process."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import torch
from marked import refuse_unmarked

import vllm_infogain
from benchmarks.llm import Job, started
from vllm_infogain.embedded.tokenizer import MASK, VOCAB
from vllm_infogain.reference import oracle
from vllm_infogain.reference.cached import CachingLLaDA
from vllm_infogain.reference.llada import LLaDA

MASK_ID = VOCAB[MASK]


@contextlib.contextmanager
def running(checkpoint: Path | None, model: oracle.Model | None = None, **engine_args: Any) -> Iterator["Engine"]:
    """An engine serving a checkpoint (None: the embedded model), with the plain model beside it (None: LLaDA)."""
    from vllm_infogain.embedded import model_path

    refuse_unmarked()
    settings: dict[str, Any] = {
        "dtype": "float32",
        "block_size": 32,
        "kv_cache_memory_bytes": 64 << 20,
    }
    with started(str(checkpoint) if checkpoint else None, **(settings | engine_args)) as llm:
        yield Engine(llm, model or CachingLLaDA(LLaDA.from_checkpoint(checkpoint or model_path())))


@dataclass
class Engine:
    llm: Any
    model: oracle.Model

    def run(self, jobs: list[Job]) -> list[Any]:
        """Through `LLM.generate`, in one batch."""
        prompts = [{"prompt_token_ids": self.prompt_ids(job)} for job in jobs]
        return self.llm.generate(prompts, [job.sampling_params(return_trajectory=True) for job in jobs], use_tqdm=False)

    def prompt_ids(self, job: Job) -> list[int]:
        return self.llm.get_tokenizer().encode(job.prompt) if isinstance(job.prompt, str) else job.prompt

    def drive(self, jobs: list[Job], between: Callable[[int], None]) -> list[Any]:
        """All jobs at once, step by step; `between(step)` runs after every step. None for one that was aborted."""
        llm_engine = self.llm.llm_engine
        for index, job in enumerate(jobs):
            llm_engine.add_request(str(index), job.prompt, job.sampling_params(return_trajectory=True))
        finished, step = {}, 0
        while llm_engine.has_unfinished_requests():
            finished |= {output.request_id: output for output in llm_engine.step() if output.finished}
            between(step)
            step += 1
            assert step < 500, "the engine does not come to an end"
        return [finished.get(str(index)) for index in range(len(jobs))]

    def preempt(self) -> int:
        """Take every running request's pages; returns how many it hit."""
        hit = len(self.scheduler.running)
        self.llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
        assert not self.scheduler.running
        return hit

    def oracle(self, job: Job) -> oracle.OracleResult:
        from vllm_infogain.compat import get_structured_output_key
        from vllm_infogain.grammar.backend import automaton_of, model_tokens, pattern_of
        from vllm_infogain.request.from_vllm import decoding_params, text_vocabulary

        sampling_params = job.sampling_params(return_trajectory=True)
        tokenizer = self.llm.get_tokenizer()
        sampling_params.update_from_generation_config({}, tokenizer.eos_token_id)
        sampling_params.update_from_tokenizer(tokenizer)
        config = self.llm.llm_engine.vllm_config
        automaton = None
        if sampling_params.structured_outputs is not None:
            constraint = get_structured_output_key(sampling_params.structured_outputs)
            automaton = automaton_of(pattern_of(*constraint), model_tokens(config))
        params = decoding_params("", sampling_params, config)
        vocab = text_vocabulary(config)
        return oracle.decode(self.model, self.prompt_ids(job), params, MASK_ID, automaton=automaton, vocab=vocab)

    @property
    def scheduler(self):
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    @property
    def runner(self):
        worker = self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
        return worker.model_runner

    def free_pages(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def assert_matches_oracle(engine: Engine, job: Job, output: Any) -> None:
    """Equal tokens in equal order, equal J of every candidate to 1e-4, equal cumulative entropy."""
    expected = engine.oracle(job)
    report = vllm_infogain.report(output)
    assert list(output.outputs[0].token_ids) == expected.tokens, job
    assert [step["positions"] for step in report["trajectory"]] == [step.positions for step in expected.steps]
    assert [step["bypassed"] for step in report["trajectory"]] == [step.bypassed for step in expected.steps]
    assert report["bypassed_steps"] == sum(step.bypassed for step in expected.steps)
    for step, plain in zip(report["trajectory"], expected.steps, strict=True):
        # Of pruned candidates no J is known.
        pairs = [pair for pair in zip(step["objective"], plain.objective, strict=True) if pair[0] is not None]
        ours, known = torch.tensor(pairs).reshape(-1, 2).unbind(-1)
        torch.testing.assert_close(ours, known, atol=1e-4, rtol=0)
    assert abs(report["cumulative_entropy"] - expected.cumulative_entropy) < 1e-3
    written = {position: step for step, plain in enumerate(expected.steps) for position in plain.positions}
    assert report["decode_order"] == [written.get(position) for position in range(job.max_tokens)]
    if output.outputs[0].logprobs is not None:
        assert_logprobs_match(expected, output.outputs[0])


def assert_preemptions_change_nothing(engine: Engine, jobs: list[Job], every: int = 2) -> int:
    """Every job's answer is the oracle's though all lose their pages after each `every`-th step; how often one did."""
    hit = 0

    def preempt(step: int) -> None:
        nonlocal hit
        if step % every == every - 1:
            hit += engine.preempt()

    for job, output in zip(jobs, engine.drive(jobs, preempt), strict=True):
        assert_matches_oracle(engine, job, output)
    return hit


def assert_logprobs_match(expected: oracle.OracleResult, sample: Any) -> None:
    """Each token's log-probability is the one it had when it was written; of a token that stood there it is 0."""
    plain = {
        position: logprob
        for step in expected.steps
        for position, logprob in zip(step.positions, step.logprobs, strict=True)
    }
    assert len(sample.logprobs) == len(sample.token_ids)
    for position, (token, entry) in enumerate(zip(sample.token_ids, sample.logprobs, strict=True)):
        assert abs(entry[token].logprob - plain.get(position, 0.0)) < 1e-4, position
