"""Keys, agents, certificates and passwords, against real OpenSSH servers and asyncssh's."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import pytest
from sshd import QUICK, Sshd, make_key, opened, wait_for

from hdap_tui.ssh import login, secret
from hdap_tui.ssh.connection import connect
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.keys import Offers
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.secret import Secrets
from hdap_tui.ssh.sockets import Deadline
from hdap_tui.ssh.target import Target

PASSWORD = "correct horse"


class Operator:
    """Answers questions, and counts them."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, question: str) -> str | None:
        self.asked.append(question)
        return self.answers.pop(0) if self.answers else None


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No agent and no keys but those of the test."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    return tmp_path / "home"


def fails(target: Target, **options: Any) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        connect(target, KnownHosts(target.known_hosts, ()), **options)
    assert caught.value.kind is ErrorKind.AUTHENTICATION
    return caught.value


def logs_in(target: Target, **options: Any) -> None:
    opened = connect(target, KnownHosts(target.known_hosts, ()), **options)
    assert opened.run("echo in").out.strip() == b"in"
    opened.close()


# ---- key files ----------------------------------------------------------------------------------


def test_an_encrypted_key_is_asked_for_once_for_eight_devices(
    make_sshds: Callable[..., list[Sshd]], tmp_path: Path
) -> None:
    locked = make_key(tmp_path / "secret", passphrase=PASSWORD)
    options = {n: {"AuthorizedKeysFile": f"{locked}.pub"} for n in range(8)}
    targets = [one.target(identity=locked) for one in make_sshds(8, options=options)]
    operator = Operator("a slip of the finger", PASSWORD)
    with Connections(secrets=Secrets(operator)) as pool:
        answers = dict(opened(pool, targets))
    assert not [answer for answer in answers.values() if isinstance(answer, DeviceError)]
    assert len(operator.asked) == 2
    assert str(locked) in operator.asked[0]
    assert "wrong" in operator.asked[1]


def test_a_passphrase_that_nobody_knows_fails_every_device_after_one_question(
    sshds: list[Sshd], tmp_path: Path
) -> None:
    locked = make_key(tmp_path / "secret", passphrase=PASSWORD)
    for operator, asked, said in (
        (Operator(None), 1, f"is encrypted; add it to the SSH agent: ssh-add {locked}"),
        (Operator("a", "b", "c", "d"), 3, "was wrong 3 times"),
    ):
        with Connections(secrets=Secrets(operator)) as pool:
            for _, error in opened(pool, [one.target(identity=locked) for one in sshds[:4]]):
                assert isinstance(error, DeviceError)
                assert said in str(error)
        assert len(operator.asked) == asked


def test_the_time_that_somebody_types_does_not_count(sshd: Sshd, tmp_path: Path) -> None:
    locked = make_key(tmp_path / "secret", passphrase=PASSWORD)
    (tmp_path / "keys").write_text(Path(f"{locked}.pub").read_text())
    limits = replace(QUICK, connect=0.8, handshake=0.8, auth=0.8, total=0.8)

    def slow(_question: str) -> str:
        threading.Event().wait(1.2)
        return PASSWORD

    target = sshd.target(identity=locked, timeouts=limits)
    assert "refused the login" in str(fails(target, secrets=Secrets(slow)))  # not: too late


def test_a_key_that_others_may_read_is_refused_with_the_command_that_mends_it(
    sshd: Sshd, tmp_path: Path
) -> None:
    copy = tmp_path / "open"
    shutil.copy(sshd.identity, copy)
    copy.chmod(0o644)
    assert f"chmod 600 {copy}" in str(fails(sshd.target(identity=copy)))
    copy.chmod(0o600)
    logs_in(sshd.target(identity=copy))


