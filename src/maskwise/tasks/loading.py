"""Tasks out of the bundled data, a file, a folder or the hub: where the rows are, and how they are
cut into splits.

A task says what a checkpoint is judged by, so whatever is left out or moved is fixed and said:

- classes are those of *train*. A test row with a class that train does not have stays, and counts
  as wrong, and so does one of several labels;
- a row without a label is left out and counted: an empty cell, or what ``missing`` names. "-1",
  "NA", "null" are labels, and a note names them; a split whose only label is −1 hides its labels,
  and is not labelled;
- whole numbers are classes if they are few (``classes.MOST_CLASSES``) or numbered
  (``classes.are_numbered``), else quantities; a note says which;
- without a test split, or with one that has no labels, dev is the test; without dev, 15 % of train
  is dev; without train, dev is train. ``Task.notes`` and study.json say which of these was done;
- a single file, or train alone, is cut 70/15/15. All cuts go by a hash of the text (of questions:
  of article or context), so equal texts stay on one side, and a row stays where it is when others
  are added (but for the twentieth article);
- a kind that learns nothing from train (zero-shot similarity) is judged on test, else dev, else all
  rows.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from maskwise.errors import MaskwiseError, counted, unknown_name
from maskwise.specs import Call, build, parse_call, read_options
from maskwise.tasks.cards import (
    CARDS,
    GONE,
    TEMPLATE_TEXT,
    first_of,
    flat,
    guess_columns,
    with_inside,
    with_text,
)
from maskwise.tasks.classes import (
    SCORE_COLUMNS,
    ScoredRow,
    SequenceClassification,
    SeveralLabels,
    Similarity,
    TextRegression,
    TextRow,
    are_numbered,
    number_of,
    with_classes,
)
from maskwise.tasks.closedbook import ClozeAnswers
from maskwise.tasks.columns import (
    DOUBTFUL,
    HIDDEN,
    NO_LABEL,
    Columns,
    find_columns,
    label_of,
    labels_in,
    without,
)
from maskwise.tasks.embeddings import Evaluator, Retrieval, SentenceEmbedding, ZeroShotSimilarity
from maskwise.tasks.files import (
    only_test,
    read_splits,
    shared_names,
    shared_text,
    splits_of,
    state_of,
)
from maskwise.tasks.generation import Generation
from maskwise.tasks.metrics import METRICS
from maskwise.tasks.questions import MultipleChoice, QuestionAnswering
from maskwise.tasks.tags import TokenClassification
from maskwise.tasks.task import SPLITS, Kind, Row, Task
from maskwise.text.labelled import Record
from maskwise.text.worlds import WORLDS, read_world

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        # In the order in which columns are asked what they are: the first that recognises them
        # takes them.
        TokenClassification(),
        MultipleChoice(),
        QuestionAnswering(),
        Generation(),
        Similarity(),
        TextRegression(),
        SeveralLabels(),
        SequenceClassification(),
        # Only if the user names them.
        ClozeAnswers(),
        ZeroShotSimilarity(),
        SentenceEmbedding(),
        Retrieval(),
        Evaluator(),
    )
}
"""The kinds of tasks, one class each. A new kind is a class, and a line here."""
POOLINGS = ("mean", "cls", "dev")
_LABEL_OF = {"ud-pos": "tags", "ud-relations": "relations"}
_USUAL_METRIC = {"cola": "matthews"}
"""Published metrics that are not the usual ones of their kind, by the name of the folder."""


def load_task(
    spec: str | Path,
    *,
    kind: str | None = None,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    where: str | None = None,
    missing: str | float | tuple[str | float, ...] | None = None,
    card: str | None = None,
    metric: str | None = None,
    pooling: str = "mean",
    train_rows: int | None = None,
    name: str | None = None,
    **settings: object,
) -> Task:
    """A task from almost anything.

    Args:
        spec: one of

            - a bundled name: banking77, clinc150, trivia, ud-pos, ud-relations, wikigold, wnut17;
            - the name of a card (``maskwise list cards``), which is loaded from the hub;
            - an invented world (text/worlds.py), such as factworld(people=300, asked="university");
            - a file, cut 70/15/15: .jsonl, .csv, .tsv, .conllu, .conll, .iob2, SQuAD's .json (all
              also .gz), .parquet. Where every record has a ``split``, that decides;
            - a folder with files for train, dev (or validation) and/or test, or SentEval's with a
              file a class;
            - ``hf:ID`` or ``hf:ID:CONFIG`` for ``datasets.load_dataset``;
            - any of these with arguments of this function behind it: ``ud-pos(train_rows=300)``.
        kind: a name in ``KINDS``; recognised from the columns if not given, but for cloze-qa and
            frozen kinds.
        text, pair, label: the columns (see ``Columns``), by name, or in tables without a header by
            place from 1; looked for among the usual names if not given. ``text`` may be a template
            of columns, such as "{question} {context}"; ``a|b`` is column a, or b where there is no
            a.
        where: "column=value": only rows that have it, such as "year=2014".
        missing: labels, one or several, that stand for a missing one, such as -1 or ("NA", "null"):
            such rows are left out, and counted. Empty cells always are.
        card: the published task whose files these are. What else is given here counts more than the
            card.
        metric: one of the kind's metrics; else its usual one: the first, entity-f1 for BIO tags,
            matthews for CoLA.
        pooling: "mean", "cls" or "dev": see ``Task``.
        train_rows, name: see ``Task.with_train_rows``; and what records call it, else made from
            ``spec``.
        settings: of the kind, such as ``beams``: see ``Generation`` and ``Evaluator``.

    Raises:
        MaskwiseError: there is nothing there, it cannot be read, has no labels or only one class,
            tokens and tags differ in number, an answer is not in its context, or a split is empty.

    >>> task = load_task("banking77(train_rows=100)")
    >>> task.kind.name, task.metric, len(task.labels), len(task.splits["train"])
    ('sequence-classification', 'accuracy', 20, 100)
    >>> task.splits["test"][0].label
    'activate_my_card'
    """
    arguments = {**locals(), **settings}
    apart = ("spec", "card", "settings")
    given = {
        name: value for name, value in arguments.items() if value is not None and name not in apart
    }
    source, options = _options(str(spec))
    if options:  # what is given beside them counts more
        said = {
            name: value for name, value in given.items() if (name, value) != ("pooling", "mean")
        }
        return load_task(source, **{"card": card, **options, **said})
    by_name = source in CARDS and not Path(source).exists()
    if card is None and not by_name:
        return _load(source, **given)
    if (card := card or source) not in CARDS:
        raise unknown_name("card", card, CARDS, do=GONE.get(card))
    about = CARDS[card]
    if by_name and "hub" not in about:
        raise MaskwiseError(
            f"task {card!r} is not on the hub", do=f"give its files: FOLDER(card={card!r})"
        )
    given = {**about["options"], **({"name": card} if by_name else {}), **given}
    return _load(f"hf:{about['hub']}" if by_name else source, files=about.get("files", {}), **given)


_LOADED: dict[str, Task] = {}
MOST_LOADED = 16
"""Tasks that are kept, since a study asks for each of its own in many places."""


def _load(spec: str, **options: Any) -> Task:
    """As ``_read_task``; a task whose files are as they were when it was last asked for is not read
    again.
    """
    if spec.startswith("hf:"):
        return _read_task(spec, **options)
    key = repr((spec, sorted(options.items()), state_of(spec)))
    if key not in _LOADED:
        _LOADED[key] = _read_task(spec, **options)
        for oldest in list(_LOADED)[:-MOST_LOADED]:
            del _LOADED[oldest]
    return _LOADED[key]


def _read_task(
    spec: str,
    *,
    files: Mapping[str, str] = MappingProxyType({}),
    kind: str | None = None,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    where: str | None = None,
    missing: str | float | Sequence[str | float] | None = None,
    metric: str | None = None,
    pooling: str = "mean",
    train_rows: int | None = None,
    name: str | None = None,
    **settings: Any,
) -> Task:
    """As ``load_task``; ``settings`` are those of the kind, ``files`` as in a card."""
    for what, value, known in (
        ("kind of task", kind, KINDS),
        ("metric", metric, METRICS),
        ("pooling", pooling, POOLINGS),
    ):
        if value is not None and value not in known:
            raise unknown_name(what, value, known)
    place = f"task {spec!r}"
    if world := read_world(spec):
        kind, name = kind or ClozeAnswers.name, name or world.task_name
    columns = [text, pair, label if label is not None else _LABEL_OF.get(spec)]
    header = not any(isinstance(column, int) for column in columns)
    given = Columns(*(None if column is None else str(column) for column in columns))
    records = {
        split: [with_inside(one, given) for record in part for one in flat(record)]
        for split, part in read_splits(spec, header=header, files=files).items()
    }
    # by the whole file, as a policy's labels
    names = {split: shared_names(part) for split, part in records.items()}
    if where is not None:
        records = {split: _only(part, where, place) for split, part in records.items()}
    first = next((part for part in records.values() if part), [])
    several = missing if isinstance(missing, tuple | list) else (missing,)
    absent = {label for label in map(label_of, several) if label}
    asked = [without(record, absent) for record in (_whole(first), *first)] if first else []
    guessed: tuple[str, ...] = ()
    if kind is None and isinstance(plain := _recognised(asked, given), SequenceClassification):
        usual = [*(known.columns for known in KINDS.values()), plain.columns]
        given, guessed = guess_columns(asked, given, usual, place)
    chosen: Kind[Any] = KINDS[kind] if kind else _recognised(asked, given)
    if settings:
        chosen = build("kind of task", Call(chosen.name, (), settings), {chosen.name: type(chosen)})
    if template := given.text if "{" in (given.text or "") else None:
        records = {
            split: [with_text(record, template, place) for record in part]
            for split, part in records.items()
        }
        given = given._replace(text=TEMPLATE_TEXT)
    if first and given.label:
        given = given._replace(label=first_of(given.label, asked[0]) or given.label)

    skipped: Counter[str] = Counter()
    keyed: dict[str, list[tuple[str, Row]]] = {}
    hidden: list[str] = []
    fields = given
    for split, part in records.items():
        # Benchmarks publish test without the column of labels, or with −1 in each of its rows.
        column = {fields.label, f"{fields.label}1"} if fields.label else set()
        unlabelled = split == "test" and bool(part and column) and not column & set(_whole(part))
        if part and not unlabelled:
            fields = find_columns(chosen.columns, _whole(part), given, place)
            cells = [record.get(fields.label or "") for record in part]
            if {*labels_in(cells)} == {HIDDEN}:
                unlabelled = True
                hidden.append(f"every label of {split} is −1: it is not labelled")
            if absent and fields.label:
                part = [
                    {**record, fields.label: without(cell, absent)}
                    for record, cell in zip(part, cells)
                ]
        if unlabelled:
            skipped[f"{split}: {NO_LABEL}"] = len(part)
            part = []
        rows = [
            chosen.row(record, fields, f"row {number} of {split} of {place}")
            for number, record in enumerate(part, start=1)
        ]
        skipped.update(f"{split}: {row}" for row in rows if isinstance(row, str))
        keys = [shared_text(record, names[split]) for record in part]
        keyed[split] = [
            (key or row.key, row) for key, row in zip(keys, rows) if not isinstance(row, str)
        ]

    splits, notes = (splits_of if chosen.needs_train else only_test)(keyed, place)
    for split in SPLITS if chosen.needs_train else ("test",):
        if not splits[split]:
            do = "label more rows" if skipped else "more rows are needed"
            got = f"skipped {counted(skipped)}" if skipped else None
            raise MaskwiseError(f"the {split} split of {place} is empty", got=got, do=do)
    if pooling == "dev" and not splits["dev"]:
        do = 'give it a dev split, or choose pooling="mean" or pooling="cls"'
        raise MaskwiseError(f'pooling="dev" of {place} needs dev rows', got="none", do=do)
    by_name = bool(fields.pair) and fields.label in SCORE_COLUMNS
    if kind is None and isinstance(chosen, Similarity) and not by_name and are_numbered(splits):
        chosen = KINDS[SequenceClassification.name]
        splits = with_classes(splits)
    told = SPLITS if chosen.every_label else ("train" if chosen.needs_train else "test",)
    labels = chosen.labels([row for split in told for row in splits[split]], place, skipped)
    if metric is None:
        published = _USUAL_METRIC.get(Path(spec).name.lower())
        metric = published if published in chosen.metrics else chosen.usual_metric(labels)
    chosen.check_metric(metric, labels)
    name = name or _short_name(spec) + chosen.suffix
    notes = (*guessed, *hidden, *notes, *_doubtful(labels))
    if kind is None:
        notes += _whole_numbers(splits)
    shared = {split: tuple(rows) for split, rows in splits.items()}
    task = Task(name, chosen, metric, labels, shared, skipped, notes, pooling)
    return task.with_train_rows(train_rows)


def _doubtful(labels: Sequence[str]) -> tuple[str, ...]:
    """A note on labels that mean a missing one in other files."""
    found = [label for label in labels if label.lower() in DOUBTFUL]
    names = ", ".join(map(repr, found))
    return (f"{names} counts as a label; missing=({names}) leaves such rows out",) if found else ()


def _whole_numbers(splits: Mapping[str, Sequence[Row]]) -> tuple[str, ...]:
    """A note on how labels are read that are whole numbers, more than two, and so may be classes or
    quantities.
    """
    rows = [
        row for split in SPLITS for row in splits[split] if isinstance(row, TextRow | ScoredRow)
    ]
    values = {row.score if isinstance(row, ScoredRow) else number_of(row.label) for row in rows}
    if len(values) < 3 or not all(value is not None and value.is_integer() for value in values):
        return ()
    quantities = Similarity.name if rows[0].pair else TextRegression.name
    if isinstance(rows[0], ScoredRow):
        how = f"quantities; as classes with kind={SequenceClassification.name!r}"
    else:
        how = f"classes; as quantities with kind={quantities!r}"
    return (f"the labels are {len(values)} whole numbers, read as {how}",)


def _recognised(records: Sequence[Record], given: Columns) -> Kind:
    """The first kind that recognises records; whatever none recognises is classified."""
    for kind in KINDS.values():
        if records and kind.recognises(records, given):
            return kind
    return KINDS[SequenceClassification.name]


def _whole(records: Sequence[Record]) -> Record:
    """A record with every column that occurs, each with its first value: JSON lines may leave out
    what is empty.
    """
    whole = dict(records[0])
    for record in records:
        if not record.keys() <= whole.keys():
            whole = {**whole, **record, **whole}  # in the order in which they come
    return whole


def _options(spec: str) -> tuple[str, dict[str, Any]]:
    """What a task is made of, and the arguments of ``load_task`` behind it. A world keeps its own."""
    kinds_own = {
        key for known in KINDS.values() for key in inspect.signature(type(known)).parameters
    }
    read = partial(
        read_options, reader=load_task, kind="task", example="train_rows=300", also=kinds_own
    )
    name = spec.partition("(")[0].strip()
    if name not in WORLDS or Path(spec).exists():
        return read(spec)
    call = parse_call(spec)
    known = {*inspect.signature(load_task).parameters, *kinds_own}
    ours = {key: value for key, value in call.kwargs.items() if key in known}
    rest = {key: value for key, value in call.kwargs.items() if key not in known}
    options = read(str(Call(name, (), ours)))[1] if ours else {}
    return str(Call(name, call.args, rest)), options


def _short_name(spec: str) -> str:
    if spec.startswith("hf:"):
        return spec.removeprefix("hf:").replace("/", "-").replace(":", "-")
    return Path(spec).absolute().name.split(".")[0]


def _only(records: list[Record], where: str, place: str) -> list[Record]:
    """The records that have a value in a column."""
    column, sign, value = where.partition("=")
    if not sign:
        raise MaskwiseError("where is 'column=value'", got=where)
    if records and column not in (whole := _whole(records)):
        raise unknown_name(f"column of {place}", column, map(str, whole))
    return [record for record in records if str(record.get(column)) == value]
