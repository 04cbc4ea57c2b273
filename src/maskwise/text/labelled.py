"""Read labelled files: the records of tasks, and texts with correct annotations.

Most files are read by ``readers.records``, which raises an error with the line number if a line is
bad, and tables by ``tables.read_table``. Added here are the nested JSON of published questions,
CoNLL, tables without a header, and data sets of the hub with all splits. Labelled files are read at
once. ``tasks.columns`` then chooses their columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from maskwise.constants import UPOS
from maskwise.errors import MaskwiseError
from maskwise.text.layers import CharSpans, Found, Layer
from maskwise.text.opening import damaged, open_text
from maskwise.text.readers import known_ending, load_hub, records
from maskwise.text.tables import FieldValues, read_table

POS = Layer("categorical", UPOS)

# A comment precedes a sentence and has no tab. "# O" is no comment, but the token "#" with tag O.
_COMMENT = re.compile(r"#(?!\S* (O|[BIES]-\S+)$)[^\t]*$")

Span = tuple[int, int, int]
"""(start, end, label code) in characters; the end is exclusive."""


def read_records(path: Path, *, header: bool = True) -> list[FieldValues]:
    """Read the records of a file in the format of its extension.

    ``.gz`` may follow any extension except Parquet's.

    Args:
        path: the file.
        header: whether tables (.csv, .tsv) begin with column names. Otherwise, the columns are
            named "1", "2", ….

    Raises:
        MaskwiseError: the extension is unknown; or the file is not UTF-8, is damaged, or is not in
            the format of its extension.
    """
    ending = ending_of(path)
    if ending is None:
        raise MaskwiseError(f"unknown extension of task file {path}", allowed=", ".join(READERS))
    if ending in TABLES:
        return read_cells(path, header=header)
    return READERS[ending](path)


def ending_of(path: Path) -> str | None:
    """Return the file extension that selects the reader, or None if there is no reader."""
    return known_ending(Path(path.name.lower().removesuffix(".gz")), READERS)


def read_hub(spec: str) -> dict[str, list[FieldValues]]:
    """Return the records of the data set "hf:ID[:config]", keyed by split.

    Class numbers are replaced by class names.
    """
    name, _, config = spec.removeprefix("hf:").partition(":")
    splits = {}
    for split, rows in load_hub(spec, name, config).items():
        splits[str(split)] = list(with_class_names(rows, rows.features))
    return splits


def with_class_names(rows: Iterable[Any], features: Mapping[str, Any]) -> Iterable[Any]:
    """Return the rows of a data set with class names in place of class numbers.

    Args:
        rows: dicts.
        features: the features of the data set, keyed by column; {} for rows as they are.
    """
    names = {}
    for column, feature in features.items():
        # In tagging tasks, the feature is a list, and its items' feature has the class names.
        if hasattr(feature, "feature"):
            feature = feature.feature
        if hasattr(feature, "int2str"):
            names[column] = feature.names
    if not names:
        return rows
    return ({**row, **{key: _named(row[key], names[key]) for key in names}} for row in rows)


def _named(value: object, names: list[str]) -> object:
    """Replace class numbers with class names; return other values unchanged."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        MaskwiseError: the file cannot be read, is not UTF-8, or has more than a gigabyte.
    """
    with damaged(path), open_text(path, "raise") as file:
        return file.read().decode("utf-8-sig")


def _read_objects(path: Path) -> list[FieldValues]:
    """Read a file that ``records`` reads, whose records must be objects."""
    objects = []
    for name, record in records(path, bad="raise"):
        if not isinstance(record, dict):
            raise MaskwiseError(
                f"record {name.rpartition('#')[2]} of {path} is not a JSON object",
                got=repr(record)[:60],
                allowed="objects whose fields hold the text and the label",
            )
        objects.append(record)
    return objects


def _read_json(path: Path) -> list[FieldValues]:
    """Read SQuAD's or TriviaQA's JSON, an object or a list of objects, or JSON lines."""
    text = read_text(path)
    whole = None
    if text.lstrip().startswith("{"):
        # JSON lines are no JSON as a whole.
        with suppress(ValueError, RecursionError):
            whole = json.loads(text)
    if isinstance(whole, dict):
        if isinstance(whole.get("data"), list):
            return _squad(whole["data"], path)
        # TriviaQA's key is "Data", with a capital letter.
        values = whole.get("Data")
        if not isinstance(values, list) and len(whole) > 1:
            values = list(whole.values())
        if isinstance(values, list) and all(isinstance(value, dict) for value in values):
            if values and all(key.isdecimal() for value in values for key in value):
                raise MaskwiseError(
                    f"{path} has an object for each column, and none for each row",
                    got=", ".join(whole),
                    do="write it again, such as with pandas' to_json(orient='records')",
                )
            return values
        # JSON lines with one record have one line.
        if "\n" in text.strip():
            raise MaskwiseError(
                f"{path} is one JSON object",
                got=f"an object with {', '.join(whole)}",
                allowed="a list of objects, JSON lines, or the JSON of SQuAD or TriviaQA",
            )
    return _read_objects(path)


def _squad(articles: list[Any], path: Path) -> list[FieldValues]:
    """Return one record per question of SQuAD's nested JSON, or of ROPES's."""
    records = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                # SQuAD has one text for each question ("context"), and ROPES has two.
                texts = ("background", "situation") if "situation" in paragraph else ("context",)
                given = {name: paragraph[name] for name in texts}
                for qa in paragraph["qas"]:
                    record = {"id": qa.get("id"), **given}
                    record["question"] = qa["question"]
                    record["answers"] = qa["answers"]
                    if article.get("title"):
                        record["article_title"] = article["title"]
                    records.append(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise MaskwiseError(
            f"{path} is not SQuAD's JSON",
            got=f"an object without {error}",
            allowed="data > paragraphs > context, qas > question, answers",
        ) from None
    return records


def read_cells(path: Path, *, header: bool = True, usual: str | None = None) -> list[FieldValues]:
    """Read a .csv or .tsv file; `tables.read_table` describes the arguments."""
    return list(read_table(path, header=header, usual=usual, bad="raise"))


# ---- CoNLL


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


def _read_conll_records(path: Path) -> list[FieldValues]:
    """Return the tokens and tags of each sentence.

    They are in the first and the last column of a row, with two exceptions: in .conllu files, in
    the columns FORM and UPOS (or in the last two of three columns); and in Universal NER's .iob2
    files, in the second and the third of five columns.
    """
    ending = ending_of(path)
    records = []
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
            records.append({"tokens": tokens, "tags": tags})
    return records


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


TABLES = (".csv", ".tsv")
READERS: dict[str, Callable[[Path], list[FieldValues]]] = {
    ".jsonl": _read_objects,
    ".jsonlines": _read_objects,
    ".json": _read_json,
    **dict.fromkeys(TABLES, read_cells),
    ".conllu": _read_conll_records,
    ".conll": _read_conll_records,
    ".conll.txt": _read_conll_records,
    ".iob2": _read_conll_records,
    ".parquet": _read_objects,
}
"""Readers by file extension."""
