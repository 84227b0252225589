"""Pictures as codes: pure functions and modules of torch. They import the records of requests, and no vLLM."""
