"""The renderer of our engines knows its engine.

Why: a chat's picture becomes tokens by a worker's encoder, and how many there are vLLM must know when it sizes the
    answer: so they are made where the chat is rendered. vLLM's renderers know the configuration only.
How: wrap `AsyncLLM.__init__` and `LLMEngine.__init__`, which make a renderer of their own, and then the engine.
Upstream: none.
Remove when: a renderer may ask the engine's workers.
"""

import weakref

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain import compat

    for engine in (compat.AsyncLLM, compat.LLMEngine):
        wrap_once(engine, "__init__", _known_to_its_renderer, lambda engine, vllm_config, *_, **__: vllm_config)


def _known_to_its_renderer(init):
    def wrapper(self, vllm_config, *args, **kwargs):
        init(self, vllm_config, *args, **kwargs)
        self.renderer.engine = weakref.proxy(self)

    return wrapper
