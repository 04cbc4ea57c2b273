"""Golden values: a refactoring changes none; a change that is meant renews them, and its commit
says which moved.

``python tests/test_golden.py NAME …`` writes values anew (all of them without a name): ``masks``,
``visits``, ``samplers``, ``words``, ``annotators``, ``losses`` and ``study`` of this file, and
those of the tables ``MAKERS`` of ``test_golden_runs`` and ``test_golden_studies``. Masks, draws and
ids are whole numbers and must be equal to the bit. Losses and weights are compared to five digits,
since another processor may round another way.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from masking_tools import (
    AWKWARD,
    CORRUPTION_SPECS,
    POLICY_BUDGETS,
    POLICY_SPECS,
    masker,
    packed,
    padded,
    per_row,
    random_rows,
    vocabulary,
)
from maskwise import encode
from maskwise.annotate.registry import ANNOTATORS
from maskwise.annotate.run import annotate_corpus
from maskwise.learning.scorer import PolicyModel
from maskwise.masking.batch import MaskedBatch
from maskwise.masking.diffusion import Noising
from maskwise.samplers import SAMPLERS, sampler
from maskwise.text import train_tokenizer
from test_words import FAMILIES, TEXTS
from tiny import maskwise, read_lines, write_inputs, write_lines

GOLDEN = Path(__file__).with_name("golden.json")
LAYOUTS = ("document", "packed")
# "many unknown" is newer than the values, which hold for all rows at once.
KNOWN_ROWS = {name: row for name, row in AWKWARD.items() if name != "many unknown"}
ROWS = list(KNOWN_ROWS.values()) + random_rows(6, seed=3)
PACKED_ROWS = [row for name, row in KNOWN_ROWS.items() if name != "nothing at all"] + random_rows(
    12, seed=4
)
OF_BERT = "model.attention_dropout=0.1"
"""What BERT has in transformers, with which these values were recorded."""
STUDY_SETTINGS = (
    OF_BERT,
    "study.seeds=1",
    "finetune.seeds=1",
    "training.steps=20",
    "training.eval_every=0",
    "corpus.layout=document",
)


@cache
def read_golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def rounded(number: float) -> float:
    """Eight digits: more than any comparison looks at."""
    return float(f"{number:.8g}")


def hash_of(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def totals(values: Sequence[float]) -> list[float]:
    """Two sums of numbers, of which the second depends on their order."""
    array = np.asarray(values, dtype=np.float64)
    places = np.arange(1, len(array) + 1) / max(1, len(array))
    return [rounded(array.sum()), rounded((array * places).sum())]


def same(measured: Any, known: Any, rel: float = 1e-5) -> None:
    """Equal to the bit, but for numbers that are not whole."""
    if isinstance(known, dict):
        assert set(measured) == set(known)
        for name, value in known.items():
            same(measured[name], value, rel)
    elif isinstance(known, list):
        assert len(measured) == len(known)
        for mine, value in zip(measured, known, strict=True):
            same(mine, value, rel)
    elif isinstance(known, float):
        assert measured == pytest.approx(known, rel=rel, abs=1e-9)
    else:
        assert measured == known


# Masks
# ----------------------------------------------------------------------------


def mask_hash(policy: str, corruption: str, layout: str) -> str:
    """The masks of all budgets as one hash, over inputs and labels of the tokens that are not
    padding.
    """
    digest = hashlib.sha256()
    budgets = [budget for name, budget in POLICY_BUDGETS if name == policy]
    for budget in budgets:
        made = masker(policy, corruption, budget=budget, ratio=0.3, seed=11)
        if layout == "document":
            digest.update(repr(per_row(made(padded(ROWS), epoch=2), ROWS)).encode())
            digest.update(repr(per_row(made(padded(ROWS), step=5, total_steps=9), ROWS)).encode())
        else:
            rows = packed(PACKED_ROWS, width=48)
            shown = made(rows, epoch=3)
            inside = rows["attention_mask"].bool()
            digest.update(
                repr([shown.input_ids[inside].tolist(), shown.labels[inside].tolist()]).encode()
            )
    return digest.hexdigest()[:12]


def all_masks() -> dict[str, str]:
    """By "policy corruption layout"; packed rows for corruptions that keep lengths, whose rows keep
    their layout.
    """
    return {
        f"{policy} {corruption} {layout}": mask_hash(policy, corruption, layout)
        for policy in POLICY_SPECS
        for corruption in CORRUPTION_SPECS
        for layout in LAYOUTS
        if layout == "document" or masker("token", corruption).corruption.keeps_length
    }


NOISED = {
    "token": ("exact", "bernoulli"),
    "span": ("bernoulli",),
    "whole-word": ("bernoulli",),
    "weighted": ("bernoulli",),
}
"""Policies of masked diffusion with the budgets that they take."""
VISITS = {
    f"diffusion {policy} {budget} {visits}": (policy, budget, visits)
    for policy, budgets in NOISED.items()
    for budget in budgets
    for visits in ("random", "complement")
    if visits == "random" or policy != "weighted"  # complements are of units that are all alike
} | {
    f"masks {policy} expected {visits}": (policy, "expected", visits)
    for policy in ("token", "whole-word", "weighted")
    for visits in ("complement",)
}


def visits(case: str) -> dict[str, Any]:
    """The masks of five epochs as one hash and, of masked diffusion, sums of the weights."""
    policy, budget, way = VISITS[case]
    noising = case.startswith("diffusion")
    make = Noising if noising else masker
    first = vocabulary() if noising else policy
    more = {"policy": policy} if noising else {"min_targets": 0, "ratio": 0.4}
    made = make(first, budget=budget, visits=way, fill="none", seed=7, **more)
    alone, together = padded(ROWS), packed(PACKED_ROWS, width=48)
    batches = [made(alone, epoch=epoch) for epoch in range(5)] + [made(together, epoch=3)]
    if noising and way == "random":  # rates of low discrepancy follow the places of the rows
        batches.append(made(alone, epoch=1, place=np.arange(len(ROWS)) + 5))
    shown = hash_of(
        [visible(batch, rows) for batch, rows in zip(batches, [alone] * 5 + [together, alone])]
    )
    if not noising:
        return {"masks": shown}
    weights = [
        weight for batch in batches for weight in batch.loss_weight.flatten().tolist() if weight
    ]
    return {"masks": shown, "weights": totals(weights)}


def visible(batch: MaskedBatch, rows: dict[str, torch.Tensor]) -> list[list[int]]:
    """Inputs and labels without padding."""
    inside = rows["attention_mask"].bool()
    return [batch.input_ids[inside].tolist(), batch.labels[inside].tolist()]


# Samplers
# ----------------------------------------------------------------------------

DRAWN = {
    "single": "single('c')",
    "uniform": "uniform",
    "sequential": "sequential(2)",
    "sequential, a third each": "sequential(block=None)",
    "shares": "shares(0.5, 'linear(0, 1)', 0.2)",
    "loss-proportional": "loss-proportional(every=1)",
    "mometas": "mometas(every=2, lr=1.0, entropy=0.1)",
    "mometas, scaled": "mometas",
    "mometas-plus": "mometas-plus(every=1, memory=20)",
    "mometas-plus, scaled": "mometas-plus",
}
DRAWS, ROLLOUTS = 20, 10
ARMS = ("a", "b", "c")


def draws(case: str) -> dict[str, Any]:
    """Twenty draws, before ten updates and behind them; the probabilities behind each update.

    Arm "b" gains when it is drawn, "a" a little whatever is drawn, and "c" nothing.
    """
    made = sampler(DRAWN[case], ARMS, seed=3, chance=(4.0, 2.0, 1.0), steps=120)
    before = [made.draw(step, 120) for step in range(DRAWS)]
    loss = {"a": 5.0, "b": 4.0, "c": 3.0}
    learnt = []
    for rollout in range(ROLLOUTS):
        start = DRAWS + rollout * 4
        taken = [made.draw(step, 120) for step in range(start, start + 4)]
        gain = {"a": 0.01, "b": 0.04 * taken.count("b"), "c": 0.005 * (rollout % 3 - 1)}
        after = {arm: value * (1 - gain[arm]) for arm, value in loss.items()}
        if made.every:
            made.update(loss, after)
        loss = after
        learnt += made.probabilities(start + 4, 120).tolist()
    behind = [made.draw(step, 120) for step in range(100, 100 + DRAWS)]
    return {
        "draws": "".join(before) + " " + "".join(behind),
        "probabilities": [rounded(p) for p in learnt[-9:]],
    }


# Words
# ----------------------------------------------------------------------------

KINDS = ("wordpiece", "bpe", "letter", "k-mer")
"""Of tokenizers that are trained here."""


def word_numbers(family: str) -> list[Any]:
    """The words of the tokens of awkward texts: how many of both, and a hash of the numbers and
    example ids.
    """
    if family in KINDS:
        tokenizer = train_tokenizer(TEXTS * 3, kind=family, vocab_size=320)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=FAMILIES[family], unk_token="[UNK]")
    rows = encode(tokenizer, TEXTS)
    numbers = [row["word_ids"] for row in rows]
    words = sum(len(set(row) - {-1}) for row in numbers)
    return [
        sum(map(len, numbers)),
        words,
        hash_of(numbers),
        hash_of([row["example_id"] for row in rows]),
    ]


# Annotations
# ----------------------------------------------------------------------------

PROSE = [
    "Ada Lovelace met Charles Babbage in London on 5 June 1833. They talked about machine "
    "learning.",
    "The machine learning of Babbage cost 1,500 pounds; why? Nobody in London knew.",
    "In 1843 Ada wrote the first programme, and machine learning began.",
    "owls",
    "",
    "Naïve 東京 owls eat ice. They eat mice in London in 1843!",
]
ANNOTATED = {
    "words": "words",
    "sentences": "sentences",
    "prompt": "prompt(until='.', last=True)",
    "pos": "pos",
    "salient": "salient",
    "phrases": "phrases(min_count=2, min_documents=2)",
    "frequency": "frequency",
    "informativeness": "informativeness(min_count=1)",
    "difference": "difference(general='general.txt', anchors=2, min_documents=1)",
    "learned": "learned('policy')",
    "gold": "gold('gold.conllu')",
    "spans": "spans('spans.jsonl', labels=('x', 'y'))",
    "stored": "stored('stored')",
}
CONLLU = """# newdoc
# text = Owls eat ice.
1\tOwls\towl\tNOUN\t_\t_\t2\tnsubj\t_\t_
2\teat\teat\tVERB\t_\t_\t0\troot\t_\t_
3\tice\tice\tNOUN\t_\t_\t2\tobj\t_\tSpaceAfter=No
4\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_

