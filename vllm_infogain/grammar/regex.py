"""From a regular expression to an automaton over bytes, within a budget that says what is too much.

What vLLM compiles with, outlines, has no such bound: behind a pattern it gives up waiting for, a thread goes on, and
takes all the memory there is. Nor can its index stand in for the automaton: it loses strings in which a shorter one of
the grammar goes on. So Python's own parser reads the pattern, and `re` says what its categories hold:

    pattern -> tree of `re` -> NFA over the bytes of UTF-8 -> DFA -> TokenAutomaton
"""

import re
from collections.abc import Iterable
from itertools import accumulate
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]

import numpy as np

from vllm_infogain.grammar.automaton import TokenAutomaton, pack
from vllm_infogain.grammar.unicode_ranges import Ranges, Tree, alike, category, complement, spelled, union

MAX_STEPS = 1 << 20  # edges and states gone through, of both automata; half a second
FLAGS = re.IGNORECASE | re.DOTALL | re.ASCII  # of those that say which characters match
MAX_DEPTH = 100  # of groups; whoever parses a pattern, vLLM too, has a few frames of the stack for each


def whole(pattern: str) -> str:
    """A pattern without anchors at its ends, which say what holds anyway.

    Raises:
        ValueError: no regular expression by itself, though it may be one between others.
    """
    _parse(pattern)
    return re.sub(r"(?<!\\)((\\\\)*)\$$", r"\1", pattern.removeprefix("^"))


def over_bytes(pattern: str) -> TokenAutomaton:
    """The automaton, over a vocabulary of 256, of the strings that a regular expression matches whole.

    Raises:
        ValueError: the pattern is invalid, uses what no finite automaton can, or takes too much to compile.
    """
    nfa = Nfa()
    return nfa.determinize(nfa.read(pattern, 0))


def _parse(pattern: str):
    parts = re.findall(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*|[()]", pattern, re.DOTALL)  # escapes, classes, parentheses
    if max(accumulate((part == "(") - (part == ")") for part in parts), default=0) > MAX_DEPTH:
        raise ValueError(f"{pattern[:200]!r} is nested more than {MAX_DEPTH} deep")
    try:
        return _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern[:200]!r}: {error}") from None


