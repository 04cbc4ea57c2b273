"""Metrics: pure functions of right answers and given answers.

Classes are integers, similarities are numbers, answers to questions are texts. −1 in ``gold`` (a
class that train lacks) and −2 in ``answer`` (no answer was possible, as for a word that was cut
off) equal nothing and so count as wrong.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskwise.constants import NATS

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import Score

UNSEEN, LOST = -1, -2


ENTITY_F1 = "entity-f1"


def accuracy(gold: ArrayLike, answer: ArrayLike) -> float:
    """Share of equal items, in [0, 1]."""
    right = np.asarray(gold)
    answered = np.asarray(answer)
    assert right.shape == answered.shape and right.ndim == 1, "gold and answer have one number each"
    return float(np.mean(right == answered))


def macro_f1(gold: ArrayLike, answer: ArrayLike) -> float:
    """Mean F1 of the classes in gold or answer. ``LOST`` is a miss of the right class, no class."""
    from sklearn.metrics import f1_score

    classes = np.union1d(gold, answer)
    return float(f1_score(gold, answer, labels=classes[classes != LOST], average="macro"))


def any_class(gold: ArrayLike, classes: int, metric: str) -> float:
    """The expected score of classes drawn at random, all equally likely; 0 for other metrics.

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
    """Mean F1 of the labels that occur in gold or answer, (N, K) ones and zeros."""
    from sklearn.metrics import f1_score

    right = np.asarray(gold)
    answered = np.asarray(answer)
    occurring = np.flatnonzero(right.any(0) | answered.any(0))
    if not len(occurring):
        return 0.0
    return float(f1_score(right, answered, labels=occurring, average="macro"))


def mean_reciprocal_rank(gold: ArrayLike, answer: ArrayLike) -> float:
    """Mean of 1 / rank of the right text, 0 beyond rank 10. The answers are ranks."""
    ranks = np.asarray(answer, dtype=np.float64)
    return float(np.mean(np.where(ranks <= 10, 1 / ranks, 0.0)))


def matthews(gold: ArrayLike, answer: ArrayLike) -> float:
    """Matthews' correlation coefficient of classes, in [−1, 1]; 0 if one side is constant.

    Source: Gorodkin (2004), R_K. It is CoLA's metric.
    """
    from sklearn.metrics import matthews_corrcoef

    if not np.ptp(gold) or not np.ptp(answer):
        return 0.0
    return float(matthews_corrcoef(gold, answer))


def entity_f1(gold: ArrayLike, answer: ArrayLike, starts: ArrayLike = (0,)) -> float:
    """F1 of entities: a hit has the same first word, last word and type. 0 without any hit.

    Tags are O, B-x, I-x (also E-x, S-x). The rules are those of conlleval, which are seqeval's
    default: an I-x that continues no x begins an entity.

    Args:
        gold, answer: the tags of all words of all sentences.
        starts: the places where sentences begin; entities end there.
    """
    hits, total = entity_counts(gold, answer, starts).sum(0)
    return float(hits / total) if hits else 0.0


def entity_counts(
    gold: ArrayLike, answer: ArrayLike, starts: ArrayLike = (0,)
) -> NDArray[np.float64]:
    """(N, 2) per sentence: twice its hits, and its entities in gold and answer. F1 is the ratio of
    the sums.
    """
    right = entities(gold, starts)
    given = entities(answer, starts)
    counts = np.zeros((np.size(starts), 2))
    for found, column, weight in ((right & given, 0, 2), (right, 1, 1), (given, 1, 1)):
        sentence = np.searchsorted(starts, [first for first, _, _ in found], side="right") - 1
        np.add.at(counts[:, column], sentence, weight)
    return counts


def entities(tags: ArrayLike, starts: ArrayLike = (0,)) -> set[tuple[int, int, str]]:
    """(first word, end, type) of every entity."""
    found = set()
    sentences = set(np.asarray(starts).tolist())
    words = np.asarray(tags, dtype=str).tolist()
    first: int | None = None  # word of the open entity
    prefix = "O"
    kind = ""
    for place, tag in enumerate(words):
        before = prefix
        kind_before = kind
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
    """Correlation of two lists of numbers, in [−1, 1]; 0 if one side is constant."""
    from scipy.stats import pearsonr

    if not np.ptp(gold) or not np.ptp(answer):
        return 0.0
    return float(pearsonr(gold, answer).statistic)


