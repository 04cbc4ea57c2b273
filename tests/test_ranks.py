"""Several processes train as one does, with a copy of the weights in each (DDP) or a share of them
(FSDP2).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

import processes
from maskwise.base import folders
from maskwise.base.constants import rank_here
from maskwise.base.errors import MaskwiseError
from maskwise.evaluation import HeldOut, scoring
from maskwise.evaluation.scoring import Bound
from maskwise.masking import Masker
from maskwise.objectives import (
    Loss,
    MaskedLanguageModelling,
    Objective,
    objective,
    objective_class,
)
from maskwise.recipe import read_recipe
from maskwise.studies.single import run_pretrain
from maskwise.training import MaskedSource, checkpoint, optim, train
from maskwise.training.checkpoint import save_checkpoint
from maskwise.training.engine import Engine, new_accelerator
from maskwise.training.optim import BatchedMuon, Optimizers, orthogonal
from maskwise.training.ranks import ACCELERATE, Ranks, distinct, gathered, load_weights, local
from maskwise.training.several import SeveralObjectives
from processes import as_ranks, two_ranks, wait_for
from test_faults import Poisonous, Spoiled
from test_training import DATA, HELD_OUT, close, lines, run, settings
from test_wrapping import made, trained
from tiny import write_inputs
from training_tools import model, tokenizer

SLOW = pytest.mark.slow


def joined_ranks(folder: Path) -> None:
    dist.init_process_group("gloo")
    (folder / f"rank-{dist.get_rank()}").touch()


def test_ranks_find_each_other_though_another_process_takes_free_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries to take the port of the ranks just before they start."""
    plain = processes.forked
    with socket.socket() as other:

        def late(*arguments: Any, **variables: str) -> Any:
            with suppress(OSError):
                other.bind(("127.0.0.1", int(variables["MASTER_PORT"])))
                other.listen()
            return plain(*arguments, **variables)

        monkeypatch.setattr(processes, "forked", late)
        two_ranks(joined_ranks, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def check_places(module: Any, *, sharded: bool) -> None:
    """Every rank has one half of each tensor, or all of it."""
    for parameter in module.parameters():
        assert isinstance(parameter, DTensor) == sharded
        size = parameter.shape[0]
        mine = -(-size // 2) if not dist.get_rank() else size // 2
        assert local(parameter).shape[0] == (mine if sharded else size)


def rank_of_two(folder: Path) -> None:
    """Both objectives, DDP and FSDP2, in micro-batches."""
    for kind in ("mlm", "denoise"):
        for shard in (False, True):
            out = folder / f"{kind}-{'shard' if shard else 'ddp'}"
            more: dict[str, Any] = {"shard": shard, "accumulate": 2, "save_every": 2, "steps": 5}
            trainee = trained(kind, out, **more)
            check_places(trainee, sharded=shard)
            if shard or not dist.get_rank():
                save_checkpoint(out / "checkpoint", trainee.model, tokenizer())


def flops(folder: Path) -> float:
    """The FLOPs of all ranks in the last training state."""
    state = json.loads(max(folder.glob("*/step-*/state.json")).read_text())
    return float(state["flops"] + state["sums"]["flops"])


def test_two_processes_with_unequal_targets_train_as_one(tmp_path: Path) -> None:
    two_ranks(rank_of_two, tmp_path)
    for kind, auto in (("mlm", AutoModelForMaskedLM), ("denoise", AutoModelForSeq2SeqLM)):
        one = trained(kind, tmp_path / kind, steps=5, save_every=2)
        for way in ("ddp", "shard"):
            assert flops(tmp_path / f"{kind}-{way}") == flops(tmp_path / kind) > 0
            for a, b in zip(lines(tmp_path / kind), lines(tmp_path / f"{kind}-{way}"), strict=True):
                close(a, b, rel=1e-4)
            loaded, info = auto.from_pretrained(
                tmp_path / f"{kind}-{way}" / "checkpoint", output_loading_info=True
            )
            assert not info["missing_keys"] and not info["unexpected_keys"]
            for (name, mine), theirs in zip(
                one.model.named_parameters(), loaded.parameters(), strict=True
            ):
                torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=2e-5, msg=name)


def partly_used_ranks(folder: Path) -> None:
    """Ranks whose models start unlike, and whose objective does not use all weights."""
    for kind, architecture, freeze in PARTLY_USED:
        objective_of = objective_class(kind)
        maker = objective_of.maker(tokenizer(), seed=3, length=24)
        chosen = settings(steps=3, freeze=freeze)
        trainee = objective(kind, model(architecture, seed=rank_here()))
        train(trainee, MaskedSource(DATA, maker, chosen), chosen)
        for name, weight in trainee.named_parameters():
            both = [torch.empty_like(weight) for _ in range(2)]
            dist.all_gather(both, weight.detach().contiguous())
            assert torch.equal(*both), (kind, architecture, name)


PARTLY_USED = (
    ("atd", "bert", "none"),
    ("cse", "bert", "none"),
    ("rtd", "bert", "none"),
    ("tsdae", "bert", "none"),
    ("mlm", "esm", "none"),
    ("mlm", "bert", "encoder"),
)
"""Objectives that leave the head of the model unused, a model with a head for contacts, and a model
whose blocks are all frozen."""


def test_ranks_stay_equal_though_some_weights_are_unused(tmp_path: Path) -> None:
    two_ranks(partly_used_ranks, tmp_path)


def held_out_of(trainee: Any) -> tuple[HeldOut, list[object]]:
    """25 batches of fixed masks, and a list that grows with every forward pass of them."""
    scoring.ROWS_AT_ONCE = 5
    maskers = {name: Masker(tokenizer(), policy=name) for name in ("token", "whole-word")}
    log_unigram = torch.linspace(-9.0, 0.0, trainee.model.config.vocab_size).log_softmax(0)
    some = torch.arange(len(HELD_OUT))
    bound = Bound(HELD_OUT, tokenizer(), some, log_unigram=log_unigram, draws=3)
    passes: list[object] = []
    trainee.model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(None))
    return HeldOut(HELD_OUT, maskers, log_unigram, bound=bound), passes


