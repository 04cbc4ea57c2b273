"""Parse names with arguments, such as ``span(p=0.2, max_words=10)`` or ``linear(0.3, 0.1)``.

This syntax is the same in recipes, on the command line and in Python strings. Arguments are parsed
as literals and never evaluated. ``leaves`` flattens nested settings to dotted names.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from maskwise.base.errors import (
    MaskwiseError,
    PlugInError,
    did_you_mean,
    finite_number,
    require_known,
    unknown_name,
    whole_number,
)

T = TypeVar("T")

PREFIX = re.compile(r"[\w-]+:")
"""The prefix of a source that is not a path, such as ``bundled:``."""


@dataclass(frozen=True)
class Call:
    """A name with arguments, such as ``span(p=0.2)``.

    Attributes:
        name: the name, with hyphens.
        args: the arguments without a name: numbers, strings, booleans, None, tuples or calls.
        kwargs: the arguments with a name.
        written: the text as the user wrote it, for error messages.
    """

    name: str
    args: tuple[object, ...] = ()
    kwargs: dict[str, object] = field(default_factory=dict)
    written: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        parts = list(map(repr, self.args))
        parts += [f"{key}={value!r}" for key, value in self.kwargs.items()]
        return f"{self.name}({', '.join(parts)})" if parts else self.name

    # A tuple is printed with the repr of its items. Calls in a tuple should look like calls.
    __repr__ = __str__


# Matches a quoted string, which is not changed, or a hyphen in a name, which is replaced. A hyphen
# is in a name if a letter or digit comes before it and a letter after it. Others are minus signs.
_QUOTED_OR_HYPHEN = re.compile(
    r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?<=[A-Za-z0-9])-(?=[A-Za-z])"""
)


# Matches a quoted string, or a name of a file, a source or the like, which is not quoted. Numbers
# up to a comma, a bracket or the end are no names.
_UNQUOTED = re.compile(
    r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?<=[(,=\s])(?![-+\d.,\s]+(?:[,)]|$))[^\s(),='"]*[./:\\~][^(),='"]*"""
)

_PER_CENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def parse_call(text: str) -> Call:
    """Parse ``name`` or ``name(1, key="x", other(2))``. Names may contain hyphens.

    Raises:
        MaskwiseError: the text does not have one of these forms.
    """
    text = text.strip()
    head, bracket, rest = text.partition("(")
    head = head.replace("-", "_")
    rest = _QUOTED_OR_HYPHEN.sub(lambda found: found[1] or "_", rest)
    try:
        return _call(ast.parse(head + bracket + rest, mode="eval").body, text)
    except MaskwiseError:
        # This is also a ValueError, but it already has a good message.
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        examples = 'linear(0.30, 0.15), span(p=0.2) or pos(model="en_core_web_sm")'
        quoted = _UNQUOTED.sub(lambda found: found[1] or f"'{found[0]}'", text)
        numbers = _PER_CENT.sub(lambda found: f"{float(found[1]) / 100:g}", text)
        advice = None
        if numbers != text:
            advice = f"write shares as numbers: {numbers}"
        elif quoted != text:
            advice = f"put texts in quotes: {quoted}"
        raise MaskwiseError(
            "cannot read this setting",
            got=repr(text),
            allowed=f"a name, or a name with arguments such as {examples}",
            do=advice,
        ) from None


def _call(node: ast.expr, text: str) -> Call:
    # A hyphen was replaced by one character, so positions in the parsed text are valid in ``text``.
    written = ast.get_source_segment(text, node) or ""
    if isinstance(node, ast.Name):
        return Call(node.id.replace("_", "-"), written=written)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError
    kwargs = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            # The argument is ``**x``.
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


