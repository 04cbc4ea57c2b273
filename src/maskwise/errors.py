"""One small family of errors for mistakes that a user can mend.

The rule for every message: *what* is wrong, what we *got*, what is *allowed*, what to *do*: on one
line. The command line prints the message and exits with code 2. Our own mistakes are ``assert``s
and tracebacks. Beside them stand words that several rooms share.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

LONGEST = 400
"""Characters of each part of an error's message."""


class MaskwiseError(ValueError):
    """Bad input: a recipe, a file, a layer, an argument. The message is one line.

    >>> print(MaskwiseError("a ratio is a share", got=1.5, allowed="0 to 1", do="write 0.15"))
    a ratio is a share; got 1.5; allowed: 0 to 1; write 0.15

    Attributes:
        what: what is wrong, without an end mark.
        got: what was given.
        allowed: what would have been right.
        do: what the user should do now.

    The attributes are whole. In the message, long ones are shortened in their middle, since file
    names, labels and arguments of any length are quoted in them.
    """

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
            parts.append(f"allowed: {shortened(allowed, 600)}")
        if do is not None:
            parts.append(shortened(do))
        super().__init__("; ".join(parts))


def unknown_name(
    kind: str, name: object, known: Iterable[str], *, do: str | None = None
) -> MaskwiseError:
    """The error for a name that is not in a table; it names the nearest one.

    >>> print(unknown_name("recipe", "quickstart", ["ptw", "quick-start"], do="or name a file"))
    unknown recipe 'quickstart'; allowed: ptw, quick-start; did you mean 'quick-start'? or name a
    file
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name)[:LONGEST], names, n=1, cutoff=0.5)
    hints = [*(f"did you mean {other!r}?" for other in near), *([do] if do else [])]
    return MaskwiseError(
        f"unknown {shortened(kind, 150)} {shortened(repr(name), 150)}",
        allowed=", ".join(names),
        do=" ".join(hints) or None,
    )


def whole_number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    do: str | None = None,
) -> int:
    """A whole number from ``least`` to ``most``, as an int: Python's or numpy's, but no bool.

    >>> whole_number("step", 3, least=0)
    3

    Raises:
        MaskwiseError: for anything else. Nothing is rounded and no text is read.
    """
    # True is an Integral, and an accident where a number is expected
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if least <= number <= most:
            return number
    allowed = _range("a whole number", least, most)
    raise MaskwiseError(f"{name} is not valid", got=repr(value), allowed=allowed, do=do)


def finite_number(
    name: str, value: object, *, least: float = -math.inf, most: float = math.inf
) -> int | float:
    """A finite number from ``least`` to ``most``, as an int or a float: Python's or numpy's, but no
    bool.

    Raises:
        MaskwiseError: for anything else, NaN included.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number = int(value) if isinstance(value, Integral) else float(value)
        if least <= number <= most and number not in (math.inf, -math.inf):
            return number
    raise MaskwiseError(
        f"{name} is not valid", got=repr(value), allowed=_range("a number", least, most)
    )


def _range(kind: str, least: float, most: float) -> str:
    if math.isinf(least):
        return kind
    return f"{kind} ≥ {least}" if math.isinf(most) else f"{kind} from {least} to {most}"


def first_line(error: BaseException) -> str:
    """The first line of an error of some library, whose other lines are advice; its type where it
    says nothing.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def counted(reasons: Mapping[str, int]) -> str:
    """ "3 × no label, 1 × no text": why things were left out, the commonest reason first."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} × {reason}" for reason, count in ordered)


def duration(seconds: float | None) -> str:
    """A time in the same words everywhere.

    >>> duration(35), duration(760), duration(9000), duration(None)
    ('35 s', '13 min', '2.5 h', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shortened(value: object, limit: int = LONGEST) -> str:
    """A value as an error quotes it: on one line, and without its middle where it is long.

    >>> shortened("a" * 500 + " is not in the table", 40)
    'aaaaaaaaaaaaaaaaaaaaa … not in the table'
    """
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits has no text
        text = f"a value of type {type(value).__name__}"
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    # file names and values differ most at their ends, so that both are kept
    end = 2 * limit // 5
    return f"{text[: limit - end - 3]} … {text[-end:]}"
