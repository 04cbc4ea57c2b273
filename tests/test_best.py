"""The best state of a training by dev text: the same after every interruption and on all ranks, and
chosen by no document that judges it.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_lines
from maskwise.base.specs import split_options
from maskwise.evaluation.evaluate import Text, evaluate, load_measures
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies import run_stage
from maskwise.studies.adapt import Request
from maskwise.studies.adapt.answer import answer_sentences
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.design import Design
from maskwise.studies.plan import make_plan, make_run
from maskwise.studies.records import chosen_steps
from maskwise.studies.single import run_pretrain, stages_of_training
from maskwise.studies.store import StageStore
from maskwise.studies.work import open_prepared
from maskwise.text import Rows, read_documents
from maskwise.text.rows import dev_and_verdict, held_out_below, holds_out, is_dev
from maskwise.text.words import text_id
from maskwise.training import MaskedSource, train
from maskwise.training.best import Best
from maskwise.training.checkpoint import RESUME
from maskwise.training.ranks import Ranks, distinct, gathered
from processes import two_ranks
from test_training import DATA, settings
from test_wrapping import made
from tiny import WORDS, load_json, maskwise, write_inputs, write_lines

LOSSES = (9.0, 4.0, 6.0, 3.0, 5.0, 8.0, 3.0, 1.0)
"""Losses of evaluations after each step. With a patience of 3, the fourth is the best."""
FAST = {"steps": 8, "eval_every": 1, "save_every": 2, "patience": 3, "keep": 1}


def test_patience_counts_evaluations_also_one_before_its_time() -> None:
    """An evaluation every 100 steps, and one at the end, after 250."""
    best = Best(2, every=100)
    assert best.compare(100, 3.0) and not best.is_enough(100)
    assert not best.compare(200, 3.0) and not best.is_enough(200)
    assert not best.compare(250, 4.0) and best.is_enough(250)
    assert best.compare(300, 2.0) and not best.is_enough(300)
    assert not best.is_enough(400) and best.is_enough(500)


def scripted(
    folder: Path, *, kill: int | None = None, **more: Any
) -> tuple[Best, dict[str, Any], dict[str, Tensor]]:
    """Train with these losses; ``kill``: break off in the evaluation after this step."""
    chosen = settings(**FAST | more)
    trainee, masker = made("mlm")
    best = Best(chosen.patience or 0, every=1)

    def evaluate(step: int, ranks: Ranks) -> list[dict[str, Any]]:
        if step == kill:
            raise KeyboardInterrupt
        best.compare(step, LOSSES[step - 1])
        return [{"loss": LOSSES[step - 1], "enough": best.is_enough(step)}]

    source = MaskedSource(DATA, masker, chosen)
    how: dict[str, Any] = {"folder": folder, "evaluate": evaluate}
    done = train(trainee, source, chosen, learners={"best": best}, **how)
    best.load_best()
    weights = gathered(distinct(trainee), keep=True)
    return best, dict(done), {name: each.clone() for name, each in weights.items()}


def plainly(steps: int) -> dict[str, Tensor]:
    """The weights after some steps of a training of eight steps that nothing ends."""
    trainee, masker = made("mlm")
    best: dict[str, Tensor] = {}

    def evaluate(step: int, ranks: Ranks) -> list[dict[str, Any]]:
        if step == steps:
            best.update({name: each.clone() for name, each in distinct(trainee).items()})
        return []

    chosen = settings(steps=8, eval_every=1)
    train(trainee, MaskedSource(DATA, masker, chosen), chosen, evaluate=evaluate)
    return best


def equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[k], others[k]) for k in some)


def test_training_ends_without_progress_and_has_its_best_weights(tmp_path: Path) -> None:
    best, done, weights = scripted(tmp_path)
    assert (best.step, best.loss, done["steps"]) == (4, 3.0, 7)
    assert equal(weights, plainly(4)) and not equal(weights, plainly(7))


@pytest.mark.parametrize("log_every", [1, 3, 100])
@pytest.mark.parametrize("save_every", [0, 7])
def test_what_a_run_that_ends_early_has_trained_on_is_known(
    log_every: int, save_every: int, tmp_path: Path
) -> None:
    """Its last step is the seventh, which need not be one with a line, and may have a state."""
    _, done, _ = scripted(tmp_path, log_every=log_every, save_every=save_every)
    _, wanted, _ = scripted(tmp_path / "every", log_every=1, save_every=0)
    assert {**done, "seconds": 0, "loss": 0} == {**wanted, "seconds": 0, "loss": 0}
    lines = [*read_lines(tmp_path / "metrics.jsonl")]
    trained = [line["step"] for line in lines if line["kind"] == "train"]
    assert trained == sorted({*range(log_every, 8, log_every), 7})
    assert sum(line["targets"] for line in lines if line["kind"] == "train") == done["targets"]


@pytest.mark.parametrize("kill", [3, 5, 7])
def test_a_run_that_was_killed_has_the_same_best_state_and_end(kill: int, tmp_path: Path) -> None:
    _, _, whole = scripted(tmp_path / "whole")
    with suppress(KeyboardInterrupt):
        scripted(tmp_path / "killed", kill=kill)
    assert (tmp_path / "killed" / RESUME).is_dir()
    best, done, weights = scripted(tmp_path / "killed")
    assert (done["resumed_at"], done["steps"], best.step) == (kill - 1, 7, 4)
    assert equal(weights, whole)
    logged = [
        [(line["step"], line["loss"]) for line in read_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "killed")
    ]
    assert logged[0] == logged[1]


def best_of_ranks(folder: Path, shard: bool) -> None:
    with suppress(KeyboardInterrupt):
        scripted(folder / "run", kill=6, shard=shard)
    best, done, weights = scripted(folder / "run", shard=shard)
    assert (best.step, done["steps"], done["resumed_at"]) == (4, 7, 4)
    rank = torch.distributed.get_rank()
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / f"{rank}")


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ranks_have_the_best_weights_of_one_process(shard: bool, tmp_path: Path) -> None:
    two_ranks(best_of_ranks, tmp_path, shard)
    first, second = load_file(tmp_path / "0"), load_file(tmp_path / "1")
    assert equal(first, second)
    for name, tensor in plainly(4).items():
        assert torch.allclose(first[name], tensor, atol=1e-5), name


# Documents


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


CHOOSING = ("training.patience=2", "training.eval_every=4", "training.learning_rate=0.05")
"""At this rate, the loss rises soon."""


def prepared(recipe: Recipe, folder: Path) -> Any:
    text = make_plan(recipe).runs[0].chain[0]
    run_stage(text, StageStore(folder))
    return open_prepared(StageStore(folder).folder(text))


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_held_out_documents_choose_or_judge_by_the_last_bit(
    layout: str, source: Path, tmp_path: Path
) -> None:
    held_out = prepared(read_recipe(source, [f"corpus.layout={layout}"]), tmp_path).held_out
    dev, verdict = dev_and_verdict(held_out)
    texts = [line["text"] for line in read_lines(source.parent / "corpus.jsonl")]
    hashes = {*map(text_id, texts)} & {*held_out.documents.tolist()}
    assert {*dev.documents.tolist()} == {place for place in hashes if place % 2 == 0}
    assert {*verdict.documents.tolist()} == {place for place in hashes if place % 2}
    # Every piece is in one of them, as it was.
    both = np.sort(np.concatenate([dev.order, verdict.order]))
    assert both.tolist() == sorted(held_out.order.tolist())
    assert dev.layout == verdict.layout == layout


def test_repeated_texts_of_a_stream_are_on_one_side(source: Path, tmp_path: Path) -> None:
    lines = [line["text"][:60] for line in read_lines(source.parent / "corpus.jsonl")]
    corpus = write_lines(tmp_path / "twice.jsonl", [{"text": text} for text in lines + lines])
    more = [f"corpus.source={corpus}", "corpus.stream=true", "corpus.shuffle=0.01"]
    data = prepared(read_recipe(source, more), tmp_path / "stages")
    dev, verdict = dev_and_verdict(data.held_out)
    texts = []
    for part in (dev, verdict):
        rows = part.laid("document").tensors(range(len(part.laid("document"))))["input_ids"]
        texts.append({tuple(row) for row in rows.tolist()})
    assert texts[0] and texts[1] and not texts[0] & texts[1]
    assert {*dev.documents.tolist()} <= {text_id(text) for text in lines}


def test_too_few_documents_are_one_line(source: Path, tmp_path: Path) -> None:
    data = prepared(read_recipe(source), tmp_path)
    pieces = data.held_out.pieces
    one = Rows.of(pieces, chosen=np.flatnonzero(pieces.documents == data.held_out.documents[0]))
    with pytest.raises(MaskwiseError, match=r"got 1 held-out document.*corpus\.held_out"):
        dev_and_verdict(one)


# Runs


def test_pretraining_keeps_its_best_state_and_says_so(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert maskwise("pretrain", source, *CHOOSING, "--out", out) == 0
    done = load_json(out / "done.json")
    evaluations = [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "eval"]
    assert {line["documents"] for line in evaluations} == {"dev"}
    losses = {line["step"]: line["loss"] for line in evaluations if line["masks"] == "token"}
    # The arm trains with token masks, so their loss chooses.
    assert done["best_step"] == min(losses, key=losses.__getitem__) == done["steps"] - 8 < 40
    assert done["dev_loss"] == min(losses.values())
    said = " ".join(capfd.readouterr().out.split())
    assert f"Best at {done['best_step']} of 40 steps" in said
    assert f"ended after {done['steps']}" in said
    recipe = read_recipe(source, CHOOSING)
    texts, _ = stages_of_training(recipe)
    data = open_prepared(StageStore(out / "stages").folder(texts[0]))
    # The checkpoint has the losses that the run reports, on documents that did not choose it.
    dev, verdict = dev_and_verdict(data.held_out)
    for rows, reported in ((verdict, done["heldout"][0]["loss"]), (dev, done["dev_loss"])):
        text = Text(data.tokenizer, rows)
        found = evaluate(str(out / "checkpoint"), text, recipe.evaluation)[0]
        assert (found.kind, found.measure, found.split) == ("heldout", "token", "test")
        assert found.value == pytest.approx(reported, rel=1e-6)


@pytest.mark.parametrize("kill", [2, 3])
def test_pretraining_resumes_to_the_same_best_state(
    kill: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies in an evaluation."""
    recipe = read_recipe(source, CHOOSING)
    whole = run_pretrain(recipe, tmp_path / "whole")
    compare = Best.compare
    calls = []

    def dying(best: Best, step: int, loss: float) -> bool:
        calls.append(step)
        if len(calls) == kill:
            raise KeyboardInterrupt
        return compare(best, step, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Best, "compare", dying)
        with suppress(KeyboardInterrupt):
            run_pretrain(recipe, tmp_path / "killed")
    assert not (tmp_path / "killed/done.json").exists()
    again = run_pretrain(recipe, tmp_path / "killed")
    same = ("best_step", "dev_loss", "heldout", "steps", "targets", "loss")
    assert [again[key] for key in same] == [whole[key] for key in same]
    weights = [load_file(Path(each["checkpoint"]) / "model.safetensors") for each in (whole, again)]
    assert equal(*weights)


