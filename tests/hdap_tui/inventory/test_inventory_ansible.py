"""Hosts of Ansible inventories, INI and YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hdap_tui.inventory import InventoryError, read
from hdap_tui.inventory.found import PROXY, Found, Host

INI = """\
# the lab
gate ansible_host=gate.example.org ansible_port=2222   # the way in

[web]
web[01:03].lab ansible_user=pi
web-[a:c:2] ansible_host="{{ inventory_hostname_short }}.lan"

; a database
[db]
db1:2200 ansible_password='s3cret' ansible_ssh_private_key_file=keys/db
db2 ansible_host={{dbhost}}

[eu:children]
web   # all of them
db

[eu:vars]
ansible_ssh_common_args='-o ProxyCommand="ssh -W %h:%p -q ops@bastion.lab -p 2022"'
ansible_user = robot
ansible_python_interpreter=/opt/py/bin/python3

[local]
localhost ansible_connection=local

[rack 7]
r1 ansible_python_interpreter=/usr/bin/python3
[::1] ansible_user=six

[all:vars]
ansible_user="nobody"  # the default
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found_in(text: str, name: str = "hosts.ini", format: str = "") -> Found:
    Path(name).write_text(text, encoding="utf-8")
    return read(Path(name), format)


def named(found: Found, name: str) -> Host:
    return next(host for host in found.hosts if host.name == name)


def test_an_ini_inventory_is_put_together_as_ansible_does(here: Path) -> None:
    found = found_in(INI)
    assert [host.name for host in found.hosts] == [
        "gate", "web01.lab", "web02.lab", "web03.lab", "web-a", "web-c", "db1", "r1", "1",
    ]  # fmt: skip
    assert named(found, "gate") == Host(
        name="gate", host="gate.example.org", port=2222, user="nobody"
    )
    assert named(found, "web02.lab") == Host(
        name="web02.lab", user="pi", tags=("web", "eu"), python="/opt/py/bin/python3",
        proxy_jump="ops@bastion.lab:2022",
    )  # fmt: skip
    assert named(found, "web-c").host == "web-c.lan"
    assert named(found, "db1").settings == {
        "name": "db1", "port": 2200, "user": "robot", "identity": str(here / "keys/db"),
        "proxy_jump": "ops@bastion.lab:2022", "python": "/opt/py/bin/python3",
        "tags": ["db", "eu"],
    }  # fmt: skip
    assert named(found, "r1").python == "", "the system's own is no choice"
    assert named(found, "1").host == "::1"
    assert found.left_out == [
        'hosts.ini:11: "db2" has the ansible_host "{{dbhost}}", a template that only Ansible can '
        "work out."
    ]
    said = "\n".join(found.notes)
    assert "hosts.ini:10: ansible_password is not taken over" in said
    assert "s3cret" not in repr(found)
    assert "hosts.ini:23: localhost is not reached over SSH (ansible_connection=local)" in said
    assert 'the group "rack 7" cannot be a tag' in said


def test_a_host_behind_a_proxy_that_is_no_jump_host_is_left_out_by_name(here: Path) -> None:
    found = found_in(
        "[eu]\na ansible_ssh_extra_args='-J gate'\nb\n[eu:vars]\n"
        "ansible_ssh_common_args='-o ProxyCommand=\"nc -X 5 %h %p\"'\n"
    )
    assert [(host.name, host.proxy_jump) for host in found.hosts] == [("a", "gate")]
    assert found.left_out == [f'hosts.ini:5: "b" {PROXY}']


BOMB = "g0: &g0 {hosts: {x: }}\n" + "".join(
    f"g{i}: &g{i}\n  children:\n" + "".join(f"    c{i}{j}: *g{i - 1}\n" for j in range(40))
    for i in range(1, 9)
)
"""A few hundred lines that stand for 40 ** 8 groups."""
YAML = """\
all:
  vars: {ansible_user: pi}
  children:
    orin:
      hosts:
        orin-[01:02]: {ansible_host: 10.1.0.9}
        "orin-x": {ansible_port: 2022, ansible_become_password: !vault "x"}
        sealed: {ansible_host: !vault "$ANSIBLE_VAULT;1.1;AES256"}
      vars:
        ansible_ssh_private_key_file: ~/.ssh/orin
        ansible_ssh_common_args: -J ops@gate
        a_list: [1, 2]
    nano:
      hosts:
        nano-1: &n {ansible_host: fe80::1, ansible_user: root}
        nano-2:
          <<: *n
          ansible_host: 10.2.0.2
        Nano-3:
      children:
        kitchen:
          hosts: {nano-1: }
"""


def test_a_piece_of_a_password_is_not_said() -> None:
    with pytest.raises(InventoryError) as caught:
        found_in("edge ansible_user=pi ansible_password=correct horse\n")
    assert "write key=value" in str(caught.value)
    assert "horse" not in str(caught.value)


def test_a_yaml_inventory_is_put_together_as_ansible_does() -> None:
    found = found_in(YAML, "hosts.yml")
    assert named(found, "orin-02").settings == {
        "name": "orin-02", "host": "10.1.0.9", "user": "pi", "identity": "~/.ssh/orin",
        "proxy_jump": "ops@gate", "tags": ["orin"],
    }  # fmt: skip
    assert named(found, "orin-x").port == 2022
    assert named(found, "nano-1") == Host(
        name="nano-1", host="fe80::1", user="root", tags=("nano", "kitchen")
    )
    assert named(found, "nano-2") == Host(
        name="nano-2", host="10.2.0.2", user="root", tags=("nano",)
    )
    assert named(found, "Nano-3").user == "pi"
    assert found.left_out == [
        'hosts.yml:8: "sealed" has an encrypted ansible_host, which only Ansible can read.'
    ]
    assert any("hosts.yml:7: ansible_become_password" in note for note in found.notes)


