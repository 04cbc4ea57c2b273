"""The input of the training loop: masked batches, made one step ahead.

A source makes the batches of a step on the host. They depend only on the seed, the step and the
rank. Therefore a resumed run does not need to make the earlier batches. While the device works on a
step, ``look_ahead`` makes the batches of the next step in a thread, counts their targets, and
starts to copy the batches to the device. If a masking policy learns, masks depend on the losses of
the step before. If a sampler learns, the objective of the step after a probe depends on the probe.
Batches of such steps are not made ahead (``Source.ahead``).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache, partial
from threading import Lock
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from maskwise.base.devices import Lane, copies_aside, moved
from maskwise.base.errors import MaskwiseError
from maskwise.masking import MaskedBatch, Masker
from maskwise.masking.batch import IGNORE, Lengths
from maskwise.masking.draws import fold, permutation
from maskwise.models.flops import NO_TEXTS
from maskwise.objectives.base import Maker
from maskwise.text import Rows
from maskwise.training.learners import Learners, NumbersByName, learner_of
from maskwise.training.settings import TrainingSettings
from maskwise.training.stream import StreamedRows, mixed, taken, whole_shares

AnyBatch: TypeAlias = Any
"""A ``MaskedBatch``, or a dict of tensors with ``labels`` (−100 means no target)."""


TURN = 1e-4
"""The longest time in seconds for which a thread waits until another one lets it run Python.

A GPU must never wait for the host, so the training thread must not wait either while another thread
masks. Python's default is 5 ms. On an H200, a step of BERT-base with 65,536 tokens had several such
waits: in the trace, a quarter of the step was idle.
"""


class Source(Protocol):
    """An object that makes the batches of each step. It has no length."""

    def ahead(self, step: int) -> bool:
        """Return whether the batches of ``step`` may be made during the step before it.

        They may not if they depend on losses of the step before it.
        """
        ...

    def batches(self, step: int, *, rank: int, ranks: int) -> Sequence[AnyBatch]:
        """Return the micro-batches of one update for one rank, on the host."""
        ...

    def facts(self, batches: Sequence[AnyBatch]) -> dict[str, float]:
        """Return statistics of batches, which are added up until the next line of metrics."""
        ...

    def summarise(self, sums: NumbersByName) -> dict[str, Any]:
        """Compute metrics from the sums of ``facts``: numbers, or dicts of names and shares."""
        ...


class Step(NamedTuple):
    """The input of one update on this rank.

    Attributes:
        number: the step number, counted from 0.
        batches: this rank's micro-batches, on the device.
        targets: the number of targets in the batches.
        facts: the statistics of the batches (``Source.facts``).
        counted: the number by which the losses are divided: the number of targets, or in masked
            diffusion the number of eligible tokens.
        sums: sums over all ranks: ``targets``, ``counted``, and ``asked``, the number of ranks that
            a signal asked to stop.
        lengths: the lengths of the texts in the batches, on the host.
    """

    number: int
    batches: list[AnyBatch]
    targets: int
    facts: dict[str, float]
    counted: int
    sums: NumbersByName = MappingProxyType({})
    lengths: Lengths = NO_TEXTS


Summed: TypeAlias = Callable[[NumbersByName, Exception | None], dict[str, float]]
"""A function that sums numbers over all ranks. Every rank must call this function. If a rank gives
an error, the function raises an error on all ranks (``Engine.summed``)."""


def of_one_rank(sums: NumbersByName, error: Exception | None) -> dict[str, float]:
    """Return the sums of a single rank."""
    if error:
        raise error
    return dict(sums)


def look_ahead(
    source: Source,
    steps: range,
    *,
    rank: int = 0,
    ranks: int = 1,
    device: torch.device | str = "cpu",
    summed: Summed = of_one_rank,
    told: Callable[[], NumbersByName] = dict,
) -> Iterator[Step]:
    """Yield the steps of a training run. Batches are made one step ahead if ``source`` allows it.

    Args:
        source: the source of the batches.
        steps: the step numbers.
        rank, ranks, device: the rank of this process, the number of ranks, and the device of this
            process.
        summed: a function that sums numbers over ranks. It is called when the batches are made,
            ahead of training, so that training does not wait for other hosts.
        told: a function that returns what this rank tells the others of each step, such as whether
            a signal asks it to stop. The sums over all ranks are in ``Step.sums``.

    Raises:
        MaskwiseError: a batch could not be made, on this rank or on another. The error is raised
            when the step is reached, on all ranks.
    """
    lane = Lane(device) if copies_aside(device) else None

    def copied(batch: AnyBatch) -> AnyBatch:
        if isinstance(batch, MaskedBatch):
            return batch.to(device)
        return moved(batch, device)

    def make(number: int) -> tuple[Step, object]:
        try:
            step, mark = made(number)
        except Exception as error:
            # The other ranks wait for this rank's numbers, and must not wait for ever.
            summed({"targets": 0, "counted": 0, **told()}, error)
            raise
        counts = {"targets": step.targets, "counted": step.counted, **told()}
        return step._replace(sums=summed(counts, None)), mark

    def made(number: int) -> tuple[Step, object]:
        batches = source.batches(number, rank=rank, ranks=ranks)
        targets = counted = 0
        for batch in batches:
            divisor = None
            if isinstance(batch, MaskedBatch):
                count = batch.targets
                divisor = batch.counted
            else:
                count = int((batch["labels"] != IGNORE).sum())
            targets += count
            counted += count if divisor is None else divisor

        def send() -> list[AnyBatch]:
            return list(map(copied, batches))

        sent, mark = lane.send(send) if lane else (send(), None)
        facts = source.facts(batches)
        return Step(number, sent, targets, facts, counted, lengths=lengths_of(batches)), mark

    def received(step: Step, mark: object) -> Step:
        if lane is not None:
            lane.receive(step.batches, mark)
        return step

    # A single thread makes all batches, in the order of their steps.
    turns = QuickTurns() if lane else nullcontext()
    with turns, ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting: Future[tuple[Step, object]] | None = None
        for number in steps:
            ready = (waiting or thread.submit(make, number)).result()
            following = number + 1
            waiting = None
            if following < steps.stop and source.ahead(following):
                waiting = thread.submit(make, following)
            yield received(*ready)


def lengths_of(batches: Sequence[AnyBatch]) -> Lengths:
    """Return the lengths of the texts in batches on the host. Other rows are texts, if there are
    ``input_ids``.
    """
    read = [NO_TEXTS.read]
    written = [NO_TEXTS.written]
    for batch in batches:
        if isinstance(batch, MaskedBatch):
            lengths = batch.lengths
            read.append(lengths.read)
            written.append(lengths.written)
        elif "input_ids" in batch:
            read += [present.sum(-1).numpy() for present in present_tokens(batch)]
            # If the labels are a text, a decoder writes it.
            targets = (batch["labels"] != IGNORE).view(len(batch["labels"]), -1)
            written.append(targets.sum(-1).numpy())
    return Lengths(np.concatenate(read), np.concatenate(written))


def present_tokens(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return where tokens are, and no padding, in each text of the rows, such as a query and its
    text: (B, L) each, from all inputs whose names end with ``input_ids``.
    """
    return [
        batch.get(f"{name.removesuffix('input_ids')}attention_mask", torch.ones_like(ids))
        for name, ids in batch.items()
        if name.endswith("input_ids")
    ]


