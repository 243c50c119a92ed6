from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from hdap_tui.ssh import hostkeys
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts, host_name


def key(seed: object = 0, kind: str = "ssh-ed25519") -> HostKey:
    name = kind.encode()
    body = hashlib.sha256(str(seed).encode()).digest()
    blob = b"".join(len(v).to_bytes(4, "big") + v for v in (name, body))
    return HostKey(kind, base64.b64encode(blob).decode())


def hashed(name: str, salt: bytes = b"0123456789abcdefghij") -> str:
    digest = hmac.digest(salt, name.encode(), "sha1")
    return "|1|" + "|".join(base64.b64encode(v).decode() for v in (salt, digest))


def line(names: str, one: HostKey, mark: str = "") -> str:
    return f"{mark} {names} {one.type} {one.base64} a comment".strip()


def known(tmp_path: Path, *lines: str, others: tuple[Path, ...] = ()) -> KnownHosts:
    path = tmp_path / "known_hosts"
    path.write_text("".join(f"{text}\n" for text in lines))
    return KnownHosts(path, others)


def kind_of(hosts: KnownHosts, one: HostKey, host: str = "edge", port: int = 22) -> ErrorKind:
    with pytest.raises(DeviceError) as caught:
        hosts.check(host, port, one, host)
    return caught.value.kind


def test_a_known_key_passes_and_any_other_is_told_apart(tmp_path: Path) -> None:
    hosts = known(tmp_path, line("edge,10.0.0.4", key(1)), line("[edge]:2222", key(2)))
    hosts.check("edge", 22, key(1), "edge")
    hosts.check("10.0.0.4", 22, key(1), "edge")
    hosts.check("EDGE", 2222, key(2), "edge")
    assert kind_of(hosts, key(2)) is ErrorKind.HOST_KEY_CHANGED
    assert kind_of(hosts, key(1), "elsewhere") is ErrorKind.HOST_KEY_UNKNOWN
    assert kind_of(hosts, key(1), "edge", 2223) is ErrorKind.HOST_KEY_UNKNOWN


def test_a_key_of_another_type_than_the_known_one_counts_as_changed(tmp_path: Path) -> None:
    hosts = known(tmp_path, line("edge", key(1, "ssh-rsa")))
    assert kind_of(hosts, key(1)) is ErrorKind.HOST_KEY_CHANGED


def test_the_sentence_names_both_fingerprints_and_the_command(tmp_path: Path) -> None:
    hosts = known(tmp_path, line("edge", key(1)))
    with pytest.raises(DeviceError) as caught:
        hosts.check("edge", 22, key(2), "edge-01")
    for part in ("edge-01", key(1).fingerprint, key(2).fingerprint, "hdap devices trust"):
        assert part in str(caught.value)


def test_hashed_names_are_found(tmp_path: Path) -> None:
    hosts = known(tmp_path, line(hashed("edge"), key(1)), line(hashed("[edge]:2222"), key(2)))
    hosts.check("edge", 22, key(1), "edge")
    hosts.check("edge", 2222, key(2), "edge")
    assert kind_of(hosts, key(1), "other") is ErrorKind.HOST_KEY_UNKNOWN


def test_patterns_and_their_exceptions_hold(tmp_path: Path) -> None:
    hosts = known(tmp_path, line("*.lab,!bad.lab", key(1)), line("[10.0.0.?]:22*", key(2)))
    hosts.check("edge.lab", 22, key(1), "edge")
    hosts.check("10.0.0.4", 2201, key(2), "edge")
    assert kind_of(hosts, key(1), "bad.lab") is ErrorKind.HOST_KEY_UNKNOWN
    assert kind_of(hosts, key(2), "10.0.0.44", 2201) is ErrorKind.HOST_KEY_UNKNOWN


def test_a_revoked_key_is_refused_though_it_is_known(tmp_path: Path) -> None:
    hosts = known(tmp_path, line("edge", key(1)), line("*", key(1), "@revoked"))
    assert kind_of(hosts, key(1)) is ErrorKind.HOST_KEY_CHANGED
    with pytest.raises(DeviceError, match="revoked"):
        hosts.trust("edge", 22, key(1))


def test_lines_that_mean_nothing_here_stop_nothing(tmp_path: Path) -> None:
    hosts = known(
        tmp_path,
        "# a comment",
        "",
        "edge ssh-ed25519",
        "edge ssh-ed25519 not-base64!",
        "|1|broken ssh-ed25519 AAAA",
        line("*.lab", key(9), "@cert-authority"),
        line("x", key(9), "@unheard-of"),
        line("edge", key(1)),
    )
    hosts.check("edge", 22, key(1), "edge")
    assert kind_of(hosts, key(9), "edge.lab") is ErrorKind.HOST_KEY_UNKNOWN


