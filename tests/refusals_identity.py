"""What an older version made by the names of texts, or of one corpus, is not used again."""

from __future__ import annotations

import json
from pathlib import Path

import maskwise as mw
from maskwise.annotate.kept import Store
from maskwise.annotate.run import annotate_corpus
from maskwise.recipe import read_recipe
from maskwise.studies.single import run_pretrain
from maskwise.text import Pieces, read_documents, read_pieces, tokenise, train_tokenizer
from refusals import Refusal
from tiny import write_inputs

TEXTS = ["The cat sat on the mat.", "A dog ran to the cat."]
FACTS = ("older maskwise", "new folder")


def age(file: Path, version: int) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": version}))


def prepare(out: Path) -> None:
    tokenizer = train_tokenizer(TEXTS * 9, vocab_size=64)
    read_pieces(tokenise(read_documents(TEXTS), tokenizer), tokenizer=tokenizer, length=8, out=out)


def load_prepared(folder: Path) -> None:
    prepare(folder / "old")
    age(folder / "old" / "columns.json", 3)
    Pieces.load(folder / "old")


def prepare_anew(folder: Path) -> None:
    prepare(folder / "new")
    Pieces.load(folder / "new")


def annotate(out: Path) -> None:
    annotate_corpus(TEXTS, ["words"], out)


def old_annotations(folder: Path) -> Path:
    annotate(folder / "old")
    (folder / "old" / "layers.json").rename(folder / "old" / "manifest.json")
    return folder / "old"


def annotate_anew(folder: Path) -> None:
    annotate(folder / "new")
    Store(folder / "new")


OVERRIDES = ["training.steps=2", "training.eval_every=0", "training.save_every=0", "tasks=[]"]


def study(inputs: Path, out: Path) -> None:
    mw.study(inputs / "recipe.yaml", out=out, overrides=[*OVERRIDES, "study.arms={a: {}}"])


def study_in_old_folder(folder: Path) -> None:
    """The study was killed before it had results: its text is prepared."""
    write_inputs(folder / "inputs")
    study(folder / "inputs", folder / "old")
    for name in ("summary.json", "records.jsonl", "report.html"):
        (folder / "old" / name).unlink()
    for stage in (folder / "old" / "stages").glob("*/stage.json"):
        age(stage, 1)
        (stage.parent / "done.json").unlink()
    study(folder / "inputs", folder / "old")


def study_with_layers(inputs: Path, out: Path) -> None:
    arms = "study.arms={a: {}}"
    mw.study(inputs / "recipe.yaml", out=out, overrides=[*OVERRIDES, arms, "corpus.layers=[words]"])


def study_on_old_annotations(folder: Path) -> None:
    write_inputs(folder / "inputs")
    study_with_layers(folder / "inputs", folder / "old")
    [layers] = (folder / "old").glob("stages/*/layers/layers.json")
    layers.rename(layers.with_name("manifest.json"))
    study_with_layers(folder / "inputs", folder / "old")


def pretrain(inputs: Path, out: Path) -> None:
    run_pretrain(read_recipe(inputs / "recipe.yaml", OVERRIDES), out=out)


def pretrain_in_old_folder(folder: Path) -> None:
    write_inputs(folder / "inputs")
    pretrain(folder / "inputs", folder / "old")
    age(folder / "old" / "stage.json", 1)
    (folder / "old" / ".identity.json").unlink()
    pretrain(folder / "inputs", folder / "old")


ROWS = [
    Refusal("prepared text by names", load_prepared, (*FACTS, "old"), prepare_anew),
    Refusal(
        "annotations of one corpus",
        lambda folder: Store(old_annotations(folder)),
        FACTS,
        annotate_anew,
    ),
    Refusal(
        "more annotations into those of one corpus",
        lambda folder: annotate(old_annotations(folder)),
        FACTS,
        annotate_anew,
    ),
    Refusal(
        "a study on stages by names",
        study_in_old_folder,
        FACTS,
        lambda folder: study(folder / "inputs", folder / "new"),
    ),
    Refusal(
        "a study on annotations of one corpus",
        study_on_old_annotations,
        FACTS,
        lambda folder: study_with_layers(folder / "inputs", folder / "new"),
    ),
    Refusal(
        "a pre-training on a text by names",
        pretrain_in_old_folder,
        ("something else", "give a new folder"),
        lambda folder: pretrain(folder / "inputs", folder / "new"),
    ),
]