class QuickTurns:
    """A context in which threads that run Python take turns of at most ``TURN`` seconds.

    The turns are those of the whole process, so they are long again only when no training is left.
    """

    lock = Lock()
    inside = 0
    usual = 0.0

    def __enter__(self) -> None:
        with self.lock:
            if not QuickTurns.inside:
                QuickTurns.usual = sys.getswitchinterval()
                sys.setswitchinterval(min(QuickTurns.usual, TURN))
            QuickTurns.inside += 1

    def __exit__(self, *raised: object) -> None:
        with self.lock:
            QuickTurns.inside -= 1
            if not QuickTurns.inside:
                sys.setswitchinterval(QuickTurns.usual)


class MaskedSource:
    """Makes masked batches from the rows of a corpus or a stream.

    Args:
        rows: the rows of a corpus or of a stream. A stream sets the order of its rows itself.
        masker: the maker of batches.
        settings: the training settings, for the batch size, the steps and the seed.
        shares: the share of each text source in a mix, by name; empty for a single text source.

    Raises:
        MaskwiseError: there are fewer rows than a batch needs.
    """

    def __init__(
        self,
        rows: Rows | StreamedRows,
        masker: Maker,
        settings: TrainingSettings,
        *,
        shares: NumbersByName = MappingProxyType({}),
    ):
        self.rows = rows
        self.masker = masker
        self.settings = settings
        self.order: StreamedRows | Mix | Epochs
        if isinstance(rows, StreamedRows):
            self.order = rows
        elif shares:
            self.order = Mix(shares, rows.by_source(len(shares)), settings)
        else:
            lengths = torch.from_numpy(rows.lengths) if settings.group_by_length else None
            self.order = Epochs(len(rows), settings, lengths=lengths)

    def ahead(self, step: int) -> bool:
        """Return whether the batches of ``step`` may be made early: not if the policy learns."""
        return not (isinstance(self.masker, Masker) and self.masker.policy.learns)

    def batches(self, step: int, *, rank: int, ranks: int) -> list[MaskedBatch]:
        """Return the micro-batches of ``step`` for ``rank``."""
        rows, epoch = self.order.draw(step)
        places = self.order.place(step) + torch.arange(len(rows))
        # Split the rows into micro-batches, and every micro-batch into equal parts for the ranks.
        by_rank = torch.stack([rows, places]).view(2, self.settings.accumulate, ranks, -1)
        when: dict[str, Any] = {"step": step, "total_steps": self.settings.steps, "epoch": epoch}
        batches = []
        for part, place in by_rank[:, :, rank].unbind(1):
            if isinstance(self.masker, Masker) and self.masker.places:
                when["place"] = place.numpy()
            batch = self.masker(self.rows.line(part), **when)
            if self.settings.compile:
                # Whether a batch has padding, or a row of two pieces, is chance.
                batch = batch.with_all_masks(packed=self.rows.layout == "packed")
            # The log shows the actual share of each text source in a mix.
            batch.sources = self.order.counts(part)
            batches.append(batch)
        return batches

    def learners(self) -> Learners:
        """Return the learner of the masking policy by name; empty if the policy does not learn."""
        return learners_of(self.masker)

    def streams(self) -> dict[str, StreamedRows]:
        """Return the stream by name; empty for a corpus."""
        if not isinstance(self.rows, StreamedRows):
            return {}
        return {f"stream {self.rows.layout}": self.rows}

    def facts(self, batches: Sequence[MaskedBatch]) -> dict[str, float]:
        """Return sums for ``summarise``, and the number of tokens."""
        sums = defaultdict[str, float](float)
        for batch in batches:
            line = batch.line
            facts = {
                "tokens": batch.tokens,
                "eligible": line.eligible.sum(),
                "chosen": batch.selected.sum(),
                "asked": batch.ratio.sum(),
                "rows": len(batch.ratio),
                "positions": line.input_ids.size,
                "present": line.present.sum(),
            }
            for name, value in facts.items():
                sums[name] += float(value)
            for name, count in batch.sources.items():
                sums[f"rows of {name}"] += count
        return dict(sums)

    def summarise(self, sums: NumbersByName) -> dict[str, Any]:
        summary: dict[str, object] = {}
        if self.order.names:
            rows = {name: sums[f"rows of {name}"] for name in self.order.names}
            total = max(1.0, sum(rows.values()))
            summary["sources"] = {name: round(count / total, 6) for name, count in rows.items()}
        summary["tokens"] = int(sums["tokens"])
        summary["ratio"] = sums["chosen"] / max(1.0, sums["eligible"])
        summary["scheduled_ratio"] = sums["asked"] / max(1.0, sums["rows"])
        summary["padding"] = 1 - sums["present"] / max(1.0, sums["positions"])
        return summary


