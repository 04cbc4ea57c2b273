"""Studies whose runs learn their own masking policy before they train under it, and studies of
samplers and policies that learn during training.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from invented import world
from maskwise.base.errors import MaskwiseError
from maskwise.learning.scorer import PolicyModel
from maskwise.recipe import read_recipe
from maskwise.report import write_report
from maskwise.studies.plan import make_run, task_contents
from maskwise.studies.records import collect
from maskwise.studies.single import run_learn
from maskwise.studies.stages import Stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import lesson_of, run_stage
from maskwise.text import Prepared
from processes import two_ranks
from tiny import (
    find_recipe,
    learning_study,
    load_json,
    maskwise,
    read_lines,
    records_of,
    write_inputs,
    write_lines,
)

ABOUT = "people=40, facts=('work',), friends=false, fillers=1, biographies=2"
WORLD = world(f"factworld({ABOUT})", 0, 1)
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
"""
RECIPE = learning_study(WORLD, WORLD.task(), rest=COMPARED)
LEARN = learning_study(
    WORLD,
    WORLD.task(),
    rest="""learning:
  policy: {settings: {hidden_size: 8}, length: 32}
  meta: {steps: 4, eval_every: 4, batch_size: 8, average: 0}
  supervised: {training: {steps: 6, batch_size: 8, learning_rate: 1.0e-2, precision: "no"}}
""",
)
"""What ``maskwise learn`` does on one process or several, in single precision."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("learning") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    assert maskwise("study", recipe, "--out", out, "--jobs", 1) == 0
    return out


def test_a_run_learns_its_policy_between_its_tokenizer_and_its_text(recipe):
    plan = read_recipe(str(recipe))

    def chain(arm: str, seed: int = 0, **more: object) -> tuple[Stage, ...]:
        return make_run(plan, arm, seed, contents={}, more=more).chain

    first, learn, text, training, *_ = chain("learned")
    kinds = [stage.kind for stage in (first, learn, text, training)]
    assert kinds == ["prepare", "learn", "prepare", "pretrain"]
    assert learn.needs == (first.name,) and text.needs == (first.name, learn.name)
    assert training.needs == (text.name,)
    random = chain("random")
    assert random[0] == first and all(stage.kind != "learn" for stage in random)
    # The policy is one for all arms that use it, another with another seed, and the same at every
    # rate of fine-tuning.
    assert learn in chain("spans") and learn not in chain("learned", 1)
    assert learn in chain("learned", **{"finetune.learning_rate": 1e-3})


def test_the_encoder_of_a_policy_is_part_of_what_its_learning_depends_on(recipe, tmp_path):
    """A folder of the same name may hold another one."""
    (tmp_path / "config.json").write_text("{}")
    pretrained = f"learning.policy.pretrained={tmp_path}"
    plan = read_recipe(str(recipe), [pretrained, "learning.policy.settings={}"])
    names = set()
    for content in (b"first", b"second"):
        (tmp_path / "model.safetensors").write_bytes(content)
        names.add(make_run(plan, "learned", 0, contents={}).chain[1].name)
    assert len(names) == 2


def test_a_policy_and_a_model_with_other_tokenizers_learn_nothing_from_each_other(recipe, tmp_path):
    model = read_recipe(str(recipe)).arm("learned", seed=0)
    model.tokenizer.tokenizer(model.corpus.documents()).save_pretrained(tmp_path / "tokenizer")
    more = ["learning.policy.pretrained=bundled:encoder", "learning.policy.settings={}"]
    more += ["learning.method=meta", f"tokenizer.name={tmp_path / 'tokenizer'}"]
    plan = read_recipe(str(recipe), more).arm("learned", seed=0)
    said = "needs the same tokens in policy and model, but their tokenizers differ"
    with pytest.raises(MaskwiseError, match=said):
        lesson_of(plan, tmp_path / "out").learn()


def test_after_a_stage_of_training_the_policy_is_learned_for_its_checkpoint(recipe):
    late = "study.arms.late={phases.1.masking.policy: learned}"
    more = ["phases=[{}, {training.steps: 3}]", "study.arms.learned=null", late]
    chain = make_run(read_recipe(str(recipe), more), "late", 0, contents={}).chain
    text, training, learn, scored, last = chain[:5]
    kinds = [stage.kind for stage in chain[:5]]
    assert kinds == ["prepare", "pretrain", "learn", "prepare", "pretrain"]
    assert learn.needs == (text.name, training.name) and scored.needs == (text.name, learn.name)
    assert last.needs == (scored.name, training.name)


@pytest.mark.slow
def test_the_page_says_what_the_policies_found(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out", ignore=shutil.ignore_patterns("stages"))
    lines = read_lines(out / "records.jsonl")
    for line in lines:
        if line["kind"] == "policy" and line["arm"] == "spans":
            line["overshoot"] = "an inner step is too large"
            line["tries"] = [{"gain": 0.1}, {"gain": 0.2}, {"gain": 0.1}]
    write_lines(out / "records.jsonl", lines)
    page = write_report(out).read_text(encoding="utf-8")
    assert "What the learned policies found" in page
    assert page.count("Inner steps too large in 2 of 2 runs") == 1
    assert "Stopped early" not in page and page.count("Every policy is the best of 3 tries") == 1


def test_the_text_is_masked_by_what_the_run_learned(finished, recipe):
    run = make_run(read_recipe(str(recipe)), "learned", 0, contents={})
    learned = next(stage for stage in run.chain if stage.kind == "learn")
    store = StageStore(finished / "stages")
    policy = PolicyModel.from_pretrained(store.folder(learned) / "policy")
    assert policy.config.head == "spans"
    data = Prepared.open(store.folder(run.prepared) / "data")
    assert data.training.pieces.columns["learned"].std() > 0
    arms = {"random", "learned", "spans", "alone", "oracle"}
    assert {record["arm"] for record in records_of(finished, "task")} >= arms
    assert not records_of(finished, "failure")
    policies = {(line["arm"], line["seed"]): line for line in records_of(finished, "policy")}
    assert policies.keys() == {
        (arm, seed) for arm in arms - {"random", "oracle"} for seed in (0, 1)
    }
    held_out = load_json(store.folder(learned) / "done.json")["held_out"]
    weight = policies["learned", 0]["weight_on_labels"]
    assert weight == held_out["weight_on_labels"] > held_out["labelled_words"]
    samples = load_json(finished / "samples.json")
    assert set(samples) == arms
    # Of each text exactly the best span is masked, where nothing else may be.
    for row in samples["alone"]:
        assert sum(piece["state"] == "masked" for piece in row["pieces"]) in (1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["learning=null"], "learns no policy; .* or use a finished policy"),
        (["tasks=[]", "evaluation.masks=[token, whole-word]"], "learning needs a task"),
    ],
)
def test_what_cannot_be_learned_is_refused(recipe, changes, text):
    with pytest.raises(MaskwiseError, match=text):
        make_run(read_recipe(str(recipe), changes), "learned", 0, contents={})


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("method", ["meta", "supervised"])
def test_the_whole_command_learns_on_two_ranks_what_it_learns_on_one(method, tmp_path):
    path = tmp_path / "recipe.yaml"
    settings = yaml.safe_load(LEARN)
    del settings["learning"]["meta" if method == "supervised" else "supervised"]
    settings["learning"]["method"] = method
    path.write_text(yaml.safe_dump(settings))
    alone, both = tmp_path / "alone", tmp_path / "both"
    learn_on_a_rank(path, method, alone)
    two_ranks(learn_on_a_rank, path, method, both)
    policies = [PolicyModel.from_pretrained(out / "policy") for out in (alone, both)]
    new = PolicyModel.new(
        policies[0].tokenizer,
        settings={"hidden_size": 8},
        head=policies[0].config.head,
        length=32,
        seed=lesson_of(read_recipe(str(path)), tmp_path).seed,
    )
    weights = []
    for policy in (*policies, new):
        weights.append(torch.cat([value.flatten() for value in policy.parameters()])[:-2])
    one, two, start = weights
    torch.testing.assert_close(two, one, rtol=1e-3, atol=2e-4)
    assert (one - start).abs().max() > 0.01, "it has learned, and not the same nothing twice"
    assert {each.name for each in both.iterdir()} == {each.name for each in alone.iterdir()}
    results = [load_json(out / "done.json")["held_out"] for out in (alone, both)]
    assert results[1]["weight_on_labels"] == pytest.approx(results[0]["weight_on_labels"], abs=1e-3)


def learn_on_a_rank(path: Path, method: str, out: Path) -> None:
    recipe = read_recipe(str(path), [f"learning.method={method}", "training.precision=no"])
    run_learn(recipe, out)


ABOUT_FEW = "people=20, fillers=0, friends=false, biographies=2"
FEW = world(f"factworld({ABOUT_FEW})", 0, 40)
OTHERS = world(f"factworld({ABOUT_FEW}, others=true)", 0, 40)
SMALL_SEQ2SEQ = [
    "study.seeds=[40]",
    *OTHERS.settings,
    "corpus.length=32",
    "training.steps=2",
    "training.batch_size=4",
    "tokenizer.vocab_size=512",
    "evaluation.rows=8",
    "finetune.steps=2",
    "finetune.seeds=1",
    f"phases=[{{}}, {{corpus.source: '{FEW.source}', corpus.layers: {json.dumps(FEW.layers)}, "
    "training.steps: 2, masking.corruption: t5}]",
    f"tasks={json.dumps([FEW.task('generation', beams=1, max_target=4)])}",
    "model.settings={d_model: 16, encoder_layers: 1, decoder_layers: 1, encoder_ffn_dim: 32, "
    "decoder_ffn_dim: 32}",
    "learning.policy={settings: {hidden_size: 8}, length: 32}",
    "corpus.held_out=0.2",
    "finetune.batch_size=4",
    "learning.meta={steps: 2, tries: 2, eval_every: 2, batch_size: 4}",
    "learning.supervised.training={steps: 2, batch_size: 4}",
]


@pytest.mark.parametrize(
    ("arm", "head"),
    [pytest.param("meta-full", "tokens", marks=pytest.mark.slow), ("supervised", "spans")],
)
def test_an_encoder_decoder_goes_from_a_learned_policy_to_written_answers(arm, head, tmp_path):
    recipe = read_recipe(find_recipe("learn-meta-seq2seq"), SMALL_SEQ2SEQ)
    run = make_run(recipe, arm, 40, contents=task_contents(recipe))
    store = StageStore(tmp_path)
    results = {stage.name: run_stage(stage, store) for stage in run.stages}
    (learned,) = (stage for stage in run.chain if stage.kind == "learn")
    assert results[learned.name]["method"] == arm.partition("-")[0]
    assert PolicyModel.from_pretrained(store.output(learned)).config.head == head
    (task,) = run.tasks.values()
    (score,) = (row for row in results[task.name]["measurements"] if row["split"] == "test")
    assert score["metric"] == "exact-match" and 0 <= score["value"] <= 1
    data = Prepared.open(store.folder(run.prepared) / "data")
    assert (data.training.pieces.columns["learned"] > 0).any()
    (record,) = (each for each in collect([run], store, {}) if each["kind"] == "policy")
    assert len(record.get("tries", [])) == (2 if head == "tokens" else 0)
    card = (store.folder(learned) / "policy" / "README.md").read_text()
    for row in ("| tries | `2` |", "| gain over random masks on dev, nats |"):
        assert (row in card) == (head == "tokens")


# Samplers, and policies that learn while they mask
# ----------------------------------------------------------------------------


SHORT = [
    "training.steps=8",
    "training.save_every=0",
    "training.eval_every=4",
    "training.log_every=2",
    "tasks=[]",
    "study.seeds=1",
    "study.contrasts=null",
    "corpus.held_out=0.3",
    "evaluation.rows=4",
]


def test_a_study_of_samplers_shows_what_each_spent_on_what(tmp_path):
    out = tmp_path / "out"
    arms = "study.arms={even: {sampler: sequential}, plus: {sampler: 'mometas-plus(every=2)'}}"
    more = ["objective={mlm: , atd: , rtd: }", "sampler=uniform", arms, "study.baseline=even"]
    more += ["corpus.held_out=0.49", "corpus.length=16"]
    assert maskwise("study", write_inputs(tmp_path), *SHORT, *more, "--out", out, "--jobs", 1) == 0
    costs = {r["arm"]: r for r in records_of(out, "cost")}
    assert costs["even"]["objectives"] == {"mlm": 3, "atd": 3, "rtd": 2}
    assert costs["even"]["probe_flops"] == 0
    assert sum(costs["plus"]["objectives"].values()) == 8
    assert 0 < costs["plus"]["probe_flops"] < costs["plus"]["flops"]
    probed = {r["arm"]: r["losses"] for r in records_of(out, "objectives")}
    for arm, facts in load_json(out / "study.json")["arms"].items():  # a rule is watched too
        lines = read_lines(out / facts["runs"]["0"] / "metrics.jsonl")
        last = [line for line in lines if line["kind"] == "train"][-1]
        assert set(last["probe_losses"]) == {"mlm", "atd", "rtd"} and last["probe_step"] == 8
        assert probed[arm] == last["probe_losses"]
    assert "How often each objective was trained" in (out / "report.html").read_text()


def test_samples_of_a_policy_that_learns_have_its_layers_and_last_weights(tmp_path):
    out = tmp_path / "out"
    arms = (
        "study.arms={words: {}, ptw: {masking.policy: pos-weighted}, types: {masking.policy: "
        "type-weighted}}"
    )
    more = ["corpus.layers=[pos]", "masking.policy=whole-word", arms, "study.baseline=words"]
    assert maskwise("study", write_inputs(tmp_path), *SHORT, *more, "--out", out, "--jobs", 1) == 0
    samples = load_json(out / "samples.json")
    # the weights of types are not kept
    assert set(samples) == {"words", "ptw"} and samples["words"]
    assert all(row["learnt"] for row in samples["ptw"]) and "learnt" not in samples["words"][0]
    assert "learned weights" in (out / "report.html").read_text()
