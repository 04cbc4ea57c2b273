"""Labelled text out of files: records of tasks, and gold annotations.

Unlike a corpus, where a bad line is skipped and counted, a damaged labelled file is refused with
the place of the
damage: a score on half of a test set is a wrong score. So each file is read whole. Nothing is
    unpickled, and no code
that comes with a data set is run.

- `read_records`: plain records (dicts of columns) from JSON, tables, CoNLL columns and Parquet;
- `read_conllu`: the documents of a CoNLL-U file with their parts of speech;
- `given_spans`: spans beside a text, as in JSON lines.

Cost: a Python step for each token of CoNLL, 1–2 µs; gold is small.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskwise.constants import UPOS
from maskwise.errors import MaskwiseError
from maskwise.text.layers import CharSpans, Layer, check_spans
from maskwise.text.readers import damaged, load_hub, opened, parquet_rows
from maskwise.text.tables import Record, read_table

POS = Layer("categorical", UPOS)

_ROPES = ("background", "situation")
_LARGEST_FILE = 1 << 30  # bytes, inflated
# A comment stands before a sentence and has no tab; "# O" is a sentence that begins with a hash.
_COMMENT = re.compile(r"#(?!\S* (O|[BIES]-\S+)$)[^\t]*$")


def read_records(path: Path, *, header: bool = True) -> list[Record]:
    """The records of one file, by its ending (``.gz`` allowed for all but Parquet).

    Args:
        header: whether tables (.csv, .tsv) begin with the names of their columns; if not, these are
            "1", "2", ….

    Raises:
        MaskwiseError: an unknown ending, a file that is not UTF-8, damaged, or not what its ending
            says.
    """
    ending = ending_of(path)
    if path.name.lower().removesuffix(".gz").endswith(".ttl"):
        do = "write JSON lines: input with [START_ENT] name [END_ENT], output with the title"
        raise MaskwiseError(f"{path}: NIF's Turtle is not read any more", got=".ttl", do=do)
    if ending is None:
        raise MaskwiseError(f"unknown ending of task file {path}", allowed=", ".join(READERS))
    if not header and ending in TABLES:
        return TABLES[ending](path, header=False)
    return READERS[ending](path)


def ending_of(path: Path) -> str | None:
    """The ending by which a file is read; None where there is no reader."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in READERS if name.endswith(ending)), None)


def read_hub(spec: str) -> dict[str, list[Record]]:
    """All splits of "hf:ID[:config]"; class numbers become class names where the data set knows
    them.
    """
    name, _, config = spec.removeprefix("hf:").partition(":")
    return {
        str(split): _with_class_names(rows) for split, rows in load_hub(spec, name, config).items()
    }


