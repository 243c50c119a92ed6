"""How the settings' devices are reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hdap_tui.errors import UnreachableError
from hdap_tui.lab.addresses import Address, addresses
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.target import Target, Timeouts

if TYPE_CHECKING:
    from hdap_tui.config.settings import Device, Settings
    from hdap_tui.context import Context


def connections(context: Context) -> Connections:
    """Return the connections that one command works with; to be closed, best by `with`."""
    return Connections(
        context.settings.ssh.parallel,
        passphrase=lambda path: context.secret(f"Passphrase of {path}"),
    )


def target_of(settings: Settings, device: Device, lab: Address | None = None) -> Target:
    """Return how a device of the settings is reached; `lab` is where an emulated one listens."""
    ssh = settings.ssh
    connect = ssh.connect_timeout_s
    address = lab or device
    return Target(
        name=device.name,
        host=address.host,
        port=address.port,
        user=address.user,
        identity=address.identity,
        known_hosts=settings.known_hosts,
        timeouts=Timeouts(
            connect=connect,
            handshake=connect,
            auth=connect,
            channel=connect,
            command=ssh.command_timeout_s,
            stall=ssh.command_timeout_s,
            total=2 * connect,
        ),
        host_group=device.host_group,
        emulated=device.emulated,
        python=device.python,
    )


def targets(settings: Settings, devices: Iterable[Device] | None = None) -> tuple[Target, ...]:
    """Return how the devices are reached; all of the fleet where none are named.

    Raises:
        UnreachableError: all of them are emulated, and there is no lab.
    """
    chosen = settings.devices if devices is None else tuple(devices)
    lab = addresses(settings.state_dir)
    if chosen and not lab and all(device.emulated for device in chosen):
        raise UnreachableError('The emulated lab is not running; start it with "hdap lab up".')
    return tuple(
        target_of(settings, device, lab.get(device.name) if device.emulated else None)
        for device in chosen
    )
