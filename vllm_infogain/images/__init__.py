"""Pictures as codes: pure functions and modules of torch. They import the records of requests, and no vLLM, but for
`offline.py`, a user of it."""

from vllm_infogain.images.offline import generate, reading_prompt

__all__ = ["generate", "reading_prompt"]
