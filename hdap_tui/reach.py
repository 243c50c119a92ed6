"""How the settings' devices are reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hdap_tui.errors import UnreachableError
from hdap_tui.lab.addresses import Address, addresses
from hdap_tui.ssh.config import SshConfig, configuration
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.secret import Secrets
from hdap_tui.ssh.target import Target, Timeouts

if TYPE_CHECKING:
    from hdap_tui.config.settings import Device, Settings
    from hdap_tui.context import Context


def connections(context: Context) -> Connections:
    """Return the connections that one command works with; to be closed, best by `with`."""
    ssh = context.settings.ssh
    if (config := ssh_config(context.settings)) is not None:
        config.warn = lambda sentence: context.reporter.noted("connect", sentence)
    return Connections(ssh.parallel, ssh.handshakes, Secrets(context.secret))


def ssh_config(settings: Settings) -> SshConfig | None:
    """Return the SSH configuration that counts; None where the settings switch it off."""
    named = settings.ssh.config
    if named.lower() == "none":
        return None
    return configuration(settings.resolve(named) if named else None)


def target_of(settings: Settings, device: Device, lab: Address | None = None) -> Target:
    """Return how a device of the settings is reached; `lab` is where an emulated one listens."""
    ssh = settings.ssh
    connect = ssh.connect_timeout_s
    if lab is not None:
        way: dict[str, Any] = {
            "host": lab.host,
            "port": lab.port,
            "user": lab.user,
            "identity": lab.identity,
            "other_known_hosts": (),
        }
    else:
        way = {
            "host": device.host,
            "port": device.port if "port" in device.given else 0,
            "user": device.user if "user" in device.given else "",
            "identity": device.identity,
            "certificate": device.certificate,
            "password_command": ssh.password_command,
            "ask_password": ssh.ask_password,
            "config": ssh_config(settings),
            "proxy_jump": device.proxy_jump,
            "jump_identity": settings.resolve(ssh.identity) if ssh.identity else None,
        }
    return Target(
        name=device.name,
        **way,
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
