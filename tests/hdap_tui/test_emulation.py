from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from engine import results, runner
from engine.latency import Latency, compare
from hdap_tui.lab.device_site.hdap_lab import emulation, host, mix, schedule

SITE = Path(schedule.__file__).parents[1]

timed = pytest.mark.flaky(reruns=3)
"""What is measured on a machine that does other things, too; what is wrong stays wrong."""


def conv_heavy(note: str = "", size: int = 32) -> bytes:
    """Four dense 3x3 convolutions: nearly all of its time is arithmetic."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(4):
        weights.append(
            numpy_helper.from_array(rng.normal(0, 0.03, (64, 64, 3, 3)).astype(np.float32), f"w{i}")
        )
        out = "y" if i == 3 else f"t{i}"
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [out], pads=[1, 1, 1, 1]))
        last = out
    image = [1, 64, size, size]
    value = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", value, image)],
        [helper.make_tensor_value_info("y", value, image)],
        weights,
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8, doc_string=note)
    return bytes(model.SerializeToString())


def dispatch_heavy() -> bytes:
    """Four hundred kernels on eight numbers: nearly all of its time is being called."""
    names = ["x", *(f"t{i}" for i in range(399)), "y"]
    body = " ".join(
        f"{out} = {'Tanh' if i % 2 else 'Sin'}({last})"
        for i, (last, out) in enumerate(pairwise(names))
    )
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[8] x) => (float[8] y) {{ {body} }}'
    return bytes(onnx.parser.parse_model(text).SerializeToString())


class Device:
    """The environment that a lab device's commands run in."""

    def __init__(self, folder: Path, **profile: Any) -> None:
        self.folder = folder
        self.profile = folder / "profile.json"
        quiet = {"noise": 0.0, "seed": 7, "started_at": time.time(), "steady_host": False}
        self.profile.write_text(json.dumps({**quiet, **profile}))
        self.cache = folder / "cache"
        self.environ = {
            **os.environ,
            "PYTHONPATH": str(SITE),
            "HDAP_LAB_PROFILE": str(self.profile),
            "HDAP_LAB_CACHE": str(self.cache),
        }

    def python(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stretch(self, model: bytes, runs: int = 40) -> dict[str, float]:
        """Run a model; return each clock's virtual time over the true one, and virtual ms."""
        path = self.folder / "model.onnx"
        path.write_bytes(model)
        return self.script(repr(str(path)), runs)

    def script(self, model: str, runs: int) -> dict[str, float]:
        answer: dict[str, float] = json.loads(self.python(STRETCH.format(model=model, runs=runs)))
        return answer

    def bench(self, models: list[bytes], **request: Any) -> dict[str, Latency]:
        """Run the runner as a device does; return its results by digest."""
        job = self.folder / "job"
        job.mkdir()
        listed = []
        for i, model in enumerate(models):
            (job / f"{i}.onnx").write_bytes(model)
            digest = hashlib.sha256(model).hexdigest()
            listed.append({"digest": digest, "path": f"{i}.onnx"})
        (job / "request.json").write_text(json.dumps({"version": 1, "models": listed, **request}))
        command = [sys.executable, runner.__file__, str(job)]
        subprocess.run(command, env=self.environ, check=True, start_new_session=True)
        lines = (job / "results.jsonl").read_bytes().splitlines(keepends=True)
        digests = [m["digest"] for m in listed]
        return dict(results.parse(lines, "edge-01", digests).latencies)


# The clocks as they were before the emulation replaced them, read around onnxruntime's own
# session underneath, are the truth to hold it against.
STRETCH = """
import json, time
clocks = "perf_counter", "thread_time", "process_time", "monotonic"
true = [getattr(time, name) for name in clocks]
import numpy, onnxruntime
virtual = [getattr(time, name) for name in clocks]
assert not set(true) & set(virtual)
def read(which):
    return [clock() for clock in which]
class Inner:
    def __init__(self, session):
        self.session = session
    def run(self, *args):
        start = read(true)
        result = self.session.run(*args)
        self.took = [b - a for a, b in zip(start, read(true))]
        return result
    def __getattr__(self, name):
        return getattr(self.session, name)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
made = time.perf_counter(), true[0]()
session = onnxruntime.InferenceSession({model}, options)
made = (time.perf_counter() - made[0]) / (true[0]() - made[1])
session._sess = Inner(session._sess)
feed = {{"x": numpy.ones(session.get_inputs()[0].shape, "float32")}}
rows = []
for _ in range({runs}):
    start = read(virtual)
    session.run(None, feed)
    end = read(virtual)
    rows.append([(b - a) / c for a, b, c in zip(start, end, session._sess.took)])
    rows[-1].append(1e3 * (end[0] - start[0]))
# A busy host takes the core away where clocks are read, which only adds: the least counts.
answer = dict(zip((*clocks, "ms"), numpy.min(rows, axis=0).tolist()))
print(json.dumps({{"made": made, **answer}}))
"""


@timed
def test_twice_the_arithmetic_time_doubles_a_convolution_and_leaves_calls_alone(
    tmp_path: Path,
) -> None:
    device = Device(tmp_path, compute=2.0, memory=1.0, overhead=1.0)
    convolution = device.stretch(conv_heavy())
    calls = device.stretch(dispatch_heavy())
    for clock in ("perf_counter", "thread_time", "process_time", "monotonic"):
        assert 1.85 < convolution[clock] < 2.1, clock
        assert 0.95 < calls[clock] < 1.2, clock


@timed
def test_a_slow_start_of_kernels_slows_calls_and_leaves_a_convolution_alone(
    tmp_path: Path,
) -> None:
    device = Device(tmp_path, compute=1.0, memory=1.0, overhead=3.0)
    assert device.stretch(conv_heavy())["perf_counter"] < 1.3
    assert 2.7 < device.stretch(dispatch_heavy())["perf_counter"] < 3.5


@timed
def test_nothing_really_waits_and_the_profiling_pass_is_not_seen(tmp_path: Path) -> None:
    device = Device(tmp_path, compute=400.0, memory=400.0, overhead=400.0)
    start = time.monotonic()
    seen = device.stretch(conv_heavy(), runs=60)
    really = time.monotonic() - start
    claimed = seen["ms"] * 60 / 1e3
    assert seen["perf_counter"] == pytest.approx(400, rel=0.05)
    assert really < claimed / 2
    # Another session and 30 inferences went into the mix; the device's clock knows nothing.
    assert seen["made"] < 0.6


@timed
def test_an_emulated_device_does_not_look_contended(tmp_path: Path) -> None:
    device = Device(tmp_path, compute=30.0, memory=30.0, overhead=30.0, steady_host=True)
    (one,) = device.bench([conv_heavy(size=16)], blocks_min=2, blocks_max=2).values()
    assert one.ok
    assert one.emulated
    assert one.conditions["emulated"] is True
    # A stretch of the wall clock alone would make this thirty; the machine may be busy itself.
    assert one.median_ms < 3 * one.cpu_ms


@timed
def test_a_model_against_itself_makes_no_difference(tmp_path: Path) -> None:
    device = Device(tmp_path, compute=1.5, memory=1.2, overhead=1.3, noise=0.01, steady_host=True)
    request = {"blocks_min": 8, "blocks_max": 8}
    one, other = device.bench([conv_heavy("A", 16), conv_heavy("B", 16)], **request).values()
    assert one.model != other.model
    # The machine that runs the tests is busy with other things: its interval may be wide.
    found = compare(one, other, margin=0.06)
    assert found.verdict in ("no difference", "inconclusive")
    assert found.speedup == pytest.approx(1.0, abs=0.06)


def test_what_else_the_host_does_is_taken_out_by_the_models_shares() -> None:
    class Busy:
        def read(self, shares: tuple[float, float, float]) -> tuple[float, float, float]:
            return 1.25, 1.6, 2.0

    device = emulation.Device({"compute": 2.0, "memory": 4.0, "overhead": 1.0})
    for shares, factor in (
        (mix.Mix(1, 0, 0), 2.0 / 1.25),
        (mix.Mix(0, 1, 0), 4.0 / 1.6),
        (mix.Mix(0, 0, 1), 1.0 / 2.0),
        (mix.Mix(0.5, 0.5, 0), 0.5 * (2.0 / 1.25 + 4.0 / 1.6)),
    ):
        busy: Any = Busy()
        assert emulation._Stretch(device, shares, busy)() == pytest.approx(factor)


def test_a_mix_taken_on_a_busy_host_is_put_right() -> None:
    seen = mix.Mix(0.4, 0.4, 0.2).undisturbed([1.0, 2.0, 1.0])
    assert seen.shares == pytest.approx((0.5, 0.25, 0.25))


def test_the_reference_models_are_whole_and_one_of_each_kind(tmp_path: Path) -> None:
    for shape, kernels, count in (((192, 192), ["MatMul"], 1), ((8,), ["Sin", "Tanh"] * 20, 40)):
        model = onnx.load_from_string(host.chain(shape, kernels))
        onnx.checker.check_model(model, full_check=True)
        assert len(model.graph.node) == count
    state = host.Host(onnxruntime.InferenceSession, tmp_path)
    assert all(1.0 <= slower < host.MOST for slower in state.read())
    assert state.read((0.0, 0.0, 0.0)) == (1.0, 1.0, 1.0)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_interrupted_reading_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = 2500  # the first run of each reading only warms the caches
    taken = (1500, 4_000_000, 1200, 900)
    takes = iter([1000] * host._READINGS + [ns for warm in taken for ns in (cold, warm)])
    monkeypatch.setattr(host, "_SEARCH_S", 0.0)
    monkeypatch.setattr(host._Reference, "_time", lambda self: next(takes))
    reference = host._Reference(onnxruntime.InferenceSession, tmp_path / "r.json", (8,), ["Neg"])
    assert [reference.read() for _ in range(4)] == [1.5, 1.5, 1.2, 1.0]


def test_the_best_of_all_processes_counts_until_the_host_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "r.json"
    monkeypatch.setattr(host, "_SEARCH_S", 0.0)

    def best(takes: int) -> float:
        monkeypatch.setattr(host._Reference, "_time", lambda self: takes)
        session = onnxruntime.InferenceSession
        return float(host._Reference(session, file, (8,), ["Neg"])._best)

    assert [best(1000), best(1700), best(800), best(900)] == [1000, 1000, 800, 800]
    file.write_text(json.dumps({"ns": 5, "boot": "another"}))
    assert best(900) == 900
    file.write_text("spoilt")
    assert best(950) == 950


@timed
def test_noise_differs_between_runs_and_between_processes(tmp_path: Path) -> None:
    still = Device(tmp_path, noise=0.0)
    assert still.stretch(conv_heavy())["perf_counter"] == pytest.approx(1, abs=0.05)
    factors = (
        "import os; from hdap_lab.emulation import Device, _Stretch; from hdap_lab.mix import Mix;"
        "import json; p = json.load(open(os.environ['HDAP_LAB_PROFILE']));"
        "s = _Stretch(Device(p), Mix(1, 0, 0), None); print(json.dumps([s() for _ in range(4000)]))"
    )
    shaky = Device(tmp_path, noise=0.02)
    first, second = (np.log(json.loads(shaky.python(factors))) for _ in range(2))
    for values in (first, second):
        assert values.std() == pytest.approx(0.02, rel=0.1)
        assert abs(values.mean()) < 0.05
    assert abs(first.mean() - second.mean()) > 1e-4


@timed
def test_a_step_is_felt_from_its_second_on(tmp_path: Path) -> None:
    step = [{"kind": "step", "at_s": 100, "percent": 25, "until_s": None}]
    before = Device(tmp_path, schedule=step, started_at=time.time())
    assert before.stretch(conv_heavy())["perf_counter"] == pytest.approx(1.0, abs=0.05)
    after = Device(tmp_path, schedule=step, started_at=time.time() - 101)
    assert after.stretch(conv_heavy())["perf_counter"] == pytest.approx(1.25, abs=0.05)


@pytest.mark.parametrize(
    ("item", "at_s", "factor"),
    [
        ({"kind": "steady"}, 1e6, 1.0),
        ({"kind": "ageing", "percent_per_hour": 2}, 1800, 1.01),
        ({"kind": "step", "at_s": 90, "percent": 25}, 89.9, 1.0),
        ({"kind": "step", "at_s": 90, "percent": 25}, 90, 1.25),
        ({"kind": "step", "at_s": 90, "percent": 25, "until_s": 95}, 95, 1.0),
        ({"kind": "step", "at_s": 90, "percent": 25, "until_s": None}, 1e9, 1.25),
        ({"kind": "sawtooth", "period_s": 60, "percent": 16}, 30, 1.08),
        ({"kind": "sawtooth", "period_s": 60, "percent": 16}, 60, 1.0),
        ({"kind": "sawtooth", "period_s": 60, "percent": 16}, 119.999, 1.16),
        ({"kind": "ageing", "percent_per_hour": 2}, -50, 1.0),
    ],
)
def test_schedules_tell_the_factor_of_each_moment(
    item: dict[str, Any], at_s: float, factor: float
) -> None:
    assert schedule.factor([item], at_s) == pytest.approx(factor, abs=1e-4)
    assert schedule.factor([item, item], at_s) == pytest.approx(factor**2, abs=2e-4)


@pytest.mark.parametrize(
    ("item", "says"), [({"kind": "jump"}, "none of"), ({"kind": "step", "at_s": 0}, "percent")]
)
def test_a_schedule_that_is_none_is_named(item: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        schedule.factor([item], 1.0)


def test_kernels_are_told_apart_by_size_and_operations_per_byte() -> None:
    def kernel(name: str, inputs: list[list[int]], output: list[int], size: int = 4) -> str:
        parts = [size * math.prod(shape) for shape in (*inputs, output)]
        return mix.bound_by(
            {
                "op_name": name,
                "input_type_shape": [{"float": shape} for shape in inputs],
                "output_type_shape": [{"float": output}],
                "activation_size": str(parts[0]),
                "parameter_size": str(sum(parts[1:-1])),
                "output_size": str(parts[-1]),
            }
        )

    image = [1, 64, 16, 16]
    assert kernel("Conv", [image, [64, 64, 3, 3], [64]], image) == "compute"
    assert kernel("FusedConv", [image, [64, 64, 1, 1]], image) == "compute"
    assert kernel("QLinearConv", [image, [64, 64, 3, 3]], image, size=1) == "compute"
    assert kernel("MatMul", [[128, 256], [256, 256]], [128, 256]) == "compute"
    assert kernel("Conv", [image, [64, 1, 3, 3]], image) == "memory"  # depthwise
    assert kernel("Gemm", [[1, 640], [10, 640]], [1, 10]) == "memory"  # one row
    assert kernel("Relu", [image], image) == "memory"
    assert kernel("Relu", [[8]], [8]) == "overhead"
    assert mix.bound_by({"op_name": "Conv"}) == "overhead"


def test_a_profile_becomes_shares_that_add_up() -> None:
    dense = {
        "op_name": "Conv",
        "node_index": "1",
        "input_type_shape": [{"float": [1, 64, 16, 16]}, {"float": [64, 64, 3, 3]}],
        "output_type_shape": [{"float": [1, 64, 16, 16]}],
        "activation_size": "65536",
        "parameter_size": "147456",
        "output_size": "65536",
    }
    relu = {"op_name": "Relu", "activation_size": "65536", "output_size": "65536"}
    events = [
        {"cat": "Session", "name": "model_run", "dur": 999},
        {"cat": "Node", "name": "c_kernel_time", "dur": 61, "args": dense},
        {"cat": "Node", "name": "c_kernel_time", "dur": 3000, "args": dense},  # was disturbed
        {"cat": "Node", "name": "r_kernel_time", "dur": 21, "args": relu},
        {"cat": "Node", "name": "r_fence_before", "dur": 500, "args": relu},
    ]
    shares = mix.from_events(events)
    assert shares.shares == pytest.approx((60 / 87, 20 / 87, 7 / 87))  # 2 kernels and 1 call
    assert shares.stretch(1, 1, 1) == pytest.approx(1)
    assert shares.stretch(2, 1, 1) == pytest.approx(1 + 60 / 87)
    assert mix.from_events([]).overhead == 1.0


def test_two_processes_that_profile_at_once_believe_the_same(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=20)
    found: list[mix.Mix] = []

    def device(own: mix.Mix) -> None:
        def profile(folder: Path) -> mix.Mix:
            assert folder.is_dir()
            together.wait()
            return own

        found.append(mix.from_cache(b"model", tmp_path / "cache", profile))

    both = [mix.Mix(1.0, 0.0, 0.0), mix.Mix(0.0, 1.0, 0.0)]
    threads = [threading.Thread(target=device, args=(own,)) for own in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 2
    assert found[0] == found[1]

    def never(folder: Path) -> mix.Mix:
        raise AssertionError("the cache knows the model")

    assert mix.from_cache(b"model", tmp_path / "cache", never) == found[0]
    assert [f.name for f in (tmp_path / "cache").iterdir()] == [
        hashlib.sha256(b"model").hexdigest() + ".json"
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"version": 0}', '{"version": 1, "compute": 9}'])
def test_a_spoilt_cache_entry_is_made_anew(tmp_path: Path, text: str) -> None:
    file = tmp_path / (hashlib.sha256(b"model").hexdigest() + ".json")
    file.write_text(text)
    right = mix.Mix(0.5, 0.3, 0.2)
    assert mix.from_cache(b"model", tmp_path, lambda _folder: right) == right
    assert json.loads(file.read_text())["memory"] == 0.3


def test_models_are_profiled_once_for_all_devices(tmp_path: Path) -> None:
    device = Device(tmp_path, compute=2.0)
    device.stretch(dispatch_heavy(), runs=2)
    (entry,) = device.cache.iterdir()
    made = entry.stat().st_mtime_ns
    device.stretch(dispatch_heavy(), runs=2)
    assert [f.stat().st_mtime_ns for f in device.cache.iterdir()] == [made]


@timed
def test_a_model_from_memory_is_stretched_too(tmp_path: Path) -> None:
    device = Device(tmp_path, compute=5.0, memory=5.0, overhead=5.0)
    path = tmp_path / "model.onnx"
    path.write_bytes(conv_heavy())
    seen = device.script(f"open({str(path)!r}, 'rb').read()", 40)
    assert seen["perf_counter"] == pytest.approx(5, rel=0.05)


def test_a_python_that_uses_no_onnxruntime_loads_nothing(tmp_path: Path) -> None:
    device = Device(tmp_path)
    loaded = device.python("import sys; print(*sys.modules)").split()
    assert "sitecustomize" in loaded
    assert not {"typing", "json", "hdap_lab", "onnxruntime"} & set(loaded)


def test_without_a_profile_nothing_is_emulated(tmp_path: Path) -> None:
    device = Device(tmp_path)
    del device.environ["HDAP_LAB_PROFILE"]
    code = (
        "import time; true = time.perf_counter; import onnxruntime, sitecustomize;"
        "print(sitecustomize.EMULATED, time.perf_counter is true)"
    )
    assert device.python(code).split() == ["False", "True"]
