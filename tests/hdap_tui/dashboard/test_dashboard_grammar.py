"""What the prompt understands."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from dashboard_fake import fleet
from hypothesis import given
from hypothesis import strategies as st

from hdap_tui.commands import COMMANDS
from hdap_tui.dashboard.grammar import Call, Selection, complete, fill, hint, parse
from hdap_tui.errors import SettingsError


def test_positionals_options_and_flags_are_read_as_on_the_command_line() -> None:
    call = parse("deploy resnet20-small --select 'edge-0*,tag=roof' --dry-run")
    assert call.command.name == "deploy"
    given = {"model": "resnet20-small", "select": "edge-0*,tag=roof", "dry-run": True}
    assert call.given == given
    assert call.arguments["yes"] is False


def test_values_get_the_type_of_their_parameter() -> None:
    assert parse("lab drift edge-01 12.5").given == {"device": "edge-01", "percent": 12.5}
    assert parse("watch --rounds=3 --until-alert").arguments == {"rounds": 3, "until_alert": True}
    assert parse("clusters --input a.csv").given == {"input": Path("a.csv")}
    assert parse("bench a b c").given == {"models": ("a", "b", "c")}


def test_what_was_not_said_has_the_default_of_the_command_line() -> None:
    assert parse("devices check").arguments == {"select": None}
    assert parse("rollback").arguments == {"select": None, "yes": False}
    assert parse("alerts show 3").arguments == {"alert": 3}
    assert parse("devices show edge-01").arguments == {
        "device": "edge-01", "limit": 50, "at": None,
    }  # fmt: skip


def test_a_job_never_holds_the_dashboard() -> None:
    assert parse("compress").arguments["detach"] is True
    assert parse("jobs resume j1").arguments["detach"] is True


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("benhc", "did you mean bench?"),
        ("alerts acept 3", "did you mean alerts accept?"),
        ("bench --selct x", "did you mean --select?"),
        ("lab fault edge-01 refus", "Did you mean refuse?"),
        ("alerts accept x", "must be a whole number"),
        ("compress now", 'takes no "now"'),
        ("bench --select", "--select needs a value"),
        ("bench 'open", "A quotation mark is open"),
        ("   ", "Type a command"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(line: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(line)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_no_line_ends_in_anything_but_a_call_or_a_sentence(line: str) -> None:
    snapshot = fleet(3)
    assert isinstance(complete(line, snapshot), list)
    assert isinstance(hint(line), str)
    with suppress(SettingsError):
        assert isinstance(parse(line), Call)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_the_text_of_a_call_means_the_call(command) -> None:  # type: ignore[no-untyped-def]
    values = {"integer": 3, "number": 2.5, "flag": True, "path": Path("a b.csv"), "text": "it's [/"}
    given_ = {}
    for p in command.parameters:
        value = p.choices[0] if p.kind == "choice" else values[p.kind]
        given_[p.name] = (value, "b") if p.multiple else value
    call = Call(command, given_)
    assert parse(call.text) == call


def test_a_key_acts_on_the_marked_devices_and_else_on_the_one_under_the_cursor() -> None:
    call = parse("bench")
    assert fill(call, Selection(device="edge-02")).given["select"] == "edge-02"
    marked = Selection(device="edge-02", marked=("edge-05", "edge-07"))
    assert fill(call, marked).given["select"] == "edge-05,edge-07"


def test_what_is_typed_acts_on_all_devices_unless_some_are_marked() -> None:
    call = parse("bench")
    assert "select" not in fill(call, Selection(device="edge-02"), typed=True).given
    marked = Selection(device="edge-02", marked=("edge-05",))
    assert fill(call, marked, typed=True).given["select"] == "edge-05"


def test_marks_that_the_filter_hides_are_never_acted_on() -> None:
    hidden = Selection(marked=(), hidden=3)
    with pytest.raises(SettingsError, match="the filter hides all 3 marked devices"):
        fill(parse("bench"), hidden)


def test_completion_knows_commands_options_devices_and_choices() -> None:
    snapshot = fleet(12)
    assert complete("alerts a", snapshot)[:2] == ["alerts acknowledge", "alerts accept"]
    assert complete("bench --s", snapshot) == ["bench --select"]
    assert "bench --select tag=roof" in complete("bench --select ", snapshot)
    assert complete("lab fault edge-01 re", snapshot) == ["lab fault edge-01 refuse"]
    assert complete("jobs cancel ", snapshot)[0] == "jobs cancel compress-2"


def test_a_name_with_blanks_is_completed_in_quotes() -> None:
    found = complete("devices show ", fleet(2, names=("a [/] b", "c")))
    assert found[0] == "devices show 'a [/] b'"
    assert parse(found[0]).given == {"device": "a [/] b"}
