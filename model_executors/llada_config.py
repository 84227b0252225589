"""The Hugging Face config of LLaDA checkpoints, so that they load without remote code. Needs transformers only."""

from vllm_infogain.model_executors.llada_base_config import LLaDABaseConfig
from vllm_infogain.model_executors.llada_moe_config import LLaDAMoEConfig
from vllm_infogain.model_executors.mmada_config import MMaDAConfig


class LLaDAConfig(LLaDABaseConfig):
    """The dense LLaDA's; other families give its name as theirs."""

    model_type = "llada"

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """The config of a parsed config.json. LLaDA-MoE shares the model_type and nothing else; some checkpoints of
        MMaDA name LLaDA's classes."""
        if any(name.startswith("LLaDAMoE") for name in config_dict.get("architectures") or ()):
            return LLaDAMoEConfig.from_dict(config_dict, **kwargs)
        if config_dict.get("codebook_size"):
            return MMaDAConfig.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)
