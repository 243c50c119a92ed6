"""Does a device compute what this machine computes?

Both run the model on the same made-up inputs. What comes out differs a little between processors:
floats are summed in another order, and 8-bit arithmetic rounds (without VNNI even saturates)
elsewhere. So the outputs are compared within a tolerance by precision, relative to the output's
own size, and a clear winner of a classification must be the same.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import engine.runner
from engine import files
from hdap_tui.errors import UserError
from hdap_tui.facts import ask_runner
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ROOT
from hdap_tui.ssh.transfer import Payload
from hdap_tui.store.records import ModelRow
from hdap_tui.text import clean

SEEDS = (101, 202, 303)
TOLERANCE = {"float": 0.002, "half": 0.05, "int8": 0.4}
"""How far a value may be off, as a share of the output's root mean square.

Measured (docs/results.md, "Deployment"): more than processors differ by (3e-6 in floats; in int8 up
to 0.24 where one saturates), less than a wrong tensor does (0.04 and more; in int8 about 1.4).
"""
_VERSION = 2
_TIMEOUT_S = 120.0
_QUANTIZED = ("Quantize", "QLinear", "Integer")
_HALF = 10  # onnx.TensorProto.FLOAT16


class Known:
    """What a model computes on this machine."""

    def __init__(self, digest: str, precision: str, runs: list[list[dict[str, Any]]]) -> None:
        self.digest, self.precision, self.runs = digest, precision, runs

    def difference(self, runs: Any) -> str:
        """Return how another machine's outputs differ beyond what is allowed; empty: they do not.

        `runs` comes from a device and may be anything.
        """
        try:
            return self._difference(runs)
        except (TypeError, ValueError, KeyError, IndexError, OverflowError):
            return "what it says of its outputs makes no sense"

    def _difference(self, runs: Sequence[Any]) -> str:
        if len(runs) != len(self.runs):
            raise ValueError
        for ours, theirs in zip(self.runs, runs, strict=True):
            for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
                found = self._output(mine, other)
                if found:
                    return f"output {place} {found}"
        return ""

    def _output(self, mine: Mapping[str, Any], other: Mapping[str, Any]) -> str:
        if other["shape"] != mine["shape"]:
            return "has another shape"
        if "scale" not in mine:
            return ""
        if int(other["not_finite"]) != mine["not_finite"]:
            return "holds values that are no numbers"
        allowed = TOLERANCE[self.precision]
        off = deviation(mine, other)
        if not off <= allowed:
            return f"is off by {100 * off:.2g} % of its size, {100 * allowed:g} % are allowed"
        for (place, lead), (their_place, _) in zip(
            mine.get("top", ()), other.get("top", ()), strict=True
        ):
            if lead > 2 * allowed * mine["scale"] and int(their_place) != place:
                return f"has its largest value at {int(their_place)}, not at {place}"
        return ""


def deviation(mine: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the largest difference of two fingerprints, as a share of the output's size."""
    size = max(float(mine["scale"]), 1e-6)
    worst = 0.0
    for name in ("values", "sums"):
        for a, b in zip(mine[name], other[name], strict=True):
            off = abs(float(a) - float(b)) / size
            worst = math.inf if math.isnan(off) else max(worst, off)
    return worst


def known(model: ModelRow, folder: Path) -> Known:
    """Return what a model computes here: computed once, then kept in `folder`.

    Raises:
        UserError: this machine cannot run the model.
    """
    import onnxruntime

    path = folder / f"{model.digest}-{_VERSION}-{onnxruntime.__version__}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text())
        return Known(model.digest, kept["precision"], list(kept["runs"]))
    # The truth: a processor without VNNI, should this one be so, would let sums saturate.
    answer = engine.runner.check(model.path, SEEDS, exact=True)
    if not answer["ok"]:
        raise UserError(
            f"{model.name} cannot be run on this machine ({clean(answer['detail'], 200)}), so "
            'nobody can tell whether the devices compute it right; "self_test = false" in '
            "[deploy] leaves that out."
        )
    found = Known(model.digest, precision(Path(model.path)), answer["known"])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.write(path, json.dumps({"precision": found.precision, "runs": found.runs}))
    return found


def precision(path: Path) -> str:
    """Return which tolerance a model needs: float, half or int8."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    if any(word in node.op_type for node in graph.node for word in _QUANTIZED):
        return "int8"
    return "half" if any(w.data_type == _HALF for w in graph.initializer) else "float"


def check(connection: Connection, runner: Payload, model: Payload, expected: Known | None) -> None:
    """Have a device load and run a model that has been uploaded, and compare its outputs.

    Raises:
        DeviceError: failed where it cannot load the model, or computes something else.
    """
    where = connection.where
    seeds = map(str, SEEDS if expected else ())
    try:
        answer = ask_runner(
            connection, runner, "--check", f"{ROOT}/{model.name}", *seeds,
            leash=True, timeout=max(_TIMEOUT_S, connection.target.timeouts.command),
        )  # fmt: skip
    except DeviceError as error:
        if error.kind is not ErrorKind.FAILED:
            raise
        why = str(error).removeprefix(f"{where}: a command ended with status 1: ")
        raise DeviceError(
            ErrorKind.FAILED, f"{where}: its ONNX Runtime cannot run the model: {why}"
        ) from error
    try:
        told = json.loads(answer.decode("utf-8", "replace").strip().splitlines()[-1])
        fine, digest, runs = told["ok"] is True, told["digest"], told["known"]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DeviceError(
            ErrorKind.GARBAGE, f"{where}: what it says of the model makes no sense"
        ) from error
    if not fine or digest != model.digest:
        raise DeviceError(ErrorKind.FAILED, f"{where}: it tested another file than the model")
    wrong = expected.difference(runs) if expected else ""
    if wrong:
        raise WrongError(ErrorKind.FAILED, f"{where}: it computes the model wrong: {wrong}")


class WrongError(DeviceError):
    """The device runs the model, but what comes out is not what it should be."""
