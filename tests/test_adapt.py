"""adapt: a recipe with sensible arms, an answer in a sentence, folders for transformers and
sentence-transformers.
"""

from __future__ import annotations

import html
import json
import random
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import FORMATS, OutputFolder, damage, write_folder
from maskwise.base.specs import split_options
from maskwise.cli.terminal import adapt_lines
from maskwise.evaluation import overlap_record
from maskwise.models.families import most_tokens
from maskwise.models.loading import load_config
from maskwise.models.starts import resolve_start
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies.adapt import Adaptation, Request
from maskwise.studies.adapt import saved as saving
from maskwise.studies.adapt.answer import answer_sentences, answers, next_of
from maskwise.studies.adapt.draft import Texts, cut_rows, draft_of
from maskwise.studies.adapt.request import time_limit
from maskwise.studies.adapt.saved import gains_of, kept_of, save_adapted, save_best, saved_folders
from maskwise.studies.adapt.title_pairs import write_pairs
from maskwise.studies.forecast import time_words
from maskwise.studies.from_files import draft_of_files as first_study
from maskwise.studies.plan import make_plan
from maskwise.studies.prospects import prospects_of
from maskwise.studies.rehearsal import Rehearsal
from maskwise.studies.stages import Stage, overlap_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.tasks import load_task
from maskwise.text.documents import Documents
from maskwise.text.pieces import read_pieces, tokenise
from maskwise.text.rows import split
from maskwise.text.settings import CorpusSettings
from tiny import WORDS, load_json, maskwise, read_lines, records_of, unversioned, write_lines

# What these tests ask does not depend on what the encoder knows.
pytestmark = pytest.mark.usefixtures("small_encoder")


@pytest.fixture
def texts(tmp_path):
    draw = random.Random(0)
    lines = []
    for number in range(60):
        topic = WORDS[5 * (number % 16) :][:12]
        body = ". ".join(" ".join(draw.choices(topic, k=7)).capitalize() for _ in range(4)) + "."
        lines.append({"title": " ".join(draw.sample(topic, 3)), "text": body})
    write_lines(tmp_path / "texts.jsonl", lines)
    return tmp_path / "texts.jsonl"


def adapt_recipe(
    model: str,
    source: str | Texts,
    tasks: Sequence[str] = (),
    *,
    folder: Path = Path("nowhere"),
    **asked: Any,
) -> Recipe:
    """The recipe of a request."""
    texts = source if isinstance(source, Texts) else Texts(source, folder)
    for name in ("arms", "overrides"):
        if name in asked:
            asked[name] = tuple(asked[name])
    request = Request(model, texts.source, Path("out"), tuple(tasks), **asked)
    return draft_of(request, texts).recipe


def pairs_of(recipe: Recipe) -> list[Any]:
    """The rows of the task that was made of the texts."""
    return read_lines(Path(split_options(recipe.tasks[0])[0]))


@pytest.fixture
def adapted(texts, tmp_path):
    """The recipe for the bundled encoder on these texts."""
    return partial(adapt_recipe, "bundled:encoder", str(texts), folder=tmp_path)


NAMES = {
    "model": (["nowhere/at/all"], [], "no model or tokenizer in 'nowhere/at/all'"),
    "task": ([], ["--task", "nothing.csv"], "nothing.csv' does not exist"),
    "arm": ([], ["--arms", "words-30,words"], "unknown arm 'words'"),
    "policy": ([], ["--policy", "nowhere/at/all"], "no model or tokenizer in 'nowhere/at/all'"),
    "layers": ([], ["corpus.layers=[sentences, verbs]"], "unknown annotator 'verbs'"),
    "layer": ([], ["corpus.layers=[\"stored('none')\"]"], "none holds no finished annotations"),
    "setting": ([], ["training.momentum=1"], "override training.momentum=1: unknown setting of"),
    "value": ([], ["training.batch_size=many"], "override training.batch_size; got 'many'"),
    "masking": ([], ["masking.keep=prompt"], "annotation layer 'prompt'"),
    "start": ([], ["model.pretrained=nowhere/at/all"], "the first argument of adapt"),
    "evaluation": ([], ["evaluation.measures=[\"cloze('nothing.jsonl')\"]"], "nothing.jsonl"),
    "length": ([], ["finetune.max_length=100000"], "finetune.max_length"),
    "out": ([], ["--out", "FILE"], "the output folder is a file"),
    "above": ([], ["--out", "FILE/out"], "the output folder cannot be made"),
    "full": ([], ["--out", "."], "contains something else"),
    "runs and seeds": ([], ["--runs", "3", "--seeds", "6-8"], "got 3 runs, and seeds 6-8"),
    "no new head": ([], ["--head-steps", "5"], "--head-steps trains a new head"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_name_is_found_before_the_text_is_read(name, texts, tmp_path, monkeypatch, capfd):
    model, options, said = NAMES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Documents, "_document", lambda *_: pytest.fail("read"))
    options = [option.replace("FILE", texts.name) for option in options]
    if "--out" not in options:
        options += ["--out", "out"]
    before = sorted(tmp_path.rglob("*"))
    assert maskwise("adapt", *(model or ["bundled:encoder"]), texts.name, *options) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
    assert sorted(tmp_path.rglob("*")) == before


def test_the_recipe_fits_the_model(texts, adapted, tmp_path):
    recipe = adapted()
    assert [*recipe.study.arms] == ["words-30"] and recipe.study.seeds == 6
    assert recipe.study.pairs == [("words-30", "no-pretraining")]
    assert prospects_of(recipe)[0]["decidable"]  # without a search
    others = adapted(arms=["tsdae", "token-30"])
    assert [*others.study.arms] == ["tsdae", "token-30"]
    assert others.study.pairs == [("tsdae", "no-pretraining")]
    assert recipe.training.learning_rate == 1e-3 and others.arm("tsdae", seed=0).judged_on() == ()
    task = load_task(recipe.tasks[0])
    assert task.kind.name == "retrieval" and 20 <= task.test_items < 40
    assert 0 < task.majority < 0.2
    labelled = adapted(["banking77"], overrides=["training.batch_size=4"])
    assert labelled.tasks == ("banking77",) and labelled.training.batch_size == 4
    short = tmp_path / "short.txt"
    short.write_text("\n".join(f"word {n}" for n in range(30)))
    bart = r"adapt needs an encoder; got bart, .*; use the recipe intermediate"
    for model, source, arm, said in (
        ("bundled:seq2seq", texts, "words-30", bart),
        ("bundled:encoder", texts, "words", r"unknown arm 'words'; allowed: .*words-30"),
        ("bundled:encoder", short, "words-30", "no task to evaluate on"),
    ):
        with pytest.raises(MaskwiseError, match=said):
            adapt_recipe(model, str(source), arms=[arm], folder=tmp_path)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"arms": ("tsdae",)},
        {"arms": ("token-15", "tsdae"), "overrides": ("study.arms=token-15",)},
        {"overrides": ("training.optimizer=adamw", "study.margin=0.01", "corpus.held_out=0.4")},
        {"seeds": (3, 9), "steps": 50, "overrides": ("phases=[{}, {training.steps: 7}]",)},
    ],
)
def test_the_recipe_that_is_written_is_the_recipe_that_is_run(asked, texts, tmp_path):
    request = Request("bundled:encoder", str(texts), tmp_path / "out", **asked)
    draft = draft_of(request, Texts(str(texts), tmp_path))
    written = tmp_path / "adapt.yaml"
    written.write_text(draft.text, encoding="utf-8")
    read = read_recipe(written)
    assert read == draft.recipe and read.name == "adapt"
    names = [stage.name for stage in make_plan(draft.recipe).stages()]
    assert [stage.name for stage in make_plan(read).stages()] == names
    # It is short enough to read.
    assert len(draft.text.splitlines()) < 30 and draft.text.count("#") > 7


