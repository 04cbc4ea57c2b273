"""Errors that a user can correct, checks of arguments, and functions that format messages.

An error message is one line: *what* is wrong, what was given (*got*), what is *allowed*, and what
to *do*. The command line prints the message and exits with code 2. ``AssertionError`` means a bug
in maskwise.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import math
import shlex
import traceback
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any

LONGEST = 400
"""Maximum number of characters in each part of an error message."""
LONGEST_VALUE = 80
"""Maximum number of characters of a value that should be a number."""

EXTRAS = {
    "vl_convert": "report",
    "spacy": "annotate",
    "sklearn": "tasks",
    "rouge_score": "tasks",
    "ray": "ray",
    "peft": "lora",
    "maskwise_data": "data",
    "jieba": "jieba",
    "fugashi": "fugashi",
    "unidic_lite": "fugashi",
    "pythainlp": "pythainlp",
}
"""For each optional library, the extra of maskwise that installs it."""

CHECKOUT = Path(__file__).parents[3] / "packages" / "maskwise-data"
"""Folder of the package maskwise-data in a checkout of the project."""


class MaskwiseError(ValueError):
    """An error in the user's input: a recipe, a file, a layer or an argument.

    >>> print(MaskwiseError("a ratio is a share", got=1.5, allowed="0 to 1", do="write 0.15"))
    a ratio is a share; got 1.5; allowed: 0 to 1; write 0.15

    Attributes:
        what: the mistake, without a full stop.
        got: the value that was given.
        allowed: the values that are valid.
        do: how to correct the mistake.
        setting: the dotted name of the setting of a recipe whose value alone is wrong, if known.

    The message is one line. Long attributes, such as file names, are shortened in the middle.
    """

    setting: str = ""

    def __init__(
        self, what: str, *, got: object = None, allowed: object = None, do: str | None = None
    ):
        self.what = what
        self.got = got
        self.allowed = allowed
        self.do = do
        parts = [shortened(what)]
        if got is not None:
            parts.append(f"got {shortened(got)}")
        if allowed is not None:
            parts.append(f"allowed: {shortened(allowed, 600, names=True)}")
        if do is not None:
            parts.append(shortened(do))
        super().__init__("; ".join(parts))


class Truncated(UserWarning):
    """Warns that texts are longer than a model or a setting allows, and were cut."""


class OtherProcessFailed(MaskwiseError):
    """Another process of torchrun failed. It says why itself, and this error quotes it."""


class PlugInError(MaskwiseError):
    """An error in code of the user's: a policy, an objective, a measure and so on.

    Unlike other errors of a sample of the text, it comes again with all of the text.
    """


def unknown_name(
    kind: str, name: object, known: Iterable[str], *, do: str | None = None
) -> MaskwiseError:
    """Return an error about an unknown name, which suggests the most similar known name.

    >>> print(unknown_name("recipe", "quickstart", ["ptw", "quick-start"], do="or name a file"))
    unknown recipe 'quickstart'; allowed: ptw, quick-start; did you mean 'quick-start'? or name a
    file
    """
    names = sorted(known)
    advice = " ".join(filter(None, (did_you_mean(name, names), do)))
    what = f"unknown {shortened(kind, 150)} {shortened(repr(name), 150)}"
    return MaskwiseError(what, allowed=", ".join(names), do=advice or None)


def did_you_mean(name: object, known: Sequence[str]) -> str | None:
    """Suggest the known name that is most similar to ``name``; None if no name is similar.

    Letter case does not matter. Of dotted names, the last parts are compared, too, because the last
    part of a setting is often written after another section.

    >>> did_you_mean("tsdea", ["SBO", "TSDAE"])
    "did you mean 'TSDAE'?"
    >>> did_you_mean("MLM", ["emlm", "mlm"])
    "did you mean 'mlm'?"
    >>> did_you_mean("finetune.learning_rate", ["muon_learning_rate", "learning_rate"])
    "did you mean 'learning_rate'?"
    >>> did_you_mean("lr", ["steps", "learning_rate"])
    "did you mean 'learning_rate'?"
    """
    by_lower = dict(zip(map(str.lower, known), known))
    # The name is cut, because comparing takes quadratic time and a name may be a whole file.
    asked = str(name)[:LONGEST].lower()
    near = difflib.get_close_matches(asked, by_lower, n=1, cutoff=0.5)
    last = asked.rpartition(".")[2]
    if "." in asked and last:
        # The whole names decide between several names with the same last part.
        ends = [each for each in by_lower if each.rpartition(".")[2] == last]
        near = difflib.get_close_matches(asked, ends, n=1, cutoff=0.0) or near
    if not near:
        # Names are abbreviated by their initials, such as lr.
        near = [each for each in by_lower if last == "".join(part[:1] for part in each.split("_"))]
    return f"did you mean {by_lower[near[0]]!r}?" if near else None


def require_known(
    setting: str, name: str, known: Collection[str], *, do: str | None = None
) -> None:
    """Raise a `MaskwiseError` if ``name`` is not one of the known names."""
    # Lists and arrays cannot be looked up.
    if not isinstance(name, str) or name not in known:
        raise unknown_name(setting, name, known, do=do)


def install_command(module: str) -> str | None:
    """Return the command that installs an optional library, or None if it is installed.

    Args:
        module: the library, a key of `EXTRAS`.
    """
    if find_spec(module):
        return None
    if module != "maskwise_data":
        return f"pip install 'maskwise[{EXTRAS[module]}]'"
    # In a checkout of the project, the data must match the code, so they are installed from there.
    if CHECKOUT.is_dir():
        return f"pip install -e {CHECKOUT}"
    return "pip install maskwise-data"


def require_library(module: str, *, use: str) -> None:
    """Raise a `MaskwiseError` if an optional library is missing.

    Callers call this before they begin to work, so that no work is lost.

    Args:
        module: the library, a key of `EXTRAS`.
        use: the feature that needs the library, such as "the metric rouge-1".
    """
    command = install_command(module)
    if command:
        raise MaskwiseError(f"{use} needs {module}, which is not installed", do=command)


def refuse_version(library: str, wrong: Collection[str], *, fixed: str, use: str) -> None:
    """Raise a `MaskwiseError` if the installed version of a library makes a feature wrong.

    Args:
        library: a library that maskwise depends on.
        wrong: the versions with which the feature is wrong.
        fixed: the first version after them.
        use: the feature, such as "question-answering".
    """
    found = _version(library)
    if found in wrong:
        raise MaskwiseError(
            f"{use} would be wrong with this version of {library}",
            got=found,
            allowed=f"{fixed} or newer",
            do=f"pip install '{library}>={fixed}'",
        )


_version = cache(importlib.metadata.version)


def whole_number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    do: str | None = None,
) -> int:
    """Return ``value`` as an int if it is a whole number from ``least`` to ``most``.

    >>> whole_number("step", 3, least=0)
    3

    Raises:
        MaskwiseError: for any other value, also for bools, floats and text.
    """
    # Nearly all values are Python's own, and this check is fast.
    if type(value) is int and least <= value <= most:
        return value
    return int(_checked(Integral, "a whole number", name, value, least, most, do))


def finite_number(
    name: str, value: object, *, least: float = -math.inf, most: float = math.inf
) -> int | float:
    """Return ``value`` as an int or a float if it is a finite number from ``least`` to ``most``.

    Raises:
        MaskwiseError: for any other value, also for bools and NaN.
    """
    # Steps are Python's own, and this check is fast.
    if type(value) is int and least <= value <= most:
        return value
    return _checked(Real, "a number", name, value, least, most)


def _checked(
    kind: type[Integral] | type[Real],
    words: str,
    name: str,
    value: object,
    least: float,
    most: float,
    do: str | None = None,
) -> int | float:
    # A single number may also be an array or a tensor without dimensions.
    if hasattr(value, "item") and hasattr(value, "ndim") and not value.ndim:
        # Tensors on the device "meta" have no value.
        with contextlib.suppress(RuntimeError, TypeError, ValueError):
            value = value.item()
    # In Python, True is an Integral, but here it is a mistake.
    if isinstance(value, kind) and not isinstance(value, bool):
        # Integers stay ints, because an int may be too large for a float.
        number = int(value) if isinstance(value, Integral) else float(value)
        if least <= number <= most and number not in (math.inf, -math.inf):
            return number
    if not math.isinf(most):
        words += f" from {least} to {most}"
    elif not math.isinf(least):
        words += f" ≥ {least}"
    # Rows in place of their number would fill the line.
    got = repr(value) if len(repr(value)) <= LONGEST_VALUE else f"a {type(value).__name__}"
    raise MaskwiseError(f"{name} is not valid", got=got, allowed=words, do=do)


def items_of(argument: str, value: object, *, of: str, single: bool = False) -> Iterable[Any]:
    """Return an argument in Python that is a list, unchanged.

    A text is also an iterable of characters, and a table and a dict are iterables of names.

    Args:
        argument: its name.
        value: its value.
        of: what the items are, such as "texts".
        single: whether one text is read as a list of one.

    Raises:
        MaskwiseError: ``value`` is no list or other iterable, or one of names.

    >>> items_of("measures", "heldout", of="measures", single=True)
    ['heldout']
    """
    if single and isinstance(value, str):
        return [value]
    table = hasattr(value, "columns")
    no_list = table or isinstance(value, str | bytes | Mapping) or getattr(value, "ndim", 1) == 0
    if isinstance(value, Iterable) and not no_list:
        return value
    do = None
    if table:
        do = f"give one of its columns, such as {argument}=table['text'].tolist()"
    elif not isinstance(value, Mapping) and value is not None:
        do = f"give {argument}=[{shortened(repr(value), 60)}]"
    raise MaskwiseError(f"{argument} must be a list of {of}", got=type(value).__name__, do=do)


def dict_of(argument: str, value: object, *, example: str) -> Mapping[Any, Any]:
    """Return an argument in Python that is a dict; an empty dict for None.

    Args:
        argument: its name.
        value: its value.
        example: how it is given, such as "{'sst2': 0.5}".

    Raises:
        MaskwiseError: ``value`` is no dict.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    raise MaskwiseError(
        f"{argument} must be a dict", got=repr(value), do=f"give {argument}={example}"
    )


