"""A masking collator for any DataLoader or Trainer. The collator reads the step from the rows.

Each worker process of a loader has its own copy of the collator. If the main process changed the
ratio during training, the copies would not notice. Therefore ``StepBatchSampler`` assigns a step to
every batch, and ``SteppedDataset`` adds the columns step, epoch and example id to every row. The
collator reads these columns, so it computes the same masks in any process.

    sampler = StepBatchSampler(len(data), batch_size=32, seed=0)
    collate = MaskingCollator(masker, total_steps=sampler.total_steps)
    loader = DataLoader(SteppedDataset(data), batch_sampler=sampler, collate_fn=collate)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maskwise.base.errors import MaskwiseError, shortened, whole_number
from maskwise.masking.batch import IGNORE
from maskwise.masking.draws import fold, permutation
from maskwise.masking.gather import UserRows, common_number, gather, require_rows
from maskwise.masking.masker import Masker
from maskwise.masking.moment import warn_of_packed

if TYPE_CHECKING:
    from torch import Tensor

    from maskwise.masking.batch import MaskedBatch
    from maskwise.masking.vocabulary import Vocabulary


class MaskingCollator:
    """Mask rows for their step, and return ``input_ids``, ``labels`` and ``attention_mask``.

    Rows with ``step`` but without ``epoch`` get a new mask at every step. If rows have no ``step``,
    the collator counts its batches and uses the count as the step. The masks then depend on the
    loader's seed and on the number of workers. The collator warns once if ``step`` or ``epoch`` is
    missing, and once if a schedule is over because a step is not below ``total_steps``.

    Args:
        masker: the masker.
        total_steps: the number of optimiser steps in the run. Schedules that change need this
            number.
        pad_to_multiple_of: pad batches to a multiple of this length, such as 8 for half precision
            on older GPUs, or 128 to compile a model for few lengths. Masks stay the same. Every
            batch then has an ``attention_mask``, even if nothing is padded.

    Raises:
        MaskwiseError: the masker is for masked diffusion, a schedule needs ``total_steps``, or the
            rows of a batch have different steps or epochs.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"], vocab_size=80)
    >>> collate = MaskingCollator(Masker(tokenizer, ratio=0.5))
    >>> ids = tokenizer("the cat sat")["input_ids"]
    >>> row = {"input_ids": ids, "example_id": 0, "step": 0, "epoch": 0}
    >>> sorted(collate([row]))
    ['input_ids', 'labels']
    """

    def __init__(
        self,
        masker: Masker,
        *,
        total_steps: int | None = None,
        pad_to_multiple_of: int | None = None,
    ):
        if not isinstance(masker, Masker):
            raise MaskwiseError(
                "a collator needs a masker",
                got=type(masker).__name__,
                do="pass Masker(tokenizer)",
            )
        if total_steps is not None:
            total_steps = whole_number("total_steps", total_steps, least=1)
        if pad_to_multiple_of is not None:
            pad_to_multiple_of = whole_number("pad_to_multiple_of", pad_to_multiple_of, least=1)
        self.masker = masker
        self.total_steps = total_steps
        self.pad_to_multiple_of = pad_to_multiple_of
        self._batches = 0
        self._warned = False
        self._warned_of_end = False
        if total_steps is None and masker.needs_total:
            # Without this check, the first batch would fail, perhaps in a worker of a loader.
            raise MaskwiseError(
                "the masking changes over training, so a collator needs the number of steps",
                got=masker,
                do="pass total_steps=… to the collator, such as StepBatchSampler(…).total_steps or "
                "args.max_steps; or use MaskingTrainer, which knows the steps",
            )
        # Workers of a loader get copies of a masker that has warned.
        masker.warn_of_total(total_steps, stacklevel=3)
        if masker.places:
            raise MaskwiseError(
                "a collator cannot return the loss weights of masked diffusion",
                got=masker,
                do="use MaskingTrainer, or call the Noising on the rows",
            )
        if masker.policy.learns:
            warnings.warn(
                f"policy {masker.policy} learns its weights from losses, but a collator gets no "
                "losses, so the weights stay equal; use MaskingTrainer or maskwise pretrain",
                stacklevel=2,
            )

    def __call__(self, rows: UserRows) -> dict[str, Tensor]:
        batch = self.masked(rows)
        warn_of_packed(batch)
        return self._padded(dict(batch))

    def _padded(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pad inputs and labels, which a decoder may write with another length than the inputs."""
        if self.pad_to_multiple_of is None:
            return batch
        from torch.nn.functional import pad

        padding = {"input_ids": self.masker.vocabulary.pad, "labels": IGNORE}
        ids = batch["input_ids"]
        # Also without padding: a compiled model would be compiled again for a batch without a mask.
        if "attention_mask" not in batch:
            batch["attention_mask"] = ids.new_ones(ids.shape)
        for name, values in batch.items():
            missing = -values.shape[1] % self.pad_to_multiple_of
            batch[name] = pad(values, (0, missing), value=padding.get(name, 0))
        return batch

    def masked(self, rows: UserRows) -> MaskedBatch:
        """Mask rows for the step and the epoch in their columns, and return a ``MaskedBatch``."""
        from torch.utils.data import get_worker_info

        require_rows(rows)
        step = common_number(rows, "step")
        epoch = common_number(rows, "epoch")
        visits = self.masker.masking.visits
        if epoch is None and visits != "random":
            raise MaskwiseError(
                f"visits: {visits} needs the epoch, and the rows have no column epoch",
                do="use StepBatchSampler and SteppedDataset, or MaskingTrainer, which add it",
            )
        worker = get_worker_info()
        # Every worker has a copy of this collator, but only the first worker should warn.
        first = worker is None or worker.id == 0
        if (step is None or epoch is None) and first and not self._warned:
            self._warned = True
            warnings.warn(
                "the rows have no column step or no column epoch, so masks change at every step; "
                "without a step, masks depend on the number of workers, and a schedule counts all "
                "batches, those of evaluations too; use StepBatchSampler and SteppedDataset, or "
                "MaskingTrainer",
                stacklevel=3,
            )
        if step is None:
            step = self._batches
            if worker is not None:
                if self.masker.masking.changing:
                    # New workers, which most loaders start in every epoch, count from 0 again.
                    raise MaskwiseError(
                        "workers of a loader cannot count the steps of a schedule",
                        got="rows without a column step",
                        do="use StepBatchSampler and SteppedDataset, or MaskingTrainer, or "
                        "num_workers=0",
                    )
                step = step * worker.num_workers + worker.id
                if epoch is None:
                    # A loader may restart its workers every epoch. Their counts then begin at 0
                    # again, but their seed differs, so the masks differ too.
                    epoch = fold(worker.seed, step)
        self._batches += 1
        total = self.total_steps
        over = self.masker.needs_total and total is not None and step >= total
        if over and first and not self._warned_of_end:
            self._warned_of_end = True
            warnings.warn(
                f"step {step} is not below total_steps={total}, so schedules keep their last "
                "value; pass the number of steps of the whole run",
                stacklevel=3,
            )
        return self.masker(
            rows,
            step=step,
            total_steps=self.total_steps,
            epoch=epoch,
        )


