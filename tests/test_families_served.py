"""Every family is served in its released format, each on one of the paths; the command does any of them."""

import pytest
from serve_family import FAMILIES, SAMPLERS, ask

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("family", "workers", "ray"),
    [
        ("dream", 2, False),
        ("sdar", 2, True),
        ("sdar_moe", 1, False),
        ("llada_moe", 2, False),
        ("llada2_moe", 1, False),
    ],
)
def test_a_family_served_without_any_flag_of_ours_answers_an_openai_client(family: str, workers: int, ray: bool):
    answers = ask(family, workers, ray)
    assert answers.keys() == set(SAMPLERS)
    for text, report in answers.values():
        assert text
        assert report["written"] == 16
    assert answers["info_gain"][1]["candidates"] > 0


def test_the_table_of_families_is_complete():
    from vllm_infogain.model_executors import EXECUTORS

    assert len(FAMILIES) == len(set(EXECUTORS.values()))
