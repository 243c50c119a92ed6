"""Does the network answer as the file does?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from engine.compress.inference import evaluating, session
from engine.models.onnx_graph.file import Source
from engine.models.onnx_graph.network import Network

TOLERANCE = 1e-4
_SHARES = ("Sigmoid", "HardSigmoid", "Softmax")  # their results are parts of one


def check(network: Network, source: Source, shape: Sequence[int], channels_last: bool) -> None:
    """Compare the network with ONNX Runtime on random images.

    Raises:
        ValueError: the answers differ by more than 1e-4 of the largest; it names the first node
            whose results do. Or the network computes one image differently beside another.
    """
    batch = source.shape[0] or 2
    images = np.random.default_rng(0).random((batch, *shape[1:]), dtype=np.float32)
    known = {name for node in source.proto.graph.node for name in node.output}
    inner = [name for step in network.steps for name in step.outputs if name in known]
    if not inner:
        raise ValueError(f"{source.path}: it has no layer")
    apart, where = _compare(network, source, images, channels_last, inner[-1:])
    if apart > TOLERANCE:
        apart, where = _compare(network, source, images, channels_last, inner)
        raise ValueError(
            f"{source.path}: the network made of it differs from ONNX Runtime by {apart:.2g} of "
            f"the largest value, first in {where}"
        )
    _check_batch(network, torch.from_numpy(_nchw(images, channels_last)), source)


def _check_batch(network: Network, images: torch.Tensor, source: Source) -> None:
    """A file for one image must mean the same for two: nothing may mix the images."""
    other = torch.cat([images[:1], 1 - images[:1]])
    try:
        with evaluating(network), torch.no_grad():
            alone, beside = network(images[:1]), network(other)
        same = beside.shape[0] == 2 and torch.allclose(
            alone[0], beside[0], rtol=0, atol=TOLERANCE * float(alone.abs().max().clamp_min(1e-12))
        )
    except (RuntimeError, IndexError):
        same = False
    if not same:
        raise ValueError(_one_batch(source))


def _one_batch(source: Source) -> str:
    return (
        f"{source.path}: it only works for batches of {source.shape[0] or 'one size'}: export it "
        "again with a free batch size"
    )


def _compare(
    network: Network,
    source: Source,
    images: NDArray[np.float32],
    channels_last: bool,
    names: Sequence[str],
) -> tuple[float, str]:
    """Return how far apart the first tensor that differs is (or the last), and its node."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    makers = {name: node for node in proto.graph.node for name in node.output}
    asked = list(dict.fromkeys(names))
    del proto.graph.output[:], proto.graph.value_info[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in asked)
    try:
        runtime = session(proto.SerializeToString())
        expected = dict(zip(asked, runtime.run(asked, {source.input: images}), strict=True))
    except Exception as error:
        # The runtime's classes of errors share no base of their own.
        reason = str(error).strip().splitlines()[0].rpartition("cannot run it: ")[2][:300]
        raise ValueError(f"{source.path}: ONNX Runtime cannot run it: {reason}") from error
    try:
        with evaluating(network), torch.no_grad():
            found = network.values(torch.from_numpy(_nchw(images, channels_last)), asked)
    except (RuntimeError, IndexError) as error:
        raise ValueError(_one_batch(source)) from error
    worst, where = 0.0, "the output"
    for name in asked:
        node = makers[name]
        least = 1.0 if node.op_type in _SHARES else 1e-12
        apart = _apart(found[name].numpy(), expected[name], least)
        worst, where = apart, f'{node.op_type} (node "{node.name or name}")'
        if apart > TOLERANCE:
            break
    return worst, where


def _apart(actual: NDArray[np.generic], expected: NDArray[np.generic], least: float) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        return 0.0 if np.array_equal(a, b, equal_nan=True) else float("inf")
    return float(np.abs(a - b).max(initial=0.0) / max(np.abs(b).max(initial=0.0), least))


def _nchw(images: NDArray[np.float32], channels_last: bool) -> NDArray[np.float32]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if channels_last else images
