"""What a training runs on: device, processes, precision, wrapping, the backward pass, and the
states it goes on from.

Distribution, precision and trackers are Accelerate's. The order in ``Engine`` matters: weights are
loaded into the plain module, the module is wrapped, and only then are there optimisers, because
FSDP2 replaces the parameters when it wraps them.

Random state is not saved, for there is none: masks, order and dropout are functions of (seed, step,
rank).
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    LoggerType,
    broadcast,
)
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskwise.constants import rank_here, ranks_here
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.families import UNLIMITED, encoder_of, most_tokens
from maskwise.folders import sweep, write_folder
from maskwise.keys import fold
from maskwise.models import without_advice
from maskwise.objectives import Objective, Outcome
from maskwise.training import wrapping
from maskwise.training.arms import Arms
from maskwise.training.data import Step
from maskwise.training.learners import Agree
from maskwise.training.optim import Optimizers, load_state, state_of
from maskwise.training.settings import TrainingSettings
from maskwise.training.states import State, States, Totals, changes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Result = TypeVar("Result")
WEIGHTS, OPTIMIZERS = "model.safetensors", "optimizers.safetensors"
LEARNED = "learners.safetensors"

ROUND = 2.0**24
"""Sums over ranks are rounded to multiples of 1 / ROUND: another order of addition then shows only
at a border.
"""

FREE = {
    "log_every",
    "eval_every",
    "save_every",
    "keep",
    "keep_best",
    "on_nan",
    "trackers",
    "accumulate",
    "precision",
    "activation_checkpointing",
    "compile",
    "shard",
    "workers",
}
"""Settings that change no result, or its last bits only; and what to do where a run cannot go on.
"""


class Update(NamedTuple):
    """One update of the weights, as this rank saw it.

    Attributes:
        losses: the sum of losses of each micro-batch; they stay on the device until a line is
            logged.
        targets: their number.
        counted: what their sum is divided by (``Step.counted``).
        norm: of the gradient, before clipping; it stays on the device too.
        rate: the learning rate.
        asked: whether any rank was asked to end.
    """

    losses: list[Tensor]
    targets: int
    counted: int
    norm: Tensor
    rate: float
    asked: bool


class Engine:
    """An objective, ready to be trained, where it stopped if it was stopped.

    Args:
        objective: what is trained; it is moved to the device.
        settings: see ``TrainingSettings``.
        folder: where ``resume/`` lies; None keeps nothing.

    Attributes:
        rank, ranks, device: of this process.
        start: updates done before; 0 for a new run.
        totals: of these updates.
        learned: tensors of what learns beside the model, after these updates.
        states: the states to resume from; None where none are kept.

    Raises:
        MaskwiseError: a batch size that ranks and micro-batches do not divide; nothing to train;
            states of another run; see also ``new_accelerator``.
    """

    def __init__(
        self, objective: Objective, settings: TrainingSettings, folder: Path | None = None
    ):
        self.objective, self.settings, self.folder = objective, settings, folder
        arms = objective.names if isinstance(objective, Arms) else ()
        self.accelerator = new_accelerator(settings, folder, partial=bool(arms))
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.device, self.first = self.accelerator.device, self.accelerator.is_main_process
        if settings.batch_size < self.ranks:
            got = f"batch_size {settings.batch_size} for {self.ranks} processes"
            what, do = (
                "more processes than rows in a batch",
                "raise training.batch_size, or start fewer processes",
            )
            raise MaskwiseError(what, got=got, do=do)
        if settings.batch_size % (settings.accumulate * self.ranks):
            raise MaskwiseError(
                "batch_size must be a multiple of accumulate × processes",
                got=f"{settings.batch_size} for {settings.accumulate} × {self.ranks}",
            )
        # What the hosts say to each other must not wait for their accelerators.
        apart = self.ranks > 1 and self.device.type != "cpu"
        self.hosts = dist.new_group(backend="gloo") if apart else None
        self.sharded = wrapping.asked_to_shard(settings, self.ranks)
        if self.sharded and arms:
            what = (
                "training.shard takes one objective: probes of several would need all weights "
                "at once"
            )
            raise MaskwiseError(
                what, got=f"{len(arms)}", do="leave it out (every process keeps a copy)"
            )
        objective.to(self.device)
        if settings.freeze == "encoder":
            # Before there are optimisers: what is frozen has no gradient, state or weight decay. An
            # output matrix that is tied to the embeddings is frozen with them; its bias is the
            # head's, and learns.
            encoder_of(objective.model).requires_grad_(False)
            if not any(parameter.requires_grad for parameter in objective.parameters()):
                got = type(objective.model).__name__
                raise MaskwiseError(
                    "nothing is left to train", got=got, do="set training.freeze: none"
                )
        wrapping.wrap(objective, settings, self.accelerator.autocast)
        if folder and self.first:
            sweep(folder)
        kept = folder and settings.save_every
        self.states = States(folder / "resume", keep=settings.keep) if folder and kept else None
        state = self.states.newest(self.say) if self.states else None
        if state is not None:
            self._load_weights(state)
        if self.sharded:
            self.wrapped: Any = wrapping.Sharded(objective, self.device, self.ranks)
        else:
            self.wrapped = self.accelerator.prepare(objective)
        self.optimizers = Optimizers(objective, settings)
        self.start, self.totals, self.learned = 0, Totals(), dict[str, Tensor]()
        if state is not None:
            self._load_rest(state)

    # Steps
    # ------------------------------------------------------------------------------------------------------

    def update(
        self, step: Step, observe: Callable[[Any, Outcome], None], *, asked: bool = False
    ) -> Update:
        """One update: gradients of (losses of all ranks and micro-batches) / (number of targets,
        see ``Step.counted``).

        Args:
            observe: is shown each micro-batch, with what it cost.
            asked: whether this rank was asked to end. All ranks must hear of it at the same step.
        """
        if self.states:
            self.states.check()
        torch.manual_seed(fold(self.settings.seed, step.number, self.rank, 0xD0))
        self.objective.train()
        if self.settings.freeze == "encoder":
            # Dropout protects no frozen weight, and the head would learn to read states that it
            # never sees again.
            encoder_of(self.objective.model).eval()
        counts = {"targets": step.targets, "counted": step.counted}
        sums = self.summed({**counts, "asked": asked})  # before any backward pass
        counted = max(1.0, sums["counted"])
        rate = self.optimizers.set_rate(step.number)
        losses = []
        for number, batch in enumerate(step.batches):
            last = number == len(step.batches) - 1
            # Gradients are added up over ranks with the last micro-batch of a step.
            if self.sharded:
                self.wrapped.set_requires_gradient_sync(last)
            alone = not (last or self.sharded)
            with self.accelerator.no_sync(self.wrapped) if alone else contextlib.nullcontext():
                with self.accelerator.autocast():
                    outcome: Outcome = self.wrapped(batch)
                # DDP averages gradients over ranks, so a rank's sum is multiplied by their number
                # first.
                self.accelerator.backward(outcome.loss * (self.ranks / counted))
            observe(batch, outcome)
            losses.append(outcome.loss.detach())
        norm = self.accelerator.clip_grad_norm_(
            self.objective.parameters(), self.settings.clip or math.inf
        )
        assert norm is not None
        norm = wrapping.whole(norm)
        if sums["targets"] > 0:  # a step without any target counts as a step and changes nothing
            sound = None
            # whether the gradient and the losses of all ranks are finite
            if self.settings.on_nan == "skip":
                sound = torch.isfinite(torch.stack([norm, *losses])).all()
                if self.ranks > 1:
                    sound = self.accelerator.reduce(sound.float()) == self.ranks
            self.optimizers.step(sound)
        self.optimizers.zero_grad()
        return Update(losses, step.targets, step.counted, norm, rate, sums["asked"] > 0)

    def evaluated(self, function: Callable[[], Result]) -> Result:
        """What a function gives while the objective is judged (``Objective.judging``); every rank
        calls this.
        """
        with self.objective.judging():
            result = self.wrapped.within(function) if self.sharded else function()
        if self.sharded:  # what is in no block stays whole until it is told otherwise
            self.wrapped.reshard()
        return result

    def summed(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums added up over all ranks, in float64."""
        if self.ranks == 1:
            return dict(sums)
        names = sorted(sums)
        tensor = torch.tensor([sums[n] for n in names], dtype=torch.float64)
        dist.all_reduce(tensor, group=self.hosts)
        return dict(zip(names, tensor.tolist(), strict=True))

    def say(self, text: str) -> None:
        """A line on stderr, once for all ranks."""
        if self.first:
            Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)

    def finish(self) -> None:
        """Wait for all ranks and for what is being written, and close the trackers."""
        self.wait()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    # States to resume from
    # --------------------------------------------------------------------------------------

    def save(self, step: int, totals: Totals, learned: Mapping[str, Tensor]) -> None:
        """Write a state in the background.

        Args:
            step: updates done.
            learned: tensors of what learns beside the model.

        Raises:
            MaskwiseError: the state before could not be written.
        """
        assert self.states
        files = {
            WEIGHTS: wrapping.gathered(wrapping.distinct(self.objective), keep=self.first),
            OPTIMIZERS: wrapping.gathered(state_of(self.optimizers.members), keep=self.first),
        }
        if learned:
            files[LEARNED] = dict(learned)
        if self.first:
            state = State(
                step=step, settings=self._settings(), bits=self._bits(), **totals.model_dump()
            )
            self.states.save(state, files)

    def wait(self) -> None:
        """Every rank waits until the states are written.

        Raises:
            MaskwiseError: one could not be written.
        """
        if self.states:
            self.states.wait()
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Let a state that is being written become whole, however the training ended, and the model
        be as it was.
        """
        wrapping.unwrap(self.objective)
        if self.states:
            self.states.close()

    def _load_weights(self, state: State) -> None:
        """
        Raises:
            MaskwiseError: a state of a run with other settings, or of another model.
        """
        assert self.states
        path = self.states.path(state.step)
        self._check(path, state)
        weights = load_file(path / WEIGHTS)
        own = wrapping.distinct(self.objective)
        if {name: value.shape for name, value in weights.items()} != {
            name: value.shape for name, value in own.items()
        }:
            raise MaskwiseError(f"{path} is of another model", do="give a new folder")
        wrapping.load_weights(self.objective, weights)

    def _load_rest(self, state: State) -> None:
        assert self.states
        path = self.states.path(state.step)
        load_state(self.optimizers.members, load_file(path / OPTIMIZERS))
        self.learned = load_file(path / LEARNED) if (path / LEARNED).is_file() else {}
        self.start = state.step
        self.totals = Totals(**state.model_dump(include=set(Totals.model_fields)))

    def _check(self, path: Path, state: State) -> None:
        """Refuse a state of another run; say so where it is the same in all but the last bits."""
        # A setting that an older state does not know had its default.
        before = {**TrainingSettings().model_dump(mode="json"), **state.settings}
        changed = changes(before, self._settings())
        if changed:
            what = f"{path} is of a run with other settings"
            raise MaskwiseError(what, got=changed, do="give a new folder")
        changed = changes(state.bits, self._bits())
        if changed:
            self.say(
                f"resuming from {path} with {changed}: the same run but for rounding and dropout"
            )

    def _settings(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude=FREE)

    def _bits(self) -> dict[str, Any]:
        config = getattr(getattr(self.objective, "model", None), "config", None)
        return {
            "threads": torch.get_num_threads(),
            "processes": self.ranks,
            "accumulate": self.settings.accumulate,
            "precision": self.accelerator.mixed_precision,
            "device": self.device.type,
            "attention": getattr(config, "_attn_implementation", None),
            "torch": torch.__version__,
            "compile": self.settings.compile or None,
        }


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    card: str | None = None,
    heads: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an ordinary transformers folder, whole or not at all, with a manifest.

    The first rank writes; where the weights are shared out among ranks, every rank calls this.

    Args:
        card: the text of its README.md.
        heads: what was trained beside the model; they go into ``heads.safetensors``.

    Raises:
        MaskwiseError: it cannot be written.
    """

    weights = None
    if any(map(wrapping.is_sharded, model.parameters())):
        weights = wrapping.gathered(model.state_dict(), keep=not rank_here())
    if rank_here():
        return

    def fill(target: Path) -> None:
        with without_advice():  # a bar for every file
            model.save_pretrained(target, state_dict=weights)
        # How the tokenizer was loaded (with or without a network) is no part of it, and would
        # change the bytes.
        for name in ("local_files_only", "is_local"):
            tokenizer.init_kwargs.pop(name, None)
        shared = copy.copy(tokenizer)
        # where positions end, truncation=True is to cut
        if (room := most_tokens(model.config)) < UNLIMITED:
            shared.model_max_length = room
        shared.save_pretrained(target)
        if card:
            (target / "README.md").write_text(card, encoding="utf-8")
        if heads:
            save_file(
                {name: t.cpu().contiguous() for name, t in heads.items()},
                target / "heads.safetensors",
            )

    write_folder(folder, fill)


