"""Several objectives in one model: the sampler's draws, probes, resuming, and two ranks as one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from maskwise.base.constants import rank_here, ranks_here
from maskwise.objectives import objective, objective_class
from maskwise.samplers import Sampler, sampler
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.training.data import look_ahead
from maskwise.training.engine import Agreement, Engine
from maskwise.training.learners import GroupLearner, TypeLearner
from maskwise.training.loop import Exchange
from maskwise.training.ranks import Ranks
from maskwise.training.several import (
    Probe,
    SamplerLearner,
    SeveralObjectives,
    SeveralSources,
    probe_rows,
)
from processes import as_ranks, two_ranks
from test_training import close
from training_tools import LENGTH, Language, model, tokenizer

ARMS = {"mlm": {}, "atd": {}, "cse": {}, "mlm-40": {"ratio": 0.4}}


class Documents(Language):
    """The language, in "documents" of one row each."""

    def __init__(self, rows: int, *, seed: int = 0, first: int = 0):
        super().__init__(rows, seed=seed)
        self.documents = np.arange(first, first + rows)

    def line(self, rows: Tensor) -> dict[str, Tensor]:
        found = super().line(rows)
        salient = torch.where(found["word_ids"] % 3 == 0, found["word_ids"], -1)
        return {**found, "salient": salient, "group": found["word_ids"] % 2}


DATA, HELD_OUT = Documents(40), Documents(24, seed=1, first=1000)


def run(
    folder: Path | None = None,
    *,
    spec: str = "mometas(every=4)",
    arms: dict[str, Any] = ARMS,
    stop: int | None = None,
    dropout: float = 0.1,
    **more: Any,
) -> tuple[SeveralObjectives, Sampler]:
    """Twelve steps of a tiny model on several arms."""
    plain = {"steps": 12, "batch_size": 8, "log_every": 2, "precision": "no", "eval_every": 1}
    settings = TrainingSettings(**{**plain, "learning_rate": 3e-3, **more})
    joined, source = contrasted(settings, arms, spec, dropout=dropout)
    chooser = source.sampler
    ranks = ranks_here()

    def probe() -> Probe:
        sizes = {name: probe_rows(8, ranks=ranks, twins=name == "cse") for name in arms}
        return Probe(
            joined,
            source,
            dict.fromkeys(arms, HELD_OUT),
            sizes=sizes,
            skip={},
            fresh=getattr(chooser, "faithful", False),
            rank=rank_here(),
            ranks=ranks,
        )

    def evaluate(step: int, _: Ranks) -> list[dict[str, Any]]:
        if step == stop:
            raise KeyboardInterrupt
        return []

    learners = {**source.learners(), "sampler": SamplerLearner(chooser, probe)}
    train(joined, source, settings, folder=folder, learners=learners, evaluate=evaluate)
    return joined, chooser


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if "seconds" not in k and k not in ("speed", "probe_share")}
        for line in found
        if line["kind"] == "train"
    ]


def same(a: SeveralObjectives, b: SeveralObjectives) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param("mometas(every=4)", marks=pytest.mark.slow),
        pytest.param("mometas(every=4, faithful=True)", marks=pytest.mark.slow),
        "mometas-plus(every=2)",
    ],
)
def test_a_stopped_run_draws_the_same_arms_and_learns_the_same(spec: str, tmp_path: Path) -> None:
    whole, chooser = run(tmp_path / "whole", spec=spec, save_every=2)
    for stop in (3, 8, 11):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(stop), spec=spec, save_every=2, stop=stop)
        again, other = run(tmp_path / str(stop), spec=spec, save_every=2)
        assert same(whole, again), stop
        assert torch.equal(chooser.probabilities(), other.probabilities())
        assert lines(tmp_path / str(stop)) == lines(tmp_path / "whole")
    last = lines(tmp_path / "whole")[-1]
    assert sum(sum(line["objective_steps"].values()) for line in lines(tmp_path / "whole")) == 12
    assert set(last["probe_losses"]) == set(ARMS) and set(last["probabilities"]) == set(ARMS)
    assert not torch.equal(chooser.probabilities(), sampler(spec, list(ARMS)).probabilities())


@pytest.mark.parametrize("spec", ["mometas(every=3)", "mometas(every=3, faithful=True)"])
def test_batches_wait_for_a_probe_and_for_nothing_else(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two probes, a batch is made during the step before it, as without a sampler."""
    _, source = contrasted(TrainingSettings(batch_size=8, steps=7), ARMS, spec)
    assert [source.ahead(step) for step in range(7)] == [step % 3 != 0 for step in range(7)]
    early, chooser = run(spec=spec)
    monkeypatch.setattr(SeveralSources, "ahead", lambda self, step: False)
    late, other = run(spec=spec)
    assert same(early, late) and torch.equal(chooser.probabilities(), other.probabilities())


