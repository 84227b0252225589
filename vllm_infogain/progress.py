"""How a request's decoding went, on its way from the scheduler to the user. Imports neither torch nor vLLM."""

from typing import Any


class Progress:
    """One sample's, in the front end; it hangs on vLLM's `CompletionOutput` as `infogain`. Owner: the front end.

    vLLM merges the outputs of a stream whose reader is slow, so this is one object from first to last, and the reader
    takes the steps out of it.
    """

    def __init__(self) -> None:
        self.report: dict[str, Any] = {}  # figures so far; see `vllm_infogain.report`
        self._steps: list[dict[str, Any]] = []  # not yet taken; only with `stream_mode: canvas`

    def update(self, message: dict[str, Any]) -> None:
        """Take what the scheduler sent: `report`, and the `steps` since its last message."""
        self.report = message["report"]
        self._steps += message.get("steps", [])

    def take_steps(self) -> list[dict[str, Any]]:
        """Steps since the last call, in order: positions (offsets in the canvas), tokens, entropies (nats), objective
        (J of every distinct candidate), chosen, bypassed."""
        steps, self._steps = self._steps, []
        return steps
