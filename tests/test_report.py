"""`vllm_infogain.report` offline: every sample of every request has one, however it ended."""

import dataclasses

import engines
import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

import vllm_infogain
from vllm_infogain.serving.progress import Progress

pytestmark = pytest.mark.engine

CANVAS = 16
PROMPT = "judge 1+2*3=7"
FIGURES = {"steps", "forwards", "refreshes", "rows", "candidates", "bypassed_steps", "cumulative_entropy"}


@pytest.fixture(scope="module")
def llm(checkpoint):
    with engines.running(checkpoint) as engine:
        yield engine.llm


def generate(llm, *, extra_args=None, **fields):
    fields = {"max_tokens": CANVAS, "seed": 1, "ignore_eos": True} | fields
    fields["extra_args"] = {"block_length": 4, "bypass_threshold": 1} | (extra_args or {})
    (output,) = llm.generate([PROMPT], SamplingParams(**fields), use_tqdm=False)
    return output


def test_a_report_holds_the_figures_of_the_request(llm):
    report = vllm_infogain.report(generate(llm))
    assert report.keys() >= FIGURES
    assert report["steps"] == CANVAS
    assert report["forwards"] >= report["steps"] - 3  # what a block's last look-ahead computed serves the next block
    assert report["cumulative_entropy"] > 0
    assert not report.keys() & {"trajectory", "decode_order"}


def test_a_trajectory_says_when_each_place_was_written(llm):
    output = generate(llm, extra_args={"return_trajectory": True, "tokens_per_step": 2})
    report = vllm_infogain.report(output)
    assert len(report["trajectory"]) == report["steps"] == CANVAS // 2
    order = report["decode_order"]
    for index, step in enumerate(report["trajectory"]):
        assert [order[position] for position in step["positions"]] == [index] * 2
        assert [output.outputs[0].token_ids[position] for position in step["positions"]] == step["tokens"]


def test_every_sample_has_its_own_report(llm):
    output = generate(llm, n=3, extra_args={"return_trajectory": True})
    reports = [vllm_infogain.report(sample) for sample in output.outputs]
    assert vllm_infogain.report(output) == reports[0]
    for sample, report in zip(output.outputs, reports, strict=True):
        tokens = {
            position: token
            for step in report["trajectory"]
            for position, token in zip(step["positions"], step["tokens"], strict=True)
        }
        assert [tokens[position] for position in range(CANVAS)] == sample.token_ids
    assert len({report["cumulative_entropy"] for report in reports}) == 3
    assert output.kv_transfer_params is None


@pytest.fixture(params=["metrics on", "metrics off"])
def metrics(llm, request, monkeypatch):
    """Whether the engine keeps metrics of its requests."""
    monkeypatch.setattr(llm.llm_engine.output_processor, "log_stats", request.param == "metrics on")
    monkeypatch.setattr(llm.llm_engine, "log_stats", request.param == "metrics on")
    return request.param == "metrics on"


@pytest.mark.parametrize("n", [1, 2])
def test_the_report_is_among_the_metrics_for_whoever_copies_these(llm, metrics, n):
    output = generate(llm, n=n, extra_args={"return_trajectory": True})
    copied = dataclasses.asdict(output.metrics)
    assert copied["infogain"] == vllm_infogain.report(output)
    assert copied["infogain"]["steps"] == CANVAS
    assert (copied["arrival_time"] > 0, copied["num_generation_tokens"]) == (metrics, CANVAS * metrics)


def test_every_output_of_a_stream_has_metrics_and_the_last_its_report(llm, metrics):
    fields = {"max_tokens": CANVAS, "seed": 1, "ignore_eos": True, "output_kind": RequestOutputKind.DELTA}
    llm.llm_engine.add_request("stream", PROMPT, SamplingParams(**fields, extra_args={"block_length": 4}))
    outputs = []
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            outputs.append((output, dataclasses.asdict(output.metrics)["infogain"]))
    assert [report is None for _, report in outputs] == [True] * (len(outputs) - 1) + [False]
    assert outputs[-1][1] == vllm_infogain.report(outputs[-1][0])
    first = outputs[0][0]
    for later, _ in outputs[1:]:
        first.add(later, aggregate=True)
    assert first.metrics.infogain == outputs[-1][1], "vLLM merges what a slow reader has not taken"


@pytest.mark.parametrize("n", [1, 2])
def test_a_request_ended_by_a_stop_string_has_a_report(llm, n):
    text = generate(llm, n=n).outputs[0].text
    stop = text[5]
    output = generate(llm, n=n, stop=stop)
    assert output.outputs[0].text == text[: text.index(stop)]
    assert output.outputs[0].stop_reason == stop
    blocks = text.index(stop) // 4 + 1  # whose text the stop string ends
    assert 4 * blocks <= vllm_infogain.report(output)["steps"] <= CANVAS
    assert all(vllm_infogain.report(sample)["steps"] >= 4 for sample in output.outputs)


def test_a_request_ended_by_a_stop_token_has_a_report(llm):
    tokens = generate(llm).outputs[0].token_ids
    output = generate(llm, stop_token_ids=[tokens[5]])
    assert output.outputs[0].finish_reason == "stop"
    assert vllm_infogain.report(output)["steps"] in (4, 8)


def test_an_output_without_a_report_is_refused_with_the_remedy(llm):
    output = generate(llm)
    del output.outputs[0].infogain
    for given in (output, output.outputs[0]):
        with pytest.raises(ValueError, match="engine_args"):
            vllm_infogain.report(given)


def test_steps_are_taken_once_and_in_order():
    progress = Progress()
    progress.update({"report": {"steps": 1}, "steps": [{"chosen": 0}]})
    progress.update({"report": {"steps": 3}, "steps": [{"chosen": 1}, {"chosen": 2}]})
    progress.update({"report": {"steps": 4}, "steps": []})
    assert [step["chosen"] for step in progress.take_steps()] == [0, 1, 2]
    assert progress.take_steps() == []
    assert progress.report == {"steps": 4}
