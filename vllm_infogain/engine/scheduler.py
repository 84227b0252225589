"""Schedules each request's candidate expansions as one group.

A request is planned in sequences: one for a forward of its state, one per distinct candidate for a look-ahead. The
worker, which has the logits, says after each step what each request wants next (`Demand`). From admission to its end a
request holds the KV pages of its kept states (one; a beam keeps several); what its other candidates need of their own
are scratch pages, lent for one step.

Queues, page accounting, preemption, stopping, abort and statistics are vLLM's own.
"""

import time

from vllm_infogain.admission import check_engine, decoding_params
from vllm_infogain.engine.compat import (
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
from vllm_infogain.engine.layout import most_own_pages
from vllm_infogain.engine.records import Demand, GroupPlan, StepPlan, StepResult
from vllm_infogain.settings import parse_settings


class InfoGainScheduler(Scheduler):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        check_engine(self.vllm_config)
        self.use_v2_model_runner = True  # spares a copy of every token per step that only vLLM's V1 runner reads
        self.settings, _ = parse_settings(self.vllm_config.additional_config)
        self._demands: dict[str, Demand] = {}  # what each request wants evaluated next
        self._largest_scratch: dict[str, int] = {}  # scratch pages that a request's largest group needs
        self._contexts: dict[str, list[list]] = {}  # pages of each running request's kept states but the first
        self._context_count: dict[str, int] = {}  # states whose K/V a request keeps at most
        self._lost: dict[str, int] = {}  # of preempted requests: the first kept state not computed again yet
        self._known_to_worker: set[str] = set()
        self._reports: dict[str, dict] = {}  # the newest report of each request
        self._scratch: list = []  # pages lent for the step under way

    # Admission and end of a request: the only places where our own tables gain or lose a key.

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        assert request.sampling_params is not None
        params = decoding_params(request.request_id, request.sampling_params, self.vllm_config)
        length = self._length(request)
        window = min(length, params.window(request.num_prompt_tokens))
        own_pages = most_own_pages(window, length, self.block_size)
        self._demands[request.request_id] = Demand(sequences=1, rows=length, own_pages=0)
        self._largest_scratch[request.request_id] = (params.most_sequences - 1) * own_pages
        self._context_count[request.request_id] = params.contexts

    def _free_request(self, request: Request, delay_free_blocks: bool = False):
        kv_transfer_params, ec_transfer_params = super()._free_request(request, delay_free_blocks)
        for table in (self._demands, self._largest_scratch, self._context_count, self._lost):
            table.pop(request.request_id, None)
        self._known_to_worker.discard(request.request_id)
        report = self._reports.pop(request.request_id, None)
        if report is not None:
            # vLLM carries this dictionary from the scheduler to RequestOutput and the HTTP response untouched.
            kv_transfer_params = {**(kv_transfer_params or {}), "infogain": report}
        return kv_transfer_params, ec_transfer_params

    def _free_request_blocks(self, request: Request):
        # At the end of a request and at a preemption.
        super()._free_request_blocks(request)
        for pages in self._contexts.pop(request.request_id, []):
            self.kv_cache_manager.block_pool.free_blocks(pages)

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        super()._preempt_request(request, timestamp, drop_stale_output)
        if self._demands[request.request_id].kept:
            self._lost[request.request_id] = 0

    # One step.

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        self._admit()
        budget = 0 if self._pause_state == PauseState.PAUSED_ALL else self.max_num_scheduled_tokens
        # Where nobody waits to join, the worker may go on for a few forwards: lend it what any of them can need.
        largest = sum(self._largest_scratch[request.request_id] for request in self.running)
        may_go_on = not self.waiting and not self._lost and largest <= self._free_scratch()
        groups: dict[str, GroupPlan] = {}
        planned, passed_over = [], []
        for request in self.running:
            group = self._plan_group(request, budget, first=not groups, lend_largest=may_go_on)
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
            request = self.waiting.peek_request()
            further = self._context_count[request.request_id] - 1
            known, computed = None, 0
            if request.request_id not in self._known_to_worker and not further:
                known, computed, _ = self.kv_cache_manager.get_computed_blocks(request)
            # Leave room for the largest group, so that look-ahead is evaluated whole; a lone request takes what is.
            scratch = max(self._largest_scratch[other.request_id] for other in (*self.running, request))
            blocks = self.kv_cache_manager.allocate_slots(
                request,
                self._length(request) - computed,
                num_new_computed_tokens=computed,
                new_computed_blocks=known,
                delay_cache_blocks=True,  # pages are cached once what they hold is final
                reserved_blocks=further * self._pages(request) + (scratch if self.running else 0),
                has_scheduled_reqs=bool(self.running),
            )
            if blocks is None:
                return
            pool = self.kv_cache_manager.block_pool
            self._contexts[request.request_id] = [pool.get_new_blocks(self._pages(request)) for _ in range(further)]
            request.num_computed_tokens = computed  # what the worker need not compute; told it once
            self.waiting.pop_request()
            self.running.append(request)
            request.status = RequestStatus.RUNNING
            if request.prefill_stats and request.num_preemptions == 0:
                request.prefill_stats.set(
                    num_prompt_tokens=request.num_prompt_tokens,
                    num_local_cached_tokens=computed,
                    num_external_cached_tokens=0,
                )
            if self.log_stats:
                request.record_event(EngineCoreEventType.SCHEDULED, time.monotonic())

    def _plan_group(self, request: Request, budget: int, first: bool, lend_largest: bool) -> GroupPlan | None:
        """The part of the request's group that fits, or None. Only the first group of a step may be cut: it is larger
        than the whole budget or the free pages, and waiting would not help."""
        request_id = request.request_id
        demand, lost = self._demands[request_id], self._lost.get(request_id)
        if lost is None:
            wanted, rows, own_pages = demand.sequences, demand.rows, demand.own_pages
        else:
            wanted, rows, own_pages = demand.kept - lost, demand.kept_rows, 0
        fitting = min(wanted, budget // rows, 1 + self._free_scratch() // own_pages if own_pages else wanted)
        if fitting == 0 or (fitting < wanted and not first):
            return None
        pages = self._largest_scratch[request_id] if lend_largest else (fitting - 1) * own_pages
        scratch = self.kv_cache_manager.block_pool.get_new_blocks(pages)
        self._scratch += scratch
        contexts = [
            tuple(self.kv_cache_manager.get_block_ids(request_id)[0]),
            *(tuple(block.block_id for block in context) for context in self._contexts[request_id]),
        ]
        return GroupPlan(fitting, tuple(contexts), tuple(block.block_id for block in scratch), lost)

    def _step_plan(self, groups: dict[str, GroupPlan], planned: list[Request]) -> StepPlan:
        unknown = [request for request in planned if request.request_id not in self._known_to_worker]
        known = [request for request in planned if request.request_id in self._known_to_worker]
        self._known_to_worker.update(groups)
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
        )
        self._update_after_schedule(plan)
        return plan

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        # vLLM's count of computed tokens means nothing here: what is kept of a canvas is the worker's to say.
        for request_id in scheduler_output.num_scheduled_tokens:
            self.requests[request_id].num_computed_tokens = 0

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput):
        assert isinstance(scheduler_output, StepPlan)
        self.kv_cache_manager.block_pool.free_blocks(self._scratch)
        self._scratch = []
        for request_id, group in scheduler_output.groups.items():
            if group.restored is not None and request_id in self._lost:
                self._lost[request_id] = group.restored + group.sequences
                if self._lost[request_id] == self._demands[request_id].kept:
                    del self._lost[request_id]
        if isinstance(model_runner_output, StepResult):  # else nothing ran
            # A request aborted while the step ran is known no more.
            known = self._demands.keys()
            self._demands |= {key: value for key, value in model_runner_output.demands.items() if key in known}
            self._reports |= {key: value for key, value in model_runner_output.reports.items() if key in known}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in self.running:
            # Pages whose content is final may serve other requests with the same prefix.
            final = self._demands[request.request_id].final
            if final:
                self.kv_cache_manager.cache_blocks(request, min(final, request.num_tokens))
        return outputs

    # Sizes.

    def _length(self, request: Request) -> int:
        """Positions of one sequence: prompt + canvas."""
        return request.num_prompt_tokens + request.max_tokens

    def _rows(self, request: Request, group: GroupPlan) -> int:
        demand = self._demands[request.request_id]
        return group.sequences * (demand.rows if group.restored is None else demand.kept_rows)

    def _pages(self, request: Request) -> int:
        """KV pages of one sequence."""
        return cdiv(self._length(request), self.block_size)

    def _free_scratch(self) -> int:
        """Pages that may still be lent in this step."""
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        limit = self.settings.scratch_pages
        return min(free, limit - len(self._scratch)) if limit else free
