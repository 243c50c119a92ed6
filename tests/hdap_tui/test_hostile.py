"""Devices that lie, babble or lack what others have: real servers, each strange in its own way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from left_over import nothing_left
from operating import QUICK, Ended, errors, hdap, listed, make_models
from sshd import Sshd, fleet_toml

from hdap_tui.config import load
from hdap_tui.errors import ExitCode

PYTHON = """#!{python}
# Stands in for a device's Python: lets the runner work, then changes what it wrote.
import json, os, shutil, subprocess, sys

if len(sys.argv) != 3 or sys.argv[2].startswith("-"):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
runner, job = sys.argv[1:]
honest = job + ".honest"
shutil.copytree(job, honest)
subprocess.run([sys.executable, runner, honest], stderr=subprocess.DEVNULL)
lines = [json.loads(line) for line in open(honest + "/results.jsonl")]
shutil.rmtree(honest)
models = [line["models"] for line in lines if line["event"] == "block"]
entry = next(iter(models[0].values()))
out = None
{change}
with open(job + "/results.jsonl", "wb") as file:
    file.write(out or b"".join(json.dumps(line).encode() + b"\\n" for line in lines))
"""
LIES: dict[str, tuple[str, str]] = {
    # what the device does, how, and the class of error that is to be shown
    "NaN": ("entry['median_ms'] = float('nan')", "garbage"),
    "infinite": ("entry['wall_ms'][0] = float('inf')", "garbage"),
    "negative": ("entry['mean_ms'] = -1", "garbage"),
    "a number as text": ("entry['median_ms'] = '1.5'", "garbage"),
    "a huge number": ("entry['median_ms'] = 10 ** 400", "garbage"),
    "another model": ("models[0]['0' * 64] = models[0].pop(next(iter(models[0])))", "garbage"),
    "a path out": ("models[0]['../../../etc'] = models[0].pop(next(iter(models[0])))", "garbage"),
    "no object": ("models[0].clear(); lines[-1]['models'] = [1]", "garbage"),
    "broken JSON": ('out = b\'{"event": "hello"\'', "failed"),
    "deeply nested": ("out = b'[' * 900000 + b'\\n'", "failed"),
    "a line of 10 MB": ("out = b'A' * 10_000_000 + b'\\n'", "garbage"),
    "random bytes": ("out = os.urandom(100000).replace(b'\\n', b' ') + b'\\n'", "garbage"),
    "nothing": ("sys.exit(0)", "failed"),
    "terminal escapes": (
        "lines[1:] = [dict(event='failed', model=None, error='model', "
        "detail='\\x1b]0;owned\\x07\\x1b[2J\\u202ebad\\x9b6n')]",
        "model",
    ),
    "a clock a year ahead": ("lines[0]['clock'] += 366 * 86400", ""),
    "a clock that is none": ("lines[0]['clock'] = 'today'", ""),
    "strange conditions": (
        "lines[0]['conditions'] = dict(load=[1e308] * 999, a=dict(b=dict(c=dict(d={}))), "
        "**{'\\x1b[31m' + 'k' * 999: '\\x07' * 9999})",
        "",
    ),
    "the truth": ("", ""),
}


@pytest.fixture(scope="module")
def liars(
    make_sshds: Callable[..., list[Sshd]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Sshd], Path]:
    servers = make_sshds(len(LIES), name="liar")
    own = {}
    for server, (change, _) in zip(servers, LIES.values(), strict=True):
        python = server.home / "python"
        python.write_text(PYTHON.replace("{python}", sys.executable).replace("{change}", change))
        python.chmod(0o755)
        own[server.name] = 'python = "~/python"'
    folder = tmp_path_factory.mktemp("liars")
    make_models(folder)
    file = folder / "fleet.toml"
    file.write_text(fleet_toml(servers, folder / "state", sys.executable, QUICK, own))
    return servers, file


@pytest.fixture(scope="module")
def told(liars: tuple[list[Sshd], Path]) -> tuple[Ended, dict[str, dict[str, Any]]]:
    """One benchmark of all of them, and what is shown after it."""
    servers, file = liars
    with nothing_left(servers=servers, state=load(file).state_dir):
        ended = hdap(file, "bench", "tiny")
    return ended, listed(file)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_shown_as_what_it_is_and_costs_only_its_device(
    told: tuple[Ended, dict[str, dict[str, Any]]], lie: str
) -> None:
    ended, shown = told
    name = f"liar-{list(LIES).index(lie) + 1}"
    error = LIES[lie][1]
    assert errors(ended)[name] == error, shown[name]
    assert shown[name]["error"] == error
    assert shown[name]["state"] == ("failed" if error else "ok")
    assert shown[name]["detail"].isprintable()
    assert bool(shown[name]["detail"]) == bool(error)
    one = next(found for found in ended.data["measurements"] if found["device"] == name)
    assert (one["median_ms"] is not None and one["median_ms"] > 0) == (not error)
    assert one["at"][:4] == ended.data["measurements"][-1]["at"][:4]


def test_the_fleet_is_told_to_be_done_in_part(told: tuple[Ended, dict[str, Any]]) -> None:
    assert told[0].status == ExitCode.PARTLY
