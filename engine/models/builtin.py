"""Write a model that comes along as an ONNX file.

    python -m engine.models.builtin resnet20-digits model.onnx
    python -m engine.models.builtin compute probe.onnx

The digest goes to standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.models import SHIPPED, build, load_weights, probes

if TYPE_CHECKING:
    from torch import nn

NAMES = (*SHIPPED, *probes.NAMES)
"""What `write` knows: trained networks and probes."""


def write(name: str, path: str | Path) -> str:
    """Write a built-in model to a file; return its SHA-256 in hex.

    Raises:
        ValueError: there is no such model.
    """
    if name in SHIPPED:
        import torch

        from engine.compress.export import export

        example = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return export(shipped(name), example, path).digest
    if name in probes.NAMES:
        return probes.write(name, path)
    raise ValueError(f"there is no built-in model {name!r}: choose one of {', '.join(NAMES)}")


def shipped(name: str) -> nn.Module:
    """Return a network with the weights that come along, ready to answer.

    Raises:
        ValueError: there are no weights of that name.
    """
    if name not in SHIPPED:
        raise ValueError(f"there are no weights {name!r}: choose one of {', '.join(SHIPPED)}")
    record = json.loads(SHIPPED[name].with_suffix(".json").read_text())
    return load_weights(build(record["network"], record["classes"]), SHIPPED[name]).eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 1 failed)."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.models.builtin",
        description="Write a model that comes along as an ONNX file.",
    )
    parser.add_argument("name", choices=NAMES, help="which model")
    parser.add_argument("path", type=Path, help="the ONNX file to write")
    options = parser.parse_args(arguments)
    try:
        print(write(options.name, options.path))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
