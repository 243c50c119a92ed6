"""What a model spends its time on: arithmetic, moving bytes, or being called at all.

A device with half the arithmetic speed is not half as fast on every model. The shares come from
one profiled session a model, kept in a folder that all devices of a lab read, so that every
device stretches the same model by the same mix.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VERSION = 1
RUNS = 30
CALL_US = 5.0
"""What one call of a session costs besides its kernels."""
NODE_US = 1.0
"""What calling one kernel costs before it does anything, the profiler's own share included."""
COMPUTE_BOUND_FLOPS_PER_BYTE = 6.0
"""Above it a kernel waits for arithmetic, below it for memory (roofline model; the ridge of a
small core in single precision; a 3x3 depthwise convolution has 2, a dense one above 10)."""
TINY_BYTES = 4096.0
"""A kernel that moves less and computes little takes well under a microsecond: what it costs is
being called, and the profiler's whole microseconds say nothing about it."""
TINY_FLOPS = 20_000.0

_CONTRACTIONS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Mix:
    """Shares of a model's native time; they add up to 1."""

    compute: float
    memory: float
    overhead: float

    def stretch(self, compute: float, memory: float, overhead: float) -> float:
        """Return by how much a device with these factors is slower on this model."""
        return self.compute * compute + self.memory * memory + self.overhead * overhead

    @property
    def shares(self) -> tuple[float, float, float]:
        """Compute, memory and overhead."""
        return self.compute, self.memory, self.overhead

    def undisturbed(self, slower: Sequence[float]) -> Mix:
        """Return the mix as it were if each part had not been slower by such a factor."""
        parts = [share / factor for share, factor in zip(self.shares, slower, strict=True)]
        return Mix(*(part / sum(parts) for part in parts))


def from_cache(
    model: str | os.PathLike[str] | bytes,
    cache: Path,
    profile: Callable[[Path], Mix],
) -> Mix:
    """Return a model's mix from the cache folder; profile it where nobody has yet.

    Two processes may profile at once; the first to finish is the one both believe.
    """
    data = model if isinstance(model, bytes) else Path(model).read_bytes()
    file = cache / f"{hashlib.sha256(data).hexdigest()}.json"
    known = _read(file)
    if known is not None:
        return known
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".profile-") as folder:
        fresh = profile(Path(folder))
        aside = Path(folder) / "mix.json"
        aside.write_text(json.dumps({"version": VERSION, **asdict(fresh)}), encoding="utf-8")
        try:
            os.link(aside, file)  # unlike a rename it never replaces what another wrote
        except FileExistsError:
            winner = _read(file)
            if winner is not None:
                return winner
            os.replace(aside, file)
    return fresh


def _read(file: Path) -> Mix | None:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            return None
        mix = Mix(float(data["compute"]), float(data["memory"]), float(data["overhead"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mix if math.isclose(mix.stretch(1, 1, 1), 1, abs_tol=1e-6) else None


def profiled(
    session: Callable[..., Any],
    model: str | os.PathLike[str] | bytes,
    folder: Path,
    disturbed: Callable[[], tuple[float, float, float]] = lambda: (1.0, 1.0, 1.0),
) -> Mix:
    """Return a model's mix from a profiled session of its own, on one thread.

    `session` is onnxruntime's own `InferenceSession`; `folder` takes its profile; `disturbed`
    tells by how much the host is slower just then.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "ort")
    traced = session(model, sess_options=options)
    feed = _zeros(traced)
    slower = []
    for _ in range(RUNS):
        slower.append(disturbed())
        traced.run(None, feed)
    events = json.loads(Path(traced.end_profiling()).read_text(encoding="utf-8"))
    return from_events(events).undisturbed(
        [faster_half(factors) for factors in zip(*slower, strict=True)]
    )


def faster_half(times: Sequence[float]) -> float:
    """Return the mean over the faster half, 0 of nothing."""
    half = sorted(times)[: (len(times) + 1) // 2]
    return sum(half) / len(half) if half else 0.0


def from_events(events: Iterable[Mapping[str, Any]]) -> Mix:
    """Return the mix from onnxruntime's profile of several runs.

    A kernel's time above that of calling it goes to what bounds it. Overhead is told from the
    number of kernels: the difference of two measured times would be mostly noise.
    """
    times: dict[tuple[str, str], list[float]] = {}
    bound: dict[tuple[str, str], str] = {}
    for event in events:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        details = event.get("args", {})
        key = (str(event["name"]), str(details.get("node_index", "")))
        times.setdefault(key, []).append(float(event["dur"]))
        bound[key] = bound.get(key) or bound_by(details)
    work = {"compute": 0.0, "memory": 0.0, "overhead": CALL_US + NODE_US * len(times)}
    for key, durations in times.items():
        work[bound[key]] += max(faster_half(durations) - NODE_US, 0.0)
    whole = sum(work.values())
    return Mix(work["compute"] / whole, work["memory"] / whole, work["overhead"] / whole)


def bound_by(details: Mapping[str, Any]) -> str:
    """Return which factor stretches a kernel: compute, memory or overhead.

    `details` are the `args` of the kernel's profile event.
    """
    size_keys = ("activation_size", "parameter_size", "output_size")
    moved = sum(float(details.get(key) or 0) for key in size_keys)
    flops = operations(details)
    if moved < TINY_BYTES and flops < TINY_FLOPS:
        return "overhead"
    return "compute" if flops > COMPUTE_BOUND_FLOPS_PER_BYTE * moved else "memory"


def operations(details: Mapping[str, Any]) -> float:
    """Return a kernel's multiplications and additions, 0 for what mostly moves bytes."""
    name = str(details.get("op_name", ""))
    if not any(kind in name for kind in _CONTRACTIONS):
        return 0.0
    shapes = [_shape(item) for item in details.get("input_type_shape", ())]
    outputs = [_shape(item) for item in details.get("output_type_shape", ())]
    tensors = [s for s in shapes if len(s) >= 2]
    if not tensors or not outputs:
        return 0.0
    if "Conv" in name:
        weights = [s for s in tensors[1:] if len(s) == len(tensors[0])]
        depth = math.prod(weights[0][1:]) if weights else 1
    else:
        depth = tensors[0][-1]
    return 2.0 * math.prod(outputs[0]) * depth


def _shape(item: Mapping[str, Any]) -> list[int]:
    """Return the shape out of a profile's {"float": [1, 3, 32, 32]}."""
    return next(([int(v) for v in dims] for dims in item.values()), [])


def _zeros(session: Any) -> dict[str, Any]:
    import numpy as np

    types = {"float": "float32", "double": "float64"}
    feed = {}
    for item in session.get_inputs():
        shape = [v if isinstance(v, int) and v > 0 else 1 for v in item.shape or []]
        kind = item.type[len("tensor(") : -1]
        feed[item.name] = np.zeros(shape, types.get(kind, kind))
    return feed