@pytest.mark.parametrize(
    ("kind", "form"),
    [("ed25519", ""), ("rsa", ""), ("rsa", "PEM"), ("rsa", "PKCS8"), ("ecdsa", "PEM")],
)
def test_keys_are_read_in_every_form(
    make_sshd: Callable[..., Sshd], tmp_path: Path, kind: str, form: str
) -> None:
    for phrase in ("", PASSWORD):
        path = make_key(tmp_path / f"id{len(phrase)}", kind, phrase)
        if form:
            subprocess.run(
                ["ssh-keygen", "-q", "-p", "-m", form, "-P", phrase, "-N", phrase, "-f", str(path)],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        target = Target(name="x", host="x", known_hosts=tmp_path / "none", identity=path)
        offers = Offers(target, Secrets(Operator(phrase)), Deadline(5))
        offer = offers.peek()
        assert offer is not None, offers.problems
        public = Path(f"{path}.pub").read_text().split()[1]
        assert offer.key.get_base64() == public


def test_keys_of_no_use_say_what_to_do(sshd: Sshd, tmp_path: Path) -> None:
    putty = tmp_path / "key.ppk"
    putty.write_text("PuTTY-User-Key-File-3: ssh-ed25519\n")
    putty.chmod(0o600)
    assert "puttygen" in str(fails(sshd.target(identity=putty)))
    dsa = tmp_path / "dsa"
    dsa.write_text("-----BEGIN DSA PRIVATE KEY-----\nMIIB\n-----END DSA PRIVATE KEY-----\n")
    dsa.chmod(0o600)
    assert "ssh-keygen -t ed25519" in str(fails(sshd.target(identity=dsa)))
    public = Path(f"{sshd.identity}.pub")
    assert "agent does not hold the private half" in str(fails(sshd.target(identity=public)))


def test_the_usual_keys_are_found_by_themselves(sshd: Sshd, alone: Path) -> None:
    make_key(alone / ".ssh" / "id_rsa", "rsa")
    shutil.copy(sshd.identity, alone / ".ssh" / "id_ed25519")
    logs_in(sshd.target(identity=None))


# ---- the agent ----------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    if not shutil.which("ssh-agent"):
        pytest.skip("there is no ssh-agent")
    address = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(address)], stdout=subprocess.DEVNULL)
    wait_for(address.exists)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
    yield lambda key: subprocess.run(["ssh-add", "-q", str(key)], check=True) and None
    process.kill()
    process.wait()


def test_the_right_key_of_a_full_agent_comes_first(
    make_sshd: Callable[..., Sshd], tmp_path: Path, agent: Callable[[Path], None]
) -> None:
    server = make_sshd({"MaxAuthTries": "2"})
    for number in range(5):
        agent(make_key(tmp_path / f"other{number}"))
    agent(server.identity)
    public = tmp_path / "right.pub"
    public.write_text(Path(f"{server.identity}.pub").read_text())
    target = server.trusted(tmp_path / "known_hosts")
    logs_in(replace(target, identity=public))
    logs_in(replace(target, identity=None, identities=(public,)))
    assert "refused the login" in str(fails(replace(target, identity=None)))  # not: hung up on


class Refusing:
    """A server that refuses the first key, and at the second ends the connection in some way."""

    def __init__(self, folder: Path, end: Callable[[socket.socket], None]) -> None:
        key = paramiko.RSAKey.generate(2048)
        self.listening = socket.create_server(("127.0.0.1", 0))
        port = self.listening.getsockname()[1]
        known = folder / "known_hosts"
        KnownHosts(known, ()).trust("127.0.0.1", port, HostKey("ssh-rsa", key.get_base64()))
        self.target = Target(
            name="x", host="127.0.0.1", port=port, user="pi", known_hosts=known, timeouts=QUICK,
            identities=(make_key(folder / "one"), make_key(folder / "two")),
        )  # fmt: skip
        refusing = self

        class Server(paramiko.ServerInterface):  # type: ignore[misc]
            def get_allowed_auths(self, _user: str) -> str:
                return "publickey"

            def check_auth_publickey(self, _user: str, _key: object) -> int:
                refusing.offered += 1
                if refusing.offered == 2:
                    end(refusing.socket)
                return int(paramiko.AUTH_FAILED)

        def serve() -> None:
            self.socket, _ = self.listening.accept()
            transport = paramiko.Transport(self.socket)
            transport.add_server_key(key)
            transport.start_server(event=threading.Event(), server=Server())
            transport.join(10)

        self.offered = 0
        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()

    def answer(self) -> DeviceError:
        with pytest.raises(DeviceError) as caught:
            connect(self.target, KnownHosts(self.target.known_hosts, ()))
        self.thread.join(20)
        self.listening.close()
        assert self.offered == 2, caught.value
        return caught.value


