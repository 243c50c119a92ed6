"""Tables from elsewhere: what comes back, and what is said about a bad one."""

import json
import math

import numpy as np
import pytest

from engine.fleet.clusters import cluster
from engine.fleet.documents import clusters_document, estimate_document
from engine.fleet.drift import DriftSettings, detect
from engine.fleet.tables import (
    drift_document,
    read_latencies,
    read_series,
)


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_latencies_come_as_they_stand_and_gaps_as_nan(tmp_path):
    path = written(tmp_path, "Device, a ,b\r\nx,1,2.5\r\n\r\n y ,,3e1\r\nz,,\r\n", "utf-8-sig")
    table = read_latencies(path)
    assert table.devices == ("x", "y", "z")
    assert table.measurements == ("a", "b")
    np.testing.assert_array_equal(table.latencies, [[1, 2.5], [math.nan, 30], [math.nan, math.nan]])


def test_the_clusters_document_is_what_the_clustering_says(tmp_path):
    rng = np.random.default_rng(0)
    level = np.repeat([[20.0, 12.0, 3.0], [23.0, 12.5, 3.1], [20.5, 14.5, 3.1]], 4, axis=0)
    latencies = level * np.exp(rng.normal(0, 0.01, (12, 3)))
    rows = [f"dev-{i}," + ",".join(map(repr, row)) for i, row in enumerate(latencies.tolist())]
    path = written(tmp_path, "\n".join(["device,compute,bandwidth,dispatch", *rows, "dead,,,"]))
    document = clusters_document(read_latencies(path))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    found = cluster(np.vstack([latencies, np.full(3, np.nan)]))
    assert document["schema_version"] == 1
    assert document["eps"] == found.eps
    assert document["eps_percent"] == pytest.approx(100 * math.expm1(found.eps))
    assert document["min_samples"] == 2
    assert list(document["labels"]) == [f"dev-{i}" for i in range(12)] + ["dead"]
    assert list(document["labels"].values()) == found.labels.tolist()
    assert document["labels"]["dead"] == -1
    assert [c["id"] for c in document["clusters"]] == [0, 1, 2]
    assert [c["size"] for c in document["clusters"]] == [4, 4, 4]
    for one, row in zip(document["clusters"], found.representatives, strict=True):
        assert one["representative"] == f"dev-{row}"
        assert set(one["median"]) == {"compute", "bandwidth", "dispatch"}
    assert sum(c["weight"] for c in document["clusters"]) == pytest.approx(1)
    assert "compute" in document["clusters"][1]["note"]


def test_eps_of_a_table_can_be_told(tmp_path):
    table = read_latencies(written(tmp_path, "device,a\nx,10\ny,10.4\nz,12\n"))
    assert clusters_document(table, eps_percent=5)["labels"] == {"x": 0, "y": 0, "z": -1}
    assert clusters_document(table, eps_percent=30)["labels"] == {"x": 0, "y": 0, "z": 0}
    with pytest.raises(ValueError, match="eps_percent"):
        clusters_document(table, eps_percent=-5)


GROUPS = """device,compute,copy,os
a,10,5,old
b,10.1,5,old
c,10.05,5.05,old
d,13,5,new
e,13.1,5.02,new
f,12.9,5,
"""


def test_columns_that_are_facts_explain_the_clusters(tmp_path):
    table = read_latencies(written(tmp_path, GROUPS), facts=("os",))
    assert table.measurements == ("compute", "copy")
    assert table.facts == {"os": ("old", "old", "old", "new", "new", None)}
    one, two = clusters_document(table)["clusters"]
    assert (one["representative"], two["representative"]) == ("b", "d")
    assert two["note"].endswith("copy as the rest")  # two of three are not nine of ten
    known = read_latencies(written(tmp_path, GROUPS.replace("5,\n", "5,new\n")), facts=("os",))
    assert clusters_document(known)["clusters"][1]["note"].endswith("; os new")


