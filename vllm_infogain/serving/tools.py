"""Tools and response formats of an HTTP request: what they ask of its text, by the name that its author knows.

vLLM parses calls out of a text that the model wrote freely (`auto`). A call that is forced (`required`, a named
function) is JSON of a schema made of the tools, which our automaton holds the canvas to.
"""

from typing import Any

from vllm_infogain.request.fields import ParameterError

FREE = (None, "none", "auto")


def asked_by(request: Any) -> tuple[str, Any] | None:
    """The field that asks for a request's constraint, and its value; None if it is structured_outputs, or none does.

    Args:
        request: for a completion, a chat or a response, also as vLLM's parser of calls has left it.
    """
    if (choice := _forced(request)) is not None:
        return "tool_choice", choice
    name, written = _format(request)
    if written is None:
        return None
    return name, written.type


def check_tools(request: Any) -> None:
    """Refuse what no call is held to, of a request for a chat or a response before vLLM's parser of calls has it.

    Raises:
        ParameterError: names the field, its value and the remedy.
    """
    choice = _forced(request)
    if choice is None:
        for tool in request.tools or () if request.tool_choice == "auto" else ():
            if getattr(getattr(tool, "function", tool), "strict", None):
                raise ParameterError(
                    "tools.strict", True, "a model that chooses whether to call is held to no schema; leave it out, or "
                    "force a call: tool_choice 'required' or a function's name"
                )  # fmt: skip
    elif request.extract_structured_outputs() is not None:
        name, written = _format(request)
        raise ParameterError(
            "tool_choice", choice, "the text is a call, so nothing else can be asked of it; leave out "
            f"{'structured_outputs' if written is None else name}, or tool_choice"
        )  # fmt: skip


def check_calls(request: Any, strict_level: Any) -> None:
    """The same, of the request as the parser has left it.

    Args:
        request: for a chat or a response.
        strict_level: of the server; of a level above `auto` vLLM makes structural tags.

    Raises:
        ParameterError: names the field, its value and the remedy.
    """
    if request.tools and strict_level:
        raise ParameterError(
            "tool_strict_level", strict_level.name.lower(), "calls are held to no structural tag; start the server "
            "without it, or leave out tools"
        )  # fmt: skip
    choice = _forced(request)
    if choice is None:
        return
    constraint = request.extract_structured_outputs()
    if constraint is None or constraint.json is None:
        raise ParameterError(
            "tool_choice", choice, "the server's tool_call_parser has a format of its own for calls, which no JSON "
            "schema holds; start it with another, such as 'hermes', or leave tool_choice at 'auto'"
        )  # fmt: skip


def _forced(request: Any) -> Any:
    """The call that a request forces: "required", or a function's name; None if it forces none."""
    choice = getattr(request, "tool_choice", None)
    if choice in FREE or not request.tools:
        return None
    return getattr(getattr(choice, "function", choice), "name", choice)


def _format(request: Any) -> tuple[str, Any]:
    """What a request calls its format of the text, and the format; None if it gives none."""
    if hasattr(request, "response_format"):
        name, written = "response_format", request.response_format
    else:
        name, written = "text.format", getattr(getattr(request, "text", None), "format", None)
    return name, None if getattr(written, "type", "text") == "text" else written
