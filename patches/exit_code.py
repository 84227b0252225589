"""A server whose engine died exits with code 1.

Why: vLLM ends such a server itself, but with code 0: a supervisor that restarts what failed would leave it down.
How: wrap `terminate_if_errored`, in both modules that call it by name, to see that it ended the server, and
    `serve_http`, as the API server calls it: what that returns is awaited last, and raises SystemExit there. Engines
    not ours are left alone.
    Still needed: without it a server of 0.32 and one of 0.33 whose engine core was killed end with code 0.
Upstream: to be offered. "When the engine dies, `watchdog_loop` or the handler of `EngineDeadError` sets
    `server.should_exit`, uvicorn's `serve` returns as after SIGTERM, and `vllm serve` ends with code 0: systemd's
    `Restart=on-failure` and Kubernetes' `restartPolicy: OnFailure` leave it down. Where `terminate_if_errored` ended
    the server, `serve_http` should raise SystemExit(1) after its clean-up."
Remove when: vLLM exits non-zero by itself.
"""

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain import compat

    for caller in (compat.launcher, compat.vllm_error):
        wrap_once(caller, "terminate_if_errored", _remember)
    wrap_once(compat.api_server_entry, "serve_http", _fail_with_the_engine, _config_of_app)


def _config_of_app(app, *_, **__):
    engine = app.state.engine_client  # None of a server that only renders
    return None if engine is None else engine.vllm_config


def _remember(terminate_if_errored):
    def wrapper(server, engine):
        was_ending = server.should_exit
        terminate_if_errored(server, engine)
        if server.should_exit and not was_ending:
            server.engine_died = True

    return wrapper


def _fail_with_the_engine(serve_http):
    async def wrapper(app, *args, **kwargs):
        closing = await serve_http(app, *args, **kwargs)
        if not hasattr(app.state.server, "engine_died"):
            return closing

        async def close_and_fail():
            await closing
            raise SystemExit(1)

        return close_and_fail()

    return wrapper