class Nfa:
    """States joined by bytes, or by nothing; it starts in state 0."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int, int]]] = [[]]  # by state: first byte, last byte, next state
        self.epsilon: list[list[int]] = [[]]  # by state: the states reached without reading anything
        self.trees: dict[tuple[tuple, int], Tree] = {}  # of what stood at a place of a pattern, by its flags
        self.steps = 0

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise ValueError(f"takes more than {MAX_STEPS} steps to compile; give one that repeats less")

    def state(self) -> int:
        self.spend(2)
        self.edges.append([])
        self.epsilon.append([])
        return len(self.edges) - 1

    # From the tree of a pattern.

    def read(self, pattern: str, at: int) -> int:
        """Add what a pattern matches, from a state on; returns the state it ends in.

        Raises:
            ValueError: see `over_bytes`.
        """
        parsed = _parse(pattern)
        try:
            return self._add(parsed, parsed.state.flags, at)
        except RecursionError:
            raise ValueError(f"{pattern[:200]!r} is nested too deeply") from None

    def _add(self, parts: Iterable, flags: int, at: int) -> int:
        """The same of parts of a pattern, one after the other."""
        for kind, value in parts:
            self.spend(1)
            if kind in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN):
                end = self.state()
                items = tuple(value) if kind is ops.IN else ((kind, value),)
                self._spell(self._tree(items, flags & FLAGS), at, end, {})
                at = end
            elif kind is ops.SUBPATTERN:
                _, added, removed, inner = value
                if added & re.UNICODE:
                    removed |= re.ASCII
                at = self._add(inner, (flags | added) & ~removed, at)
            elif kind is ops.BRANCH:
                end = self.state()
                for branch in value[1]:
                    self.spend(1)
                    self.epsilon[self._add(branch, flags, at)].append(end)
                at = end
            elif kind in (ops.MAX_REPEAT, ops.MIN_REPEAT):
                at = self._repeat(value, flags, at)
            else:
                name = str(value if kind is ops.AT else kind).lower()
                raise ValueError(f"{name} is in it, which is not served; leave it out")
        return at

    def _repeat(self, repeated: tuple[int, int, Iterable], flags: int, at: int) -> int:
        least, most, inner = repeated
        for _ in range(least):
            self.spend(1)
            at = self._add(inner, flags, at)
        end = self.state()
        if most is ops.MAXREPEAT:
            self.epsilon[at].append(end)
            self.epsilon[self._add(inner, flags, end)].append(end)
            return end
        for _ in range(most - least):
            self.spend(1)
            self.epsilon[at].append(end)
            at = self._add(inner, flags, at)
        self.epsilon[at].append(end)
        return end

    def _tree(self, items: tuple, flags: int) -> Tree:
        self.spend(len(items))
        if (items, flags) not in self.trees:
            self.trees[items, flags] = spelled(self._characters(items, flags))
        return self.trees[items, flags]

    def _characters(self, items: tuple, flags: int) -> Ranges:
        """Of one place in a pattern: literals, ranges and categories, or all but these."""
        if items[0][0] is ops.ANY:
            return complement([] if flags & re.DOTALL else [(10, 10)])
        ranges: list[tuple[int, int]] = []
        for kind, value in items:
            if kind is ops.CATEGORY:
                ranges += category(value, flags & re.ASCII)
            elif kind is not ops.NEGATE:
                low, high = value if kind is ops.RANGE else (value, value)
                ranges.append((low, high))
                if flags & re.IGNORECASE:
                    ranges += alike(low, high, flags & re.ASCII)
        self.spend(len(ranges))
        return complement(ranges) if items[0][0] in (ops.NEGATE, ops.NOT_LITERAL) else union(ranges)

    def _spell(self, tree: Tree, at: int, end: int, state_of: dict[int, int]) -> None:
        self.spend(4 * len(tree))
        for low, high, rest in tree:
            to = end if not rest else state_of.get(id(rest))
            if to is None:
                to = state_of[id(rest)] = self.state()
                self._spell(rest, to, end, state_of)
            self.edges[at].append((low, high, to))

    # To a deterministic one.

    def determinize(self, final: int) -> TokenAutomaton:
        starts = {byte for edges in self.edges for low, high, _ in edges for byte in (low, high + 1)}
        class_of = np.array([byte in starts for byte in range(256)]).cumsum()  # bytes that no edge tells apart
        lowest = [*class_of.tolist(), class_of[-1] + 1]
        edges = [[(lowest[low], lowest[high] + 1, to) for low, high, to in of_state] for of_state in self.edges]
        first = self._closed({0}, final)
        number, waiting = {first: 0}, [first]
        known: dict[frozenset[int], int] = {}  # the number of what a set of states stands for
        source, target, by = [], [], []
        for states in waiting:
            then: dict[int, set[int]] = {}
            for state in states:
                for low, high, to in edges[state]:
                    self.spend(high - low)
                    for symbol in range(low, high):
                        then.setdefault(symbol, set()).add(to)
            for symbol, reached in then.items():
                key = frozenset(reached)
                if key not in known:
                    closed = self._closed(reached, final)
                    if closed not in number:
                        number[closed] = len(waiting)
                        waiting.append(closed)
                    known[key] = number[closed]
                source.append(number[states])
                target.append(known[key])
                by.append(symbol)
        ends = np.array([final in states for states in waiting])
        return TokenAutomaton.from_moves(
            pack(np.array(source, int), np.array(target, int)), np.array(by, int), class_of, 0, ends
        )

    def _closed(self, states: Iterable[int], final: int) -> frozenset[int]:
        """Those that read a byte, or are final, of states and all that these reach without reading."""
        found = set(states)
        waiting = list(found)
        self.spend(len(found))
        while waiting:
            others = self.epsilon[waiting.pop()]
            self.spend(len(others))
            new = set(others) - found
            found |= new
            waiting += new
        return frozenset(state for state in found if self.edges[state] or state == final)
