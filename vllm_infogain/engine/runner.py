"""Runs one step on the worker: planned groups -> one forward -> logits of masked rows -> the algorithm -> result.

Step logic lives here and not in the worker, because one of vLLM's Ray paths calls the runner directly. Under tensor
parallelism every rank gathers the logits and decides alike, from the same per-request seeds.
"""

from typing import Any

import torch
from torch import nn

from vllm_infogain.admission import background_log_frequencies, decoding_params
from vllm_infogain.engine.batch import Batch, SequenceGroup, build_batch
from vllm_infogain.engine.compat import (
    KVCacheConfig,
    KVCacheSpec,
    VllmConfig,
    build_attn_metadata,
    build_slot_mappings_by_layer,
    get_kv_cache_spec,
    get_model,
    init_attn_backend,
    init_kv_cache,
    set_current_vllm_config,
    set_forward_context,
)
from vllm_infogain.engine.records import StepPlan, StepResult
from vllm_infogain.sampling import Decoder, make_decoder
from vllm_infogain.sampling.statistics import adjust_logits, row_statistics


class InfoGainRunner:
    """Owner of the model, the KV tensors and every running request's `Decoder`."""

    is_pooling_model = False

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        self.vllm_config = vllm_config
        self.device = device
        self.mask_id: int = vllm_config.model_config.hf_config.mask_token_id
        self.log_frequencies = background_log_frequencies(vllm_config, device)
        self.decoders: dict[str, Decoder] = {}
        self.model: Any  # vLLM's model interface over nn.Module
        self.kv_caches: list[torch.Tensor] = []
        self.model_memory_usage = 0
        self.lora_config = None

    # One step.

    def execute_model(self, plan: StepPlan, intermediate_tensors: object = None) -> StepResult | None:
        """Run the planned forward; `sample_tokens` returns the outcome."""
        self._update_requests(plan)
        if not plan.groups:
            return StepResult(req_ids=[], req_id_to_index={})
        groups = []
        for request_id, group in plan.groups.items():
            pending = self.decoders[request_id].pending
            assert pending is not None
            assert len(group.pages) <= pending.remaining
            tokens, masked = pending.part(len(group.pages))
            groups.append(SequenceGroup(request_id, tokens, masked, group.pages))
        batch = build_batch(groups, self.page_size, self.device)
        hidden = self._forward(batch)
        self._step = (groups, self.model.compute_logits(hidden[batch.logit_rows]).float())
        return None

    def sample_tokens(self, grammar_output: object = None) -> StepResult:
        """Score the groups whose logits have come, commit, and say what each request wants next."""
        groups, logits = self._step
        del self._step
        first = 0
        for group in groups:
            params, last = self.decoders[group.request_id].params, first + group.masked.numel()
            adjust_logits(logits[first:last], self.mask_id, params.eos_ids, params.eos_penalty)
            first = last
        statistics = row_statistics(logits)  # all rows of all requests in one pass
        result = StepResult(
            req_ids=[group.request_id for group in groups],
            req_id_to_index={group.request_id: index for index, group in enumerate(groups)},
        )
        first = 0
        for group in groups:
            decoder = self.decoders[group.request_id]
            shape, last = group.masked.shape, first + group.masked.numel()
            decoder.consume(logits[first:last].view(*shape, -1), statistics[first:last].reshape(*shape))
            first = last
            finished = decoder.take_finished()
            result.sampled_token_ids.append(finished)
            result.sequences_wanted[group.request_id] = decoder.pending.remaining if decoder.pending else 0
            if finished:
                report = decoder.report.to_dict(decoder.params.return_trajectory)
                result.reports[group.request_id] = report
        return result

    def _update_requests(self, plan: StepPlan) -> None:
        for request_id in plan.finished_req_ids:
            self.decoders.pop(request_id, None)
        # A preempted request only loses its pages; its decoder stays and goes on where it was.
        for new in plan.scheduled_new_reqs:
            assert new.sampling_params is not None
            assert new.prompt_token_ids is not None
            params = decoding_params(new.req_id, new.sampling_params, self.vllm_config)
            self.decoders[new.req_id] = make_decoder(new.prompt_token_ids, params, self.mask_id, self.log_frequencies)

    def _forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states [rows, hidden]; each sequence attends to all of itself and to nothing else."""
        rows = batch.input_ids.shape[0]
        slot_mappings = batch.slot_mapping.unsqueeze(0)
        metadata = build_attn_metadata(
            attn_groups=self.attn_groups,
            num_reqs=batch.lengths.shape[0],
            num_tokens=rows,
            query_start_loc_gpu=batch.query_start,
            query_start_loc_cpu=batch.query_start_host,
            max_query_len=batch.max_length,
            seq_lens=batch.lengths,
            max_seq_len=batch.max_length,
            block_tables=[batch.page_table],
            slot_mappings=slot_mappings,
            kv_cache_config=self.kv_cache_config,
            seq_lens_cpu_upper_bound=batch.lengths_host,
            causal=False,
        )
        slots = build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)
        with set_forward_context(metadata, self.vllm_config, num_tokens=rows, slot_mapping=slots):
            return self.model(input_ids=batch.input_ids, positions=batch.positions)

    # Start-up and shut-down: what vLLM's workers ask of a runner.

    def load_model(self, load_dummy_weights: bool = False) -> None:
        self.model = get_model(vllm_config=self.vllm_config)
        self.model_memory_usage = sum(p.numel() * p.element_size() for p in self.model.parameters())

    def get_model(self) -> nn.Module:
        return self.model

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        return get_kv_cache_spec(self.vllm_config)

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, kv_cache_allocation_context=None, **_unused) -> None:
        assert len(kv_cache_config.kv_cache_groups) == 1, "all layers of these models attend alike"
        self.kv_cache_config = kv_cache_config
        self.page_size: int = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        with set_current_vllm_config(self.vllm_config):
            groups, _, kernel_block_sizes = init_attn_backend(kv_cache_config, self.vllm_config, self.device)
        self.attn_groups = groups
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

    @torch.inference_mode()
    def profile_run(self, **_unused) -> None:
        """The peak: a full budget of rows, with logits for as many of them as can be masked."""
        rows = self.vllm_config.scheduler_config.max_num_batched_tokens
        hidden = self._dummy_run(rows)
        row_statistics(self.model.compute_logits(hidden).float())

    def warming_up_model(self) -> None:
        self.profile_run()

    @torch.inference_mode()
    def _dummy_run(self, rows: int, **_unused) -> torch.Tensor:
        """A forward of `rows` rows without attention: memory profiling, and idle ranks of data parallelism."""
        ids = torch.zeros(rows, dtype=torch.int64, device=self.device)
        with set_forward_context(None, self.vllm_config, num_tokens=rows):
            return self.model(input_ids=ids, positions=ids)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def take_draft_token_ids(self) -> None:
        return None

    def update_max_model_len(self, max_model_len: int) -> None:
        self.vllm_config.model_config.max_model_len = max_model_len

    def reset_mm_cache(self) -> None: ...

    def reset_encoder_cache(self) -> None: ...

    def get_encoder_timing_stats(self) -> dict:
        return {}

    def shutdown(self) -> None:
        self.decoders.clear()
