"""What reading logits takes beside them has a bound, whatever is asked for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from vllm_infogain.grammar.automaton import TokenAutomaton
from vllm_infogain.request.constraints import Constraints
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling import rows, slices
from vllm_infogain.sampling.metadata import Comparison, SamplingMetadata
from vllm_infogain.sampling.read_logits import read
from vllm_infogain.sampling.rehearsal import rehearse

ROWS, VOCAB, MASK_ID = 256, 8192, 0
SLICE = 1 << 15  # logits: 4 rows
A_ROW = 2560  # bytes of what is told of each row, and of the chunks in which its two largest logits are found

DRAWN = DecodingParams(sampler="entropy", temperature=0.7)
LOOK = DecodingParams(num_candidates=4, temperature=0.7)
SOME = tuple(range(1, 1025))


def metadata(params: DecodingParams, sequences: int = 1, **fields) -> SamplingMetadata:
    """About ROWS rows of canvases that hold nothing yet."""
    offsets = np.arange(ROWS // sequences)[None].repeat(sequences, 0)
    return SamplingMetadata(params, offsets, np.arange(sequences), np.full_like(offsets, MASK_ID), **fields)


def grammar() -> TokenAutomaton:
    """Any one token, each of which is a class of its own."""
    states = {0: {token: token for token in range(1, VOCAB)}}
    return TokenAutomaton.from_transitions(states, 0, range(1, VOCAB), VOCAB)


CASES = {
    "top_p": lambda: metadata(dataclasses.replace(DRAWN, top_p=0.9)),
    "top_k and min_p": lambda: metadata(dataclasses.replace(DRAWN, top_k=50, min_p=0.01)),
    "logprobs": lambda: metadata(dataclasses.replace(DRAWN, logprobs=20)),
    "logprobs of what is narrowed": lambda: metadata(dataclasses.replace(LOOK, logprobs=20, top_p=0.5)),
    "logprob_token_ids": lambda: metadata(dataclasses.replace(DRAWN, logprobs=1, logprob_token_ids=(5, 6))),
    "candidates": lambda: metadata(dataclasses.replace(LOOK, top_p=0.9), 4, comparison=Comparison(0.0, np.zeros(4))),
    "klass": lambda: metadata(
        dataclasses.replace(DRAWN, sampler="klass"), previous=torch.randn(ROWS, VOCAB).log_softmax(-1)
    ),
    "a grammar": lambda: metadata(dataclasses.replace(DRAWN, is_structured=True), ROWS, automaton=grammar()),
    "min_tokens": lambda: metadata(dataclasses.replace(DRAWN, stop_ids=SOME), stops_from=ROWS),
    "logit_bias": lambda: metadata(
        dataclasses.replace(DRAWN, constraints=Constraints(logit_bias=tuple((token, 1.0) for token in SOME)))
    ),
    "allowed_token_ids": lambda: metadata(dataclasses.replace(DRAWN, constraints=Constraints(allowed_ids=SOME))),
}


def most_allocated(work: Callable[[], Any]) -> int:
    """Bytes of tensors that lived at once, beside those that lived before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = work()
    del kept
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())


def taken(case: str) -> int:
    asked, logits = CASES[case](), torch.randn(ROWS, VOCAB)
    return most_allocated(lambda: read(logits, [asked], MASK_ID))


@pytest.fixture(autouse=True)
def slices_are_small(monkeypatch):
    monkeypatch.setattr(slices, "SLICE", SLICE)
    monkeypatch.setattr(rows, "BLOCK", SLICE // 4)


BOUND = 8 * 4 * SLICE + ROWS * A_ROW


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_asked_for_takes_eight_slices_at_most(case):
    assert taken(case) < BOUND


def test_the_rehearsal_at_the_start_takes_as_much_as_any_request():
    logits = torch.randn(ROWS, VOCAB)
    rehearsed = most_allocated(lambda: rehearse(logits, MASK_ID, VOCAB, num_candidates=4, logprobs=20))
    assert rehearsed >= max(map(taken, CASES))


@pytest.mark.parametrize(("case", "times"), [("top_p", 7), ("logprobs", 2), ("klass", 4), ("a grammar", 0.2)])
def test_all_rows_at_once_would_take_as_much_as_the_logits_or_several_times_it(monkeypatch, case, times):
    monkeypatch.setattr(slices, "SLICE", 1 << 60)
    assert taken(case) > max(BOUND, times * 4 * ROWS * VOCAB)
