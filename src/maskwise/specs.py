"""Names with arguments, written as people write them: ``span(p=0.2, max_words=10)``, ``linear(0.30, 0.15)``,
``0.15``.

One small language for recipes, the command line and Python strings. Only literals are read; nothing is
evaluated.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maskwise.errors import MaskwiseError, unknown_name


@dataclass(frozen=True)
class Call:
    """A name, its positional and its keyword arguments (numbers, strings, booleans, None, or further
    calls)."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        inside = [_show(a) for a in self.args] + [
            f"{key}={_show(value)}" for key, value in self.kwargs.items()
        ]
        return f"{self.name}({', '.join(inside)})" if inside else self.name


def _show(value: Any) -> str:
    return str(value) if isinstance(value, Call) else repr(value)


# A quoted string (left alone), or a hyphen before a letter and behind one or a digit: part of a name, no minus.
_QUOTED_OR_HYPHEN = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?<=[A-Za-z0-9])-(?=[A-Za-z])""")


def parse_call(text: str) -> Call:
    """Read ``name`` or ``name(1, key="x", other(2))``. Hyphens in names are allowed.

    Raises:
        MaskwiseError: anything else.
    """
    try:
        head, bracket, rest = text.strip().partition("(")
        rest = _QUOTED_OR_HYPHEN.sub(lambda found: found[1] or "_", rest)
        return _call(ast.parse(f"{head.strip().replace('-', '_')}{bracket}{rest}", mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        allowed = "a name, or a name with arguments such as linear(0.30, 0.15) or span(p=0.2)"
        raise MaskwiseError("cannot read this setting", got=repr(text), allowed=allowed) from None


def _call(node: ast.expr) -> Call:
    if isinstance(node, ast.Name):
        return Call(node.id.replace("_", "-"))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
        kwargs = {str(k.arg): _value(k.value) for k in node.keywords}
        return Call(node.func.id.replace("_", "-"), tuple(_value(a) for a in node.args), kwargs)
    raise ValueError


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name | ast.Call):
        return _call(node)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    return ast.literal_eval(node)


def build(kind: str, spec: str | Call, table: Mapping[str, Callable[..., Any]]) -> Any:
    """Make the member of ``table`` that ``spec`` names, with its arguments.

    Raises:
        MaskwiseError: an unknown name (with the nearest one), or arguments that the member does not take, by
            name, number or type.
    """
    call = parse_call(spec) if isinstance(spec, str) else spec
    if call.name not in table:
        raise unknown_name(kind, call.name, table)
    maker = table[call.name]
    try:
        bound = inspect.signature(maker).bind(*call.args, **call.kwargs)
    except TypeError as error:
        allowed = f"{call.name}{inspect.signature(maker)}"
        raise MaskwiseError(f"{kind} {call}: {error}", allowed=allowed.replace(" -> None", "")) from None
    try:
        return maker(*bound.args, **bound.kwargs)
    except TypeError as error:
        raise MaskwiseError(f"{kind} {call}: an argument of the wrong type: {error}") from error


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
