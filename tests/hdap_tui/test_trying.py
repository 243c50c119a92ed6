"""Test images are shown to a model on real lab devices, and on servers whose devices lie."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from colours import classifier, dataset, pictures
from left_over import nothing_left
from operating import Site, errors, hdap, listed
from sshd import Sshd, fleet_toml
from test_hostile import PYTHON

from engine import runner
from hdap_tui import images
from hdap_tui.actions.trying import try_model
from hdap_tui.config import load
from hdap_tui.context import Context
from hdap_tui.errors import ExitCode
from hdap_tui.lab import control
from hdap_tui.lab import fleet_file as lab_file
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.profiles import Plan
from hdap_tui.ssh.payload import Payload
from hdap_tui.visit import Bench

SETTINGS = """
[compression]
data = "pictures.npz"
[benchmark]
warmup_runs = 1
warmup_s = 0.0
blocks_min = 2
lease_s = 10
[[models]]
name = "colours"
path = "colours.onnx"
"""
COUNT = 1200
NAMES = ("edge-01", "edge-02", "edge-03")


@pytest.fixture(scope="module")
def site(make_lab: Callable[..., LabInfo], tmp_path_factory: pytest.TempPathFactory) -> Site:
    lab = make_lab(len(NAMES), plan=Plan(step_at_s=None))
    folder = tmp_path_factory.mktemp("trying")
    file = folder / "fleet.toml"
    file.write_text(lab_file.fleet_toml(lab, SETTINGS))
    classifier(folder / "colours.onnx")
    dataset(folder / "pictures.npz", COUNT)
    return Site(lab, file)


def homes(site: Site) -> list[Path]:
    return [Path(site.lab.device(name).home) for name in NAMES]


def sent(site: Site) -> dict[str, tuple[int, int]]:
    """Return the files of images on the first device, with their size and when they came."""
    found = (homes(site)[0] / ".hdap" / "images").iterdir()
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_the_accuracy_on_each_device_is_that_of_the_test_images(site: Site, tmp_path: Path) -> None:
    right = dataset(tmp_path / "same.npz", COUNT)
    with nothing_left(homes(site), state=site.lab.state):
        ended = hdap(site.file, "try", "colours")
    assert ended.status == ExitCode.DONE, ended.said
    told = ended.data
    assert (told["model"], told["data"]) == ("colours", "pictures")
    assert (told["images"], told["test_images"]) == (COUNT, COUNT)
    assert told["accuracy_here"] == pytest.approx(right) == pytest.approx(0.8)
    assert [one["device"] for one in told["measurements"]] == list(NAMES)
    for one in told["measurements"]:
        assert (one["images"], one["agreement"], one["emulated"]) == (COUNT, 1.0, True)
        assert one["accuracy"] == pytest.approx(right)
        assert 0 < one["median_ms"] <= one["p90_ms"]
        assert one["runs"] == COUNT
        assert one["total_s"] >= one["median_ms"] * COUNT / 4000
        assert one["energy_mj"] is None, "an emulated device has no sensor"
    assert told["fleet"] == {
        "devices": 3, "mean_accuracy": pytest.approx(right),
        "lowest_accuracy": pytest.approx(right), "lowest_device": "edge-01",
    }  # fmt: skip
    shown = hdap(site.file, "models", "show", "colours").data["metrics"]["device_accuracy"]
    assert shown["mean_accuracy"] == pytest.approx(right)
    assert (shown["data"], shown["images"]) == ("pictures", COUNT)
    assert {one["latency_ms"] for one in listed(site.file).values()} == {None}, "no baseline"


def test_images_that_are_there_are_not_sent_again(site: Site) -> None:
    asked = ("try", "colours", "--select", "edge-01", "--limit", "50")
    hdap(site.file, *asked)
    before = sent(site)
    assert [size for size, _ in before.values()].count(50 * 3 * 8 * 8) == 1
    hdap(site.file, *asked)
    assert sent(site) == before
    assert list(load(site.file).state_dir.glob("images-*")) == [], "and none is left here"


def test_a_limit_takes_fewer_images_and_says_what_that_means(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    from hdap_tui.cli.app import run

    arguments = ["try", "colours", "--limit", "90", "--select", "edge-02"]
    assert run(["--config", str(site.file), *arguments], lambda _context: 0) == ExitCode.DONE
    told = capsys.readouterr().out
    assert "\nedge-02\t90\t" in told
    assert "of 90 test images of pictures right on average over 1 device, " in told
    assert "%, on edge-02 (emulated)." in told
    assert "Fewer than 1000 images leave an accuracy uncertain" in told


def test_fewer_images_of_the_same_data_do_not_replace_what_is_known_better(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hdap_tui.cli.app import run

    def kept() -> dict[str, Any]:
        shown = hdap(site.file, "models", "show", "colours").data["metrics"]["device_accuracy"]
        assert isinstance(shown, dict)
        return shown

    def tried(*more: str) -> str:
        arguments = ["try", "colours", "--select", "edge-01", *more]
        assert run(["--config", str(site.file), *arguments], lambda _context: 0) == ExitCode.DONE
        return capsys.readouterr().out

    tried("--limit", "120")
    before = kept()
    assert before["images"] >= 120
    said = tried("--limit", "60")
    assert f"What {before['images']} images of pictures brought before stays" in said
    assert kept() == before
    dataset(tmp_path / "other.npz", 60)
    assert "stays with the model" not in tried("--images", str(tmp_path / "other.npz"))
    assert (kept()["data"], kept()["images"]) == ("other", 60)


def test_data_with_few_test_images_shows_them_all_and_says_so(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hdap_tui.cli.app import run

    dataset(tmp_path / "few.npz", 60)
    arguments = ["try", "colours", "--images", str(tmp_path / "few.npz"), "--select", "edge-02"]
    assert run(["--config", str(site.file), *arguments], lambda _context: 0) == ExitCode.DONE
    assert "few has 60 test images; all of them were shown." in capsys.readouterr().out


def test_images_are_taken_evenly_over_the_classes_and_in_a_mixed_order() -> None:
    labels = np.repeat(np.arange(4), 500)
    taken = images.choose(labels, 1000)
    assert len(set(taken.tolist())) == 1000
    assert np.bincount(labels[taken]).tolist() == [250] * 4
    assert all(np.bincount(labels[taken[start : start + 250]]).min() > 30 for start in (0, 750))
    assert (images.choose(labels, 1000) == taken).all()
    assert sorted(images.choose(labels, 5000).tolist()) == list(range(2000))


def test_the_lease_outlasts_the_time_limit_and_the_runner_understands_the_request(
    tmp_path: Path,
) -> None:
    model = Payload.of(classifier(tmp_path / "colours.onnx"))
    packed = images.pack(pictures(10)[0], tmp_path, classes=3, blocks=4)
    assert (packed.each, packed.blocks) == (3, 4)
    bench = Bench(
        images=packed, blocks_min=4, blocks_max=4, block_s=0.1, time_limit_s=900.0, lease_s=20.0
    )
    request = bench.request([model], 0.5)
    assert request["lease_s"] == 920.0
    assert "labels" not in json.dumps(request)
    (tmp_path / "request.json").write_text(json.dumps(request))
    read = runner.read_request(str(tmp_path))
    assert (read["blocks_min"], read["blocks_max"], read["block_timeout_s"]) == (4, 4, 900.0)
    assert read["images"]["path"] == f"../../images/{packed.payload.digest}.u8"


def test_a_dead_device_costs_only_itself(site: Site) -> None:
    control.fault(site.lab.state, "edge-02", "refuse")
    try:
        ended = hdap(site.file, "try", "colours", "--limit", "60")
    finally:
        control.fault(site.lab.state, "edge-02", "none")
    assert ended.status == ExitCode.PARTLY
    assert errors(ended) == {"edge-01": "", "edge-02": "refused", "edge-03": ""}
    assert ended.data["fleet"]["devices"] == 2
    (dead,) = (one for one in ended.data["measurements"] if one["error"])
    assert (dead["accuracy"], dead["agreement"], dead["images"]) == (None, None, 0)


def test_a_cancelled_trial_leaves_nothing_behind(site: Site) -> None:
    settings = load(site.file)
    seen: set[str] = set()

    def on_stage(device: str, stage: str, _since_s: float | None = None, /) -> None:
        if stage.startswith("timing"):
            seen.add(device)

    dataset(site.folder / "many.npz", 20_000)
    with nothing_left(homes(site), state=site.lab.state):
        context = Context(settings=settings, cancelled=lambda: bool(seen), on_stage=on_stage)
        try:
            outcome = try_model(
                context, "colours", images=str(site.folder / "many.npz"), limit=20_000
            )
        finally:
            context.close()
    assert seen
    assert outcome.data["measurements"] == []
    assert outcome.data["fleet"] is None
    assert list(settings.state_dir.glob("images-*")) == []


def _vector(path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[n,8] x) => (float[n,8] y) {y = Relu(x)}'
    )
    onnx.save(onnx.parser.parse_model(text), path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("colors",), 'no model is called "colors"; did you mean "colours"'),
        (("none.onnx",), "there is no file"),
        (("colours", "--images", "large.npz"), "colours reads images 3x8x8, and these are 3x9x9"),
        (("colours", "--images", "two.npz"), "tells 3 classes apart, and the images are of 2"),
        (("colours", "--images", "empty"), "the folder is empty"),
        (("colours", "--images", "nowhere"), "no such dataset"),
        (("vector.onnx",), "not images [N, channels, height, width]"),
        (("new.onnx",), "cannot be run on this machine: the model has opset 99"),
        (("colours", "--limit", "0"), "--limit: 0 is no number of images"),
        (("colours", "--time-limit", "-1"), "--time-limit: -1 is no number of seconds"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    site: Site, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    folder = site.folder
    (folder / "empty").mkdir(exist_ok=True)
    dataset(folder / "large.npz", 40, side=9)
    with np.load(folder / "pictures.npz") as whole:
        labels = {
            "train_labels": whole["train_labels"] % 2,
            "test_labels": whole["test_labels"] % 2,
        }
        np.savez(folder / "two.npz", **{**whole, **labels, "classes": np.asarray(["a", "b"])})
    _vector(folder / "vector.onnx")
    new = onnx.load(folder / "colours.onnx")
    new.opset_import[0].version = 99
    onnx.save(new, folder / "new.onnx")
    monkeypatch.chdir(folder)
    ended = hdap(site.file, "try", *arguments)
    assert ended.status == ExitCode.USAGE
    *before, last = ended.said.strip().splitlines()
    assert said in last
    assert all(line.startswith("[") for line in before), "how far it came, and nothing else"


# ---- devices that lie, or whose runtime is old

LIES: dict[str, tuple[str, str]] = {
    # what the device does, and what is said about it
    "too few": ("entry['answers'].pop()", "has 199 answers to 200 images"),
    "too many": ("entry['answers'] += [0] * 300", "missing or too many"),
    "none": ("del entry['answers']", "missing or too many"),
    "no class": ("entry['answers'][7] = 3", "none of the 3 classes"),
    "a negative class": ("entry['answers'][7] = -1", "none of the 3 classes"),
    "a class as text": ("entry['answers'][7] = '1'", "none of the 3 classes"),
    "garbage": ("out = os.urandom(100000).replace(b'\\n', b' ') + b'\\n'", "make no sense"),
    "wrong answers": ("entry['answers'] = [(a + 1) % 3 for a in entry['answers']]", ""),
    "the truth": ("", ""),
}
OLD = """
__version__ = "1.9.0"
class SessionOptions:
    def add_session_config_entry(self, key, value): pass