class SteppedDataset:
    """A view of a map-style dataset that is indexed by (index, step, epoch).

    The view returns the dataset's row at this index, with two more columns, ``step`` and ``epoch``.
    If a row has no ``example_id``, its index is its ``example_id``.

    >>> SteppedDataset([{"input_ids": [5, 7]}])[0, 3, 1]
    {'example_id': 0, 'input_ids': [5, 7], 'step': 3, 'epoch': 1}
    """

    def __init__(self, data: Sequence[Mapping[str, object]]):
        has_items = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        # Of these, the items are characters, splits or columns.
        if not has_items or isinstance(data, str | bytes | Mapping) or hasattr(data, "iloc"):
            got = type(data).__name__
            raise MaskwiseError(
                "a map-style dataset has a length and a row for each index",
                got=f"{got} {shortened(repr(data))}" if isinstance(data, str | bytes) else got,
                allowed="a list of rows, or a datasets.Dataset",
                do="give one split of a DatasetDict, and the rows of a data frame "
                "(frame.to_dict('records'))",
            )
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: tuple[int, int, int]) -> dict[str, object]:
        if not isinstance(place, tuple) or len(place) != 3:
            raise MaskwiseError(
                "the index must be (index, step, epoch)",
                got=repr(place),
                do="pass batch_sampler=StepBatchSampler(len(data), batch_size=…) to the loader",
            )
        index, step, epoch = place
        step = whole_number("step", step, least=0)
        epoch = whole_number("epoch", epoch, least=0)
        row = self.data[index]
        if not isinstance(row, Mapping):
            raise MaskwiseError("a row must be a dict", got=type(row).__name__)
        return {"example_id": index, **row, "step": step, "epoch": epoch}


