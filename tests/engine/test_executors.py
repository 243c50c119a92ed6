"""Candidates scored by other processes, threads and a dask cluster: the same numbers everywhere."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from engine.compress.groups import importance, trace
from engine.search.candidates import Accuracies
from engine.search.executors import Processes, opened
from engine.search.measurements import Cancelled
from engine.search.scoring import score

DESIGNS = [(w,) * 4 + (2 * w,) * 4 + (4 * w,) * 4 for w in (16, 12, 7, 3)]
Make = Callable[..., Accuracies]


@pytest.fixture
def make(resnet: nn.Module, resnet_groups: object, tmp_path: Path) -> Make:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    with torch.no_grad():  # half of the labels are what the network says
        labels = resnet(torch.from_numpy(images).float() / 255).argmax(1).numpy()
    labels[::2] = random.integers(0, 10, 32)
    scores = importance(resnet, resnet_groups)  # type: ignore[arg-type]

    def build(name: str, **more: object) -> Accuracies:
        return Accuracies(
            resnet, resnet_groups, scores, images, labels, tmp_path / f"{name}.jsonl", 1, **more
        )  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="module")
def pool() -> Iterator[Processes]:
    with opened("processes", 2) as processes:
        assert isinstance(processes, Processes)
        yield processes
    assert not multiprocessing.active_children()


@pytest.fixture(scope="module")
def mortal(pool: Processes) -> Iterator[Processes]:
    """One worker that a test may end, and that is then begun anew."""
    with opened("processes", 1) as processes:
        assert isinstance(processes, Processes)
        yield processes


def test_processes_and_threads_score_to_the_same_bits(make: Make, pool: Processes) -> None:
    alone = make("alone")(DESIGNS)
    assert len(set(alone)) > 1
    assert make("processes", executor=pool)(DESIGNS).tolist() == alone.tolist()
    with opened("threads", 2) as threads:
        assert make("threads", executor=threads)(DESIGNS).tolist() == alone.tolist()


def test_a_killed_worker_is_replaced_and_nothing_is_lost(make: Make, mortal: Processes) -> None:
    accuracies = make("killed", executor=mortal)
    first = accuracies(DESIGNS[:1])
    victim = mortal.submit(os.getpid).result()
    os.kill(victim, signal.SIGKILL)
    assert accuracies(DESIGNS).tolist() == make("alone")(DESIGNS).tolist()
    assert accuracies(DESIGNS[:1]) == first
    assert mortal.submit(os.getpid).result() != victim


def test_workers_that_always_die_are_one_clear_sentence(
    make: Make, mortal: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = make("dying", executor=mortal)
    accuracies(DESIGNS[:1])
    kept = (tmp_path / "dying.jsonl").read_text()
    monkeypatch.setattr("engine.search.candidates.score", _die)
    with pytest.raises(ValueError, match=r"killed or lost .* what they had scored is kept"):
        accuracies(DESIGNS)
    assert (tmp_path / "dying.jsonl").read_text() == kept


def _die(*_: object) -> None:
    os._exit(9)


def test_a_wish_to_stop_ends_the_scoring(make: Make, pool: Processes) -> None:
    asked = iter(range(1000))
    accuracies = make("stop", executor=pool, cancelled=lambda: next(asked) > 0)
    with pytest.raises(Cancelled):
        accuracies([(w,) * 4 + (32,) * 4 + (64,) * 4 for w in range(1, 16)])


def test_a_worker_elsewhere_is_sent_the_network(make: Make, tmp_path: Path) -> None:
    class Far(ThreadPoolExecutor):
        """Workers that see no file of this machine."""

        sent: list[bool] = []  # noqa: RUF012

        def submit(self, fn, ticket, widths, content=None):  # type: ignore[no-untyped-def,override]
            self.sent.append(content is not None)
            away = type(ticket)(ticket.key, str(tmp_path / "not here"))
            return super().submit(fn, away, widths, content)

    with Far(1) as far:
        assert make("far", executor=far)(DESIGNS).tolist() == make("alone")(DESIGNS).tolist()
        assert len(far.sent) > len(DESIGNS)
        assert far.sent.count(True) <= len(DESIGNS)
        assert make("far").seconds(DESIGNS[0]) > 0
    assert far.sent[0] is False
    assert score.__module__ == "engine.search.scoring"


def test_a_network_that_cannot_be_sent_is_refused(tmp_path: Path, pool: Processes) -> None:
    class Local(nn.Sequential):
        pass

    model = Local(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 2)).eval()
    groups = trace(model, torch.rand(1, 3, 8, 8))
    images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, np.int64)
    accuracies = Accuracies(
        model, groups, importance(model, groups), images, labels, tmp_path / "a", 1, executor=pool
    )
    with pytest.raises(ValueError, match="cannot be sent to other processes"):
        accuracies([(2,)])


_SCRIPT = """
import sys, time
from engine.search.executors import opened
if __name__ == "__main__":
    with opened("processes", 2) as pool:
        running = [pool.submit(time.sleep, 60) for _ in range(2)]
        pool.submit(print)
        while not all(future.running() for future in running):
            time.sleep(0.01)
        time.sleep(0.5)
        print("running", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"running\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal sends it
    else:
        parent.kill()
    parent.communicate(timeout=60)
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left


def test_dask_without_an_address_or_a_scheduler_is_refused() -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with (
        pytest.raises(ValueError, match="needs the address of its scheduler"),
        opened("dask"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="no dask scheduler answers at tcp://127"),
        opened("dask", address="tcp://127.0.0.1:9"),
    ):
        pass


def test_where_dask_cannot_be_imported_the_sentence_says_why_and_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "distributed.py").write_text("import no_such_module_of_dask")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "distributed", raising=False)
    with (
        pytest.raises(
            ValueError,
            match=r"No module named 'no_such_module_of_dask'.*the extra hdap-tui\[cluster\]",
        ),
        opened("dask"),
    ):
        pass


def test_a_dask_cluster_scores_to_the_same_bits(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    started: list[subprocess.Popen[bytes]] = []
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "DASK_DISTRIBUTED__DASHBOARD__LINK": "",
    }

    def start(*arguments: str) -> None:
        command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip

    where = tmp_path / "scheduler.json"
    try:
        start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--scheduler-file", str(where),
        )  # fmt: skip
        for _ in range(2):
            start(
                "dask_worker", "--scheduler-file", str(where), "--nthreads", "1", "--no-nanny",
                "--no-dashboard", "--host", "127.0.0.1",
            )  # fmt: skip
        address = _address(where)
        with opened("dask", address=address) as executor:
            found = make("dask", executor=executor)(DESIGNS)
        assert found.tolist() == make("alone")(DESIGNS).tolist()
    finally:
        for process in reversed(started):
            process.kill()  # a worker takes its time over a farewell
        for process in started:
            process.wait(timeout=60)


def _address(where: Path) -> str:
    """Wait until the scheduler has two workers."""
    from distributed import Client

    end = time.monotonic() + 40
    while not where.exists() and time.monotonic() < end:
        time.sleep(0.1)
    with Client(scheduler_file=str(where), set_as_default=False) as client:
        client.wait_for_workers(2, timeout=max(1, end - time.monotonic()))
        return str(client.scheduler.address)
