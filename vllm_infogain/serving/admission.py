"""Checks each request whole before it reaches the engine, so that it can harm no other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vllm_infogain.compat import SamplingParams, VllmConfig, VLLMValidationError, cdiv
from vllm_infogain.request.canvas import check_infill, initial_canvas, stops_from
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.from_vllm import (
    decoding_params,
    image_tokens,
    klass_mib,
    row_budget,
    settings_of,
    text_vocabulary,
)
from vllm_infogain.request.guidance import check_guide
from vllm_infogain.request.params import MAX_SEQUENCES, DecodingParams
from vllm_infogain.request.picture import check_picture
from vllm_infogain.sampling.schedule import plan_blocks
from vllm_infogain.serving.structured_outputs import check_constraint, check_structured_outputs

# Fields of SamplingParams that are honoured, here or by vLLM's own output processor. Any other field must keep its
# default: what cannot be honoured is refused, never ignored.
HONOURED = frozenset({
    "n", "temperature", "top_k", "top_p", "seed", "max_tokens", "ignore_eos", "stop", "stop_token_ids",
    "include_stop_str_in_output", "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
    "output_kind", "stream_interval", "extra_args", "min_p", "min_tokens", "allowed_token_ids", "logit_bias",
    "bad_words", "logprobs", "logprob_token_ids", "flat_logprobs", "structured_outputs", "skip_reading_prefix_cache",
})  # fmt: skip
# Fields that vLLM fills in by itself and that mean nothing here.
INTERNAL = frozenset({"skip_clone", "output_text_buffer_length"})
NEUTRAL = {"watermarking": (None, False)}
_plain = SamplingParams()
SAMPLING_DEFAULTS: dict[str, Any] = {
    name: getattr(_plain, name) for name in SamplingParams.__struct_fields__ if not name.startswith("_")
}


class RequestError(VLLMValidationError, ValueError):
    """A refused request: HTTP 400 to vLLM's server, a ValueError to everybody else."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a ParameterError into what vLLM's server answers with HTTP 400, and vLLM's own refusal into a ValueError."""
    try:
        yield
    except RequestError:
        raise
    except (ParameterError, VLLMValidationError) as error:
        raise RequestError(str(error), parameter=error.parameter) from None


def check_constraint_first(constraint: Any, vllm_config: VllmConfig, asked: tuple[str, Any] | None = None) -> None:
    """Refuse a constraint, StructuredOutputsParams or None, before vLLM checks it, which has no bound.

    Args:
        constraint, vllm_config, asked: of `check_constraint`.

    Raises:
        RequestError: see `check_constraint`.
    """
    if constraint is not None:
        with refusing():
            check_constraint(constraint, vllm_config, asked)


def check_server_limit(canvas: int, vllm_config: VllmConfig) -> None:
    """Refuse a canvas longer than what the server's generation config lets HTTP requests have.

    Raises:
        RequestError: names the limit.
    """
    config = vllm_config.model_config
    if config.generation_config in ("auto", "vllm"):
        limit = config.override_generation_config.get("max_new_tokens")
    else:
        limit = config.get_diff_sampling_param().get("max_tokens")
    if limit is not None and canvas > limit:
        raise RequestError(f"max_tokens={canvas}: this server's limit is {limit}; fill less", parameter="max_tokens")


