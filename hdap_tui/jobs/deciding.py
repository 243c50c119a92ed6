"""Float or quantized: what devices of every cluster measure decides for that cluster.

On about half of real devices int8 is slower than float, so no preset can know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from engine.compress.export import Exported
from engine.fleet.precision import Benefit
from engine.latency import Latency
from engine.search.hdap import Cancelled, Cluster
from engine.search.objective import FleetLatency
from hdap_tui.jobs.benefit import Pairs, Timed, benefits, recorded
from hdap_tui.jobs.folder import write_json
from hdap_tui.jobs.parts import Job, Part
from hdap_tui.jobs.quantizing import Quantized
from hdap_tui.jobs.steps import Steps
from hdap_tui.names import cluster_letter
from hdap_tui.store import measurements
from hdap_tui.store.database import open_store
from hdap_tui.store.values import now

EXPECTED_S = 6.0
"""What measuring is expected to take, a cluster."""
PROBED = 2
"""Devices of a cluster that decide for it, where it has as many."""

Version = Literal["float", "quantized"]


@dataclass(frozen=True)
class Choice:
    """A file, and which clusters get it."""

    part: Part
    file: Exported
    figures: Mapping[str, Any]
    """For the model's metrics."""


class Decision:
    """How one network of a job goes out.

    Args:
        job: what it is done for.
        part: whom the network is for.
        original: the model whose place it takes.
        made: the network in float.
        quantized: the same in fewer bits; None: there is none.
    """

    def __init__(
        self,
        job: Job,
        part: Part,
        original: Exported,
        made: Exported,
        quantized: Quantized | None,
    ) -> None:
        self.job, self.part = job, part
        self.original, self.made, self.quantized = original, made, quantized
        self.clusters = [cluster for cluster in job.clusters if cluster.id in part.clusters]

    def choose(self, always: bool, accuracies: Mapping[str, float]) -> list[Choice]:
        """Measure, and choose for each cluster.

        Args:
            always: whether the quantized network is taken even where it is slower.
            accuracies: on the selection split, by digest.

        Raises:
            Cancelled: somebody asked to stop.
            ValueError: no device can be measured any more.
        """
        times, known, at = self._measure()
        found = benefits(self.clusters, times, self.made.digest, known)
        takes = {c.id: self._take(c, found[c.id], always) for c in self.clusters}
        self.job.reporter.noted(self.part.step("decide"), self._sentence(times, takes, accuracies))
        files: dict[Exported, list[Cluster]] = {}
        for cluster in self.clusters:
            files.setdefault(self._file(takes[cluster.id], cluster), []).append(cluster)
        return [
            Choice(
                replace(
                    self.part,
                    clusters=tuple(cluster.id for cluster in own),
                    alone=self.part.alone or len(files) > 1,
                ),
                file,
                {
                    "measured_speedup": self._speedup(own, times, takes[own[0].id]),
                    "measured_speedups": self._speedups(own, times),
                    "selection_accuracy": accuracies[file.digest],
                    **self._known(
                        file,
                        [
                            _explained(times, c, takes[c.id], found[c.id], self._why(c, always), at)
                            for c in own
                        ],
                    ),
                },
            )
            for file, own in files.items()
        ]

    def _take(self, cluster: Cluster, benefit: Benefit, always: bool) -> Version:
        """Return what a cluster gets: the faster one, but for a file that is too large."""
        if self.quantized is None:
            return "float"
        if self._too_large(cluster):
            return "float" if self.job.steps.allow(self.made.bytes) else "quantized"
        margin = math.log(1 + self.job.settings.deploy.margin_percent / 100)
        return "quantized" if always or benefit.mean > margin else "float"

    def _too_large(self, cluster: Cluster) -> str:
        """Say which of a cluster's two files is larger than may be; empty where none is."""
        steps, found = self.job.steps, self.quantized
        files = {"float": self.made, **({"quantized": found.files[cluster.id]} if found else {})}
        return "; ".join(
            f"the {name} file has {file.bytes} bytes and the recipe's maximum_bytes is "
            f"{steps.maximum_bytes}"
            for name, file in files.items()
            if not steps.allow(file.bytes)
        )

    def _why(self, cluster: Cluster, always: bool) -> str:
        """Say what decides for a cluster, after "as", if that is not its speed."""
        return self._too_large(cluster) or ("was asked" if always else "")

    def _known(self, file: Exported, why: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what is known of a file's precision, and why its clusters get it."""
        if self.quantized is None:
            return {"precision": "fp32"}
        if file == self.made:
            return {"precision": "fp32", "decision": why}
        return {
            "precision": self.quantized.precision,
            **self.quantized.figures[file.digest],
            "float_digest": self.made.digest,
            "decision": why,
        }

    def _file(self, version: Version, cluster: Cluster) -> Exported:
        if version == "quantized" and self.quantized is not None:
            return self.quantized.files[cluster.id]
        return self.made

    def _measure(self) -> tuple[list[Timed], Pairs, str]:
        """Time all versions side by side on devices of every cluster.

        All is kept, so that a resumed job decides the same.

        Returns:
            What they measured, what had been measured before, and when this was.
        """
        job, step = self.job, self.part.step("decide")
        path = job.folder.work / self.part.file("decision.json")
        more = self.quantized.files.values() if self.quantized else ()
        versions = {file.digest for file in (self.original, self.made, *more)}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["models"] == sorted(versions):
                return [Timed(**one) for one in kept["times"]], kept["known"], kept["at"]
        weight = EXPECTED_S * len(self.clusters)
        job.reporter.started(step, total=len(self.clusters), weight=weight)
        times: list[Timed] = []
        measured: list[Latency] = []
        for number, cluster in enumerate(self.clusters, 1):
            for answers in self._timed(cluster):
                times.append(self._read(cluster, answers))
                measured += answers
            job.reporter.advanced(step, number)
        if not times:
            raise ValueError("no device can be measured any more; resume the job later")
        known = recorded(job.settings.database) if self.quantized else {}
        _save(job, measured)
        kept = {"models": sorted(versions), "at": now(), "known": known}
        write_json(path, {**kept, "times": [asdict(one) for one in times]})
        job.reporter.finished(step)
        return times, known, kept["at"]

    def _timed(self, cluster: Cluster) -> list[list[Latency]]:
        """Time the versions on some devices of a cluster; those that cannot be asked are passed."""
        paths = [self.original.path, self.made.path]
        if self.quantized is not None:
            paths.append(self.quantized.files[cluster.id].path)
        found: list[list[Latency]] = []
        for device in cluster.devices:
            answers = list(self.job.measure([(p, device) for p in paths], self.job.cancelled))
            if self.job.cancelled():
                raise Cancelled
            if answers and all(one.ok for one in answers):
                found.append(answers)
            if len(found) == PROBED:
                break
        return found

    def _read(self, cluster: Cluster, answers: Sequence[Latency]) -> Timed:
        by_digest = {one.model: one.median_ms for one in answers}
        third = self.quantized.files[cluster.id].digest if self.quantized else None
        return Timed(
            cluster=cluster.id,
            device=answers[0].device,
            original_ms=by_digest[self.original.digest],
            float_ms=by_digest[self.made.digest],
            quantized_ms=None if third is None else by_digest[third],
        )

    def _speedup(
        self, clusters: Sequence[Cluster], times: Sequence[Timed], version: Version
    ) -> float | None:
        """Latency of these clusters' devices, as the objective has it: the original's by the new.

        None where none of them could be measured.
        """
        usable = [c for c in clusters if any(one.cluster == c.id for one in times)]
        if not usable:
            return None
        value = FleetLatency.of(usable, self.job.asked.objective, self.job.asked.weighting)
        before, after = (
            float(value(np.array([[_middle(times, c.id, name)] for c in usable]))[0])
            for name in ("original", version)
        )
        return before / after

    def _speedups(
        self, clusters: Sequence[Cluster], times: Sequence[Timed]
    ) -> dict[str, float | None]:
        names: dict[str, Version] = {"fp32": "float"}
        if self.quantized is not None:
            names[self.quantized.precision] = "quantized"
        return {name: self._speedup(clusters, times, of) for name, of in names.items()}

    def _sentence(
        self,
        times: Sequence[Timed],
        takes: Mapping[int, Version],
        accuracies: Mapping[str, float],
    ) -> str:
        parts = []
        for name, value in self._speedups(self.clusters, times).items():
            more = self.quantized.files.values() if self.quantized and name != "fp32" else ()
            worst = min(accuracies[file.digest] for file in more or [self.made])
            parts.append(
                f"{name}: {value:.2f}x measured on the representatives, {worst:.2%} of the "
                "selection split right"
            )
        if self.quantized is None:
            return "; ".join(parts)
        large = dict.fromkeys(self._too_large(c) for c in self.clusters)
        parts += [sentence for sentence in large if sentence]
        names = {"float": "fp32", "quantized": self.quantized.precision}
        if len(set(takes.values())) == 1:
            return "; ".join([*parts, f"{names[next(iter(takes.values()))]} is taken"])
        each = (f"{names[takes[c.id]]} for cluster {cluster_letter(c.id)}" for c in self.clusters)
        return "; ".join([*parts, f"taken are {', '.join(each)}"])


def check_size(steps: Steps, made: Exported, quantized: Sequence[Exported] = ()) -> None:
    """Refuse a network of which a cluster would get no file that is small enough.

    Args:
        steps: of the job; they say how large a file may be.
        made: the network in float.
        quantized: the same in fewer bits, for each cluster.

    Raises:
        ValueError: it is too large; the sentence says what to do.
    """
    if steps.allow(made.bytes):
        return
    large = [file for file in quantized if not steps.allow(file.bytes)]
    if quantized and not large:
        return
    sizes, advice, file = f"{made.bytes} bytes", "keep fewer channels", made
    if large:
        file = max(large, key=lambda one: one.bytes)
        sizes = f"{made.bytes} bytes in float and {file.bytes} bytes quantized"
    elif steps.quantization is None:
        advice += ", or quantize"
    else:
        advice += ", or allow a larger maximum_drop for the quantization"
    raise ValueError(
        f"the result has {sizes}, and the recipe's maximum_bytes is {steps.maximum_bytes}: "
        f"{advice}; it lies in {file.path}"
    )


def _save(job: Job, measured: Sequence[Latency]) -> None:
    """Put into the store what was measured side by side, where all models are compared."""
    with closing(open_store(job.settings.database)) as store:
        number = measurements.begin(store, "job")
        for latency in measured:
            measurements.add(store, number, latency)
        measurements.finish(store, number)


def _middle(times: Sequence[Timed], cluster: int, version: str) -> float:
    """Return the geometric mean over the devices that were measured, in milliseconds."""
    found = [getattr(one, f"{version}_ms") for one in times if one.cluster == cluster]
    return float(np.exp(np.mean(np.log(found))))


def _explained(
    times: Sequence[Timed],
    cluster: Cluster,
    version: Version,
    benefit: Benefit,
    why: str,
    at: str,
) -> dict[str, Any]:
    """Return why a cluster gets what it gets, for JSON; `why` decides where its speed does not."""
    own = [one for one in times if one.cluster == cluster.id]
    letter = cluster_letter(cluster.id)
    return {
        "at": at,
        "cluster": letter,
        "devices": cluster.size,
        "takes": version,
        "expected_speedup": benefit.speedup,
        "probability_faster": benefit.probability,
        "speedup_elsewhere": math.exp(benefit.prior_mean),
        "reason": f"cluster {letter}: {_reason(own, version, benefit, why)}",
        "measured": [
            {"device": one.device, "float_ms": one.float_ms, "quantized_ms": one.quantized_ms}
            for one in own
        ],
    }


def _reason(own: Sequence[Timed], version: Version, benefit: Benefit, why: str) -> str:
    if own:
        found = math.fsum(math.log(one.float_ms / (one.quantized_ms or 1)) for one in own)
        who = " and ".join(one.device for one in own)
        seen = f"quantized runs {math.exp(found / len(own)):.2f} times as fast as float on {who}"
    else:
        seen = "none of its devices could be measured"
    takes = "it takes the quantized file" if version == "quantized" else "it stays with float"
    expected = (
        f"with what is known of other networks and devices {benefit.speedup:.2f} is expected, "
        f"faster with a probability of {benefit.probability:.0%}"
    )
    return f"{seen}; {expected}: {takes}{f', as {why}' if why else ''}"
