"""Measure a checkpoint without fine-tuning.

Studies call ``evaluate``. The command ``maskwise evaluate`` calls ``evaluate_checkpoint``, which
accepts any checkpoint with a masked-language-model head, any text and any test sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from maskwise.base.constants import BY_LENGTH
from maskwise.base.devices import best_device
from maskwise.base.errors import MaskwiseError, items_of, option, require_known
from maskwise.base.plugins import Table, is_foreign
from maskwise.base.printing import note
from maskwise.base.specs import Call, build, parse_call, with_options
from maskwise.evaluation.measure import HeldOutText, Measure, ReadOnce, TextMeasure
from maskwise.evaluation.measures.by_length import ByLength, FarWords
from maskwise.evaluation.measures.cloze import Cloze
from maskwise.evaluation.measures.heldout import (
    BOUND,
    HELD_OUT,
    DiffusionBound,
    FixedMasks,
    PseudoPerplexity,
)
from maskwise.evaluation.measures.spelling import WordLoss
from maskwise.evaluation.measures.text_loss import TextLoss
from maskwise.evaluation.returned import numbers_of, require_distinct, require_measure
from maskwise.evaluation.scoring import PSEUDO_PERPLEXITY
from maskwise.evaluation.sets import Pairs, load_set
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.models.decoders import is_causal, require_sees_later
from maskwise.models.families import check_fit, evaluating, most_tokens, require_kind
from maskwise.models.loading import load_model, without_advice
from maskwise.results.measurements import Measurement
from maskwise.text import (
    Rows,
    load_tokenizer,
    read_documents,
    read_pieces,
    require_documents,
    tokenise,
)
from maskwise.text.documents import field_note
from maskwise.text.source import refuse_fields
from maskwise.training.data import log_frequencies

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CLOZE, PAIRS = "cloze", "pairs"


def cloze(source: str, **kwargs: object) -> Cloze:
    """Cloze questions about facts in a file of LAMA's format: cloze('FILE', items=500)."""
    return load_set(with_options(source, **kwargs) if kwargs else source, Cloze.read)


def pairs(source: str, **kwargs: object) -> Pairs:
    """Minimal pairs in a file of BLiMP's format: pairs('FILE'), or pairs('bundled:pairs')."""
    return load_set(with_options(source, **kwargs) if kwargs else source, Pairs.read)


MEASURES: Table[Callable[..., Measure]] = Table(
    "measure",
    "maskwise.measures",
    {
        HELD_OUT: FixedMasks,
        BOUND: DiffusionBound,
        PSEUDO_PERPLEXITY: PseudoPerplexity,
        "word-loss": WordLoss,
        BY_LENGTH: ByLength,
        "far-words": FarWords,
        CLOZE: cloze,
        PAIRS: pairs,
        "text-loss": TextLoss.read,
    },
)
"""Functions that make a ``Measure``, by name. Commands and ``evaluation.measures`` name them."""
# The maximum number of tokens in a row of the user's text. The model's limit may be lower.
LONGEST = 128


