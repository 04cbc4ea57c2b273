"""A study whose runs learn their own masking policy before they train under it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from maskwise.errors import MaskwiseError
from maskwise.learning.scorer import PolicyModel
from maskwise.recipe import read_recipe
from maskwise.report import write_report
from maskwise.study.plan import make_run, task_contents
from maskwise.study.records import collect
from maskwise.study.single import run_learn
from maskwise.study.work import lesson_of, run_stage
from maskwise.text import Prepared
from processes import two_ranks
from tiny import check_refused, find_recipe, learning_study, load_json, maskwise, read_lines

WORLD = "factworld(people=40, facts=('work',), friends=false, fillers=1, biographies=2, seed='run')"
COMPARED = """learning:
  method: supervised
  supervised: {training: {steps: 30, learning_rate: 1.0e-2}}
  policy: {settings: {hidden_size: 8}}
study:
  seeds: 2
  arms:
    random: {}
    learned: {masking.policy: learned}
    spans: {masking.policy: "learned(take='top-1')"}
    alone: {masking: {policy: "learned(take='top-1')", ratio: 1.0, fill: none}}
    oracle: {masking.policy: "span-layer(layer='asked')"}
  share: [oracle, random]
"""
RECIPE = learning_study(WORLD, WORLD, rest=COMPARED)
LEARN = learning_study(
    WORLD,
    WORLD,
    rest="""learning:
  policy: {settings: {hidden_size: 8}, length: 32}
  meta: {steps: 4, eval_every: 4, batch_size: 8, average: 0}
  supervised: {training: {steps: 6, batch_size: 8, learning_rate: 1.0e-2, precision: "no"}}
""",
)
"""What ``maskwise learn`` does on one process or several, in single precision."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learning") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    assert maskwise("study", recipe, "--out", out, "--jobs", 1) == 0
    return out


def test_a_run_learns_its_policy_between_its_tokenizer_and_its_text(recipe: Path) -> None:
    plan = read_recipe(str(recipe))
    contents = task_contents(plan)
    kinds = [stage.kind for stage in make_run(plan, "learned", 0, contents=contents).chain]
    assert (
        kinds == ["prepare", "learn", "prepare", "pretrain", "prepare"][: len(kinds)]
        and len(kinds) >= 4
    )
    first, learn, text, training, *_ = make_run(plan, "learned", 0, contents=contents).chain
    assert learn.needs == (first.name,) and text.needs == (first.name, learn.name)
    assert training.needs == (text.name,)
    random = make_run(plan, "random", 0, contents=contents)
    assert random.chain[0] == first and all(stage.kind != "learn" for stage in random.stages)
    # The policy is one for all arms that use it, another with another seed, and the same at every
    # rate of fine-tuning.
    spans = make_run(plan, "spans", 0, contents=contents)
    assert learn in spans.chain and text not in spans.chain[:1]
    assert learn not in make_run(plan, "learned", 1, contents=contents).chain
    rate = {"finetune.learning_rate": 1e-3}
    assert learn in make_run(plan, "learned", 0, contents=contents, more=rate).chain


def test_the_encoder_of_a_policy_is_part_of_what_its_learning_depends_on(
    recipe: Path, tmp_path: Path
) -> None:
    """A folder of the same name may hold another one."""
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    plan = read_recipe(
        str(recipe), [f"learning.policy.pretrained={encoder}", "learning.policy.settings={}"]
    )
    names = set()
    for content in (b"first", b"second"):
        (encoder / "model.safetensors").write_bytes(content)
        names.add(make_run(plan, "learned", 0, contents={}).chain[1].name)
    assert len(names) == 2


def test_a_policy_and_a_model_with_other_tokenizers_learn_nothing_from_each_other(
    recipe: Path, tmp_path: Path
) -> None:
    read = read_recipe(str(recipe)).arm("learned", seed=0)
    assert read.learning is not None
    tokenizer = tmp_path / "tokenizer"
    read.tokenizer.tokenizer(read.corpus.documents()).save_pretrained(tokenizer)
    overrides = [
        "learning.policy.pretrained=bundled:encoder",
        "learning.policy.settings={}",
        "learning.method=meta",
    ]
    plan = read_recipe(str(recipe), [*overrides, f"tokenizer.name={tokenizer}"]).arm(
        "learned", seed=0
    )
    with pytest.raises(
        MaskwiseError,
        match="needs the same tokens in policy and model, but their tokenizers differ",
    ):
        lesson_of(plan, tmp_path / "out").learn()


def test_after_a_stage_of_training_the_policy_is_learned_for_its_checkpoint(recipe: Path) -> None:
    plan = read_recipe(
        str(recipe),
        [
            "intermediate.training.steps=3",
            "study.arms.learned=null",
            "study.arms.late={intermediate.masking.policy: learned}",
        ],
    )
    chain = make_run(plan, "late", 0, contents={}).chain
    text, training, learn, scored, last = chain[:5]
    assert [stage.kind for stage in chain[:5]] == [
        "prepare",
        "pretrain",
        "learn",
        "prepare",
        "pretrain",
    ]
    assert learn.needs == (text.name, training.name) and scored.needs == (text.name, learn.name)
    assert last.needs == (scored.name, training.name)


