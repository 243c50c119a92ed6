"""A network pruned further and further for the emulated fleet: accuracy against latency.

    python -m benchmarks.front --data ../shared/data/cifar10 \\
        --weights ../shared/data/weights_cifar10/resnet56_akamaster.safetensors --network resnet56

The whole job as an operator starts it: an emulated lab, `hdap devices probe`, `hdap sweep`, and
`hdap compress` for a latency to reach in several outer iterations. The network at the end of each
is then compared with the original by `hdap bench --compare`, all in float32, interleaved in one
run, on every device of the lab, and on this machine without a lab around it. Killed and started
again on the same folder, it goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.designs import compare_files
from benchmarks.servers import row
from engine import data, models
from engine.compress.evaluate import accuracy
from engine.compress.export import export
from engine.compress.profile import macs
from engine.compress.prunable import prunable
from engine.search.iterations import stages
from hdap_tui.lab import control
from hdap_tui.lab.fleet_file import fleet_toml
from hdap_tui.lab.profiles import Plan

_SETTINGS = """
[compression]
network = "{network}"
weights = "{weights}"
data = "{data}"
constraint = "latency"
target_speedup = {speedup}
outer_iterations = {iterations}
max_extra_pruning = {reach}
evaluations = {evaluations}
accuracy_images = {images}
samples = {samples}
quantize = "never"
seed = {seed}
per_cluster = "never"
[compression.finetune]
epochs = {epochs}
lr = {lr}
batch = 128
bf16 = true
distill = {distill}
"""


def main() -> None:
    """Run the command."""
    options = _parser().parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    paths = {"data": options.data.absolute(), "weights": options.weights.absolute()}
    settings = _SETTINGS.format(**{**vars(options), **paths})
    with running_lab(folder, options.devices, settings) as lab:
        job = _job(lab, folder / "lab")
        minutes = (time.monotonic() - begun) / 60
        _report(options, lab, job, minutes)


@contextmanager
def running_lab(folder: Path, devices: int, settings: str | None = None) -> Iterator[Path]:
    """Start the emulated lab; give its fleet file, which is made anew where settings are given."""
    lab = control.up(folder / "lab", devices, plan=Plan(step_at_s=None))
    fleet = folder / "fleet.toml"
    if settings is not None:
        fleet.write_text(fleet_toml(lab, settings))
    try:
        yield fleet
    finally:
        control.down(folder / "lab")


def _job(fleet: Path, state: Path) -> Path:
    """Probe, sweep and compress, or go on; return the job's folder."""
    jobs = sorted((state / "jobs").glob("compress-*"))
    if not jobs:
        hdap(fleet, "devices", "probe")
        hdap(fleet, "sweep")
        hdap(fleet, "compress")
    elif not (jobs[-1] / "result.json").exists():
        hdap(fleet, "jobs", "resume", jobs[-1].name)
    return sorted((state / "jobs").glob("compress-*"))[-1]


def _report(options: argparse.Namespace, fleet: Path, job: Path, minutes: float) -> None:
    torch.set_num_threads(2)
    dataset = data.load(options.data, options.seed)
    network = models.load(options.network, len(dataset.classes), options.weights)
    example = torch.from_numpy(dataset.test_images[:2]).float() / 255
    groups = prunable(network, example).groups
    work = job / "work"
    files = [export(network, example, options.folder / "original.onnx").path]
    points = []
    for number, (iteration, pruned) in enumerate(stages(network, groups, work), 1):
        files.append(export(pruned, example, options.folder / f"iteration-{number}.onnx").path)
        points.append((iteration, accuracy(pruned, dataset.test_images, dataset.test_labels)))
    unpruned = macs(network, example)
    before = accuracy(network, dataset.test_images, dataset.test_labels)
    _keep(
        options, work, files, [(unpruned, before), *((step.macs, found) for step, found in points)]
    )
    compared = hdap(fleet, "bench", *map(str, files), "--compare", "--json")
    local = compare_files(files, example[:1].numpy())
    print(
        f"\n{options.network}: job and sweep took {minutes:.0f} min; {options.epochs} epochs each\n"
    )
    print(row("outer iteration", "fewer MACs", "test accuracy", "fleet mean (emulated)", "here"))
    print(row("---", "---", "---", "---", "---"))
    print(row("0", "1", f"{before:.2%}", "1", "1"))
    for number, ((iteration, found), pair, here) in enumerate(
        zip(points, compared["fleet"], local, strict=True), 1
    ):
        print(
            row(
                str(number),
                f"{unpruned / iteration.macs:.2f}x",
                f"{found:.2%}",
                f"{pair['speedup']:.2f}x ({pair['low']:.2f} to {pair['high']:.2f})",
                f"{here:.2f}x",
            )
        )


def _keep(
    options: argparse.Namespace,
    work: Path,
    files: Sequence[Path],
    points: Sequence[tuple[int, float]],
) -> None:
    """Write down what `benchmarks.front_peers` needs."""
    kept = {
        "network": options.network,
        "weights": str(options.weights.absolute()),
        "data": str(options.data.absolute()),
        "seed": options.seed,
        "devices": options.devices,
        "recipe": json.loads((work / "search.json").read_text())["recipe"],
        "points": [
            {"file": str(file), "macs": macs, "accuracy": found}
            for file, (macs, found) in zip(files, points, strict=True)
        ],
    }
    (options.folder / "front.json").write_text(json.dumps(kept, indent=1))


def hdap(fleet: Path, *words: str) -> Any:
    """Run a command; return what it prints as JSON, if asked."""
    command = [sys.executable, "-m", "hdap_tui", "--config", str(fleet), *words]
    wants = "--json" in words
    done = subprocess.run(command, stdout=subprocess.PIPE if wants else None, check=True)
    return json.loads(done.stdout) if wants else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/hdap-front"))
    parser.add_argument("--devices", type=int, default=12)
    parser.add_argument("--speedup", type=float, default=2.7, help="latency to reach in the end")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--reach", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=10, help="of each outer iteration")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--distill", type=float, default=0.0)
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
