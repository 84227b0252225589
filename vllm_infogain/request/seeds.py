"""Seeds made of seeds. Imports neither torch nor vLLM."""

import hashlib


def child_seed(seed: int, kind: str, index: int) -> int:
    """Of the `index`-th sample or generation of a seeded request: its own seed for the first, a hash for the others.

    Sums, such as seed + index, would give the samples of neighbouring seeds in common.
    """
    if index == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{kind}/{seed}/{index}".encode(), digest_size=8).digest(), "big") >> 1
