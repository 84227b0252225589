"""KV pages of all layers, copied from page to page: on a GPU in one launch, however many layers and pages there are."""

import numpy as np
import torch

from vllm_infogain.sampling.transfer import to_device


class KVPages:
    """The layers' caches, each [pages, ...]: all alike, and a page of one is one run of memory."""

    def __init__(self, caches: list[torch.Tensor]) -> None:
        self.caches = caches
        one = caches[0]
        self.step = one.stride(0) * one.element_size()  # bytes from page to page
        self.size = one[0].numel() * one.element_size()  # bytes of a page
        for cache in caches:
            last = sum((size - 1) * stride for size, stride in zip(cache.shape[1:], cache.stride()[1:], strict=True))
            assert last + 1 == cache[0].numel(), "a page is one run of memory"
            assert cache.shape == one.shape
            assert cache.stride(0) == one.stride(0)
        if one.is_cuda:
            (self.starts,) = to_device([np.array([cache.data_ptr() for cache in caches])], one.device)
            self.copy(torch.zeros(2, 1, dtype=torch.int64, device=one.device))  # compiles the kernel

    def copy(self, pages: torch.Tensor) -> None:
        """pages [2, copies] int64 on the device: from, to; none that is written is read."""
        if self.caches[0].is_cuda:
            from vllm_infogain.engine import pages_triton

            pages_triton.copy_pages(self.starts, self.step, self.size, pages)
            return
        source, target = pages
        for cache in self.caches:
            cache[target] = cache[source]