def find(kind: str, spec: str | Call, table: Mapping[str, T]) -> tuple[Call, T]:
    """Return the call that ``spec`` writes, and the member of the table that it names.

    Raises:
        MaskwiseError: the name is unknown, or ``spec`` is no name.
    """
    if not isinstance(spec, str | Call):
        raise MaskwiseError(
            f"this is not a {kind}",
            got=repr(spec),
            allowed=f"a name such as {next(iter(table))!r}, or an object",
        )
    call = spec if isinstance(spec, Call) else _parsed(kind, spec, table)
    if call.name not in table:
        written = call.written or str(call)
        advice = getattr(table, "gone", {}).get(call.name)
        if advice:
            raise MaskwiseError(f"there is no {kind} {call.name} any more", do=advice)
        raise unknown_name(kind, written.partition("(")[0].strip(), table)
    return call, table[call.name]


def _parsed(kind: str, spec: str, table: Mapping[str, object]) -> Call:
    """Parse a name with arguments; an error says of what kind, and suggests a known name."""
    try:
        return parse_call(spec)
    except MaskwiseError as error:
        do = error.do or did_you_mean(spec, [*table])
        raise MaskwiseError(
            f"{kind}: {error.what}", got=error.got, allowed=error.allowed, do=do
        ) from None


def build(
    kind: str,
    spec: str | Call,
    table: Mapping[str, Callable[..., T]],
    *,
    makes: type | None = None,
) -> T:
    """Look up the function that ``spec`` names, and call it with the arguments of ``spec``.

    Args:
        kind: the kind of object that the functions make, such as ``policy``, for error messages.
        spec: the name with arguments, as text or as a ``Call``.
        table: the functions, by name.
        makes: the type of the object that the function must return; None for any.

    Raises:
        MaskwiseError: the name is unknown; the function does not accept the names, the number or
            the types of the arguments; or a function of another package returns something else.
    """
    call, maker = find(kind, spec, table)
    what = f"{kind} {call.written or call}"
    bound = bind(kind, call, maker)
    if inspect.isabstract(maker):
        missing = ", ".join(sorted(getattr(maker, "__abstractmethods__", ())))
        raise MaskwiseError(f"{what}: its class is not complete", do=f"define {missing}")
    try:
        made = maker(*bound.args, **bound.kwargs)
    except TypeError as error:
        raise PlugInError(f"{what}: an argument of the wrong type: {error}") from error
    if makes is not None and not isinstance(made, makes):
        raise MaskwiseError(f"{what} is not a {kind}", got=repr(made), allowed=makes.__name__)
    return made


