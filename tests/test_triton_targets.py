"""The Triton kernels compiled for GPUs of three generations, on a machine without any."""

import numpy as np
import pytest
import torch
from triton_targets import compiling_for, counting_variants, spilled

from vllm_infogain.engine import pages_triton
from vllm_infogain.request.params import MAX_CANDIDATES, DecodingParams
from vllm_infogain.sampling import read_logits as reading
from vllm_infogain.sampling import rows, rows_triton, slices
from vllm_infogain.sampling.metadata import SamplingMetadata
from vllm_infogain.sampling.rehearsal import rehearse


@pytest.fixture(autouse=True)
def compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in (rows_triton._row_statistics, rows_triton._draw_tokens, pages_triton._copy_pages):
        kernel.device_caches.clear()


def inputs(count: int, vocab: int = 4096) -> tuple[torch.Tensor, ...]:
    """Logits, temperatures, keys and offsets."""
    index = torch.zeros(count, dtype=torch.int64)
    return torch.zeros(count, vocab), torch.ones(count), index, index.clone()


# A100, H100, B200; the most draws, which take long to compile, for one of them.
@pytest.mark.parametrize(("capability", "widths"), [(80, (1, 16)), (90, (1, 16, MAX_CANDIDATES)), (100, (1, 16))])
def test_the_kernels_compile_and_keep_all_they_have_in_registers(capability, widths):
    logits, *request = inputs(16)
    with compiling_for(capability) as launched:
        rows_triton.row_statistics(logits)
        for draws in widths:
            rows_triton.draw_tokens(logits, *request, draws)
        pages_triton.copy_pages(torch.zeros(2, dtype=torch.int64), 4096, 4096, torch.zeros(2, 3, dtype=torch.int64))
    assert [name for name, _ in launched] == ["_row_statistics", *["_draw_tokens"] * len(widths), "_copy_pages"]
    for _, compiled in launched[:-1]:
        assert "ld.global.v4" in compiled.asm["ptx"], "four logits at a time"
    assert not any(spilled(compiled) for _, compiled in launched)


def test_a_kernel_that_has_too_much_for_its_registers_is_noticed(monkeypatch):
    monkeypatch.setattr(rows_triton, "WIDE", 2 * MAX_CANDIDATES)  # four warps for any number of draws
    with compiling_for(90) as launched:
        rows_triton.draw_tokens(*inputs(16), MAX_CANDIDATES)
    assert spilled(launched[0][1]) > 0


# Whole words; rows that end in padding, of which copies are without it; no whole words.
@pytest.mark.parametrize(("columns", "vocab", "strides"), [(512, 512, 1), (512, 500, 2), (509, 509, 1)])
def test_after_the_rehearsal_no_request_compiles_a_kernel(monkeypatch, columns, vocab, strides):
    # Launches are counted; what the kernels would have told is found by torch.
    monkeypatch.setattr(slices, "SLICE", 4 * columns)

    def twice(kernel, function):
        return lambda *asked: (kernel(*asked), function(*asked))[1]

    monkeypatch.setattr(reading, "row_statistics", twice(rows_triton.row_statistics, rows.row_statistics))
    monkeypatch.setattr(reading, "draw_tokens", twice(rows_triton.draw_tokens, rows.draw_tokens))
    with counting_variants(90) as variants:
        rehearse(torch.zeros(33, columns), 0, vocab, num_candidates=12, logprobs=5)
        rehearsed = set(variants)
        for count in (1, 2, 15, 16, 17):
            for draws in (1, 5, 8, 9, 16):
                for top_p in (1.0, 0.5):
                    params = DecodingParams(num_candidates=draws, temperature=0.7, top_p=top_p)
                    greedy = DecodingParams(sampler="entropy", temperature=0.0)
                    asked = [asking(params, count), asking(greedy, 3), asking(params, 2)]
                    reading.read(torch.zeros(count + 5, columns), asked, 0, vocab)
                    reading.read(torch.zeros(count, columns), asked[:1], 0, vocab)
    assert variants == rehearsed
    assert len(rehearsed) == 1 + 3 * strides, "statistics; 1, 8 and 16 draws"


def asking(params: DecodingParams, masked: int) -> SamplingMetadata:
    offsets = np.arange(masked)[None]
    return SamplingMetadata(params, offsets, np.array([7]), np.zeros_like(offsets))
