"""Running networks: in torch without side effects, and as ONNX on this machine's processor."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

_EXACT = {"session.x64quantprecision": "1"}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put every layer into evaluation mode, and back into its own mode at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training


def as_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return uint8 images as the float32 between 0 and 1 that networks read."""
    return images.astype(np.float32) / np.float32(255)


def session(model: str | Path | bytes) -> Any:
    """Return an ONNX Runtime session on one thread of this machine's processor.

    Integers are summed exactly, which the fast kernels of processors without VNNI do not do for
    weights of eight bits: a network meant for others would seem worse here than it is there.

    Raises:
        ValueError: it is no model that ONNX Runtime can run.
    """
    return _session(model, None, _EXACT)


def logits(path: str | Path, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return what an ONNX network gives for images (N, C, H, W) uint8, all in one inference.

    Raises:
        ValueError: it is no model that ONNX Runtime can run.
    """
    runtime = session(path)
    (found,) = runtime.run(None, {runtime.get_inputs()[0].name: as_input(images)})
    return np.asarray(found, dtype=np.float64)


def operators(model: str | Path, as_arm: bool = False) -> dict[str, int]:
    """Count the operators that ONNX Runtime really executes after its own optimisation.

    A quantized network is only as quantized as its kernels: `QLinearConv` against `Conv`.
    `as_arm` takes signed activations into integer kernels, which the runtime does by itself on
    ARM, and only there.

    Raises:
        ValueError: it is no model that ONNX Runtime can run.
    """
    return dict(Counter(node.op_type for node in optimised(model, as_arm).graph.node))


def optimised(model: str | Path, as_arm: bool = False) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime really executes; arguments as with `operators`.

    Raises:
        ValueError: it is no model that ONNX Runtime can run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        _session(model, path, {"session.qdqisint8allowed": "1"} if as_arm else {})
        return onnx.load(path)


def _session(model: str | Path | bytes, optimised: Path | None, config: Mapping[str, str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's classes of errors share no base of their own.
        name = "the model" if isinstance(model, bytes) else str(model)
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)
        raise ValueError(f"{name}: ONNX Runtime cannot run it: {first}") from error
