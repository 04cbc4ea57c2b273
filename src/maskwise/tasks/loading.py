"""Load tasks from bundled data, a file, a folder or the hub.

Fixed rules decide which rows are dropped or moved. The task's notes list the rules that applied:

- The classes are the labels that occur in *train*. Answers for test rows of other classes always
  count as wrong.
- A row without a label is dropped and counted. A row has no label if its label cell is empty or is
  one of the labels in ``missing``. "-1", "NA" and "null" are ordinary labels, but the notes mention
  them. If every label in a split is −1, the split is unlabelled.
- Whole numbers are classes if there are few of them or if they have no gaps
  (``suggest.MOST_CLASSES``). Otherwise they are quantities.
- Without a labelled test split, dev becomes test. Without dev, 15 % of train becomes dev. Without
  train, dev becomes train.
- A single file, or train alone, is split 70/15/15 by a hash of the text, article or context.
- A kind without training, such as zero-shot similarity, is scored on test. Without test, it is
  scored on dev, and without dev on all rows.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from maskwise.base.errors import MaskwiseError, option, plural, require_known, shell_word
from maskwise.base.plugins import Table
from maskwise.base.specs import read_options, with_options
from maskwise.masking.line import Names
from maskwise.tasks.columns import (
    DOUBTFUL,
    EMPTY,
    HIDDEN,
    NO_LABEL,
    TEMPLATE_TEXT,
    ColumnNames,
    Records,
    find_columns,
    first_in,
    flat,
    is_empty,
    labels_in,
    with_text,
    without,
)
from maskwise.tasks.kinds.classes import (
    MULTI_LABEL,
    NUMBER_COLUMNS,
    REGRESSION,
    SEQUENCE_CLASSIFICATION,
    SIMILARITY,
    TOKEN_CLASSIFICATION,
)
from maskwise.tasks.kinds.embeddings import (
    RETRIEVAL,
    SENTENCE_EMBEDDING,
    ZERO_SHOT_SIMILARITY,
)
from maskwise.tasks.kinds.questions import MULTIPLE_CHOICE, QUESTION_ANSWERING
from maskwise.tasks.kinds.written import CLOZE_QA, GENERATION
from maskwise.tasks.reading import (
    CARDS,
    Card,
    Layout,
    card_of_folder,
    is_bundled,
    merged_record,
    read_splits,
    records_where,
    require_field,
    state_of_files,
)
from maskwise.tasks.splits import (
    ALL,
    SPLITS,
    dropped,
    only_test,
    shared_names,
    shared_text,
    splits_of,
    task_groups_note,
)
from maskwise.tasks.suggest import suggest
from maskwise.tasks.task import CORPUS, Row, Task, TaskKind, TaskRows, all_classes
from maskwise.text.documents import group_key
from maskwise.text.opening import is_utf8
from maskwise.text.source import NOT_UTF8
from maskwise.text.tables import FieldValues

_BUILT_IN = {
    kind.name: kind
    for kind in (
        TOKEN_CLASSIFICATION,
        MULTIPLE_CHOICE,
        QUESTION_ANSWERING,
        GENERATION,
        SIMILARITY,
        REGRESSION,
        MULTI_LABEL,
        SEQUENCE_CLASSIFICATION,
        CLOZE_QA,
        ZERO_SHOT_SIMILARITY,
        SENTENCE_EMBEDDING,
        RETRIEVAL,
    )
}
KINDS = Table("kind of task", "maskwise.kinds", _BUILT_IN, of=TaskKind)
"""The kinds of tasks. To add a kind, create a ``TaskKind`` and list it here."""
POOLINGS = ("mean", "cls", "last", "dev")
# These two bundled tasks are read from the same file, but have different label columns.
_LABEL_OF = {"ud-pos": "tags", "ud-relations": "relations"}


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
    classes: int | None = None,
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
        kind: a name in ``KINDS``. By default, kind and columns are found in the file, and the task
            says which (``Task.suggested``). Only cloze-qa and frozen kinds must be named.
        text, pair, label: the columns (``ColumnNames``). A column is given by its name, or by its
            position from 1 in a table without a header. The default is the first usual name.
            ``text`` may be a template such as "{question} {context}". ``a|b`` means column a, or
            column b if a does not exist.
        where: a condition "column=value", such as "year=2014". Other rows are dropped. Here and in
            the next argument, a column may be a path into nested objects, such as "meta.year".
        split_by: a column with the group of each row, such as its author. No group has rows in two
            splits. A row without a group decides alone.
        missing: one or several labels that mean "not labelled", such as -1 or ("NA", "null"). Rows
            with such a label are dropped and counted, like rows with an empty cell.
        card: the card of a published task, whose arguments are defaults for this function.
        metric: one of the kind's metrics. The default is entity-f1 for tags of entities, that of
            the card, and the kind's first metric otherwise.
        classes: the number of different labels in all rows, if another number shall be an error.
        pooling: "mean" (the default), "cls", "last" or "dev", of kinds that do not train the
            encoder: see ``Task``.
        train_rows, test_rows: see ``Task.with_train_rows`` and ``Task.with_test_rows``.
        name: the task's name in records, by default derived from ``spec``.
        settings: settings of the kind, such as ``beams`` (see ``written.generation``).

    Raises:
        MaskwiseError: the source does not exist or cannot be read, there are no labels or only one
            class, or other classes than ``classes``; tokens and tags differ in number, a context
            lacks its answer, or a split is empty.

    >>> task = load_task("banking77(train_rows=100)")
    >>> task.kind.name, task.metric, len(task.labels), len(task.splits["train"])
    ('sequence-classification', 'accuracy', 20, 100)
    >>> task.splits["test"][0].label
    'activate_my_card'
    """
    if not isinstance(spec, str | Path):
        raise MaskwiseError(
            "a task is a name, a file or a folder",
            got=type(spec).__name__,
            do="write the rows to a file, such as table.to_csv('mine.csv'); maskwise.finetune and "
            "maskwise.study take rows with a name: tasks={'mine': rows}",
        )
    arguments = {**locals(), **settings}
    for apart in ("spec", "settings"):
        del arguments[apart]
    source, given = options_of(str(spec))
    given |= {name: value for name, value in arguments.items() if value is not None}
    card = given.pop("card", None)
    if card is not None:
        require_known("card", card, CARDS)
    elif source in CARDS and not Path(source).exists():
        card = source
        if "hub" not in CARDS[card]:
            raise MaskwiseError(
                f"task {card!r} is not on the hub", do=f"give its folder: FOLDER(card={card!r})"
            )
        source = f"hf:{CARDS[card]['hub']}"
        given = {"name": card, **given}
    else:
        card = card_of_folder(Path(source))
    return _load(source, given, card)


