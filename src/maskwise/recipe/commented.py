"""Write settings as a recipe that people read: a section a line, with comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from maskwise.base.errors import visible
from maskwise.base.printing import json_text
from maskwise.recipe.yamls import parse_value

if TYPE_CHECKING:
    from maskwise.recipe.yamls import Plain

PLAIN = re.compile(r"[A-Za-z][\w.-]*")
"""Texts that may be without quotation marks, if they read back as themselves."""


def commented(settings: Plain, comments: Mapping[str, str], *, head: Iterable[str] = ()) -> str:
    """Return settings as YAML for ``read_recipe``, with comments.

    Args:
        settings: nested settings.
        comments: comments to lines, keyed by the dotted names of their settings, such as ``corpus``
            or ``study.seeds``. A comment of a setting that is missing is left out.
        head: the lines of the comment at the top.

    >>> settings = {"corpus": {"source": "a b.txt"}, "study": {"seeds": 6, "arms": {"a": {}}}}
    >>> print(commented(settings, {"study.seeds": "runs of each arm"}), end="")
    corpus: {source: "a b.txt"}
    study:
      seeds: 6   # runs of each arm
      arms:
        a: {}
    """
    lines = [_comment(line) for line in head]
    for name, value in settings.items():
        if name == "study" and isinstance(value, dict):
            lines.append(_line("study:", comments.get(name)))
            lines += _study(value, comments)
        else:
            lines.append(_line(f"{_text(name)}: {_flow(value)}", comments.get(name)))
    return "\n".join(lines) + "\n"


def _study(study: Plain, comments: Mapping[str, str]) -> list[str]:
    """Return the lines of the section ``study``, in which each setting and each arm is a line."""
    lines: list[str] = []
    for name, value in study.items():
        comment = comments.get(f"study.{name}")
        if name != "arms" or not isinstance(value, dict) or not value:
            lines.append(_line(f"  {name}: {_flow(value)}", comment))
            continue
        lines.append(_line("  arms:", comment))
        for arm, changes in value.items():
            of_arm = comments.get(f"study.arms.{arm}")
            lines.append(_line(f"    {_text(arm)}: {_flow(changes)}", of_arm))
    return lines


def _line(text: str, comment: str | None) -> str:
    if comment:
        text = f"{text}   {_comment(comment)}"
    return text


def _comment(text: str) -> str:
    # A comment ends with its line, and names of files may have line breaks.
    return f"# {' '.join(visible(text).split())}"


def _flow(value: object) -> str:
    """Return a value in one line of YAML."""
    if isinstance(value, Mapping):
        parts = [f"{_text(str(key))}: {_flow(each)}" for key, each in value.items()]
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str):
        return _text(value)
    return json_text(value)


def _text(text: str) -> str:
    if PLAIN.fullmatch(text) and parse_value(text) == text:
        return text
    # Every JSON string is also a quoted YAML string, if its line separators are escaped.
    return json_text(text)
