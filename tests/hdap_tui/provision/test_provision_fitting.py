"""Which wheels fit which Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from wheels import make_wheel

from hdap_tui.provision.closure import rank
from hdap_tui.provision.fitting import Interpreter, impossible, unfit
from hdap_tui.provision.wheels import Wheel, parsed

PI = Interpreter("/usr/bin/python3.11", (3, 11, 2), "cp311", 64, "aarch64", "glibc 2.36")


def wheel(name: str) -> Wheel:
    found = parsed(Path(name))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl", True),
        ("numpy-2.4.6-cp311-cp311-manylinux2014_aarch64.whl", True),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_37_aarch64.whl", False),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("numpy-2.4.6-cp311-cp311-musllinux_1_2_aarch64.whl", False),
        ("numpy-2.4.6-cp312-cp312-manylinux_2_28_aarch64.whl", False),
        ("numpy-2.4.6-cp311-cp311t-manylinux_2_28_aarch64.whl", False),
        ("protobuf-7.1-cp310-abi3-manylinux2014_aarch64.whl", True),
        ("protobuf-7.1-cp312-abi3-manylinux2014_aarch64.whl", False),
        ("packaging-26.0-py3-none-any.whl", True),
        ("flatbuffers-25.1-py2.py3-none-any.whl", True),
        ("own-1.0-cp311-cp311-linux_aarch64.whl", True),
        ("own-1.0-cp311-cp311-win_arm64.whl", False),
    ],
)
def test_a_wheel_fits_by_version_library_and_processor(name: str, fits: bool) -> None:
    assert (rank(wheel(name), PI) is not None) is fits


def test_an_older_library_takes_fewer_wheels() -> None:
    old = replace(PI, libc="glibc 2.27")
    assert rank(wheel("a-1-cp311-cp311-manylinux_2_28_aarch64.whl"), old) is None
    assert rank(wheel("a-1-cp311-cp311-manylinux_2_27_aarch64.whl"), old) is not None


def test_the_nearest_library_goes_first() -> None:
    near, far = (wheel(f"a-1-cp311-cp311-manylinux_2_{n}_aarch64.whl") for n in (35, 28))
    assert (rank(near, PI) or 0) < (rank(far, PI) or 0)


def test_musl_takes_its_own_wheels() -> None:
    alpine = replace(PI, libc="musl 1.2")
    assert rank(wheel("a-1-cp311-cp311-musllinux_1_1_aarch64.whl"), alpine) is not None
    assert rank(wheel("a-1-cp311-cp311-manylinux_2_17_aarch64.whl"), alpine) is None
    assert "musl 1.2" in impossible(alpine)
    assert "--wheels" in impossible(alpine)


def test_a_free_threaded_python_takes_its_own_wheels() -> None:
    free = replace(PI, version=(3, 13, 1), abi="cp313t")
    assert rank(wheel("a-1-cp313-cp313t-manylinux_2_28_aarch64.whl"), free) is not None
    assert rank(wheel("a-1-cp313-cp313-manylinux_2_28_aarch64.whl"), free) is None


def test_a_32_bit_system_below_a_64_bit_kernel_is_known_as_such() -> None:
    old = replace(PI, bits=32)
    assert old.machine == "armv7l"
    assert "32-bit" in impossible(old)
    assert not impossible(PI)


def test_an_unknown_library_is_said_to_be_unknown() -> None:
    odd = replace(PI, libc="")
    assert "C library is unknown" in impossible(odd)
    assert odd.platforms == ("linux_aarch64",)
    assert "unknown C library" in odd.label


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": (3, 6, 9)}, "its newest Python is 3.6, and the runner needs 3.8"),
        ({"implementation": "pypy"}, "pypy"),
        ({"unpacks": False}, "zipfile or zlib"),
    ],
)
def test_a_python_that_will_not_do_is_said_to_be_so(changes: dict[str, object], said: str) -> None:
    assert said in unfit(replace(PI, **changes))  # type: ignore[arg-type]
    assert not unfit(PI)


def test_names_of_machines_are_those_that_wheels_have(tmp_path: Path) -> None:
    mac = replace(PI, kernel_machine="arm64")
    assert (
        rank(wheel(make_wheel(tmp_path, "a", tag="py3-none-linux_aarch64").name), mac) is not None
    )
