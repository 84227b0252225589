"""Model executors: one file per family of masked diffusion models, built from vLLM's tensor-parallel layers.

An executor offers vLLM's model interface (`forward`, `compute_logits`, `load_weights`). Its Hugging Face config has
`mask_token_id` and, as a fact of the family that no config.json states, the class attribute `attention_kind`:
"full" (every position sees every other) or "block_causal" (its own block of `block_size` positions and those before).
To add a family, write one file and one row in each table.
"""

# Architecture name in a checkpoint's config.json -> executor, imported only when a checkpoint asks for it.
EXECUTORS = {
    "LLaDAModelLM": "vllm_infogain.model_executors.llada:LLaDAModelLM",
    "SDARForCausalLM": "vllm_infogain.model_executors.sdar:SDARForCausalLM",
}
# model_type in config.json -> (module, config class), so that no checkpoint needs --trust-remote-code.
CONFIGS = {
    "llada": ("vllm_infogain.model_executors.llada_config", "LLaDAConfig"),
    "sdar": ("vllm_infogain.model_executors.sdar_config", "SDARConfig"),
}