class ExecutionMode:
    ORT_SEQUENTIAL = 0
def get_available_providers(): return ["CPUExecutionProvider"]
def InferenceSession(model, **_):
    raise Exception("Unsupported model IR version: 8, max supported IR version: 7")
"""


@pytest.fixture(scope="module")
def strange(
    make_sshds: Callable[..., list[Sshd]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, dict[str, str]]:
    """What came of a trial on all of them; the last device has an ONNX Runtime that is old."""
    servers = make_sshds(len(LIES) + 1, name="strange")
    folder = tmp_path_factory.mktemp("strange")
    (folder / "old").mkdir()
    (folder / "old" / "onnxruntime.py").write_text(OLD)
    scripts = [PYTHON.replace("{change}", change) for change, _ in LIES.values()]
    old = f'#!/bin/sh\nPYTHONPATH={folder / "old"} exec {sys.executable} "$@"\n'
    own = {}
    for server, script in zip(servers, [*scripts, old], strict=True):
        python = server.home / "python"
        python.write_text(script.replace("{python}", sys.executable))
        python.chmod(0o755)
        own[server.name] = 'python = "~/python"'
    classifier(folder / "colours.onnx")
    dataset(folder / "pictures.npz", 200)
    file = folder / "fleet.toml"
    file.write_text(fleet_toml(servers, folder / "state", sys.executable, SETTINGS, own))
    with nothing_left(servers=servers, state=load(file).state_dir):
        ended = hdap(file, "try", "colours")
    names = dict(zip([*LIES, "an old runtime"], (s.name for s in servers), strict=True))
    return ended, names


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_told_in_one_sentence_and_costs_only_its_device(
    strange: tuple[Any, dict[str, str]], lie: str
) -> None:
    ended, names = strange
    (found,) = (m for m in ended.data["measurements"] if m["device"] == names[lie])
    said = LIES[lie][1]
    assert said in found["detail"]
    assert bool(found["error"]) == bool(said)
    assert (found["accuracy"] is None) == bool(said)
    assert ended.status == ExitCode.PARTLY


def test_a_device_that_computes_something_else_disagrees_with_this_machine(
    strange: tuple[Any, dict[str, str]],
) -> None:
    ended, names = strange
    found = {one["device"]: one for one in ended.data["measurements"]}
    wrong, right = found[names["wrong answers"]], found[names["the truth"]]
    assert (wrong["agreement"], right["agreement"]) == (0.5, 1.0), "one block of two was changed"
    assert wrong["accuracy"] < right["accuracy"] == ended.data["accuracy_here"]
    assert ended.data["fleet"]["lowest_device"] == names["wrong answers"]


def test_a_runtime_that_is_too_old_for_the_model_is_one_sentence(
    strange: tuple[Any, dict[str, str]],
) -> None:
    ended, names = strange
    (found,) = (m for m in ended.data["measurements"] if m["device"] == names["an old runtime"])
    assert found["error"] == "model"
    assert "the ONNX Runtime here (1.9.0) takes IR version 7 at most" in found["detail"]
    assert "update ONNX Runtime on the device" in found["detail"]
