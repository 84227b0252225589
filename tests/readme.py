"""The README's code blocks, for the tests that run them."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands_of(tool: str) -> str:
    """The one block of shell commands that a line of starts with the tool."""
    (block,) = (block for block in blocks("sh") if re.search(f"^{tool} ", block, re.MULTILINE))
    return block
