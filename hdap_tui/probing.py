"""The channel multiple of devices: convolutions of neighbouring widths, timed in one visit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from engine.files import write
from engine.fleet.alignment import WIDTHS, Alignment, find
from hdap_tui.store import facts
from hdap_tui.sweep import Bench

if TYPE_CHECKING:
    from engine.latency import Latency
    from hdap_tui.config.settings import Settings
    from hdap_tui.measuring import Measuring

BLOCKS = 5
_RUNS, _WARMUP_RUNS, _BLOCK_S = 24, 3, 0.06
_LIMIT_S = 60.0
_EXPECTED_S = 10.0


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


def probe(measuring: Measuring, names: Sequence[str]) -> dict[str, Alignment | str]:
    """Time the widths on devices and keep what they tell; return it, or why nothing was found.

    Once it is no longer wanted, the rest of the devices is missing.
    """
    context, fleet = measuring.context, measuring.fleet
    models = files(measuring.settings.state_dir / "probes")
    digests = {sha256(path.read_bytes()).hexdigest(): width for width, path in models.items()}
    visits = {fleet.members[name]: list(models.values()) for name in names}
    latencies: dict[str, dict[int, Latency]] = {name: {} for name in names}
    found: dict[str, Alignment | str] = {}
    context.reporter.started("probe", total=len(names), weight=_EXPECTED_S)
    timed = fleet.measure_many(visits, bench(measuring.settings), cancelled=context.cancelled)
    for latency in timed:
        own = latencies[latency.device]
        own[digests[latency.model]] = latency
        if len(own) < len(WIDTHS):
            continue
        answer = found[latency.device] = _judged(own)
        if not isinstance(answer, str):
            gain = round(answer.gain_percent, 1)
            kept = {"channel_multiple": answer.multiple, "channel_gain_percent": gain}
            facts.add(measuring.store, latency.device, kept)
        context.reporter.advanced("probe", len(found))
    context.reporter.finished("probe")
    return found


def files(folder: Path) -> dict[int, Path]:
    """Return the ONNX file of each width, written where it is not there yet."""
    from engine.models.probes import channels

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = {}
    for width in WIDTHS:
        path = folder / f"channels-{width}.onnx"
        if not path.is_file():
            write(path, channels(width))
        found[width] = path
    return found


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
