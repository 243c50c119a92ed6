"""What the emulated devices are like: groups, spread, noise, and how they change with time.

An emulated device can only be made slower than the machine that it runs on, so every factor is
above one, with room for spread and noise to go both ways.
"""

from __future__ import annotations

import random
import tomllib
import zlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import msgspec

from engine import files
from hdap_tui.errors import SettingsError

Factor = Annotated[float, msgspec.Meta(ge=1.0, le=100.0)]
"""How many times slower than this machine."""
Percent = Annotated[float, msgspec.Meta(ge=-90.0, le=1000.0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0)]
Share = Annotated[float, msgspec.Meta(gt=0.0)]
Small = Annotated[float, msgspec.Meta(ge=0.0, le=0.2)]


class _Record(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False
):
    """A validated record that knows no other fields."""


class Steady(_Record, frozen=True, tag_field="kind", tag="steady"):
    """Never changes."""


class Ageing(_Record, frozen=True, tag_field="kind", tag="ageing"):
    """Grows slower, evenly."""

    percent_per_hour: Percent


class Step(_Record, frozen=True, tag_field="kind", tag="step"):
    """Is suddenly slower, from `at_s` seconds after the lab's start."""

    at_s: Seconds
    percent: Percent
    until_s: Seconds | None = None
    """When it is over; None: it stays."""


class Sawtooth(_Record, frozen=True, tag_field="kind", tag="sawtooth"):
    """Warms up and cools down: slower by up to `percent`, again and again."""

    period_s: Annotated[float, msgspec.Meta(gt=0.0)]
    percent: Percent


Schedule = Steady | Ageing | Step | Sawtooth


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One device: native time shares times these factors, times schedule, times noise."""

    name: str
    group: str
    compute: float
    memory: float
    overhead: float
    noise: float
    """Relative sigma of one inference."""
    seed: int
    started_at: float = 0.0
    """Unix time that the schedule counts from."""
    schedule: tuple[Schedule, ...] = (Steady(),)


class Group(_Record, frozen=True):
    """Devices that are alike."""

    name: str
    share: Share = 1.0
    """How many of the fleet, against the other groups' shares."""
    compute: Factor = 1.2
    memory: Factor = 1.2
    overhead: Factor = 1.2
    spread: Small = 0.011
    """Half the width of what tells its devices apart (0.011 is ±1.1 %)."""
    noise: Small = 0.01


class Override(_Record, frozen=True):
    """What one device has of its own."""

    name: str
    schedule: Annotated[tuple[Schedule, ...], msgspec.Meta(min_length=1)]


GROUPS = (
    Group(name="nominal", share=5),
    Group(name="memory throttled", share=4, memory=2.4),
    Group(name="slow clock", share=3, compute=1.65, memory=1.3, overhead=1.65),
)
AGEING = Ageing(percent_per_hour=6.0)
SAWTOOTH = Sawtooth(period_s=60.0, percent=2.0)


class Plan(_Record, frozen=True):
    """The make-up of a whole lab."""

    seed: int = 7
    group: Annotated[tuple[Group, ...], msgspec.Meta(min_length=1)] = GROUPS
    device: tuple[Override, ...] = ()
    step_at_s: Seconds | None = 120.0
    """When the drifting devices step, counted from the lab's start; None: never."""
    step_percent: Percent = 25.0
    drifting: tuple[str, ...] | None = None
    """Which devices step; None leaves the choice to the seed: one of the largest group."""


