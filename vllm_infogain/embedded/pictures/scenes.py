"""The world of infogain-tiny-image: coloured shapes on a plain ground, prompts in GenEval's six forms, a detector.

A scene's requirement is one line of GenEval's metadata, so that `images.geneval` judges it.
"""

import zlib
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_infogain.images.geneval import CATEGORIES, Found, faults
from vllm_infogain.images.magvit import from_pixels

SIDE = 32  # pixels
GROUND = (238, 238, 232)
COLOURS = {
    "red": (214, 40, 40), "blue": (40, 84, 200), "green": (40, 150, 70), "yellow": (240, 200, 40),
    "purple": (140, 60, 170), "orange": (240, 130, 30),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
COUNTS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "a drawing of {}")
SIZES = (7, 14)  # smallest and largest shape, pixels
APART = 2  # pixels between two shapes
HELD_OUT = 8  # one prompt in 8 is for evaluation only
SMALLEST_MATCH = 0.75  # of a region with the shape that fits it best; less is no shape
FEWEST_PIXELS = 12  # a smaller region is a speck

Requirement = dict[str, Any]  # a line of GenEval's metadata
Object = tuple[str | None, str]  # colour, or None for any; shape
Picture = np.ndarray  # [SIDE, SIDE, 3], uint8


@cache
def requirements(split: str) -> dict[str, tuple[Requirement, ...]]:
    """Every requirement of a split, by category. One prompt in HELD_OUT of each category is in "test", no other is.

    Args:
        split: "train" or "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} is unknown; choose 'train' or 'test'")
    made: dict[str, list[Requirement]] = {category: [] for category in CATEGORIES}
    for category, words, parts in _contents():
        for template in TEMPLATES:
            made[category].append({"tag": category, **parts, "prompt": template.format(words)})
    chosen = {}
    for category, lines in made.items():
        lines.sort(key=lambda line: zlib.crc32(line["prompt"].encode()))  # a shuffle that every process agrees on
        is_test = [index % HELD_OUT == 0 for index in range(len(lines))]
        chosen[category] = tuple(line for line, held in zip(lines, is_test, strict=True) if held == (split == "test"))
    return chosen


def _contents() -> Iterator[tuple[str, str, Requirement]]:
    """Category, words and GenEval's parts of all there is to ask for."""
    plain: list[Object] = [(None, shape) for shape in SHAPES]
    coloured: list[Object] = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    for one in plain:
        yield "single_object", _one(one), {"include": [_include(one)]}
    for one in coloured:
        yield "colors", _one(one), {"include": [_include(one)]}
    for one in plain + coloured:
        for count, word in COUNTS.items():
            words = " ".join([word, *([one[0]] if one[0] else []), PLURALS[one[1]]])
            exclude = [{"class": one[1], "count": count + 1}]
            yield "counting", words, {"include": [_include(one, count)], "exclude": exclude}
    for category, pairs in (("two_object", _pairs(plain)), ("color_attr", _pairs(coloured))):
        for one, other in pairs:
            yield category, f"{_one(one)} and {_one(other)}", {"include": [_include(one), _include(other)]}
    for one, other in _pairs(plain) + _pairs(coloured):
        for relation in RELATIONS:
            # As GenEval has it: what comes first in the prompt is the second include, and says where it is.
            include = [_include(other), _include(one) | {"position": [relation, 0]}]
            yield "position", f"{_one(one)} {relation} {_one(other)}", {"include": include}


def _pairs(objects: list[Object]) -> list[tuple[Object, Object]]:
    return [(one, other) for one in objects for other in objects if one[1] != other[1]]


def _one(one: Object) -> str:
    colour, shape = one
    noun = f"{colour} {shape}" if colour else shape
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _include(one: Object, count: int = 1) -> Requirement:
    colour, shape = one
    return {"class": shape, "count": count} | ({"color": colour} if colour else {})


def draw(requirement: Requirement, rng: Random) -> Picture:
    """A picture that meets a requirement, and holds nothing else."""
    wanted = [
        (include.get("color"), include["class"]) for include in requirement["include"] for _ in range(include["count"])
    ]
    while True:
        picture, found = _placed(wanted, rng)
        if len(found) == len(wanted) and not faults(found, requirement):
            return picture