_AT_COMMAND_LINE: list[bool] = []


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """A context in which messages name options as on the command line, and not as in Python."""
    _AT_COMMAND_LINE.append(True)
    try:
        yield
    finally:
        _AT_COMMAND_LINE.pop()


def shell_word(word: object) -> str:
    """Quote a word for a shell, if it needs quotes, in a way that people can read.

    >>> print(shell_word("a.csv(label='kind')"), shell_word("my text.txt"), shell_word("a.txt"))
    "a.csv(label='kind')" 'my text.txt' a.txt
    >>> print(shell_word("a='x' " + 'b="y"'))
    "a='x' b=\\"y\\""
    """
    text = str(word)
    # Within double quotes, shells read some characters, and an exclamation mark at a prompt.
    if "'" in text and not set("$`\\!") & set(text):
        quoted = text.replace('"', '\\"')
        return f'"{quoted}"'
    return shlex.quote(text)


def shell_words(words: Iterable[object]) -> str:
    """Join the words of a command for a shell."""
    return " ".join(map(shell_word, words))


def option(name: str, value: object = None, *, python: str | None = None) -> str:
    """Return an option as it is given where the call came from: a command, or Python.

    Args:
        name: the option, as the argument in Python is called.
        value: its value, if the message names it.
        python: how it is given in Python, if this is not the same with an equals sign.

    >>> option("out"), option("out", "runs/mine"), option("task", "FILE", python="tasks")
    ('out', "out='runs/mine'", 'tasks')
    >>> with command_line():
    ...     option("out"), option("out", "runs/mine"), option("task", "FILE", python="tasks")
    ('--out', '--out runs/mine', '--task FILE')
    """
    if _AT_COMMAND_LINE:
        words = [f"--{name.replace('_', '-')}", *([] if value is None else [str(value)])]
        return " ".join(words)
    if python is not None:
        return python
    shown = str(value) if isinstance(value, Path) else value
    return name if value is None else f"{name}={shown!r}"


