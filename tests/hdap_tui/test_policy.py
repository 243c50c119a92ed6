"""What follows from an alert: a suggestion or a job, decided once, and undone by one command."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.events import Reporter
from engine.latency import Latency
from hdap_tui.actions import compress as action
from hdap_tui.actions import policy as actions
from hdap_tui.alerting import policy
from hdap_tui.config import load
from hdap_tui.context import Context, Outcome
from hdap_tui.errors import RefusedError, SettingsError, UserError
from hdap_tui.jobs import control
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.store import alerts, decisions, devices, measurements, models
from hdap_tui.store.database import UnknownError
from hdap_tui.store.records import AlertRow
from hdap_tui.watching.after import After

DIGEST = "ab" * 32
LASTING = 3


class Site:
    """A fleet whose rounds and alerts a test makes up, and whose jobs never begin to work."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, section: str) -> None:
        (folder / "fleet.toml").write_text(
            '[[devices]]\nname = "d[1:4]"\n[recipes.small]\n[[recipes.small.steps]]\n'
            f'method = "finetune"\n[policy]\nlasting_rounds = {LASTING}\n{section}\n'
        )
        self.jobs = folder / "jobs"
        self.settings = load(folder / "fleet.toml").in_state(folder)
        self.context = Context(settings=self.settings)
        self.store = self.context.store
        devices.sync(self.store, self.settings.devices)
        models.add(self.store, name="net", digest=DIGEST, path="/n.onnx", kind="model", size=1)
        for device in self.settings.devices:
            devices.set_model(self.store, device.name, DIGEST)
        self.asked: list[dict[str, Any]] = []
        monkeypatch.setattr(action, "compress", self.compress)

    def compress(self, context: Context, **asked: Any) -> Outcome:
        self.asked.append(asked)
        folder = self.job(**asked)
        return Outcome(data={"job": folder.name, "folder": str(folder.path)})

    def job(self, **request: Any) -> JobFolder:
        """Make a job that waits for its process, as any does at first."""
        return JobFolder.create(self.jobs, "compress", request)

    def rounds(self, count: int, ms: float = 10.0) -> None:
        for _ in range(count):
            sweep = measurements.begin(self.store, "canary")
            for device in self.settings.devices:
                one = Latency(
                    device=device.name, model=DIGEST, median_ms=ms, block_medians_ms=(ms,)
                )
                measurements.add(self.store, sweep, one)
            measurements.finish(self.store, sweep)

    def alert(self, **changes: Any) -> AlertRow:
        values: dict[str, Any] = {
            "scope": "fleet", "subject": "fleet", "kind": "step", "direction": "up",
            "model": "net", "baseline_ms": 10.0, "now_ms": 12.0, "size_percent": 20.0,
            "onset_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }  # fmt: skip
        return alerts.fire(self.store, **{**values, **changes})[0]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Site] = []

    def one(section: str = "") -> Site:
        made.append(Site(tmp_path, monkeypatch, section))
        return made[-1]

    yield one
    for site in made:
        site.context.close()


def test_a_lasting_shift_of_the_fleet_is_suggested_once_and_started_by_the_operator(
    make: Any,
) -> None:
    site = make('recipe = "small"')
    alert = site.alert()
    assert policy.decide(site.context) == []
    (found,) = policy.findings(site.settings, site.store)
    assert found.missing == (f"it has lasted 0 of {LASTING} rounds",)
    site.rounds(LASTING)
    (made,) = policy.decide(site.context)
    assert (made.state, made.alert, made.recipe) == ("suggested", alert.id, "small")
    assert "fleet has become 20.0 % slower" in made.reason
    assert policy.decide(site.context) == []
    assert site.asked == []
    started = policy.start(site.context, None, "ann")
    assert (started.state, started.job) == ("started", "compress-1")
    assert site.asked == [{"recipe": "small", "detach": True, "decision": made.id}]
    steps = [(s.what, s.who) for s in decisions.steps(site.store, made.id)]
    assert steps == [("suggested", ""), ("starting", "ann"), ("started", "ann")]
    history = [e.what for e in alerts.events(site.store, alert.id)]
    assert history == ["opened", "recompression", "recompression"]
    assert policy.decide(site.context) == []


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"size_percent": 4.0}, "+4.0 % is less than 5 %"),
        ({"direction": "down", "size_percent": -20.0}, "it has become faster"),
    ],
)
def test_a_shift_that_does_not_matter_is_no_reason(
    make: Any, changes: dict[str, Any], missing: str
) -> None:
    site = make()
    site.alert(**changes)
    site.rounds(LASTING)
    assert policy.decide(site.context) == []
    (found,) = policy.findings(site.settings, site.store)
    assert found.missing[0].startswith(missing)


