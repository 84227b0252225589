"""`/v1/responses` leaves special tokens to the chat template, as `/v1/chat/completions` does.

Why: a chat that was templated to text holds the special tokens of its model. `/v1/responses` has the tokenizer add
    its own to them. The renderer cannot tell this from a chat whose client asks for `add_special_tokens`.
How: wrap `ResponsesRequest.build_tok_params`. Models that are not ours are left alone.
Upstream: none.
Remove when: `/v1/responses` leaves them to the template by itself; a contract test says so.
"""

from dataclasses import replace

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.ResponsesRequest, "build_tok_params", _leave_special_tokens_to_the_template)


def _leave_special_tokens_to_the_template(build_tok_params):
    def wrapper(self, model_config):
        from vllm_infogain.engine.identity import is_our_model

        params = build_tok_params(self, model_config)
        return replace(params, add_special_tokens=False) if is_our_model(model_config) else params

    return wrapper