def test_variables_beside_the_inventory_count(here: Path) -> None:
    (here / "group_vars" / "web").mkdir(parents=True)
    (here / "host_vars").mkdir()
    (here / "group_vars" / "all.yml").write_text("ansible_user: pi\nansible_port: 2200\n")
    (here / "group_vars" / "web" / "a.yml").write_text("ansible_port: 2201\n")
    (here / "group_vars" / "web" / "vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n3333\n")
    (here / "host_vars" / "w2.yaml").write_text("ansible_port: 2202\n")
    found = found_in("db ansible_user=me\n[web]\nw1\nw2\n")
    assert [host.address for host in found.hosts] == ["me@db:2200", "pi@w1:2201", "pi@w2:2202"]
    assert found.notes == ["group_vars/web/vault.yml: encrypted, so nothing in it is taken over."]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a b=1 oops\n", 'hosts.ini:1: "oops" is no variable; write key=value.'),
        ("a b='1\n", "hosts.ini:1: a quotation mark is not closed."),
        ("[a:vars\n", 'hosts.ini:1: "[a:vars" is a section whose bracket is not closed.'),
        ("[a:child]\nx\n", 'hosts.ini:1: "child" is no kind of section; did you mean "children"?'),
        ("[a:vars]\nuser pi\n", 'hosts.ini:2: "user pi" is no variable; write key=value.'),
        ("\nx[5:1]\n", 'hosts.ini:2: "x[5:1]" counts backward: [5:1].'),
        ("x[a:9]\n", 'hosts.ini:1: "x[a:9]" has the range "[a:9]", which is neither numbers nor'),
        ("x[1:9999999]\n", 'hosts.ini:1: "x[1:9999999]" stands for more than 100000 hosts.'),
        ("x[1:9:0]\n", 'hosts.ini:1: "x[1:9:0]" counts in steps of nothing.'),
        ("[a:children]\nb\n[b:children]\na\n[a]\nx\n", "hosts.ini:1: the groups contain each other"
         " in a circle: a -> b -> a."),
        ("$ANSIBLE_VAULT;1.1;AES256\n6162\n", "hosts.ini: encrypted; write it out with ansible-va"),
        ("# nothing\n", "hosts.ini: it names no host."),
    ],
)  # fmt: skip
def test_a_wrong_ini_inventory_is_told_with_file_and_line(text: str, sentence: str) -> None:
    with pytest.raises(InventoryError) as caught:
        found_in(text)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a:\n  host: {x: }\n", 'hosts.yml:2: a group has no "host"; did you mean "hosts"?'),
        ("a:\n  hosts: [x, y]\n", 'hosts.yml:2: "hosts" must be a mapping: NAME: with a colon'),
        ("a:\n  hosts: {x: }\n  hosts: {y: }\n", 'hosts.yml:3: "hosts" is there already, on'),
        ("a:\n  hosts: {x: }\n b: 1\n", "hosts.yml:3: not valid YAML: "),
        ("a: !!python/object/apply:os.system [ls]\n", 'hosts.yml:1: the group "a" must be a map'),
        ('{"_meta": {"hostvars": {}}, "all": {}}', "hosts.yml:1: this is the output of "),
        ("$ANSIBLE_VAULT;1.1;AES256\n6162\n", "hosts.yml: encrypted; write it out with ansible-va"),
        ("", "hosts.yml: it is empty."),
        ("a: " + "[" * 150, "hosts.yml:1: it is nested deeper than 100 levels."),
        ("a: " + "[" * 200_000, "hosts.yml:1: "),  # some versions of libyaml have a limit, too
        ("a: &a\n  children:\n    b: *a\n", "hosts.yml:1: groups are nested deeper than 100"),
        (BOMB, "hosts.yml:23: aliases make this too long to be an inventory."),
    ],
)  # fmt: skip
def test_a_wrong_yaml_inventory_is_told_with_file_and_line(
    text: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hdap_tui.inventory.ansible_yaml._Pairs.limit", 20_000)
    with pytest.raises(InventoryError) as caught:
        found_in(text, "hosts.yml")
    assert str(caught.value).startswith(sentence)


NASTY = st.lists(
    st.sampled_from(
        ["[", "]", "[web]", "[a:vars]", "[b:children]", "x[01:03]", "a[", ":", "22", "=", " ", "\n",
         "ansible_host=", "{{ x }}", '"', "'", "#", "all:\n", "  hosts:\n", "    h1:\n", "- ",
         "&a ", "*a", "<<: ", "!vault ", "\t", "{", "}", "é", "\x1b[2J", "0", "-J b"]),
    max_size=25,
).map("".join)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NASTY, st.sampled_from(["f.ini", "f.yml", "f.csv", "f"]))
def test_any_text_is_read_or_refused_in_one_way(text: str, name: str) -> None:
    found = understood(text, name)
    if isinstance(found, InventoryError):
        said = [str(found)]
    else:
        said = [*found.left_out, *found.notes]
        assert all(host.settings["name"] for host in found.hosts)
    assert not any(sign in sentence for sentence in said for sign in "\n\x1b")


def understood(text: str, name: str) -> Found | InventoryError:
    try:
        return found_in(text, name)
    except InventoryError as error:
        return error
