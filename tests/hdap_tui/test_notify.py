"""Notifications: written with the alerts, posted to a real server, never lost, never in the way."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from operating import Hdap, caller

from hdap_tui.alerting import silencing
from hdap_tui.alerting.words import open_until, postable
from hdap_tui.config import Settings, load
from hdap_tui.errors import ExitCode, SettingsError
from hdap_tui.notify import messages
from hdap_tui.notify.sender import TRIES_OF_A_MESSAGE, Sender, deliver
from hdap_tui.notify.sending import NotTakenError, send
from hdap_tui.store import alerts, devices, outbox, silences
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.records import AlertRow

SECRET = "t0ken-that-nobody-may-see"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Answers as its class says, and keeps what it got."""

    protocol_version = "HTTP/1.1"
    got: ClassVar[list[tuple[dict[str, str], Any]]] = []
    answer: ClassVar[Callable[[Receiver], None] | None] = None
    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).got.append((dict(self.headers), json.loads(body)))
        if self.answer is not None:
            type(self).answer(self)  # type: ignore[misc]
            return
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[type[Receiver]]:
    class Own(Receiver):
        got: ClassVar[list[tuple[dict[str, str], Any]]] = []
        url: ClassVar[str] = ""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    server.daemon_threads = True
    Own.url = f"http://127.0.0.1:{server.server_address[1]}/hook?key={SECRET}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield Own
    server.shutdown()
    server.server_close()


def settings(
    folder: Path, url: str = "", more: str = "", argv: str = "", limit_s: float = 10.0
) -> Settings:
    text = '[[devices]]\nname = "a"\n[[devices]]\nname = "b"\n[alerts]\nretry_s = 0.05\n'
    text += f'[alerts.webhook]\ntimeout_s = {limit_s}\nurl = "{url}"\n{more}\n'
    text += f"[alerts.command]\ntimeout_s = {limit_s}\nargv = [{argv}]\n"
    (folder / "fleet.toml").write_text(text)
    return load(folder / "fleet.toml").in_state(folder)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = open_store(tmp_path / "fleet.db")
    yield found
    found.close()


def fire(store: Store, subject: str = "a", **more: Any) -> AlertRow:
    values: dict[str, Any] = {
        "scope": "device", "kind": "step", "direction": "up", "model": "net", "baseline_ms": 10.0,
        "now_ms": 12.5, "size_percent": 25.0, "onset_at": "2026-11-20T12:00:00+00:00",
    }  # fmt: skip
    return alerts.fire(store, **{**values, "subject": subject, **more})[0]


def until(wanted: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not wanted():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_alerts_of_one_round_are_one_message_that_is_posted_once(
    tmp_path: Path, store: Store, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", SECRET)
    own = settings(tmp_path, receiver.url, 'secret_env = "HOOK"')
    first, second = fire(store), fire(store, "b", kind="spread")
    assert messages.gather(own, store)
    assert not messages.gather(own, store)
    with Sender(own, store):
        until(lambda: outbox.rows(store)[0].state == "sent")
    ((headers, body),) = receiver.got
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert headers["Idempotency-Key"] == body["id"]
    assert [a["alert"] for a in body["firing"]] == [first.id, second.id]
    assert body["text"] == "fleet: 2 alerts new: a, b"
    assert body["resolved"] == []
    assert alerts.events(store, first.id)[-1].what == "told"
    alerts.resolve(store, first.id, "done")
    assert messages.gather(own, store)
    with Sender(own, store):
        until(lambda: len(receiver.got) == 2)
    assert receiver.got[1][1]["text"] == "fleet: a had become 25.0 % slower at once: resolved"
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in tmp_path.glob("fleet.db*"))


def test_nobody_is_told_of_pending_quiet_or_acknowledged_alerts(
    tmp_path: Path, store: Store
) -> None:
    own = settings(tmp_path, "http://127.0.0.1:1/")
    devices.sync(store, own.devices)
    fire(store, pending=True)
    wide = fire(store, "fleet", scope="fleet")
    beneath = fire(store, "b")
    alerts.inhibit(store, beneath, wide)
    silencing.begin(own, store, "fleet", timedelta(hours=1), "known", "ann")
    assert not messages.gather(own, store)
    alerts.resolve(store, wide.id, "over")
    assert not messages.gather(own, store)  # nobody had heard of it
    alerts.inhibit(store, alerts.row(store, beneath.id), None)
    assert messages.gather(own, store)
    assert [a["subject"] for a in json.loads(outbox.rows(store)[0].body)["firing"]] == ["b"]


def test_what_was_silenced_is_told_once_the_silence_is_over(tmp_path: Path, store: Store) -> None:
    own = settings(tmp_path, "http://127.0.0.1:1/")
    devices.sync(store, own.devices)
    alert = fire(store)
    made, _ = silencing.begin(own, store, "a", timedelta(hours=1), "known", "ann")
    assert not messages.gather(own, store)
    silences.end(store, made.id, "ann")
    assert messages.gather(own, store)
    assert alerts.row(store, alert.id).told == "firing"


def slow(handler: Receiver) -> None:
    """Drip an answer, a byte at a time: no single wait is long."""
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)