def tidy_warnings() -> None:
    """Print each warning of this process once, as one line, without the code that raised it."""
    # Python prints a warning again after a library has changed the warning filters.
    printed = set[str]()

    def line_of(message: Warning | str, *_: object, **__: object) -> str:
        line = f"Warning: {visible(str(message))}\n"
        if line in printed:
            return ""
        printed.add(line)
        return line

    warnings.formatwarning = line_of


@contextlib.contextmanager
def tidied_warnings() -> Iterator[None]:
    """A context, or a decorator, in which warnings are printed as by ``tidy_warnings``."""
    before = warnings.formatwarning
    tidy_warnings()
    try:
        yield
    finally:
        warnings.formatwarning = before


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if there is no message.

    >>> first_line(ValueError("field 'size':\\n    expected int"))
    "field 'size': expected int"
    """
    message = str(error).strip() or type(error).__name__
    first, *more = filter(None, map(str.strip, message.splitlines()))
    # Configurations of transformers say in the second line what is wrong with a field.
    return f"{first} {more[0]}" if more and first.endswith(":") else first


def located(error: BaseException, *, folders: bool = True) -> str:
    """Return the type, the message and the line of code of an error, in one line.

    A long message is cut.

    Args:
        error: an error of code that is not maskwise's, or an unexpected one.
        folders: whether the file is named with its folders.

    >>> try:
    ...     int("x")
    ... except ValueError as error:
    ...     print(located(error, folders=False).partition(" (")[0])
    ValueError: invalid literal for int() with base 10: 'x'
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = last.filename if folders else Path(last.filename).name
    message = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
    return f"{message} ({file}:{last.lineno})"


