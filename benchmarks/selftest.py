"""How far outputs differ between processors, and how far those of a wrong model are off.

    python -m benchmarks.selftest [MODEL.onnx …]

Each model runs here, with ONNX Runtime's optimizations off, and on other x86 processors that
qemu-user emulates, where that is installed (real kernels for AVX2 or SSE 4 without VNNI); then
with one weight tensor made wrong. Without models: those that come along, and the shipped
ResNet-20 as int8. The unit is the self-test's: per cent of the output's root mean square.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import engine.runner
from benchmarks.servers import row
from hdap_tui.deploy import selftest

PROCESSORS = ("max", "Haswell", "IvyBridge")
Runs = list[list[dict[str, Any]]]


def worst(ours: Runs, theirs: Runs) -> float:
    """Return the largest difference over all inputs and outputs."""
    return max(
        selftest.deviation(mine, other)
        for run, other_run in zip(ours, theirs, strict=True)
        for mine, other in zip(run, other_run, strict=True)
    )


def unoptimized(path: Path) -> Runs:
    """Run a model as it stands, without fused or reordered operators."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return [
        [
            engine.runner.fingerprint(value)
            for value in session.run(None, engine.runner.make_feed(session, 1, seed))
        ]
        for seed in selftest.SEEDS
    ]


def emulated(path: Path, processor: str) -> Runs | None:
    """Run a model on another processor; None where that cannot be done here."""
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None:
        return None
    packages = str(Path(onnxruntime.__file__).parents[1])
    command = [qemu, "-cpu", processor, str(Path(sys.executable).resolve()), engine.runner.__file__]
    command += ["--check", str(path), *map(str, selftest.SEEDS)]
    done = subprocess.run(command, capture_output=True, env={"PYTHONPATH": packages}, timeout=600)
    if done.returncode:
        return None
    return json.loads(done.stdout)["known"]  # type: ignore[no-any-return]


def damaged(path: Path, folder: Path) -> Runs:
    """Run a model one of whose weight tensors is 10 % too large; whole numbers are shifted."""
    model = onnx.load(path)
    weights = [w for w in model.graph.initializer if len(w.dims) >= 2]
    one = weights[len(weights) // 2]
    values = onnx.numpy_helper.to_array(one)
    wrong = np.roll(values, 1, 0) if values.dtype.kind in "iu" else values * values.dtype.type(1.1)
    one.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(wrong), one.name))
    onnx.save(model, folder / "damaged.onnx")
    return engine.runner.check(str(folder / "damaged.onnx"), selftest.SEEDS)["known"]  # type: ignore[no-any-return]


def shipped(folder: Path) -> Iterator[Path]:
    """Write the models that come along, and one of them as int8."""
    for name in ("compute", "bandwidth", "resnet20-digits"):
        path = folder / f"{name}.onnx"
        command = [sys.executable, "-m", "engine.models.builtin", name, str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        yield path
    yield quantized(path, signed=True)
    yield quantized(path, signed=False)


def quantized(path: Path, signed: bool) -> Path:
    """Write a model as int8, its ranges learned from inputs of the self-test's kind.

    Unsigned activations are what saturates on x86 processors without VNNI.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Inputs(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            session = onnxruntime.InferenceSession(str(path))
            self._feeds = iter([engine.runner.make_feed(session, 1, seed) for seed in range(16)])

        def get_next(self) -> Any:
            return next(self._feeds, None)

    target = path.with_name(f"{path.stem}-{'s8s8' if signed else 'u8s8'}.onnx")
    quantize_static(
        path, target, Inputs(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return target


def main() -> None:
    onnxruntime.set_default_logger_severity(3)
    print(row("model", "tolerance", "unoptimized", *PROCESSORS, "one tensor wrong"))
    print(row(*["---"] * (4 + len(PROCESSORS))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in map(Path, sys.argv[1:]) if sys.argv[1:] else shipped(folder):
            ours: Runs = engine.runner.check(str(path), selftest.SEEDS)["known"]
            others = [unoptimized(path), *(emulated(path, one) for one in PROCESSORS)]
            others.append(damaged(path, folder))
            allowed = selftest.TOLERANCE[selftest.precision(path)]
            cells = ["not run" if o is None else f"{100 * worst(ours, o):.2g} %" for o in others]
            print(row(path.stem, f"{100 * allowed:g} %", *cells), flush=True)


if __name__ == "__main__":
    main()