def hanging(_: Receiver) -> None:
    time.sleep(2)


def redirecting(handler: Receiver) -> None:
    handler.send_response(302)
    handler.send_header("Location", f"http://example.org/?key={SECRET}")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def big(handler: Receiver) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(10**12))
    handler.end_headers()
    with contextlib.suppress(ConnectionError):  # nobody takes all of it
        for _ in range(100):
            handler.wfile.write(b"x" * 65536)


def garbage(handler: Receiver) -> None:
    handler.wfile.write(b"\x00\xff not HTTP at all\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (slow, 200, "did not answer within 0.5 s"),
        (hanging, 200, "did not answer within 0.5 s"),
        (redirecting, 302, "answers 302 and points to http://example.org; name"),
        (garbage, 200, "gave no answer of HTTP"),
        (None, 500, "answers 500"),
        (None, 401, "answers 401"),
        (big, 200, ""),
        (None, 204, ""),
    ],
)
def test_a_receiver_may_do_what_it_wants(
    tmp_path: Path, receiver: Any, answer: Any, status: int, said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOOK", SECRET)
    receiver.answer, receiver.status = answer, status
    limit_s = 0.5 if "0.5 s" in said else 10.0
    own = settings(tmp_path, receiver.url, 'secret_env = "HOOK"', limit_s=limit_s)
    started = time.monotonic()
    if not said:
        assert send(own, "webhook", "{}", "k").startswith("http://127.0.0.1:")
    else:
        with pytest.raises(NotTakenError, match=said) as caught:
            send(own, "webhook", "{}", "k")
        assert SECRET not in str(caught.value)
    assert time.monotonic() - started < 10


def test_a_port_that_nobody_listens_at_and_one_that_never_answers(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        own = settings(tmp_path, url, limit_s=0.5)
        with pytest.raises(NotTakenError, match="connection refused"):
            send(own, "webhook", "{}", "k")
        bound.listen(0)
        with pytest.raises(NotTakenError, match="did not answer"):
            send(own, "webhook", "{}", "k")


@pytest.mark.parametrize(
    ("more", "variable", "said"),
    [
        ('secret_env = "HOOK"', "", "the variable HOOK .* is empty"),
        ('secret_env = "HOOK"', f"{SECRET}\nX: y", "characters that no header may hold"),
        ('secret_command = ["false"]', "", r"false printed no secret \(status 1\)"),
        ('secret_command = ["no-such-command"]', "", "no-such-command.*no such file"),
        (f'secret_command = ["sh", "-c", "echo {SECRET}; exit 3"]', "", "status 3"),
    ],
)
def test_a_secret_that_cannot_be_had_is_told_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, variable: str, said: str
) -> None:
    monkeypatch.setenv("HOOK", variable)
    own = settings(tmp_path, "http://127.0.0.1:1/", more)
    with pytest.raises(NotTakenError, match=said) as caught:
        send(own, "webhook", "{}", "k")
    assert SECRET not in repr(caught.value)
    assert SECRET not in repr(caught.value.__context__)


def test_the_secret_may_come_from_a_command(tmp_path: Path, receiver: Any) -> None:
    more = f'header = "X-Key"\nprefix = ""\nsecret_command = ["echo", "{SECRET}"]'
    send(settings(tmp_path, receiver.url, more), "webhook", "{}", "k")
    assert receiver.got[0][0]["X-Key"] == SECRET


def test_a_message_that_failed_is_sent_again_and_the_others_keep_their_order(
    tmp_path: Path, store: Store, receiver: Any
) -> None:
    own = settings(tmp_path, receiver.url)
    receiver.status = 503
    for name in ("a", "b"):
        fire(store, name)
        messages.gather(own, store)
    with Sender(own, store) as sender:
        until(lambda: len(receiver.got) >= 2)
        assert {body["firing"][0]["subject"] for _, body in receiver.got} == {"a"}
        assert outbox.first(store, "webhook").error.endswith("answers 503")  # type: ignore[union-attr]
        receiver.status = 200

        def done() -> bool:
            sender.wake()
            return all(one.state == "sent" for one in outbox.rows(store))

        until(done)
    told = [body["firing"][0]["subject"] for _, body in receiver.got]
    assert told == sorted(told)
    assert told[-1] == "b"


def test_a_message_that_the_receiver_will_not_have_lets_the_others_through(
    tmp_path: Path, store: Store, receiver: Any
) -> None:
    own = settings(tmp_path, receiver.url)
    alert = fire(store)
    messages.gather(own, store)
    receiver.status = 400
    for attempt in range(TRIES_OF_A_MESSAGE):
        waiting = outbox.first(store, "webhook")
        assert waiting is not None
        assert deliver(own, store, waiting) is (attempt == TRIES_OF_A_MESSAGE - 1)
    assert outbox.first(store, "webhook") is None
    assert outbox.rows(store)[0].state == "given up"
    assert alerts.events(store, alert.id)[-1].what == "not told"


def test_waits_grow_up_to_a_limit_and_end_after_the_hours_of_the_settings(
    tmp_path: Path, store: Store
) -> None:
    own = settings(tmp_path, "http://127.0.0.1:1/")
    fire(store)
    messages.gather(own, store)
    waits = []
    for _ in range(18):
        waiting = outbox.first(store, "webhook")
        assert waiting is not None
        deliver(own, store, waiting)
        waits.append(outbox.rows(store)[0].next_at - time.time())
    assert waits[0] == pytest.approx(0.05, abs=0.04)
    assert waits[3] == pytest.approx(0.4, abs=0.2)
    assert waits[-1] == pytest.approx(900, abs=5)
    long_ago = (datetime.now(UTC) - timedelta(hours=169)).isoformat()
    with store.write() as connection:
        connection.execute("UPDATE outbox SET created_at = ?", (long_ago,))
    waiting = outbox.first(store, "webhook")
    assert waiting is not None
    assert deliver(own, store, waiting)
    assert outbox.rows(store)[0].state == "given up"


def test_a_dead_webhook_delays_neither_who_gathers_nor_the_command(
    tmp_path: Path, store: Store, receiver: Any
) -> None:
    receiver.answer = hanging
    out = tmp_path / "out"
    own = settings(tmp_path, receiver.url, argv=f'"sh", "-c", "cat >> {out}"', limit_s=1.5)
    fire(store)
    with Sender(own, store) as sender:
        messages.gather(own, store)
        started = time.monotonic()
        sender.wake()
        fire(store, "b")
        messages.gather(own, store)
        assert time.monotonic() - started < 5
        sender.wake()
        until(lambda: out.exists() and out.read_text().count('"id"') == 2)
    assert outbox.first(store, "webhook") is not None


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ('"no-such-command"', "no-such-command: no such file"),
        ('"sh", "-c", "exit 4"', "sh ended with status 4"),
        ('"sh", "-c", "sleep 30 & sleep 30"', "sh did not end within 0.5 s"),
        ('"true"', ""),
        ('"sh", "-c", "cat > got"', ""),
    ],
)
def test_a_command_gets_the_message_without_a_shell_and_within_its_time(
    tmp_path: Path, argv: str, said: str
) -> None:
    own = settings(tmp_path, argv=argv, limit_s=0.5 if "0.5 s" in said else 10.0)
    body = json.dumps({"text": "$(touch never) ; `touch never`" * 10_000})
    if said:
        with pytest.raises(NotTakenError, match=said):
            send(own, "command", body, "k")
    else:
        send(own, "command", body, "k")
    if "got" in argv:
        assert (tmp_path / "got").read_text() == body
    assert not (tmp_path / "never").exists()


