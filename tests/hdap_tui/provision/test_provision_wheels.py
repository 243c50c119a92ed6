"""Wheels are what they say, or they are refused."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from wheels import make_wheel

from hdap_tui.errors import SettingsError
from hdap_tui.provision import wheels
from hdap_tui.provision.wheels import Wheel, WheelError, in_folder, needs, parsed, unpacked_size


def read(path: Path) -> Wheel:
    found = parsed(path)
    assert found is not None
    return found


def test_a_good_wheel_tells_how_much_it_unpacks_to(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "good", files={"good/data": b"x" * 5000})
    assert 5000 < wheels.verify(read(path)) < 6000


def test_what_was_found_good_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = read(make_wheel(tmp_path, "good"))
    size = unpacked_size(one, "0" * 64, tmp_path / "cache")
    monkeypatch.setattr(wheels, "verify", lambda _wheel: pytest.fail("it was read again"))
    assert unpacked_size(one, "0" * 64, tmp_path / "cache") == size


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    other = {"bad/data": "bad/data,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0"}
    path = make_wheel(tmp_path, "bad", files={"bad/data": b"x"}, record=other)
    with pytest.raises(WheelError, match='"bad/data" is not what its RECORD says'):
        wheels.verify(read(path))


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    more = {"bad/more": "bad/more,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0"}
    with pytest.raises(WheelError, match='"bad/more" is missing'):
        wheels.verify(read(make_wheel(tmp_path, "bad", record=more)))


def test_a_file_that_the_record_does_not_have_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "bad", files={"bad/data": b"x"}, record={"bad/data": ""})
    with pytest.raises(WheelError, match="not in its RECORD"):
        wheels.verify(read(path))


def test_a_file_without_a_sum_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "bad", files={"bad/a": b"x"}, record={"bad/a": "bad/a,md5=AA,1"})
    with pytest.raises(WheelError, match="has no SHA-256"):
        wheels.verify(read(path))


@pytest.mark.parametrize(
    "name",
    ["../evil.py", "a/../../evil.py", "/etc/evil", "a\\..\\..\\evil", "C:/evil", "a/\x1b[2J"],
)
def test_a_name_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = make_wheel(tmp_path, "bad", files={name: b"x"})
    with pytest.raises(WheelError) as caught:
        wheels.verify(read(path))
    assert "refused" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "bad")
    link = zipfile.ZipInfo("bad/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(WheelError, match="refused"):
        wheels.verify(read(path))


def test_a_wheel_cut_short_is_damaged(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "bad", files={"bad/data": b"x" * 5000})
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(WheelError, match="cannot be read as a wheel"):
        wheels.verify(read(path))
    path.write_bytes(whole[:1000] + b"\0" * 1000 + whole[2000:])
    with pytest.raises(WheelError, match="damaged"):
        wheels.verify(read(path))


def test_requirements_come_from_the_metadata(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "one", requires=["numpy>=1.21", 'x; extra == "y"'], python=">=3.9")
    found = needs(read(path))
    assert [str(one) for one in found.requirements] == ["numpy>=1.21", 'x; extra == "y"']
    assert "3.8" not in found.python


def test_metadata_that_makes_no_sense_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="makes no sense"):
        needs(read(make_wheel(tmp_path, "one", requires=["!!"])))
    with pytest.raises(WheelError, match="makes no sense"):
        needs(read(make_wheel(tmp_path, "two", python="soon")))


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "x.whl", "a-1.0-py3-none-any.whl.part", "a b-1.0-py3-none-any.whl",
     "-1.0-py3-none-any.whl", "a-1.0;rm-py3-none-any.whl", "a-1.0-py3-none-any\n.whl"],
)  # fmt: skip
def test_a_file_whose_name_is_no_wheels_is_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    make_wheel(tmp_path, "good")
    assert [one.name for one in in_folder(tmp_path)] == ["good"]


def test_a_folder_without_wheels_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no wheels"):
        in_folder(tmp_path)
    with pytest.raises(SettingsError, match="No such file"):
        in_folder(tmp_path / "none")
