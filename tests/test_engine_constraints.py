"""Pinned canvases, constraints and log-probabilities on the engine against the slow oracle."""

import itertools
import json
import math
import random

import pytest
from engines import MASK_ID, Engine, Job, assert_matches_oracle, running
from knobs import fitting

import vllm_infogain
from vllm_infogain.embedded.tokenizer import EOS, VOCAB, encode
from vllm_infogain.request.params import ADAPTIVE_SAMPLERS, SAMPLERS

pytestmark = pytest.mark.engine

M = MASK_ID
ANSWER = encode("x=")
# Text at both ends, a whole block of text, and text across the border of two blocks.
CANVAS = [*ANSWER, M, M, M, M, *encode("fixed-"), M, M, *encode("yz"), M, M, M, M, M, *encode("end.")]
DIGITS = {"allowed_token_ids": encode("0123456789")}
CACHES = [{}, {"cache": "dual"}, {"cache": "prefix", "cache_refresh": 2}]


@pytest.fixture(scope="module")
def engine(checkpoint):
    with running(checkpoint) as engine:
        yield engine


def infilling(prompt: str, knobs=None, **more) -> Job:
    return Job(prompt, {"block_length": 6, **(knobs or {}), "diffusion_seed_canvas": CANVAS}, len(CANVAS), **more)


def text_of(output) -> list[int]:
    return list(output.outputs[0].token_ids)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cache", CACHES)
def test_infilling_equals_the_oracle_and_keeps_what_stood_there(engine: Engine, sampler: str, cache: dict):
    knobs = fitting({"sampler": sampler, "tokens_per_step": 2, "bypass_threshold": 0.5, **cache})
    job = infilling("before", knobs, fields={"logprobs": 2})
    (output,) = engine.run([job])
    assert_matches_oracle(engine, job, output)
    written = text_of(output)
    assert [token for token, seed in zip(written, CANVAS, strict=True) if seed != M] == [t for t in CANVAS if t != M]
    assert M not in written


def test_text_between_masks_is_kept_even_where_the_model_would_stop_before_it(engine: Engine):
    # Whatever the model writes, no stop token comes before the last text that stood there.
    everything = sorted(set(range(len(VOCAB))) - {M, *CANVAS})
    stops = everything[: len(everything) // 2]
    job = infilling("stop", ignore_eos=False, temperature=1.0, seed=1, fields={"stop_token_ids": stops})
    (output,) = engine.run([job])
    assert_matches_oracle(engine, job, output)
    assert len(text_of(output)) == len(CANVAS)


def test_only_pinned_places_of_a_seed_stand(engine: Engine):
    seed, pinned = encode("abcdefgh"), [0, 5]
    job = Job("pins", {"diffusion_seed_canvas": seed, "diffusion_pinned": pinned}, 8)
    (output,) = engine.run([job])
    assert_matches_oracle(engine, job, output)
    assert [text_of(output)[place] for place in pinned] == [seed[place] for place in pinned]
    assert len(output.outputs[0].token_ids) == 8
    assert engine.oracle(job).steps[-1].positions, "the other six are written"
    assert sum(len(step.positions) for step in engine.oracle(job).steps) == 6


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("sampler", ["info_gain", "beam", "best_of_n", "klass"])
def test_a_suffix_is_read_and_not_returned(engine: Engine, sampler: str, cache: dict):
    knobs = {"sampler": sampler, "block_length": 4, **cache}
    with_suffix = Job("a", {**knobs, "suffix_token_ids": encode(" and so on")}, 10)
    (output,) = engine.run([with_suffix])
    assert_matches_oracle(engine, with_suffix, output)
    assert len(text_of(output)) == 10
    (without,) = engine.run([Job("a", knobs, 10)])
    assert text_of(without) != text_of(output), "a random model is moved by what it reads"


CONSTRAINED = [
    ("allowed", DIGITS),
    ("bias", {"logit_bias": {encode("7")[0]: 8.0, encode("8")[0]: -3.0}}),
    ("banned", {"bad_words": ["7", "8", "a", "b"]}),
    ("words", {"allowed_token_ids": encode("0123"), "bad_words": ["01", "12", "2222"]}),
    ("early", {"allowed_token_ids": [VOCAB[EOS], *encode("01")], "min_tokens": 9}),
    ("min-p", {"min_p": 0.2}),
    ("logprobs", {"logprobs": 3}),
    ("chosen", {"logprob_token_ids": encode("abc")}),
]


@pytest.mark.parametrize(("name", "fields"), CONSTRAINED)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_constraints_equal_the_oracle_for_every_sampler(engine: Engine, name: str, fields: dict, temperature: float):
    samplers = [sampler for sampler in SAMPLERS if name != "words" or sampler not in ADAPTIVE_SAMPLERS]
    jobs = [
        Job(
            f"{name} {sampler}",
            {"sampler": sampler, "tokens_per_step": 1 if name == "words" else 2, "block_length": 8},
            14, temperature, seed, ignore_eos=False, fields={"logprobs": None, **fields},
        )
        for seed, sampler in enumerate(samplers)
    ]  # fmt: skip
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)
        check(name, text_of(output))


