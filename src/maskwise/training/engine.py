"""The engine of a training run: device, processes, precision, wrapping, updates and resuming.

Accelerate provides distribution, precision and trackers. The order in ``Engine`` matters: weights
are loaded into the plain module, and then the module is wrapped. Optimisers are made last, because
FSDP2 replaces the parameters.

No random state is saved: masks, order and dropout are functions of (seed, step, rank).
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from maskwise.constants import ranks_here
from maskwise.devices import TensorDict, Tensors, coming_back, fast_bf16
from maskwise.errors import MaskwiseError, require_known
from maskwise.families import encoder_of
from maskwise.folders import sweep
from maskwise.keys import fold
from maskwise.masking.policies.base import Numbers
from maskwise.objectives import Objective, Outcome
from maskwise.training import wrapping
from maskwise.training.arms import Arms
from maskwise.training.checkpoint import LEARNED, State, States, Totals, changes
from maskwise.training.data import Batch, Step
from maskwise.training.optim import Optimizers, load_state, state_of
from maskwise.training.settings import TrainingSettings

Result = TypeVar("Result")
WEIGHTS = "model.safetensors"
OPTIMIZERS = "optimizers.safetensors"

ROUND = 2.0**24
"""Sums over ranks are rounded to multiples of 1 / ROUND, to hide the order of addition."""

FREE = TrainingSettings.that_change("nothing", "rounding")
"""Settings that may be changed when a run is resumed."""


class Update(NamedTuple):
    """One update of the weights, as this rank saw it.

    Attributes:
        losses: the summed losses of each micro-batch, on the device.
        targets: the number of targets, over all of this rank's micro-batches.
        counted: the divisor of the losses (``Step.counted``).
        norm: the gradient norm before clipping, on the device.
        rate: the learning rate.
    """

    losses: list[Tensor]
    targets: int
    counted: int
    norm: Tensor
    rate: float


class Engine:
    """An objective ready to be trained, resumed from the newest state.

    Args:
        objective: the objective to train; it is moved to the device.
        settings: see ``TrainingSettings``.
        folder: the parent folder of ``resume/``; if None, nothing is kept.

    Attributes:
        rank, ranks, device: this process's rank, the number of ranks, and this process's device.
        first: whether this is the first rank.
        start: the number of updates already done; 0 for a new run.
        totals: the totals after these updates.
        learned: the states of the learners after these updates.
        states: the states to resume from; None if no states are kept.

    Raises:
        MaskwiseError: ranks and micro-batches do not divide the batch size, there is nothing to
            train, or the states are from a different run; see also ``new_accelerator``.
    """

    def __init__(
        self, objective: Objective, settings: TrainingSettings, folder: Path | None = None
    ):
        self.objective = objective
        self.settings = settings
        self.folder = folder
        several = isinstance(objective, Arms)
        self.accelerator = new_accelerator(settings, folder, partial=several)
        self.rank = self.accelerator.process_index
        self.ranks = self.accelerator.num_processes
        self.device = self.accelerator.device
        self.first = self.accelerator.is_main_process
        if settings.batch_size % (settings.accumulate * self.ranks):
            raise MaskwiseError(
                "batch_size must be a multiple of accumulate × processes",
                got=f"{settings.batch_size} for {settings.accumulate} × {self.ranks}",
            )
        self.sharded = wrapping.asked_to_shard(settings, self.ranks)
        if self.sharded and several:
            raise MaskwiseError(
                "training.shard needs a single objective: probes of arms need all weights at once",
                do="leave it out (every process then keeps a copy)",
            )
        self.states: States | None = None
        self.hosts = self.ahead = None
        self.matmul_precision = torch.get_float32_matmul_precision()
        try:
            self._prepare()
        except BaseException:
            # The caller has no engine to close.
            self.close()
            raise

    def _prepare(self) -> None:
        """Change the objective for training and load the newest state; ``close`` undoes it."""
        objective = self.objective
        settings = self.settings
        folder = self.folder
        # Counts are exchanged over gloo, so that the host does not wait for the GPU.
        if self.ranks > 1 and self.device.type != "cpu":
            self.hosts = dist.new_group(backend="gloo")
        # The thread that makes batches has its own group, so that messages do not mix.
        if self.ranks > 1:
            self.ahead = dist.new_group(backend="gloo")
        objective.to(self.device)
        if self.device.type != "cpu":
            # Products that autocast leaves in single precision are ten times as fast with TF32.
            torch.set_float32_matmul_precision("high")
        if settings.freeze == "encoder":
            wrapping.freeze_encoder(objective)
        wrapping.wrap(objective, settings, self.accelerator.autocast)
        if folder and self.first:
            sweep(folder)
        if folder and settings.save_every:
            self.states = States(folder / "resume", keep=settings.keep)
        state = self.states.newest(self.say) if self.states else None
        if state is not None:
            self._load_weights(state)
        if self.sharded:
            bf16 = self.accelerator.mixed_precision == "bf16"
            self.wrapped: Any = wrapping.Sharded(
                objective,
                self.device,
                self.ranks,
                bf16=bf16,
            )
        else:
            self.wrapped = self.accelerator.prepare(objective)
        self.optimizers = Optimizers(objective, settings)
        self.start = 0
        self.totals = Totals()
        self.learned: TensorDict = {}
        if state is not None:
            self._load_rest(state)

    # Steps

    def update(self, step: Step, observe: Callable[[Batch, Outcome], None]) -> Update:
        """One update: the gradient of all ranks' losses, divided by their targets.

        Args:
            observe: a function that is called with each micro-batch and its outcome.
        """
        if self.states:
            self.states.check()
        # Dropout is a function of (seed, step, rank), so no generator state needs to be saved.
        torch.manual_seed(fold(self.settings.seed, step.number, self.rank, 0xD0))
        self.objective.train()
        if self.settings.freeze == "encoder":
            # With dropout, the head would learn to use states that it never sees again.
            encoder_of(self.objective.model).eval()
        sums = step.sums
        rate = self.optimizers.set_rate(step.number)
        # DDP averages gradients over ranks, so every sum is multiplied by the number of ranks.
        scale = self.ranks / max(1.0, sums["counted"])
        losses = []
        for number, batch in enumerate(step.batches, start=1):
            with self._synchronised(number == len(step.batches)):
                with self.accelerator.autocast():
                    outcome: Outcome = self.wrapped(batch)
                self.accelerator.backward(outcome.loss * scale)
            observe(batch, outcome)
            losses.append(outcome.loss.detach())
        parameters = self.objective.parameters()
        norm = self.accelerator.clip_grad_norm_(parameters, self.settings.clip or math.inf)
        assert norm is not None
        norm = wrapping.whole(norm)
        if sums["targets"] > 0:  # a step without targets is counted, but changes nothing
            sound = self._sound(norm, losses) if self.settings.on_nan == "skip" else None
            self.optimizers.step(sound)
        self.optimizers.zero_grad()
        return Update(losses, step.targets, step.counted, norm, rate)

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Reduce gradients over ranks only for the last micro-batch of a step."""
        if self.sharded:
            self.wrapped.set_requires_gradient_sync(last)
        elif not last:
            return self.accelerator.no_sync(self.wrapped)
        return contextlib.nullcontext()

    def _sound(self, norm: Tensor, losses: list[Tensor]) -> Tensor:
        """Whether the gradient and the losses of all ranks are finite, on the device."""
        sound = torch.isfinite(torch.stack([norm, *losses])).all()
        if self.ranks == 1:
            return sound
        return self.accelerator.reduce(sound.float()) == self.ranks

    def evaluated(self, function: Callable[[], Result]) -> Result:
        """Call a function in evaluation mode (``Objective.judging``); every rank calls this."""
        with self.objective.judging():
            result = self.wrapped.within(function) if self.sharded else function()
        if self.sharded:  # until now, weights outside of blocks remain gathered
            self.wrapped.reshard()
        return result

    def summed(self, sums: Numbers, *, ahead: bool = False) -> dict[str, float]:
        """Sums over all ranks, in float64.

        Args:
            ahead: whether this is called in the thread that makes batches.
        """
        if self.ranks == 1:
            return dict(sums)
        names, values = zip(*sorted(sums.items()))
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.ahead if ahead else self.hosts)
        return dict(zip(names, tensor.tolist(), strict=True))

    def say(self, text: str) -> None:
        """Print a line on stderr, once for all ranks."""
        if self.first:
            Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)

    def finish(self) -> None:
        """Wait for all ranks and pending writes, and close the trackers."""
        self.wait()
        # Some trackers upload only when they are finished.
        for tracker in self.accelerator.trackers:
            tracker.finish()

    # States to resume from

    def save(self, step: int, totals: Totals, learned: Tensors) -> None:
        """Write a state in the background.

        Args:
            step: the number of updates done.
            totals: the totals after these updates.
            learned: the states of the learners.

        Raises:
            MaskwiseError: the previous state could not be written.
        """
        assert self.states
        weights = wrapping.distinct(self.objective)
        optimizers = state_of(self.optimizers.members)
        files = {
            WEIGHTS: wrapping.gathered(weights, keep=self.first),
            OPTIMIZERS: wrapping.gathered(optimizers, keep=self.first),
        }
        if learned:
            files[LEARNED] = dict(learned)
        if self.first:
            state = State(
                step=step, settings=self._settings(), bits=self._bits(), **totals.model_dump()
            )
            self.states.save(state, files)

    def wait(self) -> None:
        """Wait on every rank until the states are written; raise an error if this fails."""
        if self.states:
            self.states.wait()
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Finish writing states, restore everything that was patched, and end the gloo groups."""
        torch.set_float32_matmul_precision(self.matmul_precision)
        wrapping.unwrap(self.objective)
        if self.states:
            self.states.close()
        for group in (self.hosts, self.ahead):
            # If a signal ended the run, ``leave`` has already ended all groups.
            if group is not None and dist.is_initialized():
                dist.destroy_process_group(group)

    def _load_weights(self, state: State) -> None:
        """Load weights; raise if the state belongs to different settings or a different model."""
        assert self.states
        path = self.states.path(state.step)
        # A setting that is missing in an older state had its default value.
        before = {**TrainingSettings().model_dump(mode="json"), **state.settings}
        changed = changes(before, self._settings())
        if changed:
            raise MaskwiseError(
                f"{path} belongs to a run with different settings",
                got=changed,
                do="give a new folder",
            )
        changed = changes(state.bits, self._bits())
        if changed:
            self.say(
                f"resuming from {path} with {changed}: the same run except for rounding and dropout"
            )
        weights = load_file(path / WEIGHTS)
        # Without this check, a model with different sizes would fail later and less clearly.
        if shapes_of(weights) != shapes_of(wrapping.distinct(self.objective)):
            raise MaskwiseError(f"{path} belongs to a different model", do="give a new folder")
        wrapping.load_weights(self.objective, weights)

    def _load_rest(self, state: State) -> None:
        assert self.states
        path = self.states.path(state.step)
        load_state(self.optimizers.members, load_file(path / OPTIMIZERS))
        if (path / LEARNED).is_file():
            self.learned = load_file(path / LEARNED)
        self.start = state.step
        self.totals = Totals(**state.model_dump(include=set(Totals.model_fields)))

    def _settings(self) -> dict[str, object]:
        return self.settings.model_dump(mode="json", exclude=FREE)

    def _bits(self) -> dict[str, object]:
        """The conditions that rounding depends on."""
        model: Any = getattr(self.objective, "model", None)
        return {
            "threads": torch.get_num_threads(),
            "processes": self.ranks,
            "accumulate": self.settings.accumulate,
            "precision": self.accelerator.mixed_precision,
            "device": self.device.type,
            "attention": model and model.config._attn_implementation,
            "torch": torch.__version__,
            "compile": self.settings.compile or None,
        }


def shapes_of(tensors: Tensors) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def new_accelerator(
    settings: TrainingSettings, folder: Path | None, *, partial: bool = False
) -> Accelerator:
    """Make an ``Accelerator`` for one run, and start its trackers.

    Args:
        partial: whether a batch may use only part of the parameters (one of several heads).

    Raises:
        MaskwiseError: a tracker is unknown, not installed, or has no folder to write to; or the
            processes were not started by a launcher.
    """
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if fast_bf16() else "no"
    trackers = list(settings.trackers)
    if trackers and folder is None:
        raise MaskwiseError(
            "trackers need a folder to write to",
            got=", ".join(trackers),
            do="give a folder",
        )
    for name in trackers:
        require_known("or missing tracker", name, ["all", *map(str, get_available_trackers())])
    # Accelerate keeps one state per process and would refuse a different precision.
    AcceleratorState._reset_state()
    unused = [DistributedDataParallelKwargs(find_unused_parameters=True)] if partial else None
    with wrapping.without_fsdp_of_accelerate():
        accelerator = Accelerator(
            mixed_precision=precision,
            # By default, Accelerate does not distribute on CPUs: every rank would train alone.
            cpu=not torch.accelerator.is_available(),
            log_with=trackers or None,
            project_dir=folder,
            kwargs_handlers=unused,
            # Losses are divided once, in ``Engine.update``; the launcher must not change that.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    if accelerator.num_processes != ranks_here():
        raise MaskwiseError(
            "the processes are not connected to each other",
            got=f"WORLD_SIZE={ranks_here()}, {accelerator.num_processes} connected",
            do="start them with torchrun",
        )
    if trackers:
        # Trackers do not accept lists.
        config = settings.model_dump()
        accelerator.init_trackers("maskwise", config=dict(zip(config, map(str, config.values()))))
    return accelerator


class Agreement:
    """Adds up tensors over ranks; the results are float64 on the host, and equal on every rank."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def __call__(self, local: Tensor) -> Tensor:
        return self.start(local)()

    def start(self, local: Tensor) -> Callable[[], Tensor]:
        """Start the sum; the returned function waits for the result."""
        if self.accelerator.num_processes > 1:  # never on Apple's GPUs, which have no float64
            local = self.accelerator.reduce(local.to(self.accelerator.device).double())
        arrived = coming_back(local)
        return lambda: torch.round(arrived().double() * ROUND) / ROUND


def leave() -> None:
    """Close the process group, if it exists; an open group can make gloo abort at exit.

    A model that is still wrapped in DDP keeps the group's threads alive, which then race with the
    interpreter's exit. Therefore delete such a model first (``del trainer``).
    """
    if dist.is_initialized():
        wrapping.forget_meshes()
        gc.collect()
        dist.barrier()  # wait for the last messages
        dist.destroy_process_group()
