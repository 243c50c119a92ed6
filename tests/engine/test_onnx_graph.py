from __future__ import annotations

import copy
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from engine import data
from engine.compress.export import Template, parity
from engine.compress.finetune import Recipe, finetune
from engine.compress.groups import Group, check, choose, importance, trace
from engine.compress.inference import session
from engine.compress.prune import prune
from engine.models.onnx_graph import Network, convert, restore_batch_norms
from engine.models.onnx_graph.naming import layer_name, unused
from tests.engine.conftest import shake

Floats = NDArray[np.float32]


class Shortcuts(nn.Module):
    """The published option A, as five repositories write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        y = functional.relu(self.bn2(self.conv(x)) + self._shortcut(x))
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.kind == "slice and pad":
            return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        if self.kind == "pool and pad":
            return functional.pad(functional.avg_pool2d(x, 1, 2), (0, 0, 0, 0, 4, 4))
        x = functional.max_pool2d(x, 1, 2) if "max" in self.kind else functional.avg_pool2d(x, 2)
        zeros = x.mul(0) if "times" in self.kind else torch.zeros_like(x)
        return torch.cat((x, zeros), 1)


def _export(model: nn.Module, example: Tensor, path: Path, dynamo: bool) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            if dynamo:
                torch.onnx.export(
                    model, (example,), path, dynamo=True, external_data=False, verbose=False,
                    dynamic_shapes=({0: "batch"},), opset_version=18,
                )  # fmt: skip
            else:
                torch.onnx.export(
                    model, (example,), path, dynamo=False, input_names=["x"],
                    dynamic_axes={"x": {0: "batch"}},
                )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
    return path


def _file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]],
    shape: Sequence[int | str],
    opset: int = 13,
) -> Path:
    """Write a file whose input is `x` and whose output is `y`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    if not model.graph.output[0].type.tensor_type.HasField("shape"):
        model.graph.output[0].type.tensor_type.shape.dim.add()
    onnx.save(model, path)
    return path


def _random(*shape: int) -> Floats:
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape, np.float32)


def _apart(network: nn.Module, path: Path, images: Floats, reads: Floats | None = None) -> float:
    (expected,) = session(path).run(None, {"x": images if reads is None else reads})
    with torch.no_grad():
        actual = network(torch.from_numpy(images)).numpy()
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_our_own_export_comes_back_with_names_and_groups(
    short_resnet: nn.Module,
    short_groups: tuple[Group, ...],
    short_file: Path,
    example: Tensor,
) -> None:
    network = convert(short_file)
    assert not network.training
    assert torch.allclose(network(example), short_resnet(example), atol=1e-4)
    assert network.get_parameter("layer2.0.conv1.weight").shape == (32, 16, 3, 3)
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["layer2.0.shortcut.weight", "layer3.0.shortcut.weight"]
    groups = trace(network, example)
    assert [(g.name, g.channels) for g in groups] == [(g.name, g.channels) for g in short_groups]
    check(network, groups, example)
    half = choose(groups, [0.5] * len(groups), importance(network, groups))
    small = prune(network, groups, half)
    again = Template(network, example, groups)
    assert parity(again.build(small), small, example) < 1e-5


def test_the_network_can_be_copied_and_sent_to_another_process(
    short_file: Path, example: Tensor
) -> None:
    network = convert(short_file)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(example), network(example))


def test_a_file_alone_is_pruned_finetuned_and_exported(
    shipped: tuple[Path, str], digits: data.Dataset
) -> None:
    torch.manual_seed(0)
    network = convert(shipped[0])
    assert restore_batch_norms(network, digits.train_images[:128]) == 19
    example = torch.from_numpy(digits.test_images[:2]).float() / 255
    groups = trace(network, example)
    check(network, groups, example)
    small = prune(network, groups, choose(groups, [0.5] * len(groups), importance(network, groups)))
    few = data_of(digits, 512)
    result = finetune(small, few, Recipe(epochs=3, lr=0.02, augment=False))
    assert result.epochs[0].loss > result.epochs[-1].loss
    assert result.accuracy > 0.8
    assert parity(Template(network, example, groups).build(small), small, example) < 1e-4


