"""A `vllm.LLM` in this process, and requests to it: what benchmarks and tests share (tests import benchmarks)."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import vllm_infogain


@contextlib.contextmanager
def started(model: str | None = None, **engine_args: Any) -> Iterator[Any]:
    """An LLM of a checkpoint (None: of the embedded model), which is shut down at the end."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = vllm_infogain.load_llm(model, **({"disable_log_stats": True} | engine_args))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


@dataclass(frozen=True)
class Job:
    """One request: a prompt and its parameters; by default the whole canvas is decoded, past any EOS."""

    prompt: str | list[int]  # text, which the tokenizer wraps in special tokens, or just these ids
    knobs: dict[str, Any]
    max_tokens: int = 16
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = True
    fields: dict[str, Any] = field(default_factory=dict)  # further fields of SamplingParams

    def sampling_params(self, **knobs: Any) -> Any:
        """With further knobs beside the request's own."""
        from vllm import SamplingParams

        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            extra_args={**self.knobs, **knobs},
            **self.fields,
        )
