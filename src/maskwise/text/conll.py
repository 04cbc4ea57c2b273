"""Read CoNLL files: the tokens and tags of sentences, and texts with correct parts of speech."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from maskwise.base.constants import UPOS
from maskwise.base.errors import MaskwiseError
from maskwise.text.layers import CharSpans, Found, Layer
from maskwise.text.opening import read_text

POS = Layer("categorical", UPOS)

# A comment precedes a sentence and has no tab. "# O" is no comment, but the token "#" with tag O.
_COMMENT = re.compile(r"#(?!\S* (O|[BIES]-\S+)$)[^\t]*$")

Span = tuple[int, int, int]
"""(start, end, label code) in characters; the end is exclusive."""


def read_sentences(path: Path, *, columns: int) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield the comments and rows of each sentence in a CoNLL file.

    Raises:
        MaskwiseError: a row has fewer than ``columns`` cells.
    """
    comments: list[str] = []
    rows: list[list[str]] = []
    # A sentence is yielded at the next empty line, so an empty line is added at the end.
    for number, line in enumerate([*read_text(path).split("\n"), ""], start=1):
        line = line.rstrip(" \r")
        if not line.strip():
            if rows:
                yield comments, rows
                comments = []
                rows = []
        elif _COMMENT.match(line) and not rows:
            comments.append(line)
        elif not line.startswith("-DOCSTART-"):
            separator = "\t" if "\t" in line else " "
            cells = line.split(separator)
            if len(cells) < columns:
                raise MaskwiseError(
                    f"line {number} of {path} has too few columns",
                    got=line[:60],
                    allowed="10 columns of CoNLL-U" if columns == 10 else "token<TAB>tag",
                )
            rows.append(cells)


def tagged_sentences(path: Path, ending: str) -> Iterator[dict[str, list[str]]]:
    """Yield the tokens and tags of each sentence of a file with this extension.

    They are in the first and the last column of a row, with two exceptions: in .conllu files, in
    the columns FORM and UPOS (or in the last two of three columns); and in Universal NER's .iob2
    files, in the second and the third of five columns.
    """
    for _, rows in read_sentences(path, columns=3 if ending == ".conllu" else 2):
        tokens = []
        tags = []
        for row in rows:
            if ending == ".conllu":
                # Ranges (3-4) and empty nodes (3.1) are not words.
                if not row[0].isdigit():
                    continue
                row = row[1:4]
            # Universal NER's columns are number, token, tag and two names of annotators.
            elif ending == ".iob2" and len(row) == 5:
                row = row[1:3]
            tokens.append(row[0])
            tags.append(row[-1])
        if tokens:
            yield {"tokens": tokens, "tags": tags}


class GoldDocument(NamedTuple):
    """A text and its correct annotations, in the form that annotators return."""

    id: str
    text: str
    layers: Found


def read_conllu(path: Path) -> Iterator[GoldDocument]:
    """Yield the documents of a CoNLL-U file (``.gz`` allowed) with their layer "pos".

    Sentences are joined by a space, and paragraphs (``# newpar``) by a line break. In CoNLL-U, a
    word of the text may consist of several syntactic words. If the syntactic words spell the word
    ("don't" = do + n't), each of them gets a tag. If not ("im" = I + am), the word gets the tag of
    the first syntactic word. Without ``# newdoc``, the file is one document.

    Raises:
        MaskwiseError: the file cannot be read, or a line is not CoNLL-U.
    """
    document = path.name
    # The sentences and what is between them. Joined once, because a file may be one document.
    parts: list[str] = []
    size = 0
    spans: list[Span] = []
    number = 0
    for comments, rows in read_sentences(path, columns=10):
        separator = " "
        for comment in comments:
            if comment.startswith("# newdoc"):
                if parts:
                    yield _gold(document, parts, spans)
                name = comment.partition("=")[2].strip()
                document = name or f"{path.name}#{number}"
                number += 1
                parts, size, spans = [], 0, []
            elif comment.startswith("# newpar"):
                separator = "\n"
        if not parts:
            separator = ""
        begin = size + len(separator)
        try:
            words = _surface_words(rows)
        except (ValueError, KeyError, IndexError) as error:
            raise MaskwiseError(
                f"{path} is not CoNLL-U: its words are not numbered consecutively",
                got=f"a sentence that begins with {' '.join(rows[0][:2])!r}",
            ) from error
        sentence = ""
        for form, tag in words:
            if tag in UPOS:
                start = begin + len(sentence)
                spans.append((start, start + len(form), UPOS.index(tag) + 1))
            elif tag != "_":
                raise MaskwiseError(
                    f"{path}: a tag is not a universal part of speech",
                    got=tag,
                    allowed=UPOS,
                )
            sentence += form
        sentence = sentence.rstrip()
        if sentence:
            parts += [separator, sentence]
            size = begin + len(sentence)
    if parts:
        yield _gold(document, parts, spans)


def _gold(name: str, parts: Iterable[str], spans: Iterable[Span]) -> GoldDocument:
    return GoldDocument(name, "".join(parts), {"pos": CharSpans.of(spans, POS)})


def _surface_words(rows: list[list[str]]) -> list[tuple[str, str]]:
    """Return the words of a sentence and their tags. Spaces between words have the tag "_"."""
    words = []
    by_number = {row[0]: row for row in rows}
    # Rows up to this number are parts of a word that has already been added.
    covered = 0
    for row in rows:
        number, _, last = row[0].partition("-")
        is_empty_node = "." in number
        if is_empty_node or (not last and int(number) <= covered):
            continue
        form = row[1]
        parts = [(form, row[3])]
        if last:
            covered = int(last)
            parts = []
            spelled = ""
            for member in range(int(number), covered + 1):
                part = by_number[str(member)]
                parts.append((part[1], part[3]))
                spelled += part[1]
            # If the parts do not spell the word, they cannot be located in the text.
            if spelled != form:
                parts = [(form, parts[0][1])]
        words += parts
        if "SpaceAfter=No" not in row[9]:
            words.append((" ", "_"))
    return words
