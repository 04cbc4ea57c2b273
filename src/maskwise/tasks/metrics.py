"""Metrics: pure functions of what was right and what was answered. No weights, no state, no
downloads.

Classes are integers, similarities are numbers, answers to questions are texts. −1 in ``gold`` (a
class that training never showed) and −2 in ``answer`` (no answer was possible, as for a word cut
off) agree with nothing and so count as wrong.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskwise.constants import NATS

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import Score

UNSEEN, LOST = -1, -2


def accuracy(gold: ArrayLike, answer: ArrayLike) -> float:
    """Share of equal items, in [0, 1]."""
    right, answered = np.asarray(gold), np.asarray(answer)
    assert right.shape == answered.shape and right.ndim == 1 and len(right), (
        "gold and answer are one number an item"
    )
    return float(np.mean(right == answered))


def macro_f1(gold: ArrayLike, answer: ArrayLike) -> float:
    """F1 averaged over the classes that occur in gold or answer; one that is never hit has 0. What
    was not answered (``LOST``) is a miss of its class, and no class."""
    from sklearn.metrics import f1_score

    classes = np.union1d(gold, answer)
    return float(f1_score(gold, answer, labels=classes[classes != LOST], average="macro"))


def any_class(gold: ArrayLike, classes: int, metric: str) -> float:
    """The score to expect of answers that are drawn at random, each class equally often; 0 in other
    metrics.

    >>> any_class([0, 1, 0, 1], 2, "accuracy"), any_class([0, 1, 0, 1], 2, "macro-f1")
    (0.5, 0.5)
    """
    gold = np.asarray(gold)
    sizes = np.bincount(gold[gold != UNSEEN], minlength=classes)
    hits = sizes / classes
    if metric == "accuracy":
        return float(hits.sum() / len(gold))
    if metric == "macro-f1":
        return float(np.mean(2 * hits / (sizes + len(gold) / classes)))
    return 0.0


def label_micro_f1(gold: ArrayLike, answer: ArrayLike) -> float:
    """F1 over all pairs of a row and a label, (N, K) ones and zeros; 0 without any hit."""
    from sklearn.metrics import f1_score

    return float(f1_score(np.asarray(gold), np.asarray(answer), average="micro", zero_division=0))


def label_macro_f1(gold: ArrayLike, answer: ArrayLike) -> float:
    """F1 averaged over the labels that occur in gold or answer, (N, K) ones and zeros."""
    from sklearn.metrics import f1_score

    right, answered = np.asarray(gold), np.asarray(answer)
    occurring = np.flatnonzero(right.any(0) | answered.any(0))
    if not len(occurring):
        return 0.0
    return float(f1_score(right, answered, labels=occurring, average="macro"))


def mean_reciprocal_rank(gold: ArrayLike, answer: ArrayLike) -> float:
    """Mean of 1 / rank of the right text, 0 beyond rank 10. Ranks are the answers; ``gold`` is not
    looked at.
    """
    ranks = np.asarray(answer, dtype=np.float64)
    return float(np.mean(np.where(ranks <= 10, 1 / ranks, 0.0)))


def recall_at_1(gold: ArrayLike, answer: ArrayLike) -> float:
    """How often the right text has rank 1."""
    return float(np.mean(np.asarray(answer) == 1))


def matthews(gold: ArrayLike, answer: ArrayLike) -> float:
    """Matthews' correlation coefficient for any number of classes, in [−1, 1]; 0 where one side is
    constant.

    Source: Gorodkin (2004), R_K. It is CoLA's metric.
    """
    from sklearn.metrics import matthews_corrcoef

    if not np.ptp(gold) or not np.ptp(answer):
        return 0.0
    return float(matthews_corrcoef(gold, answer))


def entity_f1(gold: ArrayLike, answer: ArrayLike, starts: ArrayLike = (0,)) -> float:
    """F1 over entities: a hit has the same first word, last word and type. 0 without any hit.

    Tags are O, B-x, I-x (also E-x, S-x). The rules are conlleval's, and so seqeval's default: an
    I-x that continues no x begins an entity.

    Args:
        gold, answer: the tags of all words, one sentence behind the other.
        starts: where sentences begin; no entity goes on over such a place.
    """
    hits, total = entity_counts(gold, answer, starts).sum(0)
    return float(hits / total) if hits else 0.0


def entity_counts(
    gold: ArrayLike, answer: ArrayLike, starts: ArrayLike = (0,)
) -> NDArray[np.float64]:
    """(N, 2) by sentence: twice its hits, and its entities in gold and answer; F1 is the quotient
    of the sums.
    """
    right, given = entities(gold, starts), entities(answer, starts)
    counts = np.zeros((np.size(starts), 2))
    for found, column, weight in ((right & given, 0, 2), (right, 1, 1), (given, 1, 1)):
        sentence = np.searchsorted(starts, [first for first, _, _ in found], side="right") - 1
        np.add.at(counts[:, column], sentence, weight)
    return counts


def entities(tags: ArrayLike, starts: ArrayLike = (0,)) -> set[tuple[int, int, str]]:
    """(first word, word behind the last, type) of every entity."""
    found = set()
    sentences = set(np.asarray(starts).tolist())
    words = np.asarray(tags, dtype=str).tolist()
    first: int | None = None  # of the entity that is open
    prefix, kind = "O", ""
    for place, tag in enumerate(words):
        before, kind_before = prefix, kind
        prefix = tag[:1]
        kind = tag.partition("-")[2]
        same_entity = prefix in ("I", "E") and before in ("B", "I") and kind == kind_before
        if same_entity and place not in sentences:
            continue
        if first is not None:
            found.add((first, place, kind_before))
        first = None if prefix == "O" else place
    if first is not None:
        found.add((first, len(words), kind))
    return found


def pearson(gold: ArrayLike, answer: ArrayLike) -> float:
    """Correlation of two lists of numbers, in [−1, 1]; 0 where one side is constant."""
    from scipy.stats import pearsonr

    if not np.ptp(gold) or not np.ptp(answer):
        return 0.0
    return float(pearsonr(gold, answer).statistic)


def spearman(gold: ArrayLike, answer: ArrayLike) -> float:
    """Correlation of ranks, equal numbers sharing their mean rank, in [−1, 1]; 0 where one side is
    constant.

    STS-B's metric.
    """
    from scipy.stats import rankdata

    return pearson(rankdata(gold), rankdata(answer))


# Answers as texts, with the normalisation of SQuAD's official script (evaluate-v1.1.py; Rajpurkar
# et al. 2016)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """What is compared: lower case, without ASCII punctuation and the words a, an and the; white
    space is one space.

    >>> normalise("The  Cat's!")
    'cats'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


