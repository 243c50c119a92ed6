"""What a job expects of int8 on each cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.latency import Latency
from engine.search.hdap import Cluster
from hdap_tui.config import load
from hdap_tui.jobs.benefit import Timed, benefits, recorded
from hdap_tui.store import devices, measurements
from hdap_tui.store import models as table
from hdap_tui.store.database import open_store

NEW, OLD = "new", "old"


def clusters(*names: str) -> list[Cluster]:
    return [Cluster(number, 1, (name,)) for number, name in enumerate(names)]


def timed(cluster: int, device: str, quantized_ms: float) -> Timed:
    return Timed(cluster, device, 4.0, 2.0, quantized_ms)


def test_what_was_measured_decides() -> None:
    found = benefits(clusters("a", "b"), [timed(0, "a", 1.0), timed(1, "b", 3.0)], NEW, {})
    assert found[0].speedup == pytest.approx(2, rel=0.1)
    assert found[0].precision == "int8"
    assert found[1].speedup == pytest.approx(2 / 3, rel=0.1)
    assert found[1].precision == "float"


def test_a_cluster_that_cannot_be_measured_is_judged_by_what_else_it_has_run() -> None:
    fast, slow = {OLD: (2.0, 1.0)}, {OLD: (2.0, 3.0)}
    known = {"a": fast, "b": slow, "c": fast, "d": slow, "silent": slow, "mute": fast}
    times = [timed(0, "a", 1.0), timed(1, "b", 3.0), timed(2, "c", 1.0), timed(3, "d", 3.0)]
    found = benefits(clusters("a", "b", "c", "d", "silent", "mute"), times, NEW, known)
    assert found[4].precision == "float"
    assert found[5].precision == "int8"
    assert found[5].speedup > 1.2


def test_where_nothing_is_known_nothing_is_gained() -> None:
    [found] = benefits(clusters("silent"), [], NEW, {}).values()
    assert found.mean == pytest.approx(0)
    assert found.precision == "float"


def test_networks_that_were_run_in_both_precisions_are_found_in_the_store(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('[fleet]\nstate = "state"\n[[devices]]\nname = "till-[1:2]"\n')
    settings = load(file)
    store = open_store(settings.database)
    devices.sync(store, settings.devices)
    known: dict[str, str] = {"f" * 64: "", "a" * 64: "f" * 64, "b" * 64: "e" * 64}
    for digest, source in known.items():
        metrics = {"float_digest": source} if source else {}
        table.add(store, name=digest[:4], digest=digest, path="m.onnx", kind="artifact", size=1,
                  metrics=metrics)  # fmt: skip
    sweep = measurements.begin(store, "bench")
    for device, digest, ms in (("till-1", "f", 4.0), ("till-1", "a", 2.5), ("till-2", "f", 4.0)):
        measurements.add(store, sweep, latency(device, digest * 64, ms), "")
    measurements.finish(store, sweep)
    store.close()
    assert recorded(settings.database) == {"till-1": {"f" * 64: (4.0, 2.5)}}


def latency(device: str, digest: str, ms: float) -> Latency:
    return Latency(device=device, model=digest, median_ms=ms, low_ms=ms, high_ms=ms, n=5,
                   block_medians_ms=(ms,))  # fmt: skip
