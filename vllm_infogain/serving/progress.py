"""How a request's decoding went, on its way from the scheduler to the user. Imports neither torch nor vLLM."""

from typing import Any


class Progress:
    """One sample's, in the front end; it hangs on vLLM's `CompletionOutput` as `infogain`. Owner: the front end.

    vLLM merges the outputs of a stream whose reader is slow, so this is one object from first to last, and the reader
    takes the steps out of it.
    """

    def __init__(self) -> None:
        self._report: dict[str, Any] = {}
        self._steps: list[dict[str, Any]] = []  # all so far
        self._taken = 0
        self._canvas_length: int | None = None  # known if the trajectory was asked for

    def update(self, message: dict[str, Any]) -> None:
        """Take what the scheduler sent: the `report` so far, the `steps` since its last message, and `canvas_length` if
        the trajectory was asked for."""
        self._report = message["report"]
        self._steps += message["steps"]
        self._canvas_length = message.get("canvas_length")

    @property
    def report(self) -> dict[str, Any]:
        """See `vllm_infogain.report`."""
        if self._canvas_length is None:
            return self._report
        order: list[int | None] = [None] * self._canvas_length
        for index, step in enumerate(self._steps):
            for position in step["positions"]:
                order[position] = index
        return self._report | {"trajectory": self._steps, "decode_order": order}

    def take_steps(self) -> list[dict[str, Any]]:
        """Steps since the last call, in order: positions (offsets in the canvas), tokens, entropies (nats), objective
        (J of every distinct candidate), chosen, bypassed."""
        steps = self._steps[self._taken :]
        self._taken += len(steps)
        return steps
