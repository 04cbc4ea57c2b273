"""What a policy should find in a text, as a task tells it: answers, words of the target, words that decide a class.

The question is unseen. An answer is labelled wherever it stands in its context as whole words; answers that do not
stand there are counted. Of summaries and other free answers, the content words that stand in the source are
labelled; where hardly any does, labels teach nothing and the meta-gradient is the only way. Of a classification task, a
word is labelled if a classifier is less sure of the right class without it.

Source: Ye et al. 2021 (arXiv 2104.08840) for answers; Gu et al. 2020 (arXiv 2004.09733) for the classifier, who add
words one by one where we leave one out: what a word does then depends on no order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.learning.examples import find_contexts, occurrences, rights_of
from maskwise.tasks import load_task
from maskwise.tasks.cutting import ANSWERS, CONTEXT, shared_names, shared_text, splits_of
from maskwise.tasks.files import read_splits
from maskwise.tasks.labels import TextRow
from maskwise.tasks.questions import read_answers
from maskwise.tasks.task import SPLITS, Row, Task
from maskwise.text.words import classify, word_starts

NOT_THERE = "answers that do not stand in their context"
NO_WORD = "targets of which no content word stands in the source"
NOT_TOLD = "questions of which no text tells an answer"
LEAST_TARGETS = 0.1
"""Labels of targets teach something if so many sources have one at least."""
LEAST_TOLD = 0.01
"""Rows without contexts are questions, and no summaries, if the corpus tells so many of their answers at least."""

_FUNCTION_WORDS = """
a about above after again against all also am an and any are as at be because been before being below between
both but by can could did do does doing down during each few for from further had has have having he her here
hers him his how i if in into is it its itself just may me might more most must my no nor not now of off on
once one only or other our out over own same shall she should so some such than that the their them then there
these they this those through to too under until up upon us very was we were what when where which while who
whom whose why will with would you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that say little by themselves."""


@dataclass(frozen=True)
class Marked:
    """A text and what a policy should find in it.

    Attributes:
        spans: (start, end) in characters, in their order; they may repeat or overlap.
        questions: the right answers of each question about the text that stand in it; none where words are labelled.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    questions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Labels:
    """Texts with their labels, by split.

    Attributes:
        kind: "answers", "target-words" or "classifier".
        splits: train, dev and test.
        counts: what could not be labelled, by its reason.
    """

    kind: str
    splits: Mapping[str, Sequence[Marked]]
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def head(self) -> Any:
        """What a policy of such labels scores."""
        return "spans" if self.kind == "answers" else "tokens"

    def marked(self, *splits: str) -> list[Marked]:
        """The texts that have a label, of the first of these splits that has some."""
        return next((kept for split in splits if (kept := [each for each in self.splits[split] if each.spans])), [])


def answer_labels(pairs: Iterable[tuple[str, Sequence[str]]], counts: Counter[str]) -> list[Marked]:
    """(context, right answers of one question) pairs → each context once, with all occurrences of all its answers.

    >>> counts = Counter()
    >>> pairs = [("Ada met Bo. Bo left.", ["Bo"]), ("Ada met Bo. Bo left.", ["Eve"])]
    >>> answer_labels(pairs, counts)[0].spans, counts[NOT_THERE]
    (((8, 10), (12, 14)), 1)
    """
    found: dict[str, list[tuple[tuple[str, ...], list[tuple[int, int]]]]] = {}
    for context, answers in pairs:
        there = {answer: places for answer in dict.fromkeys(answers) if (places := occurrences(answer, context))}
        if not there:
            counts[NOT_THERE] += 1
            continue
        places = sorted({place for some in there.values() for place in some})
        found.setdefault(context, []).append((tuple(there), places))
    return [
        Marked(
            context, tuple(sorted(place for _, places in asked for place in places)),
            tuple(answers for answers, _ in asked),
        )
        for context, asked in found.items()
    ]  # fmt: skip


