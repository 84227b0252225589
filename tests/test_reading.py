"""One pass over the rows of many requests: what each is told is what it would be told alone, from one transfer."""

import dataclasses

import numpy as np
import pytest
import torch

from vllm_infogain.request.constraints import Constraints
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling import slices
from vllm_infogain.sampling.actions import step_rng_key
from vllm_infogain.sampling.logprobs import Alternatives
from vllm_infogain.sampling.metadata import Comparison, PositionStatistics, SamplerOutput, SamplingMetadata
from vllm_infogain.sampling.read_logits import read as read_over

VOCAB, MASK_ID = 11, 10
COLUMNS = VOCAB + 3  # of the logits; the last ones are padding


def metadata(
    params: DecodingParams, sequences: int, masked: int, *, compared: bool = False, seed: int = 0
) -> SamplingMetadata:
    """Masked positions, H(z) and C(a, z) made up."""
    rng = np.random.default_rng(seed)
    offsets = np.stack([np.sort(rng.choice(40, masked, replace=False)) for _ in range(sequences)])
    comparison = Comparison(now=1.5, cost=rng.random(sequences)) if compared else None
    return SamplingMetadata(params, offsets, np.full(sequences, step_rng_key(params.seed, 3)), offsets * 0, comparison)


def mixed() -> list[SamplingMetadata]:
    """Requests of every kind, in one batch."""
    look = DecodingParams(num_candidates=5, temperature=0.7, seed=1)
    summed = dataclasses.replace(look, state_uncertainty="sum", cost_weight=0.5, seed=2)
    klass = DecodingParams(sampler="klass", temperature=1.0, seed=3)
    earlier = torch.randn(4, COLUMNS, generator=torch.Generator().manual_seed(9)).log_softmax(-1)
    return [
        metadata(look, 5, 7, compared=True, seed=1),
        metadata(look, 1, 8, seed=2),
        metadata(summed, 3, 2, compared=True, seed=3),
        metadata(DecodingParams(temperature=0.0), 1, 6, seed=4),
        metadata(DecodingParams(sampler="lookum", temperature=0.0), 4, 5, compared=True, seed=5),
        metadata(DecodingParams(sampler="entropy", top_k=2, top_p=0.9, seed=6), 1, 3, seed=6),
        metadata(dataclasses.replace(look, top_k=3), 4, 3, compared=True, seed=7),
        metadata(DecodingParams(eos_ids=(4, 5), eos_penalty=3.0, sampler="confidence"), 1, 3, seed=8),
        metadata(DecodingParams(sampler="beam", num_candidates=2), 6, 4, seed=9),
        dataclasses.replace(metadata(klass, 1, 4, seed=10), previous=earlier),
        metadata(klass, 1, 4, seed=11),
        metadata(look, 2, 0, compared=True, seed=12),
        metadata(dataclasses.replace(look, logprobs=2), 3, 4, compared=True, seed=13),
        metadata(DecodingParams(sampler="entropy", temperature=0.0, logprobs=3), 1, 5, seed=14),
        metadata(DecodingParams(sampler="beam", num_candidates=2, logprobs=1, logprob_token_ids=(7,)), 2, 3, seed=15),
    ]


def read(logits: torch.Tensor, batch_metadata: list[SamplingMetadata], *widths: int) -> list[SamplerOutput]:
    """What is read; the earlier log-probabilities that it writes over are its own."""
    anew = [q if q.previous is None else dataclasses.replace(q, previous=q.previous.clone()) for q in batch_metadata]
    return read_over(logits, anew, *widths)


