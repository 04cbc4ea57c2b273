"""The loss of the same tokens in rows of several lengths, for models that read longer rows."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_json, read_lines
from maskwise.evaluation.evaluate import evaluate_checkpoint, measure_of
from maskwise.evaluation.measure import HeldOutText
from maskwise.evaluation.measures.by_length import ByLength
from maskwise.models.loading import load_model, new_config, new_model
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.recipe import read_recipe
from maskwise.report import write_report
from maskwise.studies import run_study
from maskwise.studies.checks import check_inputs
from maskwise.studies.plan import make_run
from maskwise.text import load_tokenizer, read_documents, train_tokenizer
from tiny import write_lines

TEXTS = [document.text for document in read_documents("bundled:wikipedia", limit=60)]
SMALL = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
}

Read: TypeAlias = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
"""The rows that a model read, the rows and columns of the tokens that it predicted, and these."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Read:
    found: Read = []
    usual = MaskedLanguageModelling.token_losses

    def watched(objective, batch):
        losses, where = usual(objective, batch)
        row, column = where.unbind(1)
        found.append((batch["input_ids"], row, column, batch["labels"][row, column]))
        return losses, where

    monkeypatch.setattr(MaskedLanguageModelling, "token_losses", watched)
    return found


@torch.inference_mode()
def test_the_same_tokens_are_predicted_at_the_end_of_every_length(seen: Read) -> None:
    model = load_model("bundled:encoder").eval()
    tokenizer = load_tokenizer("bundled:encoder")
    # A rehearsal takes fewer rows, and not fewer documents, which may all be short.
    measure = ByLength(128).part(3).on(HeldOutText(None, None, TEXTS))  # type: ignore[arg-type]
    found = {int(row.metric.split()[-1]): row for row in measure.measure(model, tokenizer)}
    assert [*found] == measure.lengths == [32, 64, 128]
    assert len({row.items for row in found.values()}) == 1
    wanted = [number for text in TEXTS for number in text_windows(tokenizer, text, 126)][:3]
    for (ids, row, column, _), length in zip(seen, found, strict=True):
        assert ids.shape == (3, length)
        # Counted from the end, the masks are at the same places, and the text is the same.
        assert torch.equal(column - length, seen[0][2] - 32) and torch.equal(row, seen[0][1])
        assert torch.equal(ids[:, -31:], seen[0][0][:, -31:])
    # By other code: the whole row is read, and the loss of the masked places is the mean.
    ids, row, column, _ = seen[-1]
    truth = ids.clone()
    chosen = all_windows(tokenizer, 126)
    chosen = [chosen[at * len(chosen) // 3] for at in range(3)]
    truth[:, 1:-1] = torch.tensor(np.array(chosen))
    assert wanted and (ids[row, column] == tokenizer.mask_token_id).all()
    assert (ids != truth).sum() == len(row)
    loss = cross_entropy(model(input_ids=ids).logits[row, column], truth[row, column])
    assert found[128].value == pytest.approx(float(loss), rel=1e-4)


@torch.inference_mode()
def test_words_that_stand_far_back_are_predicted_with_their_answer_and_without(seen: Read) -> None:
    model = load_model("bundled:encoder").eval()
    tokenizer = load_tokenizer("bundled:encoder")
    measure = measure_of("far-words(128, rows=8)").on(HeldOutText(None, None, TEXTS))  # type: ignore[attr-defined, arg-type]
    short, whole = measure.measure(model, tokenizer)
    assert [row.metric.split()[-1] for row in (short, whole)] == ["64", "128"]
    assert (short.measure, short.items) == ("far-words", whole.items) and whole.items >= 8
    parts = all_windows(tokenizer, 126)
    losses: dict[int, list[float]] = {64: [], 128: []}
    for at, ids in enumerate(seen[1][0]):
        (part,) = [p for p in parts if sum(a == b for a, b in zip(p, ids[1:-1].tolist())) > 100]
        for place in (ids == tokenizer.mask_token_id).nonzero().flatten().tolist():
            token = part[place - 1]
            assert place - 1 >= 126 - 30
            # It stands in the first half, and nowhere else.
            assert token in part[:63] and part[63:].count(token) == 1
            for length, (batch, *_) in zip((64, 128), seen, strict=True):
                assert (token in batch[at].tolist()) == (length == 128)
                logits = model(input_ids=batch[at][None]).logits[0, place - 128 + length]
                losses[length].append(float(cross_entropy(logits, torch.tensor(token))))
    for row, length in ((short, 64), (whole, 128)):
        assert row.value == pytest.approx(np.mean(losses[length]), rel=1e-4)


def text_windows(tokenizer, text: str, size: int) -> list[list[int]]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]


def all_windows(tokenizer, size: int) -> list[list[int]]:
    return [part for text in TEXTS for part in text_windows(tokenizer, text, size)]


@torch.inference_mode()
@pytest.mark.parametrize("spec", ["by-length(64)", "far-words(64)"])
def test_unknown_tokens_are_not_predicted(spec: str, seen: Read) -> None:
    tokenizer = load_tokenizer("bundled:encoder")
    odd = "\u16a0 "
    assert tokenizer(odd, add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    # An unknown word stands once in the first half of each row, and once at its end.
    text = f"{odd} {TEXTS[0][:60]} " * 40
    measure = measure_of(spec).on(HeldOutText(None, None, [text]))  # type: ignore[attr-defined, arg-type]
    measure.measure(load_model("bundled:encoder").eval(), tokenizer)
    assert seen and not any((wanted == tokenizer.unk_token_id).any() for *_, wanted in seen)


def test_measures_of_documents_read_the_same_ones(tmp_path: Path) -> None:
    """The first one left the others the documents that it had not read."""
    text = tmp_path / "texts.jsonl"
    write_lines(text, [{"text": part[:900]} for part in TEXTS[:8]])
    specs = ["by-length(64, rows=2, documents=4)", "far-words(64, rows=2)", "word-loss(3)"]

    def measured(*measures: str) -> set[tuple[str, float]]:
        found = evaluate_checkpoint("bundled:encoder", measures, text=str(text))
        return {(row.metric, row.value) for row in found}

    alone = set().union(*map(measured, specs))
    assert measured(*specs) == alone == measured(*specs[::-1])


@pytest.mark.parametrize(
    ("spec", "shorter"),
    [
        ("by-length(512)", "by-length(256)"),
        ("far-words(128)", "far-words(64)"),
        ("by-length(33)", ""),
    ],
)
def test_short_documents_are_refused(spec: str, shorter: str) -> None:
    measure = measure_of(spec)
    text = HeldOutText(None, None, ["Too short."])  # type: ignore[arg-type]
    with pytest.raises(MaskwiseError, match=f"no document has {measure.longest} tokens") as caught:  # type: ignore[attr-defined]
        measure.on(text).measure(load_model("bundled:encoder"), load_tokenizer("bundled:encoder"))  # type: ignore[attr-defined]
    assert str(caught.value).endswith(shorter or "measure longer documents")
    if shorter:
        measure_of(shorter)


def test_rows_that_the_start_cannot_read_are_measured_of_changed_models_alone() -> None:
    asked = ["by-length(512)", "far-words(512)"]
    recipe = read_recipe(
        {
            "corpus": {"source": "bundled:wikipedia", "limit": 60, "length": 64, "held_out": 0.3},
            "model": {"pretrained": "bundled:encoder"},
            "evaluation": {"measures": asked},
            "study": {"seeds": 1, "arms": {"longer": {"model.changes": "positions(512)"}}},
        }
    )
    for arm, measured in (("longer", asked), ("no-pretraining", asked[:1])):
        evaluated = make_run(recipe, arm, 0, contents={}).evaluated
        assert evaluated and evaluated.what["evaluation"]["measures"] == measured
    short = read_recipe(recipe.settings(), ["study.arms={short: {}}"])
    with pytest.raises(MaskwiseError, match="reads no row of the shortest length"):
        [*check_inputs(short)]


@pytest.mark.slow
def test_a_study_shows_lengths_that_only_a_changed_model_reads(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=900)
    model = new_model(new_config("bert", tokenizer, 64, **SMALL), seed=0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = read_recipe(
        {
            "corpus": {"source": "bundled:wikipedia", "limit": 60, "length": 64, "held_out": 0.3},
            "model": {"pretrained": str(tmp_path / "model")},
            "training": {"steps": 2, "batch_size": 4},
            "evaluation": {"rows": 8, "masks": "token", "measures": "by-length(128)"},
            "study": {
                "seeds": 1,
                "arms": {
                    "plain": {},
                    "changed": {"model.changes": "positions(128)", "training.steps": 0},
                    "longer": {"model.changes": "positions(128)", "corpus.length": 128},
                },
            },
        }
    )
    run_study(recipe, tmp_path / "out", jobs=1)
    lines = [*read_lines(tmp_path / "out" / "records.jsonl")]
    found = {
        (line["arm"], line["metric"].split()[-1]): line["value"]
        for line in lines
        if line.get("measure") == "by-length"
    }
    assert {length for arm, length in found if arm == "plain"} == {"32", "64"}
    assert {length for arm, length in found if arm == "longer"} == {"32", "64", "128"}
    # Copied positions change nothing in rows that were short enough.
    assert found["changed", "64"] == pytest.approx(found["no-pretraining", "64"], rel=1e-5)
    summary = read_json(tmp_path / "out" / "summary.json")
    asked = [row for row in summary["contrasts"] if "by-length" in row["outcome"]]
    assert asked and all(row["unit"] == "nats" for row in asked)
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "Loss by the length of rows" in page
