"""Open the bytes of files, inflated, and refuse files that are no text."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from maskwise.errors import MaskwiseError

# A few bad lines are skipped; a larger share in the head of a file means another encoding.
_MAX_BAD_SHARE = 0.35
HEAD_BYTES = 1 << 16


def opened(path: Path) -> IO[bytes]:
    """Open the bytes of a file, inflated if its name says ``.gz`` or ``.zst``."""
    name = path.name.lower()
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstd(path))
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path))
    return path.open("rb")


class _Zstd(io.RawIOBase):
    """The inflated bytes of a zstd file, with a position, which pyarrow's stream lacks."""

    def __init__(self, path: Path):
        import pyarrow as pa

        self.file = pa.input_stream(str(path), compression="zstd")
        self.place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        read: int = self.file.readinto(buffer)
        self.place += read
        return read

    def tell(self) -> int:
        return self.place

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn errors of the operating system and of gzip while reading a file into one line."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        do = "is it complete and readable?"
        raise MaskwiseError(f"cannot read {path}: {error}", do=do) from error


def is_utf8(text: str) -> bool:
    """Tell whether a string can be encoded: JSON may hold half a character."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeError:
        return False


def refuse_unreadable(path: Path) -> None:
    """Refuse a file whose first 64 KiB are binary or of another encoding than UTF-8."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    if b"\0" in head:
        do = "give UTF-8 text (convert UTF-16 first)"
        raise MaskwiseError(f"{path} is a binary file, or UTF-16: it has NUL bytes", do=do)
    # A bad byte becomes a lone surrogate, which is not UTF-8.
    text = head.decode("utf-8", "surrogateescape")
    lines = [line for line in text.split("\n") if line.strip()]
    if len(head) == HEAD_BYTES:
        # The last line is cut, perhaps inside a character.
        lines = lines[:-1]
    bad = sum(not is_utf8(line) for line in lines)
    if bad > _MAX_BAD_SHARE * len(lines):
        raise MaskwiseError(
            f"{path} is not UTF-8 text",
            got=f"{bad} bad of its first {len(lines)} lines",
            do="convert it, for example with iconv -f LATIN1 -t UTF-8",
        )
