"""Hostile calls of the public functions: a call is refused at once in one line, or its result
makes sense.

Each call begins as a good call, and one or two of its arguments are replaced by bad values, or by
good values in another form. ``CALLS`` calls of each function run in the fast suite, and
``python tests/test_hostile_calls.py 2000`` runs any number, and prints counts.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import maskwise as mw
from masking_tools import FIRST, MASK, PAD, SPECIAL, WORDS, tokenizer, vocabulary
from maskwise.masking import IGNORE, MaskedBatch
from maskwise.masking.corruptions import CORRUPTIONS
from maskwise.masking.policies import POLICIES
from maskwise.masks.generate import Writer
from maskwise.text import word_ids

CALLS = 40
WIDTH = 12
Random = np.random.Generator


def pick(rng: Random, values: list[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def ids(rng: Random, rows: int = 3) -> list[list[int]]:
    made = rng.integers(FIRST, FIRST + WORDS, (rows, WIDTH))
    made[:, 0], made[:, -1] = 2, 3
    return made.tolist()


def another_form(rng: Random, value: Any) -> Any:
    """The same numbers as another type, where that is possible; else the value."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        return value
    # torch cannot read numbers of 64 bits without a sign.
    if array.dtype.kind not in "ib":
        return value
    return pick(
        rng,
        [
            array,
            torch.tensor(array),
            torch.tensor(array).int(),
            array.tolist(),
            array.astype(np.int32),
            array.astype(np.float64),
            torch.tensor(array).float(),
            np.asfortranarray(array),
            torch.tensor(array)[..., None].expand(*array.shape, 2)[..., 0],
        ],
    )


def broken(rng: Random, value: Any) -> Any:
    """Something else: another type, shape, range or size, or damage inside of the value."""
    odd = [None, math.nan, math.inf, -1, 0, 1.5, 2**63, 2**70, -(2**70), True, "a", "", b"a", "0.5"]
    odd += [[], (), {}, set(), object(), [None], [[]], [[1], [1, 2]], ["a"], [math.nan], 1e30, 1j]
    odd += [np.array(3), np.array([]), np.zeros((2, 2, 2)), np.array(["a"]), np.array([None])]
    odd += [
        torch.tensor(2.5),
        torch.zeros(0),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3).half(),
    ]
    odd += [torch.ones(2, 3, device="meta"), torch.ones(2, 3).bfloat16(), torch.tensor([True])]
    odd += [int, len, lambda *a, **k: None, Exception(), np.datetime64("2020-01-01"), iter([1])]
    if isinstance(value, list) and value and rng.random() < 0.6:
        damaged = [*value]
        place = int(rng.integers(len(damaged)))
        inner = damaged[place]
        if isinstance(inner, list | dict) and rng.random() < 0.6:
            damaged[place] = broken(rng, inner)
        else:
            how = rng.random()
            if how < 0.2:
                del damaged[place]
            elif how < 0.3:
                damaged.append(inner)
            else:
                damaged[place] = pick(rng, [*odd, -1, -100, 10**6, 2**40, 2**63 + 1, PAD, MASK])
        return damaged
    if isinstance(value, dict) and value and rng.random() < 0.7:
        name = pick(rng, [*value])
        damaged = {**value, name: broken(rng, value[name])}
        if rng.random() < 0.15:
            del damaged[name]
        return damaged
    return pick(rng, odd)


