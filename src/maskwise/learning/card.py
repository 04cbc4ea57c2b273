"""Evaluate a learned masking policy on held-out texts, summarise its weights, and write its card.

The policy gives each word a weight (how often to mask the word), and finds the best spans of each
text. In the held-out texts, the answers of a task are labelled. ``measures_of`` computes three
measures:

- the exact match and F1 of the best span of a text with the answers (Rajpurkar et al. 2016);
- how many answers are among the n best spans of a text. The baseline is the salient spans (names,
  dates, numbers) of this text, and n is their number;
- the share of the weight that is on labelled words. The baseline is the share of labelled words
  among all words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypedDict

import numpy as np

from maskwise.annotate.registry import annotator
from maskwise.base.constants import UPOS
from maskwise.base.folders import credit
from maskwise.learning.annotator import Floats, TextScores, score_words
from maskwise.learning.labels import Marked
from maskwise.learning.scorer import PolicyModel
from maskwise.tasks.metrics import normalise, same_words, shared_words
from maskwise.text.layers import CharSpans

Spans: TypeAlias = list[tuple[int, int]]
Means: TypeAlias = dict[str, tuple[float, int]]
"""(Mean weight, number of occurrences), keyed by word or by part of speech."""
Measures: TypeAlias = dict[str, Any]
"""Measures of a policy, keyed by name."""

EXAMPLES = 5
EXAMPLE_WORDS = 60
TOP_WORDS = 20
LEAST_COUNT = 3
"""Minimum number of occurrences of a word in the list of the heaviest words."""
MOST_TEXTS = 500
BOLD = 3.0
"""Minimum weight of the words in bold, in example texts."""


class PolicyCard(TypedDict):
    """A summary of the weights that a policy gives to words, as in ``shown.json``.

    The mean weight in a text is 1.

    Attributes:
        words: the words with the largest mean weights, largest first.
        tags: the mean weights of all parts of speech, largest first.
        examples: texts. A text is a list of (word, weight before learning, weight after learning).
    """

    words: Means
    tags: Means
    examples: list[list[tuple[str, float, float]]]


def show(policy: PolicyModel, texts: Sequence[str], before: Sequence[np.ndarray]) -> PolicyCard:
    """Summarise a policy's weights on the first ``MOST_TEXTS`` texts.

    Args:
        before: the result of ``word_weights`` for the same texts, computed before learning.
    """
    texts = list(texts[:MOST_TEXTS])
    tagged = annotator("pos").annotate(texts)
    words: list[str] = []
    tags: list[str] = []
    weights: list[float] = []
    examples = []
    # A single call scores all texts. It sorts their windows by length, which saves padding.
    for number, scores in enumerate(score_words(policy, texts)):
        text = texts[number]
        places = map(slice, scores.start.tolist(), scores.end.tolist())
        text_words = [text[place] for place in places]
        words += map(str.casefold, text_words)
        tags += _tags(scores, tagged[number]["pos"])
        weights += scores.weight.tolist()
        if number < len(before):
            old = np.round(before[number], 4).tolist()
            new = np.round(scores.weight, 4).tolist()
            examples.append(list(zip(text_words, old, new))[:EXAMPLE_WORDS])
    common = _means(words, weights, least=LEAST_COUNT)
    return {
        "words": dict(islice(common.items(), TOP_WORDS)),
        "tags": _means(tags, weights, least=1),
        "examples": examples,
    }


def word_weights(policy: PolicyModel, texts: Sequence[str]) -> list[Floats]:
    """Return the word weights (W,) of each of the first ``EXAMPLES`` texts."""
    first = list(texts[:EXAMPLES])
    return [scores.weight for scores in score_words(policy, first)]


def _tags(scores: TextScores, tagged: CharSpans) -> list[str]:
    """Return the part of speech of each word in a text, or "none"."""
    assert tagged.value is not None
    # A word before all tagged words gets the index −1, which selects the values that are appended
    # to the arrays: a span that ends at 0 and has no tag.
    at = np.searchsorted(tagged.start, scores.start, side="right") - 1
    inside = np.append(tagged.end, 0)[at] > scores.start
    codes = np.where(inside, np.append(tagged.value, 0)[at], 0)
    names = np.array(["none", *UPOS])
    return names[codes.astype(int)].tolist()


def _means(names: Sequence[str], weights: Sequence[float], *, least: int) -> Means:
    """Return (mean, count) of each name that occurs ``least`` times or more, largest mean first."""
    unique, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights) / counts
    found = {}
    for at in np.argsort(-means, kind="stable").tolist():
        count = int(counts[at])
        if count >= least:
            mean = round(float(means[at]), 3)
            found[str(unique[at])] = (mean, count)
    return found


def policy_card(
    choices: Mapping[str, object], measures: Measures, shown: PolicyCard, *, front: str
) -> str:
    """Return a policy's model card, in the hub's Markdown format.

    Args:
        choices: the settings with which the policy was learned, keyed by name.
        measures: the measures of the policy, keyed by name. The key ``salient`` has the measures of
            the baseline, the salient spans.
        shown: the summary of the policy's weights.
        front: the front matter.
    """
    lines = "\n".join
    facts = []
    for name, choice in choices.items():
        facts.append(f"| {name} | `{choice}` |")
    # The baseline lacks some measures, so some of its cells are empty.
    salient = measures.get("salient", {})
    rows = []
    for name, value in measures.items():
        if name != "salient":
            baseline = _figure(salient.get(name, ""))
            rows.append(f"| {name} | {_figure(value)} | {baseline} |")
    words = []
    for word, (mean, _) in shown["words"].items():
        words.append(f"{word} ({mean:.1f})")
    tags = []
    for tag, (mean, _) in shown["tags"].items():
        tags.append(f"{tag} {mean:.2f}")
    examples = []
    for text in map(_with_bold, shown["examples"]):
        examples.append(f"> {text}\n")
    return f"""{front}
