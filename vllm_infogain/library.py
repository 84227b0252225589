"""The samplers as a library, for any Hugging Face masked diffusion model. Needs torch and transformers, no vLLM.

    from vllm_infogain import InfoGainSampler

    results = InfoGainSampler(model, tokenizer).sample(input_ids, max_new_tokens=64, tokens_per_step=2)

The same decoders as the engine's drive it, so a seeded request gives the same tokens here and there (fp32).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vllm_infogain.request.canvas import check_infill
from vllm_infogain.request.fields import LARGEST_INTEGER, ParameterError, integer, without_none
from vllm_infogain.request.guidance import check_guide, with_negative_prompt
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.request.params import DecodingParams, parse_params
from vllm_infogain.request.picture import check_picture
from vllm_infogain.sampling import Decoder, make_decoder
from vllm_infogain.sampling.decoder import Pending, Report
from vllm_infogain.sampling.guidance import combine
from vllm_infogain.sampling.read_logits import read

# (model, input_ids [n, length]) -> logits [n, length, columns] whose row i predicts position i
Adapter = Callable[[Any, torch.Tensor], torch.Tensor]


def same_position(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """LLaDA and MMaDA: full attention, row i predicts position i."""
    output = model(input_ids)
    return output if isinstance(output, torch.Tensor) else output.logits


def shifted(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Dream: row i predicts position i + 1, so position i is read off row max(i - 1, 0)."""
    logits = same_position(model, input_ids)
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)


