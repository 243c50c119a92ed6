"""The database file: who may open it, what is said when it cannot be used, and who waits."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hdap_tui.errors import ExitCode, RefusedError, TimedOutError
from hdap_tui.store import database
from hdap_tui.store.database import DiskFullError, Store, StoreError, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "state" / "fleet.db")
    yield opened
    opened.close()


def put(store: Store, key: str, value: object) -> None:
    with store.write() as connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def get(store: Store, key: str) -> object:
    found = store.row("SELECT value FROM meta WHERE key = ?", (key,))
    return found["value"] if found else None


def put_and_fail(store: Store, key: str) -> None:
    with store.write():
        put(store, key, 1)
        raise KeyError(key)


def test_a_new_database_is_private_and_set_up_for_many_processes(store: Store) -> None:
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    pragmas = {
        name: store.rows(f"PRAGMA {name}")[0][0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "auto_vacuum")
    }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 1,
        "foreign_keys": 1,
        "busy_timeout": 10_000,
        "auto_vacuum": 2,
    }
    assert store.check() == ""


def test_what_was_written_is_there_when_it_is_opened_again(store: Store) -> None:
    put(store, "x", 5)
    store.close()
    with pytest.raises(StoreError, match="was closed"):
        get(store, "x")
    again = open_store(store.path)
    assert get(again, "x") == 5
    again.close()


def test_the_version_grows_with_every_change_and_only_then(store: Store) -> None:
    before = store.version()
    put(store, "x", 1)
    assert store.version() == before + 1
    with store.write():
        pass
    with store.read():
        get(store, "x")
    assert store.version() == before + 1


def test_a_failed_write_leaves_nothing_behind(store: Store) -> None:
    before = store.version()
    with pytest.raises(KeyError):
        put_and_fail(store, "x")
    assert get(store, "x") is None
    assert store.version() == before
    put(store, "y", 2)
    assert get(store, "y") == 2


def test_a_write_inside_a_write_is_one_transaction(store: Store) -> None:
    with pytest.raises(KeyError), store.write():
        put_and_fail(store, "x")
    assert get(store, "x") is None


def test_a_write_inside_a_read_is_refused(store: Store) -> None:
    with pytest.raises(RuntimeError, match="inside a read"), store.read():
        put(store, "x", 1)
    put(store, "x", 1)


def test_a_read_sees_one_state_while_another_thread_writes(store: Store) -> None:
    put(store, "x", 1)
    with store.read():
        assert get(store, "x") == 1
        writer = threading.Thread(target=put, args=(store, "x", 2))
        writer.start()
        writer.join(10)
        assert not writer.is_alive()
        assert get(store, "x") == 1
    assert get(store, "x") == 2


def test_foreign_keys_hold(store: Store) -> None:
    with pytest.raises(sqlite3.IntegrityError), store.write() as connection:
        connection.execute(
            "INSERT INTO alert_events (alert_id, at, what) VALUES (99, 'now', 'opened')"
        )


def test_a_newer_database_is_refused_and_left_as_it_is(store: Store) -> None:
    store.connection.execute(f"PRAGMA user_version = {database.SCHEMA_VERSION + 1}")
    put(store, "x", 1)
    store.close()
    with pytest.raises(RefusedError, match="written by a newer version") as caught:
        open_store(store.path)
    assert caught.value.exit_code == ExitCode.REFUSED
    kept = sqlite3.connect(store.path)
    assert kept.execute("SELECT value FROM meta WHERE key = 'x'").fetchone() == (1,)
    kept.close()


def test_a_step_of_a_newer_version_is_refused_even_before_its_number_was_set(store: Store) -> None:
    with store.write() as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
            "VALUES ('hdap', 'm999_future', '')"
        )
        connection.execute("PRAGMA user_version = 0")
    store.close()
    with pytest.raises(RefusedError, match="newer version"):
        open_store(store.path)


def test_an_unfinished_first_start_is_caught_up_on(store: Store) -> None:
    put(store, "x", 1)
    store.connection.execute("PRAGMA user_version = 0")
    store.close()
    again = open_store(store.path)
    assert get(again, "x") == 1
    assert again.rows("PRAGMA user_version")[0][0] == database.SCHEMA_VERSION
    again.close()


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE bookmarks (url)")
    theirs.close()
    with pytest.raises(RefusedError, match="belongs to another program"):
        open_store(path)


def test_a_file_that_is_no_database_is_said_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    path.write_text("these are not the rows you are looking for" * 100)
    with pytest.raises(StoreError, match="not a database; move it away"):
        open_store(path)
    assert path.read_text().startswith("these")


def test_a_damaged_database_is_said_in_one_sentence(store: Store) -> None:
    with store.write() as connection:
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)", [(f"key {n}", "x" * 500) for n in range(1000)]
        )
    store.close()
    data = bytearray(store.path.read_bytes())
    for page in range(4096 * 60, len(data), 4096):
        data[page : page + 64] = os.urandom(64)
    store.path.write_bytes(data)
    again = open_store(store.path)
    with pytest.raises(StoreError, match="database is damaged"):
        again.rows("SELECT count(value), max(value) FROM meta")
    assert again.check() != ""
    again.close()


def test_a_folder_that_cannot_be_made_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be opened: (not a directory|file exists)"):
        open_store(tmp_path / "file" / "fleet.db")


def test_a_full_disk_keeps_what_was_saved_and_the_store_usable(store: Store) -> None:
    put(store, "before", "kept")
    pages = store.rows("PRAGMA page_count")[0][0]
    store.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(DiskFullError, match="the disk is full"):
        put(store, "large", "x" * 100_000)
    assert get(store, "before") == "kept"
    assert get(store, "large") is None
    store.connection.execute("PRAGMA max_page_count = 1000000")
    put(store, "large", "x" * 100_000)
    assert store.check() == ""


def test_who_opens_the_file_to_read_waits_for_no_writer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    with store.write() as connection:
        connection.execute("INSERT INTO meta VALUES ('half', 1)")
        other = open_store(store.path)
        assert get(other, "half") is None
        other.close()
    assert get(store, "half") == 1


def test_a_lock_that_is_held_too_long_is_said_in_one_sentence(store: Store) -> None:
    store.connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TimedOutError, match="another process has been writing"):
        put(store, "x", 1)
    other.execute("ROLLBACK")
    put(store, "x", 1)
    other.close()


def test_connections_of_threads_that_ended_are_let_go(store: Store) -> None:
    def work() -> None:
        put(store, "x", 1)

    for _ in range(20):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    gc.collect()  # SQLite's statement cache and its connection hold each other
    assert len(store._connections) == 1


# Several processes


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said


OPEN = """
import sys
from pathlib import Path
from hdap_tui.store.database import open_store
store = open_store(Path(sys.argv[1]))
assert store.version() >= 1
store.close()
"""

COUNT = """
import sys, threading
from pathlib import Path
from hdap_tui.store.database import open_store
store = open_store(Path(sys.argv[1]))
def work():
    for _ in range(int(sys.argv[2])):
        with store.write() as connection:
            value = store.row("SELECT value FROM meta WHERE key = 'count'")["value"]
            connection.execute("UPDATE meta SET value = ? WHERE key = 'count'", (value + 1,))
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
"""

MEASURE = """
import sys
from pathlib import Path
from engine.latency import Latency
from hdap_tui.store import measurements
from hdap_tui.store.database import open_store
store = open_store(Path(sys.argv[1]))
sweep = measurements.begin(store, "canary")
n = 0
while True:
    n += 1
    measurements.add(store, sweep, Latency(
        device="a", model="ab" * 32, median_ms=float(n), low_ms=1.0, high_ms=2.0, n=n,
        conditions={"pad": "x" * 500},
    ))
    print(n, flush=True)
