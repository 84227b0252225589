"""Check a constraint before anything else of its request, beside the server's event loop.

Why: a regular expression or JSON schema takes up to a second to compile, and vLLM's own checks of it have no bound: a
    schema of 3 KB whose properties are all optional takes more memory than there is. Both run on the event loop, where
    health checks and every stream stand still meanwhile.
How: wrap what serves each request: the constraint is compiled in one thread, which lets the loop run, and what is found
    is looked up by the checks that follow.
Upstream: none; vLLM checks constraints on the event loop.
Remove when: vLLM checks parameters in a thread, by what the scheduler's plugin says.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from vllm_infogain.patches import wrap_once

# One: threads that compute share the interpreter, and the loop is one of them.
_compiler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="infogain-compiler")


def apply() -> None:
    from vllm_infogain.engine import compat

    wrap_once(compat.OpenAIServingCompletion, "create_completion", _check_first)
    wrap_once(compat.OpenAIServingChat, "create_chat_completion", _check_first)
    wrap_once(compat.OpenAIServingResponses, "create_responses", _check_first)


def _check_first(create):
    async def wrapper(self, request, *args, **kwargs):
        from vllm_infogain.admission import check_constraint_first
        from vllm_infogain.plugin import is_active

        vllm_config = self.engine_client.vllm_config
        if is_active(vllm_config):
            _refuse_old_names(request)
            constraint = request.extract_structured_outputs()
            if constraint is not None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(_compiler, check_constraint_first, constraint, vllm_config)
        return await create(self, request, *args, **kwargs)

    return wrapper


def _refuse_old_names(request) -> None:
    """vLLM knows no `guided_json` any more and passes over it, as over any name it does not know."""
    from vllm_infogain.admission import refusing
    from vllm_infogain.values import ParameterError

    for name, value in (request.model_extra or {}).items():
        if name.startswith("guided_"):
            with refusing():
                raise ParameterError(name, value, "give it as structured_outputs, such as {'regex': ...}")
