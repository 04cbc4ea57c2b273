"""The drop-ins for the Hugging Face Trainer: masks for the very step, every target weighing the
same.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    LongformerConfig,
    LongformerForMaskedLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import maskwise as mw
from maskwise.cli import main
from maskwise.masking import IGNORE, Noising
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import MaskedDiffusion
from maskwise.training.checkpoint import LEARNED
from maskwise.training.learners import TypeLearner
from processes import two_ranks
from test_training import close, same
from training_tools import (
    ARCHITECTURES,
    CLS,
    FIRST,
    GEMMA,
    Language,
    bart,
    config,
    model,
    tokenizer,
)

DATA = Language(48)
HELD_OUT = Language(12, seed=1)


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    plain = {
        "per_device_train_batch_size": 16,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "max_grad_norm": 1e9,
    }
    return TrainingArguments(output_dir=str(folder), **{**plain, **more})


def trainer(
    net: Any, args: TrainingArguments, *, masker: mw.Masker | None = None, **more: Any
) -> mw.MaskingTrainer:
    # Bernoulli: micro-batches and ranks differ in their number of targets.
    masker = masker or mw.Masker(
        tokenizer(), policy="whole-word", ratio=0.3, budget="bernoulli", min_targets=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = mw.MaskingTrainer(net, args, masker=masker, **{"train_dataset": DATA, **more})
    made.pop_callback(PrinterCallback)
    return made


def logged(made: Trainer) -> list[dict[str, float]]:
    return [
        {k: x[k] for k in ("loss", "grad_norm")} for x in made.state.log_history if "grad_norm" in x
    ]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "bart"])
def test_accumulation_changes_nothing(architecture: str, tmp_path: Path) -> None:
    """Also with a decoder, whose inputs are made from the labels."""
    found = []
    for size, parts in ((16, 1), (4, 4)):
        network, masker = model(architecture), None
        if architecture == "bart":
            network, masker = bart(), mw.Masker(tokenizer(), ratio=0.3, corruption="infill")
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        made = trainer(network, arguments(tmp_path, **batches), masker=masker)
        made.train()
        found.append(logged(made))
    one, four = found
    assert len(one) == 3
    for a, b in zip(one, four, strict=True):
        close(a, b, rel=1e-4)


def test_attention_that_ignores_soft_caps_is_refused(tmp_path: Path) -> None:
    """Transformers before 5.21 chooses it by default."""
    sizes = {"encoder": GEMMA, "decoder": GEMMA}
    network = new_model(
        new_config("t5gemma", tokenizer(), 32, kind="encoder-decoder", **sizes), seed=0
    )
    masker = mw.Masker(tokenizer(), ratio=0.3, corruption="infill")
    network.config._attn_implementation_internal = "sdpa"
    with pytest.raises(mw.MaskwiseError, match="ignores the soft caps of T5Gemma; got sdpa; allow"):
        trainer(network, arguments(tmp_path), masker=masker)
    network.set_attn_implementation("eager")
    assert trainer(network, arguments(tmp_path), masker=masker).train().global_step == 3


def test_packed_rows_of_an_encoder_decoder_are_refused(tmp_path: Path) -> None:
    ids = torch.randint(10, 20, (8,)).tolist()
    rows = [{"input_ids": ids, "example_id": [2 * n] * 4 + [2 * n + 1] * 4} for n in range(8)]
    masker = mw.Masker(tokenizer(), ratio=0.3, corruption="infill")
    made = trainer(bart(), arguments(tmp_path), masker=masker, train_dataset=rows)
    with pytest.raises(mw.MaskwiseError, match=r"packed row as one text.*one document in each"):
        made.train()


class Recorded:
    """A masker that keeps what it was called with."""

    def __init__(self, masker: mw.Masker):
        self.masker = masker
        self.calls: list[Any] = []

    def __call__(self, rows: Any, **when: Any) -> Any:
        self.calls.append((rows, when))
        return self.masker(rows, **when)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.masker, name)


class Watching(mw.MaskingTrainer):
    """Keeps what reaches the masker, the training step and the model."""

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        self.steps: list[Any] = []
        self.model.base_model.register_forward_pre_hook(
            lambda _, args, kwargs: self.seen.append(set(kwargs)), with_kwargs=True
        )
        self.seen: list[set[str]] = []
        self.masker: Any = Recorded(self.masker)
        self.raw = self.masker.calls

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.steps.append((inputs, int(num_items_in_batch)))
        return super().training_step(model, inputs, num_items_in_batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_are_made_for_the_exact_step_with_layers_and_ids(
    workers: int, tmp_path: Path
) -> None:
    """Also with workers: they pad, and the main process masks."""
    masker = mw.Masker(
        tokenizer(), policy="whole-word", ratio="linear(0.6, 0.1)", corruption="mask-only"
    )
    args = arguments(
        tmp_path,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=7,
        dataloader_num_workers=workers,
        remove_unused_columns=True,
    )
    made = Watching(model("bert"), args, masker=masker, train_dataset=DATA)
    made.pop_callback(PrinterCallback)
    made.train()
    assert all(names == {"input_ids", "attention_mask"} for names in made.seen)
    assert [when["step"] for _, when in made.raw] == [step for step in range(7) for _ in range(2)]
    assert [when["epoch"] for _, when in made.raw] == [0] * 6 + [1] * 6 + [2] * 2
    seen = [int(i) for rows, _ in made.raw for i in rows["example_id"]]
    assert sorted(seen[:48]) == sorted(seen[48:96]) == list(range(48)) and seen[:48] != seen[48:96]
    found = []
    for (rows, when), (inputs, _) in zip(made.raw, made.steps, strict=True):
        again = masker([DATA[int(i)] for i in rows["example_id"]], **when)
        assert torch.equal(inputs["input_ids"], again.input_ids)
        assert torch.equal(inputs["labels"], again.labels) and when["total_steps"] == 7
        found.append(again.targets)
    said = [number for _, number in made.steps]
    assert said[0::2] == said[1::2] == [a + b for a, b in zip(found[0::2], found[1::2])]
    assert said[0] > 2.5 * said[-1], "the schedule acts"
    assert args.remove_unused_columns, "the caller's arguments are left alone"


def test_evaluation_has_fixed_masks_and_weighs_every_target(tmp_path: Path) -> None:
    """The same masks and loss for any batch size and after training; the mean over all targets."""
    masker = mw.Masker(tokenizer(), ratio="linear(0.5, 0.1)", budget="bernoulli")
    fixed = mw.Masker(
        tokenizer(), ratio=0.3, corruption="mask-only", budget="bernoulli", min_targets=0, seed=9
    )
    net = model("bert")
    batch = fixed([HELD_OUT[i] for i in range(12)], epoch=0)
    expected = net.eval()(**batch)
    for size in (5, 12):
        args = arguments(
            tmp_path,
            per_device_eval_batch_size=size,
            eval_strategy="steps",
            eval_steps=1,
            max_steps=2,
        )
        made = trainer(net, args, masker=masker, evaluation_masker=fixed, eval_dataset=HELD_OUT)
        assert made.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    made.train()
    found = [x for x in made.state.log_history if "eval_loss" in x]
    assert len(found) == 2 and found[0]["eval_loss"] != found[1]["eval_loss"]
    again = net.eval()(**batch)
    assert made.evaluate()["eval_loss"] == pytest.approx(again.loss.item(), rel=1e-5)
    assert {x["eval_targets"] for x in found} == {batch.targets}
    # Without an evaluation masker: the training masker where its schedule starts.
    made = trainer(net, args, masker=masker, eval_dataset=HELD_OUT)
    start = masker([HELD_OUT[i] for i in range(12)], step=0, total_steps=10, epoch=0)
    assert made.evaluate()["eval_targets"] == start.targets


def test_metrics_of_the_user_get_logits_and_labels(tmp_path: Path) -> None:
    def compute(found: Any) -> dict[str, float]:
        at = found.label_ids != IGNORE
        return {"accuracy": float((found.predictions.argmax(-1)[at] == found.label_ids[at]).mean())}

    made = trainer(
        model("bert"),
        arguments(tmp_path, per_device_eval_batch_size=5),
        eval_dataset=HELD_OUT,
        compute_metrics=compute,
    )
    assert 0 <= made.evaluate()["eval_accuracy"] < 0.3
    assert made.predict(HELD_OUT).predictions.shape == (12, 16, 45)


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_resuming_is_bit_identical(stop: int, tmp_path: Path) -> None:
    """Mid-epoch, at an epoch's end, and in the second one; with dropout and a schedule."""
    masker = mw.Masker(tokenizer(), ratio="linear(0.5, 0.1)")
    more: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": stop}
    whole = trainer(
        model("bert", hidden_dropout_prob=0.1), arguments(tmp_path, **more), masker=masker
    )
    whole.train()
    resumed = trainer(
        model("bert", hidden_dropout_prob=0.1), arguments(tmp_path, **more), masker=masker
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert same(whole.model, resumed.model) and logged(whole) == logged(resumed)


def test_the_global_seed_changes_neither_masks_nor_the_order_of_rows(tmp_path: Path) -> None:
    """Set between building and training, or between a checkpoint and resuming from it."""
    more: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    masker = mw.Masker(tokenizer(), ratio="linear(0.5, 0.1)")
    found = []
    for seed, checkpoint in ((1, None), (2, None), (3, str(tmp_path / "checkpoint-2"))):
        network = model("bert")
        made = trainer(network, arguments(tmp_path, **more), masker=masker)
        set_seed(seed)
        made.train(resume_from_checkpoint=checkpoint)
        found.append(network)
    one, other, resumed = found
    assert same(one, other) and same(one, resumed)


SHORT = [
    {"input_ids": [CLS, *range(6, 6 + 1 + n % 13), 3], "example_id": 100 + n} for n in range(48)
]


def shapes_read(net: Any) -> list[tuple[int, int]]:
    """A list to which each call of the encoder adds the shape of what it reads."""
    shapes: list[tuple[int, int]] = []

    def add(_module: Any, ids: Any, named: Any) -> None:
        shapes.append(tuple(named["input_ids"].shape if not ids else ids[0].shape))

    net.base_model.register_forward_pre_hook(add, with_kwargs=True)
    return shapes


PACKED = {
    "bert": {"ratio": "linear(0.6, 0.1)"},
    "roberta": {"ratio": 0.4},
    "modernbert": {"ratio": 0.4},
    "esm": {"ratio": 0.4},
    "albert": {"ratio": 0.4, "corruption": "mask-only"},
    "electra": {"ratio": 0.5, "policy": "type-weighted(every=1)"},
}


@pytest.mark.parametrize("architecture", PACKED)
def test_packing_changes_losses_and_weights_by_rounding_alone(
    architecture: str, tmp_path: Path
) -> None:
    masker = mw.Masker(tokenizer(), **PACKED[architecture])
    found = []
    for packing in (False, True):
        net = model(architecture)
        shapes = shapes_read(net)
        args = arguments(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=8)
        made = trainer(
            net,
            args,
            masker=masker,
            train_dataset=SHORT,
            eval_dataset=SHORT[:21],
            packing=packing,
        )
        made.train()
        evaluated = made.evaluate()
        read = sum(height * width for height, width in shapes)
        weights = {name: each.detach() for name, each in net.named_parameters()}
        found.append((logged(made), evaluated["eval_targets"], evaluated["eval_loss"]))
        found[-1] += (read, weights)
    one, other = found
    for a, b in zip(one[0], other[0], strict=True):
        close(a, b, rel=1e-4)
    assert one[1] == other[1] and one[2] == pytest.approx(other[2], rel=1e-5)
    assert other[3] < 0.8 * one[3], "less padding is read"
    torch.testing.assert_close(one[4], other[4], rtol=1e-3, atol=1e-4)


def test_packed_diffusion_has_its_weights(tmp_path: Path) -> None:
    losses = []
    for packing in (False, True):
        args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=48)
        masker = mw.Noising(tokenizer(), budget="bernoulli")
        made = trainer(model("bert"), args, masker=masker, train_dataset=SHORT, packing=packing)
        made.train()
        losses.append(logged(made)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_packed_rows_are_scaled_by_document_in_esm(tmp_path: Path) -> None:
    """ESM's token dropout scales the embeddings of a text by its share of mask tokens."""
    losses = []
    for packing in (False, True):
        args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=24)
        masker = mw.Masker(tokenizer(), ratio=0.4)
        net = model("esm", token_dropout=True)
        made = trainer(net, args, masker=masker, train_dataset=SHORT, packing=packing)
        made.train()
        losses.append(logged(made)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_packed_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    """With a schedule, dropout and a policy that learns."""
    masker = mw.Masker(tokenizer(), policy="type-weighted(every=1)", ratio="linear(0.6, 0.1)")
    more: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    runs = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        net = model("bert", hidden_dropout_prob=0.1)
        args = arguments(tmp_path, **more)
        made = trainer(net, args, masker=masker, train_dataset=SHORT, packing=True)
        made.train(resume_from_checkpoint=checkpoint)
        runs.append(made)
    whole, resumed = runs
    assert same(whole.model, resumed.model) and logged(whole) == logged(resumed)


def test_metrics_that_need_logits_read_rows_as_they_are(tmp_path: Path) -> None:
    made = trainer(
        model("bert"),
        arguments(tmp_path, per_device_eval_batch_size=7),
        masker=mw.Masker(tokenizer(), ratio=0.4),
        eval_dataset=SHORT[:12],
        compute_metrics=lambda found: {"rows": float(len(found.predictions))},
        packing=True,
    )
    evaluated = made.evaluate()
    assert evaluated["eval_rows"] == 12
    made.compute_metrics = None
    assert made.evaluate()["eval_loss"] == pytest.approx(evaluated["eval_loss"], rel=1e-5)


class TwoDevices(TrainingArguments):
    """As on a machine with two GPUs, where transformers wraps the model in ``DataParallel``."""

    n_gpu = 2


def test_two_gpus_need_two_processes(tmp_path: Path) -> None:
    """The hook before the head belonged to the model and not to its copies, and failed."""
    args = TwoDevices(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(mw.MaskwiseError, match="for each GPU") as caught:
        trainer(model("bert"), args)
    assert "torchrun" in caught.value.do


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter([DATA[i] for i in range(48)])


def test_streams_get_masks_by_step(tmp_path: Path) -> None:
    made = Watching(
        model("bert"),
        arguments(tmp_path, max_steps=4),
        masker=mw.Masker(tokenizer()),
        train_dataset=Stream(),
    )
    made.pop_callback(PrinterCallback)
    made.train()
    assert [when["epoch"] for _, when in made.raw] == [None] * 4
    first, again = made.steps[0][0], made.steps[3][0]
    assert torch.equal(made.raw[0][0]["input_ids"], made.raw[3][0]["input_ids"])
    assert not torch.equal(first["labels"], again["labels"]), "the second pass has other masks"


def test_a_batch_without_targets_is_no_nan(tmp_path: Path) -> None:
    made = trainer(
        model("bert"),
        arguments(tmp_path),
        masker=mw.Masker(tokenizer(), ratio=0.0),
        eval_dataset=HELD_OUT,
    )
    made.train()
    assert logged(made) == [{"loss": 0.0, "grad_norm": 0.0}] * 3
    assert math.isnan(made.evaluate()["eval_loss"])


def test_a_decoder_takes_a_batch_without_targets(tmp_path: Path) -> None:
    masker = mw.Masker(tokenizer(), ratio=0.0, min_targets=0, corruption="infill")
    made = trainer(bart(), arguments(tmp_path, max_steps=1), masker=masker)
    made.train()
    assert [entry["loss"] for entry in logged(made)] == [0.0]


@pytest.mark.parametrize("packed", [False, True])
def test_loss_weights_of_masked_diffusion(packed: bool, tmp_path: Path) -> None:
    """In the weights of the tokens, over the eligible ones, with packed rows and without."""
    masker = mw.Noising(tokenizer(), budget="bernoulli")
    rows = [DATA[i] for i in range(48)]
    if packed:
        rows = [{**row, "example_id": [row["example_id"]] * len(row["input_ids"])} for row in rows]
    args = arguments(tmp_path, per_device_train_batch_size=48, max_steps=1)
    made = trainer(model("bert"), args, masker=masker, train_dataset=rows)
    total, count, *_ = MaskedDiffusion(model("bert"))(masker(rows, total_steps=1, epoch=0))
    made.train()
    assert logged(made)[0]["loss"] == pytest.approx((total / count).item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_packed_rows_are_trained_on_as_single_ones(architecture: str, tmp_path: Path) -> None:
    """Two documents in each row, or one: the same loss and the same weights after a step."""
    masker = mw.Masker(tokenizer(), corruption="mask-only", ratio=0.3)
    single = [
        {k: v for k, v in DATA[i].items() if k in ("input_ids", "example_id")} for i in range(16)
    ]
    runs = []
    for rows in (single, pairs(single)):
        args = arguments(
            tmp_path, per_device_train_batch_size=len(rows), max_steps=1, learning_rate=1e-2
        )
        runs.append(trainer(model(architecture), args, masker=masker, train_dataset=rows))
        runs[-1].train()
    losses = [logged(run)[0]["loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    one, other = (dict(run.model.named_parameters()) for run in runs)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Packed rows of two documents, with a name for every token."""
    packed = []
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        ids = [*map(int, one["input_ids"]), *map(int, two["input_ids"])]
        names = [int(row["example_id"]) for row in (one, two) for _ in row["input_ids"]]
        packed.append({"input_ids": ids, "example_id": names})
    return packed


@pytest.mark.parametrize("after", ["evaluate", "predict", "train"])
def test_esm_computes_as_before_once_the_trainer_is_done(after: str, tmp_path: Path) -> None:
    """Its embeddings are scaled by documents with a hook, as long as packed rows are read."""
    rows = pairs([DATA[i] for i in range(4)])
    net = model("esm", token_dropout=True).eval()
    masker = mw.Masker(tokenizer(), ratio=0.5, corruption="mask-only")
    plain = dict(masker([DATA[i] for i in range(4)]))
    seen: list[bool] = []

    class Watched(mw.MaskingTrainer):
        def _loss(self, *args: Any, **more: Any) -> Any:
            found = super()._loss(*args, **more)
            hooks = self.model.esm._forward_pre_hooks
            seen.append(any("scale" in hook.__name__ for hook in hooks.values()))
            return found

    made = Watched(
        net,
        # Without a rate of learning, training leaves the weights as they are.
        arguments(tmp_path, learning_rate=0.0, weight_decay=0.0, eval_strategy="steps"),
        masker=masker,
        train_dataset=rows,
        eval_dataset=rows,
    )
    before = net(**plain).logits.detach()
    {"evaluate": made.evaluate, "predict": lambda: made.predict(rows), "train": made.train}[after]()
    assert seen and all(seen)
    assert not net.esm._forward_pre_hooks and not net.esm._forward_pre_hooks_with_kwargs
    assert "forward" not in vars(net) and "forward" not in vars(net.esm)
    assert torch.equal(net.eval()(**plain).logits, before)


def test_esm_resumes_with_all_its_weights(tmp_path: Path) -> None:
    """transformers saves its norms under other names, which ``Trainer`` does not load."""
    whole = model("esm", token_dropout=False)
    trainer(whole, arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=4)).train()
    resumed = model("esm", token_dropout=False)
    made = trainer(resumed, arguments(tmp_path, max_steps=4))
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "esm", "bart", "own"])
def test_the_best_state_by_the_masked_loss_is_loaded_at_the_end(
    architecture: str, tmp_path: Path
) -> None:
    """transformers' own means: at this rate, the loss rises soon."""
    net: Any
    if architecture == "own":
        net = Own("dict")
    else:
        net = bart() if architecture == "bart" else model(architecture)
    corruption = "infill" if architecture == "bart" else "mask-only"
    maskers = [mw.Masker(tokenizer(), ratio=0.3, corruption=corruption, seed=n) for n in (0, 1)]
    args = arguments(
        tmp_path,
        max_steps=40,
        learning_rate=0.3,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=5,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    stop = EarlyStoppingCallback(early_stopping_patience=3)
    made = trainer(
        net,
        args,
        masker=maskers[0],
        evaluation_masker=maskers[1],
        eval_dataset=HELD_OUT,
        callbacks=[stop],
    )
    made.train()
    losses = {x["step"]: x["eval_loss"] for x in made.state.log_history if "eval_loss" in x}
    best = min(losses, key=losses.__getitem__)
    assert made.state.global_step == best + 6 < 40
    assert made.state.best_metric == losses[best] and made.state.best_global_step == best
    # The model has the loss of its best evaluation again, which is the mean over targets.
    assert made.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)


def test_the_best_state_survives_an_interruption(tmp_path: Path) -> None:
    def trained(folder: Path, **more: Any) -> tuple[Any, mw.MaskingTrainer]:
        net = model("bert")
        often = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
        how = {**often, "save_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.3}
        how["restore_callback_states_from_checkpoint"] = True
        stop = EarlyStoppingCallback(early_stopping_patience=3)
        args = arguments(folder, max_steps=40, **how)
        made = trainer(net, args, eval_dataset=HELD_OUT, callbacks=[stop])
        made.train(**more)
        return net, made

    whole, first = trained(tmp_path)
    # A process that was killed leaves the checkpoints up to a step.
    for folder in tmp_path.glob("checkpoint-*"):
        if int(folder.name.partition("-")[2]) > 4:
            shutil.rmtree(folder)
    again, second = trained(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert second.state.best_global_step == first.state.best_global_step
    assert second.state.global_step == first.state.global_step
    assert same(whole, again)


def test_the_head_sees_the_targets_alone(tmp_path: Path) -> None:
    """In training. If somebody asks for what the model returns, it computes all logits."""
    masker, rows = mw.Masker(tokenizer(), ratio=0.3), [DATA[i] for i in range(8)]
    run = trainer(model("bert"), arguments(tmp_path), masker=masker, train_dataset=rows)
    read: list[int] = []
    run.model.cls.register_forward_pre_hook(
        lambda _, states: read.append(states[0].shape[:-1].numel())
    )
    batch = masker(rows, epoch=0)
    few = run.compute_loss(run.model, batch)
    loss, outputs = run.compute_loss(run.model, batch, return_outputs=True)
    assert outputs["logits"].shape == (*batch.labels.shape, 45)
    assert read == [batch.targets, batch.labels.numel()]
    assert loss.item() == pytest.approx(few.item(), rel=1e-6)


def test_a_corruption_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    """BART trained on labels that stand at the tokens, without a word."""
    with pytest.raises(mw.MaskwiseError) as caught:
        trainer(bart(), arguments(tmp_path), masker=mw.Masker(tokenizer()))
    assert "Bert" in caught.value.got and 'corruption="infill"' in caught.value.do
    with pytest.raises(mw.MaskwiseError) as caught:
        masker = mw.Masker(tokenizer(), corruption="infill")
        trainer(model("bert"), arguments(tmp_path), masker=masker)
    assert 'corruption="bert"' in caught.value.do


@pytest.mark.parametrize("inner", ["", "(inner='infill')"])
def test_permuted_sentences_train_a_decoder(inner: str, tmp_path: Path) -> None:
    """The labels are a text, but they were taken for labels of tokens."""
    rows = []
    for n in range(16):
        length = len(DATA[n]["input_ids"])
        rows.append({**DATA[n], "sentence": [place // 8 for place in range(length)]})
    masker = mw.Masker(
        tokenizer(), policy="sentence", ratio=1.0, corruption=f"permute-sentences{inner}"
    )
    trainer(bart(), arguments(tmp_path, max_steps=1), masker=masker, train_dataset=rows).train()
    with pytest.raises(mw.MaskwiseError, match="has no decoder"):
        trainer(model("bert"), arguments(tmp_path), masker=masker)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    """It crashed at the first random replacement by a token that the model lacks."""
    network = model("bert")
    network.resize_token_embeddings(40)
    with pytest.raises(mw.MaskwiseError, match="resize_token_embeddings"):
        trainer(network, arguments(tmp_path))


def test_an_evaluation_that_masks_nothing_is_warned_of(tmp_path: Path) -> None:
    """Each loss is NaN, so the best checkpoint is never found."""
    masker = mw.Masker(tokenizer(), ratio="linear-ascend(0.15)")
    made = trainer(model("bert"), arguments(tmp_path), masker=masker, eval_dataset=HELD_OUT)
    with pytest.warns(UserWarning, match="give evaluation_masker"):
        made.evaluate()


def test_a_missing_span_is_said_to_be_the_reason_of_no_targets(tmp_path: Path) -> None:
    """The warning named the ratio, which was not 0; training was silent about losses of 0."""
    rows = [{"input_ids": [CLS, *range(6, 14), 3], "salient": [-1] * 10} for _ in range(16)]
    words = [-1, *range(8), -1]
    rows = [{**row, "word_ids": words, "example_id": n} for n, row in enumerate(rows)]
    masker = mw.Masker(tokenizer(), policy="salient", ratio=0.3)
    made = trainer(
        Own("tensor"), arguments(tmp_path), masker=masker, train_dataset=rows, eval_dataset=rows
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.train()
        made.evaluate()
    said = [str(each.message) for each in caught if "masked nothing" in str(each.message)]
    assert ["training" in each for each in said] == [True, False]
    assert all("layer salient" in each and "is not 0" in each for each in said)
    # A schedule that begins at 0 is meant to.
    rising = mw.Masker(tokenizer(), ratio="linear-ascend(0.15)")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*masked nothing")
        trainer(Own("tensor"), arguments(tmp_path, max_steps=1), masker=rising).train()
    with pytest.warns(UserWarning, match="the ratio is 0 at step 0"):
        trainer(
            Own("tensor"), arguments(tmp_path), masker=mw.Masker(tokenizer(), ratio=0.0)
        ).train()


def test_metrics_of_the_user_get_the_masked_inputs(tmp_path: Path) -> None:
    def compute(found: Any) -> dict[str, float]:
        at = found.label_ids != IGNORE
        return {"shown": float((found.inputs[at] == found.label_ids[at]).mean())}

    made = trainer(
        model("bert"),
        arguments(tmp_path, include_for_metrics=["inputs"]),
        eval_dataset=HELD_OUT,
        compute_metrics=compute,
    )
    assert made.evaluate()["eval_shown"] < 0.3


@pytest.mark.parametrize("corruption", ["replace", "delete", "insert"])
def test_labels_of_a_detector_do_not_train_a_vocabulary_head(
    corruption: str, tmp_path: Path
) -> None:
    """The head learned to predict the tokens with the ids 0 and 1."""
    masker = mw.Masker(tokenizer(), corruption=f"{corruption}(target='detect')")
    with pytest.raises(mw.MaskwiseError) as caught:
        trainer(model("bert"), arguments(tmp_path), masker=masker)
    assert "detect" in caught.value.got and 'corruption="bert"' in caught.value.do
    # A user's own model may have two classes.
    detector = torch.nn.Linear(4, 2)
    trainer(detector, arguments(tmp_path), masker=masker)


OTHER_MODELS = {
    "GPT2LMHeadModel": (AutoModelForCausalLM, "gpt2"),
    "BertLMHeadModel": (AutoModelForCausalLM, "bert"),
    "BertModel": (AutoModel, "bert"),
    "BertForTokenClassification": (AutoModelForTokenClassification, "bert"),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_model_that_is_no_masked_language_model_is_refused(name: str, tmp_path: Path) -> None:
    """GPT-2 was trained to find each token under its own mask, without a word."""
    auto, architecture = OTHER_MODELS[name]
    settings = config(architecture)
    with pytest.raises(mw.MaskwiseError) as caught:
        trainer(auto.from_config(settings), arguments(tmp_path))
    assert caught.value.got == name
    assert "MLM head" in caught.value.allowed and "encoder–decoder" in caught.value.allowed


def test_a_model_under_peft_is_judged_by_what_it_wraps(tmp_path: Path) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, wrapped: Any):
            super().__init__()
            self.wrapped = wrapped

        def get_base_model(self) -> Any:
            return self.wrapped

    trainer(Wrapper(model("bert")), arguments(tmp_path))
    with pytest.raises(mw.MaskwiseError):
        wrapped = AutoModelForCausalLM.from_config(config("gpt2"))
        trainer(Wrapper(wrapped), arguments(tmp_path))


def test_what_would_be_done_twice_is_refused(tmp_path: Path) -> None:
    masker = mw.Masker(tokenizer())
    theirs = DataCollatorForLanguageModeling(tokenizer())
    for collator in (mw.MaskingCollator(masker), theirs):
        name = type(collator).__name__
        with pytest.raises(mw.MaskwiseError, match=f"masks the rows itself; got a {name}"):
            trainer(model("bert"), arguments(tmp_path), data_collator=collator)
    with pytest.raises(mw.MaskwiseError, match="got a PackedCollator"):
        packing = mw.PackedCollator(masker, model=model("bert"))
        trainer(model("bert"), arguments(tmp_path), data_collator=packing)
    with pytest.raises(mw.MaskwiseError, match="MaskingTrainer computes the loss itself"):
        trainer(model("bert"), arguments(tmp_path), compute_loss_func=lambda *a, **k: 0)
    with pytest.raises(mw.MaskwiseError, match="loss weights of masked diffusion"):
        mw.MaskingCollator(Noising(tokenizer()))


def test_a_policy_that_learns_from_right_answers_is_told_which_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right is what the model finds likeliest, and not what it gives more than a half."""
    masker = mw.Masker(
        tokenizer(), policy="type-weighted(every=1)", ratio=0.5, corruption="mask-only"
    )
    made = trainer(
        net := model("bert"), arguments(tmp_path, max_steps=1, learning_rate=0.0), masker=masker
    )
    seen: list[Any] = []
    monkeypatch.setattr(TypeLearner, "observe", lambda _, *given: seen.append(given))
    made.train()
    [(batch, outcome)] = seen
    with torch.no_grad():
        net.eval()
        logits = net(input_ids=batch.input_ids, attention_mask=batch["attention_mask"]).logits
    at = outcome.where.unbind(1)
    assert torch.equal(outcome.right, logits[at].argmax(-1) == batch.labels[at])


def test_a_policy_learns_from_every_batch_of_every_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one too, the one after an evaluation, and those of a second training."""
    masker = mw.Masker(tokenizer(), policy="type-weighted(every=1)", ratio=0.5)
    args = arguments(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2)
    net = model("bert").eval()
    made = trainer(net, args, masker=masker, eval_dataset=HELD_OUT)
    observed: list[int] = []
    taught: list[int] = []
    monkeypatch.setattr(
        TypeLearner, "observe", lambda _, batch, outcome: observed.append(len(batch.labels))
    )
    monkeypatch.setattr(TypeLearner, "after", lambda _, now: taught.append(now.done))
    for _ in range(2):
        observed.clear()
        taught.clear()
        made.train()
        assert len(observed) == 4 and taught == [0, 1, 2, 3]


def test_a_policy_resumes_from_a_checkpoint_of_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on as in the folder checkpoint-2; without its state there is one clear error."""
    saved = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    masker = mw.Masker(tokenizer(), policy="type-weighted(every=1)", ratio=0.5)
    trainer(model("bert"), arguments(tmp_path, **saved), masker=masker).train()
    kept = tmp_path / "best"
    (tmp_path / "checkpoint-2").rename(kept)
    made = trainer(model("bert"), arguments(tmp_path, max_steps=4), masker=masker)
    taught: list[int] = []
    monkeypatch.setattr(TypeLearner, "after", lambda _, now: taught.append(now.done))
    made.train(resume_from_checkpoint=str(kept))
    # The state in the checkpoint already holds what was learned before step 2.
    assert taught == [3]
    (kept / LEARNED).unlink()
    with pytest.raises(mw.MaskwiseError, match="best has no state of the masking policy"):
        made.train(resume_from_checkpoint=str(kept))


def test_what_a_policy_learns_stays_in_its_run_and_out_of_evaluations(tmp_path: Path) -> None:
    masker = mw.Masker(
        tokenizer(), policy="type-weighted(every=1, kept=0.0)", ratio=0.3, corruption="mask-only"
    )
    args = arguments(tmp_path, max_steps=8, learning_rate=5e-2)
    first, second = (
        trainer(model("bert"), args, masker=masker, eval_dataset=HELD_OUT) for _ in range(2)
    )
    rows = [HELD_OUT[i] for i in range(len(HELD_OUT))]
    when = {"step": 0, "total_steps": 1, "epoch": 0}
    before = first.evaluation_masker(rows, **when).selected
    first.train()
    assert torch.equal(first.evaluation_masker(rows, **when).selected, before)
    assert not torch.equal(first.masker(rows, **when).selected, before)
    assert float(first.masker.policy.weights.current.min()) < 1
    # A second run does not begin with what the first one learned.
    assert float(second.masker.policy.weights.current.min()) == 1
    assert masker.policy.weights.current is None
    second.train()
    assert logged(first) == logged(second)


class Large(torch.nn.Module):
    """A model whose memory overflows from a batch of more than two rows on, at the third one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = Own("tensor")
        self.calls = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> Any:
        self.calls += 1
        if len(input_ids) > 2 and self.calls >= 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self.inner(input_ids)


def test_a_smaller_batch_after_a_failure_learns_from_its_own_losses(tmp_path: Path) -> None:
    """A policy learned from the losses of other batches for the rest of the run."""
    masker = mw.Masker(tokenizer(), policy="type-weighted(every=1)", ratio=0.5)
    weights = []
    for size in (3, 2):
        # The model would keep what it learned before the failure.
        args = {"learning_rate": 0.0, "auto_find_batch_size": size == 3}
        args["per_device_train_batch_size"] = size
        made = trainer(Large(), arguments(tmp_path, max_steps=4, **args), masker=masker)
        made.train()
        weights.append(made.masker.policy.weights.current)
    assert weights[0].min() < 1 and (weights[0] == weights[1]).all()


def test_a_new_model_begins_with_a_policy_that_has_learned_nothing(tmp_path: Path) -> None:
    """Only the first training of ``model_init``, as in a search of settings, began anew."""
    masker = mw.Masker(tokenizer(), policy="type-weighted(every=1, kept=0.0)", ratio=0.3)
    args = arguments(tmp_path, max_steps=4, learning_rate=5e-2, save_strategy="steps", save_steps=2)
    made = trainer(None, args, masker=masker, model_init=lambda: Own("tensor"))
    made.train()
    first = logged(made)
    made.train()
    assert logged(made) == first
    # A training that resumes goes on with what was learned before.
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(made) == first


def test_layers_that_a_callback_unfreezes_stay_so(tmp_path: Path) -> None:
    net = model("bert")
    net.bert.encoder.requires_grad_(False)

    class Thaw(TrainerCallback):
        def on_step_end(self, *args: Any, **more: Any) -> None:
            net.requires_grad_(True)

    made = trainer(net, arguments(tmp_path), callbacks=[Thaw()], eval_dataset=HELD_OUT)
    made.train()
    made.evaluate()
    assert all(weight.requires_grad for weight in net.parameters())


def rank_of_two(folder: Path) -> None:
    found = {}
    for architecture in ARCHITECTURES:
        args = arguments(folder, per_device_train_batch_size=8, per_device_eval_batch_size=5)
        made = trainer(model(architecture), args, eval_dataset=HELD_OUT)
        made.train()
        evaluated = made.evaluate()
        found[architecture] = [
            *logged(made),
            {k: evaluated[k] for k in ("eval_loss", "eval_targets")},
        ]
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    del made
    gc.unfreeze()  # else the trainer's process group outlives it


@pytest.mark.slow
def test_two_ranks_are_as_one(tmp_path: Path) -> None:
    """2 ranks × 8 rows against 16, every architecture: loss, gradient norm, and evaluation of 12
    rows.
    """
    two_ranks(rank_of_two, tmp_path)
    two = json.loads((tmp_path / "found.json").read_text())
    assert list(two) == ARCHITECTURES
    for architecture in ARCHITECTURES:
        made = trainer(model(architecture), arguments(tmp_path), eval_dataset=HELD_OUT)
        made.train()
        evaluated = made.evaluate()
        one = [*logged(made), {k: evaluated[k] for k in ("eval_loss", "eval_targets")}]
        for a, b in zip(one, two[architecture], strict=True):
            close(a, b, rel=1e-4)


def test_a_checkpoint_in_half_precision_is_resumed_as_it_is(tmp_path: Path) -> None:
    """Tied weights are in the file once, and are no reason to load it in another way."""
    net = model("bert")
    trainer(net, arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)).train()
    resumed = model("bert")
    resumed.config.dtype = torch.bfloat16
    made = trainer(resumed, arguments(tmp_path, max_steps=2))
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, weight in net.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_rows_longer_than_the_positions_are_one_line(tmp_path: Path) -> None:
    net = model("bert", max_position_embeddings=16)
    rows = [{"input_ids": [5] * 20, "example_id": n} for n in range(16)]
    made = trainer(net, arguments(tmp_path), masker=mw.Masker(tokenizer()), train_dataset=rows)
    for call in (made.train, lambda: made.evaluate(rows)):
        with pytest.raises(mw.MaskwiseError, match=r"20 tokens; allowed: ≤ 16; .*split=True"):
            call()
    for bad in (None, "bert", 5):
        with pytest.raises(mw.MaskwiseError, match="masker"):
            mw.MaskingTrainer(net, arguments(tmp_path), masker=bad)  # type: ignore[arg-type]


def test_a_packed_row_may_be_longer_than_the_positions_with_padding_too(tmp_path: Path) -> None:
    """Only its documents have positions."""
    ids = [CLS, *[FIRST] * 10, CLS, *[FIRST] * 11, *[0] * 6]
    names = [*[0] * 11, *[1] * 12, *[-1] * 6]
    rows = [{"input_ids": ids, "example_id": names, "attention_mask": [1] * 23 + [0] * 6}] * 4
    masker = mw.Masker(tokenizer(), ratio=0.5)
    net = model("bert", max_position_embeddings=12)
    made = trainer(net, arguments(tmp_path), masker=masker, train_dataset=rows)
    assert math.isfinite(made.train().training_loss)
    short = trainer(
        model("bert", max_position_embeddings=11),
        arguments(tmp_path),
        masker=masker,
        train_dataset=rows,
    )
    with pytest.raises(mw.MaskwiseError, match=r"12 tokens; allowed: ≤ 11; .*split=True"):
        short.train()


def test_a_corruption_that_makes_rows_too_long_is_said_to_do_so(tmp_path: Path) -> None:
    rows = [{"input_ids": [FIRST] * 16, "example_id": n} for n in range(48)]
    masker = mw.Masker(tokenizer(), ratio=0.5, corruption="infill(mean=1.0)")
    made = trainer(bart(positions=16), arguments(tmp_path), masker=masker, train_dataset=rows)
    with pytest.raises(
        mw.MaskwiseError, match=r"allowed: ≤ 16; make shorter rows, because this corr"
    ):
        made.train()


def test_a_model_under_peft_reads_documents_apart(tmp_path: Path) -> None:
    """A model of the user, which gets no documents, is said to read them as one text."""
    peft = pytest.importorskip("peft")
    rows = pairs([{k: DATA[i][k] for k in ("input_ids", "example_id")} for i in range(8)])
    masker = mw.Masker(tokenizer(), corruption="mask-only", ratio=0.3)
    settings = peft.LoraConfig(target_modules=["query"])
    losses = []
    for net in (model("bert"), peft.get_peft_model(model("bert"), settings)):
        args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=4)
        made = trainer(net, args, masker=masker, train_dataset=rows)
        made.train()
        losses.append(logged(made)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    made = trainer(Own("tensor"), arguments(tmp_path), masker=masker, train_dataset=rows)
    with pytest.warns(UserWarning, match="packed row as one text"):
        made.train()


class Own(torch.nn.Module):
    """A user's own model. Every token is predicted from its own vector and the mean of the row."""

    def __init__(self, returns: str):
        super().__init__()
        self.returns = returns
        self.table = torch.nn.Embedding(len(tokenizer()), 16)
        self.out = torch.nn.Linear(16, len(tokenizer()))

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> Any:
        hidden = self.table(input_ids)
        logits = self.out(hidden + hidden.mean(1, keepdim=True))
        return {
            "tensor": lambda: logits,
            "tuple": lambda: (logits, hidden),
            "dict": lambda: {"logits": logits, "hidden": hidden},
            "nothing": lambda: {"hidden": hidden},
            "states": lambda: hidden[:, 0],
            "hidden": lambda: hidden,
            "text": lambda: "logits",
        }[self.returns]()


def test_own_models_train_whatever_they_return(tmp_path: Path) -> None:
    found = []
    for returns in ("tensor", "tuple", "dict"):
        torch.manual_seed(0)
        own = Own(returns)
        made = trainer(own, arguments(tmp_path, max_steps=30), eval_dataset=HELD_OUT)
        before = made.evaluate()["eval_loss"]
        made.train()
        found.append((logged(made), before, made.evaluate()["eval_loss"]))
        # The loss is that of the logits at the targets.
        batch = made.evaluation_masker([HELD_OUT[n] for n in range(12)], epoch=0, total_steps=1)
        own.returns = "tensor"
        with torch.no_grad():
            nats = torch.nn.functional.cross_entropy(
                own(batch.input_ids).flatten(0, 1), batch.labels.flatten()
            )
        assert found[-1][2] == pytest.approx(float(nats), rel=1e-5) and found[-1][2] < before
        predicted = made.predict(HELD_OUT)
        assert predicted.label_ids.shape[0] == 12
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("returns", ["nothing", "states", "hidden", "text"])
def test_own_models_without_logits_are_refused_in_one_line(returns: str, tmp_path: Path) -> None:
    with pytest.raises(mw.MaskwiseError, match="logits") as caught:
        trainer(Own(returns), arguments(tmp_path)).train()
    assert "\n" not in str(caught.value)


def test_own_models_must_accept_the_inputs(tmp_path: Path) -> None:
    class Deaf(Own):
        def forward(self, input_ids: torch.Tensor) -> Any:  # type: ignore[override]
            return super().forward(input_ids)

    class Greedy(Own):
        def forward(self, input_ids: Any, attention_mask: Any, weather: Any) -> Any:  # type: ignore[override]
            return super().forward(input_ids)

    rows = [{"input_ids": [CLS, *range(6, 6 + n), 3], "example_id": n} for n in range(3, 19)]
    one = mw.Masker(tokenizer(), ratio=0.3)
    for own, name in ((Deaf("tensor"), "attention_mask"), (Greedy("tensor"), "weather")):
        with pytest.raises(mw.MaskwiseError, match=name):
            trainer(own, arguments(tmp_path), masker=one, train_dataset=rows).train()


def test_models_get_the_columns_that_they_read(tmp_path: Path) -> None:
    """They were left out without a word."""
    seen: dict[str, Any] = {}

    class Reading(Own):
        def forward(  # type: ignore[override]
            self, input_ids: Any, attention_mask: Any, weather: Any = None, langs: Any = None
        ) -> Any:
            seen.update(weather=weather, langs=langs, present=attention_mask)
            return super().forward(input_ids)

    rows = []
    for n in range(3, 7):
        ids = [CLS, *range(6, 6 + n), 3]
        rows.append({"input_ids": ids, "example_id": n, "weather": ids, "langs": ids})
    args = arguments(tmp_path, max_steps=1)
    one = mw.Masker(tokenizer(), ratio=0.3)
    trainer(Reading("tensor"), args, masker=one, train_dataset=rows).train()
    present = seen["present"] == 1
    assert not present.all() and torch.equal(seen["weather"][present], seen["langs"][present])
    assert seen["weather"][~present].eq(-1).all() and seen["langs"][~present].eq(0).all()
    moving = mw.Masker(tokenizer(), ratio=0.3, corruption="insert")
    with pytest.raises(mw.MaskwiseError, match=r"weather.*Insert") as caught:
        trainer(Reading("tensor"), args, masker=moving, train_dataset=rows).train()
    assert "\n" not in str(caught.value)

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    longformer = LongformerForMaskedLM(
        LongformerConfig(vocab_size=len(tokenizer()), attention_window=[4], pad_token_id=0, **size)
    )
    rows = [
        {**row, "global_attention_mask": [1] + [0] * (len(row["input_ids"]) - 1)} for row in rows
    ]
    longformer.longformer.register_forward_pre_hook(
        lambda _, __, given: seen.update(given), with_kwargs=True
    )
    trainer(longformer, args, masker=one, train_dataset=rows).train()
    assert seen["global_attention_mask"].sum(1).eq(1).all()


REMOTE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class Config(PreTrainedConfig):
    model_type = "own-code"

    def __init__(self, vocab_size=45, hidden_size=16, **more):
        super().__init__(**more)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.out = torch.nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, **more):
        return MaskedLMOutput(logits=self.out(self.table(input_ids)))
"""


def test_a_model_with_code_of_its_own_trains_and_commands_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "own_code.py").write_text(REMOTE)
    fields = {
        "model_type": "own-code",
        "vocab_size": len(tokenizer()),
        "auto_map": {"AutoConfig": "own_code.Config", "AutoModelForMaskedLM": "own_code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(fields))
    tokenizer().save_pretrained(folder)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.syspath_prepend(str(tmp_path / "m"))
    settings = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    network = AutoModelForMaskedLM.from_config(settings, trust_remote_code=True)
    made = trainer(network, arguments(tmp_path, max_steps=20), eval_dataset=HELD_OUT)
    before = made.evaluate()["eval_loss"]
    made.train()
    assert made.evaluate()["eval_loss"] < before
    for command in (
        ["evaluate", str(folder), "--text", "bundled:wikipedia"],
        ["finetune", str(folder), "--task", "ud-pos"],
    ):
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert "MaskingTrainer" in said and "auto_map" in said