@pytest.mark.parametrize("arms", ["words-30", "tsdae"])
def test_a_setting_that_has_no_effect_in_an_adaptation_is_refused(arms, adapted):
    for setting in ("training.muon_learning_rate=0.1", "tokenizer.vocab_size=600"):
        with pytest.raises(MaskwiseError, match=setting.partition("=")[0].replace(".", r"\.")):
            adapted(arms=[arms], overrides=["training.optimizer=adamw", setting])


def test_both_recipes_for_files_make_the_same_choices(tmp_path):
    """Row lengths, rates, labelled rows and arms of ``new`` and ``adapt`` come from one place."""
    draw = random.Random(0)
    english = ["the", "of", "and", "is", "that", *WORDS[:20]]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(" ".join(draw.choices(english, k=80)) for _ in range(60)))
    rows = [{"text": " ".join(draw.choices(WORDS, k=40)), "label": n % 2} for n in range(60)]
    labels = str(write_lines(tmp_path / "labels.jsonl", rows))
    first = first_study(str(texts), [labels]).recipe
    further = adapt_recipe("bundled:encoder", str(texts), [labels], arms=["token-30", "token-15"])
    assert first.model == further.model
    for setting in ("optimizer", "learning_rate", "muon_learning_rate"):
        assert getattr(first.training, setting) == getattr(further.training, setting)
    assert first.finetune.max_length == further.finetune.max_length
    assert dict(first.study.arms) == dict(further.study.arms)


