"""The engine of a training run: device, processes, precision, updates and training states.

The package Accelerate connects processes and sets the precision. The order of the
steps in ``Engine`` matters: weights are loaded before the module is wrapped for DDP or FSDP2, and
optimisers are built last, because FSDP2 replaces the parameters.

Masks, the order of rows and dropout depend only on the seed, the step and the rank. Therefore no
state of a random generator is saved.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from maskwise.base.constants import ranks_here
from maskwise.base.devices import TensorDict, Tensors, coming_back, fast_bf16
from maskwise.base.effects import UNNAMED
from maskwise.base.errors import MaskwiseError, OtherProcessFailed
from maskwise.base.folders import sweep
from maskwise.base.printing import LOGGER
from maskwise.jobs.torchrun import not_connected
from maskwise.masking.draws import fold
from maskwise.models.families import encoder_of
from maskwise.objectives.base import (
    Loss,
    Objective,
    require_counted,
    require_finite,
    require_gradient,
)
from maskwise.training.checkpoint import LEARNED, RESUME, State, States, Totals, changed_settings
from maskwise.training.data import AnyBatch, Step
from maskwise.training.learners import NumbersByName
from maskwise.training.optim import Optimizers, load_state, state_of
from maskwise.training.parts import TrainingPart
from maskwise.training.ranks import (
    Ranks,
    Replicated,
    Sharded,
    asked_to_shard,
    distinct,
    forget_meshes,
    gathered,
    load_weights,
    numbers_of_one_rank,
    whole,
    without_fsdp_of_accelerate,
)
from maskwise.training.settings import TrainingSettings
from maskwise.training.several import SeveralObjectives
from maskwise.training.tracking import (
    Tracked,
    finish_trackers,
    id_of,
    require_trackers,
    start_trackers,
    tracked_now,
)
from maskwise.training.wrapping import wrapped

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

Result = TypeVar("Result")
MOST_QUOTED = 4096
"""The most bytes of the error of another rank that are quoted."""
WEIGHTS = "model.safetensors"
OPTIMIZERS = "optimizers.safetensors"

ROUND = 2.0**24
"""Sums over ranks are rounded to multiples of 1 / ROUND, so that the order of addition has no
effect."""

FREE = TrainingSettings.that_change("rounding", *UNNAMED)
"""The settings that may differ when a run is resumed."""


class Update(NamedTuple):
    """The results of one update on this rank.

    Attributes:
        losses: the summed loss of each micro-batch, on the device.
        targets: the number of targets in this rank's micro-batches.
        counted: the number by which the losses are divided (``Step.counted``).
        norm: the gradient norm before clipping, on the device.
        rate: the learning rate.
    """

    losses: list[Tensor]
    targets: int
    counted: int
    norm: Tensor
    rate: float


class Engine:
    """An objective that is ready for training. If there is a training state, it is loaded.

    Args:
        objective: the objective to train, which is moved to the device.
        settings: the training settings.
        folder: the folder of the run. Training states are saved in its folder ``resume/``. If None,
            no states are saved.
        part: the part of the training that is run; None for all of it.

    Attributes:
        rank, ranks, device: the rank of this process, the number of ranks, and the device of this
            process.
        first: whether this is the first rank.
        start: the number of updates before the run was resumed; 0 for a new run.
        judged: whether the evaluation after these updates, if there is one, was finished.
        end: the number of updates after the run.
        totals: the totals of the run after ``start`` updates.
        learned: the states of the learners after ``start`` updates.
        streams: the positions in streams after ``start`` updates, by name.
        states: the training states of the run; None if no states are saved.

    Raises:
        MaskwiseError: the batch size is not a multiple of ranks × micro-batches, there is nothing
            to train, or the states are from a different run; or a tracker is unknown, not
            installed, has no folder or does not start; see also ``new_accelerator``.
    """

    def __init__(
        self,
        objective: Objective,
        settings: TrainingSettings,
        folder: Path | None = None,
        part: TrainingPart | None = None,
    ):
        self.objective = objective
        self.read = set[str]()
        self.settings = settings
        self.folder = folder
        self.part = part
        self.end = settings.steps if part is None else part.end
        if settings.trackers and folder is None:
            raise MaskwiseError(
                "trackers need a folder for their files",
                got=", ".join(settings.trackers),
                do="pass a folder",
            )
        require_trackers(settings.trackers)
        self.trackers: list[GeneralTracker] = []
        self.accelerator = new_accelerator(settings, _width(objective))
        self.rank = self.accelerator.process_index
        self.ranks = self.accelerator.num_processes
        self.device = self.accelerator.device
        self.changes = contextlib.ExitStack()
        self.first = self.accelerator.is_main_process
        settings.micro_rows(self.ranks)
        self.sharded = asked_to_shard(settings, self.ranks)
        if self.sharded and isinstance(objective, SeveralObjectives):
            raise MaskwiseError(
                "training.shard works only with one objective, but the recipe has several",
                do="remove training.shard, so that every process keeps a copy of the weights",
            )
        if self.sharded and settings.freeze == "old-rows":
            # Sharding replaces the parameters, and so the hooks that freeze rows would be lost.
            raise MaskwiseError(
                "training.freeze=old-rows needs whole weights on each process",
                got=f"weights sharded over {self.ranks} processes",
                do="for this phase, remove training.shard, or start without --use_fsdp",
            )
        self.states: States | None = None
        self.copies: Replicated | None = None
        self.hosts = self.ahead = None
        self.matmul_precision = torch.get_float32_matmul_precision()
        try:
            self._prepare()
        except BaseException:
            # The caller gets no engine, and so cannot close it.
            self.close()
            raise

    def _prepare(self) -> None:
        """Prepare the objective, and load the newest state. ``close`` undoes the preparation."""
        objective = self.objective
        settings = self.settings
        folder = self.folder
        # Exchange counts over gloo, because with NCCL the host would wait for the GPU.
        if self.ranks > 1 and self.device.type != "cpu":
            self.hosts = dist.new_group(backend="gloo")
        # The thread that makes batches has its own group, so that its messages do not mix with
        # those of training.
        if self.ranks > 1:
            self.ahead = dist.new_group(backend="gloo")
        objective.to(self.device)
        if self.device.type != "cpu":
            # Matrix products that autocast leaves in float32 are ten times as fast with TF32.
            torch.set_float32_matmul_precision("high")
        bf16 = self.accelerator.mixed_precision == "bf16"
        changed = wrapped(objective, settings, self.accelerator.autocast, bf16=bf16)
        self.changes.enter_context(changed)
        if folder and self.first:
            sweep(folder)
        # Without ``save_every``, a state is still saved after a signal, and at both ends of a part.
        if folder:
            self.states = States(folder / RESUME, keep=settings.keep)
        state = self._load_newest() if self.states else None
        if self.sharded:
            self.wrapped: Any = Sharded(
                objective,
                self.device,
                self.ranks,
                bf16=bf16,
            )
        elif self.ranks > 1:
            self.copies = Replicated(objective, self.ranks)
            self.wrapped = self.copies
            if self.copies.overlaps:
                self.wrapped = self.accelerator.prepare(self.copies)
        else:
            self.wrapped = self.accelerator.prepare(objective)
        falls = self.part is not None and self.part.falls
        end = self.end if falls else None
        self.optimizers = Optimizers(objective, settings, rank=self.rank, ranks=self.ranks, end=end)
        self.start = 0
        self.judged = True
        self.totals = Totals()
        self.learned: TensorDict = {}
        self.streams: Mapping[str, Mapping[str, Any]] = {}
        if state is not None:
            self._load_rest(state)
        if self.part is not None and self.start < self.part.begin:
            raise MaskwiseError(
                "the state that a part of a training begins with is damaged",
                got=str(self.folder),
                do="remove this folder, and run the same command again",
            )
        if settings.trackers and self.first:
            new = self.start == 0
            self.trackers = start_trackers(settings.trackers, self._tracked(), new=new)

    def _tracked(self) -> Tracked:
        """Return what trackers are told; outside of a study, the names of folders and settings."""
        assert self.folder is not None
        place = self.folder.resolve()
        settings = self.settings.model_dump(mode="json")
        alone = Tracked(place.parent.name, place.name, id_of(place), settings, place)
        return tracked_now() or alone

    # Steps

    def update(
        self,
        step: Step,
        observe: Callable[[AnyBatch, Loss], None],
        gradients: Callable[[], None] = lambda: None,
    ) -> Update:
        """Update the weights with the summed gradients of all ranks, divided by all targets.

        Args:
            step: the step with this rank's micro-batches.
            observe: a function to call with each micro-batch and its loss.
            gradients: a function to call when the gradients are summed and clipped.
        """
        if self.states:
            self.states.check()
        # Seed dropout in every step, so that training states need no state of a random generator.
        torch.manual_seed(fold(self.settings.seed, step.number, self.rank, 0xD0))
        self.objective.train()
        if self.settings.freeze == "encoder":
            # A frozen encoder does not learn, so its dropout would only add noise to the head.
            encoder_of(self.objective.model).eval()
        sums = step.sums
        rate = self.optimizers.set_rate(step.number)
        # DDP computes the mean of the ranks' gradients. Multiply by the ranks to get the sum.
        scale = self.ranks / max(1.0, sums["counted"])
        losses = []
        divisors = []
        drawn = self.objective
        who = type(drawn).__name__
        if isinstance(drawn, SeveralObjectives):
            # All batches of a step are of one objective.
            who = step.batches[0].objective
            drawn = drawn.named(who)
        # To read numbers, the host waits for the device, so only those of the first step are read.
        reads = drawn.foreign and who not in self.read
        for number, batch in enumerate(step.batches, start=1):
            with self._synchronised(number == len(step.batches)):
                with self.accelerator.autocast():
                    loss: Loss = self.wrapped(batch)
                if drawn.foreign:
                    require_gradient(loss, who)
                self.accelerator.backward(loss.total * scale)
            observe(batch, loss)
            losses.append(loss.total.detach())
            if reads:
                divisors.append(loss.divisor)
        if reads:
            self.read.add(who)
            require_counted(float(sum(divisors)), step.counted, who)
            if self.settings.on_nan == "stop":
                require_finite(float(sum(losses)), who)
        if self.copies:
            self.copies.average()
        parameters = self.objective.parameters()
        norm = self.accelerator.clip_grad_norm_(parameters, self.settings.clip or math.inf)
        assert norm is not None
        norm = whole(norm)
        gradients()
        # A step without targets must not change weights, but AdamW would apply weight decay.
        if sums["targets"] > 0:
            sound = None
            if self.settings.on_nan == "skip":
                # Whether the gradient and the losses of all ranks are finite, on the device.
                sound = torch.isfinite(torch.stack([norm, *losses])).all()
                if self.ranks > 1:
                    sound = self.accelerator.reduce(sound.float()) == self.ranks
            self.optimizers.step(sound)
        self.optimizers.zero_grad()
        return Update(losses, step.targets, step.counted, norm, rate)

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """A context that exchanges gradients between ranks only in the last micro-batch."""
        if self.sharded:
            self.wrapped.set_requires_gradient_sync(last)
        elif not last:
            return self.accelerator.no_sync(self.wrapped)
        return contextlib.nullcontext()

    def evaluated(self, function: Callable[[Ranks], Result]) -> Result:
        """Call a function of the ranks in evaluation mode. Every rank must call this method."""
        work = partial(function, Ranks(self.rank, self.ranks, self.added, self.sent))
        with self.objective.judging():
            result = self.wrapped.within(work) if self.sharded else work()
        # FSDP2 keeps the weights outside the layers gathered after a forward pass. Release them.
        if self.sharded:
            self.wrapped.reshard()
        return result

    def summed(
        self, sums: NumbersByName, error: Exception | None = None, *, ahead: bool = False
    ) -> dict[str, float]:
        """Return the sums of numbers over all ranks, in float64.

        Args:
            sums: the numbers of this rank, with the same names on all ranks.
            error: why this rank could not do its part; None if it could.
            ahead: whether the caller is the thread that makes batches.

        Raises:
            Exception: ``error``, or `OtherProcessFailed` if another rank gave an error. All ranks
                end, and none waits for the rank that failed.
        """
        names = sorted(sums)
        totals = self.added([*map(sums.__getitem__, names)], error, ahead=ahead)
        by_name = dict(zip(names, totals, strict=True))
        return {name: by_name[name] for name in sums}

    def added(
        self, numbers: Sequence[float], error: Exception | None, /, *, ahead: bool = False
    ) -> list[float]:
        """Return the sums of a list of numbers over all ranks, as ``summed`` does."""
        if self.ranks == 1:
            return numbers_of_one_rank(numbers, error)
        group = self.ahead if ahead else self.hosts
        tensor = torch.tensor([*numbers, float(error is not None)], dtype=torch.float64)
        dist.all_reduce(tensor, group=group)
        *totals, failed = tensor.tolist()
        if failed:
            raise self._failure(error, group)
        return totals

    def _failure(self, error: Exception | None, group: dist.ProcessGroup | None) -> Exception:
        """Return this rank's error, or else one that quotes the error of another rank."""
        failed = torch.tensor(self.rank if error else self.ranks)
        dist.all_reduce(failed, dist.ReduceOp.MIN, group)
        first = int(failed)
        text = torch.zeros(MOST_QUOTED, dtype=torch.uint8)
        if self.rank == first:
            said = str(error) if isinstance(error, MaskwiseError) else repr(error)
            quoted = said.encode()[:MOST_QUOTED]
            text[: len(quoted)] = torch.tensor([*quoted], dtype=torch.uint8)
        dist.broadcast(text, first, group)
        if error:
            return error
        said = bytes(text.tolist()).rstrip(b"\0").decode(errors="ignore")
        return OtherProcessFailed(f"process {first} failed", got=said)

    def sent(self, value: object, owner: int, /) -> Any:
        """Return the value of the rank ``owner``. The threads that make batches call this."""
        values = [value]
        dist.broadcast_object_list(values, owner, self.ahead)
        return values[0]

    def batch_ranks(self) -> Ranks:
        """Return the ranks for the threads that make batches."""
        return Ranks(self.rank, self.ranks, partial(self.added, ahead=True), self.sent)

    def say(self, text: str) -> None:
        """Log a line. Only the first rank does."""
        if self.first:
            LOGGER.info("%s", text)

    # States to resume from

    def save(
        self,
        step: int,
        totals: Totals,
        learned: Tensors,
        streams: Mapping[str, dict[str, Any]] = MappingProxyType({}),
        *,
        judged: bool = True,
    ) -> None:
        """Write a training state in the background.

        Args:
            step: the number of completed updates.
            totals: the totals after these updates.
            learned: the states of the learners.
            streams: the positions in streams, by name.
            judged: whether an evaluation after this step was finished.

        Raises:
            MaskwiseError: the previous state could not be written.
        """
        assert self.states
        weights = distinct(self.objective)
        optimizers = state_of(self.optimizers.members)
        files = {
            WEIGHTS: gathered(weights, keep=self.first),
            OPTIMIZERS: gathered(optimizers, keep=self.first),
        }
        if learned:
            files[LEARNED] = dict(learned)
        if self.first:
            state = State(
                step=step,
                settings=self._settings(),
                bits=self._bits(),
                streams=dict(streams),
                judged=judged,
                **totals.model_dump(),
            )
            self.states.save(state, files)

    def is_due(self) -> bool:
        """Return whether a state shall be saved now, without ``save_every``. The first rank says
        so, once for each state.
        """
        unset = self.settings.save_every is None
        return unset and self.first and self.states is not None and self.states.is_due()

    def wait(self) -> None:
        """Wait on every rank until the state is written, or raise the error of the write."""
        if self.states:
            self.states.wait()
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Finish writing states, undo changes of the objective and of torch, and close groups and
        trackers.
        """
        torch.set_float32_matmul_precision(self.matmul_precision)
        self.changes.close()
        if self.states:
            self.states.close()
        for group in (self.hosts, self.ahead):
            # After a signal, ``leave`` has already closed all groups.
            if group is not None and dist.is_initialized():
                dist.destroy_process_group(group)
        finish_trackers(self.trackers)

    def _load_newest(self) -> State | None:
        """Choose the newest state on the first rank, and load its weights on all ranks.

        If every rank chose for itself, ranks whose disks or listings of files differ would start at
        different steps, and wait for each other for ever.

        Raises:
            MaskwiseError: a rank does not see the state, or ``_load_weights`` raises an error.
        """
        assert self.states
        state = self.states.newest(self.say) if self.first else None
        step = int(self.summed({"step": state.step if state else 0})["step"])
        if not step:
            return None
        failure = None
        try:
            state = state or self.states.read(step)
            self._load_weights(state)
        except Exception as error:
            failure = error
        self.summed({}, failure)
        return state

    def _load_weights(self, state: State) -> None:
        """Load the weights of a state.

        Raises:
            MaskwiseError: the state belongs to different settings or a different model.
        """
        assert self.states
        path = self.states.path(state.step)
        changed = changed_settings(state.settings, self._settings())
        if changed:
            raise MaskwiseError(
                f"{path} belongs to a run with different settings",
                got=changed,
                do="use a new folder",
            )
        # An older version may have stored fewer conditions.
        bits = {name: value for name, value in self._bits().items() if name in state.bits}
        changed = changed_settings(state.bits, bits)
        if changed:
            self.say(f"resuming from {path} with {changed}: results differ by rounding and dropout")
        weights = load_file(path / WEIGHTS)
        # Check shapes first, because torch's error for weights of other shapes is unclear.
        if shapes_of(weights) != shapes_of(distinct(self.objective)):
            raise MaskwiseError(f"{path} belongs to a different model", do="use a new folder")
        load_weights(self.objective, weights)

    def _load_rest(self, state: State) -> None:
        assert self.states
        path = self.states.path(state.step)
        load_state(self.optimizers.members, load_file(path / OPTIMIZERS))
        if (path / LEARNED).is_file():
            self.learned = load_file(path / LEARNED)
        self.streams = state.streams
        self.judged = state.judged
        self.start = state.step
        self.totals = Totals(**state.model_dump(include=set(Totals.model_fields)))

    def _settings(self) -> dict[str, object]:
        return self.settings.model_dump(mode="json", exclude=FREE)

    def _bits(self) -> dict[str, object]:
        """Return the conditions that change the result of a run only by rounding."""
        model: Any = getattr(self.objective, "model", None)
        settings = self.settings.model_dump(include=self.settings.that_change("rounding"))
        return {
            "threads": torch.get_num_threads(),
            "processes": self.ranks,
            **settings,
            # that which ``auto`` has chosen
            "precision": self.accelerator.mixed_precision,
            "device": self.device.type,
            "attention": model and model.config._attn_implementation,
            "torch": torch.__version__,
            # as states of earlier versions have it
            "compile": self.settings.compile or None,
        }


def shapes_of(tensors: Tensors) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _width(objective: Objective) -> int | None:
    """Return the number of values in a state; None for a model that does not say it."""
    config = getattr(getattr(objective, "model", None), "config", None)
    return getattr(config, "hidden_size", None)


def new_accelerator(settings: TrainingSettings, width: int | None) -> Accelerator:
    """Make an ``Accelerator`` for one run of a model of this width.

    Raises:
        MaskwiseError: the processes were not started by a launcher.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if fast_bf16(width) else "no"
    # Accelerate keeps the settings of the last run in this process, and would refuse another
    # precision.
    AcceleratorState._reset_state()
    with without_fsdp_of_accelerate():
        accelerator = Accelerator(
            mixed_precision=precision,
            # On CPUs, Accelerate connects ranks only with ``cpu=True``.
            cpu=not torch.accelerator.is_available(),
            # ``Engine.update`` divides losses, so Accelerate must not divide them again.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    if accelerator.num_processes != ranks_here():
        raise not_connected(f"{accelerator.num_processes} connected")
    return accelerator


class Agreement:
    """Sums tensors over ranks. The sums are float64 on the host, and equal on all ranks."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def __call__(self, local: Tensor) -> Tensor:
        return self.start(local)()

    def start(self, local: Tensor) -> Callable[[], Tensor]:
        """Start to sum, and return a function that waits for the result."""
        # Apple's GPUs have no float64, so convert only if there are several processes. Training on
        # Apple's GPUs has one process.
        if self.accelerator.num_processes > 1:
            local = self.accelerator.reduce(local.to(self.accelerator.device).double())
        arrived = coming_back(local)
        return lambda: torch.round(arrived().double() * ROUND) / ROUND


def leave() -> None:
    """Close the process group, if there is one. If it stays open, gloo may crash at exit.

    Before the call, delete models that are wrapped in DDP (``del trainer``). They keep threads of
    the group alive, which may crash when the interpreter exits.
    """
    if dist.is_initialized():
        forget_meshes()
        gc.collect()
        dist.barrier()  # wait for the last messages
        dist.destroy_process_group()
