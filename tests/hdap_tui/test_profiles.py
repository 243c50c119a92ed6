"""Models side by side: what their files, the store and test images tell of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import onnx
import pytest
from colours import classifier, dataset
from operating import Ended, Site, hdap, network

from engine.latency import Latency
from hdap_tui.cli.app import run
from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Plan
from hdap_tui.store import devices, measurements, models
from hdap_tui.store.database import Store, open_store

FLEET = """
[fleet]
name = "t"
state = "state"
[[devices]]
name = "left"
host = "127.0.0.1"
[[devices]]
name = "right"
host = "127.0.0.1"
emulated = true
[[models]]
name = "slow"
path = "slow.onnx"
[[models]]
name = "fast"
path = "fast.onnx"
[[models]]
name = "tiny"
path = "tiny.onnx"
probe = true
"""


class Shelf:
    """A fleet's store with three models of real files, and no device that answers."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "fleet.toml"
        self.file.write_text(FLEET)
        network(folder / "slow.onnx", layers=4)
        network(folder / "fast.onnx", layers=1)
        network(folder / "tiny.onnx", layers=1, note="a probe")
        settings = load(self.file)
        self.store: Store = open_store(settings.database)
        devices.sync(self.store, settings.devices)

    def compare(self, *arguments: str) -> Ended:
        return hdap(self.file, "models", "compare", *arguments)

    def rows(self, *arguments: str) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.compare(*arguments).data["models"]}

    def knows(self, name: str, **metrics: Any) -> None:
        models.set_metrics(self.store, models.find(self.store, name).digest, metrics)

    def timed(
        self, device: str, name: str, median: float, ago: timedelta = timedelta(), **more: Any
    ) -> None:
        digest = models.find(self.store, name).digest
        values = {
            "low_ms": 0.98 * median, "high_ms": 1.02 * median, "p90_ms": 1.1 * median, "n": 60,
            "block_medians_ms": (median,), "at": (datetime.now(UTC) - ago).isoformat(), **more,
        }  # fmt: skip
        sweep = measurements.begin(self.store, "bench")
        measurements.add(
            self.store, sweep, Latency(device=device, model=digest, median_ms=median, **values)
        )
        measurements.finish(self.store, sweep)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    made.compare()  # takes the files of the settings in
    yield made
    made.store.close()


def test_sizes_are_counted_in_the_files_once_and_kept(shelf: Shelf) -> None:
    rows = shelf.rows()
    assert set(rows) == {"slow", "fast"}, "the probe is left out"
    weights = 32 * 32 * 9
    for name, layers in (("slow", 4), ("fast", 1)):
        row = rows[name]
        assert row["parameters"] == row["nonzeros"] == layers * weights
        assert row["macs"] == layers * weights * 24 * 24
        assert row["bytes"] == (shelf.file.parent / f"{name}.onnx").stat().st_size
        assert row["compressed_bytes"] < row["bytes"]
    kept = models.find(shelf.store, "slow").metrics["profile"]
    assert kept["macs"] == rows["slow"]["macs"]
    shelf.knows("slow", profile={**kept, "macs": 7})
    assert shelf.rows("slow")["slow"]["macs"] == 7, "what is kept is not counted again"


def test_latencies_are_those_of_the_device_that_measured_most_or_of_the_one_named(
    shelf: Shelf,
) -> None:
    shelf.timed("left", "slow", 4.0)
    shelf.timed("right", "slow", 9.0, ago=timedelta(hours=2))
    shelf.timed("right", "slow", 8.0, ago=timedelta(hours=1), energy_mj=12.5)
    shelf.timed("right", "fast", 3.0, ago=timedelta(hours=1))
    found = shelf.compare().data
    assert (found["device"], found["emulated"]) == ("right", True)
    rows = {row["name"]: row for row in found["models"]}
    latency = rows["slow"]["latency"]
    assert latency["median_ms"] == 8.0, "the newest counts"
    assert latency["p90_ms"] == pytest.approx(8.8)
    assert (latency["energy_mj"], latency["emulated"]) == (12.5, True)
    assert rows["fast"]["latency"]["energy_mj"] is None
    named = shelf.compare("--device", "left").data
    assert (named["device"], named["emulated"]) == ("left", False)
    assert {r["name"]: r["latency"] for r in named["models"]}["fast"] is None
    shelf.timed("left", "fast", 2.0)
    assert shelf.compare().data["device"] == "left", "of two that measured both, the newer"


def test_the_fleet_mean_is_over_the_devices_that_measured_all(shelf: Shelf) -> None:
    shelf.timed("left", "slow", 4.0)
    shelf.timed("right", "slow", 8.0)
    assert shelf.compare("slow").data["fleet_devices"] == 2
    assert shelf.rows("slow")["slow"]["fleet_mean_ms"] == 6.0
    shelf.timed("right", "fast", 3.0)
    found = shelf.compare().data
    assert found["fleet_devices"] == 1
    assert {r["name"]: r["fleet_mean_ms"] for r in found["models"]} == {"slow": 8.0, "fast": 3.0}


