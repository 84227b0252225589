"""The engine against the slow oracle: same tokens, same J, whatever shares the batch."""

import itertools

import pytest
import torch
from checkpoints import write_llada
from engines import MASK_ID, Engine, Job, assert_matches_oracle, assert_preemptions_change_nothing, running

import vllm_infogain
from vllm_infogain.request.params import SAMPLERS, SCORE_SAMPLERS

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("llada")
    write_llada(checkpoint)
    with running(checkpoint) as engine:
        yield engine


MIXED = [
    Job("one", {"sampler": "info_gain", "tokens_per_step": 2, "block_length": 4}, 16),
    Job("a longer prompt than the others", {"sampler": "info_gain", "bypass_threshold": 1.0, "block_length": 0}, 21),
    Job("three", {"sampler": "lookum", "tokens_per_step": 4, "num_candidates": 5}, 16),
    Job("4", {"sampler": "entropy", "block_length": 16}, 33),
    Job("five five", {"sampler": "margin", "tokens_per_step": 2, "block_length": 4}, 10),
    Job("six", {"sampler": "ar"}, 7),
    Job("seven", {"sampler": "info_gain", "state_uncertainty": "sum", "position_temperature": 5.0}, 12, 1.0, 7),
    Job("eight", {"sampler": "uniform"}, 9, 1.0, 8),
    Job("nine", {"sampler": "beam", "beam_width": 3, "tokens_per_step": 2, "num_candidates": 4}, 12),
    Job("ten", {"sampler": "best_of_n", "num_generations": 3}, 9, 1.0, 10),
    Job("eleven", {"sampler": "klass", "schedule": "cosine", "steps": 6}, 14),
    Job("twelve", {"uncertainty_scope": "sequence", "block_length": 4, "bypass_threshold": 1.0}, 11),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tokens_per_step", [1, 2, 4])
def test_every_sampler_alone_equals_the_oracle(engine: Engine, sampler: str, tokens_per_step: int):
    for block_length in (4, 16, 0):
        knobs = {"sampler": sampler, "tokens_per_step": tokens_per_step, "block_length": block_length}
        job = Job("a prompt", knobs, max_tokens=18)
        assert_matches_oracle(engine, job, engine.run([job])[0])


@pytest.mark.parametrize("position_score", ["sampled", "confidence", "entropy", "margin"])
def test_every_position_score_equals_the_oracle(engine: Engine, position_score: str):
    job = Job("scores", {"position_score": position_score, "tokens_per_step": 2, "bypass_threshold": 0.3})
    assert_matches_oracle(engine, job, engine.run([job])[0])


def test_a_mixed_batch_equals_the_oracle_request_by_request(engine: Engine):
    for job, output in zip(MIXED, engine.run(MIXED), strict=True):
        assert_matches_oracle(engine, job, output)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_reproduces_a_request_at_temperature_1(engine: Engine, sampler: str):
    job = Job("seeded", {"sampler": sampler, "tokens_per_step": 2}, temperature=1.0, seed=21)
    alone = engine.run([job])[0]
    assert_matches_oracle(engine, job, alone)
    again = engine.run([*MIXED[:7], job])[7]
    assert list(again.outputs[0].token_ids) == list(alone.outputs[0].token_ids)
    other = Job("seeded", job.knobs, temperature=1.0, seed=22)
    assert list(engine.run([other])[0].outputs[0].token_ids) != list(alone.outputs[0].token_ids)


def test_without_a_seed_temperature_0_is_deterministic_and_temperature_1_is_not(engine: Engine):
    def tokens(temperature: float) -> list[int]:
        return list(engine.run([Job("no seed", {}, temperature=temperature)])[0].outputs[0].token_ids)

    assert tokens(0.0) == tokens(0.0)
    assert tokens(1.0) != tokens(1.0)


def test_preemption_after_every_second_step_changes_nothing(engine: Engine):
    assert assert_preemptions_change_nothing(engine, MIXED) > 20


def test_an_abort_frees_its_pages_and_harms_nobody(engine: Engine):
    free = engine.free_pages()

    def abort(step: int) -> None:
        if step == 2:
            assert engine.free_pages() < free
            engine.llm.llm_engine.abort_request(["0", "3"])

    outputs = engine.drive(MIXED, abort)
    assert outputs[0] is None
    assert outputs[3] is None
    for job, output in zip(MIXED, outputs, strict=True):
        if output is not None:
            assert_matches_oracle(engine, job, output)
    engine.run([MIXED[0]])  # the step that tells the worker of the last request's end
    assert engine.free_pages() == free
    assert len(engine.runner.requests) <= 1


def test_a_request_is_told_nothing_of_an_earlier_one_of_its_id(engine: Engine, monkeypatch):
    def keep_id(request) -> None:  # as with VLLM_DISABLE_REQUEST_ID_RANDOMIZATION, which is read at the start
        request.external_req_id = request.request_id

    monkeypatch.setattr(engine.llm.llm_engine.input_processor, "assign_request_id", keep_id)
    job = Job("again", {"sampler": "ar", "block_length": 0}, max_tokens=40)

    def start_again(step: int) -> None:
        if step == 0:
            engine.llm.llm_engine.abort_request(["0"])
            engine.llm.llm_engine.add_request("0", job.prompt, job.sampling_params(return_trajectory=True))

    (output,) = engine.drive([job], start_again)
    assert_matches_oracle(engine, job, output)


def test_a_bad_request_in_a_batch_is_a_value_error_and_the_engine_goes_on(engine: Engine):
    with pytest.raises(ValueError, match="num_candidates=0: give a whole number from 1 to 64"):
        engine.run([MIXED[0], Job("bad", {"num_candidates": 0}), MIXED[1]])
    assert not engine.llm.llm_engine.has_unfinished_requests()
    for job, output in zip(MIXED[:2], engine.run(MIXED[:2]), strict=True):
        assert_matches_oracle(engine, job, output)


def test_a_request_that_arrives_joins_at_the_next_step_and_one_that_ends_leaves_at_once(engine: Engine):
    llm_engine = engine.llm.llm_engine
    long, short = Job("long", {"sampler": "ar"}, 20), Job("short", {"sampler": "ar"}, 4)
    llm_engine.add_request("long", long.prompt, long.sampling_params(return_trajectory=True))
    llm_engine.step()
    llm_engine.add_request("short", short.prompt, short.sampling_params(return_trajectory=True))
    outputs = {output.request_id: output for output in llm_engine.step() if output.finished}
    assert outputs.keys() == {"short"}, "four tokens, one a forward, four forwards a step"
    forwards = next(iter(engine.runner.requests.values())).decoder.report.forwards
    assert forwards == 8, "the other one went on meanwhile"
    assert len(engine.scheduler.running) == 1
    while llm_engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in llm_engine.step() if output.finished}
    assert_matches_oracle(engine, long, outputs["long"])
    assert_matches_oracle(engine, short, outputs["short"])


