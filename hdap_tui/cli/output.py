"""Standard output: data, and nothing else."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hdap_tui.context import SCHEMA_VERSION, Outcome, Table


def write(outcome: Outcome, as_json: bool) -> None:
    """Print what came out of a command: one JSON document, or what a person reads."""
    if as_json:
        document = {"schema_version": SCHEMA_VERSION, **outcome.data}
        print(json.dumps(plain(document), ensure_ascii=False, allow_nan=False))
        return
    if outcome.table is not None:
        _print_table(outcome.table)
    if outcome.text:
        print(outcome.text)


def plain(value: Any) -> Any:
    """Return the value as JSON knows it: NaN and infinity become null, tuples lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, str) or not isinstance(value, Sequence):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return [plain(v) for v in value]


def _print_table(table: Table) -> None:
    if not sys.stdout.isatty():
        # For pipes: one row a line, columns apart by a tab.
        for row in (table.columns, *table.rows):
            print("\t".join(cell.replace("\t", " ") for cell in row))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=table.title or None, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        shown.add_column(column, overflow="fold")
    for row in table.rows:
        # Text, not markup: a device's name may hold brackets.
        shown.add_row(*(Text(cell) for cell in row))
    Console().print(shown)
