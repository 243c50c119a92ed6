"""Who is asked for a measurement, what is kept, and what happens when a device fails."""

import hashlib
import json
import math

import numpy as np
import pytest

from engine.events import Advanced, Noted, Reporter
from engine.latency import Latency
from engine.search.measurements import Cancelled, Cluster, Log, Measurements

WHOLE = (8, 8)
DESIGNS = [(8, width) for width in range(1, 8)]


class Lab:
    """Devices that take as long as a design is wide, or fail as told."""

    def __init__(self, speeds):
        self.speeds = speeds
        self.asked = []
        self.failing = {}
        """(device, design or None for all) -> class of error"""

    def __call__(self, requests, cancelled=lambda: False):
        for path, device in requests:
            if cancelled():
                return
            widths = tuple(int(width) for width in path.read_text().split("-"))
            self.asked.append((widths, device))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            error = self.failing.get((device, None)) or self.failing.get((device, widths))
            if error == "silence":
                continue
            if error:
                yield Latency(device=device, model=digest, error=error, detail="so it is")
                continue
            value = self.speeds[device] * (1 + sum(widths))
            yield Latency(
                device=device, model=digest, median_ms=value, low_ms=value, high_ms=math.inf,
                block_medians_ms=(value * 0.99, value * 1.01), conditions={"clock": math.nan},
            )  # fmt: skip


def write(widths, path):
    path.write_text("-".join(map(str, widths)))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make(folder, lab, *clusters, events=None, cancelled=lambda: False, batch=3):
    reporter = Reporter("test", (events if events is not None else []).append)
    log = Log(folder / "measurements.jsonl")
    return Measurements(
        log, clusters, lab, write, folder / "candidates", WHOLE, reporter, cancelled, batch
    )


def notes(events):
    return [event.text for event in events if isinstance(event, Noted)]


def test_the_unpruned_design_comes_first_and_only_representatives_are_asked(tmp_path):
    lab, events = Lab({"a": 1.0, "b": 2.0, "c": 3.0}), []
    clusters = Cluster(0, 5, ("a", "b")), Cluster(1, 1, ("c",))
    measurements = make(tmp_path, lab, *clusters, events=events)
    measurements.ensure("sample", DESIGNS)
    assert lab.asked[:2] == [(WHOLE, "a"), (WHOLE, "c")]
    assert {device for _, device in lab.asked} == {"a", "c"}
    known = measurements.learned(clusters[0])
    assert known.widths.tolist() == [list(WHOLE), *map(list, DESIGNS)]
    assert known.latencies.tolist() == [1.0 + sum(widths) for widths in (WHOLE, *DESIGNS)]
    assert known.repeatability == pytest.approx(np.full(8, 0.0125), rel=0.01)
    assert [e.n for e in events if isinstance(e, Advanced)][-1] == 16
    assert not list((tmp_path / "candidates").iterdir())


def test_what_is_recorded_is_never_measured_again(tmp_path):
    lab, cluster = Lab({"a": 1.5}), Cluster(0, 1, ("a",))
    first = make(tmp_path, lab, cluster)
    first.ensure("sample", DESIGNS[:5])
    first.ensure("sample", DESIGNS[3:])
    assert len(lab.asked) == len(set(lab.asked)) == 8
    second = make(tmp_path, Lab({}), cluster)
    second.replay(first.asked)
    assert second.asked == first.asked
    assert (second.learned(cluster).latencies == first.learned(cluster).latencies).all()
    assert (second.learned(cluster).repeatability == first.learned(cluster).repeatability).all()


def test_another_device_of_the_cluster_stands_in_and_is_put_on_one_scale(tmp_path):
    lab, events = Lab({"a": 1.0, "b": 2.0}), []
    cluster = Cluster(0, 2, ("a", "b"))
    measurements = make(tmp_path, lab, cluster, events=events)
    measurements.ensure("sample", DESIGNS[:4])
    lab.failing["a", None] = "unreachable"
    measurements.ensure("sample", DESIGNS[4:])
    assert measurements.representative(cluster) == "b"
    assert "a cannot be measured (unreachable: so it is); b stands in for cluster 0" in notes(
        events
    )
    assert (WHOLE, "b") in lab.asked
    known = measurements.learned(cluster)
    # All on the scale of the device that is measured now.
    assert known.latencies.tolist() == [2.0 * (1 + sum(w)) for w in known.widths.tolist()]
    assert len(known.widths) == 8


@pytest.mark.parametrize("failing", ["a", "ab"])
def test_the_same_way_is_taken_again_from_the_record_of_a_failure(tmp_path, failing):
    lab, cluster = Lab({"a": 1.0, "b": 2.0}), Cluster(0, 2, ("a", "b"))
    for device in failing:
        lab.failing[device, (8, 4)] = "failed"
    first = make(tmp_path, lab, cluster)
    first.ensure("sample", DESIGNS)
    again, events = Lab({}), []
    second = make(tmp_path, again, cluster, events=events)
    second.ensure("sample", DESIGNS)
    assert again.asked == []
    assert second.representative(cluster) == "b"
    assert (second.learned(cluster).latencies == first.learned(cluster).latencies).all()


