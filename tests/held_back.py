"""Loaded into an engine by `worker_extension_cls`: it takes some requests, then stands still until it may go on.

So what a test kills is certain to have finished something, and to hold something that it has not.
"""

import os
import time
from pathlib import Path

from vllm_infogain.engine.runner import InfoGainRunner

TAKES = 33  # requests
GO_ON = "VLLM_INFOGAIN_TEST_GO_ON"  # in the environment: the file that lets engines go on


class Extension:
    """Of the worker. There is nothing in it: what counts is that this module is loaded."""


taken: set[str] = set()
execute_model = InfoGainRunner.execute_model


def held_back(runner, plan, *arguments, **named):
    taken.update(new.req_id for new in plan.scheduled_new_reqs)
    while len(taken) > TAKES and not Path(os.environ[GO_ON]).exists():
        time.sleep(0.05)
    return execute_model(runner, plan, *arguments, **named)


if GO_ON in os.environ:  # in an engine, that is, and not in the test that imports the names
    InfoGainRunner.execute_model = held_back