def test_the_page_says_what_the_policies_found(finished: Path, tmp_path: Path) -> None:
    lines = read_lines(finished / "records.jsonl")
    for line in lines:
        if line["kind"] == "policy" and line["arm"] == "spans":
            line["overshoot"] = "a step of mask_rate 5 raises its own loss, from 1.00 to 2.00"
            line["tries"] = [{"gain": 0.1}, {"gain": 0.2}, {"gain": 0.1}]
    for name in ("study.json", "summary.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = write_report(tmp_path).read_text()
    assert (
        "What the learned policies found" in page
        and page.count("inner steps too large in 2 of 2") == 1
    )
    assert "stopped early" not in page and page.count("each the best of 3 tries") == 1


def test_the_text_is_masked_by_what_the_run_learned(finished: Path, recipe: Path) -> None:
    plan = read_recipe(str(recipe))
    run = make_run(plan, "learned", 0, contents=task_contents(plan))
    stages = finished / "stages"
    learned = next(stage for stage in run.chain if stage.kind == "learn")
    assert PolicyModel.from_pretrained(learned.folder(stages) / "policy").config.head == "spans"
    assert (learned.result(stages) or {})["held_out"]
    data = Prepared.open(run.prepared.folder(stages) / "data")
    weights = data.training.pieces.columns["learned"]
    assert weights.std() > 0
    records = read_lines(finished / "records.jsonl")
    arms = {"random", "learned", "spans", "alone", "oracle"}
    assert {record["arm"] for record in records if record["kind"] == "score"} >= arms
    assert not [record for record in records if record["kind"] == "failure"]
    policies = {
        (record["arm"], record["seed"]): record for record in records if record["kind"] == "policy"
    }
    assert set(policies) == {
        (arm, seed) for arm in ("learned", "spans", "alone") for seed in (0, 1)
    }
    held_out = (learned.result(stages) or {})["held_out"]
    assert (
        policies["learned", 0]["weight_on_labels"]
        == held_out["weight_on_labels"]
        > held_out["labelled_words"]
    )
    samples = load_json(finished / "samples.json")
    assert set(samples) == arms
    # Of each text exactly the best span is masked, where nothing else may be.
    assert all(
        sum(piece["state"] == "masked" for piece in row["pieces"]) in (1, 2, 3)
        for row in samples["alone"]
    )


def test_a_second_run_does_nothing(finished: Path, recipe: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("done.json")}
    assert before and maskwise("study", recipe, "--out", finished, "--jobs", 1) == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("done.json")}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["learning=null"], "learns no policy; .* or name a finished policy"),
        (["tasks=[]", "evaluation.masks=[token, whole-word]"], "learning needs a task"),
    ],
)
def test_what_cannot_be_learned_is_refused(recipe: Path, changes: list[str], text: str) -> None:
    with pytest.raises(MaskwiseError, match=text):
        make_run(read_recipe(str(recipe), changes), "learned", 0, contents={})


def test_the_shares_of_the_best_gain_are_in_the_summary_and_on_the_page(finished: Path) -> None:
    summary = load_json(finished / "summary.json")
    assert [row["arm"] for row in summary["shares"]] == ["learned", "spans", "alone"]
    assert "How much of oracle's gain do the other arms achieve?" in (
        finished / "report.html"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("share", "text"),
    [("[best, random]", "arm in study.share"), ("[random, random]", "two different arms")],
)
def test_a_share_names_two_arms(recipe: Path, tmp_path: Path, share: str, text: str) -> None:
    check_refused(recipe, f"study.share={share}", text, tmp_path / "out")


@pytest.mark.parametrize("name", ["learn-meta-full", "learn-meta-university"])
def test_in_the_full_recipes_every_arm_goes_on_from_one_stage(name: str) -> None:
    recipe = read_recipe(find_recipe(name))
    runs = {arm: make_run(recipe, arm, 30, contents={}) for arm in recipe.study.arms}
    assert len({run.trainings[0].name for run in runs.values()}) == 1
    assert [len(run.trainings) for run in runs.values()] == [1] + [2] * (len(runs) - 1)
    learned = {
        arm: [stage for stage in run.chain if stage.kind == "learn"] for arm, run in runs.items()
    }
    methods = {
        arm: stages[0].what["learning"]["method"] for arm, stages in learned.items() if stages
    }
    assert methods.pop("supervised") == "supervised" and set(methods.values()) == {"meta"}
    if "meta-top-1" in learned:
        assert learned["meta"] == learned["meta-top-1"]
    # No setting was chosen on these worlds, and none was looked at under other settings (0 to 25,
    # 30 to 39).
    assert recipe.study.seed_list == tuple(range(70, 80))


