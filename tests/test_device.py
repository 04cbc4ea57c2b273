"""Training on an accelerator: nothing that it cannot do, and nothing in a step that the host waits
for.

Without a GPU these tests run on ``accelerator.Device``, which computes on the processor; where
there is one, on it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from accelerator import GPU, There, accelerator, ragged_kernel
from maskwise.base import devices
from maskwise.jobs.pools import Pool
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import OBJECTIVES, objective, objective_class
from maskwise.objectives.discriminative import smaller
from maskwise.recipe import read_recipe
from maskwise.samplers import sampler
from maskwise.studies import scheduler
from maskwise.studies.pretraining import learning
from maskwise.studies.stages import prepare_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text import Document, Prepared, Rows, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.training.building import model_from
from maskwise.training.several import Probe, SamplerLearner, SeveralObjectives, SeveralSources
from processes import PATIENCE
from tiny import SMALLER, maskwise, read_lines, write_inputs

TEXT = "the cat sat on the mat "
LAYOUTS = ("document", "packed")
MASKING: dict[str, dict[str, Any]] = {
    "denoise": {"corruption": "infill"},
    "emlm": {"policy": "guided(layer=word_ids)"},
}
CASES = [
    (name, layout)
    for name in OBJECTIVES
    for layout in LAYOUTS
    # A student needs a teacher in a folder (test_distil).
    if name != "distil" and (layout == "document" or objective_class(name).layout == "any")
]
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDTH["intermediate_size"] = 48
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
T5 = {"d_model": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2, "d_ff": 48}
SIZES = {"bert": WIDTH, "modernbert": WIDTH, "bart": BART, "t5": T5}
FAMILIES = {
    "encoder": {"document": "bert", "packed": "modernbert"},
    "encoder-decoder": {"document": "bart", "packed": "t5"},
}


@cache
def tokenizer() -> Any:
    return train_tokenizer([TEXT] * 9, vocab_size=80)


@cache
def rows(layout: str, name: str = "a", count: int = 64) -> Rows:
    documents = [Document(f"{name}{number}", TEXT * (1 + number % 3)) for number in range(count)]
    return Rows.of(
        read_pieces(tokenise(documents, tokenizer()), tokenizer=tokenizer(), length=32), layout
    )


def model(name: str = "mlm", layout: str = "document") -> Any:
    kind = objective_class(name).kind
    family = FAMILIES[kind][layout]
    return new_model(new_config(family, tokenizer(), 64, kind=kind, **SIZES[family]), seed=0)


def settings(**more: Any) -> TrainingSettings:
    return TrainingSettings(
        **{"steps": 3, "batch_size": 4, "log_every": 3, "precision": "no", **more}
    )


def source(name: str, layout: str, chosen: TrainingSettings, **masking: Any) -> MaskedSource:
    made = objective_class(name).maker(
        tokenizer(), seed=0, length=48, **{**MASKING.get(name, {}), **masking}
    )
    return MaskedSource(rows(layout), made, chosen)


def joined(
    names: tuple[str, ...], spec: str, chosen: TrainingSettings
) -> tuple[SeveralObjectives, Any, Any]:
    """Several objectives over one model, a source that a sampler draws from, and what learns."""
    net = model()
    arms = SeveralObjectives({name: objective(name, net) for name in names})
    sources = {name: source(name, "document", chosen) for name in names}
    chooser = sampler(spec, list(names), steps=chosen.steps)
    batches = SeveralSources(sources, chooser, chosen)

    def probe() -> Probe:
        held_out = dict.fromkeys(names, rows("document", "b"))
        return Probe(arms, batches, held_out, sizes=dict.fromkeys(names, 8), skip={})

    return arms, batches, {**batches.learners(), "sampler": SamplerLearner(chooser, probe)}


# --- three steps


MORE = {"on_nan": "skip", "accumulate": 2, "optimizer": "muon", "batch_size": 8}


@cache
def three_steps(name: str, layout: str, **more: Any) -> dict[str, Any]:
    """Train on the accelerator: masks, their places, and what else a batch needs go there before
    the step, from pinned memory.
    """
    chosen = settings(**more)
    torch.manual_seed(0)
    trained = objective(name, model(name, layout))
    with accelerator() as device:
        found = train(trained, source(name, layout, chosen), chosen)
    assert not device.waits and not device.pageable
    assert GPU or all(isinstance(p, There) for p in trained.parameters())
    return found


@pytest.mark.parametrize(
    ("name", "layout", "more"),
    [
        *((*case, {}) for case in CASES),
        ("mlm", "packed", MORE),
        ("denoise", "packed", MORE),
        ("cse", "document", MORE),
    ],
)
def test_three_steps_are_those_of_the_processor_and_nobody_waits(
    name: str, layout: str, more: Any
) -> None:
    found = three_steps(name, layout, **more)
    chosen = settings(**more)
    torch.manual_seed(0)
    here = train(objective(name, model(name, layout)), source(name, layout, chosen), chosen)
    # Dropout and replacements are drawn in another way there. ``cse`` learns from dropout alone.
    assert found["loss"] == pytest.approx(here["loss"], rel=0.3 if name == "cse" else 0.1)
    assert found["targets"] == here["targets"]


@pytest.mark.pinned
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_the_kernel_for_documents_of_different_lengths_waits_for_nothing(
    name: str, layout: str
) -> None:
    """Padded rows are its documents as packed ones are; their offsets come from the host."""
    if layout == "packed" and objective_class(name).kind == "encoder-decoder":
        pytest.skip("relative positions need a bias, which the kernel does not take")
    chosen = settings()
    torch.manual_seed(0)
    trained = objective(name, model(name, layout))
    with accelerator() as device, ragged_kernel() as calls:
        found = train(trained, source(name, layout, chosen), chosen)
        assert not device.waits and not device.pageable
    assert bool(calls) == (objective_class(name).kind != "encoder-decoder")
    # The kernel has no dropout on attention.
    assert found["loss"] == pytest.approx(three_steps(name, layout)["loss"], rel=0.1)


@pytest.mark.pinned
def test_next_tokens_in_rows_without_padding_wait_for_nothing() -> None:
    """Causal attention needs the documents of these rows, too."""
    chosen = settings()
    equal = [Document(f"a{number}", TEXT * 2) for number in range(16)]
    pieces = read_pieces(tokenise(equal, tokenizer()), tokenizer=tokenizer(), length=14)
    masker = objective_class("clm").maker(tokenizer(), seed=0, length=48)
    source = MaskedSource(Rows.of(pieces, "document"), masker, chosen)
    assert source.batches(0, rank=0, ranks=1)[0].attention_mask is None
    with accelerator() as device, ragged_kernel() as calls:
        train(objective("clm", model("clm")), source, chosen)
    assert calls and not device.waits


# --- several objectives


ARMS = ("mlm", "atd", "cse")


def test_three_objectives_and_mometas_plus() -> None:
    """Between two probes nobody waits, and the sampler learns what it learns on the processor."""
    chosen = settings(steps=9, log_every=9)
    found = []
    for there in (True, False):
        torch.manual_seed(0)
        arms, batches, learners = joined(ARMS, "mometas-plus(every=3, rows=8)", chosen)
        with accelerator() if there else nullcontext() as device:
            if device is not None:
                probing(learners["sampler"], device)
            train(arms, batches, chosen, learners=learners)
        if device is not None:
            assert not device.waits and not device.pageable
        found.append(learners["sampler"])
    assert found[0].spent() == found[1].spent()
    # Twins are told apart by their dropout, which is drawn in another way there.
    torch.testing.assert_close(found[0].before[0, :2], found[1].before[0, :2], rtol=0.1, atol=0.05)


def probing(learner: SamplerLearner, device: Any) -> None:
    """Do not count the waits of probes, for whose result the sampler has to wait."""
    offer = learner.offer

    def free(now: Any) -> Tensor | None:
        device.free = now.done % learner.every == 0
        offered = offer(now)
        device.free = False
        return offered

    learner.offer = free  # type: ignore[method-assign]


class Here(Pool):
    """Does every stage in this process, whose device it is."""

    places = 1

    def __init__(self, **_: Any): ...

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def close(self) -> None: ...


@pytest.mark.slow
def test_a_study_of_three_objectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it on the device: text, pre-training with probes, held-out losses, fine-tuning, the
    report.
    """
    recipe = write_inputs(tmp_path)
    plan = yaml.safe_load(recipe.read_text())
    plan |= {"objective": dict.fromkeys(ARMS), "sampler": "mometas-plus(every=3, rows=8)"}
    plan["training"] |= {"steps": 9, "log_every": 9, "eval_every": 0, "save_every": 0}
    plan["finetune"] |= {"steps": 3, "seeds": 1}
    plan["study"] = {"seeds": 1, "arms": {"learned": {}, "even": {"sampler": "uniform"}}}
    del plan["finetune"]["epochs"]
    recipe.write_text(yaml.safe_dump(plan))
    monkeypatch.setattr(scheduler, "open_pool", Here)
    # it waits for the device, once in a process
    monkeypatch.setattr(devices, "measured_rate", lambda *_: 1e9)
    with accelerator() as device:
        assert maskwise("study", recipe, "--out", tmp_path / "out") == 0
    kinds = {record["kind"] for record in read_lines(tmp_path / "out" / "records.jsonl")}
    assert {"task", "heldout", "cost"} <= kinds and "failure" not in kinds
    # Sums that all ranks agree on, for probes; checkpoints; held-out losses; the answers of a task.
    assert {wait.partition(", ")[2].partition(":")[0] for wait in device.waits} == {
        "maskwise/training/checkpoint.py",
        "maskwise/training/several.py",
        "maskwise/training/ranks.py",
        "maskwise/evaluation/scoring.py",
        "maskwise/tasks/tensors.py",
    }
    assert not device.pageable


