"""Where the devices of a running lab listen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hdap_tui.lab.layout import Layout


@dataclass(frozen=True)
class Address:
    """How one emulated device is reached."""

    host: str
    port: int
    user: str
    identity: Path


def addresses(state: Path) -> Mapping[str, Address]:
    """Return the addresses that the lab in this state folder has told, by device.

    A lab that found its usual ports taken listens on others, so what it says goes before what
    the settings say. Empty where there has been no lab.
    """
    layout = Layout.of(state)
    try:
        told = json.loads(layout.info.read_bytes())
        return {
            one["name"]: Address(one["host"], one["port"], one["user"], layout.client_key)
            for one in told["devices"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