def options_of(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a spec into its source and arguments of ``load_task``."""
    of_kinds = set[str]()
    for kind in KINDS.without_plugins().values():
        if kind.make:
            of_kinds.update(inspect.signature(kind.make).parameters)
    return read_options(spec, load_task, kind="task", example="train_rows=300", also=of_kinds)


_LOADED: dict[str, Task] = {}
MOST_LOADED = 16


def _load(spec: str, given: Mapping[str, Any], card: str | None) -> Task:
    """Read a task, and keep it until its files change."""
    asked = TaskArguments.of(spec, given, CARDS[card] if card else None)
    if spec.startswith("hf:"):
        return _read_task(asked)
    # A study loads the same task in many places.
    more = state_of_files(given[CORPUS]) if CORPUS in given else None
    state = (spec, card, state_of_files(spec), more)
    key = _key(state, given)
    if key not in _LOADED:
        task = _read_task(asked)
        while len(_LOADED) > MOST_LOADED - 2:
            del _LOADED[next(iter(_LOADED))]
        # Commands name what was found (``settled``). It is the same task, so it is not read again.
        _LOADED[_key(state, {**given, **task.suggested})] = replace(task, suggested={})
        _LOADED[key] = task
    return _LOADED[key]


def _key(state: object, given: Mapping[str, object]) -> str:
    return repr((state, sorted(given.items())))


class HiddenLabels(MaskwiseError):
    """Raised if all rows of a split have the label −1."""


class UnreadableTask(MaskwiseError):
    """Raised if the files of a task cannot be read, whatever they contain."""


# From files to rows
# -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TaskArguments:
    """What is asked for: a source, and arguments of ``load_task``, which describes them.

    Attributes:
        layout: what the source's files do not say themselves.
        published: whether the rows are bundled or have a card, and so never change.
        settings: the settings of the kind.
    """

    spec: str
    layout: Layout
    published: bool = False
    kind: str | None = None
    text: object = None
    pair: object = None
    label: object = None
    where: str | None = None
    split_by: str | None = None
    missing: object = None
    metric: str | None = None
    classes: int | None = None
    pooling: str = "mean"
    train_rows: int | None = None
    test_rows: int | None = None
    name: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: str, given: Mapping[str, Any], card: Card | None) -> TaskArguments:
        """Check arguments of ``load_task``; those of a card are defaults.

        Raises:
            MaskwiseError: there is no such kind or pooling, or ``missing`` is no label.
        """
        files: Mapping[str, str] = {}
        columns: Sequence[str] = ()
        if card is not None:
            given = {**card["options"], **given}
            files = card.get("files", {})
            columns = card.get("columns", ())
        # If a column is given by its number, the table has no header.
        numbered = any(isinstance(given.get(role), int) for role in ColumnNames._fields)
        layout = Layout(not numbered, columns, files)
        own = {each.name for each in fields(cls)} - {"spec", "layout", "published", "settings"}
        settings = {name: value for name, value in given.items() if name not in own}
        arguments = {name: value for name, value in given.items() if name in own}
        if "split_by" in arguments:
            # Columns of a table without a header are numbered.
            arguments["split_by"] = str(arguments["split_by"])
        published = card is not None or is_bundled(spec)
        asked = cls(spec=spec, layout=layout, published=published, settings=settings, **arguments)
        if asked.kind is not None:
            require_known("kind of task", asked.kind, KINDS)
        require_known("pooling", asked.pooling, POOLINGS)
        if isinstance(asked.missing, Mapping):
            allowed = "a label, or several labels such as ('NA', -1)"
            what = f"cannot read missing of {asked.place}"
            raise MaskwiseError(what, got=asked.missing, allowed=allowed)
        return asked

    @property
    def place(self) -> str:
        """The task in messages."""
        return f"task {self.spec!r}"

    def argument(self, role: str, column: str) -> str:
        """Return the argument that names this task with a column for a role, as a command or Python
        is given it.
        """
        own = {"kind": self.kind, "text": self.text, "pair": self.pair, role: column}
        given = {key: value for key, value in own.items() if value is not None}
        if self.name is None:
            spec = with_options(self.spec, **given)
            return option("task", shell_word(spec), python=f"tasks=[{spec!r}]")
        # Rows of Python were written to a file, which is gone when the call is refused.
        spec = with_options(self.spec, name=self.name, **given)
        return option("task", shell_word(spec), python=f"tasks={{{self.name!r}: (rows, {given})}}")

    @property
    def columns(self) -> ColumnNames:
        """The columns that are given."""
        label = _LABEL_OF.get(self.spec) if self.label is None else self.label
        roles = (self.text, self.pair, label)
        return ColumnNames(*(None if column is None else str(column) for column in roles))

    @property
    def absent(self) -> set[str]:
        """The labels that mean "not labelled"."""
        found = set(labels_in(self.missing))
        # An empty text is a value of its own where a row has several labels.
        given = self.missing if isinstance(self.missing, list | tuple | set) else (self.missing,)
        if any(map(is_empty, given)):
            found.add(EMPTY)
        return found


@dataclass
class Reading:
    """What is known of a task. Each of the steps of ``_read_task`` adds to it.

    Attributes:
        whole: all records of each split of the files.
        records: those that meet the condition ``where``.
        shared: for each split, the columns whose text decides the split of a question.
        kind: the kind of task.
        columns: the columns of each split; none for a split without labels.
        rows: the rows of each split of the files, with the texts that decide their new splits.
        labels: all labels in the files.
        skipped: the number of dropped rows, keyed by "split: reason".
        hidden: whether every label of a split is −1.
        notes: notes on what was decided.
    """

    asked: TaskArguments
    whole: Mapping[str, Records]
    records: dict[str, Records]
    shared: Mapping[str, Names]
    kind: TaskKind = SEQUENCE_CLASSIFICATION
    columns: dict[str, ColumnNames] = field(default_factory=dict)
    rows: dict[str, list[tuple[str, Row]]] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    hidden: bool = False
    notes: list[str] = field(default_factory=list)


def _read_task(asked: TaskArguments) -> Task:
    reading = read(asked)
    choose_columns(reading)
    make_rows(reading)
    return make_task(reading, divide(reading))


def read(asked: TaskArguments) -> Reading:
    """Read the records of each split.

    Raises:
        UnreadableTask: a file cannot be read.
        MaskwiseError: the condition ``where`` names an unknown column.
    """
    try:
        parts = read_splits(asked.spec, asked.layout)
    except MaskwiseError as failure:
        raise UnreadableTask(
            failure.what, got=failure.got, allowed=failure.allowed, do=failure.do
        ) from failure
    whole = {}
    records: dict[str, Records] = {}
    shared = {}
    for split, part in parts.items():
        whole[split] = [flat(record, asked.columns) for record in part]
        # Articles are counted before ``where`` drops rows. The labels of a learned masking policy
        # are read from the whole file, and must get the same splits as the task.
        shared[split] = shared_names(whole[split])
        records[split] = whole[split]
        if asked.where is not None:
            records[split] = records_where(whole[split], asked.where, asked.place)
    return Reading(asked, whole, records, shared)


def choose_columns(reading: Reading) -> None:
    """Choose the kind of task and the columns of each split.

    Raises:
        MaskwiseError: a split lacks a column, or a setting is unknown or has no effect.
    """
    asked = reading.asked
    records = reading.records
    given = asked.columns
    if asked.kind:
        kind = KINDS[asked.kind]
    else:
        part = next(filter(None, records.values()), [])
        merged = [merged_record(part)] if part else []
        examples = [without(record, asked.absent) for record in (*merged, *part)]
        kind, given = suggest(examples, given, asked.place)
    reading.kind = kind = _with_settings(kind, asked)
    _refuse_idle(asked, kind)
    template = given.text or ""
    if "{" in template:
        for split, part in records.items():
            records[split] = [with_text(record, template, asked.place) for record in part]
        given = given._replace(text=TEMPLATE_TEXT)
    found = given
    for split, part in records.items():
        if not part:
            continue
        names = merged_record(part)
        own = ColumnNames(*(_present(column, names) for column in given))
        if asked.split_by is not None:
            require_field(part, asked.split_by, f"split_by column of {asked.place}:")
        # Benchmarks publish test rows without the label column, or with −1 as every label.
        label_columns = {found.label, f"{found.label}1"}
        if split == "test" and found.label and label_columns.isdisjoint(names):
            reading.notes.append(
                f"test has no column {found.label!r}, so this split counts as unlabelled"
            )
            continue
        found = find_columns(kind.columns, names, own, asked.place, asked.argument)
        if asked.layout.columns or not asked.layout.header:
            _refuse_names_as_row(part, found, kind, asked.place)
        reading.columns[split] = found


def make_rows(reading: Reading) -> None:
    """Make rows from the records that have a text and a label.

    Raises:
        MaskwiseError: a record cannot be read.
    """
    asked = reading.asked
    absent = asked.absent
    empty = 0
    notes = reading.notes
    skipped = reading.skipped
    row_of = reading.kind.row
    if reading.kind.row_for is not None:
        row_of, more = reading.kind.row_for(_labelled(reading))
        notes += more
    for split, part in reading.records.items():
        reading.rows[split] = []
        if not part:
            continue
        columns = reading.columns.get(split)
        if columns is None:
            skipped[f"{split}: {NO_LABEL}"] = len(part)
            continue
        label = columns.label or ""
        found = set(labels_in([record.get(label) for record in part]))
        reading.labels |= found
        if found == {HIDDEN}:
            reading.hidden = True
            notes.append(f"every label of {split} is −1, so this split counts as unlabelled")
            skipped[f"{split}: {NO_LABEL}"] = len(part)
            continue
        for number, record in enumerate(part, start=1):
            record = _without_absent(record, label, absent)
            where = f"{split} of {asked.place}" if split != ALL else asked.place
            row = row_of(record, columns, f"row {number} of {where}")
            if not isinstance(row, str) and not is_unicode(row):
                row = NOT_UTF8
            if isinstance(row, str):
                skipped[f"{split}: {row}"] += 1
                continue
            empty += reading.kind.every_label and is_empty(record.get(label))
            group = group_key(record, asked.split_by) if asked.split_by else ""
            key = group or shared_text(record, reading.shared[split]) or row.key
            reading.rows[split].append((key, row))
    if empty:
        notes.append(
            f"no label applies to {plural(empty, 'row')} with an empty text as labels; missing='' "
            "leaves such rows out"
        )


def is_unicode(row: Row) -> bool:
    """Return whether a tokenizer can read all texts of a row. Half a surrogate pair is no text."""
    for value in vars(row).values():
        parts = value if isinstance(value, tuple | list) else (value,)
        if not all(is_utf8(part) for part in parts if isinstance(part, str)):
            return False
    return True


def _labelled(reading: Reading) -> Iterator[tuple[FieldValues, ColumnNames]]:
    """Yield all records of splits with labels, also those that ``where`` drops."""
    absent = reading.asked.absent
    for split, columns in reading.columns.items():
        for record in reading.whole[split]:
            yield _without_absent(record, columns.label or "", absent), columns


def _without_absent(record: FieldValues, label: str, absent: Set[str]) -> FieldValues:
    """Return a record without a label that means "not labelled"."""
    return {**record, label: without(record.get(label), absent)} if absent and label else record


def divide(reading: Reading) -> Mapping[str, TaskRows]:
    """Divide the rows among train, dev and test.

    Raises:
        MaskwiseError: a split that is needed is empty, or groups of rows cannot be kept together.
    """
    asked = reading.asked
    splits: Mapping[str, TaskRows]
    needed: Names = SPLITS
    if reading.kind.needs_train:
        splits, cuts = splits_of(reading.rows, asked.place)
    else:
        needed = ("test",)
        splits, cuts = only_test(reading.rows)
    if asked.split_by is not None:
        note = task_groups_note(reading.rows, splits, asked.split_by, asked.place)
        reading.notes.append(note)
    reading.notes += cuts
    for split in needed:
        if not splits[split]:
            raise _empty_split(split, reading)
    if asked.pooling == "dev" and not splits["dev"]:
        raise MaskwiseError(
            f'pooling="dev" for {asked.place} needs dev rows',
            got="none",
            do='give it a dev split, or choose pooling="mean" or pooling="cls"',
        )
    return splits


def make_task(reading: Reading, splits: Mapping[str, TaskRows]) -> Task:
    """Make the task, with its classes and its metric, of the rows of train, dev and test.

    Raises:
        MaskwiseError: there is only one class, or the kind has no such metric.
    """
    asked = reading.asked
    kind = reading.kind
    notes = reading.notes
    rows: TaskRows = splits["train" if kind.needs_train else "test"]
    if kind.every_label:
        rows = list(chain.from_iterable(splits.values()))
    table = asked.place
    if reading.skipped:
        # An error names the number of skipped rows, which may explain why only one class is left.
        table = f"{table} (skipped {dropped(reading.skipped)})"
    labels = kind.labels(rows, table)
    # Every split has the same roles, and may have other names for them.
    names = {}
    for role, columns in zip(ColumnNames._fields, zip(*reading.columns.values())):
        if any(columns) and columns[0] != TEMPLATE_TEXT:
            names[role] = "|".join(dict.fromkeys(filter(None, columns)))
    unseen = {*all_classes(splits["test"])}.difference(labels)
    if unseen:
        classes = "1 class" if len(unseen) == 1 else f"{len(unseen)} classes"
        lacking = f"train lacks {classes} of test"
        notes.append(f"{lacking}, whose items always count as wrong, such as {min(unseen)!r}")
    notes += _notes_on_labels(labels, asked.absent - reading.labels - {EMPTY})
    every = Counter(chain(labels, *map(all_classes, splits.values())))
    if asked.classes is not None and not every:
        raise MaskwiseError(
            f"a task of kind {kind.name} has no classes",
            got=f"classes={asked.classes}",
            do="leave out classes, or name the kind with classes",
        )
    if every and asked.classes not in (None, len(every)):
        raise MaskwiseError(
            f"{asked.place} has other labels than those with which it was read first",
            got=f"{len(every)} labels, of which {min(every, key=every.__getitem__)!r} is rarest",
            allowed=f"classes={asked.classes}",
            do=f"correct the labels, or give kind={kind.name!r} and classes={len(every)}",
        )
    metric = kind.metric_for(labels, asked.metric)
    found = {"kind": kind.name, **names, "metric": metric, "classes": len(every) or None}
    suggested = {}
    if asked.kind is None and not asked.published:
        for name, value in found.items():
            if value is not None and getattr(asked, name) is None:
                suggested[name] = value
    task = Task(
        name=asked.name or _short_name(asked.spec) + kind.suffix,
        kind=kind,
        metric=metric,
        labels=labels,
        splits={split: tuple(rows) for split, rows in splits.items()},
        skipped=reading.skipped,
        notes=tuple(notes),
        pooling=asked.pooling,
        columns=names,
        suggested=suggested,
    )
    return task.with_train_rows(asked.train_rows).with_test_rows(asked.test_rows)


# Details of the steps
# -------------------------------------------------------------------------------------------


def _with_settings(kind: TaskKind, asked: TaskArguments) -> TaskKind:
    """Return a kind with the settings that are asked for, such as ``beams``."""
    if not asked.settings:
        return kind
    make: Callable[..., TaskKind] = kind.make or (lambda: kind)
    known = {*inspect.signature(load_task).parameters} - {"spec", "settings"}
    known.update(inspect.signature(make).parameters)
    for wanted in asked.settings:
        require_known(f"argument of {kind.name} {asked.place}:", wanted, known)
    return make(**asked.settings)


def _refuse_idle(asked: TaskArguments, kind: TaskKind) -> None:
    """Raise an error if an argument has no effect on a kind."""
    idle: dict[str, tuple[object, str]] = {}
    for role in kind.unread:
        idle[role] = getattr(asked, role), f"rows of {kind.name} have no {role} column"
    if not kind.needs_train:
        idle["train_rows"] = asked.train_rows, f"{kind.name} trains nothing"
    if not kind.frozen and asked.pooling != "mean" and (not kind.pools or asked.pooling == "dev"):
        idle["pooling"] = asked.pooling, f"{kind.name} trains the encoder"
    for name, (value, why) in idle.items():
        if value is not None:
            raise MaskwiseError(
                f"{name} of {asked.place} has no effect, because {why}",
                got=value,
                do=f"leave {name} out, or choose another kind",
            )


def _refuse_names_as_row(
    records: Records, columns: ColumnNames, kind: TaskKind, place: str
) -> None:
    """Raise an error if the first row of a table that is read without a header looks like one."""
    first, *others = records
    text, _, label = columns.cells(first)
    usual = {name.lower() for name in (*kind.columns.label, *NUMBER_COLUMNS)}
    named = str(label).strip().lower() in usual and len(str(text).split()) == 1
    if named and all(record.get(columns.label or "") != label for record in others):
        raise MaskwiseError(
            f"the first row of {place} looks like column names, not like data",
            got=f"{text}, {label}",
            do=f"give the columns by name: FILE(text={text},label={label})",
        )


def _empty_split(split: str, reading: Reading) -> MaskwiseError:
    """Return an error that says why a split has no rows."""
    asked = reading.asked
    what = f"the {split} split of {asked.place} is empty"
    if reading.skipped:
        error = HiddenLabels if reading.hidden else MaskwiseError
        return error(what, got=f"skipped {dropped(reading.skipped)}", do="label more rows")
    keys = [key for keyed in reading.rows.values() for key, _ in keyed]
    if keys:
        texts = plural(len(set(keys)), "different text")
        got = f"{plural(len(keys), 'row')} with {texts}"
        return MaskwiseError(what, got=got, do="give more rows, or check the text column")
    condition = "" if asked.where is None else f" with {asked.where}"
    return MaskwiseError(f"{asked.place} has no rows{condition}", do="check its files")


def _present(column: str | None, record: FieldValues) -> str | None:
    """Return the first of the columns "a|b" that the record has, or the name as it was given."""
    if column is None or column in record:
        return column
    return first_in(column.split("|"), record) or column


def _short_name(spec: str) -> str:
    if spec.startswith("hf:"):
        return spec.removeprefix("hf:").replace("/", "-").replace(":", "-")
    return Path(spec.removeprefix("bundled:")).absolute().name.split(".")[0]


def _notes_on_labels(labels: Sequence[str], unused: Set[str]) -> list[str]:
    """Note labels that differ only in case or often mean "missing", and unused ``missing``."""
    notes = []
    by_lower: dict[str, list[str]] = {}
    for label in labels:
        by_lower.setdefault(label.lower(), []).append(label)
    alike = [same for same in by_lower.values() if len(same) > 1]
    if alike:
        names = " and ".join(map(repr, alike[0]))
        notes.append(f"classes that differ only in case are different classes, such as {names}")
    doubtful = ", ".join(repr(label) for label in labels if label.lower() in DOUBTFUL)
    if doubtful:
        notes.append(f"{doubtful} counts as a class; missing=({doubtful}) drops such rows")
    if unused:
        names = ", ".join(sorted(map(repr, unused)))
        notes.append(f"missing={names} does not occur among the labels, so it drops no row")
    return notes
