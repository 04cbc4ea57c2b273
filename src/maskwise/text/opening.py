"""Open files: decompress, check for UTF-8, divide into lines, and guess what one text is."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from maskwise.base.errors import MaskwiseError, items_of

# A few bad lines are skipped. If more than this share is bad, the file is not in UTF-8.
_MAX_BAD_SHARE = 0.35
HEAD_BYTES = 1 << 16
FAR_BYTES = 1 << 20
"""What is read beyond the head of a file of long lines, to find out whether blank lines follow."""

LARGEST_FILE = 1 << 30
"""The most bytes, after decompression, of a file that is read at once, such as a labelled file. A
small file may decompress to a huge one."""
PART_BYTES = 1 << 20

# In a file with fewer lines, it cannot be guessed whether each line is a text.
LEAST_LINES = 8
# A file with more lines and without blank lines would be a single text if its lines were one
# wrapped text, which is too little for a study.
MANY_LINES = 100

# In bytes. Longer lines, as in a file without line breaks, are skipped to save memory.
LONGEST_LINE = 1 << 24
LONG_LINE = "line of more than 16 MB"


class Skip(NamedTuple):
    """Yielded instead of a record that has no usable text.

    Attributes:
        reason: why the record is skipped. Skipped records are counted by reason.
        place: where in the file it is, such as "line 3"; "" if unknown.
        content: the beginning of the record, as far as it could be read.
    """

    reason: str
    place: str = ""
    content: str = ""


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn operating system and gzip errors into a one-line error that names the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise MaskwiseError(
            f"cannot read {path}: {error}",
            do="check that it is complete and readable",
        ) from error


def _zstd(path: Path, mode: str) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))


PACKINGS: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".zst": _zstd}
"""How a file of text is unpacked, by the last of its extensions."""


def packing_of(path: Path) -> str:
    """Return the extension by which a file is packed; "" for none."""
    ending = path.suffix.lower()
    return ending if ending in PACKINGS else ""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, and unpack it.

    Raises:
        MaskwiseError: the file, or what it is packed in, cannot be read, also later on.
    """
    with damaged(path), PACKINGS.get(packing_of(path), open)(path, "rb") as file:
        yield file


def lines(path: Path) -> Iterator[tuple[bytes | Skip, int]]:
    """Yield each line of a file of text, and the offset in bytes after it. Instead of a line that
    is too long, a `Skip` is yielded.

    Raises:
        MaskwiseError: the head of the file is binary or mostly not UTF-8.
    """
    refuse_unreadable(path)
    at = 0
    with opened(path) as file:
        for line in iter(partial(file.readline, LONGEST_LINE), b""):
            at += len(line)
            if len(line) < LONGEST_LINE or line.endswith(b"\n"):
                # A byte-order mark may only be at the beginning of a file.
                yield line.removeprefix(codecs.BOM_UTF8) if at == len(line) else line, at
                continue
            # The rest of a long line is dropped.
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
                at += len(line)
            yield Skip(LONG_LINE), at


def read_whole(path: Path) -> bytes:
    """Return the content of a file that is read at once, decompressed.

    Raises:
        MaskwiseError: the content has more than ``LARGEST_FILE`` bytes. Then not more than these
            are in memory, however small the compressed file is.
    """
    parts = []
    size = 0
    with opened(path) as file:
        while part := file.read(PART_BYTES):
            size += len(part)
            if size > LARGEST_FILE:
                raise MaskwiseError(
                    f"{path} has more than {LARGEST_FILE >> 20:,} MiB of content, and this file "
                    "is read at once",
                    do="divide it; a corpus can be JSON lines, a table or Parquet, which are read "
                    "in parts",
                )
            parts.append(part)
    return b"".join(parts)


