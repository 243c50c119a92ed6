"""From a torch network to an ONNX file, and quickly to the files of its pruned variants.

The file is self-contained, reads `images` (N, C, H, W) float32 between 0 and 1 with any N (the
network normalises them itself), and gives `logits`. Batch norms are folded into the layers
before them. Opset 18 and IR version 8 run on every ONNX Runtime since 1.14.

torch's exporter takes seconds. A :class:`Template` runs it once and then writes any pruned
variant in milliseconds: the graph is the same, only the tensors differ. The same weights give
the same bytes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from engine import files
from engine.compress.designs import Design
from engine.compress.groups import Group
from engine.compress.inference import evaluating, session
from engine.compress.prune import prune

if TYPE_CHECKING:
    from torch import Tensor, nn

_ENTRY = "template"  # the entry of a kept template's metadata
OPSET = 18
IR_VERSION = 8
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """An ONNX file."""

    path: Path
    digest: str
    """SHA-256 of the file, lower-case hex."""
    bytes: int
    difference: float | None = None
    """Largest difference from torch, relative to the largest logit; None where not compared."""


@dataclass(frozen=True)
class _Folded:
    """Where a layer's batch norm, which the exporter folds into it, comes from."""

    bias: str | None
    scale: str | None
    shift: str | None
    mean: str
    variance: str
    epsilon: float
    axis: int


@dataclass(frozen=True)
class _Moved:
    """A tensor that the exporter wrote with its axes in another order or of another number."""

    tensor: str
    transposed: bool
    """Whether the axes of a matrix are swapped."""
    gone: tuple[int, ...]
    """Axes of length 1 that were taken out."""
    new: tuple[int, ...]
    """Axes of length 1 that were put in then."""


def export(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    tolerance: float = TOLERANCE,
    template: Template | None = None,
) -> Exported:
    """Write a network as ONNX and compare the file with torch through ONNX Runtime.

    Args:
        model: the network; it is left as it was.
        example: an input (N, C, H, W); compared on it, and on its first image alone.
        path: the file to write, replaced only when all went well.
        tolerance: the largest allowed difference, relative to the largest logit.
        template: of this network, or of one that it was pruned from; None: torch exports it.

    Raises:
        ValueError: torch cannot export the network, the template is another's, or the two differ
            by more than that.
    """
    template = template or Template(model, example, tolerance=tolerance)
    data = template.build(model)
    difference = parity(data, model, example, tolerance)
    return write_file(data, Path(path), difference)