def test_later_devices_are_assigned_by_the_names_of_the_columns(tmp_path):
    table = read_latencies(written(tmp_path, GROUPS), facts=("os",))
    path = written(tmp_path, "device,copy,os,compute\nx,5,new,13.05\ny,,old,10\nz,9,,40\n")
    document = clusters_document(table, later=read_latencies(path, wanted=table.measurements))
    assert document["assigned"] == {"x": 1, "y": 0, "z": -1}
    assert set(document["labels"]) == set("abcdef")
    path = written(tmp_path, "device,copy\nx,5\n")
    with pytest.raises(ValueError, match="line 1: there is no column 'compute', which the other"):
        read_latencies(path, wanted=table.measurements)
    with pytest.raises(ValueError, match="the same measurements"):
        clusters_document(table, later=read_latencies(path))


def test_the_quality_of_the_clusters_stands_beside_them(tmp_path):
    document = clusters_document(read_latencies(written(tmp_path, GROUPS), facts=("os",)))
    assert document["noise"] == 0
    assert document["silhouette"] > 0.9
    assert 15 < document["apart_percent"] < 25
    assert [one["stability"] for one in document["clusters"]] == [1, 1]


def test_the_estimate_document_is_what_the_estimate_says(tmp_path):
    lines = ["device,probe,model"]
    for i in range(40):
        probe = (10 if i < 25 else 14) * (1 + 0.001 * (i % 5))
        model = 2 * probe if i % 4 == 0 else ""
        lines.append(f"d{i},{probe},{model}")
    document = estimate_document(read_latencies(written(tmp_path, "\n".join(lines))), 1.0)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    probe, model = document["estimates"]
    assert (probe["measured"], model["measured"]) == (40, 10)
    assert probe["within_percent"] == 0
    assert model["low_ms"] < 2 * probe["mean_ms"] < model["high_ms"]
    assert [one["devices"] for one in model["strata"]] == [25, 15]
    assert model["needed"][0]["devices"] <= 10


def test_an_estimate_needs_two_numbers_and_a_width(tmp_path):
    with pytest.raises(ValueError, match="one gives no interval"):
        estimate_document(read_latencies(written(tmp_path, "device,a\nx,1\ny,\n")))
    with pytest.raises(ValueError, match="width"):
        estimate_document(read_latencies(written(tmp_path, "device,a\nx,1\ny,2\n")), 0.0)


def test_a_fact_that_is_no_column_is_said_with_the_line(tmp_path):
    path = written(tmp_path, GROUPS)
    with pytest.raises(ValueError, match="line 1: there is no column 'board'"):
        read_latencies(path, facts=("board",))
    with pytest.raises(ValueError, match="every column is a fact"):
        read_latencies(path, facts=("compute", "copy", "os"))


def test_the_drift_document_is_what_the_detection_says(tmp_path):
    values = 10 * np.exp(np.random.default_rng(0).normal(0, 0.01, 100))
    values[60:] *= 1.25
    lines = [
        f"2026-01-01T{i // 60:02}:{i % 60:02}:00Z,{v!r}" for i, v in enumerate(values.tolist())
    ]
    (series,) = read_series(written(tmp_path, "\n".join(["time,value", *lines])))
    document = drift_document([series])
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    (change,) = detect(values)
    assert document == {
        "schema_version": 1,
        "changes": [
            {
                "device": None,
                "index": change.index,
                "time": lines[change.index].split(",")[0],
                "onset_index": 60,
                "onset_time": "2026-01-01T01:00:00Z",
                "kind": "step",
                "direction": "up",
                "size_percent": change.size_percent,
            }
        ],
    }
    assert drift_document([series], DriftSettings(effect_percent=40))["changes"] == []


def test_devices_in_one_table_count_their_own_rows(tmp_path):
    rng = np.random.default_rng(1)
    lines = ["device,time,value"]
    for i in range(60):
        lines.append(f"steady,{i},{10 + rng.normal(0, 0.1)}")
        lines.append(f"odd,{i + 0.5},{(10 if i < 30 else -14) + rng.normal(0, 0.1)}")
    steady, odd = read_series(written(tmp_path, "\n".join(lines)))
    assert (steady.device, len(steady.values), steady.times[:2]) == ("steady", 60, [0, 1])
    (change,) = drift_document([steady, odd])["changes"]
    assert (change["device"], change["onset_index"], change["onset_time"]) == ("odd", 30, 30.5)
    assert (change["direction"], change["size_percent"]) == ("down", None)


