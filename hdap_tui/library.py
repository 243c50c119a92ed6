"""The fleet's model files: those the settings name, those that come along, those that jobs made."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from engine.files import replacing
from hdap_tui import __version__
from hdap_tui.config import Model, Settings
from hdap_tui.errors import SettingsError, UserError
from hdap_tui.store import models as table
from hdap_tui.store.database import Store
from hdap_tui.store.records import ModelRow


def ensure(settings: Settings, store: Store) -> dict[str, ModelRow]:
    """Make sure that every model of the settings is there as a file, and registered.

    Returns:
        The models by the names that the settings give them.

    Raises:
        SettingsError: a file is missing, or is no ONNX model.
    """
    return {
        model.name: _register(store, model, _file(settings, model)) for model in settings.models
    }


def from_file(store: Store, path: Path) -> ModelRow:
    """Register an ONNX file that the operator named by its path.

    Raises:
        SettingsError: it is missing, or is no ONNX model.
    """
    path, name = path.absolute(), path.stem
    taken = table.by_name(store, name)
    if taken is not None and path.is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if taken.digest != digest:
            name = f"{name}@{digest[:8]}"  # the name is another model's, and stays so
    return _register(store, Model(name=name, builtin="", path=path, probe=False), path)


def check_onnx(path: Path, what: str) -> None:
    """Make sure that a file is an ONNX model with an input and an output.

    Raises:
        SettingsError: it is not; the sentence says so.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf has an exception of its own for every broken byte
        raise SettingsError(f"{what}: {path} is not an ONNX model.") from error
    if not graph.node or not graph.output:
        raise SettingsError(f"{what}: {path} is not an ONNX model: it computes nothing.")


def interface(path: Path) -> tuple[list[object], list[object]]:
    """Return a model's inputs (name, type, shape) and outputs (type, shape).

    Two models with equal ones can take each other's place. Sizes that may vary have no number.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {one.name for one in graph.initializer}

    def shape(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | None, ...]]:
        tensor = value.type.tensor_type
        sizes = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        return tensor.elem_type, tuple(sizes)

    inputs: list[object] = [(v.name, *shape(v)) for v in graph.input if v.name not in weights]
    return inputs, [shape(v) for v in graph.output]


def _register(store: Store, model: Model, path: Path) -> ModelRow:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SettingsError(
            f'model "{model.name}": there is no file {path} that can be read.'
        ) from error
    known = table.by_digest(store, digest)
    if known is not None and known.path == str(path):
        return known
    check_onnx(path, f'model "{model.name}"')
    return table.add(
        store,
        name=model.name,
        digest=digest,
        path=path,
        kind="probe" if model.probe else "model",
        size=path.stat().st_size,
    )


def _file(settings: Settings, model: Model) -> Path:
    if not model.builtin:
        assert model.path is not None
        return model.path
    folder = settings.state_dir / "builtin"
    path = folder / f"{model.builtin}-{__version__}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make(model.builtin, path)
    return path


def _make(name: str, path: Path) -> None:
    """Write a model that comes along, in a process of its own: torch stays out of this one."""
    with replacing(path) as aside:
        done = subprocess.run(
            [sys.executable, "-m", "engine.models.builtin", name, str(aside)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"The model {name} that comes along could not be written: {last}")
