from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from engine import data, runner
from engine.compress import quantizer as written
from engine.compress.controlled import quantize_within
from engine.compress.evaluate import answers
from engine.compress.executed import Executed, executed, name_layers
from engine.compress.export import Template, export
from engine.compress.inference import as_input, operators, optimised, session
from engine.compress.quantize import onnx_accuracy, quantize_static
from engine.compress.quantizer import Quantizer


def _uneven(model: nn.Module, digits: data.Dataset, first: int, second: int) -> nn.Module:
    """Return the same function, one channel of which no 8 bits can hold beside the others."""
    model = copy.deepcopy(model)
    before, after = model[first], model[second]  # type: ignore[index]
    with torch.no_grad():
        x = torch.from_numpy(digits.calibration_images).float() / 255
        x = model[: first + 2](x)  # type: ignore[index]
        channel = int(x.mean((0, 2, 3)).argmax())
        before.weight[channel] *= 2000
        before.bias[channel] *= 2000
        after.weight[:, channel] /= 2000
    return model


@pytest.fixture(scope="module")
def uneven_file(
    reader: nn.Module,
    digits: data.Dataset,
    reader_template: Template,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    model = _uneven(reader, digits, 0, 2)
    return reader_template.write(model, tmp_path_factory.mktemp("float") / "m.onnx").path


@pytest.fixture(scope="module")
def resnet_quantizer(short_file: Path, digits: data.Dataset) -> Quantizer:
    # With weights of seven bits, which no processor's kernels cut off.
    return Quantizer(short_file, digits.calibration_images[:16], "x86")


def test_what_costs_the_accuracy_stays_in_float_and_nothing_else(
    uneven_file: Path, digits: data.Dataset, tmp_path: Path
) -> None:
    images, labels = digits.selection_images, digits.selection_labels
    plain = quantize_static(uneven_file, tmp_path / "plain.onnx", digits.calibration_images)
    before = onnx_accuracy(uneven_file, images, labels)
    assert onnx_accuracy(plain.path, images, labels) < before - 0.1
    said: list[str] = []
    found = quantize_within(
        uneven_file, tmp_path / "m.onnx", digits.calibration_images, images, labels, 1.0,
        progress=said.append,
    )  # fmt: skip
    assert set(found.floating) == {"0", "2"}
    assert found.integer == ("4", "7", "9")
    assert executed(found.file.path).floating == ("0", "2")
    assert found.float_accuracy == before
    assert found.accuracy == onnx_accuracy(found.file.path, images, labels) >= before - 0.01
    assert [name for name, _ in found.errors[:2]] == list(found.floating)
    assert found.errors[1][1] > 3 * found.errors[2][1]
    assert said[0].endswith("with 0 of 5 layers in float")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "plain.onnx"]


def test_all_of_it_is_quantized_where_that_is_good_enough(
    uneven_file: Path, digits: data.Dataset, tmp_path: Path
) -> None:
    images, labels = digits.selection_images, digits.selection_labels
    plain = quantize_static(uneven_file, tmp_path / "plain.onnx", digits.calibration_images)
    found = quantize_within(
        uneven_file, tmp_path / "m.onnx", digits.calibration_images, images, labels, 100.0
    )
    assert (found.floating, found.errors) == ((), ())
    assert found.file.digest == plain.digest
    assert len(found.integer) == 5


def test_an_accuracy_out_of_reach_is_said_with_the_best_that_was_found(
    digits: data.Dataset, example: torch.Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=3), nn.ReLU(), nn.Conv2d(16, 10, 10), nn.Flatten()
    )
    model = _uneven(model, digits, 0, 2).eval()
    source = export(model, example, tmp_path / "float.onnx").path
    images = digits.selection_images
    labels = answers(model, torch.from_numpy(images)).numpy()  # the float network is always right
    with pytest.raises(
        ValueError,
        match=r"no mixture of int8 and float loses at most 0.5 points: the best loses \d+\.\d\d, "
        r"with \d of 2 layers in float: keep the float network",
    ):
        quantize_within(source, tmp_path / "m.onnx", digits.calibration_images, images, labels, 0.5)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("drop", [-1.0, float("nan")])
def test_a_drop_that_is_none_is_refused(
    uneven_file: Path, digits: data.Dataset, tmp_path: Path, drop: float
) -> None:
    images, labels = digits.selection_images, digits.selection_labels
    with pytest.raises(ValueError, match="0 points or more"):
        quantize_within(uneven_file, tmp_path / "m", images, images, labels, drop)


