"""Schedules each request's candidate expansions as one group.

A request is planned in sequences: one for a forward of its state, one per distinct candidate for a look-ahead. The
worker, which has the logits, says after each step what each request wants next (`NextForward`). From admission to its
end a request holds the KV pages of its cached states: of one, or of a beam's several. What its other candidates need of
their own are scratch pages, for one engine step. A guided request has twice as much of everything, for the guides: no
sequence is planned without its guide.

Queues, page accounting, preemption, stopping, abort and statistics are vLLM's own.
"""

import time

from vllm_infogain.compat import (
    EngineCoreEventType,
    ModelRunnerOutput,
    NewRequestData,
    PauseState,
    Request,
    RequestStatus,
    Scheduler,
    SchedulerOutput,
    cdiv,
)
from vllm_infogain.engine.config_check import check_engine
from vllm_infogain.engine.messages import tell, tell_timed_out
from vllm_infogain.engine.metrics import StepStatsExporter
from vllm_infogain.engine.records import GroupPlan, StepPlan, StepResult
from vllm_infogain.engine.request_state import RequestState
from vllm_infogain.grammar.backend import CanvasBackend, compiled_automaton
from vllm_infogain.request.from_vllm import settings_of


class InfoGainScheduler(Scheduler):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        check_engine(self.vllm_config)
        self.use_v2_model_runner = True  # spares a copy of every token per step that only vLLM's V1 runner reads
        self.settings, _ = settings_of(self.vllm_config)
        self._states: dict[str, RequestState] = {}
        self._scratch: list = []  # pages of candidates in the step under way
        self._stats_exporter = StepStatsExporter(self.vllm_config)
        # Grammars are compiled where vLLM compiles them, but to automata over whole canvases.
        self.structured_output_manager.backend = CanvasBackend(self.vllm_config)
        self._timed_out: list[Request] = []  # whose clients are to be told

    # Arrival and end of a request: the only places where our own table gains or loses a key.

    def add_request(self, request: Request) -> None:
        state = RequestState.of(request, self.vllm_config, self.block_size)
        if self.kv_cache_manager.enable_caching:
            self._key_pages(request, state)
        super().add_request(request)
        self._states[request.request_id] = state

    def _free_request(self, request: Request, delay_free_blocks: bool = False):
        freed = super()._free_request(request, delay_free_blocks)
        del self._states[request.request_id]
        return freed

    def _free_request_blocks(self, request: Request):
        # At the end of a request and at a preemption.
        super()._free_request_blocks(request)
        state = self._states[request.request_id]
        for pages in state.extra_cached_pages:
            self.kv_cache_manager.block_pool.free_blocks(pages)
        state.extra_cached_pages = []

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        super()._preempt_request(request, timestamp, drop_stale_output)
        state = self._states[request.request_id]
        if state.next_forward.num_cached_states:
            state.recompute_from = 0

    def _time_out(self) -> None:
        """End requests that have been here for too long. Their pages are free for this step already."""
        if not self.settings.request_timeout:
            return
        latest = time.time() - self.settings.request_timeout
        late = [request for request in self.requests.values() if request.arrival_time < latest]
        self.finish_requests([request.request_id for request in late], RequestStatus.FINISHED_ABORTED)
        self._timed_out += late

    def _key_pages(self, request: Request, state: RequestState) -> None:
        """K and V depend on the block length: only requests of the same block length find each other's pages."""
        if not state.shares_pages:
            request.skip_reading_prefix_cache = True
            return
        # In front of the client's own salt, which may hold anything: no two pairs of length and salt give one text.
        request.cache_salt = f"{state.params.block_length}:{request.cache_salt or ''}"
        request.block_hashes.clear()
        request.update_block_hashes()

    # One step.

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        self._time_out()
        self._admit()
        budget = 0 if self._pause_state == PauseState.PAUSED_ALL else self.max_num_scheduled_tokens
        # If nobody waits to join and nobody watches, the worker may run a few forwards by itself: it gets the scratch
        # pages that any of them can need.
        states = self._running_states()
        may_go_on = (
            not self.waiting
            and all(state.recompute_from is None and state.params.stream_mode == "block" for state in states)
            and sum(state.largest_scratch for state in states) <= self._free_scratch()
        )
        groups: dict[str, GroupPlan] = {}
        planned, passed_over = [], []
        for request in self.running:
            group = self._plan_group(request, budget, first=not groups, give_largest=may_go_on)
            if group is None:
                passed_over.append(request)
            else:
                planned.append(request)
                groups[request.request_id] = group
                budget -= self._rows(request, group)
        # Whoever was passed over comes first next time: no request waits for another's whole generation.
        self.running = passed_over + planned
        plan = self._step_plan(groups, planned)
        if may_go_on and not passed_over:
            plan.forwards, plan.row_budget = self.settings.steps_per_schedule, self.max_num_scheduled_tokens
        return plan

    def _admit(self) -> None:
        """Move waiting requests to running while pages and seats last. Rows are no condition: turns are taken."""
        seats = min(self.max_num_running_reqs, self.max_num_active_reqs)
        while self.waiting and len(self.running) < seats and self._pause_state == PauseState.UNPAUSED:
            request = next(filter(self._is_compiled, self.waiting), None)
            if request is None:
                return
            if not self._is_within_limits(request) or not self._allocate(request):
                return
            self.waiting.remove_request(request)
            self.deferred_waiting.discard(request)  # where vLLM counts those whose grammar is being compiled
            self._start(request)

    def _is_within_limits(self, request: Request) -> bool:
        """Whether the server's limits of rows and of KLASS's memory admit it beside the running requests."""
        state, others = self._states[request.request_id], self._running_states()
        rows = sum(other.largest_rows for other in others) + state.largest_rows
        if others and rows > self.settings.server_rows:
            return False
        return not state.klass_mib or sum(one.klass_mib for one in (*others, state)) <= self.settings.klass_mib

    def _allocate(self, request: Request) -> bool:
        """Take the pages of its cached states, and those that requests of the same prefix have filled; or none."""
        state, others = self._states[request.request_id], self._running_states()
        extra = [cdiv(length, self.block_size) for length in state.context_lengths[1:]]
        found, computed = None, 0
        if not state.is_known and not extra:
            found, computed, _ = self.kv_cache_manager.get_computed_blocks(request)
        # Leave room for the largest group, so that look-ahead is evaluated whole; a lone request takes what is there.
        scratch = max(one.largest_scratch for one in (*others, state))
        blocks = self.kv_cache_manager.allocate_slots(
            request,
            state.context_lengths[0] - computed,
            num_new_computed_tokens=computed,
            new_computed_blocks=found,
            delay_cache_blocks=True,  # pages are cached once what they hold is final
            reserved_blocks=sum(extra) + (scratch if others else 0),
            has_scheduled_reqs=bool(others),
        )
        if blocks is None:
            return False
        pool = self.kv_cache_manager.block_pool
        state.extra_cached_pages = [pool.get_new_blocks(pages) for pages in extra]
        if found is not None:
            self.kv_cache_manager.record_prefix_cache_stats(request, computed)
        request.num_computed_tokens = computed  # what the worker need not compute; told it once
        return True

    def _start(self, request: Request) -> None:
        """Let it run from this step on, and tell vLLM's statistics."""
        self.running.append(request)
        request.status = RequestStatus.RUNNING
        if request.prefill_stats and request.num_preemptions == 0:
            request.prefill_stats.set(
                num_prompt_tokens=request.num_prompt_tokens,
                num_local_cached_tokens=request.num_computed_tokens,
                num_external_cached_tokens=0,
            )
        if self.log_stats:
            request.record_event(EngineCoreEventType.SCHEDULED, time.monotonic())

    def _running_states(self) -> list[RequestState]:
        return [self._states[request.request_id] for request in self.running]

    def _is_compiled(self, request: Request) -> bool:
        """Whether its grammar, if it has one, is compiled; where that failed, vLLM ends the request with an error."""
        waits = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        return not waits or self._handle_blocked_waiting_request(request)

    def get_grammar_bitmask(self, scheduler_output: SchedulerOutput) -> None:
        """None: the worker has the automata."""

    def _plan_group(self, request: Request, budget: int, first: bool, give_largest: bool) -> GroupPlan | None:
        """The part of the request's group that fits, or None. Only the first group of a step may be cut: it is larger
        than the whole budget or the free pages, and waiting would not help."""
        state = self._states[request.request_id]
        next_forward = state.next_forward
        if state.recompute_from is None:
            wanted, rows, own_pages = next_forward.sequences, next_forward.rows, next_forward.own_pages
        else:
            wanted, rows, own_pages = next_forward.num_cached_states - state.recompute_from, next_forward.cached_rows, 0
        fitting = min(wanted, budget // rows, 1 + self._free_scratch() // own_pages if own_pages else wanted)
        if fitting == 0 or (fitting < wanted and not first):
            return None
        pages = state.largest_scratch if give_largest else (fitting - 1) * own_pages
        scratch = self.kv_cache_manager.block_pool.get_new_blocks(pages)
        self._scratch += scratch
        cached_pages = [
            tuple(self.kv_cache_manager.get_block_ids(request.request_id)[0]),
            *(tuple(block.block_id for block in pages) for pages in state.extra_cached_pages),
        ]
        return GroupPlan(fitting, tuple(cached_pages), tuple(block.block_id for block in scratch), state.recompute_from)

    def _step_plan(self, groups: dict[str, GroupPlan], planned: list[Request]) -> StepPlan:
        unknown = [request for request in planned if not self._states[request.request_id].is_known]
        known = [request for request in planned if self._states[request.request_id].is_known]
        for request in unknown:
            self._states[request.request_id].is_known = True
        rows = {request.request_id: self._rows(request, groups[request.request_id]) for request in planned}
        blocks = {request_id: self.kv_cache_manager.get_blocks(request_id) for request_id in groups}
        plan = StepPlan(
            scheduled_new_reqs=[
                NewRequestData.from_request(request, blocks[request.request_id].get_block_ids()) for request in unknown
            ],
            scheduled_cached_reqs=self._make_cached_request_data(known, [], rows, {}, blocks),
            num_scheduled_tokens=rows,
            total_num_scheduled_tokens=sum(rows.values()),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            preempted_req_ids=self.reset_preempted_req_ids,
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=[],
            groups=groups,
            params={request.request_id: self._states[request.request_id].params for request in unknown},
            automata={
                request.request_id: compiled_automaton(request) for request in unknown if request.use_structured_output
            },
        )
        self._update_after_schedule(plan)
        return plan

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        # vLLM's count of computed tokens means nothing here: what is cached of a canvas is the worker's to say.
        for request_id in scheduler_output.num_scheduled_tokens:
            self.requests[request_id].num_computed_tokens = 0

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput):
        assert isinstance(scheduler_output, StepPlan)
        self._stats_exporter.record(model_runner_output, scratch_pages=len(self._scratch))
        self.kv_cache_manager.block_pool.free_blocks(self._scratch)
        self._scratch = []
        for request_id, group in scheduler_output.groups.items():
            # A request aborted while the step ran is known no more; one preempted meanwhile starts over.
            state = self._states.get(request_id)
            if state is not None and state.recompute_from is not None and group.recompute_from is not None:
                state.recompute_from = group.recompute_from + group.sequences
                if state.recompute_from == state.next_forward.num_cached_states:
                    state.recompute_from = None
        messages = {}
        if isinstance(model_runner_output, StepResult):  # else nothing ran
            for request_id, next_forward in model_runner_output.next_forwards.items():
                if request_id in self._states:
                    self._states[request_id].next_forward = next_forward
            messages = model_runner_output.messages
        groups, known = scheduler_output.groups, self.requests
        clients = {request_id: known[request_id].client_index for request_id in groups if request_id in known}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        tell(outputs, messages, clients)
        tell_timed_out(outputs, self._timed_out, messages)
        self._timed_out = []
        for request in self.running:
            # Pages whose content is final may serve other requests with the same prefix.
            state = self._states[request.request_id]
            if state.shares_pages and state.next_forward.final:
                self.kv_cache_manager.cache_blocks(request, min(state.next_forward.final, request.num_tokens))
        return outputs

    def make_stats(self, *args, **kwargs):
        return self._stats_exporter.attach(super().make_stats(*args, **kwargs))

    # Sizes.

    def _rows(self, request: Request, group: GroupPlan) -> int:
        next_forward = self._states[request.request_id].next_forward
        return group.sequences * (next_forward.rows if group.recompute_from is None else next_forward.cached_rows)

    def _free_scratch(self) -> int:
        """Scratch pages that may still be given out in this step."""
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        limit = self.settings.scratch_pages
        return min(free, limit - len(self._scratch)) if limit else free