def test_adapt_answers_and_saves_both_folders(texts, tmp_path, capfd):
    out = tmp_path / "out"
    command = ["adapt", "bundled:encoder", texts, "--steps", 2, "--runs", 1, "--out", out]
    command += ["--arms", "words-30,token-15,tsdae", "training.batch_size=4", "evaluation.rows=4"]
    command += ["corpus.length=32", "corpus.held_out=0.4"]
    assert maskwise(*command, "--dry-run") == 0
    # a table; JSON where it is asked for
    printed = capfd.readouterr().out
    assert "stages" in printed and ", about " in printed and "GiB" in printed
    share = "40.0% of the documents are held out from training; the task title-to-text is made of"
    assert share in printed
    assert not out.exists()  # nothing was written
    assert maskwise(*command, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert "steps per run" in said["answer"]
    assert "at least 6" in said["next"]["advice"]
    again = shlex.split(said["next"]["command"])
    assert str(texts) in again and again[again.index("--out") :][1] == str(out)
    assert maskwise(*again[1:], "--dry-run", "--json") == 0
    assert json.loads(capfd.readouterr().out)["contrasts"][0]["runs"] == 6
    scores = {line["arm"] for line in records_of(out, "task")}
    assert scores == {"token-15", "words-30", "tsdae", "no-pretraining"}
    # The recipe in the folder is the study: nothing of it is left to do.
    recipe = out / "adapt.yaml"
    assert maskwise("study", recipe, "--out", out, "--dry-run", "--json") == 0
    kinds = json.loads(capfd.readouterr().out)["stages"].values()
    assert sum(kind["done"] for kind in kinds) > 10 and not any(kind["to_do"] for kind in kinds)
    adapted = load_json(out / "adapted.json")
    assert adapted.pop("format") == FORMATS["adapted.json"]
    assert said["adapted"] == adapted and said["folders"] == adapted["folders"]
    assert said["helps"] is None and adapted["helps"] is False
    assert unversioned(out) == [str(path.relative_to(out)) for path in out.glob("data/*")]
    page = (out / "report.html").read_text()
    # The page gives the advice of the answer, in a block to copy, and shows no step twice.
    assert adapted["next"] == said["next"]
    blocks = re.findall(r'<pre class="code".*?>(.*?)</pre>', page, flags=re.S)
    assert [*map(html.unescape, blocks)] == [said["next"]["command"], said["next"]["python"]]
    assert page.count(html.escape(said["next"]["command"])) == 1
    for arm in load_json(out / "samples.json").values():
        for sample in arm:
            assert [moment["step"] for moment in sample["moments"]] == [0, 1]
    for folder in said["folders"]:
        AutoModel.from_pretrained(folder)
        assert folder in page
    # Deleted checkpoints need not be trained again for the answer, or for the saved model.
    for checkpoint in out.glob("stages/*/checkpoint"):
        shutil.rmtree(checkpoint)
    assert maskwise(*command, "--json") == 0
    assert json.loads(capfd.readouterr().out)["folders"] == said["folders"]
    shutil.rmtree(out / "model")
    assert maskwise(*command) == 0
    answer, missing, next_step, work = capfd.readouterr().out.strip().splitlines()
    assert answer == said["answer"] and next_step == f"Next: {said['next']['advice']}"
    assert work.strip() == said["next"]["command"]
    assert missing.startswith("There is no adapted model: no run of ")
    assert f"remove {out}/stages/" in missing


FACTS: dict[str, Any] = {"policy": "token", "ratio": "constant(0.3)", "overrides": {}}
SCORES = {"words-30": 0.70, "token-15": 0.66, "no-pretraining": 0.68}


def write_scores(out: Path, by_arm: dict[str, dict[int, float]], metric: str = "accuracy") -> Path:
    lines = []
    for arm, scores in by_arm.items():
        common = {"kind": "task", "arm": arm, "measure": "task", "metric": metric}
        lines += [{**common, "seed": seed, "value": score} for seed, score in scores.items()]
    write_lines(out / "records.jsonl", lines)
    arms = {arm: FACTS for arm in by_arm if arm != "no-pretraining"}
    study = {"arms": arms, "seeds": list(range(6)), "tasks": {"task": {"metric": metric}}}
    study["untrained"] = {"no-pretraining": "the unchanged model"}
    write_lines(out / "study.json", [study])
    return out


ROW: dict[str, Any] = {
    "primary": True,
    "outcome": "tasks",
    "arm": "words-30",
    "n": 6,
    "runs_to_decide": None,
    "sentence": "One is better (facts).",
    "brief": "One is better.",
    "outlook": "",
    "worth": {"above": True, "margin": 0.005, "assumed": True, "against": []},
    "reason": "its lead is large",
}
EVEN = {arm: dict.fromkeys(range(6), score) for arm, score in SCORES.items()}
# The start failed with seed 1, with which words-30 was lucky.
LUCKY = {
    "no-pretraining": {0: 0.5, 2: 0.5},
    "words-30": {0: 0.5, 1: 0.9, 2: 0.5},
    "tsdae": dict.fromkeys(range(3), 0.6),
}


def said_of(result: dict[str, Any], recipe: Any) -> str:
    return " ".join(answer_sentences(result, recipe))


@pytest.mark.parametrize(
    ("scores", "metric", "best"),
    [
        (EVEN | {"tsdae": {5: 0.71}}, "accuracy", "words-30"),
        (EVEN | {"tsdae": dict.fromkeys(range(6), 0.71)}, "accuracy", "tsdae"),
        ({"no-pretraining": {0: 0.1}}, "accuracy", None),
        (EVEN | {"no-pretraining": dict.fromkeys(range(6), 0.7)}, "accuracy", None),
        (LUCKY, "accuracy", "tsdae"),
        (LUCKY | {"tsdae": dict.fromkeys(range(3), 0.4)}, "accuracy", None),
        # in nats, lower is better
        (LUCKY | {"tsdae": dict.fromkeys(range(3), 0.4)}, "nats", "tsdae"),
    ],
)
def test_the_best_arm_gains_most_on_the_runs_that_all_finished(scores, metric, best, tmp_path):
    gains = gains_of(write_scores(tmp_path, scores, metric)).means
    first = max(gains, key=gains.get) if gains else None
    assert (first if gains and gains[first] > 0 else None) == best


def test_what_is_saved_is_a_run_that_finished(tmp_path):
    out = tmp_path / "out"
    folders = [out / f"stages/pretrain-{seed}" for seed in range(3)]
    for folder in folders:
        folder.mkdir(parents=True)
    runs = {str(seed): f"stages/{folder.name}" for seed, folder in enumerate(folders)}
    write_lines(out / "study.json", [{"arms": {"tsdae": {"runs": runs}}}])
    with pytest.raises(MaskwiseError, match="no run of tsdae has a checkpoint"):
        save_adapted(out, "tsdae")
    (folders[0] / "checkpoint").mkdir()  # not finished
    for folder in folders[1:]:  # the checkpoint of the first of these was removed
        (folder / "done.json").write_text('{"seconds": 1}')
    encoder = resolve_start("bundled:encoder")
    shutil.copytree(encoder, folders[2] / "checkpoint")
    card = "---\ntags: []\n---\n\nmeasured on held-out text\n"
    (folders[2] / "checkpoint" / "README.md").write_text(card)
    seed, (whole, sentences) = save_adapted(out, "tsdae")
    assert seed == 2
    AutoModelForMaskedLM.from_pretrained(whole)
    assert "held-out text" in (whole / "README.md").read_text()
    written = (sentences / "README.md").read_text()
    assert "SentenceTransformer(FOLDER)" in written and "held-out text" in written
    AutoTokenizer.from_pretrained(sentences)
    width = AutoModel.from_pretrained(sentences).config.hidden_size
    assert load_json(sentences / "1_Pooling" / "config.json")["word_embedding_dimension"] == width
    modules = [
        module["type"].rpartition(".")[2] for module in load_json(sentences / "modules.json")
    ]
    assert modules == ["Transformer", "Pooling"]


def test_a_saved_model_is_not_written_again_and_keeps_what_was_added(tmp_path):
    """To repeat a finished adapt removed the files that users had put beside the model."""
    out = tmp_path / "out"
    stage = out / "stages/pretrain-0"
    encoder = resolve_start("bundled:encoder")

    def train(card: str) -> None:
        def fill(folder: Path) -> None:
            shutil.copytree(encoder, folder, dirs_exist_ok=True)
            (folder / "trained.txt").write_text(card)

        write_folder(stage / "checkpoint", fill)
        (stage / "checkpoint/README.md").write_text(f"---\ntags: []\n---\n\n{card}\n")
        (stage / "done.json").write_text('{"seconds": 1}')

    train("first")
    arms = {"token-15": {"runs": {"0": "stages/pretrain-0"}}}
    write_lines(out / "study.json", [{"seeds": [0], "tasks": {}, "arms": arms}])
    save = partial(save_best, out, {"contrasts": []}, next_step={})
    first = save()
    added = out / "model/export.onnx"
    added.write_text("mine")
    before = (out / "model/model.safetensors").stat().st_ino
    assert save() == first and added.read_text() == "mine"
    assert (out / "model/model.safetensors").stat().st_ino == before
    # Another checkpoint replaces nothing that was added.
    train("second")
    save()
    assert added.read_text() == "mine" and "second" in (out / "model/README.md").read_text()
    assert damage(out / "model") is None and not [*out.rglob(".unfinished")]
    # What is missing is saved again.
    (out / "sentence-model/modules.json").unlink()
    save()
    assert (out / "sentence-model/modules.json").is_file()


def test_what_is_read_of_the_text_is_kept(texts, tmp_path, monkeypatch):
    # Most texts occur twice, so the share that is held out grows several times.
    lines = read_lines(texts)
    for place, line in enumerate([*lines]):
        if place % 5:
            lines.append({**line, "text": f"Again, {line['text']}"})
    write_lines(texts, lines)
    read = []
    document_of = Documents._document

    def counted(self, *given):
        read.append(given)
        return document_of(self, *given)

    monkeypatch.setattr(Documents, "_document", counted)
    whole = Texts(str(texts), tmp_path)
    assert adapt_recipe("bundled:encoder", whole).corpus.held_out > 0.25
    # to guess the language, for titles, for texts, and for what is trained on
    assert len(read) <= 4 * len(lines) + 10
    write_lines(texts, lines[:60])
    whole = Texts(str(texts), tmp_path)
    first = adapt_recipe("bundled:encoder", whole)
    read.clear()
    for change in ("corpus.length=32", "finetune.max_length=32", "training.batch_size=4"):
        again = adapt_recipe("bundled:encoder", whole, overrides=[change], steps=9)
        assert again.tasks == first.tasks and again.corpus.held_out == first.corpus.held_out
    assert not read
    adapt_recipe("bundled:encoder", whole, overrides=["corpus.limit=58"])
    assert read


@pytest.mark.parametrize("titles", [True, False])
@pytest.mark.parametrize("given", [[], ["corpus.held_out=0.4"], ["corpus.limit=58"]])
def test_no_pair_is_trained_on(titles, given, texts, tmp_path):
    """Also without titles, where the query is the first sentence of the same document."""
    lines = read_lines(texts)
    # A near copy of another text is trained on, wherever that text is.
    lines += [{**line, "text": f"Again, {line['text']}"} for line in lines[:5]]
    if not titles:
        lines = [{"text": line["text"]} for line in lines]
    write_lines(texts, lines)
    recipe = adapt_recipe("bundled:encoder", str(texts), folder=tmp_path, overrides=given)
    task = load_task(recipe.tasks[0])
    documents = [*recipe.corpus.training_documents()]
    trained = [document.text for document in documents]
    assert len(trained) > 30 and task.test_items >= 20
    for row in pairs_of(recipe):
        assert not any(row["passage"][:40] in text for text in trained)
        if not titles:
            assert not any(row["query"] in text for text in trained)
    record = overlap_record(trained, task, corpus="texts")
    assert record["overlapping"] == 0 and record["items"] == task.test_items
    # the rows that are prepared for training hold out the same documents
    tokenizer = recipe.tokenizer.model_copy(update={"name": "bundled:encoder"}).tokenizer([])
    corpus = recipe.corpus
    pieces = read_pieces(
        tokenise(corpus.documents(), tokenizer), tokenizer=tokenizer, length=corpus.length
    )
    rows, _ = split(pieces, held_out=corpus.held_out)
    assert {*pieces.documents[rows.order].tolist()} == {each.place for each in documents}


def test_test_items_that_are_held_out_are_no_overlap(texts, tmp_path):
    """The overlap stage searches the text that is trained on, and nothing else."""
    recipe = adapt_recipe("bundled:encoder", str(texts), folder=tmp_path)
    (task,) = recipe.tasks
    content = load_task(task).fingerprint
    stage = overlap_stage(recipe, task, content)
    assert run_stage(stage, StageStore(tmp_path / "stages"))["record"]["overlapping"] == 0
    leaky = recipe.model_copy(
        update={"corpus": recipe.corpus.model_copy(update={"held_out": 0.001})}
    )
    stage = overlap_stage(leaky, task, content)
    record = run_stage(stage, StageStore(tmp_path / "stages"))["record"]
    assert record["overlapping"] == record["items"]


def test_as_much_is_held_out_as_the_pairs_need(tmp_path):
    """At most a fifth of the documents for many pairs; of a large corpus, less."""
    draw = random.Random(0)
    shares = []
    for count in (40, 400, 4000):
        lines = [
            {
                "title": " ".join(draw.choices(WORDS, k=5)),
                "text": " ".join(draw.choices(WORDS, k=20)),
            }
            for _ in range(count)
        ]
        path = write_lines(tmp_path / f"{count}.jsonl", lines)
        corpus = CorpusSettings(source=str(path))
        if count == 40:
            with pytest.raises(MaskwiseError, match="held out from training"):
                write_pairs(corpus, tmp_path)
            continue
        target, read = write_pairs(corpus, tmp_path)
        shares.append((read.held_out, len(read_lines(target))))
    (small, few), (large, many) = shares
    assert small == 0.2 and 60 < few < 100
    assert 0.1 < large < 0.15 and many > 450


def test_a_title_belongs_to_the_text_of_its_record(tmp_path):
    """Titles were found by the ids of records, and several records may have the same."""
    rows = []
    for number in range(60):
        text = f"{number} {' '.join(random.Random(number).choices(WORDS, k=20))}"
        rows.append({"id": "same", "title": f"title {number}", "text": text})
    write_lines(tmp_path / "texts.jsonl", rows)
    target, _ = write_pairs(CorpusSettings(source=str(tmp_path / "texts.jsonl")), tmp_path)
    pairs = read_lines(target)
    assert len(pairs) >= 20
    assert all(pair["passage"].split()[0] == pair["query"].split()[1] for pair in pairs)


def test_pairs_belong_to_the_folder_of_their_study(texts, tmp_path):
    """They were written beside it, where another study of the same name overwrote them."""
    out = tmp_path / "out"
    request = Request("bundled:encoder", str(texts), out, keep="none", seeds=2, steps=4)
    with Adaptation(request, dry_run=True) as planned:
        assert pairs_of(planned.draft.recipe)
        dry = [stage.name for stage in make_plan(planned.draft.recipe).stages()]
    assert not out.exists()
    with pytest.raises(MaskwiseError, match="refused"), Adaptation(request) as refused:
        tasks = refused.draft.recipe.tasks
        (pairs,) = out.glob("data/title-to-text-*.jsonl")
        assert tasks[0].startswith(str(pairs))
        raise MaskwiseError("refused")
    assert not out.exists(), "the study did not begin"
    with Adaptation(request) as first, OutputFolder(out, "study").used({"study": True}):
        recipe = first.draft.recipe
        write_lines(out / "study.json", [{}])
    whole = pairs.read_bytes()
    # A plan of other texts leaves them, and they are written again if they were lost.
    other = tmp_path / "other.jsonl"
    other.write_text(texts.read_text().replace('"text": "', '"text": "Other '))
    with Adaptation(replace(request, texts=str(other)), dry_run=True) as planned:
        assert not planned.draft.recipe.tasks[0].startswith(str(out))
    assert pairs.read_bytes() == whole
    pairs.unlink()
    with Adaptation(request) as again:
        assert again.draft.recipe.tasks == recipe.tasks and pairs.read_bytes() == whole
        # Where they lie is no part of the study.
        assert [stage.name for stage in make_plan(recipe).stages()] == dry
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "texts.jsonl", "other.jsonl"}