def test_the_front_holds_what_no_other_beats_and_nothing_of_unknown_accuracy(
    shelf: Shelf, tmp_path: Path
) -> None:
    network(tmp_path / "third.onnx", layers=2)
    for name, ms in (("slow", 5.0), ("fast", 2.0)):
        shelf.timed("left", name, ms)
    shelf.knows("slow", test_accuracy=0.95)
    rows = shelf.rows()
    assert (rows["slow"]["on_front"], rows["fast"]["on_front"]) == (True, False)
    shelf.knows("fast", test_accuracy=0.95)
    rows = shelf.rows()
    assert (rows["slow"]["on_front"], rows["fast"]["on_front"]) == (False, True)
    shelf.knows("slow", test_accuracy=0.97)
    shelf.compare(str(tmp_path / "third.onnx"))
    shelf.timed("left", "third", 6.0)
    shelf.knows("third", test_accuracy=0.96)
    assert {n: r["on_front"] for n, r in shelf.rows().items()} == {
        "slow": True, "fast": True, "third": False,
    }  # fmt: skip


def test_what_is_missing_is_named_with_the_command_that_adds_it(shelf: Shelf) -> None:
    nothing = shelf.compare()
    assert nothing.status == ExitCode.DONE
    assert nothing.data["device"] is None
    assert "Not measured: fast, slow. hdap bench fast slow --compare does it." in _notes(nothing)
    shelf.timed("right", "slow", 8.0)
    found = _notes(shelf.compare())
    command = "hdap bench slow fast --compare --select right does it."
    assert f"Not measured on right: fast. {command}" in found
    assert "No test accuracy is known of fast, slow: --data DATA finds it out." in found
    (alone, *_) = (n for n in _notes(shelf.compare("fast")) if n.startswith("Not"))
    assert alone == "Not measured: fast. hdap bench fast does it."