WAITING = {
    "group-weighted(layer=word_ids, groups=40)": {"for the last update, maskwise/base/devices.py"},
}
"""Policies whose next masks follow from the last losses: what they wait for. All others wait for
nothing.
"""


@pytest.mark.parametrize("policy", [*WAITING, "type-weighted(every=5)"])
def test_which_policies_that_learn_wait(policy: str) -> None:
    chosen = settings()
    trained = objective("mlm", model())
    batches = source("mlm", "packed", chosen, policy=policy)
    learners = batches.learners()
    with accelerator() as device:
        train(trained, batches, chosen, learners=learners)
    assert {wait.rpartition(":")[0] for wait in device.waits} == WAITING.get(policy, set())
    assert not device.pageable


@pytest.mark.parametrize("policy", WAITING)
def test_a_policy_that_learns_a_step_late_waits_for_nothing(policy: str) -> None:
    """Its weights are the same here as there."""
    chosen = settings(steps=6, log_every=6, lag=1, on_nan="skip")
    weights = []
    for there in (True, False):
        trained = objective("mlm", model("mlm", "packed"))
        batches = source("mlm", "packed", chosen, policy=policy)
        learners = batches.learners()
        with accelerator() if there else nullcontext() as device:
            train(trained, batches, chosen, learners=learners)
        weights.append(learners["policy"].weight_C)
        if device is not None:
            assert not device.waits and not device.pageable
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy", ["token", "whole-word", *WAITING])
def test_the_recipe_for_a_gpu_waits_for_nothing(policy: str, tmp_path: Path) -> None:
    few = ["corpus.limit=40", "corpus.held_out=0.4", f"masking.policy={policy}"]
    few += ["training.steps=4", "training.batch_size=8", "training.log_every=4"]
    recipe = read_recipe("one-gpu", [*SMALLER, *few]).arm("token-30", seed=0)
    stage = prepare_stage(recipe)
    run_stage(stage, StageStore(tmp_path))
    data = Prepared.open(StageStore(tmp_path).folder(stage) / "data")
    waits = {}
    for lag in (1, 0):
        training = recipe.training.model_copy(update={"lag": lag})
        link = recipe.model_copy(update={"training": training})
        frequencies = torch.zeros(len(data.tokenizer))
        network = model_from(
            link.model,
            data.tokenizer,
            data.training.length,
            kind=link.kind,
            seed=0,
            log_unigram=frequencies,
        )
        made = learning(network, data, link)
        with accelerator() as device:
            train(made.objective, made.source, training, learners=made.learners)
        assert not device.pageable
        waits[lag] = device.waits.total()
    assert waits[1] == 0
    assert bool(waits[0]) == (policy in WAITING)


