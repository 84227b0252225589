"""Files of prompts decoded on Ray Data: the driver of `python -m vllm_infogain.batch`, and what runs beside engines.

Imports `request`, `engine_defaults` and, for the names of vLLM's sampling parameters, `compat`. Only `job.py` and
`parts.py` import Ray.
"""
