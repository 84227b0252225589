"""Schedules each request's candidate expansions as one group.

A request is planned in sequences: one for a forward of its state, one per distinct candidate for a look-ahead. The
worker, which has the logits, says after each step how many sequences each request wants next. Every sequence costs
prompt + canvas rows of the token budget. A request holds the KV pages of one sequence from admission to its end;
those of the other candidates are scratch pages, taken for one step.

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
from vllm_infogain.engine.records import GroupPlan, StepPlan, StepResult


class InfoGainScheduler(Scheduler):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        check_engine(self.vllm_config)
        self.use_v2_model_runner = True  # spares a copy of every token per step that only vLLM's V1 runner reads
        self._wanted: dict[str, int] = {}  # sequences each request wants evaluated next
        self._largest_group: dict[str, int] = {}  # sequences a request can come to want
        self._known_to_worker: set[str] = set()
        self._reports: dict[str, dict] = {}  # the newest report of each request
        self._scratch: list = []  # pages lent for the step under way

    # Admission and end of a request: the only places where our own tables gain or lose a key.

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        assert request.sampling_params is not None
        params = decoding_params(request.request_id, request.sampling_params, self.vllm_config)
        self._wanted[request.request_id] = 1
        self._largest_group[request.request_id] = params.most_sequences

    def _free_request(self, request: Request, delay_free_blocks: bool = False):
        kv_transfer_params, ec_transfer_params = super()._free_request(request, delay_free_blocks)
        self._wanted.pop(request.request_id, None)
        self._largest_group.pop(request.request_id, None)
        self._known_to_worker.discard(request.request_id)
        report = self._reports.pop(request.request_id, None)
        if report is not None:
            # vLLM carries this dictionary from the scheduler to RequestOutput and the HTTP response untouched.
            kv_transfer_params = {**(kv_transfer_params or {}), "infogain": report}
        return kv_transfer_params, ec_transfer_params

    # One step.

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        self._admit()
        budget = 0 if self._pause_state == PauseState.PAUSED_ALL else self.max_num_scheduled_tokens
        groups: dict[str, GroupPlan] = {}
        planned, passed_over = [], []
        for request in self.running:
            group = self._plan_group(request, budget, first=not groups)
            if group is None:
                passed_over.append(request)
            else:
                planned.append(request)
                groups[request.request_id] = group
                budget -= self._rows(request, group)
        # Whoever was passed over comes first next time: no request waits for another's whole generation.
        self.running = passed_over + planned
        return self._step_plan(groups, planned)

    def _admit(self) -> None:
        """Move waiting requests to running while pages and seats last. Rows are no condition: turns are taken."""
        seats = min(self.max_num_running_reqs, self.max_num_active_reqs)
        while self.waiting and len(self.running) < seats and self._pause_state == PauseState.UNPAUSED:
            request = self.waiting.peek_request()
            scratch = max(
                (self._largest_group[other.request_id] - 1) * self._pages(other) for other in (*self.running, request)
            )
            blocks = self.kv_cache_manager.allocate_slots(
                request,
                self._length(request),
                # Leave room for the largest group, so that look-ahead is evaluated whole; a lone request takes what is.
                reserved_blocks=scratch if self.running else 0,
                has_scheduled_reqs=bool(self.running),
            )
            if blocks is None:
                return
            self.waiting.pop_request()
            self.running.append(request)
            request.status = RequestStatus.RUNNING
            if request.prefill_stats and request.num_preemptions == 0:
                request.prefill_stats.set(
                    num_prompt_tokens=request.num_prompt_tokens, num_local_cached_tokens=0, num_external_cached_tokens=0
                )
            if self.log_stats:
                request.record_event(EngineCoreEventType.SCHEDULED, time.monotonic())

    def _plan_group(self, request: Request, budget: int, first: bool) -> GroupPlan | None:
        """The part of the request's group that fits, or None. Only the first group of a step may be cut: it is larger
        than the whole budget or the free pages, and waiting would not help."""
        wanted = self._wanted[request.request_id]
        fitting = min(wanted, budget // self._length(request), 1 + self._free_pages() // self._pages(request))
        if fitting == 0 or (fitting < wanted and not first):
            return None
        pages = [tuple(self.kv_cache_manager.get_block_ids(request.request_id)[0])]
        for _ in range(fitting - 1):
            scratch = self.kv_cache_manager.block_pool.get_new_blocks(self._pages(request))
            self._scratch += scratch
            pages.append(tuple(block.block_id for block in scratch))
        return GroupPlan(tuple(pages))

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
        # Nothing stays computed: with full attention and no cache every step runs the whole sequence anew.
        for request_id in scheduler_output.num_scheduled_tokens:
            self.requests[request_id].num_computed_tokens = 0

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput):
        self.kv_cache_manager.block_pool.free_blocks(self._scratch)
        self._scratch = []
        if isinstance(model_runner_output, StepResult):  # else nothing ran
            for request_id, wanted in model_runner_output.sequences_wanted.items():
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
