"""Load tasks from bundled data, a file, a folder or the hub.

Fixed rules decide which rows are dropped or moved. The task's notes list the rules that applied:

- The classes are the labels that occur in *train*. Answers for test rows of other classes always
  count as wrong.
- A row without a label is dropped and counted. A row has no label if its label cell is empty or is
  one of the labels in ``missing``. "-1", "NA" and "null" are ordinary labels, but the notes mention
  them. If every label in a split is −1, the split is unlabelled.
- Whole numbers are classes if there are few of them or if they have no gaps
  (``classes.MOST_CLASSES``). Otherwise they are quantities.
- Without a labelled test split, dev becomes test. Without dev, 15 % of train becomes dev. Without
  train, dev becomes train.
- A single file, or train alone, is split 70/15/15 by a hash of the text, article or context.
- A kind without training, such as zero-shot similarity, is scored on test. Without test, it is
  scored on dev, and without dev on all rows.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from maskwise.errors import MaskwiseError, counted, require_known, unknown_name
from maskwise.plugins import Table
from maskwise.specs import read_options
from maskwise.tasks.classes import (
    MULTI_LABEL,
    REGRESSION,
    SEQUENCE_CLASSIFICATION,
    SIMILARITY,
    TOKEN_CLASSIFICATION,
)
from maskwise.tasks.columns import (
    DOUBTFUL,
    HIDDEN,
    NO_LABEL,
    TEMPLATE_TEXT,
    ColumnNames,
    Names,
    Records,
    find_columns,
    first_in,
    flat,
    guess_columns,
    labels_in,
    number_of,
    with_text,
    without,
)
from maskwise.tasks.embeddings import (
    RETRIEVAL,
    SENTENCE_EMBEDDING,
    ZERO_SHOT_SIMILARITY,
)
from maskwise.tasks.questions import MULTIPLE_CHOICE, QUESTION_ANSWERING
from maskwise.tasks.reading import (
    CARDS,
    TableOptions,
    group_key,
    groups_note,
    merged,
    only_test,
    read_splits,
    records_where,
    shared_names,
    shared_text,
    splits_of,
    state_of,
)
from maskwise.tasks.task import SPLITS, Row, Task, TaskKind, TaskRows, all_classes
from maskwise.tasks.written import CLOZE_QA, generation
from maskwise.text.documents import refuse_gone
from maskwise.text.labelled import Record

_BUILT_IN = {
    kind.name: kind
    for kind in (
        # By default, the first kind that recognises the columns of a file is chosen.
        TOKEN_CLASSIFICATION,
        MULTIPLE_CHOICE,
        QUESTION_ANSWERING,
        generation(),
        SIMILARITY,
        REGRESSION,
        MULTI_LABEL,
        SEQUENCE_CLASSIFICATION,
        # These kinds are used only if the user names them.
        CLOZE_QA,
        ZERO_SHOT_SIMILARITY,
        SENTENCE_EMBEDDING,
        RETRIEVAL,
    )
}
KINDS = Table("kind of task", "maskwise.kinds", _BUILT_IN, of=TaskKind)
"""The kinds of tasks. To add a kind, create a ``TaskKind`` and list it here."""
POOLINGS = ("mean", "cls", "dev")
# These two bundled tasks are read from the same file, but have different label columns.
_LABEL_OF = {"ud-pos": "tags", "ud-relations": "relations"}
# Published metrics that differ from the default of the kind, keyed by the name of the data folder.
_USUAL_METRIC = {"cola": "matthews"}


def load_task(
    spec: str | Path,
    *,
    kind: str | None = None,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    where: str | None = None,
    split_by: str | None = None,
    missing: str | float | tuple[str | float, ...] | None = None,
    card: str | None = None,
    metric: str | None = None,
    pooling: str | None = None,
    train_rows: int | None = None,
    test_rows: int | None = None,
    name: str | None = None,
    **settings: object,
) -> Task:
    """Load a task from bundled data, a file, a folder or the hub.

    Args:
        spec: one of the following:

            - a bundled name: banking77, clinc150, trivia, ud-pos, ud-relations, wikigold, wnut17,
              or ``bundled:NAME`` for another bundled file, such as ``bundled:world-0-questions``;
            - the name of a card (``maskwise list cards``), which is loaded from the hub;
            - a .jsonl, .csv, .tsv, .conllu, .conll, .iob2, .parquet or SQuAD .json file, also with
              .gz (not .parquet). The column ``split`` names the split of each row. Without this
              column, the rows are split 70/15/15;
            - a folder with files for train, dev (or validation) and/or test;
            - ``hf:ID`` or ``hf:ID:CONFIG`` for ``datasets.load_dataset``;
            - any of these with arguments of this function: ``ud-pos(train_rows=300)``.
        kind: a name in ``KINDS``. By default, the kind is recognised from the columns. Only
            cloze-qa and frozen kinds must be named.
        text, pair, label: the columns (``ColumnNames``). A column is given by its name, or by its
            position from 1 in a table without a header. The default is the first usual name.
            ``text`` may be a template such as "{question} {context}". ``a|b`` means column a, or
            column b if a does not exist.
        where: a condition "column=value", such as "year=2014". Other rows are dropped.
        split_by: a column with the group of each row, such as its author. No group has rows in two
            splits. A row without a group decides alone.
        missing: one or several labels that mean "not labelled", such as -1 or ("NA", "null"). Rows
            with such a label are dropped and counted, like rows with an empty cell.
        card: the card of a published task, whose arguments are defaults for this function.
        metric: one of the kind's metrics. The default is entity-f1 for BIO tags, matthews for CoLA,
            and the kind's first metric otherwise.
        pooling: "mean" (the default), "cls" or "dev": see ``Task``.
        train_rows, test_rows: see ``Task.with_train_rows`` and ``Task.with_test_rows``.
        name: the task's name in records, by default derived from ``spec``.
        settings: settings of the kind, such as ``beams`` (see ``written.generation``).

    Raises:
        MaskwiseError: the source does not exist or cannot be read, there are no labels or only one
            class, tokens and tags differ in number, a context lacks its answer, or a split is
            empty.

    >>> task = load_task("banking77(train_rows=100)")
    >>> task.kind.name, task.metric, len(task.labels), len(task.splits["train"])
    ('sequence-classification', 'accuracy', 20, 100)
    >>> task.splits["test"][0].label
    'activate_my_card'
    """
    arguments = {**locals(), **settings}
    for apart in ("spec", "settings"):
        del arguments[apart]
    source, given = _options(str(spec))
    given |= {name: value for name, value in arguments.items() if value is not None}
    card = given.pop("card", None)
    by_name = card is None and source in CARDS and not Path(source).exists()
    if by_name:
        card = source
    if card is None:
        return _load(source, given)
    require_known("card", card, CARDS)
    about = CARDS[card]
    if by_name:
        if "hub" not in about:
            raise MaskwiseError(
                f"task {card!r} is not on the hub", do=f"give its folder: FOLDER(card={card!r})"
            )
        source = f"hf:{about['hub']}"
        given = {"name": card, **given}
    return _load(source, {**about["options"], **given, "files": about.get("files", {})})


def _options(spec: str) -> tuple[str, TableOptions]:
    """Split a spec into its source and arguments of ``load_task``."""
    refuse_gone(spec)
    of_kinds = set[str]()
    for kind in KINDS.without_plugins().values():
        if kind.make:
            of_kinds.update(inspect.signature(kind.make).parameters)
    return read_options(spec, load_task, kind="task", example="train_rows=300", also=of_kinds)


_LOADED: dict[str, Task] = {}
MOST_LOADED = 16


def _load(spec: str, given: TableOptions) -> Task:
    """Call ``_read_task``, and cache its result until the task's files change."""
    if spec.startswith("hf:"):
        return _read_task(spec, **given)
    # A study loads the same task in many places.
    key = repr((spec, sorted(given.items()), state_of(spec)))
    if key not in _LOADED:
        if len(_LOADED) == MOST_LOADED:
            del _LOADED[next(iter(_LOADED))]
        _LOADED[key] = _read_task(spec, **given)
    return _LOADED[key]