KILLED = """
import sys, os, signal
from pathlib import Path
from hdap_tui.config import load
from hdap_tui.notify import messages, sender
from hdap_tui.store import alerts, outbox
from hdap_tui.store.database import open_store

folder, moment = Path(sys.argv[1]), sys.argv[2]
own, store = load(folder / "fleet.toml").in_state(folder), open_store(folder / "fleet.db")
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
alerts.fire(store, scope="device", subject="a", kind="step", direction="up", model="net",
            baseline_ms=10, now_ms=12, size_percent=20, onset_at="2026-11-20T12:00:00+00:00")
if moment == "recorded":
    die()
if moment == "gathering":
    outbox.put = die
messages.gather(own, store)
if moment == "gathered":
    die()
outbox.sent = die  # the receiver has it, and that is not written down
sender.deliver(own, store, outbox.first(store, "webhook"))
"""


@pytest.mark.parametrize(
    ("moment", "times"), [("recorded", 1), ("gathering", 1), ("gathered", 1), ("sent", 2)]
)
def test_a_process_that_is_killed_loses_no_notification(
    tmp_path: Path, store: Store, receiver: Any, moment: str, times: int
) -> None:
    own = settings(tmp_path, receiver.url)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), moment],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    with Sender(own, store) as sender:
        messages.gather(own, store)
        sender.wake()
        until(lambda: [one.state for one in outbox.rows(store)] == ["sent"])
    assert len(receiver.got) == times
    assert len({body["id"] for _, body in receiver.got}) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('url = "ftp://host/"', "must begin with http:// or https://"),
        ('url = "file:///etc/passwd"', "must begin with http:// or https://"),
        ('url = "https://"', "is no address"),
        ('url = "https://host:99999/"', "is no address"),
        ('url = "https://host/a b"', "is no address"),
        (f'url = "https://ann:{SECRET}@host/"', "holds a user or a password"),
        ('header = "A: b"', "header"),
        ('prefix = "a\\nb"', "must be one line"),
        ('secret_env = "A"\nsecret_command = ["b"]', "one of them is enough"),
    ],
)
def test_addresses_and_secrets_are_checked_in_the_settings(
    tmp_path: Path, line: str, said: str
) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(f"[alerts.webhook]\n{line}\n")
    with pytest.raises(SettingsError, match=said) as caught:
        load(file)
    assert SECRET not in str(caught.value)


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    found = open_store(folder / "fleet.db")
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def hdap(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Hdap:
    monkeypatch.setenv("HDAP_STATE", str(tmp_path))
    return caller(tmp_path / "fleet.toml", capsys)


def test_the_channels_are_tried_by_a_command(tmp_path: Path, hdap: Hdap, receiver: Any) -> None:
    settings(tmp_path)
    status, _, said = hdap("alerts", "test-notification")
    assert (status, "nobody is told of alerts" in said) == (ExitCode.USAGE, True)
    settings(tmp_path, receiver.url, argv='"sh", "-c", "echo no such room >&2; exit 1"')
    status, found, _ = hdap("alerts", "test-notification")
    assert status == ExitCode.PARTLY
    assert [one["ok"] for one in found["channels"]] == [True, False]
    assert receiver.got[0][1]["test"] is True
    assert hdap("alerts", "notifications")[1]["notifications"] == []


def test_silences_are_begun_listed_and_ended_by_commands(tmp_path: Path, hdap: Hdap) -> None:
    with opened(tmp_path) as store:
        own = settings(tmp_path)
        devices.sync(store, own.devices)
        number = fire(store).id
    status, found, _ = hdap("alerts", "silence", "a", "--for", "2h", "--reason", "a new fan")
    assert (status, found["alerts"]) == (ExitCode.DONE, [number])
    assert hdap("alerts", "list")[1]["alerts"][0]["silence"] == found["silence"]
    assert hdap("alerts", "silences")[1]["silences"][0]["reason"] == "a new fan"
    assert hdap("alerts", "export", "--alertmanager")[1]["alerts"] == []
    assert hdap("alerts", "unsilence")[1]["on"] is False
    assert hdap("alerts", "unsilence")[0] == ExitCode.USAGE
    assert hdap("alerts", "silence", "a", "--for", "2h", "--reason", " ")[0] == ExitCode.USAGE
    what = [one["what"] for one in hdap("alerts", "show", str(number))[1]["history"]]
    assert what == ["opened", "silenced", "no longer silenced"]
    said = hdap("alerts", "explain", str(number))[1]["explanation"]
    assert said[0] == {"about": "what", "text": "a has become 25.0 % slower at once."}


def test_the_export_is_what_alertmanager_takes(
    tmp_path: Path, hdap: Hdap, capsys: pytest.CaptureFixture[str]
) -> None:
    from hdap_tui.cli.app import run

    with opened(tmp_path) as store:
        settings(tmp_path)
        fire(store, emulated=True)
        over = fire(store, "b")
        alerts.resolve(store, over.id, "done")
        fire(store, "fleet", scope="fleet", pending=True)
    file = ["--config", str(tmp_path / "fleet.toml")]
    assert run([*file, "alerts", "export", "--alertmanager"], lambda _: 0) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["labels"]["subject"] for one in found] == ["a", "b"]
    for one in found:
        assert set(one) == {"labels", "annotations", "startsAt", "endsAt"}
        assert all(isinstance(v, str) and v and n.isidentifier() for n, v in one["labels"].items())
        assert all(isinstance(v, str) for v in one["annotations"].values())
        assert one["startsAt"].endswith("Z")
        assert datetime.fromisoformat(one["startsAt"]) <= datetime.fromisoformat(one["endsAt"])
    first, second = found
    assert first["labels"]["alertname"] == "HdapLatencyShift"
    assert first["labels"]["emulated"] == "true"
    assert first["annotations"]["summary"].endswith("slower at once (emulated)")
    assert "emulated" not in json.dumps(second)
    assert datetime.fromisoformat(first["endsAt"]) > datetime.now(UTC) + timedelta(minutes=4)
    assert datetime.fromisoformat(second["endsAt"]) <= datetime.now(UTC)


def test_a_message_about_emulated_devices_says_so_in_its_text(tmp_path: Path, store: Store) -> None:
    real, emulated = fire(store), fire(store, "b", emulated=True)
    own = settings(tmp_path)
    assert json.loads(messages.message(own, [real]))["text"].startswith("fleet: ")
    body = json.loads(messages.message(own, [real, emulated]))
    assert body["text"].startswith("fleet (emulated): ")
    assert body["emulated"] is True


def test_an_alerts_labels_stay_the_same_while_its_figures_change(store: Store) -> None:
    before = fire(store)
    after = fire(store, kind="ramp", now_ms=14.0, size_percent=40.0)
    end = open_until(datetime.now(UTC), 3600)
    assert postable(before, "lab", end)["labels"] == postable(after, "lab", end)["labels"]
    assert postable(before, "lab", end)["annotations"] != postable(after, "lab", end)["annotations"]
