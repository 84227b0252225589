"""What tokens spell: what vLLM's detokenizer makes of any of them, one after the other, is their bytes joined."""

import json
import re

import jsonschema
import numpy as np
import pytest
from byte_level import byte_fallback, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

from vllm_infogain.embedded.tokenizer import EOS, MASK, SPECIALS, VOCAB, build_tokenizer
from vllm_infogain.grammar.automaton import allowed
from vllm_infogain.grammar.backend import ModelTokens, automaton_of, pattern_of
from vllm_infogain.grammar.token_dfa import Spelling
from vllm_infogain.grammar.vocabulary import shown, text_tokens, token_bytes


def wrapped(tokenizer, end: str = EOS) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, mask_token=MASK)


TOKENIZERS = {
    "byte-level": wrapped(byte_level()),
    "sentencepiece": wrapped(byte_fallback(metaspace=False), "</s>"),
    "metaspace": wrapped(byte_fallback(metaspace=True), "</s>"),
    "characters": wrapped(build_tokenizer()),
}
BYTES = {
    name: {token: text for text, tokens in text_tokens(tokenizer, len(tokenizer)).items() for token in tokens}
    for name, tokenizer in TOKENIZERS.items()
}


def detokenized(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    """As vLLM does it: behind a prompt, token by token."""
    stream = DecodeStream(ids=tokenizer.encode("the n", add_special_tokens=False), skip_special_tokens=True)
    return "".join(stream.step(tokenizer.backend_tokenizer, token) or "" for token in tokens)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_token_spells_something_but_those_that_texts_leave_out(name):
    tokenizer = TOKENIZERS[name]
    silent = set(range(len(tokenizer))) - BYTES[name].keys()
    specials = SPECIALS if name in ("byte-level", "characters") else ("<unk>", "</s>", MASK)
    assert silent == set(tokenizer.convert_tokens_to_ids(list(specials)))
    assert not any(not spelled or "\ufffd".encode() in spelled for spelled in BYTES[name].values())


def test_tokens_below_the_model_s_vocabulary_only_are_spelled():
    found = text_tokens(TOKENIZERS["byte-level"], 50).values()
    assert {token for tokens in found for token in tokens} == {*range(5, 50)}


def test_a_part_of_a_character_spells_its_bytes():
    def of(name, token):
        return token_bytes(TOKENIZERS[name], token)

    assert [of("byte-level", token) for token in ("ä¸", "Ń", "Ġ", "Ċ", "ŃæĸĩåŃ", "<think>", "｜中▁文｜")] == [
        b"\xe4\xb8", b"\xad", b" ", b"\n", b"\xad\xe6\x96\x87\xe5\xad", b"<think>", "｜中▁文｜".encode()
    ]  # fmt: skip
    for name in ("sentencepiece", "metaspace"):
        assert [of(name, token) for token in ("<0xE4>", "<0x20>", "<0x41>", "▁", "▁▁", "▁the", "▁中", "<tool>")] == [
            b"\xe4", b" ", b"A", b" ", b"  ", b" the", " 中".encode(), b"<tool>"
        ]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(sorted(BYTES["byte-level"])), max_size=12))
def test_what_the_tokenizer_makes_of_any_tokens_is_their_bytes_joined(tokens):
    written = b"".join(map(BYTES["byte-level"].get, tokens))
    assert TOKENIZERS["byte-level"].decode(tokens) == written.decode(errors="replace")


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(st.text("the n.中文字世é😀👩\u200d한A ", max_size=8), st.randoms(use_true_random=False))
def test_a_text_cut_into_any_tokens_is_that_text_again_for_the_detokenizer(name, text, rng):
    text = text if name != "characters" else re.sub(r"[^ -~]", "~", text)
    rest, tokens = text.encode(), []
    while rest:
        tokens.append(rng.choice([token for token, spelled in BYTES[name].items() if rest.startswith(spelled)]))
        rest = rest[len(BYTES[name][tokens[-1]]) :]
    assert detokenized(TOKENIZERS[name], tokens) == text


def test_a_tokenizer_whose_tokens_depend_on_their_neighbours_is_refused():
    tokenizer = build_tokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="b")
    with pytest.raises(ValueError, match="what stands beside it"):
        text_tokens(wrapped(tokenizer), len(VOCAB))


def test_a_token_alone_is_shown_as_its_text_or_its_bytes_and_a_special_one_by_its_name():
    def of(name, token):
        return shown(TOKENIZERS[name], TOKENIZERS[name].convert_tokens_to_ids(token))

    assert [of("byte-level", token) for token in ("Ġä¸Ń", "Ġ", "ä¸", EOS, "<think>")] == [
        " 中", " ", "bytes:\\xe4\\xb8", EOS, "<think>"
    ]  # fmt: skip
    assert [of("sentencepiece", token) for token in ("▁the", "<0xE4>", "</s>")] == [" the", "bytes:\\xe4", "</s>"]
    assert [of("characters", token) for token in (" ", "a", MASK)] == [" ", "a", MASK]
    assert shown(TOKENIZERS["characters"], 10_000) == ""


NAMED = {
    "type": "object",
    "properties": {
        "名": {"type": "string", "minLength": 2, "maxLength": 4},
        "b": {"enum": ["世界", "😀", "naïve"]},
        "c": {"type": "string", "pattern": "^[一-龥😀-😏]{1,3}$"},
    },
    "required": ["名", "b", "c"],
}
CONSTRAINTS = [
    *((StructuredOutputOptions.REGEX, pattern) for pattern in ("..", "[一-龥]{3}", "(你好|😀)+ ?", "[^a-z]*", "\\w é")),
    (StructuredOutputOptions.CHOICE, json.dumps(["中文", "世界", "👩‍👩‍👧", "the 中"])),
    (StructuredOutputOptions.JSON, json.dumps(NAMED)),
]


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece", "metaspace"])
@pytest.mark.parametrize(("kind", "specification"), CONSTRAINTS)
@pytest.mark.parametrize("parts", [False, True])
def test_what_a_grammar_lets_be_written_matches_whole_as_the_detokenizer_has_it(name, kind, specification, parts):
    tokenizer, spelled = TOKENIZERS[name], BYTES[name]
    end = tokenizer.eos_token_id
    texts = text_tokens(tokenizer, len(tokenizer))
    automaton = automaton_of(
        pattern_of(kind, specification), ModelTokens(Spelling.of(texts, len(tokenizer), {end}), (end,))
    )
    alone = [spelled.get(token, b"").decode(errors="replace") for token in range(len(tokenizer))]
    part = np.array(["\ufffd" in text for text in alone])
    mixed = part & (np.array(list(map(len, alone))) > 1)  # parts of two characters, or a part and more
    mask = tokenizer.mask_token_id
    for seed in range(5):
        rng = np.random.default_rng(seed)
        canvas = np.full(automaton.shortest + rng.integers(12), mask)
        for place in rng.permutation(len(canvas)):
            (classes,) = allowed(automaton, canvas[None], mask, np.array([[place]]))[0]
            may = classes[automaton.class_of]
            for likely in (mixed, part) if parts else ():
                may = may & likely if (may & likely).any() else may
            canvas[place] = rng.choice(np.flatnonzero(may))
        text = detokenized(tokenizer, canvas.tolist())
        if kind is StructuredOutputOptions.REGEX:
            assert re.fullmatch(specification, text)
        elif kind is StructuredOutputOptions.CHOICE:
            assert text in json.loads(specification)
        else:
            jsonschema.validate(json.loads(text), NAMED)
