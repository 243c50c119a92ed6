from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from torch import nn

from engine import data
from engine.compress.export import Template
from engine.compress.inference import as_input, operators, session
from engine.compress.quantize import onnx_accuracy
from engine.compress.weight_bits import four_bits, packable, packed


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


@pytest.fixture(scope="module")
def float_file(
    reader: nn.Module, reader_template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = reader_template.write(reader, tmp_path_factory.mktemp("float") / "m.onnx").path
    onnx.save(_named(onnx.load(path)), path)
    return path


def test_the_file_is_a_sixth_loads_and_answers_nearly_the_same(
    float_file: Path, digits: data.Dataset, tmp_path: Path
) -> None:
    proto = onnx.load(float_file)
    before = proto.SerializeToString()
    layers = packable(proto.graph)
    assert len(layers) == 5
    path = tmp_path / "int4.onnx"
    onnx.save(four_bits(proto, layers), path)
    onnx.checker.check_model(path, full_check=True)
    assert proto.SerializeToString() == before
    assert path.stat().st_size < float_file.stat().st_size / 5
    # What is unpacked is unpacked when the file is loaded: the same operators run.
    assert operators(path) == operators(float_file)
    images, labels = digits.selection_images, digits.selection_labels
    exact, near = (
        session(p).run(None, {"images": as_input(images)})[0] for p in (float_file, path)
    )
    assert 0 < np.square(near - exact).mean() < 0.02 * np.square(exact).mean()
    accuracies = [onnx_accuracy(p, images, labels) for p in (float_file, path)]
    assert accuracies[1] > accuracies[0] - 0.02


def test_weights_are_real_four_bit_tensors_and_others_are_left_alone(float_file: Path) -> None:
    proto = onnx.load(float_file)
    first, second, *rest = packable(proto.graph)
    written = four_bits(proto, [second])
    kinds = {i.name: i.data_type for i in written.graph.initializer}
    assert kinds[f"{second}.int4"] == TensorProto.INT4
    assert packed(written.graph)
    assert not packed(proto.graph)
    assert packable(written.graph) == (first, *rest)
    (tensor,) = (i for i in written.graph.initializer if i.name == f"{second}.int4")
    assert len(tensor.raw_data) == 16 * 16 * 9 / 2
    old = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    new = {i.name: onnx.numpy_helper.to_array(i) for i in written.graph.initializer}
    gone = {node.input[1] for node in proto.graph.node if node.name == second}
    assert set(old) - set(new) == gone
    assert all((new[name] == old[name]).all() for name in set(old) & set(new))


def _graph(
    op: str, weights: np.ndarray, inputs: list[int | str], opset: int = 13, **more: int
) -> onnx.ModelProto:
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], name="only", **more)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=7)


@pytest.mark.parametrize(
    ("op", "shape", "inputs", "more"),
    [
        ("Conv", (6, 5, 3, 3), (2, 5, 7, 7), {}),
        ("Conv", (8, 1, 3, 3), (2, 8, 7, 7), {"group": 8}),
        ("Conv", (1, 1, 1, 1), (2, 1, 4, 4), {}),
        ("Gemm", (70, 3), (2, 70), {}),
        ("Gemm", (3, 70), (2, 70), {"transB": 1}),
        ("MatMul", (37, 4), (2, 37), {}),
    ],
)
def test_every_kind_of_layer_keeps_each_weight_to_half_a_step_of_its_block(
    op: str, shape: tuple[int, ...], inputs: tuple[int, ...], more: dict[str, int]
) -> None:
    random = np.random.default_rng(0)
    # Output channels of very unequal size, one of them all zero.
    first = op == "Conv" or "transB" in more
    weights = random.normal(size=shape) * 10.0 ** random.integers(-3, 3, shape)
    channels = np.moveaxis(weights, 0 if first else -1, 0)
    if len(channels) > 1:
        channels[0] = 0
    proto = _graph(op, weights.astype(np.float32), list(inputs), **more)
    written = four_bits(proto, ["only"])
    graph = onnx.GraphProto()
    graph.CopyFrom(written.graph)
    del graph.node[-1], graph.output[:], graph.input[:]
    graph.output.append(onnx.helper.make_tensor_value_info("only.Reshape", TensorProto.FLOAT, None))
    alone = onnx.helper.make_model(graph, opset_imports=written.opset_import, ir_version=10)
    (got,) = session(alone.SerializeToString()).run(None, {})
    assert got.shape == shape
    rows = [
        np.moveaxis(w, 0 if first else -1, 0).reshape(len(channels), -1) for w in (got, weights)
    ]
    length = {45: 45, 9: 9, 1: 1, 70: 35, 37: 37}[rows[0].shape[1]]
    near, exact = (row.reshape(-1, length) for row in rows)
    steps = np.abs(exact).max(axis=1, keepdims=True) / 7
    assert (np.abs(near - exact) <= 0.501 * steps).all()
    x = random.random(inputs, dtype=np.float32)
    whole = _graph(op, got, list(inputs), **more)
    ran, expected = (
        session(m.SerializeToString()).run(None, {"x": x})[0] for m in (written, whole)
    )
    np.testing.assert_allclose(ran, expected, rtol=1e-5)


def test_weights_that_two_layers_share_stay_float_for_the_other(tmp_path: Path) -> None:
    proto = _graph("MatMul", np.random.default_rng(0).random((8, 8), dtype=np.float32), ["n", 8])
    proto.graph.node[0].output[0] = "between"
    proto.graph.node.append(onnx.helper.make_node("MatMul", ["between", "w"], ["y"], name="other"))
    written = four_bits(proto, ["only"])
    assert [node.name for node in written.graph.node][-2:] == ["only", "other"]
    assert packable(written.graph) == ("other",)
    x = np.ones((1, 8), np.float32)
    exact, near = (session(m.SerializeToString()).run(None, {"x": x})[0] for m in (proto, written))
    np.testing.assert_allclose(near, exact, rtol=0.1)


def test_a_layer_without_float_weights_is_refused() -> None:
    proto = _graph("MatMul", np.ones((8, 8), np.float32), ["n", 8])
    with pytest.raises(ValueError, match="no layer nought, other with float weights"):
        four_bits(proto, ["other", "only", "nought"])
    with pytest.raises(ValueError, match="no layer only with float weights"):
        four_bits(four_bits(proto, ["only"]), ["only"])


def test_a_network_that_onnx_cannot_bring_to_a_newer_opset_is_refused() -> None:
    proto = _graph("MatMul", np.ones((8, 8), np.float32), ["n", 8])
    proto.graph.node.append(onnx.helper.make_node("Unheard", ["y"], ["z"], name="other"))
    with pytest.raises(ValueError, match="need opset 21, and ONNX cannot bring the network there"):
        four_bits(proto, ["only"])