def test_it_goes_on_with_the_clusters_that_remain(tmp_path):
    lab, events = Lab({"a": 1.0, "b": 2.0}), []
    lost, kept = Cluster(0, 2, ("a",)), Cluster(1, 2, ("b",))
    lab.failing["a", None] = "timeout"
    measurements = make(tmp_path, lab, lost, kept, events=events)
    measurements.ensure("sample", DESIGNS)
    assert measurements.representative(lost) is None
    assert measurements.learned(lost) is None
    assert len(measurements.learned(kept).widths) == 8
    assert any("cluster 0 has no other device" in note for note in notes(events))
    assert sum(device == "a" for _, device in lab.asked) == 3  # the first batch only


def test_without_any_device_it_stops_and_the_next_run_asks_again(tmp_path):
    lab, cluster = Lab({"a": 1.0}), Cluster(0, 1, ("a",))
    lab.failing["a", None] = "unreachable"
    with pytest.raises(ValueError, match="no device is left"):
        make(tmp_path, lab, cluster).ensure("sample", DESIGNS)
    lab.failing.clear()
    measurements = make(tmp_path, lab, cluster)
    measurements.ensure("sample", DESIGNS)
    assert len(measurements.learned(cluster).widths) == 8


def test_a_design_that_no_device_can_run_is_left_out_and_no_device_blamed(tmp_path):
    lab, events = Lab({"a": 1.0, "b": 2.0}), []
    clusters = Cluster(0, 2, ("a",)), Cluster(1, 2, ("b",))
    for device in "ab":
        lab.failing[device, (8, 3)] = "model"
    measurements = make(tmp_path, lab, *clusters, events=events)
    measurements.ensure("sample", DESIGNS)
    assert [measurements.representative(cluster) for cluster in clusters] == ["a", "b"]
    assert len(measurements.learned(clusters[0]).widths) == 7
    assert notes(events) == ["a, b cannot run a design (so it is): left out"]


def test_an_answer_that_never_comes_counts_as_a_failure(tmp_path):
    lab, cluster = Lab({"a": 1.0, "b": 1.0}), Cluster(0, 2, ("a", "b"))
    lab.failing["a", (8, 2)] = "silence"
    measurements = make(tmp_path, lab, cluster)
    measurements.ensure("sample", DESIGNS)
    assert measurements.representative(cluster) == "b"


def test_stopping_is_no_fault_of_a_device(tmp_path):
    lab, cluster = Lab({"a": 1.0}), Cluster(0, 1, ("a",))
    stop = False

    def hurried(requests, cancelled):
        nonlocal stop
        for count, latency in enumerate(lab(requests)):
            yield latency
            if count == 1:
                stop = True
                yield Latency(device="a", model="", error="killed")
                return

    measurements = make(tmp_path, hurried, cluster, cancelled=lambda: stop)
    with pytest.raises(Cancelled):
        measurements.ensure("sample", DESIGNS)
    lines = [json.loads(line) for line in (tmp_path / "measurements.jsonl").open()]
    assert [line["widths"] for line in lines] == [[8, 8], [8, 1]]
    assert all(line["latency"]["error"] == "" for line in lines)


def test_a_line_that_was_cut_off_is_measured_again_and_a_foreign_one_is_named(tmp_path):
    lab, cluster = Lab({"a": 1.0}), Cluster(0, 1, ("a",))
    make(tmp_path, lab, cluster).ensure("sample", DESIGNS[:2])
    path = tmp_path / "measurements.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    make(tmp_path, lab, cluster).ensure("sample", DESIGNS[:2])
    assert lab.asked[-1] == (DESIGNS[1], "a")
    assert len(Log(path)._known) == 3
    with path.open("a") as file:
        file.write('{"widths": [8, 8], "latency": {"device": "a", "model": "", "median_ms": -1}}\n')
    with pytest.raises(ValueError, match="line 4: not a measurement"):
        Log(path)


def test_latencies_come_back_from_the_file_as_they_were(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    latency = Latency(
        device="a", model="ff", median_ms=0.1 + 0.2, low_ms=0.1, high_ms=0.5, p90_ms=1 / 3,
        block_medians_ms=(0.3, 0.1 + 0.2), conditions={"governor": "performance", "load": [1, 2]},
        emulated=True, at="2026-11-20T00:00:00+00:00", n=12, cpu_ms=0.2, mean_ms=0.3, p95_ms=0.4,
    )  # fmt: skip
    log.add((3, 4), latency)
    assert Log(tmp_path / "log.jsonl").get((3, 4), "a") == latency