def counted(reasons: Mapping[str, int]) -> str:
    """Format counts of reasons, the most frequent first: "3 × no label, 1 × no text"."""
    ordered = Counter(reasons).most_common()
    return ", ".join(f"{count} × {reason}" for reason, count in ordered)


def in_percent(share: float, digits: int = 6) -> str:
    """Return a share in per cent, without the sign, an exponent or zeros at the end.

    >>> in_percent(0.29), in_percent(0.0000001), in_percent(12_345.678), in_percent(2 / 3, 2)
    ('29', '0.00001', '1234570', '67')

    Args:
        share: the share.
        digits: the number of significant digits.
    """
    # 100 × 0.29 is 28.999999999999996.
    return f"{Decimal(f'{100 * share:.{digits}g}'):f}"


def plural(number: int, what: str) -> str:
    """Return "1 run" or "6 runs"."""
    ending = "" if number == 1 else "s"
    return f"{number} {what}{ending}"


def duration(seconds: float | None) -> str:
    """Format a time in seconds, minutes or hours.

    >>> duration(35), duration(760), duration(9000), duration(None)
    ('35 s', '13 min', '2.5 h', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def shortened(value: object, limit: int = LONGEST, *, names: bool = False) -> str:
    """Format a value on one line of at most ``limit`` characters; omit the middle if it is longer.

    Control characters are replaced, too (``visible``).

    >>> shortened("a" * 500 + " is not in the table", 40)
    'aaaaaaaaaaaaaaaaaaaaa … not in the table'

    With ``names``, a list of names is cut between two names.

    >>> shortened("attention, dropout, hidden_size, layers", 30, names=True)
    'attention, … layers'
    """
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):
        # Python refuses to convert integers of more than 4,300 digits.
        text = f"a value of type {type(value).__name__}"
    text = visible(" ".join(text.split()))
    if len(text) <= limit:
        return text
    # Both ends are kept, because file names and values mostly differ at their ends.
    end = 2 * limit // 5
    first, last = text[: limit - end - 3], text[-end:]
    if names and "," in first and ", " in last:
        first = first[: first.rindex(",") + 1]
        last = last.partition(", ")[2]
    return f"{first} … {last}"


KEPT = frozenset("\n\t\u00ad\u200c\u200d")
"""Characters that are not printable in themselves, and that do no harm: line feed and tab, the soft
hyphen, and the joiners of Persian, Indic scripts and emoji."""
HARMLESS = ("Zs", "Cn", "Co")
"""Unicode's categories of spaces, of unassigned characters (newer emoji) and of private ones."""


def is_visible(char: str) -> bool:
    """Return whether a terminal may print a character.

    It must not print control characters, which it may execute, line separators, characters that
    reverse the direction of a line, and halves of surrogate pairs, which stand for bytes of a file
    name that are not UTF-8.
    """
    return char.isprintable() or char in KEPT or unicodedata.category(char) in HARMLESS


def visible(text: str) -> str:
    """Replace the characters that a terminal must not print by a dot.

    >>> visible("mine\\x1b[2J.txt")
    'mine·[2J.txt'
    """
    # Nearly all texts have no such character, and this check is fast.
    if text.isprintable():
        return text
    return "".join(char if is_visible(char) else "·" for char in text)
