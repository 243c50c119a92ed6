"""`hdap devices import`: what it asks, what it writes, and what it leaves alone."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from hdap_tui.actions.inventory import import_devices
from hdap_tui.config import load
from hdap_tui.context import Context
from hdap_tui.errors import ExitCode, RefusedError, SettingsError
from hdap_tui.inventory.found import Host
from hdap_tui.inventory.writing import save, with_devices
from hdap_tui.reach import targets

FLEET = """\
# my fleet
[fleet]
name = "hall"      # the big one
state = "state"

[ssh]
user = "pi"

[[devices]]
name = "edge-[01:02]"
host = "10.0.0.[1:2]"
tags = ["old"]     # since 2024
# port = 2222

# What is timed.
[[models]]
name = "m"
path = "builtin:compute"
"""
CSV = """\
name,host,port,user,identity,proxy_jump,tags
edge-01,10.0.0.1,,,,,
edge-02,10.9.9.9,,,,,
gate,gate.lab,2222,ops,/keys/gate,,way-in
far,10.1.0.1,,,,ops@gate.lab:2222,
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HDAP_CONFIG", raising=False)
    monkeypatch.delenv("HDAP_STATE", raising=False)
    (tmp_path / "fleet.toml").write_text(FLEET)
    (tmp_path / "hosts.csv").write_text(CSV)
    return tmp_path


def test_devices_are_added_behind_the_others_and_nothing_else_changes(folder: Path) -> None:
    outcome = import_devices(Context(), Path("hosts.csv"), tag="lab,new", yes=True)
    assert outcome.exit_code is ExitCode.DONE
    text = (folder / "fleet.toml").read_text()
    added = """\

[[devices]]
name = "gate"
host = "gate.lab"
port = 2222
user = "ops"
identity = "/keys/gate"
tags = ["way-in", "lab", "new"]

[[devices]]
name = "far"
host = "10.1.0.1"
proxy_jump = "ops@gate.lab:2222"
tags = ["lab", "new"]
"""
    head, tail = FLEET.split("\n# What is timed.")
    assert text == f"{head}{added}\n# What is timed.{tail}"
    assert outcome.data["there"] == []
    assert outcome.data["changed"] == {
        "edge-01": "it lacks the tag lab, new",
        "edge-02": "host is 10.0.0.2, not 10.9.9.9; it lacks the tag lab, new",
    }


def test_what_was_imported_is_reached_as_the_inventory_says(folder: Path) -> None:
    import_devices(Context(), Path("hosts.csv"), yes=True)
    found = {target.name: target for target in targets(load(folder / "fleet.toml"))}
    gate, far = found["gate"], found["far"]
    assert (gate.host, gate.port, gate.user, gate.identity) == (
        "gate.lab", 2222, "ops", Path("/keys/gate"),
    )  # fmt: skip
    assert (far.host, far.user, far.proxy_jump) == ("10.1.0.1", "pi", "ops@gate.lab:2222")


def test_a_second_import_adds_nothing(folder: Path) -> None:
    import_devices(Context(), Path("hosts.csv"), yes=True)
    before = (folder / "fleet.toml").read_bytes()
    outcome = import_devices(Context(), Path("hosts.csv"), yes=False)
    assert (folder / "fleet.toml").read_bytes() == before
    assert outcome.data["there"] == ["edge-01", "gate", "far"]
    assert "0 new, 3 there already, 1 changed (not touched)" in outcome.text


def test_a_dry_run_writes_nothing_and_asks_nobody(folder: Path) -> None:
    outcome = import_devices(Context(), Path("hosts.csv"), dry_run=True)
    assert (folder / "fleet.toml").read_text() == FLEET
    assert [entry["name"] for entry in outcome.data["new"]] == ["gate", "far"]
    assert not outcome.data["written"]


def test_it_asks_with_the_names_and_takes_no_for_an_answer(folder: Path) -> None:
    asked: list[tuple[str, list[str]]] = []

    def confirm(question: str, touched: object) -> bool:
        asked.append((question, list(touched)))  # type: ignore[call-overload]
        return False

    with pytest.raises(RefusedError, match="nothing was added"):
        import_devices(Context(confirm=confirm), Path("hosts.csv"))
    assert asked == [
        (
            f"Add 2 devices to {folder / 'fleet.toml'}?",
            ["gate: ops@gate.lab:2222, key /keys/gate (way-in)",
             "far: 10.1.0.1 via ops@gate.lab:2222"],
        )
    ]  # fmt: skip
    assert (folder / "fleet.toml").read_text() == FLEET


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("g*", ["gate"]),
        ("tag=way-in, far", ["gate", "far"]),
        ("not edge-* and port=2222", ["gate"]),
    ],
)
def test_only_takes_what_a_selector_picks(folder: Path, only: str, names: list[str]) -> None:
    outcome = import_devices(Context(), Path("hosts.csv"), only=only, dry_run=True)
    assert [entry["name"] for entry in outcome.data["new"]] == names


