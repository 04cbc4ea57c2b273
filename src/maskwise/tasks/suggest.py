"""Say what a labelled file is if nobody does: its kind of task, and its columns.

Nothing else about a labelled file is guessed, and nowhere else. Commands write the answer into the
recipe or the folder of their results (``Task.suggested``). Whoever reads it there asks nothing
here, so a file that gets more rows stays a task of the same kind.
"""

from __future__ import annotations

from itertools import chain
from statistics import fmean

from maskwise.tasks.columns import (
    ABOUT_TEXTS,
    ColumnNames,
    Records,
    choices_of,
    first_in,
    label_of,
    may_be_number,
    pair_in,
    require_number,
)
from maskwise.tasks.kinds.classes import (
    BETWEEN_LABELS,
    LABEL,
    MULTI_LABEL,
    NUMBER_COLUMNS,
    PAIRS,
    REGRESSION,
    SCORE_COLUMNS,
    SEQUENCE_CLASSIFICATION,
    SEVERAL_COLUMNS,
    SIMILARITY,
    TEXT,
    TOKEN_CLASSIFICATION,
    WORDS,
)
from maskwise.tasks.kinds.embeddings import PAIRS as QUERIES
from maskwise.tasks.kinds.embeddings import RETRIEVAL
from maskwise.tasks.kinds.questions import MULTIPLE_CHOICE, QUESTION_ANSWERING
from maskwise.tasks.kinds.written import GENERATION
from maskwise.tasks.task import TaskKind
from maskwise.text.tables import refuse_rows_as_names

TOGETHER = (
    *(("input", "output"), ("source", "target"), ("article", "highlights")),
    *(("document", "summary"), ("dialogue", "summary"), ("dialogue", "summary1")),
    *(("question", "answer"), ("question", "answers")),
)
"""Pairs of columns of files for generation."""
MOST_LABELS = 200
"""A column with more distinct parts holds texts, whose bars or semicolons are punctuation."""
MOST_CLASSES, MOST_NUMBERED_CLASSES, ROWS_A_CLASS = 20, 1000, 7
"""If a column has at most 20 distinct whole numbers, they are classes. If it has 21 to 1,000, they
are classes only if they have no gaps (0, 1, 2, … or 1, 2, 3, …) and 7 rows each on average."""
LEAST_WORDS, LEAST_LETTERS = 3, 30
"""The smallest mean length of a text in a column of texts. The unit is words, or letters if the
texts are sequences without spaces, such as proteins."""


def suggest(records: Records, given: ColumnNames, where: str) -> tuple[TaskKind, ColumnNames]:
    """Return the kind of labelled records, and the columns of unusual names.

    Args:
        records: the rows. The first record is not a row: it merges the columns of all rows.
        given: the columns that the user named.
        where: the table, for error messages.

    Raises:
        MaskwiseError: the names of the columns look like a row, or labels are numbers with signs
            of currencies.

    >>> table = [{"Kommentar": "ein schöner langer Tag", "Note": "gut"}] * 2
    >>> kind, columns = suggest(table, ColumnNames(), "the table")
    >>> kind.name, columns
    ('sequence-classification', ColumnNames(text='Kommentar', pair=None, label='Note'))
    """
    kind = _kind_of(records, given)
    if records and kind is SEQUENCE_CLASSIFICATION:
        given = _columns_of(records, given, where)
        kind = _kind_of(records, given)
    return kind, given


