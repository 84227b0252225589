"""GenEval's rules on found objects, and the embedded scenes: drawn right, found right, and wrong ones seen."""

from random import Random

import numpy as np
import pytest

from vllm_infogain.embedded.pictures.scenes import COLOURS, GROUND, SHAPES, detect, draw, requirements, stencil
from vllm_infogain.images.geneval import CATEGORIES, Found, faults, relations


def at(x, y, kind="circle", colour="red", size=4, confidence=1.0):
    return Found(kind, colour, (x, y, x + size, y + size), confidence)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (10, 0, {"left of"}),
        (-10, 0, {"right of"}),
        (0, 10, {"above"}),
        (0, -10, {"below"}),
        (10, 10, {"left of", "above"}),
        (10, 5, {"left of"}),  # below the axis, but not far enough of the whole offset
        (0.7, 0, set()),  # within a tenth of both extents
        (0, 0, set()),
    ],
)
def test_relations_of_two_objects(x, y, expected):
    assert relations(at(0, 0), at(x, y)) == expected


def test_what_is_missing_is_said():
    two = {"include": [{"class": "circle", "count": 2}]}
    assert faults([at(0, 0)], two) == ["1 of circle, 2 wanted"]
    assert faults([at(0, 0), at(9, 9)], two) == []
    assert faults([at(0, 0), at(9, 9), at(20, 0)], two) == []  # more is fine where nothing is excluded


def test_what_is_too_much_is_said():
    two = {"include": [{"class": "circle", "count": 2}], "exclude": [{"class": "circle", "count": 3}]}
    assert faults([at(0, 0), at(9, 9)], two) == []
    assert faults([at(0, 0), at(9, 9), at(20, 0)], two) == ["3 of circle, fewer than 3 wanted"]


def test_the_colour_is_that_of_the_surest_objects():
    red = {"include": [{"class": "circle", "count": 1, "color": "red"}]}
    assert faults([at(0, 0, confidence=0.9), at(9, 9, colour="blue", confidence=0.8)], red) == []
    assert faults([at(0, 0, confidence=0.8), at(9, 9, colour="blue", confidence=0.9)], red)


def test_a_place_is_judged_against_the_include_before():
    left = {"include": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}]}
    assert faults([at(0, 0), at(10, 0, "square")], left) == []
    assert faults([at(10, 0), at(0, 0, "square")], left) == ["circle not left of the other"]
    assert faults([at(0, 0)], left) == ["0 of square, 1 wanted", "nothing that circle could be left of"]


def test_no_prompt_for_evaluation_is_trained_on():
    train, test = ({line["prompt"] for lines in requirements(s).values() for line in lines} for s in ("train", "test"))
    assert not train & test
    assert 0.1 < len(test) / (len(train) + len(test)) < 0.15
    assert all(requirements(split)[category] for split in ("train", "test") for category in CATEGORIES)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_drawn_scene_is_right_and_a_changed_one_is_not(category):
    rng = Random(category)
    for _ in range(20):
        requirement = rng.choice(requirements("train")[category])
        picture = draw(requirement, rng)
        assert faults(detect(picture), requirement) == [], requirement["prompt"]
        bare = without(picture, detect(picture)[0])
        assert faults(detect(bare), requirement), requirement["prompt"]
        if category == "position":
            assert faults(detect(picture[::-1, ::-1]), requirement), requirement["prompt"]
        if category in ("colors", "color_attr"):
            assert faults(detect(recoloured(picture)), requirement), requirement["prompt"]


def test_a_shape_of_two_colours_is_none():
    for shape in SHAPES:
        picture = np.full((32, 32, 3), GROUND, dtype=np.uint8)
        picture[8:20, 8:20][stencil(shape, 12, 12)] = COLOURS["red"]
        assert [found.kind for found in detect(picture)] == [shape]
        picture[8:20, 8:14][stencil(shape, 12, 12)[:, :6]] = COLOURS["blue"]
        assert not any(found.kind == shape for found in detect(picture))


def without(picture, found):
    left, top, right, bottom = found.box
    bare = picture.copy()
    bare[top:bottom, left:right] = GROUND
    return bare


def recoloured(picture):
    """Every colour becomes the next one."""
    values, changed = list(COLOURS.values()), picture.copy()
    for index, colour in enumerate(values):
        changed[(picture == colour).all(-1)] = values[(index + 1) % len(values)]
    return changed
