from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from engine import data
from engine.compress import quantizer as written
from engine.compress.executed import executed
from engine.compress.export import Template, export
from engine.compress.inference import as_input, session
from engine.compress.mixtures import Layer, Mixtures, Policy
from engine.compress.profile import layers as profiled
from engine.compress.quantize import quantize_static


@pytest.fixture(scope="module")
def mixtures(short_file: Path, digits: data.Dataset) -> Mixtures:
    return Mixtures(short_file, digits.calibration_images[:16])


def _every_third(layers: int, first: int = 0) -> Policy:
    order = ("fp32", "int8", "int4")
    return tuple(order[(i + first) % 3] for i in range(layers))  # type: ignore[misc]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_mixture_is_executed_as_its_policy_says(
    mixtures: Mixtures, tmp_path: Path, first: int
) -> None:
    policy = _every_third(len(mixtures.layers), first)
    file, runs = mixtures.write(tmp_path / "m.onnx", policy)
    assert runs == policy
    names = [layer.name for layer in mixtures.layers]
    asked = [n for n, precision in zip(names, policy, strict=True) if precision == "int8"]
    assert list(executed(file.path).integer) == asked
    tensors = {i.name for i in onnx.load(file.path).graph.initializer if i.data_type ==
               TensorProto.INT4}  # fmt: skip
    four = {f"{n}.int4" for n, p in zip(names, policy, strict=True) if p == "int4"}
    assert tensors == four
    assert list(tmp_path.iterdir()) == [file.path]


def test_mixtures_without_four_bits_are_those_of_the_quantizer(
    mixtures: Mixtures, short_file: Path, digits: data.Dataset, tmp_path: Path
) -> None:
    names = [layer.name for layer in mixtures.layers]
    policy: Policy = tuple("fp32" if i % 2 else "int8" for i in range(len(names)))
    for asked, floating in ((mixtures.uniform("int8"), []), (policy, names[1::2])):
        ours, _ = mixtures.write(tmp_path / "ours.onnx", asked)
        theirs = quantize_static(
            short_file, tmp_path / "theirs.onnx", digits.calibration_images[:16], floating=floating
        )
        assert ours.digest == theirs.digest


def test_fewer_bits_are_fewer_bytes_and_the_answers_stay_near(
    reader: nn.Module, reader_template: Template, digits: data.Dataset, tmp_path: Path
) -> None:
    source = reader_template.write(reader, tmp_path / "float.onnx").path
    mixtures = Mixtures(source, digits.calibration_images[:16])
    x = as_input(digits.selection_images[:32])
    sizes, logits = {}, {}
    for precision in ("fp32", "int8", "int4"):
        file, _ = mixtures.write(tmp_path / precision, mixtures.uniform(precision))
        sizes[precision] = file.bytes
        logits[precision] = session(file.path).run(None, {"images": x})[0]
    assert sizes["int4"] < 0.7 * sizes["int8"] < 0.25 * sizes["fp32"]
    power = np.square(logits["fp32"]).mean()
    for precision in ("int8", "int4"):
        assert 0 < np.square(logits[precision] - logits["fp32"]).mean() < 0.05 * power


def test_layers_are_what_the_network_in_torch_has(
    mixtures: Mixtures, short_resnet: nn.Module, example: torch.Tensor
) -> None:
    expected = profiled(short_resnet, example)
    assert [layer.name for layer in mixtures.layers] == [layer.name for layer in expected]
    assert [layer.macs for layer in mixtures.layers] == [layer.macs for layer in expected]
    assert [layer.kernel for layer in mixtures.layers] == [layer.kernel for layer in expected]
    assert mixtures.layers[-1] == Layer("linear", 640, 640, 1, False)


def test_a_layer_s_error_is_that_of_the_network_with_it_alone_in_a_precision(
    mixtures: Mixtures, digits: data.Dataset, tmp_path: Path
) -> None:
    images = digits.selection_images[:16]
    errors = mixtures.errors(images, ("fp32", "int4"))
    assert np.array(errors).shape == (10, 2)
    assert {row[0] for row in errors} == {0.0}
    policy = list(mixtures.uniform("fp32"))
    policy[4] = "int4"
    mixtures.write(tmp_path / "m.onnx", tuple(policy))
    mixtures.write(tmp_path / "whole.onnx", mixtures.uniform("fp32"))
    exact, off = (
        session(tmp_path / name).run(None, {"images": as_input(images)})[0].astype(np.float64)
        for name in ("whole.onnx", "m.onnx")
    )
    relative = np.square(off - exact).mean() / np.square(exact).mean()
    assert relative > 0
    assert errors[4][1] == pytest.approx(relative)
    features = mixtures.features(errors)
    assert features.shape == (10, 7)
    assert np.isfinite(features).all()