def test_one_device_a_spread_and_what_is_pending_are_never_a_reason(make: Any) -> None:
    site = make()
    site.alert(scope="device", subject="d1")
    site.alert(kind="spread")
    site.alert(scope="cluster", subject="cluster 1", pending=True)
    site.rounds(LASTING)
    assert policy.findings(site.settings, site.store) == []


def test_what_is_silenced_recovering_or_beneath_another_waits(make: Any) -> None:
    site = make()
    wide = site.alert()
    narrow = site.alert(scope="cluster", subject="cluster 1")
    alerts.inhibit(site.store, narrow, wide)
    alerts.turn(site.store, wide, "recovering")
    site.rounds(LASTING)
    found = {f.alert: f.missing for f in policy.findings(site.settings, site.store)}
    assert found == {
        wide.id: ("it is recovering",),
        narrow.id: (f"alert {wide.id} stands for it",),
    }


def test_off_does_nothing(make: Any) -> None:
    site = make('mode = "off"')
    site.alert()
    site.rounds(LASTING)
    assert policy.decide(site.context) == []
    assert actions.check(site.context).data["findings"][0]["would"] == "nothing"


def test_start_starts_a_job_by_itself_and_undo_cancels_it(make: Any) -> None:
    site = make('mode = "start"')
    alert = site.alert()
    site.rounds(LASTING)
    (made,) = policy.decide(site.context)
    assert (made.state, made.job) == ("started", "compress-1")
    assert site.asked == [{"recipe": None, "detach": True, "decision": made.id}]
    assert policy.sentence(site.store, made).endswith(
        "; compress-1 was started (a search for the fleet): hdap policy undo 1 cancels it"
    )
    undone = policy.undo(site.context, made.id, "ann")
    assert undone.state == "undone"
    assert control.find(site.jobs, "compress-1").cancelled
    with pytest.raises(RefusedError, match="nothing to undo"):
        policy.undo(site.context, made.id, "ann")
    assert policy.decide(site.context) == []  # an alert is decided upon once
    what = [e.what for e in alerts.events(site.store, alert.id)]
    assert what[-1] == "recompression undone"


def test_the_watcher_says_what_follows(make: Any) -> None:
    site = make('mode = "start"')
    site.alert(emulated=True)
    site.rounds(LASTING)
    heard: list[Any] = []
    site.context.reporter = Reporter("watch", heard.append)
    with After(site.context) as after:
        after.round_done()
        after.round_done()
    (said,) = heard
    assert said.text.startswith("fleet has become 20.0 % slower at once (emulated), for 3 canary")
    assert "compress-1 was started" in said.text


def test_nothing_starts_while_a_job_runs_or_soon_after_one(make: Any) -> None:
    site = make('mode = "start"')
    operators = site.job()
    site.alert()
    site.rounds(LASTING)
    (made,) = policy.decide(site.context)
    assert made.state == "suggested"
    with pytest.raises(RefusedError, match="compress-1 is running; one job at a time"):
        policy.start(site.context, made.id, "ann")
    operators.finish("finished")
    assert policy.decide(site.context) == []
    (obstacle,) = policy.obstacles(site.settings, site.store)
    assert obstacle.startswith("the last compression began at")
    long_ago = (datetime.now(UTC) - timedelta(hours=25)).isoformat()
    text = (operators.path / "request.json").read_text()
    changed = text.replace(str(operators.request["created_at"]), long_ago)
    (operators.path / "request.json").write_text(changed)
    (started,) = policy.decide(site.context)
    assert (started.id, started.state) == (made.id, "started")