def new_accelerator(
    settings: TrainingSettings, folder: Path | None, *, partial: bool = False
) -> Accelerator:
    """An ``Accelerator`` for one run, with its trackers started.

    Args:
        partial: a batch may use only a part of the parameters (one of several heads).

    Raises:
        MaskwiseError: a tracker that is unknown, not installed, or has no folder to write to;
            processes without a launcher.
    """
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if fast_bf16() else "no"
    trackers = list(settings.trackers)
    for name in trackers:
        if name not in LoggerType.list():
            raise unknown_name("tracker", name, set(LoggerType.list()) - {"all"})
    if trackers and folder is None:
        raise MaskwiseError(
            "trackers need a folder to write to", got=", ".join(trackers), do="give a folder"
        )
    # Accelerate keeps one state per process and refuses another precision; here each run has its
    # own.
    AcceleratorState._reset_state()
    # Not told so, Accelerate does not distribute on CPUs: every rank would train alone, unnoticed.
    cpu = not torch.accelerator.is_available()
    with wrapping.without_fsdp_of_accelerate():
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=cpu,
            log_with=trackers or None,
            project_dir=folder,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
            if partial
            else None,
            # Losses are divided here, once: accelerate launch must not ask for it again in the
            # environment.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    if accelerator.num_processes != ranks_here():
        got = f"WORLD_SIZE={ranks_here()}, {accelerator.num_processes} connected"
        raise MaskwiseError(
            "the processes do not know each other", got=got, do="start them with torchrun"
        )
    lacking = set(trackers) - {"all"} - {getattr(t, "value", str(t)) for t in accelerator.log_with}
    if lacking:
        do = f"install {min(lacking)}, or leave it out of trackers"
        raise MaskwiseError(f"tracker {min(lacking)!r} is not installed", do=do)
    if trackers:
        accelerator.init_trackers(
            "maskwise", config={k: str(v) for k, v in settings.model_dump().items()}
        )
    return accelerator


def agreement(accelerator: Accelerator) -> Agree:
    """The function by which ranks agree on sums of any shape; it gives float64 on the host, where
    it waits for them.
    """

    def agree(own: Tensor) -> Tensor:
        if accelerator.num_processes > 1:  # on devices that have float64: Apple's GPUs are alone
            own = broadcast(accelerator.reduce(own.to(accelerator.device).double()))
        return torch.round(own.cpu().double() * ROUND) / ROUND

    return agree


def best_device() -> torch.device:
    """Where a training would run: the accelerator, if there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def fast_bf16() -> bool:
    """Does the hardware train faster in bf16 than in float32? A processor does with AMX only: with
    AVX-512's bf16 alone a step of a small encoder takes 1.6 times as long as in float32
    (``benchmarks/quick_step.py``).
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def leave() -> None:
    """End a program that trained on several ranks; otherwise gloo can abort at exit, after correct
    results.

    A barrier lets the last messages arrive. A model that is still wrapped in DDP keeps the group's
    threads beyond the group, and they race with the interpreter's end: let go of it first (``del
    trainer``).
    """
    if dist.is_initialized():
        wrapping.forget_meshes()
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
