"""The model card of infogain-tiny-image: what is fixed here, what is measured filled in by the training run."""

from collections.abc import Mapping

from vllm_infogain.embedded.pictures.scenes import COLOURS, HELD_OUT, SHAPES, SIDE, TEMPLATES, requirements
from vllm_infogain.embedded.pictures.words import BITS, CODES, SIDE_CODES
from vllm_infogain.images.geneval import CATEGORIES
from vllm_infogain.images.magvit import Magvit
from vllm_infogain.reference.llada import LLaDA

CARD = """\
---
license: apache-2.0
library_name: vllm-infogain
tags: [masked-diffusion, text-to-image, mmada, llada]
---
# infogain-tiny-image

A masked diffusion model of pictures that ships inside `vllm-infogain`, so that text to image, guidance and in-painting
can be tried, tested and compared on a laptop's CPU, with nothing to download. It has MMaDA's form: a small LLaDA
({layers} layers, width {width}, {heads} heads of 32, SwiGLU {mlp}; {parameters:.2f} M parameters) over words and the
codes of pictures, with one mask token for both, and a small MAGVIT-v2 ({tokenizer:.2f} M parameters) that turns
{side} x {side} pixels into {side_codes} x {side_codes} codes of {bits} bits and back. It draws coloured shapes, and
nothing else.

## Prompts
The six forms of GenEval, alone or behind {templates}: "a circle", "a circle and a square", "two red squares", "a red
cross", "a red circle left of a blue square", "a red circle and a blue square". Shapes: {shapes}. Colours: {colours}.
Two to four of a kind; two shapes of a pair differ. Words it does not know are read as one unknown word.

What the model reads: `<|t2i|> <|startoftext|> words <|endoftext|> <|soi|>`, {codes} codes, `<|eoi|>`; without words for
guidance.

## Data and splits
All pictures are drawn by `vllm_infogain.embedded.pictures.scenes`, sizes, places and unnamed colours by chance. One
prompt in {held_out} of each category, by the CRC-32 of its text, is held out: no evaluation prompt is in training,
though its content may be there with other words around it.

| category | prompts in training | held out |
|---|---|---|
{splits}

## Training
- `python -m vllm_infogain.embedded.pictures.train_tokenizer --out TOKENIZER --minutes 14`
- `python -m vllm_infogain.embedded.pictures.train --tokenizer TOKENIZER --out DIR --minutes {minutes:g} --seed {seed}`:
  {steps} steps on one core of a busy server CPU.

Minutes are of the CPU. The tokenizer: weighted L1 + L2 (objects five times the ground), bits straight-through, then its
decoder alone. The masked model: codes hidden at a share cos(pi u / 2), cross-entropy at hidden codes, one row in eleven
without a prompt; Muon (0.02) for the matrices, AdamW (0.004) for the rest. Loss at the end: {loss:.3f} nats per hidden
code. Weights are kept in fp16.

## Share of right pictures
{count} held-out prompts of each category, judged by GenEval's rules on shapes that a rule-based detector finds. "codes"
is what the tokenizer alone leaves right of 50 true pictures. The others: the surest drawn codes first, with noise (both
temperatures 0.4), guidance 1, a cosine schedule.

| category | codes | 64 steps | 16 steps |
|---|---|---|---|
{shares}

## Limits
{side} x {side} pixels, only these prompts. Its mistakes at few steps are what samplers are compared by.

## Licence
Apache-2.0, weights and generated data alike.
"""


def model_card(
    model: LLaDA,
    tokenizer: Magvit,
    run: Mapping,
    codes: Mapping[str, float],
    many: Mapping[str, float],
    few: Mapping[str, float],
    count: int,
) -> str:
    """The card's text.

    Args:
        run: what `train` returned.
        codes, many, few: share of right pictures by category: through the tokenizer alone, in 64 and in 16 steps.
        count: prompts of each category that they were measured on.
    """
    shape = model.shape
    train, test = requirements("train"), requirements("test")
    columns = (codes, many, few)
    return CARD.format(
        layers=shape.n_layers,
        width=shape.d_model,
        heads=shape.n_heads,
        mlp=shape.mlp_hidden_size,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        tokenizer=sum(p.numel() for p in tokenizer.parameters()) / 1e6,
        side=SIDE,
        side_codes=SIDE_CODES,
        bits=BITS,
        codes=CODES,
        templates=", ".join(f'"{template.format("").strip()}"' for template in TEMPLATES if template != "{}"),
        shapes=", ".join(SHAPES),
        colours=", ".join(COLOURS),
        held_out=HELD_OUT,
        splits="\n".join(f"| {name} | {len(train[name])} | {len(test[name])} |" for name in CATEGORIES),
        shares="\n".join(
            f"| {name} | " + " | ".join(f"{column[name]:.0%}" for column in columns) + " |" for name in CATEGORIES
        ),
        count=count,
        **{name: run[name] for name in ("minutes", "seed", "steps", "loss")},
    )
