"""Settings every test shares. Engines run in this process, so that a test can step them and look inside."""

import os

# One thread: with a second one, OpenMP's spinning barriers make these tiny models forty times slower on a busy core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
