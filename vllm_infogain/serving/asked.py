"""What a client asked for and vLLM's SamplingParams do not say: one record, which hangs on them as `asked`.

Owner: `Asked.of_request`, when an HTTP request has become SamplingParams. It is read at admission, off the caller's own
parameters: their copies do not have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_infogain.compat import SamplingParams
from vllm_infogain.serving.tools import asked_by

LENGTHS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass(frozen=True)
class Asked:
    canvas: int | None = None  # max_tokens of an HTTP request, of which vLLM cuts off what does not fit
    own_canvas: int | None = None  # max_tokens, if the client gave it; without, a canvas has the length of its text
    inserts: bool = False  # the prompt's only mask stands for all that comes before its `suffix`
    constraint: tuple[str, Any] | None = None  # the field that asks for structured output, and its value
    over_http: bool = False

    @classmethod
    def of_request(cls, request: Any) -> Asked:
        """Of a request for a completion, a chat or a response."""
        # vLLM writes the default of a completion into its request before pydantic sees it: not even model_fields_set
        # tells it from the client's own.
        defaults = {name: field.default for name, field in type(request).model_fields.items() if name in LENGTHS}
        lengths = {name: getattr(request, name) for name in LENGTHS if name in defaults}
        return cls(
            canvas=next((length for length in lengths.values() if length), None),
            own_canvas=next((length for name, length in lengths.items() if length != defaults[name]), None),
            inserts=bool(getattr(request, "suffix", None)),
            constraint=asked_by(request),
            over_http=True,
        )

    @classmethod
    def of(cls, params: SamplingParams) -> Asked:
        """Of parameters; where no HTTP request made them, vLLM's default of max_tokens counts as not given."""
        if (asked := getattr(params, "asked", None)) is not None:
            return asked
        return cls(own_canvas=None if params.max_tokens == SamplingParams().max_tokens else params.max_tokens)
