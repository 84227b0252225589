"""What the scheduler knows of a request beside vLLM's own record of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_infogain.compat import Request, VllmConfig
from vllm_infogain.engine.kv_layout import most_own_pages
from vllm_infogain.engine.records import NextForward
from vllm_infogain.request.from_vllm import decoding_params, klass_mib
from vllm_infogain.request.params import DecodingParams


@dataclass
class RequestState:
    """One request, from its arrival to its end. Owner: the scheduler."""

    params: DecodingParams
    context_lengths: list[int]  # positions of its cached states and of their guides, whose pages it holds
    largest_rows: int  # rows of its largest group of candidates
    largest_scratch: int  # scratch pages that its largest group needs
    klass_mib: float  # of log-probabilities that the worker keeps for it from step to step
    shares_pages: bool  # with requests of the same prefix and block length: no page of it depends on what lies behind
    next_forward: NextForward  # what it wants evaluated next
    extra_cached_pages: list[list] = field(default_factory=list)  # while it runs, of its contexts but the first
    recompute_from: int | None = None  # after a preemption: the first cached state that is not computed again yet
    is_known: bool = False  # to the worker

    @classmethod
    def of(cls, request: Request, vllm_config: VllmConfig, page_size: int) -> RequestState:
        assert request.sampling_params is not None
        params = decoding_params(request.request_id, request.sampling_params, vllm_config)
        windows = params.windows(request.num_prompt_tokens)
        lengths = [params.length(prompt) for prompt in params.prompt_lengths(request.num_prompt_tokens)]
        own_pages = [most_own_pages(window, length, page_size) for window, length in zip(windows, lengths, strict=True)]
        return cls(
            params,
            params.context_lengths(request.num_prompt_tokens),
            largest_rows=params.most_sequences * sum(windows),
            largest_scratch=(params.most_sequences - 1) * sum(own_pages),
            klass_mib=klass_mib(params, vllm_config),
            shares_pages=params.block_causal and page_size % params.block_length == 0 and not params.is_guided,
            next_forward=NextForward(sequences=1, rows=sum(lengths), own_pages=0),
        )