"""


def test_six_processes_make_one_database_at_once(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    finish([start(OPEN, path) for _ in range(6)])
    store = open_store(path)
    applied = [row["name"] for row in store.rows("SELECT name FROM _sqlite_migrations")]
    assert len(applied) == len(set(applied))
    assert max(applied).startswith(f"m{database.SCHEMA_VERSION:03d}_")
    store.close()


def test_processes_and_threads_that_read_and_then_write_lose_nothing(store: Store) -> None:
    put(store, "count", 0)
    finish([start(COUNT, store.path, 60) for _ in range(3)])
    assert get(store, "count") == 3 * 3 * 60


def test_a_process_killed_while_it_writes_loses_nothing_that_it_had_saved(store: Store) -> None:
    with store.write() as connection:
        connection.execute("INSERT INTO devices (name, position) VALUES ('a', 0)")
    for _ in range(2):
        before = store.rows("SELECT count(*) FROM samples")[0][0]
        process = start(MEASURE, store.path)
        assert process.stdout is not None
        deadline = time.monotonic() + 60
        told = 0
        while told < 200:
            assert time.monotonic() < deadline
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            told = int(line)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()  # what was told before the kill, and still in the pipe
        process.communicate(timeout=30)
        told = max([told, *(int(line) for line in rest.split("\n")[:-1])])
        after = store.rows("SELECT count(*) FROM samples")[0][0]
        assert told <= after - before <= told + 1
        assert store.rows("PRAGMA integrity_check")[0][0] == "ok"
        assert store.rows("SELECT count(*) FROM sample_details")[0][0] == after
        put(store, "still", "writable")


def test_reading_the_fleet_needs_no_heavy_library(store: Store) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from hdap_tui.store.database import open_store\n"
        "from hdap_tui.store.snapshot import snapshot\n"
        "snapshot(open_store(Path(sys.argv[1])), 'lab')\n"
        "print(sorted({'numpy', 'torch', 'textual', 'sqlite_utils', 'paramiko'}"
        " & set(sys.modules)))"
    )
    process = start(code, store.path)
    said, error = process.communicate(timeout=60)
    assert said.strip() == "[]", error


def test_closing_waits_for_what_other_threads_are_reading(tmp_path: Path) -> None:
    """A store closed under a running query used to crash the whole process."""
    script = """
import sys, threading
from pathlib import Path
from hdap_tui.store.database import StoreError, open_store

for number in range(60):
    store = open_store(Path(sys.argv[1]) / f"{number % 4}.db")
    began = threading.Barrier(4)

    def read():
        began.wait()
        try:
            while True:
                store.rows("SELECT * FROM sqlite_schema a, sqlite_schema b LIMIT 2000")
        except StoreError as error:
            assert "closed" in str(error), error

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    began.wait()
    store.close()
    for reader in readers:
        reader.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
