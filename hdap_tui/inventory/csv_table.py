"""A table of devices: one row each, under a header that names the columns."""

from __future__ import annotations

import csv
import difflib
import re

from hdap_tui.config.source import did_you_mean
from hdap_tui.inventory.found import Found, Host
from hdap_tui.inventory.source import Text
from hdap_tui.text import clean

COLUMNS = {
    "name": ("name", "device", "hostname", "inventory_hostname", "alias"),
    "host": ("host", "address", "ip", "ip_address", "fqdn", "ansible_host"),
    "port": ("port", "ssh_port", "ansible_port"),
    "user": ("user", "username", "login", "ansible_user"),
    "identity": ("identity", "identity_file", "key", "key_file", "private_key"),
    "certificate": ("certificate",),
    "proxy_jump": ("proxy_jump", "proxyjump", "jump", "jump_host", "bastion"),
    "python": ("python",),
    "host_group": ("host_group",),
    "tags": ("tags", "tag", "labels", "groups", "group"),
}
"""What a column may be called."""
_SECRETS = re.compile(r"pass(word|phrase|wd)?|secret|pwd", re.IGNORECASE)
_MEANT = {alias: key for key, aliases in COLUMNS.items() for alias in aliases}
_DELIMITERS = ",;\t|"


def looks_like(text: Text) -> bool:
    """Say whether the first line is a header of such a table."""
    first = text.body.lstrip("\n").partition("\n")[0]
    names = {_key(name) for name in re.split(f"[{_DELIMITERS}]", first)}
    return len(names) > 1 and bool(names & {*COLUMNS["name"], *COLUMNS["host"]})


def read(text: Text) -> Found:
    """Read a table.

    Raises:
        InventoryError: it has no header, or one with a column that is misspelt.
    """
    found = Found("csv")
    header = text.body.lstrip("\n").partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count) if header else ","
    rows = csv.reader(text.body.splitlines(keepends=True), delimiter=delimiter, strict=True)
    try:
        columns: dict[str, int] | None = None
        for row in rows:
            line = rows.line_num
            if not any(cell.strip() for cell in row) or row[0].startswith("#"):
                continue
            if columns is None:
                columns = _columns(text, line, row, found)
            else:
                _take(text, line, row, columns, found)
    except csv.Error as error:
        raise text.error(max(rows.line_num, 1), f"not a CSV table: {error}.") from error
    if columns is None:
        raise text.error(1, "the table is empty; its first line names the columns: name, host, …")
    return found


def _columns(text: Text, line: int, header: list[str], found: Found) -> dict[str, int]:
    columns: dict[str, int] = {}
    for index, title in enumerate(header):
        name = _key(title)
        key = _MEANT.get(name)
        if key is None:
            _check_unknown(text, line, name, found)
        elif key in columns:
            raise text.error(line, f'the column "{key}" is there twice; take one out.')
        else:
            columns[key] = index
    if "name" not in columns:
        if "host" not in columns:
            raise text.error(line, 'no column is called "name"; the first line names the columns.')
        columns["name"] = columns["host"]
    return columns


def _check_unknown(text: Text, line: int, name: str, found: Found) -> None:
    if not name:
        return
    if _SECRETS.search(name):
        found.note(
            f'{text.name}: the column "{clean(name, 40)}" is not taken over: secrets are asked for,'
            " or come from ssh.password_command."
        )
        return
    if difflib.get_close_matches(name, _MEANT, n=1, cutoff=0.75):
        hint = did_you_mean(name, _MEANT)
        raise text.error(line, f'no column is called "{clean(name, 40)}"; {hint}')
    found.note(f'{text.name}: the column "{clean(name, 40)}" says nothing that is known here.')


def _take(text: Text, line: int, row: list[str], columns: dict[str, int], found: Found) -> None:
    def cell(key: str) -> str:
        index = columns.get(key, len(row))
        return row[index].strip() if index < len(row) else ""

    place = text.place(line)
    width = max(columns.values()) + 1
    if len(row) < width and not cell("name"):
        found.leave_out(place, cell("host"), "has too few columns.")
        return
    host = Host(
        name=cell("name"),
        host=cell("host"),
        user=cell("user"),
        identity=text.key_file(cell("identity")),
        certificate=text.key_file(cell("certificate")),
        proxy_jump=cell("proxy_jump"),
        python=cell("python"),
        host_group=cell("host_group"),
        tags=tuple(dict.fromkeys(tag for tag in re.split(r"[\s,;|]+", cell("tags")) if tag)),
        place=place,
    )
    found.take(host, cell("port"))


def _key(title: str) -> str:
    return re.sub(r"[\s-]+", "_", title.strip().strip('"').strip().lower())
