"""Walk an ONNX graph and build the network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.models.onnx_graph import folding, operators, parity
from engine.models.onnx_graph.builder import Builder, Node, Refused
from engine.models.onnx_graph.file import Source, read
from engine.models.onnx_graph.network import Network

_FREE_BATCH = 7  # a number that no other size of a network is likely to have
_FREE_SIZES = (3, 224, 224)
_LEAST_PIXELS = 8  # a side; fewer than that are channels


def convert(path: str | Path, example_shape: Sequence[int] | None = None) -> Network:
    """Return the network of an ONNX file, in evaluation mode.

    It reads images (N, C, H, W), also where the file wants (N, H, W, C), and gives logits: a
    softmax at the end is left out. Shortcuts that slice and pad with zeros ("option A") become
    the frozen convolution that they equal.

    Args:
        path: the file; nothing outside its folder is read.
        example_shape: shape of an image batch, for a file that takes any size; default 3 x 224
            x 224.

    Raises:
        ValueError: the file cannot be read, or holds an operator (the sentence names it) that no
            torch layer here stands for, or the network and ONNX Runtime do not answer alike.
    """
    source = read(Path(path))
    channels_last = _channels_last(source)
    shape = _example(source, example_shape, channels_last)
    builder = Builder(source, shape, channels_last)
    with _quiet():
        for proto in source.proto.graph.node:
            _step(builder, Node(proto, source.opset))
    network = builder.finish()
    parity.check(network, source, shape, channels_last)
    return network


def _step(builder: Builder, node: Node) -> None:
    where = f'{builder.source.path}: operator {node.kind} (node "{node.name}")'
    try:
        if folding.fold(builder, node):
            return
        build = operators.TABLE.get(node.kind)
        if build is None:
            raise Refused("nobody knows how to train or prune it")
        build(builder, node)
    except Refused as error:
        raise ValueError(
            f"{where} cannot be turned into a network that can be pruned; {error}"
        ) from error
    except Exception as error:
        # Numbers of the file that fit no layer: each has its own classes of errors.
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{where} does not fit its inputs: {first}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back torch's remarks about shapes that do not fit; they come as errors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _channels_last(source: Source) -> bool:
    shape = source.shape
    if len(shape) != 4 or shape[3] not in (1, 3, 4):
        return False
    return all(size is None or size >= _LEAST_PIXELS for size in shape[1:3])


def _example(source: Source, wish: Sequence[int] | None, channels_last: bool) -> tuple[int, ...]:
    """Return the shape, as the file orders it, at which the graph is walked."""
    free = list((wish or (0, *_FREE_SIZES))[1:])
    if channels_last:
        free = [*free[1:], free[0]]
    free = [*free, *[1] * len(source.shape)][: len(source.shape) - 1]
    batch, *sizes = source.shape
    return (
        batch or _FREE_BATCH,
        *(fixed or other for fixed, other in zip(sizes, free, strict=True)),
    )
