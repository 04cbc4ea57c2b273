"""Masked diffusion that learns where texts end, and stops there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from maskwise import encode
from maskwise.base.constants import WRITES_END
from maskwise.base.errors import MaskwiseError
from maskwise.masking import Noising
from maskwise.masking.line import Frame, Line
from maskwise.masks.generate import Writer
from maskwise.models.loading import load_config, new_config, new_model
from maskwise.objectives.mlm import MaskedDiffusion
from maskwise.recipe import read_recipe
from maskwise.studies.single import run_pretrain
from maskwise.text import train_tokenizer

TEXTS = ["the cat sat on the mat", "the dog ran", "a bird"]
SMALL = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, vocab_size=80)


@pytest.mark.parametrize(
    ("ends", "extra"), [("none", [0, 0, 0]), ("token", [1, 1, 1]), ("padding", [1, 4, 5])]
)
@torch.no_grad()
def test_the_loss_is_that_of_the_papers_with_ends_as_tokens(tokenizer, ends, extra) -> None:
    """LLaDA (arXiv 2502.09992, equation 3): (1/t) Σ masked −log p, with |EOS| like any token."""
    rows = encode(tokenizer, TEXTS)
    widths = [len(row["input_ids"]) for row in rows]
    batch = Noising(tokenizer, seed=3, ends=ends)(rows, epoch=0)
    # [CLS] is never masked, nor [SEP] if ends are not learned.
    sizes = [width - 2 + more for width, more in zip(widths, extra, strict=True)]
    assert extra != [1, 4, 5] or sizes == [max(widths) - 1] * 3
    assert batch.counted == sum(sizes)
    model = new_model(new_config("bert", tokenizer, 16, **SMALL), seed=0).eval()
    loss = MaskedDiffusion(model)(batch)
    # By other code: every row is read alone, and n of its L tokens are masked.
    total = 0.0
    end = tokenizer.sep_token_id
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        ids = torch.tensor([*row["input_ids"]])
        if ends == "padding":
            ids = torch.cat([ids, torch.full((max(widths) - len(ids),), end)])
        labels = batch.labels[number, : len(ids)]
        masked = labels >= 0
        assert torch.equal(labels[masked], ids[masked]) and 0 < masked.sum() <= size
        shown = ids.where(~masked, torch.tensor(tokenizer.mask_token_id))
        logits = model(input_ids=shown[None]).logits[0]
        losses = cross_entropy(logits[masked], ids[masked], reduction="sum")
        total += size / int(masked.sum()) * float(losses)
    assert float(loss.total / loss.divisor) == pytest.approx(total / sum(sizes), rel=1e-4)


def test_ends_are_masked_as_often_as_words(tokenizer) -> None:
    rows = encode(tokenizer, TEXTS)
    for ends, places in (("none", 0), ("token", 3), ("padding", 10)):
        found = 0
        for epoch in range(400):
            batch = Noising(tokenizer, seed=0, ends=ends)(rows, epoch=epoch)
            found += int((batch.labels == tokenizer.sep_token_id).sum())
        # The number of masked tokens is rounded up, so the mean ratio is above one half.
        assert found == 0 if not places else 0.5 < found / 400 / places < 0.65


def test_ends_of_several_texts_in_a_row_are_refused(tokenizer) -> None:
    line = Line.of_pieces(
        {"input_ids": np.array([9, 9])},
        np.array([1, 1]),
        np.array([0, 0]),
        example_id=np.array([0, 1]),
        length=8,
        frame=Frame.of(tokenizer),
    )
    with pytest.raises(MaskwiseError, match="every row has one text"):
        Noising(tokenizer, ends="padding")(line, epoch=0)


@pytest.mark.slow
def test_a_model_that_learned_short_texts_stops(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text(
        "\n\n".join(
            ["red green blue"] * 1
            + [
                f"{one} {two} blue"
                for one in ("red", "green", "black", "white", "grey", "pink")
                for two in ("red", "green", "black", "white", "grey", "pink")
            ]
        )
    )
    recipe = read_recipe(
        {
            "corpus": {
                "source": str(tmp_path / "texts.txt"),
                "length": 12,
                "layout": "document",
                "held_out": 0.1,
            },
            "tokenizer": {"vocab_size": 64},
            "model": {"architecture": "bert", "settings": SMALL},
            "objective": "diffusion",
            "masking": {"ends": "padding"},
            "training": {"steps": 300, "batch_size": 16, "learning_rate": 5e-3},
            "evaluation": {"masks": "diffusion", "rows": 4},
        }
    )
    result = run_pretrain(recipe, tmp_path / "out")
    folder = result["checkpoint"]
    assert load_config(folder).writes_end
    writer = Writer(str(folder))
    steps = [*writer.write("", length=8, seed=1)]
    words = steps[-1].text.split()
    # All texts have three words, so the other places are ends, and were filled at once.
    assert len(words) == 3 and words[-1] == "blue" and len(steps) < 8
    # A gap inside of a prompt cannot end the text.
    inside = [*writer.write("red [MASK*2] blue", seed=1)][-1]
    assert len(inside.text.split()) == 4


def test_ends_that_one_of_several_objectives_learns_are_written(tmp_path: Path) -> None:
    texts = [f"{text} {number}" for number in range(9) for text in TEXTS]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    given = {
        "corpus": {
            "source": str(tmp_path / "texts.txt"),
            "length": 16,
            "layout": "document",
            "held_out": 0.2,
        },
        "tokenizer": {"vocab_size": 64},
        "model": {"architecture": "bert", "settings": SMALL},
        "evaluation": {"masks": "token", "rows": 4},
        "sampler": "uniform",
    }
    diffusion = {"objective": "diffusion", "masking": {"ends": "padding"}}
    for steps in (2, 0):
        recipe = read_recipe(
            {
                **given,
                "objective": {"mlm": {"objective": "mlm"}, "diffusion": diffusion},
                "training": {"steps": steps, "batch_size": 8},
            }
        )
        folder = run_pretrain(recipe, tmp_path / f"out-{steps}")["checkpoint"]
        # A model that was not trained has not learned them.
        assert getattr(load_config(folder), WRITES_END, False) == (steps > 0)
