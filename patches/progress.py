"""Bring each sample's report and decoding steps to its `CompletionOutput`, as the attribute `infogain`.

Why: of what a scheduler has to say, vLLM carries only `kv_transfer_params` to the front end untouched, and hands it on
    per request: of `n` samples the last one's wins, and a request that a stop string or an abort ends has none.
How: wrap `RequestState.make_request_output`, which sees every message of one sample, and `_new_completion_output`,
    which makes its outputs. The message is taken out of `kv_transfer_params` into one `Progress` per sample; every
    output of the sample refers to it. Where the scheduler is not ours no message ever comes.
Upstream: EngineCoreOutput has no field for a scheduler's own data.
Remove when: it has one that reaches CompletionOutput.
"""

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.RequestState, "make_request_output", _take_message)
    wrap_once(compat.RequestState, "_new_completion_output", _attach_progress)


def _take_message(make_request_output):
    def wrapper(
        self, new_token_ids, pooling_output, finish_reason, stop_reason, kv_transfer_params=None, *args, **kwargs
    ):
        from vllm_infogain.serving.progress import Progress

        if kv_transfer_params and "infogain" in kv_transfer_params:
            others = dict(kv_transfer_params)
            if not hasattr(self, "infogain"):
                self.infogain = Progress()
            self.infogain.update(others.pop("infogain"))
            kv_transfer_params = others or None
        return make_request_output(
            self, new_token_ids, pooling_output, finish_reason, stop_reason, kv_transfer_params, *args, **kwargs
        )

    return wrapper


def _attach_progress(new_completion_output):
    def wrapper(self, *args, **kwargs):
        output = new_completion_output(self, *args, **kwargs)
        if hasattr(self, "infogain"):
            output.infogain = self.infogain
        return output

    return wrapper