# A masking policy learned with {credit()}

The policy assigns a weight to every word in a text. Words with larger weights are masked more
often. Use the policy in a recipe with `masking.policy: learned("FOLDER or hub id")`, or load it
with `maskwise.learning.scorer.PolicyModel.from_pretrained`.

| choice | value |
|---|---|
{lines(facts)}

## On held-out texts

| measure | policy | salient spans |
|---|---|---|
{lines(rows)}

## What it masks

The mean weight in a text is 1.

- Heaviest words with at least {LEAST_COUNT} occurrences: {", ".join(words) or "none"}
- Mean weight by part of speech: {", ".join(tags) or "none"}

Words with at least three times the mean weight are in bold:

{lines(examples)}"""


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def _with_bold(words: Sequence[tuple[str, float, float]]) -> str:
    shown = []
    for word, _, weight in words:
        if weight >= BOLD:
            word = f"**{word}**"
        shown.append(word)
    return " ".join(shown)


# Measures on held-out labels
# -------------------------------------------------------------------------------------------


def measures_of(policy: PolicyModel, marked: Sequence[Marked]) -> Measures:
    """Evaluate a policy on held-out labelled texts.

    Returns:
        A record with these keys. ``texts`` and ``questions``: the number of texts and of questions.
        ``weight_on_labels``: the share of the policy's weight that is on labelled words.
        ``labelled_words``: the share of labelled words among all words. ``exact_match`` and ``f1``:
        the scores of the best span of each text. The keys of ``found_among``: its measures of the n
        best spans of each text, where n is the number of salient spans in the text, but at least 1.
        ``salient``: the measures of ``found_among`` for the salient spans.
        ``covered_in_as_many_words``: the measure ``covered`` of the best spans that together have
        at most as many words as the salient spans of the text.
    """
    texts = [each.text for each in marked]
    questions = sum(len(each.questions) for each in marked)
    salient: list[Spans] = []
    for layers in annotator("salient").annotate(texts):
        found = layers["salient"]
        places = np.stack([found.start, found.end], axis=1)
        salient.append(places.tolist())
    counts = [max(1, len(spans)) for spans in salient]

    weight = labelled_words = words = 0.0
    best: list[Spans] = []
    exact: list[float] = []
    f1: list[float] = []
    scored = score_words(policy, texts, spans=max(counts, default=1))
    for each, scores, count in zip(marked, scored, counts, strict=True):
        labelled = np.zeros(len(scores.start), bool)
        for start, end in each.spans:
            labelled |= (scores.start < end) & (scores.end > start)
        weight += float(scores.weight[labelled].sum())
        labelled_words += float(labelled.sum())
        words += len(labelled)
        # ``scores`` has up to ``max(counts)`` spans per window. This text needs only its best ones.
        order = np.argsort(-scores.score, kind="stable")[:count]
        chosen: Spans = scores.spans[order].tolist()
        best.append(chosen)
        answer = ""
        if chosen:
            start, end = chosen[0]
            answer = each.text[start:end]
        exact += [same_words(rights, answer) for rights in each.questions]
        f1 += [shared_words(rights, answer) for rights in each.questions]
    # The best spans and the salient spans have different numbers of words. Only this measure
    # compares them at the same number, so it comes first.
    shorter = []
    for each, spans, baseline in zip(marked, best, salient, strict=True):
        most = _words_in(each.text, baseline)
        shorter.append(_within(each.text, spans, words=most))
    of_policy = found_among(marked, shorter)["covered"]
    of_salient = found_among(marked, salient)
    # The mean weight is 1, so the sum of the weights is the number of words.
    measures: Measures = {
        "texts": len(texts),
        "questions": questions,
        "weight_on_labels": weight / max(words, 1.0),
        "labelled_words": labelled_words / max(words, 1.0),
        "exact_match": float(np.mean(exact)),
        "f1": float(np.mean(f1)),
        "covered_in_as_many_words": of_policy,
        **found_among(marked, best),
        "salient": {"covered_in_as_many_words": of_salient["covered"], **of_salient},
    }
    return measures


def found_among(marked: Sequence[Marked], spans: Sequence[Spans]) -> dict[str, float]:
    """Measure how many questions have an answer among the spans of their text.

    Returns:
        ``recall``: the share of questions with an answer that equals a span. ``covered``: the share
        of questions with an answer whose characters are all inside spans. ``spans``: the mean
        number of spans per text. ``words``: the mean number of words in spans per text.

    >>> marked = [Marked("Ada met Bo Li.", ((8, 13),), (("Bo Li",),))]
    >>> found_among(marked, [[(0, 3), (8, 13)]])["recall"]
    1.0
    >>> found_among(marked, [[(8, 10)]])["covered"]
    0.0
    """
    hits = []
    covered = []
    words = 0
    for each, text_spans in zip(marked, spans, strict=True):
        exact = set()
        shown = np.zeros(len(each.text) + 1, bool)
        for start, end in text_spans:
            exact.add(normalise(each.text[start:end]))
            shown[start:end] = True
        words += _words_in(each.text, text_spans)
        inside = set()
        for start, end in each.spans:
            if shown[start:end].all():
                inside.add(each.text[start:end].casefold())
        for answers in each.questions:
            hits.append(not exact.isdisjoint(map(normalise, answers)))
            # Labels were found without regard to case, so case is ignored here, too.
            folded = {answer.strip().casefold() for answer in answers}
            covered.append(not inside.isdisjoint(folded))
    return {
        "recall": float(np.mean(hits)),
        "covered": float(np.mean(covered)),
        "spans": sum(map(len, spans)) / len(spans),
        "words": words / len(spans),
    }


def _words_in(text: str, spans: Spans) -> int:
    parts = [text[start:end].split() for start, end in spans]
    return sum(map(len, parts))


def _within(text: str, spans: Spans, *, words: int) -> Spans:
    """Return the first spans with at most ``words`` words in total; skip spans that do not fit."""
    kept = []
    for span in spans:
        size = _words_in(text, [span])
        if size <= words:
            kept.append(span)
            words -= size
    return kept