def hang_up(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def hang_up_later(connection: socket.socket) -> None:
    time.sleep(login._AT_ONCE_S + 0.3)
    connection.shutdown(socket.SHUT_RDWR)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (hang_up, ErrorKind.AUTHENTICATION),
        (hang_up_later, ErrorKind.DISCONNECTED),
        (reset, ErrorKind.DISCONNECTED),
    ],
)
def test_a_peer_that_vanishes_after_a_refused_key_is_told_from_one_that_has_had_enough(
    tmp_path: Path, end: Callable[[socket.socket], None], kind: ErrorKind
) -> None:
    assert Refusing(tmp_path, end).answer().kind is kind


def test_no_more_than_three_keys_are_offered(
    make_sshd: Callable[..., Sshd], tmp_path: Path, agent: Callable[[Path], None]
) -> None:
    server = make_sshd({"LogLevel": "VERBOSE", "MaxAuthTries": "20"})
    for number in range(6):
        agent(make_key(tmp_path / f"other{number}"))
    fails(replace(server.trusted(tmp_path / "known_hosts"), identity=None))
    assert server.log.read_text().count("Failed publickey") == 3


def test_an_encrypted_key_that_the_agent_holds_is_not_asked_for(
    sshd: Sshd, tmp_path: Path, agent: Callable[[Path], None]
) -> None:
    locked = tmp_path / "locked"
    shutil.copy(sshd.identity, locked)
    agent(locked)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSWORD, "-f", str(locked)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    operator = Operator()
    logs_in(sshd.target(identity=locked), secrets=Secrets(operator))
    assert not operator.asked


# ---- certificates -------------------------------------------------------------------------------


@pytest.fixture
def authority(make_sshd: Callable[..., Sshd], tmp_path: Path) -> tuple[Sshd, Callable[..., Path]]:
    """A server that lets in whoever has a certificate, and what signs one."""
    signer = make_key(tmp_path / "authority")
    server = make_sshd({"AuthorizedKeysFile": "none", "TrustedUserCAKeys": f"{signer}.pub"})

    def sign(key: Path, valid: str = "+1d") -> Path:
        subprocess.run(
            ["ssh-keygen", "-q", "-s", str(signer), "-I", "me", "-n", server.user, "-V", valid,
             f"{key}.pub"], check=True,
        )  # fmt: skip
        return Path(f"{key}-cert.pub")

    return server, sign


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_certificate_beside_the_key_is_found_by_itself(
    authority: tuple[Sshd, Callable[..., Path]], tmp_path: Path, kind: str
) -> None:
    server, sign = authority
    target = replace(server.trusted(tmp_path / "known"), identity=make_key(tmp_path / "me", kind))
    fails(target)
    sign(tmp_path / "me")
    logs_in(target)


def test_a_certificate_may_lie_anywhere(
    authority: tuple[Sshd, Callable[..., Path]], tmp_path: Path
) -> None:
    server, sign = authority
    key, certificate = make_key(tmp_path / "me"), tmp_path / "elsewhere"
    sign(key).rename(certificate)
    target = replace(server.trusted(tmp_path / "known"), identity=key, certificate=certificate)
    logs_in(target)
    other = replace(target, identity=make_key(tmp_path / "other"))
    assert "belongs to another key" in str(fails(other))


def test_a_certificate_that_has_ended_says_when(
    authority: tuple[Sshd, Callable[..., Path]], tmp_path: Path
) -> None:
    server, sign = authority
    key = make_key(tmp_path / "me")
    sign(key, "20200101:20200102")
    target = replace(server.trusted(tmp_path / "known"), identity=key)
    assert "ended on 2020-01-0" in str(fails(target))


