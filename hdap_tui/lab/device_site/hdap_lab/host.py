"""How much slower the host is right now than at its best, so that it can be taken out.

The devices of a lab share one machine. While something else runs on the other thread of a core,
code that waits for memory or jumps about takes up to 1.7 times as long, dense arithmetic 1.1 to
1.2 times, with CPU time to match. Separate devices would not disturb each other so. Three small
reference models, one for each factor of a device, run beside each inference and tell how slow
the host is at that moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MOST = 3.0
"""A reading above it was interrupted and says nothing about the core."""
LEAST_SHARE = 0.03
_READINGS = 15
_SEARCH_S = 0.3
"""How long the first process on a host looks for an undisturbed moment."""
_FLOAT = 1
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Host:
    """Reads the state of the host's core; `read` once beside each inference."""

    def __init__(self, session: Callable[..., Any], cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        square, vector, few = (192, 192), (16384,), (8,)
        self._references = [
            _Reference(session, cache / "host-compute.json", square, ["MatMul"]),
            _Reference(session, cache / "host-memory.json", vector, ["Neg", "Abs"] * 2),
            _Reference(session, cache / "host-overhead.json", few, ["Sin", "Tanh"] * 20),
        ]

    def read(self, shares: Sequence[float] = (1.0, 1.0, 1.0)) -> tuple[float, float, float]:
        """Return by how much compute, memory and overhead take longer than at the host's best.

        What has hardly a share in the model is taken as undisturbed.
        """
        compute, memory, overhead = (
            reference.read() if share > LEAST_SHARE else 1.0
            for reference, share in zip(self._references, shares, strict=True)
        )
        return compute, memory, overhead


class _Reference:
    """A small model, and the best time that any process has seen it take on this host."""

    def __init__(
        self,
        session: Callable[..., Any],
        file: Path,
        shape: Sequence[int],
        kernels: Sequence[str],
    ) -> None:
        import numpy
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # The session underneath: its Python layer would only add noise.
        self._run: Any = session(chain(shape, kernels), sess_options=options)._sess.run
        self._feed = {"x": numpy.full(shape, 0.5, "float32")}
        self._last = 1.0
        known = _known(file)
        here = self._fastest()
        end = time.perf_counter() + (_SEARCH_S if known is None else 0.0)
        while time.perf_counter() < end:
            time.sleep(0.02)
            here = min(here, self._fastest())
        self._best = here if known is None else min(here, known)
        if known is None or here < 0.99 * known:
            _note(file, here)

    def _fastest(self) -> int:
        return min(self._time() for _ in range(_READINGS))

    def _time(self) -> int:
        start = time.perf_counter_ns()
        self._run(["y"], self._feed, None)
        return time.perf_counter_ns() - start

    def read(self) -> float:
        self._time()  # whatever ran before has thrown it out of the caches
        slower = self._time() / self._best
        if slower < MOST:
            self._last = max(slower, 1.0)
        return self._last


def _known(file: Path) -> float | None:
    """Return the best time in ns since this host started, None where nobody has noted one."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return float(data["ns"]) if data["boot"] == _boot() and data["ns"] > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(file: Path, best: float) -> None:
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        aside.write_text(json.dumps({"ns": best, "boot": _boot()}), encoding="utf-8")
        aside.replace(file)


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def chain(shape: Sequence[int], kernels: Sequence[str]) -> bytes:
    """Return an ONNX model from `x` to `y` with these kernels in a row, MatMul by `x` itself.

    Written by hand (ModelProto of onnx.proto3), as importing onnx takes longer than a benchmark.
    """
    names = ["x", *(f"t{i}" for i in range(len(kernels) - 1)), "y"]
    nodes = b""
    for i, kernel in enumerate(kernels):
        inputs = [names[i], "x"] if kernel == "MatMul" else [names[i]]
        ends = b"".join(_field(1, name) for name in inputs) + _field(2, names[i + 1])
        nodes += _field(1, ends + _field(4, kernel))
    dims = _field(2, b"".join(_field(1, _number(1, size)) for size in shape))
    tensor = _field(2, _field(1, _number(1, _FLOAT) + dims))
    graph = nodes + _field(2, "chain")
    graph += _field(11, _field(1, "x") + tensor) + _field(12, _field(1, "y") + tensor)
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 17))


def _number(field: int, value: int) -> bytes:
    """Encode an integer field of a protocol buffer."""
    return _varint(field << 3) + _varint(value)


def _field(field: int, value: bytes | str) -> bytes:
    """Encode a text, or a message that is encoded already."""
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    digits = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(v | 0x80 for v in digits[:-1]), digits[-1]])
