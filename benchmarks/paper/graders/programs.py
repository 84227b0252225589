"""HumanEval and MBPP: the program in a generation, run against the problem's tests in the sandbox."""

import ast
import re
from collections.abc import Sequence

from benchmarks.paper.graders.answers import text_of
from benchmarks.paper.graders.sandbox import Limits, Verdict, run_program

BLOCK = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
# What ends a function's body that is written on behind its signature: HumanEval's own stop strings.
BEHIND_A_BODY = re.compile(r"\n(?=class|def|#|if|print|@|```|\[DONE\])")


def human_eval(generation: str, prompt: str, test: str, entry_point: str, limits: Limits | None = None) -> Verdict:
    program = completed(generation, prompt, entry_point)
    return run_program(program, f"{test}\ncheck({entry_point})\n", [entry_point], limits)


def mbpp(generation: str, code: str, tests: Sequence[str], setup: str = "", limits: Limits | None = None) -> Verdict:
    """`code` is the problem's own solution: what it defines and the tests use is what they test."""
    names = tested_names(code, tests)
    return run_program(written(generation, names), "\n".join([setup, *tests]), names, limits)


def completed(generation: str, prompt: str, entry_point: str) -> str:
    """The prompt's function with the body that the generation gives it: a whole function anew, or the body alone."""
    code = written(generation, [entry_point])
    if defines(code, entry_point):
        return f"{prompt}\n    pass\n\n{code}"  # the prompt's imports and helpers; its own function is replaced
    behind = text_of(generation).split("```")[0]
    body = BEHIND_A_BODY.split(behind if behind.strip() and is_indented(behind) else code)[0]
    if not is_indented(body):  # the signature's indent was taken for given
        first = body.lstrip("\n")
        body = f"    {first}"
        if not compiles(prompt + body):
            body = re.sub(r"(?m)^(?=.)", "    ", first)
    return prompt + body


def written(generation: str, names: Sequence[str]) -> str:
    """The fenced block that defines all the names, or the text before the first fence, or else the first block."""
    text = text_of(generation).split("[DONE]")[0]
    blocks = BLOCK.findall(text)
    whole = [part for part in (*blocks, text.split("```")[0]) if all(defines(part, name) for name in names)]
    return (whole or blocks or [text])[0]


def is_indented(code: str) -> bool:
    return code.lstrip("\n")[:1].isspace()


def defines(code: str, name: str) -> bool:
    name = re.escape(name)
    return re.search(rf"^(?:(?:async\s+)?def|class)\s+{name}\b|^{name}\s*=", code, re.MULTILINE) is not None


def compiles(code: str) -> bool:
    try:
        compile(code, "program", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def tested_names(code: str, tests: Sequence[str]) -> list[str]:
    """Those that the code defines and the tests use, in the tests' order."""
    defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used = [node.id for test in tests for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)]
    return [name for name in dict.fromkeys(used) if name in defined]
