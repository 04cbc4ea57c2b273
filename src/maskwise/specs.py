"""Names with arguments, as people write them: ``span(p=0.2, max_words=10)``, ``linear(0.3, 0.1)``.

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
from typing import TypeVar

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
        inside = [_show(value) for value in self.args]
        inside += [f"{key}={_show(value)}" for key, value in self.kwargs.items()]
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
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError
    kwargs: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:  # **x
            raise ValueError
        if keyword.arg in kwargs:
            raise MaskwiseError(f"{text}: an argument is given twice", got=keyword.arg)
        kwargs[keyword.arg] = _value(keyword.value, text)
    args = tuple(_value(argument, text) for argument in node.args)
    return Call(node.func.id.replace("_", "-"), args, kwargs, written)


def _value(node: ast.expr, text: str) -> object:
    if isinstance(node, ast.Name | ast.Call):
        return _call(node, text)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item, text) for item in node.elts)
    return ast.literal_eval(node)


def build(kind: str, spec: str | Call, table: Mapping[str, Callable[..., T]]) -> T:
    """Make the member of ``table`` that ``spec`` names, with its arguments.

    Raises:
        MaskwiseError: an unknown name (with the nearest one), or arguments that the member does not
            take, by name, number or type.
    """
    if not isinstance(spec, str | Call):
        allowed = f"a name such as {next(iter(table))!r}, or an object"
        raise MaskwiseError(f"not a {kind}", got=repr(spec), allowed=allowed)
    call = parse_call(spec) if isinstance(spec, str) else spec
    written = call.written or str(call)
    if call.name not in table:
        raise unknown_name(kind, written.partition("(")[0].strip(), table)
    what = f"{kind} {written}"
    maker = table[call.name]
    signature = inspect.signature(maker)
    try:
        bound = signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        allowed = f"{call.name}({arguments_of(maker)})"
        raise MaskwiseError(f"{what}: {error}", allowed=allowed) from None
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            fitting = tuple(_fitting(f"{what}: {name}", v, parameter.annotation) for v in value)
            bound.arguments[name] = fitting
        else:
            bound.arguments[name] = _fitting(f"{what}: {name}", value, parameter.annotation)
    try:
        return maker(*bound.args, **bound.kwargs)
    except TypeError as error:
        raise MaskwiseError(f"{what}: an argument of the wrong type: {error}") from error


def _fitting(what: str, value: object, annotation: object) -> object:
    """Read a bare word as text or truth value where that is wanted; check numbers."""
    wanted, *others = str(getattr(annotation, "__name__", annotation)).split(" | ")
    if others not in ([], ["None"]) or (value is None and others):
        return value
    if isinstance(value, Call) and wanted in ("str", "bool", "int", "float"):
        value = value.written or str(value)
    if wanted == "bool" and isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    if wanted == "int":
        whole_number(what, value)
    elif wanted == "float":
        finite_number(what, value)
    elif wanted == "bool" and not isinstance(value, bool):
        raise MaskwiseError(f"{what} is not valid", got=repr(value), allowed="True or False")
    elif wanted == "str" and not isinstance(value, str):
        raise MaskwiseError(f"{what} is not valid", got=repr(value), allowed="a text")
    return value


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
    """Split ``"ud-pos(train_rows=300)"`` into a name and checked options of ``reader``.

    The name may be a path; a file called ``a(1).csv`` has no options.

    Args:
        reader: a function of the name and of options.
        kind, example: what the name stands for, and an option of it, for errors.
        also: further options, whose types the reader checks itself.

    Raises:
        MaskwiseError: options that are not name=value, that ``reader`` does not take, or of another
            type.
    """
    name, written = split_options(spec)
    if written is None:
        return spec, {}
    parameters = list(inspect.signature(reader).parameters.values())[1:]
    annotations = {p.name: p.annotation for p in parameters if p.kind is not p.VAR_KEYWORD}
    annotations |= dict.fromkeys(sorted(also))
    try:
        call = parse_call(f"options({written})")
    except MaskwiseError:
        call = Call("options", (written,))
    if call.args:
        takes = f"name=value, of {', '.join(annotations)}"
        what = f"cannot read the arguments of {kind} {spec!r}"
        raise MaskwiseError(what, allowed=takes, do=f"for example ({example})")
    options = {}
    for option, value in call.kwargs.items():
        if option not in annotations:
            raise unknown_name(f"argument of {kind} {name!r}", option, annotations)
        # A bare word, such as kind=similarity, is text here.
        text = value.written if isinstance(value, Call) else value
        options[option] = _fitting(f"{option} of {kind} {name!r}", text, annotations[option])
    return name, options
