"""Task metrics: pure functions of the correct answers (``gold``) and the model's answers.

Classes are integers, similarities are floats, and answers to questions are texts. −1 in ``gold``
(``UNSEEN``) means a class that does not occur in train. −2 in ``answer`` (``LOST``) means that the
word was cut off. Neither number equals a class, so these items count as wrong.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskwise.base.constants import NATS
from maskwise.base.errors import MaskwiseError, PlugInError, finite_number
from maskwise.base.plugins import Table, is_foreign

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import Score

UNSEEN, LOST = -1, -2
ENTITY_F1 = "entity-f1"


def accuracy(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return the share, in [0, 1], of items whose answer equals the gold class."""
    right = np.asarray(gold)
    answered = np.asarray(answer)
    assert right.shape == answered.shape and right.ndim == 1, "gold and answer are N classes each"
    return float(np.mean(right == answered))


def macro_f1(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return the mean F1 over all classes in gold or answer. A ``LOST`` answer is a miss."""
    classes, sides = _one_hot(gold, answer)
    # LOST is not a class. As a class it would have an F1 of 0, and a lost word would count twice.
    return label_macro_f1(*sides[..., classes != LOST])


def _one_hot(gold: ArrayLike, answer: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the K classes that occur, and the one-hot arrays (2, N, K) of gold and answer."""
    both = np.asarray([gold, answer])
    classes = np.unique(both)
    return classes, both[..., None] == classes


def any_class(gold: ArrayLike, classes: int, metric: str) -> float:
    """Return the expected accuracy or macro-F1 of uniform random guessing; 0 for other metrics.

    >>> any_class([0, 1, 0, 1], 2, "accuracy"), any_class([0, 1, 0, 1], 2, "macro-f1")
    (0.5, 0.5)
    """
    gold = np.asarray(gold)
    sizes = np.bincount(gold[gold != UNSEEN], minlength=classes)
    hits = sizes / classes
    if metric == "accuracy":
        return float(hits.sum() / len(gold))
    if metric == "macro-f1":
        f1 = 2 * hits / (sizes + len(gold) / classes)
        # ``macro_f1`` counts UNSEEN as one more class, whose F1 is 0.
        return float(f1.sum() / (classes + (UNSEEN in gold)))
    return 0.0


def label_micro_f1(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return the micro-F1 of multi-label answers; both arrays (N, K) hold ones and zeros."""
    hits, sizes = _label_counts(gold, answer).sum(1)
    return float(hits / max(sizes, 1))


def label_macro_f1(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return the mean F1 over labels that occur; both arrays (N, K) hold ones and zeros."""
    hits, sizes = _label_counts(gold, answer)
    occurs = sizes > 0
    if not occurs.any():
        return 0.0
    return float(np.mean(hits[occurs] / sizes[occurs]))


def _label_counts(gold: ArrayLike, answer: ArrayLike) -> NDArray[np.int64]:
    """Return (2, K): twice the true positives of each label, and its total in gold and answer."""
    right = np.asarray(gold, dtype=bool)
    given = np.asarray(answer, dtype=bool)
    return np.array([2 * (right & given).sum(0), right.sum(0) + given.sum(0)])


def mean_reciprocal_rank(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return the mean of 1 / rank. The answers are ranks. A rank above 10 contributes 0."""
    ranks = np.asarray(answer, dtype=np.float64)
    # NaN embeddings lead to a rank of 0, which counts as a miss.
    reciprocals = np.where((ranks >= 1) & (ranks <= 10), 1 / np.maximum(ranks, 1), 0.0)
    return float(reciprocals.mean())


def recall_at_1(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return the share of queries whose relevant text has the rank 1 in ``answer``."""
    return float(np.mean(np.asarray(answer) == 1))


def ndcg_at_10(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return the mean of 1 / log₂(1 + rank). A rank above 10 contributes 0.

    This is the normalised discounted cumulative gain of queries with one relevant text.

    Source: Järvelin and Kekäläinen 2002, section 2.2.
    """
    ranks = np.asarray(answer, dtype=np.float64)
    gains = 1 / np.log2(1 + np.maximum(ranks, 1))
    return float(np.where((ranks >= 1) & (ranks <= 10), gains, 0.0).mean())


def matthews(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return Matthews' correlation of classes, in [−1, 1], or 0 if gold or answer is constant.

    Source: Gorodkin (2004), R_K. CoLA uses this metric.
    """
    if not np.ptp(gold) or not np.ptp(answer):
        return 0.0
    _, sides = _one_hot(gold, answer)
    right, given = sides - sides.mean(1, keepdims=True)
    return float((right * given).sum() / math.sqrt((right**2).sum() * (given**2).sum()))


def entity_f1(gold: ArrayLike, answer: ArrayLike, starts: ArrayLike = (0,)) -> float:
    """Return the F1 of entities. A hit has the correct first word, last word and type.

    Tags are those of ``is_entity_tags``. As in conlleval and by default in seqeval, an I-x after a
    different type begins a new entity.

    Args:
        gold, answer: the tags of all words of all sentences.
        starts: the index of each sentence's first word; no entity crosses the start of a sentence.
    """
    hits, total = entity_counts(gold, answer, starts).sum(0)
    return float(hits / total) if hits else 0.0


def entity_counts(gold: ArrayLike, answer: ArrayLike, starts: ArrayLike) -> NDArray[np.float64]:
    """Return (N, 2) for N sentences: twice the hits, and the total of entities in gold and answer.

    F1 is the sum of the first column divided by the sum of the second.
    """
    right = entities(gold, starts)
    given = entities(answer, starts)
    counts = np.zeros((np.size(starts), 2))
    for found, column, weight in ((right & given, 0, 2), (right, 1, 1), (given, 1, 1)):
        first_words = [first for first, _, _ in found]
        sentence = np.searchsorted(starts, first_words, side="right") - 1
        np.add.at(counts[:, column], sentence, weight)
    return counts


_TYPED_TAG = re.compile(r"[BIESLUM]-.")
_SAME_PREFIX = {"L": "E", "U": "S", "M": "I"}
"""The letters of BILOU (spaCy) and BMES for the last, the only and an inner word of an entity."""


def is_entity_tags(labels: Collection[str]) -> bool:
    """Return whether classes are tags of entities: O, B-x and I-x (or M-x), and E-x (or L-x) for
    the last word and S-x (or U-x) for the only word of an entity. If there is a single type of
    entities, the tags may have no type.

    >>> is_entity_tags(["B-PER", "I-PER", "O"]), is_entity_tags(["B", "I", "O"])
    (True, True)
    >>> is_entity_tags(["NOUN", "VERB"]), is_entity_tags(["S-1", "M-1", "L-1"])
    (False, False)
    """
    has_outside = "O" in labels
    tags = {*labels} - {"O"}
    if tags and all(map(_TYPED_TAG.match, tags)):
        letters = {tag[0] for tag in tags}
        # L, M and U with a hyphen are also names of other classes, such as sizes.
        return has_outside or letters <= {*"BIES"} or bool(letters & {*"BI"})
    # Single letters may be other classes, too, such as languages.
    if "B" not in tags or not tags <= {*"BIESLUM"}:
        return False
    # Without O, all words belong to entities, as in the segmentation into words.
    marks_all = {"E", "S"} <= tags
    only_ends = "E" in tags and not tags & {*"IMS"}
    return (has_outside or marks_all) and not only_ends


def entities(tags: ArrayLike, starts: ArrayLike = (0,)) -> set[tuple[int, int, str]]:
    """Return (index of the first word, index after the last word, type) of every entity."""
    found = set()
    sentences = set(np.asarray(starts).tolist())
    # An extra O after the last word ends the last entity.
    words = [*np.asarray(tags, dtype=str).tolist(), "O"]
    # The first word of the current entity, if any.
    first: int | None = None
    prefix = "O"
    kind = ""
    for place, tag in enumerate(words):
        before = prefix
        kind_before = kind
        prefix = _SAME_PREFIX.get(tag[:1], tag[:1])
        kind = tag.partition("-")[2]
        same_entity = prefix in ("I", "E") and before in ("B", "I") and kind == kind_before
        if same_entity and place not in sentences:
            continue
        if first is not None:
            found.add((first, place, kind_before))
        first = None if prefix == "O" else place
    return found


def pearson(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return the correlation of two lists of numbers, in [−1, 1], or 0 if one list is constant."""
    from scipy.stats import pearsonr

    if not np.ptp(gold) or not np.ptp(answer):
        return 0.0
    return float(pearsonr(gold, answer).statistic)


def spearman(gold: ArrayLike, answer: ArrayLike) -> float:
    """Return the rank correlation of two lists, in [−1, 1], or 0 if one list is constant.

    Tied items share their mean rank.
    """
    from scipy.stats import rankdata

    # scipy's spearmanr is not used, because it returns NaN for a constant list.
    return pearson(rankdata(gold), rankdata(answer))


# Answers in words, with the normalisation of SQuAD's evaluate-v1.1.py (Rajpurkar et al. 2016).

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower the case, remove ASCII punctuation and articles, and put single spaces between words.

    >>> normalise("The  Cat's!")
    'cats'
    """
    # Punctuation is removed first, as in the official script. Otherwise the "a" of "a.m." would be
    # removed as an article.
    words = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", words).split())


# Maps (correct answers, answer) to a score: the best match among the correct answers.
Item = Callable[[Sequence[str], str], float]


def same_words(rights: Sequence[str], answer: str) -> float:
    """Return 1 if the answer equals a correct answer after normalisation, else 0."""
    return float(normalise(answer) in map(normalise, rights))


def shared_words(rights: Sequence[str], answer: str) -> float:
    """Return the F1 of shared words, for the most similar correct answer."""
    given = normalise(answer).split()
    best = 0.0
    for right in rights:
        expected = normalise(right).split()
        shared = (Counter(given) & Counter(expected)).total()
        # As in the official script, a text without words after normalisation ("the") has F1 = 0.
        if shared:
            best = max(best, 2 * shared / (len(given) + len(expected)))
    return best


def same_text(rights: Sequence[str], answer: str) -> float:
    """Return 1 if the stripped answer equals a correct answer, else 0.

    Source: the accuracy of KILT's eval_downstream.py (Petroni et al. 2021).
    """
    return float(answer.strip() in rights)


def rouge(measure: str) -> Item:
    """Return a metric: the F-measure of ROUGE-1, -2, -L or -Lsum, with Porter's stemmer.

    ROUGE-Lsum treats each line as a sentence.

    Source: Lin 2004, computed by the package rouge-score with the settings used for BART and T5.

    >>> round(rouge("rouge1")(["the cat was found under the bed"], "the cat was under the bed"), 3)
    0.923
    """

    def score(rights: Sequence[str], answer: str) -> float:
        return max(_rouge(right, answer)[measure].fmeasure for right in rights)

    score.__doc__ = f"Return the F-measure of {measure.replace('rouge', 'ROUGE-')}."
    return score


@lru_cache(maxsize=1 << 14)
def _rouge(right: str, answer: str) -> Mapping[str, Score]:
    # A call computes all measures, but its callers ask for one measure at a time.
    return _scorer().score(right, answer)


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)


# Metrics for a single written answer. The score of a test set is their mean.
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
    """Return the metric for a test set: the mean of a metric for single items."""

    def mean(gold: Sequence[Sequence[str]], answer: Sequence[str]) -> float:
        return float(np.mean([*map(item, gold, answer)]))

    mean.__doc__ = item.__doc__
    return mean


# Uncertainty over test items

# The number of resampled test sets for the standard error of a score.
RESAMPLES = 1000


def bootstrap_interval(items: ArrayLike) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean over test items.

    >>> low, high = bootstrap_interval([0.0, 1.0] * 50)
    >>> round(low, 1), round(high, 1)
    (0.4, 0.6)
    """
    from scipy.stats import bootstrap

    scores = np.asarray(items, dtype=np.float64)
    # scipy refuses a single item. If all items are equal, only rounding varies between resamples.
    if len(scores) < 2 or not np.ptp(scores):
        mean = float(scores.mean())
        return mean, mean
    # Batches of 50 resamples need little memory, even for large test sets.
    settings = {"n_resamples": 2000, "method": "percentile", "batch": 50, "rng": 0}
    interval = bootstrap((scores,), np.mean, vectorized=True, **settings).confidence_interval
    return float(interval.low), float(interval.high)


def error_of_items(counts: ArrayLike, clusters: Sequence[str]) -> float:
    """Return the standard error of a score over test items, by a cluster bootstrap.

    >>> round(error_of_items([[1, 1], [0, 1]] * 50, [str(n) for n in range(100)]), 2)
    0.05

    Args:
        counts: (N, 2) the contribution of each row to the numerator and denominator of the score.
        clusters: (N,) the cluster of each row. Rows in one cluster, such as questions about the
            same text, are resampled together.
    """
    # In a numpy string array, every string would need the memory of the longest string.
    texts_N = np.array(clusters, dtype=object)
    names, cluster_N = np.unique(texts_N, return_inverse=True)
    sums = np.zeros((len(names), 2))
    np.add.at(sums, cluster_N, np.asarray(counts, dtype=np.float64))
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(sums), len(sums))
        numerator, denominator = sums[drawn].sum(0)
        # A resampled test set that has no entities scores 0, not NaN.
        scores.append(numerator / max(denominator, 1e-300))
    return float(np.std(scores))


def compact(values: ArrayLike) -> list[float]:
    """Round numbers to four decimals, and write whole numbers as integers, for short files.

    >>> compact([2.0, 0.33333, -1e-9])
    [2, 0.3333, 0]
    """
    rounded = np.round(np.asarray(values, dtype=np.float64), 4)
    return [int(value) if value.is_integer() else value for value in rounded.tolist()]


# Nats per token of written answers


class Answer(str):
    """The text that a model wrote for a row.

    Attributes:
        nats: −log p of the row's first correct answer under the model, in nats.
        tokens: the number of tokens in this correct answer.
    """

    nats: float
    tokens: int

    def __new__(cls, text: str, nats: float = 0.0, tokens: int = 0) -> Answer:
        answer = super().__new__(cls, text)
        answer.nats = nats
        answer.tokens = tokens
        return answer


def _nats_and_tokens(answers: Collection[Answer]) -> NDArray[np.float64]:
    """Return (2, N): the nats and the token counts of N answers."""
    pairs = [(answer.nats, answer.tokens) for answer in answers]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2).T.copy()


def nats_per_token(gold: object, answers: Collection[Answer]) -> float:
    """Return the mean −log p of the tokens in the first correct answers, in nats."""
    nats, tokens = _nats_and_tokens(answers).sum(1)
    return float(nats / tokens)


def nats_of_items(answers: Collection[Answer]) -> NDArray[np.float64]:
    """Return (N,) the contribution of each row to the nats per token.

    The score is a ratio of two sums. The mean of the contributions equals the score, and their
    standard error equals the standard error of the ratio (the delta method).
    """
    nats_N, tokens_N = _nats_and_tokens(answers)
    ratio = nats_N.sum() / tokens_N.sum()
    return ratio + (nats_N - ratio * tokens_N) / tokens_N.mean()


_BUILT_IN: dict[str, Callable[..., float]] = {
    **{name: mean_over(item) for name, item in ITEMS.items()},
    "accuracy": accuracy,
    "macro-f1": macro_f1,
    "matthews": matthews,
    "label-micro-f1": label_micro_f1,
    "label-macro-f1": label_macro_f1,
    "mrr": mean_reciprocal_rank,
    "recall-at-1": recall_at_1,
    "ndcg-at-10": ndcg_at_10,
    ENTITY_F1: entity_f1,
    "spearman": spearman,
    "pearson": pearson,
    NATS: nats_per_token,
}
METRICS = Table("metric", "maskwise.metrics", _BUILT_IN)
"""Metrics for a test set. ``accuracy`` compares classes here, and texts in ``ITEMS``."""


def computed(metric: str, gold: object, answers: object) -> float:
    """Return the value of a metric.

    Raises:
        PlugInError: a metric of another package does not return a finite number.
    """
    function = METRICS[metric]
    value = function(gold, answers)
    if is_foreign(function):
        try:
            return float(finite_number(f"what the metric {metric} returns", value))
        except MaskwiseError as error:
            raise PlugInError(str(error)) from error
    return value