def check_request(
    params: Any,
    prompt: Sequence[int] | None,
    vllm_config: VllmConfig,
    *,
    lora_request: Any = None,
    requested_canvas: int | None = None,
    is_resumable: bool = False,
    priority: int = 0,
) -> None:
    """Refuse a request that cannot be served as asked.

    Args:
        params: SamplingParams, `max_tokens` filled in.
        prompt: token ids.
        vllm_config: of the engine it is for.
        lora_request: the adapter asked for, if any.
        requested_canvas: the client's own max_tokens, where the HTTP layer may have cut it down.
        is_resumable: more of the prompt is to come later.
        priority: over other requests.

    Raises:
        RequestError (a ValueError; HTTP 400): names the parameter, its value and the remedy.
    """
    with refusing():
        if not isinstance(params, SamplingParams):
            raise ParameterError("task", "pooling", "a masked diffusion model only generates; use LLM.generate")
        check_options(lora_request, is_resumable, priority)
        _check_sampling_fields(params)
        decoding = decoding_params("", params, vllm_config)
        canvas = requested_canvas or params.max_tokens or 0
        _check_lengths(prompt, canvas, decoding, vllm_config)
        config = vllm_config.model_config
        vocabulary, mask_id = config.get_vocab_size(), config.hf_config.mask_token_id
        check_picture(
            decoding, image_tokens(vllm_config), mask_id, canvas=canvas, prompt=prompt or (),
            stop_strings=params.stop or (), stop_ids=params.stop_token_ids or (),
        )  # fmt: skip
        check_guide(decoding, len(prompt or ()), vocabulary)
        _check_guide_fits(decoding, len(prompt or ()), vllm_config)
        check_infill(decoding, params.stop or (), mask_id, vocabulary)
        plan_blocks(decoding, len(prompt or ()), mask_id)  # refuses fewer steps than blocks
        texts = text_vocabulary(vllm_config)
        decoding.constraints.check(texts, mask_id, decoding.stop_ids, stops_from(decoding, mask_id))
        check_structured_outputs(params, initial_canvas(decoding, mask_id), vllm_config)
        _check_samples(params.n, decoding)
        _check_rows(params.n, decoding, len(prompt or ()), vllm_config)
        _check_contexts(decoding, len(prompt or ()), vllm_config)
        _check_klass(decoding, vllm_config)
        if requested_canvas and params.max_tokens and requested_canvas > params.max_tokens:
            raise ParameterError(
                "max_tokens", requested_canvas, f"this server's limit is {params.max_tokens}; give at most that"
            )


def check_options(lora_request: Any, is_resumable: bool, priority: int) -> None:
    """Refuse what a caller of the engine may ask for beside parameters and prompt."""
    if lora_request is not None:
        raise ParameterError("lora_request", lora_request.lora_name, "LoRA is not supported; leave it out")
    if is_resumable:
        raise ParameterError("resumable", True, "a prompt cannot be streamed in; give it whole")
    if priority:
        raise ParameterError("priority", priority, "requests are served in the order they come; leave it out")


def check_room(prompt_length: int, limit: int) -> None:
    """Refuse a prompt that fills the model's length by itself."""
    if prompt_length >= limit:
        raise ParameterError(
            "prompt",
            f"{prompt_length} tokens",
            f"leaves no room for a canvas in the model length of {limit}; shorten it",
        )


def _check_lengths(
    prompt: Sequence[int] | None, canvas: int, decoding: DecodingParams, vllm_config: VllmConfig
) -> None:
    limit, suffix = vllm_config.model_config.max_model_len, len(decoding.suffix_token_ids)
    if not prompt:
        raise ParameterError("prompt", prompt, "give at least one token, as text or token ids")
    check_room(len(prompt), limit)
    if len(prompt) + canvas + suffix > limit:
        behind = f" + suffix ({suffix} tokens)" if suffix else ""
        raise ParameterError(
            "max_tokens", canvas,
            f"prompt ({len(prompt)} tokens) + canvas{behind} must fit the model length of {limit}: "
            f"give at most {limit - len(prompt) - suffix}, or shorten the prompt",
        )  # fmt: skip
    if decoding.block_causal and decoding.block_length > limit:
        raise ParameterError("block_length", decoding.block_length, f"give at most the model length of {limit}")
    vocabulary = vllm_config.model_config.get_vocab_size()
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise ParameterError(
            "prompt", [min(prompt), max(prompt)], f"outside the vocabulary; give token ids from 0 to {vocabulary - 1}"
        )