def _with_class_names(rows: Any) -> list[Record]:
    names = {}
    for column, feature in rows.features.items():
        inner = getattr(feature, "feature", feature)  # a list of classes, as in tagging
        if hasattr(inner, "int2str"):
            names[column] = inner.names
    return [{k: _named(v, names[k]) if k in names else v for k, v in row.items()} for row in rows]


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def read_text(path: Path, *, or_latin1: bool = False) -> str:
    """The text of a file; ``or_latin1``: one that is not UTF-8 is Latin-1, as SentEval's older
    files are.

    Raises:
        MaskwiseError: a file that cannot be read, is not UTF-8, or holds more than a gigabyte.
    """
    with damaged(path), opened(path) as file:
        content = file.read(_LARGEST_FILE)
        if file.read(1):
            raise MaskwiseError(f"{path} holds more than a gigabyte", do="give a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if or_latin1:
            return content.decode("latin-1")
        do = "convert it, for example with iconv -f LATIN1 -t UTF-8"
        raise MaskwiseError(f"{path} is not UTF-8 text (byte {error.start})", do=do) from None


def _read_json_lines(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            what = f"line {number} of {path} is not a JSON object"
            raise MaskwiseError(what, got=line[:60], allowed="JSON lines")
        records.append(record)
    return records


def _read_json(path: Path) -> list[Record]:
    """One JSON value: SQuAD's tree, TriviaQA's, a list of objects or objects by name; else JSON
    lines.
    """
    try:
        whole = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return _read_json_lines(path)
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        return _squad(whole["data"], path)
    if isinstance(whole, dict) and isinstance(whole.get("Data"), list):
        whole = whole["Data"]  # TriviaQA's
    if (
        isinstance(whole, dict)
        and len(whole) > 1
        and all(isinstance(v, dict) for v in whole.values())
    ):
        whole = list(whole.values())  # objects by their names
    if isinstance(whole, list) and all(isinstance(record, dict) for record in whole):
        return whole
    return _read_json_lines(path)


def _squad(articles: list[Any], path: Path) -> list[Record]:
    """data > paragraphs > context (of ROPES: background and situation), qas > question, answers."""
    records = []
    try:
        for article in articles:
            title = {"article_title": article["title"]} if article.get("title") else {}
            for paragraph in article["paragraphs"]:
                parts = _ROPES if "situation" in paragraph else ("context",)
                text = {part: paragraph[part] for part in parts}
                for qa in paragraph["qas"]:
                    asked = {"question": qa["question"], "answers": qa["answers"]}
                    records.append({"id": qa.get("id"), **text, **asked, **title})
    except (KeyError, TypeError, AttributeError) as error:
        allowed = "data > paragraphs > context, qas > question, answers"
        raise MaskwiseError(
            f"{path} is not SQuAD's JSON", got=f"no {error}", allowed=allowed
        ) from None
    return records


def _read_csv(path: Path, *, header: bool = True) -> list[Record]:
    return read_table(read_text(path), path, usual=",", header=header)


def read_tsv(path: Path, *, header: bool = True) -> list[Record]:
    """Cells between tabs, as they stand, unless nearly every row has quoted ones."""
    return read_table(read_text(path), path, usual="\t", header=header)


def _read_parquet(path: Path) -> list[Record]:
    with damaged(path):
        return list(parquet_rows(path))


# ---- CoNLL


def sentences(path: Path, *, columns: int) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The comments and the rows, of at least ``columns`` cells, of each sentence of a CoNLL file."""
    comments, rows = list[str](), list[list[str]]()
    for number, line in enumerate([*read_text(path).split("\n"), ""], start=1):
        line = line.rstrip("\r")
        if not line.strip():
            if rows:
                yield comments, rows
                comments, rows = [], []
        elif _COMMENT.match(line) and not rows:
            comments.append(line)
        elif not line.startswith("-DOCSTART-"):
            cells = line.split("\t") if "\t" in line else line.split(" ")
            if len(cells) < columns:
                wrong, form = (
                    ("is not CoNLL-U", "10 columns")
                    if columns == 10
                    else ("has no tag", "token<TAB>tag")
                )
                raise MaskwiseError(f"line {number} of {path} {wrong}", got=line[:60], allowed=form)
            rows.append(cells)


def _tagged(
    path: Path, token: Callable[[list[str]], tuple[str, str]], *, columns: int = 2
) -> list[Record]:
    """Records of "tokens" and "tags"; CoNLL-U's ranges (``3-4``) and empty nodes (``3.1``) are no
    words.
    """
    records = []
    for _, rows in sentences(path, columns=columns):
        words = rows if columns == 2 else [row for row in rows if row[0].isdigit()]
        if words:
            tokens, tags = zip(*map(token, words), strict=True)
            records.append({"tokens": list(tokens), "tags": list(tags)})
    return records


def _read_conllu_records(path: Path) -> list[Record]:
    """FORM and UPOS, or of three columns the last."""
    return _tagged(path, lambda row: (row[1], row[min(3, len(row) - 1)]), columns=3)


def _read_conll_records(path: Path) -> list[Record]:
    """Token first, tag last; in the five columns of Universal NER: number, token, tag, and two
    more.
    """
    numbered = ending_of(path) == ".iob2"
    return _tagged(
        path, lambda row: (row[1], row[2]) if numbered and len(row) == 5 else (row[0], row[-1])
    )


class GoldDocument(NamedTuple):
    """A text with what is known about it. ``layers`` are as an annotator's."""

    id: str
    text: str
    layers: dict[str, CharSpans]


def read_conllu(path: Path) -> Iterator[GoldDocument]:
    """The documents of a CoNLL-U file (``.gz`` allowed) with their layer "pos".

    Sentences are joined by a blank, paragraphs (``# newpar``) by a line break. A surface word that
    stands for several syntactic ones ("don't" = do + n't) is cut where their forms say so; where
    they do not spell it ("im" = I + am), all of it gets the first one's tag. Without ``# newdoc``
    the file is one document.

    Raises:
        MaskwiseError: a file that cannot be read, or a line that is not CoNLL-U.
    """
    document, text = path.name, ""
    spans: list[tuple[int, int, int]] = []
    for comments, rows in sentences(path, columns=10):
        names = [c.partition("=")[2].strip() for c in comments if c.startswith("# newdoc")]
        if names:
            if text:
                yield GoldDocument(document, text, {"pos": CharSpans.of(spans, POS)})
            document, text, spans = names[0] or f"{path.name}#0", "", []
        if text:
            text += "\n" if any(c.startswith("# newpar") for c in comments) else " "
        try:
            sentence, words = _surface(rows, path)
        except (ValueError, KeyError, IndexError) as error:
            if isinstance(error, MaskwiseError):
                raise
            what = f"{path} is not CoNLL-U: its words are not numbered one after the other"
            raise MaskwiseError(
                what, got=f"a sentence that begins with {' '.join(rows[0][:2])!r}"
            ) from None
        spans += [(start + len(text), end + len(text), code) for start, end, code in words]
        text += sentence
    if text:
        yield GoldDocument(document, text, {"pos": CharSpans.of(spans, POS)})


def _surface(rows: list[list[str]], path: Path) -> tuple[str, list[tuple[int, int, int]]]:
    """A sentence's text and its words as (start, end, code)."""
    text = ""
    spans = []
    words = {row[0]: row for row in rows}
    inside = 0  # words up to this number belong to a surface word that is already written
    for row in rows:
        number, _, last = row[0].partition("-")
        if "." in number or (not last and int(number) <= inside):
            continue
        parts = [(row[1], row[3])]
        if last:
            inside = int(last)
            members = [words[str(i)] for i in range(int(number), inside + 1)]
            parts = [(member[1], member[3]) for member in members]
            if "".join(form for form, _ in parts) != row[1]:
                parts = [(row[1], members[0][3])]
        for form, tag in parts:
            if tag in UPOS:
                spans.append((len(text), len(text) + len(form), UPOS.index(tag) + 1))
            elif tag != "_":
                raise MaskwiseError(
                    f"{path}: not a universal part of speech", got=tag, allowed=UPOS
                )
            text += form
        if "SpaceAfter=No" not in row[9]:
            text += " "
    return text.rstrip(), spans


def given_spans(
    spans: Sequence[Sequence[Any]], *, text: str, labels: Sequence[str] = ()
) -> CharSpans:
    """The spans that a record brings along, [start, end] or [start, end, label] in characters of
    its text.

    Args:
        labels: those that may occur; without them the spans have no value, and labels are left out.

    Raises:
        MaskwiseError: a span that is not of that form, an unknown label, spans that overlap or
            leave the text.
    """
    layer = Layer("spans", tuple(labels))
    rows = []
    for span in spans:
        least = 3 if labels else 2
        if (
            not isinstance(span, (list, tuple))
            or not least <= len(span) <= 3
            or not _whole(span[:2])
        ):
            form = "[start, end, label]" if labels else "[start, end]"
            raise MaskwiseError("a span of another form", got=span, allowed=f"{form} in characters")
        if labels and span[2] not in layer.labels:
            raise MaskwiseError(
                "a span with an unknown label", got=span[2], allowed=", ".join(labels)
            )
        rows.append((*span[:2], layer.labels.index(span[2]) + 1) if labels else tuple(span[:2]))
    laid = CharSpans.of(rows, layer)
    check_spans(laid, layer, len(text), name="given spans")
    return laid


def _whole(numbers: Sequence[Any]) -> bool:
    return all(isinstance(n, int) and not isinstance(n, bool) and abs(n) < 2**31 for n in numbers)


READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _read_json_lines,
    ".jsonlines": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": read_tsv,
    ".conllu": _read_conllu_records,
    ".conll": _read_conll_records,
    ".conll.txt": _read_conll_records,
    ".iob2": _read_conll_records,
    ".parquet": _read_parquet,
}
TABLES: dict[str, Callable[..., list[Record]]] = {".csv": _read_csv, ".tsv": read_tsv}
