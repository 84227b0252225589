"""Hold forced calls to a JSON schema rather than to a structural tag.

Why: of `tool_choice` "required" or a function's name vLLM makes a structural tag in the format of the server's parser
    of calls, which is no regular expression. Where it has no tag for a parser, it makes a JSON schema and parses the
    text as JSON: that we serve.
How: the parser that servers of ours use, to prepare requests and to read texts, knows no tags, and reads forced calls
    as JSON. Parsers that are engines of their own stay as they are; calls that they are forced to are refused.
Upstream: VLLM_ENFORCE_STRICT_TOOL_CALLING=0 does the same for a whole process, and says nothing of what it drops.
Remove when: a structured output backend can tell vLLM that it takes no structural tags.
"""

from functools import partial

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain import compat

    # Each has a parser of its own making: one prepares requests, the others read texts.
    wrap_once(compat.OnlineRenderer, "__init__", partial(_with_parser_of_ours, "parser"))
    wrap_once(compat.OpenAIServingChat, "__init__", partial(_with_parser_of_ours, "parser_cls"))
    wrap_once(compat.OpenAIServingResponses, "__init__", partial(_with_parser_of_ours, "parser"))


def _with_parser_of_ours(name, init):
    def wrapper(self, *args, **kwargs):
        from vllm_infogain.engine.identity import is_active

        init(self, *args, **kwargs)
        parser = getattr(self, name)
        is_server = hasattr(self, "engine_client")
        if parser is not None and is_active(self.engine_client.vllm_config if is_server else self.renderer.config):
            setattr(self, name, parser_of_ours(parser))

    return wrapper


def parser_of_ours(parser):
    """A parser, a class, that makes no structural tags."""
    calls = parser.tool_parser_cls
    if calls is not None and not calls.engine_based_streaming:

        class CallsAsJson(calls):
            structural_tag_model = None
            supports_required_and_named = True

        calls = CallsAsJson

    class WithoutTags(parser):
        tool_parser_cls = calls

        def adjust_request(self, request):
            from vllm_infogain.serving.admission import refusing
            from vllm_infogain.serving.tools import check_calls, check_tools

            with refusing():
                check_tools(request)
            adjusted = super().adjust_request(request)
            with refusing():
                check_calls(adjusted, self.tool_strict_level)
            return adjusted

    return WithoutTags
