"""Where networks run, and in which precision: CUDA where torch has it, else the processor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Wish = Literal["auto", "cpu", "cuda"]


def device(wish: Wish = "auto") -> torch.device:
    """Return the device to run on; "auto" takes CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for, and torch has none.
    """
    import torch

    if wish == "cuda" and not torch.cuda.is_available():
        raise ValueError('torch finds no CUDA on this machine: ask for the device "auto" or "cpu"')
    if wish == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether the device computes in bfloat16 by itself, and so faster than in float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def training_multiple(device: torch.device, bf16: bool) -> int:
    """Return the channels that training takes in one go: widths off it cost a whole block."""
    import torch

    if device.type != "cpu" or not (bf16 and has_bfloat16(device)):
        return 1
    return 16 if torch.cpu._is_amx_tile_supported() else 8


def mixed(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """Compute convolutions and products in bfloat16 inside; what is delicate stays float32."""
    import torch

    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


def processors() -> int:
    """Return how many of this machine's processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads of the processor inside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