@pytest.mark.parametrize(
    ("setting", "option"), [("training.steps=120", "--steps"), ("study.seeds=3", "--runs")]
)
def test_settings_that_are_options_are_rejected(setting, option, texts, tmp_path, capfd):
    command = ["adapt", "bundled:encoder", texts, setting, "--out", tmp_path / "out"]
    assert maskwise(*command, "--dry-run") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(f"use {option}")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("training={steps: 7}", "option for training.steps"),
        ("study={seeds: 8}", "option for study.seeds"),
        ("model={pretrained: bundled:seq2seq}", "model.pretrained is the first argument"),
        ("model={architecture: bert}", "model.architecture"),
        ("corpus={source: other.txt}", "corpus.source is the second argument"),
        ("corpus={tokens: ids}", "corpus.tokens"),
    ],
)
def test_settings_in_a_group_are_refused_as_alone(setting, named, adapted):
    with pytest.raises(MaskwiseError, match=named):
        adapted(overrides=[setting])


def test_a_group_of_settings_holds_out_the_documents_of_the_pairs(tmp_path):
    """The pairs were made as if the share was not given, and most were training documents."""
    draw = random.Random(0)
    sizes = {"title": 5, "text": 20}
    rows = [
        {name: " ".join(draw.choices(WORDS, k=size)) for name, size in sizes.items()}
        for _ in range(400)
    ]
    texts = write_lines(tmp_path / "texts.jsonl", rows)
    found = []
    for number, given in enumerate(("corpus.held_out=0.1", "corpus={held_out: 0.1}")):
        folder = tmp_path / str(number)
        recipe = adapt_recipe("bundled:encoder", str(texts), folder=folder, overrides=[given])
        assert recipe.corpus.held_out == 0.1
        found.append(pairs_of(recipe))
    assert found[0] == found[1] and len(found[0]) >= 20


