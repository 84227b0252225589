"""The live page before streams that no small model makes: any text, any cut, any end. No engine runs."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from browser import (
    cells,
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

from vllm_infogain.serving.page import Page

REPORT = {"steps": 1, "forwards": 1, "rows": 9, "bypassed_steps": 0, "cumulative_entropy": 1.0}


@contextmanager
def served(engine: Any = None) -> Iterator[str]:
    """A server of the page, with a model's name and no model."""
    app = FastAPI()
    app.state.engine_client = engine
    Page().attach_router(app)
    app.get("/v1/models")(lambda: {"data": [{"id": "none"}]})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    with open_page(browser, url) as page:
        yield page


def event(**choice) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, **choice}]}, ensure_ascii=False)}\n\n"


def steps(texts: list[str], entropies: list[float]) -> str:
    """The event of one step that writes these tokens from the left."""
    positions = list(range(len(texts)))
    taken = {"positions": positions, "text": texts, "entropies": entropies, "objective": [], "chosen": 0}
    return event(infogain_steps=[{**taken, "tokens": positions, "bypassed": False}])


END = event(finish_reason="length", infogain=REPORT) + "data: [DONE]\n\n"


def pretend(browser, stream: str, *, cut: int = 10**6, end: str = "close") -> None:
    """Have every completion answered with this stream, `cut` bytes at a time; `end`: close, error or wait."""
    browser.execute_script(
        """
        const [bytes, cut, end] = arguments;
        const real = window.fetch;
        Object.assign(window, { aborted: window.aborted ?? 0, streams: [] });
        const source = (signal) => ({
            start(controller) {
                window.streams.push(controller);
                signal.addEventListener("abort", () => { window.aborted += 1; controller.error(signal.reason); });
                for (let i = 0; i < bytes.length; i += cut) controller.enqueue(new Uint8Array(bytes.slice(i, i + cut)));
                if (end === "close") controller.close();
                if (end === "error") setTimeout(() => controller.error(new TypeError("network error")), 100);
            },
        });
        window.sent = [];
        window.fetch = (url, options) => {
            if (url !== "v1/completions" && url !== "v1/images/generations") return real(url, options);
            window.sent.push(JSON.parse(options.body));
            return Promise.resolve(new Response(new ReadableStream(source(options.signal))));
        };
        """,
        list(stream.encode()), cut, end,
    )  # fmt: skip


def test_any_text_is_shown_as_text(page):
    texts = ["<img src=x onerror=alert(1)>", "</li></ol>", "&lt;", "\u202e", "", "\0", "'\"`", "<script>"]
    pretend(page, steps(texts, [0.0] * len(texts)) + END)
    run(page)
    for canvas in cells(page):
        assert [cell["text"] for cell in canvas[: len(texts)]] == [text.replace(" ", "␣") for text in texts]
    assert page.execute_script("return document.querySelectorAll('main img, main script').length") == 0


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_no_event_is_lost_wherever_its_bytes_are_cut(cut, page):
    texts = ["é", "漢", "😀", "data: x"]
    pretend(page, steps(texts[:2], [0.5, 0.5]) + steps(texts, [0.25] * 4).replace("\n", "\r\n") + END, cut=cut)
    run(page)
    assert [token for _, token, *_ in written(cells(page)[0][:4])] == texts
    assert text_of(page, "shown") == "2 of 2"


def test_a_cells_class_tells_its_entropy_as_the_legend_says(page):
    entropies = [0.0, 0.0099, 0.01, 0.0999, 0.1, 0.3, 0.999, 1.0, 12.0]
    pretend(page, steps([*"abcdefghi"], entropies) + END)
    run(page)
    classes = [next(name for name in cell["classes"] if name[0] == "h") for cell in cells(page)[0][: len(entropies)]]
    assert classes == ["h0", "h0", "h1", "h1", "h2", "h3", "h3", "h4", "h4"]


