"""Measure a checkpoint without fine-tuning.

Studies call ``evaluate``. The command ``maskwise evaluate`` calls ``evaluate_checkpoint``, which
accepts any checkpoint with a masked-language-model head, any text and any test sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import nn
from transformers.utils import logging

from maskwise.constants import DIFFUSION
from maskwise.devices import best_device
from maskwise.effects import Count, Judgement, Whole, within, without_unset
from maskwise.errors import MaskwiseError, require_known
from maskwise.evaluation.cloze import Cloze
from maskwise.evaluation.scoring import (
    DAMAGED,
    PSEUDO_PERPLEXITY,
    Bound,
    BoundOfText,
    EvaluationRecord,
    HeldOut,
    HeldOutLoss,
    diffusion_bound,
    fixed_maskers,
    pseudo_perplexity,
    spread,
)
from maskwise.evaluation.sets import Pairs, TestSet, load_set
from maskwise.evaluation.spelling import WORDS, word_loss
from maskwise.evaluation.texts import TextLoss
from maskwise.families import check_fit, evaluating, most_tokens, require_kind
from maskwise.masking.policies import Policy, policy
from maskwise.models import load_model
from maskwise.objectives import predicting
from maskwise.plugins import Table
from maskwise.printing import note_of_rename
from maskwise.specs import Call, build, parse_call, with_options
from maskwise.text import (
    Rows,
    load_tokenizer,
    read_documents,
    read_pieces,
    require_documents,
    tokenise,
)
from maskwise.text.readers import refuse_fields
from maskwise.training import log_frequencies

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT, BOUND, CLOZE, PAIRS = "heldout", "bound", "cloze", "pairs"
# The syntax of each built-in measure on the command line.
SYNTAX = {
    HELD_OUT: "heldout",
    PSEUDO_PERPLEXITY: "pseudo-perplexity or pseudo-perplexity(ROWS)",
    BOUND: "bound or bound(DRAWS)",
    CLOZE: "cloze('FILE')",
    PAIRS: "pairs('FILE') or pairs('bundled:pairs')",
}
MEASURES: Table[Callable[..., TestSet]] = Table(
    "measure", "maskwise.measures", {"text-loss": TextLoss.read}
)
"""Further measures: functions that make a ``TestSet``, by the names in ``evaluation.measures``."""
# Defaults of ``maskwise evaluate``: the number of rows for the pseudo-perplexity, and of masks for
# each row in the bound.
DEFAULT_COUNTS = {PSEUDO_PERPLEXITY: 32, BOUND: 8}
# The maximum number of tokens in a row of the user's text. The model's limit may be lower.
LONGEST = 128


def _tuple(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


OneOrMany = BeforeValidator(_tuple)


class EvaluationSettings(BaseModel, extra="forbid", frozen=True):
    """Measures of a checkpoint besides its tasks. All arms of a study have the same measures.

    ``ratio: 0.15`` is accepted for ``ratios: [0.15]``.

    >>> EvaluationSettings(ratios=0.15, pairs="bundled:pairs").pairs
    ('bundled:pairs',)
    """

    ratios: Judgement[Annotated[tuple[float, ...], OneOrMany]] = (0.15, 0.40)
    """Masking ratios of the fixed masks. The loss curve during training uses the first ratio."""
    masks: Judgement[tuple[str, ...]] = ("token", "whole-word")
    """Kinds of fixed masks: names of policies, and ``diffusion`` for the masked-diffusion bound."""
    rows: Judgement[Count] = 256
    """Maximum number of held-out rows for the loss."""
    pseudo_perplexity: Judgement[Whole] = 0
    """Number of held-out rows for the pseudo-perplexity; 0 for none. Each token of these rows costs
    a forward pass."""
    bound: Judgement[Whole] = 0
    """Number of times each held-out row is masked for the masked-diffusion bound in bits per token
    and per byte. With 0, this bound is not measured."""
    word_loss: Judgement[Whole] = 0
    """Number of held-out documents for the loss of words in nats per byte, which compares models
    with different vocabularies; 0 for none."""
    cloze: Judgement[Annotated[tuple[str, ...], OneOrMany]] = ()
    """Cloze sets: files in LAMA's format, optionally with arguments: ``facts.jsonl(items=500)``."""
    pairs: Judgement[Annotated[tuple[str, ...], OneOrMany]] = ()
    """Sets of minimal pairs: ``bundled:pairs``, or files in BLiMP's format."""
    measures: Judgement[Annotated[tuple[str, ...], OneOrMany]] = ()
    """Further measures, optionally with arguments: ``text-loss('general.txt')``, the loss on a text
    that the arms do not train on, or those of other packages, such as ``reading-times(items=500)``.
    """

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, dump, "measures", "word_loss")

    _policies: dict[str, Policy] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_ratio(cls, raw: object) -> object:
        if isinstance(raw, dict) and "ratio" in raw:
            if "ratios" in raw:
                raise MaskwiseError("evaluation has both ratio and ratios", do="remove ratio")
            raw = {**raw, "ratios": raw["ratio"]}
            del raw["ratio"]
        return raw

    @field_validator("ratios")
    @classmethod
    def _in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        in_range = all(0 < ratio < 1 for ratio in value)
        if not value or len(set(value)) < len(value) or not in_range:
            raise MaskwiseError(
                "evaluation.ratios are invalid",
                got=list(value),
                allowed="one or more different numbers above 0 and below 1",
            )
        return value

    @model_validator(mode="after")
    def _parse(self) -> Self:
        with within("masks", self.masks):
            for name in self.masks:
                if name == DIFFUSION:
                    continue
                made = policy(name)
                if made.has_ratio:
                    raise MaskwiseError(
                        "fixed masks need a policy without a ratio of its own",
                        got=name,
                        do="choose another kind of masks, such as token",
                    )
                self._policies[name] = made
        return self

    @property
    def policies(self) -> dict[str, Policy]:
        """The policies of the fixed masks by name. Masked diffusion has none."""
        return {name: self._policies[name] for name in self.masks if name != DIFFUSION}


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


