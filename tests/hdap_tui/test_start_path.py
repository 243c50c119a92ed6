"""What a fresh process imports; a static graph cannot prove that a deferred import defers."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "sklearn", "scipy", "textual", "onnxruntime", "onnx", "sqlite_utils", "paramiko"}

LOOK = """
import contextlib, io, json, sys
from hdap_tui.main import _open_dashboard
from hdap_tui.cli.app import run
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    code = run({arguments!r}, _open_dashboard)
print(json.dumps([code, sorted(m for m in sys.modules if "." not in m)]))
"""


def imported(*arguments: str) -> tuple[int, set[str]]:
    script = LOOK.format(arguments=list(arguments))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    code, modules = json.loads(done.stdout)
    return code, set(modules)


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("jobs", "--help"), ("deploy", "--help"), ("config", "check")],
    ids=" ".join,
)
def test_the_start_of_the_command_line_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code, modules = imported(*arguments)
    assert code == 0
    assert "click" in modules, "the probe must really have run the command line"
    assert not modules & HEAVY


def test_a_list_from_the_store_needs_no_network_no_science_and_no_screen() -> None:
    _, modules = imported("jobs", "list", "--json")
    assert not modules & (HEAVY - {"sqlite_utils"})


@pytest.mark.parametrize("package", ["engine", "hdap_tui", "hdap_tui.commands", "hdap_tui.config"])
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    script = f"import json, sys, {package}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    modules = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert package.partition(".")[0] in modules
    assert not modules & HEAVY
