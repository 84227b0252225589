"""The character tokenizer of infogain-tiny, written as Hugging Face files that AutoTokenizer loads by itself."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, ANSWER, MASK, UNK = SPECIALS = ("<|bos|>", "<|eos|>", "<|answer|>", "<|mask|>", "<|unk|>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # newline and printable ASCII
VOCAB = {token: index for index, token in enumerate((*SPECIALS, *CHARACTERS))}
MAX_LENGTH = 64  # tokens: prompt, its two special tokens, and canvas

# Only the last question is rendered: the model knows single questions, no dialogue. An answer behind it is one to be
# completed.
CHAT_TEMPLATE = (
    "{% set answer = messages[-1] if messages[-1]['role'] == 'assistant' and not add_generation_prompt else none %}"
    "{% set question = messages[-2] if answer else messages[-1] %}"
    "{% if not question or question['role'] != 'user' %}"
    "{{ raise_exception('infogain-tiny answers a last message of role user') }}"
    "{% endif %}" + BOS + "{{ question['content'] }}" + ANSWER + "{% if answer %}{{ answer['content'] }}{% endif %}"
)


def encode_prompt(prompt: str) -> list[int]:
    """Token ids of a prompt as the model reads it; what the tokenizer gives with its special tokens."""
    return [VOCAB[BOS], *encode(prompt), VOCAB[ANSWER]]


def encode(text: str) -> list[int]:
    """Token ids of plain text."""
    return [VOCAB.get(character, VOCAB[UNK]) for character in text]


def decode_answer(ids: list[int]) -> str:
    """The text before the first end-of-sequence token; special tokens keep their names, so no check passes them."""
    names = list(VOCAB)
    end = ids.index(VOCAB[EOS]) if VOCAB[EOS] in ids else len(ids)
    return "".join(names[i] for i in ids[:end])


def build_tokenizer() -> "Tokenizer":
    """The `tokenizers.Tokenizer`: one token per character, specials recognised in the text."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(VOCAB, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()  # joins the characters without spaces
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {ANSWER}", special_tokens=[(BOS, VOCAB[BOS]), (ANSWER, VOCAB[ANSWER])]
    )
    return tokenizer


def save_tokenizer(path: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json (which holds the chat template) to a directory."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": UNK,
        "mask_token": MASK,
        "additional_special_tokens": [ANSWER],
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
