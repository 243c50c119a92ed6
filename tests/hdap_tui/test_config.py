"""Settings: what a file means, and what is said about a wrong one."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.accelerator import processors
from hdap_tui.config import describe, find, load
from hdap_tui.config.locate import key_lines
from hdap_tui.config.patterns import expand
from hdap_tui.config.schema import Compression, Finetune
from hdap_tui.errors import ExitCode, SettingsError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HDAP_CONFIG", "HDAP_STATE"):
        monkeypatch.delenv(name, raising=False)


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return path


def mistake(folder: Path, text: str) -> str:
    """Return the sentence about a wrong file, without its folder."""
    with pytest.raises(SettingsError) as caught:
        load(write(folder, text))
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value).removeprefix(f"{folder}{os.sep}")


# What a file means


def test_the_repository_file_is_the_emulated_lab() -> None:
    settings = load(ROOT / "fleet.toml")
    assert settings.name == "lab"
    assert settings.state_dir == ROOT / ".hdap"
    assert settings.known_hosts == ROOT / ".hdap" / "known_hosts"
    assert [d.name for d in settings.devices] == [f"edge-{n:02d}" for n in range(1, 13)]
    assert all(d.user == d.name and d.host == "127.0.0.1" for d in settings.devices)
    assert all(d.emulated for d in settings.devices)
    assert {settings.cores(d.host_group) for d in settings.devices} == {2}
    assert settings.first_model is not None
    assert settings.first_model.builtin == "resnet20-digits"
    assert [m.builtin for m in settings.probes] == ["compute", "bandwidth", "dispatch"]
    assert settings.drift.baseline == 8
    assert settings.lab.drift_percent == 25
    assert settings.lab.devices == len(settings.devices)


def test_the_commented_real_fleet_is_a_valid_file(tmp_path: Path) -> None:
    lines = (ROOT / "fleet.toml").read_text(encoding="utf-8").splitlines()
    example = [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]
    settings = load(write(tmp_path, "\n".join(example)))
    assert len(settings.devices) == 141
    assert settings.devices[139].host == "10.20.0.140"
    assert settings.device("gate").port == 2222
    assert settings.device("cam-001").user == "pi"


def test_an_empty_file_has_all_defaults(tmp_path: Path) -> None:
    settings = load(write(tmp_path, ""))
    assert settings.devices == ()
    assert settings.state_dir.parts[-2:] == ("hdap", "fleet")
    assert settings.benchmark.blocks_min == 5
    assert [m.name for m in settings.probes] == ["compute", "bandwidth", "dispatch"]


def test_a_device_takes_what_it_leaves_out_from_ssh(tmp_path: Path) -> None:
    settings = load(
        write(
            tmp_path,
            """
            [ssh]
            user = "pi"
            port = 2200
            identity = "keys/id"
            python = "/opt/python"
            [[devices]]
            name = "plain"
            [[devices]]
            name = "own"
            host = "10.0.0.9"
            port = 22
            user = "root"
            identity = "~/id"
            tags = ["hall-a", "camera"]
            python = "python3.12"
            """,
        )
    )
    plain, own = settings.devices
    assert (plain.host, plain.port, plain.user) == ("plain", 2200, "pi")
    assert (plain.identity, plain.python) == (tmp_path / "keys/id", "/opt/python")
    assert (own.host, own.port, own.user) == ("10.0.0.9", 22, "root")
    assert (own.identity, own.python) == (Path.home() / "id", "python3.12")
    assert own.tags == ("hall-a", "camera")


def test_canary_settings_are_laid_over_those_of_the_benchmark(tmp_path: Path) -> None:
    text = "[benchmark]\nruns = 40\nthreads = 2\n[benchmark.canary]\nruns = 7\n"
    canary = load(write(tmp_path, text)).canary
    assert (canary.runs, canary.threads, canary.blocks_min, canary.blocks_max) == (7, 2, 1, 1)


def test_files_are_relative_to_the_settings_file_and_what_comes_along_is_not(
    tmp_path: Path,
) -> None:
    text = """
    [[models]]
    name = "mine"
    path = "../models/mine.onnx"
    [compression]
    weights = "w.safetensors"
    data = "images"
    """
    folder = tmp_path / "site"
    folder.mkdir()
    settings = load(write(folder, text))
    assert settings.models[0].path == tmp_path / "models" / "mine.onnx"
    assert settings.weights == folder / "w.safetensors"
    assert settings.data == folder / "images"
    assert len(list(settings.missing())) == 3
    shipped = load(ROOT / "fleet.toml")
    assert (shipped.weights, shipped.data) == ("builtin:resnet20-digits", "digits")
    assert list(shipped.missing()) == []


@pytest.mark.parametrize(
    ("network", "named", "weights"),
    [
        ("resnet20", "resnet20", "builtin:resnet20-digits"),
        ("vgg16", "vgg16", ""),
        ("shop.networks:small", "shop.networks:small", ""),
        ("net.onnx", "{folder}/net.onnx", ""),
    ],
)
def test_weights_that_nobody_names_are_those_that_come_with_the_network(
    tmp_path: Path, network: str, named: str, weights: str
) -> None:
    settings = load(write(tmp_path, f'[compression]\nnetwork = "{network}"\n'))
    assert settings.network == named.format(folder=tmp_path)
    assert settings.weights == weights
    assert len(list(settings.missing())) == (network == "net.onnx")
    other = load(write(tmp_path, '[compression]\nweights = "w.safetensors"\n'))
    assert other.weights_of("vgg16") == tmp_path / "w.safetensors"
    shipped = load(write(tmp_path, '[compression]\nweights = "builtin:resnet20-digits"\n'))
    assert shipped.weights_of("resnet20") == "builtin:resnet20-digits"
    assert shipped.weights_of("shop.networks:small") == "", "shipped weights are one network's"
    assert other.weights_of("net.onnx") == "", "an ONNX file has its own"


def test_the_state_variable_goes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HDAP_STATE", str(tmp_path / "elsewhere"))
    settings = load(write(tmp_path, '[fleet]\nstate = "here"\n'))
    assert settings.state_dir == tmp_path / "elsewhere"
    assert settings.database == tmp_path / "elsewhere" / "fleet.db"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("plain", ["plain"]),
        ("edge-[01:03]", ["edge-01", "edge-02", "edge-03"]),
        ("[8:11]-x", ["8-x", "9-x", "10-x", "11-x"]),
        ("a[5:5]", ["a5"]),
        ("edge-[01:02,07,20:21].lab", [f"edge-{n}.lab" for n in ("01", "02", "07", "20", "21")]),
        ("[1,3]", ["1", "3"]),
        ("a[7]", ["a[7]"]),
        ("fe80::1", ["fe80::1"]),
    ],
)
def test_a_pattern_stands_for_its_names(pattern: str, expected: list[str]) -> None:
    assert expand(pattern) == expected


# What is said about a wrong file


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "\n[benchmark]\nbloks = 3\n",
            'fleet.toml:3: benchmark.bloks is not a key here; did you mean "block_s" or '
            '"blocks_min"?',
        ),
        (
            "[benchmak]\nruns = 3\n",
            'fleet.toml:1: benchmak is not a section here; did you mean "benchmark"?',
        ),
        (
            '[fleet]\nname = "x"\nblocks_min = 3\n',
            "fleet.toml:3: fleet.blocks_min is not a key here; it belongs in [benchmark].",
        ),
        (
            "[benchmark]\nthreads = 0\n",
            "fleet.toml:2: benchmark.threads is 0; it must be a whole number of at least 1.",
        ),
        (
            '[benchmark]\n\nthreads = "two"\n',
            'fleet.toml:3: benchmark.threads is "two"; it must be a whole number of at least 1.',
        ),
        (
            "[benchmark]\nthreads = true\n",
            "fleet.toml:2: benchmark.threads is true; it must be a whole number of at least 1.",
        ),
        (
            "[watch]\njitter = 1.5\n",
            "fleet.toml:2: watch.jitter is 1.5; it must be a number from 0 to 1.",
        ),
        (
            "[watch]\njitter = nan\n",
            "fleet.toml:2: watch.jitter is nan; it must be a number from 0 to 1.",
        ),
        (
            '[compression]\nquantize = "alway"\n',
            'fleet.toml:2: compression.quantize is "alway"; it must be one of "auto", "never", '
            '"always"; did you mean "always"?',
        ),
        (
            "[compression]\nfinetune = {epochs = 3, rate = 1}\n",
            'fleet.toml:2: compression.finetune.rate is not a key here; known: "epochs", "lr", '
            '"momentum", "weight_decay", "batch", "schedule", "bf16", "distill", "processes", '
            '"threads".',
        ),
        (
            '[[devices]]\nname = "a"\n[[devices]]\nhost = "b"\n',
            'fleet.toml:3: devices needs the key "name": text in quotes, not empty.',
        ),
        (
            '[devices]\nname = "a"\n',
            "fleet.toml:1: devices must be written [[devices]], once for each.",
        ),
        ("fleet = 3\n", "fleet.toml:1: fleet is 3; it must be a table."),
        (
            '[[devices]]\nname = "a"\ntags = [\n  "good",\n  7,\n]\n',
            "fleet.toml:5: devices.tags is 7; it must be a name of letters, digits, dots, dashes "
            "and underscores.",
        ),
        (
            '[[devices]]\nname = "a"\n\n[[devices]]\nname = "a"\n',
            'fleet.toml:5: devices.name "a" is there already, on line 2; names are unique.',
        ),
        (
            '[[devices]]\nname = "e-[1:3]"\nport = "22[01:04]"\n',
            'fleet.toml:3: devices.port "22[01:04]" stands for 4, but the name for 3; patterns of '
            "one entry go in step.",
        ),
        (
            '[[devices]]\nname = "one"\nhost = "10.0.0.[1:2]"\n',
            'fleet.toml:3: devices.host "10.0.0.[1:2]" stands for 2, but the name for 1; patterns '
            "of one entry go in step.",
        ),
        (
            '[[devices]]\nname = "e-[9:3]"\n',
            'fleet.toml:2: devices.name "e-[9:3]" counts backward; write [3:9].',
        ),
        (
            '[[devices]]\nname = "e"\nport = "655[36:36]"\n',
            'fleet.toml:3: devices.port is "65536"; it must be from 1 to 65535.',
        ),
        (
            '[[devices]]\nname = "bad name"\n',
            'fleet.toml:2: devices.name "bad name" must be at most 63 letters, digits, dots, '
            "dashes and underscores, the first no sign.",
        ),
        (
            '[fleet]\nmodel = "resnet20"\n',
            'fleet.toml:2: fleet.model is "resnet20", which no [[models]] entry has; did you mean '
            '"resnet20-digits"?',
        ),
        (
            '[[models]]\nname = "m"\npath = "builtin:computer"\n',
            'fleet.toml:3: models.path is "builtin:computer", which does not come along; did you '
            'mean "builtin:compute"?',
        ),
        (
            '[[models]]\nname = "m"\npath = "a"\n[[models]]\npath = "b"\nname = "m"\n',
            'fleet.toml:6: models.name "m" is there twice; names are unique.',
        ),
        (
            "[benchmark]\nblocks_max = 3\n",
            "fleet.toml:2: benchmark.blocks_max is 3; it must be at least blocks_min (5).",
        ),
        (
            "[benchmark.canary]\nblocks_min = 4\n",
            "fleet.toml:1: benchmark.canary.blocks_max is 1; it must be at least blocks_min (4).",
        ),
        (
            "[drift]\nclear_percent = 9\n",
            "fleet.toml:2: drift.clear_percent is 9; it must be at most effect_percent (3), or an "
            "alert would resolve as it opens.",
        ),
        (
            '[host_groups."a b"]\ncores = 2\n',
            'fleet.toml:1: host_groups.a b is "a b"; it must be a name of letters, digits, dots, '
            "dashes and underscores.",
        ),
        (
            "[fleet]\nname = \n",
            "fleet.toml:2: not valid TOML, column 8: invalid value.",
        ),
        ("[fleet]\na = 1\na = 2\n", "fleet.toml:3: not valid TOML, column 6: cannot overwrite"),
        ("[fleet", "fleet.toml:1: not valid TOML: expected ']' at the end of"),
    ],
)
def test_a_mistake_names_file_line_key_and_what_is_allowed(
    tmp_path: Path, text: str, sentence: str
) -> None:
    assert mistake(tmp_path, text).startswith(sentence)


def test_values_that_would_upset_a_terminal_are_shown_without_control_characters(
    tmp_path: Path,
) -> None:
    said = mistake(tmp_path, '[compression]\nsurrogate = "\\u001b[31mred' + "x" * 99 + '"\n')
    assert "\x1b" not in said
    assert len(said) < 200


def test_what_is_no_text_or_no_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(b"[fleet]\nname = '\xff'\n")
    with pytest.raises(SettingsError, match=r"fleet\.toml:2: not UTF-8 text"):
        load(path)
    with pytest.raises(SettingsError, match="cannot be read: is a directory"):
        load(tmp_path)
    path.write_text("x = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(SettingsError, match="nested too deep"):
        load(path)


def test_a_byte_order_mark_is_let_pass(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(b'\xef\xbb\xbf[fleet]\r\nname = "x"\r\n')
    assert load(path).name == "x"


# Which line a key stands on

SHAPES = (
    """\