LATENCIES = [
    ("", "is empty"),
    ("\n\n", "is empty"),
    ("name,a\nx,1\n", "line 1: the header is 'name,a', it must be device,<measurement>,…"),
    ("x,1,2\ny,1,2\n", "line 1: the header"),
    ("device\nx\n", "line 1: the header"),
    ("device;a\nx;1\n", "line 1: the header"),
    ("device,a,a\nx,1,2\n", "line 1: column 3 repeats the name 'a'"),
    ("device,a,\nx,1,2\n", "line 1: column 3 has no name"),
    ("device,a\n", "line 1: there is no device"),
    ("device,a\nx,\n", "no device has a number"),
    ("device,a\nx,1\ny,pi5\n", "'pi5', it must be a positive number; name a column of words as a"),
    ("device,a\nx,1\ny,0\n", "line 3: column 'a' is '0', it must be a positive number"),
    ("device,a\nx,-1\n", "line 2: column 'a' is '-1'"),
    ("device,a\nx,fast\n", "line 2: column 'a' is 'fast'"),
    ("device,a\nx,nan\n", "line 2: column 'a' is 'nan'"),
    ("device,a\nx,inf\n", "line 2: column 'a' is 'inf'"),
    ("device,a\nx,1_0\n", "line 2: column 'a' is '1_0'"),
    ("device,a\nx,1\nx,2\n", "line 3: device 'x' was there before, in line 2"),
    ("device,a\n,1\n", "line 2: column device is empty"),
    ("device,a\nx,1,2\n", "line 2: there are 3 columns where the header has 2"),
    ("device,a,b\nx,1\n", "line 2: there are 2 columns where the header has 3"),
    ('device,a\n"x,1\n', "this is not CSV"),
    ("device,a\nx,\x1b[31m\n", r"column 'a' is '\x1b[31m'"),
    ("device,a\nx," + "9" * 50 + "z\n", "99…'"),
]

SERIES = [
    ("", "is empty"),
    ("1,2\n2,3\n", "line 1: the header is '1,2', it must be time,value or device,time,value"),
    ("time,value,more\n1,2,3\n", "line 1: the header"),
    ("time,value\n", "line 1: there is no value"),
    ("time,value\nnoon,2\n", "line 2: column time is 'noon', it must be ISO 8601 or a number"),
    ("time,value\nnan,2\n", "line 2: column time is 'nan'"),
    ("time,value\n1,two\n", "line 2: column 'value' is 'two', it must be a number"),
    ("time,value\n1,\n", "line 2: column 'value' is empty, it must be a number"),
    ("time,value\n1,inf\n", "line 2: column 'value' is 'inf'"),
    ("time,value\n1,2\n1,2,3\n", "line 3: there are 3 columns where the header has 2"),
    ("time,value\n2,1\n1,1\n", "line 3: column time goes back to '1'; sort the rows by time"),
    ("time,value\n2026-01-02,1\n2026-01-01,1\n", "line 3: column time goes back"),
    ("time,value\n1,1\n2026-01-01,1\n", "changes from numbers to local times"),
    ("device,time,value\n,1,1\n", "line 2: column device is empty"),
    ("device,time,value\na,1,1\nb,2026-01-01,1\n", "line 3: column time changes from numbers to"),
]

FLEET = [
    ("time,value\n1,2\n", "line 1: the header is 'time,value', it must be device,time,value"),
    ("device,time,value\na,1,1\nb,1,0\n", "line 3: column 'value' is '0', it must be a positive"),
]


def read_fleet(path):
    """Read the series of one fleet."""
    return read_series(path, fleet=True)


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [(read_latencies, *case) for case in LATENCIES]
    + [(read_series, *case) for case in SERIES]
    + [(read_fleet, *case) for case in FLEET],
)
def test_a_bad_table_gives_one_sentence_that_says_where(tmp_path, read, text, words):
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(path))
    assert "\n" not in message
    assert message.isprintable()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ValueError, match=r"cannot be read: (No such file|Is a directory)"):
            read_latencies(path)
    binary = tmp_path / "picture.csv"
    binary.write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_series(binary)


def test_times_of_one_instant_in_two_zones_may_follow_each_other(tmp_path):
    path = written(tmp_path, "time,value\n2026-01-01T12:00:00+02:00,1\n2026-01-01T10:30:00Z,1\n")
    assert read_series(path)[0].times == ["2026-01-01T12:00:00+02:00", "2026-01-01T10:30:00Z"]
