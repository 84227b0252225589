"""What the scheduler tells the front end of requests, beside the tokens that vLLM sends anyway."""

from collections.abc import Iterable, Mapping
from typing import Any

from vllm_infogain.compat import EngineCoreOutput, EngineCoreOutputs, FinishReason, Request


def tell(
    outputs: dict[int, EngineCoreOutputs], messages: Mapping[str, dict[str, Any]], clients: Mapping[str, int]
) -> None:
    """Send messages along with their requests' tokens, or without where nothing is final yet.

    vLLM carries the dictionary meant for KV connectors, of which we have none, untouched to its front end.

    Args:
        outputs: of this step, by client; they are added to.
        messages: by request; see serving/progress.py.
        clients: of the step's requests that were known before its output was taken.
    """
    told = {output.request_id: output for of_client in outputs.values() for output in of_client.outputs}
    for request_id, message in messages.items():
        if request_id not in clients:
            continue  # ended before the step, or aborted meanwhile
        if request_id not in told:
            told[request_id] = EngineCoreOutput(request_id, [])
            outputs.setdefault(clients[request_id], EngineCoreOutputs()).outputs.append(told[request_id])
        told[request_id].kv_transfer_params = {"infogain": message}


def tell_timed_out(
    outputs: dict[int, EngineCoreOutputs], requests: Iterable[Request], messages: Mapping[str, dict[str, Any]]
) -> None:
    """Send the ends of requests that took too long, with what there is to say of those that ever ran."""
    for request in requests:
        end = EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ABORT)
        if request.request_id in messages:
            end.kv_transfer_params = {"infogain": messages[request.request_id]}
        outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(end)