def _placed(wanted: list[Object], rng: Random) -> tuple[Picture, list[Found]]:
    picture = np.full((SIDE, SIDE, 3), GROUND, dtype=np.uint8)
    is_taken = np.zeros((SIDE, SIDE), dtype=bool)
    found: list[Found] = []
    for colour, shape in wanted:
        colour = colour or rng.choice(list(COLOURS))
        for _ in range(20):
            size = rng.randint(*SIZES)
            left, top = (rng.randint(1, SIDE - size - 1) for _ in range(2))
            around = np.s_[max(top - APART, 0) : top + size + APART, max(left - APART, 0) : left + size + APART]
            if is_taken[around].any():
                continue
            inside = np.s_[top : top + size, left : left + size]
            is_taken[inside] = True
            picture[inside][stencil(shape, size, size)] = COLOURS[colour]
            found.append(Found(shape, colour, (left, top, left + size, top + size)))
            break
    return picture, found


@cache
def stencil(shape: str, width: int, height: int) -> np.ndarray:
    """[height, width], bool: the pixels of a shape that fills the box."""
    y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
    y, x = y[:, None], x[None, :]  # centres of pixels, -1 to 1
    fills: dict[str, Callable[[], np.ndarray]] = {
        "circle": lambda: x**2 + y**2 <= 1.0,
        "square": lambda: np.ones((height, width), dtype=bool),
        "triangle": lambda: np.abs(x) <= (y + 1) / 2 + 0.5 / width,
        "cross": lambda: (np.abs(x) <= 0.36) | (np.abs(y) <= 0.36),
    }
    return np.broadcast_to(fills[shape](), (height, width))


def detect(picture: Picture) -> list[Found]:
    """The shapes in a picture: regions of one colour that fit a shape well; the fit is the confidence.

    Args:
        picture: [SIDE, SIDE, 3], uint8; any, not only a drawn one.
    """
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names] + [GROUND], dtype=np.int64)
    nearest = ((picture[:, :, None].astype(np.int64) - palette) ** 2).sum(-1).argmin(-1)
    found = []
    for index, name in enumerate(names):
        for region in _regions(nearest == index):
            rows, columns = np.nonzero(region)
            top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
            width, height = int(right - left), int(bottom - top)
            cut = region[top:bottom, left:right]
            fits = {shape: _overlap(cut, stencil(shape, width, height)) for shape in SHAPES}
            shape, fit = max(fits.items(), key=lambda item: item[1])
            if fit >= SMALLEST_MATCH and min(width, height) >= 0.7 * max(width, height):
                found.append(Found(shape, name, (int(left), int(top), int(right), int(bottom)), float(fit)))
    return found


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def _regions(is_there: np.ndarray) -> Iterator[np.ndarray]:
    """The connected regions, by side, of at least FEWEST_PIXELS pixels."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(is_there), strict=True)}
    while left:
        edge = [left.pop()]
        region = np.zeros_like(is_there)
        while edge:
            y, x = edge.pop()
            region[y, x] = True
            for neighbour in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    edge.append(neighbour)
        if region.sum() >= FEWEST_PIXELS:
            yield region


def scenes(split: str, count: int, seed: int) -> Iterator[tuple[dict, np.ndarray]]:
    """`count` requirements and their pictures, category after category in turn."""
    rng = Random(f"{split} {seed}")
    for index in range(count):
        requirement = rng.choice(requirements(split)[CATEGORIES[index % len(CATEGORIES)]])
        yield requirement, draw(requirement, rng)


def drawings(wanted: list[dict], seed: int) -> np.ndarray:
    """A true picture of each requirement: [n, side, side, 3], uint8."""
    rng = Random(f"drawings {seed}")
    return np.stack([draw(requirement, rng) for requirement in wanted])


def to_network(pictures: list[np.ndarray]) -> Tensor:
    """uint8 [side, side, 3] each -> [n, 3, side, side], -1 to 1."""
    return from_pixels(torch.from_numpy(np.stack(pictures)))