def test_the_fleets_file_goes_before_the_users(tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.write_text(f"{line('edge', key(2))}\n{line('other', key(3))}\n")
    hosts = known(tmp_path, line("edge", key(1)), others=(user,))
    assert kind_of(hosts, key(2)) is ErrorKind.HOST_KEY_CHANGED
    hosts.check("other", 22, key(3), "other")


def test_what_the_user_revoked_is_revoked_for_the_fleet(tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.write_text(line("*", key(1), "@revoked") + "\n")
    hosts = known(tmp_path, line("edge", key(1)), others=(user,))
    assert kind_of(hosts, key(1)) is ErrorKind.HOST_KEY_CHANGED


def test_trusting_replaces_that_hosts_key_and_nothing_else(tmp_path: Path) -> None:
    hosts = known(
        tmp_path,
        "# kept",
        line("edge,10.0.0.4", key(1)),
        line(hashed("edge"), key(1, "ssh-rsa")),
        line("[edge]:2222", key(2)),
        line("edge", key(8), "@revoked"),
    )
    hosts.trust("edge", 22, key(5))
    assert hosts.lookup("edge", 22) == {key(5)}
    assert hosts.lookup("10.0.0.4", 22) == {key(1)}
    assert hosts.lookup("edge", 2222) == {key(2)}
    text = hosts.fleet.read_text()
    assert text.startswith("# kept\n")
    assert "@revoked edge" in text


def test_the_file_is_made_with_its_folder_for_the_owner_only(tmp_path: Path) -> None:
    hosts = KnownHosts(tmp_path / "state" / "known_hosts", ())
    hosts.trust("edge", 22, key(1))
    assert hosts.fleet.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(hosts.fleet.parent)) == ["known_hosts", "known_hosts.lock"]


def test_a_file_changed_by_somebody_else_is_read_again(tmp_path: Path) -> None:
    hosts = known(tmp_path, line("edge", key(1)))
    hosts.check("edge", 22, key(1), "edge")
    KnownHosts(hosts.fleet, ()).trust("edge", 22, key(2))
    hosts.check("edge", 22, key(2), "edge")


def test_many_who_trust_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"

    def trust(number: int) -> None:
        KnownHosts(path, ()).trust("edge", 2000 + number, key(number))

    threads = [threading.Thread(target=trust, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hosts = KnownHosts(path, ())
    assert [hosts.lookup("edge", 2000 + n) for n in range(16)] == [{key(n)} for n in range(16)]


def test_one_of_five_thousand_entries_is_found_hashed_or_not(tmp_path: Path) -> None:
    names = [f"edge-{n}" for n in range(5000)]
    lines = [line(hashed(name) if n % 2 else name, key(n)) for n, name in enumerate(names)]
    hosts = known(tmp_path, *lines)
    assert hosts.lookup("edge-4998", 22) == {key(4998)}
    assert hosts.lookup("edge-4999", 22) == {key(4999)}


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="OpenSSH's client is not installed")
def test_openssh_agrees_on_fingerprint_names_and_hashing(tmp_path: Path) -> None:
    def keygen(*arguments: str) -> str:
        return subprocess.run(
            ["ssh-keygen", *arguments], check=True, capture_output=True, text=True
        ).stdout

    keygen("-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k"))
    kind, blob = (tmp_path / "k.pub").read_text().split()[:2]
    real = HostKey(kind, blob)
    assert real.fingerprint == keygen("-l", "-f", str(tmp_path / "k.pub")).split()[1]
    hosts = KnownHosts(tmp_path / "known_hosts", ())
    hosts.trust("edge", 22, real)
    hosts.trust("edge", 2222, real)
    assert blob in keygen("-F", host_name("edge", 2222), "-f", str(hosts.fleet))
    keygen("-H", "-f", str(hosts.fleet))
    assert "edge" not in hosts.fleet.read_text()
    assert hosts.lookup("edge", 22) == hosts.lookup("edge", 2222) == {real}


def test_a_hashed_host_is_checked_with_one_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = known(tmp_path, *(line(hashed(f"edge-{n}"), key(n)) for n in range(300)))
    hashes: list[str] = []
    real = hostkeys._stands_for

    def counted(names: str, name: str) -> bool:
        hashes.append(name)
        return real(names, name)

    monkeypatch.setattr(hostkeys, "_stands_for", counted)
    hosts.check("edge-299", 22, key(299), "edge-299")
    assert len(hashes) == 1
    assert kind_of(hosts, key(5), "edge-299") is ErrorKind.HOST_KEY_CHANGED


def test_a_key_that_stands_there_without_its_port_counts_as_ssh_has_it(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(line("edge", key(1)) + "\n")
    hosts = known(tmp_path, others=(other,))
    hosts.check("edge", 2222, key(1), "edge")
    assert kind_of(hosts, key(2), port=2222) is ErrorKind.HOST_KEY_UNKNOWN


def test_many_keys_are_taken_at_once_or_none(tmp_path: Path) -> None:
    hosts = known(tmp_path, line("edge-0,edge-1", key(9)), line("*", key(3), "@revoked"))
    hosts.trust_all([((f"edge-{n}", 22), key(n)) for n in range(3)])
    assert [hosts.lookup(f"edge-{n}", 22) for n in range(3)] == [{key(n)} for n in range(3)]
    with pytest.raises(DeviceError, match="revoked"):
        hosts.trust_all([(("edge-0", 22), key(7)), (("edge-1", 22), key(3))])
    assert hosts.lookup("edge-0", 22) == {key(0)}