Item = Callable[[Sequence[str], str], float]
"""The score of one answer, given all its right answers: of several the best one counts."""


def same_words(rights: Sequence[str], answer: str) -> float:
    """1 if an answer equals one of its right answers once both are normalised. Answers of which
    nothing is left are equal."""
    return float(normalise(answer) in {normalise(right) for right in rights})


def shared_words(rights: Sequence[str], answer: str) -> float:
    """F1 of the words that an answer shares with the right answer it is nearest to.

    Two answers of which nothing is left ("the", "!") have an F1 of 0, as in the official script of
    version 1.1.
    """
    return max(_overlap(answer, right) for right in rights)


def _overlap(answer: str, right: str) -> float:
    given, expected = normalise(answer).split(), normalise(right).split()
    shared = sum((Counter(given) & Counter(expected)).values())
    return 2 * shared / (len(given) + len(expected)) if shared else 0.0


def same_text(rights: Sequence[str], answer: str) -> float:
    """1 if an answer is one of its right answers, letter by letter. White space around the answer
    does not count.

    Source: the accuracy of KILT's eval_downstream.py (Petroni et al. 2021).
    """
    return float(answer.strip() in rights)


def rouge(measure: str) -> Item:
    """F of ROUGE-1, -2, -L or -Lsum (in which lines are sentences), with Porter's stemmer: the
    package rouge-score.

    Source: Lin 2004; the settings are those that results of BART and T5 are reported with.

    >>> round(rouge("rouge1")(["the cat was found under the bed"], "the cat was under the bed"), 3)
    0.923
    """

    def score(rights: Sequence[str], answer: str) -> float:
        return max(_rouge(right, answer)[measure].fmeasure for right in rights)

    return score