def test_the_agent_lends_a_certificate(
    authority: tuple[Sshd, Callable[..., Path]], tmp_path: Path, agent: Callable[[Path], None]
) -> None:
    server, sign = authority
    key = make_key(tmp_path / "me")
    sign(key)
    agent(key)
    logs_in(replace(server.trusted(tmp_path / "known"), identity=None))


# ---- passwords ----------------------------------------------------------------------------------


class Lock:
    """An asyncssh server that wants a password."""

    def __init__(
        self, folder: Path, dialogue: str = "", count: int = 1, password: str = PASSWORD
    ) -> None:
        import asyncssh

        lock = self
        self.tried: list[str] = []
        key = asyncssh.generate_private_key("ssh-ed25519")
        parts = key.export_public_key().decode().split()
        self.host_key = HostKey(parts[0], parts[1])

        class Server(asyncssh.SSHServer):  # type: ignore[misc]
            def begin_auth(self, _user: str) -> bool:
                return True

            def password_auth_supported(self) -> bool:
                return not dialogue

            def validate_password(self, _user: str, given: str) -> bool:
                lock.tried.append(given)
                return given == password

            def kbdint_auth_supported(self) -> bool:
                return bool(dialogue)

            def get_kbdint_challenge(self, *_: object) -> object:
                return "", "", "", [(dialogue, False)]

            def validate_kbdint_response(self, _user: str, responses: list[str]) -> bool:
                lock.tried.extend(responses)
                return responses == [PASSWORD]

        def answer(process: Any) -> None:
            process.stdout.write("in\n")
            process.exit(0)

        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

        async def start() -> list[int]:
            self._servers = [
                await asyncssh.listen(
                    "127.0.0.1", 0, server_host_keys=[key], server_factory=Server,
                    process_factory=answer,
                )
                for _ in range(count)
            ]  # fmt: skip
            return [server.get_port() for server in self._servers]

        self.ports = asyncio.run_coroutine_threadsafe(start(), self.loop).result(10)
        self.known = folder / "known_hosts"
        KnownHosts(self.known, ()).trust_all(
            [(("127.0.0.1", port), self.host_key) for port in self.ports]
        )

    def targets(self, **changes: Any) -> list[Target]:
        return [
            Target(
                name=f"lock-{n}", host="127.0.0.1", port=port, user="pi", known_hosts=self.known,
                timeouts=QUICK, **changes,
            )
            for n, port in enumerate(self.ports)
        ]  # fmt: skip

    def close(self) -> None:
        async def stop() -> None:
            for server in self._servers:
                server.close()
                await server.wait_closed()

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def make_lock(tmp_path: Path) -> Iterator[Callable[..., Lock]]:
    pytest.importorskip("asyncssh", reason="the extra `lab` is not installed")
    made: list[Lock] = []

    def make(**options: Any) -> Lock:
        made.append(Lock(tmp_path, **options))
        return made[-1]

    yield make
    for lock in made:
        lock.close()


def test_a_password_is_asked_for_once_for_the_fleet(make_lock: Callable[..., Lock]) -> None:
    lock = make_lock(count=6)
    operator = Operator("a slip", PASSWORD)
    with Connections(secrets=Secrets(operator)) as pool:
        answers = dict(opened(pool, lock.targets(ask_password=True)))
    assert not [answer for answer in answers.values() if isinstance(answer, DeviceError)]
    assert operator.asked[0] == "Password of user pi on the devices"
    assert len(operator.asked) == 2
    assert lock.tried.count("a slip") == 1, "a wrong password must not go to every device"


def test_a_password_is_remembered_until_a_server_refuses_it(
    make_lock: Callable[..., Lock],
) -> None:
    (target,) = make_lock().targets(ask_password=True)
    logs_in(target, secrets=Secrets(Operator(PASSWORD)))
    later = Operator()
    logs_in(target, secrets=Secrets(later))
    assert not later.asked
    (other,) = make_lock(password="another").targets(ask_password=True)
    assert "that other devices take" in str(fails(other, secrets=Secrets(later)))
    logs_in(other, secrets=Secrets(Operator("another")))


