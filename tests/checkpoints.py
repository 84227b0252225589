"""Tiny random checkpoints in the released formats, for tests."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from plain_dream import PlainDream
from safetensors.torch import save_file
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from vllm_infogain.embedded.tokenizer import BOS, EOS, MASK, VOCAB, save_tokenizer
from vllm_infogain.images.magvit import Magvit, MagvitConfig
from vllm_infogain.library import block_causal
from vllm_infogain.reference.llada import LLaDA, LLaDAShape


def write_llada(path: Path, *, sharpness: float = 3.0, seed: int = 0, **shape) -> LLaDA:
    """A random LLaDA whose logits are spread enough for entropies and choices to differ from row to row."""
    fields = {
        "d_model": 64, "n_heads": 2, "n_kv_heads": 2, "n_layers": 2, "mlp_hidden_size": 96,
        "vocab_size": len(VOCAB), "embedding_size": len(VOCAB), "max_sequence_length": 128,
        "mask_token_id": VOCAB[MASK], "eos_token_id": VOCAB[EOS],
    } | shape  # fmt: skip
    torch.manual_seed(seed)
    model = LLaDA(LLaDAShape(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            if name.endswith(("transformer.ff_out.weight", "wte.weight")):
                parameter.mul_(sharpness if "ff_out" in name else 8.0)
    model.save_checkpoint(path)
    save_tokenizer(path)
    return model


def write_mmada(path: Path, *, codes_per_side: int = 4, sharpness: float = 3.0, seed: int = 0, **shape) -> LLaDA:
    """A random MMaDA of square pictures of codes of 4 bits, which stand behind the text's tokens as the released ones
    do. The tokens around a picture are, as there, tokens that no text has a use for.

    Args:
        shape: over LLaDA's tiny one.

    Returns:
        The plain model, whose `config` is the one written.
    """
    codes, table = {"codebook_size": 16, "image_codes_per_side": codes_per_side}, {"new_vocab_size": 128}
    tokens = {
        "image_token_offset": len(VOCAB), "bos_token_id": VOCAB[BOS], "eos_token_id": VOCAB[EOS],
        "soi_token_id": VOCAB["~"], "eoi_token_id": VOCAB["}"], "t2i_token_id": VOCAB["{"], "mmu_token_id": VOCAB["|"],
    }  # fmt: skip
    size = len(VOCAB) + codes["codebook_size"]
    written = {"vocab_size": size, "embedding_size": table["new_vocab_size"]} | shape
    model = write_llada(path, sharpness=sharpness, seed=seed, **written)
    released = {"architectures": ["MMadaModelLM"], "model_type": "mmada"} | codes | tokens | table
    config = json.loads((path / "config.json").read_text()) | released
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model.config = SimpleNamespace(**config)
    return model


def write_magvit(path: Path, *, seed: int = 0) -> Magvit:
    """A random tokenizer of pictures with as many bits to a code as `write_mmada` has codes; 4 pixels to a code."""
    torch.manual_seed(seed)
    model = Magvit(
        MagvitConfig(
            channels=8, encoder_multipliers=(1, 2, 2), encoder_blocks=(1, 1, 1), decoder_multipliers=(1, 1, 2),
            decoder_blocks=(1, 1, 1), bits=4, norm_groups=4,
        )
    ).eval()  # fmt: skip
    model.save_checkpoint(path)
    return model


def write_sdar(
    path: Path, *, sharpness: float = 3.0, seed: int = 0, omit: tuple[str, ...] = (), **fields
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A random SDAR, spread as `write_llada` spreads its logits.

    Args:
        path: the checkpoint's directory.
        sharpness: of the logits.
        seed: of the weights.
        omit: fields left out of config.json, as released configs leave some out.
        fields: of config.json, over the tiny ones.

    Returns:
        The plain model: ids [batch, length] -> logits [batch, length, vocab] fp32; row i predicts position i.
    """
    config = {
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 2,
        "intermediate_size": 96, "vocab_size": len(VOCAB), "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000, "rope_scaling": None, "attention_bias": False, "hidden_act": "silu",
        "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
        "eos_token_id": VOCAB[EOS], "pad_token_id": VOCAB[EOS], "mask_token_id": VOCAB[MASK], "block_size": 4,
    } | fields  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**config, attn_implementation="eager")).eval()
    _spread(model, sharpness)
    remote = {
        "architectures": ["SDARForCausalLM"], "model_type": "sdar", "torch_dtype": "float32",
        "auto_map": {
            "AutoConfig": "configuration_sdar.SDARConfig",
            "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
        },
    }  # fmt: skip
    _save(path, model, config | remote, omit)
    adapter = block_causal(config["block_size"])
    return torch.inference_mode()(lambda ids: adapter(model, ids).float())


def write_dream(
    path: Path, *, sharpness: float = 3.0, seed: int = 0, omit: tuple[str, ...] = (), **fields
) -> PlainDream:
    """A random Dream; arguments as of `write_sdar`. Returns the plain model."""
    config = {
        "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 96, "vocab_size": len(VOCAB), "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_scaling": None, "attention_dropout": 0.0, "hidden_act": "silu",
        "initializer_range": 0.02, "tie_word_embeddings": False, "use_cache": True, "use_mrope": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
        "bos_token_id": VOCAB[EOS], "eos_token_id": VOCAB[EOS], "pad_token_id": VOCAB[EOS],
        "mask_token_id": VOCAB[MASK],
    } | fields  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**config, attn_implementation="eager")).eval()
    _spread(model, sharpness)
    remote = {
        "architectures": ["DreamModel"], "model_type": "Dream", "torch_dtype": "float32",
        "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    }  # fmt: skip
    _save(path, model, config | remote, omit)
    return PlainDream(model)


def _spread(model: PreTrainedModel, sharpness: float) -> None:
    """Random weights in which leaving out a norm or a bias shows, and logits that differ from row to row."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif name.endswith(".bias"):
                parameter.normal_()
            else:
                parameter.uniform_(0.5, 1.5)
            if name == "model.embed_tokens.weight" and not model.config.tie_word_embeddings:
                parameter.mul_(8.0)
            elif name in ("model.embed_tokens.weight", "lm_head.weight"):
                parameter.mul_(sharpness)


def _save(path: Path, model: PreTrainedModel, config: dict, omit: tuple[str, ...]) -> None:
    """The checkpoint in its released format, the remote code named and absent."""
    save_tokenizer(path)
    written = {name: value for name, value in config.items() if name not in omit}
    (path / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del weights["lm_head.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
