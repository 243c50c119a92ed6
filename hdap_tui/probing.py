"""The channel multiple of devices: convolutions of neighbouring widths, timed in one visit."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.fleet.alignment import WIDTHS, Alignment, find
from hdap_tui.sweep import Bench, Fleet

if TYPE_CHECKING:
    from engine.latency import Latency
    from hdap_tui.config.settings import Settings
    from hdap_tui.fact_names import Fact

BLOCKS = 5
_RUNS, _WARMUP_RUNS, _BLOCK_S = 24, 3, 0.06
_LIMIT_S = 60.0


def bench(settings: Settings) -> Bench:
    """Return how the widths are timed: about ten seconds in all on a slow board."""
    return Bench(
        threads=settings.benchmark.threads,
        provider=settings.benchmark.provider,
        runs=_RUNS,
        warmup_runs=_WARMUP_RUNS,
        warmup_s=0.0,
        block_s=_BLOCK_S,
        blocks_min=BLOCKS,
        blocks_max=BLOCKS,
        time_limit_s=_LIMIT_S,
        keep_models=False,
    )


def probe(
    fleet: Fleet,
    settings: Settings,
    names: Sequence[str],
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, Alignment | str]]:
    """Time the widths on devices; yields of each what was found, or why nothing was.

    Ends early once it is no longer wanted.
    """
    models = files(settings.state_dir / "probes")
    visits = {fleet.members[name]: list(models.values()) for name in names}
    digests = {_digest(path): width for width, path in models.items()}
    found: dict[str, dict[int, Latency]] = {name: {} for name in names}
    for latency in fleet.measure_many(visits, bench(settings), cancelled=cancelled):
        own = found[latency.device]
        own[digests[latency.model]] = latency
        if len(own) == len(WIDTHS):
            yield latency.device, _judged(own)


def files(folder: Path) -> dict[int, Path]:
    """Return the ONNX file of each width, written where it is not there yet."""
    from engine.models.probes import channels

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = {}
    for width in WIDTHS:
        path = folder / f"channels-{width}.onnx"
        if not path.is_file():
            part = folder / f"{path.name}.{os.getpid()}.part"
            part.write_bytes(channels(width))
            part.replace(path)
        found[width] = path
    return found


def facts(found: Alignment) -> dict[str, Fact]:
    """Return what is kept of it."""
    gain = round(found.gain_percent, 1)
    return {"channel_multiple": found.multiple, "channel_gain_percent": gain}


def common_multiple(known: Mapping[str, Mapping[str, Fact]], default: int) -> int:
    """Return the multiple that most devices have, the larger of equals; the default without any."""
    votes = Counter(
        multiple
        for values in known.values()
        if type(multiple := values.get("channel_multiple")) is int and multiple > 0
    )
    return max(votes, key=lambda m: (votes[m], m)) if votes else default


def _judged(found: Mapping[int, Latency]) -> Alignment | str:
    for latency in found.values():
        if not latency.ok:
            return f"{latency.error}: {latency.detail}"
    count = min(len(latency.block_medians_ms) for latency in found.values())
    try:
        return find(
            [{w: one.block_medians_ms[k] for w, one in found.items()} for k in range(count)]
        )
    except ValueError as error:
        return str(error)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
