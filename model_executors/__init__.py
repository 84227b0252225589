"""Model executors: one file per family of masked diffusion models, built from vLLM's tensor-parallel layers.

An executor offers vLLM's model interface (`forward`, `compute_logits`, `load_weights`) and, in its Hugging Face
config, `mask_token_id`. To add a family, write one file and one row in each table.
"""

# Architecture name in a checkpoint's config.json -> executor, imported only when a checkpoint asks for it.
EXECUTORS = {"LLaDAModelLM": "vllm_infogain.model_executors.llada:LLaDAModelLM"}
# model_type in config.json -> (module, config class), so that no checkpoint needs --trust-remote-code.
CONFIGS = {"llada": ("vllm_infogain.model_executors.llada_config", "LLaDAConfig")}