def test_a_job_that_an_operator_starts_in_the_same_moment_goes_before(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make('mode = "start"')
    site.alert()
    site.rounds(LASTING)

    def both(context: Context, **asked: Any) -> Outcome:
        site.job()
        return site.compress(context, **asked)

    monkeypatch.setattr(action, "compress", both)
    (made,) = policy.decide(site.context)
    assert made.state == "undone"
    assert control.find(site.jobs, "compress-2").cancelled
    assert not control.find(site.jobs, "compress-1").cancelled


def test_two_that_decide_at_once_start_one_job(make: Any) -> None:
    site = make('mode = "start"')
    site.alert()
    site.rounds(LASTING)
    made: list[Any] = []
    ready = threading.Barrier(4)

    def one() -> None:
        context = Context(settings=site.settings)
        ready.wait()
        made.extend(policy.decide(context))
        context.close()

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [d.state for d in made] == ["started"]
    assert len(site.asked) == 1


def test_a_suggestion_goes_with_its_alert_and_may_be_withdrawn(make: Any) -> None:
    site = make()
    alert = site.alert()
    site.rounds(LASTING)
    (made,) = policy.decide(site.context)
    alerts.resolve(site.store, alert.id, "back to its baseline")
    policy.decide(site.context)
    assert decisions.row(site.store, made.id).state == "withdrawn"
    assert decisions.steps(site.store, made.id)[-1].text.endswith("back to its baseline")
    site.alert()
    site.rounds(LASTING)
    (second,) = policy.decide(site.context)
    assert policy.undo(site.context, None, "ann").state == "withdrawn"
    with pytest.raises(RefusedError, match="no longer suggested"):
        policy.start(site.context, second.id, "ann")
    with pytest.raises(RefusedError, match="nothing is suggested"):
        policy.start(site.context, None, "ann")
    with pytest.raises(UnknownError, match="There is no decision 9"):
        policy.undo(site.context, 9, "ann")


def test_a_start_that_fails_is_written_down_and_can_be_tried_again(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make('mode = "start"')
    site.alert()
    site.rounds(LASTING)

    def fails(*_: Any, **__: Any) -> Outcome:
        raise UserError("the fleet has not been clustered yet.")

    monkeypatch.setattr(action, "compress", fails)
    (made,) = policy.decide(site.context)
    assert made.state == "failed"
    assert policy.sentence(site.store, made) == (
        "fleet has become 20.0 % slower at once, for 3 canary rounds; "
        "no job could be started: the fleet has not been clustered yet."
    )
    monkeypatch.setattr(action, "compress", site.compress)
    assert policy.start(site.context, made.id, "ann").state == "started"


@pytest.mark.parametrize("spawned", [True, False])
def test_a_process_that_died_while_it_was_starting_a_job_is_found_out(
    make: Any, spawned: bool
) -> None:
    site = make('mode = "start"')
    made = decisions.add(
        site.store, cause="alert 1", alert=None, state="starting", reason="it is slow"
    )
    if spawned:
        site.job(decision=made.id)
    policy.decide(site.context)
    assert decisions.row(site.store, made.id).state == "starting"
    long_ago = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    with site.store.write() as connection:
        connection.execute("UPDATE decision_steps SET at = ?", (long_ago,))
    policy.decide(site.context)
    found = decisions.row(site.store, made.id)
    assert (found.state, found.job) == (("started", "compress-1") if spawned else ("failed", ""))


@pytest.mark.parametrize("which", ["mean", "percentile-95"])
def test_an_objective_that_is_not_kept_to_for_long_enough_is_a_reason(
    make: Any, which: str
) -> None:
    site = make(f'objective_ms = 11\nobjective = "{which}"')
    site.rounds(LASTING, 12.0)
    site.rounds(1, 10.0)
    site.rounds(LASTING - 1, 12.0)
    assert policy.decide(site.context) == []
    site.rounds(1, 12.0)
    (made,) = policy.decide(site.context)
    assert (made.cause, made.state) == ("objective", "suggested")
    assert "12.000 ms, the objective 11 ms" in made.reason
    site.rounds(1, 10.0)
    policy.decide(site.context)
    assert decisions.row(site.store, made.id).state == "withdrawn"
    site.rounds(LASTING, 12.0)
    assert policy.decide(site.context) == []  # within the cool-down of what was decided


def test_the_commands_show_what_would_be_done_and_what_was(make: Any) -> None:
    site = make()
    assert "no cluster and not the fleet has shifted" in actions.check(site.context).text
    site.alert()
    site.rounds(1)
    (found,) = actions.check(site.context).data["findings"]
    assert (found["would"], found["missing"]) == (
        "nothing", [f"it has lasted 1 of {LASTING} rounds"],
    )  # fmt: skip
    site.rounds(LASTING)
    assert actions.check(site.context).data["findings"][0]["would"] == "suggest"
    policy.decide(site.context)
    assert actions.check(site.context).data["findings"][0]["would"].startswith("nothing: decision")
    assert "nothing is deployed by it" in actions.start(site.context).text
    (logged,) = actions.log(site.context).data["decisions"]
    assert [s["what"] for s in logged["steps"]] == ["suggested", "starting", "started"]
    assert "stops at its next step" in actions.undo(site.context).text


def test_a_recipe_that_is_not_there_is_told_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('[policy]\nrecipe = "smal"\n[[recipes.small.steps]]\nmethod = "finetune"\n')
    with pytest.raises(SettingsError, match=r'fleet.toml:2: policy.recipe is "smal".*small'):
        load(file)