def _kind_of(records: Records, given: ColumnNames) -> TaskKind:
    first = records[0] if records else {}
    names = first.keys()
    if any(isinstance(first.get(name), list) for name in ([given.text] if given.text else WORDS)):
        return TOKEN_CLASSIFICATION
    if choices_of(first)[1]:
        return MULTIPLE_CHOICE
    if {"context", "question"} <= names and {"answers", "answer"} & names and not given.label:
        return QUESTION_ANSWERING
    if not (given.text or given.label) and any({*pair} <= names for pair in TOGETHER):
        return GENERATION
    # Titles and texts are the columns of a corpus.
    queries = any({*pair} <= names for pair in QUERIES if pair != ("title", "text"))
    labels = given.label or first_in((*SEVERAL_COLUMNS.label, *NUMBER_COLUMNS), first)
    if queries and not labels:
        return RETRIEVAL
    _, pair = pair_in(first, given, PAIRS)
    if pair in first:
        label = given.label or first_in(("label", *SCORE_COLUMNS), first)
        if label in SCORE_COLUMNS or _are_quantities(records, label):
            return SIMILARITY
    elif first_in((given.text or "", *TEXT), first):
        label = given.label or first_in(NUMBER_COLUMNS, first)
        if _are_quantities(records, label):
            return REGRESSION
    return MULTI_LABEL if _have_several(records, given) else SEQUENCE_CLASSIFICATION


def _are_quantities(records: Records, column: str | None) -> bool:
    """Return whether all labels are numbers but not classes (see ``MOST_CLASSES``).

    Raises:
        MaskwiseError: a number has a currency sign, percent sign or thousands separator.
    """
    # Labels are sorted so that an error always names the same label.
    cells = [record.get(column or "") for record in records]
    labels = sorted({str(cell) for cell in cells if label_of(cell) is not None})
    # If one label is a word ("cheap"), the labels are classes, and a class may be called "$5".
    if not all(map(may_be_number, labels)):
        return False
    values = {require_number(label, f"column {column!r}") for label in labels}
    has_fractions = not all(map(float.is_integer, values))
    if has_fractions or len(values) <= MOST_CLASSES:
        return has_fractions
    first = min(values)
    are_numbered = first in (0, 1) and max(values) - first == len(values) - 1
    return len(values) > min(MOST_NUMBERED_CLASSES, len(records) / ROWS_A_CLASS) or not are_numbered


def _have_several(records: Records, given: ColumnNames) -> bool:
    """Return whether the labels of texts are lists, or are joined by bars or semicolons."""
    first = records[0] if records else {}
    label = first_in([given.label] if given.label else SEVERAL_COLUMNS.label, first)
    text = first_in(TEXT, first) or given.text or ""
    if label is None or (len(records) > 1 and not isinstance(records[1].get(text), str)):
        return False
    cells = [record.get(label) for record in records]
    if any(isinstance(cell, list) for cell in cells):
        return True
    # Each distinct cell is split only once, because most cells are repeated.
    whole = {cell for cell in cells if isinstance(cell, str)}
    parts = set(chain.from_iterable(map(BETWEEN_LABELS.split, whole)))
    joined = any(map(BETWEEN_LABELS.search, whole))
    return joined and len(parts) <= min(MOST_LABELS, len(whole))


def _columns_of(records: Records, given: ColumnNames, where: str) -> ColumnNames:
    """Find the text and the label of a table with unusual column names.

    The column with the longest texts becomes the text. If only one other column is left, that
    column becomes the label.
    """
    names = [str(name) for name in records[0] if name not in ("id", "split")]
    text, pair = pair_in(names, given, PAIRS)
    # The second text of a pair would become the label.
    if pair:
        return given
    text = text or first_in(TEXT, names)
    if text is None:
        words = {}
        for name in names:
            if isinstance(records[0].get(name), str):
                words[name] = _mean_words(records, name)
        text = max(words, key=words.__getitem__, default="")
        if not text or words[text] < LEAST_WORDS:
            return given
        refuse_rows_as_names(records, text, where)
        given = given._replace(text=text)
    # The rows of an article repeat its title, source and date, which therefore look like labels.
    rest = [name for name in names if name != text and name.lower() not in ABOUT_TEXTS]
    if len(rest) == 1 and given.label is None and not first_in(LABEL, rest):
        given = given._replace(label=rest[0])
    return given


def _mean_words(records: Records, name: str) -> float:
    """Return the mean number of words per cell; in sequences without spaces, estimate it."""
    texts = [str(record.get(name) or "") for record in records]
    words = fmean(len(text.split()) for text in texts)
    if all(map(str.isalpha, texts)):
        letters = fmean(map(len, texts))
        return max(words, letters * LEAST_WORDS / LEAST_LETTERS)
    return words
