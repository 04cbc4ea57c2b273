"""Writing by masked diffusion: frozen prompts, gaps, orders, steps; and in the terminal."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from maskwise.base.errors import MaskwiseError
from maskwise.evaluation.evaluate import evaluate_checkpoint
from maskwise.masks.generate import SHOWN, Writer
from maskwise.text.tokenizers import train_tokenizer
from tiny import maskwise
from training_tools import CLS, SEP, model, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny model without training."""
    path = tmp_path_factory.mktemp("writer")
    model("bert").save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def test_a_text_without_a_token_to_mask_is_no_empty_table(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("unknown words alone")
    with pytest.raises(MaskwiseError) as caught:
        evaluate_checkpoint(str(folder), ["heldout"], text=str(tmp_path / "text.txt"))
    assert caught.value.what == "no token of this text can be masked"


def test_a_prompt_of_other_bytes_is_refused(folder: Path) -> None:
    with pytest.raises(MaskwiseError) as caught:
        list(Writer(str(folder)).write("caf\udce9 [MASK]"))
    assert caught.value.got == r"'caf\udce9 [MASK]'"


def test_a_special_token_in_a_prompt_is_text(folder: Path, tmp_path: Path) -> None:
    # The words of the other tokenizer are whatever is between two spaces, so also [SEP].
    pieces = train_tokenizer(["a cat and [ SEP ] sat"] * 9, vocab_size=64)
    pieces.save_pretrained(tmp_path)
    model("bert", vocab_size=64).save_pretrained(tmp_path)
    ids = Writer(str(tmp_path)).read("a [SEP] cat [MASK]", 0).tolist()
    assert ids.count(pieces.sep_token_id) == 1, "only that at the end"


@pytest.mark.parametrize("order", ["confidence", "random", "block"])
def test_gaps_are_filled_and_the_prompt_stays(folder: Path, order: str) -> None:
    writer = Writer(str(folder))
    how = {"order": order, "steps": 3, "seed": 1} | ({"block": 2} if order == "block" else {})
    stages = list(writer.write("w1 [MASK*4] w2 [MASK] w3", **how))
    assert [stage.text.count(SHOWN) for stage in stages] == [5, 3, 1, 0]
    assert stages[0].text == f"w1 {' '.join([SHOWN] * 4)} w2 {SHOWN} w3"
    first, last = stages[0].ids, stages[-1].ids
    assert (first[0], first[-1]) == (CLS, SEP) and len(first) == 10
    kept = first != tokenizer().mask_token_id
    for stage in stages:
        assert torch.equal(stage.ids[kept], first[kept]), "what the prompt says never changes"
    written = last[~kept]
    assert bool((written >= 5).all()), "no special token is ever written"
    again = list(writer.write("w1 [MASK*4] w2 [MASK] w3", **how))
    assert [a.text for a in again] == [s.text for s in stages]
    if order == "block":  # the left block is full before the next begins
        assert [stage.text.split()[1:3].count(SHOWN) for stage in stages] == [2, 0, 0, 0]


def test_a_token_that_was_written_stays_and_the_likeliest_is_taken_at_temperature_0(
    folder: Path,
) -> None:
    writer = Writer(str(folder))
    stages = list(writer.write("w5 w6", length=6, temperature=0))
    for before, after in pairwise(stages):
        old = before.ids != tokenizer().mask_token_id
        assert torch.equal(before.ids[old], after.ids[old])
        (place,) = (before.ids != after.ids).nonzero().flatten().tolist()
        with torch.no_grad():
            logits = writer.model(input_ids=before.ids[None]).logits[0, place]
        assert int(after.ids[place]) == 5 + int(logits[5:].argmax())
    assert len(stages) == 7 and stages[-1].text.startswith("w5 w6 ")


def test_extreme_temperatures_and_seeds_are_taken(folder: Path) -> None:
    """Both ended in a traceback of torch."""
    writer = Writer(str(folder))

    def text(**how: Any) -> str:
        return list(writer.write("w5 w6", length=6, **how))[-1].text

    for temperature in (1e-50, 1e-40, 1e-6):
        assert text(temperature=temperature) == text(temperature=0)
    assert text(seed=2**64 + 3) == text(seed=3) != text(seed=4)
    assert text(seed=-1) == text(seed=2**64 - 1)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", folder, "--prompt", "w1 w2", "--length", 5, "--steps", 2]
    assert maskwise(*command, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["steps"] == 2 and len(made["history"]) == 3
    assert made["text"] == made["history"][-1] and SHOWN not in made["text"]
    assert made["text"].startswith("w1 w2")
    assert maskwise(*command) == 0 and capsys.readouterr().out.strip() == made["text"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--length", "0"], "nothing to write"),
        (["--length", "500"], "longer than the model reads"),
        (["--prompt", "w1 [MASK*99999999999]"], "longer than the model reads"),
        (["--prompt", "w1 [MASK*" + "9" * 5000 + "]"], "longer than the model reads"),
        (["--length", "99999999999"], "longer than the model reads"),
        (["--order", "backwards"], "confidence"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], said: str, capsys: Any) -> None:
    assert maskwise("generate", folder, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1


def test_a_model_without_a_mask_token_is_refused(tmp_path: Path, capsys: Any) -> None:
    model("bert").save_pretrained(tmp_path)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    maskless = type(tokenizer())(tokenizer_object=tokenizer().backend_tokenizer, **names)
    maskless.save_pretrained(tmp_path)
    assert maskwise("generate", tmp_path) == 2
    error = capsys.readouterr().err.strip()
    assert "no mask token" in error and len(error.splitlines()) == 1
