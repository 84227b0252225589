"""Info-Gain decoding of masked diffusion language models (arXiv 2602.18176) as a plugin of vLLM."""

from typing import Any

from vllm_infogain.library import InfoGainSampler, block_causal, shifted
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.params import DecodingParams

__all__ = [
    "DecodingParams",
    "InfoGainSampler",
    "ParameterError",
    "block_causal",
    "engine_args",
    "load_llm",
    "report",
    "shifted",
]
__version__ = "0.1.0"


def engine_args(**overrides: Any) -> dict[str, Any]:
    """Arguments that make a vLLM engine decode by Info-Gain: `LLM(model, **engine_args())`.

    Args:
        overrides: engine arguments of vLLM, over ours; groups of settings (`compilation_config` and its like) field by
            field.
    """
    from vllm_infogain import engine_defaults

    return engine_defaults.engine_args(**overrides)


def load_llm(model: str | None = None, **overrides: Any):
    """A `vllm.LLM` for a masked diffusion model; without `model`, infogain-tiny, which ships in the package.

    Args:
        model: checkpoint directory or hub name, or the name of a model that ships: "infogain-tiny",
            "infogain-tiny-image".
        overrides: as of `engine_args`.
    """
    from vllm import LLM

    from vllm_infogain import engine_defaults

    return LLM(**engine_defaults.engine_args(**(engine_defaults.model_args(model) | overrides)))


def report(output: Any) -> dict[str, Any]:
    """How a `vllm.RequestOutput` (its first sample) or a `vllm.CompletionOutput` (that sample) was decoded.

    Returns:
        steps, forwards, refreshes (forwards that computed the cached keys and values anew), rows, canvas_positions
        (rows on the canvas), candidate_rows (rows that look-ahead computed), candidates, written (positions),
        bypassed_steps, cumulative_entropy (nats); if the output is not finished, so far. If the request asked for it
        with `return_trajectory`, also `trajectory` (every step) and `decode_order` (for each canvas offset the step in
        which it was written, None for text that stood there).

    Raises:
        ValueError: there is none: the engine is not of this package, or the request ended before its first step.
    """
    sample = output.outputs[0] if hasattr(output, "outputs") else output
    if not hasattr(sample, "infogain"):
        raise ValueError(
            f"no report in {sample!r}: it ended before its first step, or comes from another engine; "
            "make yours with LLM(model, **vllm_infogain.engine_args())"
        )
    return sample.infogain.report