def _check_guide_fits(decoding: DecodingParams, prompt_length: int, vllm_config: VllmConfig) -> None:
    """A sequence and its guide run in one forward: their hidden states are combined."""
    if not decoding.is_guided:
        return
    lengths = [decoding.length(prompt) for prompt in decoding.prompt_lengths(prompt_length)]
    limit = vllm_config.model_config.max_model_len
    if lengths[1] > limit:
        raise ParameterError(
            "guidance_prompt_ids", f"{len(decoding.guidance_prompt_ids or ())} tokens",
            f"with the canvas behind it it is {lengths[1]} positions, the model length is {limit}; "
            "give fewer tokens, or a shorter canvas",
        )  # fmt: skip
    budget = row_budget(vllm_config)
    if sum(lengths) > budget:
        raise ParameterError(
            "guidance_scale", decoding.guidance_scale,
            f"a sequence ({lengths[0]} positions) and its guide ({lengths[1]}) run in one forward, and this server's "
            f"max_num_batched_tokens is {budget}: start it with --max-num-batched-tokens {sum(lengths)} or more, or "
            "give a shorter canvas or prompt",
        )  # fmt: skip


def _check_samples(samples: int, params: DecodingParams) -> None:
    if samples > 1 and params.temperature == 0 and params.tau_position == 0 and params.sampler != "uniform":
        raise ParameterError(
            "n", samples,
            "at temperature 0 and position_temperature 0 all samples are the same; give one of them above 0",
        )  # fmt: skip


def _check_rows(samples: int, params: DecodingParams, prompt_length: int, vllm_config: VllmConfig) -> None:
    """No single request may take the server down: what its candidates hold at once grows with rows."""
    limit = settings_of(vllm_config)[0].request_rows
    if samples > MAX_SEQUENCES:
        raise ParameterError("n", samples, f"give at most {MAX_SEQUENCES}; for more samples send more requests")
    window = sum(params.windows(prompt_length))
    rows = samples * params.most_sequences * window
    if rows > limit:
        name = {"beam": "beam_width", "best_of_n": "num_generations"}.get(params.sampler, "num_candidates")
        name = "n" if samples > params.most_sequences else name
        raise ParameterError(
            name, samples if name == "n" else getattr(params, name),
            f"{samples} x {params.most_sequences} sequences that differ in {window} positions are {rows} rows, "
            f"and this server's request_rows is {limit}; give fewer, or cache='dual' and a shorter block_length",
        )  # fmt: skip


def _check_contexts(params: DecodingParams, prompt_length: int, vllm_config: VllmConfig) -> None:
    """A request whose cached states and guides do not fit the KV pool would wait for ever."""
    cache = vllm_config.cache_config
    pages = (cache.num_gpu_blocks or 0) // vllm_config.parallel_config.data_parallel_size - 1  # one is vLLM's null page
    lengths = params.context_lengths(prompt_length)
    if len(lengths) == 1 or not 0 < pages < sum(cdiv(length, cache.block_size) for length in lengths):
        return
    held = f"the KV pool holds {pages * cache.block_size} positions in all"
    if params.num_cached_states == 1:
        raise ParameterError(
            "guidance_scale", params.guidance_scale,
            f"a sequence ({lengths[0]} positions) and its guide ({lengths[1]}) have pages of their own, and {held}; "
            "give a shorter canvas or prompt",
        )  # fmt: skip
    name = "beam_width" if params.sampler == "beam" else "num_generations"
    guides = ", and as many guides" if params.is_guided else ""
    raise ParameterError(
        name, params.num_cached_states,
        f"with cache={params.cache!r} it keeps so many copies of {lengths[0]} positions{guides}, and {held}; give "
        "fewer, or cache='none'",
    )  # fmt: skip


def _check_klass(params: DecodingParams, vllm_config: VllmConfig) -> None:
    limit, needed = settings_of(vllm_config)[0].klass_mib, klass_mib(params, vllm_config)
    if needed > limit:
        raise ParameterError(
            "block_length", params.block_length,
            f"sampler='klass' keeps the log-probabilities of a block, here {needed:.0f} MiB, and this server's "
            f"klass_mib is {limit}; give a shorter block_length",
        )  # fmt: skip


def _check_sampling_fields(params: SamplingParams) -> None:
    # A field that vLLM adds is refused until we honour it.
    for name, default in SAMPLING_DEFAULTS.items():
        if name in HONOURED or name in INTERNAL:
            continue
        value = getattr(params, name)
        if value != default and value not in NEUTRAL.get(name, ()):
            raise ParameterError(
                name, value,
                "not supported with masked diffusion; leave it out, or if the request does not set it, the model's "
                "generation config does: start the server with --generation-config vllm",
            )  # fmt: skip
