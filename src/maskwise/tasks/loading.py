"""Tasks out of the bundled data, a file, a folder or the hub: where the rows are, and how they are cut into splits.

A task says what a checkpoint is judged by, so whatever is left out or moved is fixed and said:

- classes are those of *train*. A test row with a class that train does not have stays, and counts as wrong, and so
  does one of several labels;
- a row without a label (empty, or −1) is skipped and counted;
- without a test split, or with one that has no labels, dev is the test; without dev, 15 % of train is dev;
  without train, dev is train. ``Task.notes`` and study.json say which of these was done;
- a single file, or train alone, is cut 70/15/15. All cuts go by a hash of the text (of questions: of article or
  context), so equal texts stay on one side, and a row stays where it is when others are added (but for the twentieth
  article);
- a kind that learns nothing from train (zero-shot similarity) is judged on test, else dev, else all rows.

A folder's files are told apart by the words of their names: ``train.tsv``, ``sts-dev.csv``, ``SICK_trial.txt``,
``en_ewt-ud-test.iob2.gz``, ``train-v1.1.json``. What a few well-known sets do not say by names of columns is in
``_WITHOUT_HEADER`` and ``_CLASS_FILES``, so that their users only give the folder.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import Any

from maskwise.errors import MaskwiseError, counted, unknown_name
from maskwise.folders import looked_in
from maskwise.specs import Call, parse_call, read_options
from maskwise.tasks.cards import CARDS, TEMPLATE_TEXT, first_of, flat, guess_columns, with_inside, with_text
from maskwise.tasks.closedbook import ClozeAnswers
from maskwise.tasks.cutting import only_test, shared_names, shared_text, splits_of
from maskwise.tasks.evaluators import Evaluator
from maskwise.tasks.generation import Generation
from maskwise.tasks.labels import (
    SentenceEmbedding,
    SequenceClassification,
    SeveralLabels,
    TokenClassification,
)
from maskwise.tasks.metrics import METRICS
from maskwise.tasks.questions import MultipleChoice, QuestionAnswering
from maskwise.tasks.retrieval import Retrieval
from maskwise.tasks.scores import Similarity, TextRegression, ZeroShotSimilarity
from maskwise.tasks.task import NO_LABEL, SPLITS, Columns, Kind, Row, Task, find_columns
from maskwise.text import bundled_path
from maskwise.text.labelled import READERS, Record, ending_of, read_hub, read_records, read_text, read_tsv
from maskwise.text.readers import lines_of
from maskwise.text.worlds import WORLDS, read_world

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        # In the order in which columns are asked what they are: the first that recognises them takes them.
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
BUNDLED_TASKS = {
    "banking77": "banking77",
    "clinc150": "clinc150",
    "trivia": "trivia",
    "ud-pos": "ud_ewt_pos",
    "ud-relations": "ud_ewt_pos",
    "wikigold": "wikigold",
    "wnut17": "wnut17",
}
_LABEL_OF = {"ud-pos": "tags", "ud-relations": "relations"}
_USUAL_METRIC = {"cola": "matthews"}
"""Published metrics that are not the usual ones of their kind, by the name of the folder."""

_SPLIT_OF = {
    "train": "train",
    **dict.fromkeys(("dev", "validation", "valid", "val"), "dev"),
    "test": "test",
}
_WORDS = {**_SPLIT_OF, "trial": "dev"}  # SemEval's word, in names of files
_WITHOUT_HEADER = (
    (re.compile(r"(?i)(^|.*/)cola/(train|dev)\.tsv(\.gz)?$"), ("source", "label", "mark", "sentence")),
    (
        re.compile(r"(?i)(^|.*/)sts-(train|dev|test)\.(csv|tsv)(\.gz)?$"),
        ("genre", "file", "year", "id", "score", "sentence1", "sentence2"),
    ),
)
"""Tables without a header: which paths, and the names of their columns."""
_CLASS_FILES = ({"pos", "neg"}, {"objective", "subjective"})
"""SentEval: one file a class, one sentence a line."""


def load_task(
    spec: str | Path,
    *,
    kind: str | None = None,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    where: str | None = None,
    card: str | None = None,
    metric: str | None = None,
    pooling: str = "mean",
    evaluator: str | None = None,
    beams: int | None = None,
    max_target: int | None = None,
    length_penalty: float | None = None,
    patterns: bool | None = None,
    train_rows: int | None = None,
    name: str | None = None,
) -> Task:
    """A task from almost anything.

    Args:
        spec: one of

            - a bundled name: banking77, clinc150, trivia, ud-pos, ud-relations, wikigold, wnut17;
            - the name of a card (``maskwise list cards``), which is loaded from the hub;
            - an invented world (text/worlds.py), such as factworld(people=300, asked="university");
            - a file, cut 70/15/15: .jsonl, .csv, .tsv, .conllu, .conll, .iob2, SQuAD's .json (all also .gz),
              .parquet. Where every record has a ``split``, that decides;
            - a folder with files for train, dev (or validation) and/or test, or SentEval's with a file a class;
            - ``hf:ID`` or ``hf:ID:CONFIG`` for ``datasets.load_dataset``;
            - any of these with arguments of this function behind it: ``ud-pos(train_rows=300)``.
        kind: a name in ``KINDS``; recognised from the columns if not given, but for cloze-qa and frozen kinds.
        text, pair, label: the columns (see ``Columns``), by name, or in tables without a header by place
            from 1; looked for among the usual names if not given. ``text`` may be a template of columns, such as
            "{question} {context}"; ``a|b`` is column a, or b where there is no a.
        where: "column=value": only rows that have it, such as "year=2014".
        card: the published task whose files these are. What else is given here counts more than the card.
        metric: one of the kind's metrics; else its usual one: the first, entity-f1 for BIO tags, matthews for CoLA.
        pooling: "mean", "cls" or "dev": see ``Task``.
        evaluator: see ``Evaluator``; beams, max_target, length_penalty, patterns: see ``Generation``.
        train_rows, name: see ``Task.with_train_rows``; and what records call it, else made from ``spec``.

    Raises:
        MaskwiseError: there is nothing there, it cannot be read, has no labels or only one class, tokens and tags
            differ in number, an answer is not in its context, or a split is empty.

    >>> task = load_task("banking77(train_rows=100)")
    >>> task.kind.name, task.metric, len(task.labels), len(task.splits["train"])
    ('sequence-classification', 'accuracy', 20, 100)
    >>> task.splits["test"][0].label
    'activate_my_card'
    """
    given = {name: value for name, value in locals().items() if value is not None and name not in ("spec", "card")}
    source, options = _options(str(spec))
    if options:  # what is given beside them counts more
        said = {name: value for name, value in given.items() if (name, value) != ("pooling", "mean")}
        return load_task(source, **{"card": card, **options, **said})
    by_name = source in CARDS and not Path(source).exists()
    if card is None and not by_name:
        return _load(source, **given)
    if (card := card or source) not in CARDS:
        raise unknown_name("card", card, CARDS)
    about = CARDS[card]
    if by_name and "hub" not in about:
        raise MaskwiseError(f"task {card!r} is not on the hub", do=f"give its files: FOLDER(card={card!r})")
    given = {**about["options"], **({"name": card} if by_name else {}), **given}
    return _load(f"hf:{about['hub']}" if by_name else source, files=about.get("files", {}), **given)


def _load(
    spec: str,
    *,
    files: Mapping[str, str] = MappingProxyType({}),
    kind: str | None = None,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    where: str | None = None,
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
    names = {split: shared_names(part) for split, part in records.items()}  # by the whole file, as a policy's labels
    if where is not None:
        records = {split: _only(part, where, place) for split, part in records.items()}
    first = next((part for part in records.values() if part), [])
    asked = [_whole(first), *first] if first else []
    guessed: tuple[str, ...] = ()
    if kind is None and isinstance(plain := _recognised(asked, given), SequenceClassification):
        usual = [*(known.columns for known in KINDS.values()), plain.columns]
        given, guessed = guess_columns(asked, given, usual, place)
    chosen = KINDS[kind] if kind else _recognised(asked, given)
    chosen = chosen.with_settings(**settings) if settings else chosen
    if template := given.text if "{" in (given.text or "") else None:
        records = {split: [with_text(record, template, place) for record in part] for split, part in records.items()}
        given = given._replace(text=TEMPLATE_TEXT)
    if first and given.label:
        given = given._replace(label=first_of(given.label, asked[0]) or given.label)

    skipped: Counter[str] = Counter()
    keyed: dict[str, list[tuple[str, Row]]] = {}
    fields = given
    for split, part in records.items():
        unlabelled = part and fields.label and not {fields.label, f"{fields.label}1"} & set(_whole(part))
        if split == "test" and unlabelled:
            skipped[f"test: {NO_LABEL}"] = len(part)  # as the benchmarks publish it
            part = []
        fields = find_columns(chosen, _whole(part), given, place) if part else fields
        rows = [
            chosen.row(record, fields, f"row {number} of {split} of {place}")
            for number, record in enumerate(part, start=1)
        ]
        skipped.update(f"{split}: {row}" for row in rows if isinstance(row, str))
        keys = [shared_text(record, names[split]) for record in part]
        keyed[split] = [(key or row.key, row) for key, row in zip(keys, rows) if not isinstance(row, str)]

    splits, notes = (splits_of if chosen.needs_train else only_test)(keyed, place)
    for split in SPLITS if chosen.needs_train else ("test",):
        if not splits[split]:
            do = "label more rows (empty and −1 mean: not labelled)" if skipped else "more rows are needed"
            got = f"skipped {counted(skipped)}" if skipped else None
            raise MaskwiseError(f"the {split} split of {place} is empty", got=got, do=do)
    if pooling == "dev" and not splits["dev"]:
        do = 'give it a dev split, or choose pooling="mean" or pooling="cls"'
        raise MaskwiseError(f'pooling="dev" of {place} needs dev rows', got="none", do=do)
    told = SPLITS if chosen.every_label else ("train" if chosen.needs_train else "test",)
    labels = chosen.labels([row for split in told for row in splits[split]], place, skipped)
    if metric is None:
        published = _USUAL_METRIC.get(Path(spec).name.lower())
        metric = published if published in chosen.metrics else chosen.usual_metric(labels)
    chosen.check_metric(metric, labels)
    name = name or _short_name(spec) + chosen.suffix
    task = Task(name, chosen, metric, labels, splits, skipped, (*guessed, *notes), pooling)
    return task.with_train_rows(train_rows)


def _recognised(records: Sequence[Record], given: Columns) -> Kind:
    """The first kind that recognises records; the last of them takes whatever there is."""
    return next(kind for kind in KINDS.values() if kind.recognises(records, given))


def _whole(records: Sequence[Record]) -> Record:
    """A record with every column that occurs, each with its first value: JSON lines may leave out what is empty."""
    whole = dict(records[0])
    for record in records:
        if not record.keys() <= whole.keys():
            whole = {**whole, **record, **whole}  # in the order in which they come
    return whole


def _options(spec: str) -> tuple[str, dict[str, Any]]:
    """What a task is made of, and the arguments of ``load_task`` behind it. A world keeps its own."""
    what = {"kind": "task", "example": "train_rows=300"}
    name = spec.partition("(")[0].strip()
    if name not in WORLDS or Path(spec).exists():
        return read_options(spec, load_task, **what)
    call, known = parse_call(spec), inspect.signature(load_task).parameters
    ours = {key: value for key, value in call.kwargs.items() if key in known}
    rest = {key: value for key, value in call.kwargs.items() if key not in known}
    options = read_options(str(Call(name, (), ours)), load_task, **what)[1] if ours else {}
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


# Reading


def read_splits(
    spec: str, *, header: bool = True, files: Mapping[str, str] = MappingProxyType({})
) -> dict[str, list[Record]]:
    """Raw records by split; under "all" where there are no splits.

    Args:
        spec: as for ``load_task``, without arguments behind it.
        header: whether tables begin with the names of their columns.
        files: of a folder, the pattern of the names of each split's files, where their words do not tell.

    Raises:
        MaskwiseError: there is nothing, no training split, or two files for one split.
    """
    if world := read_world(spec):
        return world.questions()
    if spec.startswith("hf:"):
        return _by_split(spec, read_hub(spec))
    path = bundled_path(BUNDLED_TASKS[spec]) if spec in BUNDLED_TASKS else Path(spec).expanduser()
    if path.is_dir():
        return _read_folder(spec, path, header=header, files=files)
    if not path.is_file():
        if "/" not in spec and "." not in spec:
            raise unknown_name("task", spec, [*BUNDLED_TASKS, *CARDS])
        do = "give a file, a folder or hf:ID"
        raise MaskwiseError(f"task file {spec!r} does not exist", got=looked_in(path), do=do)
    records = _read_file(path, header=header)
    if not records or not all("split" in record for record in records):
        return {"all": records}
    by_name: dict[str, list[Record]] = {}
    for record in records:
        split = str(record["split"])  # JSON may hold a list or an object here
        if split not in _SPLIT_OF:
            raise unknown_name(f"split in {spec}", split, _SPLIT_OF)
        by_name.setdefault(split, []).append(record)
    return _by_split(spec, by_name)


def _read_file(path: Path, *, header: bool) -> list[Record]:
    where = path.absolute().as_posix()
    names = next((names for pattern, names in _WITHOUT_HEADER if pattern.match(where)), None)
    if names and header:  # STS-B's rows may be longer than the named columns
        return [
            {names[int(place) - 1]: cell for place, cell in record.items() if int(place) <= len(names)}
            for record in read_tsv(path, header=False)
        ]
    if ending_of(path) is None and path.name.lower().removesuffix(".gz").endswith(".txt"):
        return read_tsv(path, header=header)  # SICK, MRPC
    return read_records(path, header=header)


def _read_folder(spec: str, folder: Path, *, header: bool, files: Mapping[str, str]) -> dict[str, list[Record]]:
    there = [path for path in sorted(folder.iterdir()) if path.is_file()]
    readable = [path for path in there if ending_of(path)]
    named = {split: [path for path in readable if fnmatch(path.name, pattern)] for split, pattern in files.items()}
    if any(named.values()):
        return {
            split: [record for path in paths for record in _read_file(path, header=header)]
            for split, paths in named.items() if paths
        }  # fmt: skip
    by_ending = {path.name.removesuffix(".gz").rpartition(".")[2].lower(): path for path in there}
    for classes in _CLASS_FILES:
        if classes <= set(by_ending):
            lines = {name: lines_of(read_text(by_ending[name], or_latin1=True)) for name in sorted(classes)}
            return {"all": [{"text": line, "label": name} for name, texts in lines.items() for line in texts]}
    split_files = _split_files(folder, there)
    if not split_files and len(readable) == 1:
        return {"all": _read_file(readable[0], header=header)}
    return _by_split(spec, {split: _read_file(path, header=header) for split, path in split_files.items()})


def _split_files(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The file of every split: by its exact name, or by a word of its name."""
    exact: dict[str, list[Path]] = {}
    loose: dict[str, list[Path]] = {}
    for file in files:
        name = file.name.lower().removesuffix(".gz")
        if not (ending_of(file) or name.endswith(".txt")):
            continue
        if name.split(".")[0] in _SPLIT_OF:
            exact.setdefault(_SPLIT_OF[name.split(".")[0]], []).append(file)
        words = {_WORDS[word] for word in re.split(r"[^a-z]+", name) if word in _WORDS}
        if len(words) == 1 and "mismatched" not in name:  # MNLI is judged on the matched texts
            loose.setdefault(words.pop(), []).append(file)
    by_split = {**loose, **exact}
    for split, candidates in by_split.items():
        if len(candidates) > 1:
            got, do = ", ".join(file.name for file in candidates), "keep one of them in the folder"
            raise MaskwiseError(f"two files for {split} in {folder}", got=got, do=do)
    return {split: candidates[0] for split, candidates in by_split.items()}


def _by_split(spec: str, by_name: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Under our names, in their order; other splits are left out."""
    known = [name for name in by_name if name in _SPLIT_OF]
    splits = {_SPLIT_OF[name]: by_name[name] for name in known}
    if len(splits) < len(known):
        do = "keep one name for each, and merge its rows"
        raise MaskwiseError(f"{spec} has two names for one split", got=", ".join(known), do=do)
    if not splits:
        allowed = f"train with dev (validation) and/or test; of files: {', '.join(READERS)}"
        raise MaskwiseError(f"no training split in {spec}", got=", ".join(by_name) or "nothing", allowed=allowed)
    return {split: splits[split] for split in SPLITS if split in splits}
