"""The API server's process (offline, the process of `LLM`): what happens to a request before the engine has it, and to
its results after. May import `request`, `grammar` and `sampling`'s pure parts; never `engine`'s scheduler or worker.
"""
