"""The state of a training run in one file, tensors and JSON together: both are of one age."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import files

if TYPE_CHECKING:
    from torch import Tensor


def save(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write groups of named tensors and a JSON-able state, aside first, then renamed into place.

    Raises:
        OSError: the folder is missing or full; what the path held before is still there.
    """
    from safetensors.torch import save as to_bytes

    flat = {
        f"{group}/{name}": tensor.detach().contiguous()
        for group, named in tensors.items()
        for name, tensor in named.items()
    }
    files.write(path, to_bytes(flat, {"state": json.dumps(state)}))


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is no checkpoint, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            for key in file.keys():  # noqa: SIM118 (the handle is no dict)
                group, _, name = key.partition("/")
                tensors.setdefault(group, {})[name] = file.get_tensor(key)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: not a readable checkpoint ({error}): remove it to begin anew"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a readable checkpoint: remove it to begin anew")
    return tensors, state
