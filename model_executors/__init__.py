"""Model executors: one file per family of masked diffusion models, built from vLLM's tensor-parallel layers.

An executor offers vLLM's model interface (`forward`, `compute_logits`, `load_weights`). Its Hugging Face config has
`mask_token_id` and, as facts of the family that no config.json states, two class attributes. `attention_kind`: "full"
(every position sees every other) or "block_causal" (its own block of `block_size` positions and those before).
`predicts`: the position that row i of the logits is of, "same" (i; the default) or "next" (i + 1).
How to add a family: README.md.
"""

# Architecture name in a checkpoint's config.json -> executor, imported only when a checkpoint asks for it.
EXECUTORS = {
    "DreamModel": "vllm_infogain.model_executors.dream:DreamModel",
    "LLaDAModelLM": "vllm_infogain.model_executors.llada:LLaDAModelLM",
    "LLaDAMoEModelLM": "vllm_infogain.model_executors.llada_moe:LLaDAMoEModelLM",
    "LLaDAMoEModel": "vllm_infogain.model_executors.llada_moe:LLaDAMoEModelLM",
    "LLaDA2MoeModelLM": "vllm_infogain.model_executors.llada2_moe:LLaDA2MoeModelLM",
    "MMadaModelLM": "vllm_infogain.model_executors.mmada:MMadaModelLM",
    "SDARForCausalLM": "vllm_infogain.model_executors.sdar:SDARForCausalLM",
    "SDARMoeForCausalLM": "vllm_infogain.model_executors.sdar_moe:SDARMoeForCausalLM",
}
# model_type in config.json -> (module, config class), so that no checkpoint needs --trust-remote-code.
CONFIGS = {
    "Dream": ("vllm_infogain.model_executors.dream_config", "DreamConfig"),
    "llada": ("vllm_infogain.model_executors.llada_config", "LLaDAConfig"),
    "llada2_moe": ("vllm_infogain.model_executors.llada2_moe_config", "LLaDA2MoeConfig"),
    "mmada": ("vllm_infogain.model_executors.mmada_config", "MMaDAConfig"),
    "sdar": ("vllm_infogain.model_executors.sdar_config", "SDARConfig"),
    "sdar_moe": ("vllm_infogain.model_executors.sdar_moe_config", "SDARMoeConfig"),
}
