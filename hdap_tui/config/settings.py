"""The settings in force: patterns expanded, defaults filled in, paths absolute."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec.structs import asdict, replace

from hdap_tui.config import alerts, maintenance, recipes, schema
from hdap_tui.config.patterns import expand
from hdap_tui.config.source import Source, did_you_mean
from hdap_tui.errors import SettingsError
from hdap_tui.names import own_name
from hdap_tui.ssh.jumps import parse_jumps

BUILTIN = "builtin:"
BUILTIN_MODELS = ("resnet20-digits", "compute", "bandwidth", "dispatch")
BUILTIN_WEIGHTS = ("resnet20-digits",)
BUILTIN_WEIGHTS_OF = {"resnet20": "builtin:resnet20-digits"}
BUILTIN_DATA = ("digits",)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PATTERN_KEYS = ("name", "host", "port", "user", "identity", "certificate")


@dataclass(frozen=True)
class Device:
    """One device and how it is reached."""

    name: str
    host: str
    port: int
    user: str
    identity: Path | None
    """Private key; None: as the SSH configuration says, else the SSH agent and the usual keys."""
    tags: tuple[str, ...]
    emulated: bool
    host_group: str
    """The machine that it shares; empty: it has one for itself."""
    python: str
    certificate: Path | None = None
    proxy_jump: str = ""
    """Jump hosts as written; empty: as the SSH configuration says."""
    given: frozenset[str] = frozenset({"port", "user"})
    """Which of port and user stand in the file; of the others the SSH configuration decides."""


@dataclass(frozen=True)
class Model:
    """One ONNX model, as the settings name it."""

    name: str
    builtin: str
    """Which of the models that come along; empty where it is a file."""
    path: Path | None
    """The file; None where it comes along."""
    probe: bool


@dataclass(frozen=True)
class Settings:
    """What `fleet.toml` says, and everything that follows from it."""

    path: Path
    """The file, absolute."""
    fleet: schema.Fleet
    ssh: schema.Ssh
    devices: tuple[Device, ...]
    host_groups: dict[str, schema.HostGroup]
    models: tuple[Model, ...]
    benchmark: schema.Benchmark
    watch: schema.Watch
    retention: schema.Retention
    clusters: schema.Clusters
    drift: schema.Drift
    alerts: schema.Alerts
    policy: schema.Policy
    compression: schema.Compression
    recipes: dict[str, schema.Recipe]
    deploy: schema.Deploy
    lab: schema.Lab

    @property
    def name(self) -> str:
        """The fleet's name."""
        return self.fleet.name

    @cached_property
    def state_dir(self) -> Path:
        """Folder of everything that is kept; it need not exist yet."""
        from_environment = os.environ.get("HDAP_STATE")
        if from_environment:
            return Path(from_environment).expanduser().absolute()
        if self.fleet.state:
            return self.resolve(self.fleet.state)
        from platformdirs import user_state_path

        return user_state_path("hdap") / self.fleet.name

    def in_state(self, folder: Path) -> Settings:
        """Return the same settings with everything kept in another folder."""
        other = copy.copy(self)
        other.__dict__["state_dir"] = folder.absolute()
        return other

    @property
    def database(self) -> Path:
        """The fleet's SQLite file."""
        return self.state_dir / "fleet.db"

    @property
    def known_hosts(self) -> Path:
        """File of trusted host keys."""
        named = self.ssh.known_hosts
        return self.resolve(named) if named else self.state_dir / "known_hosts"

    @property
    def canary(self) -> schema.Benchmark:
        """How a canary round measures: [benchmark] with [benchmark.canary] laid over it."""
        own = {k: v for k, v in asdict(self.benchmark.canary).items() if v is not None}
        return replace(self.benchmark, **own)

    @property
    def probes(self) -> tuple[Model, ...]:
        """Models that every sweep times."""
        return tuple(model for model in self.models if model.probe)

    @property
    def first_model(self) -> Model | None:
        """The model that devices run at the start."""
        if self.fleet.model:
            return self.model(self.fleet.model)
        return next((model for model in self.models if not model.probe), None)

    @property
    def network(self) -> str:
        """The network that a compression starts from, a file by its absolute path."""
        named = self.compression.network
        return str(self.resolve(named)) if named.endswith(".onnx") else named

    @property
    def weights(self) -> str | Path:
        """Weights that a compression starts from: `weights_of` the settings' own network."""
        return self.weights_of(self.compression.network)

    def weights_of(self, network: str) -> str | Path:
        """Return a network's weights: the name of shipped ones, a file, or empty for its own."""
        named = self.compression.weights
        # Shipped weights are those of one network alone, a file may be any one's.
        others = named.startswith(BUILTIN) and network != self.compression.network
        if not named or others or network.endswith(".onnx"):
            return BUILTIN_WEIGHTS_OF.get(network, "")
        return named if named.startswith(BUILTIN) else self.resolve(named)

    @property
    def data(self) -> str | Path:
        """Images of a compression: the name of shipped ones, or a folder or file."""
        named = self.compression.data
        return named if named in BUILTIN_DATA else self.resolve(named)

    def resolve(self, path: str) -> Path:
        """Return a path of the file as absolute; what is relative is relative to the file."""
        return Path(os.path.normpath(self.path.parent / Path(path).expanduser()))

    def cores(self, host_group: str) -> int:
        """Return how many benchmarks may run at once on a group's machine."""
        group = self.host_groups.get(host_group)
        return group.cores if group else 1

    def device(self, name: str) -> Device:
        """Return a device by its exact name.

        Raises:
            SettingsError: there is none of that name.
        """
        if name not in self._by_name:
            raise SettingsError(
                f'no device is called "{name}"; {did_you_mean(name, self._by_name)}'
            )
        return self._by_name[name]

    def model(self, name: str) -> Model:
        """Return a model by its exact name.

        Raises:
            SettingsError: there is none of that name.
        """
        for model in self.models:
            if model.name == name:
                return model
        hint = did_you_mean(name, [model.name for model in self.models])
        raise SettingsError(f'no model is called "{name}"; {hint}')

    def recipe(self, name: str) -> schema.Recipe:
        """Return a recipe by its exact name.

        Raises:
            SettingsError: there is none of that name.
        """
        if name not in self.recipes:
            hint = (
                did_you_mean(name, self.recipes)
                if self.recipes
                else f"write one into {self.path} as [[recipes.{name}.steps]]."
            )
            raise SettingsError(f'no recipe is called "{name}"; {hint}')
        return self.recipes[name]

    def missing(self) -> Iterator[str]:
        """Yield a sentence for every file or folder that the settings name and nobody finds."""
        keys = {device.identity for device in self.devices if not device.emulated}
        files = [("private key", key) for key in sorted(key for key in keys if key)]
        files += [(f'model "{model.name}"', model.path) for model in self.models if model.path]
        network = Path(self.network) if self.network.endswith(".onnx") else ""
        files += [(what, p) for what, p in (("network", network), ("weights", self.weights),
                  ("data", self.data)) if isinstance(p, Path)]  # fmt: skip
        for what, path in files:
            if not path.exists():
                yield f"{what}: {path} does not exist."

    @cached_property
    def _by_name(self) -> dict[str, Device]:
        return {device.name: device for device in self.devices}


