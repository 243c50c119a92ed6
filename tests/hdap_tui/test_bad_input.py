"""What people get wrong: one clear sentence each, and the rest of the fleet goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from operating import QUICK, errors, hdap, listed, make_models
from sshd import Sshd, fleet_toml, make_key

from hdap_tui.cli import diagnostics
from hdap_tui.errors import ExitCode


@dataclass(frozen=True)
class Site:
    """Two good devices and some that the operator got wrong."""

    servers: list[Sshd]
    folder: Path

    def file(self, more: str = "", servers: list[Sshd] | None = None) -> Path:
        """Write a settings file; `more` goes behind the devices."""
        text = fleet_toml(
            servers or self.servers, self.folder / "state", sys.executable, more + QUICK
        )
        path = self.folder / "fleet.toml"
        path.write_text(text)
        return path

    def device(self, name: str, **keys: str) -> str:
        """Return a further device that listens where the first does."""
        keys = {"host": "127.0.0.1"} | keys
        lines = [f'{key} = "{value}"' for key, value in keys.items()]
        port = f"port = {self.servers[0].port}"
        return "\n".join(["[[devices]]", f'name = "{name}"', port, *lines, ""])


@pytest.fixture(scope="module")
def site(make_sshds: Callable[..., list[Sshd]], tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("wrong")
    make_models(folder)
    path = {"SetEnv": "PATH=/usr/bin:/bin"}  # whose Python has no ONNX Runtime
    return Site(make_sshds(2, options={0: path, 1: path}), folder)


def bare_python() -> bool:
    """Whether the system has a Python, and that no ONNX Runtime."""
    python = "/usr/bin/python3"
    asked = [python, "-c", "import onnxruntime"]
    return os.path.exists(python) and subprocess.run(asked, capture_output=True).returncode != 0


def sentence(said: str) -> str:
    """Check that it is one for people, and return it."""
    assert "Traceback" not in said
    assert said.isprintable(), said
    return said


def test_wrong_names_and_keys_cost_only_their_devices(site: Site) -> None:
    locked = make_key(site.folder / "locked", passphrase="secret")
    shutil.copy(site.servers[0].identity, site.folder / "open")
    (site.folder / "open").chmod(0o644)
    (site.folder / "text").write_text("no key at all\n")
    (site.folder / "text").chmod(0o600)
    wrong = {
        "unknown-host": {"host": "no-such-device.invalid"},
        "locked-key": {"identity": str(locked)},
        "open-key": {"identity": str(site.folder / "open")},
        "no-key": {"identity": str(site.folder / "text")},
        "missing-key": {"identity": str(site.folder / "nothing")},
        "other-key": {"identity": str(make_key(site.folder / "other"))},
    }
    file = site.file("".join(site.device(name, **keys) for name, keys in wrong.items()))
    ended = hdap(file, "bench", "tiny")
    assert ended.status == ExitCode.PARTLY
    found, shown = errors(ended), listed(file)
    assert {name for name, error in found.items() if error} == set(wrong)
    said = {name: sentence(shown[name]["detail"]) for name in wrong}
    assert all(name in said[name] for name in wrong)
    assert shown["unknown-host"]["error"] == "unreachable"
    assert "not known" in said["unknown-host"]
    assert {shown[name]["error"] for name in wrong if name.endswith("key")} == {"authentication"}
    assert "is encrypted" in said["locked-key"]
    assert "chmod 600" in said["open-key"]
    for name in ("locked-key", "open-key", "no-key", "missing-key"):
        assert wrong[name]["identity"] in said[name]
    assert {one["state"] for name, one in shown.items() if name not in wrong} == {"ok"}


def test_a_wrong_passphrase_is_told_and_asked_for_again_by_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "wrong"

    monkeypatch.setattr(diagnostics, "secret", answer)
    locked = make_key(site.folder / "locked", passphrase="secret")
    ended = hdap(site.file(site.device("locked-key", identity=str(locked))), "bench", "tiny")
    assert ended.status == ExitCode.PARTLY
    shown = listed(site.file(site.device("locked-key")))["locked-key"]
    assert shown["error"] == "authentication"
    assert "passphrase" in sentence(shown["detail"])
    assert str(locked) in shown["detail"]
    assert asked
    assert len(asked) <= 3
    assert "wrong" not in ended.said.replace("is wrong", "")


def test_a_duplicate_is_named_with_its_line(site: Site) -> None:
    file = site.file(site.device("real-1"))
    ended = hdap(file, "devices", "list")
    assert ended.status == ExitCode.USAGE
    said = sentence(ended.said.strip())
    assert f"{file}:" in said
    assert "real-1" in said


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("reel-1", "real-1"),
        ("tga=orin", "tag"),
        ("state=offf", "off"),
        ("tag=orin and", ""),
        ("(real-1", ""),
    ],
)
def test_a_selector_with_a_typo_says_what_may_have_been_meant(
    site: Site, selector: str, hint: str
) -> None:
    ended = hdap(site.file(), "bench", "tiny", "--select", selector)
    assert ended.status == ExitCode.USAGE, ended
    assert hint in sentence(ended.said.strip())
    assert not hint or "did you mean" in ended.said


def test_a_model_too_new_for_the_runtime_costs_only_itself(site: Site) -> None:
    model = onnx.load(site.folder / "tiny.onnx")
    model.opset_import[0].version = 99
    new = site.folder / "new.onnx"
    new.write_bytes(model.SerializeToString())
    ended = hdap(site.file(), "bench", "tiny", str(new))
    assert ended.status == ExitCode.PARTLY
    by_model = {(one["device"], one["model"]): one for one in ended.data["measurements"]}
    for server in site.servers:
        assert by_model[server.name, "tiny"]["error"] == ""
        assert by_model[server.name, "new"]["error"] == "model"
        assert "opset" in sentence(by_model[server.name, "new"]["detail"]).lower()
    assert {one["state"] for one in listed(site.file()).values()} == {"ok"}


@pytest.mark.skipif(not bare_python(), reason="needs a Python of the system, without ONNX Runtime")
def test_wheels_for_another_machine_are_told_apart(site: Site, tmp_path: Path) -> None:
    for name in ("onnxruntime-1.22.0", "numpy-2.0.0"):
        wheel = tmp_path / f"{name}-cp311-cp311-manylinux_2_28_s390x.whl"
        wheel.write_bytes(b"PK\x05\x06" + b"\0" * 18)
    file = site.file()
    file.write_text(file.read_text().replace(f'python = "{sys.executable}"\n', ""))
    ended = hdap(file, "devices", "provision", "--wheels", str(tmp_path), "--yes")
    assert ended.status == ExitCode.FAILED, ended
    for one in ended.data["devices"]:
        assert os.uname().machine in sentence(one["detail"])
        assert "s390x" in one["detail"]
