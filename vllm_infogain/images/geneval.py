"""GenEval's rules (arXiv 2310.11513): whether the objects found in a picture are those that a prompt asks for.

A requirement is one line of GenEval's `evaluation_metadata.jsonl`, as a dictionary. Who finds the objects is another
matter: GenEval uses Mask2Former and CLIP, the embedded scenes a detector of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
OVERLAP = 0.1  # share of both extents that an offset must exceed before it counts
AHEAD = 0.5  # of the offset's length: what lies along an axis


@dataclass(frozen=True)
class Found:
    """One object of a picture.

    Args:
        kind: what it is, GenEval's "class".
        colour: its one colour.
        box: left, top, right, bottom, pixels; y grows downwards.
        confidence: of the detector, 0 to 1.
    """

    kind: str
    colour: str
    box: tuple[float, float, float, float]
    confidence: float = 1.0


def relations(this: Found, other: Found) -> set[str]:
    """How `this` lies to `other`: of "left of", "right of", "above", "below"; two may hold, or none."""
    offset = [_centre(this, axis) - _centre(other, axis) for axis in (0, 1)]
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    if not length:
        return set()
    x, y = (_beyond(offset[axis], OVERLAP * (_extent(this, axis) + _extent(other, axis))) / length for axis in (0, 1))
    holds = {"left of": x < -AHEAD, "right of": x > AHEAD, "above": y < -AHEAD, "below": y > AHEAD}
    return {relation for relation, is_true in holds.items() if is_true}


def faults(found: Sequence[Found], requirement: Mapping[str, Any]) -> list[str]:
    """What is wrong with a picture, in words; empty if it is right.

    Args:
        found: the objects in it.
        requirement: `include`, a list of {"class", "count"}, perhaps with "color" and "position" [relation, index of
            an include before]; perhaps `exclude`, a list of {"class", "count"}: so many are too many.
    """
    wrong: list[str] = []
    groups: list[list[Found]] = []  # of each include: what meets it
    for include in requirement["include"]:
        kind, count = include["class"], include["count"]
        group = _surest(found, kind)[:count]
        said = _include_fault(group, include, groups)
        wrong += [said] if said else []
        groups.append([] if said else group)
    for exclude in requirement.get("exclude", ()):
        if (number := len(_surest(found, exclude["class"]))) >= exclude["count"]:
            wrong.append(f"{number} of {exclude['class']}, fewer than {exclude['count']} wanted")
    return wrong


def _include_fault(group: list[Found], include: Mapping[str, Any], groups: list[list[Found]]) -> str | None:
    kind, count = include["class"], include["count"]
    if len(group) < count:
        return f"{len(group)} of {kind}, {count} wanted"
    if "color" in include:
        right = sum(one.colour == include["color"] for one in group)
        if right < count:
            return f"{right} {include['color']} of {kind}, {count} wanted"
    if "position" in include:
        relation, target = include["position"]
        if not groups[target]:
            return f"nothing that {kind} could be {relation}"
        if not all(relation in relations(one, other) for one in group for other in groups[target]):
            return f"{kind} not {relation} the other"
    return None


def _surest(found: Sequence[Found], kind: str) -> list[Found]:
    return sorted((one for one in found if one.kind == kind), key=lambda one: -one.confidence)


def _centre(one: Found, axis: int) -> float:
    return (one.box[axis] + one.box[axis + 2]) / 2


def _extent(one: Found, axis: int) -> float:
    return one.box[axis + 2] - one.box[axis]


def _beyond(offset: float, margin: float) -> float:
    """The offset less the margin, towards 0."""
    return max(abs(offset) - margin, 0.0) * (1 if offset > 0 else -1)
