"""Names with arguments, written as people write them: ``span(p=0.2, max_words=10)``, ``linear(0.30, 0.15)``, ``0.15``.

One small language for recipes, the command line and Python strings. Only literals are read; nothing is evaluated.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maskwise.errors import MaskwiseError, unknown_name


@dataclass(frozen=True)
class Call:
    """A name, its positional and its keyword arguments (numbers, strings, booleans, None, or further calls)."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        inside = [_show(a) for a in self.args] + [f"{key}={_show(value)}" for key, value in self.kwargs.items()]
        return f"{self.name}({', '.join(inside)})" if inside else self.name


def _show(value: Any) -> str:
    return str(value) if isinstance(value, Call) else repr(value)


def parse_call(text: str) -> Call:
    """Read ``name`` or ``name(1, key="x", other(2))``. Hyphens in names are allowed."""
    try:
        head, bracket, rest = text.strip().partition("(")
        tree = ast.parse(f"{head.strip().replace('-', '_')}{bracket}{_hyphens(rest)}", mode="eval")
        return _call(tree.body)
    except (SyntaxError, ValueError):
        allowed = 'a name, or a name with arguments such as linear(0.30, 0.15) or span(p=0.2)'
        raise MaskwiseError("cannot read this setting", got=repr(text), allowed=allowed) from None


def _hyphens(text: str) -> str:
    """Let names such as ``linear-decay(0.15)`` stand inside brackets; a hyphen between two letters is no minus."""
    chars = list(text)
    quote = ""
    for i, char in enumerate(chars):
        if char in "'\"":
            quote = "" if char == quote else (quote or char)
        elif char == "-" and not quote and i and chars[i - 1].isalpha() and text[i + 1 : i + 2].isalpha():
            chars[i] = "_"
    return "".join(chars)


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
        MaskwiseError: an unknown name (with the nearest one), or arguments that the member does not take.
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
    return maker(*bound.args, **bound.kwargs)
