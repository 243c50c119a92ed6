"""How a device is reached where the settings leave it open: the operator's SSH configuration.

What `fleet.toml` says goes before it, and it goes before the defaults. `ssh -G` answers exactly
for one host in ten milliseconds, so it is asked when a connection is opened, only about hosts that
the files say something of, and once for hosts that match the same blocks.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import socket
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from hdap_tui.names import own_name
from hdap_tui.ssh.config_file import MANY, SINGLE, Line, Lines, read
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.jumps import parse_jumps
from hdap_tui.ssh.target import Jump, Target
from hdap_tui.text import clean

L = TypeVar("L", bound=Target)

SYSTEM_FILE = Path("/etc/ssh/ssh_config")
_ASK_S = 10.0  # `Match exec` runs commands
_EXPANDED = SINGLE - {"proxycommand", "port", "identitiesonly"}
_USUAL_KEYS = (
    "id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss", "id_dsa",
)  # fmt: skip
_FEWEST_USUAL = 5  # OpenSSH lists other ones of them in each version


@dataclass(frozen=True)
class Options:
    """What the SSH configuration says of one host; empty where it says nothing."""

    host: str
    port: int = 0
    user: str = ""
    identities: tuple[str, ...] = ()
    identities_only: bool = False
    certificates: tuple[str, ...] = ()
    agent: str = ""
    proxy_jump: str = ""
    proxy_command: str = ""
    key_alias: str = ""
    user_known_hosts: tuple[str, ...] | None = None
    global_known_hosts: tuple[str, ...] | None = None


@dataclass(eq=False)
class SshConfig:
    """An SSH configuration. Safe to use from several threads; a changed file is read again."""

    path: Path | None
    """None: ~/.ssh/config and the system's file."""
    warn: Callable[[str], None] = lambda _sentence: None
    """Told once what cannot be honoured here."""
    program: str | None = field(default_factory=lambda: shutil.which("ssh"))
    """OpenSSH's client; without it only the simple keys are read."""
    asked: int = 0
    """How often `ssh -G` was run."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: Lines | None = None
        self._answers: dict[object, Options] = {}
        self._turns: defaultdict[object, threading.Lock] = defaultdict(threading.Lock)
        self._warned = False

    @property
    def user_file(self) -> Path:
        """The operator's own file."""
        return self.path or _home() / ".ssh" / "config"

    def options(self, host: str, port: int = 0, user: str = "") -> Options:
        """Return what holds for a host as the operator would write it behind `ssh`.

        Raises:
            DeviceError: ssh does not understand its configuration.
        """
        with self._lock:
            lines = self._current()
        holding = [line for line in lines.holding(host) if line.key in SINGLE | MANY]
        if self.program is None:
            if lines.matches and not self._warned:
                self._warned = True
                self.warn(
                    f"{self.user_file}: its Match blocks are left out, because OpenSSH's client"
                    " (ssh) is not installed on this machine."
                )
            return _simple(host, holding, port, user)
        exact = lines.matches or any(_depends_on_host(line) for line in lines.lines)
        if not holding and not exact:
            return Options(host=host, port=port, user=user)
        same = [line for line in holding if line.key == "hostname"]
        blocks = frozenset(line.blocks for line in holding)
        key = (blocks, port, user, host if exact or same else "")
        with self._lock:
            turn, answers = self._turns[key], self._answers
        with turn:  # whoever needs the same answer waits for it
            answer = answers.get(key) or self._ask(host, port, user)
            answers[key] = answer
        return answer if exact or same else replace(answer, host=host)

    def _current(self) -> Lines:
        """Read the files, where they are not those that were read before."""
        if self._lines is None or not self._lines.current:
            files = [(self.user_file, _home() / ".ssh")]
            if self._system:
                files.append((SYSTEM_FILE, SYSTEM_FILE.parent))
            self._lines, self._answers = read(files), {}
        return self._lines

    @property
    def _system(self) -> bool:
        """Whether the system's file counts: not beside a file that was named."""
        return self.path is None and _home() == _account_home()

    def _ask(self, host: str, port: int, user: str) -> Options:
        file = [] if self._system else ["-F", str(self.user_file)]
        if not self._system and not self.user_file.exists():
            file = ["-F", "none"]
        command = [str(self.program), *file, "-T", "-G"]
        command += ["-p", str(port)] * bool(port) + ["-l", user] * bool(user)
        self.asked += 1
        try:
            done = subprocess.run(
                [*command, "--", host], stdin=subprocess.DEVNULL, capture_output=True,
                text=True, errors="replace", timeout=_ASK_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise _refusal(f"ssh -G {host} took longer than {_ASK_S:.0f} s") from None
        if done.returncode:
            said = clean(done.stderr.strip().partition("\n")[0], 200)
            raise _refusal(f"the SSH configuration cannot be used: {said}")
        values: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            key, _, value = line.partition(" ")
            values.setdefault(key.lower(), []).append(value)
        listed = values.get("identityfile", [])
        if len(listed) >= _FEWEST_USUAL and set(listed) <= {f"~/.ssh/{n}" for n in _USUAL_KEYS}:
            del values["identityfile"]  # nobody has named one
        return _options(host, values)


def _depends_on_host(line: Line) -> bool:
    """Whether a setting means something else for each host, and ssh has to work it out."""
    if line.key.startswith("canonical"):
        return line.key == "canonicalizehostname" and line.values[:1] != ("no",)
    return line.key in _EXPANDED and any("%" in v or "${" in v for v in line.values)


def _simple(host: str, holding: Iterable[Line], port: int, user: str) -> Options:
    """Return what the simple keys say, as ssh would read them: the first value counts."""
    values: dict[str, list[str]] = {}
    if port:
        values["port"] = [str(port)]
    if user:
        values["user"] = [user]
    for line in holding:
        if line.key in MANY:
            values.setdefault(line.key, []).extend(line.values[:1])
        elif line.values:
            quoted = (
                map(shlex.quote, line.values) if line.key.endswith("hostsfile") else line.values
            )
            values.setdefault(line.key, [" ".join(quoted)])
    if "hostname" in values:
        values["hostname"] = [values["hostname"][0].replace("%h", host)]
    return _options(host, values)


def _options(host: str, values: dict[str, list[str]]) -> Options:
    def one(key: str) -> str:
        value = values.get(key, [""])[0]
        return "" if value.lower() == "none" and key != "identityagent" else value

    def files(key: str) -> tuple[str, ...] | None:
        return tuple(shlex.split(one(key))) if key in values else None

    agent = one("identityagent")
    port = one("port")
    return Options(
        host=one("hostname") or host,
        port=int(port) if port.isdecimal() else 0,
        user=one("user"),
        identities=tuple(v for v in values.get("identityfile", ()) if v != "none"),
        identities_only=one("identitiesonly").lower() in {"yes", "true"},
        certificates=tuple(v for v in values.get("certificatefile", ()) if v != "none"),
        agent="" if agent == "SSH_AUTH_SOCK" else agent,
        proxy_jump=one("proxyjump"),
        proxy_command=one("proxycommand"),
        key_alias=one("hostkeyalias"),
        user_known_hosts=files("userknownhostsfile"),
        global_known_hosts=files("globalknownhostsfile"),
    )


# ---- what follows for a device ------------------------------------------------------------------


def resolve(target: Target) -> Target:
    """Return the target with everything filled in that the settings left open.

    Raises:
        DeviceError: the configuration cannot be used, or its jump hosts lead in a circle.
    """
    config = target.config
    if config is None and not target.proxy_jump:
        return _filled(target, Options(target.host))
    config = config or configuration(Path(os.devnull))
    try:
        options = config.options(target.host, target.port, target.user)
        jumps = _jumps(config, target, options)
    except DeviceError as error:
        raise DeviceError(error.kind, f"{target.name}: {error}") from None
    if options.proxy_command and not (jumps or target.proxy_jump):
        raise DeviceError(
            ErrorKind.FAILED,
            f"{target.name}: the SSH configuration reaches {target.host} through a ProxyCommand,"
            " which is not supported; write it as a ProxyJump, or as proxy_jump in fleet.toml"
            ' ("none" for a direct way)',
        )
    filled = _filled(replace(target, jumps=jumps), options)
    return replace(filled, config=None, proxy_jump="", jump_identity=None)


def _filled(login: L, options: Options) -> L:
    """Return a login with what the configuration says where it says nothing itself."""
    user = login.user or options.user or own_name()
    names = {
        "h": options.host, "n": login.host, "p": str(login.port or options.port or 22), "r": user,
        "k": options.key_alias or login.host,
    }  # fmt: skip
    others = login.other_known_hosts
    if options.user_known_hosts is not None or options.global_known_hosts is not None:
        listed = [*(options.user_known_hosts or ()), *(options.global_known_hosts or ())]
        others = tuple(_path(text, names) for text in listed if text != "none")
    return replace(
        login,
        host=options.host,
        port=login.port or options.port or 22,
        user=user,
        identities=login.identities or tuple(_path(text, names) for text in options.identities),
        identities_only=login.identities_only or options.identities_only,
        certificates=login.certificates
        or tuple(_path(text, names) for text in options.certificates),
        agent=login.agent or (_text(options.agent, names) if options.agent else ""),
        key_alias=login.key_alias or options.key_alias.lower(),
        other_known_hosts=others,
    )


def _jumps(config: SshConfig, target: Target, options: Options) -> tuple[Jump, ...]:
    written = target.proxy_jump or options.proxy_jump
    if not written or written.lower() == "none":
        return ()
    return _chain(config, target, written, ((target.host, target.port),))


def _chain(
    config: SshConfig, target: Target, written: str, seen: tuple[tuple[str, int], ...]
) -> tuple[Jump, ...]:
    """Return the jump hosts in the order in which they are reached.

    Only the first is reached as the configuration says; each other through the one before it.
    """
    try:
        hops = parse_jumps(written)
    except ValueError as error:
        raise _refusal(str(error)) from None
    for hop in hops:
        # One address may be several machines, apart by their ports.
        if (hop.host.lower(), hop.port) in [(host.lower(), port) for host, port in seen]:
            way = " -> ".join((*(host for host, _ in seen), hop.host))
            raise _refusal(
                f"its jump hosts lead in a circle ({way}); a Host block with ProxyJump must not"
                f" cover the jump host itself: Host * !{hop.host}"
            )
    found = []
    for hop in hops:
        options = config.options(hop.host, hop.port, hop.user)
        if hop is hops[0] and options.proxy_jump:
            further = (*seen, (hop.host, hop.port))
            found += list(_chain(config, target, options.proxy_jump, further))
        own_key = target.jump_identity if not options.identities else None
        login = Jump(
            name=hop.host,
            host=hop.host,
            port=hop.port,
            user=hop.user,
            known_hosts=target.known_hosts,
            identities=(own_key,) if own_key else (),
            password_command=target.password_command,
            ask_password=target.ask_password,
            timeouts=target.timeouts,
        )
        found.append(_filled(login, options))
    return tuple(found)


def _path(text: str, names: dict[str, str]) -> Path:
    expanded = _text(text, names)
    if expanded.startswith("~/"):
        return _home() / expanded[2:]
    account = str(_account_home())
    if expanded.startswith(f"{account}/.ssh/"):  # ssh has put the account's home for ~
        return _home() / expanded[len(account) + 1 :]
    return Path(expanded).expanduser()


def _text(text: str, names: dict[str, str]) -> str:
    """Expand the tokens of ssh_config(5)."""
    own = socket.gethostname()
    known = {
        **names, "%": "%", "d": str(_home()), "i": str(os.getuid()), "u": own_name(),
        "l": own, "L": own.partition(".")[0],
    }  # fmt: skip
    pieces = os.path.expandvars(text).split("%")
    expanded, rest = pieces[0], pieces[1:]
    while rest:
        piece = rest.pop(0)
        if not piece and rest:  # "%%"
            expanded += "%" + rest.pop(0)
        elif piece:
            expanded += known.get(piece[0], "%" + piece[0]) + piece[1:]
    return expanded


def _home() -> Path:
    return Path.home()


def _account_home() -> Path:
    """The home that ssh goes by: it asks the account, not the environment."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path.home()


def _refusal(text: str) -> DeviceError:
    return DeviceError(ErrorKind.FAILED, text)


@lru_cache(maxsize=16)
def configuration(path: Path | None) -> SshConfig:
    """Return the one reader of a configuration; None is that of the operator and the system."""
    return SshConfig(path)
