"""Runs one step on the worker: planned groups -> one forward -> logits of masked rows -> the algorithm -> result.

Step logic lives here and not in the worker, because one of vLLM's Ray paths calls the runner directly. Under tensor
parallelism every rank gathers the logits and decides alike, from the same per-request seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
    get_kv_cache_spec,
    init_attn_backend,
    init_kv_cache,
    set_current_vllm_config,
    set_forward_context,
)
from vllm_infogain.engine.graphs import PiecewiseGraphs
from vllm_infogain.engine.layout import layout
from vllm_infogain.engine.meter import NOTHING_COUNTED, Counted, Meter, timed
from vllm_infogain.engine.records import Demand, GroupPlan, StepPlan, StepResult
from vllm_infogain.engine.results import step_result
from vllm_infogain.engine.weights import load_model
from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling import make_decoder
from vllm_infogain.sampling.decoder import Decoder, Pending
from vllm_infogain.sampling.question import Answer, Question
from vllm_infogain.sampling.reading import read
from vllm_infogain.sampling.rows import row_statistics
from vllm_infogain.sampling.track import Final
from vllm_infogain.settings import parse_settings


@dataclass
class Running:
    """One request on the worker. Owner: the runner."""

    decoder: Decoder
    kept: Pending | None = None  # the sequences of the last refresh, whose K/V its pages hold
    counted: Counted = NOTHING_COUNTED  # the meter's


class InfoGainRunner:
    """Owner of the model, the KV tensors and every running request's `Decoder`."""

    is_pooling_model = False

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        self.vllm_config = vllm_config
        self.device = device
        self.settings, _ = parse_settings(vllm_config.additional_config)
        self.mask_id: int = vllm_config.model_config.hf_config.mask_token_id
        # More than 32 MiB at once, and the C library gives the pages back and faults them in again at every step.
        mib = self.settings.logits_mib or (32 if device.type == "cpu" else 1024)
        self.logit_rows = max(1, (mib << 18) // vllm_config.model_config.get_vocab_size())  # that exist at once, fp32
        self.log_frequencies = background_log_frequencies(vllm_config)
        self.requests: dict[str, Running] = {}
        self.meter = Meter()
        self.model: Any  # vLLM's model interface over nn.Module
        self.kv_caches: list[torch.Tensor] = []
        self.model_memory_usage = 0
        self.lora_config = None

    # One step.

    def execute_model(self, plan: StepPlan, intermediate_tensors: object = None) -> StepResult:
        """Evaluate the planned groups, and go on while the plan's pages and rows allow it and nobody has finished."""
        self.meter.start()
        self._update_requests(plan)
        running = {request_id: self.requests[request_id] for request_id in plan.groups}
        finals = {request_id: Final([], []) for request_id in running}
        demands: dict[str, Demand] = {}
        groups = plan.groups
        for _ in range(plan.forwards):
            if not groups:
                break
            self._evaluate(groups)
            for request_id, final in finals.items():
                final.extend(running[request_id].decoder.take_final())
            demands = {request_id: self._demand(request) for request_id, request in running.items()}
            groups = self._next_groups(plan, demands)
        decoders = {request_id: request.decoder for request_id, request in running.items()}
        result = step_result(decoders, finals, demands)
        result.figures = self.meter.take(plan, running)
        return result

    def _update_requests(self, plan: StepPlan) -> None:
        for request_id in plan.finished_req_ids:
            self.requests.pop(request_id, None)
        # A preempted request only loses its pages; its decoder stays and goes on where it was.
        for new in plan.scheduled_new_reqs:
            assert new.sampling_params is not None
            assert new.prompt_token_ids is not None
            params = decoding_params(new.req_id, new.sampling_params, self.vllm_config)
            decoder = make_decoder(
                new.prompt_token_ids,
                params,
                self.mask_id,
                self.log_frequencies,
                new.num_computed_tokens,
                plan.automata.get(new.req_id),
            )
            self.requests[new.req_id] = Running(decoder)

    def _evaluate(self, groups: dict[str, GroupPlan]) -> None:
        """One forward of all groups. Afterwards every decoder knows what it wants next."""
        self.meter.batches += 1
        batch, asked = self._prepare(groups)
        hidden = self._forward(batch)
        first = 0
        for turn in self._turns(asked):
            questions = [decoder.question(count) for decoder, count, _ in turn]
            rows = sum(question.offsets.size for question in questions)
            answers = self._read(self._logits(hidden, batch.logit_rows[first : first + rows]), questions)
            first += rows
            self._decide(turn, answers)

    @timed("prepare")
    def _prepare(self, groups: dict[str, GroupPlan]) -> tuple[Batch, list[tuple[Decoder, int]]]:
        """The forward's input, and how many sequences of whose pending ones it evaluates."""
        sequences, asked = [], []
        for request_id, plan in groups.items():
            running = self.requests[request_id]
            pending = running.decoder.pending
            if plan.restored is not None:
                assert running.kept is not None
                pending = replace(running.kept, consumed=plan.restored)
            else:
                assert pending is not None
                asked.append((running.decoder, plan.sequences))
                if pending.extent.refresh:
                    running.kept = pending
            sequences.append(self._group(pending, plan, running.decoder.params))
        return build_batch(sequences, self.page_size, self.device), asked

    def _group(self, pending: Pending, plan: GroupPlan, params: DecodingParams) -> SequenceGroup:
        part = pending.part(plan.sequences)
        masked, extent = pending.masked[part], pending.extent
        if plan.restored is not None:
            # All of it at once, as it was when it was kept; what it predicts is known.
            masked, extent = masked[:, :0], replace(extent, rows=range(extent.rows.stop))
        block = params.block_length if params.block_causal else 0
        return SequenceGroup(pending.sequences[part], masked, extent, pending.contexts[part], plan, block, params.shift)

    def _turns(self, asked: list[tuple[Decoder, int]]) -> Iterator[list[tuple[Decoder, int, bool]]]:
        """Cut what was asked for so that a turn's logits fit: decoder, sequences, whether they are its first."""
        turn: list[tuple[Decoder, int, bool]] = []
        room = self.logit_rows
        for decoder, count in asked:
            assert decoder.pending is not None
            masked, done = max(1, decoder.pending.masked.shape[1]), 0
            while done < count:
                if room < masked and turn:
                    yield turn
                    turn, room = [], self.logit_rows
                part = min(count - done, max(1, room // masked))
                turn.append((decoder, part, done == 0))
                done, room = done + part, room - part * masked
        if turn:
            yield turn

    @timed("forward")
    def _logits(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """[rows, vocab] fp32 of the given rows only."""
        return self.model.compute_logits(hidden[rows]).float()

    @timed("read")
    def _read(self, logits: torch.Tensor, questions: list[Question]) -> list[Answer]:
        return read(logits, questions, self.mask_id)

    @timed("decide")
    def _decide(self, turn: list[tuple[Decoder, int, bool]], answers: list[Answer]) -> None:
        for (decoder, count, is_first), answer in zip(turn, answers, strict=True):
            decoder.consume(count, answer, first_of_forward=is_first)

    def _next_groups(self, plan: StepPlan, demands: dict[str, Demand]) -> dict[str, GroupPlan]:
        """What the plan's requests want next, whole; nothing if one has finished, or pages or rows do not suffice."""
        groups, rows = {}, 0
        for request_id, lent in plan.groups.items():
            demand = demands[request_id]
            rows += demand.sequences * demand.rows
            needed = (demand.sequences - 1) * demand.own_pages
            if demand.sequences == 0 or needed > len(lent.scratch) or rows > plan.row_budget:
                return {}
            groups[request_id] = replace(lent, sequences=demand.sequences)
        return groups

    def _demand(self, running: Running) -> Demand:
        pending, kept = running.decoder.pending, running.kept
        if pending is None:
            return Demand(sequences=0, rows=0, own_pages=0)
        is_block_causal = running.decoder.params.block_causal
        own = layout(pending.extent, self.page_size, in_order=is_block_causal).own
        return Demand(
            sequences=pending.remaining,
            rows=len(pending.extent.rows),
            own_pages=0 if pending.extent.refresh else len(own),
            kept=0 if kept is None else len(kept.sequences),
            kept_rows=0 if kept is None else kept.extent.rows.stop,
            final=kept.extent.window.start if kept is not None and is_block_causal else 0,
        )

    @timed("forward")
    def _forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states [rows, hidden]."""
        if batch.copied_pages.numel():
            source, target = batch.copied_pages
            for cache in self.kv_caches:
                cache[target] = cache[source]
        rows = batch.input_ids.shape[0]
        metadata = build_attn_metadata(
            attn_groups=self.attn_groups,
            num_reqs=batch.keys.shape[0],
            num_tokens=rows,
            query_start_loc_gpu=batch.query_start.to(self.device, non_blocking=True),
            query_start_loc_cpu=batch.query_start,
            max_query_len=batch.longest,
            seq_lens=batch.keys.to(self.device, non_blocking=True),
            max_seq_len=batch.most_keys,
            block_tables=[batch.page_table],
            slot_mappings=batch.slot_mapping.unsqueeze(0),
            kv_cache_config=self.kv_cache_config,
            seq_lens_cpu_upper_bound=batch.keys,
            causal=False,
        )
        return self.graphs.run(batch.input_ids, batch.positions, batch.slot_mapping, metadata)

    # Start-up and shut-down: what vLLM's workers ask of a runner.

    def load_model(self, load_dummy_weights: bool = False) -> None:
        self.model = load_model(self.vllm_config)
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
        assert all(len(cache) == kv_cache_config.num_blocks for cache in self.kv_caches), "pages are copied by index"
        self.graphs = PiecewiseGraphs(self.model, self.vllm_config, kv_cache_config, self.device)

    def capture_model(self) -> None:
        self.graphs.capture()

    def profile_cudagraph_memory(self) -> int:
        return 0  # not estimated: vLLM leaves it to gpu_memory_utilization then

    @torch.inference_mode()
    def profile_run(self, **_unused) -> None:
        """The peak: a full budget of rows, and as many of their logits as may exist at once."""
        rows = self.vllm_config.scheduler_config.max_num_batched_tokens
        hidden = self._dummy_run(rows)
        row_statistics(self._logits(hidden, torch.arange(min(rows, self.logit_rows), device=self.device)))

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
        self.requests.clear()
