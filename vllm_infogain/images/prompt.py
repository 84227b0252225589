"""The prompt of a text-to-image request, as MMaDA was trained on it. Pure."""

from collections.abc import Sequence

from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.image_tokens import ImageTokens

MOST_TEXT = 510  # tokens; with <|t2i|>, bos and eos as many as MMaDA was trained on


def text_to_image_prompt(
    text: Sequence[int], tokens: ImageTokens, most: int = MOST_TEXT, name: str = "prompt"
) -> list[int]:
    """`<|t2i|> bos text eos <|soi|>`; the picture's codes follow, then `<|eoi|>`, which is the request's suffix.

    Released code pads it on the left and masks the padding, which is the same: positions are relative.

    Args:
        text: token ids of the plain text, in no chat template; with or without the tokenizer's own bos and eos.
        tokens: the model's.
        most: tokens that the text may have.
        name: of the parameter that the text is.

    Raises:
        ParameterError: the text is too long. It is not cut.
    """
    prompt = tokens.prompt(text)
    around = len(tokens.prompt([]))
    if len(prompt) > most + around:
        remedy = f"a text for a picture has at most {most}; shorten it"
        raise ParameterError(name, f"{len(prompt) - around} tokens", remedy)
    return prompt
