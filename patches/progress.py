"""Bring each sample's report and decoding steps to its `CompletionOutput`, as the attribute `infogain`; and the report
to `RequestOutput.metrics`, as its field.

Why: of what a scheduler has to say, vLLM carries only `kv_transfer_params` to the front end untouched, and hands it on
    per request: of `n` samples the last one's wins, and a request that a stop string or an abort ends
    has none. Ray copies an output's fields by their names, `metrics` as any dataclass: what hangs on it is lost.
How: wrap `RequestState.make_request_output`, which sees every message of one sample, and `_new_completion_output` and
    `_new_request_output`, which make its outputs. The message is taken out of `kv_transfer_params` into one `Progress`
    per sample; every output of the sample refers to it, and to one `RequestMetrics`, which takes the place of vLLM's:
    vLLM merges the outputs of a stream whose reader is slow. Where the scheduler is not ours no message ever comes.
Upstream: EngineCoreOutput has no field for a scheduler's own data.
Remove when: it has one that reaches CompletionOutput, and Ray hands that on.
"""

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.RequestState, "make_request_output", _take_message)
    wrap_once(compat.RequestState, "_new_completion_output", _attach_progress)
    wrap_once(compat.RequestState, "_new_request_output", _attach_metrics)


def _take_message(make_request_output):
    def wrapper(
        self, new_token_ids, pooling_output, finish_reason, stop_reason, kv_transfer_params=None, *args, **kwargs
    ):
        from vllm_infogain.serving.progress import Progress
        from vllm_infogain.serving.request_metrics import RequestMetrics

        if kv_transfer_params and "infogain" in kv_transfer_params:
            others = dict(kv_transfer_params)
            if not hasattr(self, "infogain"):
                self.infogain = Progress()
                self.infogain_metrics = RequestMetrics(**vars(self.stats)) if self.stats else RequestMetrics()
                if self.stats:
                    self.stats = self.infogain_metrics  # vLLM goes on counting in it
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


def _attach_metrics(new_request_output):
    def wrapper(self, external_req_id, outputs, *args, **kwargs):
        result = new_request_output(self, external_req_id, outputs, *args, **kwargs)
        if hasattr(self, "infogain"):
            result.metrics = self.infogain_metrics
            first = outputs[0]
            if first.finish_reason is not None and hasattr(first, "infogain"):
                result.metrics.infogain = first.infogain.report
        return result

    return wrapper