@pytest.mark.parametrize("where", ["study.arms.words-30.corpus.held_out", "study.arms.words-30"])
def test_no_arm_trains_on_the_documents_of_the_pairs(where, adapted, tmp_path):
    value = (
        "0.01" if where.endswith("held_out") else "{masking.ratio: 0.3, corpus: {held_out: 0.01}}"
    )
    with pytest.raises(MaskwiseError, match=r"'words-30' trains on documents"):
        adapted(overrides=[f"{where}={value}"])


def test_seeds_are_a_number_of_runs_or_a_range(texts, tmp_path, capfd):
    command = ["adapt", "bundled:encoder", texts, "--steps", 5, "--dry-run", "--json"]
    runs = []
    for option, value in (("--seeds", "6-8"), ("--runs", "2")):
        assert maskwise(*command, "--out", tmp_path / "out", option, value) == 0
        captured = capfd.readouterr()
        runs.append(json.loads(captured.out)["phases"][0]["runs"])
    assert runs == [3, 2]


@pytest.mark.parametrize("seeds", ["six", "", "5-3"])
def test_bad_seeds_are_named_with_their_option(seeds, capfd):
    assert maskwise("adapt", "bundled:encoder", "any.txt", "--seeds", seeds) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "--seeds" in line and f"got {seeds}" in line.replace("'", "") and "allowed:" in line
    assert "study.seeds" not in line


@pytest.mark.parametrize(
    ("seeds", "more"),
    [
        (2, "--steps 50 --out out"),
        ((3, 9), "--steps 50 --seeds 3,9,10,11,12,13 --out out"),
        ((6, 7, 8), "--steps 50 --seeds 6-11 --out out"),
    ],
)
def test_runs_are_added_to_the_seeds_of_the_user(seeds, more, adapted):
    row = ROW | {"verdict": "open", "better": None, "n": 2, "runs_to_decide": 9}
    result = {"contrasts": [row], "failures": [], "seconds": 600}
    request = Request("bundled:encoder", "a.txt", Path("out"), steps=50, seeds=seeds)
    said = next_of(result, adapted(seeds=seeds), request)
    assert said.command == f"maskwise adapt bundled:encoder a.txt {more}"


