"""Runs the model under vLLM's forward context, on CUDA in its piecewise graphs: attention eager, the rest captured.

Graphs come in padded sizes and read their input where it lay when they were captured, so it is copied there. Reviewed
against vLLM's own runner (`capture_model`, `profile_cudagraph_memory` of its gpu_model_runner). No machine of ours has
vLLM on a GPU: the tests capture and replay by vLLM's wrappers and dispatcher, with graphs that are tapes of operations.
"""

import gc
from typing import Any

import torch

from vllm_infogain.compat import (
    PAD_SLOT_ID,
    BatchDescriptor,
    CudagraphDispatcher,
    CUDAGraphMode,
    CUDAGraphWrapper,
    KVCacheConfig,
    VllmConfig,
    build_slot_mappings_by_layer,
    current_platform,
    freeze_gc_for_cudagraph_capture,
    graph_capture,
    lock_workspace,
    set_cudagraph_capturing_enabled,
    set_forward_context,
)


def forward(
    model: Any, vllm_config: VllmConfig, input_ids: torch.Tensor, positions: torch.Tensor, metadata: Any, **context: Any
) -> torch.Tensor:
    """Hidden states [rows, hidden] of input_ids and positions [rows]; all runs of the model, compiled or not, are this.

    Args:
        model: the executor.
        vllm_config: the engine's.
        input_ids: int64; with `positions`, two tensors, whatever they hold.
        positions: int64.
        metadata: of attention, by layer; None: without attention.
        context: further fields of vLLM's forward context.
    """
    # Tracing makes one input of a tensor that comes twice, and vLLM drops the guards that would notice it later: the
    # compiled model would read token ids as positions.
    assert input_ids is not positions
    with set_forward_context(metadata, vllm_config, num_tokens=input_ids.shape[0], **context):
        return model(input_ids=input_ids, positions=positions)


class PiecewiseGraphs:
    """Owner of the graphs' input buffers. The graphs themselves are vLLM's.

    Args:
        model: the executor.
        vllm_config: the engine's.
        kv_cache_config: of the KV tensors; None before there are any, for `estimate` alone.
        device: the model's.
    """

    def __init__(
        self, model: Any, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig | None, device: torch.device
    ) -> None:
        self.model = model
        self.vllm_config = vllm_config
        self.kv_cache_config = kv_cache_config
        self.device = device
        compilation = vllm_config.compilation_config
        self.dispatcher = CudagraphDispatcher(vllm_config)
        self.dispatcher.initialize_cudagraph_keys(compilation.cudagraph_mode)
        size = 0 if compilation.cudagraph_mode == CUDAGraphMode.NONE else compilation.max_cudagraph_capture_size or 0
        self.input_ids = torch.zeros(size, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.input_ids)
        self.slots = torch.full_like(self.input_ids, PAD_SLOT_ID)

    def run(self, input_ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, metadata: Any) -> torch.Tensor:
        """Hidden states [rows, hidden] of input_ids, positions, slots [rows]; valid until the next run."""
        rows = input_ids.shape[0]
        mode, size = self.dispatcher.dispatch(rows)
        if mode == CUDAGraphMode.NONE:
            return self._run(input_ids, positions, slots, metadata, mode, size)
        self.input_ids[:rows].copy_(input_ids)
        self.positions[:rows].copy_(positions)
        self.slots[:rows].copy_(slots)
        self.slots[rows : size.num_tokens].fill_(PAD_SLOT_ID)  # padded rows write no K and V
        return self._run_captured(metadata, mode, size)[:rows]

    @torch.inference_mode()
    def estimate(self) -> int:
        """Bytes that `capture` will take, by capturing the two largest sizes into a pool that is thrown away."""
        if self.dispatcher.cudagraph_mode == CUDAGraphMode.NONE:
            return 0
        ((mode, sizes),) = self.dispatcher.get_capture_descs()
        pools = [(wrapper, wrapper.graph_pool) for wrapper in CUDAGraphWrapper._all_instances]
        pool = current_platform.graph_pool_handle()
        for wrapper, _ in pools:
            wrapper.graph_pool = pool
        try:
            taken = self._capture(mode, sizes[:2])
        finally:
            CUDAGraphWrapper.clear_all_graphs()
            for wrapper, original in pools:
                wrapper.graph_pool = original
        gc.collect()
        torch.accelerator.empty_cache()
        # The first brings the memory that all share; each further one costs a mebibyte at least, of the driver's.
        return taken[0] + max(1 << 20, *taken[1:]) * (len(sizes) - 1)

    @torch.inference_mode()
    def capture(self) -> int:
        """Capture every padded size, the largest first, so that the smaller ones reuse its memory; bytes they take."""
        if self.dispatcher.cudagraph_mode == CUDAGraphMode.NONE:
            return 0
        ((mode, sizes),) = self.dispatcher.get_capture_descs()
        taken = self._capture(mode, sizes)
        torch.accelerator.empty_cache()
        lock_workspace()  # one that grew later would move what the graphs point at
        return sum(taken)

    def _capture(self, mode: CUDAGraphMode, sizes: list[BatchDescriptor]) -> list[int]:
        """Bytes of device memory that each size took."""
        self.slots.fill_(PAD_SLOT_ID)
        taken = []
        set_cudagraph_capturing_enabled(True)
        try:
            with freeze_gc_for_cudagraph_capture(), graph_capture(device=self.device):
                torch.accelerator.synchronize()
                torch.accelerator.empty_cache()
                for size in sizes:
                    free = torch.accelerator.get_memory_info()[0]
                    self._run_captured(None, CUDAGraphMode.NONE, size)  # warm-up
                    torch.accelerator.synchronize()
                    self._run_captured(None, mode, size)
                    torch.accelerator.synchronize()
                    taken.append(free - torch.accelerator.get_memory_info()[0])
        finally:
            set_cudagraph_capturing_enabled(False)  # a later capture is a mistake, and raises
        return taken

    def _run_captured(self, metadata: Any, mode: CUDAGraphMode, size: BatchDescriptor) -> torch.Tensor:
        rows = slice(size.num_tokens)
        return self._run(self.input_ids[rows], self.positions[rows], self.slots[rows], metadata, mode, size)

    def _run(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        metadata: Any,
        mode: CUDAGraphMode,
        size: BatchDescriptor,
    ) -> torch.Tensor:
        return forward(
            self.model,
            self.vllm_config,
            input_ids,
            positions,
            metadata,
            slot_mapping=self.kv_cache_config
            and build_slot_mappings_by_layer(slots.unsqueeze(0), self.kv_cache_config),
            cudagraph_runtime_mode=mode,
            batch_descriptor=size,
        )
