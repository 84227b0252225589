"""The Triton kernels compiled for GPUs of three generations, on a machine without any."""

import pytest
import torch
from triton_targets import compiling_for, spilled

from vllm_infogain.params import MAX_CANDIDATES
from vllm_infogain.sampling import rows_triton

CAPABILITIES = [80, 90, 100]  # A100, H100, B200


@pytest.fixture(autouse=True)
def compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in (rows_triton._row_statistics, rows_triton._draw_tokens):
        kernel.device_caches.clear()


def inputs(count: int, vocab: int = 4096) -> tuple[torch.Tensor, ...]:
    """Logits, temperatures, keys and offsets."""
    index = torch.zeros(count, dtype=torch.int64)
    return torch.zeros(count, vocab), torch.ones(count), index, index.clone()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_both_kernels_compile_and_keep_all_they_have_in_registers(capability):
    logits, *request = inputs(16)
    with compiling_for(capability) as launched:
        rows_triton.row_statistics(logits)
        for draws in (1, 16, MAX_CANDIDATES):
            rows_triton.draw_tokens(logits, *request, draws)
    assert [name for name, _ in launched] == ["_row_statistics", *["_draw_tokens"] * 3]
    for _, compiled in launched:
        assert "ld.global.v4" in compiled.asm["ptx"], "four logits at a time"
    assert [spilled(compiled) for _, compiled in launched] == [0, 0, 0, 0]


def test_a_kernel_that_has_too_much_for_its_registers_is_noticed(monkeypatch):
    monkeypatch.setattr(rows_triton, "WIDE", 2 * MAX_CANDIDATES)  # four warps for any number of draws
    with compiling_for(90) as launched:
        rows_triton.draw_tokens(*inputs(16), MAX_CANDIDATES)
    assert spilled(launched[0][1]) > 0