def test_a_stopped_run_probes_with_the_same_masks_though_a_policy_has_learnt(
    tmp_path: Path,
) -> None:
    """The probe is made anew after a stop, from the policy as it began; the name of the arm has a
    dot.
    """
    arms: dict[str, Any] = {
        "mlm-0.3": {"ratio": 0.3, "policy": "group-weighted(layer='group')"},
        "atd": {},
    }
    whole, chooser = run(tmp_path / "whole", arms=arms, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", arms=arms, save_every=2, stop=7)
    again, other = run(tmp_path / "again", arms=arms, save_every=2)
    assert lines(tmp_path / "again") == lines(tmp_path / "whole")
    assert same(whole, again) and torch.equal(chooser.probabilities(), other.probabilities())
    assert lines(tmp_path / "whole")[-1]["mlm-0.3 weights"]["0"] != 0.5


def test_the_same_probe_before_and_after_and_no_trace_of_it() -> None:
    """Probing twice gives the same losses, fresh probes others; no generator and no mode moves."""
    two, source = contrasted()
    two.train()
    held_out = dict.fromkeys(source.sources, HELD_OUT)
    more: dict[str, Any] = {"sizes": {"mlm": 8, "cse": 16}, "skip": {"mlm": range(5)}}
    probe, fresh = (Probe(two, source, held_out, fresh=f, **more) for f in (False, True))
    before = torch.get_rng_state()
    assert torch.equal(probe(0), probe(1)) and not torch.equal(fresh(0), fresh(1))
    assert torch.equal(before, torch.get_rng_state()) and two.training
    assert sorted(probe.rows["mlm"].tolist()) == list(range(5, 24))
    first, second = ({*half.line.example_id.tolist()} for half in probe.batches["mlm"])
    assert first and second and not first & second  # else their agreement would say nothing
    halves = [Probe(two, source, held_out, rank=r, ranks=2, **more)(0) for r in (0, 1)]
    torch.testing.assert_close((halves[0] + halves[1])[..., 0], probe(0)[..., 0], rtol=1e-6, atol=0)
    source.settings = TrainingSettings(batch_size=8, steps=10, seed=1)
    other = Probe(two, source, held_out, **more)
    assert other.rows["mlm"].tolist() != probe.rows["mlm"].tolist()  # every run has rows of its own


def test_a_stop_between_two_lines_loses_nothing_of_them(tmp_path: Path) -> None:
    run(tmp_path / "whole", save_every=3, log_every=4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", save_every=3, log_every=4, stop=7)
    run(tmp_path / "cut", save_every=3, log_every=4)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert [sum(line["objective_steps"].values()) for line in lines(tmp_path / "cut")] == [4, 4, 4]


def test_shares_that_come_to_nothing_at_the_end_are_never_asked_for_there(tmp_path: Path) -> None:
    down = "linear(1, 0)"
    run(tmp_path, spec=f'shares("{down}", "{down}")', arms={"mlm": {}, "atd": {}})
    assert lines(tmp_path)[-1]["probabilities"] == {"mlm": 0.5, "atd": 0.5}


def test_the_reliability_of_the_reward_is_logged(tmp_path: Path) -> None:
    run(tmp_path, spec="mometas-plus(every=1)")
    logged = [line.get("reliability") for line in lines(tmp_path)]
    # six rewards say something, fewer nothing
    assert logged[0] is None and logged[-1] is not None and logged[-1] <= 1


def test_updates_that_can_choose_a_step_are_counted(tmp_path: Path) -> None:
    """The first probe updates nothing, and the one after the last of 12 steps comes too late."""
    for spec, last in {"mometas-plus(every=3)": 3, "loss-proportional(every=5)": 2}.items():
        whole, cut = tmp_path / f"{last} whole", tmp_path / f"{last} cut"
        run(whole, spec=spec, log_every=2)
        with pytest.raises(KeyboardInterrupt):
            run(cut, spec=spec, log_every=2, stop=7, save_every=3)
        run(cut, spec=spec, log_every=2, save_every=3)
        counts = [line["updates"] for line in lines(whole)]
        assert counts == sorted(counts) and counts[-1] == last, spec
        assert [line["updates"] for line in lines(cut)] == counts, spec
    run(tmp_path / "uniform", spec="uniform")
    assert "updates" not in lines(tmp_path / "uniform")[-1]


def test_each_arm_trains_its_own_head_and_the_shared_encoder(tmp_path: Path) -> None:
    """And heads of the same name go on in a later phase."""
    arms = {"mlm": {}, "atd": {}, "dtd": {}}
    trained, _ = run(spec="single(atd)", arms=arms, steps=2)
    fresh, _ = contrasted(arms=arms)
    moved = set()
    for (name, a), b in zip(trained.named_parameters(), fresh.parameters(), strict=True):
        if not torch.equal(a, b):
            moved.add(name)
    assert any("encoder.layer.0" in name for name in moved)
    assert any(name.startswith("members.1.head") for name in moved)
    assert not any(name.startswith("members.2.head") for name in moved)
    assert not any("cls.predictions.transform" in name for name in moved)
    heads = {name: value.contiguous() for name, value in trained.heads().items()}
    assert {name.split(".")[0] for name in heads} == {"atd", "dtd"}
    save_file({"atd.head.weight": heads["atd.head.weight"]}, tmp_path / "heads.safetensors")
    new = fresh.heads()["dtd.head.weight"].clone()
    fresh.load_heads(tmp_path / "heads.safetensors")
    assert torch.equal(fresh.heads()["atd.head.weight"], heads["atd.head.weight"])
    assert torch.equal(fresh.heads()["dtd.head.weight"], new)


def rank_of_two(folder: Path) -> None:
    arms: dict[str, Any] = {"mlm": {}, "atd": {}, "dtd": {}}
    _, chooser = run(folder, steps=3, spec="mometas(every=1)", arms=arms, dropout=0.0)
    gathered = [torch.empty_like(chooser.logits) for _ in range(2)]
    dist.all_gather(gathered, chooser.logits)
    assert torch.equal(*gathered), gathered
    run(steps=3, spec="mometas(every=1)", arms={"cse": {}, "emlm": {}, "rtd": {}})
    if dist.get_rank() == 0:
        (folder / "logits.txt").write_text(" ".join(map(repr, chooser.logits.tolist())))


def test_two_ranks_draw_the_same_arms_and_learn_as_one(tmp_path: Path) -> None:
    two_ranks(rank_of_two, tmp_path)
    two = [float(word) for word in (tmp_path / "logits.txt").read_text().split()]
    arms: dict[str, Any] = {"mlm": {}, "atd": {}, "dtd": {}}
    _, chooser = run(steps=3, spec="mometas(every=1)", arms=arms, dropout=0.0)
    assert two == pytest.approx(chooser.logits.tolist(), abs=1e-4) and two != [1.0] * 3


def test_lines_and_states_of_learners_exchange_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first rank writes them, and the others must not wait for it."""
    reading: list[str] = []
    exchanged: list[tuple[str, ...]] = []
    start = Agreement.start

    def watched(self: Agreement, local: Tensor) -> Any:
        exchanged.append(tuple(reading))
        return start(self, local)

    def watch(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def inside(self: Any) -> Any:
            reading.append(name)
            found = method(self)
            reading.pop()
            return found

        monkeypatch.setattr(kind, name, inside)

    monkeypatch.setattr(Agreement, "start", watched)
    for kind in (SamplerLearner, TypeLearner, GroupLearner, Exchange):
        watch(kind, "state_dict")
    for kind in (SamplerLearner, TypeLearner, GroupLearner):
        watch(kind, "facts")
    watch(SamplerLearner, "spent")
    arms: dict[str, Any] = {
        "mlm": {"policy": "type-weighted(every=5)"},
        "mlm-groups": {"policy": "group-weighted(layer=group, groups=2)"},
    }
    run(tmp_path, spec="mometas(every=4)", arms=arms, save_every=3, log_every=5)
    assert exchanged and set(exchanged) == {()}


OWN = {"mlm": {}, "emlm": {}, "atd": {}, "dtd": {}}
"""Objectives with heads of their own, whose losses do not depend on the number of ranks."""


def drawn_ranks(folder: Path, accumulate: int) -> None:
    joined, _ = run(
        folder, spec="uniform", arms=OWN, dropout=0.0, accumulate=accumulate, weight_decay=0.1
    )
    weights = dict(joined.named_parameters())
    for weight in weights.values():
        gathered = [torch.empty_like(weight) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, weight.detach().contiguous())
        assert all(torch.equal(weight, other) for other in gathered), "ranks differ"
    if dist.get_rank() == 0:
        tensors = {name: weight.detach().contiguous() for name, weight in weights.items()}
        save_file(tensors, folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("ranks", "accumulate"), [(2, 1), *(pytest.param(4, n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_several_ranks_train_the_arms_as_one_does(
    ranks: int, accumulate: int, tmp_path: Path
) -> None:
    as_ranks(ranks, drawn_ranks, tmp_path / "several", accumulate)
    how: dict[str, Any] = {"spec": "uniform", "arms": OWN, "dropout": 0.0, "weight_decay": 0.1}
    one, _ = run(tmp_path / "one", **how)
    drawn = [
        {arm for arm, n in line["objective_steps"].items() if n} for line in lines(tmp_path / "one")
    ]
    assert drawn[0] != set(OWN) == set.union(*drawn)
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "several"), strict=True):
        close(a, b, rel=1e-4)
    several = load_file(tmp_path / "several" / "weights.safetensors")
    for name, weight in one.named_parameters():
        torch.testing.assert_close(several[name], weight, rtol=1e-3, atol=2e-5, msg=name)


def undrawn_ranks(folder: Path) -> None:
    arms: dict[str, Any] = {"mlm": {}, "atd": {}, "dtd": {}}
    joined, source = contrasted(arms=arms, spec="single(atd)")
    before = [weight.clone() for weight in joined.parameters()]
    chosen = source.settings.model_copy(update={"steps": 3, "weight_decay": 0.5})
    engine = Engine(joined, chosen)
    assert isinstance(engine.wrapped, DistributedDataParallel)
    assert not engine.wrapped.find_unused_parameters
    summed = partial(engine.summed, ahead=True)
    for step in look_ahead(source, range(3), rank=engine.rank, ranks=2, summed=summed):
        engine.update(step, lambda *_: None)
    still = set()
    for (name, weight), old in zip(joined.named_parameters(), before, strict=True):
        if torch.equal(weight, old):
            still.add(name)
    assert all("cls.predictions" in each or "members.2.head" in each for each in still)
    assert {"members.2.head.weight", "model.cls.predictions.transform.dense.weight"} <= still
    engine.close()


def test_ranks_leave_heads_that_no_step_uses_without_searching_for_them(tmp_path: Path) -> None:
    """Neither weight decay nor momentum changes such a head."""
    two_ranks(undrawn_ranks, tmp_path)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("rows", [4, 96])
def test_both_halves_of_a_probe_have_as_many_rows_on_every_rank(rows: int, ranks: int) -> None:
    """Of twins an even number, four at least: embeddings of all ranks are gathered. 96 rows are 48
    pairs.
    """
    sizes = {
        "mlm": probe_rows(rows, ranks=ranks, twins=False),
        "cse": probe_rows(rows, ranks=ranks, twins=True),
    }
    assert rows <= min(sizes.values()) and max(sizes.values()) < max(rows, 8 * ranks) + 4 * ranks
    joined, source = contrasted()
    held_out = dict.fromkeys(sizes, Documents(140, seed=1, first=1000))
    for rank in range(ranks):
        part = Probe(joined, source, held_out, sizes=sizes, skip={}, rank=rank, ranks=ranks)
        for arm, size in sizes.items():
            assert {len(half.input_ids) for half in part.batches[arm]} == {size // (2 * ranks)}
    half = sizes["cse"] // (2 * ranks)
    assert half >= 4 and half % 2 == 0


def test_twins_drop_out_in_a_probe_but_not_in_a_faithful_one() -> None:
    """The released code probes in evaluation mode, where twins are equal; ours needs them to
    differ.
    """
    joined, source = contrasted()
    bert = joined.model.bert
    seen: list[bool] = []
    bert.get_input_embeddings().register_forward_hook(
        lambda *_: seen.append(bert.embeddings.dropout.training)
    )
    held_out = dict.fromkeys(source.sources, HELD_OUT)
    for fresh in (False, True):
        Probe(joined, source, held_out, sizes={"mlm": 8, "cse": 16}, skip={}, fresh=fresh)(0)
        assert set(seen[-2:]) == {not fresh} and joined.named("cse").drops


def contrasted(
    settings: TrainingSettings | None = None,
    arms: Mapping[str, Any] = MappingProxyType({"mlm": {}, "cse": {}}),
    spec: str = "uniform",
    *,
    dropout: float = 0.1,
) -> tuple[SeveralObjectives, SeveralSources]:
    """Arms over one model, and what they train on."""
    settings = settings or TrainingSettings(batch_size=8, steps=10)
    torch.manual_seed(5)
    net = model("bert", **({"hidden_dropout_prob": dropout} if dropout else {}))
    kinds = {name: name.partition("-")[0] for name in arms}
    joined = SeveralObjectives({name: objective(kind, net) for name, kind in kinds.items()})
    sources = {}
    for name, masking in arms.items():
        kind = objective_class(kinds[name])
        maker = kind.maker(tokenizer(), seed=3, length=LENGTH + 8, **masking)
        sources[name] = MaskedSource(DATA, maker, settings)
    chooser = sampler(spec, list(arms), seed=settings.seed)
    return joined, SeveralSources(sources, chooser, settings)
