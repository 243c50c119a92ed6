"""What an inventory says against what the settings have already."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hdap_tui.config.settings import Device, Settings
from hdap_tui.inventory.found import Host


@dataclass
class Comparison:
    """The hosts of an inventory, sorted."""

    new: list[Host] = field(default_factory=list)
    there: list[Host] = field(default_factory=list)
    changed: list[tuple[Host, str]] = field(default_factory=list)
    """Hosts of which the settings say something else, and what."""


def compare(hosts: Iterable[Host], settings: Settings | None) -> Comparison:
    """Sort hosts by whether the settings have a device of their name, and the same one."""
    devices = {device.name.lower(): device for device in settings.devices} if settings else {}
    result = Comparison()
    for host in hosts:
        device = devices.get(host.name.lower())
        if device is None or settings is None:
            result.new.append(host)
        elif difference := _difference(host, device, settings):
            result.changed.append((host, difference))
        else:
            result.there.append(host)
    return result


def _difference(host: Host, device: Device, settings: Settings) -> str:
    """Return what the settings say otherwise; what the inventory leaves open counts as the same."""
    identity = settings.resolve(host.identity) if host.identity else None
    certificate = settings.resolve(host.certificate) if host.certificate else None
    pairs = (
        ("host", host.host or host.name, device.host),
        ("port", host.port, device.port),
        ("user", host.user, device.user),
        ("identity", identity, device.identity),
        ("certificate", certificate, device.certificate),
        ("proxy_jump", host.proxy_jump, device.proxy_jump),
        ("python", host.python, device.python),
        ("host_group", host.host_group, device.host_group),
    )
    said = [f"{key} is {here or 'not set'}, not {there}" for key, there, here in pairs
            if there and there != here]  # fmt: skip
    lacking = [tag for tag in host.tags if tag not in device.tags]
    if lacking:
        said.append(f"it lacks the tag {', '.join(lacking)}")
    return "; ".join(said)
