"""The pages of the documentation and their code blocks, for the tests that read and run them."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "model_executors", "patches", "tests", "vllm_infogain")
PATHS = [*sorted(ROOT.glob("*.md")), *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md")))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PATHS}  # the folders' pages last
REFERENCE = PAGES["vllm_infogain/request/README.md"]  # parameters, samplers, fields


def blocks(language: str) -> list[str]:
    """Those of all pages, in the pages' order."""
    return [block for page in PAGES.values() for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


def commands_of(tool: str) -> str:
    """The one block of shell commands that a line of starts with the tool."""
    (block,) = (block for block in blocks("sh") if re.search(f"^{tool} ", block, re.MULTILINE))
    return block


def lines_of(block: str) -> list[str]:
    """Its commands of one line each, without their comments."""
    return [line.split("#")[0].strip() for line in block.splitlines()]
