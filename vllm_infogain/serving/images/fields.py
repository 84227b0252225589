"""What a request for pictures may say: every field is honoured, of no effect anywhere, or refused with its reason.

Imports neither torch nor vLLM.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from vllm_infogain.request.fields import ParameterError, choice, integer, number, switch, text, without_none
from vllm_infogain.request.params import PARSERS
from vllm_infogain.serving.images.encoding import FORMATS

MOST_PICTURES = 10  # of one request, as at OpenAI
MOST_PARTIAL = 3
PLACED = "the route sets it itself; leave it out"
# Knobs that another field says, or that the route sets.
NOT_IN_XARGS = {
    "image": PLACED,
    "stream_mode": "give stream and partial_images",
    "suffix_token_ids": PLACED,
    "diffusion_seed_canvas": "give the picture and a mask to /v1/images/edits",
    "diffusion_pinned": "give the picture and a mask to /v1/images/edits",
    "negative_prompt": "give it as a field of its own",
    "guidance_prompt_ids": "give negative_prompt",
}


def nothing_but(*values: Any, why: str) -> Callable[[str, Any], Any]:
    def parse(name: str, value: Any) -> Any:
        if value not in values:
            raise ParameterError(name, value, f"{why}; give {' or '.join(map(repr, values))}, or leave it out")
        return value

    return parse


def prompt(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ParameterError(name, value, "give one text; for several pictures of it give n, for others send others")
    return value


def xargs(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ParameterError(name, value, "give an object of decoding parameters")
    for knob, given in value.items():
        if knob in NOT_IN_XARGS and given is not None:
            raise ParameterError(f"{name}.{knob}", given, NOT_IN_XARGS[knob])
    return without_none(value)


# Of OpenAI's images API, and of other servers' extensions to it.
FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "prompt": prompt,
    "model": text,
    "n": integer(1, MOST_PICTURES),
    "size": text,  # compared with the model's, which is known later
    "response_format": nothing_but("b64_json", why="the server keeps no files that a URL could lead to"),
    "output_format": choice(*FORMATS),
    "quality": nothing_but("auto", "standard", why="how much is computed is said by steps and the sampler"),
    "background": nothing_but("auto", "opaque", why="the model's pictures have no transparency"),
    "user": text,
    "safety_identifier": text,
    "stream": switch,
    "partial_images": integer(0, MOST_PARTIAL),
    "seed": integer(0),
    "temperature": number(0),
    "top_k": integer(-1),
    "top_p": number(0, 1),
    "min_p": number(0, 1),
    "guidance_scale": PARSERS["guidance_scale"],
    "num_inference_steps": PARSERS["steps"],
    "negative_prompt": text,
    "vllm_xargs": xargs,
}
REFUSED = {
    "output_compression": "pictures are encoded at Pillow's defaults",
    "style": "write the style into the prompt",
    "moderation": "the server has no filter of its own",
    "input_fidelity": "what the mask keeps is kept code by code",
    "true_cfg_scale": "give guidance_scale: 0 is no guidance",
    "guidance_scale_2": "give guidance_scale: 0 is no guidance",
    "extra_params": "give vllm_xargs",
    "diffusers_kwargs": "give vllm_xargs",
    "extra_body": "is an argument of OpenAI's client; put what it holds at the top of the body",
    "lora": "the executors have no adapters",
    "width": "give size",
    "height": "give size",
    "strength": "give a mask: what it keeps is kept whole",
}
TEXTS = frozenset(
    {"prompt", "model", "size", "response_format", "output_format", "quality", "background", "user",
     "safety_identifier", "negative_prompt"}
)  # fmt: skip
DRAWING = ("seed", "temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class PictureRequest:
    prompt: str
    model: str | None = None
    n: int = 1
    size: str | None = None
    output_format: str = "png"
    stream: bool = False
    partial_images: int = 0
    negative_prompt: str | None = None
    drawing: dict[str, Any] = field(default_factory=dict)  # of `DRAWING`, what is given
    knobs: dict[str, Any] = field(default_factory=dict)  # decoding parameters, as they are given

    @property
    def shows_steps(self) -> bool:
        return self.stream and self.partial_images > 0


def picture_request(body: Any) -> PictureRequest:
    """A request's body, checked field by field; null is as left out.

    Raises:
        ParameterError: naming the field, its value and what is accepted.
    """
    if not isinstance(body, Mapping):
        raise ParameterError("body", body, "give an object of fields")
    given = without_none(body)
    for name, value in given.items():
        if name not in FIELDS:
            raise ParameterError(str(name), value, _remedy(name))
    fields = {name: FIELDS[name](name, value) for name, value in given.items()}
    if not fields.get("prompt"):
        raise ParameterError("prompt", fields.get("prompt"), "say what the picture is to show")
    knobs = fields.pop("vllm_xargs", {})
    for name, knob in (("guidance_scale", "guidance_scale"), ("num_inference_steps", "steps")):
        if name in fields:
            if knob in knobs:
                raise ParameterError(name, fields[name], f"stands in vllm_xargs too, as {knob}; give one of them")
            knobs[knob] = fields.pop(name)
    drawing = {name: fields.pop(name) for name in DRAWING if name in fields}
    heeded = {name: value for name, value in fields.items() if name in PictureRequest.__dataclass_fields__}
    request = PictureRequest(drawing=drawing, knobs=knobs, **heeded)
    if request.stream and request.n > 1:
        raise ParameterError("n", request.n, "a stream is of one picture; give 1, or leave stream out")
    if request.partial_images and not request.stream:
        raise ParameterError("partial_images", request.partial_images, "only a stream has them; give stream too")
    if request.shows_steps and (sampler := knobs.get("sampler")) in ("beam", "best_of_n"):
        raise ParameterError(
            "partial_images", request.partial_images, f"nothing that sampler={sampler!r} writes is sure to stay; give 0"
        )
    return request


def check_size(size: str | None, side: int) -> None:
    """Refuse a size that is not the model's, whose pictures are `side` pixels wide and high."""
    if size not in (None, "auto", f"{side}x{side}"):
        raise ParameterError("size", size, f"the model's pictures are {side}x{side}; give that, or auto")


def form_body(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The body that a form's fields stand for: `vllm_xargs[sampler]` is a field of an object, and `7` a number."""
    body: dict[str, Any] = {}
    for name, value in items:
        outer, bracket, inner = name.partition("[")
        read = value if name in TEXTS or not isinstance(value, str) else _number_or_text(value)
        if bracket and inner.endswith("]") and isinstance(held := body.setdefault(outer, {}), dict):
            held[inner[:-1]] = read
        elif name in body:
            raise ParameterError(name, value, "given twice; give one")
        else:
            body[name] = read
    return body


def _number_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _remedy(name: str) -> str:
    if name in REFUSED:
        return f"not supported: {REFUSED[name]}"
    if name in PARSERS:
        return "is a decoding parameter; put it in vllm_xargs"
    close = get_close_matches(str(name), [*FIELDS, *PARSERS], n=1, cutoff=0.85)
    meant = f"; if {close[0]} is meant, give that" if close else ""
    return f"unknown field{meant}; known are {', '.join(FIELDS)}"