@pytest.mark.parametrize(
    ("only", "sentence"),
    [
        ("gat", 'no device is called "gat"; did you mean "gate"?'),
        ("state=off", "--only: an inventory knows no state, only group, host, name, port, tag, u"),
        ("port=1", "--only: no host matches port=1."),
    ],
)
def test_only_says_what_it_does_not_know(folder: Path, only: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        import_devices(Context(), Path("hosts.csv"), only=only, dry_run=True)
    assert str(caught.value).startswith(sentence)


def test_a_file_that_is_not_there_is_made_for_a_real_fleet(folder: Path) -> None:
    file = folder / "Halle 7" / "fleet.toml"
    import_devices(Context(config=file), Path("hosts.csv"), yes=True)
    settings = load(file)
    assert settings.name == "Halle-7"
    assert [device.name for device in settings.devices] == ["edge-01", "edge-02", "gate", "far"]
    assert not any(device.emulated for device in settings.devices)
    assert file.read_text().startswith("# The fleet that hdap watches.")


def test_what_is_left_out_makes_it_partly(folder: Path) -> None:
    (folder / "hosts.csv").write_text("name,port\na,0\nb,22\n")
    outcome = import_devices(Context(), Path("hosts.csv"), yes=True)
    assert outcome.exit_code is ExitCode.PARTLY
    assert 'hosts.csv:2: "a" has the port "0"' in outcome.text
    assert "b" in {device.name for device in load(folder / "fleet.toml").devices}


def test_a_wrong_settings_file_is_told_and_left_alone(folder: Path) -> None:
    (folder / "fleet.toml").write_text("[fleet\n")
    with pytest.raises(SettingsError, match=r"fleet\.toml:1: not valid TOML"):
        import_devices(Context(), Path("hosts.csv"), yes=True)
    assert (folder / "fleet.toml").read_text() == "[fleet\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a remark",
        FLEET,
        FLEET.replace("\n", "\r\n"),
        'devices = [\n  {name = "a"},  # first\n]\n[ssh]\nuser = "x"\n',
        "devices = []\n",
        '[[devices]]\nname = "a"',
        '[[devices]]\nname = "a"\ntags = [\n  "x",\n  # more\n]\n\n\n# end\n',
        '[[devices]]\nname = "a"\n[ssh]\nuser = "x"\n[[devices]]\nname = "b"\n# b ends\n[lab]\n',
        'fleet = {name = "x"}\n[[ devices ]]\nname = "a"\n',
    ],
)
def test_comments_order_and_line_ends_stay(tmp_path: Path, text: str) -> None:
    hosts = [Host(name="new-1", host='h"\\x', tags=("t",)), Host(name="new-2", port=2)]
    hosts[0] = Host(name="new-1", host="10.0.0.1", user='o"d\\d', tags=("t",))
    file = tmp_path / "fleet.toml"
    before = text.encode()
    file.write_bytes(before)
    devices = [device.name for device in load(file).devices]
    after = with_devices(text, hosts)
    save(file, after, before)
    again = load(file).devices
    assert [device.name for device in again] == [*devices, "new-1", "new-2"]
    assert again[-2].user == 'o"d\\d'
    kept = iter(after.splitlines())
    assert all(
        line in kept for line in text.splitlines() if line.strip() not in {"", "devices = []"}
    )
    assert ("\r\n" in after) == ("\r\n" in text)
    assert after.count("\r\n") in {0, after.count("\n")}


def test_a_link_to_the_settings_stays_a_link_and_the_mode_stays(folder: Path) -> None:
    real = folder / "real.toml"
    (folder / "fleet.toml").rename(real)
    real.chmod(0o600)
    (folder / "fleet.toml").symlink_to("real.toml")
    import_devices(Context(), Path("hosts.csv"), yes=True)
    assert (folder / "fleet.toml").is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert 'name = "gate"' in real.read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "fleet.toml",
        "hosts.csv",
        "real.toml",
    ]


def test_what_somebody_else_wrote_meanwhile_is_never_lost(folder: Path) -> None:
    file = folder / "fleet.toml"

    def edit_and_agree(_question: str, _touched: object) -> bool:
        file.write_text(FLEET + "# a new remark\n")
        return True

    with pytest.raises(SettingsError, match="was changed meanwhile; run the command again"):
        import_devices(Context(confirm=edit_and_agree), Path("hosts.csv"))
    assert file.read_text() == FLEET + "# a new remark\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(folder: Path) -> None:
    folder.chmod(0o500)
    try:
        with pytest.raises(SettingsError, match=r"fleet.toml cannot be written: permission denied"):
            import_devices(Context(), Path("hosts.csv"), yes=True)
    finally:
        folder.chmod(0o700)


def test_readers_find_the_old_or_the_new_settings(folder: Path) -> None:
    file = folder / "fleet.toml"
    stop, counts = threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            counts.add(len(load(file).devices))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(20):
            (folder / "hosts.csv").write_text(f"name\nx-{number}\n")
            import_devices(Context(), Path("hosts.csv"), yes=True)
    finally:
        stop.set()
        reader.join()
    assert counts <= set(range(2, 23))