@pytest.mark.parametrize("runs_to_decide", [9, None])
@pytest.mark.parametrize("n", [2, 6])
def test_what_takes_longer_is_not_advised_with_the_limit_of_this_study(n, runs_to_decide, adapted):
    row = ROW | {"verdict": "open", "better": None, "n": n, "runs_to_decide": runs_to_decide}
    result = {"contrasts": [row], "failures": [], "seconds": 600}
    request = Request("bundled:encoder", "a.txt", Path("out"), seeds=n, time="30m")
    said = next_of(result, adapted(seeds=n), request)
    assert "--time" not in said.command and "time=" not in said.python


def test_the_saved_model_is_found_after_a_move(tmp_path):
    saved = {"folders": ["elsewhere/runs/a/model", "elsewhere/runs/a/sentence-model"]}
    assert saved_folders(tmp_path, saved) == [tmp_path / "model", tmp_path / "sentence-model"]


def test_the_steps_reach_the_phase_of_a_new_head(adapted, monkeypatch):
    monkeypatch.setattr("maskwise.studies.adapt.draft.has_head", lambda model: False)
    row = ROW | {"verdict": "open", "better": None}
    for options, steps in (
        ({"steps": 50}, [50, 50]),
        ({"head_steps": 7}, [7, 600]),
        ({"steps": 2000}, [600, 2000]),
        ({"overrides": ["phases.0.training.steps=9"]}, [9, 600]),
    ):
        recipe = adapted(**options)
        # The page begins with the description.
        for said in (recipe.description, said_of({"contrasts": [row], "seconds": 9}, recipe)):
            head = (
                f"a new masked-language-model head, trained {steps[0]} steps on the frozen encoder"
            )
            assert head in said
        assert [link.training.steps for link in recipe.arm("words-30", seed=0).links()] == steps
    # one training of the head for all runs, and further training of each
    counted = {}
    for stage in make_plan(recipe).stages():
        if stage.kind == "pretrain":
            counted.setdefault(stage.what["training"]["freeze"], set()).add(stage.name)
    assert {freeze: len(names) for freeze, names in counted.items()} == {"encoder": 1, "none": 6}


def test_labelled_rows_are_cut_only_where_the_model_takes_no_more(adapted, tmp_path):
    lines = []
    for number in range(60):
        text = f"{number:03} " + "word " * (20 + 180 * (number % 2))
        lines.append({"text": text, "label": number % 2})
    labels = [str(write_lines(tmp_path / "labels.jsonl", lines))]
    recipe = adapted(labels)
    tokenizer = AutoTokenizer.from_pretrained(resolve_start("bundled:encoder"))
    longest = max(len(tokenizer(line["text"])["input_ids"]) for line in lines)
    room = most_tokens(load_config("bundled:encoder", kind=None))
    assert longest > 200 and recipe.finetune.max_length == min(longest, room)
    # The rows of the dev split are not measured.
    assert 0.4 < cut_rows(recipe)["labels"] < 0.6
    cut = cut_rows(adapted(labels, overrides=["finetune.max_length=64"]))
    plan: dict[str, Any] = {"least_seconds": 7300.0, "memory_gib": 1.5, "jobs": 2, "unknown": []}
    plan |= {"cut": cut, "max_length": 64, "processes": 1, "untimed": {}}
    (rows,) = adapt_lines(plan)
    assert not adapt_lines(plan, warned=["labels"])
    assert adapt_lines(plan, warned=["others"]) == [rows]
    time = time_words(plan)
    assert "1 stage at once" in time_words(plan | {"jobs": 1})
    assert "about 2.0 h" in time and "1.5 GiB" in time and "one process" not in time
    more = time_words(plan | {"processes": 3})
    assert more.startswith(time) and "one process" in more and "3 that" in more
    assert rows.startswith(f"{cut['labels']:.1%} of the rows of") and "64 tokens" in rows
    # A time that is estimated is a range, or its lower end.
    plan |= {"unknown": ["learn", "finetune"], "most_seconds": 36_600.0}
    assert time_words(plan).startswith("2.0 h to 10.2 h")
    plan |= {"untimed": {"learn": "too short"}, "most_seconds": None}
    unknown = time_words(plan)
    assert unknown.startswith("at least 2.0 h") and "learn (too short)" in unknown


def test_a_study_whose_estimate_is_above_the_time_is_not_rehearsed(
    texts, tmp_path, capfd, monkeypatch
):
    def rates(*_: object) -> None:
        raise AssertionError("rehearsed")

    monkeypatch.setattr(Rehearsal, "rates", rates)
    # Other tests may have kept rates.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    asked = ("adapt", "bundled:encoder", texts, "--out", out)
    assert maskwise(*asked, "--steps", 90_000, "--time", "40m") == 2
    said = capfd.readouterr().err
    # The advice is made of the upper end, so it surely keeps the time.
    steps = int(re.findall(r"set --steps (\d+)", said)[0])
    assert not out.exists() and " h to " in said
    assert maskwise(*asked, "--steps", steps, "--time", "40m", "--dry-run", "--no-timing") == 0
    assert " min to 40 min" in capfd.readouterr().out


