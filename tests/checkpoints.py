"""Tiny random checkpoints in the released formats, for tests."""

from pathlib import Path

import torch

from vllm_infogain.embedded.tokenizer import EOS, MASK, VOCAB, save_tokenizer
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
