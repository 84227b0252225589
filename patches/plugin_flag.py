"""The flag `--plugin infogain`: makes an engine ours, and serves the embedded model if no other is named.

Why: vLLM has flags for the worker and the scheduler class, but none that sets a consistent group of them.
How: wrap `EngineArgs.add_cli_args`. General plugins are loaded right before it builds its parser. The flag's action
    sets the other flags' values where they are still at their defaults, so that explicit ones win, wherever they stand.
Upstream: none.
Remove when: vLLM gains presets of engine arguments.
"""

import argparse
from typing import Any

from vllm_infogain.patches import wrap_once


class UsePlugin(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        from vllm_infogain.plugin import embedded_args, engine_args

        setattr(namespace, self.dest, values)
        presets = engine_args()
        named = getattr(namespace, "model_tag", None) is not None
        if not named and getattr(namespace, "model", None) == parser.get_default("model"):
            presets |= embedded_args()
        for name, value in presets.items():
            _preset(parser, namespace, name, value)


def _preset(parser: argparse.ArgumentParser, namespace: argparse.Namespace, name: str, value: Any) -> None:
    if getattr(namespace, name) == parser.get_default(name):
        setattr(namespace, name, value)


def apply() -> None:
    from vllm_infogain.engine.compat import EngineArgs

    def with_flag(add_cli_args):
        def wrapper(parser):
            parser = add_cli_args(parser)
            if "--plugin" not in parser._option_string_actions:
                parser.add_argument(
                    "--plugin",
                    choices=["infogain"],
                    action=UsePlugin,
                    help="Decode masked diffusion models with vllm-infogain; without a model, serve infogain-tiny.",
                )
            return parser

        return wrapper

    wrap_once(EngineArgs, "add_cli_args", with_flag)
