"""What a user brings along: columns, texts, annotators, policies and tokenizers that do not fit."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import maskwise as mw
from maskwise.annotate.registry import annotator
from maskwise.base.specs import build
from maskwise.evaluation.evaluate import measure_of
from maskwise.evaluation.measures.text_loss import TextLoss
from maskwise.masking.diffusion import Noising
from maskwise.masking.policies import Policy, UnitKind, policy
from maskwise.masking.settings import Masking
from maskwise.masking.units import runs
from maskwise.objectives import objective
from maskwise.recipe import read_recipe
from maskwise.text import Document, read_documents, tokenise
from maskwise.text.token_rows import TokenRows
from refusals import Refusal, cases
from test_corruptions import tokenizer as tokenizer_of
from test_own_labels import rows, stacked
from test_pieces import cut, document
from training_tools import model, tokenizer

TEXT = "Marie Curie was born in Warsaw in 1867."


# Columns
# ------------------------------------------------------------------------------------------------


def masked(given: Any) -> object:
    return mw.Masker(tokenizer(), ratio=0.5)(given, step=0)


def twos(name: str, as_rows: bool) -> Any:
    """Rows with 2 in a column of flags."""
    plain = rows(labels=False)
    if as_rows:
        return [{**row, name: [2] * len(row["input_ids"])} for row in plain]
    columns = stacked(plain, torch.as_tensor)
    columns[name] = torch.full_like(columns["input_ids"], 2)
    return columns


def with_column(name: str, as_rows: bool = True) -> Any:
    """Rows with one more column, or two of the rows as columns."""
    given = [
        {"input_ids": row["input_ids"], name: [1] * len(row["input_ids"])}
        for row in rows(labels=False)
    ]
    return given if as_rows else {key: [row[key] for row in given[::2]] for key in given[0]}


def with_own_labels(corruption: str) -> object:
    """A decoder would read a label of −100 as padding."""
    tools = copy.deepcopy(tokenizer())
    tools.add_special_tokens({"additional_special_tokens": [f"<extra_id_{n}>" for n in range(9)]})
    given = [{**row, "sentence": row["word_ids"]} for row in rows(labels=True)]
    return mw.Masker(tools, ratio=0.3, corruption=corruption)(given, step=0)


WHOLE = ["infill", "delete", "replace(target='full')", "t5(target='full')", "permute-sentences"]
"""Corruptions that ask for the whole text."""
MISSPELT = {
    "word_id": "word_ids",
    "Word-IDs": "word_ids",
    "attention_masks": "attention_mask",
    "token_type_id": "token_type_ids",
    "example_ids": "example_id",
    "exampleId": "example_id",
    "loss_masks": "loss_mask",
}
COLUMNS = [
    *cases(
        "a column of flags of 2",
        lambda given: masked(twos(*given)),
        *(
            ((name, as_rows), f"'{name}'")
            for name in ("attention_mask", "special_tokens_mask", "loss_mask")
            for as_rows in (True, False)
        ),
        facts=["yes or no", "got 2"],
    ),
    *cases(
        "a misspelt column",
        lambda given: masked(with_column(*given)),
        *(
            ((name, as_rows), f"'{name}'", f"'{meant}'")
            for name, meant in MISSPELT.items()
            for as_rows in (True, False)
        ),
    ),
    *cases(
        "own labels for",
        with_own_labels,
        *(*WHOLE, "insert(target='detect')"),
        facts=["labels of −100", "column labels"],
    ),
]

# Policies, corruptions and objectives
# ------------------------------------------------------------------------------------------------


class Careless(Policy):
    """A policy of a user with a mistake."""

    unit_kind = UnitKind.TOKEN

    def __init__(self, make: Any):
        self.make = make

    def cut(self, line: Any, draws: Any, when: Any) -> Any:
        return self.make(runs(line, np.arange(len(line.content))))


def careless(make: Any) -> object:
    return mw.Masker(tokenizer(), policy=Careless(make))(rows(labels=False), epoch=0)


POLICIES = [
    *cases(
        "a careless policy",
        careless,
        (lambda units: None, "units", "got NoneType"),
        (lambda units: units.weighted(np.ones(len(units.piece) + 1)), "each unit", "weight"),
        (lambda units: units.weighted(1.0), "each unit", "weight"),
    ),
    *cases(
        "a weighted policy",
        policy,
        ("group-weighted(pos, 1)", "got 1"),
        ("pos-weighted(half_life_steps=0)", "half_life_steps", "got 0"),
        ("pos-weighted(half_life_steps=9, faithful=True)", "half_life_steps", "faithful=False"),
    ),
    *cases(
        "a tokenizer that lacks what is needed by",
        lambda given: mw.Masker(tokenizer_of(**given[1]), corruption=given[0]),
        (("bert", {"mask": False}), "mask token"),
        (("infill", {"mask": False}), "mask token"),
        (("t5", {"sentinels": 0}), "<extra_id_0>", "add_special_tokens"),
    ),
    Refusal("ends that are masked by rules", lambda _: Masking.of(ends="token"), ("diffusion",)),
    Refusal(
        "ends in words",
        lambda _: Noising(tokenizer(), policy="whole-word", budget="bernoulli", ends="token"),
        ("single tokens",),
        lambda _: Noising(tokenizer(), policy="token", budget="bernoulli", ends="token"),
    ),
    Refusal(
        "ends of another objective",
        lambda _: read_recipe("quick-start", ["masking.ends=token"]).arm("token-15", seed=0),
        ("ends",),
    ),
    Refusal(
        "no layers", lambda _: objective("tsdae(layers=0)", model("bert")), ("tsdae", "layers")
    ),
]

# Texts, layers and tokenizers
# ------------------------------------------------------------------------------------------------


def read_ids(name: str, content: Any, folder: Path) -> object:
    path = folder / name
    if content is None:
        path.write_text("A text.")
    elif path.suffix == ".npz":
        np.savez(path, a=content, b=content)
    else:
        np.save(path, content, allow_pickle=True)
    return [*read_documents(path, text_field="input_ids", rows=TokenRows("bundled:encoder"))]


def ids_as_text(folder: Path) -> object:
    np.save(folder / "rows.npy", np.ones((9, 9), int))
    return read_documents(folder / "rows.npy")


def frequencies_in(folder: Path) -> object:
    """A folder without annotations."""
    return annotator(f"frequency(table={str(folder)!r})")


def pos(*, model: str | None = None, fast: bool = False) -> str | None:
    return model


def annotator_pos(spec: str) -> object:
    return build("annotator", spec, {"pos": pos})


GOOD = [Document("a", "the cat")]
IDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "flat.npy": (np.arange(9), ("flat.npy", "1 dimensions")),
    "objects.npy": (np.array([[1], [2, 3]], object), ("objects.npy", "arrays")),
    "texts.txt": (None, ("token ids",)),
    "others.npz": (np.arange(9), ("others.npz", "'input_ids'; allowed: a, b")),
}
TEXTS = [
    *(
        Refusal(f"ids in {name}", partial(read_ids, name, ids), facts)
        for name, (ids, facts) in IDS.items()
    ),
    Refusal("ids as texts", ids_as_text, ("corpus.tokens",)),
    *cases(
        "documents",
        lambda given: list(tokenise(given[0], given[1], words=given[2])),
        ((["the cat"], tokenizer(), "auto"), "Document", "got the cat"),
        (("the cat", tokenizer(), "auto"), "Document", "got t"),
        (([Document("a", None)], tokenizer(), "auto"), "None"),  # type: ignore[arg-type]
        ((GOOD, None, "auto"), "tokenizer", "got None"),
        ((GOOD, "bert-base-uncased", "auto"), "tokenizer", "'bert-base-uncased'"),
        ((GOOD, tokenizer(), "wrds"), "wrds"),
        ((GOOD, tokenizer(), "regex:("), "words", "got ("),
    ),
    *cases(
        "rows of a length of",
        lambda length: cut([document("a", 1)], length=length),
        *((length, f"got {length!r}") for length in (8.5, "8", None)),
    ),
    *cases(
        "rows of texts",
        lambda given: mw.encode(tokenizer(), [TEXT], **given),
        ({"max_length": 2}, "max_length", "got 2"),
        ({"layers": ["phrases"]}, "phrases", "annotate_corpus"),
        ({"layers": ["salent"]}, "'salent'", "did you mean 'salient'"),
    ),
    *cases(
        "texts of",
        lambda given: mw.annotate_rows(given, tokenizer()),
        ({"body": ["a"]}, "got columns body", "text_field"),
    ),
    Refusal(
        "rows without the layer of a policy",
        lambda _: mw.Masker(tokenizer(), policy="salient")(mw.encode(tokenizer(), [TEXT])),
        ("layers=['salient']",),
    ),
    *cases(
        "an annotator with",
        annotator,
        ("informativeness(per='line')", "text, word"),
        ("informativeness(window=0)", "at least 1"),
        ("difference(anchors=0)", "at least 1"),
        # As a setting that a script left empty; it failed on every text.
        ("frequency(table='')", "maskwise annotate"),
    ),
    Refusal("frequencies in an empty folder", frequencies_in, ("maskwise annotate",)),
    # Errors quote what was written.
    *cases(
        "the annotator",
        annotator_pos,
        ("pos(pipe_line=en_core_web-sm)", "pos(pipe_line=en_core_web-sm)", "'pipe_line'"),
        ("pos(nö='ä', x=a_b)", "pos(nö='ä', x=a_b)"),
        ("pos(pipeline=1)", "allowed: pos(model=None, fast=False)"),
        ("pos(en_core_web_sm)", "positional", "allowed: pos(model=None, fast=False)"),
        ("en_core_web_sm", "annotator", "'en_core_web_sm'"),
        ("pos:en_core_web_sm", "got 'pos:en_core_web_sm'", 'pos(model="en_core_web_sm")'),
    ),
]

# Measures
# ------------------------------------------------------------------------------------------------


def text_loss(folder: Path, **number: float) -> object:
    """With such a number, a study failed after its pre-training, and ``rows=0`` meant all rows."""
    path = folder / "text.txt"
    path.write_text("\n".join(f"the cat sat {n}" for n in range(9)))
    return TextLoss.read(str(path), **number)


NUMBERS: list[tuple[str, float, str]] = [
    ("rows", -1, "fewer rows than none"),
    ("rows", 0, "no rows"),
    ("ratio", 1.5, "more than all tokens"),
    ("ratio", 0, "no tokens"),
    ("held_out", 5, "more than the text"),
]
MEASURES = [
    *(
        Refusal(
            f"text-loss with {name}={value}",
            partial(text_loss, **{name: value}),
            (name, str(value)),
        )
        for name, value in [
            ("rows", -1),
            ("rows", 0),
            ("ratio", 1.5),
            ("ratio", 0),
            ("held_out", 5),
        ]
    ),
    Refusal(
        "pairs without a file", lambda _: measure_of("pairs"), ("pairs(source)", "pairs('FILE')")
    ),
]
ROWS = [*COLUMNS, *POLICIES, *TEXTS, *MEASURES]
