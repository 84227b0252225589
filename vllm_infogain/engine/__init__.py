"""The vLLM side: scheduler -> worker -> runner. All imports of vLLM internals come through `compat`."""
