import json
import random
import subprocess
import sys
from pathlib import Path

import click
import click.testing
import pytest

from hdap_tui.cli.app import build
from hdap_tui.commands import BY_NAME, COMMANDS, Command, Parameter
from hdap_tui.errors import ExitCode
from hdap_tui.lab.faults import KINDS


def hdap(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "hdap_tui", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=60,
    )


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    (tmp_path / "fleet.toml").write_text(
        '[fleet]\nname = "t"\nstate = "state"\n[[devices]]\nname = "a"\nhost = "127.0.0.1"\n'
    )
    return tmp_path


def verb(command: Command) -> click.Command:
    found: click.Command = build(lambda _context: 0)
    for word in command.name.split():
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_has_a_verb_with_json_a_key_and_something_to_run(command: Command) -> None:
    names = {parameter.name for parameter in verb(command).params}
    assert "as_json" in names
    assert {p.argument for p in command.parameters} <= names
    assert command.key
    assert command.help.endswith(".")
    assert callable(command.load())


@pytest.mark.parametrize(
    ("command", "missing"),
    [(c, p) for c in COMMANDS for p in c.parameters if p.required],
    ids=lambda one: one.name,
)
def test_what_a_command_needs_is_asked_for_where_it_is_missing(
    command: Command, missing: Parameter
) -> None:
    words = []
    for one in command.parameters:
        if one.required and one is not missing:
            value = one.choices[0] if one.choices else "1"
            words += [value] if one.positional else [f"--{one.name}", value]
    with pytest.raises(click.MissingParameter) as caught:
        verb(command).make_context(command.name, words)
    assert caught.value.param is not None
    if not missing.positional:
        assert caught.value.param.name == missing.argument


def test_no_two_commands_share_a_key_or_a_name() -> None:
    assert len({c.key for c in COMMANDS}) == len(COMMANDS)
    assert len({c.name for c in COMMANDS}) == len(COMMANDS)


def test_the_faults_that_can_be_asked_for_are_those_of_the_lab() -> None:
    (kind,) = (p for p in BY_NAME["lab fault"].parameters if p.name == "kind")
    assert kind.choices == KINDS


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_the_help_of_every_command_works(command: Command) -> None:
    done = click.testing.CliRunner().invoke(
        build(lambda _context: 0), [*command.name.split(), "--help"]
    )
    assert done.exit_code == 0
    assert command.help.split()[0] in done.output


def test_data_goes_to_standard_output_as_one_json_document(fleet: Path) -> None:
    done = hdap("config", "show", "--json", cwd=fleet)
    document = json.loads(done.stdout)
    assert done.returncode == ExitCode.DONE
    assert document["schema_version"] == 1
    assert document["devices"][0]["name"] == "a"


def test_a_group_without_a_verb_shows_its_list(fleet: Path) -> None:
    assert json.loads(hdap("jobs", "--json", cwd=fleet).stdout)["jobs"] == []
    assert json.loads(hdap("alerts", "--all", "--json", cwd=fleet).stdout)["alerts"] == []
    wrong = hdap("alerts", "--all", "show", "1", cwd=fleet)
    assert wrong.returncode == ExitCode.USAGE
    assert wrong.stderr.strip() == "hdap: write --all behind alerts show."


def test_a_wrong_key_in_the_file_is_one_sentence_and_exit_status_two(fleet: Path) -> None:
    (fleet / "fleet.toml").write_text("[benchmark]\nbloks_min = 3\n")
    done = hdap("config", "check", cwd=fleet)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "fleet.toml:2" in done.stderr
    assert "bloks_min" in done.stderr
    assert "blocks_min" in done.stderr.replace("bloks_min", "")


def test_an_unknown_option_is_one_sentence_and_exit_status_two(fleet: Path) -> None:
    done = hdap("jobs", "list", "--jsn", cwd=fleet)
    assert done.returncode == ExitCode.USAGE
    assert "Traceback" not in done.stderr


def test_without_a_settings_file_one_is_told_how_to_name_one(tmp_path: Path) -> None:
    done = hdap("config", "check", cwd=tmp_path, HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert "--config" in done.stderr


def test_the_dashboard_refuses_what_is_no_terminal_and_names_the_command_line(fleet: Path) -> None:
    done = hdap(cwd=fleet)
    assert done.returncode == ExitCode.USAGE
    assert "--json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dangerous_command_without_a_terminal_wants_yes(fleet: Path) -> None:
    done = hdap("rollback", cwd=fleet)
    assert done.returncode == ExitCode.REFUSED
    assert "--yes" in done.stderr


def test_doctor_names_what_it_checked(fleet: Path) -> None:
    done = hdap("doctor", "--json", cwd=fleet)
    checks = {c["name"]: c["ok"] for c in json.loads(done.stdout)["checks"]}
    assert {"python", "packages", "settings", "database"} <= set(checks)


def test_without_a_lab_its_devices_are_unreachable_and_one_is_told_how_to_start_it(
    fleet: Path,
) -> None:
    text = (fleet / "fleet.toml").read_text()
    (fleet / "fleet.toml").write_text(text + "emulated = true\n")
    done = hdap("devices", "check", cwd=fleet)
    assert done.returncode == ExitCode.UNREACHABLE
    assert "hdap lab up" in done.stderr


def test_a_table_of_devices_is_clustered_without_a_fleet(tmp_path: Path) -> None:
    (tmp_path / "devices.csv").write_text(
        "device,compute,bandwidth\na,1.0,2.0\nb,1.01,2.02\nc,1.5,2.0\nd,1.52,2.01\ne,1.0,\n"
    )
    done = hdap("clusters", "--input", "devices.csv", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == ExitCode.DONE
    assert document["labels"] == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 0}
    assert [c["size"] for c in document["clusters"]] == [3, 2]
    assert {"schema_version", "eps", "eps_percent", "min_samples"} <= set(document)


def test_the_changes_of_a_series_are_found_without_a_fleet(tmp_path: Path) -> None:
    noise = random.Random(7)
    values = [(10 if n < 30 else 12) * (1 + noise.gauss(0, 0.01)) for n in range(60)]
    rows = "\n".join(f"{n},{value}" for n, value in enumerate(values))
    (tmp_path / "series.csv").write_text(f"time,value\n{rows}\n")
    done = hdap("drift", "--input", "series.csv", "--json", cwd=tmp_path)
    (change,) = json.loads(done.stdout)["changes"]
    assert done.returncode == ExitCode.DONE
    assert (change["kind"], change["direction"], change["onset_index"]) == ("step", "up", 30)
    assert change["size_percent"] == pytest.approx(20, abs=2)


def test_the_devices_of_a_table_are_watched_as_one_fleet(tmp_path: Path) -> None:
    noise = random.Random(7)
    rows = [
        f"{name},{n},{(12.0 if name == 'c' and n >= 30 else 10) * (1 + noise.gauss(0, 0.01))}"
        for n in range(60)
        for name in "abcdef"
    ]
    (tmp_path / "series.csv").write_text("\n".join(["device,time,value", *rows]))
    done = hdap("drift", "--input", "series.csv", "--fleet", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == ExitCode.DONE
    assert (document["devices"], document["rounds"]) == (6, 60)
    (change,) = document["changes"]
    assert (change["scope"], change["device"], change["onset_index"]) == ("device", "c", 30)
    assert change["over_index"] is None
    assert hdap("drift", "--fleet", cwd=tmp_path).returncode == ExitCode.USAGE