def column(rng: Random) -> dict[str, Any]:
    rows = ids(rng)
    words = np.cumsum(rng.integers(0, 2, (3, WIDTH)), 1).tolist()
    made = {"input_ids": rows, "example_id": [4, 5, 6], "word_ids": words}
    more: dict[str, Any] = {
        "attention_mask": [[1] * WIDTH] * 3,
        "special_tokens_mask": [[0] * WIDTH] * 3,
        "token_type_ids": [[0] * WIDTH] * 3,
        "weight": rng.random((3, WIDTH)).tolist(),
        "labels": rows,
    }
    for name, value in more.items():
        if rng.random() < 0.3:
            made[name] = value
    if rng.random() < 0.2:
        made["example_id"] = np.repeat([[1, 2]], 3, 0).repeat(WIDTH // 2, 1).tolist()
    return made


def rows_of(rng: Random) -> Any:
    made = column(rng)
    if rng.random() < 0.4:
        return made
    rows = [{name: value[n] for name, value in made.items()} for n in range(3)]
    for row in rows:
        size = int(rng.integers(1, WIDTH + 1))
        for name, value in row.items():
            if isinstance(value, list):
                row[name] = value[:size]
        if rng.random() < 0.1:
            row["input_ids"][-1] = PAD
    return rows


def times(rng: Random) -> dict[str, Any]:
    return {"step": int(rng.integers(9)), "total_steps": 9, "epoch": pick(rng, [None, 0, 3])}


def sensible(batch: MaskedBatch) -> None:
    """No special token is chosen, shapes agree, and numbers are finite."""
    source = batch.line
    chosen = batch.selected.numpy().reshape(-1)
    assert not chosen[~source.eligible].any()
    assert not set(source.input_ids[chosen].tolist()) & set(range(len(SPECIAL)))
    assert len(batch.input_ids) == len(batch.labels) == source.shape[0]
    assert batch.ratio.isfinite().all() and ((batch.ratio >= 0) & (batch.ratio <= 1)).all()
    assert ((batch.labels == IGNORE) | (batch.labels >= 0)).all()
    if batch.loss_weight is not None:
        assert batch.loss_weight.isfinite().all() and (batch.loss_weight >= 0).all()
    if batch.piece_BL is None:
        assert batch.labels.shape == batch.input_ids.shape == tuple(source.shape)


def alone(call: Callable[..., MaskedBatch], rows: Any, batch: MaskedBatch) -> None:
    """A row is masked as it is beside others."""
    if not isinstance(rows, list) or len(rows) < 2 or batch.piece_BL is not None:
        return
    first = call([rows[0]])
    width = first.input_ids.shape[1]
    assert torch.equal(first.labels[0], batch.labels[0, :width])
    assert (batch.labels[0, width:] == IGNORE).all()


# Each function: good arguments, and a call with a check of its result
# ----------------------------------------------------------------------------


def masker_arguments(rng: Random) -> dict[str, Any]:
    return {
        "policy": pick(rng, ["token", "whole-word", "span", "weighted"]),
        "ratio": pick(rng, [0.15, 0.5, "linear(0.3, 0.1)", "uniform(0, 1)", lambda s, t: 0.2]),
        "budget": pick(rng, ["expected", "exact", "bernoulli"]),
        "corruption": pick(rng, ["bert", "mask-only", "delete", "t5", "infill"]),
        "seed": int(rng.integers(9)),
        "fill": pick(rng, ["none", "random", "skip-row"]),
        "min_targets": 1,
        "predict": 1.0,
        "keep": None,
        "visits": "random",
        "exclude": (),
    }


def make_masker(arguments: dict[str, Any]) -> None:
    made = mw.Masker(tokenizer(), **arguments)
    row = {"input_ids": ids(np.random.default_rng(1))[0], "example_id": 7}
    row |= {"word_ids": [n // 2 for n in range(WIDTH)], "weight": [1.0] * WIDTH}
    row |= dict.fromkeys(made.policy.layers(), row["word_ids"]) if made.policy.layers() else {}
    if "weight" in made.policy.layers():
        row["weight"] = [1.0] * WIDTH
    sensible(made([row], step=1, total_steps=9, epoch=0))


def mask_arguments(rng: Random) -> dict[str, Any]:
    return {"rows": rows_of(rng), **times(rng), "place": pick(rng, [None, [0, 1, 2]])}


def mask_with(made: mw.Masker) -> Callable[[dict[str, Any]], None]:
    def call(arguments: dict[str, Any]) -> None:
        rows = arguments.pop("rows")
        batch = made(rows, **arguments)
        sensible(batch)
        if arguments.get("place") is None:
            arguments.pop("place", None)
            alone(lambda some: made(some, **arguments), rows, batch)

    return call


def collate_arguments(rng: Random) -> dict[str, Any]:
    rows = rows_of(rng)
    for name in ("step", "epoch"):
        if isinstance(rows, dict):
            rows[name] = [3, 3, 3]
        else:
            for row in rows:
                row[name] = 3
    return {"rows": rows, "total_steps": pick(rng, [None, 9])}


def collate(arguments: dict[str, Any]) -> None:
    made = mw.MaskingCollator(mw.Masker(vocabulary()), total_steps=arguments["total_steps"])
    batch = made(arguments["rows"])
    assert batch["input_ids"].shape == batch["labels"].shape


def pack(arguments: dict[str, Any]) -> None:
    made = mw.PackedCollator(mw.Masker(vocabulary()), total_steps=arguments["total_steps"])
    line = made(arguments["rows"])
    assert line["input_ids"].shape == line["labels"].shape == line["position_ids"].shape
    assert int(line["cu_seq_lens_q"][-1]) == line["input_ids"].shape[1]


def corrupt_arguments(rng: Random) -> dict[str, Any]:
    return {
        "input_ids": ids(rng),
        "loss_mask": [[0] + [1] * (WIDTH - 2) + [0]] * 3,
        "mask_token_id": MASK,
        "ratio": pick(rng, ["uniform(0, 1)", 0.5, "bell"]),
        "budget": pick(rng, ["exact", "bernoulli"]),
        "seed": 1,
        **times(rng),
        "example_id": pick(rng, [None, [1, 2, 3]]),
        "place": pick(rng, [None, [0, 1, 2]]),
    }


def corrupt(arguments: dict[str, Any]) -> None:
    noisy, mask, rate = mw.corrupt(**arguments)
    given = torch.as_tensor(np.asarray(arguments["input_ids"])).to(noisy.dtype)
    allowed = torch.as_tensor(np.asarray(arguments["loss_mask"])) != 0
    assert noisy.shape == mask.shape == rate.shape == given.shape
    assert not (mask & ~allowed).any() and torch.equal(noisy[~mask], given[~mask])
    assert (noisy[mask] == int(arguments["mask_token_id"])).all()
    assert ((rate > 0) & (rate <= 1)).all()


def encode_arguments(rng: Random) -> dict[str, Any]:
    return {
        "texts": ["w1 w2 w3 w4 w5", "", "w6 [MASK]", "w7 " * 30],
        "max_length": pick(rng, [None, 8]),
        "split": pick(rng, [False, True]),
        "ids": pick(rng, [None, [1, 2, 3, 4]]),
        "layers": pick(rng, [(), ["sentences"]]),
    }


def encode(arguments: dict[str, Any]) -> None:
    rows = mw.encode(tokenizer(), **arguments)
    for row in rows:
        assert len(row["input_ids"]) == len(row["word_ids"]) == len(row["attention_mask"])
    if rows:
        sensible(mw.Masker(tokenizer())(rows, epoch=0))


def annotate_arguments(rng: Random) -> dict[str, Any]:
    made = column(rng)
    batch = pick(rng, [made, {"input_ids": made["input_ids"][0]}, {"text": ["w1 w2", "w3"]}])
    return {"batch": batch, "text_field": "text", "max_length": None, "split": False, "layers": ()}


def annotate(arguments: dict[str, Any]) -> None:
    made = mw.annotate_rows(arguments.pop("batch"), tokenizer(), **arguments)
    rows, words = made.get("input_ids", []), made.get("word_ids", [])
    assert len(rows) == len(words)


def word_arguments(rng: Random) -> dict[str, Any]:
    spans = [[0, 2], [3, 5], [5, 5]]
    return {"text": "ab cd", "offsets": spans, "special": pick(rng, [None, [0, 0, 1]])}


def number_words(arguments: dict[str, Any]) -> None:
    found = word_ids(arguments.pop("text"), arguments.pop("offsets"), **arguments)
    assert found.ndim == 1 and (found >= -1).all()


def schedule_arguments(rng: Random) -> dict[str, Any]:
    names = ["linear", "cosine", "uniform", "warm_up", "linear_decay", "constant", "piecewise"]
    return {"name": pick(rng, names), "values": [0.3, 0.1], "step": 3, "total_steps": 9}


def schedule(arguments: dict[str, Any]) -> None:
    name = arguments["name"]
    values = arguments["values"]
    if not isinstance(name, str) or not hasattr(mw.schedules, name) or not isinstance(values, list):
        made = mw.schedules.schedule(name)
    elif name in ("linear_decay", "constant"):
        made = getattr(mw.schedules, name)(*values[:1])
    else:
        made = getattr(mw.schedules, name)(*values)
    assert 0 <= made(arguments["step"], arguments["total_steps"]) <= 1


def sampler_arguments(rng: Random) -> dict[str, Any]:
    losses = pick(rng, [[1.0, 2.0], {"a": 1.0, "b": 2.0}])
    name = pick(rng, ["uniform", "loss-proportional", "mometas", "mometas-plus", "sequential"])
    return {"name": name, "before": losses, "after": losses, "step": 3, "total_steps": 9}


def sample(arguments: dict[str, Any]) -> None:
    made = mw.samplers.sampler(arguments["name"], ["a", "b"])
    time = arguments["step"], arguments["total_steps"]
    assert made.draw(*time) in ("a", "b")
    made.update(arguments["before"], arguments["after"])
    share = made.probabilities(*time)
    assert share.isfinite().all() and abs(float(share.sum()) - 1) < 1e-9


def stepper_arguments(rng: Random) -> dict[str, Any]:
    names = {"size": 20, "batch_size": 3, "seed": 1, "epochs": 2, "first_step": 1, "rank": 0}
    return {**names, "ranks": 2, "accumulate": 1, "index": (3, 0, 0)}


def step_through(arguments: dict[str, Any]) -> None:
    index = arguments.pop("index")
    made = mw.StepBatchSampler(arguments.pop("size"), **arguments)
    # A bad number of epochs is large, so only the first batches are looked at.
    for batch, _ in zip(made, range(9), strict=False):
        assert len(batch) == arguments["batch_size"]
    row = mw.SteppedDataset([{"input_ids": [5]}] * 20)[index]
    assert {"step", "epoch", "example_id"} <= row.keys()


class Prompts(Writer):
    """A writer whose model knows nothing."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer()
        self.vocabulary = vocabulary()
        self.ends = False

    def _check_room(self, tokens: int) -> None:
        if tokens > 64:
            raise mw.MaskwiseError("too long")

    def _drawn(self, ids: Any, places: Any, *_: Any) -> Any:
        return torch.full_like(places, FIRST), torch.zeros(len(places))


def writer_arguments(rng: Random) -> dict[str, Any]:
    prompt = pick(rng, ["", "w1 [MASK*3] w2", "w1"])
    order = pick(rng, ["confidence", "random", "block"])
    more = {"steps": pick(rng, [None, 2]), "temperature": 1.0, "seed": 3}
    if order == "block":
        more["block"] = 2
    if "[MASK" not in prompt:
        more["length"] = 5
    return {"prompt": prompt, "order": order, **more}


def write(arguments: dict[str, Any]) -> None:
    *_, last = Prompts().write(arguments.pop("prompt"), **arguments)
    assert MASK not in last.ids.tolist()


def trainer_rows(arguments: dict[str, Any]) -> None:
    """What ``MaskingTrainer`` collates and masks, without a model."""
    from maskwise.masking.collator import RowCollator

    made = RowCollator(vocabulary())(arguments["rows"])
    sensible(mw.Masker(vocabulary())(made, step=arguments["step"], epoch=0))


FUNCTIONS: dict[
    str, tuple[Callable[[Random], dict[str, Any]], Callable[[dict[str, Any]], None]]
] = {
    "Masker": (masker_arguments, make_masker),
    "Masker of tokens": (mask_arguments, mask_with(mw.Masker(vocabulary(), ratio=0.4))),
    "Masker of words": (
        mask_arguments,
        mask_with(mw.Masker(vocabulary(), policy="whole-word", ratio="uniform(0, 1)")),
    ),
    "Masker that deletes": (
        mask_arguments,
        mask_with(mw.Masker(vocabulary(), corruption="delete", ratio=0.3)),
    ),
    "Noising": (mask_arguments, mask_with(mw.Noising(vocabulary()))),
    "MaskingCollator": (collate_arguments, collate),
    "PackedCollator": (collate_arguments, pack),
    "MaskingTrainer": (lambda rng: {"rows": rows_of(rng), "step": 2}, trainer_rows),
    "corrupt": (corrupt_arguments, corrupt),
    "encode": (encode_arguments, encode),
    "annotate_rows": (annotate_arguments, annotate),
    "word_ids": (word_arguments, number_words),
    "schedules": (schedule_arguments, schedule),
    "samplers": (sampler_arguments, sample),
    "StepBatchSampler": (stepper_arguments, step_through),
    "generate": (writer_arguments, write),
}
assert POLICIES and CORRUPTIONS


def hostile(name: str, number: int) -> str:
    """Make one call; return "passed" or the error's type, or raise what should not happen."""
    rng = np.random.default_rng([number, *name.encode()])
    make, call = FUNCTIONS[name]
    arguments = make(rng)
    for _ in range(int(rng.integers(0, 3))):
        key = pick(rng, [*arguments])
        change = pick(rng, [another_form, broken, broken])
        arguments[key] = change(rng, arguments[key])
    try:
        call(arguments)
    except (TypeError, ValueError) as error:
        assert "\n" not in str(error) or isinstance(error, TypeError), error
        return type(error).__name__
    return "passed"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_hostile_call_is_refused_or_makes_sense(name: str) -> None:
    found = Counter(hostile(name, number) for number in range(CALLS))
    assert found["passed"] and found["MaskwiseError"], found


@pytest.mark.parametrize("seed", [torch.zeros(0), torch.ones(2), np.array([1, 2]), "", []])
def test_several_seeds_of_a_generated_text_are_refused(seed: Any) -> None:
    with pytest.raises(mw.MaskwiseError, match="seed"):
        next(iter(Prompts().write("w1 [MASK]", seed=seed)))


@pytest.mark.parametrize("name", [3, None, b"x", ("a", 1)])
def test_a_column_whose_name_is_no_text_is_not_read(name: Any) -> None:
    row = {"input_ids": [2, FIRST, FIRST + 1, 3], "example_id": 1}
    more = {**row, name: [1, 2, 3, 4]}
    batches = ([row] * 2, [more] * 2, {key: [value] * 2 for key, value in more.items()})
    first, *others = (mw.Masker(vocabulary())(rows, epoch=0) for rows in batches)
    assert all(torch.equal(first.labels, other.labels) for other in others)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    total = Counter[str]()
    for each in FUNCTIONS:
        counts = Counter[str]()
        for number in range(-(-int(sys.argv[1]) // len(FUNCTIONS))):
            try:
                result = hostile(each, number)
                counts[result] += 1
                if result not in ("passed", "MaskwiseError"):
                    print(each, number, result)
            except Exception as error:
                counts[f"WRONG {type(error).__name__}"] += 1
                where = error.__traceback__
                while where is not None and where.tb_next is not None:
                    where = where.tb_next
                line = where.tb_frame.f_code.co_filename, where.tb_lineno
                print(each, number, type(error).__name__, str(error)[:150], *line)
        print(each, dict(counts))
        total += counts
    print(sum(total.values()), dict(total))
