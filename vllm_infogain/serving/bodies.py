"""Names in a request's body that its endpoint would pass over in silence. Imports neither torch nor vLLM."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.params import PARSERS
from vllm_infogain.request.settings import SETTINGS

# Fields of OpenAI's and vLLM's bodies that decide what is decoded; an endpoint that does not have one ignores it.
DECODING = frozenset({
    "response_format", "structured_outputs", "text", "top_logprobs", "max_completion_tokens", "max_output_tokens",
    "suffix", "vllm_xargs", "use_beam_search",
})  # fmt: skip
# Fields that an endpoint may have and nothing reads, with the values at which that is all the same.
UNREAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), "give n for samples; sampler='best_of_n' in vllm_xargs returns the surest of several"),
    "guided_decoding_backend": ((), "structured outputs have one backend; leave it out"),
    "length_penalty": ((1, 1.0), "it is of vLLM's beam search, which is not served; leave it out"),
    "early_stopping": ((False,), "it is of vLLM's beam search, which is not served; leave it out"),
}


def check_body(body: Mapping[str, Any], fields: Collection[str], sampling: Mapping[str, Any]) -> None:
    """Refuse a name that asks for another decoding and that the endpoint does not know, or does not heed.

    Names that have nothing to do with decoding, such as `store`, are vLLM's to judge.

    Args:
        body: the request's, as it came.
        fields: names that the endpoint knows.
        sampling: vLLM's SamplingParams by name, with their defaults.

    Raises:
        ParameterError: with where to put it.
    """
    for name, value in body.items():
        if value is None:
            continue
        if name in UNREAD:
            harmless, advice = UNREAD[name]
            if value not in harmless:
                raise ParameterError(name, value, advice)
        elif name not in fields and (remedy := _remedy(name, value, sampling)):
            raise ParameterError(name, value, remedy)


def check_sampling_body(given: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
    """The same of SamplingParams that stand in a body as they are: there the parameters' place is `extra_args`."""
    for name, value in given.items():
        if value is not None and name not in sampling and (remedy := _remedy(name, value, {})):
            raise ParameterError(f"sampling_params.{name}", value, remedy.replace("vllm_xargs", "extra_args"))


def _remedy(name: str, value: Any, sampling: Mapping[str, Any]) -> str | None:
    """What to do about a name that the endpoint does not know; None if it is not about decoding."""
    if name in PARSERS:
        return "is a decoding parameter; put it in vllm_xargs"
    if name in SETTINGS:
        return "is a setting of the server; start it with --additional-config '{\"infogain\": {...}}'"
    if name.startswith("guided_"):
        return "give it as structured_outputs, such as {'regex': ...}"
    if name == "extra_args":
        return "over HTTP its name is vllm_xargs"
    if name == "extra_body":
        return "is an argument of OpenAI's client; put what it holds at the top of the body"
    if name == "stream":
        return "this endpoint does not stream; leave it out" if value else None
    if name in DECODING or (name in sampling and value != sampling[name]):
        return "this endpoint does not have it; leave it out, or use /v1/chat/completions or /v1/completions"
    if close := get_close_matches(name, PARSERS, n=1, cutoff=0.85):
        return f"unknown; if {close[0]} is meant, put that in vllm_xargs"
    return None
