"""Trainings that are ended at several lengths: each part is a stage, and dev text chooses."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_lines, write_folder, write_json
from maskwise.recipe import read_recipe
from maskwise.studies import run_stage
from maskwise.studies.adapt import Request
from maskwise.studies.adapt.answer import answer_sentences
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.design import Design
from maskwise.studies.forecast import dry_run
from maskwise.studies.plan import Run, make_plan, make_run
from maskwise.studies.pretraining import pretrain
from maskwise.studies.stages import Stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import open_prepared
from maskwise.training import TrainingSettings
from maskwise.training.best import Lowest
from maskwise.training.checkpoint import RESUME, State
from maskwise.training.parts import STATE_FOLDER, begin_with, leave_state, parts_of
from processes import two_ranks
from tiny import WORDS, maskwise, write_inputs, write_lines

LENGTHS = ("training.decay=wsd", "training.lengths=[0.25, 0.5, 1]")
HASTY = ("training.learning_rate=0.05",)
"""At this rate, the loss is lowest in the middle."""
ALONE = ("tasks=[]", "study.seeds=1")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def first_run(source: Path, *more: str) -> Run:
    return make_plan(read_recipe(source, [*LENGTHS, *ALONE, *more])).runs[0]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[k], others[k]) for k in some)


def done(run: Run, store: StageStore) -> list[dict[str, Any]]:
    return [run_stage(stage, store) for stage in run.stages]


def ends(stage: Stage) -> tuple[int, int, bool]:
    part = stage.what["part"]
    return part["begin"], part["begin"] + part["steps"], part["falls"]


# Parts


@pytest.mark.parametrize(
    ("steps", "lengths", "found"),
    [
        (40, (0.25, 1), [(0, 9, False), (9, 10, True), (9, 40, True)]),
        (1000, (1,), [(0, 1000, True)]),
        # Each length has at least one step.
        (2, (0.1, 1), [(0, 1, True), (0, 2, True)]),
    ],
)
def test_parts(steps: int, lengths: tuple[float, ...], found: list[Any]) -> None:
    settings = TrainingSettings(steps=steps, decay="wsd", lengths=lengths)
    assert [(part.begin, part.end, part.falls) for part in parts_of(settings)] == found


def test_another_decay_begins_where_its_share_says() -> None:
    settings = TrainingSettings(steps=100, decay="linear", decay_share=0.4, lengths=(0.5, 1))
    assert [part.begin for part in parts_of(settings)] == [0, 30, 30]


def test_the_lowest_loss_is_kept_and_of_equal_losses_the_first() -> None:
    lowest = Lowest()
    losses = (float("nan"), 3.0, 2.0, 2.0, 4.0)
    assert [lowest.compare(step, loss) for step, loss in enumerate(losses, 1)] == [0, 1, 1, 0, 0]
    assert (lowest.step, lowest.loss) == (3, 2.0)


# Runs


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, StageStore]:
    """A run at a rate at which its best length is not the last one."""
    run = first_run(source, *HASTY)
    store = StageStore(tmp_path_factory.mktemp("trained"))
    done(run, store)
    return run, store


def test_each_part_is_a_stage_and_begins_with_a_state(trained: tuple[Run, StageStore]) -> None:
    run, _ = trained
    *parts, choice = run.trainings
    assert [ends(part) for part in parts] == [
        (0, 9, False),
        (9, 10, True),
        (9, 18, False),
        (18, 20, True),
        (18, 40, True),
    ]
    first, quarter, second, half, last = parts
    text = run.prepared.name
    assert [part.needs for part in parts] == [
        (text,),
        (text, first.name),
        (text, first.name),
        (text, second.name),
        (text, second.name),
    ]
    assert choice.kind == "choose" and choice.needs == (
        text,
        *(x.name for x in (quarter, half, last)),
    )
    assert run.phases == [tuple(run.trainings)] and run.pretrained == choice


def test_the_longest_length_is_the_training_without_others(
    trained: tuple[Run, StageStore], source: Path, tmp_path: Path
) -> None:
    run, store = trained
    plain = make_plan(read_recipe(source, [*LENGTHS[:1], *ALONE, *HASTY])).runs[0]
    data = open_prepared(store.folder(run.prepared))
    whole = pretrain(data, plain.recipe, folder=tmp_path / "plain")
    # The parts until the end: two with a high rate, and the last one.
    parts = [store.result(run.trainings[number]) or {} for number in (0, 2, 4)]
    for cost in ("steps", "tokens", "targets", "flops"):
        assert sum(part[cost] for part in parts) == whole[cost]
    last = store.folder(run.trainings[-2])
    assert equal(weights(last), weights(tmp_path / "plain"))
    lines = [*read_lines(tmp_path / "plain" / "metrics.jsonl")]
    rates = {line["step"]: line["lr"] for line in lines if line["kind"] == "train"}
    own = [line for line in read_lines(last / "metrics.jsonl") if line["kind"] == "train"]
    assert own and all(rates[line["step"]] == line["lr"] for line in own)


def test_the_rate_falls_at_the_end_of_each_length(source: Path, tmp_path: Path) -> None:
    run = first_run(
        source, "training.log_every=1", "training.decay_share=0.5", "training.warmup=0.1"
    )
    store = StageStore(tmp_path)
    done(run, store)
    rates = []
    for part in run.trainings[:-1]:
        lines = read_lines(store.folder(part) / "metrics.jsonl")
        found = [line["lr"] / 5e-3 for line in lines if line["kind"] == "train"]
        begin, end, falls = ends(part)
        assert len(found) == end - begin
        rates.append([round(rate, 3) for rate in found])
        assert (found[-1] < 0.45) == falls
    # The warm-up of 4 steps is that of all 40 steps.
    assert rates[0] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[1][0] == 1.0 and rates[2][0] == 1.0 == rates[4][0]


def test_dev_text_chooses_a_length_that_is_not_the_last(trained: tuple[Run, StageStore]) -> None:
    run, store = trained
    *parts, choice = run.trainings
    result = store.result(choice) or {}
    losses = {
        ends(part)[1]: (store.result(part) or {})["dev_loss"] for part in parts if ends(part)[2]
    }
    assert result["lengths"] == {str(end): loss for end, loss in losses.items()}
    assert result["best_step"] == min(losses, key=losses.__getitem__) < 40
    assert (result["planned_steps"], result["dev_loss"]) == (40, min(losses.values()))
    [best] = [p for p in parts if ends(p)[1] == result["best_step"] and ends(p)[2]]
    assert equal(weights(store.folder(choice)), weights(store.folder(best)))
    # The verdict is measured on other documents, and so are the losses that the choice reports.
    assert run.evaluated and run.evaluated.what["documents"] == "verdict"
    assert run.evaluated.needs[1] == choice.name
    values = [
        line["value"]
        for line in (store.result(run.evaluated) or {})["measurements"]
        if (line["kind"], line["measure"], line["split"]) == ("heldout", "token", "test")
    ]
    assert values[0] == pytest.approx(result["heldout"][0]["loss"], rel=1e-5)
    assert result["heldout"][0]["loss"] != result["dev_loss"]
    # The curve is that of the chosen length.
    steps = [line["step"] for line in read_lines(store.folder(choice) / "metrics.jsonl")]
    assert steps == sorted(steps) and steps[0] == 5 and steps[-1] == result["best_step"]
    card = (store.folder(choice) / "checkpoint" / "README.md").read_text()
    assert f"Trained for {result['best_step']} steps (of at most 40)" in card


def test_costs_are_those_of_all_parts(trained: tuple[Run, StageStore]) -> None:
    run, store = trained
    parts = run.trainings[:-1]
    results = [store.result(part) or {} for part in parts]
    assert [result["steps"] for result in results] == [9, 1, 9, 2, 22]
    assert results[-1]["tokens"] < 3 * results[0]["tokens"]
    assert all(result["flops"] > 0 and result["seconds"] > 0 for result in results)


def test_states_are_removed_after_the_choice(trained: tuple[Run, StageStore]) -> None:
    run, store = trained
    for part in run.trainings[:-1]:
        folder = store.folder(part)
        assert not (folder / STATE_FOLDER).exists() and not (folder / "resume").exists()
        assert (folder / "checkpoint").is_dir() == ends(part)[2]


@pytest.mark.parametrize(
    "kill",
    [
        14,
        *(pytest.param(kill, marks=pytest.mark.slow) for kill in (3, 9, 10, 18, 19, 33)),
    ],
)
def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    kill: int, trained: tuple[Run, StageStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after this step, in whatever part it is."""
    from maskwise.training.engine import Engine

    run, whole = trained
    store = StageStore(tmp_path)
    update = Engine.update

    def dying(engine: Engine, step: Any, *more: Any) -> Any:
        if step.number == kill:
            raise KeyboardInterrupt
        return update(engine, step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "update", dying)
        with suppress(KeyboardInterrupt):
            done(run, store)
    done(run, store)
    choice = run.trainings[-1]
    same = ("best_step", "dev_loss", "heldout", "lengths")
    again, before = (place.result(choice) or {} for place in (store, whole))
    assert [again[key] for key in same] == [before[key] for key in same]
    for part in run.trainings:
        if part.kind == "choose" or ends(part)[2]:
            assert equal(weights(store.folder(part)), weights(whole.folder(part)))