def target_labels(pairs: Iterable[tuple[str, Sequence[str]]], counts: Counter[str]) -> list[Marked]:
    """(source, targets) pairs → the content words of the targets, wherever they stand in the source.

    >>> target_labels([("Owls hunt mice at night.", ["Mice fear the owls."])], Counter())[0].spans
    ((0, 4), (10, 14))
    """
    marked = []
    for source, targets in pairs:
        wanted = {word.casefold() for target in targets for word in words_of(target)[0]} - FUNCTION_WORDS
        spans = [
            place for word, place in zip(*words_of(source))
            if word.casefold() in wanted and any(map(str.isalnum, word))
        ]  # fmt: skip
        counts[NO_WORD] += not spans
        marked.append(Marked(source, tuple(spans)))
    return marked


def words_of(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a text and their characters."""
    begin = np.flatnonzero(word_starts(classify(text))).tolist()
    ends = [*begin[1:], len(text)]
    places = [(start, start + len(text[start:end].rstrip())) for start, end in zip(begin, ends)]
    return [text[start:end] for start, end in places], places


Confidence = Callable[[Sequence[str], Sequence[int]], np.ndarray]
"""From texts and their classes to the probabilities (N,) that a classifier gives these classes."""


def classifier_labels(rows: Sequence[tuple[str, int]], confidence: Confidence, *, drop: float) -> list[Marked]:
    """(text, class) rows → the words without which the classifier is less sure of the class, by ``drop`` at least."""
    shown: list[str] = []
    classes: list[int] = []
    edges = [0]
    every = [words_of(text)[1] for text, _ in rows]
    for (text, label), places in zip(rows, every, strict=True):
        shown += [text, *(text[:start] + text[end:] for start, end in places)]
        classes += [label] * (1 + len(places))
        edges.append(len(shown))
    sure = confidence(shown, classes)
    return [
        Marked(text, tuple(place for place, p in zip(places, sure[first + 1 : last]) if sure[first] - p >= drop))
        for (text, _), places, first, last in zip(rows, every, edges, edges[1:])
    ]


# From a task --------------------------------------------------------------------------------------------------------


def labels_of(
    spec: str, *, kind: str | None = None, texts: Sequence[str] = (), drop: float = 0.05,
    classifier: Callable[[Task], Confidence] | None = None,
) -> Labels:  # fmt: skip
    """What a task tells a policy to find.

    Args:
        spec: of the task, as for ``load_task``.
        kind: "answers", "target-words" or "classifier"; None: what the task's rows have.
        texts: a corpus, where the contexts of questions that stand alone are looked for.
        drop: for ``classifier``.
        classifier: trains one on a task; only asked for where labels are a classifier's.

    Raises:
        MaskwiseError: nothing to label, or a task that tells nothing: answers of which none stands in its context, a
            classification task of one class, targets that share no word with their sources.
    """
    if kind in (None, "answers") and (records := _with_contexts(spec)):
        return _checked(_answers(records, spec), spec)
    task = load_task(spec)
    rows = {split: task.splits[split] for split in SPLITS}
    first = next(row for part in rows.values() for row in part)
    if kind in (None, "classifier") and isinstance(first, TextRow):
        return _checked(_by_classifier(task, classifier, drop), spec)
    if kind == "classifier" or not rights_of(first):
        what = f"task {task.name} gives no labels of this kind"
        do = "take learning.method: meta, which needs none"
        raise MaskwiseError(what, got=f"labels {kind}, kind of task {task.kind.name}", do=do)
    if kind != "target-words" and (texts or getattr(first, "context", None)):
        counts: Counter[str] = Counter()
        pairs = {split: _told(part, texts, counts) for split, part in rows.items()}
        labels = Labels("answers", {split: answer_labels(part, counts) for split, part in pairs.items()}, counts)
        told = sum(len(each.questions) for each in labels.splits["train"])
        if kind or getattr(first, "context", None) or told >= LEAST_TOLD * len(rows["train"]):
            return _checked(labels, spec)
    counts = Counter()
    words = {split: [(row.texts[0], rights_of(row)) for row in part] for split, part in rows.items()}
    targets = Labels("target-words", {split: target_labels(part, counts) for split, part in words.items()}, counts)
    return _checked(targets, spec)


def _checked(labels: Labels, spec: str) -> Labels:
    """Refuse labels that teach nothing."""
    if labels.kind == "target-words":
        marked = [each for part in labels.splits.values() for each in part]
        share = sum(bool(each.spans) for each in marked) / max(1, len(marked))
        if share < LEAST_TARGETS:
            what = f"the targets of task {spec} share hardly a word with their sources: labels would teach nothing"
            do = "take learning.method: meta, which learns from what masking does to the task"
            raise MaskwiseError(what, got=f"{share:.0%} of the sources have a label", do=do)
    if not any(each.spans for each in labels.splits["train"]):
        got = ", ".join(f"{count} {reason}" for reason, count in (+labels.counts).items()) or "no label"
        do = "give contexts that hold their answers, set learning.supervised.labels, or take learning.method: meta"
        raise MaskwiseError(f"nothing in the training texts of task {spec} is to be found", got=got, do=do)
    return labels


def _with_contexts(spec: str) -> dict[str, list[Mapping[str, Any]]] | None:
    """Raw records by split, if they have contexts and answers."""
    if "(" in spec and not spec.startswith("hf:"):
        return None
    records = read_splits(spec)
    first = next((part[0] for part in records.values() if part), {})
    has = any(name in first for name in CONTEXT) and any(name in first for name in ANSWERS)
    return {split: list(part) for split, part in records.items()} if has else None


def _answers(records: Mapping[str, Sequence[Mapping[str, Any]]], spec: str) -> Labels:
    """Cut as ``load_task`` cuts the same file, so that no policy learns from what a task is tested by."""
    names = {split: shared_names(part) for split, part in records.items()}
    counts: Counter[str] = Counter()
    keyed: dict[str, list[tuple[str, tuple[str, list[str]]]]] = {split: [] for split in records}
    for split, part in records.items():
        for number, record in enumerate(part, start=1):
            context = next((record[name] for name in CONTEXT if isinstance(record.get(name), str)), "")
            value = next((record[name] for name in ANSWERS if name in record), None)
            answers = [text for text, _ in read_answers(value, f"row {number} of {split}") if text.strip()]
            if answers:
                keyed[split].append((shared_text(record, names[split]), (context, answers)))
            else:
                counts["questions without an answer"] += 1
    pairs, _ = splits_of(keyed, f"task {spec!r}")
    return Labels("answers", {split: answer_labels(part, counts) for split, part in pairs.items()}, counts)


def _told(rows: Sequence[Row], texts: Sequence[str], counts: Counter[str]) -> list[tuple[str, Sequence[str]]]:
    """(context, answers) pairs: the contexts of rows or, of questions that stand alone, texts that tell an answer."""
    own = [getattr(row, "context", None) for row in rows]
    if all(own):
        return [(str(context), rights_of(row)) for context, row in zip(own, rows)]
    places = find_contexts([row.texts[0] for row in rows], [rights_of(row) for row in rows], texts)
    counts[NOT_TOLD] += sum(not own for own in places)
    return [(texts[place], rights_of(row)) for row, own in zip(rows, places, strict=True) for place in own]


def _by_classifier(task: Task, classifier: Callable[[Task], Confidence] | None, drop: float) -> Labels:
    number = {label: place for place, label in enumerate(task.labels)}
    rows = {
        split: [row for row in task.splits[split] if isinstance(row, TextRow) and row.label in number]
        for split in SPLITS
    }
    if any(row.pair is not None for part in rows.values() for row in part):
        do = "take learning.method: meta"
        raise MaskwiseError(f"labels of a classifier are for single texts, and {task.name} has pairs", do=do)
    assert classifier is not None, "labels of a classifier need one"
    confidence = classifier(task)
    splits = {
        split: classifier_labels([(row.text, number[row.label]) for row in part], confidence, drop=drop)
        for split, part in rows.items()
    }
    return Labels("classifier", splits)
