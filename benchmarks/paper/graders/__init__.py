"""From a generation to right or wrong. Nothing here needs a model, a server or vLLM."""