class HiddenLabels(MaskwiseError):
    """Raised if all rows of a split have the label −1."""


class UnreadableTask(MaskwiseError):
    """Raised if the files of a task cannot be read, whatever they contain."""


def _read_task(
    spec: str,
    *,
    pooling: str = "mean",
    files: Mapping[str, str] | None = None,
    kind: str | None = None,
    text: object = None,
    pair: object = None,
    label: object = None,
    where: str | None = None,
    split_by: str | None = None,
    missing: object = None,
    metric: str | None = None,
    train_rows: int | None = None,
    test_rows: int | None = None,
    name: str | None = None,
    **settings: object,
) -> Task:
    """Read a task from its files, with the arguments of ``load_task``.

    Args:
        files: the file-name patterns in a card.
    """
    if kind is not None:
        require_known("kind of task", kind, KINDS)
    require_known("pooling", pooling, POOLINGS)
    place = f"task {spec!r}"
    if isinstance(missing, Mapping):
        allowed = "a label, or several labels such as ('NA', -1)"
        raise MaskwiseError(f"cannot read missing of {place}", got=missing, allowed=allowed)
    absent = set(labels_in(missing))
    if label is None:
        label = _LABEL_OF.get(spec)
    roles = (text, pair, label)
    given = ColumnNames(*(None if column is None else str(column) for column in roles))
    # If a column is given by its number, the table has no header.
    header = not any(isinstance(column, int) for column in roles)

    records: dict[str, list[Record]] = {}
    shared: dict[str, Names] = {}
    try:
        parts = read_splits(spec, header=header, files=files)
    except MaskwiseError as failure:
        raise UnreadableTask(
            failure.what, got=failure.got, allowed=failure.allowed, do=failure.do
        ) from failure
    for split, part in parts.items():
        whole = [flat(record, given) for record in part]
        # Articles are counted before ``where`` drops rows. The labels of a learned masking policy
        # are read from the whole file, and must get the same splits as the task.
        shared[split] = shared_names(whole)
        records[split] = whole if where is None else records_where(whole, where, place)
    examples: list[Record] = []
    for part in records.values():
        if part and not examples:
            examples = [without(record, absent) for record in (merged(part), *part)]

    notes: list[str] = []
    chosen = KINDS[kind] if kind else _recognised(examples, given)
    if examples and kind is None and chosen is SEQUENCE_CLASSIFICATION:
        given, notes = guess_columns(examples, given, chosen.columns, place)
        chosen = _recognised(examples, given)
    if settings:
        make: Callable[..., TaskKind] = chosen.make or (lambda: chosen)
        known = {*inspect.signature(load_task).parameters} - {"spec", "settings"}
        known.update(inspect.signature(make).parameters)
        for option in settings:
            require_known(f"argument of {chosen.name} {place}", option, known)
        chosen = make(**settings)
    template = given.text or ""
    if "{" in template:
        for split, part in records.items():
            records[split] = [with_text(record, template, place) for record in part]
        given = given._replace(text=TEMPLATE_TEXT)
    if examples:
        given = ColumnNames(*(_present(column, examples[0]) for column in given))

    skipped = Counter[str]()
    keyed: dict[str, list[tuple[str, Row]]] = {}
    fields = given
    seen = set[str]()
    hidden = False
    for split, part in records.items():
        keyed[split] = []
        if not part:
            continue
        unlabelled = f"{split}: {NO_LABEL}"
        columns = merged(part)
        if split_by is not None and split_by not in columns:
            raise unknown_name(f"split_by column of {place}", split_by, map(str, columns))
        # Benchmarks publish test rows without the label column, or with −1 as every label.
        label_columns = {fields.label, f"{fields.label}1"}
        if split == "test" and fields.label and label_columns.isdisjoint(columns):
            skipped[unlabelled] = len(part)
            continue
        fields = find_columns(chosen.columns, columns, given, place)
        label_column = fields.label or ""
        found = set(labels_in([record.get(label_column) for record in part]))
        seen |= found
        if found == {HIDDEN}:
            hidden = True
            notes.append(f"every label of {split} is −1, so this split counts as unlabelled")
            skipped[unlabelled] = len(part)
            continue
        for number, record in enumerate(part, start=1):
            if absent and label_column:
                cell = without(record.get(label_column), absent)
                record = {**record, label_column: cell}
            row = chosen.row(record, fields, f"row {number} of {split} of {place}")
            if isinstance(row, str):
                skipped[f"{split}: {row}"] += 1
            else:
                key = group_key(record, split_by) or shared_text(record, shared[split]) or row.key
                keyed[split].append((key, row))

    splits: Mapping[str, TaskRows]
    needed: Names = SPLITS
    if chosen.needs_train:
        splits, cuts = splits_of(keyed, place)
    else:
        needed = ("test",)
        splits, cuts = only_test(keyed)
    if split_by is not None:
        notes.append(groups_note(keyed, splits, f"{place}: split_by={split_by}"))
    for split in needed:
        if not splits[split]:
            what = f"the {split} split of {place} is empty"
            if not skipped:
                raise MaskwiseError(what, do="give more rows")
            error = HiddenLabels if hidden else MaskwiseError
            raise error(what, got=f"skipped {counted(skipped)}", do="label more rows")
    if pooling == "dev" and not splits["dev"]:
        raise MaskwiseError(
            f'pooling="dev" for {place} needs dev rows',
            got="none",
            do='give it a dev split, or choose pooling="mean" or pooling="cls"',
        )

    rows: TaskRows = splits["train" if chosen.needs_train else "test"]
    if chosen.every_label:
        rows = list(chain.from_iterable(splits.values()))
    table = place
    if skipped:
        # An error names the number of skipped rows, which may explain why only one class is left.
        table = f"{place} (skipped {counted(skipped)})"
    labels = chosen.labels(rows, table)
    published = _USUAL_METRIC.get(Path(spec).name.lower())
    if metric is None and published in chosen.metrics:
        metric = published
    notes += cuts
    unseen = {*all_classes(splits["test"])}.difference(labels)
    if unseen:
        lacking = f"train lacks {len(unseen)} classes of test"
        notes.append(f"{lacking}, whose items always count as wrong, such as {min(unseen)!r}")
    notes += _notes_on_labels(labels, absent - seen)
    if kind is None:
        notes += _note_on_numbers(chosen, seen - absent, paired=fields.pair is not None)
    task = Task(
        name=name or _short_name(spec) + chosen.suffix,
        kind=chosen,
        metric=chosen.metric_for(labels, metric),
        labels=labels,
        splits={split: tuple(rows) for split, rows in splits.items()},
        skipped=skipped,
        notes=tuple(notes),
        pooling=pooling,
        columns={
            role: column
            for role, column in fields._asdict().items()
            if column and column != TEMPLATE_TEXT
        },
    )
    return task.with_train_rows(train_rows).with_test_rows(test_rows)


