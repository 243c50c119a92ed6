"""Reads what a runner wrote on a device, and believes none of it unseen.

The lines come from a machine that may be broken or hostile: every number is checked, every text
cut and cleaned, and only models that were asked for are taken. The blocks are the truth; the
summary is computed from them here, by the runner's own formulas, so that a run that was cut
short still gives what it measured.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from engine import conditions, runner
from engine.latency import Answered, Configuration, Latency

LINE_BYTES = 1_000_000
SAMPLES = 10_000
BLOCKS = 1_000
TEXT = 300
SHORTEST_MS = 1e-5
LONGEST_MS = 1e9

_FAILURES = frozenset({"model", "runtime", "memory", "timeout", "lease", "cancelled", "skipped"})
_PHASES = frozenset({"cooling", "busy", "energy"})
_ENERGY = ("idle_w", "load_w", "load_s", "n", "rate_hz", "period_ms", "reading_ms", "others_share")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model as it is to be run."""

    model: str
    """SHA-256 of the file."""
    configuration: Configuration
    only: bool = True
    """Whether the run has the model in this configuration alone."""
    images: int = 0
    """Test images that it is shown; 0: it is timed on made-up input."""
    classes: int = 0
    """How many classes an image may be given."""

    @property
    def key(self) -> str:
        """Return its name in request and results, which tells it from the others of the run."""
        how = self.configuration
        other = "" if self.only else f" {how.batch} {how.threads} {how.provider}"
        return self.model + other


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What a result file says so far."""

    latencies: Mapping[str, Latency]
    """One record for every case that was asked for, by its key, or by the digest where a model
    was asked for by that alone; see `Latency.error` where there is no number. An `Answered` where
    it was shown test images."""
    started: bool = False
    """The runner has said hello."""
    finished: bool = False
    """The runner has said that it is done or that it failed; nothing more will come."""
    blocks: int = 0
    """Blocks that have been timed."""
    section: tuple[int, int] | None = None
    """First and last block of the latest quiet section; nobody connects during one."""
    expected_s: float | None = None
    """How long that section should take, from the moment when it was written."""
    phase: str = ""
    """What the runner does in place of timing: "cooling", "busy" (it waits), "energy", or empty."""
    phase_value: float = 0.0
    """The temperature in °C, or the share of the CPU in use by others, that it waits for."""
    phase_s: float = 0.0
    """How long it will do that at least, from the moment when it was written."""
    took_s: float | None = None
    """How long the whole run took on the device; None before it is done."""
    error: str = ""
    """Class of what ended the whole run early, empty where nothing did."""
    detail: str = ""
    garbage: int = 0
    """Lines that made no sense."""


@dataclass
class _Reading:
    """One run of the runner as its lines tell it."""

    hello: dict[str, Any] = field(default_factory=dict)
    blocks: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    spoilt: dict[str, str] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    during: list[dict[str, Any]] = field(default_factory=list)
    waited: dict[str, Any] = field(default_factory=dict)
    energy: dict[str, dict[str, Any]] = field(default_factory=dict)
    phase: tuple[str, float, float] = ("", 0.0, 0.0)
    section: tuple[int, int] | None = None
    expected_s: float | None = None
    took_s: float | None = None
    stopped: str = ""
    error: str = ""
    detail: str = ""


def parse(
    lines: Iterable[bytes],
    device: str,
    asked: Sequence[str | Case],
    *,
    at: str = "",
    started: float | None = None,
) -> Parsed:
    """Return what result lines say about the models asked for; never raises on any bytes.

    Args:
        lines: the file's lines from its beginning, with or without their ends. A last line that
            is still being written does no harm.
        device: the device's name in the fleet.
        asked: the cases that were asked for; a digest is one as the runner does by itself.
        at: UTC on the controller's clock when the lines arrived, ISO 8601.
        started: Unix time on the controller's clock when the runner was started; the device's
            clock offset is told from it.
    """
    cases = {a if isinstance(a, str) else a.key: a for a in asked}
    reading, garbage, last_bad = _Reading(), 0, False
    for line in lines:
        if not line.strip():
            continue
        data = _load(line)
        last_bad = data is None or not _take(reading, data, cases)
        garbage += last_bad
        if data is not None and data.get("event") == "hello":
            reading, garbage = _Reading(hello=data), 0  # a new run over the same folder
    unfinished_line = last_bad and not line.endswith(b"\n")
    garbage -= unfinished_line
    return Parsed(
        latencies={
            k: _latency(reading, k, c, device, garbage, at, started) for k, c in cases.items()
        },
        started=bool(reading.hello),
        finished=bool(reading.stopped or reading.error),
        blocks=len(reading.blocks),
        section=reading.section,
        expected_s=reading.expected_s,
        phase=reading.phase[0],
        phase_value=reading.phase[1],
        phase_s=reading.phase[2],
        took_s=reading.took_s,
        error=reading.error,
        detail=reading.detail,
        garbage=garbage,
    )


def clean(value: object, limit: int = TEXT) -> str:
    """Return a device's text on one line, cut, without control characters or lone surrogates."""
    text = value if isinstance(value, str) else str(value) if _number(value) else ""
    text = text[: 4 * limit]
    if text.isprintable():  # nearly every one, and much faster
        return text.strip()[:limit]
    kept = (" " if c in "\t\r\n" else c for c in text)
    return "".join(c for c in kept if unicodedata.category(c)[0] != "C").strip()[:limit]


