"""From a constraint (regex, choice, JSON schema) to an automaton over a model's tokens. One pure stage.

`backend.py` alone knows vLLM: it answers its structured output manager.
"""
