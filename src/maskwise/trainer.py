"""The Hugging Face ``Trainer``, masking on the device and weighing every target alike.

    trainer = MaskingTrainer(model, args, masker=Masker(tokenizer, policy="whole-word"),
    train_dataset=rows) trainer.train()

Why not ``MaskingCollator`` in the stock ``Trainer``? That works, but masks are then made before the
step they are for is known; and the stock ``Trainer`` takes every model that accepts ``**kwargs``
for one that divides its loss by ``num_items_in_batch``. Most masked language models accept it and
ignore it: with 4 × accumulation their loss and gradient come out 4 times too large, on 2 ranks
twice. Here the loss is the sum over targets divided by the number of targets of all micro-batches
and ranks: the same for 16 rows, 4 × 4, 2 ranks × 8.

Cost: the vocabulary head of an encoder runs on the targets alone, but for evaluations whose metrics
    want the logits of
every position. Documents of packed rows (``example_id`` (B, L)) are read one by one where the
model's family allows it.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainingArguments

from maskwise.errors import MaskwiseError
from maskwise.families import encoder_of, prediction_head
from maskwise.masking import IGNORE, MaskedBatch, Masker, MaskingCollator, Vocabulary, gather
from maskwise.objectives import Outcome
from maskwise.objectives.base import model_inputs, weighted
from maskwise.training.checkpoint import LEARNED
from maskwise.training.engine import agreement
from maskwise.training.learners import Point, learners_of, restore, states


class MaskingTrainer(Trainer):
    """A ``Trainer`` of masked (or denoising) language models over unmasked rows.

    Rows hold ``input_ids``, ``example_id`` and the layers that the policy needs (``word_ids``, …).
    Masks are a function of (seed, epoch, example id), so batch size, ranks, workers and resuming do
    not move them, and schedules act at the exact step. Datasets without a length get masks by the
    step instead of the epoch.

    >>> import maskwise as mw
    >>> from transformers import BertConfig, BertForMaskedLM, TrainingArguments
    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    >>> model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **size))
    >>> arguments = TrainingArguments("out", max_steps=2, report_to="none", disable_tqdm=True)
    >>> rows = mw.encode(tokenizer, ["the cat sat on the mat"] * 16)
    >>> masker = mw.Masker(tokenizer, policy="whole-word", ratio=0.3)
    >>> trainer = MaskingTrainer(model, arguments, masker=masker, train_dataset=rows)
    >>> trainer.train().global_step
    {...
    2

    Args:
        model, args: as for ``Trainer``; ``args.remove_unused_columns`` counts as False.
        masker: what masks, in training.
        evaluation_masker: what masks in evaluation: at step 0 and epoch 0 always, so that losses
            can be compared. None: ``masker``, whose schedule then stands at its start. The
            evaluation's loss is the mean over all targets.
        data_collator: rows to one dict of (B, L) tensors, unmasked; None pads.
        more: as for ``Trainer``.

    Raises:
        MaskwiseError: a collator that masks, or a ``compute_loss_func``: both would be done twice.
    """

    loss_is_scaled_for_ga = True  # read by Trainer.training_step

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        masker: Masker,
        evaluation_masker: Masker | None = None,
        data_collator: Any = None,
        **more: Any,
    ):
        if isinstance(data_collator, MaskingCollator):
            do = "leave data_collator out, or use it with transformers.Trainer"
            raise MaskwiseError("MaskingTrainer masks by itself", got="a MaskingCollator", do=do)
        if more.get("compute_loss_func") is not None:
            raise MaskwiseError(
                "MaskingTrainer computes the loss by itself",
                got="compute_loss_func",
                do="leave it out",
            )
        self._learners, self._learnt = learners_of(masker), -1
        self.tells_right = False  # a policy that learns from right answers sets it
        for learner in self._learners.values():
            learner.meet(self)
        args = copy.copy(args) if args else TrainingArguments()
        args.remove_unused_columns = False  # example_id and layers are read here, not by the model
        self.masker, self.evaluation_masker = masker, evaluation_masker or masker
        self._shown: deque[MaskedBatch] = deque()
        self._evaluated = (0.0, 0)
        super().__init__(
            model, args, data_collator=data_collator or RowCollator(masker.vocabulary), **more
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one update, masked for its very step, and all ranks' number of
        targets.
        """
        self._learn()
        epoch = int(self.state.epoch or 0) if hasattr(self.train_dataset, "__len__") else None
        when = {"step": self.state.global_step, "total_steps": self.state.max_steps, "epoch": epoch}
        batches = [
            self._mask(self.masker, rows, **when) for rows in islice(epoch_iterator, num_batches)
        ]
        targets = torch.zeros((), dtype=torch.int64, device=device)
        for batch in batches:
            targets += counted(batch).sum()
        return batches, self.accelerator.reduce(targets)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This rank's share of the mean loss over ``num_items_in_batch`` targets, times the number
        of ranks.

        DDP averages over ranks; the factor makes a sum of it.
        """
        losses, where, right, outputs = self._token_losses(model, inputs, everywhere=return_outputs)
        if self._shown:
            batch = self._shown.popleft()
            outcome = Outcome(losses.sum(), torch.tensor(len(where)), losses.detach(), where, right)
            for learner in self._learners.values():
                learner.observe(batch, outcome)
        if num_items_in_batch is None:
            loss = losses.sum() / max(1, losses.numel())
        else:
            targets = torch.as_tensor(num_items_in_batch, device=losses.device).clamp(min=1)
            loss = losses.sum() * self.accelerator.num_processes / targets
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """One batch of evaluation, under masks that never change."""
        batch = self._mask(self.evaluation_masker, inputs, step=0, total_steps=1, epoch=0)
        labels = batch["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            losses, where, _, outputs = self._token_losses(
                model, batch, everywhere=not prediction_loss_only
            )
        row = where[:, 0]
        by_row = torch.zeros(len(labels), device=losses.device).index_add(0, row, losses)
        # Gathered so that rows repeated to fill the last batch count once.
        sums, counts = self.accelerator.gather_for_metrics((by_row, counted(batch)))
        self._evaluated = (
            self._evaluated[0] + float(sums.sum()),
            self._evaluated[1] + int(counts.sum()),
        )
        loss = losses.sum() / max(1, losses.numel())
        if prediction_loss_only:
            return loss, None, None
        config: Any = getattr(self.model, "config", None)
        hidden = [*(ignore_keys or getattr(config, "keys_to_ignore_at_inference", [])), "loss"]
        logits = tuple(value for name, value in outputs.items() if name not in hidden)
        return loss, logits[0] if len(logits) == 1 else logits, labels

    def evaluation_loop(self, *args: Any, **more: Any) -> Any:
        """As in ``Trainer``, but the loss is the mean over targets, not over batches."""
        self._evaluated = (0.0, 0)
        output = super().evaluation_loop(*args, **more)
        prefix = more.get("metric_key_prefix", "eval")
        total, targets = self._evaluated
        means = {"loss": total / max(1, targets), "targets": targets}
        named = {f"{prefix}_{name}": value for name, value in means.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def _learn(self) -> None:
        """Let what learns from the losses (``pos-weighted``) take in the last update, once."""
        if self._learnt < self.state.global_step:
            self._learnt = self.state.global_step
            now = Point(self.state.global_step, self.state.max_steps, agreement(self.accelerator))
            for learner in self._learners.values():
                learner.after(now)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._learners:
            self._learn()
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            # on every rank: what a rank has not told yet goes into it
            learned = states(self._learners)
            if self.args.should_save:
                save_file(learned, folder / LEARNED)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._learners:
            restore(self._learners, load_file(Path(resume_from_checkpoint) / LEARNED))
            self._learnt = int(Path(resume_from_checkpoint).name.rpartition("-")[2])

    def _mask(self, masker: Masker, rows: Any, **when: Any) -> dict[str, Tensor]:
        batch = masker(self._prepare_inputs(rows), **when)
        if (
            self._learners
            and masker is self.masker
            and self.model is not None
            and self.model.training
        ):
            self._shown.append(batch)
        weight = {}
        if batch.loss_weight is not None:  # masked diffusion
            eligible = batch.source.tensor("eligible").sum(1).to(batch.labels.device)
            weight = {"loss_weight": batch.loss_weight, "counted": eligible}
        inputs: dict[str, Any] = {name: batch[name] for name in batch.keys()}  # noqa: SIM118 (no dict)
        if isinstance(self.model, PreTrainedModel) and not self._decodes:
            inputs = model_inputs(self.model, batch)
        return {**inputs, "labels": batch.labels, **weight}

    @property
    def _decodes(self) -> bool:
        return bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))

    def _token_losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, everywhere: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """Loss (M,) float32 and place (M, 2) of every target, whether it is answered rightly, and
        the model's outputs.

        Args:
            everywhere: whether logits of every position are wanted, or those of the targets will
                do.
        """
        inputs = dict(inputs)
        weight, labels = inputs.pop("loss_weight", None), inputs["labels"]
        inputs.pop("counted", None)
        if not self._decodes:
            # a decoder reads them; any other model would only compute its own loss
            del inputs["labels"]
        where = (labels != IGNORE).nonzero()
        row, column = where.unbind(1)
        with (
            contextlib.nullcontext()
            if everywhere or self._decodes
            else states_at(self.model, row, column) as few
        ):
            outputs = model(**inputs)
        logits = outputs["logits"] if few else outputs["logits"][row, column]
        losses = cross_entropy(
            logits.float(),
            labels[row, column],
            reduction="none",
            label_smoothing=self.args.label_smoothing_factor,
        )
        right = logits.argmax(-1) == labels[row, column] if self.tells_right else None
        return weighted(losses, weight, row, column), where, right, outputs


def counted(batch: Mapping[str, Any]) -> Tensor:
    """(B,) int64: what the losses of each row are divided by: its targets; its eligible tokens in
    masked diffusion.
    """
    own = batch.get("counted")
    return (batch["labels"] != IGNORE).sum(1) if own is None else own


@contextlib.contextmanager
def states_at(model: Any, row: Tensor, column: Tensor) -> Iterator[bool]:
    """Let a model's head see the hidden states (M, H) at some places alone, and give logits (M, V)
    for them.

    The model is called as a whole, so that whatever distributes it sees one forward pass. Yields
    whether it is so: the head of a family that maskwise does not know may do more than look at each
    place by itself.
    """
    known = isinstance(model, PreTrainedModel) and prediction_head(model) is not None
    if not known:
        yield False
        return

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[row, column]
        return output

    hook = encoder_of(model).register_forward_hook(keep)
    try:
        yield True
    finally:
        hook.remove()


class RowCollator:
    """Rows to one dict of padded (B, L) tensors with their layers, unmasked; may run in workers.

    Args:
        vocabulary: of the masker.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = gather(rows, self.vocabulary)
        names = (
            batch.example_id
            if batch.plan is None
            else batch.example_id[batch.piece].reshape(batch.shape)
        )
        columns = {name: batch.tensor(name) for name in ("input_ids", *batch.layers, *batch.extras)}
        return {
            **columns,
            "attention_mask": batch.tensor("present").long(),
            "example_id": torch.from_numpy(names),
            "special_tokens_mask": (~batch.tensor("content")).long(),
        }