BROKEN = {  # what comes, how it ends, what is said
    "an error in the stream": ('data: {"error": {"message": "out of pages"}}\n\n', "close", "out of pages"),
    "a stream that ends early": (steps(["a"], [0.0]), "close", "the connection ended before the answer did."),
    "a connection that breaks": (
        steps(["a"], [0.0]), "error", "the connection broke before the answer was complete."
    ),
    "a run that the server ends": (
        steps(["a"], [0.0]) + END.replace("length", "abort"), "close",
        "the server ended it early: did it take longer than request_timeout?",
    ),
    "a run that the server ends before it began": (
        event(text="", finish_reason="abort") + "data: [DONE]\n\n", "close",
        "the server ended it early: did it take longer than request_timeout?",
    ),
    "an engine that is not ours": (
        event(text="a", finish_reason="stop") + "data: [DONE]\n\n", "close",
        "the answer has no report: was the server started with --plugin infogain?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_stream_that_breaks_is_explained(what, page):
    stream, end, said = BROKEN[what]
    pretend(page, stream, end=end)
    run(page, expect="Not done.")
    assert text_of(page, "problem") == said


def test_a_run_can_be_stopped_on_both_sides_and_keeps_what_was_written(page):
    pretend(page, steps(["a", "b"], [0.0, 0.0]), end="wait")
    page.find_element(By.ID, "run").click()
    wait_until(page, lambda: filled(page) == [2, 2])
    page.find_element(By.ID, "stop").click()
    wait_until(page, lambda: text_of(page, "status") == "Stopped.")
    assert (filled(page), text_of(page, "problem")) == ([2, 2], "")
    assert page.execute_script("return window.aborted") == 2


def test_a_run_that_is_started_again_drops_the_first(page):
    pretend(page, steps(["a", "b"], [0.0, 0.0]), end="wait")
    page.find_element(By.ID, "run").click()
    wait_until(page, lambda: filled(page) == [2, 2])
    pretend(page, steps(["c"], [0.0]) + END)
    run(page)
    assert page.execute_script("return window.aborted") == 2
    assert (filled(page), [canvas[0]["text"] for canvas in cells(page)]) == ([1, 1], ["c", "c"])


def test_a_problem_leaves_the_answer_of_the_earlier_run_and_says_so(page):
    pretend(page, steps(["a"], [0.0]) + END)
    run(page)
    assert text_of(page, "source") == ""
    fill(page, seed="1e")
    assert run_without_an_answer(page) == "Seed: give a number."
    assert text_of(page, "source") == "From an earlier run."
    assert [canvas[0]["text"] for canvas in cells(page)] == ["a", "a"]


def test_a_stream_without_any_step_leaves_the_answer_of_the_earlier_run(page):
    pretend(page, BROKEN["a run that the server ends before it began"][0])
    assert run_without_an_answer(page).startswith("the server ended it early")
    assert text_of(page, "source").startswith("Recorded:")


def test_steps_that_arrive_do_not_take_the_reader_from_the_one_picked(page):
    pretend(page, steps(["a"], [0.0]), end="wait")
    page.find_element(By.ID, "run").click()
    wait_until(page, lambda: text_of(page, "shown") == "1 of 1")
    page.find_element(By.ID, "step").send_keys(Keys.HOME)
    page.execute_script(
        "for (const stream of window.streams) { stream.enqueue(new Uint8Array(arguments[0])); stream.close(); }",
        list((steps(["b"], [0.0]) + END).encode()),
    )
    wait_until(page, lambda: text_of(page, "status") == "Done.")
    assert (text_of(page, "shown"), filled(page)) == ("0 of 2", [0, 0])


def test_a_field_that_is_no_number_is_named_and_marked_until_it_is_mended(page):
    fill(page, temperature="1e")
    assert run_without_an_answer(page) == "Temperature: give a number."
    assert marked(page) == fields_of(page, "temperature") == [page.switch_to.active_element]
    fill(page, temperature=0)
    assert marked(page) == []


def test_a_parameter_without_its_value_is_named_and_marked_on_its_side(page):
    fill(page, "right", others="prune")
    assert run_without_an_answer(page) == "Others: write name=value, and a space between two."
    assert marked(page) == fields_of(page, "others", ("right",))


@pytest.mark.parametrize("width", [700, 900, 1180])
def test_a_short_answer_is_not_broken_inside_an_equation(width, page):
    show_as(page, width)
    equations = ["13+19=32,", "32-14=18"]
    pretend(page, steps([*"".join(equations), "<|eos|>"], [0.0] * 18) + END)
    run(page)
    tops = page.execute_script(
        "return [...document.querySelector('.canvas').children].slice(0, 17).map((cell) => cell.offsetTop)"
    )
    first, second = set(tops[:9]), set(tops[9:])
    assert (len(first), len(second)) == (1, 1)
    assert first != second, "both have room on one line, so that this shows nothing"


def test_an_end_token_fades_beside_the_answer(page):
    pretend(page, steps(["a", "<|eos|>"], [0.0, 0.0]) + END)
    run(page)
    colours = page.execute_script(
        "return [...document.querySelector('.canvas').children].slice(0, 2).map("
        "(cell) => [getComputedStyle(cell).backgroundColor, getComputedStyle(cell).color])"
    )
    assert colours[0] != colours[1]
    assert colours[1][0] == "rgba(0, 0, 0, 0)"


def test_play_pause_and_single_steps(page):
    pretend(page, steps(["a"], [0.0]) * 400 + END)
    run(page)
    back, forward, play = (page.find_element(By.ID, name) for name in ("back", "forward", "play"))
    back.click()
    assert text_of(page, "shown") == "399 of 400"
    forward.click()
    forward.click()
    assert text_of(page, "shown") == "400 of 400"
    Select(page.find_element(By.ID, "speed")).select_by_value("0.5")
    play.click()
    assert play.text == "Pause"
    wait_until(page, lambda: not text_of(page, "shown").startswith("0 "))
    play.click()
    assert play.text == "Play"
    paused = text_of(page, "shown")
    forward.click()
    assert text_of(page, "shown") == f"{int(paused.split()[0]) + 1} of 400"


def test_a_server_out_of_reach_is_said_to_be(page):
    unreachable = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    page.execute_cdp_cmd("Network.emulateNetworkConditions", unreachable)
    try:
        assert run_without_an_answer(page) == "the server could not be reached: does it still run?"
    finally:
        page.execute_cdp_cmd("Network.emulateNetworkConditions", unreachable | {"offline": False})


@pytest.mark.parametrize("width", [320, 400, 1180])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width_and_the_colours_are_the_readers(width, scheme, page):
    show_as(page, width, scheme=scheme)
    long = "a-very-long-token-of-some-vocabulary " * 4
    pretend(page, steps(["a", "\n", long] * 30, [0.1] * 90) + END)
    run(page)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    tops = page.execute_script("return [...document.querySelectorAll('.panel')].map((panel) => panel.offsetTop)")
    assert (tops[0] == tops[1]) == (width > 352), "side by side wherever two columns of cells have room"
    red = page.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(red) < 128) == (scheme == "dark")


READABLE = """
    const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => channels(colour).slice(0, 3).map((value) => value / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return channels(colour)[3] === 0 ? behind(node.parentElement) : colour;
    };
    const own = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    return [...document.body.querySelectorAll("*")].filter((node) => own(node) && node.offsetParent && !node.disabled)
        .map((node) => {
            const [low, high] = [getComputedStyle(node).color, behind(node)].map(luminance).sort((a, b) => a - b);
            return [(high + 0.05) / (low + 0.05), node.className || node.id || node.tagName];
        }).sort(([a], [b]) => a - b);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_the_contrast_of_4_5_that_wcag_asks_for(scheme, page):
    show_as(page, scheme=scheme)
    pretend(
        page, steps([*"abcde", "<|eos|>"], [0.0, 0.05, 0.2, 0.5, 2.0, 0.5]) + 'data: {"error": {"message": "e"}}\n\n'
    )
    run(page, expect="Not done.")
    ratios = page.execute_script(READABLE)
    assert {"problem", "status", "cell h4", "cell masked", "note"} <= {
        name.replace(" newest", "") for _, name in ratios
    }
    assert ratios[0][0] >= 4.5, ratios[:5]


# Pictures.

GREY, RED = (  # of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNoaGgAAAMEAYFL09IQAAAAAElFTkSuQmCC",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC",
)


@pytest.fixture(scope="module")
def pictures_url() -> Iterator[str]:
    hf_config = SimpleNamespace(codebook_size=16)
    with served(SimpleNamespace(vllm_config=SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config)))) as url:
        yield url


@pytest.fixture
def picture_page(browser, pictures_url):
    with open_page(browser, pictures_url) as page:
        yield page


def painted(data: str, **fields) -> str:
    kind = "completed" if "infogain" in fields else "partial_image"
    event = {"type": f"image_generation.{kind}", "b64_json": data, "output_format": "png", **fields}
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def shown(page) -> list[str]:
    pictures = page.find_elements(By.CSS_SELECTOR, ".panel .picture")
    return [one.get_attribute("src").rpartition(",")[2] for one in pictures if one.is_displayed()]


STEPS = [
    {"positions": [0, 1], "tokens": [90, 91], "entropies": [0.5, 0.25], "objective": [], "chosen": 0, "bypassed": False}
] * 2


def test_a_model_of_texts_is_not_asked_for_pictures(page):
    assert not page.find_element(By.ID, "kind").is_displayed()


def test_a_picture_is_shown_as_it_fills_in_and_again_step_by_step(picture_page):
    page = picture_page
    assert page.find_element(By.ID, "prompt").get_attribute("value").startswith("a red circle")
    pretend(page, painted(GREY, infogain_step=1), end="wait")
    page.find_element(By.ID, "run").click()
    wait_until(page, lambda: shown(page) == [GREY, GREY])
    rest = painted(RED, infogain=REPORT | {"trajectory": STEPS})
    page.execute_script(
        "for (const stream of window.streams) { stream.enqueue(new Uint8Array(arguments[0])); stream.close(); }",
        list(rest.encode()),
    )
    wait_until(page, lambda: text_of(page, "status") == "Done.")
    assert (shown(page), text_of(page, "shown")) == ([RED, RED], "2 of 2")
    page.find_element(By.ID, "back").click()
    assert shown(page) == [GREY, GREY]
    page.find_element(By.ID, "back").click()
    assert shown(page) == []
    (sent, _) = page.execute_script("return window.sent")
    assert (sent["prompt"], sent["stream"], sent["partial_images"]) == ("a red circle left of a blue square", True, 3)
    assert sent["vllm_xargs"] == {"sampler": "entropy", "tokens_per_step": 2, "return_trajectory": 1}


def test_a_picture_that_does_not_come_is_explained(picture_page):
    pretend(picture_page, painted(GREY, infogain_step=1))
    run(picture_page, expect="Not done.")
    assert text_of(picture_page, "problem") == "the connection ended before the picture was whole."
