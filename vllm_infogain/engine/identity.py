"""How to tell that an engine is ours. Imports neither torch nor vLLM."""

from typing import Any

from vllm_infogain.model_executors import EXECUTORS

WORKER = "vllm_infogain.engine.worker.InfoGainWorker"
SCHEDULER = "vllm_infogain.engine.scheduler.InfoGainScheduler"
# By it vLLM chooses our renderer, which reads the masks in a text. The tokenizer is the one of Hugging Face.
TOKENIZER_MODE = "infogain"
RENDERER = ("vllm_infogain.serving.renderer", "InfoGainRenderer")


def is_active(vllm_config: Any) -> bool:
    """Whether an engine was started with our scheduler."""
    return vllm_config.scheduler_config.scheduler_cls == SCHEDULER


def is_our_model(model_config: Any) -> bool:
    """Whether we have an executor for a model, whatever engine it is for."""
    return not set(EXECUTORS).isdisjoint(model_config.architectures)