def judged_ranks(folder: Path, shard: bool) -> None:
    trainee, masker = made("mlm")
    chosen = settings(steps=3, eval_every=2, shard=shard)
    held_out, passes = held_out_of(trainee)

    def evaluate(step: int, ranks: Ranks) -> list[dict[str, Any]]:
        passes.clear()
        divided = held_out(trainee, ranks)
        assert len(passes) == math.ceil(25 / dist.get_world_size())
        assert divided == held_out(trainee)
        return divided

    source = MaskedSource(DATA, masker, chosen)
    train(trainee, source, chosen, folder=folder, evaluate=evaluate)
    weights = gathered(distinct(trainee), keep=True)
    if not dist.get_rank():
        save_file({name: each.contiguous() for name, each in weights.items()}, folder / "weights")


@pytest.mark.parametrize(
    ("ranks", "shard"),
    [(2, False), (2, True), pytest.param(4, False, marks=SLOW), pytest.param(4, True, marks=SLOW)],
)
def test_ranks_divide_an_evaluation_and_find_what_one_process_finds(
    ranks: int, shard: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_ranks(ranks, judged_ranks, tmp_path, shard)
    trainee, _ = made("mlm")
    load_weights(trainee, load_file(tmp_path / "weights"))
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", scoring.ROWS_AT_ONCE)
    held_out, passes = held_out_of(trainee)
    with closing(Engine(trainee, settings())) as engine:
        found = engine.evaluated(partial(held_out, trainee))
    assert len(passes) == 25
    logged = [line for line in lines(tmp_path) if line["kind"] == "eval"]
    assert [line["step"] for line in logged] == [2, 2, 2, 3, 3, 3]
    assert [{"kind": "eval", "step": 3, **line} for line in found] == logged[-3:]


def misjudged_ranks(folder: Path) -> None:
    trainee, masker = made("mlm")
    chosen = settings(steps=2)
    held_out, _ = held_out_of(trainee)

    def evaluate(step: int, ranks: Ranks) -> list[dict[str, Any]]:
        if dist.get_rank() == 1:
            held_out.maskers = {}
        return held_out(trainee, ranks)

    with pytest.raises((MaskwiseError, KeyError)) as caught:
        train(trainee, MaskedSource(DATA, masker, chosen), chosen, evaluate=evaluate)
    (folder / f"said-{dist.get_rank()}").write_text(str(caught.value))


def test_an_evaluation_that_fails_on_one_rank_ends_all_ranks(tmp_path: Path) -> None:
    two_ranks(misjudged_ranks, tmp_path)
    assert (tmp_path / "said-1").read_text() == "'token'"
    assert (tmp_path / "said-0").read_text() == "process 1 failed; got KeyError('token')"


def resumed_ranks(folder: Path) -> None:
    """A sharded run that is stopped goes on bit for bit, also with Muon, and evaluates as it
    trains.
    """
    for optimizer in ("adamw", "muon"):
        more: dict[str, Any] = {
            "dropout": 0.1,
            "optimizer": optimizer,
            "shard": True,
            "save_every": 2,
            "steps": 6,
            "log_every": 1,
            "masker": Masker(tokenizer(), ratio=0.3),
            "activation_checkpointing": optimizer == "adamw",
        }
        whole, _ = run(folder / optimizer, **more)
        with suppress(KeyboardInterrupt):
            run(folder / f"{optimizer}-cut", stop=5, **more)
        again, facts = run(folder / f"{optimizer}-cut", **more)
        assert facts["resumed_at"] == 4
        for one, other in zip(whole.parameters(), again.parameters(), strict=True):
            assert torch.equal(local(one), local(other))


@pytest.mark.slow
def test_a_sharded_run_goes_on_bit_for_bit_and_muon_is_that_of_one_process(tmp_path: Path) -> None:
    two_ranks(resumed_ranks, tmp_path)
    for optimizer in ("adamw", "muon"):
        assert lines(tmp_path / optimizer) == lines(tmp_path / f"{optimizer}-cut")
        how: dict[str, Any] = {"optimizer": optimizer, "steps": 6, "log_every": 1}
        run(tmp_path / "one" / optimizer, dropout=0.1, masker=Masker(tokenizer(), ratio=0.3), **how)
        first = [line for line in lines(tmp_path / "one" / optimizer) if line["kind"] == "train"]
        two = [line for line in lines(tmp_path / optimizer) if line["kind"] == "train"]
        assert [line["targets"] for line in first] == [line["targets"] for line in two]


def test_weights_that_no_step_has_used_yet_go_on_bit_for_bit() -> None:
    """Torch's ``set_optimizer_state_dict`` would make up a state of one step for them."""
    found = []
    for stops in (False, True):
        torch.manual_seed(0)
        net = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        optimizers = Optimizers(net, settings(steps=6))
        for step in range(6):
            if stops and step == 3:
                flat = optim.state_of(optimizers.members)
                optimizers = Optimizers(net, settings(steps=6))
                optim.load_state(optimizers.members, flat)
            values = torch.ones(2, 3)
            for layer in net[: 1 if step < 3 else 2]:
                values = layer(values)
            values.square().sum().backward()
            optimizers.set_rate(step)
            optimizers.step()
            optimizers.zero_grad()
        found.append([weight.detach() for weight in net.parameters()])
    assert all(map(torch.equal, *found))


def pretrained_ranks(recipe: Path, overrides: list[str], folder: Path) -> None:
    run_pretrain(read_recipe(recipe, [*overrides, "training.shard=true"]), folder)


@pytest.mark.slow
def test_a_sharded_pretraining_writes_an_ordinary_checkpoint(
    tmp_path: Path,
) -> None:
    recipe = write_inputs(tmp_path / "inputs")
    overrides = [
        "training.steps=20",
        "training.eval_every=10",
        "model.settings.hidden_dropout_prob=0",
        "model.settings.attention_probs_dropout_prob=0",
    ]
    one = run_pretrain(read_recipe(recipe, overrides), tmp_path / "one")
    two_ranks(pretrained_ranks, recipe, overrides, tmp_path / "two")
    two = json.loads((tmp_path / "two" / "done.json").read_text())
    for a, b in zip(one["heldout"], two["heldout"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    found = []
    for way in ("one", "two"):
        found.append(AutoModelForMaskedLM.from_pretrained(tmp_path / way / "checkpoint"))
    for mine, theirs in zip(*(net.parameters() for net in found), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-2, atol=1e-4)


def half_precision_ranks(folder: Path, shard: bool) -> None:
    trainee, masker = made("mlm")
    seen: dict[str, torch.dtype] = {}
    for name, module in trainee.named_modules():
        if isinstance(module, torch.nn.Linear):

            def note(layer: Any, *_: Any, name: str = name) -> None:
                seen[name] = layer.weight.dtype

            module.register_forward_pre_hook(note)
    chosen = settings(log_every=1, steps=5, shard=shard, precision="bf16")
    train(trainee, MaskedSource(DATA, masker, chosen), chosen, folder=folder)
    assert {parameter.dtype for parameter in trainee.parameters()} == {torch.float32}
    inside = {dtype for name, dtype in seen.items() if ".layer." in name}
    outside = {dtype for name, dtype in seen.items() if ".layer." not in name}
    assert inside == {torch.bfloat16 if shard else torch.float32} and outside == {torch.float32}


@pytest.mark.slow
def test_shards_are_gathered_in_the_precision_of_training(tmp_path: Path) -> None:
    for shard in (False, True):
        two_ranks(half_precision_ranks, tmp_path / str(shard), shard)
    for a, b in zip(lines(tmp_path / "False"), lines(tmp_path / "True"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=5e-3)


class SpoiledOnRank1(Spoiled):
    """The losses of one rank alone are not finite."""

    def forward(self, batch: Any) -> Any:
        batch.objective = batch.objective if dist.get_rank() == 1 else ""
        return super().forward(batch)


def unsound_ranks(folder: Path) -> None:
    for shard in (False, True):
        masker = Poisonous(tokenizer(), ratio=0.3)
        masker.poisoned = (5, 6)
        chosen = settings(log_every=2, save_every=2, on_nan="skip", shard=shard)
        trainee, source = SpoiledOnRank1(model("bert")), MaskedSource(DATA, masker, chosen)
        out = folder / f"skip-{shard}"
        done = train(trainee, source, chosen, folder=out)
        assert done["steps"] == 12 and math.isfinite(done["loss"] or math.nan)
        weights = gathered(distinct(trainee), keep=True)
        norm = torch.tensor([sum(float(w.double().sum()) for w in weights.values())])
        both = [torch.empty_like(norm) for _ in range(2)]
        dist.all_gather(both, norm)
        assert torch.equal(*both) and norm.isfinite().all(), "ranks differ"


@pytest.mark.slow
def test_all_ranks_skip_what_is_not_finite_on_one(tmp_path: Path) -> None:
    two_ranks(unsound_ranks, tmp_path)
    for shard in (False, True):
        skipped = [
            line["skipped"] for line in lines(tmp_path / f"skip-{shard}") if line["kind"] == "train"
        ]
        assert skipped == [0, 0, 1, 2, 2, 2]


def groups_of_ranks(folder: Path) -> None:
    new_accelerator(settings(), 64)
    before = dict(dist.distributed_c10d._world.pg_map)
    for _ in range(2):
        trained("mlm", steps=2)
    assert dist.distributed_c10d._world.pg_map == before
    with pytest.raises(MaskwiseError, match="need a model with a list of layers"):
        Engine(Plain(), settings(activation_checkpointing=True))
    assert dist.distributed_c10d._world.pg_map == before


class Plain(Objective):
    """An objective without a transformers model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, batch: Any) -> Loss:
        return Loss.of(self.layer(torch.ones(2)))


def test_a_training_ends_the_process_groups_that_it_made(tmp_path: Path) -> None:
    two_ranks(groups_of_ranks, tmp_path)


def refused_ranks(folder: Path) -> None:
    said = {}
    for name, chosen, trainee in (
        ("rows", settings(batch_size=1), MaskedLanguageModelling(model("bert"))),
        ("arms", settings(shard=True), SeveralObjectives({"mlm": objective("mlm", model("bert"))})),
    ):
        with pytest.raises(MaskwiseError) as caught:
            Engine(trainee, chosen)
        said[name] = str(caught.value)
    os.environ[ACCELERATE] = "true"  # what accelerate launch --use_fsdp sets
    engine = Engine(MaskedLanguageModelling(model("bert")), settings())
    check_places(engine.objective, sharded=True)
    with pytest.raises(MaskwiseError) as caught:
        Engine(MaskedLanguageModelling(model("bert")), settings(freeze="old-rows"))
    said["frozen"] = str(caught.value)
    (folder / f"said-{dist.get_rank()}.json").write_text(json.dumps(said))


@pytest.mark.slow
def test_what_two_processes_cannot_do_is_one_line(tmp_path: Path) -> None:
    two_ranks(refused_ranks, tmp_path)
    for rank in (0, 1):
        said = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert said["rows"].endswith("multiple of accumulate × processes; got 1 for 1 × 2")
        assert said["arms"].startswith("training.shard works only with one objective")
        # The hooks that freeze rows were lost, and all rows were trained.
        assert said["frozen"].startswith("training.freeze=old-rows needs whole weights")
        assert all("\n" not in line for line in said.values())


class FailsOnRank1(Masker):
    """A masker that cannot make the batch of one step on one rank."""

    def __call__(self, rows: Any, *, step: int = 0, **more: Any) -> Any:
        if step == 5 and dist.get_rank() == 1:
            raise MaskwiseError("no words in this text", got="row 7")
        return super().__call__(rows, step=step, **more)


def failing_ranks(folder: Path, policy: str) -> None:
    chosen = settings(log_every=1)
    masker = FailsOnRank1(tokenizer(), policy=policy, ratio=0.3)
    source = MaskedSource(DATA, masker, chosen)
    out = folder / policy
    with pytest.raises(MaskwiseError) as caught:
        learners = source.learners()
        trainee = MaskedLanguageModelling(model("bert"))
        train(trainee, source, chosen, folder=out, learners=learners)
    (folder / f"{policy}-{dist.get_rank()}").write_text(str(caught.value))


def test_a_batch_that_one_rank_cannot_make_ends_all_ranks(tmp_path: Path) -> None:
    for policy in ("token", "type-weighted"):
        two_ranks(failing_ranks, tmp_path, policy)
        assert len([line for line in lines(tmp_path / policy) if line["kind"] == "train"]) == 5
        own = "no words in this text; got row 7"
        assert (tmp_path / f"{policy}-1").read_text() == own
        assert (tmp_path / f"{policy}-0").read_text() == f"process 1 failed; got {own}"


class BreaksOnRank1(MaskedLanguageModelling):
    """An objective whose third forward pass fails on one rank, while the other one goes on."""

    passes = 0

    def forward(self, batch: Any) -> Loss:
        self.passes += 1
        if self.passes == 3 and dist.get_rank() == 1:
            raise MemoryError("nothing left")
        return super().forward(batch)


def broken_ranks(folder: Path) -> None:
    chosen = settings(log_every=1)
    source = MaskedSource(DATA, Masker(tokenizer(), ratio=0.3), chosen)
    out = folder / "run"
    try:
        train(BreaksOnRank1(model("bert")), source, chosen, folder=out)
    except Exception as error:
        (folder / f"said-{dist.get_rank()}").write_text(repr(error))
        # The process ends, as one of torchrun does.
        raise


@pytest.mark.process
def test_a_step_that_fails_on_one_rank_ends_the_other(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        two_ranks(broken_ranks, tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("said-*"))) == 2)
    assert (tmp_path / "said-1").read_text() == "MemoryError('nothing left')"
    assert "MemoryError" not in (tmp_path / "said-0").read_text()
    assert [line["step"] for line in lines(tmp_path / "run") if line["kind"] == "train"] == [1, 2]


def ranks_on_two_disks(folder: Path) -> None:
    """Each rank has a disk of its own; rank 1 has other states than rank 0."""
    folders.LATE_SECONDS = 0.3
    done = {}
    for name in ("newer", "older"):
        trainee, masker = made("mlm")
        chosen = settings(save_every=3)
        try:
            out = folder / f"{name}-{rank_here()}"
            source = MaskedSource(DATA, masker, chosen)
            done[name] = train(trainee, source, chosen, folder=out)["resumed_at"]
        except MaskwiseError as error:
            done[name] = str(error)
    (folder / f"done-{rank_here()}.json").write_text(json.dumps(done))


def test_the_first_rank_chooses_the_state_for_all(tmp_path: Path) -> None:
    trainee, masker = made("mlm")
    chosen = settings(save_every=3, keep=9)
    train(trainee, MaskedSource(DATA, masker, chosen), chosen, folder=tmp_path / "all")
    for name, kept in {"newer": ((3,), (3, 6, 9)), "older": ((3, 6), (3,))}.items():
        for rank in (0, 1):
            for step in kept[rank]:
                state = f"resume/step-{step:08d}"
                shutil.copytree(tmp_path / "all" / state, tmp_path / f"{name}-{rank}" / state)
    two_ranks(ranks_on_two_disks, tmp_path)
    first, second = (json.loads((tmp_path / f"done-{rank}.json").read_text()) for rank in (0, 1))
    assert first["newer"] == second["newer"] == 3
    assert "step-00000006 is not visible to process 1" in second["older"]
    assert first["older"].startswith("process 1 failed; got ") and second["older"] in first["older"]


def ranks_of_two_clocks(folder: Path) -> None:
    """For rank 0 a state is always due, and never for rank 1."""
    checkpoint.SAVE_SECONDS = math.inf if rank_here() else 0.0
    checkpoint.SAVE_SHARE = math.inf
    trainee, masker = made("mlm")
    chosen = settings(keep=99)
    train(trainee, MaskedSource(DATA, masker, chosen), chosen, folder=folder / "run")


def test_the_first_rank_says_when_all_save(tmp_path: Path) -> None:
    two_ranks(ranks_of_two_clocks, tmp_path)
    saved = sorted(int(path.name[5:]) for path in (tmp_path / "run/resume").iterdir())
    assert saved == list(range(1, 12))


def muon_of_a_rank(folder: Path) -> None:
    """Two steps with matrices of two shapes, one of them transposed; one group has a single one."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = []
    for count, place in ((ranks, rank), (1, 0)):
        torch.manual_seed(0)
        shapes = [(4, 6)] * 4 + [(6, 4), (5, 5)]
        weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        muon = BatchedMuon(weights, lr=0.1, weight_decay=0.1, rank=place, ranks=count)
        products: list[int] = []

        def counting(wide: Tensor, *options: Any, products: list[int] = products) -> Tensor:
            products.append(len(wide))
            return orthogonal(wide, *options)

        muon.turn = counting
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.randn(weight.shape)
            muon.step()
        assert products == [-(-5 // count), 1] * 2
        found.append([weight.detach() for weight in weights])
    for shared, alone in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-6)
        copies = [torch.empty_like(shared) for _ in range(ranks)]
        dist.all_gather(copies, shared)
        assert all(torch.equal(copy, shared) for copy in copies)
    (folder / f"rank-{rank}").touch()


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_share_the_work_of_muon(ranks: int, tmp_path: Path) -> None:
    as_ranks(ranks, muon_of_a_rank, tmp_path)
    assert len(list(tmp_path.iterdir())) == ranks
