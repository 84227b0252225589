"""4x4 Sudoku: the given cells kept; every row, column and 2x2 box holds 1 to 4."""

import re

from benchmarks.paper.graders.answers import answer_of, text_of

SIDE, BOX = 4, 2
DIGITS = set("1234")
BETWEEN = r"[ \t|,;\[\]()]*"  # what may stand between the digits of a row
ROW = rf"{BETWEEN}(?:[0-9]{BETWEEN}){{{SIDE}}}"
RULE = r"[ \t]*[-+|]{3,}[ \t]*\n"  # a line between rows
GRID = re.compile(
    rf"^(?:{ROW}\n(?:{RULE})*){{{SIDE - 1}}}{ROW}$|(?<![0-9])[0-9]{{{SIDE * SIDE}}}(?![0-9])", re.MULTILINE
)


def solves(generation: str, puzzle: str) -> bool:
    """Whether the generation's grid solves the puzzle: 16 digits, row by row, 0 for an empty cell."""
    text = text_of(generation)
    if "<answer>" not in text:  # the prompt's last line, so the generation begins with the grid
        text = text.split("</answer>")[0]
    answer = answer_of(text)
    grid = grid_of(answer) if answer else last_grid(text)
    return grid is not None and is_solution(grid, puzzle)


def share_of_cells(generation: str, puzzle: str, solution: str) -> float:
    """Of the empty cells that are filled as in the solution: d1's measure. It counts digits from the answer's first,
    whatever stands between them, so it needs no whole grid."""
    text = text_of(generation)
    cells = _digits(answer_of(text) or text)[: SIDE * SIDE].ljust(SIDE * SIDE, "0")
    empty = [place for place, given in enumerate(puzzle) if given == "0"]
    return sum(cells[place] == solution[place] for place in empty) / len(empty)


def grid_of(answer: str) -> str | None:
    """The 16 digits of an answer that holds nothing but a grid."""
    lines = [line for line in answer.replace("`", "").splitlines() if line.strip()]
    match = GRID.fullmatch("\n".join(lines))
    return _digits(match[0]) if match else None


def last_grid(text: str) -> str | None:
    found = [match[0] for match in GRID.finditer(text)]
    return _digits(found[-1]) if found else None


def is_solution(grid: str, puzzle: str) -> bool:
    if len(grid) != SIDE * SIDE or any(given not in ("0", cell) for given, cell in zip(puzzle, grid, strict=True)):
        return False
    rows = [grid[SIDE * row : SIDE * (row + 1)] for row in range(SIDE)]
    columns = [grid[column::SIDE] for column in range(SIDE)]
    corners = [(row, column) for row in range(0, SIDE, BOX) for column in range(0, SIDE, BOX)]
    boxes = ["".join(rows[row + i][column : column + BOX] for i in range(BOX)) for row, column in corners]
    return all(set(group) == DIGITS for group in (*rows, *columns, *boxes))


def _digits(text: str) -> str:
    return re.sub(r"[^0-9]", "", text)
