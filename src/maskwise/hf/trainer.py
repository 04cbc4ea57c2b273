"""A Hugging Face ``Trainer`` that masks batches, and gives all targets the same weight.

    trainer = MaskingTrainer(model, args, masker=Masker(tokenizer), train_dataset=rows)
    trainer.train()

``MaskingCollator`` also works with transformers' ``Trainer``, but batches are then collated before
their step is known. Moreover, ``Trainer`` assumes that a model with ``**kwargs`` divides the loss
by ``num_items_in_batch``. Most masked language models ignore this argument, so loss and gradient
are 4 times too large with 4 accumulation steps. ``MaskingTrainer`` divides the sum over targets by
the number of targets on all ranks, so 16 rows, 4 × 4 rows, and 2 ranks × 8 rows have equal losses.

The loss is that of an objective (``maskwise.objectives``), as in ``maskwise pretrain``. During a
call of the model, its forward method is that of the objective, so DDP and FSDP see one forward pass
that includes the loss. A user's own model is called as a whole, and so is any model if metrics need
all logits.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments

from maskwise.base.errors import MaskwiseError
from maskwise.hf.packed_collator import PackedCollator
from maskwise.masking import IGNORE, MaskedBatch, Masker, MaskingCollator
from maskwise.masking.collator import RowCollator
from maskwise.masking.moment import warn_of_packed
from maskwise.models.families import (
    Inputs,
    check_fit,
    check_positions,
    patched,
    picked,
    positions_of,
    prediction_head,
    require_separable,
)
from maskwise.models.loading import architectures
from maskwise.objectives.base import Loss, model_inputs, weighted
from maskwise.objectives.denoising import predicting
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.text.own_tokenizer import other_ids
from maskwise.training.checkpoint import LEARNED
from maskwise.training.data import learners_of
from maskwise.training.engine import Agreement
from maskwise.training.learners import Learners, Progress
from maskwise.training.loop import Exchange, restore, states

if TYPE_CHECKING:
    from torch.nn.modules.module import _IncompatibleKeys


Learnt: TypeAlias = tuple[Masker, Learners, int]
"""A masker whose policy learns, its learners, and the update from which they learned last."""


class MaskingTrainer(Trainer):
    """A ``Trainer`` for masked or denoising language models, which masks the rows of a data set.

    Rows have ``input_ids``, ``example_id`` and the annotation layers that the masking policy needs
    (``word_ids``, …). Masks depend only on seed, example id and epoch (or step, if the data set has
    no length). A masking schedule uses the step in which a batch is trained.

    >>> import maskwise as mw
    >>> from transformers import BertConfig, BertForMaskedLM, TrainingArguments
    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **size))
    >>> arguments = TrainingArguments("out", max_steps=2, report_to="none", disable_tqdm=True)
    >>> rows = mw.encode(tokenizer, ["the cat sat on the mat"] * 16)
    >>> masker = mw.Masker(tokenizer, policy="whole-word", ratio=0.3)
    >>> trainer = MaskingTrainer(model, arguments, masker=masker, train_dataset=rows)
    >>> trainer.train().global_step
    {...
    2

    Args:
        model, args: the same as for ``Trainer``, but ``args.remove_unused_columns`` is set to
            False, and ``args.data_seed`` to ``args.seed`` if it is None.
        masker: the masker for training. If its policy learns, the trainer has a copy of its own,
            ``trainer.masker``.
        evaluation_masker: the masker for evaluation; default: ``masker``, without what its policy
            learns. All evaluations use the masks of step 0 and epoch 0, so that their losses are
            comparable.
        data_collator: makes unmasked (B, L) tensors from rows; default: ``RowCollator`` (pads).
        packing: whether the model reads the rows of a batch as fewer rows of several documents,
            almost without padding. Masks are the same, and losses up to rounding. Evaluations with
            metrics that need logits read the rows as they are.
        more: further arguments of ``Trainer``.

    Raises:
        MaskwiseError: ``data_collator`` masks, ``compute_loss_func`` is given, the model is no
            masked language model, the corruption does not fit, the attention ignores soft caps, one
            process has several GPUs, or ``packing`` is True and the model cannot keep documents
            apart, or rows are grouped by length.
    """

    # ``Trainer`` declares that the model may be None.
    model: nn.Module

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        masker: Masker,
        evaluation_masker: Masker | None = None,
        data_collator: Any = None,
        packing: bool = False,
        **more: Any,
    ):
        ours = isinstance(data_collator, MaskingCollator | PackedCollator)
        # Transformers' collators for language modelling have this field.
        if ours or hasattr(data_collator, "mlm"):
            raise MaskwiseError(
                "MaskingTrainer masks the rows itself",
                got=f"a {type(data_collator).__name__}",
                do="leave data_collator out, or use it with transformers.Trainer",
            )
        for each in (masker, evaluation_masker or masker):
            if not isinstance(each, Masker):
                raise MaskwiseError(
                    "MaskingTrainer needs a masker",
                    got=type(each).__name__,
                    do="pass masker=Masker(tokenizer)",
                )
        if more.get("compute_loss_func") is not None:
            what = "MaskingTrainer computes the loss itself"
            raise MaskwiseError(what, got="compute_loss_func", do="leave it out")
        # What a policy learns belongs to one run, and evaluations do not use it: their losses would
        # otherwise be of other masks each time.
        if masker.policy.learns:
            evaluation_masker = evaluation_masker or copy.deepcopy(masker)
            masker = copy.deepcopy(masker)
        self._learners = learners_of(masker)
        # The step for which ``_learn`` was last called.
        self._learned = -1
        args = copy.copy(args) if args else TrainingArguments()
        # Trainer must not drop example_id and the layers, because the masker reads them.
        args.remove_unused_columns = False
        # The order of rows must not depend on torch's seed when training starts or resumes.
        if args.data_seed is None:
            args.data_seed = args.seed
        self.masker = masker
        self.packing = packing
        self.evaluation_masker = evaluation_masker or masker
        # The masker and its learners at the start of a training, and of its first attempt.
        self._fresh: Learnt | None = None
        self._begun: Learnt | None = None
        # The number of targets since the last logged loss; None before the first update.
        self._recent: Tensor | None = None
        self._warned_of_nothing = False
        self._loss_sum = 0.0
        self._targets = 0
        # The names of weights that were missing in the last loaded file.
        self._missing = set[str]()
        collator = data_collator or RowCollator(masker.vocabulary)
        super().__init__(model, args, data_collator=collator, **more)
        # With False, which ESM has, ``training_step`` would divide the loss by the number of
        # micro-batches.
        self.model_accepts_loss_kwargs = True
        require_language_model(self.model)
        if self.args.n_gpu > 1:
            what = "MaskingTrainer needs a process for each GPU, but this process has several GPUs"
            raise MaskwiseError(what, do="run it under torchrun, or set CUDA_VISIBLE_DEVICES=0")
        for each in (masker, self.evaluation_masker):
            self._check_fit(each)
        self._check_attention()
        if packing:
            self._check_packing()
        self._read_model()
        if self.model_init is not None and self._learners:
            self._fresh = self._learnt()

    def _read_model(self) -> None:
        """Make the objectives of the model, which ``model_init`` may have replaced."""
        network = self._network
        self._room = positions_of(network) if network else None
        self.whole = WholeModel(self.model, self.masker.vocabulary.size)
        self.objective: MaskedLanguageModelling = self.whole
        if network is not None and prediction_head(network) is not None:
            self.objective = InFewerRows(network) if self.packing else predicting(network)
        for objective in (self.whole, self.objective):
            objective.smoothing = self.args.label_smoothing_factor
            for learner in self._learners.values():
                learner.configure(objective)

    def _check_packing(self) -> None:
        """Raise if documents cannot share rows."""
        if self._network is None or prediction_head(self._network) is None:
            raise MaskwiseError(
                "packing needs a model of transformers, whose attention keeps documents apart",
                got=type(self.model).__name__,
                do="leave packing out",
            )
        require_separable(self._network.config, use="packing", do="leave packing out")
        if self.args.train_sampling_strategy == "group_by_length":
            raise MaskwiseError(
                "rows of similar lengths need no packing",
                got="packing=True and train_sampling_strategy group_by_length",
                do="leave one of them out",
            )

    def _check_fit(self, masker: Masker) -> None:
        """Raise if the masker's labels do not fit the model, because training would be wrong."""
        if hasattr(self._config, "vocab_size"):
            do = "call model.resize_token_embeddings(len(tokenizer))"
            check_fit(self._config, masker.vocabulary.size, do=do)
        # A processor of several kinds of inputs has no vocabulary of its own.
        read: dict[str, int] = getattr(self.processing_class, "get_vocab", dict)()
        differing = other_ids(read, masker.vocabulary.by_name) if read else None
        if differing:
            raise MaskwiseError(
                "processing_class has another vocabulary than the tokenizer of the masker",
                got=differing,
                do="make both from one tokenizer: Masker(tokenizer), processing_class=tokenizer",
            )
        name = type(self.model).__name__
        fits = self._decodes == (masker.corruption.writes is not None)
        if fits and not masker.corruption.detects:
            return
        if self._decodes:
            what = f"{name} has a decoder, so its labels must be a text, but these are not"
            fitting = "infill"
            if masker.vocabulary.sentinels:
                fitting = "t5"
        elif isinstance(self.model, PreTrainedModel):
            what = f"{name} has no decoder, so its labels must be tokens in place"
            fitting = "bert"
        else:
            return
        do = f'give masker=Masker(tokenizer, corruption="{fitting}")'
        raise MaskwiseError(what, got=f"corruption {masker.corruption}", do=do)

    def _check_attention(self) -> None:
        """Raise if transformers' attention ignores the soft caps of T5Gemma."""
        config = self._config
        if getattr(config, "model_type", None) != "t5gemma":
            return
        # Transformers before 5.21 chooses ``sdpa``, and newer versions refuse it.
        capped = config.decoder.attn_logit_softcapping
        if capped and config._attn_implementation == "sdpa":
            raise MaskwiseError(
                "this attention ignores the soft caps of T5Gemma",
                got="sdpa",
                allowed="eager",
                do='load the model with attn_implementation="eager"',
            )

    def train(self, *args: Any, **more: Any) -> Any:
        """Train as ``Trainer`` does, and undo maskwise's changes of the model at the end."""
        # Training starts at step 0. If it resumes, ``_load_from_checkpoint`` sets another step.
        self._learned = -1
        # ``model_init`` makes a new model, for which the policy has learned nothing.
        if self._fresh is not None:
            self._return_to(self._fresh)
        self._begun = None
        # ``Trainer`` keeps the mode and the forward method that training has left.
        with patched(self.model, names=(), trained=False):
            return super().train(*args, **more)

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: TrainingArguments | None = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train once. ``auto_find_batch_size`` repeats this with smaller batches."""
        if self._begun is not None:
            self._return_to(self._begun)
        elif self.args.auto_find_batch_size and self._learners:
            self._begun = self._learnt()
        self._read_model()
        self._recent = None
        more = (resume_from_checkpoint, trial, ignore_keys_for_eval)
        return super()._inner_training_loop(batch_size, args, *more)

    def _learnt(self) -> Learnt:
        """Copy the masker, its learners, and the number of the update from which they learned."""
        # Neither the trainer nor what learners only read is copied.
        shared = (self, self.model, self.objective, self.whole, self.masker.vocabulary)
        each = self.masker, self._learners, self._learned
        return copy.deepcopy(each, {id(part): part for part in shared})

    def _return_to(self, before: Learnt) -> None:
        """Forget what the policy has learned since ``before``."""
        self.masker, self._learners, self._learned = before
        # The next return must find it unchanged.
        self.masker, self._learners, self._learned = self._learnt()

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        """Log as ``Trainer`` does, and warn once if a logged loss is of no target."""
        if "loss" in logs and self._recent is not None:
            if not self._warned_of_nothing and not int(self._recent):
                self._warn_of_nothing()
            self._recent = None
        super().log(logs, *args, **more)

    def _warn_of_nothing(self) -> None:
        """Warn that training masked nothing, except if its schedule is at 0 for a while."""
        when = max(0, self.state.global_step - 1), self.state.max_steps
        ratio = self.masker.ratio
        if ratio.varies and not ratio(*when):
            return
        self._warned_of_nothing = True
        why = why_nothing(self.masker, *when)
        warnings.warn(
            f"the logged loss is of no target, because training masked nothing: {why}",
            stacklevel=3,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[MaskedBatch], Tensor]:
        """Return the masked micro-batches of one update, and the number of targets on all ranks."""
        self._learn()
        # Datasets without a length have no epochs, so their masks depend on the step.
        epoch = None
        if hasattr(self.train_dataset, "__len__"):
            epoch = int(self.state.epoch or 0)
        when = {"step": self.state.global_step, "total_steps": self.state.max_steps, "epoch": epoch}
        batches = []
        for rows in islice(epoch_iterator, num_batches):
            batches.append(self._masked(self.masker, self._prepare_inputs(rows), **when))
        counted = sum(
            batch.targets if batch.counted is None else batch.counted for batch in batches
        )
        targets = torch.full((), counted, dtype=torch.int64, device=device)
        targets = self.accelerator.reduce(targets)
        self._recent = targets if self._recent is None else self._recent + targets
        return batches, targets

    def _loss(
        self, model: nn.Module, batch: MaskedBatch, *, outputs: bool = False
    ) -> tuple[Loss, Any]:
        """Return the losses of a batch, and if ``outputs``, what the whole model returns for it.

        ``model`` may be wrapped, as in DDP.
        """
        if outputs or self.objective is self.whole:
            returned = model(**self.whole.inputs(batch))
            return self.whole.of(returned, batch), returned
        inner = self.accelerator.unwrap_model(self.model)
        # DDP adds up gradients only if the wrapped model is called, and the objective calls parts.
        before = vars(inner).get("forward")
        inner.forward = self.objective.forward
        try:
            with self.accelerator.autocast():
                return model(batch), None
        finally:
            del inner.forward
            if before is not None:
                inner.forward = before

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the sum of this rank's losses, divided by the targets of the whole update."""
        found, outputs = self._loss(model, inputs, outputs=return_outputs)
        for learner in self._learners.values():
            learner.observe(inputs, found)
        loss = found.total
        if num_items_in_batch is None:
            loss = loss / found.divisor.clamp(min=1)
        else:
            targets = torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
            # DDP averages gradients over ranks. The number of ranks turns the average into a sum.
            loss = loss * self.accelerator.num_processes / targets
        if return_outputs:
            return loss, outputs
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Evaluate one batch with the masks of step 0."""
        rows = self._prepare_inputs(inputs)
        batch = self._masked(self.evaluation_masker, rows, step=0, total_steps=1, epoch=0)
        # ``evaluation_loop`` passes this dict to ``compute_metrics``.
        inputs["input_ids"] = batch.input_ids
        with torch.no_grad():
            found, outputs = self._loss(model, batch, outputs=not prediction_loss_only)
        assert found.each is not None and found.where is not None
        losses = weighted(found.each, batch.loss_weight, *found.where.unbind(1))
        loss_B = losses.new_zeros(len(batch.labels)).index_add(0, found.where[:, 0], losses)
        # Results are gathered by row, so that rows that only fill up the last batch are left out.
        sums, counts = self.accelerator.gather_for_metrics((loss_B, targets_of_rows(batch)))
        self._loss_sum += float(sums.sum())
        self._targets += int(counts.sum())
        loss = found.total / found.divisor.clamp(min=1)
        if prediction_loss_only:
            return loss, None, None
        hidden = ignore_keys or []
        if not hidden and hasattr(self._config, "keys_to_ignore_at_inference"):
            hidden = self._config.keys_to_ignore_at_inference
        left_out = {"loss", *hidden}
        if not isinstance(outputs, Mapping):
            outputs = {"logits": logits_of(outputs)}
        shown = tuple(value for name, value in outputs.items() if name not in left_out)
        if len(shown) == 1:
            return loss, shown[0], batch.labels
        return loss, shown, batch.labels

    def evaluation_loop(self, *args: Any, **more: Any) -> Any:
        """Evaluate as ``Trainer`` does, but report the mean loss over targets, not over batches."""
        self._loss_sum = 0.0
        self._targets = 0
        with patched(self.model, names=(), trained=False):
            output = super().evaluation_loop(*args, **more)
        prefix = more.get("metric_key_prefix", "eval")
        metrics = dict(output.metrics or {})
        # Without targets, the loss is NaN, because 0 would look like a perfect model.
        loss = math.nan
        if self._targets:
            loss = self._loss_sum / self._targets
        else:
            why = why_nothing(self.evaluation_masker, 0, 1)
            what = f"the evaluation masked nothing: {why}"
            warnings.warn(f"{what}; give evaluation_masker=…", stacklevel=2)
        metrics[f"{prefix}_loss"] = loss
        metrics[f"{prefix}_targets"] = self._targets
        return output._replace(metrics=metrics)

    def _learn(self, *, closing: bool = False) -> None:
        """Let policies that change during training learn from the last update, once per update.

        ``closing`` says whether a checkpoint is saved after this update.
        """
        step = self.state.global_step
        if self._learned >= step:
            return
        self._learned = step
        now = Progress(step, self.state.max_steps, closing)
        Exchange(Agreement(self.accelerator)).update(self._learners, now)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if not self._learners:
            return
        # Policies usually learn when the next batch is made, but the checkpoint is saved before.
        self._learn(closing=True)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            save_file(states(self._learners), folder / LEARNED)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_renamed(resume_from_checkpoint)
        if not self._learners:
            return
        folder = Path(resume_from_checkpoint)
        if not (folder / LEARNED).is_file():
            raise MaskwiseError(f"{folder} has no state of the masking policy")
        restore(self._learners, load_file(folder / LEARNED))
        # ``Trainer`` restores ``global_step`` only later.
        self._learned = TrainerState.load_from_json(str(folder / "trainer_state.json")).global_step

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_renamed(self.state.best_model_checkpoint)

    def _issue_warnings_after_load(self, load_result: _IncompatibleKeys) -> None:
        own = self.model.state_dict(keep_vars=True)
        missing = own.keys() & load_result.missing_keys
        # A file has only one of two tied weights. The other shares its memory and is not missing.
        loaded = {own[name].data_ptr() for name in own.keys() - missing}
        self._missing = {name for name in missing if own[name].data_ptr() not in loaded}
        super()._issue_warnings_after_load(load_result)

    def _load_renamed(self, folder: str | None) -> None:
        """Load weights that ``save_pretrained`` has renamed, such as ESM's norms.

        ``Trainer`` would only warn that they are missing, and leave the old values.
        """
        if self._missing and isinstance(self.model, PreTrainedModel):
            load: Any = type(self.model).from_pretrained
            network, found = load(
                folder, config=self.model.config, dtype=self.model.dtype, output_loading_info=True
            )
            saved = network.state_dict()
            renamed = (self._missing & saved.keys()) - set(found["missing_keys"])
            weights = {name: saved[name] for name in renamed}
            self.model.load_state_dict(weights, strict=False)
        self._missing = set()

    def _check_room(self, batch: MaskedBatch) -> None:
        """Raise if a row is longer than the model's table of positions."""
        read = batch.line.shape[1]
        # A decoder may write a longer text than it was given.
        longest = max(batch.input_ids.shape[1], batch.labels.shape[1])
        # Each document of a packed row has positions of its own.
        if batch.documents is not None:
            longest = int(batch.lengths.read.max())
            read = longest
        check_positions(longest, self._room, read=read)

    def _masked(self, masker: Masker, rows: Inputs, **when: Any) -> MaskedBatch:
        """Mask rows, and check that the model can read them."""
        batch = masker(rows, **when)
        self._check_room(batch)
        if self._decodes and batch.documents is not None:
            do = "put one document in each row, or use maskwise pretrain"
            raise MaskwiseError("an encoder–decoder reads a packed row as one text", do=do)
        batch.extras |= self._columns_read(batch)
        return batch

    def _columns_read(self, batch: MaskedBatch) -> Inputs:
        """Return the layers, (B, L), that the model's ``forward`` has a parameter for."""
        layers = batch.line.layers
        parameters = parameters_of(unwrapped(self.model)) if layers else None
        inputs: Inputs = {}
        for name in layers.keys() & (parameters or {}).keys():
            if batch.piece_BL is not None:
                raise MaskwiseError(
                    f"{type(unwrapped(self.model)).__name__}.forward reads the column {name!r}, "
                    "which has a number for each token, but the corruption changes lengths",
                    got=f"corruption {self.masker.corruption}",
                    do="use a corruption that keeps lengths, such as bert, or remove the column",
                )
            values = batch.line.tensor(layers[name]).to(batch.labels.device)
            inputs[name] = values.float() if values.is_floating_point() else values
        return inputs

    @property
    def _decodes(self) -> bool:
        """Whether the model has a decoder, which reads the labels."""
        return decodes(self.model)

    @property
    def _network(self) -> PreTrainedModel | None:
        """The model of transformers, also under peft; None for a user's own model."""
        network = unwrapped(self.model)
        return network if isinstance(network, PreTrainedModel) else None

    @property
    def _config(self) -> Any:
        return getattr(self.model, "config", None)


class WholeModel(MaskedLanguageModelling):
    """The losses of logits at all positions, which a model returns when it is called as a whole.

    Args:
        model: a user's own model, of which only what it returns is known, or any model of
            transformers.
        tokens: the number of tokens in the vocabulary.
    """

    def __init__(self, model: nn.Module, tokens: int):
        super().__init__(unwrapped(model))
        self.tokens = tokens

    def inputs(self, batch: Any) -> Inputs:
        model = self.model
        # A decoder reads the labels, but an encoder would use them to compute a loss.
        if decodes(model):
            return {**batch, "labels": batch.labels}
        inputs = model_inputs(model, batch) if isinstance(model, PreTrainedModel) else dict(batch)
        inputs.pop("labels", None)
        if not isinstance(model, PreTrainedModel):
            require_accepted(model, inputs)
            warn_of_packed(batch)
        return inputs

    def of(self, outputs: Any, batch: MaskedBatch) -> Loss:
        """Return the losses of a batch, from what the model returned for it.

        Raises:
            MaskwiseError: there are no logits, or they do not fit the labels or the vocabulary.
        """
        logits = logits_of(outputs)
        labels = batch.labels
        who = type(self.model).__name__
        if logits.ndim != 3 or logits.shape[:2] != labels.shape:
            raise MaskwiseError(
                f"the logits of {who} do not fit the labels",
                got=tuple(logits.shape),
                allowed=f"{(*labels.shape, 'V')}, for V tokens",
            )
        # Losses of hidden states, or of the logits of another vocabulary, would end in torch.
        if not decodes(self.model) and logits.shape[-1] < self.tokens:
            raise MaskwiseError(
                f"the logits of {who} do not fit the vocabulary",
                got=f"{logits.shape[-1]} for each position",
                allowed=f"≥ {self.tokens}, the number of tokens",
                do="return the logits of the output layer, and not hidden states",
            )
        at = batch.where.unbind(1)
        losses, *right = self.read(picked(logits, *at), labels[at])
        return self.loss(batch, losses, batch.where, right[0] if right else None)


class InFewerRows(MaskedLanguageModelling):
    """The losses of an encoder that reads the rows of a batch as fewer rows of several texts."""

    def answers(self, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        losses, _, right = super().answers(batch.in_fewer_rows())
        return losses, batch.where, right


def logits_of(outputs: Any) -> Tensor:
    """Return the logits among what a model returns: a tensor, a tuple or a mapping.

    Raises:
        MaskwiseError: there are no logits.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif isinstance(outputs, tuple | list) and outputs:
        found = outputs[0]
    if isinstance(found, Tensor):
        return found
    got = type(outputs).__name__
    if isinstance(outputs, Mapping):
        got = f"a dict with {', '.join(map(str, outputs)) or 'nothing'}"
    raise MaskwiseError(
        "the model returns no logits, from which MaskingTrainer computes the loss",
        got=got,
        allowed="a tensor (B, L, V), a tuple that begins with it, or a dict with 'logits'",
    )


def parameters_of(model: nn.Module) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of a model's ``forward``; None if it has no signature."""
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        # Compiled functions have none.
        return None


def why_nothing(masker: Masker, step: int, total_steps: int) -> str:
    """Say why rows may have no targets at this step, as a part of a warning."""
    for name in ("ratio", "predict"):
        if not getattr(masker.masking, name)(step, total_steps):
            return f"the {name} is 0 at step {step}"
    layers = "".join(f", or nothing in the layer {name}" for name in masker.policy.layers())
    return (
        f"the ratio is not 0, but the rows have no or few tokens that policy {masker.policy} may "
        f"mask (no text{layers})"
    )


def require_accepted(model: nn.Module, inputs: Inputs) -> None:
    """Raise ``MaskwiseError`` unless a model of the user can be called with these inputs."""
    found = parameters_of(model)
    if found is None:
        return
    parameters = found.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    given = {name for name in inputs if name != "labels"}
    named = {each.name: each for each in parameters if each.kind is not each.VAR_POSITIONAL}
    lacking = sorted(given - named.keys())
    if lacking:
        raise MaskwiseError(
            f"{type(model).__name__}.forward does not accept {lacking[0]}",
            got=f"parameters {', '.join(named) or 'of no name'}",
            do=f"add a parameter {lacking[0]}=None, or **others",
        )
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in given:
            raise MaskwiseError(
                f"{type(model).__name__}.forward needs {name}, which MaskingTrainer does not pass",
                allowed=", ".join(sorted(given)),
                do=f"give {name} a default",
            )


def targets_of_rows(batch: MaskedBatch) -> Tensor:
    """(B,) int64: the number of targets in a row; for diffusion, of tokens that may be masked."""
    if batch.counted is None:
        return (batch.labels != IGNORE).sum(1)
    return batch.line.tensor(batch.line.eligible).sum(1).to(batch.labels.device)


def unwrapped(model: Any) -> Any:
    """Return the model under peft, which trains low-rank updates of it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decodes(model: nn.Module) -> bool:
    """Whether a model has a decoder, which reads the labels."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def require_language_model(model: object) -> None:
    """Raise a `MaskwiseError` if a transformers model is no masked or denoising language model."""
    family = type(unwrapped(model))
    known = {*architectures("encoder").values(), *architectures("encoder-decoder").values()}
    # A user's own class may compute anything.
    if family.__module__.startswith("transformers.") and family.__name__ not in known:
        raise MaskwiseError(
            "MaskingTrainer cannot train this model",
            got=family.__name__,
            allowed="an encoder with an MLM head, or an encoder–decoder with a language-model head",
            do="load it with AutoModelForMaskedLM or AutoModelForSeq2SeqLM",
        )
