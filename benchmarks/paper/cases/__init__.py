"""Case studies on the embedded model: Tables 1 and 7 and Figures 3b, 4, 5, 6, 9 and 10 of the paper, one-way
multiplication, and the presets. `python -m benchmarks.paper.cases` makes all of them.
"""

from benchmarks.paper.cases import correlation, lines, objective, order, presets

EXPERIMENTS = (
    *order.EXPERIMENTS,
    *correlation.EXPERIMENTS,
    *lines.EXPERIMENTS,
    *objective.EXPERIMENTS,
    *presets.EXPERIMENTS,
)
