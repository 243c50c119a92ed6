"""What is planned for a device, and the sentence where nothing can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from wheels import make_wheel

from hdap_tui.provision.fitting import Interpreter
from hdap_tui.provision.planning import Plan, Shelf, make_plan
from hdap_tui.provision.survey import Survey
from hdap_tui.ssh.target import Target

NEW = Interpreter("/usr/bin/python3.13", (3, 13, 1), "cp313", 64, "aarch64", "glibc 2.36")
PI = Interpreter("/usr/bin/python3.11", (3, 11, 2), "cp311", 64, "aarch64", "glibc 2.36")
BARE = Survey(interpreters=(NEW, PI), free=10**10, used={"python": "3.11.2"})
FULL = replace(BARE, used={"python": "3.11.2", "onnxruntime": "1.20.0", "numpy": "2.4.6"})
Make = Callable[..., Plan]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    folder = tmp_path / "wheels"
    tag = "cp311-cp311-manylinux_2_28_aarch64"
    make_wheel(folder, "onnxruntime", "1.22", tag, requires=["numpy"])
    make_wheel(folder, "numpy", "2.4")
    return Shelf(tmp_path / "cache", folder)


@pytest.fixture
def make(shelf: Shelf, tmp_path: Path) -> Make:
    def plan(found: Survey, wrong: str = "", **changes: Any) -> Plan:
        target = Target(
            name="edge-1", host="edge-1", known_hosts=tmp_path / "known_hosts", user="pi", **changes
        )
        return make_plan(target, found, shelf, lambda: wrong)

    return plan


def test_the_newest_python_that_wheels_exist_for_is_taken(make: Make) -> None:
    plan = make(BARE)
    assert (plan.state, plan.interpreter) == ("todo", PI)
    assert plan.chosen is not None
    assert plan.push == sum(wheel.path.stat().st_size for wheel in plan.chosen.wheels)
    assert plan.needed > plan.push + plan.chosen.unpacked


def test_only_what_is_not_there_is_sent(make: Make) -> None:
    there = make(BARE).missing[0]
    plan = make(replace(BARE, wheels=frozenset({there.name})))
    assert [payload.path.name.partition("-")[0] for payload in plan.missing] == ["onnxruntime"]


def test_the_same_environment_has_the_same_name(make: Make) -> None:
    assert make(BARE).digest == make(replace(BARE, free=9 * 10**9)).digest
    other = replace(PI, path="/opt/python/bin/python3.11")
    assert make(BARE).digest != make(replace(BARE, interpreters=(other,))).digest


def test_an_environment_that_works_is_left_as_it_is(make: Make) -> None:
    built = replace(BARE, environment=make(BARE).digest)
    assert make(built).state == "ready"
    assert make(built, wrong="it is broken").state == "todo"


def test_a_python_that_has_all_is_left_as_it_is(make: Make, shelf: Shelf) -> None:
    plan = make(FULL)
    assert (plan.state, plan.detail) == ("ready", "its python3 has ONNX Runtime 1.20.0 already")
    assert make(FULL, wrong="ONNX Runtime does not work").state == "todo"
    shelf.version = Version("1.22")
    assert make(FULL).state == "todo"


def test_a_python_in_the_settings_is_used_or_complained_of(make: Make) -> None:
    assert make(FULL, python="/opt/python").state == "ready"
    plan = make(BARE, python="/opt/python")
    assert plan.state == "lacking"
    assert 'python = "/opt/python", which has no numpy and no onnxruntime' in plan.detail
    assert "does not run" in make(replace(BARE, used={}), python="/opt/python").detail


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (replace(BARE, interpreters=()), "no Python 3 that was found"),
        (replace(BARE, interpreters=(replace(PI, version=(3, 6, 9)),)), "Python is 3.6"),
        (replace(BARE, interpreters=(NEW,)), "the device needs Python 3.13, glibc 2.36, aarch64"),
        (replace(BARE, interpreters=(replace(PI, libc="musl 1.2"),)), "needs Python 3.11, musl"),
        (replace(BARE, interpreters=(replace(PI, libc="glibc 2.27"),)), "glibc 2.27"),
        (replace(BARE, free=10**6), "its disk is too full: 67 MB are needed"),
        (replace(BARE, environment="?"), "not one that hdap built"),
        (replace(BARE, read_only="/home/pi"), "/home/pi cannot be written to by pi"),
        (replace(BARE, running=("job-1",)), "a benchmark runs on it"),
    ],
)
def test_what_is_in_the_way_is_said(make: Make, found: Survey, said: str) -> None:
    plan = make(found)
    assert plan.state == "lacking"
    assert said in plan.detail


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (replace(PI, libc="musl 1.2"), "published for glibc only"),
        (replace(PI, bits=32), "its system is 32-bit"),
        (replace(PI, libc=""), "its C library is unknown"),
    ],
)
def test_without_a_folder_what_pypi_cannot_have_is_not_asked_for(
    make: Make, shelf: Shelf, one: Interpreter, said: str
) -> None:
    shelf.folder = None
    plan = make(replace(BARE, interpreters=(one,)))
    assert (plan.state, said in plan.detail) == ("lacking", True)


def test_a_damaged_wheel_is_told_of_before_anything_is_sent(make: Make, shelf: Shelf) -> None:
    assert shelf.folder is not None
    other = {"numpy/data": "numpy/data,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0"}
    make_wheel(shelf.folder, "numpy", "2.5", files={"numpy/data": b"x"}, record=other)
    plan = make(BARE)
    assert plan.state == "lacking"
    assert "numpy-2.5-py3-none-any.whl is damaged" in plan.detail