class HeldOutRecord(HeldOutLoss):
    """A ``HeldOutLoss`` in the records of a checkpoint."""

    kind: Literal["heldout"]


Records = list[HeldOutRecord | EvaluationRecord]


def load_sets(settings: EvaluationSettings) -> dict[str, TestSet]:
    """Load the cloze sets, minimal pairs and further measures named in the settings, by name.

    A recipe calls this function when it is read. An error in a file is therefore reported at once.

    Raises:
        MaskwiseError: a file does not exist or cannot be used, or two sets have the same name.
    """
    loaded: list[TestSet] = [load_set(spec, Cloze.read) for spec in settings.cloze]
    loaded += [load_set(spec, Pairs.read) for spec in settings.pairs]
    for spec in settings.measures:
        made = build("measure", spec, MEASURES)
        if not isinstance(made, TestSet):
            raise MaskwiseError(
                f"the measure {spec} is not valid",
                got=type(made).__name__,
                allowed="a maskwise.evaluation.sets.TestSet",
            )
        loaded.append(made)
    sets: dict[str, TestSet] = {}
    for each in loaded:
        if each.name in (*sets, PSEUDO_PERPLEXITY, BOUND, WORDS):
            raise MaskwiseError(f"two evaluation sets are called {each.name!r}", do="rename a file")
        sets[each.name] = each
    return sets


