"""vLLM's piecewise graphs without a GPU: its own split of the model, wrappers and dispatcher, over graphs of ours.

A graph here is a tape of operations: capturing runs and records them, replaying runs them again on the same tensors and
puts the results where they were put first. So a replay reads and writes fixed places, as on a GPU, and whoever forgets
to copy an input there gets the answer to an earlier one.

    python tests/graph_twin.py FAMILY[:FAULT] ...

starts an engine for each, in turn, and prints what came of it, a JSON object a line. FAULT breaks one thing on purpose.
It patches torch and vLLM for the whole process.
"""

import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

SIZES = [8, 32, 64, 256]
GRAPH_BYTES = 1 << 20  # that a captured graph is said to take
FREE_BYTES = 1 << 40


class Tape(TorchDispatchMode):
    """Records what is computed under it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result


class TapeGraph:
    """In place of `torch.cuda.CUDAGraph`."""

    captured = 0
    replayed = 0

    def __init__(self) -> None:
        self.tape = Tape()

    def replay(self) -> None:
        TapeGraph.replayed += 1
        for function, args, kwargs, result in self.tape.operations:
            again = function(*args, **kwargs)
            for place, value in zip(pytree.tree_leaves(result), pytree.tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


@contextlib.contextmanager
def recording(graph: TapeGraph, pool: Any = None, stream: Any = None) -> Iterator[None]:
    """In place of `torch.cuda.graph`."""
    TapeGraph.captured += 1
    with graph.tape:
        yield


def patch_vllm() -> None:
    """The CPU platform has graphs now, as CUDA's does, and engines capture them as the CUDA worker does."""
    from vllm.compilation import cuda_graph
    from vllm.config import CompilationMode, CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.worker import workspace

    from vllm_infogain.engine import graphs
    from vllm_infogain.engine.model_host import ModelHost

    torch.cuda.CUDAGraph, torch.cuda.graph = TapeGraph, recording
    cuda_graph.current_stream = lambda: None
    cuda_graph.weak_ref_tensors = lambda tensors: tensors
    cuda_graph.capture_pool = lambda pool, config: contextlib.nullcontext(pool)
    graphs.graph_capture = lambda device: contextlib.nullcontext()

    platform = type(current_platform)
    platform.support_static_graph_mode = classmethod(lambda cls: True)
    platform.get_static_graph_wrapper_cls = classmethod(lambda cls: "vllm.compilation.cuda_graph.CUDAGraphWrapper")
    platform.get_global_graph_pool = lambda self: "the pool of all graphs"
    platform.graph_pool_handle = classmethod(lambda cls: "a pool of its own")
    check_and_update_config = platform.check_and_update_config

    def keep_graphs(cls, config):
        check_and_update_config(config)
        compilation = config.compilation_config
        compilation.mode, compilation.backend = CompilationMode.VLLM_COMPILE, "eager"
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
        compilation.cudagraph_capture_sizes, compilation.max_cudagraph_capture_size = SIZES, SIZES[-1]

    platform.check_and_update_config = classmethod(keep_graphs)
    initialize_kv_cache = ModelHost.initialize_kv_cache

    def then_capture(self, *args, **kwargs):
        # Here and not at once: vLLM's CPU worker puts its own in place when it is imported.
        torch.accelerator.get_memory_info = lambda *_: (FREE_BYTES - GRAPH_BYTES * TapeGraph.captured, FREE_BYTES)
        workspace.reset_workspace_manager()
        workspace.init_workspace_manager(self.device)
        self.estimated = self.profile_cudagraph_memory()
        self.thrown_away, TapeGraph.captured = TapeGraph.captured, 0
        initialize_kv_cache(self, *args, **kwargs)
        self.taken = self.capture_model()

    ModelHost.initialize_kv_cache = then_capture


# Faults, each of which a GPU would answer wrongly by.


def one_tensor_twice() -> Any:
    """The model is traced with one tensor as its tokens and its positions."""
    from vllm_infogain.compat import set_forward_context
    from vllm_infogain.engine.model_host import ModelHost

    @torch.inference_mode()
    def dummy_run(self, rows, **_unused):
        ids = torch.zeros(rows, dtype=torch.int64)
        with set_forward_context(None, self.vllm_config, num_tokens=rows):
            return self.model(input_ids=ids, positions=ids)

    return ModelHost, "_dummy_run", dummy_run


def forgotten_copy(name: str) -> Any:
    """A graph's input is copied where no graph reads it."""
    from vllm_infogain.engine.graphs import PiecewiseGraphs

    capture = PiecewiseGraphs.capture

    def then_move(self):
        taken = capture(self)
        setattr(self, name, getattr(self, name).clone())
        return taken

    return PiecewiseGraphs, "capture", then_move


FAULTS = {
    "one_tensor_twice": one_tensor_twice,
    **{f"forgotten_{name}": functools.partial(forgotten_copy, name) for name in ("input_ids", "positions")},
}


@contextlib.contextmanager
def broken(fault: str) -> Iterator[None]:
    if not fault:
        yield
        return
    owner, name, wrong = FAULTS[fault]()
    right = getattr(owner, name)
    setattr(owner, name, wrong)
    try:
        yield
    finally:
        setattr(owner, name, right)


def run(family: str, fault: str) -> dict[str, Any]:
    """Whether an engine with graphs answers as the oracle does, and what it captured and replayed."""
    from engines import assert_matches_oracle, running
    from jobs import BLOCK_CAUSAL, CACHED, GUIDED
    from serve_family import FAMILIES
    from vllm.v1.worker.workspace import current_workspace_manager

    exact = [job for job in CACHED if "cache" not in job.knobs]
    both_ways = exact if family == "llada_moe" else CACHED[:5] if fault else [*CACHED[:5], *GUIDED[:3]]
    jobs = BLOCK_CAUSAL[:4] if family.startswith(("sdar", "llada2")) else both_ways
    path = Path(tempfile.mkdtemp())
    model = FAMILIES[family](path)
    TapeGraph.captured = TapeGraph.replayed = 0
    with broken(fault), running(path, None if family == "llada" else model, enforce_eager=False) as engine:
        differs = None
        try:
            for job, output in zip(jobs, engine.run(jobs), strict=True):
                assert_matches_oracle(engine, job, output)
        except (AssertionError, IndexError) as error:
            differs = repr(error)[:200]
        runner = engine.runner
        return {
            "name": f"{family}:{fault}" if fault else family,
            "differs": differs,
            "captured": TapeGraph.captured,
            "replayed": TapeGraph.replayed,
            "thrown_away": runner.thrown_away,
            "estimated": runner.estimated,
            "taken": runner.taken,
            "is_locked": current_workspace_manager().is_locked(),
        }


def main() -> None:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_DISABLE_COMPILE_CACHE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CACHE_ROOT": tempfile.mkdtemp(), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    patch_vllm()
    for argument in sys.argv[1:]:
        family, _, fault = argument.partition(":")
        print("RESULT", json.dumps(run(family, fault)), flush=True)


if __name__ == "__main__":
    main()