def test_a_time_without_a_bound_has_advice(texts, tmp_path, capfd, monkeypatch):
    """By default, English text is measured for what is forgotten: nothing bounds that time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: tuple[Any, ...] = ("adapt", "bundled:encoder", texts, "--keep", "bundled:wikipedia")
    asked += ("--out", tmp_path / "out", "--dry-run", "--time")
    assert maskwise(*asked, "40m", "--steps", 900_000) == 0
    said = capfd.readouterr().out
    steps = int(re.findall(r"set --steps (\d+)", said)[0])
    assert 100 < steps < 900_000 and "at least" in said.splitlines()[-1]
    assert maskwise(*asked, "40m", "--steps", steps, "--no-timing") == 0
    assert "takes longer" not in capfd.readouterr().out


def test_a_time_that_cannot_be_rehearsed_is_that_of_the_estimate(
    texts, tmp_path, capfd, monkeypatch
):
    def rates(self: Rehearsal, stage: Stage, budget: float) -> dict[str, float]:
        if stage.kind == "pretrain":
            raise MaskwiseError("the sample is too short")
        return {"seconds": 1.0}

    monkeypatch.setattr(Rehearsal, "rates", rates)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = ("adapt", "bundled:encoder", texts, "--out", tmp_path / "out", "--dry-run", "--time")
    assert maskwise(*asked, "2h") == 0
    said = capfd.readouterr().out
    assert re.search(r"time .* to .* with", said) and "pretrain (the sample is too short)" in said
    assert "takes longer" not in said
    assert maskwise(*asked, "1m") == 0
    assert "takes longer than --time" in capfd.readouterr().out


def test_a_plan_above_the_time_names_the_most_steps_that_keep_it(
    texts, tmp_path, capfd, monkeypatch
):
    # Every step takes a second, so that a plan takes hours.
    entry = {"start": 0.0, "step": 1.0, "judge": 0.0, "memory_gib": 0.5}
    monkeypatch.setattr(Rehearsal, "rates", lambda *_: entry | {"seconds": 1.0})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "my out"

    def adapt(*options: Any) -> tuple[int, Any]:
        command = ("adapt", "bundled:encoder", texts, "--out", out, "--jobs", 2, *options)
        return maskwise(*command), capfd.readouterr()

    def planned(*options: Any) -> Any:
        code, said = adapt(*options, "--dry-run", "--json")
        assert code == 0
        return json.loads(said.out)

    plan = planned("--steps", 900, "--time", "20m")
    most = plan["limit"]["steps"]
    assert plan["seconds"] > 1200 >= plan["limit"]["seconds"] and plan["memory_gib"] == 0.5
    assert [*plan["cut"].values()] == [0.0]
    # It is a dry run's last line, and the error of a run, which does not begin.
    code, said = adapt("--steps", 900, "--time", "20m", "--dry-run")
    assert code == 0 and f"--steps {most}" in said.out.splitlines()[-1]
    code, said = adapt("--steps", 900, "--time", "20m")
    assert code == 2 and f"--steps {most}" in said.err.splitlines()[-1] and not out.exists()
    # The advice keeps the limit, and ten more steps do not.
    assert planned("--steps", most, "--time", "20m")["limit"] is None
    assert planned("--steps", most + 10, "--time", "20m")["limit"] is not None
    # Without a limit, nothing is compared.
    assert planned("--steps", 9000)["limit"] is None
    # No number of steps may keep it.
    code, said = adapt("--steps", 900, "--time", "1m")
    advice = said.err.splitlines()[-1]
    assert code == 2 and "even --steps 100" in advice
    enough = advice.rpartition("--time ")[2].rstrip(".")
    assert planned("--steps", 100, "--time", enough)["limit"] is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45", 2700), ("90s", 90)]
)
def test_times_have_units(text, seconds):
    assert time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-2h", "10s", "NaT", "2 parsecs"])
def test_what_is_no_time_is_one_line(text, capfd):
    assert maskwise("adapt", "bundled:encoder", "any.txt", "--time", text) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "--time" in line and repr(text) in line and "1h30m" in line


@pytest.mark.parametrize(
    ("verdict", "better", "n", "runs", "ends"),
    [
        ("decided", "arm", 6, None, "finetune 'o 1/model' --task 'a b.csv' --out 'o 1-finetune'"),
        ("decided", "baseline", 6, None, "bundled:encoder --task 'a b.csv' --out 'o 1-finetune'"),
        ("no difference that matters", None, 6, None, "--task 'a b.csv' --out 'o 1-finetune'"),
        ("open", None, 3, 9, "--task 'a b.csv' --out 'o 1'"),
        ("open", None, 6, 8, "--task 'a b.csv' --seeds 6-13 --out 'o 1-2'"),
        ("open", None, 6, None, "--task 'a b.csv' --steps 1200 --out 'o 1-2'"),
        (
            "not comparable",
            None,
            6,
            None,
            "finetune.search_rate=true --task 'a b.csv' --out 'o 1-2'",
        ),
        ("not comparable", None, 0, None, "texts.txt --task 'a b.csv' --out 'o 1'"),
    ],
)
def test_the_next_step_is_a_complete_command(verdict, better, n, runs, ends, adapted):
    row = ROW | {"verdict": verdict, "better": better, "n": n, "runs_to_decide": runs}
    result = {"contrasts": [row], "failures": [] if n else [{}], "seconds": 600}
    answer = said_of(result, adapted())
    assert answer.startswith("Yes") == (verdict == "decided" and better == "arm")
    assert answer.startswith("No") == (better == "baseline" or verdict.startswith("no diff"))

    for tasks in (("a b.csv",), ()):
        request = Request("bundled:encoder", "texts.txt", Path("o 1"), tasks)
        said = next_of(result, adapted(), request)
        assert said.advice and (said.command.endswith(ends) or not tasks)
        # Nothing that is quoted for a shell stands in a sentence.
        assert "'" not in said.advice.replace("'o 1/model'", "") and said.advice.endswith(".")
        assert bool(said.command) == bool(said.python)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({"tasks": ("a b.csv(label='it''s')",), "seeds": (3, 9)}, {}),
        ({"arms": ("words-30", "tsdae"), "lengths": (0.5, 1.0), "time": "2h", "jobs": 1}, {}),
        ({"new_words": 5, "control": "c.txt", "seeds": (4, 5, 6), "policy": "p"}, {"time": None}),
        ({"keep": "none", "replay": 0.2, "patience": 3, "overrides": ("a.b=1",)}, {"steps": 9}),
        ({"head_steps": 50, "seeds": 8}, {"out": Path("o 2")}),
    ],
)
def test_python_asks_for_what_the_command_asks(options, changes, monkeypatch):
    """A study of data frames got a command with quotes for a shell, and no other form."""
    request = Request("a model", "the texts.txt", Path("o 1"), **options)
    asked = request.invocation("finetune.steps=5", **changes)
    found = []

    def stop(given: Request, **more: Any) -> None:
        found.append(given)
        raise MaskwiseError("this is enough")

    monkeypatch.setattr("maskwise.studies.adapt.Adaptation", stop)
    with pytest.raises(MaskwiseError, match="this is enough"):
        exec(asked.python, {})
    assert maskwise(*shlex.split(asked.command)[1:]) == 2
    of_python, of_command = found
    assert of_python == of_command


def test_an_arm_is_used_if_its_lead_is_large_enough(adapted):
    request = Request("bundled:encoder", "texts.txt", Path("out"), ("a.csv",))
    said = []
    for above, against in ((True, []), (True, ["other"]), (False, [])):
        worth = {"above": above, "margin": 0.005, "assumed": True, "against": against}
        row = ROW | {"verdict": "decided", "better": "arm", "worth": worth}
        result = {"contrasts": [row], "failures": [], "seconds": 600}
        step = next_of(result, adapted(), request)
        assert row["reason"] in step.advice and "out/model" in step.command
        said.append(step.advice.split()[0])
    assert said == ["Use", "Weigh", "Weigh"]


def test_an_answer_has_at_most_four_sentences_and_an_open_one_no_lead(adapted, tmp_path):
    """It was one paragraph of 110 words, with a lead that its interval does not carry."""
    recipe = adapted()
    flag = {"code": "overlap", "facts": {"tasks": ["mine"]}, "sentence": "40 items share words"}
    row = ROW | {"verdict": "open", "better": None, "flags": [flag], "outlook": "Add runs."}
    other = row | {"arm": "words-30-new-words", "baseline": "words-30"}
    result = {"contrasts": [row, other], "seconds": 9, "guessed": ["extra"]}
    out = tmp_path / "none"
    out.mkdir()
    said = answers(out, result, recipe)
    sentences = [*answer_sentences(result, recipe)]
    assert len(sentences) == 6 and sentences[0] == row["brief"]
    assert said["answer"] == " ".join(sentences[:4])
    assert said["details"] == [*sentences[4:], row["sentence"], "40 items share words."]


def test_the_answer_names_test_items_that_are_trained_on(adapted, tmp_path):
    row = ROW | {"verdict": "decided", "better": "arm"}
    words = "40 of 100 test items of mine share 13 words in a row with the corpus"
    for minor in (False, True):
        facts = {"minor": minor, "tasks": ["mine"]}
        flag = {"code": "overlap", "facts": facts, "sentence": words}
        found = answers(tmp_path, {"contrasts": [row | {"flags": [flag]}], "seconds": 9}, adapted())
        assert ("test items of mine" in found["answer"]) == (not minor)
        # The number, and the longest run of words, need not be read at once.
        assert (f"{words}." in found["details"]) == (not minor)


def test_a_model_that_is_saved_is_not_praised_beyond_the_verdict():
    folders = [Path("out/model"), Path("out/sentence-model")]
    for gain in (None, -0.1, 0.0, 0.1):
        for helps in (False, True):
            said = kept_of("tsdae", folders, gain=gain, helps=helps)
            assert "tsdae" in said and "out/model and out/sentence-model" in said
            better = gain is not None and gain > 0
            assert ("best mean" in said) == (better and not helps)
            assert ("shown to help" in said) == (better and helps)
            # How far it is behind has no interval here, so nothing is said of it.
            assert ("No lead" in said) == (gain in (-0.1, 0.0))
            assert ("due to chance" in said) == (better and not helps)


@pytest.mark.parametrize("decided", [True, False])
def test_the_model_that_is_advised_is_the_one_that_was_decided(decided, tmp_path, monkeypatch):
    """Another arm with a higher mean was saved, and advised for the reasons of the first."""
    arms = {arm: {"runs": {"0": f"stages/{arm}"}} for arm in ("first", "second")}
    write_lines(tmp_path / "study.json", [{"seeds": [0], "tasks": {}, "arms": arms}])
    row = ROW | {"arm": "first"}
    row |= {"verdict": "decided" if decided else "open", "better": "arm" if decided else None}
    monkeypatch.setattr(saving, "gains_of", lambda _: ({"first": 1.0, "second": 2.0}, "points"))
    monkeypatch.setattr(saving, "trained_run", lambda *_: None)
    monkeypatch.setattr(saving, "save_adapted", lambda out, arm: (0, [out / "model"]))
    found = save_best(tmp_path, {"contrasts": [row]}, next_step={})
    assert found["arm"] == ("first" if decided else "second") and found["helps"] == decided


@pytest.mark.parametrize(
    ("scores", "arm", "difference", "unit"),
    [
        (EVEN, "words-30", 0.02, "score"),
        (EVEN | {"no-pretraining": dict.fromkeys(range(6), 0.7)}, "words-30", 0.0, "score"),
        ({}, "token-15", None, None),  # every fine-tuning failed
    ],
)
def test_the_adapted_model_is_saved_whatever_the_verdict(scores, arm, difference, unit, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    if scores:
        write_scores(out, scores)
    encoder = resolve_start("bundled:encoder")
    study = load_json(out / "study.json") if scores else {"seeds": [0], "tasks": {}}
    study["arms"] = {}
    for name in ("words-30", "token-15"):
        folder = out / "stages" / name
        # Training finished in one arm only, if there are no scores.
        if scores or name == "token-15":
            shutil.copytree(encoder, folder / "checkpoint")
            (folder / "checkpoint" / "README.md").write_text("---\ntags: []\n---\n\ncard\n")
            (folder / "done.json").write_text('{"seconds": 1}')
        study["arms"][name] = {**FACTS, "runs": {"3": f"stages/{name}"}}
    write_lines(out / "study.json", [study])
    saved = save_best(out, {"contrasts": []}, next_step={"advice": "Run."})
    assert saved | {"format": FORMATS["adapted.json"]} == load_json(out / "adapted.json")
    assert (saved["arm"], saved["seed"], saved["unit"]) == (arm, 3, unit)
    assert saved["mean_difference"] == pytest.approx(difference)
    # Without a decision, no key says that the model is better.
    assert not saved["helps"] and "better" not in saved
    for folder in saved["folders"]:
        assert folder in saved["sentence"] and (Path(folder) / "model.safetensors").is_file()
    shutil.rmtree(out / "stages")
    write_lines(out / "records.jsonl", [])
    assert save_best(out, {"contrasts": []}, next_step={}) is None  # no run has finished
