"""Make an engine for one of our models ours, and check what it is started with before anything of it is started.

Why: vLLM knows no default worker or scheduler of an architecture. Its own would decode a masked model left to right,
    and answer nonsense. And an engine that cannot be ours should say so where it was asked for, at once: raised in the
    worker, the same sentence comes half a minute later in the middle of three processes' tracebacks.
How: wrap `EngineArgs.create_model_config`, which knows the model while nothing else is decided yet, and
    `create_engine_config`, which every engine, in whatever process, is configured by.
Upstream: none.
Remove when: vLLM lets a model class name its worker and scheduler, and check the configuration.
"""

from typing import Any

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain.compat import EngineArgs

    wrap_once(EngineArgs, "create_model_config", _ours_for_our_models)
    wrap_once(EngineArgs, "create_engine_config", _checked)


def _ours_for_our_models(create_model_config):
    def wrapper(self):
        from vllm_infogain.engine.config_check import check_model, check_renderer, choose_renderer
        from vllm_infogain.engine.identity import is_our_model

        model_config = create_model_config(self)
        if not asks_for_us(self):
            if not is_our_model(model_config):
                check_renderer(model_config)
                return model_config
            _switch_on(self, model_config)
            model_config = create_model_config(self)  # some of our arguments are the model's
        check_model(model_config)
        choose_renderer(model_config)
        return model_config

    return wrapper


def _checked(create_engine_config):
    def wrapper(self, *args, **kwargs):
        from vllm_infogain.compat import EngineArgs
        from vllm_infogain.engine.arguments import check_arguments
        from vllm_infogain.engine.config_check import check_engine, check_tokens

        if asks_for_us(self):
            check_arguments(self, EngineArgs)
        vllm_config = create_engine_config(self, *args, **kwargs)
        if asks_for_us(self):  # by now perhaps because of its model
            check_engine(vllm_config)
            check_tokens(vllm_config.model_config)
        return vllm_config

    return wrapper


def asks_for_us(engine_args: Any) -> bool:
    """Whether it is to have our worker or scheduler."""
    from vllm_infogain.engine.identity import SCHEDULER, WORKER

    return engine_args.scheduler_cls == SCHEDULER or engine_args.worker_cls == WORKER


def _switch_on(engine_args: Any, model_config: Any) -> None:
    """Give the arguments that nobody gave our values; those that somebody gave are checked against them."""
    from vllm_infogain.compat import EngineArgs, init_logger
    from vllm_infogain.engine.arguments import check_arguments, defaults_of
    from vllm_infogain.engine_defaults import engine_args as ours
    from vllm_infogain.engine_defaults import join

    changed = {}
    given = {name for name, value in defaults_of(EngineArgs) if getattr(engine_args, name) != value}
    for name, value in ours().items():
        if isinstance(value, dict):
            changed[name] = join(value, getattr(engine_args, name), given)
        elif name not in given:
            changed[name] = value
    for name, value in changed.items():
        setattr(engine_args, name, value)
    init_logger("vllm.infogain").info(
        "%s is a masked diffusion model: decoding it with vllm-infogain, as --plugin infogain and "
        "LLM(model, **vllm_infogain.engine_args()) do, by %s",
        model_config.model,
        ", ".join(f"{name}={value!r}" for name, value in changed.items()),
    )
    check_arguments(engine_args, EngineArgs)
