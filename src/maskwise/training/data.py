"""What the loop reads: masked batches, one step ahead.

A source makes the batches of a step on the host, as a function of (seed, step, rank), so a schedule
acts at the exact step and a resumed run finds its batches at once. ``look_ahead`` makes the next
step's batches in a thread while the device works on this one's, counts their targets, and copies
them to the device without blocking. A source whose masks depend on the losses of the last step (a
policy or sampler that learns) has ``ahead = 0``. A source need not know its length.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from maskwise.masking import MaskedBatch
from maskwise.masking.batch import IGNORE, moved
from maskwise.objectives.base import Maker
from maskwise.text import Rows
from maskwise.training.devices import Lane, copies_aside
from maskwise.training.learners import Learner, learners_of
from maskwise.training.order import Epochs, Mix, require_batch
from maskwise.training.settings import TrainingSettings
from maskwise.training.stream import StreamedRows

Batch: TypeAlias = Any
"""A ``MaskedBatch``, or a dict of tensors with ``labels``, −100 at no target."""


class Source(Protocol):
    """Where batches come from."""

    @property
    def ahead(self) -> int:
        """Steps that batches may be made ahead; 0 where they depend on the last step's losses."""
        ...

    def batches(self, step: int, *, rank: int, ranks: int) -> Sequence[Batch]:
        """The micro-batches of one update for one rank, on the host."""
        ...

    def facts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Statistics of batches, which are summed between two lines of metrics."""
        ...

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Metrics from these sums: numbers, or shares by name."""
        ...


class Step(NamedTuple):
    """One update.

    Attributes:
        number: of the step, from 0.
        batches: its micro-batches for this rank, on the device.
        targets: number of targets in them.
        facts: ``Source.facts`` of them.
        counted: divisor of the losses: targets, or in masked diffusion eligible tokens.
        sums: ``targets``, ``counted`` and ``asked`` (to stop) of all ranks.
    """

    number: int
    batches: list[Batch]
    targets: int
    facts: dict[str, float]
    counted: int
    sums: Mapping[str, float] = MappingProxyType({})


Summed: TypeAlias = Callable[[Mapping[str, float]], dict[str, float]]
"""From this rank's numbers to their sums over all ranks; every rank calls it."""


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
        summed: adds up counts over ranks, so that no step waits for the other hosts.
        asked: whether this rank was asked to stop.

    Raises:
        MaskwiseError: raised while making a batch, when its step is reached.
    """
    lane = Lane(device) if copies_aside(device) else None

    def send(batches: Sequence[Batch]) -> tuple[list[Batch], object]:
        if lane is None:
            return [there(batch, device) for batch in batches], None
        return lane.send(lambda: [there(batch, device) for batch in batches])

    def make(number: int) -> tuple[Step, object]:
        batches = source.batches(number, rank=rank, ranks=ranks)
        targets = counted = 0
        for batch in batches:
            count = batch.targets if isinstance(batch, MaskedBatch) else targets_of(batch)
            divisor = batch.counted if isinstance(batch, MaskedBatch) else None
            targets += count
            counted += count if divisor is None else divisor
        sent, mark = send(batches)
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


def targets_of(batch: Mapping[str, Tensor]) -> int:
    """The number of labels to predict in a plain dict of model inputs."""
    return int((batch["labels"] != IGNORE).sum())


def there(batch: Batch, device: torch.device | str) -> Batch:
    """A batch on a device."""
    return batch.to(device) if isinstance(batch, MaskedBatch) else moved(batch, device)


class MaskedSource:
    """Masked batches from the rows of a corpus.

    Args:
        rows: of a corpus, or of a stream, which has its own order and shares.
        masker: what makes batches of them.
        settings: batch size, steps, seed.
        shares: of the sources of a mix, by name; empty if all rows have one source.

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
            require_batch(len(rows), settings)
            self.order = Mix(shares, rows.by_source(len(shares)), settings)
        else:
            lengths = torch.from_numpy(rows.lengths) if settings.group_by_length else None
            self.order = Epochs(len(rows), settings, lengths=lengths)

    @property
    def ahead(self) -> int:
        """One step, or none where the policy learns."""
        return 0 if self.learners() else 1

    def batches(self, step: int, *, rank: int, ranks: int) -> list[MaskedBatch]:
        """The micro-batches of ``step`` for ``rank``."""
        rows, epoch = self.order.draw(step)
        places = self.order.place(step) + torch.arange(len(rows))
        # Micro-batches first, then ranks: each rank gets an equal slice of every micro-batch.
        by_rank = torch.stack([rows, places]).view(2, self.settings.accumulate, ranks, -1)
        when: dict[str, Any] = {"step": step, "total_steps": self.settings.steps, "epoch": epoch}
        made = []
        for part, place in by_rank[:, :, rank].unbind(1):
            if getattr(self.masker, "places", False):
                when["place"] = place.numpy()
            pieces: Any = self.rows.batch(part)
            batch = self.masker(pieces, **when)
            # The log shows the realised shares of a mix.
            batch.sources = self.order.counts(part)
            made.append(batch)
        return made

    def learners(self) -> dict[str, Learner]:
        """The policy, if it learns; see ``learners_of``."""
        return learners_of(self.masker)

    def places(self) -> dict[str, Learner]:
        """What remembers the position of a stream, to be saved with the run; empty for a corpus."""
        if not isinstance(self.rows, StreamedRows):
            return {}
        return {f"stream {self.rows.layout}": self.rows}

    def facts(self, batches: Sequence[MaskedBatch]) -> dict[str, float]:
        """Sums to log: tokens read, eligible and chosen ones, the ratio asked for, rows by source;
        and for the speed positions with and without padding, and Σ length² of the pieces."""
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
        return {
            **({"sources": shares} if shares else {}),
            "tokens": int(sums["tokens"]),
            "ratio": sums["chosen"] / max(1.0, sums["eligible"]),
            "scheduled_ratio": sums["asked"] / max(1.0, sums["rows"]),
            "padding": 1 - sums["present"] / max(1.0, sums["positions"]),
        }


def by_width(width: Tensor, tokens: int) -> Iterator[Tensor]:
    """Indices of rows of similar width, widest first, in groups of at most ``tokens`` positions."""
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