def read_text(path: Path) -> str:
    """Return the content of a file of text that is read at once.

    Raises:
        MaskwiseError: a byte is not UTF-8, or the file cannot be read (``read_whole``).
    """
    content = read_whole(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise MaskwiseError(
            f"{path} is not UTF-8 text (byte {error.start})",
            do=f"convert it, for example with iconv -f {'UTF-16' if marked else 'LATIN1'} -t UTF-8",
        ) from None


def is_utf8(text: str) -> bool:
    """Return whether a string can be written in UTF-8. A string from JSON, for example, cannot if
    it contains half a surrogate pair.
    """
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeError:
        return False


def require_utf8(text: str) -> None:
    """Raise an error if a text, for example from the command line, cannot be written in UTF-8."""
    if not isinstance(text, str):
        raise MaskwiseError("a text must be a string", got=type(text).__name__)
    if not is_utf8(text):
        raise MaskwiseError("the text is not valid UTF-8", got=ascii(text))


def valid_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts that a caller gave in Python.

    Raises:
        MaskwiseError: they are no list or other iterable of strings, or one is not valid UTF-8.
    """
    for place, text in enumerate(items_of("texts", texts, of="strings")):
        if not isinstance(text, str):
            raise MaskwiseError(
                "texts must be a list of strings", got=f"{type(text).__name__} at place {place}"
            )
        if not is_utf8(text):
            raise MaskwiseError(
                "a text contains half a character (a lone surrogate)",
                got=f"place {place} of the list",
                do="replace it: text.encode('utf-8', 'replace').decode()",
            )
        yield text


def refuse_unreadable(path: Path) -> None:
    """Raise a `MaskwiseError` if the first 64 KiB of a file are binary or mostly not UTF-8."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    if b"\0" in head:
        raise MaskwiseError(
            f"{path} has NUL bytes, so it is a binary file or UTF-16 text",
            do="give UTF-8 text (convert UTF-16 first)",
        )
    # A bad byte becomes a lone surrogate, which `is_utf8` notices.
    text = head.decode("utf-8", "surrogateescape")
    lines = list(filter(str.strip, text.split("\n")))
    if len(head) == HEAD_BYTES:
        # The last line is cut, perhaps inside a character.
        lines = lines[:-1]
    bad = sum(not is_utf8(line) for line in lines)
    if bad > _MAX_BAD_SHARE * len(lines):
        raise MaskwiseError(
            f"{path} is not UTF-8 text",
            got=f"{bad} lines that are not UTF-8 among the first {len(lines)}",
            do="convert it, for example with iconv -f LATIN1 -t UTF-8",
        )


def text_per(path: Path) -> Literal["line", "block"]:
    """Guess from the head of a plain text file whether a text is a "line" or a "block".

    The guess is "line" if there are at least ``LEAST_LINES`` lines, none is blank, and the lines do
    not look like one wrapped text. In a wrapped text, many lines begin in lower case, and few end
    like a sentence. Of queries, logs and posts, the same is true, so ``MANY_LINES`` or more lines
    without a blank line are not taken for a wrapped text; nor are lines of which fewer than
    ``LEAST_LINES`` fill all that is read, because each of them is longer than a page.
    """
    with opened(path) as file:
        most = HEAD_BYTES
        head = file.read(most)
        if head.count(b"\n") < LEAST_LINES:
            # A blank line may follow after a long text.
            most += FAR_BYTES
            head += file.read(FAR_BYTES)
    # Blank lines separate blocks, except at the beginning and at the end of a file.
    lines = split_lines(head.decode("utf-8-sig", "ignore").strip())
    whole = len(head) < most
    if not whole:
        lines = lines[:-1]
    if not all(map(str.strip, lines)):
        return "block"
    if len(lines) < LEAST_LINES:
        return "block" if whole else "line"
    if len(lines) >= MANY_LINES:
        return "line"
    small = sum(line.lstrip()[0].islower() for line in lines)
    ends = sum(line.rstrip()[-1] in '.!?…。»”"' for line in lines)
    if small > len(lines) / 4 and ends < len(lines) / 2:
        return "block"
    return "line"


def split_lines(text: str) -> list[str]:
    """Split a text at line feeds, but not at form feeds or U+2028."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
