"""The sampler `maskgit` equals the loop that MMaDA published as `t2i_generate`, which is written down here anew."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import write_mmada

from vllm_infogain import InfoGainSampler
from vllm_infogain.reference.llada import LLaDA
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling import make_decoder
from vllm_infogain.sampling.read_logits import read
from vllm_infogain.sampling.schedule import Block, annealing

TEXT = [40, 41, 42, 43]


def published(
    logits_of, batch: int, n: int, steps: int, temperature: float, greedy: bool = False
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Codes [batch, n] of a batch of pictures, and what was masked [batch, n] after each step but the last.

    Args:
        logits_of: codes [batch, n], -1 where masked -> logits [batch, n, codebook], guided.
        batch, n: pictures, and codes of each.
        temperature: of the positions' noise.
        greedy: the most likely codes in place of drawn ones.
    """
    generator = torch.Generator().manual_seed(0)
    codes, history = torch.full((batch, n), -1), []
    for step in range(steps):
        probabilities = logits_of(codes).softmax(-1)
        flat = probabilities.reshape(batch * n, -1)
        drawn = flat.argmax(-1) if greedy else torch.multinomial(flat, 1, generator=generator)[:, 0]
        masked = codes == -1
        drawn = torch.where(masked, drawn.reshape(batch, n), codes)
        ratio = (step + 1) / steps
        confidence = probabilities.gather(-1, drawn[..., None])[..., 0].log().masked_fill(~masked, math.inf)
        left = math.floor(n * torch.cos(torch.tensor(ratio) * math.pi * 0.5).item())
        left = max(1, min(int(masked[0].sum()) - 1, left))
        temperature = temperature * (1 - ratio)
        uniform = torch.rand(batch, n, generator=generator).clamp(1e-20, 1 - 1e-7)
        confidence = confidence - temperature * (-uniform.log()).log()
        threshold = confidence.sort(-1).values[:, left, None]
        codes = torch.where(confidence < threshold, -1, drawn)
        history.append(codes == -1)
    return drawn, history[:-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LLaDA:
    return write_mmada(tmp_path_factory.mktemp("mmada"), sharpness=6.0)


@pytest.mark.parametrize("scale", [0.0, 3.5])
@pytest.mark.parametrize("steps", [1, 5, 16, 40])
def test_without_chance_the_codes_are_those_of_the_published_loop(model, steps: int, scale: float):
    sampler = InfoGainSampler(model)
    tokens = sampler.image_tokens
    prompt, nothing = tokens.prompt(TEXT), tokens.prompt([])
    first, last = tokens.columns

    def logits_of(codes: torch.Tensor) -> torch.Tensor:
        canvas = torch.where(codes == -1, sampler.mask_id, codes + first)[0].tolist()

        def of(ids: list[int]) -> torch.Tensor:
            sequence = [*ids, *canvas, tokens.eoi_token_id]
            return model(torch.tensor([sequence]))[:, len(ids) : len(ids) + tokens.codes].double()

        return ((1 + scale) * of(prompt) - scale * of(nothing))[..., first:last]

    with torch.no_grad():
        codes, history = published(logits_of, 1, tokens.codes, steps, 0.0, greedy=True)
    (sample,) = sampler.sample(
        prompt, tokens.codes, image=True, sampler="maskgit", steps=steps, position_temperature=0, guidance_scale=scale
    )
    assert [token - first for token in sample.tokens] == codes[0].tolist()
    masked, ours = torch.ones(tokens.codes, dtype=torch.bool), []
    for step in sample.report.trajectory:
        masked[step.positions] = False
        ours.append(masked.tolist())
    # The last step writes all that is left. Ours has no step that writes nothing.
    theirs = [mask[0].tolist() for mask, before in pairwise_with_start(history) if not torch.equal(mask, before)]
    assert ours[:-1] == theirs
    assert not any(ours[-1])


N, CODEBOOK, STEPS, FIRST, MASK = 4, 2, 3, 5, 0  # of the pictures whose every outcome is counted


def pairwise_with_start(history: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each mask with the one before it, which was of everything at first."""
    return [(mask, history[index - 1] if index else torch.ones_like(mask)) for index, mask in enumerate(history)]


def distribution(codes: torch.Tensor) -> torch.Tensor:
    """How often each of the 2 ** N pictures [batch, N] is among them."""
    numbers = (codes * 2 ** torch.arange(N)).sum(-1)
    return numbers.bincount(minlength=2**N).double() / len(codes)


def difference(observed: torch.Tensor, expected: torch.Tensor, count: int) -> float:
    """Pearson's statistic, of 15 degrees of freedom."""
    return float((count * (observed - expected).square() / expected).sum())


def test_with_chance_pictures_are_as_frequent_as_the_published_loops():
    torch.manual_seed(6)
    weights = torch.randn(N, N, CODEBOOK + 1, CODEBOOK) * 0.6  # [place, other place, what stands there, code]

    def logits_of(codes: torch.Tensor) -> torch.Tensor:
        there = torch.nn.functional.one_hot(codes + 1, CODEBOOK + 1).float()
        return torch.einsum("bjv,ijvw->biw", there, weights)

    params = DecodingParams(
        sampler="maskgit", schedule="maskgit", steps=STEPS, block_length=0, temperature=1.0, canvas_length=N,
        image=True, columns=(FIRST, FIRST + CODEBOOK),
    )  # fmt: skip
    count = 3000
    decoders = [make_decoder([1], replace(params, seed=seed), MASK) for seed in range(count)]
    while waiting := [decoder for decoder in decoders if decoder.pending is not None]:
        pending = [decoder.pending for decoder in waiting]
        canvases = torch.from_numpy(np.concatenate([one.sequences[:, 1:] for one in pending]))
        logits = logits_of(torch.where(canvases == MASK, -1, canvases - FIRST))
        rows = torch.cat([logits[index, one.masked[0] - 1] for index, one in enumerate(pending)])
        outputs = read(rows, [decoder.metadata(1) for decoder in waiting], MASK)
        for decoder, output in zip(waiting, outputs, strict=True):
            decoder.consume(1, output)
    ours = distribution(torch.tensor([decoder.take_final().tokens for decoder in decoders]) - FIRST)
    expected = {
        temperature: distribution(published(logits_of, 200000, N, STEPS, temperature)[0]) for temperature in (0, 1)
    }
    assert difference(ours, expected[1], count) < 37.7  # 1 of 1000 exceeds it by chance
    assert difference(expected[0], expected[1], count) > 100  # without noise: the temperature shows


def test_the_noise_falls_as_in_the_published_loop():
    params = DecodingParams(sampler="maskgit", schedule="maskgit", steps=4)
    block = Block(0, 16, 16, 4)
    assert [annealing(params, step, block) for step in range(4)] == pytest.approx([3 / 4, 3 / 8, 3 / 32, 0])
    assert annealing(replace(params, sampler="confidence"), 2, block) == 1.0
    fixed = replace(params, schedule="fixed", steps=None, tokens_per_step=4)
    assert annealing(fixed, 1, Block(0, 16, 16)) == pytest.approx(3 / 8)