def block_causal(block_size: int) -> Adapter:
    """SDAR, TraDo: full attention inside blocks of absolute positions, causal over blocks. Sample with
    `block_length` equal to `block_size` and `absolute_blocks=True`."""

    def adapter(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
        block = torch.arange(input_ids.shape[1], device=input_ids.device) // block_size
        dtype = next(model.parameters()).dtype
        hidden = torch.zeros(len(block), len(block), device=input_ids.device, dtype=dtype)
        hidden.masked_fill_(block[None, :] > block[:, None], torch.finfo(dtype).min)
        return model(input_ids, attention_mask=hidden.expand(len(input_ids), 1, -1, -1)).logits

    return adapter


@dataclass(frozen=True)
class Sample:
    """One prompt's result."""

    tokens: list[int]  # the canvas, up to and including the first stop token of a finished block
    text: str | None  # without special tokens; None without a tokenizer
    report: Report  # figures, and every step: positions, tokens, entropies, J of every candidate


class InfoGainSampler:
    """Decodes canvases with a Hugging Face masked diffusion model, one batched forward at a time.

    Args:
        model: called with input_ids [n, length]; returns logits [n, length, columns] or an object that has them.
            Columns at or past its config's `vocab_size` are padding.
        tokenizer: for texts and the ids below; optional if both are given.
        mask_token_id, eos_token_id: default to the model config's, then to the tokenizer's.
        image_tokens: how the model writes pictures; defaults to what its config says.
        adapter: how the model is called: `same_position`, `shifted`, `block_causal(size)` or your own.
        max_sequences: sequences per forward; more are run in turns.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        mask_token_id: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        image_tokens: ImageTokens | None = None,
        adapter: Adapter = same_position,
        max_sequences: int = 64,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.max_sequences = integer(1)("max_sequences", max_sequences)
        of_model = (getattr(model, "config", None), getattr(model, "shape", None))
        eos = _first_given("eos_token_id", eos_token_id, *of_model, tokenizer)
        self.eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)
        self.vocabulary = _first_given("vocab_size", None, *of_model) or LARGEST_INTEGER  # token ids lie below it
        self.image_tokens = image_tokens or ImageTokens.of(of_model[0])
        if self.image_tokens is not None:
            self.vocabulary = self.image_tokens.columns[1]  # released configs name the text's
        mask_id = _first_given("mask_token_id", mask_token_id, *of_model, tokenizer)
        if mask_id is None:
            raise ParameterError("mask_token_id", None, "neither config nor tokenizer names it; give the model's")
        if mask_id in self.eos_ids:
            raise ParameterError("mask_token_id", mask_id, "is an end token, too; give the mask token's own id")
        of_tokenizer = getattr(tokenizer, "mask_token_id", None)
        if of_tokenizer not in (None, mask_id):
            warnings.warn(
                f"mask_token_id={mask_id} is not the tokenizer's mask token, {of_tokenizer} "
                f"({tokenizer.mask_token!r}): canvases are filled with the former; give what the model was trained by",
                stacklevel=2,
            )
        self.mask_id: int = mask_id
        # Positions a sequence may have, where the model says so, and what it calls them.
        names = ("max_position_embeddings", "max_sequence_length")
        lengths = ((name, _first_given(name, None, *of_model)) for name in names)
        self.longest: tuple[str, int] | None = next(((name, size) for name, size in lengths if size), None)

    @torch.inference_mode()
    def sample(
        self,
        input_ids: torch.Tensor | Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Any],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        ignore_eos: bool = False,
        absolute_blocks: bool = False,
        log_frequencies: np.ndarray | torch.Tensor | None = None,
        **knobs: Any,
    ) -> list[Sample]:
        """Fill a canvas of `max_new_tokens` after every prompt. The model is in eval mode meanwhile.

        Args:
            input_ids: one prompt or several, of any lengths; a tensor [length] or [prompts, length] has no padding. Or
                what a tokenizer returns, whose attention mask says what is padding.
            max_new_tokens: canvas length.
            temperature, top_k, top_p: how tokens are drawn.
            seed: of every prompt alike, as if each were a request of its own.
            ignore_eos: decode past an EOS.
            absolute_blocks: blocks end at multiples of `block_length` counted from the prompt's start.
            log_frequencies: [vocab], for `sampler="pc"`; see `sampling.frequencies`.
            knobs: the decoding parameters of request/README.md, but for `cache`.

        Raises:
            ParameterError (a ValueError): naming the parameter, its value and the remedy.
        """
        if self.tokenizer is not None:
            longest = self.longest and self.longest[1]
            knobs = with_negative_prompt(knobs, {}, self.tokenizer.encode, self.image_tokens, longest) or knobs
        params = parse_params(
            {"return_trajectory": True, **without_none(knobs)},
            defaults={},
            temperature=temperature,
            seed=seed,
            canvas_length=max_new_tokens,
            top_k=top_k,
            top_p=top_p,
            stop_ids=() if ignore_eos else self.eos_ids,
            eos_ids=self.eos_ids,
            absolute_blocks=absolute_blocks,
            image_tokens=self.image_tokens,
        )
        if params.cache != "none":
            raise ParameterError("cache", params.cache, "only the engine keeps keys and values; leave it out")
        check_infill(params, (), self.mask_id, self.vocabulary)
        check_guide(params, 0, self.vocabulary)
        background = None if log_frequencies is None else torch.as_tensor(log_frequencies).cpu().numpy()
        prompts = self._prompts(input_ids)
        for prompt in prompts:
            check_picture(
                params, self.image_tokens, self.mask_id, canvas=max_new_tokens, prompt=prompt, prompt_name="input_ids"
            )
        self._check_lengths(prompts, params)
        decoders = [make_decoder(prompt, params, self.mask_id, background) for prompt in prompts]
        tokens: list[list[int]] = [[] for _ in decoders]
        with _evaluating(self.model):
            while any(decoder.pending is not None for decoder in decoders):
                self._step(decoders)
                for finished, decoder in zip(tokens, decoders, strict=True):
                    finished += decoder.take_final().tokens
        return [self._result(finished, decoder) for finished, decoder in zip(tokens, decoders, strict=True)]

    def _prompts(self, input_ids: Any) -> list[list[int]]:
        if isinstance(input_ids, Mapping):
            return self._prompts(_without_padding(input_ids))
        prompts = input_ids.tolist() if isinstance(input_ids, torch.Tensor) else [*input_ids]
        if prompts and isinstance(prompts[0], int):
            prompts = [prompts]
        for prompt in prompts:
            if not len(prompt):
                raise ParameterError("input_ids", prompt, "give every prompt at least one token")
            if isinstance(prompt, str):
                raise ParameterError("input_ids", input_ids, "text; give the tokenizer's token ids")
            if self.mask_id in prompt:
                raise ParameterError("input_ids", self.mask_id, "a prompt holds the mask token; leave it out")
            if not 0 <= min(prompt) <= max(prompt) < self.vocabulary:
                outside = f"outside the vocabulary; give token ids from 0 to {self.vocabulary - 1}"
                raise ParameterError("input_ids", [min(prompt), max(prompt)], outside)
        return [list(prompt) for prompt in prompts]

    def _check_lengths(self, prompts: list[list[int]], params: DecodingParams) -> None:
        if self.longest is None:
            return
        name, limit = self.longest
        longest = max((length for prompt in prompts for length in params.prompt_lengths(len(prompt))), default=0)
        if params.length(longest) > limit:
            behind = params.length(longest) - longest
            raise ParameterError(
                "max_new_tokens", params.canvas_length,
                f"prompt ({longest} tokens) + canvas and suffix ({behind}) must fit the model's {name} of {limit}; "
                "give a shorter canvas or prompt",
            )  # fmt: skip

    def _step(self, decoders: list[Decoder]) -> None:
        """One forward for as many pending sequences of one length as fit, whoever they belong to."""
        waiting = [(decoder, decoder.pending) for decoder in decoders if decoder.pending is not None]
        length = waiting[0][1].sequences.shape[1]
        parts: list[tuple[Decoder, Pending, int]] = []
        room = self.max_sequences
        for decoder, pending in waiting:
            count = min(room, pending.remaining)
            if count and pending.sequences.shape[1] == length:
                parts.append((decoder, pending, count))
                room -= count
        batch_metadata = [decoder.metadata(count) for decoder, _, count in parts]
        sequences = [pending.sequences[pending.part(count)] for _, pending, count in parts]
        masked = [pending.masked[pending.part(count)] for _, pending, count in parts]
        rows = self._rows(sequences, masked)
        guides = [decoder.guide for decoder, _, _ in parts if decoder.guide is not None]
        if guides:  # of all, since they share their parameters
            theirs = [guide.sequences(ids) for guide, ids in zip(guides, sequences, strict=True)]
            moved = [guide.offset + positions for guide, positions in zip(guides, masked, strict=True)]
            rows = combine(rows, self._rows(theirs, moved), guides[0].scale)
        first, last = batch_metadata[0].params.columns or (0, None)
        vocabulary = self.vocabulary if self.image_tokens is None else self.image_tokens.image_token_offset
        outputs = read(rows[:, first:last], batch_metadata, self.mask_id, min(vocabulary, rows.shape[1]))
        for (decoder, _, count), output in zip(parts, outputs, strict=True):
            decoder.consume(count, output)

    def _rows(self, sequences: list[np.ndarray], masked: list[np.ndarray]) -> torch.Tensor:
        """Logits [rows, columns] fp32 at the masked positions [n, masked] of every part's sequences [n, length], which
        are of one length."""
        device = next(self.model.parameters()).device
        logits = self.adapter(self.model, torch.from_numpy(np.concatenate(sequences)).to(device))
        # A part's masked positions are as many in each of its sequences, other parts' may be more or fewer.
        sequence = np.repeat(np.arange(len(logits)), np.concatenate([[m.shape[1]] * len(m) for m in masked]))
        place = sequence * logits.shape[1] + np.concatenate([positions.ravel() for positions in masked])
        return logits.flatten(0, 1)[torch.from_numpy(place).to(device)].float()

    def _result(self, tokens: list[int], decoder: Decoder) -> Sample:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True) if self.tokenizer is not None else None
        return Sample(tokens, text, decoder.report)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout, which would make the same seed give other tokens; afterwards every module is as it was."""
    trained = [module for module in model.modules() if module.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _without_padding(encoding: Mapping[str, Any]) -> list[list[int]]:
    """The prompts in what a tokenizer returns, of one text or several, as lists or tensors."""
    if "input_ids" not in encoding:
        raise ParameterError("input_ids", sorted(encoding), "holds no input_ids; give what the tokenizer returns")

    def rows(name: str) -> list[list[int]]:
        values = encoding[name].tolist() if hasattr(encoding[name], "tolist") else list(encoding[name])
        return [values] if values and isinstance(values[0], int) else values

    prompts = rows("input_ids")
    masks = rows("attention_mask") if "attention_mask" in encoding else [[1] * len(prompt) for prompt in prompts]
    return [
        [token for token, is_read in zip(prompt, mask, strict=True) if is_read]
        for prompt, mask in zip(prompts, masks, strict=True)
    ]


def _first_given(name: str, given: Any, *sources: Any) -> Any:
    """`given`, else the attribute of the first source that has it; None if none does."""
    values = (given, *(getattr(source, name, None) for source in sources))
    return next((value for value in values if value is not None), None)
