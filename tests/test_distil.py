"""A student of fewer layers, and its losses against a teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from maskwise.base.errors import MaskwiseError
from maskwise.changes import KeptLayers
from maskwise.masking import MaskedBatch, Masker
from maskwise.models.families import ENCODERS, encoder_of
from maskwise.models.loading import empty_model
from maskwise.models.weights import blocks_of
from maskwise.objectives import chunks, objective
from maskwise.recipe import read_recipe
from maskwise.studies.adapt import Request
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.plan import make_plan
from maskwise.studies.result import StudyResult
from test_bidirectional import decoder
from test_changes import LINES
from test_families import OTHERS
from test_several import Documents
from tiny import maskwise, write_lines
from training_tools import config, model, tokenizer

DEEP = OTHERS | {
    "modernbert": {"layer_types": ["full_attention", "sliding_attention"] * 2},
    "longformer": {"attention_window": [4, 4, 4, 4]},
}


def deep(family: str) -> Any:
    """A small model of a family, of four layers."""
    return model(family, num_hidden_layers=4, **DEEP.get(family, {})).eval()


def logits(net: Any) -> torch.Tensor:
    ids = torch.tensor([[2, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 3]])
    with torch.no_grad():
        return net(ids).logits


@pytest.mark.parametrize("family", sorted({*ENCODERS} - {"albert", "esmc"}))
def test_the_layers_that_are_kept_compute_what_they_did(family: str, tmp_path: Path) -> None:
    teacher = deep(family)
    before = logits(teacher)
    student, facts = KeptLayers("0, 2")(teacher, tokenizer())
    assert facts["layers"] == [0, 2]
    student.save_pretrained(tmp_path)
    found = logits(AutoModelForMaskedLM.from_pretrained(tmp_path))
    torch.testing.assert_close(logits(teacher), before)
    # In the model itself, the two others are left out.
    (blocks,) = {
        id(part): part
        for part in encoder_of(teacher).modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == 4
    }.values()
    for number in (3, 1):
        del blocks[number]
    teacher.config.num_hidden_layers = 2
    for name in ("layer_types", "attention_window"):
        if isinstance(getattr(teacher.config, name, None), list):
            setattr(teacher.config, name, getattr(teacher.config, name)[0:3:2])
    torch.testing.assert_close(found, logits(teacher))
    assert not torch.allclose(found, before)


@pytest.mark.parametrize(
    ("kept", "numbers"),
    [(1, [0]), (2, [0, 11]), (6, [0, 2, 4, 7, 9, 11]), (12, [*range(12)]), ("0, 3,11", [0, 3, 11])],
)
def test_a_number_of_layers_is_spread_evenly(kept: Any, numbers: list[int]) -> None:
    empty = empty_model(config("bert", num_hidden_layers=12))
    assert KeptLayers(kept)(empty, tokenizer()).facts["layers"] == numbers


# Losses
# -------------------------------------------------------------------------------------------


def pair(folder: Path, **more: Any) -> tuple[Any, Any]:
    """A small student, and its teacher of four layers, which is saved in a folder."""
    teacher = model("bert", seed=1, num_hidden_layers=4).eval()
    teacher.save_pretrained(folder)
    return model("bert", **more).eval(), teacher


def batch() -> MaskedBatch:
    """Masked rows of different lengths."""
    masker = Masker(tokenizer(), ratio=0.3, seed=0)
    return masker(Documents(16).line(torch.arange(5)), step=1, total_steps=10)


@pytest.mark.parametrize("entries", [1 << 26, 90 * 3])
def test_the_losses_of_a_batch_are_those_of_the_formula(
    entries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the formula in double precision, target by target, from the logits of transformers.

    A chunk has all targets, or three.
    """
    monkeypatch.setattr(chunks, "ENTRIES", entries)
    student, teacher = pair(tmp_path)
    given = batch()
    weights = {"temperature": 3.0, "predictions": 4.0, "labels": 0.5, "states": 2.0}
    options = ", ".join(f"{name}={value}" for name, value in weights.items())
    trained = objective(f"distil({str(tmp_path)!r}, {options})", student).eval()
    loss = trained(given)
    loss.total.backward()
    slopes = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    assert all(p.grad is None and not p.requires_grad for p in trained.teacher.parameters())
    # Neither a part of the objective, nor saved with it.
    assert {*trained.parameters()} == {*student.parameters()}

    student.zero_grad(set_to_none=True)
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    own = student(**inputs, output_hidden_states=True)
    with torch.no_grad():
        its = teacher(**inputs, output_hidden_states=True)
    total = torch.zeros((), dtype=torch.float64)
    targets = tokens = 0
    apart = torch.zeros((), dtype=torch.float64)
    labels = given["labels"].tolist()
    special = (0, 2, 3)
    originals = torch.where(given["labels"] >= 0, given["labels"], given["input_ids"]).tolist()
    for row, line in enumerate(labels):
        for column, label in enumerate(line):
            if originals[row][column] not in special:
                tokens += 1
                one = own.hidden_states[-1][row, column].double()
                other = its.hidden_states[-1][row, column].double()
                apart = apart + 1 - (one @ other) / (one.norm() * other.norm())
            if label < 0:
                continue
            targets += 1
            mine, goal = (each.logits[row, column].double() for each in (own, its))
            soft, its_soft = (
                (each / 3.0).exp() / (each / 3.0).exp().sum() for each in (mine, goal)
            )
            total = total + 4.0 * 9.0 * (its_soft * (its_soft / soft).log()).sum()
            total = total - 0.5 * (mine.exp() / mine.exp().sum())[label].log()
    assert targets == given.targets > 10 and tokens == given.tokens
    total = total + 2.0 * targets * apart / tokens
    assert float(loss.total) == pytest.approx(float(total), rel=1e-5)
    assert loss.divisor == targets and len(loss.each) == targets
    total.backward()
    for name, slope in slopes.items():
        expected = dict(student.named_parameters())[name].grad
        torch.testing.assert_close(slope, expected.float(), rtol=1e-3, atol=1e-5, msg=name)