def test_each_seed_chooses_and_all_runs_are_judged_on_the_same_documents(
    source: Path, tmp_path: Path
) -> None:
    arms = "study.arms={stop: {training.patience: 2, training.eval_every: 4}, on: {}}"
    recipe = read_recipe(source, [arms, "study.seeds=2", "tasks=[]", "training.learning_rate=0.05"])
    plan = make_plan(recipe)
    store = StageStore(tmp_path)
    for stage in plan.stages():
        run_stage(stage, store)
    steps = {}
    for run in plan.runs:
        assert run.evaluated and run.evaluated.what["documents"] == "verdict"
        result = store.result(run.trainings[-1]) or {}
        steps[run.arm, run.seed] = result.get("best_step")
        # The rows of the verdict: as many targets for every arm, and fewer than of all rows.
        first = (store.result(run.evaluated) or {})["measurements"][0]
        assert first["items"] < 100
    assert None not in (steps["stop", 0], steps["stop", 1])
    assert steps["on", 0] is steps["on", 1] is None


def test_names_of_stages_have_what_chooses() -> None:
    short = ("study.seeds=1", "study.outcome=heldout:token")

    def names(*more: str) -> list[str]:
        plan = make_plan(read_recipe("quick-start", [*short, *more]))
        return [stage.name for stage in plan.stages() if stage.kind in ("pretrain", "evaluate")]

    plain = names()
    assert plain == names("training.eval_every=9") == names("training.patience=null")
    choosing = [
        names("training.patience=2", *more)
        for more in (
            (),
            ("training.eval_every=9",),
            ("evaluation.rows=9",),
            ("evaluation.ratios=[0.2]",),
            ("evaluation.masks=[token]",),
        )
    ]
    for number, some in enumerate(choosing):
        assert not {*some} & {*plain}
        assert all({*some[:1]} != {*others[:1]} for others in choosing[:number])
    # A further ratio is measured, but does not choose.
    one, two = (
        names("training.patience=2", f"evaluation.ratios={r}") for r in ("[0.2]", "[0.2, 0.4]")
    )
    assert one != two and {*one} & {*two}


