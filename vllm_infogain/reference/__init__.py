"""Plain torch models and decoders: slow, simple, and what the fast paths are compared with."""
