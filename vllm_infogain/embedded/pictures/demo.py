"""Pictures of held-out prompts by confidence and by Info-Gain, as a page to look at (`make demo-images`).

The prompts, the number of steps and the seeds are the same for both. Each picture is shown as it was filled in.
"""

import argparse
import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import torch
from PIL import Image

import vllm_infogain
from vllm_infogain.embedded.pictures import SERVED_NAME, model_path
from vllm_infogain.embedded.pictures.evaluation import Drawn, draw_all
from vllm_infogain.embedded.pictures.judging import are_right, held_out, picture_tokenizer, pictures
from vllm_infogain.embedded.pictures.words import FIRST_CODE, SIDE_CODES
from vllm_infogain.images.magvit import Magvit, pixels

COMMON = {"guidance_scale": 1.0, "schedule": "maskgit", "position_temperature": 0.4, "return_trajectory": True}
SAMPLERS: dict[str, dict[str, Any]] = {
    "confidence": {"sampler": "confidence"},
    "info_gain": {"sampler": "info_gain", "state_uncertainty": "sum", "bypass_threshold": 1.0},
}
SCALE = 4  # pixels shown per pixel of a picture
MILLISECONDS = 150  # a step is shown for
WHOLE_MILLISECONDS = 4000
NOT_WRITTEN = 205  # grey of codes that are not there yet
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Pictures by confidence and by Info-Gain</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 72em; color: #222; background: #fff }}
main {{ display: flex; flex-wrap: wrap; gap: 1.2em }}
figure {{ margin: 0; width: {side}px }}
img {{ display: block; width: {side}px; height: {side}px; image-rendering: pixelated; border-radius: 4px }}
.right {{ border-bottom: 4px solid #2a9d55 }}
.wrong {{ border-bottom: 4px solid #d04848 }}
figcaption {{ font-size: 13px; margin-top: .3em }}
</style>
<h1>Above confidence, below Info-Gain</h1>
<p>{steps} denoising steps, the same prompts and seeds; none of the prompts was in training. Green: the picture holds
what its prompt asks for, by GenEval's rules. Right: {score}.</p>
<main>
{figures}
</main>
</html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=16, help="denoising steps of each picture (default: %(default)s)")
    parser.add_argument("--per-category", type=int, default=4, help="prompts of each of the six categories")
    parser.add_argument("--out", type=Path, default=Path("demo-images.html"), help="the page (default: %(default)s)")
    arguments = parser.parse_args()
    for name in ("steps", "per_category"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(arguments, name)}: give 1 or more")
    print("Starting vLLM with the embedded model of pictures (about 20 s) ...", flush=True)
    llm = vllm_infogain.load_llm(SERVED_NAME, disable_log_stats=True)
    tokenizer, wanted = picture_tokenizer(model_path()), held_out(arguments.per_category)
    drawn, right = {}, {}
    for name, knobs in SAMPLERS.items():
        drawn[name] = draw_all(llm, wanted, {**COMMON, **knobs, "steps": arguments.steps}, use_tqdm=True)
        right[name] = are_right(pictures(tokenizer, [one.codes for one in drawn[name]]), wanted)
        entropy = np.mean([one.report["cumulative_entropy"] for one in drawn[name]])
        print(
            f"{name:12} {sum(right[name]):3} of {len(wanted)} right, cumulative entropy {entropy:5.1f} nats", flush=True
        )
    figures = [
        figure([drawn[name][index] for name in SAMPLERS], [right[name][index] for name in SAMPLERS], tokenizer)
        for index in range(len(wanted))
    ]
    score = ", ".join(f"{name} {sum(right[name])} of {len(wanted)}" for name in SAMPLERS)
    side = SCALE * SIDE_CODES * tokenizer.config.pixels_per_code
    page = PAGE.format(side=side, steps=arguments.steps, score=score, figures="\n".join(figures))
    arguments.out.write_text(page, encoding="utf-8")
    print(f"\nThe pictures: {arguments.out.resolve()}")


def figure(drawn: Sequence[Drawn], right: Sequence[bool], tokenizer: Magvit) -> str:
    """One prompt's pictures, one below the other."""
    shown = "\n".join(
        f'<img class="{"right" if ok else "wrong"}" alt="" src="data:image/webp;base64,{animation(one, tokenizer)}">'
        for one, ok in zip(drawn, right, strict=True)
    )
    return f"<figure>{shown}<figcaption>{html.escape(drawn[0].requirement['prompt'])}</figcaption></figure>"


@torch.no_grad()
def animation(drawn: Drawn, tokenizer: Magvit) -> str:
    """The whole picture, then how it was filled in step by step, as base64 of an animated WebP."""
    codes = torch.zeros(len(drawn.codes), dtype=torch.int64)
    unknown = torch.ones(len(drawn.codes), dtype=torch.bool)
    states = []
    for step in drawn.report["trajectory"]:
        codes[step["positions"]] = torch.tensor(step["tokens"]) - FIRST_CODE
        unknown[step["positions"]] = False
        states.append((codes.clone(), unknown.clone()))
    grid = (len(states), SIDE_CODES, SIDE_CODES)
    stacked = [torch.stack(parts).view(grid) for parts in zip(*states, strict=True)]
    shown = pixels(tokenizer.decode(*stacked))
    cells = stacked[1].repeat_interleave(tokenizer.config.pixels_per_code, 1)
    shown[cells.repeat_interleave(tokenizer.config.pixels_per_code, 2)] = NOT_WRITTEN
    frames = [Image.fromarray(frame) for frame in shown.roll(1, 0).numpy()]
    file = io.BytesIO()
    lasting = [WHOLE_MILLISECONDS] + [MILLISECONDS] * (len(frames) - 1)
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=lasting, loop=0, lossless=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
