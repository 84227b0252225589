"""Which of two texts is better: a judge behind any OpenAI-compatible endpoint compares two files of lm-eval's samples.

    python -m benchmarks.paper.judge OURS.jsonl THEIRS.jsonl --judge-url http://localhost:8001/v1 --model JUDGE

Every pair is shown in both orders, so a judge that prefers a place, not a text, comes out at 50 %.
"""

import argparse
import json
import os
import re
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.win_rate import Rate, length_controlled, win_rate

QUESTION = """Two writers answered the same request. Which text is better: more original, more coherent, better written,
closer to what was asked?

<request>
{prompt}
</request>

<text_a>
{a}
</text_a>

<text_b>
{b}
</text_b>

Give your reasons in a few sentences. Then write one last line: "Verdict: A", "Verdict: B", or "Verdict: tie"."""
VERDICT = re.compile(r"^\W*verdict\W*(a|b|tie)\W*$", re.IGNORECASE | re.MULTILINE)
SCORES = {"a": 1.0, "tie": 0.5, "b": 0.0}

Ask = Callable[[str], str]  # from a question to the judge's reply


@dataclass(frozen=True)
class Pair:
    prompt: str
    ours: str
    theirs: str


@dataclass(frozen=True)
class Judgement:
    """Of one pair: what the text shown first got, when that was ours and when it was theirs; None: no verdict."""

    ours_first: float | None
    theirs_first: float | None

    @property
    def preference(self) -> float | None:
        """For ours: 1 if both orders prefer it, 0 if neither does."""
        if self.ours_first is None or self.theirs_first is None:
            return None
        return (self.ours_first + 1 - self.theirs_first) / 2


@dataclass(frozen=True)
class Report:
    pairs: int
    unread: int  # pairs without two verdicts; left out of the rates
    first_place: float  # share of verdicts for the text shown first, a tie as half
    win: Rate
    length_controlled: Rate


def judged(pair: Pair, ask: Ask) -> Judgement:
    return Judgement(
        verdict(ask(QUESTION.format(prompt=pair.prompt, a=pair.ours, b=pair.theirs))),
        verdict(ask(QUESTION.format(prompt=pair.prompt, a=pair.theirs, b=pair.ours))),
    )


def verdict(reply: str) -> float | None:
    """What the first text gets by the reply's last verdict."""
    found = VERDICT.findall(reply)
    return SCORES[found[-1].lower()] if found else None


def report(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> Report:
    read = [(pair, one) for pair, one in zip(pairs, judgements, strict=True) if one.preference is not None]
    if not read:
        raise ValueError(f"of {len(pairs)} pairs none has two verdicts; the judge must end with a line 'Verdict: A'")
    preferences = [one.preference for _, one in read]
    firsts = [place for _, one in read for place in (one.ours_first, one.theirs_first)]
    lengths = [len(pair.ours) - len(pair.theirs) for pair, _ in read]
    return Report(
        pairs=len(pairs), unread=len(pairs) - len(read), first_place=sum(firsts) / len(firsts),
        win=win_rate(preferences), length_controlled=length_controlled(preferences, lengths),
    )  # fmt: skip


def endpoint(url: str, model: str, key: str, seconds: float = 600.0) -> Ask:
    """A judge at temperature 0. An answer of another status is an error, never a verdict."""

    def ask(question: str) -> str:
        body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
        request = urllib.request.Request(
            f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return json.load(response)["choices"][0]["message"]["content"] or ""

    return ask


def texts_of(path: Path) -> dict[str, str]:
    """By their prompts: lm-eval's samples of `paper_writing`, or lines with `prompt` and `text`."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {
        line["doc"]["prompt"] if "doc" in line else line["prompt"]: line["resps"][0][0]
        if "doc" in line
        else line["text"]
        for line in lines
    }


def pairs_of(ours: Path, theirs: Path) -> list[Pair]:
    first, second = texts_of(ours), texts_of(theirs)
    if first.keys() != second.keys():
        alone = len(first.keys() ^ second.keys())
        raise ValueError(f"{ours} and {theirs} answer different prompts: {alone} are in one file only")
    return [Pair(prompt, first[prompt], second[prompt]) for prompt in first]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("theirs", type=Path)
    parser.add_argument("--judge-url", required=True, help="of the endpoint, up to and with /v1")
    parser.add_argument("--model", required=True, help="the judge's name there")
    parser.add_argument("--key", default=os.environ.get("OPENAI_API_KEY", "none"), help="default: OPENAI_API_KEY")
    parser.add_argument("--concurrency", type=int, default=8)
    given = parser.parse_args()
    compared = pairs_of(given.ours, given.theirs)
    judge = endpoint(given.judge_url, given.model, given.key)
    with ThreadPoolExecutor(given.concurrency) as pool:
        result = report(compared, list(pool.map(lambda pair: judged(pair, judge), compared)))
    print(f"{result.pairs} pairs, {result.unread} without two verdicts; first place preferred {result.first_place:.1%}")
    print(f"win rate {result.win}; length-controlled {result.length_controlled}")