def test_no_password_is_asked_for_unless_the_settings_allow_it(
    make_lock: Callable[..., Lock],
) -> None:
    (target,) = make_lock().targets()
    operator = Operator(PASSWORD)
    error = fails(replace(target), secrets=Secrets(operator))
    assert not operator.asked
    assert "identity in fleet.toml" in str(error)


def test_a_server_that_takes_no_keys_says_so(make_lock: Callable[..., Lock], sshd: Sshd) -> None:
    (target,) = make_lock().targets(identity=sshd.identity)
    said = str(fails(target))
    assert "password" in said
    assert "ask_password" in said or "refused the login" in said


def test_a_password_is_offered_after_the_key_and_where_nobody_answers_that_is_said(
    make_lock: Callable[..., Lock], sshd: Sshd
) -> None:
    (target,) = make_lock().targets(identity=sshd.identity, ask_password=True)
    assert "nobody can be asked" in str(fails(target))
    logs_in(target, secrets=Secrets(Operator(PASSWORD)))


def test_a_dialogue_that_only_wants_the_password_gets_it(make_lock: Callable[..., Lock]) -> None:
    (target,) = make_lock(dialogue="pi@edge's Password: ").targets(ask_password=True)
    logs_in(target, secrets=Secrets(Operator(PASSWORD)))


def test_a_dialogue_about_anything_else_does_not_get_the_password(
    make_lock: Callable[..., Lock],
) -> None:
    lock = make_lock(dialogue="Verification code: ")
    (target,) = lock.targets(ask_password=True)
    said = str(fails(target, secrets=Secrets(Operator(PASSWORD, PASSWORD, PASSWORD))))
    assert 'asks "Verification code:"' in said
    assert PASSWORD not in lock.tried


def test_a_command_may_print_the_password(make_lock: Callable[..., Lock]) -> None:
    (target,) = make_lock().targets(
        password_command=f'test "$HDAP_DEVICE $HDAP_HOST $HDAP_USER" = "lock-0 127.0.0.1 pi"'
        f" && echo '{PASSWORD}' && echo more"
    )
    logs_in(target)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo locked >&2; exit 3", "password_command ended with status 3: locked"),
        ("true", "password_command printed nothing"),
        ("sleep 60", "password_command took longer than 0 s"),
    ],
)
def test_a_command_that_prints_no_password_is_a_sentence(
    make_lock: Callable[..., Lock], monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    if "sleep" in command:
        monkeypatch.setattr(secret, "COMMAND_S", 0.3)
    (target,) = make_lock().targets(password_command=command)
    assert said in str(fails(target))


def test_a_password_shows_nowhere(make_lock: Callable[..., Lock]) -> None:
    (target,) = make_lock().targets(ask_password=True)
    operator = Operator("hunter2", "hunter2", "hunter2")
    secrets = Secrets(operator)
    error = fails(target, secrets=secrets)
    assert "hunter2" not in f"{error} {error!r} {secrets!r} {vars(secrets)}"
    assert "lock-0 refused 3 times" in str(error)


# ---- several steps ------------------------------------------------------------------------------


def test_two_keys_in_a_row_where_the_server_wants_two(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    first, second = make_key(tmp_path / "first"), make_key(tmp_path / "second")
    allowed = tmp_path / "allowed"
    allowed.write_text("".join(Path(f"{key}.pub").read_text() for key in (first, second)))
    server = make_sshd(
        {"AuthorizedKeysFile": str(allowed), "AuthenticationMethods": "publickey,publickey"}
    )
    target = replace(server.trusted(tmp_path / "known"), identity=None)
    logs_in(replace(target, identities=(first, second)))
    error = fails(replace(target, identities=(first,)))
    assert f"after the key {first} it asks for more (publickey)" in str(error)


def test_a_second_step_that_wants_a_password_says_how_to_give_one(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd(
        {"PasswordAuthentication": "yes", "AuthenticationMethods": "publickey,password"}
    )
    target = server.trusted(tmp_path / "known")
    assert "asks for more (password); set ask_password" in str(fails(target))
    operator = Operator("wrong", "wrong", "wrong")
    said = str(fails(replace(target, ask_password=True), secrets=Secrets(operator)))
    assert "asks for more (password), and did not take a password" in said
