"""The judge of pairs, with judges of our own: a deterministic server that is fair, or not."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

import checkout
import numpy as np
import pytest
from waiting import PATIENCE

from benchmarks.paper.judge import Judgement, Pair, endpoint, judged, pairs_of, report, verdict
from benchmarks.paper.win_rate import length_controlled, win_rate

TEXTS = re.compile(r"<text_a>\n(.*?)\n</text_a>\n\n<text_b>\n(.*?)\n</text_b>", re.DOTALL)
GOOD = "good"
# A pair's better text holds the word; every fourth pair is undecided.
PAIRS = [
    Pair(
        f"prompt {i}",
        f"text {i} {GOOD if i % 4 in (0, 1) else 'bad'}",
        f"other {i} {GOOD if i % 4 in (1, 2) else 'bad'}",
    )
    for i in range(40)
]
Judge = Callable[[str, str], str]


def fair(a: str, b: str) -> str:
    return {1: "A", 0: "tie", -1: "B"}[(GOOD in a) - (GOOD in b)]


def longest(a: str, b: str) -> str:
    return {1: "A", 0: "tie", -1: "B"}[int(np.sign(len(a) - len(b)))]


@contextmanager
def server(judge: Judge) -> Iterator[str]:
    """An OpenAI-compatible endpoint whose model is the judge."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            (texts,) = TEXTS.findall(asked["messages"][0]["content"])
            known = self.path == "/v1/chat/completions" and self.headers["Authorization"] == "Bearer a key"
            message = {"role": "assistant", "content": f"I read both.\nVerdict: {judge(*texts)}"}
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": message}]}).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_port}/v1"
        finally:
            served.shutdown()
            thread.join()


def reported(judge: Judge, pairs=PAIRS):
    with server(judge) as url:
        return report(pairs, [judged(pair, endpoint(url, "judge", "a key")) for pair in pairs])


def test_a_fair_judge_gives_each_pair_its_better_text():
    pairs = [pair for pair in PAIRS if pair.ours.endswith(GOOD) and not pair.theirs.endswith(GOOD)]
    result = reported(fair, [*pairs, *(pair for pair in PAIRS if pair not in pairs)])
    assert (result.pairs, result.unread, result.first_place) == (40, 0, 0.5)
    assert result.win.value == 0.5  # ten wins, ten losses, twenty ties
    assert result.win.low == pytest.approx(0.5 - 1.96 * (0.125 * 40 / 39 / 40) ** 0.5)
    assert reported(fair, pairs).win.value == 1.0


@pytest.mark.parametrize(("place", "first"), [("A", 1.0), ("B", 0.0), ("tie", 0.5)])
def test_a_judge_that_prefers_a_place_comes_out_at_half(place: str, first: float):
    result = reported(lambda a, b: place)
    assert (result.win.value, result.win.low, result.win.high) == (0.5, 0.5, 0.5)
    assert result.length_controlled.value == pytest.approx(0.5)
    assert result.first_place == first


def test_a_reply_without_a_verdict_is_left_out_and_counted():
    pairs = PAIRS[:8]
    result = reported(lambda a, b: "A or B" if pairs[0].ours in (a, b) else fair(a, b), pairs)
    assert (result.pairs, result.unread) == (8, 1)
    with pytest.raises(ValueError, match="none has two verdicts"):
        reported(lambda a, b: "?", pairs)


@pytest.mark.parametrize(
    ("reply", "first"),
    [
        ("Verdict: A", 1.0), ("**Verdict: B**", 0.0), ("verdict: Tie.", 0.5), ("Verdict: A\nNo.\nVerdict: B", 0.0),
        ("Verdict: [A]", 1.0), ("A", None), ("Verdict: A or B", None), ("The verdict is A", None), ("", None),
    ],
)  # fmt: skip
def test_the_last_line_that_is_a_verdict_counts(reply: str, first: float | None):
    assert verdict(reply) == first


def test_both_orders_weigh_the_same():
    assert Judgement(1.0, 0.0).preference == 1.0
    assert Judgement(1.0, 1.0).preference == 0.5
    assert Judgement(0.5, 0.0).preference == 0.75
    assert Judgement(None, 0.0).preference is None


def test_an_endpoint_that_refuses_is_an_error_not_a_verdict():
    with server(fair) as url, pytest.raises(HTTPError, match="401"):
        endpoint(url, "judge", "another key")("<text_a>\n1\n</text_a>\n\n<text_b>\n2\n</text_b>")


def test_a_judge_of_length_says_nothing_once_lengths_are_controlled():
    """It prefers the longer text in three of four pairs, and ours is the longer one in most."""
    pairs = [Pair(f"p {i}", f"{i} " + "x" * (200 + 10 * (i * 7 % 41)), f"{i} " + "y" * 300) for i in range(160)]
    result = reported(lambda a, b: longest(b, a) if int(a.split()[0]) % 4 == 0 else longest(a, b), pairs)
    assert result.win.low > 0.5
    assert result.length_controlled.low < 0.5 < result.length_controlled.high


def test_without_an_effect_of_length_control_changes_nothing():
    preferences, lengths = [1.0, 1.0, 1.0, 0.0] * 25, [-1.0, 1.0, 0.0, 0.0] * 25
    assert length_controlled(preferences, lengths).value == pytest.approx(0.75, abs=0.01)
    assert length_controlled(preferences, [5.0] * 100).value == pytest.approx(0.75, abs=0.001)
    assert win_rate(preferences).value == 0.75
    assert length_controlled([1.0] * 10, range(10)).value > 0.95


def test_control_recovers_the_rate_that_a_known_effect_of_length_hides():
    generator = np.random.default_rng(0)
    lengths = generator.normal(1.0, 1.0, 20_000)
    chances = 1 / (1 + np.exp(-(-0.4 + 1.5 * np.tanh(lengths / lengths.std()))))
    preferences = (generator.random(len(lengths)) < chances).astype(float)
    rate = length_controlled(preferences, lengths)
    assert win_rate(preferences).value > 0.6
    assert rate.low < 1 / (1 + np.exp(0.4)) < rate.high
    assert rate.high - rate.low < 0.06


def test_the_command_compares_lm_evals_samples_with_plain_lines(tmp_path: Path):
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    ours.write_text("".join(json.dumps({"doc": {"prompt": p.prompt}, "resps": [[p.ours]]}) + "\n" for p in PAIRS))
    theirs.write_text("".join(json.dumps({"prompt": p.prompt, "text": p.theirs}) + "\n" for p in PAIRS[::-1]))
    assert pairs_of(ours, theirs) == PAIRS
    with server(fair) as url:
        command = [sys.executable, "-m", "benchmarks.paper.judge", ours, theirs, "--judge-url", url, "--model", "judge"]
        done = subprocess.run(
            [*command, "--key", "a key"],
            cwd=checkout.ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
    assert "40 pairs, 0 without two verdicts; first place preferred 50.0%\nwin rate 50.0% (" in done.stdout
    theirs.write_text(json.dumps({"prompt": "another", "text": ""}))
    with pytest.raises(ValueError, match="41 are in one file only"):
        pairs_of(ours, theirs)
