"""Wheels by pip: from an index in a folder, into a cache, and what is said where there are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from packaging.version import Version
from wheels import make_wheel

from hdap_tui.provision import downloading
from hdap_tui.provision.closure import LackingError
from hdap_tui.provision.downloading import download
from hdap_tui.provision.fitting import Interpreter
from hdap_tui.provision.wheels import Wheel
from hdap_tui.ssh.errors import Cancelled

PI = Interpreter("/usr/bin/python3.11", (3, 11, 2), "cp311", 64, "aarch64", "glibc 2.36")
OLD = Interpreter("/usr/bin/python3.8", (3, 8, 10), "cp38", 64, "aarch64", "glibc 2.31")


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only index that pip knows: a folder with 1.22 for 3.11 and 1.19 for 3.8."""
    pytest.importorskip("pip")
    folder = tmp_path / "index"
    for version, python in (("1.22.0", "cp311"), ("1.19.0", "cp38")):
        tag = f"{python}-{python}-manylinux_2_27_aarch64.manylinux_2_28_aarch64"
        make_wheel(folder / "onnxruntime", "onnxruntime", version, tag, requires=["helper"])
        make_wheel(folder / "onnxruntime", "onnxruntime", version, tag.replace("aarch64", "x86_64"))
    make_wheel(folder / "onnxruntime", "onnxruntime", "1.23.0", "cp312-cp312-linux_x86_64")
    make_wheel(folder / "helper", "helper")
    for project in folder.iterdir():
        links = [f'<a href="{path.name}">{path.name}</a>' for path in project.iterdir()]
        (project / "index.html").write_text("\n".join(links))
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", folder.as_uri())
    return folder


def get(cache: Path, version: str = "1.22.0", interpreter: Interpreter = PI) -> list[Wheel]:
    return download(interpreter, Version(version), cache, lambda: False)


def test_what_fits_the_device_comes_and_is_kept_as_it_came(tmp_path: Path, index: Path) -> None:
    found = get(tmp_path / "cache")
    assert {one.name for one in found} == {"helper", "onnxruntime"}
    assert "aarch64" in next(one for one in found if one.name == "onnxruntime").path.name
    changed = found[0].path
    whole = changed.read_bytes()
    changed.write_bytes(whole[:-1])
    get(tmp_path / "cache")
    assert changed.read_bytes() == whole
    shutil.rmtree(index)
    assert {one.path for one in get(tmp_path / "cache")} == {one.path for one in found}


def test_a_version_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(LackingError, match=r"there is no ONNX Runtime 9.9; 1.22.0 is the newest"):
        get(tmp_path / "cache", "9.9")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_python_too_old_is_told_which_version_still_has_wheels(tmp_path: Path) -> None:
    with pytest.raises(LackingError) as caught:
        get(tmp_path, "1.22.0", OLD)
    assert "1.22.0 has no wheel for Python 3.8, glibc 2.31, aarch64" in str(caught.value)
    assert "--onnxruntime 1.19.0" in str(caught.value)


def test_what_something_else_lacks_is_not_blamed_on_the_runtime(
    tmp_path: Path, index: Path
) -> None:
    shutil.rmtree(index / "helper")
    with pytest.raises(LackingError) as caught:
        get(tmp_path)
    assert "ONNX Runtime 1.22.0 needs helper, which has no wheel" in str(caught.value)


def test_an_index_that_cannot_be_reached_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(downloading, "RETRIES", 1)
    with pytest.raises(LackingError, match=r"cannot be reached .* --wheels"):
        get(tmp_path)


def test_it_ends_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        download(PI, Version("1.22.0"), tmp_path / "cache", lambda: True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_pip_it_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(LackingError, match=r"no pip .* --wheels"):
        get(tmp_path)
