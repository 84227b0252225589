"""Arrays between host and device: any number of them in one copy."""

from collections.abc import Sequence

import numpy as np
import torch


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Arrays of int64 and float64, in one copy that the host does not wait for."""
    host = torch.from_numpy(np.concatenate([array.ravel().view(np.int64) for array in arrays]))
    if device.type == "cuda":
        host = host.pin_memory()  # from other memory the copy would wait for the kernels before it
    parts = host.to(device, non_blocking=True).split([array.size for array in arrays])
    return [
        (part.view(torch.float64) if array.dtype == np.float64 else part).view(array.shape)
        for part, array in zip(parts, arrays, strict=True)
    ]


def to_host(columns: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Tensors of fp32 and of int64 below 2^31, in one copy, for which the host waits."""
    # Floats travel as the integers that their bits spell: nothing on the way may round or flush them.
    bits = [column.view(torch.int32) if column.dtype == torch.float32 else column.int() for column in columns]
    host = torch.cat([column.flatten() for column in bits]).cpu().numpy()  # the device sync
    arrays, start = [], 0
    for column in columns:
        part = host[start : start + column.numel()].reshape(column.shape)
        arrays.append(part.view(np.float32) if column.dtype == torch.float32 else part.astype(np.int64))
        start += column.numel()
    return arrays
