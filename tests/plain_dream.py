"""Dream in plain torch: transformers' Qwen2 with attention in both directions, its logits read one row late."""

from functools import partial

import torch
from transformers import DynamicCache, Qwen2ForCausalLM

from vllm_infogain.library import shifted

KVCache = list[
    tuple[torch.Tensor, torch.Tensor]
]  # of each layer: rotated keys and values [1, kv_heads, length, head_dim]


class PlainDream:
    """The oracle's model in every cache mode."""

    def __init__(self, model: Qwen2ForCausalLM) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids [n, length] -> logits [n, length, vocab] of the positions themselves."""
        return shifted(partial(self._run, cached=DynamicCache()), input_ids)

    def cache(self, input_ids: torch.Tensor) -> KVCache:
        """Keys and values of every position of input_ids [1, length]."""
        cache = DynamicCache()
        self._run(input_ids, cache)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def window(self, input_ids: torch.Tensor, rows: range, cached: KVCache) -> torch.Tensor:
        """Logits [1, rows, vocab] of the positions `rows`. They are read off the rows before them, so one row more is
        computed anew; all other keys and values are the cached ones."""
        first = max(rows.start - 1, 0)
        # Attention in both directions does not ask in which order keys come: the cached ones go first.
        outside = [
            tuple(torch.cat([part[:, :, :first], part[:, :, rows.stop :]], 2) for part in layer) for layer in cached
        ]
        logits = self._run(input_ids[:, first : rows.stop], DynamicCache(outside), first)
        return logits[:, :-1] if first < rows.start else torch.cat([logits[:, :1], logits[:, :-1]], 1)

    @torch.inference_mode()
    def _run(self, input_ids: torch.Tensor, cached: DynamicCache, first: int = 0) -> torch.Tensor:
        """Row i of the logits predicts position first + i + 1."""
        count, rows = input_ids.shape
        everything = torch.zeros(count, 1, rows, cached.get_seq_length() + rows)
        positions = torch.arange(first, first + rows).expand(count, -1)
        output = self.model(input_ids, attention_mask=everything, position_ids=positions, past_key_values=cached)
        return output.logits.float()
