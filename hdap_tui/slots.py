"""How many benchmarks may run on one machine at once, over all processes of this user.

A sweep, a job and a deployment are different processes that time models on the same devices.
Each takes a slot of the host group first, so that they wait for each other in place of disturbing
each other. A slot is a locked file: the kernel frees it when its holder dies.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from hdap_tui import locking


def take(folder: Path, group: str, count: int) -> BinaryIO | None:
    """Return one of a group's slots without waiting, None where all are taken.

    Whoever closes the file gives the slot back.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in range(count):
        file = (folder / f"{_file_name(group)}.{number}").open("ab")
        if locking.take(file):
            return file
        file.close()
    return None


def _file_name(group: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", group)
