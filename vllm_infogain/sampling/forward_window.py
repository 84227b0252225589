"""Which positions of a state one forward computes, and which it reads from cached keys and values.

    mode          first forward of a block (refresh)     every other step            what is approximate
    none          -                                      everything                  nothing
    prefix        everything                             the block and behind it     K/V before the block
    dual          everything                             the block                   K/V before and behind the block
    block-causal  the block finished last, and this one  the block                   nothing: K/V before it are final

`prefix` and `dual` are those of Fast-dLLM (arXiv 2505.22618) and of arXiv 2602.18176, 3.2.3: what is outside the
window is taken as it was at the last refresh. All candidates of a state share one copy of it.

Where a row predicts the next position (`shift` 1), the row before the block belongs to the window, too: the block's
first position is read off it. Like every row of the window it is each candidate's own.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ForwardWindow:
    """The same for every sequence of a group. All positions count from the prompt's start."""

    rows: range  # computed by this forward
    own: range  # the window: where each sequence of a group has K/V of its own; outside it all share one copy
    keys: int  # of attention: positions [0, keys) are attended to
    refresh: bool = False  # writes that copy anew: sequence i of the group becomes cached state i