def test_a_student_that_equals_its_teacher_learns_from_labels_alone(tmp_path: Path) -> None:
    student, _ = pair(tmp_path, seed=1, num_hidden_layers=4)
    given = batch()
    loss = objective(f"distil({str(tmp_path)!r}, labels=0)", student).eval()(given)
    assert abs(float(loss.total)) < 1e-4
    alone = objective(f"distil({str(tmp_path)!r}, labels=3)", student).eval()(given)
    plain = objective("mlm", student).eval()(given)
    assert float(alone.total) == pytest.approx(3 * float(plain.total), rel=1e-4)


def test_a_teacher_without_a_head_teaches_its_states(tmp_path: Path) -> None:
    teacher = model("bert", seed=1)
    teacher.base_model.save_pretrained(tmp_path)
    with pytest.raises(MaskwiseError, match=r"no head.*predictions=0"):
        objective(f"distil({str(tmp_path)!r})", model("bert"))
    student = model("bert").eval()
    taught = objective(f"distil({str(tmp_path)!r}, predictions=0, labels=0)", student)(batch())
    taught.total.backward()
    assert taught.total > 0 and student.base_model.encoder.layer[1].output.dense.weight.grad.any()


@pytest.mark.parametrize(
    ("fields", "how", "said"),
    [
        ({"hidden_size": 32}, "", "other widths of states.*16 and 32.*states=0"),
        ({"vocab_size": 46}, "", "other tokens.*45 and 46.*predictions=0"),
        ({}, ", predictions=0, states=0", "learns nothing"),
        ({}, ", temperature=0", "temperature"),
        ({}, ", states=-1", "states"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    fields: dict[str, Any], how: str, said: str, tmp_path: Path
) -> None:
    student, _ = pair(tmp_path, **fields)
    with pytest.raises(MaskwiseError, match=said):
        objective(f"distil({str(tmp_path)!r}{how})", student)


# In studies
# -------------------------------------------------------------------------------------------

TINY = ["training.steps=4", "training.batch_size=4", "corpus.limit=40", "evaluation.rows=8"]
STUDENT = {
    "model": {"pretrained": "bundled:encoder", "changes": ["layers(2)"]},
    "objective": {"distil": "distil('bundled:encoder')"},
    "corpus": {"source": "bundled:wikipedia", "length": 64},
    "masking": {"policy": "whole-word", "ratio": 0.3},
}


def recipe_of(folder: Path, **more: Any) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(STUDENT | more))
    return file


def test_a_student_of_fewer_layers_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert maskwise("pretrain", recipe_of(tmp_path), *TINY, "--out", out) == 0
    saved = str(out / "checkpoint")
    code = f"""
import sys
sys.modules["maskwise"] = None
from transformers import AutoModelForMaskedLM, AutoTokenizer
made, facts = AutoModelForMaskedLM.from_pretrained({saved!r}, output_loading_info=True)
assert made.config.num_hidden_layers == 2 and not any(facts.values()), facts
ids = AutoTokenizer.from_pretrained({saved!r})("The cat sat.", return_tensors="pt")
assert made(**ids).logits.isfinite().all()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    card = (out / "checkpoint" / "README.md").read_text()
    assert "layers(2)" in card and "distil('bundled:encoder')" in card


def test_the_stage_of_a_student_has_the_content_of_its_teacher(tmp_path: Path) -> None:
    names = []
    for seed in (1, 1, 2):
        teacher = tmp_path / "teacher"
        model("bert", seed=seed).save_pretrained(teacher)
        file = recipe_of(tmp_path, objective={"distil": f"distil({str(teacher)!r})"})
        plan = make_plan(read_recipe(file, ["study.arms={a: {}}", "study.seeds=1"]))
        names += [stage.name for stage in plan.stages() if stage.kind == "pretrain"]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"objective": "distil('nowhere/at/all')"}, "nowhere"),
        ({"objective": "distil()"}, "teacher"),
        ({"objective": "distil('TEACHER')"}, "other tokens"),
        ({"model": STUDENT["model"] | {"changes": ["new-tokens(5)"]}}, "model.changes of tokens"),
        ({"model": STUDENT["model"] | {"changes": ["layers(9)"]}}, "1 to 4"),
        ({"model": {"architecture": "bert"}}, "trained on the text"),
        ({"objective": "distil('bundled:seq2seq')"}, "encoder"),
    ],
)
def test_a_study_refuses_a_teacher_before_anything_is_trained(
    more: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "teacher"
    model("bert", seed=1).save_pretrained(teacher)
    tokenizer().save_pretrained(teacher)
    if "objective" in more:
        more = {"objective": {"a": more["objective"].replace("TEACHER", str(teacher))}}
    out = tmp_path / "out"
    code = maskwise("pretrain", recipe_of(tmp_path, **more), *TINY, "--out", out)
    assert code == 2 and said in capsys.readouterr().err and not out.exists()


# maskwise adapt --student-layers
# -------------------------------------------------------------------------------------------


def asked(folder: Path, **more: Any) -> Request:
    rows = [{"text": f"{LINES[number]}"[:80], "label": number % 2} for number in range(60)]
    write_lines(folder / "task.jsonl", rows)
    text = folder / "text.txt"
    text.write_text("\n".join(LINES[:80]))
    given: dict[str, Any] = {"student_layers": 2, "keep": "none", "seeds": 7, **more}
    task = str(folder / "task.jsonl")
    return Request("bundled:encoder", str(text), folder / "out", (task,), **given)


def test_adapt_compares_a_student_with_the_unchanged_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(tmp_path)
    recipe = draft_of(request, Texts(request.texts, request.out)).recipe
    assert recipe.study.pairs == [("words-30", "no-pretraining"), ("student", "no-pretraining")]
    assert recipe.study.gate is None and recipe.study.margin == 0.005
    student = recipe.arm("student", seed=0)
    assert student.model.changes == ("layers(2)",) and student.masking.ratio == 0.3
    assert student.objectives["distil"].starts == ("bundled:encoder",)
    assert not recipe.arm("words-30", seed=0).model.changes
    assert request.least_runs == 7 and "--student-layers 2" in request.invocation().command
    given = asked(tmp_path, overrides=("study.margin=0.02",))
    assert draft_of(given, Texts(given.texts, given.out)).recipe.study.margin == 0.02
    # A teacher without a head teaches its states, after a new head of the student.
    monkeypatch.setattr("maskwise.studies.adapt.draft.has_head", lambda model: False)
    recipe = draft_of(request, Texts(request.texts, request.out)).recipe
    first, last = recipe.arm("student", seed=0).links()
    assert first.training.freeze == "encoder" and not first.objectives
    assert "predictions=0" in last.objectives["distil"].objective


def test_adapt_saves_the_student_and_says_how_fast_it_is(tmp_path: Path) -> None:
    request = asked(tmp_path)
    out = tmp_path / "out"
    command = ["adapt", request.model, request.texts, "--task", *request.tasks, "--keep", "none"]
    command += ["--student-layers", 2, "--steps", 2, "--runs", 1, "--out", out, "--jobs", 1]
    assert maskwise(*command, "evaluation.rows=4", "finetune.epochs=1") == 0
    made = AutoModelForMaskedLM.from_pretrained(out / "student")
    assert made.config.num_hidden_layers == 2
    measured = json.loads((out / "student.json").read_text())
    assert measured["layers"] == [4, 2] and measured["weights"][1] < measured["weights"][0]
    assert min(measured["tokens_per_second"]) > 0
    adapted = StudyResult.read(out)
    said = " ".join([adapted.answer, *adapted.details])
    assert "The student:" in said and "2 of 4 layers" in said


@pytest.mark.parametrize(
    ("family", "layout", "said"),
    [("distilbert", "packed", "corpus.layout=document"), ("llama", "document", "an encoder")],
)
def test_a_teacher_must_read_the_same_rows_at_the_same_places(
    family: str, layout: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    model("bert").save_pretrained(student)
    if family == "llama":
        both = AutoConfig.for_model(
            family,
            vocab_size=len(tokenizer()),
            hidden_size=config("bert").hidden_size,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
        )
        both.is_causal = False
        AutoModelForCausalLM.from_config(both).save_pretrained(teacher)
    else:
        model(family).save_pretrained(teacher)
    for folder in (teacher, student):
        tokenizer().save_pretrained(folder)
    write_lines(tmp_path / "texts.jsonl", [{"text": "the cat sat on the mat"}] * 40)
    recipe = recipe_of(
        tmp_path,
        corpus={"source": str(tmp_path / "texts.jsonl"), "length": 16, "layout": layout},
        model={"pretrained": str(student)},
        objective={"a": f"distil({str(teacher)!r})"},
    )
    assert maskwise("pretrain", recipe, *TINY, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_layers_of_a_decoder_are_kept_too(family: str) -> None:
    """Mamba's configuration has types of layers that cannot be set."""
    whole = decoder(family)
    made = KeptLayers("1")(whole, tokenizer()).model
    kept, old = blocks_of(encoder_of(made)), blocks_of(encoder_of(whole))
    assert len(kept) == made.config.num_hidden_layers == 1 < len(old)
    for name, weights in kept[0].state_dict().items():
        assert torch.equal(weights, old[1].state_dict()[name])


def deep_decoder(family: str, **fields: Any) -> Any:
    """A decoder of four layers."""
    plain = decoder(family).config.to_dict() | {"layer_types": None, "num_hidden_layers": 4}
    plain |= {"n_layer": 4} if family == "gpt2" else {}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**(plain | fields)))


def test_layers_keep_what_they_compute_or_are_refused() -> None:
    """Fields with a value for each layer stayed whole: a layer without positions got some."""
    smol = deep_decoder("smollm3", no_rope_layers=[1, 1, 1, 0])
    made = KeptLayers("0, 3")(smol, tokenizer()).model
    assert [block.self_attn.use_rope for block in blocks_of(encoder_of(made))] == [1, 0]
    assert made.config.no_rope_layers == [1, 0]
    assert KeptLayers("0, 2")(deep_decoder("gpt2"), tokenizer()).facts["layers"] == [0, 2]
    with pytest.raises(MaskwiseError, match="the layers of gpt2 differ"):
        KeptLayers("0, 2")(deep_decoder("gpt2", scale_attn_by_inverse_layer_idx=True), tokenizer())