def data_of(dataset: data.Dataset, count: int) -> data.Dataset:
    from dataclasses import replace

    return replace(
        dataset,
        train_images=dataset.train_images[:count],
        train_labels=dataset.train_labels[:count],
    )


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(
    "kind", ["slice and pad", "pool and pad", "max and zeros", "average times zero"]
)
def test_an_option_a_shortcut_becomes_the_convolution_that_it_equals(
    kind: str, dynamo: bool, example: Tensor, tmp_path: Path
) -> None:
    model = shake(Shortcuts(kind)).eval()
    network = convert(_export(model, example, tmp_path / "m.onnx", dynamo))
    assert torch.allclose(network(example), model(example), atol=1e-5)
    frozen = [p for p in network.parameters() if not p.requires_grad]
    assert [p.shape for p in frozen] == [(16, 8, 1, 1)]
    assert float(frozen[0].detach().sum()) == 8
    groups = trace(network, example)
    assert {g.channels for g in groups} == {8, 16}
    check(network, groups, example)


def test_batch_norms_come_back_without_changing_an_answer(
    short_file: Path, example: Tensor, digits: data.Dataset
) -> None:
    network = convert(short_file)
    before, images = network(example), digits.train_images[:200]
    assert restore_batch_norms(network, images) == 7
    assert torch.allclose(network(example), before, atol=1e-4 * float(before.detach().abs().max()))
    assert restore_batch_norms(network, images) == 0
    norm = network.get_submodule("layer1.0.conv1_bn")
    assert isinstance(norm, nn.BatchNorm2d)
    seen: list[Tensor] = []
    handle = norm.register_forward_hook(lambda _m, args, _r: seen.append(args[0]))
    network(torch.from_numpy(images).float() / 255)
    handle.remove()
    assert norm.running_mean is not None
    assert torch.allclose(seen[0].mean((0, 2, 3)), norm.running_mean, atol=1e-3)
    with pytest.raises(ValueError, match="two images"):
        restore_batch_norms(network, images[:1])


