"""Hosts of a table, and how a format is told from a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from hdap_tui.inventory import InventoryError, read
from hdap_tui.inventory.found import Host


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(data: bytes | str, name: str = "hosts.csv") -> Path:
    Path(name).write_bytes(data.encode() if isinstance(data, str) else data)
    return Path(name)


def test_a_table_out_of_a_spreadsheet_is_read(here: Path) -> None:
    found = read(written(
        b"\xef\xbb\xbfName;IP Address;Port;User;Key File;Tags;Jump Host;Serial;Root Password\r\n"
        b'edge-01;10.0.0.1;2022;pi;keys/a;"orin, hall-a";ops@gate;123;hunter2\r\n'
        b";;;;;;;;\r\n"
        b"# a remark\r\n"
        b"edge-02\r\n"
        b'"edge-03"; 10.0.0.3 ;;;;;;;\r\n'
    ))  # fmt: skip
    assert found.hosts == [
        Host(name="edge-01", host="10.0.0.1", port=2022, user="pi", identity=str(here / "keys/a"),
             tags=("orin", "hall-a"), proxy_jump="ops@gate"),
        Host(name="edge-02"),
        Host(name="edge-03", host="10.0.0.3"),
    ]  # fmt: skip
    assert found.hosts[1].place == "hosts.csv:5"
    assert "hunter2" not in repr(found)
    assert found.notes == [
        'hosts.csv: the column "serial" says nothing that is known here.',
        'hosts.csv: the column "root_password" is not taken over: secrets are asked for, or come '
        "from ssh.password_command.",
    ]


def test_what_may_be_a_secret_is_not_said() -> None:
    found = read(written("password,name\nhunter2\n"))
    assert len(found.left_out) == 1
    assert "hunter2" not in repr(found)


def test_a_row_that_is_wrong_costs_only_itself() -> None:
    found = read(written(
        "name,host,port,tags\n"
        "a,10.0.0.1,99999,\n"
        "b,10.0.0.2,22.0,\n"
        "c,10.0.0.3,,ok\n"
        "d,10.0.0.4,,\n"
        "D,10.0.0.5,,\n"
        "e f,,,\n"
        "g,10.0.0.7,,b@d\n"
        "h,10.0.0.[1:3],,\n"
        "\x1b[31mi,,,\n"
    ))  # fmt: skip
    assert [host.name for host in found.hosts] == ["c"]
    assert found.left_out == [
        'hosts.csv:2: "a" has the port "99999"; it must be from 1 to 65535.',
        'hosts.csv:3: "b" has the port "22.0"; it must be from 1 to 65535.',
        'hosts.csv:7: "e f" is no name for a device: at most 63 letters, digits, dots, dashes and'
        " underscores, the first no sign.",
        'hosts.csv:8: "g" has the tag "b@d"; tags are letters, digits and . _ : / -',
        'hosts.csv:9: "h" has the address "10.0.0.[1:3]", which is none.',
        'hosts.csv:10: "[31mi" is no name for a device: at most 63 letters, digits, dots, dashes'
        " and underscores, the first no sign.",
        'hosts.csv:5 and hosts.csv:6: "d" is there 2 times; names are unique, so none of them is'
        " taken.",
    ]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("naem,host\na,b\n", 'hosts.csv:1: no column is called "naem"; did you mean "name"?'),
        ("name,prot\na,22\n", 'hosts.csv:1: no column is called "prot"; did you mean "port"?'),
        ("name,host,ip\n", 'hosts.csv:1: the column "host" is there twice; take one out.'),
        ("user,port\n", 'hosts.csv:1: no column is called "name"; the first line names the col'),
        ("", "hosts.csv:1: the table is empty; its first line names the columns: name, host,"),
        ('name,host\n"a,b\n', "hosts.csv:2: not a CSV table: "),
        (b"name,host\nb\xfcro,1\n", "hosts.csv:2: not UTF-8 text; save the file as UTF-8."),
        ("name,host\n".encode("utf-16"), "hosts.csv: not UTF-8 text; save the file as UTF-8."),
    ],
)
def test_a_wrong_table_is_told_with_file_and_line(data: bytes | str, sentence: str) -> None:
    with pytest.raises(InventoryError) as caught:
        read(written(data))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("# mine\nHost a\n  HostName 1.2.3.4\n", "ssh-config"),
        ("host a\n", "ssh-config"),
        ("Name;IP\na;b\n", "csv"),
        ("name\thost\na\tb\n", "csv"),
        ("a\nb ansible_port=22\n", "ansible"),
        ("[web]\na\n", "ansible"),
        ("all:\n  hosts:\n    a:\n", "ansible"),
        ("---\nweb:\n  hosts: {a: }\n", "ansible"),
    ],
)
def test_the_format_is_told_from_the_content(text: str, format: str) -> None:
    found = read(written(text, "inventory"))
    assert (found.format, found.hosts[0].name) == (format, "a")


def test_what_looks_like_nothing_is_asked_about() -> None:
    with pytest.raises(InventoryError, match="inventory: what kind of inventory this is cannot be"):
        read(written("Dear all,\nplease find below\n", "inventory"))
    with pytest.raises(InventoryError, match="this is a folder; name one inventory file in it"):
        read(Path("."))