def test_blocks_are_handed_out_as_they_finish_and_never_change(engine: Engine):
    llm_engine = engine.llm.llm_engine
    job = Job("blocks", {"block_length": 4, "tokens_per_step": 2}, 18)
    llm_engine.add_request("0", job.prompt, job.sampling_params(return_trajectory=True))
    seen: list[list[int]] = []
    while llm_engine.has_unfinished_requests():
        seen += [list(output.outputs[0].token_ids) for output in llm_engine.step()]
    ends = [len(tokens) for tokens in seen]
    assert ends == sorted({*ends}), "each time there is more"
    assert {*ends} <= {4, 8, 12, 16, 18}, "whole blocks only"
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(seen))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_mask_is_ever_left(engine: Engine, sampler: str):
    jobs = [
        Job("masks", {"sampler": sampler, "tokens_per_step": k, "block_length": block}, length, 1.0, seed=k)
        for k in (1, 2, 3, 4, 5)
        for length, block in ((1, 0), (7, 4), (13, 5), (11, 0))
    ]
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        tokens = list(output.outputs[0].token_ids)
        assert len(tokens) == job.max_tokens
        assert MASK_ID not in tokens
        written = [p for step in vllm_infogain.report(output)["trajectory"] for p in step["positions"]]
        assert sorted(written) == list(range(job.max_tokens)), "each position is written once"


def test_a_stop_token_ends_a_request_with_its_block(engine: Engine):
    """vLLM cuts the answer after the stop token; blocks to its right are never decoded."""
    job = Job("stop here", {"block_length": 8, "bypass_threshold": 1.0}, 40)
    whole = list(engine.run([job])[0].outputs[0].token_ids)
    params = job.sampling_params(return_trajectory=True)
    params.stop_token_ids = [whole[10]]
    output = engine.llm.generate([job.prompt], params, use_tqdm=False)[0]
    end = whole.index(whole[10])
    assert list(output.outputs[0].token_ids) == whole[: end + 1]
    assert output.outputs[0].finish_reason == "stop"
    assert vllm_infogain.report(output)["steps"] == (end // 8 + 1) * 8


def test_forwards_and_rows_are_what_the_algorithm_costs(engine: Engine):
    """A greedy step is one forward of the sequence; a look-ahead step one forward of its distinct candidates."""
    for job in [*MIXED[:4], Job("never", {"bypass_threshold": 1.0, "num_candidates": 3}, 12)]:
        output = engine.run([job])[0]
        report = vllm_infogain.report(output)
        length = len(output.prompt_token_ids) + job.max_tokens
        single = sum(not step["objective"] for step in report["trajectory"])
        candidates = sum(len(step["objective"]) for step in report["trajectory"])
        assert report["candidates"] == candidates
        assert report["forwards"] == report["steps"]
        assert report["rows"] == (single + candidates) * length
        if job.knobs.get("sampler") in SCORE_SAMPLERS:
            assert candidates == 0


def test_one_candidate_at_temperature_0_is_the_greedy_sampler(engine: Engine):
    for sampler in ("info_gain", "lookum"):
        knobs = {"sampler": sampler, "num_candidates": 1, "position_score": "confidence", "tokens_per_step": 2}
        ours = engine.run([Job("greedy", knobs)])[0]
        greedy = engine.run([Job("greedy", {"sampler": "confidence", "tokens_per_step": 2})])[0]
        assert list(ours.outputs[0].token_ids) == list(greedy.outputs[0].token_ids)


def test_weights_are_loaded_again_in_place(engine: Engine):
    job = Job("again", {"tokens_per_step": 2}, 12)
    with torch.no_grad():
        for weight in engine.runner.get_model().parameters():
            weight.zero_()
    (lost,) = engine.run([job])
    assert list(lost.outputs[0].token_ids) != engine.oracle(job).tokens
    engine.llm.collective_rpc("reload_weights")
    assert_matches_oracle(engine, job, engine.run([job])[0])