@torch.inference_mode()
def evaluate(
    checkpoint: str | Path | PreTrainedModel,
    data: TokenisedText,
    settings: EvaluationSettings,
    *,
    texts: Iterable[str] = (),
) -> Records:
    """Measure one checkpoint.

    Args:
        checkpoint: a folder or hub id, which is loaded on the accelerator if there is one; or a
            masked language model, which stays on its device.
        data: the tokenizer, the training rows and the held-out rows. The baselines ``unigram`` and
            ``chance`` use the token frequencies of the training rows; without training rows, those
            of the held-out rows, which no frequencies of another text can beat. Without held-out
            rows, only cloze sets and minimal pairs are measured.
        settings: the measures.
        texts: held-out documents for ``settings.word_loss``.

    Returns:
        A ``HeldOutRecord`` for each ratio and kind of mask, and one or more ``EvaluationRecord``
        for every other measure.

    Raises:
        MaskwiseError: a checkpoint or file cannot be read, the tokenizer does not fit the model, or
            no item in a file can be scored.
    """
    sets = load_sets(settings)
    if isinstance(checkpoint, str | Path):
        model = load_model(checkpoint, kind=None)
        nn.Module.to(model, best_device())
    else:
        model = checkpoint
    if sets or settings.pseudo_perplexity or settings.bound or settings.word_loss:
        require_kind(model.config, "encoder", use="filling masks one at a time")
    check_fit(model.config, len(data.tokenizer), do="use the model's own tokenizer")
    records: Records = []
    with evaluating(model):
        if data.held_out is not None:
            records += _held_out(model, data, data.held_out, settings)
        if settings.word_loss:
            records.append(word_loss(model, data.tokenizer, texts))
        for test_set in sets.values():
            records += test_set.score(model, data.tokenizer)
    for record in records:
        value = record["loss"] if record["kind"] == "heldout" else record["value"]
        # A NaN must not reach a record, because every comparison with NaN is silently false.
        if not math.isfinite(value):
            raise MaskwiseError("a measure is not a finite number", got=record, do=DAMAGED)
    return records


def _held_out(
    model: PreTrainedModel, data: TokenisedText, held_out: Rows, settings: EvaluationSettings
) -> Records:
    tokenizer = data.tokenizer
    objective = predicting(model)
    known = held_out if data.training is None else data.training
    log_unigram = log_frequencies(torch.from_numpy(known.unigram_counts(len(tokenizer))))
    records: Records = []
    rows = held_out.laid(objective.reads(held_out.layout, model.config))
    bound = diffusion_bound(
        settings.masks,
        rows,
        tokenizer,
        rows=settings.rows,
        log_unigram=log_unigram,
    )
    for ratio in settings.ratios:
        maskers = fixed_maskers(
            tokenizer,
            masks=settings.masks,
            ratio=ratio,
            kind=objective.kind,
            length=rows.length,
        )
        losses = HeldOut(
            rows,
            maskers,
            log_unigram,
            rows=settings.rows,
            tokenizer=tokenizer,
            bound=bound,
        )
        records += [{"kind": "heldout", **line} for line in losses(objective)]
        # The bound has its own ratios. It is measured only once, not for each ratio.
        bound = None
    if settings.bound:
        size = data.bytes if isinstance(data, Text) else 0
        # Bits per byte are nats of the whole text, so all rows are needed.
        chosen = torch.arange(len(rows)) if size else spread(settings.rows, of=len(rows))
        whole = Bound(rows, tokenizer, chosen, log_unigram=log_unigram, draws=settings.bound)
        records += bound_records(whole(objective), size)
    if settings.pseudo_perplexity:
        alone = documents_alone(held_out)
        some = alone.tensors(spread(settings.pseudo_perplexity, of=len(alone)))
        records += pseudo_perplexity(model, tokenizer, some, log_unigram)
    return records


def documents_alone(rows: Rows) -> Rows:
    """Return the rows for pseudo-perplexity, in which each document has rows of its own."""
    return rows.laid("document" if rows.layout == "packed" else rows.layout)


def bound_records(text: BoundOfText, size: int) -> list[EvaluationRecord]:
    """Return nats per token and bits per token; if ``size`` (in bytes) is not 0, bits per byte."""
    scales = {"nats per token": text.tokens, "bits per token": text.tokens * math.log(2)}
    # The bound ignores [UNK], but the bytes include its characters. Bits per byte would be too low.
    if size and not text.unknown:
        scales["bits per byte"] = size * math.log(2)
    records: list[EvaluationRecord] = []
    for metric, scale in scales.items():
        record: EvaluationRecord = {
            "kind": "evaluation",
            "name": BOUND,
            "metric": metric,
            "value": text.nats / scale,
            "items": text.tokens,
            "chance": None if text.unigram is None else text.unigram / scale,
            "higher_is_better": False,
        }
        if math.isfinite(text.error):
            record["error"] = text.error / scale
        if text.unknown:
            record["skipped"] = {"[UNK] tokens, so no value per byte": text.unknown}
        records.append(record)
    return records