def settle(file: schema.File, source: Source) -> Settings:
    """Return the settings that a checked file means.

    Raises:
        SettingsError: two entries contradict each other, or a pattern is wrong.
    """
    _check_together(file, source)
    recipes.check(file.recipes, source)
    alerts.check(file, source)
    settings = Settings(
        path=source.path,
        fleet=file.fleet,
        ssh=file.ssh,
        devices=(),
        host_groups=dict(file.host_groups),
        models=(),
        benchmark=file.benchmark,
        watch=file.watch,
        retention=file.retention,
        clusters=file.clusters,
        drift=file.drift,
        alerts=file.alerts,
        policy=file.policy,
        compression=file.compression,
        recipes=dict(file.recipes),
        deploy=file.deploy,
        lab=file.lab,
    )
    # The two lists need the settings' own way of making paths absolute, so they come second.
    object.__setattr__(settings, "models", tuple(_models(file, settings, source)))
    object.__setattr__(settings, "devices", tuple(_devices(file, settings, source)))
    maintenance.check(file.watch.maintenance, settings.devices, source)
    if file.fleet.model and file.fleet.model not in {model.name for model in settings.models}:
        hint = did_you_mean(file.fleet.model, [model.name for model in settings.models])
        raise source.error(
            ("fleet", "model"), f'is "{file.fleet.model}", which no [[models]] entry has; {hint}'
        )
    return settings


def _check_together(file: schema.File, source: Source) -> None:
    """Check what one key allows another."""
    bench, drift, compression = file.benchmark, file.drift, file.compression
    kept = file.retention
    canary = bench.canary
    low = canary.blocks_min or bench.blocks_min
    high = canary.blocks_max or bench.blocks_max
    for path, wrong, problem in (
        (
            ("benchmark", "blocks_max"),
            bench.blocks_max < bench.blocks_min,
            f"is {bench.blocks_max}; it must be at least blocks_min ({bench.blocks_min}).",
        ),
        (
            ("benchmark", "canary", "blocks_max"),
            high < low,
            f"is {high}; it must be at least blocks_min ({low}).",
        ),
        (
            ("drift", "k"),
            drift.k != schema.Drift().k and not drift.h,
            f"is {drift.k:g}; the height h follows from false_alerts_per_week only where k is "
            f"{schema.Drift().k:g}, so give h as well, or leave k out.",
        ),
        (
            ("drift", "clear_percent"),
            drift.clear_percent > drift.effect_percent,
            f"is {drift.clear_percent:g}; it must be at most effect_percent "
            f"({drift.effect_percent:g}), or an alert would resolve as it opens.",
        ),
        (
            ("retention", "hourly_days"),
            0 < kept.hourly_days < kept.full_days,
            f"is {kept.hourly_days}; it must be at least full_days ({kept.full_days}), or 0.",
        ),
        (
            ("lab", "base_port"),
            file.lab.base_port + file.lab.devices - 1 > 65535,
            f"is {file.lab.base_port}; with {file.lab.devices} devices it must be at most "
            f"{65536 - file.lab.devices}.",
        ),
    ):
        if wrong:
            raise source.error(path, problem)
    _check_builtin(compression.weights, BUILTIN_WEIGHTS, ("compression", "weights"), source)