def read_plan(path: Path) -> Plan:
    """Read a plan from TOML, or from JSON where the name ends so.

    Raises SettingsError with one sentence: the file, the place and what is allowed there.
    """
    try:
        raw = path.read_bytes()
        data = msgspec.json.decode(raw) if path.suffix == ".json" else tomllib.loads(raw.decode())
        return msgspec.convert(data, Plan)
    except OSError as error:
        raise SettingsError(f"The lab's plan {path} cannot be read: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"The lab's plan {path} is not TOML: {error}.") from error
    except msgspec.ValidationError as error:
        raise SettingsError(f"The lab's plan {path} is wrong: {_readable(error)}.") from error
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise SettingsError(f"The lab's plan {path} cannot be decoded: {error}.") from error


def profiles(plan: Plan, devices: int) -> tuple[Profile, ...]:
    """Every device's profile, the same for the same plan and number.

    Groups take turns in the order of the plan, so that the first few devices show them all.
    Raises SettingsError where the plan names a device that the lab does not have.
    """
    if not 1 <= devices <= 9999:
        raise SettingsError(f"A lab has 1 to 9999 devices, not {devices}.")
    width = max(2, len(str(devices)))
    names = [f"edge-{number:0{width}d}" for number in range(1, devices + 1)]
    members = _deal(names, plan.group)
    schedules = _schedules(plan, names, members)
    group_of = {name: group for group in plan.group for name in members[group.name]}
    return tuple(
        _profile(name, group_of[name], plan.seed, schedules.get(name, (Steady(),)))
        for name in names
    )


def fingerprint(plan: Plan) -> int:
    """Tell one plan from another, the same before and after a file (where 5 comes back as 5.0)."""
    read_back = msgspec.json.decode(msgspec.json.encode(plan), type=Plan)
    return zlib.crc32(msgspec.json.encode(read_back))


def write_profile(profile: Profile, path: Path) -> None:
    """Put a profile where its device reads it, in one move."""
    files.write(path, msgspec.json.encode(profile))


def _readable(error: msgspec.ValidationError) -> str:
    message, _, place = str(error).partition(" - at ")
    place = place.strip("`").removeprefix("$.") or "the top"
    return f"{message[:1].lower()}{message[1:]} at {place}"


def _deal(names: Sequence[str], groups: Sequence[Group]) -> dict[str, list[str]]:
    """Give each device to the group that is furthest behind its share."""
    members: dict[str, list[str]] = {group.name: [] for group in groups}
    if len(members) < len(groups):
        raise SettingsError("Two groups of the lab's plan have the same name.")
    whole = sum(group.share for group in groups)
    for given, name in enumerate(names, start=1):
        behind = max(groups, key=lambda g: g.share / whole * given - len(members[g.name]))
        members[behind.name].append(name)
    return members


def _schedules(
    plan: Plan, names: Sequence[str], members: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Schedule, ...]]:
    draw = random.Random(f"{plan.seed}:drift")
    by_size = sorted(members.values(), key=len, reverse=True)
    found: dict[str, tuple[Schedule, ...]] = {}
    mild: tuple[Schedule, ...] = (AGEING, SAWTOOTH)
    for group, schedule in zip(by_size[1:], mild, strict=False):
        if len(group) > 1:
            found[draw.choice(group)] = (schedule,)
    drifting = plan.drifting
    if drifting is None:
        drifting = (draw.choice(by_size[0]),) if len(by_size[0]) > 1 else ()
    for name in drifting:
        _known(name, names)
        if plan.step_at_s is not None:
            found[name] = (Step(at_s=plan.step_at_s, percent=plan.step_percent),)
    for own in plan.device:
        found[_known(own.name, names)] = own.schedule
    return found


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f", did you mean {near[0]}?" if near else "."
        raise SettingsError(
            f"The lab's plan names {name!r}, but the devices are {names[0]} to {names[-1]}{hint}"
        )
    return name


def _profile(name: str, group: Group, seed: int, schedule: tuple[Schedule, ...]) -> Profile:
    draw = random.Random(f"{seed}:{name}")
    common = draw.uniform(-0.9, 0.9)

    def spread(factor: float) -> float:
        own = draw.uniform(-0.1, 0.1)
        return round(max(1.0, factor * (1 + group.spread * (common + own))), 5)

    return Profile(
        name=name,
        group=group.name,
        compute=spread(group.compute),
        memory=spread(group.memory),
        overhead=spread(group.overhead),
        noise=group.noise,
        seed=draw.randrange(2**31),
        schedule=schedule,
    )
