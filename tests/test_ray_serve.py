"""Two replicas on Ray Serve: answers and refusals of one engine; one is killed under load, and no answer is wrong."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import psutil
import pytest
from engines import Job, running
from marked import refuse_unmarked
from ray_cluster import members, ray_cluster
from scrape import scrape
from waiting import PATIENCE, wait_until

import vllm_infogain
from vllm_infogain.embedded import SERVED_NAME

pytestmark = [pytest.mark.engine, pytest.mark.slow]

KNOBS = [
    {"sampler": "entropy", "tokens_per_step": 2},
    {"sampler": "info_gain", "position_temperature": 1.0},
    {"sampler": "lookum", "cache": "dual", "block_length": 8},
    {"sampler": "beam", "beam_width": 2},
]
JOBS = [Job(f"multiply {3 + i}*7", KNOBS[i % 4], 12, (0.0, 0.8)[i % 2], i) for i in range(12)]


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    """Of each job: the tokens and the report."""
    with running(None, model=object()) as engine:
        outputs = engine.run(JOBS)
    seen_here = [seen(output.outputs[0].token_ids, vllm_infogain.report(output)) for output in outputs]
    return [(*exact, pytest.approx(entropy, rel=1e-4)) for *exact, entropy in seen_here]


def seen(tokens: list[int], report: dict[str, Any]) -> tuple[Any, ...]:
    counts = ("steps", "forwards", "rows", "candidates", "written", "bypassed_steps")
    return list(tokens), [report[name] for name in counts], report["cumulative_entropy"]


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")  # of a busy machine
        patched.setenv("HF_HUB_OFFLINE", "1")
        with ray_cluster(nodes=1, cpus=4) as environment:
            for name, value in environment.items():
                patched.setenv(name, value)
            yield environment


@pytest.fixture(scope="module")
def url(cluster):
    import ray
    from ray import serve

    from vllm_infogain.ray_serve import Settings, build

    refuse_unmarked()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(address=cluster["RAY_ADDRESS"], log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(Settings(replicas=2)))
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


def post(url: str, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json={"model": SERVED_NAME} | body, timeout=PATIENCE)


def body_of(job: Job) -> dict[str, Any]:
    return {
        "prompt": job.prompt, "max_tokens": job.max_tokens, "temperature": job.temperature, "seed": job.seed,
        "ignore_eos": True, "vllm_xargs": job.knobs, "return_token_ids": True,
    }  # fmt: skip


def ask(url: str, job: Job) -> tuple[Any, ...] | None:
    """What a client sees of a job; None if it failed."""
    try:
        response = post(url, **body_of(job))
    except httpx.HTTPError:
        return None
    if response.status_code != 200:
        return None
    (choice,) = response.json()["choices"]
    return seen(choice["token_ids"], choice["infogain"])


def ask_streamed(url: str, job: Job) -> tuple[Any, ...]:
    lines = post(url, stream=True, **body_of(job)).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    tokens = [token for choice in choices for token in choice.get("token_ids") or ()]
    (report,) = (choice["infogain"] for choice in choices if "infogain" in choice)
    return seen(tokens, report)


def test_streams_and_answers_of_two_replicas_are_those_of_one_engine(url, expected):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda job: ask(url, job), JOBS)) == expected
        assert list(pool.map(lambda job: ask_streamed(url, job), JOBS)) == expected


def test_rays_own_metrics_hold_ours_of_both_replicas(url, expected):
    import ray

    (node,) = ray.nodes()
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"

    def replicas() -> set[str]:
        samples = scrape(page)
        return {dict(labels)["ReplicaId"] for name, labels in samples if name.startswith("ray_infogain_steps")}

    def both_have_worked() -> bool:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda job: ask(url, job), JOBS))
        return len(replicas()) == 2

    wait_until(both_have_worked, lambda: f"steps of {replicas()}", every=2)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"vllm_xargs": {"sampler": "entropi"}}, "sampler"),
        ({"sampler": "entropy"}, "vllm_xargs"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"structured_outputs": {"regex": "[0-9]{40}"}}, "max_tokens"),
    ],
)
def test_what_is_refused_is_http_400_on_a_stream_too(url, body, named):
    for stream in (False, True):
        for path, asked in {
            "/v1/completions": {"prompt": "multiply 6*7"},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "multiply 6*7"}]},
        }.items():
            response = post(url, path, stream=stream, max_tokens=12, temperature=0, **asked, **body)
            assert response.status_code == 400, response.text
            assert named in response.json()["error"]["message"]


def replicas(cluster: dict[str, str]) -> list[psutil.Process]:
    return members(cluster, "ServeReplica:default:LLMServer")


@pytest.mark.parametrize("part", ["replica", "engine core"])
def test_a_replica_killed_under_load_fails_its_requests_and_comes_back(cluster, url, expected, capsys, part):
    from ray import serve

    victim, other = replicas(cluster)
    (core,) = [process for process in members(cluster, "VLLM::EngineCore") if process.ppid() == victim.pid]
    answers: list[tuple[bool, int, Any]] = []  # of each request: whether it was sent after the recovery, job, answer
    recovered = ended = False

    def load(first: int) -> None:
        for number in count(first):
            sent_late, index = recovered, number % len(JOBS)
            answers.append((sent_late, index, ask(url, JOBS[index])))
            if ended:
                break

    def are_two() -> bool:
        started = [process.pid for process in replicas(cluster)]
        status = serve.status().applications["default"].deployments
        running = sum(s.replica_states.get("RUNNING", 0) for name, s in status.items() if "LLMServer" in name)
        return victim.pid not in started and len(started) == 2 and running == 2

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(load, 3 * first) for first in range(4)]
        try:
            wait_until(lambda: len(answers) > 8, lambda: "no answers")
            killed = time.monotonic()
            {"replica": victim, "engine core": core}[part].kill()
            wait_until(are_two, lambda: f"one replica is gone: {serve.status()}", every=0.5)
            recovery, recovered = time.monotonic() - killed, True
            wait_until(lambda: sum(late for late, *_ in answers) > 8, lambda: "no answers any more")
        finally:
            ended = True
        for client in clients:
            client.result()
    failed = sum(answer is None for *_, answer in answers)
    wrong = [index for _, index, answer in answers if answer is not None and answer != expected[index]]
    with capsys.disabled():
        print(f"\n{part} killed under load: {len(answers)} requests, {failed} failed, {len(wrong)} wrong, ", end="")
        print(f"two replicas again after {recovery:.0f} s")
    assert not wrong
    assert other.is_running()
    assert all(answer is not None for late, _, answer in answers if late), "it has come back"
