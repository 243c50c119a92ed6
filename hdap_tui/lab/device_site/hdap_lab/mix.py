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
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VERSION = 1
RUNS = 25
NODE_OVERHEAD_US = 1.0
"""What calling one kernel costs before it does anything."""
COMPUTE_BOUND_FLOPS_PER_BYTE = 6.0
"""Above it a kernel waits for arithmetic, below it for memory (roofline model; the ridge of a
small core in single precision; a 3x3 depthwise convolution has 2, a dense one above 10)."""

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
    session: Callable[..., Any], model: str | os.PathLike[str] | bytes, folder: Path
) -> Mix:
    """Return a model's mix from a profiled session of its own, on one thread.

    `session` is onnxruntime's own `InferenceSession`; `folder` takes its profile.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    plain = session(model, sess_options=options)
    feed = _zeros(plain)
    total_us = _fastest_us(plain, feed)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "ort")
    traced = session(model, sess_options=options)
    for _ in range(RUNS):
        traced.run(None, feed)
    events = json.loads(Path(traced.end_profiling()).read_text(encoding="utf-8"))
    return from_events(events, total_us)


def from_events(events: Iterable[Mapping[str, Any]], total_us: float) -> Mix:
    """Return the mix from onnxruntime's profile of several runs and the time of one without it.

    A kernel counts with its fastest run. What no kernel accounts for is overhead.
    """
    fastest: dict[tuple[str, str], float] = {}
    compute_bound: dict[tuple[str, str], bool] = {}
    for event in events:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        details = event.get("args", {})
        key = (str(event["name"]), str(details.get("node_index", "")))
        fastest[key] = min(fastest.get(key, math.inf), float(event["dur"]))
        if key not in compute_bound:
            compute_bound[key] = intensity(details) > COMPUTE_BOUND_FLOPS_PER_BYTE
    work = {key: max(us - NODE_OVERHEAD_US, 0.0) for key, us in fastest.items()}
    compute = sum(us for key, us in work.items() if compute_bound[key])
    memory = sum(us for key, us in work.items() if not compute_bound[key])
    whole = max(total_us, compute + memory + NODE_OVERHEAD_US * len(work), 1e-9)
    return Mix(compute / whole, memory / whole, 1.0 - (compute + memory) / whole)


def intensity(details: Mapping[str, Any]) -> float:
    """Return a kernel's floating-point operations per byte moved, 0 for what only moves bytes.

    `details` are the `args` of a kernel's profile event.
    """
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
    flops = 2.0 * math.prod(outputs[0]) * depth
    size_keys = ("activation_size", "parameter_size", "output_size")
    moved = sum(float(details.get(key) or 0) for key in size_keys)
    return flops / moved if moved else 0.0


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


def _fastest_us(session: Any, feed: Mapping[str, Any]) -> float:
    best = math.inf
    for _ in range(RUNS):
        start = time.perf_counter_ns()
        session.run(None, feed)
        best = min(best, time.perf_counter_ns() - start)
    return best / 1e3
