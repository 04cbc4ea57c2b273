"""Gold columns: texts that bring their own annotations, as documents with spans of characters.

- CoNLL-U (`read_conllu`): parts of speech;
- BIO or IO columns (`read_columns`): names over tokens whose text is lost, so it is rebuilt (`join_tokens`);
- spans beside a text (`given_spans`): a list of [start, end] or [start, end, label], as in JSON lines;
  ``[[…]]`` marks in the text itself are read by `spans.read_marks`.

The first two go through Python once per token, 1–2 µs each: gold is small.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskwise.errors import MaskwiseError
from maskwise.text.layers import CharSpans, Layer, check_spans

UPOS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ",
    "SYM", "VERB", "X",
)  # fmt: skip
"""The 17 universal parts of speech."""
POS = Layer("categorical", UPOS)

_NO_SPACE_BEFORE = frozenset([*".,;:!?)]}%'", "''", "n't", "'s", "’s", "'m", "'re", "'ve", "'ll", "'d"])
_NO_SPACE_BEHIND = frozenset([*"([{$£#@", "``"])


class GoldDocument(NamedTuple):
    """A text with what is known about it. ``layers`` are as an annotator's."""

    id: str
    text: str
    layers: dict[str, CharSpans]


def read_conllu(path: Path) -> Iterator[GoldDocument]:
    """The documents of a CoNLL-U file (``.gz`` allowed) with their layer "pos".

    Sentences are joined by a blank, paragraphs (``# newpar``) by a line break. A surface word that stands for
    several syntactic ones ("don't" = do + n't) is cut where their forms say so; where they do not spell it
    ("im" = I + am), all of it gets the first one's tag. Without ``# newdoc`` the file is one document.

    Raises:
        MaskwiseError: a file that cannot be read, or a line that is not CoNLL-U.
    """
    document, parts, spans, size = path.name, list[str](), list[tuple[int, int, int]](), 0
    for comments, rows in _sentences(path):
        names = [c.partition("=")[2].strip() for c in comments if c.startswith("# newdoc")]
        if names and parts:
            yield GoldDocument(document, "".join(parts), {"pos": CharSpans.of(spans, POS)})
            parts, spans, size = [], [], 0
        if names:
            document = names[0] or f"{path.name}#{size}"
        if parts:
            parts.append("\n" if any(c.startswith("# newpar") for c in comments) else " ")
            size += 1
        text, found = _surface(rows, path)
        spans += [(start + size, end + size, code) for start, end, code in found]
        parts.append(text)
        size += len(text)
    if parts:
        yield GoldDocument(document, "".join(parts), {"pos": CharSpans.of(spans, POS)})


def _surface(rows: list[list[str]], path: Path) -> tuple[str, list[tuple[int, int, int]]]:
    """A sentence's text and its words as (start, end, code)."""
    pieces, spans, size = list[str](), list[tuple[int, int, int]](), 0
    words = {row[0]: row for row in rows}
    inside = 0  # words up to this number belong to a surface word that is already written
    for row in rows:
        number, _, last = row[0].partition("-")
        if "." in number or (not last and int(number) <= inside):
            continue
        form, parts = row[1], [row]
        if last:
            inside = int(last)
            parts = [words[str(i)] for i in range(int(number), inside + 1)]
            if "".join(p[1] for p in parts) != form:
                parts = [[*parts[0][:1], form, *parts[0][2:]]]
        for part in parts:
            if part[3] in UPOS:
                spans.append((size, size + len(part[1]), UPOS.index(part[3]) + 1))
            elif part[3] != "_":
                raise MaskwiseError(f"{path}: not a universal part of speech", got=part[3], allowed=UPOS)
            pieces.append(part[1])
            size += len(part[1])
        if "SpaceAfter=No" not in row[9]:
            pieces.append(" ")
            size += 1
    return "".join(pieces).rstrip(), spans


def read_columns(path: Path, *, token: int = 0, tag: int = -1) -> Iterator[tuple[list[str], list[str]]]:
    """The (tokens, tags) of every sentence of a file of columns, such as CoNLL-2003's (``.gz`` allowed)."""
    for _, rows in _sentences(path, columns=2):
        yield [row[token] for row in rows], [row[tag] for row in rows]


def entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first token, behind the last, type) of the entities of BIO or IO tags."""
    found: list[tuple[int, int, str]] = []
    for i, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if not kind:
            continue
        if mark == "I" and found and found[-1][1:] == (i, kind):
            found[-1] = (found[-1][0], i + 1, kind)
        else:
            found.append((i, i + 1, kind))
    return found


def join_tokens(tokens: Iterable[str]) -> tuple[str, list[tuple[int, int]]]:
    """Running text from tokens, by the usual rules of English punctuation, and every token's characters."""
    parts, offsets, size, before, quoted = list[str](), list[tuple[int, int]](), 0, "(", False
    for token in tokens:
        closes = token == '"' and quoted
        glued = closes or before in _NO_SPACE_BEHIND or token.lower() in _NO_SPACE_BEFORE
        if token == '"':
            quoted = not quoted
        if parts and not glued:
            parts.append(" ")
            size += 1
        parts.append(token)
        offsets.append((size, size + len(token)))
        size += len(token)
        before = "(" if token == '"' and quoted else token  # an opening quotation mark holds on to its word
    return "".join(parts), offsets


def given_spans(spans: Sequence[Sequence[Any]], *, text: str, labels: Sequence[str] = ()) -> CharSpans:
    """The spans that a record brings along, [start, end] or [start, end, label] in characters of its text.

    Args:
        labels: those that may occur; without them the spans have no value, and labels are left out.

    Raises:
        MaskwiseError: a span that is not of that form, an unknown label, spans that overlap or leave the text.
    """
    layer = Layer("spans", tuple(labels))
    rows = []
    for span in spans:
        wanted = 3 if labels else 2
        if not isinstance(span, (list, tuple)) or not wanted <= len(span) <= 3 or not _whole(span[:2]):
            form = "[start, end, label]" if labels else "[start, end]"
            raise MaskwiseError("a span of another form", got=span, allowed=f"{form} in characters")
        if labels and span[2] not in layer.labels:
            raise MaskwiseError("a span with an unknown label", got=span[2], allowed=", ".join(labels))
        rows.append((*span[:2], layer.labels.index(span[2]) + 1) if labels else tuple(span[:2]))
    found = CharSpans.of(rows, layer)
    check_spans(found, layer, len(text), name="given spans")
    return found


def _whole(numbers: Sequence[Any]) -> bool:
    return all(isinstance(n, int) and not isinstance(n, bool) and abs(n) < 2**31 for n in numbers)


def _sentences(path: Path, *, columns: int = 10) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The comments and the rows of cells of every sentence."""
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    comments, rows = list[str](), list[list[str]]()
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                line = line.rstrip("\r\n")
                if line.startswith("#") and "\t" not in line and not rows:
                    comments.append(line)
                elif line.strip():
                    cells = line.split("\t") if "\t" in line else line.split(" ")
                    if len(cells) < columns:
                        allowed = f"{columns} columns"
                        raise MaskwiseError(f"line {number} of {path}", got=line[:60], allowed=allowed)
                    rows.append(cells)
                elif rows:
                    yield comments, rows
                    comments, rows = [], []
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise MaskwiseError(f"cannot read {path}: {error}", do="is it complete, readable UTF-8?") from error
    if rows:
        yield comments, rows
