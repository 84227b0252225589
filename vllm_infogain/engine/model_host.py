"""The model on its device, with its KV pages: what vLLM's workers ask of a runner besides running steps."""

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn

from vllm_infogain.compat import (
    KVCacheConfig,
    KVCacheSpec,
    VllmConfig,
    build_attn_metadata,
    get_kv_cache_spec,
    init_attn_backend,
    init_kv_cache,
    reload_weights,
    set_current_vllm_config,
)
from vllm_infogain.engine.batch import Batch
from vllm_infogain.engine.config_check import check_attention_backends
from vllm_infogain.engine.graphs import PiecewiseGraphs, forward
from vllm_infogain.engine.pages import KVPages
from vllm_infogain.engine.pictures import Pictures, load_pictures
from vllm_infogain.engine.stats import StepStatsRecorder, timed
from vllm_infogain.engine.weights import load_model
from vllm_infogain.request.from_vllm import logit_columns, settings_of, text_vocabulary
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.guidance import combine
from vllm_infogain.sampling.rehearsal import rehearse


class ModelHost:
    """Owner of the model, of the tokenizer of its pictures and of the KV tensors. Knows no requests.

    Args:
        has_pictures: whether this worker is the one that decodes pictures.
    """

    is_pooling_model = False

    def __init__(self, vllm_config: VllmConfig, device: torch.device, *, has_pictures: bool = True) -> None:
        self.vllm_config = vllm_config
        self.has_pictures = has_pictures
        self.device = device
        self.settings, self.defaults = settings_of(vllm_config)
        self.mask_id: int = vllm_config.model_config.hf_config.mask_token_id
        self.vocab = text_vocabulary(vllm_config)
        # More than 32 MiB at once, and the C library gives the pages back and faults them in again at every step.
        mib = self.settings.logits_mib or (32 if device.type == "cpu" else 1024)
        self.most_logits = mib << 18  # that exist at once, fp32
        self.logit_rows = self.most_rows(None)  # whole ones
        self.stats_recorder = StepStatsRecorder()
        self.model: Any  # vLLM's model interface over nn.Module
        self.pictures: Pictures | None = None
        self.kv_caches: list[torch.Tensor] = []
        self.model_memory_usage = 0
        self.lora_config = None

    @timed("forward")
    def _forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states [rows, hidden]."""
        if batch.copied_pages.numel():
            self.pages.copy(batch.copied_pages)
        rows = batch.input_ids.shape[0]
        metadata = build_attn_metadata(
            attn_groups=self.attn_groups,
            num_reqs=batch.keys.shape[0],
            num_tokens=rows,
            query_start_loc_gpu=batch.query_start,
            query_start_loc_cpu=batch.query_start_host,
            max_query_len=batch.longest,
            seq_lens=batch.keys,
            max_seq_len=batch.most_keys,
            block_tables=[batch.page_table],
            slot_mappings=batch.slot_mapping.unsqueeze(0),
            kv_cache_config=self.kv_cache_config,
            seq_lens_cpu_upper_bound=batch.keys_host,
            causal=False,
        )
        return self.graphs.run(batch.input_ids, batch.positions, batch.slot_mapping, metadata)

    def most_rows(self, columns: tuple[int, int] | None) -> int:
        """Rows of logits that may exist at once, of some columns or (None) of all."""
        first, last = columns or (0, logit_columns(self.vllm_config))
        return max(1, self.most_logits // (last - first))

    @timed("forward")
    def _logits(self, hidden: torch.Tensor, rows: torch.Tensor, columns: tuple[int, int] | None = None) -> torch.Tensor:
        """[rows, columns] fp32 of the given rows, and of the columns from the first up to the second; None: of all."""
        if columns is None:
            return self.model.compute_logits(hidden[rows]).float()
        return self.model.compute_logits_of(hidden[rows], columns).float()

    @timed("forward")
    def _guide(self, hidden: torch.Tensor, rows: torch.Tensor, guide_rows: torch.Tensor, scale: torch.Tensor) -> None:
        """Make of rows of hidden [all rows, hidden], in place, what the head makes guided logits of.

        The head is linear: one product instead of two, and in bf16 nearer to the truth than logits that are rounded
        first and combined then.
        """
        if rows.numel():
            hidden[rows] = combine(hidden[rows], hidden[guide_rows], scale).to(hidden.dtype)

    # Start-up.

    def load_model(self, load_dummy_weights: bool = False) -> None:
        self.model = load_model(self.vllm_config)
        self.pictures = load_pictures(self.vllm_config, self.device) if self.has_pictures else None
        self.model_memory_usage = sum(p.numel() * p.element_size() for p in self.model.parameters())

    def get_model(self) -> nn.Module:
        return self.model

    def get_draft_model(self) -> None:
        return None

    def reload_weights(
        self,
        weights_iterator: Iterable[tuple[str, torch.Tensor]] | None = None,
        weights_path: str | None = None,
        is_checkpoint_format: bool = True,
    ) -> None:
        """In place, so that graphs keep what they point at; from the checkpoint again if nothing is given."""
        reload_weights(self.vllm_config, self.model, weights_iterator, weights_path, is_checkpoint_format)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        return get_kv_cache_spec(self.vllm_config)

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, kv_cache_allocation_context=None, **_unused) -> None:
        assert len(kv_cache_config.kv_cache_groups) == 1, "all layers of these models attend alike"
        self.kv_cache_config = kv_cache_config
        self.page_size: int = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        with set_current_vllm_config(self.vllm_config):
            groups, _, kernel_block_sizes = init_attn_backend(kv_cache_config, self.vllm_config, self.device)
        self.attn_groups = groups
        check_attention_backends(group.backend.get_name() for groups in self.attn_groups for group in groups)
        assert kernel_block_sizes[0] == self.page_size, "the attention kernel splits pages; page tables would differ"
        caches = init_kv_cache(
            self.vllm_config.compilation_config.static_forward_context,
            kv_cache_config,
            self.device,
            kernel_block_sizes,
            self.vllm_config,
            kv_cache_allocation_context,
            attn_groups=[group for groups in self.attn_groups for group in groups],
        )
        self.kv_caches = list(caches.values())
        assert all(len(cache) == kv_cache_config.num_blocks for cache in self.kv_caches), "pages are copied by index"
        self.pages = KVPages(self.kv_caches)
        self.graphs = PiecewiseGraphs(self.model, self.vllm_config, kv_cache_config, self.device)

    def capture_model(self) -> int:
        """Bytes of device memory that the graphs take."""
        return self.graphs.capture()

    def profile_cudagraph_memory(self) -> int:
        """Bytes that they will take; asked for after `profile_run`, before there are KV pages."""
        return PiecewiseGraphs(self.model, self.vllm_config, None, self.device).estimate()

    @torch.inference_mode()
    def profile_run(self, **_unused) -> None:
        """The peak: a full budget of rows, all guided, and as many of their logits as may exist at once, read in the
        worst way."""
        rows = self.vllm_config.scheduler_config.max_num_batched_tokens
        hidden = self._dummy_run(rows)
        guided = torch.arange(rows // 2, device=self.device)
        self._guide(hidden, guided, guided + rows // 2, torch.ones(rows // 2, 1, device=self.device))
        logits = self._logits(hidden, torch.arange(min(rows, self.logit_rows), device=self.device))
        klass = torch.empty(self.settings.klass_mib << 20, dtype=torch.uint8, device=self.device)
        most = self.vllm_config.model_config.max_logprobs
        num_candidates = self.defaults.get("num_candidates", DecodingParams.num_candidates)
        rehearse(logits, self.mask_id, self.vocab, num_candidates, self.vocab if most == -1 else most)
        del klass, logits, hidden
        if self.pictures is not None:
            self.pictures.rehearse()

    def warming_up_model(self) -> None:
        self.profile_run()

    @torch.inference_mode()
    def _dummy_run(self, rows: int, **_unused) -> torch.Tensor:
        """A forward of `rows` rows without attention: memory profiling, and idle ranks of data parallelism."""
        ids = torch.zeros(rows, dtype=torch.int64, device=self.device)
        return forward(self.model, self.vllm_config, ids, torch.zeros_like(ids), metadata=None)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def take_draft_token_ids(self) -> None:
        return None

    def update_max_model_len(self, max_model_len: int) -> None:
        self.vllm_config.model_config.max_model_len = max_model_len

    def reset_lora_state(self) -> None: ...

    def add_lora(self, *_unused) -> NoReturn:
        raise NotImplementedError("LoRA is not supported with masked diffusion")

    remove_lora = list_loras = pin_lora = add_lora

    def reset_mm_cache(self) -> None: ...

    def reset_encoder_cache(self) -> None: ...

    def get_encoder_timing_stats(self) -> dict:
        return {}
