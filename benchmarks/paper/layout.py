"""How results are laid out as Markdown: tables of the paper's form, our figures beside the paper's."""

from collections import defaultdict
from collections.abc import Sequence

from benchmarks.paper.estimates import Estimate, Results, Row, accuracy, cpu_ms, of_report
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.problems import TITLES
from benchmarks.paper.win_rate import Rate, length_controlled, win_rate

CUMULATIVE_ENTROPY = of_report("cumulative_entropy")
BEST_GREEDY = "best without look-ahead"  # a line of the paper's summary
NO_LOOKAHEAD = ("Uniform", "Entropy", "Confidence", "Margin", "KLASS", "PC-Sampler")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def percent(value: Estimate | None) -> str:
    return shown(value and value.times(100))


def shown(value: Estimate | None, form: str = ".1f") -> str:
    """An estimate with its standard error; nothing where there is none."""
    return "" if value is None else f"{value:{form}}"


def mean(value: Estimate | None, form: str = ".1f") -> str:
    """Of what has no error of its own: an answer's time is its share of the batch's."""
    return "" if value is None else f"{value.mean:{form}}"


def given(value: float | None) -> str:
    """A figure of the paper's; nothing where we know of none."""
    return "" if value is None else f"{value:g}"


def k_of(count: int | None) -> str:
    return "" if count is None else str(count)


def by_task(experiment: Experiment, results: Results) -> str:
    """The form of Tables 2 and 3: accuracy by task and its mean, for each K and sampler."""
    paper_column = [f"paper, {experiment.paper_model}"] if experiment.paper else []
    head = ["K", "sampler", *(TITLES[task] for task in results.tasks), "average", *paper_column, "entropy"]
    rows = []
    for count in results.tokens_per_step:
        ranked = []
        for name in results.settings:
            which = {"setting": name, "tokens_per_step": count}
            paper = experiment.paper.get((name, count), {})
            average = results.average(accuracy, **which)
            entropy = results.average(CUMULATIVE_ENTROPY, **which)
            forwards = results.average(of_report("forwards"), **which)
            ms = results.average(cpu_ms, **which)
            cells = [percent(results.estimate(accuracy, task=task, **which)) for task in results.tasks]
            ours = (shown(forwards), mean(ms, ".0f"))
            theirs = [given(paper.get("average"))] if experiment.paper else []
            rows.append([k_of(count), name, *cells, percent(average), *theirs, shown(entropy), *ours])
            if average is not None and name in NO_LOOKAHEAD:
                ranked.append((average.mean, average))
        if ranked:
            best = max(ranked, key=lambda one: one[0])[1]
            paper = experiment.paper.get((BEST_GREEDY, count), {})
            theirs = [given(paper.get("average"))] if experiment.paper else []
            blank = [""] * len(results.tasks)
            rows.append([k_of(count), BEST_GREEDY, *blank, percent(best), *theirs, "", "", ""])
    return table([*head, "forwards", "CPU ms"], rows)


def win_rates(experiment: Experiment, results: Results) -> str:
    """The form of Table 5: how often the text of the setting that is compared is preferred, for each temperature."""
    names = [name for name in results.settings if name != experiment.compares]
    columns = [f"T={one:g}" for one in results.temperatures if one is not None]
    head = ["K", f"{experiment.compares} against", *columns, "mean", "length-controlled"]
    rows = []
    for count in results.tokens_per_step:
        for name in names:
            which = {"setting": name, "tokens_per_step": count}
            found = [compared_rows(results, temperature=one, **which) for one in results.temperatures]
            every = [row for part in found for row in part]
            rates = [str(rate(part)) if part else "" for part in found]
            means = ["", ""]
            if every:
                preferences, longer = ([row[key] for row in every] for key in ("preference", "longer"))
                means = [str(rate(every)), str(length_controlled(preferences, longer))]
            rows.append([k_of(count), name, *rates, *means])
    entropies = [
        [
            k_of(count), name,
            *(
                shown(results.average(CUMULATIVE_ENTROPY, setting=name, tokens_per_step=count, temperature=one))
                for one in results.temperatures
            ),
        ]
        for count in results.tokens_per_step
        for name in results.settings
    ]  # fmt: skip
    return f"{table(head, rows)}\nCumulative entropy, nats:\n\n{table(['K', 'sampler', *columns], entropies)}"


def compared_rows(results: Results, **which: object) -> list[Row]:
    """Preference and difference of lengths by problem, the mean of its runs."""
    by_problem: dict[object, list[Row]] = defaultdict(list)
    for cell, row in results.select(**which):
        if "preference" in row:
            by_problem[cell.task, row["index"]].append(row)
    return [
        {name: sum(row[name] for row in rows) / len(rows) for name in ("preference", "longer")}
        for rows in by_problem.values()
    ]


def rate(rows: Sequence[Row]) -> Rate:
    return win_rate([row["preference"] for row in rows])


def page(experiment: Experiment, results: Results, said: Sequence[str], picture: str | None) -> str:
    """The whole page of an experiment."""
    parts = [f"# {experiment.title}", "\n".join(said), experiment.layout(experiment, results).strip()]
    if experiment.says:
        parts.append(experiment.says)
    if picture is not None:
        parts.append(f"![{experiment.title}]({picture})")
    return "\n\n".join(parts) + "\n"
