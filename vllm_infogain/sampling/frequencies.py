"""Background token frequencies for PC-Sampler: counted from any text, kept in a small JSON file.

    python -m vllm_infogain.sampling.frequencies TEXT... --tokenizer MODEL --out FILE

A token never seen counts as half a token, so that every log-frequency is finite.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

UNSEEN = 0.5  # the count of a token that the text does not hold


def count_tokens(sequences: Iterable[list[int]]) -> dict[int, int]:
    """Occurrences of every token id."""
    counts: Counter[int] = Counter()
    for sequence in sequences:
        counts.update(sequence)
    return dict(counts)


def log_frequencies(counts: dict[int, int], vocab_size: int) -> np.ndarray:
    """[vocab] fp32: log of each token's share of the text.

    Raises:
        ValueError: a token id does not fit the vocabulary.
    """
    if counts and not 0 <= min(counts) <= max(counts) < vocab_size:
        raise ValueError(f"token ids from {min(counts)} to {max(counts)} do not fit a vocabulary of {vocab_size}")
    table = np.full(vocab_size, UNSEEN)
    table[list(counts)] = list(counts.values())
    return np.log(table / table.sum()).astype(np.float32)


def load_log_frequencies(path: str | Path, vocab_size: int) -> np.ndarray:
    """Read a file that `main` wrote; [vocab] fp32."""
    counts = json.loads(Path(path).read_text())["counts"]
    return log_frequencies({int(token): count for token, count in counts.items()}, vocab_size)


def main() -> None:
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", nargs="+", type=Path, help="files of plain text")
    parser.add_argument("--tokenizer", required=True, help="checkpoint directory or hub name")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    lines = (line for path in arguments.text for line in path.read_text().splitlines(keepends=True))
    counts = count_tokens(tokenizer.encode(line, add_special_tokens=False) for line in lines)
    arguments.out.write_text(json.dumps({"tokenizer": arguments.tokenizer, "counts": counts}))
    print(f"{sum(counts.values())} tokens, {len(counts)} distinct")


if __name__ == "__main__":
    main()
