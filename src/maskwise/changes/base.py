"""What a change of a model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Changed(NamedTuple):
    """A model after a change.

    Attributes:
        model, tokenizer: those of the model, which belong together.
        facts: what the change did, as JSON; ``what`` says it in words.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    facts: dict[str, Any]


class Change(ABC):
    """A change of a model that exists. Its arguments are those of its class."""

    @abstractmethod
    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Changed:
        """Change a model.

        Args:
            model: the model, in float32, which may be changed in place.
            tokenizer: its tokenizer, which is not changed.

        Raises:
            MaskwiseError: the change is impossible for a model of this family, or with this
                tokenizer.
        """
