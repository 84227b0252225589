"""Tensors that say `cuda:0` and hold their numbers on the CPU: to see without a GPU what CUDA would refuse or wait for.

An operation on tensors of both devices raises, as on a GPU. What makes the host wait is counted: values that are read
back, copies to the device from memory that is not pinned, indices whose number only the device knows.
"""

import contextlib
import ctypes
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

DEVICE = torch.device("cuda", 0)
WAITS = frozenset({
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave",
})  # fmt: skip
INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})
READ_BACK = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__"})
FROM_HOST = frozenset({"tensor", "as_tensor", "asarray"})


WAITED: Counter[str] = Counter()  # what the host waited for, and where


def count_wait(what: str) -> None:
    frames = [frame for frame in traceback.extract_stack() if "/vllm_infogain/" in frame.filename]
    WAITED[f"{what}, {frames[-1].filename.split('/vllm_infogain/')[-1]}" if frames else what] += 1


class Pretended(torch.Tensor):
    """A tensor "on the GPU"; `held` has its numbers."""

    held: torch.Tensor
    device = property(lambda _: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        assert not isinstance(held, cls)
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device="cpu"
        )
        tensor.held = held
        return tensor

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __repr__(self, **_) -> str:
        return f"Pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = operation._schema.name
        leaves = pytree.tree_leaves((args, kwargs))
        for leaf in leaves:
            if not isinstance(leaf, torch.Tensor) or isinstance(leaf, cls):
                continue
            if name in INDEXING and any(leaf is index for index in args[1]):
                count_wait("an index from the host")
            elif name == "aten::copy_":
                count_wait("a copy from the host")
            elif leaf.dim():  # a number in a tensor may join any device
                raise RuntimeError(f"{name}: tensors of cuda:0 and of the CPU")
        if name in WAITS:
            count_wait(name)
        if name in INDEXING and any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]):
            count_wait("a boolean index")
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        owner = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, cls)}
        result = operation(*pytree.tree_map(held, args), **pytree.tree_map(held, kwargs))
        return pytree.tree_map(lambda one: owner[id(one)] if id(one) in owner else pretend(one), result)


def held(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


def pretend(value: Any) -> Any:
    return Pretended(value) if isinstance(value, torch.Tensor) and not isinstance(value, Pretended) else value


def on_device(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """Its numbers, for code that a GPU would run."""
    assert isinstance(tensor, Pretended), f"{what} is on the CPU"
    return tensor.held


def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.clone()
    copy.is_pretended_pinned = True  # type: ignore[attr-defined]
    return copy


class PretendedCuda(TorchFunctionMode):
    """While it is entered, tensors are made on and moved between the two devices as with a real GPU."""

    def __enter__(self):
        # On the method itself: vLLM's CPU worker replaces it by one that hands the tensor back.
        self.pinning = mock.patch.object(torch.Tensor, "pin_memory", pin_memory)
        self.pinning.start()
        return super().__enter__()

    def __exit__(self, *raised):
        self.pinning.stop()
        return super().__exit__(*raised)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Pretended):
            if name in READ_BACK:
                count_wait(name)
                return function(first.held, *args[1:], **kwargs)
            if name == "numpy":
                raise TypeError("a tensor of cuda:0 has no numpy array")
            if name == "cpu" or (name == "to" and self._target(args, kwargs) == "cpu"):
                count_wait("a copy to the host")
                return first.held.clone()
        elif isinstance(first, torch.Tensor):
            if name == "cuda" or (name == "to" and self._target(args, kwargs) == "cuda"):
                if not (kwargs.get("non_blocking") and hasattr(first, "is_pretended_pinned")):
                    count_wait("a copy from the host")
                return Pretended(first.clone())
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            if name in FROM_HOST:
                count_wait("a copy from the host")
            made = function(*pytree.tree_map(held, args), **pytree.tree_map(held, kwargs | {"device": "cpu"}))
            return pretend(made)
        return function(*args, **kwargs)

    @staticmethod
    def _target(args, kwargs) -> str | None:
        device = kwargs.get("device") or next((one for one in args[1:] if isinstance(one, torch.device | str)), None)
        return None if device is None else torch.device(device).type


def pretend_kernels() -> None:
    """The Triton kernels' places, taken by others on the numbers held."""
    from vllm_infogain.engine import pages_triton
    from vllm_infogain.sampling import rows, rows_triton

    def row_statistics(logits):
        found = rows.row_statistics(on_device(logits, "logits"))
        return rows.RowStatistics(**{name: pretend(value) for name, value in vars(found).items()})

    def draw_tokens(logits, temperatures, keys, offsets, draws):
        arrays = [on_device(array, "a draw's input") for array in (logits, temperatures, keys, offsets)]
        return pretend(rows.draw_tokens(*arrays, draws))

    def copy_pages(starts, step, size, pages):
        source, target = on_device(pages, "copied pages")
        for start in on_device(starts, "the caches").tolist():
            for one, other in zip(source.tolist(), target.tolist(), strict=True):
                ctypes.memmove(start + step * other, start + step * one, size)

    rows_triton.row_statistics, rows_triton.draw_tokens = row_statistics, draw_tokens
    pages_triton.copy_pages = copy_pages


@contextlib.contextmanager
def pretended_model(runner: Any) -> Iterator[list[int]]:
    """The runner's model and KV caches are on the device, and the forward asks for its input there.

    Yields:
        The rows of every turn of logits that is read meanwhile.
    """
    from vllm_infogain.compat import build_attn_metadata
    from vllm_infogain.engine import model_host
    from vllm_infogain.engine.pages import KVPages

    pretend_kernels()
    turns: list[int] = []
    run, logits_of, read, execute = runner.graphs.run, runner.model.compute_logits, runner._read, runner.execute_model

    def run_on_device(*tensors):
        *inputs, metadata = tensors
        return pretend(run(*(on_device(one, "a forward's input") for one in inputs), metadata))

    def build(**kwargs):
        for name in ("query_start_loc_cpu", "seq_lens_cpu_upper_bound"):
            assert not isinstance(kwargs[name], Pretended), name
        for name in ("query_start_loc_gpu", "seq_lens", "slot_mappings"):
            kwargs[name] = on_device(kwargs[name], name)
        kwargs["block_tables"] = [on_device(table, "a page table") for table in kwargs["block_tables"]]
        assert {kwargs[name].dtype for name in ("query_start_loc_gpu", "seq_lens")} == {torch.int32}
        assert [table.dtype for table in kwargs["block_tables"]] == [torch.int32]
        assert kwargs["slot_mappings"].dtype == torch.int64
        return build_attn_metadata(**kwargs)

    def logits_on_device(hidden):
        return pretend(logits_of(on_device(hidden, "hidden states")).clone())

    def read_on_device(logits, questions):
        turns.append(len(logits))
        return read(logits, questions)

    def execute_on_device(*args):
        with PretendedCuda():
            return execute(*args)

    with PretendedCuda():
        pages = KVPages([pretend(cache) for cache in runner.kv_caches])
    with (
        mock.patch.object(model_host, "build_attn_metadata", build),
        mock.patch.object(runner.graphs, "run", run_on_device),
        mock.patch.object(runner.model, "compute_logits", logits_on_device),
        mock.patch.multiple(
            runner,
            device=DEVICE,
            pages=pages,
            _read=read_on_device,
            execute_model=execute_on_device,
        ),
    ):
        yield turns
