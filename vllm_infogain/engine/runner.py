"""Runs one step on the worker: planned groups -> one forward -> logits of masked rows -> the algorithm -> result.

Step logic lives here and not in the worker, because one of vLLM's Ray paths calls the runner directly. Under tensor
parallelism every rank gathers the logits and decides alike, from the same per-request seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch

from vllm_infogain.compat import VllmConfig
from vllm_infogain.engine.batch import Batch, SequenceGroup, build_batch
from vllm_infogain.engine.kv_layout import layout
from vllm_infogain.engine.model_host import ModelHost
from vllm_infogain.engine.records import GroupPlan, NextForward, StepPlan, StepResult
from vllm_infogain.engine.results import step_result
from vllm_infogain.engine.stats import NOTHING_RECORDED, Recorded, timed
from vllm_infogain.request.from_vllm import settings_of
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling import make_decoder
from vllm_infogain.sampling.canvas_state import Final
from vllm_infogain.sampling.decoder import Decoder, Pending
from vllm_infogain.sampling.frequencies import load_log_frequencies
from vllm_infogain.sampling.metadata import SamplerOutput, SamplingMetadata
from vllm_infogain.sampling.read_logits import read


@dataclass
class Running:
    """One request on the worker. Owner: the runner."""

    decoder: Decoder
    cached: Pending | None = None  # the sequences of the last refresh, whose K/V its pages hold
    recorded: Recorded = NOTHING_RECORDED  # the stats recorder's


class InfoGainRunner(ModelHost):
    """Owner of every running request's `Decoder`."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, *, has_pictures: bool = True) -> None:
        super().__init__(vllm_config, device, has_pictures=has_pictures)
        self.log_frequencies = background_log_frequencies(vllm_config)
        self.requests: dict[str, Running] = {}

    # One step.

    @torch.inference_mode()  # vLLM's workers have it too, but not every path leads through them
    def execute_model(self, plan: StepPlan, intermediate_tensors: object = None) -> StepResult:
        """Evaluate the planned groups, and go on while the plan's pages and rows allow it and nobody has finished."""
        self.stats_recorder.start()
        ended = self._update_requests(plan)
        running = {request_id: self.requests[request_id] for request_id in plan.groups}
        finals = {request_id: Final([], []) for request_id in running}
        next_forwards: dict[str, NextForward] = {}
        groups = plan.groups
        for _ in range(plan.forwards):
            if not groups:
                break
            self._evaluate(groups)
            for request_id, final in finals.items():
                final.extend(running[request_id].decoder.take_final())
            next_forwards = {request_id: self._next_forward(request) for request_id, request in running.items()}
            groups = self._next_groups(plan, next_forwards)
        decoders = {request_id: request.decoder for request_id, request in running.items()}
        result = step_result(decoders, finals, next_forwards, ended)
        result.stats = self.stats_recorder.take(plan, running)
        return result

    def _update_requests(self, plan: StepPlan) -> dict[str, Decoder]:
        """Decoders of requests that have ended since the last step."""
        ended = {
            request_id: self.requests.pop(request_id).decoder
            for request_id in plan.finished_req_ids & self.requests.keys()
        }
        # A preempted request only loses its pages; its decoder stays and goes on where it was.
        for new in plan.scheduled_new_reqs:
            assert new.prompt_token_ids is not None
            decoder = make_decoder(
                new.prompt_token_ids,
                plan.params[new.req_id],
                self.mask_id,
                self.log_frequencies,
                new.num_computed_tokens,
                plan.automata.get(new.req_id),
            )
            self.requests[new.req_id] = Running(decoder)
        return ended

    def _evaluate(self, groups: dict[str, GroupPlan]) -> None:
        """One forward of all groups. Afterwards every decoder knows what it wants next."""
        self.stats_recorder.batches += 1
        batch, asked = self._prepare(groups)
        hidden = self._forward(batch)
        self._guide(hidden, batch.guided_rows, batch.guide_rows, batch.guidance_scale)
        first = 0
        for turn in self._turns(asked):
            batch_metadata = [decoder.metadata(count) for decoder, count, _ in turn]
            rows = sum(metadata.canvas_offsets.size for metadata in batch_metadata)
            columns = batch_metadata[0].params.columns
            logits = self._logits(hidden, batch.logit_rows[first : first + rows], columns)
            outputs = self._read(logits, batch_metadata)
            first += rows
            self._decide(turn, outputs)

    @timed("prepare")
    def _prepare(self, groups: dict[str, GroupPlan]) -> tuple[Batch, list[tuple[Decoder, int]]]:
        """The forward's input, and how many sequences of whose pending ones it evaluates.

        Those come together that read the same columns of logits.
        """
        sequences, asked = [], []
        for request_id, plan in sorted(groups.items(), key=lambda group: self._columns(group[0]) or (0, 0)):
            running = self.requests[request_id]
            pending = running.decoder.pending
            if plan.recompute_from is not None:
                assert running.cached is not None
                pending = replace(running.cached, consumed=plan.recompute_from)
            else:
                assert pending is not None
                asked.append((running.decoder, plan.sequences))
                if pending.window.refresh:
                    running.cached = pending
            sequences += self._groups(pending, plan, running.decoder)
        return build_batch(sequences, self.page_size, self.device), asked

    def _columns(self, request_id: str) -> tuple[int, int] | None:
        return self.requests[request_id].decoder.params.columns

    def _groups(self, pending: Pending, plan: GroupPlan, decoder: Decoder) -> list[SequenceGroup]:
        """The planned sequences and, in a group behind theirs, their guides."""
        params, guide = decoder.params, decoder.guide
        if guide is None:
            return [self._group(pending, plan, params)]
        half = len(plan.cached_pages) // 2
        group = self._group(pending, replace(plan, cached_pages=plan.cached_pages[:half]), params)
        others = 0 if group.window.refresh else plan.sequences - 1
        used = others * len(layout(group.window, self.page_size, in_order=group.block > 0).own)
        theirs = replace(plan, cached_pages=plan.cached_pages[half:], scratch=plan.scratch[used:])
        return [group, replace(self._group(pending.guides(guide), theirs, params), guidance_scale=guide.scale)]

    def _group(self, pending: Pending, plan: GroupPlan, params: DecodingParams) -> SequenceGroup:
        part = pending.part(plan.sequences)
        masked, window = pending.masked[part], pending.window
        if plan.recompute_from is not None:
            # All of it at once, as it was when it was cached; what it predicts is known.
            masked, window = masked[:, :0], replace(window, rows=range(window.rows.stop))
        block = params.block_length if params.block_causal else 0
        return SequenceGroup(
            pending.sequences[part], masked, window, pending.cached_indices[part], plan, block, params.shift
        )

    def _turns(self, asked: list[tuple[Decoder, int]]) -> Iterator[list[tuple[Decoder, int, bool]]]:
        """Cut the groups into turns whose logits fit at once, and are of the same columns: decoder, sequences, whether
        they are its first."""
        for columns, alike in groupby(asked, lambda one: one[0].params.columns):
            turn: list[tuple[Decoder, int, bool]] = []
            most = room = self.most_rows(columns)
            for decoder, count in alike:
                assert decoder.pending is not None
                masked, done = max(1, decoder.pending.masked.shape[1]), 0
                while done < count:
                    if room < masked and turn:
                        yield turn
                        turn, room = [], most
                    part = min(count - done, max(1, room // masked))
                    turn.append((decoder, part, done == 0))
                    done, room = done + part, room - part * masked
            if turn:
                yield turn

    @timed("read")
    def _read(self, logits: torch.Tensor, batch_metadata: list[SamplingMetadata]) -> list[SamplerOutput]:
        return read(logits, batch_metadata, self.mask_id, self.vocab)

    @timed("decide")
    def _decide(self, turn: list[tuple[Decoder, int, bool]], outputs: list[SamplerOutput]) -> None:
        for (decoder, count, is_first), output in zip(turn, outputs, strict=True):
            decoder.consume(count, output, first_of_forward=is_first)

    def _next_groups(self, plan: StepPlan, next_forwards: dict[str, NextForward]) -> dict[str, GroupPlan]:
        """What the plan's requests want next, whole; nothing if one has finished, or pages or rows do not suffice."""
        groups, rows = {}, 0
        for request_id, group in plan.groups.items():
            next_forward = next_forwards[request_id]
            rows += next_forward.sequences * next_forward.rows
            needed = (next_forward.sequences - 1) * next_forward.own_pages
            if next_forward.sequences == 0 or needed > len(group.scratch) or rows > plan.row_budget:
                return {}
            groups[request_id] = replace(group, sequences=next_forward.sequences)
        return groups

    def _next_forward(self, running: Running) -> NextForward:
        pending, cached = running.decoder.pending, running.cached
        if pending is None:
            return NextForward(sequences=0, rows=0, own_pages=0)
        decoder, is_block_causal = running.decoder, running.decoder.params.block_causal
        windows = decoder.windows(pending.window)
        own = [layout(window, self.page_size, in_order=is_block_causal).own for window in windows]
        return NextForward(
            sequences=pending.remaining,
            rows=sum(len(window.rows) for window in windows),
            own_pages=0 if pending.window.refresh else sum(map(len, own)),
            num_cached_states=0 if cached is None else len(cached.sequences),
            cached_rows=0 if cached is None else sum(window.rows.stop for window in decoder.windows(cached.window)),
            final=cached.window.own.start if cached is not None and is_block_causal else 0,
        )

    def shutdown(self) -> None:
        self.requests.clear()


def background_log_frequencies(vllm_config: VllmConfig) -> np.ndarray | None:
    """[vocab] log-frequencies for the sampler `pc`, if the server names a file that our command counted.

    Which file is read is the server's to say, never a request's.
    """
    settings, _ = settings_of(vllm_config)
    if settings.background_frequencies is None:
        return None
    return load_log_frequencies(settings.background_frequencies, vllm_config.model_config.get_vocab_size())
