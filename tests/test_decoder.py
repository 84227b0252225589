"""The decoder's state machine, driven by a stub model, against the oracle: in parts, and with kept keys and values."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_infogain.params import LOOKAHEAD_SAMPLERS, SAMPLERS, DecodingParams
from vllm_infogain.reference import oracle
from vllm_infogain.sampling import make_decoder
from vllm_infogain.sampling.decoder import Decoder, Pending
from vllm_infogain.sampling.extent import Extent
from vllm_infogain.sampling.reading import read

VOCAB, MASK_ID = 7, 6


class StubModel:
    """Logits that depend on every token and its position, so that each action changes every other row.

    Its "keys and values" of a position are the token there. `block`: positions per block of a block-causal one.
    """

    def __init__(self, seed: int = 0, block: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(64, 64, VOCAB, VOCAB, generator=generator)  # [row, position, token there, column]
        if block:
            blocks = torch.arange(64) // block
            self.weights[blocks[:, None] < blocks] = 0.0

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:  # [n, length] -> [n, length, vocab]
        length = ids.shape[1]
        one_hot = torch.nn.functional.one_hot(ids, VOCAB).float()
        return torch.einsum("njv,ijvw->niw", one_hot, self.weights[:length, :length]) / length**0.5 * 2

    def keep(self, ids: torch.Tensor) -> torch.Tensor:
        return ids

    def window(self, ids: torch.Tensor, rows: range, kept: torch.Tensor) -> torch.Tensor:
        seen = kept.clone()
        seen[:, rows.start : rows.stop] = ids[:, rows.start : rows.stop]
        return self(seen)[:, rows.start : rows.stop]


class Forwards:
    """What an engine does for one request whose model's keys and values of a position are the token there."""

    UNKNOWN = -1

    def __init__(self, model, prompt: list[int], params: DecodingParams, computed: int = 0) -> None:
        self.model = model
        self.kept = np.full((params.contexts, len(prompt) + params.canvas_length), self.UNKNOWN)
        self.kept[:, :computed] = prompt[:computed]
        self.extents: list[Extent] = []

    def logits(self, pending: Pending, part: slice) -> torch.Tensor:
        """[sequences x masked, vocab] of the next part of a group; only `extent.rows` of it are computed."""
        extent, contexts = pending.extent, pending.contexts[part]
        self.extents.append(extent)
        rows = slice(extent.rows.start, extent.rows.stop)
        seen = self.kept[contexts]
        seen[:, rows] = pending.sequences[part, rows]
        if extent.refresh:
            self.kept[contexts] = seen
        seen, masked = seen[:, : extent.keys], pending.masked[part]
        assert (seen != self.UNKNOWN).all(), "attended to, but never computed"
        assert np.isin(masked, extent.rows).all(), "wanted, but not computed"
        differing = (pending.sequences != pending.sequences[0]).any(0)
        assert len(set(pending.contexts)) > 1 or np.isin(np.flatnonzero(differing), extent.window).all()
        logits = self.model(torch.from_numpy(seen))
        return logits[torch.arange(len(seen))[:, None], torch.from_numpy(masked)].flatten(0, 1)


def drive(
    model, prompt: list[int], params: DecodingParams, parts: Iterable[int] = (1_000_000,), computed: int = 0
) -> tuple[list[int], Decoder]:
    """Run a decoder to its end; `parts`, over and over: how many sequences of a group come at once."""
    decoder, forwards = (
        make_decoder(prompt, params, MASK_ID, computed=computed),
        Forwards(model, prompt, params, computed),
    )
    tokens: list[int] = []
    sizes = itertools.cycle(parts)
    while decoder.pending is not None:
        count = min(next(sizes), decoder.pending.remaining)
        question = decoder.question(count)
        (answer,) = read(forwards.logits(decoder.pending, decoder.pending.part(count)), [question], MASK_ID)
        decoder.consume(count, answer)
        tokens += decoder.take_final().tokens
    return tokens, decoder


def that_go_together(params: DecodingParams) -> DecodingParams:
    """With what `parse_params` refuses changed to what it accepts."""
    if params.block_causal:
        params = replace(params, cache="none", uncertainty_scope="block", block_length=max(1, params.block_length))
    if params.cache == "dual" and params.looks_ahead:
        params = replace(params, uncertainty_scope="block")
    return replace(params, bypass_mode="fill") if params.sampler == "beam" else params