class StepBatchSampler:
    """Yield shuffled batches of (index, step, epoch).

    The order of an epoch depends only on the seed and the epoch. A run can therefore be resumed
    without going through the earlier batches. If the last rows of an epoch do not fill a step, they
    are skipped. The length of the sampler is the number of batches from ``first_step`` on.

    >>> sampler = StepBatchSampler(6, batch_size=2, epochs=1, seed=0)
    >>> len(sampler), next(iter(sampler))
    (3, [(2, 0, 0), (1, 0, 0)])

    Args:
        size: the number of rows in the dataset.
        batch_size: the number of rows in a batch.
        seed: the seed of the shuffle.
        epochs: the number of passes over the data.
        first_step: the first step to yield; above 0 when a run is resumed.
        rank, ranks: the rank of this process, and the number of ranks. Each rank yields its own
            batches, of ``batch_size`` rows each.
        accumulate: the number of batches of each rank per optimiser step.

    Attributes:
        total_steps: the number of optimiser steps in all epochs.

    Raises:
        MaskwiseError: a number is out of range, or the rows do not fill one step.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        seed: int = 0,
        epochs: int = 1,
        first_step: int = 0,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
    ):
        self.size = whole_number("size", size, least=0, most=2**53, do="pass len(dataset)")
        self.batch_size = whole_number("batch_size", batch_size, least=1)
        self.seed = whole_number("seed", seed)
        self.epochs = whole_number("epochs", epochs, least=0)
        self.first_step = whole_number("first_step", first_step, least=0)
        self.ranks = whole_number("ranks", ranks, least=1)
        self.rank = whole_number(
            "rank",
            rank,
            least=0,
            most=self.ranks - 1,
        )
        self.accumulate = whole_number("accumulate", accumulate, least=1)
        rows_a_step = self.batch_size * self.ranks * self.accumulate
        self.per_epoch = self.size // rows_a_step
        if not self.per_epoch:
            raise MaskwiseError(
                "too few rows for one step",
                got=size,
                allowed=f"at least {batch_size} × {ranks} ranks × {accumulate} accumulated",
            )
        self.total_steps = self.per_epoch * self.epochs

    def __len__(self) -> int:
        return max(0, self.total_steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        ordered = None
        for step in range(self.first_step, self.total_steps):
            epoch, place = divmod(step, self.per_epoch)
            if epoch != ordered:
                order = permutation(self.size, seed=self.seed, epoch=epoch)
                ordered = epoch
            for part in range(self.accumulate):
                batch = (place * self.accumulate + part) * self.ranks + self.rank
                start = batch * self.batch_size
                # Convert one batch at a time: an epoch may have millions of rows.
                rows = order[start : start + self.batch_size].tolist()
                yield [(index, step, epoch) for index in rows]


class RowCollator:
    """Collates rows into padded (B, L) tensors, with layers and without masks.

    The collator may run in the worker processes of a loader.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        import torch

        batch = gather(rows, self.vocabulary)
        names = batch.example_id
        if batch.plan is not None:
            # In packed rows, every token has the id of its piece.
            names = names[batch.piece].reshape(batch.shape)
        kept = {"input_ids": batch.input_ids, **batch.layers, **batch.extras}
        columns = {name: batch.tensor(values) for name, values in kept.items()}
        columns["attention_mask"] = batch.tensor(batch.present).long()
        columns["example_id"] = torch.from_numpy(names)
        columns["special_tokens_mask"] = batch.tensor(~batch.content).long()
        if batch.silent is not None:
            columns["labels"] = columns["input_ids"].masked_fill(batch.tensor(batch.silent), IGNORE)
        return columns