def logits_of(batch_metadata: list[SamplingMetadata]) -> list[torch.Tensor]:
    """Of each question, [rows, columns]; in some rows the mask token or padding leads."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(q.canvas_offsets.size, COLUMNS, generator=generator) * 2 for q in batch_metadata]


def assert_equal(one: SamplerOutput, other: SamplerOutput) -> None:
    assert one.best == other.best
    assert one.objective.tolist() == other.objective.tolist()
    assert one.statistics.keys() == other.statistics.keys()
    for index, statistics in one.statistics.items():
        for field in dataclasses.fields(PositionStatistics):
            values = getattr(statistics, field.name), getattr(other.statistics[index], field.name)
            assert (values[0] is None) == (values[1] is None), field.name
            if field.name == "alternatives" and values[0] is not None:
                for column in dataclasses.fields(Alternatives):
                    np.testing.assert_array_equal(*(getattr(value, column.name) for value in values), column.name)
            elif values[0] is not None:
                np.testing.assert_array_equal(*values, err_msg=field.name)


def test_a_question_has_the_same_answer_alone_and_among_others():
    batch_metadata = mixed()
    logits = logits_of(batch_metadata)
    together = read(torch.cat(logits), batch_metadata, MASK_ID, VOCAB)
    backwards = read(torch.cat(logits[::-1]), batch_metadata[::-1], MASK_ID, VOCAB)[::-1]
    for asked, rows, *outputs in zip(batch_metadata, logits, together, backwards, strict=True):
        (alone,) = read(rows.clone(), [asked], MASK_ID, VOCAB)
        for output in outputs:
            assert_equal(alone, output)


@pytest.mark.parametrize("size", [1, 2 * COLUMNS, 7 * COLUMNS])
def test_rows_that_are_worked_on_in_slices_tell_what_they_tell_at_once(monkeypatch, size):
    batch_metadata = mixed()
    logits = logits_of(batch_metadata)
    at_once = read(torch.cat(logits), batch_metadata, MASK_ID, VOCAB)
    monkeypatch.setattr(slices, "SLICE", size)
    for one, other in zip(read(torch.cat(logits), batch_metadata, MASK_ID, VOCAB), at_once, strict=True):
        assert_equal(one, other)


def test_log_probabilities_of_one_step_take_the_place_of_those_before():
    klass = DecodingParams(sampler="klass", temperature=0.0)
    before, now = (logits_of([metadata(klass, 1, rows, seed=rows)])[0] for rows in (6, 3))
    asked, kept = metadata(klass, 1, 3), before.log_softmax(-1)
    rows = np.array([1, 4, 5])
    (expected,) = read(now.clone(), [dataclasses.replace(asked, previous=kept[rows])], MASK_ID, VOCAB)
    (output,) = read_over(now, [dataclasses.replace(asked, previous=kept, previous_rows=rows)], MASK_ID, VOCAB)
    assert_equal(output, expected)
    found = output.statistics[0].log_probabilities
    assert found is not None
    assert found.data_ptr() == kept.data_ptr()


def test_parts_of_a_question_have_the_parts_of_its_answer():
    whole = metadata(DecodingParams(temperature=1.0), 6, 5, compared=True)
    assert whole.comparison is not None
    (logits,) = logits_of([whole])
    (output,) = read(logits.clone(), [whole], MASK_ID, VOCAB)
    objective, statistics = [], {}
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        comparison = Comparison(whole.comparison.now, whole.comparison.cost[part])
        asked = SamplingMetadata(
            whole.params, whole.canvas_offsets[part], whole.rng_keys[part], whole.canvases[part], comparison
        )
        (some,) = read(logits.view(6, 5, COLUMNS)[part].reshape(-1, COLUMNS), [asked], MASK_ID, VOCAB)
        objective += some.objective.tolist()
        statistics[part.start + some.best] = some.statistics[some.best]
    assert objective == output.objective.tolist()
    assert_equal(dataclasses.replace(output, statistics={output.best: statistics[output.best]}), output)


def test_j_and_the_best_candidate_are_those_of_the_definition():
    batch_metadata = mixed()
    logits = logits_of(batch_metadata)
    for asked, rows, output in zip(
        batch_metadata, logits, read(torch.cat(logits), batch_metadata, MASK_ID, VOCAB), strict=True
    ):
        if asked.comparison is None:
            assert output.objective.size == 0
            assert output.statistics.keys() == set(range(len(asked.canvas_offsets)))
            continue
        p = rows.double().softmax(-1).view(*asked.canvas_offsets.shape, COLUMNS)
        entropy = -torch.where(p > 0, p * p.log(), 0.0).sum(-1)
        after = entropy.sum(-1)
        if asked.params.state_uncertainty == "mean":
            after /= max(1, entropy.shape[1])  # H(z') of nothing masked is 0
        expected = -after
        if asked.params.sampler != "lookum":
            expected = 1.5 - after - asked.params.cost_weight * torch.from_numpy(asked.comparison.cost)
        np.testing.assert_allclose(output.objective, expected, atol=1e-6)
        assert output.best == expected.argmax()
        (index,) = output.statistics
        assert index == output.best
        np.testing.assert_allclose(output.statistics[index].entropy, entropy[index], atol=1e-6)


def test_of_equal_candidates_the_first_is_the_best():
    asked = metadata(DecodingParams(cost_weight=0.0), 4, 3, compared=True)
    rows = torch.randn(3, COLUMNS)
    logits = torch.cat([torch.zeros(3, COLUMNS), rows * 9, rows * 9, rows])
    (output,) = read(logits, [asked], MASK_ID, VOCAB)
    assert output.objective[1] == output.objective[2] == output.objective.max()
    assert output.best == 1


def test_the_host_waits_for_the_device_once(monkeypatch):
    batch_metadata = mixed()
    logits = torch.cat(logits_of(batch_metadata))
    calls = []
    for name in ("cpu", "tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "__array__"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda *args, name=name, method=method, **kw: (calls.append(name), method(*args, **kw))[1],
        )
    read(logits, batch_metadata, MASK_ID, VOCAB)
    assert calls == ["cpu"]


def test_no_answer_but_klasss_holds_logits():
    batch_metadata = mixed()
    for asked, output in zip(
        batch_metadata, read(torch.cat(logits_of(batch_metadata)), batch_metadata, MASK_ID, VOCAB), strict=True
    ):
        for statistics in output.statistics.values():
            kept = [value for value in vars(statistics).values() if isinstance(value, torch.Tensor)]
            assert len(kept) == (asked.params.sampler == "klass")
            assert (statistics.divergence is not None) == (asked.previous is not None)


def test_every_row_is_read_as_its_definition_says():
    batch_metadata = mixed()
    logits = logits_of(batch_metadata)
    for asked, rows, output in zip(
        batch_metadata, logits, read(torch.cat(logits), batch_metadata, MASK_ID, VOCAB), strict=True
    ):
        rows[:, list(asked.params.eos_ids)] -= asked.params.eos_penalty
        for index, statistics in output.statistics.items():
            p = rows.view(*asked.canvas_offsets.shape, COLUMNS)[index].double().softmax(-1)
            first, second = p.topk(2).values.unbind(-1)
            top = p[:, :MASK_ID].max(-1)
            np.testing.assert_allclose(statistics.top_probability, top.values, atol=1e-6)
            np.testing.assert_allclose(statistics.margin, first - second, atol=1e-6)
            np.testing.assert_allclose(statistics.entropy, torch.special.entr(p).sum(-1), atol=1e-5)
            assert statistics.top_token.tolist() == top.indices.tolist()
            draws = asked.params.num_candidates if asked.params.looks_ahead else 1
            assert statistics.tokens.shape == (draws, asked.canvas_offsets.shape[1])
            np.testing.assert_allclose(
                statistics.probabilities, p.gather(1, torch.tensor(statistics.tokens).T).T, atol=1e-6
            )
            assert statistics.tokens.max(initial=0) < MASK_ID, "neither the mask token nor padding"
            if asked.params.temperature == 0:
                assert (statistics.tokens == statistics.top_token).all()
            if asked.previous is not None:
                now = rows.double().log_softmax(-1)
                kl = torch.where(p > 0, p * (now - asked.previous), 0.0).sum(-1)
                np.testing.assert_allclose(statistics.divergence, kl, atol=1e-5)


def test_written_tokens_have_the_log_probabilities_and_alternatives_that_were_asked_for():
    batch_metadata = mixed()
    logits = logits_of(batch_metadata)
    for asked, rows, output in zip(
        batch_metadata, logits, read(torch.cat(logits), batch_metadata, MASK_ID, VOCAB), strict=True
    ):
        of_sequence = rows.view(*asked.canvas_offsets.shape, COLUMNS).log_softmax(-1)
        for index, statistics in output.statistics.items():
            assert (statistics.alternatives is None) == (asked.params.logprobs is None)
            if statistics.alternatives is None:
                continue
            for position, expected in enumerate(of_sequence[index]):
                for token in statistics.tokens[:, position]:
                    (found,) = statistics.logprobs(np.array([position]), np.array([token]))
                    assert found.logprob == pytest.approx(expected[token].item(), abs=1e-5)
                    assert found.rank == (expected >= expected[token]).sum()
                    named = (
                        list(asked.params.logprob_token_ids)
                        or expected[:VOCAB].topk(asked.params.logprobs).indices.tolist()
                    )
                    assert found.tokens == named
                    assert found.logprobs == pytest.approx(expected[named].tolist(), abs=1e-5)


def test_temperature_0_draws_nothing(monkeypatch):
    from vllm_infogain.sampling import read_logits

    monkeypatch.setattr(read_logits, "draw_tokens", lambda *_: pytest.fail("a draw"))
    asked = [
        metadata(DecodingParams(temperature=0.0), 1, 6),
        metadata(DecodingParams(temperature=0.0), 3, 4, compared=True),
    ]
    read(torch.cat(logits_of(asked)), asked, MASK_ID, VOCAB)


def test_a_row_whose_mass_is_all_the_mask_tokens_is_certain_and_written_like_any_other():
    asked = metadata(DecodingParams(sampler="pc", temperature=1.0, logprobs=1), 1, 2)
    logits = torch.zeros(2, COLUMNS)
    logits[:, MASK_ID] = torch.tensor([1e4, 1e30])
    (output,) = read(logits, [asked], MASK_ID, VOCAB)
    statistics = output.statistics[0]
    for values in (statistics.entropy, statistics.top_probability, statistics.probabilities[0]):
        assert values.tolist() == [0.0, 0.0]
    assert statistics.margin.tolist() == [1.0, 1.0]
    assert statistics.tokens.max() < MASK_ID
    (written,) = statistics.logprobs(np.array([0]), statistics.tokens[0, :1])
    assert (written.logprob, written.tokens, written.logprobs) == (-1e4, [MASK_ID], [0.0])


def test_what_constraints_bar_has_no_share_be_it_the_mask_token_or_padding():
    barred = DecodingParams(sampler="confidence", temperature=0.0, constraints=Constraints(allowed_ids=(2, 3)))
    (logits,) = logits_of([asked := metadata(barred, 1, 5)])
    p = logits[:, 2:4].double().softmax(-1)
    (output,) = read(logits, [asked], MASK_ID, VOCAB)
    np.testing.assert_allclose(output.statistics[0].top_probability, p.amax(-1), atol=1e-6)
    np.testing.assert_allclose(output.statistics[0].margin, (p[:, 0] - p[:, 1]).abs(), atol=1e-6)
    np.testing.assert_allclose(output.statistics[0].entropy, torch.special.entr(p).sum(-1), atol=1e-6)
