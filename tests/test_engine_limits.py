"""What a request keeps in memory is bounded, and nothing of it stays behind, however and whenever the request ends."""

from dataclasses import replace

import pytest
from checkpoints import write_llada
from engines import Engine, Job, running

from vllm_infogain.request.constraints import MOST_TOKENS, Constraints

pytestmark = pytest.mark.engine

VOCAB = 1 << 14  # 16 positions' log-probabilities are 1 MiB
KLASS = [
    Job(f"klass {index}", {"sampler": "klass", "block_length": 32, "tokens_per_step": 8}, 64, seed=index)
    for index in range(5)
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    write_llada(path, vocab_size=VOCAB, embedding_size=VOCAB)
    limits = {"infogain": {"klass_mib": 5, "steps_per_schedule": 1}}
    with running(path, model=object(), additional_config=limits) as engine:
        yield engine


def test_requests_of_klass_wait_for_each_others_log_probabilities_and_are_answered_as_alone(engine):
    alone = [engine.run([job])[0].outputs[0].token_ids for job in KLASS]
    seen = []
    together = engine.drive(KLASS, lambda step: seen.append(len(engine.runner.requests)))
    assert [output.outputs[0].token_ids for output in together] == alone
    assert max(seen) == 2, "2 MiB each"


def test_requests_that_are_here_for_too_long_end_with_what_they_have(engine, monkeypatch):
    late = replace(engine.scheduler.settings, request_timeout=1e-9)
    free = engine.free_pages()

    def between(step: int) -> None:
        if step == 3:
            monkeypatch.setattr(engine.scheduler, "settings", late)

    jobs = [Job("late", {"sampler": "ar", "block_length": length}, 64) for length in (1, 64)]
    outputs = engine.drive(jobs, between)
    assert [output.outputs[0].finish_reason for output in outputs] == ["abort"] * 2
    assert [0 < len(output.outputs[0].token_ids) < 64 for output in outputs] == [True, False], (
        "finished blocks are kept"
    )
    assert engine.free_pages() == free


def test_others_do_not_count_for_what_klass_keeps(engine):
    seen = []
    jobs = [Job("entropy", {"sampler": "entropy", "tokens_per_step": 8}, 64) for _ in range(5)]
    engine.drive(jobs, lambda step: seen.append(len(engine.runner.requests)))
    assert max(seen) == 5


def test_requests_that_together_want_too_many_rows_wait_and_are_answered_as_alone(engine, monkeypatch):
    knobs = {"num_candidates": 4, "block_length": 32, "cache": "dual", "bypass_threshold": 1}
    jobs = [Job("look ahead", knobs | {"position_temperature": 5}, 32, seed=index) for index in range(5)]
    alone = [engine.run([job])[0].outputs[0].token_ids for job in jobs]
    settings = replace(engine.scheduler.settings, server_rows=2 * 4 * 32)
    monkeypatch.setattr(engine.scheduler, "settings", settings)
    seen = []
    together = engine.drive(jobs, lambda step: seen.append(len(engine.runner.requests)))
    assert [output.outputs[0].token_ids for output in together] == alone
    assert max(seen) == 2, "of four candidates each, of 32 rows"


@pytest.mark.parametrize(
    ("refused", "knobs", "fields"),
    [
        ("block_length=0: .*6 MiB.* klass_mib is 5", {"sampler": "klass", "block_length": 0}, {}),
        ("n=257", {"sampler": "ar"}, {"n": 257}),
        ("logit_bias", {"sampler": "ar"}, {"logit_bias": dict.fromkeys(range(MOST_TOKENS + 1), 1.0)}),
        ("stop_token_ids", {"sampler": "ar"}, {"stop_token_ids": list(range(MOST_TOKENS + 1))}),
    ],
)
def test_what_one_request_may_not_keep_is_refused_by_name(engine, refused, knobs, fields):
    with pytest.raises(ValueError, match=refused):
        engine.run([Job("much", knobs, 96, temperature=1.0, fields=fields)])


def test_admission_does_not_count_through_the_vocabulary():
    Constraints(banned=((5,), (6, 7)), min_tokens=3).check(vocab=1 << 60, mask_id=3, stop_ids=(1,), stops_from=3)


def kept(engine: Engine) -> dict[str, int]:
    """How many entries the tables have that gain some with a request, by where they are."""
    scheduler, processor = engine.scheduler, engine.llm.llm_engine.output_processor
    tables = {
        "requests": scheduler.requests, "waiting": scheduler.waiting, "running": scheduler.running,
        "deferred": scheduler.deferred_waiting, "entries": scheduler._states, "scratch": scheduler._scratch,
        "timed out": scheduler._timed_out, "finished": scheduler.finished_req_ids, "worker": engine.runner.requests,
        "front end": processor.request_states, "parents": processor.parent_requests,
    }  # fmt: skip
    return {name: len(table) for name, table in tables.items()}


@pytest.mark.parametrize("abort_at", [None, -1, 0, 1, 2, 5, 9])
def test_nothing_of_a_request_stays_whenever_it_ends(engine, abort_at):
    from vllm.sampling_params import StructuredOutputsParams

    grammar = {"structured_outputs": StructuredOutputsParams(regex="[0-9]{3,20}")}
    cached = {"cache": "dual", "block_length": 8}
    jobs = [
        Job("grammar", {"sampler": "ar"}, 24, fields=grammar),
        Job("look ahead", {"bypass_threshold": 1.0, "num_candidates": 4, **cached}, 24),
        Job("beam", {"sampler": "beam", "beam_width": 3, "num_candidates": 2, **cached}, 24),
        Job("best", {"sampler": "best_of_n", "num_generations": 3, "cache": "prefix", "block_length": 8}, 24),
        *KLASS,
    ]
    free, llm_engine = engine.free_pages(), engine.llm.llm_engine

    def abort(step: int) -> None:
        if step == abort_at:
            llm_engine.abort_request([state.external_req_id for state in processor.request_states.values()])

    processor = llm_engine.output_processor
    if abort_at == -1:
        for index, job in enumerate(jobs):
            llm_engine.add_request(str(index), job.prompt, job.sampling_params(return_trajectory=True))
        abort(-1)
    else:
        outputs = engine.drive(jobs, abort)
        assert (None in outputs) == (abort_at is not None), "they are long enough to be aborted"
    # The worker is told of ends with the next schedule.
    while engine.scheduler.has_requests():
        llm_engine.engine_core.get_output()
    assert not any(kept(engine).values()), kept(engine)
    assert engine.free_pages() == free
