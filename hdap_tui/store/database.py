"""The fleet's SQLite file: how it is opened, read and written.

Every thread has a connection of its own. Readers never wait (write-ahead log); writers wait for
each other, because a write takes its lock before it reads (``BEGIN IMMEDIATE``): a transaction
that reads first and asks for the lock later fails at once when another writer was in between.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdap_tui.errors import ExitCode, RefusedError, TimedOutError, UserError

if TYPE_CHECKING:
    from sqlite_utils import Database

BUSY_TIMEOUT_S = 10.0
APPLICATION_ID = 0x68646170
"""Says in the file's header whose it is: "hdap"."""
SCHEMA_VERSION = 10
"""Number of the last migration."""

Parameters = Sequence[Any] | Mapping[str, Any]


class StoreError(UserError):
    """The database cannot be used."""


class UnknownError(StoreError):
    """Somebody named what the database has never heard of."""

    exit_code = ExitCode.USAGE


class DiskFullError(StoreError):
    """Nothing more can be written; what was committed before is kept."""


class _Connection(sqlite3.Connection):
    """One that can be held weakly, so that it goes when its thread goes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # SQLite crashes the process where a connection is closed under a running query.
        self.in_use = threading.RLock()


class Store:
    """One fleet's database; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._closed = False

    @property
    def connection(self) -> _Connection:
        """This thread's connection, in autocommit mode; to be used inside `read` or `write`.

        Raises:
            StoreError: the store has been closed.
        """
        if self._closed:
            raise self._gone()
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            self._local.connection = connection
        return connection

    @property
    def db(self) -> Database:
        """This thread's connection with the conveniences of sqlite-utils."""
        if getattr(self._local, "db", None) is None:
            from sqlite_utils import Database

            self._local.db = Database(self.connection, execute_plugins=False)
        database: Database = self._local.db
        return database

    @contextmanager
    def write(self, is_shown: bool = True) -> Iterator[sqlite3.Connection]:
        """Hold the write lock for a short transaction; inside another one, join that.

        `is_shown` says whether a screen may show what is written, and must look again.

        Raises:
            TimedOutError: another process has held the lock for too long.
            DiskFullError: nothing was written, because there is no room.
            StoreError: the file is damaged or may not be written.
        """
        connection = self.connection
        if self._in_transaction():
            if not self._local.writing:
                raise RuntimeError("a write must not begin inside a read: it would come too late")
            yield connection
            return
        with connection.in_use, self._said_plainly():
            connection.execute("BEGIN IMMEDIATE")
            self._local.writing = True
            try:
                before = connection.total_changes
                yield connection
                if is_shown and connection.total_changes != before:
                    connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'version'")
                connection.execute("COMMIT")
            except BaseException:
                if self._in_transaction():  # a full disk may have ended it already
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """See one state of the database for as long as this lasts; keep it short."""
        connection = self.connection
        if self._in_transaction():
            yield connection
            return
        with connection.in_use, self._said_plainly():
            connection.execute("BEGIN")
            self._local.writing = False
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    def rows(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        connection = self.connection
        with connection.in_use, self._said_plainly():
            cursor = connection.cursor()
            cursor.row_factory = sqlite3.Row
            return cursor.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Parameters = ()) -> sqlite3.Row | None:
        """Return the first row of a query, if there is one."""
        found = self.rows(sql, parameters)
        return found[0] if found else None

    def version(self) -> int:
        """Return a number that has grown whenever anything in the store changed."""
        found = self.row("SELECT value FROM meta WHERE key = 'version'")
        return int(found["value"]) if found else 0

    def check(self) -> str:
        """Return what is broken in the file, or nothing. Reads the whole file."""
        first = self.row("PRAGMA quick_check(1)")
        return "" if first is None or first[0] == "ok" else str(first[0])

    def free_pages(self) -> tuple[int, int]:
        """Return how many pages of the file lie free, and how many there are."""
        return self.rows("PRAGMA freelist_count")[0][0], self.rows("PRAGMA page_count")[0][0]

    def give_back(self, pages: int) -> int:
        """Give so many free pages back to the disk; return how many it were.

        None where the file was made before this was foreseen. The file becomes smaller when
        what was written is moved into it, which SQLite does by itself, or `shrink`.

        Raises:
            DiskFullError: there is no room to write down which pages move.
        """
        free, connection = self.free_pages()[0], self.connection
        with connection.in_use, self._said_plainly():
            # By execute, it would give back a single page.
            connection.executescript(f"PRAGMA incremental_vacuum({int(pages)})")
        return max(0, free - self.free_pages()[0])

    def shrink(self) -> None:
        """Move what was written from the log into the file, and empty the log, if nobody reads."""
        self.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the connections of all threads, each after what it is just doing."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
            self._connections.clear()
        for connection in connections:
            with connection.in_use:
                connection.close()

    def _in_transaction(self) -> bool:
        return self.connection.in_transaction

    def _connect(self) -> _Connection:
        with self._said_plainly():
            connection = sqlite3.connect(
                self.path,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                # Only its own thread uses it, but whoever closes the store must close it, too.
                check_same_thread=False,
                factory=_Connection,
            )
            _configure(connection)
        with self._lock:
            if not self._closed:
                self._connections.add(connection)
                return connection
        connection.close()
        raise self._gone()

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            plain = self._plain(error)
            if plain is error:
                raise
            raise plain from error

    def _gone(self) -> StoreError:
        return StoreError(f"{self.path}: the database was closed meanwhile.")

    def _plain(self, error: sqlite3.Error) -> Exception:
        """Return an error of SQLite as a sentence; a mistake of the program stays as it is."""
        if self._closed:
            return self._gone()
        # The low byte is the class; the others only refine it.
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return TimedOutError(
                    f"{self.path}: another process has been writing for more than "
                    f"{BUSY_TIMEOUT_S:.0f} s; try again."
                )
            case sqlite3.SQLITE_FULL:
                return DiskFullError(
                    f"{self.path}: the disk is full; free some room and try again, what was saved "
                    "before is kept."
                )
            case sqlite3.SQLITE_NOTADB:
                return StoreError(
                    f"{self.path}: not a database; move it away, and a new one is made."
                )
            case sqlite3.SQLITE_CORRUPT:
                return StoreError(
                    f"{self.path}: the database is damaged ({error}); put a backup back, or move "
                    "it away to start anew."
                )
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                return StoreError(
                    f"{self.path}: cannot be opened for writing; check the permissions of the "
                    "file and its folder."
                )
            case sqlite3.SQLITE_IOERR:
                return StoreError(f"{self.path}: reading or writing failed ({error}).")
        return error


