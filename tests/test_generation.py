"""Our samplers at temperature 0 against the published decoding procedure of each family, as exact token sequences.

The procedures are plain loops, written here from the families' released generation code, one forward of the plain model
per step. In each of them the mask token is never written, without which random weights would leave masks behind; its
share of the softmax it has.
"""

from collections.abc import Callable

import pytest
import torch
from checkpoints import write_dream, write_llada, write_sdar
from engines import MASK_ID, Engine, Job, assert_matches_oracle, running
from knobs import fitting

import vllm_infogain

pytestmark = pytest.mark.engine

Model = Callable[[torch.Tensor], torch.Tensor]  # ids [1, length] -> logits [1, length, vocab] of the positions
FAMILIES = {"llada": write_llada, "dream": write_dream, "sdar": write_sdar}
BLOCK = 8  # of SDAR


@pytest.fixture(scope="module")
def engine(request, tmp_path_factory):
    family = request.param
    path = tmp_path_factory.mktemp(family)
    model = FAMILIES[family](path, **({"block_size": BLOCK} if family == "sdar" else {}))
    with running(path, model) as engine:
        yield engine


def family(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("engine", [name], indirect=True, scope="module")


def probabilities(model: Model, state: list[int]) -> torch.Tensor:
    """[length, vocab] float64."""
    return model(torch.tensor([state]))[0].double().softmax(-1)


def best_written(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of p [length, vocab]: the most likely token that may be written, and its probability."""
    p = p.clone()
    p[:, MASK_ID] = -1.0
    return tuple(p.max(-1))


def is_masked(state: list[int]) -> torch.Tensor:
    return torch.tensor(state) == MASK_ID


def split_evenly(count: int, steps: int) -> list[int]:
    """The first steps take the remainder."""
    return [count // steps + (step < count % steps) for step in range(steps)]


def write_best(state: list[int], scores: torch.Tensor, tokens: torch.Tensor, count: int) -> None:
    """The `count` masked positions with the best scores [length]; -inf elsewhere."""
    for position in scores.topk(count).indices.tolist():
        assert state[position] == MASK_ID
        state[position] = tokens[position].item()


def assert_the_engine_answers(engine: Engine, job: Job, expected: list[int]) -> dict:
    (output,) = engine.run([job])
    assert list(output.outputs[0].token_ids) == expected
    return vllm_infogain.report(output)


# LLaDA: low-confidence remasking.


def llada(model: Model, prompt: list[int], length: int, steps: int, block_length: int) -> list[int]:
    state = prompt + [MASK_ID] * length
    blocks = length // block_length
    for block in range(blocks):
        end = len(prompt) + (block + 1) * block_length
        for count in split_evenly(block_length, steps // blocks):
            confidence, tokens = best_written(probabilities(model, state))
            confidence[~is_masked(state)] = -torch.inf
            confidence[end:] = -torch.inf
            write_best(state, confidence, tokens, count)
    return state[len(prompt) :]


@family("llada")
@pytest.mark.parametrize(
    ("length", "steps", "block_length"),
    [(32, 32, 32), (32, 16, 32), (32, 16, 8), (24, 15, 8), (30, 7, 30), (40, 12, 10), (24, 3, 8), (12, 24, 6)],
)
def test_llada_low_confidence_remasking(engine: Engine, length: int, steps: int, block_length: int):
    job = Job("a prompt", {"sampler": "confidence", "schedule": "linear", "steps": steps}, length)
    job.knobs["block_length"] = block_length
    expected = llada(engine.model, engine.prompt_ids(job), length, steps, block_length)
    assert_the_engine_answers(engine, job, expected)


# Dream: a global canvas, whose times fall from 1 to 1e-3.


def dream_scores(algorithm: str, p: torch.Tensor) -> torch.Tensor:
    match algorithm:
        case "maskgit_plus":
            return best_written(p)[0]
        case "topk_margin":
            first, second = p.topk(2).values.unbind(-1)
            return first - second
        case "entropy":
            return (p * (p + 1e-10).log()).sum(-1)
    raise AssertionError(algorithm)


def dream(model: Model, prompt: list[int], length: int, steps: int, algorithm: str) -> tuple[list[int], list[int]]:
    """The answer, and how many positions each step wrote."""
    state = prompt + [MASK_ID] * length
    times = torch.linspace(1, 1e-3, steps + 1)
    counts = []
    for step in range(steps):
        masked = is_masked(state).sum() / 1  # fp32, as in the released code
        t, s = times[step], times[step + 1]
        counts.append(int(masked * (1 - s / t)) if step < steps - 1 else int(masked))
        p = probabilities(model, state)
        scores = dream_scores(algorithm, p)
        scores[~is_masked(state)] = -torch.inf
        write_best(state, scores, best_written(p)[1], counts[-1])
    return state[len(prompt) :], counts


ALGORITHMS = {"entropy": "entropy", "maskgit_plus": "confidence", "topk_margin": "margin"}


@family("dream")
@pytest.mark.parametrize(("algorithm", "sampler"), ALGORITHMS.items())
@pytest.mark.parametrize(("length", "steps"), [(32, 32), (32, 64), (40, 12), (29, 7), (16, 1), (1, 5)])
def test_dream(engine: Engine, algorithm: str, sampler: str, length: int, steps: int):
    knobs = {"sampler": sampler, "schedule": "dream", "steps": steps, "block_length": 0}
    job = Job("a prompt", knobs, length)
    expected, counts = dream(engine.model, engine.prompt_ids(job), length, steps, algorithm)
    report = assert_the_engine_answers(engine, job, expected)
    written = [len(step["positions"]) for step in report["trajectory"]]
    assert written == [count for count in counts if count], "what writes nothing is no step"
    assert report["steps"] == report["forwards"] == len(written), "and costs no forward"
    if length == steps == 32:
        assert counts == [0, *[1] * 30, 2], "time does not reach 0"


@family("dream")
@pytest.mark.parametrize("sampler", ["info_gain", "lookum", "beam", "best_of_n", "klass"])
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_dreams_schedule_serves_every_sampler(engine: Engine, sampler: str, cache: str):
    knobs = {"sampler": sampler, "schedule": "dream", "steps": 30, "num_candidates": 4, "bypass_threshold": 1.0}
    for block_length in (0, 8):
        more = {"cache": cache, "cache_refresh": 2, "block_length": block_length}
        job = Job("a prompt", fitting(knobs | more), 20)
        assert_matches_oracle(engine, job, engine.run([job])[0])


# SDAR, TraDo: blocks at absolute positions, the rest of the prompt fixed in the first one.


def sdar(model: Model, prompt: list[int], length: int, steps: int, threshold: float | None) -> list[int]:
    """`steps` per block; with a threshold, all that are surer (dynamic), else the best of each step (static)."""
    state = prompt + [MASK_ID] * length
    for start in range(len(prompt) // BLOCK * BLOCK, len(state), BLOCK):
        counts = split_evenly(BLOCK, steps)
        while (masked := is_masked(state[: start + BLOCK])).any():
            count = min(counts.pop(0), int(masked.sum()))
            confidence, tokens = best_written(probabilities(model, state[: start + BLOCK]))
            confidence[~masked] = -torch.inf
            if threshold is not None:
                count = max(count, int((confidence > threshold).sum()))
            write_best(state, confidence, tokens, count)
    return state[len(prompt) :]


@family("sdar")
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8])
def test_sdar_static_low_confidence_of_whole_blocks(engine: Engine, steps: int):
    for prompt, length in (([29] * 8, 24), ([30, 31] * 8, 8)):
        job = Job(prompt, {"sampler": "confidence", "schedule": "linear", "steps": steps * length // BLOCK}, length)
        assert_the_engine_answers(engine, job, sdar(engine.model, prompt, length, steps, threshold=None))


@family("sdar")
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_sdar_static_low_confidence_where_the_prompt_ends_inside_a_block(engine: Engine, steps: int):
    for prompt, length in (([29], 23), ([30, 31, 32], 21), ([40] * 13, 19)):
        job = Job(prompt, {"sampler": "confidence", "tokens_per_step": BLOCK // steps}, length)
        assert_the_engine_answers(engine, job, sdar(engine.model, prompt, length, steps, threshold=None))


@family("sdar")
@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_sdar_dynamic_low_confidence(engine: Engine, steps: int, threshold: float):
    for prompt, length in (([29], 23), ([30, 31, 32], 21), ([40] * 16, 16)):
        knobs = {"sampler": "threshold", "threshold": threshold, "tokens_per_step": BLOCK // steps}
        expected = sdar(engine.model, prompt, length, steps, threshold)
        report = assert_the_engine_answers(engine, Job(prompt, knobs, length), expected)
    if threshold == 0.2:
        assert max(len(step["positions"]) for step in report["trajectory"]) > BLOCK // steps or steps == 1
