"""How each kind of processor wants its integers.

After ONNX Runtime's kernels (onnxruntime/core/mlas/lib/platform.cpp) and its guide *Quantize ONNX
models*, sections "Data type selection" and "Method selection".
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Isa = Literal["x86-vnni", "x86", "arm64-dotprod", "arm64"]

_VNNI = {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"}


@dataclass(frozen=True)
class Preset:
    """How a processor wants its integers."""

    activations_signed: bool
    """Activations int8 rather than uint8."""
    reduce_range: bool = False
    """Weights of seven bits."""
    per_channel: bool = True
    """One scale for each output channel."""


PRESETS: dict[Isa, Preset] = {
    # One instruction multiplies uint8 by int8 and adds in 32 bits.
    "x86-vnni": Preset(activations_signed=False),
    # Without it two products are added in 16 bits, which eight-bit weights overflow.
    "x86": Preset(activations_signed=False, reduce_range=True),
    # SDOT multiplies int8 by int8 and adds in 32 bits.
    "arm64-dotprod": Preset(activations_signed=True),
    # SMULL and SMLAL add two products of int8 in 16 bits. They fit, since the quantizer gives no
    # weight -128; but little is gained over float, so the measured latency has to decide.
    "arm64": Preset(activations_signed=True),
}


def isa(machine: str, flags: Collection[str] = ()) -> Isa:
    """Return the preset's name for a machine (`uname -m`) with these processor flags.

    Raises:
        ValueError: there is no preset for this kind of machine.
    """
    known = {flag.lower() for flag in flags}
    if machine.lower() in ("aarch64", "arm64"):
        return "arm64-dotprod" if "asimddp" in known else "arm64"
    if machine.lower() in ("x86_64", "amd64", "i686"):
        return "x86-vnni" if _VNNI & known else "x86"
    raise ValueError(f"there is no int8 preset for {machine!r}: only for x86_64 and aarch64")
