"""Every family is served in its released format, by two workers that share every layer: it gives the tokens of one."""

import pytest
from clients import completed
from engines import running
from jobs import BLOCK_CAUSAL, CACHED, PICTURES
from serve_family import FAMILIES, SAMPLERS, ask, serving

pytestmark = pytest.mark.engine

STEPS = {"infogain": {"steps_per_schedule": 7}}  # other than the server's


@pytest.mark.parametrize(
    ("family", "jobs", "ray"),
    [
        ("dream", CACHED[:6], False),
        ("sdar", BLOCK_CAUSAL, True),
        ("sdar_moe", BLOCK_CAUSAL, False),
        ("llada_moe", CACHED[:6], False),
        ("llada2_moe", BLOCK_CAUSAL, False),
        ("mmada", PICTURES, False),
    ],
)
def test_a_family_served_without_any_flag_of_ours_answers_an_openai_client_as_one_worker_does(family, jobs, ray):
    with serving(family, workers=2, ray=ray) as (url, checkpoint):
        answers = ask(url, family)
        tokens = completed(url, family, jobs)
        with running(checkpoint, model=object(), additional_config=STEPS) as engine:
            assert tokens == [list(output.outputs[0].token_ids) for output in engine.run(jobs)]
    assert sum(map(len, tokens)) == sum(job.max_tokens for job in jobs)
    assert answers.keys() == set(SAMPLERS)
    for text, report in answers.values():
        assert text
        assert report["written"] == 16
    assert answers["info_gain"][1]["candidates"] > 0


def test_the_table_of_families_is_complete():
    from vllm_infogain.model_executors import EXECUTORS

    assert len(FAMILIES) == len(set(EXECUTORS.values()))
