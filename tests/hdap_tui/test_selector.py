"""The language that names devices: what it means, and what it says about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdap_tui.config import load
from hdap_tui.config.expression import (
    AllOf,
    AnyOf,
    Compared,
    Expression,
    Named,
    Not,
    quote,
)
from hdap_tui.config.fields import FIELDS
from hdap_tui.config.patterns import matcher
from hdap_tui.config.selector import SelectorError, check, parse
from hdap_tui.context import Context
from hdap_tui.errors import SettingsError
from hdap_tui.store import devices as table
from hdap_tui.store import facts

FLEET: dict[str, dict[str, object]] = {
    "edge-01": {"tag": ("orin", "hall-a"), "state": "ok", "latency": 4.5, "port": 22},
    "edge-02": {
        "tag": ("orin",), "state": "off", "error": "timeout", "latency": 12.0, "port": 2201,
    },
    "edge-03": {"tag": ("nano", "Hall-B"), "state": "failed", "port": 2202, "alert": "firing"},
    "gate": {
        "tag": (), "state": "ok", "vnni": True, "python": "3.11.7", "onnxruntime": "1.20.0",
        "cpu_model": "Cortex-A76 r4p1", "memory_mb": 8000, "providers": ["CPU", "CUDA"],
        "cluster": ("A", "0"),
    },
    "not": {"tag": (), "state": "ok", "vnni": False, "python": "3.8", "onnxruntime": "1.9.1"},
}  # fmt: skip


def chosen(text: str) -> str:
    expression = parse(text)
    return " ".join(
        name for name, record in FLEET.items() if expression.matches({"name": name, **record})
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "edge-01 edge-02 edge-03 gate not"),
        ("gate,edge-01", "edge-01 gate"),
        ("gate edge-01", "edge-01 gate"),
        (" gate ,, edge-01, ", "edge-01 gate"),
        ("EDGE-01", "edge-01"),
        ("edge-*", "edge-01 edge-02 edge-03"),
        ("edge-[01:02]", "edge-01 edge-02"),
        ("edge-[01,03]", "edge-01 edge-03"),
        ("*-[01:02]", "edge-01 edge-02"),
        ("edge-0[12]", "edge-01 edge-02"),
        ("edge-0[!12]", "edge-03"),
        ("????", "gate"),
        ('"not"', "not"),
        ("edge-* !edge-02", "edge-01 edge-03"),
        ("!edge-* !gate", "not"),
        ("!(edge-* gate)", "not"),
        ("tag=orin", "edge-01 edge-02"),
        ("tag=hall-*", "edge-01 edge-03"),
        ("tag=orin gate", "edge-01 edge-02 gate"),
        ("tag!=orin", "edge-03 gate not"),
        ('tag=""', "gate not"),
        ("tag=*", "edge-01 edge-02 edge-03"),
        ("tag=orin and not state=off", "edge-01"),
        ("tag=orin and state!=off", "edge-01"),
        ("TAG=ORIN AND NOT STATE=OFF", "edge-01"),
        ("state=off or state=failed", "edge-02 edge-03"),
        ("gate or edge-* and state=ok", "edge-01 gate"),
        ("(gate or edge-*) and state=ok", "edge-01 gate"),
        ("gate, edge-01, edge-02 and state=ok", "edge-01 gate"),
        ("not edge-01, gate", "edge-02 edge-03 not"),
        ("not not gate", "gate"),
        ("alert=*", "edge-03"),
        ("error=timeout", "edge-02"),
        ("latency > 5", "edge-02"),
        ("latency>=4.5 and latency<12", "edge-01"),
        ("not latency>5", "edge-01 edge-03 gate not"),
        ("port=22", "edge-01"),
        ("port=22*", "edge-01 edge-02 edge-03"),
        ("port==2201", "edge-02"),
        ("memory_mb=8e3", "gate"),
        ("vnni=yes", "gate"),
        ("vnni=false", "not"),
        ("vnni=*", "gate not"),
        ('vnni=""', "edge-01 edge-02 edge-03"),
        ("onnxruntime<1.20", "not"),
        ("onnxruntime>=1.20", "gate"),
        ("python<3.9", "not"),
        ("python=3.11*", "gate"),
        ('cpu_model="cortex-a76 *"', "gate"),
        ("cpu_model='Cortex-A76 r4p1'", "gate"),
        ("providers=cuda", "gate"),
        ("cluster=a", "gate"),
        ("cluster=0", "gate"),
    ],
)  # fmt: skip
def test_an_expression_means_what_it_says(text: str, names: str) -> None:
    assert chosen(text) == names


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stat=off", 'character 1: there is no field "stat"; did you mean "state"?'),
        ("edge-* and tgs=a", 'character 12: there is no field "tgs"; did you mean "tag"?'),
        ("tag=orin and", 'character 13: a name, a field or a bracket is missing after "and".'),
        ("tag=orin and or gate", "character 14: a name, a field or a bracket is missing"),
        ("tag=", 'character 5: "tag=" needs a value.'),
        ("tag= and gate", 'character 6: "tag=" needs a value.'),
        ("(gate", "character 1: the bracket ( is not closed."),
        ("gate)", 'character 5: ")" closes nothing; take it out.'),
        ("()", 'character 2: a name, a field or a bracket is missing after "(".'),
        ('tag="a', 'character 5: the quotation mark " is not closed.'),
        ("latency>fast", 'character 9: latency is compared with a number, and "fast" is none.'),
        ("latency>nan", 'character 9: latency is compared with a number, and "nan" is none.'),
        ("cores=many", 'character 7: cores is compared with a number, and "many" is none.'),
        ("state<3", "character 7: state is no number; compare it with = or !=."),
        ("python<old", "character 8: python is compared with a version such as 1.20"),
        ("vnni=maybe", 'character 6: vnni is yes or no, not "maybe".'),
        ("gate not edge-01", 'character 6: write "and not" or "or not", or ! in front'),
        ("edge-[9:1]", 'character 1: "edge-[9:1]" counts backward; write [1:9].'),
        ("tag=a[1:999999]", 'character 5: "a[1:999999]" stands for more than 100000 names.'),
        ("!!gate", "character 2: a name, a field or a bracket is missing"),
        ("=5", "character 1: a name, a field or a bracket is missing"),
        ('""', "character 1: a name cannot be empty."),
        ("(" * 5000, "character 62: it nests deeper than 60 levels."),
        ("not " * 5000, "character 245: it nests deeper than 60 levels."),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, sentence: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"selector, {sentence}")


@pytest.mark.parametrize(
    "text", ["tag=", "a and", "not", "(a", "tag=a or", 'tag="x', "latency>", "!", "a and not ("]
)
def test_what_going_on_could_mend_is_unfinished(text: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert caught.value.unfinished


@pytest.mark.parametrize("text", ["stat=off", "a)", "latency>x", "a not b", "a and or"])
def test_what_is_wrong_however_it_goes_on_is_not_unfinished(text: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert not caught.value.unfinished


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("edge-1x", 'no device is called "edge-1x"; did you mean "edge-1"'),
        ("zz*", 'no device is called "zz*"; known: "edge-1", "edge-2", "gate".'),
        ("edge-1, gat", 'no device is called "gat"; did you mean "gate"?'),
        ("kitchen", 'no device is called "kitchen"; did you mean "tag=kitchen"?'),
        ("tag=kitchn", 'no device has the tag "kitchn"; did you mean "kitchen"?'),
        ("not tag=kitchn", 'no device has the tag "kitchn"'),
        ("group=rack", 'no device has the group "rack"; there is none.'),
        ("state=offf", 'no state is called "offf"; did you mean "off"?'),
        ("edge-*,\x1b[2J", 'no device is called "[2J"; '),
    ],
)
def test_what_nobody_has_is_a_mistake(text: str, sentence: str) -> None:
    known = {
        "name": frozenset({"edge-1", "edge-2", "gate"}),
        "tag": frozenset({"kitchen"}),
        "group": frozenset[str](),
    }
    with pytest.raises(SettingsError) as caught:
        check(parse(text), known)
    assert str(caught.value).startswith(sentence)


def understood(text: str) -> Expression | SelectorError:
    try:
        return parse(text)
    except SelectorError as error:
        return error


WORDS = st.one_of(
    st.sampled_from(["edge-01", "edge-*", "edge-[01:12]", "not", "AND", "a!b", "x=y", "a[b", ""]),
    st.text(max_size=12),
)


def sensible(leaf: Expression) -> bool:
    word = leaf.value if isinstance(leaf, Compared) else leaf.word  # type: ignore[attr-defined]
    if isinstance(leaf, Named) and not word:
        return False
    try:
        matcher(word)
    except ValueError:
        return False
    return not (isinstance(leaf, Compared) and leaf.problem)


LEAVES = st.one_of(
    st.builds(Named, WORDS),
    st.builds(
        Compared,
        st.sampled_from(sorted(FIELDS)),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.one_of(WORDS, st.sampled_from(["5", "1.20", "yes", "*"])),
    ),
).filter(sensible)


def joined(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(inner, min_size=2, max_size=4).map(tuple)
    return st.one_of(st.builds(Not, inner), st.builds(AllOf, several), st.builds(AnyOf, several))


@given(st.recursive(LEAVES, joined, max_leaves=8))
def test_what_is_written_is_read_again_as_the_same(expression: Expression) -> None:
    text = str(expression)
    assert parse(text) == expression
    assert str(parse(text)) == text


@given(st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(
        ["and", "or", "not", "(", ")", "!", ",", " ", "=", "<", '"', "'", "[", "]", "[1:", "tag",
         "latency", "state", "edge", "*", "5", "\\", "\n"]), max_size=14).map("".join),
))  # fmt: skip
def test_any_text_is_understood_or_refused_in_one_way(text: str) -> None:
    found = understood(text)
    if isinstance(found, SelectorError):
        assert 0 <= found.position <= len(text)
        assert str(found).endswith((".", "?", "…"))
        assert "\n" not in str(found)
    else:
        assert isinstance(found.matches({"name": "edge", "tag": ("a",), "latency": 5.0}), bool)
        assert parse(str(found)) == found


@given(st.text(min_size=1, max_size=40))
def test_a_quoted_name_is_that_name(name: str) -> None:
    found = understood(quote(name))
    wrong_range = isinstance(found, SelectorError) and found.problem.startswith('"')
    assert found == Named(name) or wrong_range


def test_ten_thousand_marked_devices_are_found_at_once() -> None:
    names = [f"edge-{number:05d}" for number in range(10_000)]
    expression = parse(",".join(names[::2]))
    check(expression, {"name": frozenset(names)})
    assert sum(expression.matches({"name": name}) for name in names) == 5000


# With settings and a store


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.delenv("HDAP_STATE", raising=False)
    entries = (("a-1", []), ("a-2", ["left"]), ("b-1", ["left"]))
    text = '[fleet]\nstate = "state"\n' + "".join(
        f'[[devices]]\nname = "{name}"\nhost = "10.0.0.{number}"\ntags = {tags}\n'
        for number, (name, tags) in enumerate(entries)
    )
    file = tmp_path / "fleet.toml"
    file.write_text(text.replace("'", '"'))
    return Context(settings=load(file))


def picked(context: Context, expression: str | None) -> str:
    return " ".join(device.name for device in context.select(expression))


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        (None, "a-1 a-2 b-1"),
        (" ", "a-1 a-2 b-1"),
        ("b-1,a-1", "a-1 b-1"),
        ("a-*", "a-1 a-2"),
        ("tag=left", "a-2 b-1"),
        ("tag=left a-1", "a-1 a-2 b-1"),
        ("host=10.0.0.* and not tag=left", "a-1"),
    ],
)
def test_settings_alone_answer_what_only_they_know(
    context: Context, expression: str | None, names: str
) -> None:
    assert picked(context, expression) == names
    assert not context.settings.database.exists()


def test_the_store_answers_how_devices_are(context: Context) -> None:
    table.sync(context.store, context.settings.devices[:2])
    table.set_state(context.store, "a-1", "off", "timeout")
    try:
        assert picked(context, "state=off") == "a-1"
        assert picked(context, "error=time* and a-*") == "a-1"
        assert picked(context, "state=unknown") == "a-2 b-1"
        with pytest.raises(SettingsError, match="no device matches state=failed"):
            context.select("state=failed")
    finally:
        context.close()


def test_the_facts_answer_what_devices_are(context: Context) -> None:
    table.sync(context.store, context.settings.devices)
    facts.save(context.store, "a-1", {"vnni": True, "onnxruntime": "1.20.1", "isa": ["avx2"]})
    facts.save(context.store, "b-1", {"vnni": False, "onnxruntime": "1.9.0"})
    table.set_state(context.store, "b-1", "off", "timeout")
    try:
        assert picked(context, "vnni=yes") == "a-1"
        assert picked(context, "onnxruntime<1.20") == "b-1"
        assert picked(context, "isa=avx*, state=off") == "a-1 b-1"
        assert picked(context, 'onnxruntime="" and tag=left') == "a-2"
        assert picked(context, "state=off and not vnni=yes") == "b-1"
    finally:
        context.close()
