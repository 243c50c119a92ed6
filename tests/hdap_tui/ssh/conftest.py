"""Real OpenSSH servers for the tests beside this file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sshd_server import Sshd, start_sshd


@pytest.fixture(scope="session")
def make_sshd(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Sshd]]:
    """Start servers, `make_sshd("MaxSessions 1", kinds=("rsa",))`; all end with the session."""
    if not (os.path.exists("/usr/sbin/sshd") and shutil.which("ssh-keygen")):
        pytest.skip("OpenSSH's server is not installed")
    started: list[Sshd] = []

    def start(*options: str, **more: Any) -> Sshd:
        server = start_sshd(tmp_path_factory.mktemp("sshd"), *options, **more)
        started.append(server)
        return server

    yield start
    for server in started:
        os.kill(server.pid, 9)
        os.waitpid(server.pid, 0)


@pytest.fixture(scope="session")
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    """One server that many tests share."""
    return make_sshd()
