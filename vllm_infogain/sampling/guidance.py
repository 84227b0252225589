"""The guides of a request's sequences: where another prompt stands before the same canvas, see request/guidance.py.

A guide's positions are its sequence's, moved by the difference of the prompts' lengths; what a forward computes of the
one it computes of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from vllm_infogain.request.guidance import guide_prompt
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.forward_window import ForwardWindow


@dataclass(frozen=True)
class Guide:
    """How to make the guides of one request's sequences. Owner: the decoder."""

    prompt: np.ndarray  # [the guide's prompt] int64
    canvas_start: int  # of the sequences
    scale: float  # g
    is_cached: bool  # whether keys and values outlive a forward

    @classmethod
    def of(cls, prompt: list[int], params: DecodingParams, mask_id: int) -> Guide | None:
        """None: the request is not guided."""
        if not params.is_guided:
            return None
        ids = np.array(guide_prompt(params, prompt, mask_id), dtype=np.int64)
        return cls(ids, len(prompt), params.guidance_scale, params.is_cached)

    @property
    def offset(self) -> int:
        """Of a position of the canvas in the guide from the same one in the sequence."""
        return len(self.prompt) - self.canvas_start

    def sequences(self, sequences: np.ndarray) -> np.ndarray:
        """Of sequences [n, length] their guides [n, other length]."""
        return np.concatenate([np.tile(self.prompt, (len(sequences), 1)), sequences[:, self.canvas_start :]], axis=1)

    def window(self, window: ForwardWindow) -> ForwardWindow:
        """What a forward with this window computes of the guides."""

        def moved(positions: range, start: int) -> range:
            return range(start, positions.stop + self.offset)

        rows, own = window.rows, window.own
        if not self.is_cached:
            return replace(window, rows=moved(rows, 0), own=moved(own, 0), keys=window.keys + self.offset)
        # A window lies on the canvas and moves with it; a refresh from the prompt's start begins at the guide's.
        starts_anew = window.refresh and rows.start == 0
        return ForwardWindow(
            moved(rows, 0 if starts_anew else rows.start + self.offset),
            moved(own, own.start + self.offset),
            window.keys + self.offset,
            window.refresh,
        )


def combine(own: torch.Tensor, guide: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """(1 + g) own - g guide, in fp32: of logits, or of the hidden states that a linear head makes logits of."""
    own = own.float()
    return own + scale * (own - guide.float())
