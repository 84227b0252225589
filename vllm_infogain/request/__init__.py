"""What a request asks for: parsed and checked once, into frozen records. One pure stage.

Imports neither torch nor, but for `from_vllm.py`, vLLM; nothing else of this package.
"""
