"""What is said of a model, of those in older databases as well."""

from __future__ import annotations

from typing import Any

from hdap_tui.model_words import aim, missed, model_lines, tidy

SEARCH: dict[str, Any] = {
    "speedup": 1.4,
    "target_speedup": 1.5,
    "target_reached": False,
    "predicted_ms_after": {"0": 2.0},
    "predicted_speedup": 1.3,
    "measured_ms_before": {"0": 2.8},
    "measured_ms_after": {"0": 2.0},
    "front": [{"macs": 1}],
    "designs_measured": 12,
    "outer_iterations": 1,
    "stopped": "all 1 outer iterations are done",
    "surrogates": {
        "0": {"kind": "gbrt", "samples": 60, "errors": {"gbrt": {"mape": 1.25, "spearman": 0.9}},
              "floor": None},
    },
}  # fmt: skip
MODEL: dict[str, Any] = {
    "accuracy_before": {"selection": 0.99, "test": 0.98},
    "widths_before": [16, 16],
    "widths_after": [8, 4],
    "design": {"kept": [list(range(8)), list(range(4))], "precision": "fp32"},
    "measured_speedup": 1.6,
    "measured_speedups": {"fp32": 1.4, "int8": 1.6},
    "profile": {"parameters": 100, "macs": None},
    "decision": [{"cluster": "A", "reason": "cluster A: it takes the quantized file"}],
    "recipe": {
        "name": "small", "maximum_bytes": 900, "network": "resnet20", "weights": "", "seed": 0,
        "data": "digits", "finetune": {"epochs": 2, "bf16": False},
        "steps": [{"method": "uniform", "kept": 0.5}, {"method": "finetune", "lr": 0.05}],
    },
    "for_devices": [f"till-{n}" for n in range(20)],
    "layer_precisions": {"a": "int8", "b": "int8", "c": "fp32"},
    "emulated": True,
}  # fmt: skip


def test_each_thing_is_a_readable_line() -> None:
    target = aim(SEARCH, 1.6)
    found = dict(model_lines({**MODEL, **target, "search": {**SEARCH, "measured_speedup": 1.4}}))
    assert found["recipe"] == "small, resnet20, data digits, seed 0, at most 900 bytes"
    assert found["  step 1"] == "uniform, kept 0.5"
    assert found["  step 2"] == "finetune, lr 0.05"
    assert found["  training"] == "epochs 2, bf16 no"
    assert found["design"] == "12 of 32 channels kept in 2 groups"
    assert found["decision"] == "cluster A: it takes the quantized file"
    assert found["surrogate A"] == "gbrt, 60 samples, error 1.2 %"
    assert found["search"] == (
        "1.30x predicted by the surrogates, 1.40x measured, in float, 1 outer iteration, "
        "12 designs measured, ended: all 1 outer iterations are done"
    )
    assert found["measured speedup"] == "1.60x on the representatives"
    assert found["target"] == "1.50x, reached"
    assert found["accuracy before"] == "selection 99.00 %, test 98.00 %"
    assert found["layer precisions"] == "int8 for 2, fp32 for 1 of 3 layers"
    assert found["for devices"].endswith("till-5 and 14 more")
    assert not any(mark in text for text in found.values() for mark in "{}[]'")


def test_a_model_of_an_older_database_is_shown_alike() -> None:
    old = {**MODEL, **SEARCH, "measured_speedup": 1.6}
    new = {**MODEL, **aim(SEARCH, 1.6), "search": {**SEARCH, "measured_speedup": 1.4}}
    assert sorted(model_lines(old)) == sorted(model_lines(new))
    assert tidy(new) == new


def test_what_the_devices_measured_last_decides_whether_the_target_is_reached() -> None:
    assert aim(SEARCH, 1.6)["target_reached"] is True
    assert aim(SEARCH, 1.45)["target_reached"] is False
    assert aim(SEARCH, None)["target_reached"] is False, "the search's word, where it is the last"
    assert aim({}, 1.6) == {}
    assert missed({**aim(SEARCH, 1.6), "search": SEARCH, "measured_speedup": 1.6}) == ""
    slow = {**aim(SEARCH, 1.2), "search": SEARCH, "measured_speedup": 1.2}
    assert missed(slow) == "the target of 1.5x was not reached"
    assert missed({**slow, "target_latency_ms": 4.0}) == (
        "the target of 4 ms was not reached: it is 5 ms"
    )
    assert missed({}) == ""


def test_what_no_line_knows_is_summed_up() -> None:
    found = dict(model_lines({"odd": [{"a": 1}], "deep": {"b": {"c": 2}}, "none": None, "n": 3}))
    assert found == {"odd": "(1 figure)", "deep": "b (1 figure)", "n": "3"}
