"""The algorithm: pure functions, and the state machines that call them. Imports `request` and `grammar`, and no vLLM.

A step is a denoising step here: one action, written.

params -> make_decoder -> CanvasState (state, blocks) -> SamplingMetadata -> read (rows, on the device)
       -> SamplerOutput -> propose (actions, scores, schedule) -> the next SamplingMetadata
"""

import numpy as np

from vllm_infogain.grammar.automaton import TokenAutomaton
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.beam import BeamDecoder
from vllm_infogain.sampling.best_of_n import BestOfNDecoder
from vllm_infogain.sampling.canvas_state import CanvasState
from vllm_infogain.sampling.decoder import Decoder, SingleDecoder


def make_decoder(
    prompt: list[int],
    params: DecodingParams,
    mask_id: int,
    log_frequencies: np.ndarray | None = None,
    computed: int = 0,
    automaton: TokenAutomaton | None = None,
) -> Decoder:
    """The decoder of one request.

    Args:
        prompt: token ids before the canvas.
        params: how to decode; the canvas follows the prompt.
        mask_id: the model's mask token.
        log_frequencies: [vocab] log-frequencies of a background text, for the sampler `pc`.
        computed: positions of the prompt, from its start, whose final K/V every cached state has already; whole blocks
            of a block-causal model, else 0.
        automaton: what the canvas must match, if `params.is_structured`.
    """
    canvas = CanvasState(prompt, params, mask_id, log_frequencies, computed, automaton)
    if params.sampler == "beam":
        return BeamDecoder(canvas)
    return BestOfNDecoder(canvas) if params.sampler == "best_of_n" else SingleDecoder(canvas)
