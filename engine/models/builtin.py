"""Write a model that comes along as ONNX: `python -m engine.models.builtin NAME PATH`."""

from __future__ import annotations

import sys
from pathlib import Path

NETWORKS = {"resnet20-digits": "resnet20"}
"""Shipped weights, and the network that they belong to."""


def write(name: str, path: Path) -> str:
    """Write a probe, or a network with its shipped weights; return the file's SHA-256.

    Raises:
        ValueError: nothing of that name comes along.
    """
    from engine.models import probes

    if name in probes.NAMES:
        return probes.write(name, path)
    if name not in NETWORKS:
        known = ", ".join((*NETWORKS, *probes.NAMES))
        raise ValueError(f"no model {name!r} comes along: choose one of {known}")
    import torch

    from engine.compress.export import export
    from engine.models import SHIPPED, build, load_weights

    model = load_weights(build(NETWORKS[name]), SHIPPED[name]).eval()
    return export(model, torch.rand(2, 3, 32, 32), path).digest


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
