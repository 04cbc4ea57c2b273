"""The kinds of tasks, one class each. A new kind is a class in a file here and a line in ``KINDS``."""

from collections.abc import Mapping, Sequence

from maskwise.tasks.kinds.embeddings import SentenceEmbedding, ZeroShotSimilarity
from maskwise.tasks.kinds.labels import SequenceClassification, Similarity, TokenClassification
from maskwise.tasks.kinds.questions import MultipleChoice, QuestionAnswering
from maskwise.tasks.task import Columns, Kind
from maskwise.text.labelled import Record

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        # In the order in which columns are asked what they are: the first that recognises them takes them.
        TokenClassification(),
        MultipleChoice(),
        QuestionAnswering(),
        Similarity(),
        SequenceClassification(),
        # Only if the user names them.
        ZeroShotSimilarity(),
        SentenceEmbedding(),
    )
}


def kind_of(records: Sequence[Record], given: Columns) -> Kind:
    """The kind that columns show by themselves: lists of tokens, choices, answers to a context, scores of pairs."""
    return next(kind for kind in KINDS.values() if kind.recognises(records, given))


__all__ = ["KINDS", "kind_of"]
