from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from torch import nn

from engine import data
from engine.compress.calibrate import METHODS, ranges
from engine.compress.export import Template
from engine.compress.quantize import onnx_accuracy, quantize_static


@pytest.fixture(scope="module")
def file(
    reader: nn.Module, reader_template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return reader_template.write(reader, tmp_path_factory.mktemp("float") / "m.onnx").path


def _found(file: Path, images: np.ndarray, **options: Any) -> dict[str, tuple[float, float]]:
    found = ranges(file, images, ["Conv", "Gemm", "Relu"], **options)
    return {
        name: (float(np.min(found[name].range_value[0])), float(np.max(found[name].range_value[1])))
        for name in found.keys()  # noqa: SIM118
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_network_as_good_as_the_float_one(
    file: Path,
    digits: data.Dataset,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    method: Any,
) -> None:
    before = onnx_accuracy(file, digits.test_images, digits.test_labels)
    images = digits.calibration_images[:64]
    result = quantize_static(file, tmp_path / "int8.onnx", images, method=method)
    assert onnx_accuracy(result.path, digits.test_images, digits.test_labels) > before - 0.015
    assert capfd.readouterr().out == ""


def test_minmax_takes_the_extremes_however_the_images_are_divided(
    file: Path, digits: data.Dataset
) -> None:
    images = digits.calibration_images[:30]
    found = _found(file, images)
    assert found["images"] == (images.min() / 255, pytest.approx(images.max() / 255))
    assert found == _found(file, images, batch=7) == _found(file, images, batch=30)


def test_percentile_and_entropy_clip_what_is_rare(file: Path, digits: data.Dataset) -> None:
    images = digits.calibration_images[:32]
    whole = _found(file, images)
    for options in ({"method": "percentile", "percentile": 99.0}, {"method": "entropy"}):
        clipped = _found(file, images, **options)
        assert clipped.keys() == whole.keys()
        assert all(
            low >= whole[n][0] - 1e-6 and high <= whole[n][1] + 1e-6
            for n, (low, high) in clipped.items()
        )
        assert any(high < 0.8 * whole[name][1] for name, (_, high) in clipped.items()), options
    all_of_it = _found(file, images, method="percentile", percentile=100.0)
    assert all(high >= 0.99 * whole[name][1] for name, (_, high) in all_of_it.items())


_PEAKS = """
import resource, sys
import numpy as np
from engine.compress.calibrate import ranges
images = np.random.default_rng(0).integers(0, 256, (32, 3, 96, 96), dtype=np.uint8)
for count in (4, 32):
    ranges(sys.argv[1], images[:count], ["Conv", "Relu"], sys.argv[2])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, method: str) -> None:
    # An image causes 6 MB of activations: 28 of them 165 MB, if they were kept.
    helper = onnx.helper
    weight = np.random.default_rng(0).standard_normal((80, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        ],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 96, 96])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 80, 1, 1])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "m.onnx")
    command = [sys.executable, "-c", _PEAKS, str(tmp_path / "m.onnx"), method]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = (int(line) / 1024 for line in answer.stdout.split())
    assert many - few < 60, (few, many)


def test_what_makes_no_sense_is_refused(file: Path, digits: data.Dataset) -> None:
    images = digits.calibration_images[:4]
    for options, message in (
        ({"method": "median"}, "ranges come by minmax, entropy, percentile, not by 'median'"),
        ({"method": "percentile", "percentile": 0.0}, "a percentile lies above 0"),
        ({"method": "percentile", "percentile": float("nan")}, "a percentile lies above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            _found(file, images, **options)
    with pytest.raises(ValueError, match="needs calibration images"):
        _found(file, images[:0])
    with pytest.raises(ValueError, match="cannot read the calibration images"):
        _found(file, images[:, :1])
