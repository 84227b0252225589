"""Dream (7B Base, Instruct, Coder): Qwen2 by weights, names and arithmetic; row i predicts position i + 1.

Attention looks both ways; the runner says so in the attention metadata (`causal=False`), and reads position p off row
p - 1 because the config says `predicts = "next"`. RoPE runs in the model's dtype, as in the released modeling code.
"""

from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM


class DreamModel(Qwen2ForCausalLM):
    """The executor vLLM loads for `architectures: ["DreamModel"]`."""