def _load(line: bytes) -> dict[str, Any] | None:
    """Return a line's object; None where it is none, is too long, or nests too deeply."""
    if len(line) > LINE_BYTES:
        return None
    try:
        data = json.loads(line, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys each stand there once: two values for one are none."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


Cases = Mapping[str, "str | Case"]


def _take(reading: _Reading, data: dict[str, Any], cases: Cases) -> bool:
    """Add one line to the reading; return whether it made sense."""
    match data.get("event"):
        case "hello":
            return True
        case "timed":
            return _take_section(reading, data)
        case "block":
            return _take_block(reading, data, cases)
        case "failed":
            return _take_failure(reading, data, cases)
        case "phase":
            return _take_phase(reading, data)
        case "waited":
            reading.waited = _conditions({k: data.get(k) for k in ("s", "in_vain", "no_sensor")})
            return True
        case "energy":
            return _take_energy(reading, data, cases)
        case "done":
            stopped = data.get("stopped")
            reading.stopped = stopped if stopped in ("interval", "blocks", "time") else "blocks"
            reading.after = _conditions(data.get("conditions"))
            took = data.get("took_s")
            reading.took_s = float(took) if _number(took) and 0 <= took < 1e7 else None
            return isinstance(data.get("models"), dict)
        case _:
            return False


def _take_section(reading: _Reading, data: dict[str, Any]) -> bool:
    blocks, expected = data.get("blocks"), data.get("expected_s")
    if not isinstance(blocks, list) or len(blocks) != 2:
        return False
    if not all(type(b) is int and 0 <= b <= BLOCKS for b in blocks):
        return False
    if not _number(expected) or not 0 <= expected < 1e7:
        return False
    reading.section, reading.expected_s = (blocks[0], blocks[1]), float(expected)
    reading.phase = ("", 0.0, 0.0)
    return True


def _take_phase(reading: _Reading, data: dict[str, Any]) -> bool:
    phase, value, expected = data.get("phase"), data.get("value", 0.0), data.get("expected_s")
    if not isinstance(phase, str) or phase not in _PHASES:
        return False
    if not _number(value) or not -1e3 < value < 1e3:
        return False
    if not _number(expected) or not 0 <= expected < 1e5:
        return False
    reading.phase = (phase, float(value), float(expected))
    return True


def _take_energy(reading: _Reading, data: dict[str, Any], cases: Cases) -> bool:
    """Take a model's energy; nothing that is not whole, positive and in step with itself."""
    key = data.get("model")
    if not isinstance(key, str) or key not in cases:
        return False
    told = _conditions({k: data.get(k) for k in ("source", "rail", "why")})
    told |= {k: data[k] for k in _ENERGY if _number(data.get(k)) and 0 <= data[k] < 1e9}
    total, dynamic = data.get("total_mj"), data.get("dynamic_mj")
    if _number(total) and _number(dynamic) and 0 < total < 1e9 and abs(dynamic) <= total:
        told |= {"total_mj": total, "dynamic_mj": dynamic}
    elif "why" not in told:
        return False
    reading.energy[key] = told
    return True


def _take_block(reading: _Reading, data: dict[str, Any], cases: Cases) -> bool:
    number, models = data.get("block"), data.get("models")
    if type(number) is not int or not 0 <= number < BLOCKS or number in reading.blocks:
        return False
    if not isinstance(models, dict):
        return False
    block = reading.blocks[number] = {}
    for key, case in cases.items():
        if key in models:
            entry = models[key]
            wrong = _wrong(entry) or _not_asked(entry, case) or _no_answers(entry, case)
            if wrong:
                reading.spoilt.setdefault(key, f"block {number}: {wrong}")
            else:
                block[key] = entry
    reading.during.append(_conditions(data.get("during")))
    reading.after = _conditions(data.get("conditions"))
    return True


def _take_failure(reading: _Reading, data: dict[str, Any], cases: Cases) -> bool:
    error, model = data.get("error"), data.get("model")
    kind = error if isinstance(error, str) and error in _FAILURES else "runtime"
    detail = clean(data.get("detail")) or "the device did not say why"
    if model is None:
        reading.error, reading.detail = kind, detail
        return True
    if isinstance(model, str) and model in cases:
        reading.failures.setdefault(model, (kind, detail))
        return True
    return False


def _number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a finite number that fits a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def _wrong(entry: object) -> str:
    """Return what is wrong with a model's entry of a block; empty where it is whole."""
    if not isinstance(entry, dict):
        return "the entry is no object"
    samples = entry.get("wall_ms")
    if not isinstance(samples, list) or not 1 <= len(samples) <= SAMPLES:
        return "the samples are missing or too many"
    times = [entry.get(key) for key in ("median_ms", "mean_ms", "p90_ms")]
    if not all(_number(v) and SHORTEST_MS <= v <= LONGEST_MS for v in (*samples, *times)):
        return "a time is not a positive number of milliseconds"
    cpu, count, contended = (entry.get(key) for key in ("cpu_ms", "n", "contended"))
    if not _number(cpu) or not 0 <= cpu <= LONGEST_MS:
        return "the CPU time is not a number of milliseconds"
    if type(count) is not int or not len(samples) <= count <= 10**9:
        return "the number of samples is not that of the samples"
    if not _number(contended) or not 0 <= contended <= 1:
        return "the contended share is not between 0 and 1"
    if count == len(samples) and not min(samples) <= entry["median_ms"] <= max(samples):
        return "the median lies outside of the samples"
    return ""


def _not_asked(entry: dict[str, Any], case: str | Case) -> str:
    """Return in what a model was run otherwise than asked; empty where it was as asked."""
    if isinstance(case, str):
        return ""
    how = case.configuration
    images = entry.get("images", how.batch)
    if type(images) is not int or not 1 <= images <= 10**6:
        return "the number of images is none"
    if entry.get("batch", how.batch) != how.batch or (images != how.batch and how.batch != 1):
        return f"it was run with another batch than {how.batch}"
    if entry.get("threads", how.threads) != how.threads:
        return f"it was run with another number of threads than {how.threads}"
    providers = entry.get("providers", [how.provider])
    if not isinstance(providers, list) or how.provider not in providers:
        return f"it was not run by {how.provider}"
    return ""


def _no_answers(entry: dict[str, Any], case: str | Case) -> str:
    """Return what is wrong with the classes of a block's images; empty where they are classes."""
    if isinstance(case, str) or not case.images:
        return ""
    answers = entry.get("answers")
    if not isinstance(answers, list) or not 1 <= len(answers) <= case.images:
        return "the answers to its images are missing or too many"
    if not all(type(answer) is int and 0 <= answer < case.classes for answer in answers):
        return f"an answer is none of the {case.classes} classes"
    return ""


def _conditions(value: object, depth: int = 0) -> dict[str, Any]:
    """Return a device's conditions with every text cleaned and every size bounded."""
    if not isinstance(value, dict):
        return {}
    checked = {}
    for key, item in list(value.items())[:64]:
        kept = _condition(item, depth)
        if kept is not None:
            checked[clean(key, 64)] = kept
    return checked


def _condition(item: object, depth: int) -> Any:
    if isinstance(item, bool) or _number(item):
        return item
    if isinstance(item, str):
        return clean(item)
    if depth < 3 and isinstance(item, dict):
        return _conditions(item, depth + 1)
    if depth < 3 and isinstance(item, list):
        kept = (_condition(v, depth + 1) for v in item[:64])
        return [v for v in kept if v is not None]
    return None


def _latency(
    reading: _Reading,
    key: str,
    case: str | Case,
    device: str,
    garbage: int,
    at: str,
    started: float | None,
) -> Latency:
    """Return the record of one case."""
    hello, common = reading.hello, _conditions(reading.hello.get("conditions"))
    clock = hello.get("clock")
    how = case.configuration if isinstance(case, Case) else Configuration()
    base: dict[str, Any] = {
        "device": device,
        "model": case.model if isinstance(case, Case) else case,
        "batch": how.batch,
        "threads": how.threads,
        "provider": how.provider,
        "at": at,
        "emulated": hello.get("emulated") is True or common.get("emulated") is True,
        "clock_offset_s": clock - started if started is not None and _number(clock) else None,
    }
    for name in ("python", "onnxruntime", "numpy", "machine", "system", "runner"):
        if clean(hello.get(name)):
            common[name] = clean(hello[name])
    if reading.waited:
        common["waited"] = reading.waited
    entries = [b[key] for _, b in sorted(reading.blocks.items()) if key in b]
    asked = case.images if isinstance(case, Case) else 0
    answers = tuple(answer for entry in entries for answer in entry["answers"]) if asked else ()
    error, detail = _fault(reading, key, bool(entries), garbage)
    if not error and len(answers) != asked:
        error, detail = _incomplete(reading, len(answers), asked)
    if error:
        if reading.after:
            common["after"] = reading.after
        return Latency(**base, conditions=common, error=error, detail=detail)
    last = _conditions({k: entries[-1].get(k) for k in _OF_ENTRY if k in entries[-1]})
    ended = {"stopped": reading.stopped} if reading.stopped else {"partial": reading.error or True}
    summary = runner.summarise(entries)
    found = {**common, **last, **ended, **_judged(reading, common, summary, key)}
    found["dirty"] = conditions.dirty(found, summary["contended"], base["emulated"])
    latency = Latency(
        **base,
        conditions=found,
        median_ms=summary["median_ms"],
        low_ms=summary["low_ms"],
        high_ms=math.inf if summary["high_ms"] is None else summary["high_ms"],
        p90_ms=summary["p90_ms"],
        p95_ms=summary["p95_ms"],
        mean_ms=summary["mean_ms"],
        cpu_ms=summary["cpu_ms"],
        n=summary["n"],
        block_medians_ms=tuple(summary["block_medians_ms"]),
        contended=summary["contended"],
        energy_mj=reading.energy.get(key, {}).get("total_mj"),
    )
    return Answered(**vars(latency), answers=answers) if asked else latency


_OF_ENTRY = ("providers", "threads", "batch", "images", "load_ms")


def _judged(
    reading: _Reading, before: dict[str, Any], summary: dict[str, Any], key: str
) -> dict[str, Any]:
    """Return what was seen during and after a run, and what that comes to."""
    meanwhile = conditions.during(reading.during)
    found: dict[str, Any] = {"during": meanwhile, "after": reading.after}
    found = {name: value for name, value in found.items() if value}
    slowed = conditions.throttled(before, reading.after, meanwhile)
    if slowed is not None:
        found["throttled"] = slowed
    if reading.energy.get(key):
        found["energy"] = reading.energy[key]
    moved = conditions.trend(summary["block_medians_ms"])
    if moved:
        cold, sustained, change = (round(v, 5) for v in moved)
        found.update(cold_ms=cold, sustained_ms=sustained, trend_percent=round(100 * change, 2))
    return found


def _fault(reading: _Reading, key: str, timed: bool, garbage: int) -> tuple[str, str]:
    """Return why there is no number, as class and sentence; both empty where there is one."""
    if key in reading.spoilt:
        return "garbage", f"The device's result makes no sense: {reading.spoilt[key]}."
    if key in reading.failures:
        return reading.failures[key]
    if timed:
        return "", ""
    if reading.error:
        return reading.error, reading.detail
    if garbage or reading.stopped:
        return "garbage", f"The device's results hold no block of this model ({garbage} bad lines)."
    return "unfinished", "No block of this model has been timed yet."


def _incomplete(reading: _Reading, answers: int, asked: int) -> tuple[str, str]:
    """Return why there are other than as many answers as images, as class and sentence."""
    if reading.stopped == "time" and answers < asked:
        return "timeout", f"The time limit ran out after {answers} of {asked} images."
    if reading.error:
        return reading.error, reading.detail
    if reading.stopped:
        return "garbage", f"The device's result has {answers} answers to {asked} images."
    return "unfinished", f"{answers} of {asked} images have been shown."
