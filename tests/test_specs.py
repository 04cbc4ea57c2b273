"""The little language of settings: what it reads, what it refuses, and that it shows what it
read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Optional

import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import Call, arguments_of, build, parse_call, read_options


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("token", Call("token")),
        ("whole-word", Call("whole-word")),
        (" linear( 0.30,0.15 ) ", Call("linear", (0.3, 0.15))),
        ("span(p=0.2, max_words=10)", Call("span", (), {"p": 0.2, "max_words": 10})),
        (
            "then(linear-decay(0.15), 0.5, 0.1)",
            Call("then", (Call("linear-decay", (0.15,)), 0.5, 0.1)),
        ),
        (
            "layer('my-layer', on=True, off=None)",
            Call("layer", ("my-layer",), {"on": True, "off": None}),
        ),
        ('layer("it\'s a-b", -1, 1e-3)', Call("layer", ("it's a-b", -1, 1e-3))),
        ("m(shares=(1, [2, 3]))", Call("m", (), {"shares": (1, (2, 3))})),
        (
            "m(names=(job, city), one=(job,))",
            Call("m", (), {"names": (Call("job"), Call("city")), "one": (Call("job"),)}),
        ),
        ("f()", Call("f")),
    ],
)
def test_reads(text: str, call: Call) -> None:
    assert parse_call(text) == call
    assert parse_call(str(call)) == call


def _half(x: float, *, upside_down: bool = False) -> float:
    if x < 0:
        raise TypeError("x is below zero")
    return -x / 2 if upside_down else x / 2


def test_builds_with_clear_errors() -> None:
    table = {"half": _half}
    assert build("number", "half(3)", table) == 1.5
    assert build("number", Call("half", (3,), {"upside_down": True}), table) == -1.5
    for spec, match in [
        ("halve(3)", "unknown number 'halve'; allowed: half; did you mean 'half'"),
        ("half()", "missing a required argument: 'x'; allowed: half"),
        ("half(1, side=2)", "unexpected keyword argument 'side'"),
        ("half('a')", r"number half\('a'\): x .*; got 'a'; allowed: a number"),
        ("half(a)", r"number half\(a\): x .*; got 'a'; allowed: a number"),
        ("half(1, upside_down=no)", r"upside_down .*; got 'no'; allowed: True or False"),
        ("half([1])", r"x .*; got \(1,\); allowed: a number"),
        ("half(True)", "got True"),
        ("half(None)", "got None"),
        ("half(-1)", "an argument of the wrong type: x is below zero"),
    ]:
        with pytest.raises(MaskwiseError, match=match):
            build("number", spec, table)


def test_names_with_digits_before_a_hyphen_stand_inside_calls() -> None:
    assert (
        str(parse_call("mixture(token, t5-span(mean_span=2.0))"))
        == "mixture(token, t5-span(mean_span=2.0))"
    )
    assert parse_call("f(-1, 2)").args == (-1, 2)


def _tagger(*, model: str | None = None, fast: bool = False) -> str | None:
    return model


def _weighed(layer: str, groups: int = 2, weigh: Callable[..., float] = _half) -> None: ...


def test_functions_are_shown_by_name() -> None:
    assert arguments_of(_weighed) == "layer, groups=2, weigh=_half"


def test_a_bare_word_is_text_where_text_is_wanted() -> None:
    for spec in ("pos(model=en_core_web-sm)", 'pos(model="en_core_web-sm")'):
        assert build("annotator", spec, {"pos": _tagger}) == "en_core_web-sm"


def test_options_take_whole_numbers_for_numbers_and_name_what_they_take():
    def reader(
        spec: str, penalty: float | None = None, patterns: bool = False, rows: int | None = None
    ) -> None:
        """A reader of options."""

    read = lambda spec: read_options(spec, reader, kind="task", example="rows=3")[1]  # noqa: E731
    assert read("mine.jsonl(penalty=1, patterns=true)") == {"penalty": 1, "patterns": True}
    for spec, takes in (
        ("penalty='x'", "a number"),
        ("patterns=2", "True or False"),
        ("rows=1.5", "a whole number"),
    ):
        with pytest.raises(MaskwiseError, match=f"allowed: {takes}$"):
            read(f"mine.jsonl({spec})")


Mode = Literal["word", "token", 3]


@dataclass(frozen=True)
class Plug:
    """Parameters with the annotations that plug-ins may have."""

    mode: Mode = "token"
    keep: Optional[int] = None  # noqa: UP045
    share: str | float = 0.0
    names: tuple[str, ...] = ()
    exact: bool | None = None
    flag: bool | Literal["auto"] = False
    inner: Callable[[], float] | None = None
    call: str | Call = ""
    other: NotHere = None  # type: ignore[name-defined]  # noqa: F821


def _bare(one=None, **more) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    return {"one": one} | more


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("mode=word", "word"),
        ("mode='word'", "word"),
        ("mode=3", 3),
        ("keep=None", None),
        ("keep=2", 2),
        ("share=a_b-c", "a_b-c"),
        ("share=0.5", 0.5),
        ("names=(job, a_b)", ("job", "a_b")),
        ("exact=true", True),
        ("flag=False", False),
        ("flag=false", False),
        ("flag=auto", "auto"),
        ("inner=then(1)", Call("then", (1,))),
        ("inner=then", Call("then")),
        ("call=token", Call("token")),
        ("other=token", "token"),
        ("one=token", "token"),
        ("one='false'", "false"),
        ("one=false", False),
        ("one=span(p=0.2)", Call("span", (), {"p": 0.2})),
        ("one=(a, b(1))", ("a", Call("b", (1,)))),
        ("two=token", "token"),
    ],
)
def test_a_word_is_a_text_unless_a_member_is_asked_for(written: str, value: object) -> None:
    name = written.partition("=")[0]
    made = build("plug", f"plug({written})", {"plug": Plug if hasattr(Plug, name) else _bare})
    found = vars(made)[name] if isinstance(made, Plug) else made[name]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("written", "got", "allowed"),
    [
        ("mode=wrod", "'wrod'", ["word", "token", "3"]),
        ("mode=3.0", "3.0", ["word", "token", "3"]),
        ("keep=2.5", "2.5", ["a whole number"]),
        ("keep=many", "'many'", ["a whole number"]),
        ("share=None", "None", ["a text", "a number"]),
        ("share=True", "True", ["a text", "a number"]),
        ("flag=no", "'no'", ["True or False", "auto"]),
    ],
)
def test_types_are_checked_in_unions_and_literals(
    written: str, got: str, allowed: list[str]
) -> None:
    with pytest.raises(MaskwiseError) as caught:
        build("plug", f"plug({written})", {"plug": Plug})
    assert caught.value.got == got and written.partition("=")[0] in caught.value.what
    for each in allowed:
        assert each in str(caught.value.allowed)
