"""Files of an emulated device over SFTP.

Paths are those that its commands see: relative ones start at the home folder, absolute ones name
the same file, and what lies outside the home folder is refused.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import asyncssh

if TYPE_CHECKING:
    from hdap_tui.lab.device import Device


class HomeFiles(asyncssh.SFTPServer):  # type: ignore[misc]
    """The home folder of one device, with the device's fault in force."""

    def __init__(self, channel: Any, device: Device) -> None:
        super().__init__(channel)
        self._device = device
        self._home = os.fsencode(device.home)

    def map_path(self, path: bytes) -> bytes:
        """Turn a client's path into a local one, or refuse it."""
        full = os.path.normpath(os.path.join(self._home, path))
        # The last part may be a link that is asked about; the folders before it are followed.
        if full != self._home:
            folder, name = os.path.split(full)
            full = os.path.join(self._inside(os.path.realpath(folder)), name)
        return full

    async def open(self, path: bytes, flags: int, attributes: Any) -> Any:
        """Open a file of the home folder."""
        await self._before()
        self._inside(os.path.realpath(self.map_path(path)))
        return super().open(path, flags, attributes)

    async def read(self, file: Any, offset: int, size: int) -> bytes:
        """Read, or read garbage of the same length."""
        await self._before()
        data: bytes = super().read(file, offset, size)
        fault = self._device.fault
        return fault.spoil(len(data)) if fault.kind == "garbage" and data else data

    async def write(self, file: Any, offset: int, data: bytes) -> int:
        """Write, or find the disk full."""
        await self._before()
        self._need_space()
        written: int = super().write(file, offset, data)
        return written

    async def mkdir(self, path: bytes, attributes: Any) -> None:
        """Make a folder, or find the disk full."""
        await self._before()
        self._need_space()
        super().mkdir(path, attributes)

    async def stat(self, path: bytes) -> Any:
        """Tell about a file, links followed."""
        await self._before()
        return super().stat(path)

    async def lstat(self, path: bytes) -> Any:
        """Tell about a file or link."""
        await self._before()
        return super().lstat(path)

    async def remove(self, path: bytes) -> None:
        """Remove a file or link."""
        await self._before()
        super().remove(path)

    async def posix_rename(self, old: bytes, new: bytes) -> None:
        """Rename over what is there."""
        await self._before()
        super().posix_rename(old, new)

    async def _before(self) -> None:
        self._device.started(self.connection)
        await self._device.pace(self.channel)

    def _inside(self, path: bytes) -> bytes:
        if path == self._home or path.startswith(self._home + b"/"):
            return path
        raise asyncssh.SFTPPermissionDenied("Only the device's home folder is served.")

    def _need_space(self) -> None:
        if self._device.fault.kind == "full-disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