@lru_cache(maxsize=1 << 14)
def _rouge(right: str, answer: str) -> Mapping[str, Score]:
    """All measures of one pair: they are asked for one after the other."""
    return _scorer().score(right, answer)


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)


ITEMS: dict[str, Item] = {
    "exact-match": same_words,
    "f1": shared_words,
    "accuracy": same_text,
    "rouge-1": rouge("rouge1"),
    "rouge-2": rouge("rouge2"),
    "rouge-l": rouge("rougeL"),
    "rouge-lsum": rouge("rougeLsum"),
}
"""How one answer in words is scored. The score of a test set is the mean over its items."""


def mean_over(item: Item) -> Callable[[Sequence[Sequence[str]], Sequence[str]], float]:
    """The metric of a whole test set, from the score of an item."""

    def metric(gold: Sequence[Sequence[str]], answer: Sequence[str]) -> float:
        return sum(map(item, gold, answer)) / len(answer)

    return metric


def bootstrap_interval(items: ArrayLike) -> tuple[float, float]:
    """What the mean of the items' scores could have been with other test items: a 95 % percentile
    bootstrap.

    >>> low, high = bootstrap_interval([0.0, 1.0] * 50)
    >>> round(low, 1), round(high, 1)
    (0.4, 0.6)
    """
    from scipy.stats import bootstrap

    scores = np.asarray(items, dtype=np.float64)
    if len(scores) < 2 or not np.ptp(scores):  # of equal scores there is nothing to draw
        return float(scores.mean()), float(scores.mean())
    settings = {"n_resamples": 2000, "method": "percentile", "batch": 50, "rng": 0}
    interval = bootstrap((scores,), np.mean, vectorized=True, **settings).confidence_interval
    return float(interval.low), float(interval.high)


def error_of_items(counts: ArrayLike, clusters: Sequence[str], *, resamples: int = 1000) -> float:
    """The standard error of a score over other test items: a bootstrap of whole clusters, which are
    rows or documents.

    >>> round(error_of_items([[1, 1], [0, 1]] * 50, [str(n) for n in range(100)]), 2)
    0.05

    Args:
        counts: (N, 2) what each row adds above and below the line; the score is the quotient of the
            sums.
        clusters: which rows are drawn together: words of one sentence are one row, questions on one
            text one cluster.
    """
    place = {cluster: number for number, cluster in enumerate(sorted(set(clusters)))}
    # no array of texts, each as wide as the longest
    code = np.array([place[cluster] for cluster in clusters])
    sums = np.zeros((int(code.max()) + 1, 2))
    np.add.at(sums, code, np.asarray(counts, dtype=np.float64))
    rng, number = np.random.default_rng(0), len(sums)
    drawn = np.array([sums[rng.integers(0, number, number)].sum(0) for _ in range(resamples)])
    return float(np.std(drawn[:, 0] / np.maximum(drawn[:, 1], 1e-300)))


def nats_per_token(nats: ArrayLike, tokens: ArrayLike) -> float:
    """Mean negative log-probability of the tokens of right answers: (N,) sums over items, (N,)
    numbers of tokens.
    """
    return float(np.sum(nats) / np.sum(tokens))


METRICS: dict[str, Callable[..., float]] = {
    **{name: mean_over(item) for name, item in ITEMS.items()},
    "accuracy": accuracy,
    "macro-f1": macro_f1,
    "matthews": matthews,
    "label-micro-f1": label_micro_f1,
    "mrr": mean_reciprocal_rank,
    "recall-at-1": recall_at_1,
    "label-macro-f1": label_macro_f1,
    "entity-f1": entity_f1,
    "spearman": spearman,
    "pearson": pearson,
    NATS: nats_per_token,
}
"""Metrics of a whole test set, by name. ``accuracy`` is of classes; that of texts is in ``ITEMS``.
"""
