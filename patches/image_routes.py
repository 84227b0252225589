"""`/v1/images/*` on every server of our models.

Why: vLLM loads an endpoint plugin only where `VLLM_PLUGINS` names it, and that list then filters all of vLLM's plugins.
    A server of a model that writes pictures should answer requests for them, and one of another say that it does not.
How: wrap `register_api_routers`, which `build_app` calls with the model's configuration. `VLLM_PLUGINS` may name
    `infogain_images` all the same: vLLM then lets the plugin's routes take the place of these.
Upstream: none.
Remove when: a general plugin may add endpoints.
"""

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.app, "register_api_routers", _with_images)


def _with_images(register_api_routers):
    def wrapper(args, app, supported_tasks, model_config=None):
        from vllm_infogain.engine.identity import is_our_model

        register_api_routers(args, app, supported_tasks, model_config)
        if model_config is not None and is_our_model(model_config) and "generate" in supported_tasks:
            from vllm_infogain.serving.images import Pictures

            Pictures().attach_router(app)

    return wrapper