def _depthwise(example: torch.Tensor, path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(),
        nn.Conv2d(16, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    return export(model, example, path).path


def test_depthwise_layers_are_told_from_others_and_take_every_precision(
    digits: data.Dataset, example: torch.Tensor, tmp_path: Path
) -> None:
    source = _depthwise(example, tmp_path / "float.onnx")
    mixtures = Mixtures(source, digits.calibration_images[:16])
    assert [layer.depthwise for layer in mixtures.layers] == [False, True, False]
    assert [layer.weights for layer in mixtures.layers] == [432, 144, 160]
    for precision in ("fp32", "int8", "int4"):
        policy: Policy = ("int8", precision, "fp32")
        assert mixtures.write(tmp_path / "m.onnx", policy)[1] == policy


def _with_a_layer_without_kernel(path: Path) -> Path:
    """Write a network, the first linear layer of which no integer kernel computes."""
    helper, random = onnx.helper, np.random.default_rng(0)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "a.weight", "a.bias"], ["a"], alpha=0.5, beta=2.0),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "c.weight", "c.bias"], ["c"]),
        helper.make_node("Transpose", ["c"], ["turned"]),
        helper.make_node("MatMul", ["c", "turned"], ["logits"]),
    ]
    shapes = {"a.weight": (48, 8), "a.bias": (8,), "c.weight": (8, 5), "c.bias": (5,)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "n"])],
        [
            onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_where_a_layer_cannot_run_as_asked_the_policy_and_the_file_are_what_runs(
    tmp_path: Path,
) -> None:
    source = _with_a_layer_without_kernel(tmp_path / "float.onnx")
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 4, 4), dtype=np.uint8)
    mixtures = Mixtures(source, images)
    names = [layer.name for layer in mixtures.layers]
    assert names == ["a", "c", "MatMul_5"]
    # a: no such kernel; the product of two activations: no weights that could be packed.
    allowed = mixtures.allowed(("fp32", "int8", "int4"))
    assert allowed.tolist() == [
        [True, False, True],
        [True, True, True],
        [True, True, False],
    ]
    assert mixtures.uniform("int8") == ("fp32", "int8", "int8")
    assert mixtures.uniform("int4") == ("int4", "int4", "fp32")
    for asked, expected in (
        (("int8", "int8", "int8"), ("fp32", "int8", "int8")),
        (("int8", "fp32", "int4"), ("fp32", "fp32", "fp32")),
    ):
        file, runs = mixtures.write(tmp_path / "m.onnx", asked)
        assert runs == expected
        assert executed(file.path).integer == tuple(
            name for name, precision in zip(names, runs, strict=True) if precision == "int8"
        )
        again, _ = mixtures.write(tmp_path / "again.onnx", runs)
        assert again.digest == file.digest
    # ONNX Runtime multiplies what comes as int8 in int8.
    with pytest.raises(ValueError, match="would quantize MatMul_5 again at load"):
        mixtures.write(tmp_path / "m.onnx", ("fp32", "int8", "fp32"))
    errors = mixtures.errors(images, ("fp32", "int8", "int4"))
    assert [[error > 0 for error in row] for row in errors] == [
        [False, False, True],
        [False, False, True],  # not to be had alone in int8
        [False, True, False],
    ]


def test_a_mixture_that_the_runtime_would_quantize_again_is_refused(
    mixtures: Mixtures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "_shield", lambda graph: None)
    policy = list(mixtures.uniform("int8"))
    policy[1] = "int4"
    with pytest.raises(ValueError, match=r"would quantize layer1\.0\.conv1 again at load"):
        mixtures.write(tmp_path / "m.onnx", tuple(policy))
    assert not list(tmp_path.iterdir())


def test_another_network_calibration_or_preset_has_another_fingerprint(
    short_file: Path, digits: data.Dataset, mixtures: Mixtures
) -> None:
    images = digits.calibration_images
    same, calibration, preset = (
        Mixtures(short_file, *rest).fingerprint
        for rest in ((images[:16],), (images[16:24],), (images[:16], "arm64"))
    )
    assert same == mixtures.fingerprint
    assert len({same, calibration, preset}) == 3


def test_what_is_no_policy_and_no_float_network_are_refused(
    mixtures: Mixtures, short_file: Path, digits: data.Dataset, tmp_path: Path
) -> None:
    images = digits.calibration_images[:16]
    with pytest.raises(ValueError, match="a policy has 10 precisions"):
        mixtures.write(tmp_path / "m.onnx", ("int8",))
    with pytest.raises(ValueError, match="no precision int2: only fp32, int8, int4"):
        mixtures.write(tmp_path / "m.onnx", ("int2",) * 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs calibration images"):
        Mixtures(short_file, images[:0])
    for precision in ("int8", "int4"):
        file, _ = mixtures.write(tmp_path / f"{precision}.onnx", mixtures.uniform(precision))
        with pytest.raises(ValueError, match="already quantized: give the float network"):
            Mixtures(file.path, images)