def test_batches_are_copied_beside_the_work() -> None:
    chosen = settings()
    with accelerator() as device:
        train(objective("mlm", model()), source("mlm", "packed", chosen), chosen)
        copied = device.aside
    assert {where.partition(":")[0] for where in copied} == {"maskwise/base/devices.py"}
    # Every tensor that was sent is kept until the work is done with it.
    assert device.received == copied.total() > 10 or GPU


def test_types_are_exchanged_when_their_weights_are_set_and_when_a_state_is_saved(
    tmp_path: Path,
) -> None:
    asked: list[int] = []
    chosen = settings(steps=6, save_every=2, log_every=6)
    batches = source("mlm", "packed", chosen, policy="type-weighted(every=3)")
    trained, learners = objective("mlm", model()), batches.learners()
    learner = learners["policy"]
    offer = learner.offer

    def watched(now: Any) -> Tensor | None:
        offered = offer(now)
        if offered is not None:
            asked.append(now.done)
        return offered

    learner.offer = watched  # type: ignore[method-assign]
    train(trained, batches, chosen, learners=learners, folder=tmp_path)
    assert asked == [2, 3, 4, 6]


# --- batches


# --- at the precision of training


def test_probes_are_computed_as_the_training_is() -> None:
    """What judges the model is judged at its precision; afterwards the objective computes as it did
    before.
    """
    chosen = settings(steps=4, precision="bf16")
    arms, batches, learners = joined(("mlm", "atd"), "uniform", chosen)
    learners["sampler"].every = 2  # a rule is probed, too
    seen: set[tuple[str, torch.dtype]] = set()
    head = arms.model.cls.predictions.decoder
    head.register_forward_hook(
        lambda module, _, out: seen.add(("train" if module.training else "judge", out.dtype))
    )
    train(arms, batches, chosen, learners=learners)
    assert seen == {("train", torch.bfloat16), ("judge", torch.bfloat16)}
    for part in (arms, *arms.members):
        assert not {"forward", "_original_forward", "precision"} & set(vars(part))
    seen.clear()
    arms.named("mlm").to("cpu")(source("mlm", "document", chosen).batches(0, rank=0, ranks=1)[0])
    assert {dtype for _, dtype in seen} == {torch.float32}


