"""The loss of the same words, in nats per byte, for models with different vocabularies."""

from __future__ import annotations

import math

import pytest
import torch

from maskwise.base.errors import MaskwiseError
from maskwise.evaluation import EvaluationSettings
from maskwise.evaluation.measures.spelling import document_parts, word_loss
from maskwise.models.loading import add_tokens, load_model
from maskwise.recipe import read_recipe
from maskwise.studies.plan import make_plan
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text import Document, load_tokenizer, read_documents
from maskwise.text.new_words import choose_words, extend
from tiny import write_inputs

# What these tests ask does not depend on what the encoder knows.
pytestmark = pytest.mark.usefixtures("small_encoder")

TEXTS = [document.text for document in read_documents("bundled:wikipedia", limit=6)]


@torch.inference_mode()
def test_the_same_words_are_masked_for_every_vocabulary():
    tokenizer = load_tokenizer("bundled:encoder")
    model = load_model("bundled:encoder").eval()
    before = word_loss(model, tokenizer, TEXTS)
    documents = [Document(f"{n}", text) for n, text in enumerate(TEXTS)] * 5
    made = extend(tokenizer, choose_words(documents, tokenizer, 40))
    add_tokens(model, made.pieces)
    after = word_loss(model, made.tokenizer, TEXTS)
    assert after.items == before.items and (after.items or 0) > 20 and after.value != before.value
    assert before.metric == before.unit == "nats per byte"


@torch.inference_mode()
def test_the_loss_is_that_of_pieces_from_left_to_right():
    tokenizer = load_tokenizer("bundled:encoder")
    model = load_model("bundled:encoder").eval()
    text = "The electrolyte"
    (part,) = document_parts([text])
    ((low, high),) = part.words
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    own = tokenizer(text[low:high], add_special_tokens=False)["input_ids"]
    first = ids[0].tolist().index(own[0])
    nats = 0.0
    for place in range(first, first + len(own)):
        shown = ids.clone()
        shown[0, place : first + len(own)] = tokenizer.mask_token_id
        log_p = model(shown).logits[0, place].log_softmax(-1)
        nats -= float(log_p[ids[0, place]])
    loss = word_loss(model, tokenizer, [text])
    assert math.isclose(loss.value, nats / (high - low), rel_tol=1e-4) and loss.items == 1


def test_parts_depend_on_the_text_alone():
    parts = [*document_parts(TEXTS)]
    assert parts == [*document_parts(TEXTS)] and len(parts) > len(TEXTS)
    words = [part.text[low:high] for part in parts for low, high in part.words]
    assert all(map(str.isalpha, words)) and len(set(words)) > 20


def test_a_text_without_words_is_one_line():
    with pytest.raises(MaskwiseError, match="word-loss") as caught:
        word_loss(load_model("bundled:encoder").eval(), load_tokenizer("bundled:encoder"), ["1 2"])
    # A caller of ``mw.evaluate`` has no recipe.
    assert "evaluation." not in caught.value.what and "in a recipe" in str(caught.value.do)


def test_arms_of_a_study_are_measured_on_the_same_words(tmp_path):
    source = write_inputs(tmp_path / "inputs")
    recipe = read_recipe(
        source,
        [
            *("model={pretrained: bundled:encoder}", "tokenizer={}", "tasks=[]"),
            *("training.steps=1", "evaluation.measures=word-loss(5)"),
            "study={seeds: 1, arms: {plain: {}, words: {model.changes: new-tokens(9)}}}",
        ],
    )
    store = StageStore(tmp_path / "stages")
    found = {}
    for run in make_plan(recipe).runs:
        for stage in run.stages:
            result = run_stage(stage, store)
        (record,) = (row for row in result["measurements"] if row["measure"] == "words")
        found[run.arm] = record
    assert len(found) == 3 and len({record["items"] for record in found.values()}) == 1
    assert found["plain"]["value"] != found["words"]["value"]


def test_names_of_stages_without_the_measure_do_not_have_the_key():
    assert "measures" not in EvaluationSettings().model_dump()
    assert EvaluationSettings(measures="word-loss(3)").model_dump()["measures"] == ("word-loss(3)",)
