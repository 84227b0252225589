"""SDAR with a mixture of experts: Qwen3-MoE by weights, names and arithmetic; row i predicts position i.

As in the dense family only attention differs, and the runner's metadata say how. The router's softmax runs over all
experts; the weights of the chosen ones sum to 1 if the config's `norm_topk_prob` says so.
"""

from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM


class SDARMoeForCausalLM(Qwen3MoeForCausalLM):
    """The executor vLLM loads for `architectures: ["SDARMoeForCausalLM"]`."""
