"""Our metrics beside vLLM's own.

Why: the entry-point group `vllm.stat_logger_plugins` takes a logger, but for every engine of the environment: merely
    installed, it would switch statistics on for engines that are not ours and were started with `--disable-log-stats`.
    Nor is it asked for by `LLM`, or when an engine is scaled, where vLLM's own loggers would fail on our figures.
How: wrap `StatLoggerManager.__init__`, which makes the loggers wherever statistics are kept, and nowhere else. Ours
    comes first, because it takes our figures out of the statistics before vLLM's loggers see them; it is made after
    them, because vLLM's logger drops what another engine of this process left in the registry.
Upstream: none.
Remove when: a stat logger plugin can decline an engine, and `LLM` loads them too.
"""

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain.compat import StatLoggerManager

    wrap_once(StatLoggerManager, "__init__", _with_ours, lambda manager, vllm_config, *_, **__: vllm_config)


def _with_ours(init):
    def wrapper(self, vllm_config, *args, **kwargs):
        from vllm_infogain.compat import PrometheusStatLogger
        from vllm_infogain.engine.metrics import InfoGainStatLogger

        init(self, vllm_config, *args, **kwargs)
        theirs = next(logger for logger in self.stat_loggers if isinstance(logger, PrometheusStatLogger))
        self.stat_loggers.insert(0, InfoGainStatLogger(vllm_config, self.engine_indexes, theirs))

    return wrapper
