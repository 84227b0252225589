"""SDAR and TraDo (dense): Qwen3 by weights, names and arithmetic; row i predicts position i.

Only attention differs, and the layers do not decide it: the runner gives the metadata (`causal=False`, and for a
block the cached blocks before it). RoPE runs in the model's dtype, as in the released modeling code.
"""

from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM


class SDARForCausalLM(Qwen3ForCausalLM):
    """The executor vLLM loads for `architectures: ["SDARForCausalLM"]`."""