settings_of_requests = st.builds(
    DecodingParams,
    sampler=st.sampled_from(SAMPLERS),
    num_candidates=st.integers(1, 9),
    position_temperature=st.sampled_from([None, 0.0, 0.1, 2.0]),
    position_score=st.sampled_from(["sampled", "confidence", "entropy", "margin"]),
    bypass_threshold=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    tokens_per_step=st.integers(1, 5),
    block_length=st.integers(0, 12),
    bypass_mode=st.sampled_from(["fill", "only"]),
    state_uncertainty=st.sampled_from(["mean", "sum"]),
    uncertainty_scope=st.sampled_from(["block", "sequence"]),
    cost_weight=st.sampled_from([0.0, 0.5, 1.0]),
    beam_width=st.integers(1, 4),
    num_generations=st.integers(1, 4),
    schedule=st.sampled_from(["fixed", "linear", "cosine", "dream"]),
    steps=st.integers(1, 15),
    absolute_blocks=st.booleans(),
    eos_penalty=st.sampled_from([0.0, 2.0]),
    eos_ids=st.just((5,)),
    stop_ids=st.sampled_from([(), (5,), (4, 5)]),
    prune=st.booleans(),
    cache=st.sampled_from(["none", "prefix", "dual"]),
    cache_refresh=st.integers(0, 3),
    block_causal=st.booleans(),
    top_k=st.sampled_from([0, 2]),
    top_p=st.sampled_from([1.0, 0.6]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    canvas_length=st.integers(1, 13),
    return_trajectory=st.just(True),
).map(that_go_together)


@settings(max_examples=300, deadline=None)
@given(
    params=settings_of_requests,
    model_seed=st.integers(0, 3),
    parts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    is_prompt_computed=st.booleans(),
)
def test_any_request_equals_the_oracle_and_leaves_no_mask(
    params: DecodingParams, model_seed: int, parts: list[int], is_prompt_computed: bool
):
    block = params.block_length if params.block_causal else 0
    model, prompt = StubModel(model_seed, block), [1, 2, 3]
    computed = len(prompt) // block * block if block and is_prompt_computed else 0
    tokens, decoder = drive(model, prompt, params, parts, computed)
    expected = oracle.decode(model, prompt, params, MASK_ID)
    assert tokens == expected.tokens
    assert MASK_ID not in tokens
    for step, plain in zip(decoder.report.trajectory, expected.steps, strict=True):
        assert step.positions == plain.positions
        assert len(step.objective) == len(plain.objective)
        for ours, definition in zip(step.objective, plain.objective, strict=True):
            assert (
                (params.prune and definition < plain.objective[plain.chosen])
                if ours is None
                else (ours == pytest.approx(definition, abs=1e-4))
            )
    written = [position for step in decoder.report.trajectory for position in step.positions]
    ends_early = len(tokens) < params.canvas_length
    assert len(written) == len(set(written)), "each position is written once"
    assert set(range(len(tokens))) <= set(written)
    assert ends_early or len(written) == params.canvas_length
    assert not ends_early or tokens[-1] in params.stop_ids
    entropies = [entropy for step in decoder.report.trajectory for entropy in step.entropies]
    assert abs(decoder.report.cumulative_entropy - sum(entropies)) < 1e-4


def test_pruning_spares_candidates_and_changes_no_token():
    fields = {"tokens_per_step": 2, "bypass_threshold": 1.0, "position_temperature": 1.0, "canvas_length": 12}
    fields |= {"temperature": 0.0, "return_trajectory": True}
    spared = 0
    for seed in range(5):
        model = StubModel(seed)
        whole, one = drive(model, [1, 2], DecodingParams(**fields))
        pruned, other = drive(model, [1, 2], DecodingParams(**fields, prune=True))
        assert pruned == whole
        spared += one.report.candidates - other.report.candidates
        nothing = sum(step.objective.count(None) for step in other.report.trajectory)
        assert nothing == one.report.candidates - other.report.candidates
    assert spared > 0


@pytest.mark.parametrize("sampler", [*LOOKAHEAD_SAMPLERS, "best_of_n"])
def test_a_group_consumed_in_parts_takes_the_same_action(sampler: str):
    params = DecodingParams(
        sampler=sampler,
        tokens_per_step=2,
        bypass_threshold=1.0,
        position_temperature=1.0,
        canvas_length=12,
        temperature=1.0,
    )
    whole, _ = drive(StubModel(), [1, 2], params)
    for part in (1, 2, 3, 7):
        assert drive(StubModel(), [1, 2], params, [part])[0] == whole


def test_lookahead_prefers_the_action_that_settles_the_rest():
    """Two positions of equal entropy; only the second decides the third. LookUM and Info-Gain must write it."""

    def model(ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*ids.shape, VOCAB)
        logits[..., 2:] = -30.0  # tokens 0 and 1 only, both at 1/2
        logits[:, 1, 0] += 0.2  # position 1 of the prompt + canvas: slightly surer, so greedy takes it
        decided = ids[:, 2] != MASK_ID
        logits[decided, 3, 0] = 30.0  # knowing position 2 settles position 3
        return logits

    choice = {}
    for sampler in ("confidence", "info_gain", "lookum"):
        params = DecodingParams(
            sampler=sampler,
            temperature=0.0,
            canvas_length=3,
            num_candidates=32,
            position_temperature=0.0 if sampler == "confidence" else 10.0,
            position_score="confidence",
            return_trajectory=True,
        )
        _, decoder = drive(model, [5], params)
        choice[sampler] = decoder.report.trajectory[0].positions
    assert choice == {"confidence": [0], "info_gain": [1], "lookum": [1]}


def test_blocks_finish_left_to_right():
    params = DecodingParams(block_length=4, canvas_length=10, temperature=0.0, return_trajectory=True)
    _, decoder = drive(StubModel(), [1], params)
    blocks = [position // 4 for step in decoder.report.trajectory for position in step.positions]
    assert blocks == sorted(blocks)


# Keys and values that are kept.


def extents(params: DecodingParams, prompt: list[int], computed: int = 0) -> list[Extent]:
    """Of every forward."""
    model = StubModel(block=params.block_length if params.block_causal else 0)
    decoder, forwards = (
        make_decoder(prompt, params, MASK_ID, computed=computed),
        Forwards(model, prompt, params, computed),
    )
    while decoder.pending is not None:
        count = decoder.pending.remaining
        question = decoder.question(count)
        (answer,) = read(forwards.logits(decoder.pending, slice(None)), [question], MASK_ID)
        decoder.consume(count, answer)
    assert decoder.report.forwards == len(forwards.extents)
    assert decoder.report.refreshes == sum(extent.refresh for extent in forwards.extents)
    return forwards.extents


def plain(**fields) -> DecodingParams:
    """A sampler that computes one sequence a step."""
    return DecodingParams(sampler="ar", temperature=0.0, block_length=3, canvas_length=6, **fields)


def test_without_a_cache_every_forward_computes_everything():
    assert extents(plain(), [1, 2]) == [Extent(range(8), range(8), 8)] * 6


def test_a_cache_is_refreshed_when_a_block_begins_and_then_only_the_window_is_computed():
    def block(window: range) -> list[Extent]:
        return [Extent(range(8), window, 8, refresh=True), *[Extent(window, window, 8)] * 2]

    assert extents(plain(cache="prefix"), [1, 2]) == block(range(2, 8)) + block(range(5, 8))
    assert extents(plain(cache="dual"), [1, 2]) == block(range(2, 5)) + block(range(5, 8))


@pytest.mark.parametrize(("every", "steps"), [(0, [0, 3]), (1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 3, 5]), (3, [0, 3])])
def test_a_cache_is_refreshed_after_so_many_steps_of_a_block(every: int, steps: list[int]):
    seen = extents(plain(cache="dual", cache_refresh=every), [1, 2])
    assert [step for step, extent in enumerate(seen) if extent.refresh] == steps


def test_a_refresh_costs_look_ahead_a_forward_of_the_state():
    params = DecodingParams(
        temperature=0.0, bypass_threshold=1.0, position_temperature=5.0, block_length=6, canvas_length=6, cache="dual"
    )
    forwards = [extent.refresh for extent in extents(params, [1])]
    # The first state; candidates of five steps, whose best serves the step after; the last step needs none.
    assert forwards == [True, False, False, False, False, False]
    refreshed = [extent.refresh for extent in extents(replace(params, cache_refresh=2), [1])]
    assert refreshed == [True, False, False, True, False, False, True, False]


def test_a_block_causal_model_computes_the_block_finished_last_with_the_next_one():
    params = DecodingParams(sampler="ar", temperature=0.0, block_length=4, canvas_length=5, block_causal=True)
    window, last = range(4, 8), range(8, 11)
    # The prompt's last two positions attend to the canvas's first two: they are part of its block.
    behind = [Extent(window, window, 8), Extent(range(4, 11), last, 11, refresh=True), *[Extent(last, last, 11)] * 2]
    assert extents(params, [1] * 6) == [Extent(range(8), window, 8, refresh=True), *behind]
    assert extents(params, [1] * 6, computed=4) == [Extent(window, window, 8, refresh=True), *behind]


def test_a_beams_block_causal_contexts_share_no_more_than_the_prompts():
    params = DecodingParams(sampler="beam", temperature=1.0, block_length=4, canvas_length=12, block_causal=True)

    def refreshed(sampler: str) -> list[range]:
        of_sampler = replace(params, sampler=sampler)
        return [extent.rows for extent in extents(of_sampler, [1] * 4, computed=4) if extent.refresh]

    # A hypothesis goes on in another context than its parent's blocks were kept in; a generation always in its own.
    assert refreshed("beam") == [range(4, 8), range(4, 12), range(4, 16)]
    assert refreshed("best_of_n") == [range(4, 8), range(4, 12), range(8, 16)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sampler", ["beam", "best_of_n"])
def test_contexts_of_a_block_causal_model_equal_the_oracle_over_many_blocks(sampler: str, seed: int):
    params = DecodingParams(
        sampler=sampler, temperature=1.0, bypass_threshold=1.0, tokens_per_step=2, seed=seed, canvas_length=13,
        block_length=3, block_causal=True, beam_width=3, num_candidates=4, stop_ids=(5,),
    )  # fmt: skip
    model = StubModel(seed, block=3)
    tokens, _ = drive(model, [1, 2, 3, 4], params, parts=(2, 3), computed=3)
    assert tokens == oracle.decode(model, [1, 2, 3, 4], params, MASK_ID).tokens


def test_a_child_extends_the_kept_state_of_its_parent():
    params = DecodingParams(
        sampler="beam", temperature=1.0, bypass_threshold=1.0, canvas_length=8, cache="dual", cache_refresh=3, seed=1
    )
    decoder, forwards = make_decoder([1], params, MASK_ID), Forwards(StubModel(), [1], params)
    contexts = []
    while decoder.pending is not None:
        pending = decoder.pending
        if not pending.extent.refresh:
            contexts.append(set(pending.contexts.tolist()))
        elif contexts:
            assert pending.contexts.tolist() == list(range(params.beam_width))
        question = decoder.question(pending.remaining)
        (answer,) = read(forwards.logits(pending, slice(None)), [question], MASK_ID)
        decoder.consume(pending.remaining, answer)
    assert contexts[:3] == [{0}] * 3, "until the second refresh all descend from the one first state"
    assert len(contexts[3]) == 4
    assert contexts[5] <= contexts[4] <= contexts[3], "lines die out, none comes back"


def test_the_parts_of_one_forward_count_once():
    params = DecodingParams(temperature=0.0, bypass_threshold=1.0, position_temperature=9.0, canvas_length=4)
    model = StubModel()
    whole = drive(model, [1], params)[1].report
    decoder, forwards = make_decoder([1], params, MASK_ID), Forwards(model, [1], params)
    while decoder.pending is not None:
        pending, is_first = decoder.pending, True
        while decoder.pending is pending and pending.remaining:
            question = decoder.question(1)
            (answer,) = read(forwards.logits(pending, pending.part(1)), [question], MASK_ID)
            decoder.consume(1, answer, first_of_forward=is_first)
            is_first = False
    assert len(forwards.extents) > whole.forwards
    assert decoder.report == whole
