"""Requests that differ in everything, for batches that are compared with the oracle request by request."""

from engines import Job

from vllm_infogain.embedded.tokenizer import BOS, EOS, VOCAB, encode

CACHED = [
    Job("one", {"cache": "dual", "block_length": 16, "bypass_threshold": 1.0}, 50),
    Job("a longer prompt than the others, by far", {"cache": "prefix", "block_length": 8, "tokens_per_step": 2}, 40),
    Job("exact", {"block_length": 8, "bypass_threshold": 1.0}, 20),
    Job("greedy", {"sampler": "entropy", "cache": "dual", "block_length": 32}, 60),
    Job("beam", {"sampler": "beam", "cache": "dual", "block_length": 8, "beam_width": 3, "num_candidates": 3}, 24),
    Job("best", {"sampler": "best_of_n", "cache": "prefix", "block_length": 8, "num_generations": 3}, 24, 1.0, 5),
    Job("warm", {"cache": "dual", "block_length": 8, "cache_refresh": 2, "tokens_per_step": 2}, 33, 0.7, 6),
    Job("sum", {"cache": "prefix", "uncertainty_scope": "sequence", "state_uncertainty": "sum"}, 45),
    Job("prune", {"prune": True, "cache": "dual", "block_length": 16, "bypass_threshold": 1.0}, 30),
    Job("klass", {"sampler": "klass", "cache": "dual", "block_length": 8}, 30),
]

# Each in its own way: another prompt or none, longer or shorter than the prompt, and with what else goes with it.
GUIDED = [
    Job("one", {"guidance_scale": 1.5, "block_length": 8, "bypass_threshold": 1.0, "num_candidates": 4}, 20),
    Job("a longer prompt", {"guidance_scale": 3.5, "guidance_prompt_ids": [9, 8], "tokens_per_step": 2}, 30),
    Job("s", {"guidance_scale": 0.5, "guidance_prompt_ids": [*range(10, 50)], "cache": "dual", "block_length": 8}, 24),
    Job("greedy", {"guidance_scale": 2, "sampler": "entropy", "cache": "prefix", "block_length": 16}, 40),
    Job(
        "beam",
        {
            "guidance_scale": 1, "guidance_prompt_ids": [9] * 21, "sampler": "beam", "cache": "dual", "block_length": 8,
            "beam_width": 3, "num_candidates": 3,
        },
        24,
    ),
    Job("best", {"guidance_scale": 1, "sampler": "best_of_n", "cache": "prefix", "num_generations": 3}, 12, 1.0, 5),
    Job("klass", {"guidance_scale": 1, "guidance_prompt_ids": [7], "sampler": "klass", "block_length": 8}, 20),
    Job("prune", {"guidance_scale": 4, "prune": True, "bypass_threshold": 1.0, "suffix_token_ids": [7, 9]}, 14, 0.7, 3),
]  # fmt: skip

# Of the image model that `checkpoints.write_mmada` writes: its 16 codes, a text's prompt in the form of a picture's.
RED, BLUE = ([VOCAB["{"], VOCAB[BOS], *encode(text), VOCAB[EOS], VOCAB["~"]] for text in ("red", "a blue one"))
PICTURES = [
    Job(RED, {"image": True, "steps": 5, "num_candidates": 4}, 16),
    Job(BLUE, {"image": True, "steps": 4, "guidance_scale": 3.5, "sampler": "entropy"}, 16),
    Job(BLUE, {"image": True, "steps": 6, "guidance_scale": 1.5, "state_uncertainty": "sum"}, 16, 0.4, 3),
    Job(RED, {"image": True, "sampler": "maskgit", "steps": 5}, 16, 1.0, 4),
    Job("a text", {"guidance_scale": 1.5, "bypass_threshold": 1.0, "block_length": 8}, 20),
]

PREFIX = "a prefix that many of the prompts share, longer than two pages of the cache"
BLOCK_CAUSAL = [
    Job(PREFIX, {"bypass_threshold": 1.0}, 30),
    Job(PREFIX + " and more", {"tokens_per_step": 2}, 20),
    Job(PREFIX[:50] + "5", {"sampler": "entropy"}, 40),
    Job("7", {"sampler": "lookum", "bypass_threshold": 1.0}, 40),
    Job(PREFIX + "!", {"sampler": "beam", "beam_width": 3, "num_candidates": 3}, 12),
    Job("best", {"sampler": "best_of_n", "num_generations": 3}, 14, 1.0, 5),
]
