"""The fleet file of a running lab, for demonstrations and tests on free ports."""

from __future__ import annotations

import json
import os

from hdap_tui.lab.control import LabInfo


def fleet_toml(lab: LabInfo, extra: str = "") -> str:
    """Return a `fleet.toml` that names a lab's devices, keys and folder.

    `extra` is more of the same language, put behind it.
    """
    # What JSON writes as a string, TOML reads as the same string.
    parts = [
        "[fleet]",
        'name = "lab"',
        f"state = {json.dumps(str(lab.state))}",
        "[ssh]",
        f"identity = {json.dumps(str(lab.identity))}",
        f"known_hosts = {json.dumps(str(lab.known_hosts))}",
        "[host_groups.lab]",
        f"cores = {os.cpu_count() or 1}",
    ]
    for device in lab.devices:
        parts += [
            "[[devices]]",
            f"name = {json.dumps(device.name)}",
            f"host = {json.dumps(device.host)}",
            f"port = {device.port}",
            f"user = {json.dumps(device.user)}",
            "emulated = true",
            'host_group = "lab"',
        ]
    return "\n".join((*parts, extra, ""))
