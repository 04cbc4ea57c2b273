"""Names with arguments, written as people write them: ``span(p=0.2, max_words=10)``, ``linear(0.30,
0.15)``, ``0.15``.

One small language for recipes, the command line and Python strings. Only literals are read; nothing
is evaluated.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_args, get_origin, get_type_hints

from maskwise.errors import MaskwiseError, finite_number, unknown_name, whole_number

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A name, its positional and its keyword arguments (numbers, strings, booleans, None, or
    further calls). ``written`` is how somebody wrote it, for errors to quote."""

    name: str
    args: tuple[object, ...] = ()
    kwargs: dict[str, object] = field(default_factory=dict)
    written: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        inside = [_show(a) for a in self.args] + [
            f"{key}={_show(value)}" for key, value in self.kwargs.items()
        ]
        return f"{self.name}({', '.join(inside)})" if inside else self.name


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_show, value))}{',' if len(value) == 1 else ''})"
    return str(value) if isinstance(value, Call) else repr(value)


# A quoted string (left alone), or a hyphen before a letter and behind one or a digit: part of a
# name, no minus.
_QUOTED_OR_HYPHEN = re.compile(
    r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?<=[A-Za-z0-9])-(?=[A-Za-z])"""
)


def parse_call(text: str) -> Call:
    """Read ``name`` or ``name(1, key="x", other(2))``. Hyphens in names are allowed.

    Raises:
        MaskwiseError: anything else.
    """
    text = text.strip()
    try:
        head, bracket, rest = text.partition("(")
        rest = _QUOTED_OR_HYPHEN.sub(lambda found: found[1] or "_", rest)
        return _call(ast.parse(f"{head.replace('-', '_')}{bracket}{rest}", mode="eval").body, text)
    except MaskwiseError:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        examples = 'linear(0.30, 0.15), span(p=0.2) or pos(model="en_core_web_sm")'
        allowed = f"a name, or a name with arguments such as {examples}"
        raise MaskwiseError("cannot read this setting", got=repr(text), allowed=allowed) from None


def _call(node: ast.expr, text: str) -> Call:
    written = ast.get_source_segment(text, node) or ""  # parsed was a text of the same places
    if isinstance(node, ast.Name):
        return Call(node.id.replace("_", "-"), written=written)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and all(k.arg for k in node.keywords)
    ):
        kwargs: dict[str, object] = {}
        for keyword in node.keywords:
            name = str(keyword.arg)
            if name in kwargs:
                raise MaskwiseError(
                    f"{text}: an argument is given twice", got=name, do="say it once"
                )
            kwargs[name] = _value(keyword.value, text)
        args = tuple(_value(argument, text) for argument in node.args)
        return Call(node.func.id.replace("_", "-"), args, kwargs, written)
    raise ValueError


def _value(node: ast.expr, text: str) -> object:
    if isinstance(node, ast.Name | ast.Call):
        return _call(node, text)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item, text) for item in node.elts)
    return ast.literal_eval(node)


_TEXT = ("str", "str | None", str)
"""Annotations of arguments that are text."""
_WHOLE = ("int", "int | None", int)
_NUMBER = ("float", "float | None", float)
"""Annotations of arguments that are numbers."""


def build(kind: str, spec: str | Call, table: Mapping[str, Callable[..., T]]) -> T:
    """Make the member of ``table`` that ``spec`` names, with its arguments.

    Raises:
        MaskwiseError: an unknown name (with the nearest one), or arguments that the member does not
            take, by name, number or type.
    """
    if not isinstance(spec, str | Call):
        do = (
            f"give an object: {spec.__name__}()"
            if isinstance(spec, type)
            else "give a name or an object"
        )
        allowed = f"a name such as {next(iter(table))!r}, or an object"
        raise MaskwiseError(f"this is no {kind}", got=repr(spec), allowed=allowed, do=do)
    call = parse_call(spec) if isinstance(spec, str) else spec
    written = call.written or str(call)
    if call.name not in table:
        raise unknown_name(kind, written.partition("(")[0].strip(), table)
    maker = table[call.name]
    signature = inspect.signature(maker)
    try:
        bound = signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        allowed = f"{call.name}({arguments_of(maker)})"
        raise MaskwiseError(
            f"{kind} {written}: {error}", allowed=allowed, do=_named(call, maker)
        ) from None
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        # a bare word where text is wanted is that text
        if isinstance(value, Call) and parameter.annotation in _TEXT:
            bound.arguments[name] = value.written or str(value)
        for each in value if parameter.kind is parameter.VAR_POSITIONAL else (value,):
            _require_type(f"{kind} {written}: {name}", each, parameter.annotation)
    try:
        return maker(*bound.args, **bound.kwargs)
    except TypeError as error:
        raise MaskwiseError(f"{kind} {written}: an argument of the wrong type: {error}") from error


def _require_type(what: str, value: object, annotation: object) -> None:
    """Refuse an argument that is no number, or no truth value, where its annotation asks for
    one.
    """
    if value is None and "None" in str(annotation):
        return
    if isinstance(value, Call):  # a bare word
        value = str(value)
    if annotation in _WHOLE:
        whole_number(what, value)
    elif annotation in _NUMBER:
        finite_number(what, value)
    elif annotation == "bool" and isinstance(value, str):
        raise MaskwiseError(f"{what} is not valid", got=repr(value), allowed="True or False")


def arguments_of(maker: Callable[..., object], *, without: Collection[str] = ()) -> str:
    """What a member of a table takes, as one writes it: ``layer, groups=2, units='word'``; but for
    some names.
    """
    return ", ".join(
        name
        if p.default is p.empty
        else f"{name}={getattr(p.default, '__name__', repr(p.default))}"
        for name, p in inspect.signature(maker).parameters.items()
        if name not in without
    )


def _named(call: Call, maker: Callable[..., object]) -> str | None:
    """The same with the argument's name, for members that take one by its name only."""
    named = [
        name for name, p in inspect.signature(maker).parameters.items() if p.kind is p.KEYWORD_ONLY
    ]
    if len(call.args) != 1 or call.kwargs or not named:
        return None
    value = call.args[0]
    text = value.written if isinstance(value, Call) else str(value)
    return f'did you mean {call.name}({named[0]}="{text}")?'


