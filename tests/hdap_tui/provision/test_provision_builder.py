"""The program that builds an environment on a device, run here."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wheels import make_wheel

from hdap_tui.provision import builder

PLAN, OTHER = "0123456789abcdef", "fedcba9876543210"
GOOD_RUNNER = "print('{\"ok\": true}')"
Build = Callable[..., dict[str, Any]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / ".hdap"
    (folder / "runner").mkdir(parents=True)
    (folder / "runner" / "r.py").write_text(GOOD_RUNNER)
    return folder


@pytest.fixture
def build(root: Path) -> Build:
    """Run it on wheels, as a device does; returns its answer and the stages before it."""

    def run(*wheels: Path, plan: str = PLAN, **changes: Any) -> dict[str, Any]:
        request = {
            "plan": plan, "wheels": [str(one) for one in wheels], "runner": "runner/r.py",
            "python": f"{sys.version_info[0]}.{sys.version_info[1]}", **changes,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-I", builder.__file__, "build", json.dumps(request)],
            env={**os.environ, "HOME": str(root.parent)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        *stages, last = done.stdout.splitlines()
        answer: dict[str, Any] = {**json.loads(last), "stages": stages}
        return answer

    return run


def test_an_environment_has_its_packages_and_nothing_else(
    root: Path, build: Build, tmp_path: Path
) -> None:
    wheel = make_wheel(
        tmp_path, "one",
        files={"one/__init__.py": b"V = 7\n", "one-1.0.data/purelib/two.py": b"V = 8\n",
               "one-1.0.data/scripts/three": b"#!/bin/sh\n"},
    )  # fmt: skip
    answer = build(wheel)
    assert (answer["ok"], answer["stages"]) == (True, ["stage unpacking 1/1", "stage checking"])
    assert os.readlink(root / "environment") == f"environment.{PLAN}"
    code = "import sys, one, two; print(one.V, two.V, sys.prefix, sys.base_prefix != sys.prefix)"
    python = root / "environment" / "bin" / "python"
    said = subprocess.check_output([python, "-c", code], text=True).split()
    assert said == ["7", "8", str(root / "environment"), "True"]
    assert subprocess.run([python, "-c", "import pytest"], capture_output=True).returncode
    assert sorted(path.name for path in root.iterdir()) == [
        "environment", f"environment.{PLAN}", "environment.lock", "runner",
    ]  # fmt: skip


def test_again_it_changes_nothing(root: Path, build: Build, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "one")
    build(wheel)
    before = (root / "environment" / "hdap.json").stat().st_mtime_ns
    assert build(wheel)["stages"] == ["stage checking"]
    assert (root / "environment" / "hdap.json").stat().st_mtime_ns == before


def test_another_plan_takes_the_place_of_the_first(
    root: Path, build: Build, tmp_path: Path
) -> None:
    build(make_wheel(tmp_path, "one"))
    build(make_wheel(tmp_path, "two"), plan=OTHER)
    assert os.readlink(root / "environment") == f"environment.{OTHER}"
    assert not (root / f"environment.{PLAN}").exists()


def test_what_does_not_work_leaves_the_old_one_in_use(
    root: Path, build: Build, tmp_path: Path
) -> None:
    build(make_wheel(tmp_path, "one"))
    (root / "runner" / "r.py").write_text("import sys; sys.exit('no such instruction')")
    answer = build(make_wheel(tmp_path, "two"), plan=OTHER)
    assert answer["why"] == "ONNX Runtime does not work: no such instruction"
    assert os.readlink(root / "environment") == f"environment.{PLAN}"
    assert (root / "environment" / "lib").is_dir()


def test_a_crash_is_told_as_one(root: Path, build: Build, tmp_path: Path) -> None:
    (root / "runner" / "r.py").write_text("import os; os.kill(os.getpid(), 4)")
    assert "crashed while it ran a model (SIGILL)" in build(make_wheel(tmp_path, "one"))["why"]
    assert not (root / "environment").exists()


def test_what_was_cut_off_is_removed_and_made_anew(
    root: Path, build: Build, tmp_path: Path
) -> None:
    (root / "environment.new" / "lib").mkdir(parents=True)
    (root / f"environment.{PLAN}").mkdir()  # without its last file
    (root / "environment.part").symlink_to("nowhere")
    (root / "wheels" / "old").mkdir(parents=True)
    assert build(make_wheel(tmp_path, "one"))["ok"]
    assert sorted(path.name for path in root.iterdir()) == [
        "environment", f"environment.{PLAN}", "environment.lock", "runner",
    ]  # fmt: skip


def test_one_that_was_built_but_not_switched_to_is_only_switched_to(
    root: Path, build: Build, tmp_path: Path
) -> None:
    wheel = make_wheel(tmp_path, "one")
    build(wheel)
    (root / "environment").unlink()
    assert build(wheel)["stages"] == ["stage checking"]
    assert (root / "environment" / "bin" / "python").exists()


def test_one_whose_packages_are_gone_is_built_anew(
    root: Path, build: Build, tmp_path: Path
) -> None:
    (root / "runner" / "r.py").write_text(f"import one\n{GOOD_RUNNER}")
    wheel = make_wheel(tmp_path, "one")
    build(wheel)
    next((root / "environment").glob("lib/*/site-packages/one/__init__.py")).unlink()
    (root / "runner" / "r.py").write_text(f"import one; one.VERSION\n{GOOD_RUNNER}")
    assert build(wheel)["ok"]
    assert list((root / "environment").glob("lib/*/site-packages/one/__init__.py"))


def test_below_a_benchmark_nothing_is_switched(root: Path, build: Build, tmp_path: Path) -> None:
    build(make_wheel(tmp_path, "one"))
    job = root / "jobs" / "job-1"
    job.mkdir(parents=True)
    other = make_wheel(tmp_path, "two")
    with subprocess.Popen(["sh", "-c", "sleep 60; :", str(job)]) as process:
        (job / "pid").write_text(str(process.pid))
        assert "a benchmark runs on it" in build(other, plan=OTHER)["why"]
        assert os.readlink(root / "environment") == f"environment.{PLAN}"
        process.kill()
    assert build(other, plan=OTHER)["stages"] == ["stage checking"]  # it was ready


def test_a_folder_that_is_not_ours_is_left_alone(root: Path, build: Build, tmp_path: Path) -> None:
    (root / "environment").mkdir()
    (root / "environment" / "mine").touch()
    assert "is no link" in build(make_wheel(tmp_path, "one"))["why"]
    assert (root / "environment" / "mine").exists()


def test_another_python_than_planned_is_refused(build: Build, tmp_path: Path) -> None:
    assert "3.1 was expected" in build(make_wheel(tmp_path, "one"), python="3.1")["why"]


@pytest.mark.parametrize("name", ["../evil", "/etc/hdap-evil", "a/../../../../evil", "a\\evil"])
def test_nothing_is_unpacked_outside(root: Path, build: Build, tmp_path: Path, name: str) -> None:
    answer = build(make_wheel(tmp_path, "bad", files={name: b"x"}))
    assert "would leave its folder" in answer["why"]
    assert not list(tmp_path.rglob("evil"))
    assert not Path("/etc/hdap-evil").exists()


def test_a_link_is_not_unpacked(build: Build, tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "bad")
    link = zipfile.ZipInfo("bad/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc")
    assert "would leave its folder" in build(path)["why"]


def test_a_damaged_wheel_is_said_to_be_damaged(build: Build, tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "bad", files={"bad/data": b"x" * 5000})
    path.write_bytes(path.read_bytes()[:3000])
    assert "arrived damaged" in build(path)["why"]


def test_a_missing_folder_is_no_traceback(build: Build, tmp_path: Path) -> None:
    answer = build(tmp_path / "none.whl")
    assert (answer["ok"], answer["gone"]) == (False, True)
    assert "No such file" in answer["why"]