class TokenisedText(Protocol):
    """A tokenised text: the prepared data of a study, or a ``Text``."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def training(self) -> Any: ...
    @property
    def held_out(self) -> Rows | None: ...


@dataclass(frozen=True)
class Text:
    """A held-out text from the user, without training rows."""

    tokenizer: PreTrainedTokenizerBase
    held_out: Rows | None = None
    training: None = None
    bytes: int = 0


def load_measures(settings: EvaluationSettings) -> dict[str, Measure]:
    """Load the measures of a recipe, by name: the loss of held-out text, and those in its list.

    A recipe calls this function when it is read. An error in a file is therefore reported at once.

    Raises:
        MaskwiseError: a file does not exist or cannot be used, or two measures have the same name.
    """
    measures = [*map(measure_of, settings.measures)]
    if settings.masks:
        measures.insert(0, FixedMasks(settings.ratios, settings.masks, settings.rows))
    return _by_name(measures)


def measure_of(spec: str | Call) -> Measure:
    """Make a measure from its name in ``MEASURES`` with arguments.

    >>> measure_of("pairs('bundled:pairs', items=2)").texts()
    [('The river was very old.',), ('She went to that book with her family.',)]

    Raises:
        MaskwiseError: the name or an argument is unknown, or a file cannot be used.
    """
    made = build("measure", spec, MEASURES)
    if not isinstance(made, Measure):
        raise MaskwiseError(
            f"the measure {spec} is not valid",
            got=type(made).__name__,
            allowed="a maskwise.evaluation.measure.Measure",
        )
    if is_foreign(made):
        require_measure(made, spec)
    return made


def require_measurable(measure: Measure, config: PreTrainedConfig) -> None:
    """Raise ``MaskwiseError`` if a measure cannot be taken of models of a configuration."""
    if measure.model_kind is not None:
        require_kind(config, measure.model_kind, use="filling masks one at a time")
    if wrong := measure.misfit(config):
        raise wrong


def reads_documents(measures: Iterable[Measure]) -> bool:
    """Return whether one of several measures reads the documents of held-out text."""
    return any(isinstance(each, TextMeasure) and each.reads_documents for each in measures)


def _by_name(measures: Iterable[Measure]) -> dict[str, Measure]:
    """Return measures keyed by name."""
    found: dict[str, Measure] = {}
    for each in measures:
        if each.name in found:
            do = "keep one; or, if they are named by their files, rename a file"
            if each.name == HELD_OUT:
                do = "keep one; in a recipe, evaluation.ratios, masks and rows describe it"
            raise MaskwiseError(f"two measures are called {each.name!r}", do=do)
        found[each.name] = each
    return found


@torch.inference_mode()
def evaluate(
    checkpoint: str | Path | PreTrainedModel,
    data: TokenisedText,
    measures: EvaluationSettings | Iterable[Measure],
    *,
    texts: Iterable[str] = (),
    folder: Path | None = None,
) -> list[Measurement]:
    """Measure one checkpoint.

    Args:
        checkpoint: a folder or hub id, which is loaded on the accelerator if there is one; or a
            masked language model, which stays on its device.
        data: the tokenizer, the training rows and the held-out rows. The baselines ``unigram`` and
            ``chance`` use the token frequencies of the training rows; without training rows, those
            of the held-out rows, which no frequencies of another text can beat. Without held-out
            rows, measures of held-out text are left out.
        measures: the measures, or settings that name them (``load_measures``).
        texts: held-out documents, for measures that read these.
        folder: a folder for further files of a measure; None to write nothing.

    Returns:
        The rows of all measures, one for each number.

    Raises:
        MaskwiseError: a checkpoint or file cannot be read, the tokenizer does not fit the model, or
            no item in a file can be scored.
    """
    if isinstance(measures, EvaluationSettings):
        measures = load_measures(measures).values()
    measures = [*measures]
    if not measures:
        return []
    if isinstance(checkpoint, str | Path):
        model = load_model(checkpoint, kind=None, causal=True)
        nn.Module.to(model, best_device())
    else:
        model = checkpoint
    for measure in measures:
        require_measurable(measure, model.config)
        if measure.model_kind is not None and is_causal(model.config):
            require_sees_later(model)
    check_fit(model.config, len(data.tokenizer), do="use the model's own tokenizer")
    text = _held_out_text(data, texts)
    rows: list[Measurement] = []
    with evaluating(model):
        for measure in measures:
            if isinstance(measure, TextMeasure):
                if text is None:
                    continue
                measure = measure.on(text)
            rows += numbers_of(measure, model, data.tokenizer, folder=folder)
    require_distinct(rows)
    return rows


def _held_out_text(data: TokenisedText, texts: Iterable[str]) -> HeldOutText | None:
    if data.held_out is None:
        return None
    known = data.held_out if data.training is None else data.training
    counts = torch.from_numpy(known.unigram_counts(len(data.tokenizer)))
    size = data.bytes if isinstance(data, Text) else 0
    return HeldOutText(data.held_out, log_frequencies(counts), ReadOnce(texts), size)


def call_of(measure: str) -> Call:
    """Read a measure: a name with arguments."""
    require_known("measure", measure.partition("(")[0].strip(), MEASURES)
    return parse_call(measure)


def evaluate_checkpoint(
    model: str, measures: Sequence[str], *, text: str | None, text_field: str = "text"
) -> list[Measurement]:
    """Measure a checkpoint (``maskwise evaluate``).

    Args:
        model: a folder or hub id.
        measures: names in ``MEASURES`` with arguments. With a text, the held-out loss is measured
            in any case.
        text: a corpus that the model was not trained on, for the held-out loss, the bound and the
            pseudo-perplexity.
        text_field: the name of the text column, if the corpus has several columns.

    Raises:
        MaskwiseError: there is nothing to measure, or an input cannot be read.
    """
    # An error in a file should be reported before the model is loaded.
    measures = [*items_of("measures", measures, of="measures", single=True)]
    asked = _by_name(measure_of(call_of(measure)) for measure in measures)
    text_option = option("text", "FILE", python="texts")
    example = "pairs('bundled:pairs')"
    measure_option = option("with", f'"{example}"', python=f'measures=["{example}"]')
    if text is not None:
        refuse_fields(text, text_field=text_field)
    else:
        if text_field != "text":
            raise MaskwiseError(
                "text_field has no effect without a text", got=text_field, do=f"give {text_option}"
            )
        if not measures:
            raise MaskwiseError("nothing to measure", do=f"give {measure_option}, or {text_option}")
        for name, measure in asked.items():
            if isinstance(measure, TextMeasure):
                raise MaskwiseError(f"the measure {name} needs a text", do=f"give {text_option}")
    with without_advice():
        network = load_model(model, kind=None, causal=True)
    nn.Module.to(network, best_device())
    tokenizer = load_tokenizer(model, needs_mask=False, needs_words=False)
    data = Text(tokenizer)
    texts: Iterable[str] = ()
    if text is not None:
        asked = {HELD_OUT: asked.pop(HELD_OUT, FixedMasks()), **asked}
        documents = require_documents(read_documents(text, text_field=text_field))
        note(field_note(documents, text_field))
        length = min(LONGEST, most_tokens(network.config))
        pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=length)
        size = sum(len(document.text.encode()) for document in documents)
        data = Text(tokenizer, Rows.of(pieces, "document"), bytes=size)
        texts = (document.text for document in documents)
    rows = evaluate(network, data, asked.values(), texts=texts)
    # This happens if the text is, for example, one word that is longer than a row.
    if not rows:
        raise MaskwiseError("no token of this text can be masked", got=text, do="give more text")
    return rows