def bind(kind: str, call: Call, maker: Callable[..., object]) -> inspect.BoundArguments:
    """Return the arguments of a call, as the function that makes an object takes them.

    Raises:
        MaskwiseError: the function does not accept the names, the number or the types of the
            arguments.
    """
    what = f"{kind} {call.written or call}"
    try:
        signature = inspect.signature(maker)
    except ValueError as error:
        # A class whose objects are made with a model does not take one.
        raise PlugInError(f"{what}: {error.__cause__ or error}") from error
    try:
        bound = signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        example = re.search(rf"\b{re.escape(call.name)}\(.+?\)", inspect.getdoc(maker) or "")
        raise MaskwiseError(
            f"{what}: {error}",
            allowed=f"{call.name}({arguments_of(maker)})",
            do=f"for example, {example[0]}" if example else None,
        ) from None
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        which = f"{what}: {name}"
        kinds = _kinds_of(maker, parameter)
        if parameter.kind is parameter.VAR_POSITIONAL:
            value = tuple(_fitting(which, item, kinds) for item in value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            value = {key: _fitting(f"{what}: {key}", each, kinds) for key, each in value.items()}
        else:
            value = _fitting(which, value, kinds)
        bound.arguments[name] = value
    return bound


def _kinds_of(maker: Callable[..., object], parameter: inspect.Parameter) -> list[Any]:
    """Return the types that a parameter allows by its annotation.

    ``Any`` if it has no annotation, or one with a name that only type checkers know.
    """
    name, annotation = parameter.name, parameter.annotation
    if annotation is parameter.empty:
        return [Any]
    while isinstance(maker, partial):
        maker = maker.func
    homes: list[Any] = [inspect.unwrap(maker)]
    if isinstance(maker, type):
        # The annotation stands where a field is declared, or in the class with the method.
        homes = sorted(
            maker.__mro__,
            key=lambda base: (
                name not in vars(base).get("__annotations__", ()),
                "__init__" not in vars(base),
            ),
        )
    holder = SimpleNamespace(__annotations__={name: annotation})
    for home in homes:
        with suppress(Exception):
            # The annotation may be a text, which is code of the module where it stands.
            return _kinds(get_type_hints(holder, vars(sys.modules[home.__module__]))[name])
    return [Any]


def _kinds(hint: Any) -> list[Any]:
    """Return the types of which a type is a union; the type itself if it is none."""
    # Names of types: ``type Mode = …`` and ``NewType``.
    hint = getattr(hint, "__value__", getattr(hint, "__supertype__", hint))
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    return [hint if hint is not object and isinstance(hint, Hashable) else Any]


PLAIN = {bool: "True or False", str: "a text", int: "a whole number", float: "a number"}


def _fitting(what: str, value: object, kinds: list[Any]) -> object:
    """Check an argument against the types that are allowed, and return it. An unquoted word becomes
    a text or a boolean, unless it may name a member.

    If a type is allowed that is not plain, the function itself must check the argument.
    """
    value = _worded(value, kinds)
    if not all(map(_is_plain, kinds)) or any(_fits(value, kind) for kind in kinds):
        return value
    wanted = []
    names: list[str] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            names += map(str, get_args(kind))
        elif kind is not NoneType:
            wanted.append(PLAIN[kind])
    if names:
        wanted.append(", ".join(names))
    raise MaskwiseError(
        f"{what} is not valid",
        got=repr(value),
        allowed=" or ".join(wanted) or "None",
        do=did_you_mean(value, names),
    )


def _is_plain(kind: Any) -> bool:
    return get_origin(kind) is Literal or kind is NoneType or kind in PLAIN


def _fits(value: object, kind: Any) -> bool:
    """Return whether a value is of a plain type."""
    if get_origin(kind) is Literal:
        # In Python, True equals 1.
        return any(type(each) is type(value) and each == value for each in get_args(kind))
    if kind in (int, float):
        check = whole_number if kind is int else finite_number
        with suppress(MaskwiseError):
            check("", value)
            return True
        return False
    return isinstance(value, kind)


def _worded(value: object, kinds: list[Any]) -> object:
    """Replace calls that stand for unquoted words, also in lists, by texts or booleans."""
    if type(value) is tuple:
        of = [kind for listed in kinds for kind in _kinds_of_items(listed)] or [Any]
        return tuple(_worded(item, of) for item in value)
    if isinstance(value, str) and bool in kinds and {*kinds} <= {bool, NoneType}:
        return _boolean(value)
    if not isinstance(value, Call) or any(map(_may_be_member, kinds)):
        return value
    text = value.written or str(value)
    if "(" in text and str not in kinds and not all(map(_is_plain, kinds)):
        return value
    return _boolean(text) if bool in kinds or Any in kinds else text


def _boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


def _kinds_of_items(listed: Any) -> list[Any]:
    """Return the types of the items of a type such as ``tuple[str, ...]``; [] for others."""
    origin = get_origin(listed)
    if not (isinstance(origin, type) and issubclass(origin, Iterable)):
        return []
    return [kind for item in get_args(listed) if item is not ... for kind in _kinds(item)]


def _may_be_member(kind: Any) -> bool:
    """Return whether a type is a call, a class of maskwise's, such as a policy, or a function."""
    module = str(getattr(kind, "__module__", "")).partition(".")[0]
    return module == "maskwise" or Callable in (kind, get_origin(kind))


def arguments_of(maker: Callable[..., object], *, without: Collection[str] = ()) -> str:
    """Return the parameters of a function as text, such as ``layer, groups=2, units='word'``."""
    shown = []
    for name, parameter in inspect.signature(maker).parameters.items():
        # The names of further arguments are not known.
        if name in without or parameter.kind is parameter.VAR_KEYWORD:
            continue
        default = parameter.default
        if default is not parameter.empty:
            # A function is shown by its name, because its repr contains a memory address.
            value = default.__name__ if inspect.isroutine(default) else repr(default)
            name = f"{name}={value}"
        shown.append(name)
    return ", ".join(shown)


def split_calls(text: str) -> list[str]:
    """Split ``"token,span(p=0.2, max_words=5)"`` at the commas outside brackets."""
    parts = [""]
    depth = 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def split_options(spec: str) -> tuple[str, str | None]:
    """Split a spec into the name and the text in brackets, which is None if there are no brackets.

    The name may be a path with brackets, such as ``a(1).csv``. If the spec can be split at several
    brackets, the first name that exists as a path is used.

    >>> split_options("ud-pos(train_rows=300)"), split_options("ud-pos")
    (('ud-pos', 'train_rows=300'), ('ud-pos', None))
    """
    if not spec.endswith(")") or is_path(spec):
        return spec, None
    # The first character is always part of the name.
    first = place = spec.find("(", 1)
    if first < 0:
        return spec, None
    while place > 0 and not is_path(spec[:place]):
        place = spec.find("(", place + 1)
    if place < 0:
        place = first
    return spec[:place], spec[place + 1 : -1]


def is_path(name: str | Path) -> bool:
    """Return whether a user named an existing file or folder.

    Unlike the methods of ``Path``, this function accepts names that are too long for a file.

    >>> is_path("description=" + "a" * 5000)
    False
    """
    return os.path.exists(user_path(name))


def user_path(name: str | Path) -> Path:
    """Return the path that a user named. "~" and "~anna" at its beginning are home folders.

    If there is no user of this name, or a file or folder is called so, the name is taken as it is.
    Office, for example, leaves files such as "~$labels.csv".

    >>> user_path("~$labels.csv").name
    '~$labels.csv'
    """
    path = Path(name)
    if os.path.lexists(path):
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def local_name(source: str) -> str:
    """Return a source without the prefix that says where it is stored.

    A path may contain colons, too, and is returned as it is.

    >>> [local_name(source) for source in ("bundled:wikipedia", "hf:you/texts", "./a:b.txt")]
    ['wikipedia', 'you/texts', './a:b.txt']
    """
    if os.path.lexists(source) or not PREFIX.match(source):
        return source
    return source.rpartition(":")[2]


def with_options(spec: str, **options: object) -> str:
    """Give a spec options, at its end; they replace those of the same names.

    >>> with_options("ud-pos(label='tags')", train_rows=300)
    "ud-pos(label='tags', train_rows=300)"
    >>> with_options("ud-pos(test_rows=400, label='tags')", test_rows=100)
    "ud-pos(label='tags', test_rows=100)"
    """
    name, written = split_options(spec)
    parts: list[str] = []
    if written:
        call = f"f({written})"
        try:
            given = ast.parse(call, mode="eval").body
        except SyntaxError:
            # Whoever reads the spec will say what is wrong.
            given = None
        if isinstance(given, ast.Call):
            for each in (*given.args, *given.keywords):
                if getattr(each, "arg", None) not in options:
                    parts.append(ast.get_source_segment(call, each) or "")
        else:
            parts.append(written)
    parts += [f"{key}={value!r}" for key, value in options.items()]
    return f"{name}({', '.join(parts)})"


def read_options(
    spec: str, reader: Callable[..., object], *, kind: str, example: str, also: Collection[str] = ()
) -> tuple[str, dict[str, object]]:
    """Split ``"ud-pos(train_rows=300)"`` into a name and a dict of options, and check the options.

    The name may be a path. If a file ``a(1).csv`` exists, the spec ``a(1).csv`` has no options.

    Args:
        spec: the name with options.
        reader: a function whose first parameter is the name and whose others are the options.
        kind: the kind of object that the name refers to, for error messages.
        example: an example of an option, for error messages.
        also: names of further options, whose types ``reader`` checks.

    Raises:
        MaskwiseError: an option is not of the form name=value, is not a parameter of ``reader``, or
            has the wrong type.
    """
    name, written = split_options(spec)
    if written is None:
        return spec, {}
    parameters = list(inspect.signature(reader).parameters.values())[1:]
    types = {p.name: _kinds_of(reader, p) for p in parameters if p.kind is not p.VAR_KEYWORD}
    types |= {key: [Any] for key in sorted(also)}
    try:
        call = parse_call(f"options({written})")
    except MaskwiseError:
        call = Call("options", (written,))
    if call.args:
        raise MaskwiseError(
            f"cannot read the arguments of {kind} {spec!r}",
            allowed=f"name=value, with the names {', '.join(types)}",
            do=f"for example ({example})",
        )
    options = {}
    for option, value in call.kwargs.items():
        require_known(f"argument of {kind} {name!r}", option, types)
        if isinstance(value, Call):
            # Options may be words without quotes, such as kind=similarity.
            value = value.written
        options[option] = _fitting(f"{option} of {kind} {name!r}", value, types[option])
    return name, options


def of_run(settings: Any, seed: int) -> Any:
    """Replace ``{seed}`` in paths and other texts with the seed of a run.

    >>> of_run({"source": "texts/{seed}.jsonl", "tasks": ["facts/{seed}.jsonl"]}, 7)
    {'source': 'texts/7.jsonl', 'tasks': ['facts/7.jsonl']}
    """
    if isinstance(settings, Mapping):
        return {of_run(key, seed): of_run(value, seed) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return type(settings)(of_run(value, seed) for value in settings)
    if isinstance(settings, str):
        return settings.replace("{seed}", str(seed))
    return settings


def different_settings(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """List the dotted names of the settings in which two recipes differ.

    >>> different_settings({"training": {"steps": 10}}, {"training": {"steps": 20}, "tasks": []})
    ['training.steps', 'tasks']
    """
    first = dict(leaves(one))
    second = dict(leaves(other))
    return [key for key in first | second if first.get(key, ...) != second.get(key, ...)]


SINGLE_VALUES = re.compile(
    r"(^|\.)(corpus\.source|(?<!study\.arms\.)(?<!study\.search\.own\.)objective)$"
)
"""The dotted names of settings whose dicts are a single value. An arm may be called objective."""


def is_single_value(name: str) -> bool:
    """Whether a dict of this dotted name is one value, and no group of settings."""
    return bool(SINGLE_VALUES.search(name))


def leaves(
    tree: Mapping[str, object],
    prefix: str = "",
    *,
    whole: Callable[[str], bool] = is_single_value,
) -> Iterator[tuple[str, object]]:
    """Yield nested settings as pairs (dotted name, value), such as ``("a.b.c", 1)``.

    An empty dict is a value. So are a mix of sources in ``corpus.source``, whose keys are names of
    files, and several objectives in ``objective``: the keys of both may contain dots, and a layer
    that writes them replaces those of earlier layers.

    Args:
        tree: the settings.
        prefix: what stands before their names.
        whole: whether a dict of a dotted name is one value.

    >>> [*leaves({"masking": {"ratio": 0.3}, "objective": {"mlm": {}, "cse": {}}})]
    [('masking.ratio', 0.3), ('objective', {'mlm': {}, 'cse': {}})]
    """
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and not whole(name):
            yield from leaves(value, f"{name}.", whole=whole)
        else:
            yield name, value
