"""Makes the Python of a lab device pretend to be a slower machine.

Python imports this file at every start where its folder is on the path. It loads the emulation
only when a program imports onnxruntime, so any other start costs nothing that can be measured.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing it from typing would cost every start 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

EMULATED = bool(os.environ.get("HDAP_LAB_PROFILE"))
"""Whether this interpreter stretches what onnxruntime does; the runner reports it."""

_TARGET = "onnxruntime.capi.onnxruntime_inference_collection"


class LabFinder:
    """Lets the emulation in as soon as onnxruntime's sessions have been imported."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing but the one module, and hook the end of its execution."""
        if name != _TARGET:
            return None
        sys.meta_path.remove(cls)
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            importlib.import_module("hdap_lab.emulation").install(module.InferenceSession)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if EMULATED:
    sys.meta_path.insert(0, LabFinder)