def split_calls(text: str) -> list[str]:
    """``"token,span(p=0.2, max_words=5)"`` to its members: commas inside brackets do not part."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def split_options(spec: str) -> tuple[str, str | None]:
    """A name and the text of the options in brackets behind it; None where it has none.

    The name may be a path with brackets of its own, as browsers name second downloads: of several
    ways to split, the first whose path exists is taken.

    >>> split_options("ud-pos(train_rows=300)"), split_options("ud-pos")
    (('ud-pos', 'train_rows=300'), ('ud-pos', None))
    """
    if not spec.endswith(")") or Path(spec).expanduser().exists():
        return spec, None
    places = [place for place, letter in enumerate(spec) if letter == "(" and place > 0]
    if not places:
        return spec, None
    existing = (place for place in places if Path(spec[:place]).expanduser().exists())
    place = next(existing, places[0])
    return spec[:place], spec[place + 1 : -1]


def with_options(spec: str, **options: object) -> str:
    """A spec with further options behind those that it has.

    >>> with_options("ud-pos(label='tags')", train_rows=300)
    "ud-pos(label='tags', train_rows=300)"
    """
    name, written = split_options(spec)
    parts = [written] if written else []
    parts += [f"{key}={value!r}" for key, value in options.items()]
    return f"{name}({', '.join(parts)})"


def read_options(
    spec: str, reader: Callable[..., object], *, kind: str, example: str, also: Collection[str] = ()
) -> tuple[str, dict[str, object]]:
    """``"ud-pos(train_rows=300)"`` as a name and the options of ``reader``, a function of that
    name. The name may be a path, and a file that is called ``a(1).csv`` has no options.

    Args:
        kind: what the name stands for, and ``example`` one option of it: for errors to say.
        also: names of further options, whose types the reader checks itself.

    Raises:
        MaskwiseError: options that are not name=value, that ``reader`` does not take, or of another
            type.
    """
    name, written = split_options(spec)
    if written is None:
        return spec, {}
    parameters = list(inspect.signature(reader).parameters.values())[1:]
    allowed = [
        *(each.name for each in parameters if each.kind is not each.VAR_KEYWORD),
        *sorted(also),
    ]
    try:
        call = parse_call(f"options({written})")
    except MaskwiseError:
        call = Call("options", (written,))
    if call.args:
        what, takes = (
            f"cannot read the arguments of {kind} {spec!r}",
            f"name=value, of {', '.join(allowed)}",
        )
        raise MaskwiseError(what, allowed=takes, do=f"for example ({example})")
    for option in call.kwargs:
        if option not in allowed:
            raise unknown_name(f"argument of {kind} {name!r}", option, allowed)
    # A bare word, such as kind=similarity, is read as a call; here it is a text.
    options = {
        key: value.written if isinstance(value, Call) else value
        for key, value in call.kwargs.items()
    }
    for option, kind_of_value in get_type_hints(reader).items():
        types = tuple(
            get_origin(each) or each for each in get_args(kind_of_value) or (kind_of_value,)
        )
        if bool in types and isinstance(said := options.get(option), str):
            options[option] = {"true": True, "false": False}.get(said, said)
        accepted = (*types, int) if float in types else types
        if option in options and not isinstance(options[option], accepted):
            takes = " or ".join(_TYPES[each] for each in types if each in _TYPES)
            raise MaskwiseError(f"{option} of {kind} {name!r}", got=options[option], allowed=takes)
    return name, options
