"""The algorithm: functions on tensors that import no vLLM, and the state machines that string them together.

params -> make_decoder -> Track (state, blocks) -> propose (actions, scores, schedule) -> objective
"""

import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.beam import BeamDecoder
from vllm_infogain.sampling.best_of_n import BestOfNDecoder
from vllm_infogain.sampling.decoder import Decoder, SingleDecoder
from vllm_infogain.sampling.track import Track


def make_decoder(
    prompt: list[int], params: DecodingParams, mask_id: int, log_frequencies: torch.Tensor | None = None
) -> Decoder:
    """The decoder of one request.

    Args:
        prompt: token ids before the canvas.
        params: how to decode; `canvas_length` masks follow the prompt.
        mask_id: the model's mask token.
        log_frequencies: [vocab] log-frequencies of a background text, for the sampler `pc`.
    """
    track = Track(prompt, params, mask_id, log_frequencies)
    if params.sampler == "beam":
        return BeamDecoder(track)
    return BestOfNDecoder(track) if params.sampler == "best_of_n" else SingleDecoder(track)