def test_the_unchanged_model_is_judged_on_the_same_documents() -> None:
    more = ["model={pretrained: bundled:encoder}", "tokenizer={}", "training.patience=2"]
    recipe = read_recipe("quick-start", more)
    run = make_run(recipe, REFERENCE, 0, contents={})
    assert run.evaluated and run.evaluated.what["documents"] == "verdict"


def test_a_plan_says_that_runs_may_end_early(source: Path, tmp_path: Path) -> None:
    for more, said in (((), False), (CHOOSING, True)):
        design = Design(read_recipe(source, more), StageStore(tmp_path))
        assert any("training.patience" in note for note in design.open_questions()) == said


def test_a_sampler_may_not_learn_from_documents_that_judge_it(source: Path) -> None:
    several = "objective={mlm: , x: {objective: atd}}"
    arms = "study.arms={stop: {training.patience: 2}, on: {}}"
    make_plan(read_recipe(source, [several, arms, "tasks=[]"]))
    with pytest.raises(MaskwiseError, match=r"'on'.*all arms"):
        make_plan(read_recipe(source, [several, arms, "tasks=[]", "sampler=mometas"]))
    make_plan(read_recipe(source, [several, "sampler=mometas", "tasks=[]", "training.patience=2"]))


# adapt


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A text with titles, and labelled rows."""
    draw = random.Random(0)
    texts = []
    for _ in range(200):
        body = ". ".join(" ".join(draw.choices(WORDS, k=7)).capitalize() for _ in range(4))
        texts.append({"title": " ".join(draw.sample(WORDS, 3)), "text": f"{body}."})
    write_lines(tmp_path / "texts.jsonl", texts)
    rows = [{"text": " ".join(draw.choices(WORDS, k=6)), "label": n % 2} for n in range(60)]
    write_lines(tmp_path / "task.jsonl", rows)
    return tmp_path


def adapt_recipe(files: Path, *tasks: str, **asked: Any) -> Recipe:
    request = Request("bundled:encoder", str(files / "texts.jsonl"), files / "out", tasks, **asked)
    return draft_of(request, Texts(request.texts, files)).recipe


def test_adapt_with_patience_evaluates_often_and_holds_out_for_both(files: Path) -> None:
    task = str(files / "task.jsonl")
    recipe = adapt_recipe(files, task, steps=400, patience=3)
    assert (recipe.training.patience, recipe.training.eval_every) == (3, 20)
    assert recipe.corpus.held_out == 0.04 and recipe.chooses
    plain = adapt_recipe(files, task, steps=400)
    assert plain.corpus.held_out == 0.02 and not plain.chooses and plain.training.eval_every == 100
    request = Request("m", "t", files, patience=3)
    assert (
        "--patience 3" in request.invocation().command
        and "--patience" not in Request("m", "t", files).invocation().command
    )
    with pytest.raises(MaskwiseError, match="use patience"):
        adapt_recipe(files, task, overrides=("training.patience=3",))
    with pytest.raises(MaskwiseError, match="got tsdae"):
        adapt_recipe(files, task, patience=3, arms=("tsdae",))


def test_a_new_head_is_trained_to_its_end(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskwise.studies.adapt.draft.has_head", lambda model: False)
    first, second = adapt_recipe(files, str(files / "task.jsonl"), patience=3).links()
    assert (first.training.patience, second.training.patience) == (None, 3)


def test_pairs_are_made_of_documents_that_choose_nothing(files: Path) -> None:
    lines = read_lines(files / "texts.jsonl")
    documents = [*read_documents(files / "texts.jsonl")]
    named = {line["title"]: each.place for line, each in zip(lines, documents, strict=True)}
    for patience, both in ((None, True), (3, False)):
        recipe = adapt_recipe(files, patience=patience)
        pairs = [*read_lines(Path(split_options(recipe.tasks[0])[0]))]
        assert len(pairs) >= 20
        places = [named[pair["query"]] for pair in pairs]
        assert all(place < held_out_below(recipe.corpus.held_out) for place in places)
        assert any(map(is_dev, places)) == both


def test_general_text_that_chooses_is_not_measured(files: Path) -> None:
    general = files / "general.jsonl"
    lines = [{"text": f"{WORDS[n % 100]} {n} {WORDS[n % 99]}."} for n in range(300)]
    write_lines(general, lines)
    more = {"keep": str(general), "replay": 0.5, "overrides": ("corpus.held_out=0.2",)}
    held = [each for each in read_documents(general) if holds_out(each, 0.2)]
    for patience, count in ((None, len(held)), (3, sum(not is_dev(x.place) for x in held))):
        recipe = adapt_recipe(files, str(files / "task.jsonl"), patience=patience, **more)
        for measure in [*load_measures(recipe.evaluation).values()][1:]:
            assert len(measure.texts()) == count


def test_adapt_answers_when_its_runs_were_best(files: Path) -> None:
    def cost(arm: str, seed: int, best_step: int, **more: Any) -> Any:
        line = {"kind": "cost", "arm": arm, "seed": seed, "steps": 600, **more}
        return line | {"best_step": best_step, "planned_steps": 1200}

    records = [cost("words-30", seed, step) for seed, step in enumerate((450, 300))]
    records += [cost("words-30", 2, 60, role="search")]
    records += [{"kind": "cost", "arm": "token-15", "seed": 0, "steps": 1200}]
    best = chosen_steps(records)
    assert best == {"words-30": {"steps": [450, 300], "of": 1200}}
    recipe = adapt_recipe(files, str(files / "task.jsonl"), steps=1200, patience=3)
    row = {"verdict": "open", "better": None, "brief": "It.", "outlook": "", "primary": True}
    row |= {"arm": "words-30", "baseline": REFERENCE, "outcome": "tasks", "flags": []}
    said = " ".join(answer_sentences({"contrasts": [row], "seconds": 9, "best": best}, recipe))
    assert "at most 1,200 steps per run" in said
    assert "words-30 was best at 300 to 450 of 1,200 steps" in said
    row |= {"verdict": "not comparable"}
    said = " ".join(answer_sentences({"contrasts": [row], "seconds": 9, "best": best}, recipe))
    assert "best at 300 to 450 of 1,200 steps" in said
    assert "best at" not in " ".join(answer_sentences({"contrasts": [row], "seconds": 9}, recipe))
