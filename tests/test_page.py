"""The live page: what is served, and what a reader of it sees in a real browser."""

import json
import os
import re
import urllib.request
from pathlib import Path

import httpx
import openai
import pytest
from browser import (
    CELL,
    cells,
    console,
    fields_of,
    fill,
    filled,
    marked,
    open_browser,
    open_page,
    run,
    run_without_an_answer,
    show_as,
    text_of,
    wait_until,
    written,
)
from fastapi import FastAPI
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from server import serve
from vllm.plugins import load_endpoint_plugins
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin, attach_endpoint_plugins
from waiting import PATIENCE

from vllm_infogain.embedded import SERVED_NAME
from vllm_infogain.request.params import LOOKAHEAD_SAMPLERS, SAMPLERS
from vllm_infogain.serving import page as page_module
from vllm_infogain.serving.page import FILES, LONGEST_CHECK, ROUTE, SAMPLER_LINES, Page
from vllm_infogain.serving.page.puzzles import is_solved

PLUGINS = "infogain,infogain_page"
KEY = "a-key"
PROMPT = "sudoku\n1..4\n....\n..2.\n...."
CANVAS = 20
KNOBS = {"tokens_per_step": 2, "block_length": 0}


# Whether it is there at all.


@pytest.mark.parametrize("named", [None, "", "infogain"])
def test_the_page_is_not_there_unless_its_plugin_is_named(named, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if named is not None:
        monkeypatch.setenv("VLLM_PLUGINS", named)
    app = FastAPI()
    attach_endpoint_plugins(app, ("generate",))
    assert not [route.path for route in app.routes if route.path.startswith(ROUTE)]


def test_vllm_loads_the_page_where_its_plugin_is_named_and_the_model_generates(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", PLUGINS)
    (page,) = load_endpoint_plugins(("generate",))
    assert isinstance(page, Page)
    assert isinstance(page, EndpointPlugin)
    assert page.name in PLUGINS.split(",")
    assert load_endpoint_plugins(("embed",)) == []


# What is served.


@pytest.fixture(scope="module")
def url():
    with serve("--plugin", "infogain", "--api-key", KEY, environment={"VLLM_PLUGINS": PLUGINS}) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as client:
        yield client


def fetch(url: str):
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        return response.headers, response.read().decode()


@pytest.mark.engine
def test_the_page_and_its_files_come_with_a_policy_that_allows_nothing_from_elsewhere(url):
    _, html = fetch(url + ROUTE)
    files = re.findall(r'(?:src|href)="([^":]+)"', html)
    assert sorted(files) == ["infogain/page.css", "infogain/page.js"]
    for path in FILES:
        headers, content = fetch(url + path)
        policy = dict(part.split(maxsplit=1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {source for sources in policy.values() for source in sources.split()} <= {
            "'none'", "'self'", "data:", "'script'"
        }  # fmt: skip
        assert headers["X-Content-Type-Options"] == "nosniff"
        outside = set(re.findall(r"https?://[^\s'\"]+", content)) - {"http://www.w3.org/2000/svg"}
        assert not outside, f"{path} names {outside}"


@pytest.mark.engine
def test_the_samplers_offered_are_those_that_a_request_may_name(url, client):
    offered = json.loads(fetch(f"{url}{ROUTE}/samplers")[1])["samplers"]
    assert [sampler["name"] for sampler in offered] == list(SAMPLERS)
    assert {sampler["name"] for sampler in offered if not sampler["streams_canvas"]} == {"beam", "best_of_n"}
    assert list(SAMPLER_LINES) == list(SAMPLERS)
    for sampler in offered:
        assert sampler["line"] == SAMPLER_LINES[sampler["name"]]
        assert ("num_candidates" in sampler["knobs"]) == (sampler["name"] in LOOKAHEAD_SAMPLERS)


SOLVED = "1234\n3412\n4123\n2341"
JUDGED = [  # prompt, text, whether it is solved
    (PROMPT, SOLVED, True),
    (PROMPT, "2143\n3412\n4321\n1234", False),  # a right grid that does not keep the given cells
    (PROMPT, SOLVED.replace("3412", "3411"), False),
    (PROMPT, SOLVED[:-1], False),
    ("countdown 13 19 12 = 18", "19-13=6,6+12=18", True),
    ("countdown 13 19 12 = 18", "19-13=6,6+12=19", False),
    ("multiply 6*7", "6*7=0101010", True),
    ("multiply<|answer|><|mask|>*7=<|mask:7|>", "5*7=0100011", True),
    ("multiply<|answer|><|mask|>*7=<|mask:7|>", "5*7=0100010", False),
    ("judge 12+7*3=33", "7*3=21,12+21=33,yes", True),
    ("Write a poem.", "A poem.", None),
    ("sudoku\n1..4", "1234", None),
]


@pytest.mark.parametrize(("prompt", "text", "solved"), JUDGED)
def test_an_answer_is_judged_by_the_rules_of_its_puzzle(prompt, text, solved):
    assert is_solved(prompt, text) is solved


def ask(url: str, body: bytes) -> tuple[int, dict]:
    response = httpx.post(f"{url}{ROUTE}/check", content=body, timeout=PATIENCE)
    return response.status_code, response.json()


@pytest.mark.engine
def test_a_judgement_is_asked_of_the_server_which_reads_no_more_than_a_puzzle(url):
    body = json.dumps({"prompt": PROMPT, "text": SOLVED}).encode()
    assert ask(url, body) == (200, {"solved": True})
    assert ask(url, body + b" " * LONGEST_CHECK) == (200, {"solved": None})
    for wrong in (b"", b"[]", b"{}", b"\xff", b"[" * 2000):
        assert ask(url, wrong)[0] == 400, wrong


# What a reader sees.


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    with open_page(browser, url) as page:
        fill(page, key=KEY, prompt=PROMPT, max_tokens=CANVAS, seed=1, temperature=0, **KNOBS)
        yield page


def figures(browser) -> list[dict[str, str]]:
    return browser.execute_script("""
        const figures = (panel) => Object.fromEntries(
            [...panel.querySelectorAll("[data-figure]")].map((cell) => [cell.dataset.figure, cell.textContent]));
        return [...document.querySelectorAll(".panel")].map(figures);
    """)


def answer(client, tokenizer, sampler: str, **more) -> tuple[str, list[tuple], dict]:
    """The API's own answer to what the form holds: its text, (position, token, step, nats) by position, the report."""
    knobs = {**KNOBS, "sampler": sampler, "return_trajectory": True, **more}
    response = client.completions.create(
        model=SERVED_NAME, prompt=PROMPT, max_tokens=CANVAS, temperature=0, seed=1, extra_body={"vllm_xargs": knobs}
    )
    report = response.choices[0].infogain
    places = [
        (position, tokenizer.decode([token]), number, f"{entropy:.4f}")
        for number, step in enumerate(report["trajectory"], start=1)
        for position, token, entropy in zip(step["positions"], step["tokens"], step["entropies"], strict=True)
    ]
    return response.choices[0].text, sorted(places), report


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    from vllm_infogain.embedded import model_path

    return AutoTokenizer.from_pretrained(model_path())


@pytest.mark.engine
@pytest.mark.parametrize("samplers", [("entropy", "info_gain"), ("beam", "best_of_n")])
def test_both_canvases_and_their_figures_are_the_apis_answers(samplers, page, client, tokenizer):
    run(page, *samplers)
    for sampler, canvas, shown in zip(samplers, cells(page), figures(page), strict=True):
        text, places, report = answer(client, tokenizer, sampler)
        assert written(canvas) == places
        assert "".join(token for _, token, *_ in places).startswith(text)
        assert [re.sub(r"\d+", "0", shown.pop(name)) for name in ("seconds", "tokens_per_second")] == ["0.0", "0"]
        names = ("steps", "forwards", "rows", "bypassed_steps")
        assert shown == {name: str(report[name]) for name in names} | {
            "cumulative_entropy": f"{report['cumulative_entropy']:.4f}"
        }
        last = [position for position, _, step, _ in places if step == report["steps"]]
        assert [position for position, cell in enumerate(canvas) if "newest" in cell["classes"]] == last
    assert console(page) == []


def panel_text(page, part: str, side: int) -> str:
    return page.find_elements(By.CSS_SELECTOR, f".panel {part}")[side].text


def candidates(page, side: int) -> list[str]:
    """What the chart of J says of each candidate of the step shown."""
    chart = page.find_elements(By.CSS_SELECTOR, ".panel .objective")[side]
    return [point.get_attribute("textContent") for point in chart.find_elements(By.CSS_SELECTOR, "circle title")]


@pytest.mark.engine
def test_each_side_has_settings_of_its_own_and_its_candidates_are_charted(page, client, tokenizer):
    settings = [{"num_candidates": 2}, {"num_candidates": 8, "cache": "prefix", "cost_weight": 0.5}]
    Select(page.find_element(By.ID, "left")).select_by_visible_text("info_gain")
    for side, name in enumerate(("left", "right")):
        fill(page, name, bypass_threshold=1, num_candidates=settings[side]["num_candidates"])
    Select(fields_of(page, "cache", ("right",))[0]).select_by_visible_text("prefix")
    fill(page, "right", others="cost_weight=0.5")
    run(page, left="info_gain")
    assert "num_candidates 8, bypass_threshold 1, cache prefix, cost_weight 0.5" in panel_text(page, ".settings", 1)
    page.find_element(By.ID, "step").send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    for side, knobs in enumerate(settings):
        report = answer(client, tokenizer, "info_gain", bypass_threshold=1, **knobs)[2]
        objective = report["trajectory"][0]["objective"]
        assert len(objective) > 1
        assert candidates(page, side) == [
            f"candidate {number}: J = {value:.3f}" for number, value in enumerate(objective, start=1)
        ]


@pytest.mark.engine
def test_a_parameter_of_other_samplers_is_closed_and_each_sampler_is_explained(page):
    select = Select(page.find_element(By.ID, "right"))
    for sampler in ("info_gain", "eb"):
        select.select_by_visible_text(sampler)
        (field,) = fields_of(page, "num_candidates", ("right",))
        assert field.is_enabled() == (sampler in LOOKAHEAD_SAMPLERS)
        assert text_of(page, "right-line") == f"{sampler} {SAMPLER_LINES[sampler]}"


@pytest.mark.engine
def test_the_answer_is_copied_as_plain_text(page, client, tokenizer):
    run(page)
    page.find_elements(By.CSS_SELECTOR, ".panel .copy")[1].click()
    assert panel_text(page, ".copy", 1) == "Copied"
    prompt = page.find_element(By.ID, "prompt")
    prompt.clear()
    prompt.send_keys(Keys.CONTROL, "v")
    assert prompt.get_attribute("value") == answer(client, tokenizer, "info_gain")[0]


RECORDING = Path(page_module.__file__).parent / "recorded.json"


@pytest.mark.engine
def test_the_first_screen_shows_a_recorded_answer_that_the_model_gives(page, client, tokenizer):
    """Written anew where `INFOGAIN_RECORD=1`."""
    runs = []
    for sampler in ("entropy", "info_gain"):
        text, _, report = answer(client, tokenizer, sampler)
        steps = [
            {**step, "text": [tokenizer.decode([token]) for token in step["tokens"]]}
            | {name: [round(value, 4) for value in step[name]] for name in ("entropies", "objective")}
            for step in report["trajectory"]
        ]
        figures = ("steps", "forwards", "rows", "bypassed_steps", "cumulative_entropy")
        runs.append({
            "sampler": sampler, "knobs": {"sampler": sampler, **KNOBS}, "text": text, "solved": is_solved(PROMPT, text),
            "report": {name: report[name] for name in figures}, "steps": steps,
        })  # fmt: skip
    if os.environ.get("INFOGAIN_RECORD"):
        RECORDING.write_text(json.dumps({"model": SERVED_NAME, "prompt": PROMPT, "runs": runs}) + "\n")
    recorded = json.loads(RECORDING.read_text())
    assert text_of(page, "source").startswith(f"Recorded: what {SERVED_NAME} answers to “sudoku 1..4")
    assert [panel_text(page, ".verdict", side) for side in (0, 1)] == ["✗ not solved", "✓ solved"]
    for kept, made, canvas in zip(recorded["runs"], runs, cells(page), strict=True):
        assert (kept["text"], kept["knobs"], kept["solved"]) == (made["text"], made["knobs"], made["solved"])
        assert kept["report"] == pytest.approx(made["report"], abs=1e-3)
        shown = {position: (token, step) for position, token, step, _ in written(canvas)}
        for number, (one, other) in enumerate(zip(kept["steps"], made["steps"], strict=True), start=1):
            assert one["positions"] == other["positions"]
            assert one["objective"] == pytest.approx(other["objective"], abs=1e-3)
            assert [shown[position] for position in one["positions"]] == [(token, number) for token in other["text"]]


@pytest.mark.engine
def test_the_samplers_differ_on_the_examples_and_the_page_marks_where(page):
    for example in page.find_elements(By.CSS_SELECTOR, "[data-prompt]:not([hidden])"):
        example.click()
        run(page)
        left, right = cells(page)
        differ = [one["text"] != other["text"] for one, other in zip(left, right, strict=True)]
        prompt = page.find_element(By.ID, "prompt").get_attribute("value")
        assert any(differ), prompt
        verdicts = {True: "✓ solved", False: "✗ not solved"}
        assert [panel_text(page, ".verdict", side) for side in (0, 1)] == [
            verdicts[is_solved(prompt, panel_text(page, "pre", side))] for side in (0, 1)
        ]
        for canvas in (left, right):
            assert ["differs" in cell["classes"] for cell in canvas] == differ
            assert ["; the other side has" in cell["label"] for cell in canvas] == differ


@pytest.mark.engine
def test_what_stands_between_masks_is_shown_from_the_start_and_never_as_written(page):
    fill(page, prompt="multiply<|answer|><|mask|>*7=<|mask:7|>", max_tokens="")
    run(page)
    whole = {frozenset(cell["classes"]) for canvas in cells(page) for cell in canvas[1:4]}
    assert whole == {frozenset({"cell", "given"})}
    assert filled(page) == [11, 11]
    page.find_element(By.ID, "step").send_keys(Keys.HOME)
    for canvas in cells(page):
        assert "".join(cell["text"] for cell in canvas) == "·*7=·······"
        assert [cell["label"] for cell in canvas[:2]] == ["Position 1: masked", 'Position 2: "*", given']


@pytest.mark.engine
def test_the_slider_replays_both_runs_by_keyboard(page):
    run(page)
    slider = page.find_element(By.ID, "step")
    assert (text_of(page, "shown"), filled(page)) == ("10 of 10", [CANVAS, CANVAS])
    slider.send_keys(Keys.ARROW_LEFT)
    assert (text_of(page, "shown"), filled(page)) == ("9 of 10", [CANVAS - 2, CANVAS - 2])
    slider.send_keys(Keys.HOME)
    assert filled(page) == [0, 0]
    assert {cell["text"] for canvas in cells(page) for cell in canvas} == {"·"}
    slider.send_keys(Keys.ARROW_RIGHT)
    assert [sum("newest" in cell["classes"] for cell in canvas) for canvas in cells(page)] == [2, 2]
    slider.send_keys(Keys.END)
    assert filled(page) == [CANVAS, CANVAS]


@pytest.mark.engine
def test_a_replay_ends_with_the_last_step(page):
    run(page)

    def is_seen_in_its_midst() -> bool:
        if text_of(page, "play") == "Play":  # at first, and where it was over before anybody looked
            page.find_element(By.ID, "play").click()
        return 0 < sum(filled(page)) < 2 * CANVAS

    wait_until(page, is_seen_in_its_midst)
    wait_until(page, lambda: text_of(page, "play") == "Play")
    assert filled(page) == [CANVAS, CANVAS]


@pytest.mark.engine
def test_the_numbers_of_a_token_are_shown_on_focus_and_the_arrow_keys_move_it(page):
    run(page)
    first = page.find_element(By.CSS_SELECTOR, ".panel .cell")
    first.send_keys(Keys.ARROW_RIGHT)
    note = page.find_element(By.CSS_SELECTOR, ".panel .cell-note")
    assert note.text == cells(page)[0][1]["label"]
    page.switch_to.active_element.send_keys(Keys.END)
    assert CELL.fullmatch(note.text).groups()[:2] == (str(CANVAS), '"<|eos|>"')


@pytest.mark.engine
def test_a_screenshot_is_small_enough_to_keep(page, tmp_path):
    """Kept by `INFOGAIN_SCREENSHOT=vllm_infogain/serving/page/screenshot.png pytest tests/test_page.py -k shot`."""
    run(page)
    page.find_element(By.ID, "step").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 7)  # where J decides
    fill(page, key="")
    page.execute_script("document.activeElement.blur()")
    show_as(page, height=page.execute_script("return document.body.offsetHeight"))
    path = Path(os.environ.get("INFOGAIN_SCREENSHOT", tmp_path / "page.png"))
    assert page.save_screenshot(str(path))
    assert 20_000 < path.stat().st_size < 300_000


# What goes wrong is said in words.


@pytest.mark.engine
def test_a_refused_value_is_named_with_its_remedy(page):
    fill(page, tokens_per_step=0)
    run(page, expect="Not done.")
    assert text_of(page, "problem").startswith("HTTP 400: tokens_per_step=0: give a whole number of 1 or more")
    assert marked(page) == fields_of(page, "tokens_per_step")


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("num_candidates", {"num_candidates": 65}),
        ("max_tokens", {"max_tokens": -1}),
        ("temperature", {"temperature": -1}),
        ("others", {"others": "prune=2"}),
        ("others", {"others": "best_guess=2"}),
    ],
)
def test_a_refusal_marks_the_field_it_names_and_leaves_the_earlier_answer(name, fields, page):
    Select(page.find_element(By.ID, "left")).select_by_visible_text("info_gain")
    fill(page, **fields)
    before = cells(page)
    run(page, left="info_gain", expect="Not done.")
    assert marked(page) == fields_of(page, name), text_of(page, "problem")
    assert cells(page) == before


@pytest.mark.engine
def test_a_problem_of_one_sampler_leaves_the_other_its_answer(page):
    fill(page, tokens_per_step=1)
    page.execute_script("document.getElementById('left').add(new Option('best'))")
    run(page, left="best", expect="Not done.")
    assert text_of(page, "problem").startswith("best: HTTP 400: sampler='best': give one of info_gain")
    assert filled(page) == [0, CANVAS]


@pytest.mark.engine
@pytest.mark.parametrize("key", ["", "wrong"])
def test_a_wrong_api_key_is_said_to_be_wrong(key, page):
    fill(page, key=key)
    assert run_without_an_answer(page).startswith("HTTP 401: the server wants an API key")
