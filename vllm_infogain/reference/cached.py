"""Plain torch LLaDA that computes some rows anew and reads the other positions' keys and values from a cache.

The twin of the engine's `prefix` and `dual` caches: the same approximation, with neither pages nor batches.
"""

from typing import Any

import torch
from torch import Tensor

from vllm_infogain.reference.llada import LLaDA, rope_table, rotate

KVCache = list[tuple[Tensor, Tensor]]  # of each layer: rotated keys and values [1, kv_heads, length, head_dim]


class CachingLLaDA:
    """A `LLaDA` as the oracle's model in every cache mode."""

    def __init__(self, model: LLaDA) -> None:
        self.model = model

    def __call__(self, input_ids: Tensor) -> Tensor:
        """input_ids [1, length] -> logits [1, length, columns]: exact."""
        return self.model(input_ids)

    def cache(self, input_ids: Tensor) -> KVCache:
        """Keys and values of every position of input_ids [1, length]."""
        return self._run(input_ids, range(input_ids.shape[1]), [])[1]

    def window(self, input_ids: Tensor, rows: range, cached: KVCache) -> Tensor:
        """Logits [1, rows, columns] of input_ids [1, length]; keys and values outside `rows` are the cached ones."""
        return self._run(input_ids, rows, cached)[0]

    def _run(self, input_ids: Tensor, rows: range, cached: KVCache) -> tuple[Tensor, KVCache]:
        transformer: Any = self.model.model["transformer"]
        shape = self.model.shape
        window = slice(rows.start, rows.stop)
        cos, sin = (
            table[window] for table in rope_table(rows.stop, shape.head_dim, shape.rope_theta, input_ids.device)
        )
        x = transformer.wte(input_ids[:, window])
        merged: KVCache = []
        for index, block in enumerate(transformer.blocks):
            h = block.attn_norm(x)
            q, k, v = (
                project(h).view(1, len(rows), -1, shape.head_dim).transpose(1, 2)
                for project in (block.q_proj, block.k_proj, block.v_proj)
            )
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if cached:
                k, v = (
                    torch.cat([old[:, :, : rows.start], new, old[:, :, rows.stop :]], 2)
                    for old, new in zip(cached[index], (k, v), strict=True)
                )
            merged.append((k, v))
            x = x + block.attend(q, k, v)
            x = x + block.feed_forward(x)
        return transformer.logits(x), merged
