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

from engine import runner
from engine.latency import Latency

LINE_BYTES = 1_000_000
SAMPLES = 10_000
BLOCKS = 1_000
TEXT = 300
SHORTEST_MS = 1e-5
LONGEST_MS = 1e9

_FAILURES = frozenset({"model", "runtime", "memory", "timeout", "lease", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What a result file says so far."""

    latencies: Mapping[str, Latency]
    """One record for every model that was asked for; see `Latency.error` where there is none."""
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
    section: tuple[int, int] | None = None
    expected_s: float | None = None
    took_s: float | None = None
    stopped: str = ""
    error: str = ""
    detail: str = ""


def parse(
    lines: Iterable[bytes],
    device: str,
    digests: Sequence[str],
    *,
    at: str = "",
    started: float | None = None,
) -> Parsed:
    """Return what result lines say about the models asked for; never raises on any bytes.

    Args:
        lines: the file's lines from its beginning, with or without their ends. A last line that
            is still being written does no harm.
        device: the device's name in the fleet.
        digests: the models that were asked for.
        at: UTC on the controller's clock when the lines arrived, ISO 8601.
        started: Unix time on the controller's clock when the runner was started; the device's
            clock offset is told from it.
    """
    reading, garbage, last_bad = _Reading(), 0, False
    for line in lines:
        if not line.strip():
            continue
        data = _load(line)
        last_bad = data is None or not _take(reading, data, digests)
        garbage += last_bad
        if data is not None and data.get("event") == "hello":
            reading, garbage = _Reading(hello=data), 0  # a new run over the same folder
    unfinished_line = last_bad and not line.endswith(b"\n")
    garbage -= unfinished_line
    return Parsed(
        latencies={d: _latency(reading, d, device, garbage, at, started) for d in digests},
        started=bool(reading.hello),
        finished=bool(reading.stopped or reading.error),
        blocks=len(reading.blocks),
        section=reading.section,
        expected_s=reading.expected_s,
        took_s=reading.took_s,
        error=reading.error,
        detail=reading.detail,
        garbage=garbage,
    )


def clean(value: object, limit: int = TEXT) -> str:
    """Return a device's text on one line, cut, without control characters or lone surrogates."""
    text = value if isinstance(value, str) else str(value) if _number(value) else ""
    kept = (" " if c in "\t\r\n" else c for c in text[: 4 * limit])
    return "".join(c for c in kept if unicodedata.category(c)[0] != "C").strip()[:limit]


def _load(line: bytes) -> dict[str, Any] | None:
    """Return a line's object; None where it is none, is too long, or nests too deeply."""
    if len(line) > LINE_BYTES:
        return None
    try:
        data = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _take(reading: _Reading, data: dict[str, Any], digests: Sequence[str]) -> bool:
    """Add one line to the reading; return whether it made sense."""
    match data.get("event"):
        case "hello":
            return True
        case "timed":
            return _take_section(reading, data)
        case "block":
            return _take_block(reading, data, digests)
        case "failed":
            return _take_failure(reading, data, digests)
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
    return True


def _take_block(reading: _Reading, data: dict[str, Any], digests: Sequence[str]) -> bool:
    number, models = data.get("block"), data.get("models")
    if type(number) is not int or not 0 <= number < BLOCKS or number in reading.blocks:
        return False
    if not isinstance(models, dict):
        return False
    block = reading.blocks[number] = {}
    for digest in digests:
        if digest in models:
            wrong = _wrong(models[digest])
            if wrong:
                reading.spoilt.setdefault(digest, f"block {number}: {wrong}")
            else:
                block[digest] = models[digest]
    reading.after = _conditions(data.get("conditions"))
    return True


def _take_failure(reading: _Reading, data: dict[str, Any], digests: Sequence[str]) -> bool:
    error, model = data.get("error"), data.get("model")
    kind = error if isinstance(error, str) and error in _FAILURES else "runtime"
    detail = clean(data.get("detail")) or "the device did not say why"
    if model is None:
        reading.error, reading.detail = kind, detail
        return True
    if isinstance(model, str) and model in digests:
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
    reading: _Reading, digest: str, device: str, garbage: int, at: str, started: float | None
) -> Latency:
    """Return the record of one model."""
    hello, common = reading.hello, _conditions(reading.hello.get("conditions"))
    clock = hello.get("clock")
    base: dict[str, Any] = {
        "device": device,
        "model": digest,
        "at": at,
        "emulated": hello.get("emulated") is True or common.get("emulated") is True,
        "clock_offset_s": clock - started if started is not None and _number(clock) else None,
    }
    for key in ("python", "onnxruntime", "numpy", "machine", "system", "runner"):
        if clean(hello.get(key)):
            common[key] = clean(hello[key])
    if reading.after:
        common["after"] = reading.after
    entries = [b[digest] for _, b in sorted(reading.blocks.items()) if digest in b]
    error, detail = _fault(reading, digest, bool(entries), garbage)
    if error:
        return Latency(**base, conditions=common, error=error, detail=detail)
    last = _conditions({k: entries[-1].get(k) for k in ("providers", "threads", "load_ms")})
    ended = {"stopped": reading.stopped} if reading.stopped else {"partial": reading.error or True}
    summary = runner.summarise(entries)
    return Latency(
        **base,
        conditions={**common, **last, **ended},
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
    )


def _fault(reading: _Reading, digest: str, timed: bool, garbage: int) -> tuple[str, str]:
    """Return why there is no number, as class and sentence; both empty where there is one."""
    if digest in reading.spoilt:
        return "garbage", f"The device's result makes no sense: {reading.spoilt[digest]}."
    if digest in reading.failures:
        return reading.failures[digest]
    if timed:
        return "", ""
    if reading.error:
        return reading.error, reading.detail
    if garbage or reading.stopped:
        return "garbage", f"The device's results hold no block of this model ({garbage} bad lines)."
    return "unfinished", "No block of this model has been timed yet."