def _recognised(records: Records, given: ColumnNames) -> TaskKind:
    """Return the first kind that recognises the records, or classification if none does.

    A kind of another package is used only if the user names it.
    """
    for kind in KINDS.without_plugins().values():
        if records and kind.recognises(records, given):
            return kind
    return SEQUENCE_CLASSIFICATION


def _present(column: str | None, record: Record) -> str | None:
    """Return the first of the columns "a|b" that the record has, or the name as it was given."""
    if column is None or column in record:
        return column
    return first_in(column.split("|"), record) or column


def _note_on_numbers(chosen: TaskKind, labels: set[str], *, paired: bool) -> list[str]:
    """Note whether whole numbers were read as classes or as quantities."""
    if chosen is SEQUENCE_CLASSIFICATION:
        other = SIMILARITY if paired else REGRESSION
    elif chosen in (SIMILARITY, REGRESSION):
        other = SEQUENCE_CLASSIFICATION
    else:
        return []
    for label in labels:
        number = number_of(label)
        if number is None or not number.is_integer():
            return []
    # Two labels, such as 0 and 1, are certainly classes.
    if len(labels) < 3:
        return []
    guess = f"the labels are {len(labels)} whole numbers, so the kind is {chosen.name}"
    return [f"{guess}; give kind={other.name!r} to change it"]


def _short_name(spec: str) -> str:
    if spec.startswith("hf:"):
        return spec.removeprefix("hf:").replace("/", "-").replace(":", "-")
    return Path(spec.removeprefix("bundled:")).absolute().name.split(".")[0]


def _notes_on_labels(labels: Sequence[str], unused: set[str]) -> list[str]:
    """Note labels that often mean "missing", and labels in ``missing`` that never occur."""
    notes = []
    doubtful = ", ".join(repr(label) for label in labels if label.lower() in DOUBTFUL)
    if doubtful:
        notes.append(f"{doubtful} counts as a class; missing=({doubtful}) drops such rows")
    if unused:
        names = ", ".join(sorted(map(repr, unused)))
        notes.append(f"missing={names} does not occur among the labels, so it drops no row")
    return notes
