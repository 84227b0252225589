"""`enforce_eager=False`: the compiled model, which is traced once and never looked at again, gives eager's answers.

The oracle's answers are eager's (the modules of each family). Every module compiles anew: artefacts of an earlier run
would hide a tracing that went wrong, or show one that is mended.
"""

import pytest
from checkpoints import write_dream, write_llada, write_sdar
from checkpoints_moe import write_llada2, write_llada_moe, write_sdar_moe
from engines import Engine, Job, assert_matches_oracle, running
from jobs import BLOCK_CAUSAL, CACHED

pytestmark = pytest.mark.engine

EXACT = [job for job in CACHED if "cache" not in job.knobs] + [Job("few", {"sampler": "lookum"}, 7)]
FAMILIES = {
    "llada": (write_llada, CACHED),
    "dream": (write_dream, CACHED),
    "llada_moe": (write_llada_moe, EXACT),  # its plain model keeps no keys and values
    "sdar": (write_sdar, BLOCK_CAUSAL),
    "sdar_moe": (write_sdar_moe, BLOCK_CAUSAL),
    "llada2_moe": (write_llada2, BLOCK_CAUSAL),
}


# What the compiler makes of a trace. That families can be traced at all is also test_graph_twin.py's to prove.
DEFAULT = ("sdar", "infogain-tiny")
OTHERS = [pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family not in DEFAULT]


@pytest.fixture(scope="module", params=[*DEFAULT, *OTHERS])
def engine(request, tmp_path_factory):
    path, model = None, None  # the embedded model
    if request.param in FAMILIES:
        path = tmp_path_factory.mktemp(request.param)
        model = FAMILIES[request.param][0](path)
        model = None if request.param == "llada" else model  # the plain LLaDA that keeps keys and values
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
        with running(path, model, enforce_eager=False) as engine:
            yield request.param, engine


def test_a_compiled_model_equals_the_oracle(engine: tuple[str, Engine]):
    family, engine = engine
    compilation = engine.llm.llm_engine.vllm_config.compilation_config
    assert compilation.mode != 0, "not compiled"
    jobs = FAMILIES[family][1] if family in FAMILIES else [Job("multiply 6*7", {"tokens_per_step": 2}, 12)]
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)
