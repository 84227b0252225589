"""Plain torch models and a plain decoder, slow and simple: tests compare the fast paths with them.

May import `request`, `grammar` and `sampling`; no vLLM.
"""
