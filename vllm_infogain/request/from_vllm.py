"""A request's decoding record out of vLLM's SamplingParams and the engine's configuration."""

import hashlib
import weakref
from collections.abc import Mapping
from typing import Any

from vllm_infogain.compat import SamplingParams, VllmConfig
from vllm_infogain.request.constraints import Constraints
from vllm_infogain.request.fields import without_none
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.request.params import DecodingParams, parse_params
from vllm_infogain.request.settings import Settings, parse_settings

_settings: dict[int, tuple[Settings, dict[str, Any]]] = {}  # of each configuration, by its id, as long as it lives


def settings_of(vllm_config: VllmConfig) -> tuple[Settings, dict[str, Any]]:
    """Our settings, and the defaults of decoding parameters: parsed once of each engine's configuration.

    Raises:
        ParameterError: see `parse_settings`.
    """
    key = id(vllm_config)
    if key not in _settings:
        _settings[key] = parse_settings(vllm_config.additional_config)
        weakref.finalize(vllm_config, _settings.pop, key)
    return _settings[key]


def stream_mode(vllm_config: VllmConfig, knobs: Mapping[str, Any] | None) -> str | None:
    """What a request asks for by its `extra_args`, or else the server's default; None: neither says anything."""
    return (settings_of(vllm_config)[1] | without_none(knobs)).get("stream_mode")


def block_causal_size(vllm_config: VllmConfig) -> int:
    """Positions per block, unless a request says otherwise, of a model whose attention is causal over blocks; 0 if it
    looks both ways everywhere."""
    config = vllm_config.model_config.hf_config
    return config.block_size if getattr(config, "attention_kind", "full") == "block_causal" else 0


def logit_columns(vllm_config: VllmConfig) -> int:
    """Of a row of the model's logits: the vocabulary, and the padding of a table that is larger."""
    model_config = vllm_config.model_config
    return getattr(model_config.hf_config, "embedding_size", None) or model_config.get_vocab_size()


def image_tokens(vllm_config: VllmConfig) -> ImageTokens | None:
    """How the model writes pictures; None: it does not."""
    return ImageTokens.of(vllm_config.model_config.hf_config)


def text_vocabulary(vllm_config: VllmConfig) -> int:
    """The tokens of a text lie below it: behind them an image model has the codes of pictures."""
    tokens = image_tokens(vllm_config)
    return vllm_config.model_config.get_vocab_size() if tokens is None else tokens.image_token_offset


def logits_shift(vllm_config: VllmConfig) -> int:
    """1 if row i of the model's logits predicts position i + 1; 0 if it predicts position i."""
    return int(getattr(vllm_config.model_config.hf_config, "predicts", "same") == "next")


def decoding_params(request_id: str, sampling_params: SamplingParams, vllm_config: VllmConfig) -> DecodingParams:
    """The decoding record of one request. Deterministic: every process that asks gets the same record.

    Without a seed a request at temperature 0 is deterministic (seed 0), any other is seeded by its unique id.
    """
    assert sampling_params.max_tokens is not None, "vLLM fills it in before the engine sees a request"
    seed = sampling_params.seed
    if seed is None:
        digest = hashlib.blake2b(f"{vllm_config.model_config.seed}/{request_id}".encode(), digest_size=6).digest()
        seed = 0 if sampling_params.temperature == 0 else int.from_bytes(digest, "big")
    stop_ids = {*(sampling_params.stop_token_ids or ()), *({sampling_params.eos_token_id} - {None})}
    eos = getattr(vllm_config.model_config.hf_config, "eos_token_id", None)
    eos_ids = {*(eos if isinstance(eos, list) else [eos]), sampling_params.eos_token_id} - {None}
    return parse_params(
        sampling_params.extra_args or {},
        defaults=settings_of(vllm_config)[1],
        temperature=sampling_params.temperature,
        seed=seed,
        canvas_length=sampling_params.max_tokens,
        top_k=sampling_params.top_k,
        top_p=sampling_params.top_p,
        min_p=sampling_params.min_p,
        logprobs=sampling_params.num_logprobs,
        logprob_token_ids=tuple(sampling_params.logprob_token_ids or ()),
        constraints=Constraints(
            allowed_ids=tuple(sorted(set(sampling_params.allowed_token_ids or ()))),
            logit_bias=tuple(sorted((sampling_params.logit_bias or {}).items())),
            banned=tuple(map(tuple, sampling_params.bad_words_token_ids or ())),
            min_tokens=sampling_params.min_tokens,
        ),
        is_structured=sampling_params.structured_outputs is not None,
        stop_ids=tuple(sorted(stop_ids)),
        eos_ids=tuple(sorted(eos_ids)),
        block_causal_size=block_causal_size(vllm_config),
        shift=logits_shift(vllm_config),
        image_tokens=image_tokens(vllm_config),
    )


def row_budget(vllm_config: VllmConfig) -> int:
    """The most rows of one forward."""
    config = vllm_config.scheduler_config
    return min(config.max_num_batched_tokens, config.max_num_scheduled_tokens or config.max_num_batched_tokens)


def klass_mib(params: DecodingParams, vllm_config: VllmConfig) -> float:
    """What the worker keeps for a request of KLASS from step to step: log-probabilities of a block, fp32."""
    if params.sampler != "klass":
        return 0.0
    positions = min(params.block_length or params.canvas_length, params.canvas_length)
    first, last = params.columns or (0, logit_columns(vllm_config))
    return positions * (last - first) / (1 << 18)
