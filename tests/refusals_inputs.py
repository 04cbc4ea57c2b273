"""Rows, arrays, numbers, texts and tokenizers that people hand over by mistake."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from masking_tools import FIRST, masker, row, tokenizer, vocabulary
from maskwise import Masker, Noising, PackedCollator, annotate_rows, corrupt, encode
from maskwise.masking import schedules
from maskwise.masking.arrays import numbers
from maskwise.masking.collator import MaskingCollator, StepBatchSampler, SteppedDataset
from maskwise.models.loading import load_model
from maskwise.samplers import LossProportional, Sequential, Uniform
from maskwise.text import Document, read_documents, require_documents, tokenise
from maskwise.text.layers import CharSpans, Layer
from refusals import Refusal, cases

IDS = row([2, 1])["input_ids"]
LENGTH = len(IDS)
TENSOR = torch.tensor([IDS])
ONES = torch.ones(1, LENGTH)
SOME = [[FIRST, FIRST + 1, FIRST + 2, FIRST + 3], [FIRST + 4, FIRST + 5, FIRST + 6, FIRST + 7]]
ALL = [[1, 1, 1, 1], [0, 1, 1, 1]]


def one(**more: object) -> dict[str, Any]:
    """One row with more columns."""
    return {"input_ids": IDS, "example_id": 0, **more}


GOOD = [one()]


def mask(rows: Any = GOOD, *, by: str = "token", **more: Any) -> Any:
    return masker(by)(rows, **{"epoch": 0, **more})


# Rows
# ----------------------------------------------------------------------------

COLUMNS: dict[str, Any] = {
    "attention_mask": [1] * (LENGTH - 1) + [0],
    "special_tokens_mask": [0] * LENGTH,
    "token_type_ids": [0] * LENGTH,
    "word_ids": [0] * LENGTH,
    "prompt": np.zeros(LENGTH, int),
}
OF_TOKENS = sorted(COLUMNS.keys() - {"prompt"} | {"loss_mask"})
BATCHES = [
    ("the cat", "str"),
    (None, "NoneType"),
    (5, "int"),
    ([1, 2], "int in row 0"),
    ([one(), IDS], "list in row 1"),
    (TENSOR, "Tensor"),
    ([{"a": 1, 5: 2}], "columns a, 5"),
    ({"a": 1, 5: 2}, "columns a, 5"),
    ([one(input_ids=5)], "int in row 0"),
    ([one(), one(input_ids=torch.tensor(5))], "Tensor in row 1"),
    ([one(input_ids=TENSOR)], "2 dimensions"),
    ([one(input_ids=[IDS])], "2 dimensions"),
    ([one(), one(input_ids=[IDS])], "2 dimensions"),
    ([one(input_ids="the cat")], "text"),
    ([one(input_ids=iter(IDS))], "list_iterator in row 0"),
    ([one(input_ids=[FIRST, None])], "'input_ids'"),
    ([one(input_ids=[2**70])], "64 bits"),
    ([one(word_ids=[2**63 + 5] * LENGTH)], "'word_ids'", "allowed: below 2⁶³"),
    ([one(token_type_ids=np.full(LENGTH, 2**63 + 5, np.uint64))], "allowed: below 2⁶³"),
    ([one(example_id=True)], "bool"),
    ([one(example_id=1.5)], "float64"),
    ([one(example_id="a")], "example_id", "text"),
    ({"input_ids": TENSOR, "example_id": ["a"]}, "example_id", "text"),
    ([one(example_id=2**70)], "64 bits"),
    ({"input_ids": TENSOR, "w": ONES.to(torch.bfloat16)}, "bfloat16"),
    ({"input_ids": TENSOR, "w": ONES.to_sparse()}, "sparse"),
    ({"input_ids": TENSOR, "w": ONES.to("meta")}, "meta"),
    ({"input_ids": TENSOR.to("meta")}, "meta"),
    ([one(w=ONES[0].to(torch.bfloat16))], "bfloat16"),
    ([], "rows", "empty"),
    ([{"input_ids": IDS}, one()], "nothing in row 0"),
    ([one(), {"input_ids": IDS}], "nothing in row 1"),
    ([one(w=[1] * LENGTH), one(w=3)], "a single value in row 1"),
    ([one(w=["a"]), one(w=[1] * LENGTH)], "text in row 0"),
    ([one(), {"example_id": 1}], "NoneType in row 1"),
    ([one(input_ids=["a"])], "got text"),
    ([one(w=[0])], "'w' of row 0", f"got 1; allowed: {LENGTH}"),
    ([one(attention_mask=[0])], "'attention_mask' of row 0", "length"),
    ([one(input_ids=[FIRST, 999])], "input_ids", "got 999", "the tokenizer"),
    ([one(input_ids=[FIRST, -4])], "input_ids", "got -4"),
    ({"input_ids": TENSOR, "w": torch.zeros(1, LENGTH - 1)}, "'w'", f"(1, {LENGTH})"),
    ({"input_ids": TENSOR, "example_id": torch.arange(3)}, "'example_id'", "(3,)"),
    ({"input_ids": ONES}, "whole numbers"),
    ({"input_ids": TENSOR[0]}, "(B, L)"),
    ([one(word_ids=[0] * LENGTH), one(word_ids=[True] * LENGTH)], "'word_ids'", "bools"),
    ({"input_ids": [np.array(IDS), np.array(IDS[1:])], "word_ids": [[0]]}, "'word_ids'"),
    *(([one(**{name: COLUMNS[name]}), one(), one()], repr(name), "row 1") for name in COLUMNS),
    *(([one(), one(**{name: COLUMNS[name]})], repr(name), "row 0") for name in COLUMNS),
    *(
        ({"input_ids": [IDS, IDS], "example_id": [0, 1], name: wrong}, f"column {name!r}")
        for name in ("idx", "labels", "title")
        for wrong in (5, torch.tensor(5), [1, 2, 3], torch.arange(3))
    ),
    *(
        ({"input_ids": ids, "example_id": [0, 1], name: [1, 1]}, repr(name), "in row 0")
        for name in OF_TOKENS
        for ids in ([IDS, IDS], [IDS, IDS[:-1]])
    ),
    *(([one(**{name: 1}), one(**{name: 1})], repr(name), "in row 0") for name in OF_TOKENS),
    *(
        (rows, repr(name), f"float{32 + 32 * isinstance(rows, list)}")
        for name in ("attention_mask", "special_tokens_mask", "token_type_ids", "position_ids")
        for bad in (0.5, 1.0, math.nan, math.inf)
        for rows in ([one(**{name: [bad] * LENGTH})], {"input_ids": TENSOR, name: ONES * bad})
    ),
]
# Policies, and the layer that numbers their units.
UNITS = {
    "whole-word": "word_ids",
    "span": "word_ids",
    "guided": "salient",
    "salient": "salient",
    "sentence": "sentence",
    "group-weighted(layer='pos', groups=3)": "pos",
    "weighted(units='chunk')": "chunk",
    "weighted": "word_ids",
}


def layered(layer: str, value: Any) -> dict[str, Any]:
    return one(**{"word_ids": [0] * LENGTH, "weight": [0.5] * LENGTH, layer: [value] * LENGTH})


def numbered(policy: str, layer: str) -> object:
    return masker(policy, ratio=1.0)([layered(layer, 0)], epoch=0)


def steps(**more: Any) -> object:
    """Rows of which each says its step."""
    return MaskingCollator(masker())([one(**{"step": 0, "epoch": 0, **more})])


MASKED = np.ma.array([[FIRST, FIRST + 1]], mask=[[False, True]])
LINE = [[FIRST, FIRST + 1]]
BATCH_ROWS = [
    *cases("rows", mask, *BATCHES),
    *(
        row
        for policy, name in UNITS.items()
        for row in cases(
            f"units {policy}",
            lambda bad, policy=policy, name=name: mask([layered(name, bad)], by=policy),
            *((bad, "float64") for bad in (0.5, 1.0, math.nan)),
            # False is a number ≥ 0, so a layer of bools would mark every token.
            (False, "bool"),
            facts=[repr(name)],
            good=partial(numbered, policy, name),
        )
    ),
    *cases(
        "units to keep",
        lambda given: masker(keep=given[0])([layered(*given)], epoch=0),
        *(
            ((name, bad), repr(name), type(bad).__name__)
            for name in dict.fromkeys(UNITS.values())
            for bad in (0.5, False)
        ),
    ),
    *cases(
        "rows of another step",
        lambda rows: mask(rows, step=3),
        [one(step=5)],
        ((one(step=5),), "step=5"),
        facts=["step=5"],
        good=lambda: mask([one(step=5)], step=5),
    ),
    *cases(
        "rows of steps",
        MaskingCollator(masker(), total_steps=9),
        ({"input_ids": TENSOR, "step": torch.tensor([1.7])}, "1.7"),
        ({"input_ids": TENSOR, "step": ["a"]}, "step"),
        (5, "int"),
    ),
    *cases(
        "a masked array",
        lambda call: call(),
        lambda: corrupt(MASKED, [[1, 1]], 3, epoch=0),
        lambda: corrupt(LINE, MASKED, 3, epoch=0),
        lambda: corrupt([MASKED[0]], [[1, 1]], 3, epoch=0),
        lambda: mask({"input_ids": MASKED, "example_id": [0]}),
        lambda: mask([{"input_ids": MASKED[0], "example_id": 0}]),
        lambda: mask([one(score=np.ma.array([0.5] * LENGTH))]),
        facts=["masked array", "filled"],
        good=lambda: corrupt(MASKED.filled(FIRST), [[1, 1]], 3, epoch=0),
    ),
    *cases(
        "a stepped data set of",
        SteppedDataset,
        *((bad, type(bad).__name__) for bad in (None, 5, iter([one()]), "text", b"text")),
        ({"train": [one()]}, "dict"),
        facts=["map-style"],
        good=lambda: SteppedDataset([one()]),
    ),
    *cases(
        "a place in a stepped data set",
        lambda place: SteppedDataset([one()])[place],
        (0, "(index, step, epoch)"),
        ((0, -1, 0), "step"),
        ((0, 0, -1), "epoch"),
        ((0, 0.5, 0), "step"),
        ((0, 0, None), "epoch"),
    ),
    *cases(
        "a row of a stepped data set", lambda row: SteppedDataset([row])[0, 0, 0], (IDS, "list")
    ),
    *cases("a collator of", MaskingCollator, (None, "NoneType")),
]

# Arrays of corrupt
# ----------------------------------------------------------------------------

NO_ARRAYS: tuple[Any, ...] = (5, None, "no-such-thing", [], object())
BAD_ARRAYS: dict[str, list[Any]] = {
    "input_ids": [*NO_ARRAYS, [[1.5, 2.5]], [[1, -1], [2, 3]], [1, 2], [[1], [1, 2]], [["a"]]],
    "loss_mask": [*NO_ARRAYS, [[1, 1]], ALL[0], *([[bad] * 4] * 2 for bad in (math.nan, 2, None))],
    "example_id": [[0.0, 1.0], [math.nan, 1], [0], [[0, 1]], 5, [True, False], ["a", "b"]],
    "place": [[math.nan, 0.0], [0.0, 1.0], [-1, 0], [0], 0, [2**63, 1], [None, 1]],
    "step": [-1, 1.5, math.nan, "1", [1], True],
    "epoch": [-1, 1.5, math.nan, "1", [1], True],
    "total_steps": [-1, 1.5, math.nan, "1", [1]],
    "seed": [1.5, math.nan, "1", [1], None],
    "mask_token_id": [-1, 1.5, None, [3], 2**70],
}


def corrupted(**more: Any) -> object:
    good = {"input_ids": SOME, "loss_mask": ALL, "mask_token_id": 3, "epoch": 0, "step": 0}
    return corrupt(**{**good, "ratio": 0.5, **more})


ARRAY_ROWS = [
    *(
        row
        for name, bad in BAD_ARRAYS.items()
        for row in cases(
            f"corrupt: {name}",
            lambda given, name=name: corrupted(**{name: given}),
            *bad,
            facts=[name],
            good=corrupted,
        )
    ),
    *cases(
        "places of rows",
        lambda place: Noising(vocabulary())([one(), one(example_id=1)], epoch=0, place=place),
        *(bad for bad in BAD_ARRAYS["place"] if bad != 0),
        torch.tensor([0.5]),
        facts=["'place'"],
    ),
    *cases(
        "rows of different lengths",
        lambda form: numbers("ids", [form([5, 6]), form([7])]),
        *(list, tuple, np.array, torch.tensor),
        facts=["ids"],
    ),
]

# Numbers and settings
# ----------------------------------------------------------------------------

NO_NUMBERS: tuple[Any, ...] = (1.7, 2.0, "3", [1], math.nan, True)


def sampler(**more: Any) -> list[Any]:
    return list(StepBatchSampler(**{"size": 20, "batch_size": 2, "ranks": 2, **more}))


def collator(**more: Any) -> object:
    return MaskingCollator(masker(), **more)


def prepared(**more: Any) -> object:
    return encode(tokenizer(), ["w1"], **more)


WHOLE: list[tuple[str, Any, int]] = [
    ("min_targets", masker, 0),
    ("step", mask, 0),
    ("epoch", mask, 0),
    ("total_steps", mask, 0),
    ("total_steps", collator, 1),
    ("step", steps, 0),
    ("epoch", steps, 0),
    ("size", sampler, 0),
    ("batch_size", sampler, 1),
    ("epochs", sampler, 0),
    ("first_step", sampler, 0),
    ("rank", sampler, 0),
    ("ranks", sampler, 1),
    ("accumulate", sampler, 1),
]
# How a schedule is made with a number, and a number that it may have.
SCHEDULES: dict[str, tuple[Any, float]] = {
    "schedule": (schedules.schedule, 1.0),
    "constant": (schedules.constant, 0.25),
    "linear": (lambda x: schedules.linear(x, 0.1), 0.5),
    "cosine": (lambda x: schedules.cosine(0.1, x), 0.5),
    "step": (lambda x: schedules.step(0.1, 0.2, x), 0.5),
    "linear-decay": (schedules.linear_decay, 0.25),
    "warm-decay": (lambda x: schedules.warm_decay(0.1, x), 0.5),
    "piecewise": (lambda x: schedules.piecewise(0, x, 1, x), 0.5),
    "uniform": (schedules.uniform, 0.25),
    "beta": (lambda x: schedules.beta(x, 1), 2.0),
    "bell": (schedules.bell, 0.5),
    "mixture": (lambda x: schedules.mixture(x, 1), 0.5),
    "warm-up": (lambda x: schedules.warm_up(0.1, x), 0.5),
    "then": (lambda x: schedules.then(0.1, x, 0.2), 0.5),
    "scaled": (lambda x: schedules.scaled(0.1, x), 0.5),
    "clipped": (lambda x: schedules.clipped(0.1, x), 0.0),
}
TURNS = Sequential(["mlm", "cse"])
STEPS: list[Any] = [
    schedules.constant(0.1),
    lambda step: schedules.linear(0.1, 0.2)(step, 10),
    lambda step: schedules.schedule(lambda at, total: 0.1)(step, 10),
    lambda total: schedules.linear(0.1, 0.2)(1, total),
    Uniform(["mlm", "cse"]).draw,
    TURNS.probabilities,
    lambda total: TURNS.draw(1, "x" if total is None else total),
]
NUMBER_ROWS = [
    *(
        row
        for at, (name, call, least) in enumerate(WHOLE)
        for row in cases(
            f"{name} {at}",
            lambda bad, call=call, name=name: call(**{name: bad}),
            (least - 1, name, str(least - 1)),
            *((bad, repr(bad), "a whole number") for bad in NO_NUMBERS[:: 1 if at < 2 else 5]),
            facts=[name],
            good=lambda call=call, name=name, least=least: (
                name == "size" or call(**{name: np.int64(least)})
            ),
        )
    ),
    *cases(
        "seed of a masker", lambda bad: masker(seed=bad), *((bad, repr(bad)) for bad in NO_NUMBERS)
    ),
    *cases("seed of a sampler", lambda bad: sampler(seed=bad), (1.7, "seed"), (True, "seed")),
    *cases(
        "a rank that is not there",
        lambda rank: sampler(rank=rank),
        *((rank, str(rank)) for rank in (-1, 2, 5)),
        facts=["0 to 1"],
        good=lambda: sampler(rank=1),
    ),
    *cases(
        "min_targets has an upper end",
        lambda bad: Masker(vocabulary(), min_targets=bad),
        (2**70, "min_targets", str(2**31 - 1)),
    ),
    *(
        row
        for name in ("policy", "corruption", "ratio", "predict")
        for row in cases(
            f"{name} of another type",
            lambda bad, name=name: Masker(vocabulary(), **{name: bad}),
            *((bad, repr(bad)) for bad in (None, ["token"], Masker)),
        )
    ),
    *cases(
        "a function of the ratio that gives",
        lambda value: masker(ratio=lambda step, total: value)([one()], step=3, total_steps=9),
        *((value, repr(value)) for value in (None, "x", math.nan, 1.5)),
        facts=["step 3"],
    ),
    *(
        row
        for name, (call, _) in SCHEDULES.items()
        for row in cases(f"numbers of {name}", call, None, "a", [0.5], True, math.nan, math.inf)
    ),
    *(
        row
        for at, call in enumerate(STEPS)
        for row in cases(f"steps {at}", call, -1, math.nan, "1", None, [1])
    ),
    *cases(
        "losses of a sampler",
        lambda bad: LossProportional(["a", "b"]).update(bad, bad),
        *(None, 5, ["x", "y"], [1.0], [[1.0, 2.0]], {"a": None, "b": 1.0}, [None, 1.0]),
    ),
    *cases(
        "an argument given twice",
        lambda call: call(),
        lambda: schedules.schedule("constant(p=.1, p=.2)"),
        lambda: masker("span(p=.1, max_words=3, p=.2)"),
        facts=["p", "twice"],
    ),
    *cases(
        "a number that a recipe names",
        lambda given: masker(**{given[0]: given[1]}),
        (("policy", "span(max_words=2.5)"), "span", "2.5"),
        (("policy", "span(max_words=True)"), "span", "True"),
        (("policy", "span(p=None)"), "span", "None"),
        (("policy", "span(poisson=12)"), "span", "12"),
        (("policy", "t5-span(mean_span=1e999)"), "t5-span", "inf"),
        (("policy", "weighted(power=(1, 2))"), "weighted", "(1, 2)"),
        (("corruption", "insert(cut=2.5)"), "insert", "2.5"),
        (("corruption", "bert(mask='a')"), "bert", "'a'"),
        (("ratio", "linear(1e999, 0.1)"), "linear", "inf"),
    ),
]

# Texts, tokenizers and models
# ----------------------------------------------------------------------------


class Slow:
    """A tokenizer that is only Python."""

    is_fast = False
    all_special_ids = (1,)


class Own:
    """An annotator that finds what it is told, in every text."""

    name = "own"
    layers = {"ent": Layer("spans")}

    def __init__(self, *spans: tuple[int, int], less: int = 0):
        self.spans = spans
        self.less = less

    def annotate(self, texts: Any) -> Any:
        found = {"ent": CharSpans.of(self.spans, self.layers["ent"])}
        return [found] * (len(texts) - self.less)


def of_words(*names: str, split: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose unknown token is [UNK], whether it has that or not."""
    ids = {name: number for number, name in enumerate(("[MASK]", "[PAD]", "a", *names))}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    if split:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(split), "isolated")
    roles = {"mask_token": "[MASK]", "pad_token": "[PAD]", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def both(name: str, made: Any, text: str, *facts: str) -> list[Refusal]:
    """A tokenizer with which a text is encoded, and made the document of a corpus."""
    return cases(
        name,
        lambda call: call(made, text),
        lambda made, text: encode(made, [text]),
        lambda made, text: list(tokenise([Document("a", text)], made)),
        facts=facts,
    )


ENDLESS = "(?=(a+)+$)" + "(a|a)*" * 9 + "b(a|b|ab)*c"
IDS_FILE = '{"input_ids": [5, 6, 7]}\n'
TEXT_FILE = '{"text": [5, 6, 7]}\n'
OTHER_FILE = '{"input_ids": [5], "body": "a text", "n": 3}\n'


def corpus_of(content: str, field: str, folder: Path) -> object:
    (folder / "a.jsonl").write_text(content)
    return require_documents(read_documents(str(folder / "a.jsonl"), text_field=field))


TEXT_ROWS = [
    *(
        row
        for door, call in {
            "encode": lambda bad: encode(tokenizer(), bad),
            "annotate_rows": lambda bad: annotate_rows({"text": bad}, tokenizer()),
        }.items()
        for row in cases(
            f"{door}: texts",
            call,
            *((bad, type(bad).__name__) for bad in (None, 5, {"text": ["a"]}, b"abc")),
            (["a", "b \ud800"], "place 1"),
            good=lambda call=call: call(["w1", "w2"]),
        )
    ),
    *cases(
        "encode: ids",
        lambda bad: prepared(ids=bad),
        *(5, [1.5], ["3"], [math.nan], [2**70], [1, 2], [-(2**63) - 1]),
        facts=["id"],
    ),
    *cases(
        "encode: max_length",
        lambda bad: prepared(max_length=bad),
        *((bad, repr(bad)) for bad in (4.5, "8", 0, -1, True)),
        facts=["max_length"],
    ),
    *cases(
        "encode: layers",
        lambda bad: prepared(layers=bad),
        5,
        None,
        object(),
        facts=["layers", "list"],
    ),
    *cases(
        "annotate_rows: input_ids",
        lambda bad: annotate_rows({"input_ids": bad}, tokenizer()),
        *(None, 5, torch.tensor(5), [[5, [6]]], [["a"]], [[-5]], [[2**70]], [[5.0]], [[5], 6]),
        *(([[FIRST, bad]], str(bad)) for bad in (10_000, 2**40)),
        facts=["input_ids"],
    ),
    *cases(
        "annotate_rows",
        lambda bad: annotate_rows(bad, tokenizer()),
        *((bad, type(bad).__name__) for bad in (None, 5, torch.tensor(5), [["a"]])),
    ),
    *(
        row
        for door, call in {
            "Masker": Masker,
            "encode": lambda bad: encode(bad, ["w1"]),
            "annotate_rows": lambda bad: annotate_rows({"input_ids": []}, bad),
        }.items()
        for row in cases(
            f"{door}: no tokenizer",
            call,
            *("bert-base-uncased", None, 5, PreTrainedTokenizerFast, object()),
            facts=["tokenizer", "from_pretrained"],
            good=lambda call=call: call(tokenizer()),
        )
    ),
    *both(
        "a tokenizer that panics",
        of_words("[UNK]", split=ENDLESS, unk_token="[UNK]"),
        "a" * 60,
        "tokenizer",
    ),
    *both("a vocabulary without its unknown token", of_words(), "a b", "unknown token"),
    *cases(
        "a tokenizer that is only Python",
        lambda call: call(),
        lambda: encode(Slow(), ["a"]),
        lambda: annotate_rows({"input_ids": [[1]]}, Slow()),
        facts=["Slow", "word_ids"],
    ),
    *cases(
        "what an annotator in memory finds",
        lambda own: encode(tokenizer(), ["the cat sat "] * 2, layers=own),
        ([Own((0, 11), (4, 7))], "overlap"),
        ([Own((0, 30))], "12 characters"),
        ([Own((0, 3), less=1)], "1 results for 2 texts"),
        ([Own((0, 3)), Own((4, 7))], "two annotators", "'ent'"),
    ),
    *(
        Refusal(f"a corpus of token ids: {name}", partial(corpus_of, content, field), facts)
        for name, content, field, facts in (
            ("no text", IDS_FILE, "text", ("corpus.tokens", "input_ids")),
            ("as a text", IDS_FILE, "input_ids", ("corpus.tokens", "input_ids")),
            ("in the text", TEXT_FILE, "text", ("corpus.tokens", "text")),
        )
    ),
    Refusal(
        "a corpus of token ids: a text beside them",
        partial(corpus_of, OTHER_FILE, "text"),
        ("allowed: body;",),
        partial(corpus_of, OTHER_FILE, "body"),
    ),
    *cases(
        "a model",
        load_model,
        *((bad, repr(bad)) for bad in (5, None, b"abc", ["a"])),
        *((long, "too long") for long in ("a" * 5000, "/" + "a" * 5000, Path("a" * 5000))),
    ),
    *cases(
        "a model with",
        lambda given: load_model("bundled:encoder", **given),
        ({"seed": "a"}, "seed", "'a'"),
        ({"seed": 1.5}, "seed", "1.5"),
        ({"kind": "decoder"}, "decoder", "encoder-decoder"),
    ),
    *cases(
        "a model of packed rows",
        lambda bad: PackedCollator(masker(), model=bad),
        *(5, "no-such-thing", [], object()),
        facts=["model", "loaded"],
    ),
]
ROWS = [*BATCH_ROWS, *ARRAY_ROWS, *NUMBER_ROWS, *TEXT_ROWS]
