"""Checks at start-up: a configuration under which the engine would serve wrongly, or not at all, is refused.

Single arguments are checked in arguments.py. These checks need the whole configuration, or the model.
"""

from collections.abc import Iterable
from typing import Any

from vllm_infogain.compat import (
    CUDAGraphMode,
    VllmConfig,
    cached_tokenizer_from_config,
    init_logger,
    is_breakable_cudagraph_enabled,
)
from vllm_infogain.engine.arguments import check_additional_config
from vllm_infogain.engine.identity import TOKENIZER_MODE, WORKER, is_active, is_our_model
from vllm_infogain.model_executors import EXECUTORS
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.from_vllm import block_causal_size, row_budget

logger = init_logger("vllm.infogain")

# To them a segment of ours is a sequence, and a step has more segments than requests. Other backends allocate by the
# number of requests, or attend in one direction only.
ATTENTION_BACKENDS = ("FLASH_ATTN", "TRITON_ATTN", "CPU_ATTN")


def can_cache_prefixes(vllm_config: VllmConfig) -> bool:
    """Whether a KV page depends on nothing behind it, so that requests with the same prefix can share it."""
    block = block_causal_size(vllm_config)
    return block > 0 and vllm_config.cache_config.block_size % block == 0


def check_engine(vllm_config: VllmConfig) -> None:
    """Refuse, at start-up, a configuration that the engine would serve wrongly or not at all.

    Raises:
        ParameterError (a ValueError): names the setting, its value and the remedy.
    """
    config = vllm_config
    parallel = config.parallel_config
    longest = config.model_config.max_model_len
    budget = row_budget(config)
    refused = {
        "enable_prefix_caching": config.cache_config.enable_prefix_caching and not can_cache_prefixes(config),
        "async_scheduling": config.scheduler_config.async_scheduling,
        "enable_lora": config.lora_config is not None,
        "speculative_config": config.speculative_config is not None,
        "kv_transfer_config": config.kv_transfer_config is not None,
        "pipeline_parallel_size": parallel.pipeline_parallel_size > 1,
        # Both spread a sequence's K/V over the ranks; our page tables hold whole sequences.
        "decode_context_parallel_size": parallel.decode_context_parallel_size > 1,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size > 1,
        "enable_dbo": parallel.use_ubatching,
        "enable_expert_parallel": parallel.enable_expert_parallel,
        # Replicas of a mixture of experts run in lockstep, forward by forward; a step of ours has one or several.
        # Dense ones are engines of their own, which vLLM tells of no other.
        "data_parallel_size": parallel.data_parallel_size > 1 and config.model_config.is_moe,
        "scheduling_policy": config.scheduler_config.policy != "fcfs",
    }
    for name, is_on in refused.items():
        if is_on:
            raise ParameterError(name, is_on, "not supported with masked diffusion; leave it out")
    if not is_active(config):
        scheduler = config.scheduler_config.scheduler_cls
        raise ParameterError("scheduler_cls", scheduler, "our worker needs our scheduler; leave it out")
    if parallel.worker_cls != WORKER:
        raise ParameterError("worker_cls", parallel.worker_cls, "our scheduler needs ours; leave it out")
    if budget < longest:
        raise ParameterError(
            "max_num_batched_tokens", budget, f"a whole sequence runs at once; give at least max_model_len={longest}"
        )
    if config.attention_config.backend is not None:
        check_attention_backends([config.attention_config.backend.name])
    _check_graphs(config)
    check_model(config.model_config)
    check_additional_config(config.additional_config)


def check_attention_backends(names: Iterable[str]) -> None:
    """Refuse an attention backend that segments do not fit; vLLM may choose it by itself."""
    for name in names:
        if name not in ATTENTION_BACKENDS:
            raise ParameterError("attention_backend", name, "give FLASH_ATTN or TRITON_ATTN: --attention-backend")


