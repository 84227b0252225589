"""What an engine step sends to the scheduler: final tokens, their log-probabilities, and messages for the front end."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vllm_infogain.compat import LogprobsLists
from vllm_infogain.engine.records import NextForward, StepResult
from vllm_infogain.sampling.canvas_state import DenoisingStep, Final
from vllm_infogain.sampling.decoder import Decoder
from vllm_infogain.sampling.logprobs import TokenLogprob


def step_result(
    decoders: Mapping[str, Decoder],
    finals: Mapping[str, Final],
    next_forwards: dict[str, NextForward],
    ended: Mapping[str, Decoder],
) -> StepResult:
    """Of the step's requests, by their ids; the decoders have gone through the step. Those of `ended` were stopped
    before it."""
    ids = list(decoders)
    result = StepResult(
        req_ids=ids,
        req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
        sampled_token_ids=[finals[request_id].tokens for request_id in ids],
        logprobs=_logprobs([finals[request_id].logprobs for request_id in ids]),
        next_forwards=next_forwards,
    )
    for request_id, decoder in decoders.items():
        is_watched = decoder.params.stream_mode == "canvas"
        steps = decoder.take_steps() if is_watched or finals[request_id].tokens else []
        if finals[request_id].tokens or steps:
            result.messages[request_id] = _message(decoder, steps)
    for request_id, decoder in ended.items():
        if request_id not in decoders:  # else its id is used again
            result.messages[request_id] = _message(decoder, decoder.take_steps())
    return result


def _message(decoder: Decoder, steps: Sequence[DenoisingStep]) -> dict[str, Any]:
    message: dict[str, Any] = {"report": decoder.report.totals(), "steps": [asdict(step) for step in steps]}
    if decoder.params.return_trajectory:
        message["canvas_length"] = decoder.params.canvas_length
    return message


def _logprobs(by_request: list[list[TokenLogprob]]) -> LogprobsLists | None:
    """vLLM's form: a row per token, the token itself in front of its alternatives."""
    rows = [token for request in by_request for token in request]
    if not rows:
        return None
    # Requests ask for different numbers of alternatives, and a given token has none. vLLM makes a dictionary of each
    # row, so a row that is filled up with the token itself gains nothing.
    width = max(len(row.tokens) for row in rows)
    missing = [width - len(row.tokens) for row in rows]
    tokens = [[row.token, *row.tokens, *[row.token] * more] for row, more in zip(rows, missing, strict=True)]
    values = [[row.logprob, *row.logprobs, *[row.logprob] * more] for row, more in zip(rows, missing, strict=True)]
    starts = np.cumsum([0, *map(len, by_request)]).tolist()
    ranks = np.array([row.rank for row in rows], dtype=np.int32)
    return LogprobsLists(np.array(tokens, dtype=np.int32), np.array(values, dtype=np.float32), ranks, starts)
