"""The life of alerts: pending, firing, recovering; wider ones over narrower ones; silences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.latency import Latency
from hdap_tui.actions.alerts import accept as accept_alert
from hdap_tui.alerting import absence, silencing
from hdap_tui.alerting.drifting import accept, judge_round
from hdap_tui.alerting.explaining import explain
from hdap_tui.alerting.lifecycle import come_up, inhibit
from hdap_tui.alerting.policy import _is_wide
from hdap_tui.alerting.words import alert_sentence, document, postable
from hdap_tui.config import Settings, load
from hdap_tui.context import Context
from hdap_tui.errors import RefusedError, SettingsError
from hdap_tui.store import (
    alerts,
    devices,
    drift,
    facts,
    measurements,
    migrations,
    models,
    silences,
)
from hdap_tui.store.database import Store, StoreError, UnknownError, open_store
from hdap_tui.store.records import AlertRow

DEVICES, DIGEST = 20, "ab" * 32


class Site:
    """A store whose devices answer as a test says, round after round."""

    def __init__(self, folder: Path, more: str = "", count: int = DEVICES) -> None:
        self.names = [f"d{i}" for i in range(count)]
        listed = "".join(
            f'[[devices]]\nname = "{n}"\nhost = "{n}"\nuser = "u"\ntags = ["{tag}"]\n'
            for n, tag in zip(self.names, ["roof", "hall"] * count, strict=False)
        )
        (folder / "fleet.toml").write_text(f"[drift]\nbaseline = 10\n{more}\n{listed}")
        self.settings: Settings = load(folder / "fleet.toml").in_state(folder)
        self.store: Store = open_store(folder / "fleet.db")
        devices.sync(self.store, self.settings.devices)
        models.add(self.store, name="net", digest=DIGEST, path="/n.onnx", kind="model", size=1)
        for name in self.names:
            devices.set_model(self.store, name, DIGEST)
        self.rng = np.random.default_rng(0)

    def rounds(
        self,
        count: int,
        factors: Mapping[int, float] | None = None,
        silent: frozenset[int] = frozenset(),
        conditions: Mapping[str, object] | None = None,
        error: str = "unreachable",
        away: frozenset[str] = frozenset(),
    ) -> list[AlertRow]:
        """Measure the fleet so many times; return the alerts that opened."""
        opened = []
        for _ in range(count):
            sweep = measurements.begin(self.store, "canary")
            values: NDArray[np.float64] = 10 * np.exp(self.rng.normal(0, 0.01, len(self.names)))
            found = []
            for i, name in enumerate(self.names):
                median = float(values[i] * (factors or {}).get(i, 1.0))
                one = Latency(
                    device=name, model=DIGEST, median_ms=median, block_medians_ms=(median,),
                    conditions=dict(conditions or {}),
                )  # fmt: skip
                if i in silent:
                    one = Latency(device=name, model=DIGEST, error=error, detail="gone")
                measurements.add(self.store, sweep, one)
                found.append(one)
            measurements.finish(self.store, sweep)
            opened += judge_round(self.settings, self.store, DIGEST, found)
            opened += absence.follow(self.settings, self.store, found, away)
        return opened

    def starts(self) -> list[str]:
        """Return when each round began."""
        return [str(row["started_at"]) for row in self.store.rows("SELECT * FROM sweeps")]

    def row(self, subject: str) -> AlertRow:
        """Return the newest alert about a subject."""
        rows = [*alerts.open_rows(self.store), *alerts.rows(self.store)]
        return max((a for a in rows if a.subject == subject), key=lambda a: a.id)

    def told(self, number: int) -> list[str]:
        """Return the steps of an alert's history; how far its size moved is another matter."""
        events = alerts.events(self.store, number)
        return [event.what for event in events if event.what != "changed"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    yield found
    found.store.close()


def test_a_jump_is_pending_before_it_fires_and_recovering_before_it_resolves(site: Site) -> None:
    site.rounds(12)
    states = []
    for factor in [1.3] * 5 + [1.0] * 9:
        site.rounds(1, {4: factor})
        found = [a for a in alerts.open_rows(site.store) if a.subject == "d4"]
        states.append(found[0].state if found else "")
    assert [s for i, s in enumerate(states) if i == 0 or s != states[i - 1]] == [
        "", "pending", "firing", "recovering", "",
    ]  # fmt: skip
    row = site.row("d4")
    assert site.told(row.id) == ["pending", "opened", "recovering", "resolved"]
    assert row.opened_at < row.fired_at < row.resolved_at
    assert row.reason == "level with its peers again"


def test_what_did_not_last_is_kept_and_not_listed(site: Site) -> None:
    site.rounds(12)
    assert site.rounds(2, {4: 1.3}) == []
    assert site.row("d4").state == "pending"
    assert devices.rows(site.store)[4].alert == "pending"
    site.rounds(3)
    assert alerts.rows(site.store) == ()
    (number,) = [r["id"] for r in site.store.rows("SELECT id FROM alerts")]
    assert site.told(number) == ["pending", "went away"]


def test_a_recovering_alert_that_grows_again_fires_and_stays_acknowledged(site: Site) -> None:
    site.rounds(12)
    (alert,) = site.rounds(6, {4: 1.3})
    alerts.acknowledge(site.store, alert.id, "looking", "ann")
    site.rounds(2, {4: 1.0})
    assert alerts.row(site.store, alert.id).state == "recovering"
    site.rounds(4, {4: 1.3})
    row = alerts.row(site.store, alert.id)
    assert (row.state, row.acknowledged_by) == ("acknowledged", "ann")
    assert site.told(alert.id)[-3:] == ["acknowledged", "recovering", "fires again"]
    (done,) = [e for e in alerts.events(site.store, alert.id) if e.what == "acknowledged"]
    assert (done.who, done.text) == ("ann", "looking")


def test_the_fleets_alert_stands_for_those_of_its_devices_until_it_is_over(site: Site) -> None:
    site.rounds(12)
    # One is slow already, and everybody knows; then many become slow within a few rounds.
    (first,) = site.rounds(5, {0: 1.4})
    opened = site.rounds(6, dict.fromkeys(range(9), 1.4))
    assert [(a.scope, a.subject) for a in opened] == [("fleet", "fleet")]
    wide = site.row("fleet")
    beneath = [a for a in alerts.open_rows(site.store) if a.inhibited_by == wide.id]
    assert {a.subject for a in beneath} == {f"d{i}" for i in range(9)}
    assert wide.inhibited == 9
    assert "inhibited" in site.told(first.id)
    assert site.told(site.row("d5").id)[:2] == ["pending", "opened"]
    # All but two are well again.
    for _ in range(60):
        site.rounds(1, {0: 1.4, 1: 1.4})
        if alerts.row(site.store, wide.id).state == "resolved":
            break
    assert alerts.row(site.store, wide.id).state == "resolved"
    site.rounds(9, {0: 1.4, 1: 1.4})
    left = alerts.open_rows(site.store)
    assert {(a.subject, a.inhibited_by) for a in left} == {("d0", None), ("d1", None)}
    assert all("came up" in site.told(a.id) for a in left)


def test_a_wider_alert_stands_only_for_the_same_direction_and_model(site: Site) -> None:
    values = {"kind": "step", "baseline_ms": 10.0, "now_ms": 12.0, "size_percent": 20.0,
              "onset_at": "2026-11-20T12:00:00+00:00"}  # fmt: skip

    def open_one(scope: str, subject: str, direction: str, model: str, kind: str = "step") -> int:
        row, _ = alerts.fire(
            site.store, scope=scope, subject=subject, direction=direction, model=model,
            **{**values, "kind": kind},
        )  # type: ignore[arg-type] # fmt: skip
        return row.id

    wide = open_one("fleet", "fleet", "up", "net")
    middle = open_one("cluster", "cluster 1", "up", "net")
    same = open_one("device", "d1", "up", "net", "ramp")
    others = [
        open_one("device", "d2", "down", "net"),
        open_one("device", "d3", "up", "other"),
        open_one("device", "d4", "up", "net", "spread"),
        open_one("device", "d5", "up", "net", "migration"),
    ]
    inhibit(site.store, lambda w, n: w.scope == "fleet" or n.subject == "d1")
    assert alerts.row(site.store, middle).inhibited_by == wide
    assert alerts.row(site.store, same).inhibited_by == wide
    assert all(alerts.row(site.store, n).inhibited_by is None for n in others)
    assert alerts.row(site.store, wide).inhibited == 2
    alerts.resolve(site.store, wide, "over")
    inhibit(site.store, lambda w, n: n.subject == "d1")
    assert alerts.row(site.store, same).inhibited_by == middle


def test_accepting_a_wide_alert_accepts_what_it_stands_for(site: Site) -> None:
    site.rounds(12)
    site.rounds(6, dict.fromkeys(range(9), 1.4))
    wide = site.row("fleet")
    accept(site.settings, site.store, wide, "the new firmware", "ann")
    assert alerts.open_rows(site.store) == ()
    assert alerts.row(site.store, wide.id).reason == "the new firmware"
    assert alerts.events(site.store, wide.id)[-1].who == "ann"
    assert site.rounds(14, dict.fromkeys(range(9), 1.4)) == []


def test_what_a_resolved_alert_stood_for_comes_up(site: Site) -> None:
    site.rounds(12)
    site.rounds(6, dict.fromkeys(range(9), 1.4))
    alerts.resolve(site.store, site.row("fleet").id, "a roll-back")
    come_up(site.store)
    assert all(a.inhibited_by is None for a in alerts.open_rows(site.store))


def test_a_device_without_values_has_no_data_and_one_without_a_baseline_is_learning(
    site: Site,
) -> None:
    assert {d.watched for d in devices.rows(site.store)} == {""}
    site.rounds(3)
    assert {d.watched for d in devices.rows(site.store)} == {"learning"}
    site.rounds(9)
    assert {d.watched for d in devices.rows(site.store)} == {"ok"}
    site.rounds(2, silent=frozenset({3}))
    assert devices.rows(site.store)[3].watched == "ok"
    site.rounds(1, silent=frozenset({3}))
    assert devices.rows(site.store)[3].watched == "no data"
    site.rounds(1)
    assert devices.rows(site.store)[3].watched == "ok"
    drift.forget(site.store, "device", "d3")
    assert devices.rows(site.store)[3].watched == ""


@pytest.mark.parametrize(
    ("selector", "quiet"),
    [("d4", {"d4"}), ("tag=roof", {"d4"}), ("*", {"d4", "d5"}), ("scope=device", {"d4", "d5"}),
     ("kind=step and not d4", {"d5"}), ("direction=down", set()), ("subject=d5", {"d5"}),
     ("fleet", set())],
)  # fmt: skip
def test_a_silence_names_devices_subjects_or_kinds(
    site: Site, selector: str, quiet: set[str]
) -> None:
    for name in ("d4", "d5"):
        alerts.fire(
            site.store, scope="device", subject=name, kind="step", direction="up", model="net",
            baseline_ms=10, now_ms=12, size_percent=20, onset_at="2026-11-20T12:00:00+00:00",
        )  # fmt: skip
    made, under = silencing.begin(
        site.settings, site.store, selector, timedelta(hours=2), "work on the roof", "ann"
    )
    assert {a.subject for a in under} == quiet
    assert (made.who, made.reason) == ("ann", "work on the roof")
    for alert in under:
        assert alert.silenced_until == made.until
        last = alerts.events(site.store, alert.id)[-1]
        assert (last.what, last.who, last.text) == (
            "silenced",
            "ann",
            "silence 1: work on the roof",
        )
    silences.end(site.store, made.id, "bob")
    silencing.apply(site.settings, site.store)
    assert not any(a.silence for a in alerts.open_rows(site.store))
    with pytest.raises(StoreError, match="is over already"):
        silences.end(site.store, made.id)


def test_a_silenced_alert_is_recorded_and_a_new_one_is_silenced_as_it_opens(site: Site) -> None:
    site.rounds(12)
    silencing.begin(site.settings, site.store, "d4", timedelta(hours=1), "a test", "ann")
    (alert,) = site.rounds(6, {4: 1.3})
    assert (alert.state, alert.silence) == ("firing", 1)
    assert alert.is_quiet


def test_a_silence_is_over_when_its_time_is(site: Site) -> None:
    site.rounds(12)
    silencing.begin(site.settings, site.store, "d4", timedelta(hours=1), "short", "ann")
    (alert,) = site.rounds(6, {4: 1.3})
    assert alert.silence is not None
    assert not silences.any_over(site.store)
    with site.store.write() as connection:
        connection.execute("UPDATE silences SET until = created_at")
    assert silences.any_over(site.store)
    silencing.apply(site.settings, site.store)
    assert alerts.row(site.store, alert.id).silence is None
    assert site.told(alert.id)[-1] == "no longer silenced"


@pytest.mark.parametrize(
    ("selector", "said"),
    [("", "needs a selector"), ("nobody", "no device is called"), ("kind=stepp", "no kind"),
     ("kind", "no device is called"), ("(", "missing after")],
)  # fmt: skip
def test_a_silence_that_means_nothing_is_one_sentence(site: Site, selector: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        silencing.begin(site.settings, site.store, selector, timedelta(hours=2), "why", "ann")
    assert silences.rows(site.store) == ()
    with pytest.raises(UnknownError, match="There is no silence 9"):
        silences.end(site.store, 9)


def test_an_alert_is_explained_with_what_else_changed(site: Site) -> None:
    cool = {"after": {"governor": "performance"}, "during": {"temperature_c": [40, 45]},
            "boot_id": "a"}  # fmt: skip
    hot = {"after": {"governor": "powersave"}, "during": {"temperature_c": [40, 71]},
           "boot_id": "b", "throttled": True}  # fmt: skip
    facts.save(site.store, "d4", {"os": "Debian 12", "power_mode": "MAXN"})
    site.rounds(12, conditions=cool)
    facts.save(site.store, "d4", {"os": "Debian 12", "power_mode": "15W"})
    (alert,) = site.rounds(6, {4: 1.3}, conditions=hot)
    lines = explain(site.settings, site.store, alert)
    said = {about: text for about, text in lines if about != "meanwhile"}
    meanwhile = [text for about, text in lines if about == "meanwhile"]
    assert said["what"].startswith("d4 has become 3")
    assert "the mean of the middle half of its first 10 rounds" in said["baseline"]
    assert said["compared"].startswith("with 19 other devices of the fleet")
    assert "3 rounds in a row" in said["found by"]
    assert "times that" in said["how sure"]
    assert "once a week over the whole fleet" in said["how sure"]
    assert "power mode changed from MAXN to 15W" in meanwhile
    assert "governor changed from performance to powersave" in meanwhile
    assert "it was started anew in between" in meanwhile
    assert "temperature 45 °C before, 71 °C since" in meanwhile
    assert any(text.startswith("throttled in") for text in meanwhile)


def test_an_explanation_says_so_where_nothing_else_changed(site: Site) -> None:
    site.rounds(12)
    site.rounds(6, dict.fromkeys(range(9), 1.4))
    lines = explain(site.settings, site.store, site.row("fleet"))
    assert lines[-1][1].startswith("no fact, deployment or condition is known to have changed")
    assert ("found by", "many devices that change within a day are one event: 9 devices within 24"
            " rounds") in lines  # fmt: skip


def test_a_file_from_before_keeps_its_alerts_and_their_history(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    store = Store(path)
    path.touch()
    with pytest.MonkeyPatch.context() as patch:
        steps = [m for m in migrations.migrations._migrations if m.name < "m008"]
        patch.setattr(migrations.migrations, "_migrations", steps)
        patch.setattr(migrations, "SCHEMA_VERSION", 7)
        migrations.migrate(store)
    with store.write() as connection:
        for number, kind, state in ((1, "step", "firing"), (2, "ramp", "acknowledged"),
                                    (3, "spread", "resolved")):  # fmt: skip
            connection.execute(
                "INSERT INTO alerts (id, scope, subject, kind, state, direction, model,"
                " baseline_ms, now_ms, size_percent, told_percent, onset_at, opened_at)"
                " VALUES (?, 'device', 'a', ?, ?, 'up', 'net', 10, 12, 20, 20, 't', 't')",
                (number, kind, state),
            )
            connection.execute(
                "INSERT INTO alert_events (alert_id, at, what) VALUES (?, 't', 'opened')", (number,)
            )
    store.close()
    store = open_store(path)
    # Of two open ones of one sort the later one goes on.
    assert [(a.id, a.state) for a in alerts.open_rows(store)] == [(2, "acknowledged")]
    assert alerts.row(store, 1).reason == "told by a later alert"
    assert [e.what for e in alerts.events(store, 1)] == ["opened"]
    assert alerts.untold(store) == ()
    assert store.rows("PRAGMA foreign_key_check") == []
    store.close()


# Devices that no longer answer


def test_a_device_that_no_longer_answers_is_told_of_and_resolves_when_it_does(site: Site) -> None:
    site.rounds(12)
    assert site.rounds(2, silent=frozenset({4})) == []
    (opened,) = site.rounds(3, silent=frozenset({4}))
    assert (opened.subject, opened.kind, opened.state) == ("d4", "no data", "firing")
    assert alert_sentence(opened) == "d4 does not answer"
    assert opened.onset_at == site.starts()[12]
    shown = document(opened)
    assert shown["baseline_ms"] is shown["now_ms"] is shown["size_percent"] is None
    assert "no answer since" in postable(opened, "f", "2030-01-01")["annotations"]["description"]
    said = explain(site.settings, site.store, opened)
    assert ("what", "d4 does not answer.") in said
    assert not any("nan" in text for _, text in said)
    assert site.rounds(1) == []
    over = site.row("d4")
    assert (over.state, over.reason) == ("resolved", "it answers again")
    assert alert_sentence(over) == "d4 did not answer"
    assert site.told(over.id) == ["opened", "resolved"]


def test_a_device_that_has_never_answered_is_told_of(site: Site) -> None:
    (opened,) = site.rounds(3, silent=frozenset({4}))
    assert (opened.subject, opened.kind) == ("d4", "no data")
    assert opened.onset_at == site.starts()[0]
    assert {row.name for row in devices.rows(site.store) if row.watched == "no data"} == {"d4"}


def test_many_that_fall_silent_are_one_alert_of_the_fleet(site: Site) -> None:
    site.rounds(12)
    half = frozenset(range(10))
    (opened,) = site.rounds(3, silent=half)
    assert (opened.scope, opened.kind, opened.devices, opened.inhibited) == (
        "fleet", "no data", 10, 10,
    )  # fmt: skip
    assert alert_sentence(opened) == "10 devices do not answer"
    assert site.rounds(3, silent=half | {11}) == []
    assert site.row("fleet").devices == 11
    assert site.rounds(1, silent=frozenset({1, 2, 3})) == []
    assert site.row("fleet").state == "firing", "one device more or less must not make it flap"
    assert site.rounds(1, silent=frozenset({1})) == []
    assert site.row("fleet").reason == "most of them answer again"
    assert [a.subject for a in alerts.untold(site.store)] == ["d1"], "it is told by itself now"


def test_a_silent_fleet_needs_no_smaller_network_and_silence_is_no_baseline(site: Site) -> None:
    site.rounds(12)
    (opened,) = site.rounds(3, silent=frozenset(range(DEVICES)))
    assert opened.devices == DEVICES
    assert opened.onset_at == site.starts()[12], "also where nobody answered any more"
    assert not _is_wide(opened)
    with (
        contextlib.closing(Context(settings=site.settings)) as context,
        pytest.raises(RefusedError, match="answers; silence it until then"),
    ):
        accept_alert(context, opened.id, yes=True)
    quiet = silencing.begin(
        site.settings, site.store, 'kind="no data"', timedelta(hours=1), "a move", "me"
    )
    assert len(quiet[1]) == DEVICES + 1


def test_a_device_taken_out_of_the_settings_is_no_longer_missed(site: Site) -> None:
    site.rounds(12)
    site.rounds(3, silent=frozenset({4}))
    file = site.settings.path
    file.write_text(file.read_text().replace('name = "d4"', 'name = "e4"'))
    site.settings = load(file).in_state(file.parent)
    site.rounds(1, silent=frozenset({4}))
    assert site.row("d4").reason == "the settings no longer name it"


def test_one_that_answers_and_cannot_be_measured_is_not_silent(site: Site) -> None:
    site.rounds(12)
    assert site.rounds(5, silent=frozenset({4}), error="memory") == []
    (opened,) = site.rounds(1, silent=frozenset({4}))
    assert opened.kind == "no data"
    site.rounds(1, silent=frozenset({4}), error="skipped")
    assert site.row("d4").reason == "it answers again"


def test_one_that_is_left_alone_is_not_missed(site: Site) -> None:
    site.rounds(12)
    assert len(site.rounds(3, silent=frozenset({4}))) == 1
    assert site.rounds(1, silent=frozenset({4}), away=frozenset({"d4"})) == []
    assert site.row("d4").reason == "it is left alone"
    assert len(site.rounds(1, silent=frozenset({4}))) == 1, "then it is missed again"


def test_two_devices_that_stay_silent_are_told_of_once(tmp_path: Path) -> None:
    site = Site(tmp_path, count=2)
    try:
        site.rounds(12)
        both = frozenset({0, 1})
        opened = site.rounds(8, silent=both)
        assert [(a.scope, a.inhibited) for a in opened] == [("fleet", 2)]
        assert site.told(opened[0].id) == ["opened"]
    finally:
        site.store.close()
