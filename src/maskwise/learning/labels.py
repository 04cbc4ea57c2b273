"""Derive labels for a policy from a task: the words or spans of a text that it should find.

- Questions: an answer is labelled wherever it occurs in the context as whole words. The policy does
  not see the question.
- Summaries and other targets: their content words are labelled in the source. If hardly any source
  contains such a word, labels teach nothing, and only the meta-gradient can be used.

Source: Ye et al. 2021 (arXiv 2104.08840) for answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, TypeAlias

from maskwise.errors import MaskwiseError, counted
from maskwise.learning.examples import contexts_of, given_context, occurrences
from maskwise.learning.scorer import Head
from maskwise.tasks import load_task
from maskwise.tasks.columns import read_answers
from maskwise.tasks.files import (
    ANSWERS,
    CARDS,
    CONTEXT,
    read_splits,
    shared_names,
    shared_text,
    splits_of,
)
from maskwise.tasks.task import SPLITS, Row, Task
from maskwise.text.words import classify, words_in

Place: TypeAlias = tuple[int, int]
"""(start, end) in characters."""
Pair: TypeAlias = tuple[str, Sequence[str]]
"""A text with the correct answers or targets from one row."""
Pairs: TypeAlias = Iterable[Pair]

NOT_IN_CONTEXT = "answers that are not in their context"
NO_SHARED_WORD = "targets without a content word of their source"
IN_NO_TEXT = "questions without an answer in any text"
NO_ANSWER = "questions without an answer"
LEAST_LABELLED = 0.1
"""Labels from targets are refused if a smaller share of the sources has a label."""
LEAST_ANSWERED = 0.01
"""Rows without contexts count as questions, not as summaries, if the texts contain answers to at
least this share of them."""

_FUNCTION_WORDS = """
a about above after again against all also am an and any are as at be because been before being
below between both but by can could did do does doing down during each few for from further had
has have having he her here hers him his how i if in into is it its itself just may me might more
most must my no nor not now of off on once one only or other our out over own same shall she
should so some such than that the their them then there these they this those through to too under
until up upon us very was we were what when where which while who whom whose why will with would
you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words without content; they are never labelled as words of a target."""


@dataclass(frozen=True)
class Marked:
    """A text and its labels.

    Attributes:
        spans: the labelled spans, (start, end) in characters, sorted; they may repeat or overlap.
        questions: for each question about the text, the correct answers that the text contains;
            empty if the labels are words.
    """

    text: str
    spans: tuple[Place, ...]
    questions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Labels:
    """The labelled texts of each split.

    Attributes:
        kind: how the labels were derived.
        splits: the labelled texts of train, dev and test.
        counts: the number of rows without a label, for each reason.
    """

    kind: Literal["answers", "target-words"]
    splits: dict[str, list[Marked]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def head(self) -> Head:
        """The head of a policy that can learn these labels."""
        if self.kind == "answers":
            return "spans"
        return "tokens"

    def marked(self, *splits: str) -> list[Marked]:
        """Return the labelled texts of the first of these splits that has any."""
        for split in splits:
            labelled = [each for each in self.splits[split] if each.spans]
            if labelled:
                return labelled
        return []

    def texts(self) -> list[str]:
        """Return the labelled texts of test, or else those of dev or train."""
        return [each.text for each in self.marked("test", "dev", "train")]


def answer_labels(pairs: Pairs, counts: Counter[str]) -> list[Marked]:
    """Label answers: turn (context, correct answers) pairs into contexts, each with all its
    answers.

    >>> counts = Counter()
    >>> pairs = [("Ada met Bo. Bo left.", ["Bo"]), ("Ada met Bo. Bo left.", ["Eve"])]
    >>> answer_labels(pairs, counts)[0].spans, counts[NOT_IN_CONTEXT]
    (((8, 10), (12, 14)), 1)
    """
    spans: dict[str, list[Place]] = {}
    questions: dict[str, list[tuple[str, ...]]] = {}
    for context, answers in pairs:
        present = []
        # A set, because two answers may differ only in case, but a question counts a place once.
        places = set[Place]()
        for answer in dict.fromkeys(answers):
            found = occurrences(answer, context)
            if found:
                present.append(answer)
                places.update(found)
        if not present:
            counts[NOT_IN_CONTEXT] += 1
            continue
        spans.setdefault(context, []).extend(places)
        questions.setdefault(context, []).append(tuple(present))
    marked = []
    for context, asked in questions.items():
        spans[context].sort()
        marked.append(Marked(context, tuple(spans[context]), tuple(asked)))
    return marked


def target_labels(pairs: Pairs, counts: Counter[str]) -> list[Marked]:
    """Label in each source the content words of its targets, from (source, targets) pairs.

    >>> target_labels([("Owls hunt mice at night.", ["Mice fear the owls."])], Counter())[0].spans
    ((0, 4), (10, 14))
    """
    marked = []
    for source, targets in pairs:
        wanted = set[str]()
        for target in targets:
            for word, _ in placed_words(target):
                wanted.add(word.casefold())
        wanted -= FUNCTION_WORDS
        spans = []
        for word, place in placed_words(source):
            # Punctuation marks are words too, and all texts have them in common.
            is_sign = not any(map(str.isalnum, word))
            if word.casefold() in wanted and not is_sign:
                spans.append(place)
        if not spans:
            counts[NO_SHARED_WORD] += 1
        marked.append(Marked(source, tuple(spans)))
    return marked


def placed_words(text: str) -> list[tuple[str, Place]]:
    """Split a text into words, each with its (start, end)."""
    words = []
    start, end = words_in(classify(text))
    for first, last in zip(start.tolist(), end.tolist()):
        words.append((text[first:last], (first, last)))
    return words


# From a task
# -------------------------------------------------------------------------------------------


def labels_of(
    spec: str,
    *,
    kind: str | None = None,
    texts: Sequence[str] = (),
) -> Labels:
    """Derive the labels from a task.

    Args:
        spec: the task, as for ``load_task``.
        kind: "answers" or "target-words"; if None, it depends on the task's rows.
        texts: a corpus that is searched for contexts, for questions without a context.

    Raises:
        MaskwiseError: there is nothing to label, or the labels would teach nothing: no answer is in
            its context, or targets share no word with their sources.
    """
    labels = None
    # Try raw records first: a task of a different kind may leave out its records' contexts.
    if kind in (None, "answers"):
        labels = _answers_of_file(spec)
    if labels is None:
        labels = _of_task(load_task(spec), kind, texts)
    if labels.kind == "target-words":
        total = sum(map(len, labels.splits.values()))
        share = (total - labels.counts[NO_SHARED_WORD]) / total
        if share < LEAST_LABELLED:
            raise MaskwiseError(
                f"hardly any target of task {spec} shares a word with its source: labels would "
                "teach nothing",
                got=f"{share:.0%} of the sources have a label",
                do="use learning.method: meta, which learns from the effect of masking",
            )
    if not labels.marked("train"):
        raise MaskwiseError(
            f"nothing in the training texts of task {spec} can be labelled",
            got=counted(+labels.counts) or "no label",
            do="give contexts that contain their answers, set learning.supervised.labels, or use "
            "learning.method: meta",
        )
    return labels


def _of_task(task: Task, kind: str | None, texts: Sequence[str]) -> Labels:
    rows = {split: task.splits[split] for split in SPLITS}
    first = next(chain.from_iterable(rows.values()))
    if not first.rights:
        raise MaskwiseError(
            f"task {task.name} has neither answers nor targets to learn from",
            got=task.kind.name,
            do="use learning.method: meta, which needs no labels",
        )
    has_context = bool(given_context(first))
    if kind != "target-words" and (texts or has_context):
        labels = Labels("answers")
        for split, part in rows.items():
            pairs = _answer_pairs(part, texts, labels.counts)
            labels.splits[split] = answer_labels(pairs, labels.counts)
        answered = 0
        for each in labels.splits["train"]:
            answered += len(each.questions)
        # Without a context, a row may be a summary, which hardly any text of a corpus contains.
        if kind or has_context or answered >= LEAST_ANSWERED * len(rows["train"]):
            return labels
    labels = Labels("target-words")
    for split, part in rows.items():
        sources = []
        for row in part:
            sources.append((row.texts[0], row.rights))
        labels.splits[split] = target_labels(sources, labels.counts)
    return labels


def _answer_pairs(rows: Sequence[Row], texts: Sequence[str], counts: Counter[str]) -> Pairs:
    """Pair the contexts of each row with the row's correct answers."""
    pairs = []
    places, contexts = contexts_of(rows, texts)
    for row, found in zip(rows, places, strict=True):
        if not found:
            counts[IN_NO_TEXT] += 1
        for place in found:
            pairs.append((contexts[place], row.rights))
    return pairs