def known(path: str | Path) -> Exported:
    """Return a file that is there already.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    return Exported(Path(path), hashlib.sha256(data).hexdigest(), len(data))


class Template:
    """A network exported once, ready to write its pruned variants.

    It pickles, so workers need not export again.

    Args:
        model: the unpruned network; it is left as it was.
        example: an input (N, C, H, W).
        groups: its dependency groups; where given, a strongly pruned variant is compared too.
        tolerance: the largest difference from torch, relative to the largest logit.

    Raises:
        ValueError: torch cannot export the network, or what the template writes differs from it.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        groups: Sequence[Group] = (),
        tolerance: float = TOLERANCE,
    ) -> None:
        proto, self._folded, self._moved = _convert(model, example)
        known = {*dict(_tensors(model)), *self._moved}
        self._skeleton, self._constants = _clean(proto, known)
        self._check(model, example, groups, tolerance)

    @classmethod
    def kept(
        cls,
        folder: Path,
        name: str,
        model: nn.Module,
        example: Tensor,
        groups: Sequence[Group] = (),
        tolerance: float = TOLERANCE,
    ) -> Template:
        """Return the template that a folder keeps of a network, or make it and keep it there.

        What is kept is compared with the network as a new one is; where they differ, as after a
        change of the network's code, it is made anew.

        Args:
            folder: of templates; it is made where it is missing.
            name: of the network; others of its tensors may compute something else.
            model, example, groups, tolerance: as for a new one.

        Raises:
            ValueError: as for a new one.
        """
        path = folder / f"{_key(name, model, example)}.onnx"
        template = cls.__new__(cls)
        try:
            template._read(path.read_bytes())
            template._check(model, example, groups, tolerance)
        except Exception:  # whatever is wrong with the file, a new one is right
            template = cls(model, example, groups, tolerance)
            with suppress(OSError):  # else it is made once more the next time
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                files.write(path, template._bytes())
        return template

    def _bytes(self) -> bytes:
        """Return all it knows as an ONNX file without weights."""
        proto = onnx.ModelProto()
        proto.ParseFromString(self._skeleton)
        for initializer in proto.graph.initializer:
            if initializer.name not in self._constants:
                initializer.ClearField("raw_data")
        rest = {
            "constants": sorted(self._constants),
            "folded": {name: asdict(one) for name, one in self._folded.items()},
            "moved": {name: asdict(one) for name, one in self._moved.items()},
        }
        proto.metadata_props.add(key=_ENTRY, value=json.dumps(rest))
        data: bytes = proto.SerializeToString(deterministic=True)
        return data

    def _read(self, data: bytes) -> None:
        """Fill a template with what `_bytes` gave; anything may be raised where it did not."""
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
        rest = json.loads({entry.key: entry.value for entry in proto.metadata_props}[_ENTRY])
        del proto.metadata_props[:]
        self._skeleton = proto.SerializeToString(deterministic=True)
        self._constants = frozenset(rest["constants"])
        self._folded = {name: _Folded(**one) for name, one in rest["folded"].items()}
        self._moved = {
            name: _Moved(one["tensor"], one["transposed"], tuple(one["gone"]), tuple(one["new"]))
            for name, one in rest["moved"].items()
        }

    def _check(
        self, model: nn.Module, example: Tensor, groups: Sequence[Group], tolerance: float
    ) -> None:
        """Raise a ValueError where what it writes differs from torch."""
        variants = [model]
        if groups:
            third = Design(tuple(tuple(range(0, g.channels, 3)) for g in groups))
            variants.append(prune(model, groups, third))
        for variant in variants:
            parity(self.build(variant), variant, example, tolerance)

    def build(self, model: nn.Module) -> bytes:
        """Return the ONNX file of the network, or of a pruned variant, as bytes.

        Raises:
            ValueError: the network is no variant of the template's.
        """
        proto = onnx.ModelProto()
        proto.ParseFromString(self._skeleton)
        tensors = {name: t.detach().numpy() for name, t in _tensors(model)}
        rows: dict[str, int] = {}
        for initializer in proto.graph.initializer:
            if initializer.name in self._constants:
                continue
            try:
                value = self._value(initializer.name, tensors)
            except (KeyError, ValueError) as error:
                raise ValueError(f"the network is no variant of the template's: {error}") from error
            initializer.dims[:] = value.shape
            initializer.raw_data = np.ascontiguousarray(value).tobytes()
            rows[initializer.name] = value.shape[0] if value.ndim else 0
        for node in proto.graph.node:
            if node.op_type == "Conv":
                _set_depthwise(node, rows)
        data: bytes = proto.SerializeToString(deterministic=True)
        return data

    def write(self, model: nn.Module, path: str | Path) -> Exported:
        """Write the network, or a pruned variant, as an ONNX file, without comparing it.

        Raises:
            ValueError: the network is no variant of the template's.
        """
        return write_file(self.build(model), Path(path))

    def _value(self, name: str, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if name in self._folded:
            folded = self._folded[name]
            scale, _ = _affine(folded, tensors)
            weight = tensors[name]
            shape = [1] * weight.ndim
            shape[folded.axis] = -1
            return (weight * scale.reshape(shape)).astype(weight.dtype)
        for weight_name, folded in self._folded.items():
            if name in (folded.bias, f"{weight_name}_bias"):
                scale, shift = _affine(folded, tensors)
                bias = tensors[folded.bias] if folded.bias else 0.0
                return (bias * scale + shift).astype(tensors[weight_name].dtype)
        if name in self._moved:
            moved = self._moved[name]
            value = tensors[moved.tensor]
            value = (value.T if moved.transposed else value).squeeze(moved.gone)
            return np.expand_dims(value, moved.new)
        return tensors[name]


def _key(name: str, model: nn.Module, example: Tensor) -> str:
    """Return what tells a network's template from others' in a folder."""
    import torch

    shapes = [(tensor_name, tuple(tensor.shape)) for tensor_name, tensor in _tensors(model)]
    makers = [torch.__version__, *(version(one) for one in ("hdap-tui", "onnxscript"))]
    told = repr((name, shapes, tuple(example.shape), makers, OPSET, IR_VERSION))
    return hashlib.sha256(told.encode()).hexdigest()


def parity(
    file: bytes | str | Path, model: nn.Module, example: Tensor, tolerance: float = TOLERANCE
) -> float:
    """Compare an ONNX file with torch; return the largest difference relative to the logits.

    Raises:
        ValueError: it is larger than the tolerance, or the file does not run.
    """
    import torch

    runtime = session(file)
    worst = 0.0
    for images in (example, example[:1]):
        with evaluating(model), torch.no_grad():
            expected = model(images).numpy()
        (actual,) = runtime.run(None, {runtime.get_inputs()[0].name: images.numpy()})
        if actual.shape != expected.shape:
            raise ValueError(f"ONNX gives {actual.shape} where torch gives {expected.shape}")
        apart = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12)
        worst = max(worst, float(apart)) if np.isfinite(apart) else np.inf
    if worst > tolerance:
        raise ValueError(
            f"ONNX and torch differ by {worst:.2g} of the largest logit, "
            f"more than the tolerance of {tolerance:.2g}"
        )
    return worst