def test_a_file_as_tensorflow_writes_it(tmp_path: Path) -> None:
    """Channels last at both ends, pads by SAME, batch norms of their own, a softmax."""
    weights = {
        "model/conv/Conv2D/ReadVariableOp:0": _random(8, 3, 3, 3),
        "scale": 1 + 0.1 * _random(8) ** 2, "shift": _random(8), "mean": _random(8),
        "var": 1 + _random(8) ** 2, "depth": _random(8, 1, 3, 3),
        "model/dense/MatMul/ReadVariableOp:0": _random(8, 5), "dense_bias": _random(5),
        "model/scaled": np.float32([2.0]).reshape(1, 1, 1, 1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Sub", ["x", "model/scaled"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv", ["t", "model/conv/Conv2D/ReadVariableOp:0"], ["c"],
            strides=[2, 2], auto_pad="SAME_UPPER",
        ),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["b"]),
        helper.make_node("Clip", ["b"], ["r"], min=0.0, max=6.0),
        helper.make_node(
            "Conv", ["r", "depth"], ["d"], group=8, auto_pad="SAME_LOWER", strides=[2, 2]
        ),
        helper.make_node("AveragePool", ["d"], ["p"], kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
        helper.make_node("Transpose", ["p"], ["back"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["back"], ["f"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["f", "model/dense/MatMul/ReadVariableOp:0"], ["m"]),
        helper.make_node("Add", ["m", "dense_bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"]),
    ]  # fmt: skip
    path = _file(tmp_path / "tf.onnx", nodes, weights, ["n", 18, 18, 3], opset=10)
    network = convert(path)
    images = np.random.default_rng(1).random((3, 3, 18, 18), np.float32)
    (shares,) = session(path).run(None, {"x": images.transpose(0, 2, 3, 1)})
    logits = network(torch.from_numpy(images))
    assert torch.allclose(logits.softmax(1), torch.from_numpy(shares), atol=1e-5)
    names = dict(network.named_parameters())
    assert {"model_conv.weight", "model_dense.weight", "model_dense.bias"} <= set(names)
    groups = trace(network, torch.from_numpy(images))
    assert [g.channels for g in groups] == [8]
    check(network, groups, torch.from_numpy(images))


def test_a_file_as_paddle_writes_it(tmp_path: Path) -> None:
    """Biases and normalisations as separate sums and products, shapes computed from shapes."""
    weights = {
        "conv2d_0.w_0": _random(8, 3, 3, 3), "conv2d_0.b_0": _random(1, 8, 1, 1),
        "slope": np.float32([0.5]), "three": np.float32([3.0]), "six": np.float32([6.0]),
        "gamma": _random(1, 8, 1, 1), "start": np.int64([0]), "end": np.int64([1]),
        "minus": np.int64([-1]), "linear_0.w_0": _random(8 * 4 * 4, 5), "bias": _random(5),
        "zero": np.float32([0]), "top": np.float32([6]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "conv2d_0.w_0"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Add", ["c", "conv2d_0.b_0"], ["b"]),
        helper.make_node("Add", ["b", "three"], ["h"]),
        helper.make_node("Clip", ["h", "zero", "top"], ["k"]),
        helper.make_node("Mul", ["b", "k"], ["m"]),
        helper.make_node("Div", ["m", "six"], ["s"]),
        helper.make_node("Mul", ["s", "gamma"], ["g"]),
        helper.make_node("Shape", ["g"], ["shape"]),
        helper.make_node("Slice", ["shape", "start", "end"], ["batch"]),
        helper.make_node("Concat", ["batch", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["g", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "linear_0.w_0"], ["l"]),
        helper.make_node("Add", ["l", "bias"], ["y"]),
    ]
    path = _file(tmp_path / "paddle.onnx", nodes, weights, [-1, 3, 8, 8])
    network = convert(path)
    images = np.random.default_rng(1).random((3, 3, 8, 8), np.float32)
    assert _apart(network, path, images) < 1e-5
    assert network.get_parameter("conv2d_0.bias").shape == (8,)
    groups = trace(network, torch.from_numpy(images))
    assert [g.channels for g in groups] == [8]
    check(network, groups, torch.from_numpy(images))


@pytest.mark.parametrize(
    ("kind", "weights", "attributes", "opset"),
    [
        ("LeakyRelu", {}, {"alpha": 0.2}, 13),
        ("PRelu", {"slope": _random(4, 1, 1)}, {}, 13),
        ("HardSwish", {}, {}, 14),
        ("HardSigmoid", {}, {"alpha": 0.25, "beta": 0.4}, 13),
        ("Gelu", {}, {"approximate": "tanh"}, 20),
        ("Erf", {}, {}, 13),
        ("Elu", {}, {"alpha": 0.7}, 13),
        ("Softmax", {}, {"axis": 1}, 13),
        ("Clip", {}, {"min": -0.5, "max": 0.5}, 7),
        ("InstanceNormalization", {"a": _random(4), "b": _random(4)}, {}, 13),
        ("LayerNormalization", {"a": _random(7)}, {"axis": -1}, 17),
        ("GroupNormalization", {"a": _random(4), "b": _random(4)}, {"num_groups": 2}, 21),
        ("LRN", {}, {"size": 3}, 13),
        ("ConvTranspose", {"w": _random(4, 3, 3, 3)}, {"strides": [2, 2], "pads": [1] * 4}, 13),
        ("Conv", {"w": _random(6, 2, 3, 3)},
         {"group": 2, "dilations": [2, 2], "pads": [2, 1, 2, 3]}, 13),
        ("MaxPool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, 13),
        ("MaxPool", {}, {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, 13),
        ("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0]}, 13),
        ("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}, 13),
        ("Slice", {}, {"starts": [1, 0], "ends": [3, 99], "axes": [1, 2]}, 9),
        ("Pad", {}, {"pads": [0, 0, 1, 2, 0, 0, 1, 0], "mode": "reflect"}, 10),
        ("Pad", {"p": np.int64([0, 1, 0, 0, 0, 2, 0, 0])}, {}, 13),
        ("ReduceMean", {"axes": np.int64([-1])}, {"keepdims": 1}, 18),
        ("Reshape", {"shape": np.int64([0, 2, -1, 5, 7])}, {}, 13),
        ("Reshape", {"shape": np.int64([0, 0, -1])}, {}, 13),
        ("Unsqueeze", {"axes": np.int64([2])}, {}, 13),
        ("Flatten", {}, {"axis": 1}, 13),
        ("Gather", {"i": np.int64(1)}, {"axis": 2}, 13),
        ("Upsample", {"s": np.float32([1, 1, 2, 2])}, {"mode": "nearest"}, 9),
        ("Dropout", {}, {}, 13),
        ("Sub", {"k": _random(1, 4, 1, 1)}, {}, 13),
        ("Pow", {"two": np.float32(2)}, {}, 13),
    ],
)  # fmt: skip
def test_an_operator_means_what_onnx_runtime_takes_it_for(
    kind: str,
    weights: dict[str, NDArray[Any]],
    attributes: dict[str, Any],
    opset: int,
    tmp_path: Path,
) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "before"], ["c"]),
        helper.make_node(kind, ["c", *weights], ["o"], **attributes),
        helper.make_node("Identity", ["o"], ["y"]),
    ]
    held = {"before": _random(4, 2, 1, 1), **weights}
    path = _file(tmp_path / "one.onnx", nodes, held, ["n", 2, 5, 7], opset)
    network = convert(path)
    images = np.random.default_rng(2).standard_normal((4, 2, 5, 7), np.float32)
    if kind != "Softmax":  # left out at the end
        assert _apart(network, path, images) < 1e-5


@pytest.mark.parametrize(
    ("weight", "node", "name"),
    [
        ("layer1.0.conv1.weight", "node_conv2d_3", "layer1.0.conv1"),
        ("onnx::Conv_512", "/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("onnx::Conv_512", "", "conv"),
        ("model/dense/MatMul/ReadVariableOp:0", "model/dense/MatMul", "model_dense"),
        ("conv2d_0.w_0", "p2o.Conv.0", "conv2d_0"),
        ("features.type.weight", "", "features.type_"),
        ("../../etc/passwd", "", "etc_passwd"),
    ],
)
def test_layers_are_named_after_their_weights_or_else_their_place(
    weight: str, node: str, name: str
) -> None:
    assert unused(layer_name(weight, node, "Conv"), ()) == name


def test_no_two_layers_share_a_name_and_none_lies_within_another() -> None:
    taken: list[str] = []
    for wanted in ("conv", "conv", "conv.1", "block.conv", "block", "block.conv"):
        taken.append(unused(wanted, taken))
    assert taken == ["conv", "conv_2", "conv_1_2", "block.conv", "block_2", "block_conv_2"]


def test_split_shuffle_and_join(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1),
        helper.make_node("Relu", ["a"], ["c"]),
        helper.make_node("Concat", ["b", "c"], ["d"], axis=1),
        helper.make_node("Reshape", ["d", "five"], ["e"]),
        helper.make_node("Transpose", ["e"], ["f"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["f", "four"], ["y"]),
    ]
    shapes = {"five": np.int64([-1, 2, 2, 3, 3]), "four": np.int64([-1, 4, 3, 3])}
    path = _file(tmp_path / "s.onnx", nodes, shapes, ["n", 4, 3, 3])
    assert _apart(convert(path), path, _random(2, 4, 3, 3)) < 1e-6


def test_a_batch_fixed_in_the_file_becomes_free(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["y"]),
    ]
    weights = {"w": _random(3, 2, 2, 2), "shape": np.int64([1, 12])}
    network = convert(_file(tmp_path / "one.onnx", nodes, weights, [1, 2, 3, 3]))
    assert network(torch.rand(5, 2, 3, 3)).shape == (5, 12)


def test_what_mixes_the_images_of_a_batch_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
             helper.make_node("Sub", ["x", "m"], ["y"])]  # fmt: skip
    with pytest.raises(ValueError, match="only works for batches of"):
        convert(_file(tmp_path / "mix.onnx", nodes, {}, ["n", 2, 3, 3]))


def _refusals() -> Iterator[Any]:
    def node(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, ["x", *inputs], ["y"], name="culprit", **attributes)

    w = {"w": _random(4, 2, 1, 1)}
    big = {"big": np.int64([1 << 40])}
    yield node("Det"), {}, r'operator Det \(node "culprit"\) cannot be turned into a network'
    yield node("Conv", "w", group=3), w, r"4 channels do not fall into 3 groups"
    yield node("Conv", "w", pads=[-1, 0, 0, 0]), w, r"its pads are \[-1, 0, 0, 0\]"
    yield node("Conv", "w", strides=[0, 0]), w, r"its strides are \[0, 0\]"
    yield node("Conv", "w"), {"w": _random(4, 5, 1, 1)}, "does not fit its inputs"
    yield node("Reshape", "s"), {"s": np.int64([7, 11])}, "cannot become"
    yield node("Split", axis=0), {}, "takes some of the images"
    yield node("Expand", "bad"), {"bad": np.float32([2])}, "Expand"
    yield node("Tile", "big"), big, "operator Tile"
    yield node("QuantizeLinear", "s", "z"), {"s": np.float32(1), "z": np.uint8(0)}, "is quantized"
    yield node("Relu"), {"half": np.float16([1])}, "16 bits a number"


@pytest.mark.parametrize(("node", "weights", "sentence"), list(_refusals()))
def test_what_cannot_be_taken_is_refused_by_name(
    node: onnx.NodeProto, weights: dict[str, NDArray[Any]], sentence: str, tmp_path: Path
) -> None:
    path = _file(tmp_path / "bad.onnx", [node], weights, ["n", 2, 3, 3])
    with pytest.raises(ValueError, match=sentence) as caught:
        convert(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_few_bytes_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
             helper.make_node("Add", ["x", "huge"], ["y"])]  # fmt: skip
    weights = {"shape": np.int64([1 << 20, 1 << 20])}
    with pytest.raises(ValueError, match="1,099,511,627,776 numbers"):
        convert(_file(tmp_path / "huge.onnx", nodes, weights, ["n", 2]))
    pads = {"p": np.int64([0, 0, 0, 0, 0, 0, 1 << 30, 1 << 30])}
    with pytest.raises(ValueError, match="its pads are"):
        convert(_file(tmp_path / "pad.onnx", [
            helper.make_node("Pad", ["x", "p"], ["y"])], pads, ["n", 2, 3, 3]))  # fmt: skip


def test_the_first_node_that_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.models.onnx_graph import operators

    monkeypatch.setitem(operators.TABLE, "Tanh", operators.TABLE["Sigmoid"])
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="fine"),
             helper.make_node("Tanh", ["a"], ["b"], name="wrong"),
             helper.make_node("Abs", ["b"], ["y"], name="after")]  # fmt: skip
    with pytest.raises(ValueError, match=r'differs .* first in Tanh \(node "wrong"\)'):
        convert(_file(tmp_path / "m.onnx", nodes, {}, ["n", 2]))


def test_weights_beside_the_file_are_read_and_those_elsewhere_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    path = _file(folder / "m.onnx", nodes, {"w": _random(64, 2, 3, 3)}, ["n", 2, 5, 5])
    proto = onnx.load(path)
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert _apart(convert(path), path, _random(2, 2, 5, 5)) < 1e-5
    (folder / "m.data").rename(tmp_path / "m.data")
    with pytest.raises(ValueError, match=r"put m\.data beside it"):
        convert(path)
    proto = onnx.load(path, load_external_data=False)
    for location in ("../m.data", str(tmp_path / "m.data")):
        proto.graph.initializer[0].external_data[0].value = location
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ValueError, match="outside the file's folder"):
            convert(path)
    (folder / "link").symlink_to(tmp_path / "m.data")
    proto.graph.initializer[0].external_data[0].value = "link"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match="outside the file's folder"):
        convert(path)


def test_what_is_no_onnx_file_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        convert(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("Guten Tag")
    with pytest.raises(ValueError, match="not an ONNX file"):
        convert(tmp_path / "text.onnx")
    good = _file(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])],
                 {"unused": _random(9, 9)}, ["n", 2])  # fmt: skip
    assert isinstance(convert(good), Network)
    proto = onnx.load(good)
    proto.graph.initializer[0].raw_data = b"1234"
    good.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match=r"m\.onnx: .*unused"):
        convert(good)
    good.write_bytes(good.read_bytes()[:40])
    with pytest.raises(ValueError, match="not an ONNX file"):
        convert(good)


def test_the_networks_of_other_makers_convert() -> None:
    """SqueezeNet of opset 9, with constant weights, comes with the onnx package."""
    path = Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"
    if not path.exists():
        pytest.skip("this onnx package has no test data")
    network = convert(path)
    assert sum(p.numel() for p in network.parameters()) == 1_235_496
    assert network(torch.rand(2, 3, 224, 224)).shape == (2, 1000)
