"""Operate a fleet from the command line: sweep, clusters, bench, trust, deploy, roll back."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from operating import Hdap, Site, caller, network

from hdap_tui.errors import ExitCode
from hdap_tui.lab import control
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Plan

SETTINGS = """
[[models]]
name = "slow"
path = "slow.onnx"
[[models]]
name = "compute"
path = "builtin:compute"
probe = true
[[models]]
name = "dispatch"
path = "builtin:dispatch"
probe = true
[benchmark]
runs = 10
warmup_runs = 3
warmup_s = 0.02
block_s = 0.05
blocks_min = 3
blocks_max = 3
time_limit_s = 30
[deploy]
stages = ["1 per cluster", "100 %"]
blocks = 8
margin_percent = 10
"""


@pytest.fixture(scope="module")
def site(make_lab: Callable[..., LabInfo], tmp_path_factory: pytest.TempPathFactory) -> Site:
    lab = make_lab(3, plan=Plan(step_at_s=None))
    file = tmp_path_factory.mktemp("site") / "fleet.toml"
    file.write_text(fleet_toml(lab, SETTINGS))
    network(file.parent / "slow.onnx", layers=18)
    network(file.parent / "same.onnx", layers=18, note="the same network in another file")
    network(file.parent / "fast.onnx", layers=3)
    return Site(lab, file)


@pytest.fixture
def hdap(site: Site, capsys: pytest.CaptureFixture[str]) -> Hdap:
    return caller(site, capsys)


def link(site: Site, device: str, name: str) -> str:
    path = site.lab.device(device).home / ".hdap" / name
    return path.readlink().stem if path.is_symlink() else ""


def test_a_sweep_measures_every_device_and_says_that_they_are_emulated(hdap: Hdap) -> None:
    status, document, _ = hdap("sweep")
    assert status == ExitCode.DONE
    measured = {(m["device"], m["model"]) for m in document["measurements"] if not m["error"]}
    assert measured == {
        (d, m) for d in ("edge-01", "edge-02", "edge-03") for m in ("slow", "compute", "dispatch")
    }
    assert all(m["emulated"] for m in document["measurements"])
    assert set(document["clusters"]["labels"]) == {"edge-01", "edge-02", "edge-03"}

    status, listed, _ = hdap("devices")
    assert status == ExitCode.DONE
    assert all(d["emulated"] and d["state"] == "ok" for d in listed["devices"])
    assert all(d["latency_ms"] > 0 for d in listed["devices"])
    shown = hdap("devices", "show", "edge-02")[1]
    assert {p["model"] for p in shown["history"]} == {"slow", "compute", "dispatch"}
    assert shown["conditions"]["threads"] == 1


def test_a_device_that_is_off_costs_only_itself_and_the_status_says_partly(
    site: Site, hdap: Hdap
) -> None:
    control.fault(site.lab.state, "edge-02", "refuse")
    try:
        status, document, _ = hdap("bench", "dispatch")
        checked = {d["name"]: d for d in hdap("devices", "check")[1]["devices"]}
    finally:
        control.fault(site.lab.state, "edge-02", "none")
    assert status == ExitCode.PARTLY
    assert {m["device"]: m["error"] for m in document["measurements"]} == {
        "edge-01": "",
        "edge-02": "refused",
        "edge-03": "",
    }
    assert checked["edge-02"]["error"] == "refused"
    assert checked["edge-01"]["ok"]
    assert checked["edge-01"]["onnxruntime"]
    states = {d["name"]: d["state"] for d in hdap("devices", "list")[1]["devices"]}
    assert states == {"edge-01": "ok", "edge-02": "off", "edge-03": "ok"}


def test_when_every_device_is_off_the_status_says_unreachable(site: Site, hdap: Hdap) -> None:
    names = ("edge-01", "edge-02", "edge-03")
    for name in names:
        control.fault(site.lab.state, name, "refuse")
    try:
        status, _, _ = hdap("bench", "dispatch")
    finally:
        for name in names:
            control.fault(site.lab.state, name, "none")
    assert status == ExitCode.UNREACHABLE


def test_a_changed_host_key_is_refused_with_both_fingerprints_until_it_is_accepted(
    site: Site, hdap: Hdap
) -> None:
    before = site.lab.device("edge-03").host_key_sha256
    control.fault(site.lab.state, "edge-03", "host-key-changed")
    try:
        checked = {d["name"]: d for d in hdap("devices", "check")[1]["devices"]}
        assert checked["edge-03"]["error"] == "host key changed"
        assert before in checked["edge-03"]["detail"]
        assert "hdap devices trust" in checked["edge-03"]["detail"]

        status, _, said = hdap("devices", "trust")
        assert status == ExitCode.REFUSED
        assert "SHA256:" in said
        status, accepted, _ = hdap("devices", "trust", "--yes")
        assert status == ExitCode.DONE
        assert list(accepted["accepted"]) == ["edge-03"]
        assert accepted["known"] == 2
        assert hdap("devices", "check")[0] == ExitCode.DONE
    finally:
        control.fault(site.lab.state, "edge-03", "none")
    assert hdap("devices", "trust", "--yes")[1]["accepted"] == {"edge-03": before}


def test_a_dry_run_says_who_would_get_what_and_touches_nothing(site: Site, hdap: Hdap) -> None:
    hdap("bench", str(site.folder / "fast.onnx"), "--select", "edge-01")
    status, planned, _ = hdap("deploy", "fast", "--dry-run")
    assert status == ExitCode.DONE
    assert sorted(name for stage in planned["stages"] for name in stage) == [
        "edge-01",
        "edge-02",
        "edge-03",
    ]
    assert len(planned["stages"]) == 2
    assert link(site, "edge-01", "current") == ""


def test_without_yes_and_without_a_terminal_nothing_is_deployed(site: Site, hdap: Hdap) -> None:
    status, document, said = hdap("deploy", "fast")
    assert status == ExitCode.REFUSED
    assert document is None
    assert "--yes" in said
    assert link(site, "edge-01", "current") == ""


def test_a_model_that_is_not_faster_is_put_back_after_the_first_stage(
    site: Site, hdap: Hdap
) -> None:
    hdap("bench", str(site.folder / "same.onnx"), "--select", "edge-01")
    status, report, _ = hdap("deploy", "same", "--yes")
    assert status == ExitCode.FAILED
    assert report["state"] == "rolled back"
    # The same network against itself: the A/A comparison.
    assert report["verdict"] in {"no difference", "inconclusive"}
    assert report["switched"] == 0
    assert len(report["per_device"]) < 3
    models = {d["name"]: d["model"] for d in hdap("devices")[1]["devices"]}
    assert set(models.values()) == {"slow"}


def test_a_faster_model_goes_to_every_device_is_proven_and_can_be_taken_back(
    site: Site, hdap: Hdap
) -> None:
    status, report, _ = hdap("deploy", "fast", "--yes")
    assert status == ExitCode.DONE
    assert report["state"] == "finished"
    assert report["emulated"]
    assert report["verdict"] == "faster"
    assert 1.5 < report["low"] < report["speedup"] < report["high"]
    assert [d["verdict"] for d in report["per_device"]] == ["faster"] * 3
    fast = {m["name"]: m["digest"] for m in hdap("models")[1]["models"]}["fast"]
    assert [link(site, d, "current") for d in ("edge-01", "edge-02", "edge-03")] == [fast] * 3
    assert {d["model"] for d in hdap("devices")[1]["devices"]} == {"fast"}
    again, nothing, _ = hdap("deploy", "fast", "--yes")
    assert again == ExitCode.DONE
    assert (nothing["deployment"], nothing["state"]) == (None, "finished")
    assert nothing["runs_on"] == ["edge-01", "edge-02", "edge-03"]
    unknown, _, said = hdap("deployments", "show", "99")
    assert unknown == ExitCode.USAGE
    assert 'There is no deployment 99; "hdap deployments" lists them.' in said

    status, back, _ = hdap("rollback", "--yes")
    assert status == ExitCode.DONE
    assert sorted(back["rolled_back"]) == ["edge-01", "edge-02", "edge-03"]
    slow = {m["name"]: m["digest"] for m in hdap("models")[1]["models"]}["slow"]
    assert [link(site, d, "current") for d in ("edge-01", "edge-02", "edge-03")] == [slow] * 3
    assert hdap("models")[1]["deployments"][0]["state"] == "rolled back"
    # What was taken back is nothing to go back to.
    assert [link(site, d, "previous") for d in ("edge-01", "edge-02", "edge-03")] == [""] * 3
    assert hdap("rollback", "--yes")[0] == ExitCode.REFUSED


def test_in_read_only_mode_nothing_is_deployed(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    other = site.folder / "read-only.toml"
    other.write_text(
        site.file.read_text().replace('name = "lab"', 'name = "lab"\nread_only = true')
    )
    call = caller(Site(site.lab, other), capsys)
    assert call("deploy", "fast", "--dry-run")[0] == ExitCode.DONE
    status, _, said = call("deploy", "fast", "--yes")
    assert status == ExitCode.REFUSED
    assert "read_only" in said


def test_a_model_with_other_inputs_is_not_deployed(site: Site, hdap: Hdap) -> None:
    other = onnx.load(site.folder / "fast.onnx")
    other.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 48
    other.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 48
    onnx.save(other, site.folder / "other.onnx")
    assert hdap("bench", str(site.folder / "other.onnx"), "--select", "edge-01")[0] == 0
    status, _, said = hdap("deploy", "other", "--yes")
    assert status == ExitCode.REFUSED
    assert "its inputs or outputs are others" in said


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("bench", "broken.onnx"), ExitCode.USAGE, "not an ONNX model"),
        (("bench", "missing.onnx"), ExitCode.USAGE, "no file"),
        (("bench", "comput"), ExitCode.USAGE, 'did you mean "compute"'),
        (("bench", "--select", "edge-9"), ExitCode.USAGE, "edge-9"),
        (("devices", "show", "edge-0"), ExitCode.USAGE, "did you mean"),
        (("deploy", "nonsense", "--yes"), ExitCode.USAGE, "nonsense"),
        (("deploy", "dispatch", "--yes"), ExitCode.REFUSED, "a probe"),
        (("compress", "--data", "empty"), ExitCode.USAGE, "empty"),
        (("compress", "--weights", "none.safetensors"), ExitCode.USAGE, "no file"),
        (("compress", "--network", "resnet21"), ExitCode.USAGE, "resnet20"),
        (("compress", "--network", "vgg16"), ExitCode.USAGE, "weights"),
        (("compress", "--network", "none.onnx"), ExitCode.USAGE, "no file"),
        (("compress", "--epochs", "-1"), ExitCode.USAGE, "finetune.epochs"),
        (("demo", "--devices", "1"), ExitCode.USAGE, "--devices"),
        (("jobs", "show", "compress-9"), ExitCode.USAGE, "no job"),
        (("alerts", "show", "99"), ExitCode.USAGE, "99"),
        (("clusters", "--input", "broken.onnx"), ExitCode.USAGE, "broken.onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_sentence_with_its_own_status(
    site: Site,
    hdap: Hdap,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: ExitCode,
    words: str,
) -> None:
    monkeypatch.chdir(site.folder)
    (site.folder / "broken.onnx").write_bytes(b"device,\xff\x00 not a model")
    (site.folder / "empty").mkdir(exist_ok=True)
    found, document, said = hdap(*arguments)
    sentences = [line for line in said.splitlines() if line.startswith("hdap: ")]
    assert found == status
    assert document is None
    assert len(sentences) == 1
    assert words in sentences[0]
    assert "Traceback" not in said
