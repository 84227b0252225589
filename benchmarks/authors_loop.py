"""The baseline: a loop of the shape of the authors' standalone scripts, written here from their description.

One sequence at a time, no cache. Every step runs the whole sequence, once per candidate, in one forward of the plain
model; softmax and entropy are taken at every position over the whole vocabulary. In the baseline's favour: equal
candidates are evaluated once, and the winner's logits are kept, so that a look-ahead step is one forward.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]  # ids [n, length] -> logits [n, length, vocab]


@dataclass(frozen=True)
class Setting:
    """What is decoded, one token per step; without look-ahead `num_candidates` is 1 and positions are the surest."""

    canvas: int
    block_length: int
    num_candidates: int = 1  # N
    temperature: float = 0.0  # of tokens
    position_temperature: float = 0.1  # of the candidates that are not greedy


@dataclass
class LoopRun:
    """Figures of the steps that ran; `canvas_seconds` are scaled to all steps of the canvas."""

    tokens: list[int]  # [canvas]; only of a loop that ran whole
    canvas_seconds: float = 0.0  # CPU
    sampler_share: float = 0.0  # of these seconds, all but the forwards
    steps: int = 0
    candidates: int = 0


class Loop:
    """Decodes prompts one by one. A step is given `ids` [1, length] and their logits, and returns those of the next."""

    def __init__(self, model: Model, mask_id: int, setting: Setting) -> None:
        self.model = model
        self.mask_id = mask_id
        self.setting = setting
        self.generator = torch.Generator().manual_seed(0)
        self.forward_seconds = 0.0
        self.candidates = 0

    @torch.inference_mode()
    def run(
        self, prompt: Sequence[int], steps_sampled: int | None = None, written: Sequence[tuple[int, int]] = ()
    ) -> LoopRun:
        """All steps; or `steps_sampled` of them, evenly spread over those of another decoding of the same canvas, which
        wrote (offset, token) in the order of `written`. Steps cost the same but for the number of equal candidates."""
        canvas = self.setting.canvas
        self._forward(torch.full((1, len(prompt) + canvas), self.mask_id))  # the first forward pays for set-up
        self.forward_seconds = 0.0
        if steps_sampled is None or steps_sampled >= canvas:
            started = time.process_time()
            ids = self._state(prompt, ())
            logits = self._forward(ids) if self.setting.num_candidates > 1 else None
            for _ in range(canvas):
                ids, logits = self._step(ids, logits, len(prompt))
            seconds, steps, tokens = time.process_time() - started, canvas, ids[0, len(prompt) :].tolist()
        else:
            seconds, steps, tokens = 0.0, steps_sampled, []
            for sampled in (canvas * (2 * i + 1) // (2 * steps) for i in range(steps)):
                ids = self._state(prompt, written[:sampled])
                before_step = self.forward_seconds
                logits = self._forward(ids) if self.setting.num_candidates > 1 else None
                self.forward_seconds = before_step  # the step before this one would have paid for these
                started = time.process_time()
                self._step(ids, logits, len(prompt))
                seconds += time.process_time() - started
        return LoopRun(
            tokens=tokens,
            canvas_seconds=seconds * canvas / steps,
            sampler_share=1 - self.forward_seconds / seconds,
            steps=steps,
            candidates=self.candidates,
        )

    def _state(self, prompt: Sequence[int], written: Sequence[tuple[int, int]]) -> Tensor:
        """ids [1, length] of a state."""
        canvas = [self.mask_id] * self.setting.canvas
        for offset, token in written:
            canvas[offset] = token
        return torch.tensor([[*prompt, *canvas]])

    def _step(self, ids: Tensor, logits: Tensor | None, start: int) -> tuple[Tensor, Tensor | None]:
        """Write one position of the first block with a mask. `logits` are those of `ids`; None: not known yet."""
        first = int((ids[0] == self.mask_id).nonzero()[0]) - start
        block = slice(
            start + first // self.setting.block_length * self.setting.block_length,
            start + min((first // self.setting.block_length + 1) * self.setting.block_length, self.setting.canvas),
        )
        masked = (ids[0, block] == self.mask_id).nonzero().flatten() + block.start
        logits = self._forward(ids) if logits is None else logits
        probabilities, entropy = self._statistics(logits)
        tokens = self._draw(logits[0])  # [length, N]
        if self.setting.num_candidates == 1:
            surest = masked[entropy[0, masked].argmin()]
            ids = ids.clone()
            ids[0, surest] = tokens[surest, 0]
            self.candidates += 1
            return ids, None

        actions = self._actions(probabilities[0], tokens, masked)
        states = ids.repeat(len(actions), 1)
        for state, (position, token) in zip(states, actions, strict=True):
            state[position] = token
        after = self._forward(states)
        entropy_after = self._statistics(after)[1]
        scores = []
        for state, row, (position, _) in zip(states, entropy_after, actions, strict=True):
            left = row[block][state[block] == self.mask_id]
            remaining = float(left.mean()) if len(left) else 0.0
            scores.append(float(entropy[0, masked].mean()) - remaining - float(entropy[0, position]))  # J, eq. 5
        self.candidates += len(actions)
        best = max(range(len(actions)), key=scores.__getitem__)
        return states[best : best + 1], after[best : best + 1]

    def _actions(self, probabilities: Tensor, tokens: Tensor, masked: Tensor) -> list[tuple[int, int]]:
        """Distinct (position, token) pairs by the drawn tokens' probability; the first is the greedy one."""
        score = probabilities[masked].gather(1, tokens[masked]).T  # [N, masked]
        noise = -torch.empty_like(score).exponential_(generator=self.generator).log()
        noise[0] = 0
        chosen = masked[(score / self.setting.position_temperature + noise).argmax(-1)]
        return list(dict.fromkeys((int(p), int(tokens[p, draw])) for draw, p in enumerate(chosen)))

    def _draw(self, logits: Tensor) -> Tensor:
        """Tokens [length, N], at every position."""
        if self.setting.temperature == 0:
            return logits.argmax(-1, keepdim=True).expand(-1, self.setting.num_candidates)
        weights = (logits / self.setting.temperature).softmax(-1)
        return weights.multinomial(self.setting.num_candidates, replacement=True, generator=self.generator)

    def _statistics(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [n, length, vocab] and entropies [n, length], nats, of every position."""
        log_probabilities = logits.log_softmax(-1)
        probabilities = log_probabilities.exp()
        return probabilities, -(probabilities * log_probabilities.clamp_min(-1e4)).sum(-1)

    def _forward(self, ids: Tensor) -> Tensor:
        started = time.process_time()
        logits = self.model(ids)
        logits[..., self.mask_id] = -torch.inf
        self.forward_seconds += time.process_time() - started
        return logits
