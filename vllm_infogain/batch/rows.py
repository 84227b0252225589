"""A row of the input as one request: prompt, sampling and decoding parameters. Imports neither torch nor vLLM."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_infogain.request.fields import ParameterError, without_none
from vllm_infogain.request.params import PARSERS

PROMPTS = ("prompt", "prompt_token_ids", "messages")
ID, METADATA, NESTED, EXTRA = "id", "metadata", "sampling_params", "extra_args"
# Fields of SamplingParams that say how an output is handed on, and that a row of a file has no use for.
NOT_OF_A_ROW = frozenset({EXTRA, "output_kind", "stream_interval", "skip_clone", "output_text_buffer_length"})


@dataclass(frozen=True)
class Request:
    prompt: str | list[int] | list[dict[str, Any]]  # text, token ids, or the messages of a chat
    sampling_params: dict[str, Any]  # arguments of SamplingParams


def row_seed(seed: int, key: str) -> int:
    """Of a row that gives none: the same whenever the row is decoded, and another for each row."""
    return int.from_bytes(hashlib.blake2b(f"row/{seed}/{key}".encode(), digest_size=8).digest(), "big") >> 1


def row_request(
    row: Mapping[str, Any], key: str, *, defaults: Mapping[str, Any], seed: int, fields: Collection[str]
) -> Request:
    """What one row asks for. None is as left out.

    Args:
        row: its columns but for the id.
        key: its id as text.
        defaults: parameters for rows that do not give them.
        seed: of the whole file.
        fields: names of vLLM's SamplingParams.

    Raises:
        ParameterError: naming the column, its value and the remedy.
    """
    given = without_none(row)
    given.pop(METADATA, None)
    prompts = {name: given.pop(name) for name in PROMPTS if name in given}
    prompt = _prompt(prompts)
    knobs: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    for name, value in (_flat(defaults) | _flat(given)).items():
        if name in PARSERS:
            knobs[name] = value
        elif name in fields and name not in NOT_OF_A_ROW:
            sampling[name] = value
        else:
            raise ParameterError(
                name, value,
                f"unknown; a row has {', '.join(PROMPTS)}, {ID}, {METADATA}, fields of vLLM's SamplingParams, and "
                f"{', '.join(PARSERS)}",
            )  # fmt: skip
    if sampling.get("n", 1) != 1:
        raise ParameterError("n", sampling["n"], "a row has one sample; give a row for each")
    if isinstance(bias := sampling.get("logit_bias"), Mapping):
        sampling["logit_bias"] = {_token(token): value for token, value in without_none(bias).items()}
    sampling.setdefault("seed", row_seed(seed, key))
    return Request(prompt, sampling | ({EXTRA: knobs} if knobs else {}))


def _flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that stand by themselves, under `sampling_params` or under `extra_args`, each once."""
    flat: dict[str, Any] = {}
    for name, value in without_none(given).items():
        if name in (NESTED, EXTRA):
            if not isinstance(value, Mapping):
                raise ParameterError(name, value, "give an object of parameters")
            inner = _flat(value)
        else:
            inner = {name: value}
        for twice in inner.keys() & flat.keys():
            raise ParameterError(twice, inner[twice], "is given twice in one row; give it once")
        flat |= inner
    return flat


def _prompt(given: Mapping[str, Any]) -> Any:
    if len(given) != 1:
        raise ParameterError("prompt", sorted(given) or None, f"give one of {', '.join(PROMPTS)}")
    ((name, value),) = given.items()
    if name == "prompt":
        fits = isinstance(value, str)
    elif name == "prompt_token_ids":
        fits = isinstance(value, list) and all(type(token) is int for token in value)
    else:
        fits = isinstance(value, list) and all(isinstance(message, Mapping) and "role" in message for message in value)
    if not fits or not value:
        kind = {"prompt": "a text", "prompt_token_ids": "a list of token ids"}.get(name, "a list of messages")
        raise ParameterError(name, value, f"give {kind}, not empty")
    for message in value if name == "messages" else ():
        if not isinstance(content := message.get("content") or "", str):  # a template would write down the list
            raise ParameterError(name, content, "a batch's chats are of text: give every content as one text")
    return [without_none(message) for message in value] if name == "messages" else value


def _token(name: Any) -> int:
    try:
        return int(name)
    except ValueError:
        raise ParameterError("logit_bias", name, "give token ids") from None
