"""Info-Gain decoding of masked diffusion language models (arXiv 2602.18176) as a plugin of vLLM."""

from typing import Any

from vllm_infogain.params import DecodingParams, ParameterError
from vllm_infogain.standalone import InfoGainSampler

__all__ = ["DecodingParams", "InfoGainSampler", "ParameterError", "engine_args", "load_llm", "report"]
__version__ = "0.1.0"


def engine_args() -> dict[str, Any]:
    """Arguments that make a vLLM engine decode by Info-Gain: `LLM(model, **engine_args())`."""
    from vllm_infogain import plugin

    return plugin.engine_args()


def load_llm(model: str | None = None, **overrides: Any):
    """A `vllm.LLM` for a masked diffusion model; without `model`, the one that ships in the package.

    Args:
        model: checkpoint directory or hub name.
        overrides: engine arguments of vLLM, over ours.
    """
    from vllm import LLM

    from vllm_infogain import plugin

    args = plugin.engine_args() | ({"model": model} if model else plugin.embedded_args())
    return LLM(**(args | overrides))


def report(output: Any) -> dict[str, Any]:
    """How a finished `vllm.RequestOutput` was decoded: steps, forwards, refreshes (forwards that computed kept keys and
    values anew), rows, candidates, bypassed_steps, cumulative_entropy (nats) and, if the request asked for it with
    `return_trajectory`, every step.

    With `n` > 1 it is that of the last of the request's samples to finish.

    Raises:
        ValueError: there is none; vLLM's front end ends a request at a stop string before the engine reports.
    """
    if not output.kv_transfer_params:
        raise ValueError(f"request {output.request_id} has no report: a stop string ended it, or it is not finished")
    return output.kv_transfer_params["infogain"]
