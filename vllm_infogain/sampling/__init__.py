"""The algorithm: functions on tensors that import no vLLM, and the state machine that strings them together."""
