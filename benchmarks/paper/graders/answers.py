"""Where in a generation its answer stands."""

import re

END_TOKENS = ("<|eot_id|>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "</s>")
CONCLUSION = re.compile(r"(?:####|answer\s+is\b\s*:?)[ \t]*(?P<answer>[^\n]+)", re.IGNORECASE)


def text_of(generation: str) -> str:
    """Without its end token, and what a model writes behind it."""
    return min((generation.split(token)[0] for token in END_TOKENS), key=len)


def boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` holds."""
    for start in reversed([match.end() for match in re.finditer(r"\\f?boxed\s*\{", text)]):
        depth = 1
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
            if depth == 0:
                return text[start:at].strip()
    return None


def tagged(text: str) -> str | None:
    """What the last `<answer>` holds, up to its end or the text's."""
    _, tag, rest = text.rpartition("<answer>")
    return rest.split("</answer>")[0].strip() if tag else None


def concluded(text: str) -> str | None:
    """The rest of the line behind the last "the answer is" or "####"."""
    found = [match["answer"].strip() for match in CONCLUSION.finditer(text)]
    return found[-1] if found else None


def answer_of(generation: str) -> str | None:
    """The first of these that there is. None: the text does not say which part of it is the answer."""
    text = text_of(generation)
    for place in (boxed, tagged, concluded):
        if answer := place(text):
            return answer
    return None
