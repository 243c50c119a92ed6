"""Test images shown to a model, by the runner and on this machine; what came back is judged."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from colours import CLASSES, classifier, pictures

from engine import runner
from engine.classifier import Classifier
from engine.latency import Answered, Configuration, Latency
from engine.results import Case, Parsed, parse

RUNNER = Path(runner.__file__)
QUICK = {"warmup_runs": 1, "warmup_s": 0.0, "block_s": 0.0, "blocks_min": 9}
SHOWN, RIGHT = pictures(10)


def show(folder: Path, model: Path, **request: Any) -> list[dict[str, Any]]:
    """Run the runner over the images, four a block; return its lines."""
    folder.mkdir()
    data = SHOWN.tobytes()
    (folder / "images.u8").write_bytes(data)
    images = {
        "digest": hashlib.sha256(data).hexdigest(), "path": "images.u8", "shape": [3, 8, 8],
        "count": 10, "each": 4,
    }  # fmt: skip
    models = [{"digest": hashlib.sha256(model.read_bytes()).hexdigest(), "path": str(model)}]
    asked = {"version": 1, "models": models, "images": images, **QUICK, **request}
    (folder / "request.json").write_text(json.dumps(asked))
    command = [sys.executable, str(RUNNER), str(folder)]
    subprocess.run(command, timeout=60, start_new_session=True, check=False)
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def entries(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [next(iter(v["models"].values())) for v in lines if v["event"] == "block"]


# ---- on a device


@pytest.mark.parametrize(
    ("images", "batch", "inferences"),
    [
        ("float[n,3,8,8]", 1, [4, 4, 2]),
        ("float[n,3,8,8]", 3, [2, 2, 1]),
        ("float[3,3,8,8]", 1, [2, 2, 1]),
        ("float[n,c,h,w]", 2, [2, 2, 1]),
        ("float16[n,3,8,8]", 1, [4, 4, 2]),
        ("uint8[n,3,8,8]", 4, [1, 1, 1]),
    ],
)
def test_each_block_shows_its_part_of_the_images_each_once(
    tmp_path: Path, images: str, batch: int, inferences: list[int]
) -> None:
    found = entries(show(tmp_path / "job", classifier(tmp_path / "m.onnx", images), batch=batch))
    assert [len(one["answers"]) for one in found] == [4, 4, 2]
    assert [answer for one in found for answer in one["answers"]] == RIGHT
    assert [one["n"] for one in found] == inferences
    assert all(len(one["wall_ms"]) == one["n"] for one in found)


def test_images_are_read_as_floats_between_0_and_1() -> None:
    read = runner.as_read(np.array([0, 51, 255], np.uint8), "float32")
    assert read.tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert read.dtype == np.float32
    assert runner.as_read(SHOWN, "uint8") is SHOWN


@pytest.mark.parametrize(
    ("inputs", "body", "said"),
    [
        ("float[n,3,8,8] x, float[n,3,8,8] z", "y = Add(x, z)", "2 inputs"),
        ("int64[n,3,8,8] x", "y = Identity(x)", "int64"),
        ("float[n,3,9,9] x", "y = Identity(x)", "8"),
    ],
)
def test_a_model_that_does_not_read_the_images_is_one_sentence(
    tmp_path: Path, inputs: str, body: str, said: str
) -> None:
    kind = inputs.partition(" ")[0]
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({kind} y) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    lines = show(tmp_path / "job", tmp_path / "m.onnx")
    failed = next(line for line in lines if line["event"] == "failed")
    assert failed["error"] == "model"
    assert said in failed["detail"]


def test_a_file_of_images_with_another_content_is_shown_to_nobody(tmp_path: Path) -> None:
    images = {"digest": "0" * 64, "path": "images.u8", "shape": [3, 8, 8], "count": 10, "each": 4}
    last = show(tmp_path / "job", classifier(tmp_path / "m.onnx"), images=images)[-1]
    assert (last["event"], last["error"]) == ("failed", "runtime")
    assert "test images has another content" in last["detail"]


# ---- what came back

MODEL = "a" * 64
CASE = Case(model=MODEL, configuration=Configuration(), images=5, classes=CLASSES)
HELLO = {"event": "hello", "clock": 1.0}
DONE = {"event": "done", "models": {}, "stopped": "blocks"}


def told(*answers: Any, last: dict[str, Any] | None = DONE) -> Parsed:
    blocks = [
        {
            "event": "block",
            "block": number,
            "models": {
                MODEL: {
                    "wall_ms": [1.0], "cpu_ms": 1.0, "median_ms": 1.0, "mean_ms": 1.0,
                    "p90_ms": 1.0, "n": 1, "contended": 0.0, "answers": given,
                }
            },
        }
        for number, given in enumerate(answers)
    ]  # fmt: skip
    lines = [HELLO, *blocks, *([last] if last else [])]
    return parse([json.dumps(line).encode() + b"\n" for line in lines], "edge", [CASE])


def only(parsed: Parsed) -> Latency:
    return parsed.latencies[CASE.key]


def test_the_answers_of_all_blocks_are_one_row() -> None:
    found = only(told([0, 1, 2], [2, 0]))
    assert isinstance(found, Answered)
    assert found.answers == (0, 1, 2, 2, 0)
    assert (found.ok, found.n, found.median_ms) == (True, 2, 1.0)


@pytest.mark.parametrize(
    "answers",
    [
        ([0, 1, 2], [2]),
        ([0, 1, 2], [2, 0, 0]),
        ([0, 1, 2, 0, 1, 2],),
        ([0, 1, 2], [2, 3]),
        ([0, 1, 2], [2, -1]),
        ([0, 1, 2], [2, 1.0]),
        ([0, 1, 2], [2, True]),
        ([0, 1, 2], [2, None]),
        ([0, 1, 2], [2, 10**400]),
        ([0, 1, 2], "21"),
        ([0, 1, 2], None),
        ([0, 1, 2], []),
        ([0, 1, 2, 2, 0], {"0": 1}),
    ],
)
def test_answers_that_make_no_sense_are_told_in_one_sentence(answers: Any) -> None:
    found = only(told(*answers))
    assert not isinstance(found, Answered)
    assert found.error == "garbage"
    assert found.detail.startswith("The device's result")


def test_what_is_not_over_yet_is_unfinished_and_what_ran_out_of_time_says_how_far_it_came() -> None:
    running = told([0, 1, 2], last=None)
    assert not running.finished
    assert only(running).error == "unfinished"
    late = only(told([0, 1, 2], last=DONE | {"stopped": "time"}))
    assert (late.error, late.detail) == ("timeout", "The time limit ran out after 3 of 5 images.")
    lease = {"event": "failed", "model": None, "error": "lease", "detail": "nobody came"}
    assert only(told([0, 1, 2], last=lease)).error == "lease"


# ---- on this machine


@pytest.mark.parametrize("images", ["float[n,3,8,8]", "float[4,3,8,8]", "uint8[n,c,h,w]"])
def test_this_machine_gives_the_same_answers(tmp_path: Path, images: str) -> None:
    model = Classifier(classifier(tmp_path / "m.onnx", images), "m")
    model.accept(SHOWN, CLASSES)
    assert model.answers(SHOWN) == RIGHT
    assert model.answers(SHOWN, cancelled=lambda: True) == []


@pytest.mark.parametrize(
    ("images", "shape", "classes", "said"),
    [
        ("float[n,3,8,8]", (1, 3, 9, 9), 3, "m reads images 3x8x8, and these are 3x9x9"),
        ("float[n,3,8,8]", (1, 1, 8, 8), 3, "and these are 1x8x8"),
        ("float[n,3,8,8]", (1, 3, 8, 8), 10, "m tells 3 classes apart, and the images are of 10"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_a_sentence(
    tmp_path: Path, images: str, shape: tuple[int, ...], classes: int, said: str
) -> None:
    model = Classifier(classifier(tmp_path / "m.onnx", images), "m")
    with pytest.raises(ValueError, match=said):
        model.accept(np.zeros(shape, np.uint8), classes)


def test_what_reads_no_images_is_refused_in_a_sentence(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[n,8] x) => (float[n,8] y) {y = Relu(x)}'
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"m reads \['n', 8\], not images"):
        Classifier(tmp_path / "m.onnx", "m")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match="text cannot be run on this machine"):
        Classifier(tmp_path / "text.onnx", "text")