"""


def store(folder: Path, name: str) -> dict[str, Any]:
    """What an annotator stores: a hash of the tables of its shards and, of weights, two sums."""
    folder.mkdir(parents=True, exist_ok=True)
    source: Any = PROSE
    if name == "difference":
        (folder / "general.txt").write_text(
            "the cat and the dog in the end\n\nthe beginning of the day\n" * 9
        )
    if name == "learned":
        tokenizer = train_tokenizer(PROSE * 9, vocab_size=120)
        policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8}, length=16)
        torch.nn.init.normal_(policy.head.weight, generator=torch.Generator().manual_seed(1))
        policy.save_pretrained(folder / "policy")
    if name == "gold":
        (folder / "gold.conllu").write_text(CONLLU)
        source = "gold.conllu"
    if name == "spans":
        lines = [
            {"text": text, "spans": [[0, 3, "x"], [4, 7, "y"]] if len(text) > 9 else []}
            for text in PROSE
        ]
        write_lines(folder / "spans.jsonl", lines)
    here = Path.cwd()
    os.chdir(folder)  # names of files are part of what is stored, so they are relative
    try:
        if name == "stored":
            annotate_corpus(PROSE, ["sentences"], "stored")
        annotate_corpus(source, [ANNOTATED[name]], "out")
    finally:
        os.chdir(here)
    tables = [pq.read_table(path) for path in sorted((folder / "out").glob("*/*.parquet"))]
    shards = sorted([stored_columns(table) for table in tables])
    weights = [weight for table in tables for weight in weights_of(table)]
    return {
        "documents": sum(map(len, tables)),
        "spans": hash_of(shards),
        "weights": totals(weights),
    }


def stored_columns(table: pa.Table) -> list[Any]:
    """Names, types and values of the columns, but for the values of weights."""
    weighs = [
        pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type)
        for field in table.schema
    ]
    values = [[] if weight else column.to_pylist() for column, weight in zip(table.columns, weighs)]
    return [list(zip(table.column_names, map(str, table.schema.types), values))]


def weights_of(table: pa.Table) -> list[float]:
    lists = [
        column.to_pylist()
        for column, field in zip(table.columns, table.schema)
        if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type)
    ]
    return [weight for rows in lists for row in rows for weight in row]


# Trainings and studies
# ----------------------------------------------------------------------------


def losses(folder: Path, layout: str) -> list[float]:
    """The losses of twelve steps, one line of metrics each."""
    recipe = write_inputs(folder)
    settings = (
        OF_BERT,
        "training.steps=12",
        "training.log_every=1",
        "training.save_every=0",
        "training.eval_every=0",
    )
    words = (
        "masking.policy=whole-word",
        "masking.budget=expected",
        "masking.ratio=linear(0.5, 0.2)",
    )
    out = folder / layout
    assert (
        maskwise("pretrain", recipe, *settings, *words, f"corpus.layout={layout}", "--out", out)
        == 0
    )
    metrics = next(path for path in out.rglob("metrics.jsonl"))
    return [line["loss"] for line in read_lines(metrics) if line["kind"] == "train"]


def records(folder: Path) -> list[dict[str, Any]]:
    """What a study of one seed measured."""
    recipe = write_inputs(folder)
    assert maskwise("study", recipe, *STUDY_SETTINGS, "--out", folder / "out", "--jobs", 1) == 0
    return read_lines(folder / "out" / "records.jsonl")


# Tests
# ----------------------------------------------------------------------------


@pytest.fixture
def golden() -> dict[str, Any]:
    return read_golden()


@pytest.mark.parametrize("policy", POLICY_SPECS)
def test_masks(policy: str, golden: dict[str, Any]) -> None:
    mine = {key: value for key, value in golden["masks"].items() if key.split()[0] == policy}
    assert mine, f"no golden masks of {policy}: run python tests/test_golden.py masks"
    assert {key: mask_hash(*key.split()) for key in mine} == mine


@pytest.mark.parametrize("case", VISITS)
def test_visits_and_weights(case: str, golden: dict[str, Any]) -> None:
    same(visits(case), golden["visits"][case])


@pytest.mark.parametrize("case", DRAWN)
def test_draws(case: str, golden: dict[str, Any]) -> None:
    same(draws(case), golden["samplers"][case])


def test_every_sampler_draws() -> None:
    assert {spec.partition("(")[0] for spec in DRAWN.values()} == set(SAMPLERS)


@pytest.mark.parametrize("family", [*KINDS, *FAMILIES])
def test_word_numbers(family: str, golden: dict[str, Any]) -> None:
    assert word_numbers(family) == golden["words"][family]


@pytest.mark.parametrize("name", ANNOTATED)
def test_stores(name: str, tmp_path: Path, golden: dict[str, Any]) -> None:
    same(store(tmp_path, name), golden["annotators"][name])


def test_every_annotator_stores() -> None:
    assert set(ANNOTATED) == set(ANNOTATORS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses(layout: str, tmp_path: Path, golden: dict[str, Any]) -> None:
    assert losses(tmp_path, layout) == pytest.approx(golden["losses"][layout], rel=1e-5)


def test_records_of_a_study(tmp_path: Path, golden: dict[str, Any]) -> None:
    measured = records(tmp_path)
    assert len(measured) == len(golden["study"])
    for record, known in zip(measured, golden["study"], strict=True):
        for name, value in known.items():
            if name != "corpus":  # a path in a temporary folder
                numbers = isinstance(value, float) or (isinstance(value, list) and value)
                assert record[name] == (pytest.approx(value, rel=1e-4) if numbers else value), (
                    name,
                    record,
                )


# Writing
# ----------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Path], Any]] = {
    "masks": lambda folder: all_masks(),
    "visits": lambda folder: {case: visits(case) for case in VISITS},
    "samplers": lambda folder: {case: draws(case) for case in DRAWN},
    "words": lambda folder: {family: word_numbers(family) for family in (*KINDS, *FAMILIES)},
    "annotators": lambda folder: {name: store(folder / name, name) for name in ANNOTATED},
    "losses": lambda folder: {layout: losses(folder, layout) for layout in LAYOUTS},
    "study": records,
}
"""What makes each part of ``golden.json``, in an empty folder."""


def main(*wanted: str) -> None:
    """Write golden values anew, all or those that are named."""
    import conftest  # one thread, offline
    import test_golden_runs
    import test_golden_studies
    import test_golden_texts
    from maskwise.jobs import pools

    pools.ENGINES["local"] = conftest.SamePool
    makers = MAKERS | test_golden_runs.MAKERS | test_golden_studies.MAKERS
    makers |= test_golden_texts.MAKERS
    values: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for name in wanted or makers:
        with TemporaryDirectory() as folder:
            made = makers[name](Path(folder))
        if made is not None:  # verdicts have a file of their own
            values[name] = made
    GOLDEN.write_text(as_text(values))


def as_text(values: dict[str, Any]) -> str:
    """JSON with a line for each value of each part."""
    lines = []
    for part, content in values.items():
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        named = isinstance(content, dict)
        inner = [
            f"{json.dumps(name)}: " * named + json.dumps(value, ensure_ascii=False)
            for name, value in pairs
        ]
        opening, closing = "{}" if named else "[]"
        lines.append(f"{json.dumps(part)}: {opening}\n " + ",\n ".join(inner) + f"\n{closing}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
