"""The job on Ray Data: read staged rows, decode them on replicas of the engine, write parts, remember what is done."""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from math import ceil
from typing import Any, get_type_hints

import msgspec
import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from vllm_infogain.batch.folder import Folder, output_row
from vllm_infogain.batch.parts import Parts
from vllm_infogain.batch.rows import METADATA, Request, row_request
from vllm_infogain.request.fields import ParameterError

ERROR = "__inference_error__"  # Ray's name: a row that has it passes by the engine
DATA = "__data"  # Ray's name of the column that all of a row lies in between its stages
IN_FLIGHT = 512  # rows per replica: enough for vLLM's batch to be full while others are read and written


@dataclass(frozen=True)
class Job:
    model: str
    replicas: int
    file_format: str
    rows: int
    rows_per_block: int
    seed: int = 0
    engine_args: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


class AsIs:
    """Hangs on every row. Arrow has no type for it, so Ray keeps rows as Python objects: a table of them would fill up
    each row with the others' columns, and fail on values of two types."""


@contextmanager
def session(address: str | None, cpus: int, *, verbose: bool) -> Iterator[None]:
    """A cluster to run on: the one at the address, or a new one of this process, which ends with it.

    Args:
        cpus: that the new one believes in at least; replicas and the tasks around them each hold one.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":
        options = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
    level = logging.INFO if verbose else logging.ERROR
    ray.init(address, log_to_driver=verbose, logging_level=level, **options)
    logging.getLogger("ray.data").setLevel(level)
    ray.data.DataContext.get_current().enable_progress_bars = verbose or sys.stderr.isatty()
    try:
        yield
    finally:
        ray.shutdown()


def run(job: Job, folder: Folder) -> None:
    """Decode all rows that are not done yet. Needs a session."""
    context = ray.data.DataContext.get_current()
    # Done rows are kept in mind for good: the command given again must not start over.
    context.checkpoint_config = ray.data.checkpoint.CheckpointConfig(
        id_column="id", checkpoint_path=str(folder.done), delete_checkpoint_on_success=False
    )
    context.use_datasource_v2 = False  # it packs small files into one block, which one replica would take whole
    context.wait_for_min_actors_s = 3600  # else the replica that is up first takes all
    context.enable_fallback_to_arrow_object_ext_type = True  # see AsIs; said, it warns no one
    rows = ray.data.read_parquet(str(folder.rows), override_num_blocks=ceil(job.rows / job.rows_per_block))
    processor = build_processor(_config(job), preprocess=partial(prepared, job=job))
    processor.postprocess = None  # it hands on rows with an error in another form than the others
    processor(rows).map(finished).write_datasink(Parts(str(folder.path), job.file_format))


def _config(job: Job) -> vLLMEngineProcessorConfig:
    # So many blocks at once that every replica gets its share of them.
    batches = max(1, min(ceil(IN_FLIGHT / job.rows_per_block), job.rows // job.rows_per_block // job.replicas))
    on_gpus = ray.cluster_resources().get("GPU", 0) > 0
    return vLLMEngineProcessorConfig(
        model_source=job.model,
        engine_kwargs={"disable_log_stats": True, **job.engine_args},
        concurrency=(job.replicas, job.replicas),
        batch_size=job.rows_per_block,
        max_concurrent_batches=batches,
        max_tasks_in_flight_per_actor=batches,
        placement_group_config=None if on_gpus else {"bundle_per_worker": {"CPU": 1}},
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,  # a file may mix chats and texts, and the engine tokenizes
        tokenize_stage=False,
        detokenize_stage=False,
    )


def prepared(staged: Mapping[str, Any], *, job: Job) -> dict[str, Any]:
    """A staged row as the engine's stage takes it, or with its error."""
    row = json.loads(staged["row"])
    known = {"identifier": row["id"], METADATA: row["columns"].get(METADATA), "kept": AsIs()}
    try:
        if row["error"]:
            raise ValueError(row["error"])
        request = row_request(
            row["columns"], staged["id"], defaults=job.defaults, seed=job.seed, fields=_sampling_types()
        )
        _check_types(request.sampling_params)
        return known | {ERROR: "", "sampling_params": request.sampling_params, **_prompt(request, job)}
    except Exception as error:  # templates, too, refuse as they like
        name = "" if isinstance(error, ParameterError) else f"{type(error).__name__}: "
        return known | {ERROR: f"{name}{error}"}


@cache
def _sampling_types() -> dict[str, Any]:
    """Of vLLM's SamplingParams, by name."""
    from vllm_infogain.compat import SamplingParams

    types = get_type_hints(SamplingParams)
    return {name: types[name] for name in SamplingParams.__struct_fields__ if not name.startswith("_")}


def _check_types(sampling: Mapping[str, Any]) -> None:
    """SamplingParams checks no type of its arguments: a comparison inside would fail, and name none of them.

    Raises:
        ParameterError: naming the parameter, its value and the type that it has.
    """
    for name, value in sampling.items():
        try:
            msgspec.convert(value, _sampling_types()[name], strict=False)
        except msgspec.ValidationError as error:
            raise ParameterError(name, value, str(error)) from None


def _prompt(request: Request, job: Job) -> dict[str, Any]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt[0], int):
        return {"tokenized_prompt": prompt}
    answers = prompt[-1]["role"] == "assistant"  # which is to be completed
    tokenizer = _tokenizer(
        job.engine_args.get("tokenizer") or job.model, job.engine_args.get("trust_remote_code", False)
    )
    text = tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=not answers, continue_final_message=answers
    )
    return {"prompt": text}


@cache
def _tokenizer(name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def finished(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it is written."""
    data = row[DATA]
    output = output_row(data["identifier"], data, data[METADATA], data[ERROR] or None)
    return {"id": data["id"], "output": json.dumps(output)}
