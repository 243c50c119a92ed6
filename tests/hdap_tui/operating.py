"""Pieces that tests of a whole fleet share."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine import data
from hdap_tui.cli.app import run
from hdap_tui.lab.control import LabInfo

Hdap = Callable[..., tuple[int, Any, str]]


@dataclass(frozen=True)
class Site:
    """A lab with a settings file and models of its own."""

    lab: LabInfo
    file: Path

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def jobs(self) -> Path:
        return self.lab.state / "jobs"


def caller(site: Site | Path, capsys: pytest.CaptureFixture[str]) -> Hdap:
    """Return what runs a command with --json: exit status, document, standard error."""
    file = site if isinstance(site, Path) else site.file

    def call(*arguments: str) -> tuple[int, Any, str]:
        status = run(["--config", str(file), *arguments, "--json"], lambda _context: 0)
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else None, captured.err

    return call


def network(path: Path, layers: int, note: str = "") -> Path:
    """Write a chain of convolutions that takes longer the more layers it has."""
    generator = np.random.default_rng(7)
    nodes, weights = [], []
    for number in range(layers):
        kernel = generator.normal(0, 0.05, (32, 32, 3, 3)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(kernel, f"w{number}"))
        nodes.append(
            helper.make_node(
                "Conv", [f"x{number}", f"w{number}"], [f"x{number + 1}"], pads=[1, 1, 1, 1]
            )
        )
    shape = ["batch", 32, 24, 24]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, shape)],
        weights,
        doc_string=note,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path)
    return path


QUICK = """
[benchmark]
runs = 5
warmup_runs = 1
warmup_s = 0.0
block_s = 0.05
blocks_min = 1
blocks_max = 1
interval_percent = 1000
time_limit_s = 60
lease_s = 5
[watch]
canary_every_s = 0.05
probe_channels = false
[[models]]
name = "slow"
path = "slow.onnx"
[[models]]
name = "tiny"
path = "tiny.onnx"
probe = true
"""
"""Settings under which a visit takes a second; the models are those of `make_models`."""


JOBS = """
[benchmark]
runs = 10
warmup_runs = 2
warmup_s = 0.0
block_s = 0.03
blocks_min = 1
blocks_max = 1
time_limit_s = 60
[[models]]
name = "resnet20-digits"
path = "builtin:resnet20-digits"
[[models]]
name = "dispatch"
path = "builtin:dispatch"
probe = true
[compression]
data = "few.npz"
"""
"""Settings under which a job takes seconds, with the images of `few_digits`; [compression] may go
on."""


def few_digits(folder: Path) -> Path:
    """Write some of the images that the shipped network reads, as `few.npz`."""
    whole = data.load("digits")
    path = folder / "few.npz"
    np.savez(
        path,
        train_images=whole.train_images[:240],
        train_labels=whole.train_labels[:240],
        test_images=whole.test_images[:64],
        test_labels=whole.test_labels[:64],
    )
    return path


def make_models(folder: Path) -> None:
    """Write the models that QUICK names, and one that can be deployed over the first."""
    folder.mkdir(parents=True, exist_ok=True)
    network(folder / "slow.onnx", layers=16)
    network(folder / "fast.onnx", layers=1)
    network(folder / "tiny.onnx", layers=1, note="a probe")


def on_terminal(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run Python with standard error on a terminal: exit status, standard output, what is drawn."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "TERM"}}
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=slave, stdout=subprocess.PIPE, stderr=slave, text=True,
        env={**kept, "TERM": "xterm-256color", **environ},
    )  # fmt: skip
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the child has closed its side
        while data := os.read(master, 65536):
            shown += data
    output, _ = child.communicate(timeout=30)
    os.close(master)
    return child.returncode, output, shown.decode()


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    status: int
    data: Any
    """The JSON document; None where there is none."""
    said: str
    """Standard error."""


def hdap(file: Path, *arguments: str) -> Ended:
    """Run a command with --json in this process, as the command line would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(["--config", str(file), *arguments, "--json"], lambda _context: 0)
    return Ended(status, json.loads(out.getvalue()) if out.getvalue() else None, err.getvalue())


def listed(file: Path) -> dict[str, dict[str, Any]]:
    """Return what `devices list` says of every device, by its name."""
    return {one["name"]: one for one in hdap(file, "devices", "list").data["devices"]}


def errors(ended: Ended) -> dict[str, str]:
    """Return the class of what went wrong by device, empty for a good measurement."""
    return {one["device"]: one["error"] for one in ended.data["measurements"]}