def learners_of(masker: object) -> Learners:
    """Return the learner of the masker's policy by name; empty if the policy does not learn.

    Raises:
        MaskwiseError: the corruption changes the length of texts, so that losses cannot be assigned
            to tokens of the text.
    """
    if not isinstance(masker, Masker):
        return {}
    learner = learner_of(masker.policy)
    if learner is None:
        return {}
    if not masker.corruption.keeps_length:
        raise MaskwiseError(
            f"policy {masker.policy} needs a corruption that keeps the length of a text",
            got=f"corruption {masker.corruption}",
            do="use the corruption bert or mask-only",
        )
    learner.start(masker.vocabulary)
    return {"policy": learner}


def by_width(width: Tensor, tokens: int) -> Iterator[Tensor]:
    """Yield groups of rows with similar width, as indices. The widest rows come first.

    Args:
        width: (N,) int64, the number of tokens in each row.
        tokens: the largest number of tokens in a group, with padding. A wider row is a group by
            itself.
    """
    order = width.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, int(width[order[start]])))
        yield order[start : start + count]
        start += count


def log_frequencies(counts: Tensor) -> Tensor:
    """(V,) float32: the log frequencies of V tokens, from their counts plus one."""
    smooth = counts.double() + 1
    return (smooth / smooth.sum()).log().float()


# The order of rows
# -------------------------------------------------------------------------------------------

# All orders depend only on the seed and the step, so a resumed run does not read earlier rows.

WINDOW = 16
"""The number of batches whose rows are sorted by length together. With 16, most padding is gone."""


