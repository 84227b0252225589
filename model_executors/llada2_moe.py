"""LLaDA2.0: Ling 2.0 (vLLM's BailingMoeV2) by weights, names and arithmetic; row i predicts position i.

Attention is block-causal, as the runner's metadata say. Its query_key_value rows lie as [Q|K|V], which is how vLLM's
merged layer reads them. The first layers are dense; then sigmoid scores, a bias that only chooses, groups of experts.
"""

from vllm.model_executor.models.bailing_moe import BailingMoeV2ForCausalLM


class LLaDA2MoeModelLM(BailingMoeV2ForCausalLM):
    """The executor vLLM loads for `architectures: ["LLaDA2MoeModelLM"]`."""