def test_single_precision_is_fast_on_a_device_and_exact_elsewhere() -> None:
    """TF32 while a training runs there; afterwards, and on a processor, as the caller set it."""
    chosen = settings()
    seen: list[str] = []
    for there in (True, False):
        trained = objective("mlm", model())
        trained.register_forward_pre_hook(
            lambda *_: seen.append(torch.get_float32_matmul_precision())
        )
        with accelerator() if there else nullcontext():
            train(trained, source("mlm", "document", chosen), chosen)
        assert torch.get_float32_matmul_precision() == "highest"
    assert seen == ["high"] * 3 + ["highest"] * 3


# --- other machines


MISSING = """
import signal, sys
from transformers import BertForMaskedLM, Trainer  # what they need of a system is their own affair
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
del signal.SIGUSR1
# as Windows has it
signal.Signals = [number for number in signal.Signals if number.name != "SIGUSR1"]
import maskwise as mw, maskwise.training, maskwise.studies
from maskwise.base.signals import ASKED
assert mw.MaskingTrainer and ASKED == [signal.SIGTERM]
modules = "trainer packed_collator masking.collator masking.diffusion weights inspection"
for name in modules.split():
    assert f"maskwise.{name}" in sys.modules or __import__(f"maskwise.{name}")
import os
del os.sysconf
from maskwise.models.weights import Size, check_size
from maskwise.base.devices import hardware
from transformers import BertConfig
small = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
check_size(Size.of(BertForMaskedLM(small)))
assert hardware()["memory_gib"] is None
"""


@pytest.mark.slow
def test_trainings_import_where_there_is_no_posix() -> None:
    subprocess.run([sys.executable, "-c", MISSING], check=True, timeout=PATIENCE)


def test_a_smaller_model_is_the_same_in_every_process() -> None:
    """``hidden_size`` is one of the fields that change, so it is read before any of them does."""
    from transformers import BertConfig

    made = smaller(BertConfig(hidden_size=192, intermediate_size=192, num_attention_heads=3), 0.5)
    assert (made.hidden_size, made.intermediate_size, made.num_attention_heads) == (128, 128, 2)


def test_next_tokens_are_not_masked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = source("clm", "packed", settings())
    monkeypatch.setattr("maskwise.masking.masker.select", None)
    batch = batches.batches(0, rank=0, ranks=1)[0]
    assert batch.targets == int((batch.labels >= 0).sum()) > 0