def spearman(gold: ArrayLike, answer: ArrayLike) -> float:
    """Correlation of ranks, with mean ranks for ties, in [−1, 1]; 0 if one side is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(gold), rankdata(answer))


# Answers in words, with the normalisation of SQuAD's evaluate-v1.1.py (Rajpurkar et al. 2016)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and the words a, an and the; single spaces.

    >>> normalise("The  Cat's!")
    'cats'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


# The score of one answer, given all its right answers: the best match counts.
Item = Callable[[Sequence[str], str], float]


def same_words(rights: Sequence[str], answer: str) -> float:
    """1 if the normalised answer is one of the normalised right answers. Empty texts are equal."""
    return float(normalise(answer) in map(normalise, rights))


def shared_words(rights: Sequence[str], answer: str) -> float:
    """F1 of the words that the answer shares with the nearest right answer.

    Two answers that are empty once normalised ("the", "!") have an F1 of 0, as in the official
    script.
    """
    given = normalise(answer).split()
    scores = []
    for right in rights:
        expected = normalise(right).split()
        shared = (Counter(given) & Counter(expected)).total()
        scores.append(2 * shared / (len(given) + len(expected)) if shared else 0.0)
    return max(scores)


def same_text(rights: Sequence[str], answer: str) -> float:
    """1 if the stripped answer equals a right answer.

    Source: the accuracy of KILT's eval_downstream.py (Petroni et al. 2021).
    """
    return float(answer.strip() in rights)


def rouge(measure: str) -> Item:
    """F of ROUGE-1, -2, -L or -Lsum (where lines are sentences) with Porter's stemmer.

    Source: Lin 2004, by the package rouge-score, with the settings of the results of BART and T5.

    >>> round(rouge("rouge1")(["the cat was found under the bed"], "the cat was under the bed"), 3)
    0.923
    """

    def score(rights: Sequence[str], answer: str) -> float:
        return max(_rouge(right, answer)[measure].fmeasure for right in rights)

    return score


@lru_cache(maxsize=1 << 14)
def _rouge(right: str, answer: str) -> Mapping[str, Score]:
    # All measures of a pair are asked for in turn, and computing them together costs the same.
    return _scorer().score(right, answer)


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)


# Metrics of one answer in words. A test set is scored by the mean over its items.
ITEMS: dict[str, Item] = {
    "exact-match": same_words,
    "f1": shared_words,
    "accuracy": same_text,
    "rouge-1": rouge("rouge1"),
    "rouge-2": rouge("rouge2"),
    "rouge-l": rouge("rougeL"),
    "rouge-lsum": rouge("rougeLsum"),
}


def mean_over(item: Item) -> Callable[[Sequence[Sequence[str]], Sequence[str]], float]:
    """The metric of a test set, from the metric of an item."""
    return lambda gold, answer: float(np.mean([*map(item, gold, answer)]))


# Uncertainty over test items


def bootstrap_interval(items: ArrayLike) -> tuple[float, float]:
    """A 95 % percentile bootstrap interval of the mean over test items.

    >>> low, high = bootstrap_interval([0.0, 1.0] * 50)
    >>> round(low, 1), round(high, 1)
    (0.4, 0.6)
    """
    from scipy.stats import bootstrap

    scores = np.asarray(items, dtype=np.float64)
    if len(scores) < 2 or not np.ptp(scores):  # scipy refuses samples without variance
        return float(scores.mean()), float(scores.mean())
    settings = {"n_resamples": 2000, "method": "percentile", "batch": 50, "rng": 0}
    interval = bootstrap((scores,), np.mean, vectorized=True, **settings).confidence_interval
    return float(interval.low), float(interval.high)


def error_of_items(counts: ArrayLike, clusters: Sequence[str], *, resamples: int = 1000) -> float:
    """The standard error of a score over test items: a bootstrap of whole clusters.

    >>> round(error_of_items([[1, 1], [0, 1]] * 50, [str(n) for n in range(100)]), 2)
    0.05

    Args:
        counts: (N, 2) what every row adds to the numerator and the denominator of the score.
        clusters: (N,) rows of a cluster are drawn together: the words of a sentence are one row,
            the questions about one text one cluster.
    """
    # Not np.unique: an array of texts would be as wide as the longest one.
    place = {cluster: number for number, cluster in enumerate(sorted(set(clusters)))}
    sums = np.zeros((len(place), 2))
    np.add.at(sums, [place[cluster] for cluster in clusters], np.asarray(counts, dtype=np.float64))
    rng = np.random.default_rng(0)
    size = len(sums)
    drawn = np.array([sums[rng.integers(0, size, size)].sum(0) for _ in range(resamples)])
    return float(np.std(drawn[:, 0] / np.maximum(drawn[:, 1], 1e-300)))


# Nats of written answers

# ``written.Answer``s, which have the attributes ``nats`` and ``tokens``.
WithNats = Any


def nats_per_token(gold: object, answers: WithNats) -> float:
    """Mean negative log-probability of the tokens of right answers."""
    return float(np.sum([a.nats for a in answers]) / np.sum([a.tokens for a in answers]))


def nats_of_items(answers: WithNats) -> NDArray[np.float64]:
    """(N,) the contribution of every row to the nats per token, which is a ratio and no mean over
    rows: the mean is the score, and the spread is that of the ratio.
    """
    nats = np.array([a.nats for a in answers], dtype=np.float64)
    tokens = np.array([a.tokens for a in answers], dtype=np.float64)
    ratio = nats.sum() / tokens.sum()
    return ratio + (nats - ratio * tokens) / tokens.mean()


METRICS: dict[str, Callable[..., float]] = {
    **{name: mean_over(item) for name, item in ITEMS.items()},
    "accuracy": accuracy,
    "macro-f1": macro_f1,
    "matthews": matthews,
    "label-micro-f1": label_micro_f1,
    "label-macro-f1": label_macro_f1,
    "mrr": mean_reciprocal_rank,
    "recall-at-1": lambda gold, answer: float(np.mean(np.asarray(answer) == 1)),
    ENTITY_F1: entity_f1,
    "spearman": spearman,
    "pearson": pearson,
    NATS: nats_per_token,
    "evaluator": lambda gold, answer: float(answer[0]),
}
"""Metrics of a whole test set. ``accuracy`` is for classes; ``ITEMS`` has the one for texts."""
