"""The input of the training loop: masked batches, made one step ahead.

A source makes the batches of a step on the host, as a function of (seed, step, rank), so a schedule
acts at the exact step and a resumed run gets its batches without reading earlier ones. While the
device works on a step, ``look_ahead`` makes the batches of the next step in a thread, counts their
targets, and copies them to the device without blocking. If masks depend on the losses of the last
step (a policy or sampler that learns), the source has ``ahead = 0``. A source has no length.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking import MaskedBatch, Masker
from maskwise.masking.batch import IGNORE, copies_aside, moved
from maskwise.masking.policies.base import Learner
from maskwise.objectives.base import Maker
from maskwise.text import Rows
from maskwise.training.order import Epochs, Mix
from maskwise.training.settings import TrainingSettings
from maskwise.training.stream import StreamedRows

Batch: TypeAlias = Any
"""A ``MaskedBatch``, or a dict of tensors with ``labels``, −100 where there is no target."""


class Source(Protocol):
    """Makes the batches of each step."""

    @property
    def ahead(self) -> int:
        """How many steps early batches may be made; 0 if they depend on the last losses."""
        ...

    def batches(self, step: int, *, rank: int, ranks: int) -> Sequence[Batch]:
        """The micro-batches of one update for one rank, on the host."""
        ...

    def facts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Statistics of batches, which are summed from one line of metrics to the next."""
        ...

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Metrics from these sums: numbers, or shares by name."""
        ...


class Step(NamedTuple):
    """One update.

    Attributes:
        number: the number of the step, from 0.
        batches: the micro-batches of this rank, on the device.
        targets: the number of targets in the batches.
        facts: the ``Source.facts`` of the batches.
        counted: the divisor of the losses: targets, or in masked diffusion eligible tokens.
        sums: ``targets``, ``counted`` and ``asked`` (to stop) over all ranks.
    """

    number: int
    batches: list[Batch]
    targets: int
    facts: dict[str, float]
    counted: int
    sums: Mapping[str, float] = MappingProxyType({})


Summed: TypeAlias = Callable[[Mapping[str, float]], dict[str, float]]
"""Sums numbers over all ranks; every rank calls it."""


def look_ahead(
    source: Source,
    steps: range,
    *,
    rank: int = 0,
    ranks: int = 1,
    device: torch.device | str = "cpu",
    summed: Summed = dict,
    asked: Callable[[], bool] = bool,
) -> Iterator[Step]:
    """The steps of a training, each made ``source.ahead`` steps early.

    Args:
        source: makes the batches.
        steps: the numbers of the steps.
        rank, ranks, device: those of this process.
        summed: sums counts over ranks, early, so that no step waits for the other hosts.
        asked: whether this rank was asked to stop.

    Raises:
        MaskwiseError: raised while making a batch, when its step is reached.
    """
    lane = Lane(device) if copies_aside(device) else None

    def make(number: int) -> tuple[Step, object]:
        batches = source.batches(number, rank=rank, ranks=ranks)
        targets = counted = 0
        for batch in batches:
            if isinstance(batch, MaskedBatch):
                count = batch.targets
                counted += count if batch.counted is None else batch.counted
            else:
                count = int((batch["labels"] != IGNORE).sum())
                counted += count
            targets += count

        def send() -> list[Batch]:
            return [there(batch, device) for batch in batches]

        sent, mark = lane.send(send) if lane else (send(), None)
        sums = summed({"targets": targets, "counted": counted, "asked": asked()})
        return Step(number, sent, targets, source.facts(batches), counted, sums), mark

    def received(step: Step, mark: object) -> Step:
        if lane is not None:
            lane.receive(step.batches, mark)
        return step

    if not source.ahead:
        for number in steps:
            yield received(*make(number))
        return
    # One thread, so that batches are made in the order of their steps.
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        # Filled first, so that the thread is always ``ahead`` steps early.
        waiting = deque(thread.submit(make, number) for number in steps[: source.ahead])
        for number in steps:
            ready = waiting.popleft().result()
            if number + source.ahead < steps.stop:
                waiting.append(thread.submit(make, number + source.ahead))
            yield received(*ready)


def there(batch: Batch, device: torch.device | str) -> Batch:
    """A batch on a device."""
    return batch.to(device) if isinstance(batch, MaskedBatch) else moved(batch, device)


class MaskedSource:
    """Masked batches from the rows of a corpus.

    Args:
        rows: the rows of a corpus, or of a stream, which has its own order and shares.
        masker: makes batches of rows.
        settings: batch size, steps, seed.
        shares: the shares of the sources of a mix, by name; empty if there is one source.

    Raises:
        MaskwiseError: fewer rows than one batch.
    """

    def __init__(
        self,
        rows: Rows | StreamedRows,
        masker: Maker,
        settings: TrainingSettings,
        *,
        shares: Mapping[str, float] = MappingProxyType({}),
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

    @property
    def ahead(self) -> int:
        """One step, or none if the policy learns."""
        return 0 if self.learners() else 1

    def batches(self, step: int, *, rank: int, ranks: int) -> list[MaskedBatch]:
        """The micro-batches of ``step`` for ``rank``."""
        rows, epoch = self.order.draw(step)
        places = self.order.place(step) + torch.arange(len(rows))
        # Micro-batches first, then ranks: each rank gets an equal slice of every micro-batch.
        by_rank = torch.stack([rows, places]).view(2, self.settings.accumulate, ranks, -1)
        when: dict[str, Any] = {"step": step, "total_steps": self.settings.steps, "epoch": epoch}
        batches = []
        for part, place in by_rank[:, :, rank].unbind(1):
            if isinstance(self.masker, Masker) and self.masker.places:
                when["place"] = place.numpy()
            batch = self.masker(self.rows.batch(part), **when)
            # The log shows the realised shares of a mix.
            batch.sources = self.order.counts(part)
            batches.append(batch)
        return batches

    def learners(self) -> dict[str, Learner]:
        """The policy, if it learns; see ``learners_of``."""
        return learners_of(self.masker)

    def places(self) -> dict[str, Learner]:
        """The stream, whose position is saved with the run; empty for a corpus."""
        if not isinstance(self.rows, StreamedRows):
            return {}
        return {f"stream {self.rows.layout}": self.rows}

    def facts(self, batches: Sequence[MaskedBatch]) -> dict[str, float]:
        """Sums for ``summarise`` and for the speed; ``squares`` is Σ length² of the pieces."""
        sums = Counter({f"rows of {name}": 0.0 for name in self.order.names})
        for batch in batches:
            line = batch.source
            count_P = line.count(line.present)
            facts = {
                "tokens": batch.tokens,
                "eligible": line.eligible.sum(),
                "chosen": batch.selected.sum(),
                "asked": batch.ratio.sum(),
                "rows": len(batch.ratio),
                "positions": line.input_ids.size,
                "present": count_P.sum(),
                "squares": (count_P**2).sum(),
            }
            sums.update({name: float(value) for name, value in facts.items()})
            sums.update({f"rows of {name}": count for name, count in batch.sources.items()})
        return dict(sums)

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        rows = {name: sums[f"rows of {name}"] for name in self.order.names}
        total = max(1.0, sum(rows.values()))
        shares = {name: round(count / total, 6) for name, count in rows.items()}
        summary: dict[str, object] = {"sources": shares} if shares else {}
        summary["tokens"] = int(sums["tokens"])
        summary["ratio"] = sums["chosen"] / max(1.0, sums["eligible"])
        summary["scheduled_ratio"] = sums["asked"] / max(1.0, sums["rows"])
        summary["padding"] = 1 - sums["present"] / max(1.0, sums["positions"])
        return summary


def learners_of(masker: object) -> dict[str, Learner]:
    """The policy of a masker, if it learns from the losses.

    Raises:
        MaskwiseError: a corruption that changes lengths, so that losses have no place in the text.
    """
    if not isinstance(masker, Masker):
        return {}
    learner = masker.policy.learner()
    if learner is None:
        return {}
    if not masker.corruption.keeps_length:
        what = f"policy {masker.policy} learns from losses at the places of tokens"
        got = f"corruption {masker.corruption}"
        raise MaskwiseError(what, got=got, do="take bert or mask-only")
    learner.start(masker.vocabulary)
    return {"policy": learner}


def by_width(width: Tensor, tokens: int) -> Iterator[Tensor]:
    """Yield numbers of rows of similar width, widest first, with at most ``tokens`` positions."""
    order = width.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, int(width[order[start]])))
        yield order[start : start + count]
        start += count


def log_frequencies(counts: Tensor) -> Tensor:
    """(V,) float32 log-probabilities from counts (V,), with add-one smoothing."""
    smooth = counts.double() + 1
    return (smooth / smooth.sum()).log().float()


Result = TypeVar("Result")


# Copies between the host and an accelerator that block neither of them. A copy waits for all work
# that was started before it on the same stream, here for a whole step. So batches are copied on a
# separate stream, and sums are copied to pinned memory and read a step later.


class Lane:
    """A stream for copies to a device, separate from the stream of its work."""

    def __init__(self, device: torch.device | str):
        self.stream: Any = torch.cuda.Stream(device)

    def send(self, make: Callable[[], Result]) -> tuple[Result, object]:
        """Call a function that copies on this stream; return its result and an event at its end."""
        with torch.cuda.stream(self.stream):
            result = make()
            return result, self.stream.record_event()

    def receive(self, sent: object, mark: Any) -> None:
        """Make the work that follows on the device wait for a copy; the host does not wait."""
        current = torch.cuda.current_stream()
        current.wait_event(mark)
        for tensor in tensors_of(sent):
            # Otherwise the memory could be reused while the device still reads it.
            tensor.record_stream(current)


def tensors_of(value: object) -> Iterator[Tensor]:
    """The tensors of batches in lists, and of dicts and tuples in these."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, MaskedBatch):
        yield from tensors_of(vars(value))
    elif isinstance(value, Mapping):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)


def coming_back(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor to the host, and return a function that waits for it."""
    if not copies_aside(tensor.device):
        here = tensor.cpu()
        return lambda: here
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    there.copy_(tensor, non_blocking=True)
    wait = new_event()

    def arrived() -> Tensor:
        wait()
        return there

    return arrived


def new_event() -> Callable[[], None]:
    """Record an event after all work so far, and return a function that waits for it."""
    event = torch.cuda.Event()
    event.record()
    wait: Callable[[], None] = event.synchronize
    return wait
