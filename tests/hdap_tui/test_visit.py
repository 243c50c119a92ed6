from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.latency import Configuration
from engine.results import Parsed
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.remote import RemoteJob
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transfer import Payload
from hdap_tui.visit import Bench, Pace, Visit, _left, stage_of

BENCH = Bench(blocks_min=5, blocks_max=20, warmup_s=1.0, block_s=1.0, time_limit_s=300.0)


def parsed(blocks: int, section: tuple[int, int], expected_s: float, ended: bool = False) -> Parsed:
    return Parsed(
        latencies={}, blocks=blocks, section=section, expected_s=expected_s, finished=ended
    )


def test_what_is_left_of_a_section_goes_by_the_blocks_that_are_done() -> None:
    assert _left(parsed(0, (0, 4), 10.0)) == pytest.approx(10.5)
    assert _left(parsed(2, (0, 4), 10.0)) == pytest.approx(6.3)
    assert _left(parsed(7, (5, 14), 100.0)) == pytest.approx(84.0)
    assert _left(parsed(5, (0, 4), 10.0)) == pytest.approx(0.3)
    assert _left(Parsed(latencies={})) == 0.5


def test_the_length_of_a_block_is_learned_from_what_the_device_says() -> None:
    pace = Pace()
    assert not pace.known("edge", BENCH)
    guess = pace.block_s("edge", BENCH, 4)
    pace.saw("edge", BENCH, 4, parsed(1, (1, 4), 40.0))
    assert pace.known("edge", BENCH)
    assert pace.block_s("edge", BENCH, 4) == pytest.approx(10.5)
    assert pace.block_s("edge", BENCH, 8) > 18
    assert pace.block_s("other", BENCH, 4) == guess
    assert pace.block_s("edge", replace(BENCH, runs=99), 4) == guess


def test_a_look_that_came_too_early_makes_the_next_one_later() -> None:
    pace = Pace()
    single = replace(BENCH, blocks_min=1, blocks_max=1)
    guess = pace.block_s("edge", single, 1)
    pace.saw("edge", single, 1, parsed(0, (0, 0), 1.0))
    later = pace.block_s("edge", single, 1)
    assert later > guess
    pace.saw("edge", single, 1, parsed(1, (0, 0), 1.0, ended=True))
    assert guess < pace.block_s("edge", single, 1) < later


def test_the_lease_outlasts_the_run_and_names_the_models_from_the_jobs_folder() -> None:
    payload = Payload(Path("m.onnx"), "ab" * 32, 10, f"models/{'ab' * 32}.onnx")
    request = replace(BENCH, lease_s=20.0).request([payload], 2.5)
    (model,) = request["models"]
    assert (model["digest"], model["key"]) == ("ab" * 32, "ab" * 32)
    assert model["path"] == f"../../models/{'ab' * 32}.onnx"
    assert request["expected_block_s"] == 2.5
    assert request["lease_s"] > 20.0 + 20 * 2.0
    assert replace(BENCH, time_limit_s=5.0, lease_s=20.0).request([payload], 2.5)["lease_s"] == 25.0
    assert "keep_models" not in request
    waiting = replace(BENCH, time_limit_s=5.0, lease_s=20.0, cool_below_c=60.0, wait_limit_s=100.0)
    assert waiting.request([payload], 2.5)["lease_s"] == 125.0


def test_every_model_is_asked_for_in_every_configuration_once() -> None:
    payloads = [Payload(Path(f"{n}.onnx"), n * 64, 10, f"models/{n * 64}.onnx") for n in "ab"]
    configurations = tuple(Configuration(batch=b, threads=t) for b in (1, 4) for t in (1, 2))
    asked = replace(BENCH, configurations=configurations).request(payloads, 1.0, known=False)
    assert len({model["key"] for model in asked["models"]}) == 8
    assert asked["look_after"] == 1
    found = [(m["digest"][0], m["batch"], m["threads"]) for m in asked["models"][:5]]
    assert found == [("a", 1, 1), ("a", 1, 2), ("a", 4, 1), ("a", 4, 2), ("b", 1, 1)]


def test_a_run_that_moves_nothing_is_waited_for_no_longer_than_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hdap_tui.visit._GRACE_S", 0.0)
    visit = Visit(
        Target(name="edge", host="edge", known_hosts=Path("/none")), [], Payload(Path(), "", 0, ""),
        replace(BENCH, time_limit_s=0.7), pool=Connections(), cores=1, pace=Pace(),
        on_stage=lambda _device, _stage: None, cancelled=lambda: False,
    )  # fmt: skip
    request = {"look_after": 0, "expected_block_s": 100.0, "lease_s": 1000.0}
    assert next(visit._collect(RemoteJob("job"), request)).seconds <= 0.7  # type: ignore[union-attr]


def test_a_stage_says_what_a_device_waits_for() -> None:
    hot = Parsed(latencies={}, phase="cooling", phase_value=71.4)
    assert stage_of(hot, 5) == "cooling 71 °C"
    assert stage_of(Parsed(latencies={}, phase="busy", phase_value=0.4), 5) == "busy 40 %"
    assert stage_of(Parsed(latencies={}, blocks=2), 5) == "timing 2/5"


def test_every_value_of_the_request_has_the_type_that_the_runner_wants(tmp_path: Path) -> None:
    import json

    from engine import runner

    payload = Payload(Path("m.onnx"), "ab" * 32, 10, f"models/{'ab' * 32}.onnx")
    request = BENCH.request([payload], 1.0)
    (tmp_path / "request.json").write_text(json.dumps(request))
    read = runner.read_request(str(tmp_path))
    assert read["cases"][0]["threads"] == request["models"][0]["threads"]
    for key in ("runs", "warmup_s", "block_s", "blocks_max", "lease_s"):
        assert read[key] == request[key]
