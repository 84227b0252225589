"""Refuse vLLM's own beam search, which asks an engine for one next token at a time.

Why: a canvas has no next token. Every beam would be a canvas of one mask, decoded by none of the request's parameters.
How: wrap `beam_search` of the server and of `LLM`; acts only where the scheduler is ours.
Upstream: none.
Remove when: vLLM asks a model whether it can be searched so.
"""

from vllm_infogain.patches import of_server, wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.BeamSearchOnlineMixin, "beam_search", _refuse, of_server)
    wrap_once(compat.BeamSearchOfflineMixin, "beam_search", _refuse, lambda llm, *_, **__: llm.llm_engine.vllm_config)


def _refuse(beam_search):
    def wrapper(self, *args, **kwargs):
        from vllm_infogain.serving.admission import RequestError

        message = "use_beam_search=True: it goes from token to token; leave it out, and give sampler='beam'"
        raise RequestError(message, parameter="use_beam_search")

    return wrapper
