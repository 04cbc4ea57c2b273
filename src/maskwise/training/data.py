"""What the loop reads: rows in the order of an epoch, masked one step ahead.

A source makes the batches of a step on the host: a function of (seed, step, rank) and of nothing
before it, so a schedule acts at the very step and a run that resumes finds its batches without
reading what came before. `look_ahead` makes the next step's batches in a thread while the device
works on this one's, counts their targets on the host, and copies them to the device without
blocking: nothing in a step waits for the masks, and no worker process hides a copy of them. A
    source whose masks follow from the losses of the last step (a policy or sampler that learns)
    says ``ahead = 0``
and is asked in the main thread.

A source need not know its length: it is only ever asked for a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from maskwise.masking import MaskedBatch
from maskwise.masking.batch import IGNORE, moved
from maskwise.objectives.base import Maker
from maskwise.text import Rows
from maskwise.training.learners import Learner, learners_of
from maskwise.training.order import Epochs, Mix, require_batch
from maskwise.training.settings import TrainingSettings
from maskwise.training.stream import StreamedRows

NO_SHARES: Mapping[str, float] = MappingProxyType({})


class Source(Protocol):
    """Where batches come from."""

    @property
    def ahead(self) -> int:
        """How many steps ahead batches may be made; 0 where they depend on the losses of the last
        step.
        """
        ...

    def batches(self, step: int, *, rank: int, ranks: int) -> Sequence[Any]:
        """The micro-batches of one update for one rank, on the host.

        Each is a ``MaskedBatch``, or a dict of tensors with ``labels``, −100 where there is no
        target.
        """
        ...

    def facts(self, batches: Sequence[Any]) -> dict[str, float]:
        """What to log of these batches: sums, added up between two lines of metrics (see
        ``summarise``).
        """
        ...

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Metrics from the sums since the last line: numbers, or shares by name."""
        ...


class Step(NamedTuple):
    """One update.

    Attributes:
        number: of the step, from 0.
        batches: its micro-batches for this rank, on the device.
        targets: how many targets they have together.
        facts: ``Source.facts`` of them.
        counted: what the sum of their losses is divided by: the targets, or in masked diffusion the
            eligible tokens.
    """

    number: int
    batches: list[Any]
    targets: int
    facts: dict[str, float]
    counted: int


def look_ahead(
    source: Source,
    steps: range,
    *,
    rank: int = 0,
    ranks: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Step]:
    """The steps of a training, each made ``source.ahead`` steps before it is wanted.

    Raises:
        MaskwiseError: what making a batch raises, when its step is reached.
    """
    device = torch.device(device)

    def make(number: int) -> Step:
        batches = source.batches(number, rank=rank, ranks=ranks)
        targets = counted = 0
        ready = []
        for batch in batches:
            masked = isinstance(batch, MaskedBatch)
            count = batch.targets if masked else int((batch["labels"] != IGNORE).sum())
            targets += count
            counted += batch.counted if masked and batch.counted is not None else count
            ready.append(batch.to(device) if masked else moved(batch, device))
        return Step(number, ready, targets, source.facts(batches), counted)

    if not source.ahead:
        yield from map(make, steps)
        return
    # One thread: batches are made in the order of their steps.
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting = deque(thread.submit(make, number) for number in steps[: source.ahead])
        for number in steps:
            ready = waiting.popleft().result()
            if number + source.ahead < steps.stop:
                waiting.append(thread.submit(make, number + source.ahead))
            yield ready


class MaskedSource:
    """Masked batches from the rows of a corpus.

    Args:
        rows: those of a corpus, or of a stream, which bring their order and shares with them.
        masker: what masks them, or makes batches of them in another way.
        settings: batch size, steps, seed.
        shares: of the sources of a mix, by name; none where all rows are of one source.

    Raises:
        MaskwiseError: fewer rows than one batch.
    """

    def __init__(
        self,
        rows: Rows | StreamedRows,
        masker: Maker,
        settings: TrainingSettings,
        *,
        shares: Mapping[str, float] = NO_SHARES,
    ):
        self.rows, self.masker, self.settings = rows, masker, settings
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
        numbers, epoch = self.order.draw(step)
        places = self.order.place(step) + torch.arange(len(numbers))
        mine = (self.settings.accumulate, ranks, -1)
        made = []
        for part, place in zip(
            numbers.view(mine)[:, rank], places.view(mine)[:, rank], strict=True
        ):
            told = {"place": place.numpy()} if getattr(self.masker, "places", False) else {}
            rows: Any = self.rows.batch(part)
            batch = self.masker(
                rows, step=step, total_steps=self.settings.steps, epoch=epoch, **told
            )
            batch.sources = self.order.counts(part)
            made.append(batch)
        return made

    def learners(self) -> dict[str, Learner]:
        """What of the masking learns from the losses; see ``learners_of``."""
        return learners_of(self.masker)

    def places(self) -> dict[str, Learner]:
        """What remembers where a stream stands, to be saved with the states of a run; nothing for a
        corpus.
        """
        return (
            {f"stream {self.rows.layout}": self.rows} if isinstance(self.rows, StreamedRows) else {}
        )

    def facts(self, batches: Sequence[MaskedBatch]) -> dict[str, float]:
        """Sums to log: tokens read, those that could be chosen, that were, the ratio asked for,
        rows by source; and for the speed the positions with and without padding, and Σ length² of
        the pieces."""
        sums = {f"rows of {name}": 0.0 for name in self.order.names}
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
            facts |= {f"rows of {name}": count for name, count in batch.sources.items()}
            for name, value in facts.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        rows = {name: sums[f"rows of {name}"] for name in self.order.names}
        shares = {
            name: round(count / max(1.0, sum(rows.values())), 6) for name, count in rows.items()
        }
        return {
            **({"sources": shares} if shares else {}),
            "tokens": int(sums["tokens"]),
            "ratio": sums["chosen"] / max(1.0, sums["eligible"]),
            "scheduled_ratio": sums["asked"] / max(1.0, sums["rows"]),
            "padding": 1 - sums["present"] / max(1.0, sums["positions"]),
        }


def by_width(width: Tensor, tokens: int) -> Iterator[Tensor]:
    """Indices of rows of similar width, the widest first, at most ``tokens`` positions together."""
    order = width.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, int(width[order[start]])))
        yield order[start : start + count]
        start += count


def log_frequencies(counts: Tensor) -> Tensor:
    """Log-probabilities (V,) float32 from counts (V,), each count plus one."""
    smooth = counts.double() + 1
    return (smooth / smooth.sum()).log().float()