def settings_of(measures: Sequence[str]) -> EvaluationSettings:
    """Parse command-line arguments with the syntax in ``SYNTAX``, or names from ``MEASURES``."""
    files: dict[str, list[str]] = {CLOZE: [], PAIRS: []}
    further = []
    counts = dict.fromkeys(DEFAULT_COUNTS, 0)
    for measure in measures:
        call = _call_of(measure)
        match call.args or (DEFAULT_COUNTS.get(call.name),):
            case _ if call.name in MEASURES:
                further.append(measure)
            case (str(file),) if call.name in files and file:
                files[call.name].append(with_options(file, **call.kwargs) if call.kwargs else file)
            case (int(number),) if call.name in counts and number > 0 and not call.kwargs:
                counts[call.name] = max(counts[call.name], number)
            case _:
                if str(call) != HELD_OUT:
                    raise MaskwiseError(
                        f"cannot read the measure {call.name}",
                        got=measure,
                        allowed=SYNTAX[call.name],
                    )
        if call.written == measure and ":" in measure.partition("(")[0]:
            note_of_rename(measure, str(call))
    measured = {name.replace("-", "_"): count for name, count in counts.items()}
    return EvaluationSettings.model_validate({**measured, **files, "measures": further})


def _call_of(measure: str) -> Call:
    """Read a measure: a name with arguments. ``name:argument`` is read until maskwise 0.2."""
    name, colon, value = measure.partition(":")
    if colon and name in SYNTAX:
        return Call(name, (int(value) if value.isdecimal() else value,), written=measure)
    require_known("measure", measure.partition("(")[0].strip(), [*SYNTAX, *MEASURES])
    return parse_call(measure)


def evaluate_checkpoint(
    model: str, measures: Sequence[str], *, text: str | None, text_field: str = "text"
) -> Records:
    """Measure a checkpoint.

    Args:
        model: a folder or hub id.
        measures: see ``settings_of``.
        text: a corpus that the model was not trained on, for the held-out loss, the bound and the
            pseudo-perplexity.
        text_field: the name of the text column, if the corpus has several columns.

    Raises:
        MaskwiseError: there is nothing to measure, or an input cannot be read.
    """
    settings = settings_of(measures)
    # An error in a file should be reported before the model is loaded.
    load_sets(settings)
    if text is not None:
        refuse_fields(text, text_field=text_field)
    else:
        if text_field != "text":
            raise MaskwiseError(
                "text_field has no effect without a text", got=text_field, do="give --text FILE"
            )
        if not measures:
            raise MaskwiseError(
                "nothing to measure", do="give --with \"pairs('bundled:pairs')\", or --text FILE"
            )
        if settings.pseudo_perplexity or settings.bound or HELD_OUT in measures:
            raise MaskwiseError(
                "held-out loss, the bound and pseudo-perplexity need a text", do="give --text FILE"
            )
    logging.disable_progress_bar()
    network = load_model(model, kind=None)
    nn.Module.to(network, best_device())
    tokenizer = load_tokenizer(model, needs_mask=False, needs_words=False)
    # Word boundaries need character offsets, which slow tokenizers do not return.
    if not tokenizer.is_fast:
        settings = settings.model_copy(update={"masks": ("token",)})
    data = Text(tokenizer)
    if text is not None:
        documents = require_documents(read_documents(text, text_field=text_field))
        length = min(LONGEST, most_tokens(network.config))
        pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=length)
        size = sum(len(document.text.encode()) for document in documents)
        data = Text(tokenizer, Rows.of(pieces, "document"), bytes=size)
    records = evaluate(network, data, settings)
    # This happens if the text is, for example, one word that is longer than a row.
    if not records:
        raise MaskwiseError("no token of this text can be masked", got=text, do="give more text")
    return records
