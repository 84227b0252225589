"""LLaDA-MoE-7B-A1B: Qwen3-MoE by names and arithmetic, full attention; row i predicts position i.

What is its own: the router's softmax over all experts, of which the chosen ones keep their share (they need not sum to
1), and the names of its config's fields. The runner's metadata say that every position sees every other.
"""

from vllm.config import VllmConfig
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM
from vllm_infogain.model_executors.llada_moe_config import LLaDAMoEConfig


class LLaDAMoEModelLM(Qwen3MoeForCausalLM):
    """The executor vLLM loads for `architectures: ["LLaDAMoEModelLM"]` and `["LLaDAMoEModel"]`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config: LLaDAMoEConfig = vllm_config.model_config.hf_config
        # The released modeling code has these, the released checkpoint does not use them.
        for name, expected in {
            "qk_layernorm": True,
            "moe_router_score_function": "softmax",
            "moe_router_enable_expert_bias": False,
            "shared_expert_intermediate_size": 0,
            "clip_qkv": None,
        }.items():
            value = getattr(config, name)
            if value != expected:
                raise ValueError(f"{name}={value!r}: only {expected!r} is supported for LLaDA-MoE")
        super().__init__(vllm_config=vllm_config, prefix=prefix)