def write_file(data: bytes, path: Path, difference: float | None = None) -> Exported:
    """Write aside and rename, so that the path holds a whole file or what it held before.

    Raises:
        OSError: the folder is missing or full.
    """
    files.write(path, data)
    return Exported(path, hashlib.sha256(data).hexdigest(), len(data), difference)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _affine(
    folded: _Folded, tensors: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and shift of a batch norm at inference, in double precision."""
    mean, variance = (tensors[n].astype(np.float64) for n in (folded.mean, folded.variance))
    scale = 1 / np.sqrt(variance + folded.epsilon)
    if folded.scale is not None:
        scale = scale * tensors[folded.scale]
    shift = -mean * scale
    if folded.shift is not None:
        shift = shift + tensors[folded.shift]
    return scale, shift


def _convert(
    model: nn.Module, example: Tensor
) -> tuple[onnx.ModelProto, dict[str, _Folded], dict[str, _Moved]]:
    """Run torch's exporter on a copy whose tensors all differ, so that it merges none."""
    import torch

    from engine.compress.unstructured import refuse_masks

    refuse_masks(model)
    twin = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, tensor in _tensors(twin):
            if tensor.is_floating_point():
                tensor.add_(0.01 * torch.rand(tensor.shape, generator=generator))
    try:
        with _quiet():
            program = torch.onnx.export(
                twin,
                (example,),
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: "batch"},),
                input_names=["images"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:
        # The exporter raises many classes; the innermost cause tells what it could not do.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise ValueError(f"torch cannot export the network: {first}") from error
    if program is None:
        raise ValueError("torch cannot export the network")
    proto: onnx.ModelProto = program.model_proto
    return proto, _folds(program.exported_program), _moves(proto, dict(_tensors(twin)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's remarks about packages and graphs; its errors come as such."""
    # Those without a level of their own follow the packages'; setting each level takes its time.
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    loggers += [
        logger
        for name, logger in list(logging.root.manager.loggerDict.items())  # others may add some
        if name.startswith(("torch.", "onnxscript.", "onnx_ir."))
        and isinstance(logger, logging.Logger)
        and logger.level
    ]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _folds(program: Any) -> dict[str, _Folded]:
    """Read from the exported program which batch norm follows which layer, by tensor names."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def key(node: Any) -> str | None:
        return names.get(getattr(node, "name", None))

    found = {}
    for node in program.graph.nodes:
        if "batch_norm" not in str(node.target):
            continue
        layer = node.args[0]
        target = str(getattr(layer, "target", ""))
        if not ("conv" in target or "linear" in target) or len(layer.users) != 1:
            continue
        weight, mean, variance = key(layer.args[1]), key(node.args[3]), key(node.args[4])
        if weight is None or mean is None or variance is None:
            continue
        bias = key(layer.args[2]) if len(layer.args) > 2 else None
        axis = 1 if "transpose" in target else 0
        epsilon = float(node.args[-1])
        found[weight] = _Folded(
            bias, key(node.args[1]), key(node.args[2]), mean, variance, epsilon, axis
        )
    return found


def _moves(proto: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> dict[str, _Moved]:
    """Find constants that hold a tensor's numbers in another shape: all tensors differ."""

    def digest(value: NDArray[Any]) -> bytes:
        return hashlib.sha256(value.tobytes()).digest()

    known = {}
    for name, tensor in tensors.items():
        value = tensor.detach().numpy()
        known[digest(value)] = name, False
        if value.ndim == 2:
            known.setdefault(digest(value.T), (name, True))
    found = {}
    for initializer in proto.graph.initializer:
        if initializer.name in tensors or initializer.data_type != onnx.TensorProto.FLOAT:
            continue
        value = onnx.numpy_helper.to_array(initializer)
        name, transposed = known.get(digest(value), ("", False))
        if not name:
            continue
        shape = tensors[name].shape[::-1] if transposed else tensors[name].shape
        gone, new = (
            tuple(i for i, length in enumerate(lengths) if length == 1)
            for lengths in (shape, value.shape)
        )
        if [n for n in shape if n != 1] == [n for n in value.shape if n != 1]:
            found[initializer.name] = _Moved(name, transposed, gone, new)
    return found


def _clean(proto: onnx.ModelProto, known: set[str]) -> tuple[bytes, frozenset[str]]:
    """Drop what belongs to one variant or one machine; return the rest and its constants' names.

    Traces of source files, fixed shapes between layers, and numbers of channels in reshapes.
    """
    graph = proto.graph
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    constants = {n: v for n, v in constants.items() if n not in known and not n.endswith("_bias")}
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and len(shape) == 2 and shape[0] in (0, -1):
            del node.input[1:], node.attribute[:]
            node.op_type = "Flatten"
            node.attribute.append(onnx.helper.make_attribute("axis", 1))
    _reorder_gelu(graph)
    used = {name for node in graph.node for name in node.input}
    kept = [i for i in graph.initializer if i.name in used]
    for initializer in kept:
        del initializer.metadata_props[:]
        initializer.doc_string = ""
    del graph.initializer[:], graph.value_info[:], graph.metadata_props[:], proto.metadata_props[:]
    graph.initializer.extend(kept)
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    graph.name, graph.doc_string, proto.doc_string = "network", "", ""
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "hdap", ""
    return proto.SerializeToString(deterministic=True), frozenset(constants)


def _reorder_gelu(graph: onnx.GraphProto) -> None:
    """Turn x * (0.5 * (1 + erf)), as torch writes GELU, into (x * (1 + erf)) * 0.5.

    ONNX Runtime makes one operator of the second form, and leaves five of the first.
    """
    halves = {
        i.name
        for i in graph.initializer
        if i.data_type == onnx.TensorProto.FLOAT
        and (value := onnx.numpy_helper.to_array(i)).size == 1
        and value.item() == 0.5
    }
    writer = {output: node for node in graph.node for output in node.output}
    reads = Counter(name for node in graph.node for name in node.input)
    for last in graph.node:
        first = next((writer[n] for n in last.input if n in writer and reads[n] == 1), None)
        if last.op_type != "Mul" or first is None or first.op_type != "Mul":
            continue
        half = next((name for name in first.input if name in halves), None)
        inner = next((name for name in first.input if name not in halves), "")
        grown = writer.get(inner)
        if half is None or grown is None or grown.op_type != "Add":
            continue
        if not any(n in writer and writer[n].op_type == "Erf" for n in grown.input):
            continue
        outer = next(name for name in last.input if name != first.output[0])
        first.input[:] = [outer, inner]
        last.input[:] = [first.output[0], half]


def _set_depthwise(node: onnx.NodeProto, rows: Mapping[str, int]) -> None:
    """A depthwise convolution has as many groups as channels, fewer of both when pruned."""
    for attribute in node.attribute:
        if attribute.name == "group" and attribute.i > 1 and node.input[1] in rows:
            attribute.i = rows[node.input[1]]
