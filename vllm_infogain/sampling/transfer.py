"""Arrays between host and device: any number of them in one copy."""

from collections.abc import Sequence

import numpy as np
import torch

ALIGNED = 16  # bytes: kernels are compiled anew for an array that begins elsewhere

DTYPES = {
    np.dtype(np.bool_): torch.bool,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Arrays of the types in DTYPES, in one copy that the host does not wait for."""
    starts = np.cumsum([0, *(-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays)]).tolist()
    packed = np.empty(starts[-1], dtype=np.uint8)
    for array, start in zip(arrays, starts, strict=False):
        packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    host = torch.from_numpy(packed)
    if device.type == "cuda":
        host = host.pin_memory()  # from other memory the copy would wait for the kernels before it
    whole = host.to(device, non_blocking=True)
    return [
        whole[start : start + array.nbytes].view(DTYPES[array.dtype]).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
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
