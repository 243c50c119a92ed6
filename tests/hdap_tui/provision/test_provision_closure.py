"""What belongs to ONNX Runtime, out of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version
from wheels import make_wheel

from hdap_tui.provision.closure import LackingError, closure
from hdap_tui.provision.fitting import Interpreter
from hdap_tui.provision.wheels import in_folder

PI = Interpreter("/usr/bin/python3.11", (3, 11, 2), "cp311", 64, "aarch64", "glibc 2.36")
ARM, INTEL = "cp311-cp311-manylinux_2_28_aarch64", "cp311-cp311-manylinux_2_28_x86_64"


def chosen(folder: Path, version: str | None = None) -> list[str]:
    found = closure(in_folder(folder), PI, Version(version) if version else None)
    return [f"{one.name} {one.version}" for one in found]


def test_the_newest_that_fits_comes_with_all_that_it_needs(tmp_path: Path) -> None:
    for version in ("1.20", "1.22"):
        make_wheel(tmp_path, "onnxruntime", version, ARM, requires=["numpy>=2", "Flat_Buffers"])
    make_wheel(tmp_path, "onnxruntime", "1.23", INTEL, requires=["numpy>=2"])
    for version in ("1.9", "2.1", "2.10"):
        make_wheel(tmp_path, "numpy", version, ARM)
    make_wheel(tmp_path, "flat_buffers", "25", "py2.py3-none-any")
    make_wheel(tmp_path, "unrelated")
    assert chosen(tmp_path) == ["flat-buffers 25", "numpy 2.10", "onnxruntime 1.22"]
    assert chosen(tmp_path, "1.20")[-1] == "onnxruntime 1.20"


def test_only_requirements_of_that_device_count(tmp_path: Path) -> None:
    make_wheel(
        tmp_path, "onnxruntime", tag=ARM,
        requires=['one; platform_machine == "aarch64"', 'two; python_version < "3.10"',
                  'three; extra == "tools"', 'four; sys_platform == "win32"'],
    )  # fmt: skip
    make_wheel(tmp_path, "one")
    assert chosen(tmp_path) == ["one 1.0", "onnxruntime 1.0"]


def test_a_later_limit_takes_an_earlier_choice_back(tmp_path: Path) -> None:
    make_wheel(tmp_path, "onnxruntime", tag=ARM, requires=["numpy", "picky"])
    make_wheel(tmp_path, "numpy", "1.26", ARM)
    make_wheel(tmp_path, "numpy", "2.4", ARM)
    make_wheel(tmp_path, "picky", requires=["numpy<2"])
    assert chosen(tmp_path) == ["numpy 1.26", "onnxruntime 1.0", "picky 1.0"]


def test_wheels_that_need_each_other_are_no_trap(tmp_path: Path) -> None:
    make_wheel(tmp_path, "onnxruntime", tag=ARM, requires=["one"])
    make_wheel(tmp_path, "one", requires=["two"])
    make_wheel(tmp_path, "two", requires=["one", "onnxruntime"])
    assert chosen(tmp_path) == ["one 1.0", "onnxruntime 1.0", "two 1.0"]


def test_a_wheel_for_another_architecture_is_named_beside_what_is_needed(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "onnxruntime", "1.31", INTEL)
    with pytest.raises(LackingError) as caught:
        chosen(tmp_path)
    assert path.name in str(caught.value)
    assert "the device needs Python 3.11, glibc 2.36, aarch64" in str(caught.value)


def test_a_wheel_that_is_not_there_is_named_with_who_needs_it(tmp_path: Path) -> None:
    make_wheel(tmp_path, "onnxruntime", tag=ARM, requires=["numpy>=1.21"])
    with pytest.raises(LackingError, match=r"no wheel of numpy>=1.21, which onnxruntime needs"):
        chosen(tmp_path)
    make_wheel(tmp_path, "numpy", "1.20", ARM)
    with pytest.raises(LackingError, match=r"numpy 1.20 .* but >=1.21 is needed by onnxruntime"):
        chosen(tmp_path)


def test_a_version_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    make_wheel(tmp_path, "onnxruntime", "1.22", ARM)
    with pytest.raises(LackingError, match=r"onnxruntime 1.22 .* but ==9.9 is needed"):
        chosen(tmp_path, "9.9")


def test_a_wheel_that_wants_a_newer_python_is_passed_over(tmp_path: Path) -> None:
    make_wheel(tmp_path, "onnxruntime", "1.2", "py3-none-any", python=">=3.12")
    make_wheel(tmp_path, "onnxruntime", "1.1", "py3-none-any", python=">=3.8")
    assert chosen(tmp_path) == ["onnxruntime 1.1"]
