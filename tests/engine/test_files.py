"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from engine import files


def test_a_file_is_replaced_whole_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    files.write(path, "new \udcff", 0o600)
    assert path.read_bytes() == b"new \xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half() -> None:
        with files.replacing(path) as aside:
            aside.write_bytes(b"half")
            raise RuntimeError

    def nothing() -> None:
        with files.replacing(path):
            pass

    with pytest.raises(RuntimeError):
        half()
    with pytest.raises(FileNotFoundError):
        nothing()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_lines_come_back_and_one_that_was_cut_off_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert files.lines(path) == []
    files.append(path, [{"n": 1}, [2]])
    with path.open("ab") as file:
        file.write(b'{"n": 3')
    assert files.lines(path) == [b'{"n": 1}', b"[2]"]
    files.append(path, [4])
    assert files.lines(path) == [b'{"n": 1}', b"[2]", b"4"]
