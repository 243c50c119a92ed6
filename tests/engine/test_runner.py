from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import pwd
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx.parser
import pytest

from engine import runner

RUNNER = Path(runner.__file__)
QUICK = {"runs": 5, "warmup_runs": 2, "warmup_s": 0.01, "blocks_min": 3, "blocks_max": 3}
ENDLESS = {**QUICK, "blocks_min": 1000, "blocks_max": 1000}


def onnx_bytes(body: str, inputs: str = "float[1,8] x", outputs: str = "float[1,8] y") -> bytes:
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return onnx.parser.parse_model(text).SerializeToString()


RELU = onnx_bytes("y = Relu(x)")
TANH = onnx_bytes("y = Tanh(x)")
FOREVER = onnx_bytes(
    "n = Constant <value = int64 {4000000000000}> () t = Constant <value = bool {1}> () "
    "y = Loop <body = b (int64 i, bool c, float[1,8] a) => (bool d, float[1,8] z) "
    "{ d = Identity(c) z = Tanh(a) }> (n, t, x)"
)


class Job:
    """A job's folder, and the runner over it in a session of its own."""

    def __init__(self, folder: Path, models: dict[str, bytes], **request: Any) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        listed = []
        for name, data in models.items():
            (folder / name).write_bytes(data)
            listed.append({"digest": digest(data), "path": name})
        self.write({"version": 1, "models": listed, **QUICK, **request})

    def write(self, request: object) -> None:
        (self.folder / "request.json").write_text(json.dumps(request))

    def start(self, **environ: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(RUNNER), str(self.folder)],
            start_new_session=True,
            env={**os.environ, **environ},
        )

    def run(self, **environ: str) -> list[dict[str, Any]]:
        with self.start(**environ) as process:
            self.status = process.wait(60)
        return self.lines()

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        file = self.folder / "results.jsonl"
        text = file.read_bytes() if file.exists() else b""
        lines = [json.loads(v) for v in text.split(b"\n")[:-1]]
        return [v for v in lines if event in (None, v["event"])]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def group_is_gone(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


# ---- whole runs


def test_a_run_times_every_model_in_each_block_and_sums_up(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    starts = tmp_path / "starts"
    (site / "sitecustomize.py").write_text(
        f"import os\nopen({str(starts)!r}, 'a').write(str(os.getpid()) + '\\n')\n"
    )
    job = Job(tmp_path / "job", {"a.onnx": RELU, "b.onnx": TANH})
    lines = job.run(PYTHONPATH=str(site))

    assert job.status == 0
    events = [v["event"] for v in lines]
    assert events == ["hello", "timed", "block", "timed", "block", "block", "done"]
    hello, done = lines[0], lines[-1]
    assert hello["runner"] == digest(RUNNER.read_bytes())
    assert hello["emulated"] is False
    assert hello["onnxruntime"] == __import__("onnxruntime").__version__
    assert hello["numpy"] == __import__("numpy").__version__
    assert hello["conditions"]["boot_id"]
    assert lines[1]["blocks"] == [0, 2]
    assert lines[3]["blocks"] == [1, 2]
    assert lines[3]["expected_s"] > 0

    blocks = job.lines("block")
    first = [digest(RELU), digest(TANH)]
    assert [b["order"] for b in blocks] == [first, first[::-1], first]
    assert len(set(starts.read_text().split())) == 1 + len(blocks), "each block is a new process"
    for block in blocks:
        for entry in block["models"].values():
            assert len(entry["wall_ms"]) == entry["n"] == 5
            assert entry["providers"] == ["CPUExecutionProvider"]
            assert 0 <= entry["contended"] <= 1
    for model, summary in done["models"].items():
        medians = [b["models"][model]["median_ms"] for b in blocks]
        assert summary["block_medians_ms"] == medians
        assert summary["median_ms"] == sorted(medians)[1]
        assert summary["low_ms"] <= summary["median_ms"] <= summary["high_ms"]
        assert (summary["n"], summary["blocks"]) == (15, 3)
    assert not (job.folder / "pid").exists()


def test_a_narrow_interval_ends_the_run_and_a_wide_one_goes_on_to_the_last_block(
    tmp_path: Path,
) -> None:
    # No interval is wider than exp(50), however busy the machine is.
    wide = Job(tmp_path / "w", {"a.onnx": RELU}, interval_percent=1e24, blocks_min=2, blocks_max=4)
    lines = wide.run()
    assert lines[-1]["stopped"] == "interval"
    assert len(wide.lines("block")) == 2

    # Times are told to 10 ns: of a model as quick as RELU, two blocks may well be equal.
    slow = onnx_bytes("y = Tanh(x)", "float[1,99999] x", "float[1,99999] y")
    tight = Job(tmp_path / "t", {"a.onnx": slow}, interval_percent=1e-6, blocks_min=2, blocks_max=4)
    lines = tight.run()
    assert lines[-1]["stopped"] == "blocks"
    assert len(tight.lines("block")) == 4


def test_one_block_may_be_all_and_has_no_upper_end(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", {"a.onnx": RELU}, blocks_min=1, blocks_max=1)
    (summary,) = job.run()[-1]["models"].values()
    assert summary["blocks"] == 1
    assert (summary["low_ms"], summary["high_ms"]) == (0.0, None)


def test_the_time_limit_ends_a_run_with_what_it_has(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", {"a.onnx": RELU}, **{**ENDLESS, "time_limit_s": 2.5})
    start = time.monotonic()
    done = job.run()[-1]
    assert done["stopped"] == "time"
    assert time.monotonic() - start < 15
    assert done["models"][digest(RELU)]["blocks"] == len(job.lines("block")) >= 1


def test_models_that_cannot_be_timed_are_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    bad, lost, changed = b"not a model", b"lost", b"changed"
    models = {"a.onnx": RELU, "bad.onnx": bad, "lost.onnx": lost, "changed.onnx": changed}
    job = Job(tmp_path / "job", models)
    (job.folder / "lost.onnx").unlink()
    (job.folder / "changed.onnx").write_bytes(b"other")
    lines = job.run()

    failed = {v["model"]: v for v in job.lines("failed")}
    assert set(failed) == {digest(bad), digest(lost), digest(changed)}
    assert {v["error"] for v in failed.values()} == {"model"}
    assert "content" in failed[digest(changed)]["detail"]
    assert list(lines[-1]["models"]) == [digest(RELU)]
    assert len(job.lines("block")) == 3


def test_a_run_without_a_usable_model_fails_as_a_whole(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", {"bad.onnx": b"not a model"})
    last = job.run()[-1]
    assert job.status == 1
    assert (last["event"], last["model"], last["error"]) == ("failed", None, "model")


def test_a_model_that_never_ends_is_stopped_and_named(tmp_path: Path) -> None:
    models = {"a.onnx": RELU, "forever.onnx": FOREVER}
    job = Job(tmp_path / "job", models, block_timeout_s=4.0, blocks_min=1, blocks_max=1)
    lines = job.run()
    (failed,) = job.lines("failed")
    assert (failed["model"], failed["error"]) == (digest(FOREVER), "timeout")
    assert list(lines[-1]["models"]) == [digest(RELU)]


@pytest.mark.parametrize(
    "request_",
    [[], {"version": 2}, {"version": 1}, {"version": 1, "models": [{"path": "x"}]},
     {"version": 1, "models": [{"digest": "d", "path": "p"}], "runs": "many"}],
)  # fmt: skip
def test_a_request_that_is_none_is_answered_with_one_sentence(
    tmp_path: Path, request_: object
) -> None:
    job = Job(tmp_path / "job", {})
    job.write(request_)
    last = job.run()[-1]
    assert (last["event"], last["model"], last["error"]) == ("failed", None, "runtime")
    assert last["detail"]
    assert job.status == 1


# ---- how a run is ended


def test_a_lease_that_nobody_renews_ends_the_whole_process_group(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", {"a.onnx": RELU}, **{**ENDLESS, "lease_s": 1.0})
    lease = job.folder / "lease"
    lease.touch()
    with job.start() as process:
        pid = job.folder / "pid"
        wait_for(lambda: pid.exists() and pid.read_text() == f"{process.pid}\n")
        renewed = start = time.monotonic()
        while renewed - start < 2.0:  # twice the lease: renewing it keeps the run alive
            time.sleep(0.1)
            renewed = time.monotonic()
            os.utime(lease, ns=(0, time.time_ns()))
        assert process.poll() is None
        process.wait(30)
        assert time.monotonic() - renewed > 0.7
    last = job.lines()[-1]
    assert (last["event"], last["model"], last["error"]) == ("failed", None, "lease")
    wait_for(lambda: group_is_gone(process.pid))


def test_a_cancel_file_ends_the_run_in_the_middle_of_a_block(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", {"forever.onnx": FOREVER}, **ENDLESS)
    with job.start() as process:
        wait_for(lambda: job.lines("timed"))
        (job.folder / "cancel").touch()
        assert process.wait(10) == 1
    assert job.lines()[-1]["error"] == "cancelled"
    wait_for(lambda: group_is_gone(process.pid))


@pytest.mark.parametrize("whole_group", [True, False])
def test_a_termination_signal_ends_the_block_too(tmp_path: Path, whole_group: bool) -> None:
    job = Job(tmp_path / "job", {"forever.onnx": FOREVER}, **ENDLESS)
    with job.start() as process:
        wait_for(lambda: job.lines("timed"))
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
        assert process.wait(10) == 1
    assert job.lines()[-1]["error"] == "cancelled"
    wait_for(lambda: group_is_gone(process.pid))


def test_a_hang_up_does_not_end_the_run(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", {"a.onnx": RELU})
    with job.start() as process:
        wait_for(lambda: (job.folder / "pid").exists() and job.lines("hello"))
        os.kill(process.pid, signal.SIGHUP)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [(-signal.SIGKILL, "memory"), (-signal.SIGSEGV, "runtime"), (None, "timeout")],
)
def test_the_model_that_brought_a_block_down_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, kind: str
) -> None:
    run = runner.Run(str(tmp_path))
    cases = [{"key": d, "path": d, "threads": 1} for d in "ab"]
    run.request = {**runner._DEFAULTS, "cases": cases}
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "emit", told.append)
    answers: list[dict[str, Any]] = [{"start": "a"}, {"start": "b"}]
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "_process", lambda spec, _: asked.append(spec) or (answers, status))
    assert run._attempt(["a", "b"]) == ({}, True)
    assert [(t["model"], t["error"]) for t in told] == [("b", kind)]

    # While they take turns nobody knows whose fault it is: then they are loaded one by one.
    run.failed.clear()
    answers.append({"start": None})
    assert run._attempt(["a", "b"]) == ({}, True)
    assert len(told) == 1
    with pytest.raises(runner.Stop) as stopped:
        run._attempt(["a", "b"])
    assert stopped.value.kind == kind
    assert [a["together"] for a in asked] == [True, True, False]


# ---- statistics


@pytest.mark.parametrize("n", [2, 3, 5, 8, 20, 40])
def test_the_interval_holds_the_true_median_19_times_of_20(n: int) -> None:
    draw = random.Random(n)
    hits, rounds = 0, 2000
    for _ in range(rounds):
        _, low, high = runner.interval([2.0 * math.exp(draw.gauss(0, 0.05)) for _ in range(n)])
        hits += low <= 2.0 <= high
    assert 0.935 < hits / rounds < 0.965


def test_more_spread_needs_more_blocks() -> None:
    calm, wild = [1.0, 1.003, 1.001], [1.0, 1.04, 0.97]
    assert runner.half_width_percent(calm) < 1 < runner.half_width_percent(wild)
    assert runner.blocks_needed(calm, 1.0, 8) == 3
    assert 3 < runner.blocks_needed(wild, 3.0, 30) < 30
    assert runner.blocks_needed(wild, 0.01, 8) == 8


def test_samples_are_contended_where_wall_time_is_far_above_cpu_time() -> None:
    wall, cpu = [1_000_000, 1_200_000, 3_000_000], [990_000, 1_000_000, 1_000_000]
    one = runner.entry(wall, cpu, 1, 5, 0.01, ["CPUExecutionProvider"])
    assert one["contended"] == pytest.approx(1 / 3, abs=1e-4)
    assert (one["median_ms"], one["cpu_ms"], one["n"]) == (1.2, 1.0, 3)
    assert runner.entry(wall, cpu, 4, 5, 0.01, [])["contended"] == 0


def test_a_line_stays_short_however_many_runs_there_were() -> None:
    one = runner.entry(range(1, 100_001), [0] * 100_000, 1, 5, 0.01, [])
    assert one["n"] == 100_000
    assert len(one["wall_ms"]) <= runner.SAMPLES


def test_warm_up_ends_when_it_gets_no_faster_or_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    takes: list[float] = []

    def infer() -> None:
        nonlocal now
        now += takes.pop(0) if takes else 1.0

    monkeypatch.setattr(runner.time, "perf_counter", lambda: now)
    takes = [9.0, 3.0, 2.0, 2.0, 1.0]
    assert runner.warm_up(infer, 2, 1000.0) == 8  # 9 3 | 2 2 | 1 1 | 1 1
    takes = [1.0 * 0.9**k for k in range(100)]
    assert runner.warm_up(infer, 2, 5.0) < 20


# ---- the model's input


def test_inputs_are_made_up_by_type_and_shape() -> None:
    inputs = (
        'float["n",3,"h","w"] a, int64[1,"t"] b, uint8[2,500] c, int8[500] d, bool[64] e, '
        "float16[4] f, double[4] g"
    )
    body = (
        "p = Identity(a) q = Identity(b) r = Identity(c) s = Identity(d) t = Identity(e) "
        "u = Identity(f) v = Identity(g)"
    )
    names = zip("pqrstuv", ("float", "int64", "uint8", "int8", "bool", "float16", "double"))  # noqa: B905
    outputs = ", ".join(f"{kind}[] {name}" for name, kind in names)
    model = onnx_bytes(body, inputs, outputs.replace("[]", ""))
    session = runner.make_session(model, 1, "CPUExecutionProvider")  # type: ignore[arg-type]
    feed = runner.make_feed(session, 2, 7)
    assert feed["a"].shape == (2, 3, 224, 224)
    assert -1 <= feed["a"].min() < -0.99 < 0.99 < feed["a"].max() < 1
    assert abs(feed["a"].mean()) < 0.01
    assert feed["b"].shape == (1, 1)
    assert feed["c"].min() < 10 < 245 < feed["c"].max()
    assert feed["d"].min() < -110 < 110 < feed["d"].max()
    assert set(feed["e"].tolist()) == {True, False}
    session.run(None, feed)
    again, other = runner.make_feed(session, 2, 7), runner.make_feed(session, 2, 8)
    assert (again["a"] == feed["a"]).all()
    assert (other["a"] != feed["a"]).any()
    assert not runner.make_feed(session, 1, None)["c"].any()


def test_a_text_input_is_refused_as_a_fault_of_the_model() -> None:
    model = onnx_bytes("y = Identity(x)", "string[2] x", "string[2] y")
    session = runner.make_session(model, 1, "CPUExecutionProvider")  # type: ignore[arg-type]
    with pytest.raises(runner.ModelError, match="string"):
        runner.make_feed(session, 1, 0)


def test_a_provider_that_is_not_there_is_a_fault_of_the_runtime() -> None:
    with pytest.raises(runner.ModelError, match="NoSuchProvider") as caught:
        runner.make_session(RELU, 1, "NoSuchProvider")  # type: ignore[arg-type]
    assert caught.value.kind == "runtime"


# ---- the other modes, and the file itself


def test_facts_are_one_line_about_this_machine() -> None:
    out = subprocess.run(
        [sys.executable, str(RUNNER), "--facts"], capture_output=True, text=True, check=True
    ).stdout
    facts = json.loads(out)
    assert out.count("\n") == 1
    assert facts["machine"] == os.uname().machine
    assert facts["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert facts["onnxruntime"]
    assert facts["cores"] >= 1
    assert facts["memory_kb"] > 0
    assert "CPUExecutionProvider" in facts["providers"]


def test_check_tells_whether_a_model_runs(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(RELU)
    bad.write_bytes(b"no")
    command = [sys.executable, str(RUNNER), "--check"]
    fine = subprocess.run([*command, str(good), "1", "2"], capture_output=True, text=True)
    assert fine.returncode == 0
    told = json.loads(fine.stdout)
    known = told.pop("known")
    assert told == {"ok": True, "outputs": [[1, 8]], "digest": digest(RELU)}
    (first,), (second,) = known
    assert first["shape"] == [1, 8]
    assert first["values"] != second["values"]
    assert first["top"][0][0] == first["values"].index(max(first["values"]))
    assert runner.check(str(good), [1])["known"] == [[first]]
    answer = runner.check(str(bad))
    assert (answer["ok"], answer["error"]) == (False, "model")
    assert runner.check(str(tmp_path / "none.onnx"))["ok"] is False


def test_the_file_is_python_3_8_and_imports_nothing_that_a_device_lacks() -> None:
    tree = ast.parse(RUNNER.read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported <= sys.stdlib_module_names | {"numpy", "onnxruntime"}


def test_python_3_8_itself_can_import_it() -> None:
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # the tests' own HOME is an empty folder
    old = home / ".pyenv/versions"
    found = [*sorted(old.glob("3.8.*/bin/python3.8")), Path("/usr/bin/python3.8")]
    if not found[0].exists():
        pytest.skip("there is no Python 3.8 here")
    code = f"import sys; sys.path.insert(0, {str(RUNNER.parent)!r}); sys.dont_write_bytecode = True"
    code += "; import runner; print(runner.interval([1.0, 1.1, 1.2])[0], runner.conditions(True))"
    out = subprocess.run([found[0], "-W", "error", "-c", code], capture_output=True, text=True)
    assert out.stdout.startswith("1.1 {"), out.stderr


def test_importing_it_changes_nothing() -> None:
    code = (
        "import signal, sys, os; before = signal.getsignal(signal.SIGTERM), os.getpgrp();"
        "from engine import runner;"
        "assert before == (signal.getsignal(signal.SIGTERM), os.getpgrp());"
        "assert not {'numpy', 'onnxruntime', 'subprocess'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=RUNNER.parents[1])
