"""An OpenAI-compatible application for Ray Serve, with a model of ours on every replica: `build`.

    serve run vllm_infogain.ray_serve:build model=GSAI-ML/LLaDA-8B-Instruct replicas=2

Read it as an example, too: what it does beyond naming the model is to find out where there is no GPU. The page about it
is RAY.md, beside this file.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Json, PositiveInt
from ray.serve import Application
from ray.serve.llm import LLMConfig, build_openai_app

from vllm_infogain.compat import current_platform
from vllm_infogain.engine_defaults import model_args


class Settings(BaseModel):
    """What `serve run` takes as `name=value`, and a Serve config file under `args`; an unknown name is refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None  # a repository or folder; none: the model that ships in the package
    name: str | None = None  # under which clients ask for it; none: the model's
    replicas: PositiveInt = 1  # at least so many
    max_replicas: PositiveInt | None = None  # at most so many, by load; none: always `replicas`
    requests_per_replica: PositiveInt = 32  # at once, on the average, before another replica is started
    engine: dict[str, Any] | Json[dict[str, Any]] = {}  # vLLM's engine arguments, such as {"tensor_parallel_size": 2}
    cpus: PositiveInt = 1  # of each replica, where vLLM is built for CPUs


def build(settings: Settings) -> Application:
    """The application: Serve's OpenAI routes before replicas that are vLLM engines of ours."""
    return build_openai_app({"llm_configs": [llm_config(settings)]})


def llm_config(settings: Settings) -> LLMConfig:
    """The model's part of it, to change or to serve beside others."""
    most = settings.max_replicas or settings.replicas
    deployment: dict[str, Any] = {
        "autoscaling_config": {
            "min_replicas": settings.replicas,
            "max_replicas": most,
            "target_ongoing_requests": settings.requests_per_replica,
        },
        # Seconds; of itself 10. It takes three to tell that an engine is dead, which fails all it gets, and at once.
        "health_check_period_s": 2,
    }
    named = model_args(settings.model)
    source, (served_name,) = named.pop("model"), named.pop("served_model_name", [settings.model])
    engine, name = named | settings.engine, settings.name or served_name
    hardware: dict[str, Any] = {}
    if current_platform.is_cpu():
        # The bundle holds the whole replica. Engines on one node would all be bound to its first cores.
        deployment["ray_actor_options"] = {"num_cpus": 0}
        hardware = {
            "accelerator_config": {"kind": "cpu"},
            "placement_group_config": {"bundles": [{"CPU": settings.cpus}]},
            "runtime_env": {"env_vars": {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}},
        }
    return LLMConfig(
        model_loading_config={"model_id": name, "model_source": source},
        engine_kwargs=engine,
        deployment_config=deployment,
        **hardware,
    )