def order_of(
    size: int, epoch: int, *, seed: int, lengths: Tensor | None = None, batch_size: int = 1
) -> Tensor:
    """(size,) int64: the order of ``size`` rows in an epoch.

    Args:
        size: the number of rows.
        epoch: the epoch.
        seed: any integer.
        lengths: (size,) the lengths of the rows, if rows of similar length shall be in the same
            batch; None for a plain shuffle.
        batch_size: the number of rows in a batch; needed only with ``lengths``.

    >>> sorted(order_of(4, 2, seed=0).tolist())
    [0, 1, 2, 3]
    """
    order = permutation(size, seed=seed, epoch=epoch)
    batches = size // batch_size
    if lengths is None or not batches:
        return order
    # Sort rows within windows of WINDOW batches, then shuffle the batches of each window.
    rows = order[: batches * batch_size]
    window = torch.arange(len(rows)) // (WINDOW * batch_size)
    by_length = (window * (int(lengths.max()) + 1) + lengths[rows]).argsort(stable=True)
    shuffled = permutation(
        batches,
        seed=fold(seed, WINDOW),
        epoch=epoch,
    )
    shuffled = shuffled[(shuffled // WINDOW).argsort(stable=True)]
    grouped = rows[by_length].view(batches, -1)[shuffled]
    return torch.cat([grouped.flatten(), order[len(rows) :]])


class Epochs:
    """The order of the rows of one text source. If the last rows of an epoch do not fill a batch,
    they are skipped.

    Args:
        size: the number of rows.
        settings: the training settings, for the batch size and the seed.
        lengths: (size,) the lengths of the rows, as in ``order_of``.

    Raises:
        MaskwiseError: there are fewer rows than a batch needs.
    """

    names: Sequence[str] = ()

    def __init__(self, size: int, settings: TrainingSettings, *, lengths: Tensor | None = None):
        if size < settings.batch_size:
            raise MaskwiseError(
                "the corpus is smaller than one batch",
                got=f"{size} rows",
                allowed=f"at least batch_size = {settings.batch_size}",
                do="use more text, or a smaller batch_size",
            )
        self.batch_size = settings.batch_size
        self.per_epoch = size // settings.batch_size
        order = partial(
            order_of, size, seed=settings.seed, lengths=lengths, batch_size=self.batch_size
        )
        # Cache the last order, because shuffling ten million rows takes .14 s.
        self.order = lru_cache(1)(order)

    def draw(self, step: int) -> tuple[Tensor, int | None]:
        """Return the rows of a step, (batch size,) int64, and the epoch of the step."""
        epoch, place = divmod(step, self.per_epoch)
        return self.order(epoch)[place * self.batch_size :][: self.batch_size], epoch

    def place(self, step: int) -> int:
        """Return the position of the first row of a step in the order of the epoch."""
        return step % self.per_epoch * self.batch_size

    def counts(self, rows: Tensor) -> dict[str, int]:
        """Return an empty dict, because there is only one text source."""
        return {}


class Mix:
    """The order of the rows of several text sources, which are mixed in fixed shares.

    Every source has its own order and its own epochs. How many of the first n rows of a run are
    from a source depends only on n. This number differs from share × n by at most half a row with
    two sources, one row with three sources, and 1.6 rows (measured) with a hundred sources.

    Args:
        shares: the share of each source, by name. The shares sum to 1.
        sizes: the number of rows in each source. The rows of all sources are concatenated.
        settings: the training settings, for the batch size and the seed.

    Raises:
        MaskwiseError: a source has fewer rows than its share of a batch.
    """

    def __init__(self, shares: NumbersByName, sizes: Sequence[int], settings: TrainingSettings):
        self.names = tuple(shares)
        self.batch_size = settings.batch_size
        self.seed = settings.seed
        self.parts = whole_shares(shares)
        for (name, share), size in zip(shares.items(), sizes, strict=True):
            least = share * settings.batch_size
            if size < least:
                raise MaskwiseError(
                    f"{name} has fewer rows than its share of a batch",
                    got=size,
                    allowed=f"≥ {least:.1f}",
                    do="use more of its text, a lower weight, or a smaller batch_size",
                )
        self.sizes = sizes
        self.ends = torch.tensor(sizes).cumsum(0)
        self.order = lru_cache(2 * len(sizes))(self._order)

    def _order(self, number: int, epoch: int) -> Tensor:
        size = self.sizes[number]
        begin = self.ends[number] - size
        return begin + order_of(size, epoch, seed=fold(self.seed, number))

    def draw(self, step: int) -> tuple[Tensor, int | None]:
        """Return the rows of a step, (batch size,) int64, and None in place of a common epoch."""
        rows = []
        for number, (before, after) in enumerate(taken(step, self.batch_size, self.parts)):
            place = torch.arange(before, after)
            size = max(1, self.sizes[number])
            for epoch in (place // size).unique().tolist():
                # If a source is small, its rows in one batch may be from several epochs.
                inside = place[place // size == epoch] % size
                rows.append(self.order(number, epoch)[inside])
        return torch.cat(rows)[mixed(self.batch_size, seed=self.seed, step=step)], None

    def place(self, step: int) -> int:
        """Return the position of the first row of a step in the order of the run."""
        return step * self.batch_size

    def counts(self, rows: Tensor) -> dict[str, int]:
        """Return how many of the ``rows`` are from each source."""
        owner = torch.bucketize(rows, self.ends, right=True)
        return dict(zip(self.names, owner.bincount(minlength=len(self.names)).tolist()))