def open_store(path: Path) -> Store:
    """Open a fleet's database; make it, or bring it up to date, where that is needed.

    Raises:
        RefusedError: it was written by a newer version, or is another program's.
        StoreError: it cannot be opened, or is no database.
    """
    path = Path(path)
    store = Store(path)
    _make_private(path)
    try:
        number = _schema_number(store)
        if number < SCHEMA_VERSION:
            from hdap_tui.store.migrations import migrate

            migrate(store)
    except BaseException:
        store.close()
        raise
    return store


def _schema_number(store: Store) -> int:
    """Return the number of the last migration that the file has seen; 0 for a new one."""
    with store.read():
        (owner,) = store.rows("PRAGMA application_id")[0]
        (number,) = store.rows("PRAGMA user_version")[0]
        tables = store.row("SELECT count(*) FROM sqlite_schema")
    is_new = tables is not None and tables[0] == 0
    if owner != APPLICATION_ID and not is_new:
        raise RefusedError(
            f"{store.path}: this database belongs to another program; name another state folder."
        )
    if number > SCHEMA_VERSION:
        raise RefusedError(
            f"{store.path}: written by a newer version (schema {number}, this one knows "
            f"{SCHEMA_VERSION}); update hdap."
        )
    return int(number)


def _configure(connection: sqlite3.Connection) -> None:
    if not connection.execute("PRAGMA page_count").fetchone()[0]:
        # It counts only on an empty file; on another it would wait for whoever writes.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # Changing the mode does not wait by itself while another process does the same.
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _make_private(path: Path) -> None:
    """Make the folder and an empty file that only the owner can read."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(f"{path}: the database cannot be opened: {reason}.") from error