def test_the_two_full_recipes_share_what_does_not_depend_on_the_question() -> None:
    both = [read_recipe(find_recipe(name)) for name in ("learn-meta-full", "learn-meta-university")]
    for arm, same in (("random", True), ("salient", True), ("oracle", False), ("meta", False)):
        last = [make_run(recipe, arm, 30, contents={}).trainings[-1].name for recipe in both]
        assert (last[0] == last[1]) == same, arm


@pytest.mark.process
@pytest.mark.parametrize("method", ["meta", pytest.param("supervised", marks=pytest.mark.slow)])
def test_the_whole_command_learns_on_two_ranks_what_it_learns_on_one(
    method: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(LEARN)
    alone, both = tmp_path / "alone", tmp_path / "both"
    run_learn(
        read_recipe(str(path), [f"learning.method={method}", "training.precision=no"]),
        alone,
        quiet=True,
    )
    two_ranks(learn_on_a_rank, path, method, both)
    policies = [PolicyModel.from_pretrained(out / "policy") for out in (alone, both)]
    weights = [
        torch.cat([value.flatten() for value in policy.parameters()])[:-2] for policy in policies
    ]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=2e-4)
    new = PolicyModel.new(
        policies[0].tokenizer,
        settings={"hidden_size": 8},
        head=policies[0].config.head,
        length=32,
        seed=lesson_of(read_recipe(str(path)), tmp_path).seed,
    )
    start = torch.cat([value.flatten() for value in new.parameters()])[:-2]
    assert (weights[0] - start).abs().max() > 0.01, "it has learned, and not the same nothing twice"
    assert {each.name for each in both.iterdir()} == {each.name for each in alone.iterdir()}
    results = [load_json(out / "done.json")["held_out"] for out in (alone, both)]
    assert results[1]["weight_on_labels"] == pytest.approx(results[0]["weight_on_labels"], abs=1e-3)


def learn_on_a_rank(path: Path, method: str, out: Path) -> None:
    run_learn(
        read_recipe(str(path), [f"learning.method={method}", "training.precision=no"]),
        out,
        quiet=True,
    )


SMALL_WORLD = "factworld(people=20, fillers=0, friends=false, biographies=2, seed='run')"
SMALL_SEQ2SEQ = [
    f"corpus.source={SMALL_WORLD.replace('seed', 'others=true, seed')}",
    "corpus.length=32",
    "training.steps=2",
    "training.batch_size=4",
    "tokenizer.vocab_size=512",
    "evaluation.rows=8",
    "finetune.steps=2",
    "finetune.seeds=1",
    f'intermediate={{corpus.source: "{SMALL_WORLD}", training.steps: 2, masking.corruption: t5}}',
    f'tasks=["{SMALL_WORLD.replace("seed", "kind=generation, beams=1, max_target=4, seed")}"]',
    "model.settings={d_model: 16, encoder_layers: 1, decoder_layers: 1, encoder_ffn_dim: 32, "
    "decoder_ffn_dim: 32}",
    "learning.policy={settings: {hidden_size: 8}, length: 32}",
    "corpus.held_out=0.2",
    "finetune.batch_size=4",
    "learning.meta={steps: 2, tries: 2, eval_every: 2, batch_size: 4}",
    "learning.supervised.training={steps: 2, batch_size: 4}",
]


@pytest.mark.parametrize(("arm", "head"), [("meta-full", "tokens"), ("supervised", "spans")])
def test_an_encoder_decoder_goes_from_a_learned_policy_to_written_answers(
    arm: str, head: str, tmp_path: Path
) -> None:
    recipe = read_recipe(find_recipe("learn-meta-seq2seq"), SMALL_SEQ2SEQ)
    run = make_run(recipe, arm, 40, contents=task_contents(recipe))
    results = {stage.name: run_stage(stage, tmp_path) for stage in run.stages}
    (learned,) = (stage for stage in run.chain if stage.kind == "learn")
    assert results[learned.name]["method"] == arm.partition("-")[0]
    assert PolicyModel.from_pretrained(learned.folder(tmp_path) / "policy").config.head == head
    (task,) = run.tasks.values()
    assert results[task.name]["metric"] == "exact-match" and 0 <= results[task.name]["score"] <= 1
    data = Prepared.open(run.prepared.folder(tmp_path) / "data")
    assert (data.training.pieces.columns["learned"] > 0).any()
    (record,) = (each for each in collect([run], tmp_path, {}) if each["kind"] == "policy")
    assert len(record.get("tries", [])) == (2 if head == "tokens" else 0)
    card = (learned.folder(tmp_path) / "policy" / "README.md").read_text()
    assert (
        ("| tries | `2` |" in card)
        == ("| gain over random masks on dev, nats |" in card)
        == (head == "tokens")
    )
