"""`vllm run-batch` refuses a file that it cannot run before it loads a model, and says which line it is.

Why: vLLM reads the file once the engine stands. It runs chats, and has no completions: a line of these, like every
    line that it cannot parse, then ends the whole job by a traceback that names neither line nor remedy.
How: wrap `main` of the batch runner, to parse each line as it will. Only for models of ours: to tell, the model's
    configuration is read, and only if there is something to refuse.
Upstream: none.
Remove when: vLLM answers such a line with an error of its own and runs the others, as it does with refused requests.
"""

import asyncio
import json
import urllib.request
from pathlib import Path

from vllm_infogain.patches import wrap_once

CHAT = "/v1/chat/completions"


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.run_batch, "main", _with_checked_file)


def _with_checked_file(main):
    async def wrapper(args):
        refused = first_refusal(await asyncio.to_thread(text_of, args.input_file))
        if refused and _is_ours(args):
            raise SystemExit(f"vllm run-batch: {args.input_file}, {refused}")
        await main(args)

    return wrapper


def text_of(path_or_url: str) -> str:
    """A batch file, read as vLLM will read it again; nothing of what can be read once only, such as a pipe."""
    if path_or_url.startswith(("http://", "https://")):
        with urllib.request.urlopen(path_or_url) as response:
            return response.read().decode()
    path = Path(path_or_url)
    return path.read_text("utf-8") if path.is_file() else ""


def first_refusal(text: str) -> str | None:
    """Of a batch file: its first line that would end the job, or that no model of ours answers, and the remedy."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and (refused := _refusal(line.strip())):
            return f"line {number}: {refused}"
    return None


def _refusal(line: str) -> str | None:
    from pydantic import ValidationError

    from vllm_infogain.compat import run_batch

    try:
        url = json.loads(line)["url"]
    except (ValueError, TypeError, KeyError):
        return f"give a JSON object with custom_id, method, url and body, not {line[:60]!r}"
    if url != CHAT:
        return f"url={url!r}: only {CHAT} is run here; run prompts by python -m vllm_infogain.batch"
    try:
        run_batch.BatchRequestInput.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except Exception as error:  # whatever it is, it would end the job
        return str(error)
    return None


def _is_ours(args) -> bool:
    from vllm_infogain.patches.engine_config import asks_for_us

    from vllm_infogain.compat import EngineArgs

    engine_args = EngineArgs.from_cli_args(args)
    engine_args.create_model_config()  # makes an engine for a model of ours ours
    return asks_for_us(engine_args)
