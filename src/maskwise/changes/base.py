"""What a change of a model is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from maskwise.base.errors import MaskwiseError
from maskwise.models.loading import empty_model
from maskwise.text.changed import ChangedTokens
from maskwise.text.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

TrainingText: TypeAlias = Callable[[], Iterable[Document]]
"""A function that reads the training documents of a corpus."""


class Changed(NamedTuple):
    """A model after a change.

    Attributes:
        model: the model.
        facts: what the change did, as JSON; ``what`` says it in words.
    """

    model: PreTrainedModel
    facts: dict[str, Any]


class Change:
    """A change of a model that exists. Its arguments are those of its class.

    A change of the weights defines ``__call__``. A change of the tokens defines ``tokens``; its
    rows of the embeddings and of the output layer follow.

    Attributes:
        reads: files, folders and bundled data that the arguments name. If their content changes,
            the stages of a study do not use what was made before.
        adds_tokens: whether there are tokens whose rows have to be trained.
    """

    reads: tuple[str, ...] = ()
    adds_tokens: ClassVar[bool] = False

    def tokens(
        self, tokenizer: PreTrainedTokenizerFast, documents: TrainingText | None
    ) -> ChangedTokens | None:
        """Return the changed tokenizer; None if the tokens stay.

        Args:
            tokenizer: the tokenizer, which is not changed.
            documents: reads the training documents of the corpus, if there is one. Held-out
                documents and texts of tasks are not among them.

        Raises:
            MaskwiseError: the tokens of this tokenizer cannot be changed, or a text is missing.
        """
        return None

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Changed:
        """Change the weights of a model.

        Args:
            model: the model, in float32, which may be changed in place. It has rows for the tokens
                of the changed tokenizer already.
            tokenizer: its tokenizer, whose settings may be changed in place.

        Raises:
            MaskwiseError: the change is impossible for a model of this family.
        """
        return Changed(model, {})

    def check(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> PreTrainedConfig:
        """Return the configuration of a changed model, before a text or a weight is read.

        Raises:
            MaskwiseError: the change is impossible for this model.
        """
        return self(empty_model(config), tokenizer).model.config

    @property
    def changes_tokens(self) -> bool:
        """Whether the tokens of a changed model are others."""
        return type(self).tokens is not Change.tokens


def documents_for(change: str, documents: TrainingText | None) -> TrainingText:
    """Return the documents that a change reads if its arguments name no text.

    Raises:
        MaskwiseError: there is no corpus.
    """
    if documents is None:
        raise MaskwiseError(
            f"{change} has no text to read", do=f"name one: {change}(…, text='my_texts.txt')"
        )
    return documents
