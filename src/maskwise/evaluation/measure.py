"""What can be measured of a checkpoint: a `Measure` returns rows of the table of a study.

Held-out losses, minimal pairs, cloze facts and the measures of other packages are one notion. A
study asks a measure for its name, for a hash of what it reads (`Measure.content`), for its texts,
which may be in the corpus (`Measure.texts`), and for its numbers (`Measure.measure`). Scores on
tasks, which train the model, are rows of the same table (`tasks.finetuning.rows_of`).
"""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from maskwise.base.constants import Kind
from maskwise.base.errors import MaskwiseError, PlugInError
from maskwise.results.measurements import Measurement

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from maskwise.text import Rows


def json_of(what: str, facts: Mapping[str, object], *, do: str) -> str:
    """Write facts of a measure as JSON, or raise ``PlugInError`` with advice on what to ``do``."""
    try:
        return json.dumps(facts)
    except (TypeError, ValueError) as error:
        raise PlugInError(f"{what} cannot be written as JSON", got=str(error), do=do) from error


def hash_of_attributes(attributes: Mapping[str, object]) -> str:
    """Return a hash of the attributes of a measure, which names its stage."""
    what = f"the attributes of the measure {attributes.get('name')}, which name its stage,"
    do = "define content() in the class of the measure, which returns a hash of them"
    return hashlib.sha256(json_of(what, attributes, do=do).encode()).hexdigest()[:16]


class Measure(ABC):
    """A measure of a checkpoint.

    Attributes:
        name: the name of the measure, which its rows have as ``Measurement.measure``.
        model_kind: the kind of models that it measures; None for any.
    """

    name: str
    model_kind: ClassVar[Kind | None] = "encoder"

    def content(self) -> str:
        """Return a hash of all that the numbers depend on, besides the model and held-out text.

        The name of a stage depends on it. By default, it is that of all attributes, as JSON.
        """
        return hash_of_attributes(vars(self))

    def texts(self) -> list[tuple[str, ...]]:
        """Return the texts of each item. ``overlap`` searches a corpus for these texts."""
        return []

    def misfit(self, config: PreTrainedConfig) -> MaskwiseError | None:
        """Return why a model of this configuration cannot be measured; None if it can."""
        return None

    def size(self) -> int:
        """Return the number of items, of which ``part`` takes some."""
        return len(self.texts())

    def part(self, count: int) -> Measure:
        """Return a measure of at most ``count`` of the items, to time how long they take.

        A measure that cannot be divided returns itself.
        """
        return self

    @abstractmethod
    def measure(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        """Measure a model.

        Args:
            model: the network, in evaluation mode.
            tokenizer: its tokenizer.
            seed: the seed of random choices. It is 0 for evaluations of a study, whose stages are
                named by what they read.
            folder: a folder for further files; None to write nothing.

        Returns:
            The numbers. The columns of a run (arm, seed and role) are added by the study.

        Raises:
            MaskwiseError: nothing can be measured.
        """


class ReadOnce(Iterable[str]):
    """Texts that are read once, although each iteration begins with the first one.

    >>> texts = ReadOnce(iter("abc"))
    >>> next(iter(texts)), [*texts]
    ('a', ['a', 'b', 'c'])
    """

    def __init__(self, texts: Iterable[str]):
        (self._texts,) = tee(texts, 1)

    def __iter__(self) -> Iterator[str]:
        return copy.copy(self._texts)


@dataclass(frozen=True)
class HeldOutText:
    """A text that the model was not trained on.

    Attributes:
        rows: its rows.
        log_unigram: (V,) log-probabilities of tokens in the training text.
        documents: the texts themselves. Each measure reads them from the first one on.
        bytes: the size of the whole text; 0 if it is not known.
    """

    rows: Rows
    log_unigram: Tensor
    documents: Sequence[str] | ReadOnce = ()
    bytes: int = 0

    def first(self, count: int) -> Sequence[str]:
        """Return the first ``count`` documents."""
        return [*islice(self.documents, count)]


class TextMeasure(Measure):
    """A measure of held-out text: that of a study, or that of ``maskwise evaluate --text``.

    Attributes:
        text: the text, while the measure is taken.
        counted: the attribute that says how many rows or documents of the text are read at most.
        reads_documents: whether the measure reads ``text.documents``, which prepared rows do not
            keep.
    """

    text: HeldOutText
    counted: ClassVar[str] = ""
    reads_documents: ClassVar[bool] = False

    def size(self) -> int:
        return getattr(self, self.counted, 0)

    def part(self, count: int) -> Self:
        return self._with(self.counted, count) if self.counted else self

    def on(self, text: HeldOutText) -> Self:
        """Return the measure of this text."""
        return self._with("text", text)

    def _with(self, name: str, value: object) -> Self:
        made = copy.copy(self)
        # Measures are frozen, so that their content stays what a stage is named by.
        object.__setattr__(made, name, value)
        return made
