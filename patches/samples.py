"""The `n` samples of a request: also at temperature 0, and with seeds that those of no other seed share.

Why: vLLM refuses n > 1 at temperature 0, where its samples would all be equal; ours may differ in the order of
    writing, see `position_temperature`. And it seeds them seed, seed + 1, ...: sample 1 of seed 7 would be sample 0 of
    seed 8, and whoever averages over seeds would count most samples several times.
How: wrap
      - `SamplingParams._verify_greedy_sampling`, which parameters call when they are made: nobody knows then what
        engine they are for. `admission_check` makes up for it, for engines that are not ours by `verify` here.
      - `ParentRequest._get_child_sampling_params`: of requests that `admission_check` has marked, the seed is hashed.
Upstream: none.
Remove when: vLLM asks the model about greedy samples, and hashes seeds.
"""

import inspect

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.SamplingParams, "_verify_greedy_sampling", _verified_at_admission)
    wrap_once(compat.ParentRequest, "_get_child_sampling_params", _with_hashed_seed)


def verify(params) -> None:
    """As vLLM does when parameters are made.

    Raises:
        VLLMValidationError: several samples at temperature 0.
    """
    from vllm_infogain.compat import SAMPLING_EPS, SamplingParams

    if isinstance(params, SamplingParams) and params.temperature < SAMPLING_EPS:
        inspect.unwrap(SamplingParams._verify_greedy_sampling)(params)


def mark(params):
    """Parameters whose samples get hashed seeds; a copy, since callers share theirs."""
    params = params.clone()
    if params.seed is None and params.temperature == 0:
        params.seed = 0  # as ever without a seed at temperature 0; and the samples' seeds are made of it
    params.hashes_seeds = True
    return params


def _verified_at_admission(verify_greedy_sampling):
    def wrapper(self):
        """Nothing yet."""

    return wrapper


def _with_hashed_seed(get_child_sampling_params):
    def wrapper(self, index):
        from vllm_infogain.request.seeds import child_seed

        params = get_child_sampling_params(self, index)
        if self.sampling_params.seed is not None and hasattr(self.sampling_params, "hashes_seeds"):
            params.seed = child_seed(self.sampling_params.seed, "sample", index)
        return params

    return wrapper
