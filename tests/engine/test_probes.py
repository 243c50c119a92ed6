from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from engine import data
from engine.compress.quantize import onnx_accuracy
from engine.models import builtin, probes


def _kernel_times(path: Path, folder: Path) -> Counter[str]:
    """Microseconds by operator, over twenty runs on one thread, as ONNX Runtime's profiler says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    feed = np.random.default_rng(0).random(given.shape, dtype=np.float32)
    for _ in range(20):
        (logits,) = session.run(None, {given.name: feed})
    assert np.isfinite(logits).all()
    assert logits.std() > 0
    times: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += max(1, event["dur"])
    return times


@pytest.mark.parametrize("name", probes.NAMES)
def test_a_probe_is_a_small_valid_network_with_the_same_bytes_everywhere(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "p.onnx"
    digest = probes.write(name, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert path.stat().st_size < 2 << 20
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (8, 13)
    code = f"from engine.models import probes; print(probes.write({name!r}, {str(path)!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest


def test_the_compute_probe_spends_its_time_in_convolutions(tmp_path: Path) -> None:
    probes.write("compute", tmp_path / "p.onnx")
    times = _kernel_times(tmp_path / "p.onnx", tmp_path)
    assert times["Conv"] > 0.8 * times.total()


def test_the_bandwidth_probe_spends_its_time_moving_bytes(tmp_path: Path) -> None:
    probes.write("bandwidth", tmp_path / "p.onnx")
    times = _kernel_times(tmp_path / "p.onnx", tmp_path)
    assert set(times) == {"Tile", "Add", "Mul", "ReduceMax"}
    assert times["Add"] + times["Mul"] + times["Tile"] > 0.6 * times.total()


def test_the_dispatch_probe_calls_many_kernels_that_do_next_to_nothing(tmp_path: Path) -> None:
    probes.write("dispatch", tmp_path / "p.onnx")
    times = _kernel_times(tmp_path / "p.onnx", tmp_path)
    assert set(times) == {"Mul", "Abs", "Add", "Neg"}
    assert len(onnx.load(tmp_path / "p.onnx").graph.node) == 400
    assert _calls(tmp_path / "p.onnx") == 400


def _calls(path: Path) -> int:
    """Kernels that remain after the runtime's own optimisation."""
    from engine.compress.inference import operators

    return sum(operators(path).values())


def test_probes_need_no_torch() -> None:
    code = "import sys; from engine.models import probes; probes.build('compute'); " + (
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_probe_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'gpu': choose one of compute, bandwidth, dispatch"):
        probes.write("gpu", tmp_path / "p.onnx")
    with pytest.raises(ValueError, match="choose one of resnet20-digits, compute"):
        builtin.write("gpu", tmp_path / "p.onnx")
    with pytest.raises(ValueError, match="no weights 'gpu'"):
        builtin.shipped("gpu")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_built_in_model_and_prints_its_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    assert builtin.main(["dispatch", str(path)]) == 0
    assert capsys.readouterr().out.strip() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert builtin.main(["dispatch", str(tmp_path / "absent" / "m.onnx")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_shipped_network_is_written_with_its_accuracy(
    shipped: tuple[Path, str], digits: data.Dataset
) -> None:
    path, digest = shipped
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert onnx_accuracy(path, digits.test_images, digits.test_labels) >= 0.985
