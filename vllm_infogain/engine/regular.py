"""From a regular expression to an automaton over bytes, by the engine that vLLM's outlines backend compiles with.

That backend's own index, over a model's tokens, cannot stand in for it: it loses strings in which a shorter one of the
grammar goes on (of `a(bc)?` it never accepts "abc" spelled a, b, c), and for a large vocabulary it takes seconds and
hundreds of MB. An index over single bytes takes milliseconds, and loses nothing once every string ends alike.
"""

import re
from functools import lru_cache

import outlines_core

from vllm_infogain.engine.compat import compile_regex_with_timeout
from vllm_infogain.sampling.automaton import TokenAutomaton

# Behind every string. A search prefers some matches to others and drops the rest; where all strings end alike, and end
# nowhere else, there is nothing to drop. No text holds this code point: Unicode reserves it.
SENTINEL = "\U0010ffff"
BYTES, SENTINEL_ID, EOS_ID = 256, 256, 257
MAX_REPEATS = 1000  # of a part, where they are counted; what is compiled grows with them
MAX_INDEX_BYTES = 4 << 20  # some 700,000 transitions, which take about a second to read


def whole(pattern: str) -> str:
    """A pattern without anchors at its ends. They say what holds anyway, and would keep the sentinel out.

    Raises:
        ValueError: no regular expression by itself, though it may be one between others.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r}: {error}") from None
    return re.sub(r"(?<!\\)((\\\\)*)\$$", r"\1", pattern.removeprefix("^"))


@lru_cache(maxsize=128)
def over_bytes(pattern: str) -> TokenAutomaton:
    """The automaton, over a vocabulary of 256, of the strings that a regular expression matches whole.

    Raises:
        ValueError: the pattern is invalid, uses what no finite automaton can, or takes too long or too much to compile.
    """
    for count in re.findall(r"\{\d*,?(\d+)\}", pattern):
        if int(count) > MAX_REPEATS:
            raise ValueError(f"a part may be repeated {count} times; at most {MAX_REPEATS} are served")
    texts = {bytes([byte]): [byte] for byte in range(BYTES)} | {SENTINEL.encode(): [SENTINEL_ID]}
    vocabulary = outlines_core.Vocabulary(EOS_ID, texts)
    try:
        index = compile_regex_with_timeout(
            lambda ended: outlines_core.Index(ended, vocabulary), f"(?:{pattern}){SENTINEL}"
        )
    except ValueError as error:
        if "vocabulary" not in str(error):
            raise
        raise ValueError(f"{pattern[:200]!r} has a part that nothing matches, such as an anchor inside") from None
    size = len(index.__reduce__()[1][0])
    if size > MAX_INDEX_BYTES:
        raise ValueError(f"its automaton over bytes takes {size} bytes; at most {MAX_INDEX_BYTES} are served")
    transitions, ended = index.get_transitions(), index.get_final_states()
    return TokenAutomaton.from_transitions(
        {state: {byte: to for byte, to in row.items() if byte < BYTES} for state, row in transitions.items()},
        index.get_initial_state(),
        {state for state, row in transitions.items() if row.get(SENTINEL_ID) in ended},
        BYTES,
    )
