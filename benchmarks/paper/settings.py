"""The paper's decoding settings, as lm-eval's `--gen_kwargs`.

    lm_eval ... --gen_kwargs "$(python -m benchmarks.paper.settings countdown tokens_per_step=2 sampler=entropy)"

Anything may be overridden: our parameters, and fields of the request such as `temperature`, `max_gen_toks`, `seed`.
Length, temperature and stop strings come from the tasks' own files unless they are given here.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from vllm_infogain.request.params import LOOKAHEAD_SAMPLERS, PARSERS, READERS

LOOKAHEAD = {"num_candidates": 8, "position_temperature": 0.1, "bypass_threshold": 0.8}
WHOLE_CANVAS = 0
BLOCKS = {
    "gsm8k": 16, "math500": 16, "humaneval": 16, "mbpp": 16, "writing": 16,
    "sudoku": WHOLE_CANVAS, "countdown": WHOLE_CANVAS,
}  # fmt: skip


def gen_kwargs(task: str, asked: Mapping[str, Any], offline: bool = False) -> dict[str, Any]:
    """For lm-eval's back ends of servers, or offline for its `vllm`, which name our parameters' place differently."""
    ours = {name: value for name, value in asked.items() if name in PARSERS}
    of_request = {name: value for name, value in asked.items() if name not in PARSERS}
    return of_request | {"extra_args" if offline else "vllm_xargs": decoding_knobs(task, ours)}


def decoding_knobs(task: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's decoding parameters with what is asked for over them."""
    sampler = asked.get("sampler", "info_gain")
    paper = {"sampler": sampler, "tokens_per_step": 1, "block_length": BLOCKS.get(task, WHOLE_CANVAS)}
    if sampler in LOOKAHEAD_SAMPLERS:
        paper |= LOOKAHEAD
    if asked.get("schedule", "fixed") != "fixed":
        del paper["tokens_per_step"]  # the schedule says how many
    return {name: value for name, value in paper.items() if sampler in READERS[name]} | dict(asked)


def setting(text: str) -> tuple[str, Any]:
    """`name=value`, the value as JSON if it is that, else as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=BLOCKS)
    parser.add_argument("settings", nargs="*", type=setting, metavar="NAME=VALUE")
    parser.add_argument("--offline", action="store_true", help="for lm-eval's `vllm` back end, not for a server")
    arguments = parser.parse_intermixed_args()  # settings may stand on either side of an option
    print(json.dumps(gen_kwargs(arguments.task, dict(arguments.settings), arguments.offline)))
