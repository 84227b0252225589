"""lm-eval's `vllm` back end on the local task, its questions as plain texts and as templated chats, on one engine.

Run in `tests/lm_eval_tasks` with the model's arguments as JSON; the last line printed is what was answered, as JSON.
"""

import json
import sys

from lm_eval import simple_evaluate
from lm_eval.models.vllm_causallms import VLLM
from lm_eval.tasks import TaskManager

if __name__ == "__main__":
    model = VLLM(**json.loads(sys.argv[1]))
    answers = []
    for as_chat in (False, True):
        results = simple_evaluate(
            model, tasks=["multiplication"], task_manager=TaskManager(include_path="."), apply_chat_template=as_chat,
            gen_kwargs={"extra_args": {"sampler": "info_gain"}},
        )  # fmt: skip
        samples = results["samples"]["multiplication"]
        answers.append([{name: sample[name] for name in ("doc_id", "resps", "exact_match")} for sample in samples])
    print(json.dumps(answers))
