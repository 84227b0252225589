"""Schedules each request's candidate expansions as one group.

A request is planned in sequences: one for a forward of its state, one per distinct candidate for a look-ahead. The
worker, which has the logits, says after each step how many sequences each request wants next. Every sequence costs
prompt + canvas rows of the token budget. A request holds the KV pages of one sequence from admission to its end;
those of the other candidates are scratch pages, taken for one step.

Queues, page accounting, preemption, stopping, abort and statistics are vLLM's own.
"""

import time

from vllm_infogain.admission import decoding_params
from vllm_infogain.engine.compat import (
    EngineCoreEventType,
    NewRequestData,
    PauseState,
    Request,
    RequestStatus,
    Scheduler,
    SchedulerOutput,
    cdiv,
)
from vllm_infogain.engine.records import GroupPlan, StepPlan, StepResult


class InfoGainScheduler(Scheduler):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.use_v2_model_runner = True  # spares a copy of every token per step that only vLLM's V1 runner reads
        self._wanted: dict[str, int] = {}  # sequences each request wants evaluated next
        self._most_wanted: dict[str, int] = {}  # the largest group a request can ask for
        self._reports: dict[str, dict] = {}  # the newest report of each request
        self._scratch: list = []  # pages lent for the step under way

    # Admission and end of a request: the only places where our own tables gain or lose a key.

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        params = decoding_params(request.request_id, request.sampling_params, self.vllm_config)
        self._wanted[request.request_id] = 1
        self._most_wanted[request.request_id] = params.num_candidates if params.looks_ahead else 1

    def _free_request(self, request: Request, delay_free_blocks: bool = False):
        kv_transfer_params, ec_transfer_params = super()._free_request(request, delay_free_blocks)
        self._wanted.pop(request.request_id, None)
        self._most_wanted.pop(request.request_id, None)
        report = self._reports.pop(request.request_id, None)
        if report is not None:
            # vLLM carries this dictionary from the scheduler to RequestOutput and the HTTP response untouched.
            kv_transfer_params = {**(kv_transfer_params or {}), "infogain": report}
        return kv_transfer_params, ec_transfer_params

    # One step.

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        budget = 0 if self._pause_state == PauseState.PAUSED_ALL else self.max_num_scheduled_tokens
        groups: dict[str, GroupPlan] = {}

        scheduled_running, passed_over = [], []
        for request in self.running:
            group = self._plan_group(request, budget, whole_budget=not groups)
            if group is None:
                passed_over.append(request)
                continue
            groups[request.request_id] = group
            budget -= self._rows(request, group)
            scheduled_running.append(request)

        admitted = self._admit(budget, groups)
        # Whoever was passed over comes first next time: no request waits for another's whole generation.
        self.running = passed_over + scheduled_running + admitted
        return self._step_plan(groups, scheduled_running, admitted)

    def _plan_group(self, request: Request, budget: int, whole_budget: bool) -> GroupPlan | None:
        """The part of the request's group that fits, or None. A group is cut only if it is first in the step:
        then it is larger than the whole budget or the free pages, and waiting would not help."""
        wanted = self._wanted[request.request_id]
        fitting = min(wanted, budget // self._length(request), 1 + self._free_pages() // self._pages(request))
        if fitting < wanted and not whole_budget:
            return None
        if fitting == 0:
            return None
        own = tuple(self.kv_cache_manager.get_block_ids(request.request_id)[0])
        pages = [own]
        for _ in range(fitting - 1):
            scratch = self.kv_cache_manager.block_pool.get_new_blocks(self._pages(request))
            self._scratch += scratch
            pages.append(tuple(block.block_id for block in scratch))
        return GroupPlan(tuple(pages))

    def _admit(self, budget: int, groups: dict[str, GroupPlan]) -> list[Request]:
        """Move waiting requests to running while rows, pages and seats last; plan the first forward of each."""
        admitted: list[Request] = []
        seats = min(self.max_num_running_reqs, self.max_num_active_reqs) - len(self.running)
        while self.waiting and len(admitted) < seats and self._pause_state == PauseState.UNPAUSED:
            request = self.waiting.peek_request()
            if self._length(request) > budget:
                break
            reserved = max(
                (self._most_wanted[other.request_id] - 1) * self._pages(other)
                for other in (*self.running, *admitted, request)
            )
            blocks = self.kv_cache_manager.allocate_slots(
                request,
                self._length(request),
                # Room for the largest group, so that look-ahead is evaluated whole; nobody to wait for if idle.
                reserved_blocks=reserved if self.running or admitted else 0,
            )
            if blocks is None:
                break
            self.waiting.pop_request()
            admitted.append(request)
            groups[request.request_id] = group = GroupPlan((tuple(blocks.get_block_ids()[0]),))
            budget -= self._rows(request, group)
            if self.log_stats:
                request.record_event(EngineCoreEventType.SCHEDULED, time.monotonic())
        return admitted

    def _step_plan(self, groups: dict[str, GroupPlan], running: list[Request], admitted: list[Request]) -> StepPlan:
        fresh = [request for request in admitted if request.status == RequestStatus.WAITING]
        resumed = [request for request in admitted if request.status != RequestStatus.WAITING]
        for request in admitted:
            request.status = RequestStatus.RUNNING
            if request.prefill_stats and request.num_preemptions == 0:
                request.prefill_stats.set(
                    num_prompt_tokens=request.num_prompt_tokens, num_local_cached_tokens=0, num_external_cached_tokens=0
                )
        rows = {request.request_id: self._rows(request, groups[request.request_id]) for request in running + admitted}
        blocks = {request_id: self.kv_cache_manager.get_blocks(request_id) for request_id in rows}
        plan = StepPlan(
            scheduled_new_reqs=[
                NewRequestData.from_request(request, blocks[request.request_id].get_block_ids()) for request in fresh
            ],
            scheduled_cached_reqs=self._make_cached_request_data(running, resumed, rows, {}, blocks),
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
        # Nothing stays computed: with full attention and no cache every step runs the whole sequence anew.
        for request_id in scheduler_output.num_scheduled_tokens:
            self.requests[request_id].num_computed_tokens = 0

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: StepResult):
        self.kv_cache_manager.block_pool.free_blocks(self._scratch)
        self._scratch = []
        for request_id, wanted in getattr(model_runner_output, "sequences_wanted", {}).items():
            if request_id in self._wanted:  # else aborted while the step ran
                self._wanted[request_id] = wanted
                if request_id in model_runner_output.reports:
                    self._reports[request_id] = model_runner_output.reports[request_id]
        return super().update_from_output(scheduler_output, model_runner_output)

    # Sizes.

    def _length(self, request: Request) -> int:
        """Rows of one sequence: prompt + canvas."""
        return request.num_prompt_tokens + request.max_tokens

    def _rows(self, request: Request, group: GroupPlan) -> int:
        return self._length(request) * len(group.pages)

    def _pages(self, request: Request) -> int:
        """KV pages of one sequence."""
        return cdiv(self._length(request), self.block_size)

    def _free_pages(self) -> int:
        return self.kv_cache_manager.block_pool.get_num_free_blocks()