def _check_builtin(
    named: str, known: tuple[str, ...], path: tuple[str | int, ...], source: Source
) -> None:
    if named.startswith(BUILTIN) and named.removeprefix(BUILTIN) not in known:
        hint = did_you_mean(named, [BUILTIN + name for name in known])
        raise source.error(path, f'is "{named}", which does not come along; {hint}')


def _models(file: schema.File, settings: Settings, source: Source) -> Iterator[Model]:
    seen: set[str] = set()
    for index, entry in enumerate(file.models):
        path = ("models", index, "path")
        if entry.name in seen:
            raise source.error(
                ("models", index, "name"), f'"{entry.name}" is there twice; names are unique.'
            )
        seen.add(entry.name)
        _check_builtin(entry.path, BUILTIN_MODELS, path, source)
        is_builtin = entry.path.startswith(BUILTIN)
        yield Model(
            name=entry.name,
            builtin=entry.path.removeprefix(BUILTIN) if is_builtin else "",
            path=None if is_builtin else settings.resolve(entry.path),
            probe=entry.probe,
        )


def _devices(file: schema.File, settings: Settings, source: Source) -> Iterator[Device]:
    first_line: dict[str, int] = {}
    for index, entry in enumerate(file.devices):
        path = ("devices", index)
        for values in _rows(entry, index, source):
            device = _device(entry, values, settings, source, index)
            # Selectors take large and small letters for the same.
            if device.name.lower() in first_line:
                raise source.error(
                    (*path, "name"),
                    f'"{device.name}" is there already, on line '
                    f"{first_line[device.name.lower()]}; names are unique.",
                )
            first_line[device.name.lower()] = source.line((*path, "name"))
            yield device


def _rows(entry: schema.DeviceEntry, index: int, source: Source) -> Iterator[dict[str, Any]]:
    """Yield for every device of an entry what its patterned keys stand for."""
    columns: dict[str, list[str]] = {}
    for key in _PATTERN_KEYS:
        value = getattr(entry, key)
        if isinstance(value, str):
            try:
                columns[key] = expand(value)
            except ValueError as error:
                raise source.error(("devices", index, key), f'"{value}" {error}.') from error
    count = len(columns["name"])
    for key, column in columns.items():
        if len(column) not in {1, count}:
            raise source.error(
                ("devices", index, key),
                f'"{getattr(entry, key)}" stands for {len(column)}, but the name for {count}; '
                "patterns of one entry go in step.",
            )
    for row in range(count):
        yield {key: column[row if len(column) > 1 else 0] for key, column in columns.items()}


def _device(
    entry: schema.DeviceEntry,
    values: dict[str, Any],
    settings: Settings,
    source: Source,
    index: int,
) -> Device:
    ssh = settings.ssh
    name = values["name"]
    if not _NAME.fullmatch(name):
        raise source.error(
            ("devices", index, "name"),
            f'"{name[:80]}" must be at most 63 letters, digits, dots, dashes and underscores, '
            "the first no sign.",
        )
    written = values.get("port", entry.port or ssh.port)
    port = 22 if written is None else written
    if isinstance(port, str):
        if not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise source.error(
                ("devices", index, "port"), f'is "{port}"; it must be from 1 to 65535.'
            )
        port = int(port)
    identity = values.get("identity", ssh.identity)
    certificate = values.get("certificate", ssh.certificate)
    user = values.get("user") or ssh.user
    proxy_jump = entry.proxy_jump or ssh.proxy_jump
    try:
        parse_jumps(proxy_jump or "none")
    except ValueError as error:
        place = ("devices", index, "proxy_jump") if entry.proxy_jump else ("ssh", "proxy_jump")
        raise source.error(place, f"{error}.") from None
    return Device(
        name=name,
        host=values.get("host", name),
        port=port,
        user=user or own_name(),
        identity=settings.resolve(identity) if identity else None,
        tags=entry.tags,
        emulated=entry.emulated,
        host_group=entry.host_group or "",
        python=entry.python or ssh.python,
        certificate=settings.resolve(certificate) if certificate else None,
        proxy_jump=proxy_jump,
        given=frozenset(
            key
            for key, value in (("port", written), ("user", user))
            if value is not None and value != ""
        ),
    )
