"""What each forward of a decoder computes where keys and values are cached, and which cached state it extends."""

from dataclasses import replace

import pytest
from stub_model import MASK_ID, Forwards, StubModel, drive, run

from vllm_infogain.reference import oracle
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling import make_decoder
from vllm_infogain.sampling.forward_window import ForwardWindow
from vllm_infogain.sampling.read_logits import read


def windows(params: DecodingParams, prompt: list[int], computed: int = 0) -> list[ForwardWindow]:
    """Of every forward."""
    model = StubModel(block=params.block_length if params.block_causal else 0)
    decoder = make_decoder(prompt, params, MASK_ID, computed=computed)
    forwards = Forwards(model, prompt, params, computed)
    run(decoder, forwards)
    assert decoder.report.forwards == len(forwards.windows)
    assert decoder.report.refreshes == sum(window.refresh for window in forwards.windows)
    return forwards.windows


def plain(**fields) -> DecodingParams:
    """A sampler that computes one sequence a step."""
    return DecodingParams(sampler="ar", temperature=0.0, block_length=3, canvas_length=6, **fields)


def test_without_a_cache_every_forward_computes_everything():
    assert windows(plain(), [1, 2]) == [ForwardWindow(range(8), range(8), 8)] * 6


def test_a_cache_is_refreshed_when_a_block_begins_and_then_only_the_window_is_computed():
    def block(window: range) -> list[ForwardWindow]:
        return [ForwardWindow(range(8), window, 8, refresh=True), *[ForwardWindow(window, window, 8)] * 2]

    assert windows(plain(cache="prefix"), [1, 2]) == block(range(2, 8)) + block(range(5, 8))
    assert windows(plain(cache="dual"), [1, 2]) == block(range(2, 5)) + block(range(5, 8))


def test_the_row_before_a_block_is_in_the_window_where_a_row_predicts_the_next_position():
    own = [window.own for window in windows(plain(cache="dual", shift=1), [1, 2]) if window.refresh]
    assert own == [range(1, 5), range(4, 8)]
    own = [window.own for window in windows(plain(cache="prefix", shift=1), [1, 2]) if window.refresh]
    assert own == [range(1, 8), range(4, 8)]


@pytest.mark.parametrize(("every", "steps"), [(0, [0, 3]), (1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 3, 5]), (3, [0, 3])])
def test_a_cache_is_refreshed_after_so_many_steps_of_a_block(every: int, steps: list[int]):
    seen = windows(plain(cache="dual", cache_refresh=every), [1, 2])
    assert [step for step, window in enumerate(seen) if window.refresh] == steps


def test_a_refresh_costs_look_ahead_a_forward_of_the_state():
    params = DecodingParams(
        temperature=0.0, bypass_threshold=1.0, position_temperature=5.0, block_length=6, canvas_length=6, cache="dual"
    )
    forwards = [window.refresh for window in windows(params, [1])]
    # The first state; candidates of five steps, whose best serves the step after; the last step needs none.
    assert forwards == [True, False, False, False, False, False]
    refreshed = [window.refresh for window in windows(replace(params, cache_refresh=2), [1])]
    assert refreshed == [True, False, False, True, False, False, True, False]


def test_a_block_causal_model_computes_the_block_finished_last_with_the_next_one():
    params = DecodingParams(sampler="ar", temperature=0.0, block_length=4, canvas_length=5, block_causal=True)
    window, last = range(4, 8), range(8, 11)
    # The prompt's last two positions attend to the canvas's first two: they are part of its block.
    behind = [
        ForwardWindow(window, window, 8),
        ForwardWindow(range(4, 11), last, 11, refresh=True),
        *[ForwardWindow(last, last, 11)] * 2,
    ]
    assert windows(params, [1] * 6) == [ForwardWindow(range(8), window, 8, refresh=True), *behind]
    assert windows(params, [1] * 6, computed=4) == [ForwardWindow(window, window, 8, refresh=True), *behind]


def test_a_beams_block_causal_contexts_share_no_more_than_the_prompts():
    params = DecodingParams(sampler="beam", temperature=1.0, block_length=4, canvas_length=12, block_causal=True)

    def refreshed(sampler: str) -> list[range]:
        of_sampler = replace(params, sampler=sampler)
        return [window.rows for window in windows(of_sampler, [1] * 4, computed=4) if window.refresh]

    # A hypothesis may extend another cached state than its parent's blocks are in; a generation always its own.
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


def test_a_child_extends_the_cached_state_of_its_parent():
    params = DecodingParams(
        sampler="beam", temperature=1.0, bypass_threshold=1.0, canvas_length=8, cache="dual", cache_refresh=3, seed=1
    )
    decoder, forwards = make_decoder([1], params, MASK_ID), Forwards(StubModel(), [1], params)
    cached_indices = []
    while decoder.pending is not None:
        pending = decoder.pending
        if not pending.window.refresh:
            cached_indices.append(set(pending.cached_indices.tolist()))
        elif cached_indices:
            assert pending.cached_indices.tolist() == list(range(params.beam_width))
        metadata = decoder.metadata(pending.remaining)
        (output,) = read(forwards.logits(pending, slice(None)), [metadata], MASK_ID)
        decoder.consume(pending.remaining, output)
    assert cached_indices[:3] == [{0}] * 3, "until the second refresh all descend from the one first state"
    assert len(cached_indices[3]) == 4
    assert cached_indices[5] <= cached_indices[4] <= cached_indices[3], "lines die out, none comes back"