def _answers_of_file(spec: str) -> Labels | None:
    """Label the answers in raw records; return None if the records have no contexts or answers."""
    # Arguments and cards may choose other columns, which only ``load_task`` can find.
    if "(" in spec or spec in CARDS:
        return None
    records = read_splits(spec)
    first = next(chain.from_iterable(records.values()), {})
    if first.keys().isdisjoint(CONTEXT) or first.keys().isdisjoint(ANSWERS):
        return None
    labels = Labels("answers")
    keyed: dict[str, list[tuple[str, Pair]]] = {}
    for split, part in records.items():
        names = shared_names(part)
        keyed[split] = []
        for number, record in enumerate(part, start=1):
            value = next((record[name] for name in ANSWERS if name in record), None)
            answers = [text for text, _ in read_answers(value, f"row {number} of {split}")]
            if not answers:
                labels.counts[NO_ANSWER] += 1
                continue
            contexts = map(record.get, CONTEXT)
            context = next((text for text in contexts if isinstance(text, str)), "")
            keyed[split].append((shared_text(record, names), (context, answers)))
    # Use the same splits as ``load_task``, so that no policy learns from a task's test rows.
    splits, _ = splits_of(keyed, f"task {spec!r}")
    for split, pairs in splits.items():
        labels.splits[split] = answer_labels(pairs, labels.counts)
    return labels