def test_layers_left_out_are_executed_in_float_by_default_options(
    resnet_quantizer: Quantizer, short_file: Path, tmp_path: Path
) -> None:
    layers = resnet_quantizer.layers
    assert len(layers) == 10
    assert (layers[0], layers[-1]) == ("conv1", "linear")
    for number, floating in enumerate((layers[1::2], layers[::3], layers[5:6], layers[:-1])):
        path = resnet_quantizer.write(tmp_path / f"{number}.onnx", floating).path
        ran = executed(path)
        assert ran.floating == tuple(floating)
        assert ran.integer == tuple(name for name in layers if name not in floating)
        x = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
        (ours,) = session(path).run(None, {"images": x})
        (device,) = runner.make_session(str(path), 1, "CPUExecutionProvider").run(
            None, {"images": x}
        )
        np.testing.assert_array_equal(ours, device)
    # With nothing left to quantize it is the float network again.
    path = resnet_quantizer.write(tmp_path / "all.onnx", layers).path
    assert operators(path) == operators(short_file)


def test_the_way_it_is_written_changes_no_number(
    resnet_quantizer: Quantizer,
    digits: data.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    floating = resnet_quantizer.layers[1::2]
    ours = resnet_quantizer.write(tmp_path / "ours.onnx", floating).path
    monkeypatch.setattr(written, "_shield", lambda graph: None)
    monkeypatch.setattr(written, "executed", lambda path, as_arm: Executed((), ()))
    plain = resnet_quantizer.write(tmp_path / "plain.onnx", floating).path
    assert set(executed(plain).integer).intersection(floating)  # what it is written against
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = as_input(digits.calibration_images[:8])
    literal = [
        onnxruntime.InferenceSession(path, options).run(None, {"images": x})[0]
        for path in (ours, plain)
    ]
    np.testing.assert_array_equal(*literal)
    (fast,) = session(ours).run(None, {"images": x})
    (again,) = session(plain).run(None, {"images": x})
    apart = [float(np.abs(logits - literal[0]).max()) for logits in (fast, again)]
    assert apart[0] < 0.5 * apart[1]


def test_an_addition_behind_a_float_layer_stays_in_float_with_it(
    resnet_quantizer: Quantizer, tmp_path: Path
) -> None:
    whole = operators(resnet_quantizer.write(tmp_path / "a.onnx").path)
    found = operators(resnet_quantizer.write(tmp_path / "b.onnx", ["layer1.0.conv2"]).path)
    assert (whole["QLinearAdd"], found["QLinearAdd"]) == (3, 2)
    assert found["QLinearConv"] == 8


def test_the_file_is_not_written_where_the_runtime_would_quantize_a_layer_again(
    resnet_quantizer: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "_shield", lambda graph: None)
    with pytest.raises(ValueError, match=r"would quantize layer1\.0\.conv1 again at load"):
        resnet_quantizer.write(tmp_path / "m.onnx", ["layer1.0.conv1"])
    assert not list(tmp_path.iterdir())


def test_signed_activations_keep_their_float_layers_too(
    short_file: Path, digits: data.Dataset, tmp_path: Path
) -> None:
    quantizer = Quantizer(short_file, digits.calibration_images[:16], "arm64-dotprod")
    floating = quantizer.layers[1::2]
    path = quantizer.write(tmp_path / "m.onnx", floating).path
    assert executed(path, as_arm=True).floating == floating


def test_a_layer_that_is_none_is_refused(resnet_quantizer: Quantizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no layer layer9, nought that can be quantized"):
        resnet_quantizer.write(tmp_path / "m.onnx", ["nought", "conv1", "layer9"])


def test_layers_without_names_of_their_own_get_some() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "a.weight"], ["b"], name="same"),
        node("Relu", ["b"], ["c"], name="same"),
        node("Conv", ["c", "shared"], ["d"]),
        node("Conv", ["d", "shared"], ["e"], name="same"),
        node("MatMul", ["e", "d"], ["f"]),
    ]
    tensors = [
        onnx.numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), name)
        for name in ("a.weight", "shared")
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], [], tensors)
    assert name_layers(graph) == ("a", "Conv_2", "Conv_3", "MatMul_4")
    assert [n.name for n in graph.node] == ["a", "same", "Conv_2", "Conv_3", "MatMul_4"]


def test_what_has_no_integer_kernel_keeps_its_own_weights(
    digits: data.Dataset, example: torch.Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6(),
        nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ReLU(),
        nn.Conv2d(8, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    source = export(model, example, tmp_path / "float.onnx").path
    quantizer = Quantizer(source, digits.calibration_images[:16])
    assert quantizer.layers == ("0", "2", "6")
    for floating in ((), ("2",)):
        path = quantizer.write(tmp_path / "m.onnx", floating).path
        assert executed(path).floating == (*floating, "4")
        kernels = [n for n in optimised(path).graph.node if n.op_type == "ConvTranspose"]
        assert [n.input[1] for n in kernels] == ["4.weight"]
