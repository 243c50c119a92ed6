"""One file that holds all that has been recorded."""

from __future__ import annotations

import sqlite3
import tarfile
import threading
from pathlib import Path

import pytest
from operating import hdap

from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.store import devices
from hdap_tui.store.database import open_store

SETTINGS = """
[fleet]
name = "shop"
state = "state"
[[devices]]
name = "till-[1:3]"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(SETTINGS)
    return path


def record(file: Path) -> None:
    settings = load(file)
    store = open_store(settings.database)
    devices.sync(store, settings.devices)
    store.close()


def test_what_is_restored_is_what_was_recorded(file: Path, tmp_path: Path) -> None:
    record(file)
    settings = load(file)
    settings.known_hosts.write_text("till-1 ssh-ed25519 AAAA\n")
    (settings.state_dir / "models").mkdir()
    (settings.state_dir / "models" / "abc.onnx").write_bytes(b"a model")
    job = JobFolder.create(settings.state_dir / "jobs", "compress", {"config": str(file)})
    (job.work / "measurements.jsonl").write_text("{}\n")
    (job.work / "finetune-1.safetensors").write_bytes(b"can be made again")
    ended = hdap(file, "backup", str(tmp_path / "b.tar.gz"))
    assert ended.status == ExitCode.DONE, ended.said
    assert set(ended.data["files"]) == {
        "fleet.db", "fleet.toml", "known_hosts", "models/abc.onnx",
        "jobs/compress-1/request.json", "jobs/compress-1/work/measurements.jsonl",
    }  # fmt: skip
    restored = tmp_path / "restored"
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        archive.extractall(restored, filter="data")
    store = open_store(restored / "fleet.db")
    assert [row.name for row in devices.rows(store)] == ["till-1", "till-2", "till-3"]
    store.close()
    assert JobFolder(restored / "jobs" / "compress-1").request["config"] == str(file)
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o077 == 0


def test_it_is_of_one_moment_while_others_write(file: Path, tmp_path: Path) -> None:
    record(file)
    path = load(file).database
    with sqlite3.connect(path) as setup:
        setup.execute("CREATE TABLE pairs (a INTEGER, b INTEGER)")
    stop = threading.Event()

    def write() -> None:
        connection = sqlite3.connect(path, timeout=30)
        number = 0
        while not stop.is_set():
            number += 1
            with connection:
                connection.execute("INSERT INTO pairs VALUES (?, ?)", (number, number))
                connection.execute("UPDATE pairs SET a = ?, b = ?", (number, number))
        connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            assert hdap(file, "backup", str(tmp_path / f"{number}.tar.gz")).status == ExitCode.DONE
    finally:
        stop.set()
        writer.join()
    for number in range(5):
        with tarfile.open(tmp_path / f"{number}.tar.gz") as archive:
            archive.extract("fleet.db", tmp_path / str(number), filter="data")
        copy = sqlite3.connect(tmp_path / str(number) / "fleet.db")
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM pairs WHERE a <> b").fetchone() == (0,)
        assert copy.execute("SELECT count(DISTINCT a) FROM pairs").fetchone()[0] <= 1
        copy.close()


def test_what_cannot_be_written_is_said_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    ended = hdap(file, "backup", str(tmp_path / "b.tar.gz"))
    assert ended.status == ExitCode.FAILED
    assert "nothing has been recorded of this fleet yet" in ended.said
    record(file)
    ended = hdap(file, "backup", str(tmp_path / "no" / "b.tar.gz"))
    assert "the backup cannot be written: No such file or directory" in ended.said
    load(file).database.write_bytes(b"no database at all" * 100)
    ended = hdap(file, "backup", str(tmp_path / "b.tar.gz"))
    assert ended.status == ExitCode.FAILED
    assert "it cannot be copied: file is not a database" in ended.said
    assert not list(tmp_path.glob("*b.tar.gz*"))
