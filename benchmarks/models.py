"""The models that benchmarks run: the embedded one, and a random-weight LLaDA of a size that fills a CPU's caches.

python -m benchmarks.models DIRECTORY    # writes the random checkpoint, for `vllm bench` or `vllm serve`
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from vllm_infogain.reference.llada import LLaDA, LLaDAShape

EOS, MASK, UNK = SPECIALS = ("<|eos|>", "<|mask|>", "<|unk|>")
RANDOM_SHAPE = LLaDAShape(
    d_model=768, n_heads=12, n_kv_heads=12, n_layers=12, mlp_hidden_size=2048,
    vocab_size=32000, embedding_size=32000, mask_token_id=SPECIALS.index(MASK), eos_token_id=SPECIALS.index(EOS),
    max_sequence_length=2048,
)  # fmt: skip
VLLM_COMMANDS = """\
vLLM's own benchmarks against the plugin. Their requests carry no decoding parameters of ours, so these are the server's
(`--additional-config`) or, over HTTP, go into every body (`--extra-body`).

    python -m benchmarks.models random-llada
    vllm bench throughput --plugin infogain --model random-llada --dtype float32 --max-model-len 512 \\
        --max-num-batched-tokens 4096 --block-size 32 --kv-cache-memory-bytes 2147483648 \\
        --dataset-name random --random-input-len 64 --random-output-len 64 --num-prompts 16 \\
        --additional-config '{"infogain": {"cache": "dual", "block_length": 16}}'
    vllm serve random-llada --plugin infogain --dtype float32 --max-model-len 512 \\
        --max-num-batched-tokens 4096 --block-size 32 --kv-cache-memory-bytes 2147483648
    vllm bench serve --model random-llada --dataset-name random --random-input-len 64 --random-output-len 64 \\
        --num-prompts 16 --max-concurrency 8 --ignore-eos --temperature 0.7 \\
        --extra-body '{"vllm_xargs": {"cache": "dual", "block_length": 16}}'"""


def random_checkpoint() -> Path:
    """A checkpoint in the released format, written once per machine to the temporary directory; no download."""
    shape = RANDOM_SHAPE
    path = Path(tempfile.gettempdir()) / f"infogain-random-{shape.n_layers}x{shape.d_model}x{shape.vocab_size}"
    if not (path / "tokenizer_config.json").exists():  # written last
        write_random_checkpoint(path)
    return path


def write_random_checkpoint(path: Path) -> None:
    """Random weights with logits of standard deviation 5 and attention that tells rows apart.

    At this sharpness the entropy over 32,000 tokens is 3.0 +- 0.9 nats from row to row and the largest probability
    0.36 +- 0.20, so that samplers have something to choose by. With unscaled queries and keys attention would average
    over everything and all masked rows would be alike.
    """
    scale = {"q_proj": 2.0, "k_proj": 2.0, "wte": 8.0, "transformer.ff_out": 5.0}
    torch.manual_seed(0)
    model = LLaDA(RANDOM_SHAPE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                layer = name.removesuffix(".weight")
                factor = next((factor for ending, factor in scale.items() if layer.endswith(ending)), 1.0)
                parameter.normal_(std=factor * parameter.shape[1] ** -0.5)
    model.save_checkpoint(path)
    save_word_tokenizer(path, RANDOM_SHAPE.vocab_size)


def save_word_tokenizer(path: Path, vocabulary: int) -> None:
    """One token per word: `w3 w4 ...`. Ids survive decoding and encoding, as random datasets need."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = {
        word: index for index, word in enumerate([*SPECIALS, *(f"w{i}" for i in range(len(SPECIALS), vocabulary))])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": UNK,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the random-weight checkpoint to a directory.")
    parser.add_argument("directory", type=Path)
    write_random_checkpoint(parser.parse_args().directory)


if __name__ == "__main__":
    main()