def test_a_part_whose_state_was_removed_is_one_line(source: Path, tmp_path: Path) -> None:
    run = first_run(source)
    store = StageStore(tmp_path)
    for stage in (run.prepared, *run.trainings[:1]):
        run_stage(stage, store)
    first = store.folder(run.trainings[0])
    state = next((first / STATE_FOLDER).glob("*/model.safetensors"))
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(MaskwiseError, match=f"missing or damaged.*remove {first}"):
        run_stage(run.trainings[1], store)
    shutil.rmtree(first)
    for stage in run.trainings:
        run_stage(stage, store)


STATE = State(step=9, flops=0, settings={}, bits={}, losses=[], sums={})


def test_only_the_first_rank_copies_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = tmp_path / "run", tmp_path / "before" / STATE_FOLDER
    for folder in (run / RESUME, before):
        write_folder(folder / "step-00000009", fill_state)
    monkeypatch.setenv("RANK", "1")
    leave_state(run, 9)
    assert begin_with(before, tmp_path / "next", step=9).step == 9
    assert not (run / STATE_FOLDER).exists() and not (tmp_path / "next").exists()
    monkeypatch.setenv("RANK", "0")
    leave_state(run, 9)
    assert begin_with(before, tmp_path / "next", step=9).step == 9
    for folder in (run / STATE_FOLDER, tmp_path / "next" / RESUME):
        assert [path.name for path in folder.iterdir()] == ["step-00000009"]


