"""Pictures of a running server in the layouts that the field's own evaluators read.

    python -m benchmarks.export_images geneval OUT --metadata evaluation_metadata.jsonl [--url http://localhost:8000]
    python -m benchmarks.export_images npz OUT.npz --prompts prompts.txt --per-prompt 50

`geneval`: GenEval's folders, OUT/00000/metadata.jsonl and OUT/00000/samples/0000.png. Its script evaluate_images scores
them, `OUT --outfile results.jsonl --model-path DETECTOR`, and summary_scores, `results.jsonl`, adds them up. `npz`: the
one array `arr_0`, [n, side, side, 3] uint8, that OpenAI's evaluator of guided diffusion reads, `REFERENCE.npz OUT.npz`
(FID, sFID, IS). A picture that is there already is not asked for again.
"""

import argparse
import base64
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

SECONDS_PER_PICTURE = 3600.0


def wanted_by_geneval(out: Path, metadata: Path, count: int) -> Iterator[tuple[Path, str, int]]:
    """Files, prompts and seeds; writes each prompt's metadata as it goes."""
    lines = [line for line in metadata.read_text().splitlines() if line.strip()]
    for index, line in enumerate(lines):
        folder = out / f"{index:05}"
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").write_text(line + "\n")
        prompt = json.loads(line)["prompt"]
        yield from ((folder / "samples" / f"{sample:04}.png", prompt, sample) for sample in range(count))


def wanted_for_array(folder: Path, prompts: Path, count: int) -> Iterator[tuple[Path, str, int]]:
    """Files, prompts and seeds: prompt after prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for line in prompts.read_text().splitlines() if line.strip()]
    for index, prompt in enumerate(lines):
        yield from ((folder / f"{index:05}-{sample:04}.png", prompt, sample) for sample in range(count))


def fetch(client: httpx.Client, path: Path, body: dict[str, Any]) -> None:
    """Ask for one picture and write it whole, or not at all."""
    response = client.post("/v1/images/generations", json=body)
    if response.status_code != 200:
        raise SystemExit(f"{body['prompt']!r}: the server answered {response.status_code}: {response.text}")
    part = path.with_suffix(".part")
    part.write_bytes(base64.b64decode(response.json()["data"][0]["b64_json"]))
    part.rename(path)


def fetch_all(jobs: list[tuple[Path, str, int]], url: str, common: dict[str, Any], clients: int) -> None:
    """Every picture that is not there, several at once."""
    missing = [job for job in jobs if not job[0].exists()]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} pictures are there already", flush=True)
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"} if "OPENAI_API_KEY" in os.environ else {}
    with (
        httpx.Client(base_url=url, timeout=SECONDS_PER_PICTURE, headers=headers) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        running = [
            pool.submit(fetch, client, path, common | {"prompt": prompt, "seed": seed, "output_format": "png"})
            for path, prompt, seed in missing
        ]
        try:
            for done in tqdm(as_completed(running), total=len(running), unit="picture"):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # the layouts are worth reading as they stand
    parser.add_argument("layout", choices=("geneval", "npz"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--metadata", type=Path, help="geneval: its prompts, one JSON object per line")
    parser.add_argument("--prompts", type=Path, help="npz: one prompt per line")
    parser.add_argument("--per-prompt", type=int, default=4, help="pictures of each prompt, with seeds 0, 1, ...")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--knobs", type=json.loads, default={}, help="JSON of decoding parameters: vllm_xargs")
    parser.add_argument("--clients", type=int, default=8, help="pictures asked for at once")
    arguments = parser.parse_args()
    if arguments.per_prompt < 1:
        parser.error(f"--per-prompt={arguments.per_prompt}: give 1 or more")
    common = {"vllm_xargs": arguments.knobs} if arguments.knobs else {}
    source = arguments.metadata if arguments.layout == "geneval" else arguments.prompts
    if source is None:
        parser.error("geneval needs --metadata, npz needs --prompts")
    if arguments.layout == "geneval":
        jobs = list(wanted_by_geneval(arguments.out, source, arguments.per_prompt))
        fetch_all(jobs, arguments.url, common, arguments.clients)
        return
    folder = arguments.out.with_suffix("")
    jobs = list(wanted_for_array(folder, source, arguments.per_prompt))
    fetch_all(jobs, arguments.url, common, arguments.clients)
    np.savez(arguments.out, arr_0=np.stack([pixels_of(path) for path, _, _ in jobs]))


def pixels_of(path: Path) -> np.ndarray:
    """[height, width, 3], uint8."""
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


if __name__ == "__main__":
    main()
