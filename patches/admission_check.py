"""Check a request against what our engine can serve, before it enters the engine.

Why: a platform's `validate_request` would see it too, but a plugin may not replace the platform; a logits processor's
    `validate_params` sees neither the prompt nor max_tokens.
How: wrap `InputProcessor.process_inputs`, which makes the complete request and whose errors vLLM turns into HTTP 400.
    Acts only on engines whose scheduler is ours.
Upstream: no hook for per-request validation by a plugin.
Remove when: vLLM lets a scheduler or model class validate requests at admission.
"""

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain.admission import check_request
    from vllm_infogain.engine.compat import InputProcessor
    from vllm_infogain.plugin import is_active

    def checked(process_inputs):
        def wrapper(self, *args, **kwargs):
            request = process_inputs(self, *args, **kwargs)
            if is_active(self.vllm_config):
                check_request(request, self.vllm_config)
            return request

        return wrapper

    wrap_once(InputProcessor, "process_inputs", checked)
