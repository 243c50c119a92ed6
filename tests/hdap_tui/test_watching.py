"""Canary rounds on a fleet that drifts: an alert opens, is acknowledged, resolves."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import closing

import pytest
from operating import Hdap, Site, caller, network

from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.lab import control
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Group, Plan
from hdap_tui.library import from_file
from hdap_tui.store import devices
from hdap_tui.store.database import open_store
from hdap_tui.store.values import now

SETTINGS = """
[[models]]
name = "detector"
path = "detector.onnx"
[[models]]
name = "dispatch"
path = "builtin:dispatch"
probe = true
[benchmark]
runs = 15
warmup_runs = 3
warmup_s = 0.0
block_s = 0.05
blocks_min = 2
blocks_max = 2
time_limit_s = 30
[watch]
canary_every_s = 0.01
[drift]
baseline = 3
sigma_floor = 0.05
jump_consecutive = 2
clear_consecutive = 2
clear_percent = 20
effect_percent = 20
"""

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def site(make_lab: Callable[..., LabInfo], tmp_path_factory: pytest.TempPathFactory) -> Site:
    lab = make_lab(4, plan=Plan(step_at_s=None, group=(Group(name="alike"),)))
    file = tmp_path_factory.mktemp("site") / "fleet.toml"
    file.write_text(fleet_toml(lab, SETTINGS))
    network(file.parent / "detector.onnx", layers=2)
    return Site(lab, file)


@pytest.fixture
def hdap(site: Site, capsys: pytest.CaptureFixture[str]) -> Hdap:
    return caller(site, capsys)


def watch_until(hdap: Hdap, holds: Callable[[], bool], most: int = 20) -> None:
    """Watch until something is so: on a busy machine that takes more rounds."""
    for _ in range(most):
        if holds():
            return
        hdap("watch", "--rounds", "2")
    assert holds()


def states(hdap: Hdap) -> dict[str, str]:
    return {d["device"]: d["state"] for d in hdap("drift")[1]["devices"]}


def test_an_alert_opens_is_acknowledged_and_resolves(site: Site, hdap: Hdap) -> None:
    status, found, _ = hdap("watch", "--rounds", "4")
    assert status == ExitCode.DONE
    assert found["alerts"] == []
    learned = {d["device"]: d for d in hdap("drift")[1]["devices"]}
    assert all(d["baseline_ms"] > 0 and d["state"] == "ok" for d in learned.values())

    changed = now()
    control.drift(site.lab.state, "edge-02", 400)
    hdap("watch", "--until-alert", "--rounds", "40")
    alerts = hdap("alerts")[1]["alerts"]
    # All four share this machine, which may really become slower meanwhile.
    own = [a for a in alerts if a["scope"] == "device"]
    assert [(a["subject"], a["state"]) for a in own] == [("edge-02", "firing")]
    alert = own[0]
    assert alert["direction"] == "up"
    assert alert["size_percent"] > 60
    assert alert["emulated"]
    assert alert["model"] == "detector"
    assert alert["now_ms"] > 1.5 * alert["baseline_ms"]
    assert changed <= alert["onset_at"] <= alert["opened_at"]

    number = str(alert["alert"])
    acknowledged = hdap("alerts", "acknowledge", number, "--reason", "fan")[1]
    assert acknowledged["state"] == "acknowledged"
    devices = {d["name"]: d["alert"] for d in hdap("devices")[1]["devices"]}
    assert devices["edge-02"] == "acknowledged"
    assert devices["edge-01"] is None

    control.drift(site.lab.state, "edge-02", 0)
    watch_until(hdap, lambda: hdap("alerts", "show", number)[1]["state"] == "resolved")
    shown = hdap("alerts", "show", number)[1]
    what = [event["what"] for event in shown["history"]]
    assert what.index("opened") < what.index("acknowledged") < what.index("resolved")
    assert what[-1] == "resolved"


def test_accepting_an_alert_learns_a_new_baseline(site: Site, hdap: Hdap) -> None:
    control.drift(site.lab.state, "edge-04", 400)
    hdap("watch", "--until-alert", "--rounds", "40")
    alert = next(a for a in hdap("alerts")[1]["alerts"] if a["state"] == "firing")
    assert alert["subject"] == "edge-04"
    status, _, said = hdap("alerts", "accept", str(alert["alert"]))
    assert status == ExitCode.REFUSED
    assert "--yes" in said
    accepted = hdap("alerts", "accept", str(alert["alert"]), "--yes")[1]
    assert accepted["state"] == "resolved"
    assert states(hdap)["edge-04"] == "learning"
    assert hdap("watch", "--rounds", "4")[1]["alerts"] == []
    watch_until(hdap, lambda: states(hdap)["edge-04"] == "ok")
    known = {d["device"]: d["baseline_ms"] for d in hdap("drift")[1]["devices"]}
    assert known["edge-04"] > 1.5 * known["edge-01"]
    control.drift(site.lab.state, "edge-04", 0)


def test_two_never_watch_one_fleet(site: Site, hdap: Hdap) -> None:
    with (site.lab.state / "watch.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, said = hdap("watch", "--rounds", "1")
    assert status == ExitCode.REFUSED
    assert "watches this fleet already" in said


def test_a_model_whose_file_is_gone_costs_only_who_runs_it(site: Site, hdap: Hdap) -> None:
    assert hdap("devices", "check")[0] == ExitCode.DONE
    own = network(site.folder / "own.onnx", layers=1)
    with closing(open_store(load(site.file).database)) as store:
        devices.set_model(store, "edge-02", from_file(store, own).digest)
    own.unlink()
    others = {"edge-01", "edge-03", "edge-04"}
    status, found, said = hdap("sweep")
    assert status == ExitCode.DONE
    assert f"edge-02 runs own, whose file {own} is gone; put it back." in said
    assert {m["device"] for m in found["measurements"]} == others
    shown = {d["name"]: d for d in hdap("devices")[1]["devices"]}
    assert {name for name in shown if shown[name]["state"] == "ok"} == others
    assert "is gone; put it back." in shown["edge-02"]["detail"]

    before = {d["device"]: d["latency_ms"] for d in hdap("drift")[1]["devices"]}
    assert hdap("watch", "--rounds", "1")[0] == ExitCode.DONE
    after = {d["device"]: d["latency_ms"] for d in hdap("drift")[1]["devices"]}
    assert {name for name in after if after[name] != before[name]} == others

    lost = network(site.folder / "lost.onnx", layers=1, note="another")
    with closing(open_store(load(site.file).database)) as store:
        for name in others:
            devices.set_model(store, name, from_file(store, lost).digest)
    lost.unlink()
    status, _, said = hdap("sweep")
    assert status == ExitCode.FAILED, "nobody is left, of either model"
    assert "is gone; put it back." in said
    assert hdap("sweep", "--select", "edge-02")[0] == ExitCode.FAILED
