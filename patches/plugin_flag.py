"""The flag `--plugin infogain`: makes an engine ours, and serves the embedded model if no other is named.

Why: vLLM has flags for the worker and the scheduler class, but none that sets a consistent group of them.
How: wrap `EngineArgs.add_cli_args`; general plugins are loaded right before it builds its parser. Once that parser has
    read a command line with the flag, the other settings take our values unless the command line gives them; groups
    of settings (`--compilation-config`) field by field.
Upstream: none.
Remove when: vLLM takes engine arguments from a plugin.
"""

import argparse
import sys
from collections.abc import Sequence

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain.compat import EngineArgs

    wrap_once(EngineArgs, "add_cli_args", _with_flag)


def _with_flag(add_cli_args):
    def wrapper(parser):
        parser = add_cli_args(parser)
        if "--plugin" not in parser._option_string_actions:
            parser.add_argument(
                "--plugin",
                choices=["infogain"],
                help="Decode masked diffusion models with vllm-infogain; without a model, serve infogain-tiny.",
            )
            # On the instance: this parser only, whether it reads a whole command line or that of a subcommand.
            parser.parse_known_args = _then_give_ours(parser, parser.parse_known_args)
        return parser

    return wrapper


def _then_give_ours(parser: argparse.ArgumentParser, parse_known_args):
    def wrapper(args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        namespace, rest = parse_known_args(args, namespace)
        if getattr(namespace, "plugin", None) == "infogain":
            _give_ours(parser, namespace, args)
        return namespace, rest

    return wrapper


def _give_ours(parser: argparse.ArgumentParser, namespace: argparse.Namespace, args: Sequence[str]) -> None:
    from vllm_infogain.compat import EngineArgs
    from vllm_infogain.engine.arguments import check_arguments
    from vllm_infogain.engine_defaults import engine_args, join, model_args
    from vllm_infogain.request.fields import ParameterError

    given = {action.dest for action in parser._actions if _is_given(parser, action.dest, args)}
    named = getattr(namespace, "model_tag", None) or (namespace.model if "model" in given else None)
    ours, of_model = engine_args(), model_args(named)
    if of_model["model"] != named:  # one that ships; vLLM lets a positional argument win
        ours |= of_model
        given.discard("model")
        namespace.model_tag = None
    for name, value in ours.items():
        if isinstance(value, dict):
            setattr(namespace, name, join(value, getattr(namespace, name, None), given))
        elif name not in given:
            setattr(namespace, name, value)
    try:
        check_arguments(namespace, EngineArgs)
    except ParameterError as error:
        parser.error(str(error))


def _is_given(parser: argparse.ArgumentParser, name: str, args: Sequence[str]) -> bool:
    """Whether the command line sets a parameter itself, perhaps to its default; argparse allows abbreviations."""
    options = {option for action in parser._actions if action.dest == name for option in action.option_strings}
    flags = {arg.split("=", 1)[0] for arg in args if arg.startswith("-")}
    return any(option == flag or (len(flag) > 3 and option.startswith(flag)) for option in options for flag in flags)
