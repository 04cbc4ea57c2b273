"""The masks of a named moment, as lists: for ``datasets``, for files, and for any trainer.

    dataset.with_transform(masker.at(epoch=0))     # masked when rows are read
    masker.map(dataset, epoch=0)                   # masked now, as a data set

Masks are those of the call ``masker(rows, step=…, total_steps=…, epoch=…)``. A mask that depends on
what a run learns cannot be known in advance, and neither can a ratio at an unknown step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.base.errors import MaskwiseError, option
from maskwise.masking.gather import UserRows, require_rows
from maskwise.masking.policies.base import checked_moment

if TYPE_CHECKING:
    from maskwise.masking.batch import MaskedBatch
    from maskwise.masking.masker import Masker

Lists = dict[str, list[list[int]]]


class Moment:
    """A function from rows to masked rows, at one moment. ``Masker.at`` describes the arguments.

    The result has the inputs of a model and the labels: ``input_ids``, ``attention_mask``,
    ``labels`` and, if the rows have them, ``token_type_ids`` and ``position_ids``. Rows are not
    padded. Padding that they had stays, unless the corruption changes lengths. Columns become
    columns, and a list of rows becomes a list of rows.

    Raises:
        MaskwiseError: the masks of this moment cannot be known.
    """

    def __init__(
        self,
        masker: Masker,
        *,
        epoch: int | None = None,
        step: int | None = None,
        total_steps: int | None = None,
    ):
        _require_known_masks(masker)
        if epoch is None and step is None:
            raise MaskwiseError(
                "masks are those of an epoch or of a step, and neither is given",
                do="pass epoch=0, for example",
            )
        step, total_steps, epoch = checked_moment(step, total_steps, epoch)
        # A function of the step may do without the number of steps.
        changing = masker.masking.changing
        if changing and (step is None or (masker.needs_total and not total_steps)):
            raise MaskwiseError(
                "the masking changes over training, so its masks need a step",
                got=", ".join(map(str, changing)),
                do=f"pass {option('step')} and {option('total_steps')}, or use a masker with a "
                "fixed ratio",
            )
        masker.warn_of_total(total_steps, stacklevel=4)
        self.masker = masker
        self.epoch = epoch
        self.step = step or 0
        self.total_steps = total_steps

    def __call__(self, rows: UserRows) -> Any:
        require_rows(rows)
        if isinstance(rows, Mapping) and _is_one_row(rows):
            raise MaskwiseError(
                "masks are made for batches of rows, and this is one row",
                do="pass batched=True to datasets.map, or a list of rows",
            )
        batch = self.masker(
            rows,
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.epoch,
        )
        warn_of_packed(batch)
        columns = columns_of(batch, _lengths_of(rows))
        if isinstance(rows, Mapping):
            return columns
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def __repr__(self) -> str:
        moment = f"epoch={self.epoch}, step={self.step}, total_steps={self.total_steps}"
        return f"{self.masker!r}.at({moment})"


def refuse_steps(maskers: Iterable[Masker], **given: int | None) -> None:
    """Raise ``MaskwiseError`` if a step is given, and no masking changes over training."""
    if any(masker.masking.changing for masker in maskers):
        return
    for name, value in given.items():
        if value is not None:
            raise MaskwiseError(
                f"{name} has no effect, because the masking does not change over training",
                got=value,
                do=f"leave {name} out, or give a schedule, such as ratio linear(0.3, 0.15)",
            )


def _require_known_masks(masker: Masker) -> None:
    """Raise ``MaskwiseError`` if masks depend on a run, or do not fit into rows of numbers."""
    policy = masker.policy
    if masker.places:
        raise MaskwiseError(
            "the loss weights of masked diffusion depend on the batch",
            got=masker,
            do="use MaskingTrainer, or call the Noising on the rows",
        )
    if policy.learns or policy.unlearned:
        raise MaskwiseError(
            "this policy learns during the run, so its masks cannot be made before",
            got=f"policy {policy}",
            do="use MaskingTrainer or maskwise pretrain, or a finished policy, such as "
            "learned('FOLDER')",
        )


def _is_one_row(rows: Mapping[str, Any]) -> bool:
    ids = rows.get("input_ids")
    return isinstance(ids, Sequence | np.ndarray) and len(ids) > 0 and np.ndim(ids[0]) == 0


def _lengths_of(rows: UserRows) -> list[int]:
    ids = rows["input_ids"] if isinstance(rows, Mapping) else [row["input_ids"] for row in rows]
    return [len(row) for row in ids]


MAPPED = ("token_type_ids", "position_ids")
"""The further inputs in masked rows. Collators of transformers do not pad others."""


def columns_of(batch: MaskedBatch, lengths: Sequence[int]) -> Lists:
    """Return a batch as columns of lists, without the padding of the batch.

    Args:
        batch: the batch.
        lengths: the number of tokens in each row before masking.
    """
    # A corruption that changes lengths says to which piece each token belongs, and padding to none.
    read = lengths if batch.piece_BL is None else _ends(batch.piece_BL)
    written = read if batch.written_BL is None else _ends(batch.written_BL)
    attention = batch.attention_mask
    if attention is None:
        attention = batch.input_ids.new_ones(batch.input_ids.shape)
    inputs = {"input_ids": batch.input_ids, "attention_mask": attention}
    inputs |= {name: batch.extras[name] for name in MAPPED if name in batch.extras}
    columns = {}
    for name, values in inputs.items():
        columns[name] = [row[:end] for row, end in zip(values.tolist(), read, strict=True)]
    labels = batch.labels.tolist()
    columns["labels"] = [row[:end] for row, end in zip(labels, written, strict=True)]
    return columns


def _ends(piece_BL: Any) -> list[int]:
    """Return the number of columns of each row up to its last token of a piece."""
    width = piece_BL.shape[1]
    used = (piece_BL >= 0) * np.arange(1, width + 1)
    return [int(end) for end in used.max(axis=1, initial=0)]


def warn_of_packed(batch: MaskedBatch) -> None:
    """Warn if rows hold several documents, which their columns do not show."""
    if batch.documents is not None:
        warnings.warn(
            "without the numbers of the documents, a model reads a packed row as one text; put "
            "one document in each row, or (encoders only) use PackedCollator or MaskingTrainer",
            stacklevel=3,
        )


def mapped(data: Any, moment: Moment) -> Any:
    """Return a data set or rows with the masks of a moment. ``Masker.map`` describes them."""
    if not hasattr(data, "column_names"):
        require_rows(data)
        return moment(data)
    names = data.column_names
    if not isinstance(names, list):
        raise MaskwiseError(
            "map masks one data set whose columns are known",
            got=type(data).__name__,
            allowed="a data set of datasets, a list of rows, or a dict of columns",
            do='pass one split, such as data["train"], or call data.map(masker.at(epoch=0), '
            "batched=True)",
        )
    if "input_ids" not in names:
        raise MaskwiseError(
            "the data set has no token ids",
            got=f"columns {', '.join(names)}",
            do="map maskwise.annotate_rows over its texts first",
        )
    # A data set that is read as a stream is masked when it is read, and shows no progress.
    shown = {"desc": "masking"} if hasattr(data, "__len__") else {}
    return data.map(moment, batched=True, remove_columns=names, **shown)