def check(name: str, tokens: list[int]) -> None:
    text = "".join(chr(token + 27) if token > 5 else "?" for token in tokens)
    if name == "allowed":
        assert set(tokens) <= set(DIGITS["allowed_token_ids"])
    if name == "banned":
        assert not set(tokens) & set(encode("78ab"))
    if name == "words":
        spelled = "".join(str(encode("0123").index(token)) for token in tokens)
        assert not any(word in spelled for word in ("01", "12", "2222")), text
    if name == "early":
        assert VOCAB[EOS] not in tokens[:9]


def test_constrained_requests_do_not_touch_the_others_in_their_batch(engine: Engine):
    plain = [Job(f"plain {index}", {"block_length": 6, "tokens_per_step": 2}, 15, 1.0, index) for index in range(3)]
    constrained = [
        Job("mixed", {"block_length": 8}, 14, 1.0, 3, fields=fields) for name, fields in CONSTRAINED if name != "early"
    ]
    alone = [text_of(engine.run([job])[0]) for job in plain]
    mixed = list(itertools.chain.from_iterable(itertools.zip_longest(constrained, plain, [infilling("in")])))
    batch = [job for job in mixed if job is not None]
    outputs = engine.run(batch)
    assert [text_of(output) for job, output in zip(batch, outputs, strict=True) if job in plain] == alone
    for job, output in zip(batch, outputs, strict=True):
        assert_matches_oracle(engine, job, output)


def test_pinned_canvases_survive_preemption_with_cached_states(engine: Engine):
    shared = {"cache": "dual", "beam_width": 2, "num_candidates": 3}
    jobs = [
        infilling(f"preempt {index}", fitting(shared | {"sampler": sampler}))
        for index, sampler in enumerate(["info_gain", "beam", "best_of_n", "entropy"])
    ]
    outputs = engine.drive(jobs, lambda step: engine.preempt() if step % 2 else None)
    for job, output in zip(jobs, outputs, strict=True):
        assert_matches_oracle(engine, job, output)


def test_a_logprob_comes_with_its_rank_and_the_most_likely_alternatives(engine: Engine):
    job = Job("ranks", {"sampler": "ar"}, 12, 1.0, 4, fields={"logprobs": 5})
    (output,) = engine.run([job])
    sample = output.outputs[0]
    for token, entry in zip(sample.token_ids, sample.logprobs, strict=True):
        assert 5 <= len(entry) <= 6
        best = sorted(entry.values(), key=lambda one: -one.logprob)
        assert entry[token].rank == 1 + sum(one.logprob > entry[token].logprob for one in best) or entry[token].rank > 5
        assert sum(math.exp(one.logprob) for one in best) <= 1 + 1e-5
    assert sample.cumulative_logprob == pytest.approx(
        sum(entry[token].logprob for token, entry in zip(sample.token_ids, sample.logprobs, strict=True)), abs=1e-4
    )


EXTREMES = {
    "position_temperature": [1e-310, 1e-6, 1e6], "bypass_threshold": [0, 1e6], "cost_weight": [0, 1e6],
    "klass_epsilon": [0, 1e6], "pc_lambda": [0, 1e6], "pc_alpha": [0, 1e6], "entropy_bound": [0, 1e6],
    "threshold": [0, 1], "factor": [0, 1e6], "eos_penalty": [0, 1e4], "tokens_per_step": [2**31 - 1],
    "cache_refresh": [2**31 - 1], "steps": [2, 1 << 16], "num_candidates": [1, 64],
}  # fmt: skip


def test_no_extreme_of_a_knob_harms_the_engine(engine: Engine):
    jobs = []
    for index, (name, values) in enumerate(EXTREMES.items()):
        for value, sampler in itertools.product(values, ("info_gain", "beam", "pc", "factor", "klass", "eb")):
            knobs = {"tokens_per_step": 2, "block_length": 8, "sampler": sampler, name: value}
            if name == "steps":
                knobs["schedule"] = ("dream", "cosine")[index % 2]
            if name == "cache_refresh":
                knobs["cache"] = "prefix"
            knobs = fitting(knobs)
            jobs.append(Job(f"{name}", knobs, 10, 1.0, index, ignore_eos=False, fields={"logprobs": 1}))
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        figures = vllm_infogain.report(output)
        json.dumps(figures, allow_nan=False)
        assert M not in text_of(output), job


def test_only_stop_tokens_before_text_that_stands_are_refused(engine: Engine):
    job = infilling("stops", ignore_eos=False, fields={"allowed_token_ids": [VOCAB[EOS]]})
    with pytest.raises(ValueError, match=r"allowed_token_ids=.*may not before place"):
        engine.run([job])


def test_random_canvases_come_back_with_their_text_unchanged(engine: Engine):
    random_choice = random.Random(6)
    jobs = []
    for index in range(24):
        length = random_choice.randint(2, 24)
        canvas = [M if random_choice.random() < 0.5 else random_choice.choice(encode("abc123 ")) for _ in range(length)]
        canvas[random_choice.randrange(length)] = M
        sampler = random_choice.choice(SAMPLERS)
        knobs = {"sampler": sampler, "block_length": random_choice.randint(1, length), "diffusion_seed_canvas": canvas}
        jobs.append(Job("random", knobs, length, random_choice.choice([0.0, 1.0]), index, ignore_eos=False))
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)
        stood = [(place, token) for place, token in enumerate(job.knobs["diffusion_seed_canvas"]) if token != M]
        assert all(text_of(output)[place] == token for place, token in stood)