def fill_state(folder: Path) -> None:
    write_json(folder / "state.json", STATE.model_dump())


# Ranks draw dropout of their own.
STEADY = [f"model.settings.{name}_dropout_prob=0.0" for name in ("hidden", "attention_probs")]


def parts_on_a_rank(source: Path, folder: Path) -> None:
    done(first_run(source, *STEADY), StageStore(folder))


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_train_all_parts_as_one_process_does(source: Path, tmp_path: Path) -> None:
    run = first_run(source, *STEADY)
    alone, together = (StageStore(tmp_path / name) for name in ("alone", "together"))
    done(run, alone)
    two_ranks(parts_on_a_rank, source, tmp_path / "together")
    wanted, found = ((store.result(run.pretrained) or {})["lengths"] for store in (alone, together))
    assert len(wanted) == 3 and found == pytest.approx(wanted, rel=1e-4)


def test_a_study_says_when_its_runs_were_best(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    more = [*LENGTHS, *HASTY, "study.arms={a: {}, b: {masking.ratio: 0.3}}", "study.seeds=2"]
    planned = dry_run(read_recipe(source, more), out)
    assert [(each["steps"], each["runs"]) for each in planned["phases"]] == [(43, 2), (43, 2)]
    assert planned["stages"]["pretrain"]["to_do"] == 20
    assert planned["stages"]["choose"]["to_do"] == 4
    assert maskwise("study", source, *more, "--out", out, "--jobs", "1") == 0
    said = " ".join(capfd.readouterr().out.split())
    costs = [line for line in read_lines(out / "records.jsonl") if line["kind"] == "cost"]
    costs = [line for line in costs if line["arm"] == "a"]
    assert [line["steps"] for line in costs] == [43, 43]
    best = sorted({line["best_step"] for line in costs})
    assert f"a: best at {' to '.join(map(str, best))} of 40 steps" in said
    assert not any(line["kind"] == "failure" for line in read_lines(out / "records.jsonl"))
    before = (out / "records.jsonl").read_bytes()
    # Nothing is trained again, although states were removed.
    assert maskwise("study", source, *more, "--out", out, "--jobs", "1") == 0
    assert (out / "records.jsonl").read_bytes() == before


def test_later_phases_begin_with_the_chosen_checkpoint(source: Path) -> None:
    more = ["phases=[{}, {training: {steps: 4, decay: linear, lengths: null}}]"]
    run = first_run(source, *more)
    first, second = run.phases
    assert [stage.kind for stage in first] == ["pretrain"] * 5 + ["choose"]
    assert len(second) == 1 and second[0].needs[1] == first[-1].name
    assert run.texts == [run.prepared, run.prepared]


# Names and refusals


def test_names_of_stages_have_the_lengths(source: Path) -> None:
    def names(*more: str) -> set[str]:
        plan = make_plan(read_recipe(source, [*ALONE, *more]))
        return {stage.name for stage in plan.stages() if stage.kind in ("pretrain", "choose")}

    plain = names("training.decay=wsd")
    assert plain == names("training.decay=wsd", "training.lengths=null")
    some = [
        names(*LENGTHS),
        names(*LENGTHS, "evaluation.rows=9"),
        names(*LENGTHS, "training.steps=50"),
    ]
    assert all(len(each) == 2 * 6 for each in some)
    for number, each in enumerate(some):
        assert all(not each & other for other in (plain, *some[:number]))


def test_the_unchanged_model_is_judged_on_the_same_documents() -> None:
    more = ["model={pretrained: bundled:encoder}", "tokenizer={}", *LENGTHS]
    run = make_run(read_recipe("quick-start", more), REFERENCE, 0, contents={})
    assert run.evaluated and run.evaluated.what["documents"] == "verdict"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("training.lengths=[0.5, 1]",), "decay=linear.*decay: wsd"),
        (("training.decay=constant", "training.lengths=[0.5, 1]"), "decay=constant"),
        ((*LENGTHS, "training.decay_share=1.0"), "share of 1; .* below 1"),
        ((*LENGTHS, "training.patience=2"), "got both"),
        ((*LENGTHS, "study.equal_by=targets"), "equal compute"),
        ((*LENGTHS, "objective=clm", "evaluation.masks=[]"), "lengths .* got clm"),
        ((*LENGTHS, "objective={mlm: , x: {objective: atd}}"), "one objective"),
        (("training.decay=wsd", "training.lengths=[0.5, 0.25, 1]"), "rising order"),
        (("training.decay=wsd", "training.lengths=[0.5]"), "the last one 1"),
        (("training.decay=wsd", "training.lengths=[]"), "the last one 1"),
        (("training.decay=wsd", "training.lengths=[0, 1]"), "> 0"),
        ((*LENGTHS, "training.warmup=0.6"), r"from step \d+, .* warm-up of \d+ steps"),
        ((*LENGTHS, "training.steps=2"), "got 1, 1, 2 of 2 steps; give fewer lengths"),
    ],
)
def test_what_cannot_be_is_refused(overrides: tuple[str, ...], said: str, source: Path) -> None:
    with pytest.raises(MaskwiseError, match=said) as error:
        make_plan(read_recipe(source, overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", ["pretrain", "check"])
def test_one_training_has_one_length(
    command: str, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "alone.yaml"
    lines = source.read_text().partition("study:")[0]
    recipe.write_text(lines)
    assert maskwise(command, recipe, *LENGTHS, "--out", tmp_path / "out") == 2
    assert "training.lengths" in capfd.readouterr().err


def test_only_patience_ends_runs_early(source: Path, tmp_path: Path) -> None:
    design = Design(read_recipe(source, LENGTHS), StageStore(tmp_path))
    assert not any("training.patience" in note for note in design.open_questions())


# adapt


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A text and labelled rows."""
    lines = [{"text": f"{' '.join(WORDS[n % 60 :][:30])} {n}."} for n in range(200)]
    write_lines(tmp_path / "texts.jsonl", lines)
    rows = [{"text": " ".join(WORDS[n:][:5]), "label": n % 2} for n in range(60)]
    write_lines(tmp_path / "task.jsonl", rows)
    return tmp_path


def adapt_recipe(files: Path, **asked: Any) -> Any:
    task = str(files / "task.jsonl")
    request = Request(
        "bundled:encoder", str(files / "texts.jsonl"), files / "out", (task,), **asked
    )
    return draft_of(request, Texts(request.texts, request.out)).recipe


def test_adapt_ends_runs_at_several_lengths(files: Path) -> None:
    recipe = adapt_recipe(files, steps=400, lengths=(0.25, 0.5, 1.0))
    training = recipe.training
    assert (training.decay, training.lengths, training.patience) == ("wsd", (0.25, 0.5, 1.0), None)
    assert recipe.corpus.held_out == 0.04 and recipe.chooses
    plain = adapt_recipe(files, steps=400)
    assert plain.training.lengths is None and plain.corpus.held_out == 0.02
    request = Request("m", "t", files, lengths=(0.25, 0.5, 1.0))
    assert "--lengths 0.25,0.5,1.0" in request.invocation().command
    with pytest.raises(MaskwiseError, match="use lengths"):
        adapt_recipe(files, overrides=("training.lengths=[0.5, 1]",))
    with pytest.raises(MaskwiseError, match="got tsdae"):
        adapt_recipe(files, lengths=(0.5, 1.0), arms=("tsdae",))
    with pytest.raises(MaskwiseError, match="got both"):
        adapt_recipe(files, lengths=(0.5, 1.0), patience=3)


def test_a_new_head_has_one_length(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskwise.studies.adapt.draft.has_head", lambda model: False)
    first, second = adapt_recipe(files, lengths=(0.5, 1.0)).links()
    assert (first.training.lengths, first.training.decay) == (None, "linear")
    assert (second.training.lengths, second.training.decay) == ((0.5, 1.0), "wsd")


def test_adapt_says_how_long_was_best(files: Path) -> None:
    recipe = adapt_recipe(files, steps=1200, lengths=(0.25, 0.5, 1.0))
    row = {"verdict": "open", "better": None, "brief": "It.", "outlook": "", "primary": True}
    row |= {"arm": "words-30", "baseline": REFERENCE, "outcome": "tasks", "flags": []}
    best = {"words-30": {"steps": [300, 300], "of": 1200}}
    said = " ".join(answer_sentences({"contrasts": [row], "seconds": 9, "best": best}, recipe))
    assert "1,200 steps per run and 90 for decays" in said
    assert "words-30 was best at 300 of 1,200 steps" in said


@pytest.mark.parametrize("lengths", ["half", "0.5", "1,0.5", "0.01,1"])
def test_wrong_lengths_are_one_line(
    lengths: str, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["adapt", "bundled:encoder", files / "texts.jsonl", "--task", files / "task.jsonl"]
    assert maskwise(*command, "--lengths", lengths, "--out", files / "out", "--dry-run") == 2
    said = capfd.readouterr().err
    assert "lengths" in said and said.count("\n") == 1
