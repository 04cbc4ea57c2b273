"""Two things of a user that do not belong together are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, TrainingArguments

import maskwise as mw
from masking_tools import random_rows, tokenizer
from maskwise.masking.corruptions.base import Corruption, Masked, labels_in_place
from maskwise.masking.draws import Purpose, below
from maskwise.models.convert import convert
from maskwise.studies.checks import check_inputs
from maskwise.studies.from_files import draft_of_files
from maskwise.studies.single import run_learn, run_pretrain
from maskwise.testing import check_corruption
from maskwise.text import train_tokenizer
from maskwise.training import train
from refusals import Refusal
from test_own_tokenizer import other_tokens, recipe_of
from tiny import write_inputs
from training_tools import model
from training_tools import tokenizer as words

Rows = list[dict[str, Any]]


def masked_rows(corruption: str = "bert") -> Rows:
    """Rows that were masked before, with their answers in ``labels``."""
    batch = mw.Masker(tokenizer(), ratio=0.3, corruption=corruption).at(epoch=0)
    return [
        {**row, "example_id": number} for number, row in enumerate(batch(random_rows(3, words=12)))
    ]


def with_mask(role: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose mask token is another special token, too."""
    made = deepcopy(tokenizer())
    made.mask_token = getattr(made, f"{role}_token")
    return made


def own_mask(_: Path) -> None:
    made = with_mask("pad")
    made.add_special_tokens({"mask_token": "[HIDDEN]"})
    mw.Masker(made)(random_rows(3), epoch=0)


@dataclass(frozen=True)
class FromText(Corruption):
    """Draws replacements from all tokens of the row, also from the unknown ones."""

    shows_mask = False

    def corrupt(self, line: Any, choice: Any, draws: Any, vocabulary: Any) -> Masked:
        input_ids = line.input_ids.copy()
        for at in np.flatnonzero(choice.tokens).tolist():
            own = np.flatnonzero(line.content & (line.piece == line.piece[at]))
            draw = line.draw(draws, Purpose.REPLACE, np.array([at]))
            input_ids[at] = line.input_ids[own[below(draw, len(own))[0]]]
        return Masked(input_ids, labels_in_place(choice, "spans"))


def of_columns(columns: dict[str, Any]) -> Callable[[Path], object]:
    return lambda _: mw.annotate_rows(columns, train_tokenizer(["the cat"] * 9, vocab_size=64))


def meant_tokenizer(folder: Path) -> object:
    return check_inputs(recipe_of(folder, "tokenizer.replaces=true"))


def own_name(folder: Path) -> object:
    return check_inputs(recipe_of(folder, "tokenizer.name=null"))


def trainer_of(folder: Path, read: Any) -> object:
    arguments = TrainingArguments(str(folder), report_to="none")
    masker = mw.Masker(words(), seed=0)
    return mw.MaskingTrainer(model("bert"), arguments, masker=masker, processing_class=read)


def pretrain_other(folder: Path) -> object:
    return run_pretrain(recipe_of(folder), folder / "out")


def learn_of(folder: Path) -> object:
    task = str(folder / "task.jsonl")
    learning = f"{{task: '{task}', method: meta, policy: {{length: 32}}}}"
    return run_learn(recipe_of(folder, f"learning={learning}", "study.arms={}"), folder / "out")


def convert_other(folder: Path) -> object:
    start, other = other_tokens(folder)
    torch.save(load_file(start / "model.safetensors"), start / "pytorch_model.bin")
    (start / "model.safetensors").unlink()
    return convert(start, folder / "new", tokenizer=other)


def adapt_other(folder: Path) -> object:
    start, other = other_tokens(folder)
    write_inputs(folder)
    return mw.adapt(
        str(start),
        str(folder / "corpus.jsonl"),
        tasks=[str(folder / "task.jsonl")],
        out=folder / "out",
        overrides=[f"tokenizer.name={other}"],
    )


PAIR = ("other ids", "tokenizer.name", "other", "model")


def with_seed(folder: Path) -> object:
    """A user's file whose name a recipe would change to that of another file."""
    for name in ("{seed}.txt", "0.txt"):
        (folder / name).write_text("the cat sat on the mat\n" * 40, encoding="utf-8")
    return draft_of_files(str(folder / "{seed}.txt")).recipe


ROWS = [
    *(
        Refusal(
            f"rows that {corruption} has masked, to be masked again",
            lambda _, c=corruption: mw.Masker(tokenizer())(masked_rows(c), epoch=1),
            ("masked already", "labels", "input_ids"),
            lambda _: mw.Masker(tokenizer())(random_rows(3), epoch=1),
        )
        for corruption in ("bert", "mask-only", "replace")
    ),
    *(
        Refusal(
            f"a mask token that is also the {role} token",
            lambda _, r=role: mw.Masker(with_mask(r)),
            ("mask token of its own", "add_special_tokens"),
            own_mask,
        )
        for role in ("pad", "unk", "cls", "sep")
    ),
    Refusal(
        "a corruption that draws unknown tokens",
        lambda _: check_corruption(FromText()),
        ("unknown", "line.eligible"),
    ),
    *(
        Refusal(f"annotate_rows: {name}", of_columns(columns), ("'extra'", "got 1", "2 rows"))
        for name, columns in {
            "a column for other rows": {"input_ids": [[5], [6, 7]], "extra": [1]},
            "a column for other texts": {"text": ["the cat", "cat"], "extra": [1]},
        }.items()
    ),
    Refusal("train: no objective", lambda _: train(3, None, "x"), ("Objective", "int", "str")),
    *(
        Refusal(f"{door}: a tokenizer of the same size that is another model's", call, PAIR, advice)
        for door, call, advice in (
            ("study", lambda folder: check_inputs(recipe_of(folder)), own_name),
            (
                "pretrain",
                lambda folder: run_pretrain(recipe_of(folder), folder / "out"),
                meant_tokenizer,
            ),
            ("adapt", adapt_other, None),
            ("learn", learn_of, None),
        )
    ),
    Refusal("convert: another model's tokenizer", convert_other, ("other ids", "--tokenizer")),
    Refusal(
        "MaskingTrainer: a processing_class of another vocabulary",
        lambda folder: trainer_of(folder, train_tokenizer(["w1 w2 w3"] * 9, vocab_size=64)),
        ("processing_class", "masker"),
        lambda folder: trainer_of(folder, words()),
    ),
    Refusal("a text whose name has {seed}", with_seed, ("{seed}", "rename the file")),
]
