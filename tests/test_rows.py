"""Statistics of rows and draws from them, in torch and in Triton, against the definition in float64.

Run as a script, this file checks the Triton kernels: on a GPU where there is one, else in Triton's interpreter, which
has to be chosen before Triton is imported; so the test of the kernels runs this file in a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from vllm_infogain.engine import pages_triton
from vllm_infogain.sampling import rows, rows_triton

NOWHERE = -torch.inf
VOCABULARIES = [1, 2, 40, 255, 256, 257, 512, 2000, 5003]  # around one chunk, whole chunks, a shorter last chunk


def normal(count: int, vocab: int, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    return (torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed)) * 3 + 20).to(device)


def request(count: int, temperature: float = 1.0, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """Temperatures, keys and offsets of rows that are positions 0, 1, ... of one request."""
    offsets = torch.arange(count, device=device)
    return torch.full((count,), temperature, device=device), torch.full_like(offsets, 0x123456789ABCDEF), offsets


def assert_statistics_are_those_of_the_definition(statistics: rows.RowStatistics, logits: torch.Tensor) -> None:
    logits = logits.cpu().double()
    probabilities = logits.softmax(-1)
    top = probabilities.topk(min(2, logits.shape[1])).values
    expected = {
        "entropy": torch.special.entr(probabilities).sum(-1),
        "top_probability": top[:, 0],
        "second_probability": top[:, 1] if top.shape[1] == 2 else torch.zeros(len(logits), dtype=torch.float64),
        "log_normalizer": logits.logsumexp(-1),
    }
    for name, values in expected.items():
        found = getattr(statistics, name).cpu()
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), values, atol=1e-5, rtol=1e-7)
    assert statistics.top_token.tolist() == logits.argmax(-1).tolist()


def hostile_rows(vocab: int, device: str = "cpu") -> torch.Tensor:
    """Peaked, flat, forbidden and equal columns, extremes; [9, vocab]."""
    logits = normal(9, vocab)
    logits[1] *= 10
    logits[2] = 7.0
    logits[3, 1:] = NOWHERE
    logits[4, : vocab // 2] = NOWHERE
    logits[5, vocab // 3] = logits[5, vocab - 1] = logits[5].max() + 1  # equals in different chunks
    logits[6, -2:] = logits[6].max() + 3  # equals in the last one
    logits[7, ::2] = -1e4
    logits[8] -= 1000
    return logits.to(device)


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Standard deviations by which chi-square exceeds its mean. Columns expected less than 8 times count as one."""
    expected = probabilities.double() * counts.sum()
    assert counts[expected == 0].sum() == 0
    often = expected >= 8
    observed, expected = (torch.cat([v[often].double(), v[~often].sum().double()[None]]) for v in (counts, expected))
    freedom = len(expected) - 1 - int(expected[-1] == 0)
    distance = ((observed - expected) ** 2 / expected.clamp_min(1e-9)).sum()
    return float((distance - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_statistics_are_those_of_the_definition(vocab):
    logits = hostile_rows(vocab)
    before = logits.clone()
    assert_statistics_are_those_of_the_definition(rows.row_statistics(logits), logits)
    assert torch.equal(logits, before)


def test_the_top_token_is_the_lowest_of_equals_and_its_equal_comes_second():
    logits = torch.zeros(3, 1000)
    logits[0, [990, 300, 700]] = 5.0  # in three chunks
    logits[1, [301, 300]] = 5.0  # in one
    logits[2, [999, 998]] = 5.0  # in the shorter last one
    statistics = rows.row_statistics(logits)
    assert statistics.top_token.tolist() == [300, 300, 998]
    assert torch.equal(statistics.top_probability, statistics.second_probability)


def test_a_forbidden_column_is_as_if_it_were_not_there():
    logits = normal(4, 600)
    without = rows.row_statistics(logits)
    forbidden = rows.row_statistics(torch.cat([logits, torch.full((4, 50), NOWHERE)], 1))
    for name in rows.RowStatistics.__dataclass_fields__:
        torch.testing.assert_close(getattr(forbidden, name), getattr(without, name), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("vocab", "count"), [(40, 64), (300, 64), (32_000, 20)])
def test_a_row_is_the_same_alone_and_in_any_batch(vocab, count):
    logits, (temperatures, keys, offsets) = normal(count, vocab), request(count, 0.7)
    together = rows.row_statistics(logits)
    drawn = rows.draw_tokens(logits, temperatures, keys, offsets, 3)
    for part in (slice(0, 1), slice(count - 1, count), slice(3, 10)):
        alone = rows.row_statistics(logits[part])
        for name in rows.RowStatistics.__dataclass_fields__:
            torch.testing.assert_close(getattr(alone, name), getattr(together, name)[part], atol=1e-6, rtol=1e-6)
        again = rows.draw_tokens(logits[part], temperatures[part], keys[part], offsets[part], 3)
        assert torch.equal(again, drawn[part])
    # Neither does the number of draws change the first of them.
    assert torch.equal(rows.draw_tokens(logits, temperatures, keys, offsets, 5)[:, :3], drawn)


def test_nothing_of_no_rows():
    logits = torch.empty(0, 1000)
    assert rows.row_statistics(logits).entropy.shape == (0,)
    assert rows.draw_tokens(logits, *request(0), 4).shape == (0, 4)


@pytest.mark.parametrize("vocab", [12, 2000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_distribution(vocab, temperature):
    logits = normal(1, vocab, seed=vocab)
    logits[0, vocab // 2] = NOWHERE
    drawn = rows.draw_tokens(logits.expand(2000, -1), *request(2000, temperature), 20)
    probabilities = (logits[0].double() / temperature).softmax(-1)
    assert abs(chi_square(drawn.flatten().bincount(minlength=vocab), probabilities)) < 4


def test_a_draw_falls_on_the_only_column_there_is():
    for vocab in VOCABULARIES:
        logits = torch.full((vocab, vocab), NOWHERE) if vocab <= 257 else torch.full((3, vocab), NOWHERE)
        columns = torch.linspace(0, vocab - 1, len(logits)).long()
        logits[torch.arange(len(logits)), columns] = -5.0
        drawn = rows.draw_tokens(logits, *request(len(logits), 0.5), 2)
        assert torch.equal(drawn, columns[:, None].expand(-1, 2))


def test_a_low_temperature_draws_the_top_token():
    logits = hostile_rows(2000)[[0, 1, 8]]
    drawn = rows.draw_tokens(logits, *request(3, 1e-4), 8)
    assert torch.equal(drawn, logits.argmax(-1, keepdim=True).expand(-1, 8))


@pytest.mark.parametrize("differing", ["draw", "offset", "key"])
def test_draws_that_differ_in_one_thing_are_independent(differing):
    """All pairs of two neighbouring draws over eight equal tokens occur equally often."""
    count = 6400
    logits = torch.zeros(count, 8)
    temperatures, keys, offsets = request(count)
    keys = keys + torch.arange(count) // 80
    offsets = offsets % 80
    first = rows.draw_tokens(logits, temperatures, keys, offsets, 2)
    if differing == "draw":
        first, second = first.unbind(1)
    else:
        moved = (keys + 1000, offsets) if differing == "key" else (keys, offsets + 80)
        first, second = first[:, 0], rows.draw_tokens(logits, temperatures, *moved, 1)[:, 0]
    assert abs(chi_square((first * 8 + second).bincount(minlength=64), torch.full((64,), 1 / 64))) < 4


def test_random_numbers_are_not_correlated_across_columns_draws_offsets_or_keys():
    offsets = torch.arange(6).repeat(4)
    keys = torch.arange(4).repeat_interleave(6)
    numbers = rows.uniform(rows.draw_states(keys, offsets, 4).unsqueeze(-1), torch.arange(4096)).flatten(0, 1)
    assert numbers.min() > 0
    assert numbers.max() < 1
    correlation = torch.corrcoef(torch.cat([numbers, numbers.roll(1, 1)])) - torch.eye(2 * len(numbers))
    assert correlation.abs().max() < 5.5 / 4096**0.5  # 18,000 pairs
    assert abs(numbers.mean() - 0.5) < 5 / (12 * numbers.numel()) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 5 / (180 * numbers.numel()) ** 0.5


def test_the_random_numbers_are_splitmix64():
    # The first numbers of seed 1234567, from https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    z = [int(value) % 2**64 for value in rows.mix(1234567 + torch.arange(1, 6) * rows.GOLDEN)]
    assert [value ^ (value >> 31) for value in z] == published


def test_the_triton_kernels_agree_with_torch():
    interpreter = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    child = subprocess.run([sys.executable, __file__], env=os.environ | interpreter, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stdout.split() == ["statistics", "draws", "noise", "pages"]


@triton.jit
def write_uniform(states, numbers, COUNT: tl.constexpr):  # noqa: N803
    column = tl.arange(0, COUNT)
    row = tl.program_id(0)
    tl.store(numbers + row * COUNT + column, rows_triton.uniform(tl.load(states + row), column))


def check_kernels(device: str) -> None:
    for vocab in VOCABULARIES:
        logits = hostile_rows(vocab)
        found, expected = rows_triton.row_statistics(logits.to(device)), rows.row_statistics(logits)
        assert_statistics_are_those_of_the_definition(found, logits)
        for name in rows.RowStatistics.__dataclass_fields__:
            values = getattr(expected, name)
            torch.testing.assert_close(getattr(found, name).cpu(), values, atol=2e-6, rtol=1e-6)
    print("statistics")
    for vocab in VOCABULARIES:
        logits = hostile_rows(vocab)
        asked = request(len(logits), 0.7)
        found = rows_triton.draw_tokens(logits.to(device), *(part.to(device) for part in asked), 5)
        assert torch.equal(found.cpu(), rows.draw_tokens(logits, *asked, 5))
    print("draws")
    states = rows.draw_states(torch.arange(3), torch.arange(3), 4).flatten()
    numbers = torch.empty(len(states), 1024, device=device)
    write_uniform[(len(states),)](states.to(device), numbers, 1024)
    assert torch.equal(numbers.cpu(), rows.uniform(states.unsqueeze(-1), torch.arange(1024)))
    print("noise")
    # Two layers in one allocation, pages of one between the other's; a page is no whole number of the kernel's steps.
    memory = torch.arange(2.0 * 7 * 2 * 3 * 5 * 100, device=device).view(7, 2, 2, 3, 500)
    caches, pages = list(memory.unbind(1)), torch.tensor([[2, 2, 5], [0, 6, 1]], device=device)
    expected = memory.clone()
    expected[[0, 6, 1]] = memory[[2, 2, 5]]
    one = caches[0]
    starts = torch.tensor([cache.data_ptr() for cache in caches], device=device)
    pages_triton.copy_pages(starts, one.stride(0) * one.element_size(), one[0].numel() * one.element_size(), pages)
    assert torch.equal(memory, expected)
    print("pages")


if __name__ == "__main__":
    check_kernels("cuda" if torch.cuda.is_available() else "cpu")
