"""What a grammar allows at the masks of a canvas, against brute force over every way to fill it."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_infogain.grammar.automaton import NEVER, TokenAutomaton, allowed, is_completable
from vllm_infogain.grammar.token_dfa import Spelling, over_tokens

VOCAB, MASK = 5, 4
TOKENS = range(VOCAB - 1)


@st.composite
def machines(draw):
    """transitions, start, finals, end ids: a DFA of up to four states over tokens 0 to 3."""
    states = range(draw(st.integers(1, 4)))
    row = st.dictionaries(st.sampled_from(TOKENS), st.sampled_from(states))
    transitions = draw(st.dictionaries(st.sampled_from(states), row))
    finals = draw(st.sets(st.sampled_from(states)))
    return transitions, draw(st.sampled_from(states)), finals, draw(st.sets(st.sampled_from(TOKENS), max_size=2))


def fits(machine, canvas) -> bool:
    """A string of the grammar without end tokens, then end tokens only; by the definition."""
    transitions, state, finals, ends = machine
    for place, token in enumerate(canvas):
        if token in ends:
            return state in finals and set(canvas[place:]) <= ends
        if token not in transitions.get(state, {}):
            return False
        state = transitions[state][token]
    return state in finals


def completions(canvas):
    masks = [place for place, token in enumerate(canvas) if token == MASK]
    for tokens in itertools.product(TOKENS, repeat=len(masks)):
        filled = list(canvas)
        for place, token in zip(masks, tokens, strict=True):
            filled[place] = token
        yield filled


def by_token(automaton, classes) -> np.ndarray:
    return classes[..., automaton.class_of]


@settings(max_examples=300)
@given(machines(), st.integers(1, 4).flatmap(lambda size: st.lists(
    st.lists(st.integers(0, MASK), min_size=size, max_size=size), min_size=1, max_size=3
)))  # fmt: skip
def test_a_token_is_allowed_exactly_where_the_canvas_can_still_be_completed(machine, canvases):
    automaton = TokenAutomaton.from_transitions(*machine[:3], VOCAB, machine[3])
    for canvas in canvases:
        fitting = [filled for filled in completions(canvas) if fits(machine, filled)]
        assert is_completable(automaton, np.array(canvas), MASK) == bool(fitting)
        masks = [place for place, token in enumerate(canvas) if token == MASK]
        if masks:
            found = by_token(automaton, allowed(automaton, np.array([canvas]), MASK, np.array([masks])))[0]
            expected = [[any(filled[at] == token for filled in fitting) for token in range(VOCAB)] for at in masks]
            np.testing.assert_array_equal(found, expected)


@settings(max_examples=50)
@given(machines(), st.randoms(use_true_random=False))
def test_a_sequence_is_allowed_the_same_whatever_its_company(machine, random):
    automaton = TokenAutomaton.from_transitions(*machine[:3], VOCAB, machine[3])
    canvases = np.array([[random.choice([MASK, MASK, *TOKENS]) for _ in range(3)] + [MASK] for _ in range(70)])
    offsets = np.array([[random.choice(np.flatnonzero(canvas == MASK).tolist())] for canvas in canvases])
    together = allowed(automaton, canvases, MASK, offsets)
    for index in range(len(canvases)):
        own = slice(index, index + 1)
        np.testing.assert_array_equal(together[own], allowed(automaton, canvases[own], MASK, offsets[own]))


@settings(max_examples=200)
@given(machines())
def test_the_shortest_string_is_the_shortest_that_fits(machine):
    transitions, start, finals, _ = machine
    automaton = TokenAutomaton.from_transitions(transitions, start, finals, VOCAB)
    # Without end tokens a canvas fits if it is a string; one of four states needs three tokens at most.
    lengths = [size for size in range(4) if any(fits((*machine[:3], set()), list(canvas))
               for canvas in itertools.product(TOKENS, repeat=size))]  # fmt: skip
    assert automaton.shortest == (lengths[0] if lengths else None)


def test_tokens_that_lead_alike_are_one_class_and_useless_states_are_gone():
    transitions = {0: {0: 1, 1: 1, 2: 7}, 1: {3: 0}, 7: {0: 7}, 9: {1: 0}}  # from 7 nothing ends, to 9 nothing leads
    automaton = TokenAutomaton.from_transitions(transitions, 0, [0], 1000)
    assert len(automaton.final) == 2
    assert automaton.classes == 3  # no token, {0, 1}, {3}
    assert automaton.class_of[0] == automaton.class_of[1] != automaton.class_of[3]
    assert automaton.class_of[2] == automaton.class_of[999] == NEVER


def test_an_end_token_of_the_grammar_s_own_is_no_part_of_a_string():
    automaton = TokenAutomaton.from_transitions({0: {0: 1}, 1: {3: 1}}, 0, [1], VOCAB, [3])  # 3: as outlines marks ends
    assert by_token(automaton, allowed(automaton, np.array([[MASK, MASK]]), MASK, np.array([[0, 1]])))[0].tolist() == [
        [True, False, False, False, False],
        [False, False, False, True, False],
    ]


def test_the_record_crosses_processes_without_what_is_derived_from_it():
    automaton = TokenAutomaton.from_transitions({0: {0: 0}}, 0, [0], VOCAB, [3])
    assert len(automaton.reach.source) == 3
    twin = pickle.loads(pickle.dumps(automaton))
    assert "reach" not in vars(twin)
    for name in ("moves", "first", "class_of", "start", "final"):
        np.testing.assert_array_equal(getattr(twin, name), getattr(automaton, name))


def test_equal_records_from_another_process_are_one_while_a_request_holds_it():
    automata = [TokenAutomaton.from_transitions({0: {token: 0}}, 0, [0], VOCAB) for token in (0, 1)]
    twins = [pickle.loads(pickle.dumps(automata[index])) for index in (0, 0, 1)]
    assert twins[0] is twins[1] is not twins[2]


@pytest.mark.parametrize("without", [set(), {6}])
def test_a_token_leads_where_its_bytes_lead_one_after_the_other(without):
    # (ab)*c
    of_bytes = TokenAutomaton.from_transitions({0: {ord("a"): 1, ord("c"): 2}, 1: {ord("b"): 0}}, 0, [2], 256)
    texts = {b"a": [0], b"b": [1], b"ab": [2, 3], b"ba": [4], b"abc": [5], b"c": [6], b"bab": [7], b"": [8]}
    automaton = over_tokens(of_bytes, Spelling.of(texts, 12, without), [11])

    def fits(*tokens):
        return is_completable(automaton, np.array(tokens, dtype=int), -1)

    for tokens in [(5,), (2, 5), (3, 0, 1, 5), (0, 4, 1, 5), (0, 7, 5, 11, 11)]:
        assert fits(*tokens)
    assert fits(6) == fits(2, 6) == (6 not in without)
    for tokens in [(), (2,), (5, 5), (8, 5), (9,), (11,), (5, 11, 2), (4, 1, 5)]:
        assert not fits(*tokens)
