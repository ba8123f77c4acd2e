"""How much memory a run has taken at most: read once at its end, so that no step pays for it."""

import resource
import sys

import torch


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes that this process, rank 0 in a summary, has held at most since it began, whatever else it did.

    Args:
        device: that of the run.

    Returns:
        "peak_memory_bytes" of main memory, and on a GPU "peak_device_memory_bytes", what torch has allocated there.
    """
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = {"peak_memory_bytes": largest if sys.platform == "darwin" else 1024 * largest}  # Linux counts in KiB
    if device.type == "cuda":
        peak["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak
