"""Structured output on the engine: every text matches, whatever the order it is written in, and equals the oracle's.

The tokenizer is of Qwen's kind: there are tokens that are parts of characters.
"""

import json
import re

import byte_level
import jsonschema
import pytest
from checkpoints import write_llada
from engines import MASK_ID, Engine, Job, assert_matches_oracle, running
from knobs import fitting

from vllm_infogain.embedded.tokenizer import EOS, VOCAB, encode
from vllm_infogain.request.params import ADAPTIVE_SAMPLERS, SAMPLERS

pytestmark = pytest.mark.engine

M = MASK_ID
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yz"]}},
    "required": ["a", "b"],
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path, tokenizer = tmp_path_factory.mktemp("parts"), byte_level.small()
    write_llada(path, vocab_size=tokenizer.get_vocab_size(), embedding_size=tokenizer.get_vocab_size())
    byte_level.save(tokenizer, path)
    with running(path) as engine:
        yield engine


def structured(kind: str, value, prompt: str, knobs: dict, length: int, **more) -> Job:
    from vllm.sampling_params import StructuredOutputsParams

    return Job(prompt, knobs, length, fields={"structured_outputs": StructuredOutputsParams(**{kind: value})}, **more)


def text_of(engine: Engine, output) -> str:
    ids = list(output.outputs[0].token_ids)
    end = ids.index(VOCAB[EOS]) if VOCAB[EOS] in ids else len(ids)
    assert set(ids[end:]) <= {VOCAB[EOS]}, "behind the text there are only end tokens"
    return engine.llm.get_tokenizer().decode(ids[:end])


def check(kind: str, value, text: str) -> None:
    if kind == "regex":
        assert re.fullmatch(value, text), text
    if kind == "choice":
        assert text in value
    if kind == "json":
        found = json.loads(text)
        assert isinstance(found["a"], int)
        assert found["b"] in ("x", "yz")


CONSTRAINTS = [
    ("regex", "[0-9]{2,5}(-[a-f]+)?", 9),
    ("choice", ["yes", "no", "maybe", "no way"], 6),
    ("json", SCHEMA, 30),
]


@pytest.mark.parametrize(("kind", "value", "length"), CONSTRAINTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_sampler_writes_only_what_matches_and_equals_the_oracle(engine: Engine, kind, value, length, temperature):
    samplers = [sampler for sampler in SAMPLERS if sampler not in ADAPTIVE_SAMPLERS]
    jobs = []
    for index, sampler in enumerate(samplers):
        knobs = fitting({"sampler": sampler, "block_length": (0, 4)[index % 2], "num_candidates": 4})
        more = {"temperature": temperature, "seed": index, "ignore_eos": index % 3 == 0}
        jobs.append(structured(kind, value, f"{kind} {index}", knobs, length, **more))
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        check(kind, value, text_of(engine, output))
        if kind != "json" or job.knobs["sampler"] in ("info_gain", "entropy"):  # the oracle asks token by token
            assert_matches_oracle(engine, job, output)


NAMED = {
    "type": "object",
    "properties": {"世": {"type": "string", "minLength": 2, "maxLength": 5}, "b": {"enum": ["世界", "😀"]}},
    "required": ["世", "b"],
}
BEYOND_ASCII = [
    ("regex", "..", 8),
    ("regex", "[一-龥😀-😏]{2,4} ?é*", 12),
    ("choice", ["中文", "世界文", "😀😀"], 12),
    ("json", NAMED, 40),
]


@pytest.mark.parametrize(("kind", "value", "length"), BEYOND_ASCII)
def test_a_text_matches_whole_where_parts_of_characters_are_likeliest(engine: Engine, kind, value, length):
    tokenizer = engine.llm.get_tokenizer()
    alone = map(tokenizer.decode, range(len(tokenizer)))
    bias = {token: 30.0 * len(text) for token, text in enumerate(alone) if "\ufffd" in text}
    assert len(bias) > 15
    jobs = []
    for seed, sampler in enumerate(("info_gain", "entropy", "uniform")):
        more = {"temperature": 0.7, "seed": seed, "ignore_eos": False}
        jobs.append(structured(kind, value, "parts", {"sampler": sampler, "block_length": 4}, length, **more))
        jobs[-1].fields["logit_bias"] = bias
    for output in engine.run(jobs):
        text = output.outputs[0].text
        if kind == "json":
            jsonschema.validate(json.loads(text), value)
        else:
            assert re.fullmatch(value, text) if kind == "regex" else text in value
        assert not text.isascii()


def test_text_that_stands_in_the_canvas_is_part_of_the_match(engine: Engine):
    canvas = [M, M, M, *encode("-b"), M, M, M]
    knobs = {"sampler": "info_gain", "diffusion_seed_canvas": canvas, "bypass_threshold": 1.0}
    job = structured("regex", "[0-9]{2,3}(-[a-f]+)?", "pinned", knobs, len(canvas), ignore_eos=False)
    (output,) = engine.run([job])
    assert_matches_oracle(engine, job, output)
    assert re.fullmatch("[0-9]{3}-b[a-f]*", text_of(engine, output))


def test_unconstrained_requests_of_the_same_batch_are_untouched(engine: Engine):
    plain = Job("plain", {"tokens_per_step": 2}, 16, 1.0, 3)
    alone = list(engine.run([plain])[0].outputs[0].token_ids)
    jobs = [structured(kind, value, kind, {}, length) for kind, value, length in CONSTRAINTS]
    outputs = engine.run([jobs[0], plain, *jobs[1:]])
    assert list(outputs[1].outputs[0].token_ids) == alone
    for (kind, value, _), output in zip(CONSTRAINTS, [outputs[0], *outputs[2:]], strict=True):
        check(kind, value, text_of(engine, output))


def test_a_preempted_request_still_matches(engine: Engine):
    jobs = [
        structured(kind, value, kind, {"cache": "dual", "block_length": 5}, length)
        for kind, value, length in CONSTRAINTS
    ]
    outputs = engine.drive(jobs, lambda step: engine.preempt() if step % 2 else None)
    alone = engine.run(jobs)
    for (kind, value, _), output, undisturbed in zip(CONSTRAINTS, outputs, alone, strict=True):
        check(kind, value, text_of(engine, output))
        assert output.outputs[0].token_ids == undisturbed.outputs[0].token_ids


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("regex", "[0-9]{20}", "max_tokens=8: the shortest text that matches takes 20"),
        ("regex", "(", "unterminated subpattern"),
        ("grammar", 'root ::= "a"', "give a regex, a choice or a JSON schema"),
        ("json", {"type": "integer", "minimum": 3}, "structured_outputs.json="),
    ],
)
def test_what_no_automaton_can_hold_or_no_canvas_can_is_refused_by_name(engine: Engine, kind, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        engine.run([structured(kind, value, "refused", {}, 8)])
    engine.run([Job("still serves", {}, 4)])
