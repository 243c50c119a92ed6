"""The search for a precision a layer: what it finds, what it never does twice, how it goes on."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engine import data
from engine.compress import quantizer as written
from engine.compress.bits import Chosen, Effort, Reward, Trial, search_precision
from engine.compress.bits_trial import Record
from engine.compress.executed import executed
from engine.compress.export import Template
from engine.compress.inference import session
from engine.compress.mixtures import Mixtures
from engine.compress.quantize import onnx_accuracy
from engine.events import AnyEvent, Finished, Noted, Reporter, Scored

EFFORT = Effort(rounds=8, policies=6, seed=1)


class Counting:
    """A made-up latency, 1 ms a layer in float and 0.4 ms in integers, that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> float:
        self.calls += 1
        found = executed(path)
        return len(found.floating) + 0.4 * len(found.integer)


@pytest.fixture(scope="module")
def source(
    reader: nn.Module,
    digits: data.Dataset,
    reader_template: Template,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The reader with one channel between its first two layers that 8 bits cannot hold."""
    model: Any = copy.deepcopy(reader)
    with torch.no_grad():
        x = model[:2](torch.from_numpy(digits.calibration_images).float() / 255)
        channel = int(x.mean((0, 2, 3)).argmax())
        model[0].weight[channel] *= 2000
        model[0].bias[channel] *= 2000
        model[2].weight[:, channel] /= 2000
    return reader_template.write(model, tmp_path_factory.mktemp("float") / "m.onnx").path


@pytest.fixture(scope="module")
def search(source: Path, digits: data.Dataset) -> Callable[..., Chosen | None]:
    def run(target: Path, latency: Callable[[Path], float], **more: Any) -> Chosen | None:
        return search_precision(
            source, target, digits.calibration_images, digits.selection_images,
            digits.selection_labels, latency, **{"effort": EFFORT, **more},
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def found(
    search: Callable[..., Chosen], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Chosen, Counting, Path, list[AnyEvent]]:
    """An undisturbed search: what it found, its latency, its record and what it said."""
    folder, latency = tmp_path_factory.mktemp("search"), Counting()
    events: list[AnyEvent] = []
    reporter = Reporter("job", events.append)
    record = folder / "record.jsonl"
    chosen = search(folder / "best.onnx", latency, record=record, reporter=reporter)
    return chosen, latency, record, events


def test_it_finds_the_best_of_all_mixtures(
    found: tuple[Chosen, Counting, Path, Any], source: Path, digits: data.Dataset, tmp_path: Path
) -> None:
    chosen = found[0]
    assert [c.layer.name for c in chosen.layers] == ["0", "2", "4", "7", "9"]
    assert [c.precision for c in chosen.layers] == ["fp32", "fp32", "int8", "int8", "int8"]
    mixtures = Mixtures(source, digits.calibration_images)
    images, labels, time = digits.selection_images, digits.selection_labels, Counting()
    whole, best = chosen.uniform["fp32"], -np.inf
    for policy in itertools.product(("fp32", "int8"), repeat=5):
        file, runs = mixtures.write(tmp_path / "m.onnx", policy)
        trial = Trial(
            runs, onnx_accuracy(file.path, images, labels), time(file.path), file.bytes, file.digest
        )
        best = max(best, Reward().of(trial, whole))
    assert chosen.reward == best > 0


def test_what_is_returned_is_what_is_executed_and_was_measured(
    found: tuple[Chosen, Counting, Path, Any], digits: data.Dataset
) -> None:
    chosen = found[0]
    assert executed(chosen.file.path).integer == ("4", "7", "9")
    assert tuple(c.precision for c in chosen.layers) == chosen.trial.policy
    assert chosen.trial.digest == chosen.file.digest
    assert chosen.trial.bytes == chosen.file.bytes == chosen.file.path.stat().st_size
    assert chosen.trial.latency_ms == Counting()(chosen.file.path)
    images, labels = digits.selection_images, digits.selection_labels
    assert chosen.trial.accuracy == onnx_accuracy(chosen.file.path, images, labels)


def test_the_float_and_the_all_int8_network_are_tried_and_never_better(
    found: tuple[Chosen, Counting, Path, Any],
) -> None:
    chosen = found[0]
    assert chosen.uniform["fp32"].policy == ("fp32",) * 5
    assert chosen.uniform["int8"].policy == ("int8",) * 5
    assert chosen.rewards["fp32"] == 0
    assert chosen.rewards["int8"] < 0  # it loses more than allowed
    assert chosen.uniform["int8"].accuracy < chosen.uniform["fp32"].accuracy - 0.1
    assert chosen.reward > max(chosen.rewards.values())


@pytest.mark.parametrize(
    ("cost", "winner"), [({"fp32": 1.0, "int8": 0.4}, "int8"), ({"fp32": 1.0, "int8": 3.0}, "fp32")]
)
def test_a_uniform_network_wins_where_nothing_is_better(
    search: Callable[..., Chosen], tmp_path: Path, cost: dict[str, float], winner: str
) -> None:
    def latency(path: Path) -> float:
        ran = executed(path)
        mixed = 5.0 if ran.integer and ran.floating else 0.0
        return mixed + cost["fp32"] * len(ran.floating) + cost["int8"] * len(ran.integer)

    chosen = search(
        tmp_path / "m.onnx", latency, reward=Reward(accuracy=0.0, maximum_drop=100.0),
        effort=Effort(rounds=1, policies=3),
    )  # fmt: skip
    assert {c.precision for c in chosen.layers} == {winner}
    assert chosen.reward == max(chosen.rewards.values())


def test_equal_mixtures_are_measured_once(found: tuple[Chosen, Counting, Path, Any]) -> None:
    chosen, latency, record, _ = found
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    policies = [tuple(line["asked"]) for line in lines if "asked" in line]
    assert len(policies) == len(set(policies)) == latency.calls == chosen.tried
    assert chosen.tried < EFFORT.rounds * EFFORT.policies + 3


def test_a_finished_search_started_again_measures_nothing_and_finds_the_same(
    found: tuple[Chosen, Counting, Path, Any], search: Callable[..., Chosen], tmp_path: Path
) -> None:
    chosen, _, record, _ = found
    again = search(tmp_path / "m.onnx", _never, record=record)
    assert again.file.digest == chosen.file.digest
    assert (again.trial, again.layers, again.tried) == (chosen.trial, chosen.layers, chosen.tried)


@pytest.mark.parametrize("asked", [0, 1, 9])
def test_cancelled_and_started_again_it_ends_in_the_same(
    found: tuple[Chosen, Counting, Path, Any],
    search: Callable[..., Chosen | None],
    tmp_path: Path,
    asked: int,
) -> None:
    chosen, undisturbed, whole, _ = found
    first, second, record = Counting(), Counting(), tmp_path / "record.jsonl"
    target = tmp_path / "m.onnx"
    stopped = search(target, first, record=record, cancelled=lambda: first.calls >= asked)
    assert stopped is None
    assert first.calls == asked
    assert not target.exists()
    if asked == 9:  # and then a power cut
        with record.open("a") as file:
            file.write('{"asked": ["fp32", "int8", "fp')
    resumed = search(target, second, record=record)
    assert resumed is not None
    assert resumed.file.digest == chosen.file.digest
    assert (resumed.trial, resumed.layers) == (chosen.trial, chosen.layers)
    assert first.calls + second.calls == undisturbed.calls
    assert record.read_text() == whole.read_text()


def test_a_latency_that_fails_because_of_the_cancel_is_no_error(
    search: Callable[..., Chosen | None], tmp_path: Path
) -> None:
    cancelled = False

    def latency(path: Path) -> float:
        nonlocal cancelled
        cancelled = True
        return float("nan")

    assert search(tmp_path / "m.onnx", latency, cancelled=lambda: cancelled) is None


def test_it_tells_of_its_rounds(found: tuple[Chosen, Counting, Path, list[AnyEvent]]) -> None:
    chosen, _, _, events = found
    curves: dict[str, list[Scored]] = {}
    for event in events:
        if isinstance(event, Scored):
            curves.setdefault(event.name, []).append(event)
    assert set(curves) == {"reward", "best reward", "uncertainty"}
    for curve in curves.values():
        assert [point.x for point in curve] == list(range(1, 9))
    best = [point.y for point in curves["best reward"]]
    assert best == sorted(best)
    assert best[-1] == pytest.approx(chosen.reward)
    said = [event.text for event in events if isinstance(event, Noted)]
    assert said[0].startswith("all in fp32: ")
    assert said[0].endswith(f" right, 5 ms, {chosen.uniform['fp32'].bytes / 1000:.0f} kB")
    assert isinstance(events[-1], Finished)
    assert events[-1].result["tried"] == chosen.tried


def test_the_table_says_how_large_and_how_sensitive_a_layer_is(
    found: tuple[Chosen, Counting, Path, Any],
) -> None:
    rows = found[0].layers
    assert [row.layer.weights for row in rows] == [432, 2304, 4608, 32768, 640]
    assert rows[3].why.startswith("80.4% of the weights, ")
    assert all(set(row.errors) == {"int8"} for row in rows)
    # The first two hold the channel that 8 bits cannot.
    errors = [row.errors["int8"] for row in rows]
    assert min(errors[:2]) > 3 * max(errors[2:])
    assert f"alone in int8 an error of {errors[0]:.2g}" in rows[0].why


def test_four_bits_where_bytes_count(search: Callable[..., Chosen], tmp_path: Path) -> None:
    chosen = search(
        tmp_path / "m.onnx", Counting(), actions=("fp32", "int8", "int4"),
        reward=Reward(latency=0.0, bytes=1.0, accuracy=0.0, maximum_drop=2.0),
        effort=Effort(rounds=8, policies=6),
    )  # fmt: skip
    kinds = {c.layer.name: c.precision for c in chosen.layers}
    assert kinds["7"] == "int4"  # four fifths of the weights
    held = {i.name for i in onnx.load(chosen.file.path).graph.initializer}
    assert {f"{name}.int4" for name, kind in kinds.items() if kind == "int4"} <= held
    assert chosen.file.bytes < chosen.uniform["int8"].bytes < chosen.uniform["fp32"].bytes
    assert chosen.reward >= chosen.rewards["int4"]
    assert 100 * (chosen.uniform["fp32"].accuracy - chosen.trial.accuracy) <= 2.0


def test_a_real_timer_may_give_the_latency(search: Callable[..., Chosen], tmp_path: Path) -> None:
    x = np.zeros((1, 3, 32, 32), np.float32)

    def cpu_ms(path: Path) -> float:
        runtime, times = session(path), []
        for _ in range(20):
            start = time.thread_time()
            runtime.run(None, {"images": x})
            times.append(1000 * (time.thread_time() - start))
        return float(np.median(times))

    chosen = search(tmp_path / "m.onnx", cpu_ms, effort=Effort(rounds=1, policies=2))
    assert 0 < chosen.trial.latency_ms < 1000
    assert chosen.reward >= 0


def test_a_mixture_that_would_not_run_as_asked_is_passed_over(
    search: Callable[..., Chosen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it ONNX Runtime quantizes float convolutions between integers again.
    monkeypatch.setattr(written, "_shield", lambda graph: None)
    events: list[AnyEvent] = []
    record = tmp_path / "record.jsonl"
    chosen = search(
        tmp_path / "m.onnx", Counting(), reporter=Reporter("job", events.append), record=record
    )
    said = [event.text for event in events if isinstance(event, Noted)]
    assert any("cannot be had: ONNX Runtime would quantize 2 again" in text for text in said)
    refused = [json.loads(line) for line in record.read_text().splitlines()]
    refused = [line["asked"] for line in refused if "asked" in line and line["trial"] is None]
    assert len(refused) == sum("cannot be had" in text for text in said) > 0
    assert list(chosen.trial.policy) not in refused
    ran = executed(chosen.file.path).integer
    assert [c.precision == "int8" for c in chosen.layers] == [c.layer.name in ran
                                                              for c in chosen.layers]  # fmt: skip


def test_other_rewards_share_the_measurements(
    found: tuple[Chosen, Counting, Path, Any], search: Callable[..., Chosen], tmp_path: Path
) -> None:
    record = tmp_path / "record.jsonl"
    record.write_text(found[2].read_text())
    latency = Counting()
    reward = Reward(accuracy=0.0, maximum_drop=100.0)
    chosen = search(tmp_path / "m.onnx", latency, record=record, reward=reward)
    assert latency.calls < chosen.tried
    assert {c.precision for c in chosen.layers} == {"int8"}


def _trial(accuracy: float, milliseconds: float, size: int) -> Trial:
    return Trial(("fp32",), accuracy, milliseconds, size, "")


def test_the_reward_is_what_its_formula_gives() -> None:
    whole = _trial(0.9, 4.0, 1000)
    reward = Reward(latency=1.0, bytes=0.5, accuracy=0.1, maximum_drop=2.0, penalty=0.25)
    assert reward.of(whole, whole) == 0
    faster = reward.of(_trial(0.89, 2.0, 250), whole)
    assert faster == pytest.approx(np.log(2) + 0.5 * np.log(4) - 0.1)
    assert reward.of(_trial(0.92, 4.0, 1000), whole) == pytest.approx(0.2)
    # Too much accuracy lost is worth less than float, however fast, and less the more is lost.
    lost = [reward.of(_trial(accuracy, 0.01, 1), whole) for accuracy in (0.88, 0.87, 0.5)]
    assert lost[0] > 0 > lost[1] > lost[2]
    assert lost[1] == pytest.approx(-0.25)


def test_a_record_of_something_else_or_a_damaged_one_is_refused(
    found: tuple[Chosen, Counting, Path, Any],
    source: Path,
    digits: data.Dataset,
    search: Callable[..., Chosen],
    tmp_path: Path,
) -> None:
    record = tmp_path / "record.jsonl"
    record.write_text(found[2].read_text())
    with pytest.raises(ValueError, match="measured of another network, other images"):
        search_precision(
            source, tmp_path / "m.onnx", digits.calibration_images[:16], digits.selection_images,
            digits.selection_labels, _never, record=record,
        )  # fmt: skip
    lines = record.read_text().splitlines()
    bad = json.loads(lines[1])
    bad["trial"]["latency_ms"] = -1
    for line in ("no JSON", "{}", "[]", json.dumps(bad), '{"asked": ["int2"], "trial": null}'):
        record.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
        with pytest.raises(ValueError, match=r"record\.jsonl, line 2: not a measurement: remove"):
            search(tmp_path / "m.onnx", _never, record=record)
    record.write_text("7\n")
    with pytest.raises(ValueError, match="line 1: not a measurement"):
        Record(record, "x")


def _never(path: Path) -> float:
    raise AssertionError(f"{path} is measured")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"actions": ("fp32", "int2")}, "no precision int2: only fp32, int8, int4"),
        ({"actions": ("int8", "int4")}, "are fp32 and at least one other, .* not int8, int4"),
        ({"actions": ("fp32",)}, "are fp32 and at least one other, each once, not fp32"),
        ({"actions": ("fp32", "int8", "int8")}, "each once, not fp32, int8, int8"),
        ({"actions": ()}, "each once, not none"),
        ({"reward": Reward(latency=-1.0)}, "the reward's latency is 0 or more, not -1.0"),
        ({"reward": Reward(maximum_drop=float("nan"))}, "maximum_drop is 0 or more, not nan"),
        ({"reward": Reward(penalty=0.0)}, "the reward's penalty is above 0, not 0.0"),
        ({"reward": Reward(latency=0.0)}, "counts neither latency nor bytes"),
        ({"effort": Effort(rounds=0)}, "the search's rounds are 1 or more, not 0"),
        ({"effort": Effort(policies=0)}, "the search's policies are 1 or more, not 0"),
        ({"preset": "x86", "method": "guess"}, "ranges come by minmax"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    search: Callable[..., Chosen], tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        search(tmp_path / "m.onnx", _never, **changed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("milliseconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_latency_that_is_none_is_refused(
    search: Callable[..., Chosen], tmp_path: Path, milliseconds: float
) -> None:
    with pytest.raises(ValueError, match="a positive number of milliseconds"):
        search(tmp_path / "m.onnx", lambda path: milliseconds)


def test_no_images_and_a_quantized_network_are_refused(
    found: tuple[Chosen, Counting, Path, Any], source: Path, digits: data.Dataset, tmp_path: Path
) -> None:
    calibration, images = digits.calibration_images, digits.selection_images
    labels, target = digits.selection_labels, tmp_path / "m.onnx"
    with pytest.raises(ValueError, match="quantization needs calibration images"):
        search_precision(source, target, calibration[:0], images, labels, _never)
    with pytest.raises(ValueError, match="accuracy needs images, and there are none"):
        search_precision(source, target, calibration, images[:0], labels[:0], _never)
    with pytest.raises(ValueError, match="already quantized: give the float network"):
        search_precision(found[0].file.path, target, calibration, images, labels, _never)
    with pytest.raises(ValueError, match="not a readable ONNX file"):
        search_precision(tmp_path / "absent.onnx", target, calibration, images, labels, _never)
