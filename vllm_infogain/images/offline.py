"""Pictures without a server: of a `vllm.LLM`, or of the library's sampler."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from vllm_infogain.images.answers import answer_of
from vllm_infogain.images.canvas import TEMPERATURE
from vllm_infogain.images.magvit import Magvit, from_pixels, pixels
from vllm_infogain.images.reading import middle_square
from vllm_infogain.request.fields import LARGEST_INTEGER, ParameterError, integer, without_none
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.request.seeds import child_seed

Drawn = tuple[list[int], dict[str, Any]]  # tokens, report


def generate(
    llm: Any,
    prompts: str | Sequence[str],
    *,
    n: int = 1,
    tokenizer: Magvit | None = None,
    negative_prompt: str | None = None,
    temperature: float = TEMPERATURE,
    seed: int | None = None,
    **knobs: Any,
) -> list[Image.Image]:
    """Pictures of texts. The same seed gives the same pictures here, on a server, and of the library (fp32).

    Args:
        llm: a `vllm.LLM` of a model that writes pictures, such as `vllm_infogain.load_llm` makes; or a
            `vllm_infogain.InfoGainSampler` of one.
        prompts: one text or several.
        n: pictures of each.
        tokenizer: of pictures, for the library's sampler; an engine has its own.
        negative_prompt: what guidance leads away from; None: from pictures of nothing in particular.
        temperature, seed: how codes are drawn.
        knobs: decoding parameters, such as `sampler`, `steps` and `guidance_scale`.

    Returns:
        n pictures of the first prompt, n of the second, and so on. `info["codes"]` of each are its codes, row by row;
        `info["infogain"]` is the report of its decoding.

    Raises:
        ParameterError (a ValueError): naming the parameter, its value and the remedy.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    is_library = hasattr(llm, "sample")
    tokens = llm.image_tokens if is_library else ImageTokens.of(llm.model_config.hf_config)
    if tokens is None:
        raise ParameterError("llm", type(llm).__name__, "its model writes text only; give one that writes pictures")
    text_tokenizer = llm.tokenizer if is_library else llm.get_tokenizer()

    def token_ids(text: str, name: str = "prompt") -> list[int]:
        return tokens.prompt(text_tokenizer.encode(text, add_special_tokens=False), name=name)

    knobs = without_none(knobs) | {"image": True}
    if negative_prompt is not None:
        knobs["guidance_prompt_ids"] = token_ids(negative_prompt, "negative_prompt")
    drawing = {"temperature": temperature, "seed": seed}
    ids = [token_ids(text) for text in texts]
    count = integer(1)("n", n)
    if is_library:
        if tokenizer is None:
            raise ParameterError("tokenizer", None, "the library's sampler has none for pictures; give a Magvit")
        drawn = _of_library(llm, ids, tokens, count, knobs, drawing)
        return [_library_picture(one, tokens, tokenizer) for one in drawn]
    return [_engine_picture(one, tokens, llm) for one in _of_engine(llm, ids, tokens, count, knobs, drawing)]


@torch.inference_mode()
def reading_prompt(
    sampler: Any, picture: Image.Image, chat: str | Sequence[Mapping[str, Any]], *, tokenizer: Magvit
) -> list[int]:
    """The prompt of a chat about a picture, for `sampler.sample`. An engine's is made by `LLM.chat` and by a server.

    Args:
        sampler: a `vllm_infogain.InfoGainSampler` of a model that reads pictures, with a text tokenizer.
        picture: of any size.
        chat: a question, or a chat's messages, whose content is text.
        tokenizer: of pictures.

    Raises:
        ParameterError (a ValueError): the model reads no pictures.
    """
    tokens = sampler.image_tokens
    if tokens is None or not tokens.are_read:
        raise ParameterError(
            "sampler", type(sampler).__name__, "its model reads text only; give one that reads pictures"
        )
    messages = [{"role": "user", "content": chat}] if isinstance(chat, str) else list(chat)
    text = sampler.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    side = tokens.image_codes_per_side * tokenizer.config.pixels_per_code
    raw = torch.frombuffer(bytearray(middle_square(picture, side)), dtype=torch.uint8).view(1, side, side, 3)
    codes = tokenizer.encode(from_pixels(raw.to(next(tokenizer.parameters()).device))).flatten().tolist()
    return [*tokens.shown(codes), *sampler.tokenizer.encode(text, add_special_tokens=False)]


def _of_engine(
    llm: Any, prompts: list[list[int]], tokens: ImageTokens, n: int, knobs: dict[str, Any], drawing: dict[str, Any]
) -> Iterator[Drawn]:
    from vllm import SamplingParams

    params = SamplingParams(n=n, max_tokens=tokens.codes, detokenize=False, extra_args=knobs, **drawing)
    results = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    for output in (output for result in results for output in result.outputs):
        yield list(output.token_ids), output.infogain.report


def _of_library(
    sampler: Any, prompts: list[list[int]], tokens: ImageTokens, n: int, knobs: dict[str, Any], drawing: dict[str, Any]
) -> list[Drawn]:
    seed = drawing["seed"]
    if seed is None:
        seed = 0 if drawing["temperature"] == 0 else int(torch.randint(LARGEST_INTEGER, ()).item())
    seeds = [child_seed(seed, "sample", index) for index in range(n)]  # as of an engine's request
    samples = [
        sampler.sample(prompts, tokens.codes, temperature=drawing["temperature"], seed=each, **knobs) for each in seeds
    ]
    return [(sample.tokens, sample.report.totals()) for of_prompt in zip(*samples, strict=True) for sample in of_prompt]


def _engine_picture(drawn: Drawn, tokens: ImageTokens, llm: Any) -> Image.Image:
    codes = [token - tokens.image_token_offset for token in drawn[0]]
    rgb = answer_of(llm.collective_rpc("decode_images", args=([codes],)))
    if rgb is None:
        raise ParameterError(
            "image_tokenizer", None,
            'the engine has none; give additional_config={"infogain": {"image_tokenizer": FOLDER}}',
        )  # fmt: skip
    side = int((len(rgb) // 3) ** 0.5)
    return _picture(rgb, side, codes, drawn[1])


@torch.inference_mode()
def _library_picture(drawn: Drawn, tokens: ImageTokens, tokenizer: Magvit) -> Image.Image:
    codes = [token - tokens.image_token_offset for token in drawn[0]]
    device, side = next(tokenizer.parameters()).device, tokens.image_codes_per_side
    grid = torch.tensor(codes, device=device).reshape(1, side, side)
    decoded = pixels(tokenizer.decode(grid))[0]
    return _picture(decoded.cpu().numpy().tobytes(), len(decoded), codes, drawn[1])


def _picture(rgb: bytes, side: int, codes: list[int], report: dict[str, Any]) -> Image.Image:
    picture = Image.frombytes("RGB", (side, side), rgb)
    picture.info |= {"codes": codes, "infogain": report}
    return picture