def test_old_measurements_tell_their_age(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.timed("left", "slow", 5.0, ago=timedelta(days=9))
    shelf.timed("left", "fast", 2.0, ago=timedelta(hours=3))
    assert run(["--config", str(shelf.file), "models", "compare"], lambda _c: 0) == ExitCode.DONE
    header, *lines = capsys.readouterr().out.splitlines()
    ages = {line.split("\t")[0]: line.split("\t")[header.split("\t").index("measured")]
            for line in lines[:2]}  # fmt: skip
    assert ages == {"slow": "9 d ago", "fast": "3 h ago"}
    assert "They were measured up to 8 d apart: hdap bench fast slow --compare --select left" in (
        "\n".join(lines)
    )


def test_accuracy_is_found_out_on_test_images_where_it_is_not_known(
    shelf: Shelf, tmp_path: Path
) -> None:
    right = dataset(tmp_path / "pictures.npz", 200)
    for number in (16, 17):
        classifier(tmp_path / f"seer-{number}.onnx", opset=number)
    files = [str(tmp_path / f"seer-{number}.onnx") for number in (16, 17)]
    shelf.compare(*files)
    shelf.knows("seer-17", test_accuracy=0.5, data="others")
    ended = shelf.compare(*files, "--data", str(tmp_path / "pictures.npz"))
    assert ended.status == ExitCode.DONE
    rows = {row["name"]: row for row in ended.data["models"]}
    assert rows["seer-16"]["test_accuracy"] == right
    assert (rows["seer-16"]["parameters"], rows["seer-16"]["macs"]) == (0, 0)
    assert rows["seer-17"]["test_accuracy"] == 0.5, "what is known stays"
    assert models.find(shelf.store, "seer-16").metrics["test_accuracy"] == right
    assert any("different images (others, pictures)" in note for note in _notes(ended))


def test_images_that_a_model_cannot_read_cost_its_own_accuracy_only(
    shelf: Shelf, tmp_path: Path
) -> None:
    right = dataset(tmp_path / "pictures.npz", 200)
    seer = str(classifier(tmp_path / "seer.onnx"))
    ended = shelf.compare("slow", seer, "--data", str(tmp_path / "pictures.npz"))
    assert ended.status == ExitCode.PARTLY
    rows = {row["name"]: row for row in ended.data["models"]}
    assert (rows["slow"]["test_accuracy"], rows["seer"]["test_accuracy"]) == (None, right)
    assert rows["slow"]["macs"]
    assert any("slow" in n and "reads images" in n for n in _notes(ended))
    absent = shelf.compare(seer, "slow", "--data", "nowhere.npz")
    assert any("nowhere.npz: no such dataset" in note for note in _notes(absent))
    assert "Traceback" not in absent.said


def test_a_file_that_is_gone_broken_or_another_by_now_costs_its_own_row(
    shelf: Shelf, tmp_path: Path
) -> None:
    paths = {name: network(tmp_path / f"{name}.onnx", layers=2, note=name) for name in "abc"}
    store = shelf.store
    for name, path in paths.items():
        content = path.read_bytes() if name != "b" else b"nothing"
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        models.add(store, name=name, digest=digest, path=path, kind="artifact", size=len(content))
    paths["a"].unlink()
    network(paths["c"], layers=3)
    ended = shelf.compare()
    assert ended.status == ExitCode.PARTLY
    rows = {row["name"]: row for row in ended.data["models"]}
    assert set(rows) == {"a", "b", "c", "slow", "fast"}
    assert [rows[name]["macs"] for name in "abc"] == [None] * 3
    assert rows["slow"]["macs"] is not None
    notes = _notes(ended)
    assert f"a: its file {paths['a']} is gone; put it back." in notes
    assert any(n.startswith(f"b: {paths['b']}: not a readable ONNX file") for n in notes)
    assert f"c: its file is gone; {paths['c']} holds another model now." in notes


def test_a_file_of_the_settings_that_is_gone_is_told_and_the_rest_is_shown(shelf: Shelf) -> None:
    (shelf.file.parent / "fast.onnx").unlink()
    ended = shelf.compare()
    assert ended.status == ExitCode.DONE, "its sizes were counted before"
    assert {row["name"] for row in ended.data["models"]} == {"slow", "fast"}
    assert sum("fast.onnx is gone" in note for note in _notes(ended)) == 1


def test_a_sparse_model_is_said_to_gain_nothing(shelf: Shelf, tmp_path: Path) -> None:
    proto = onnx.load(tmp_path / "slow.onnx")
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[:16] = 0
        tensor.raw_data = values.tobytes()
    onnx.save(proto, tmp_path / "sparse.onnx")
    shelf.compare(str(tmp_path / "sparse.onnx"))
    row = shelf.rows()["sparse"]
    assert row["nonzeros"] == row["parameters"] / 2
    assert row["remark"] == "50% of its weights are zero, by which dense kernels gain nothing"
    shelf.timed("left", "slow", 5.0)
    shelf.timed("left", "sparse", 5.05)
    rows = shelf.rows()
    assert rows["sparse"]["remark"].endswith("dense kernels gain nothing: it takes as long as slow")
    assert rows["slow"]["remark"] == ""
    shelf.timed("left", "sparse", 3.0)
    assert "as long" not in shelf.rows()["sparse"]["remark"]


def test_markdown_is_a_table_that_names_cannot_break(
    shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    models.add(
        shelf.store, name="a|b\\c", digest="ab" * 32, path="/none", kind="artifact", size=1000
    )
    arguments = ["--config", str(shelf.file), "models", "compare", "--markdown"]
    assert run(arguments, lambda _context: 0) == ExitCode.PARTLY
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3
    assert lines[: len(table)] == table
    assert lines[len(table)] == ""
    assert table[1].replace("|", "").replace(" ", "").strip("-") == ""
    widths = {line.replace("\\\\", "").replace("\\|", "").count("|") for line in table}
    assert len(widths) == 1
    assert any("a\\|b\\\\c" in line for line in table)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("slwo",), 'no model is called "slwo"; did you mean "slow"?'),
        (("slow", "--device", "lefft"), 'no device is called "lefft"; did you mean "left"?'),
        (("absent.onnx",), "absent.onnx"),
    ],
)
def test_a_wrong_name_is_one_sentence(shelf: Shelf, arguments: tuple[str, ...], said: str) -> None:
    ended = shelf.compare(*arguments)
    assert ended.status == ExitCode.USAGE
    assert ended.data is None
    assert said in ended.said
    assert ended.said.count("\n") == 1


def test_what_was_timed_on_real_devices_is_compared_there(
    make_lab: Callable[..., LabInfo], tmp_path: Path
) -> None:
    site = Site(make_lab(2, plan=Plan(step_at_s=None)), tmp_path / "fleet.toml")
    quick = (
        "[benchmark]\nruns = 5\nwarmup_s = 0.0\nblock_s = 0.02\nblocks_min = 2\nblocks_max = 2\n"
    )
    named = '[[models]]\nname = "slow"\npath = "slow.onnx"\n'
    site.file.write_text(fleet_toml(site.lab, quick + named))
    network(site.folder / "slow.onnx", layers=18)
    fast = network(site.folder / "fast.onnx", layers=1)
    assert hdap(site.file, "bench", "slow", str(fast), "--compare").status == ExitCode.DONE
    ended = hdap(site.file, "models", "compare", "slow", "fast")
    assert ended.status == ExitCode.DONE, ended.said
    assert ended.data["fleet_devices"] == 2
    rows = {row["name"]: row for row in ended.data["models"]}
    assert rows["slow"]["latency"]["median_ms"] > rows["fast"]["latency"]["median_ms"] > 0
    assert rows["slow"]["fleet_mean_ms"] > rows["fast"]["fleet_mean_ms"]
    assert rows["slow"]["latency"]["p90_ms"] >= rows["slow"]["latency"]["median_ms"]
    assert ended.data["emulated"] is True


def _notes(ended: Ended) -> list[str]:
    notes: list[str] = ended.data["notes"]
    assert json.dumps(notes)
    return notes