top = 100_2
"quoted key".'lit.eral' = 2
dotted.a.b = 3
dotted.a.c = 4  # not 999 ] " here
[ table ]  # [comment]
one = 6; """.replace("; ", "\n").replace("100_2", "1")
    + """\
inline = {x = 7, "y" = {z = 7, w = [7, 7]}}
array = [
  9, # nine ]
  {deep = 10},
  [11,
   12],
]
text = \"\"\"
[not.a.table]
key = 16 \\\"\"\" \"\"\"\"\"
after = 17
literal = '''
''quotes'' [x] = 5
'''''
after2 = 21
escaped = "a \\" # \\\\"
after3 = 23
hash = '# no comment \\'
after4 = 25
date = 1979-05-27 07:32:00
[[list]]
a = 28
[[list]]
a = 30
[list.sub]
b = 32
[[list.inner]]
c = 34
[[list.inner]]
c = 36
[list.inner.leaf]
d = 38
[a."b.c".d]
e = 40

[x.y]
f = 43
[x]
g = 45
"""
)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, Any]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        yield path, value
    for key, item in items:
        yield from leaves(item, (*path, key))


def test_threads_that_nobody_names_are_all_cores_shared_out_among_the_processes() -> None:
    alone = Compression().with_threads()
    assert alone.threads == alone.finetune.threads == processors()
    crowd = Compression(finetune=Finetune(processes=1000)).with_threads()
    assert crowd.finetune.threads == 1
    named = Compression(threads=3, finetune=Finetune(threads=5))
    assert named.with_threads() == named


def test_every_key_of_every_shape_is_found_on_its_line() -> None:
    lines = key_lines(SHAPES)
    found = list(leaves(tomllib.loads(SHAPES)))
    numbers = [(path, value) for path, value in found if isinstance(value, int)]
    assert len(numbers) > 25
    for path, value in numbers:
        assert lines[path] == value, path
    assert {path for path, _ in found} <= lines.keys()
    assert lines[("list", 1)] == 29
    assert lines[("list", 1, "inner", 1, "leaf")] == 37
    assert lines[("x",)] == 42


def test_windows_line_ends_count_once() -> None:
    assert key_lines("a = 1\r\n\r\n[b]\r\nc = 2\r\n")[("b", "c")] == 4


def test_the_lines_of_the_repository_file_are_right() -> None:
    text = (ROOT / "fleet.toml").read_text(encoding="utf-8")
    rows = text.splitlines()
    lines = key_lines(text)
    for path, _ in leaves(tomllib.loads(text)):
        key = [part for part in path if isinstance(part, str)][-1]
        assert rows[lines[path] - 1].startswith(f"{key} = "), path


# Which file


def test_the_file_is_found_by_flag_then_variable_then_upwards_then_user_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: tmp_path / name for name in ("flag", "variable", "tree", "user/hdap")}
    for folder in places.values():
        folder.mkdir(parents=True)
        write(folder, "")
    below = places["tree"] / "deep" / "er"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HDAP_CONFIG", str(places["variable"] / "fleet.toml"))
    assert find(places["flag"]) == places["flag"] / "fleet.toml"
    assert find() == places["variable"] / "fleet.toml"
    monkeypatch.delenv("HDAP_CONFIG")
    assert find() == places["tree"] / "fleet.toml"
    (places["tree"] / "fleet.toml").unlink()
    assert find() == places["user/hdap"] / "fleet.toml"
    (places["user/hdap"] / "fleet.toml").unlink()
    with pytest.raises(SettingsError, match=r"no fleet\.toml in .*; write one, make one with"):
        find()


def test_a_named_file_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="--config: there is no settings file"):
        find(tmp_path / "none.toml")
    monkeypatch.setenv("HDAP_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match="HDAP_CONFIG: there is no settings file"):
        find()


# The reference, and the price of it all


def test_every_key_has_a_type_and_a_sentence() -> None:
    entries = list(describe())
    assert len(entries) > 80
    for entry in entries:
        assert entry.meaning.endswith("."), entry
        assert entry.type
        assert "typing" not in entry.type, entry


def test_the_reference_in_the_docs_is_current() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "hdap_tui.config"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "fleet-toml.md").read_text(encoding="utf-8") == printed, (
        "run: python -m hdap_tui.config > docs/fleet-toml.md"
    )


def test_settings_load_without_any_heavy_library() -> None:
    code = (
        "import sys; from hdap_tui.config import load, find; load(find())\n"
        "heavy = {'numpy', 'torch', 'sklearn', 'textual', 'paramiko', 'sqlite_utils', 'rich', "
        "'platformdirs'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
