"""How to tell that an engine is ours. Imports neither torch nor vLLM."""

from typing import Any

WORKER = "vllm_infogain.engine.worker.InfoGainWorker"
SCHEDULER = "vllm_infogain.engine.scheduler.InfoGainScheduler"


def is_active(vllm_config: Any) -> bool:
    """Whether an engine was started with our scheduler."""
    return vllm_config.scheduler_config.scheduler_cls == SCHEDULER