def _check_graphs(config: VllmConfig) -> None:
    """Graphs that hold attention fix its number of sequences; only what lies between is captured."""
    mode = config.compilation_config.cudagraph_mode
    if mode is not None and mode.has_full_cudagraphs():
        raise ParameterError("cudagraph_mode", mode.name, "give PIECEWISE or NONE: -cc.cudagraph_mode PIECEWISE")
    if is_breakable_cudagraph_enabled() and mode == CUDAGraphMode.PIECEWISE:
        # vLLM sets it by itself beside VLLM_BATCH_INVARIANT for some models; only its own runner can capture so.
        raise ParameterError("VLLM_USE_BREAKABLE_CUDAGRAPH", 1, "not supported with masked diffusion; set it to 0")


def check_model(model_config: Any) -> None:
    """Refuse a model that was not trained to fill masks, or that has no such mask token: it would write nonsense.

    Raises:
        ParameterError (a ValueError): names the model, or the mask id, and the remedy.
    """
    if not is_our_model(model_config):
        raise ParameterError(
            "model", model_config.model,
            f"architecture {', '.join(model_config.architectures)} is no masked diffusion model we know; "
            f"give one of {', '.join(EXECUTORS)}",
        )  # fmt: skip
    mask_id, vocabulary = model_config.hf_config.mask_token_id, model_config.get_vocab_size()
    if not isinstance(mask_id, int) or not 0 <= mask_id < vocabulary:
        raise ParameterError(
            "mask_token_id", mask_id,
            f"no token of this model, whose ids go from 0 to {vocabulary - 1}; "
            "give the mask token's id: --hf-overrides '{\"mask_token_id\": ID}'",
        )  # fmt: skip
    _check_ends(mask_id, getattr(model_config.hf_config, "eos_token_id", None), "the model's config.json")


def choose_renderer(model_config: Any) -> None:
    """Have vLLM make our renderer for one of our models, as it chooses modes for architectures of its own.

    Raises:
        ParameterError (a ValueError): the user chose another, which would read masks as text.
    """
    if model_config.tokenizer_mode not in ("auto", "hf", TOKENIZER_MODE):
        raise ParameterError(
            "tokenizer_mode",
            model_config.tokenizer_mode,
            "it does not read the masks in a text; leave it out",
        )
    model_config.tokenizer_mode = TOKENIZER_MODE


def check_renderer(model_config: Any) -> None:
    """Refuse our renderer for a model that is not ours, which has no mask token."""
    if model_config.tokenizer_mode == TOKENIZER_MODE:
        raise ParameterError("tokenizer_mode", TOKENIZER_MODE, "it is of masked diffusion models; leave it out")


def check_tokens(model_config: Any) -> None:
    """Compare the mask id with what tokenizer and generation config say of it. For the first process, which has them.

    Raises:
        ParameterError (a ValueError): the mask is an end token.
    """
    mask_id = model_config.hf_config.mask_token_id
    _check_ends(mask_id, model_config.try_get_generation_config().get("eos_token_id"), "the generation config")
    tokenizer = cached_tokenizer_from_config(model_config)
    if tokenizer is None:
        return
    _check_ends(mask_id, tokenizer.eos_token_id, "the tokenizer")
    of_tokenizer = getattr(tokenizer, "mask_token_id", None)
    if of_tokenizer not in (None, mask_id):
        logger.warning(
            "mask_token_id=%d (%r) is not the tokenizer's mask token, %d (%r): canvases are filled with the former; "
            "if the model was trained with the latter, give --hf-overrides '{\"mask_token_id\": %d}'",
            mask_id, tokenizer.convert_ids_to_tokens([mask_id])[0], of_tokenizer, tokenizer.mask_token, of_tokenizer,
        )  # fmt: skip


def _check_ends(mask_id: int, ends: int | list[int] | None, whose: str) -> None:
    if mask_id == ends or (isinstance(ends, list) and mask_id in ends):
        raise ParameterError(
            "mask_token_id", mask_id,
            f"the end token of {whose}: a canvas would end where it is empty; "
            "give the mask token's id: --hf-overrides '{\"mask_token_id\": ID}'",
        )  # fmt: skip
