"""Causal language modelling: what follows a token is never seen, and is what must be said."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError
from maskwise.evaluation import HeldOut, fixed_maskers
from maskwise.evaluation.evaluate import evaluate_checkpoint
from maskwise.evaluation.scoring import predictable
from maskwise.models.decoders import _moved
from maskwise.models.families import ENCODERS, SEPARATING_DECODERS, masked_logits
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import CausalLanguageModelling, MaskedLanguageModelling, predicting
from maskwise.objectives.denoising import NextTokens
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies import make_plan, run_stage, run_study
from maskwise.studies.checkpoints import needed_run, save_model
from maskwise.studies.store import StageStore
from maskwise.text import Rows, train_tokenizer
from test_attention import SEPARATING, TEXTS, build, rows, tokenizer  # noqa: F401 (fixtures)
from tiny import load_json, maskwise, read_lines, write_inputs, write_lines

THREE = [0, 1, 2]


def next_tokens(tokenizer: Any, rows: Rows, layout: str = "packed") -> Any:  # noqa: F811
    masker = NextTokens(tokenizer, **CausalLanguageModelling.masking)
    return masker(rows.laid(layout).line(THREE))


@pytest.mark.parametrize("layout", ["packed", "joined", "document"])
def test_the_label_of_a_place_is_the_next_token_of_its_text(tokenizer, rows, layout):  # noqa: F811
    batch = next_tokens(tokenizer, rows, layout)
    assert batch.targets == int((batch.labels >= 0).sum()) > 20 and batch.ratio.max() == 0
    source, ids = batch.line, batch.input_ids
    # nothing is masked
    assert torch.equal(ids, torch.from_numpy(source.input_ids.reshape(source.shape)))
    eligible, segments = source.tensor(source.eligible), batch.segment_ids
    wanted = torch.zeros_like(eligible)
    together = (segments[:, 1:] == segments[:, :-1]) | (layout == "joined")
    wanted[:, :-1] = eligible[:, 1:] & together
    assert torch.equal(batch.labels, ids.roll(-1, 1).where(wanted, -100))
    if layout != "joined":  # every token of a text but its frame is a target once
        assert batch.targets == int(eligible.sum())


@pytest.mark.parametrize("family", SEPARATING)
@pytest.mark.parametrize("layout", ["packed", "document"])
def test_what_follows_a_place_does_not_change_its_logits(family, layout, tokenizer, rows):  # noqa: F811
    batch, model = next_tokens(tokenizer, rows, layout), build(family, tokenizer)
    clm = CausalLanguageModelling(model)
    content, where = batch.line.tensor(batch.line.content), batch.where
    row, column = where.unbind(1)
    cut = 5

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return masked_logits(model, clm.inputs(batch), row, column)

    before = logits()
    later = torch.arange(batch.input_ids.shape[1]) > cut
    # Not [MASK], which ESM's token dropout counts.
    batch.input_ids[content & later] = tokenizer.unk_token_id
    after, seen = logits(), column <= cut
    assert seen.sum() > 3 and torch.allclose(after[seen], before[seen], atol=1e-5)
    assert not torch.allclose(after[~seen], before[~seen], atol=1e-3)
    # what stands before does change them
    batch.input_ids[content & ~later] = tokenizer.unk_token_id
    changed = (logits()[seen] - before[seen]).abs().amax(1)
    assert (changed > 1e-4).float().mean() > 0.5


def test_other_objectives_of_the_same_model_see_both_sides(tokenizer, rows):  # noqa: F811
    batch, model = next_tokens(tokenizer, rows), build("modernbert", tokenizer)
    plain = MaskedLanguageModelling(model)(batch).total
    causal = CausalLanguageModelling(model)(batch)
    assert int(causal.divisor) == batch.targets and causal.where is not None
    assert torch.equal(MaskedLanguageModelling(model)(batch).total, plain) and not torch.equal(
        plain, causal.total
    )


def test_a_dict_of_model_inputs_is_one_text_a_row(tokenizer, rows):  # noqa: F811
    batch, model = next_tokens(tokenizer, rows, "document"), build("bert", tokenizer)
    clm = CausalLanguageModelling(model)
    assert torch.allclose(clm(dict(batch)).total, clm(batch).total)


def test_families_whose_attention_is_out_of_reach_are_refused(tokenizer, tmp_path):  # noqa: F811
    assert "deberta-v2" not in SEPARATING and "deberta-v2" in ENCODERS
    with pytest.raises(
        MaskwiseError,
        match=r"objective clm.*got deberta-v2",
    ):
        CausalLanguageModelling(build("deberta-v2", tokenizer))
    recipe = read_recipe(write_inputs(tmp_path), ["objective=clm", "model.architecture=deberta-v2"])
    with pytest.raises(MaskwiseError, match=r"objective clm.*got deberta-v2"):
        run_study(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clm_takes_no_masking(tmp_path, capfd):
    recipe = write_inputs(tmp_path)
    wrong = "objective={clm: {masking: {ratio: 0.3}}, mlm: }"
    assert maskwise("study", recipe, wrong, "--out", tmp_path / "out") == 2
    assert (
        "objective.clm: this objective does not mask, so it has no masking settings; got ratio"
        in capfd.readouterr().err
    )


def test_a_detour_over_next_tokens(tmp_path):
    """Arms that differ in the objective of the first phase; the ratio of a phase without masks is
    no matter.
    """
    phases = [
        {"objective": "clm", "training.steps": 4},
        {"masking.ratio": 0.15, "training.steps": 3},
    ]
    arms = {"detour": {}, "both": {"phases.0.objective": {"clm": {}, "mlm": {}}}}
    more = [
        "tasks=[]",
        "study.seeds=1",
        "training.log_every=1",
        "training.save_every=0",
        "training.eval_every=0",
        f"phases={json.dumps(phases)}",
        f"study.arms={json.dumps(arms)}",
    ]
    recipe = read_recipe(write_inputs(tmp_path), more)
    plan = make_plan(recipe)
    for stage in plan.stages():
        run_stage(stage, StageStore(tmp_path))
    runs = {run.arm: run for run in plan.runs}
    first, last = (
        read_lines(StageStore(tmp_path).folder(stage) / "metrics.jsonl")
        for stage in runs["detour"].trainings
    )
    targets = [line["targets"] / line["tokens"] for line in (first[0], last[0])]
    assert targets[0] > 0.8 and targets[1] < 0.2 and first[0]["ratio"] == 0
    assert {line["masks"] for line in first if line["kind"] == "eval"} == {"token", "whole-word"}


def test_the_last_token_of_a_text_without_a_frame_has_no_next_one(tokenizer):  # noqa: F811
    masker = NextTokens(tokenizer, **CausalLanguageModelling.masking)
    ordinary = len(tokenizer) - 3
    texts = [
        {"input_ids": [ordinary, ordinary + 1, ordinary + 2], "example_id": number}
        for number in range(2)
    ]
    assert masker(texts, epoch=0).labels.tolist() == [[ordinary + 1, ordinary + 2, -100]] * 2


# Decoders
# -------------------------------------------------------------------------------------------

DECODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
}


def small(family: str) -> dict[str, Any]:
    plain = AutoConfig.for_model(family)
    return {name: value for name, value in DECODER.items() if hasattr(plain, name)}


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("layout", ["joined", "document"])
def test_a_decoder_predicts_the_tokens_of_a_text_alone(family, layout, tokenizer, rows):  # noqa: F811
    config = new_config(family, tokenizer, 48, **small(family))
    model = new_model(config, seed=3).eval()
    batch = next_tokens(tokenizer, rows, layout)
    loss = CausalLanguageModelling(model)(batch)
    total, count = 0.0, 0
    kept = torch.ones_like(batch.input_ids)
    if batch.attention_mask is not None:
        kept = batch.attention_mask
    for ids, present in zip(batch.input_ids, kept.bool(), strict=True):
        text = ids[present]
        logits = model(input_ids=text[None]).logits[0]
        for place, token in enumerate(text[1:].tolist()):
            if token not in tokenizer.all_special_ids:
                total -= float(logits[place].log_softmax(-1)[token])
                count += 1
    assert int(loss.divisor) == count > 20
    assert float(loss.total) == pytest.approx(total, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("layout", ["joined", "packed"])
def test_the_held_out_loss_of_a_decoder_is_that_of_transformers(family, layout, tokenizer, rows):  # noqa: F811
    config = new_config(family, tokenizer, 48, **small(family))
    model = new_model(config, seed=3).eval()
    maskers = fixed_maskers(tokenizer, masks=["next-token"], ratio=0.15)
    judge = predicting(model)
    laid = rows.laid(judge.reads(layout, config))
    assert laid.layout == layout
    (line,) = HeldOut(laid, maskers, None)(judge)
    # Texts of a packed row are read as if each stood alone.
    laid = laid if layout == "joined" else rows.laid("document")
    total, count = 0.0, 0
    line_of_rows = laid.line(range(len(laid)))
    present = line_of_rows.tensor(line_of_rows.present)
    for row, kept in zip(line_of_rows.tensor(line_of_rows.input_ids), present, strict=True):
        ids = row[kept][None]
        labels = ids.masked_fill(torch.isin(ids, torch.tensor(tokenizer.all_special_ids)), -100)
        targets = int((labels[:, 1:] >= 0).sum())
        total += float(model(input_ids=ids, labels=labels).loss) * targets
        count += targets
    assert (line["masks"], line["targets"]) == ("next-token", count) and count > 100
    assert line["loss"] == pytest.approx(total / count, rel=1e-5)


WINDOWS = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}


@torch.no_grad()
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("family", sorted(SEPARATING_DECODERS))
def test_a_decoder_reads_the_texts_of_a_packed_row_apart(family, both, tokenizer, rows):  # noqa: F811
    plain = AutoConfig.for_model(family)
    sizes = small(family) | ({"head_dim": 8} if hasattr(plain, "head_dim") else {})
    if getattr(plain, "sliding_window", None):
        sizes |= {name: value for name, value in WINDOWS.items() if hasattr(plain, name)}
    config = new_config(family, tokenizer, 48, **sizes)
    config.is_causal = not both
    model = new_model(config, seed=3).eval()
    # With the small weights of a new model, attention hardly changes a loss.
    for weight in model.parameters():
        weight.mul_(3)
    if both and not _moved(model)[0]:
        pytest.skip(
            "this version of transformers computes causal attention; such a model is refused"
        )
    judge = predicting(model)
    masks = ["token" if both else "next-token"]
    maskers = fixed_maskers(tokenizer, masks=masks, ratio=0.3)
    assert judge.reads("packed", config) == "packed"
    packed, alone = (
        HeldOut(rows.laid(layout), maskers, None)(judge) for layout in ("packed", "document")
    )
    assert packed[0]["targets"] == alone[0]["targets"] > 30
    assert packed[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)


@torch.no_grad()
def test_an_encoder_that_is_trained_to_predict_next_tokens_is_measured_by_them(tokenizer, rows):  # noqa: F811
    model = build("bert", tokenizer)
    # With the small weights of a new model, attention hardly changes a loss.
    for weight in model.parameters():
        weight.mul_(5)
    maskers = fixed_maskers(tokenizer, masks=["token", "next-token"], ratio=0.15)
    found = {line["masks"]: line for line in HeldOut(rows, maskers, None)(predicting(model))}
    assert [*found] == ["next-token", "token"]
    batch = NextTokens(tokenizer, **CausalLanguageModelling.masking)(rows.line(range(len(rows))))
    loss = CausalLanguageModelling(model)(batch)
    assert found["next-token"]["targets"] == int(loss.divisor)
    wanted = float(loss.total / loss.divisor)
    assert found["next-token"]["loss"] == pytest.approx(wanted, rel=1e-5)


def test_what_a_model_cannot_predict_is_left_out_or_refused(tokenizer):  # noqa: F811
    causal = new_config("llama", tokenizer, 48, **small("llama"))
    both = new_config("llama", tokenizer, 48, **small("llama"))
    both.is_causal = False
    kinds = ["token", "diffusion", "next-token"]
    for config, wanted in (
        (causal, kinds[2:]),
        (both, kinds[:2]),
        (build("bert", tokenizer).config, kinds),
        (AutoConfig.for_model("deberta-v2"), kinds[:2]),
        (AutoConfig.for_model("bart"), kinds[:2]),
    ):
        assert [*predictable(kinds, config, setting="masks")] == wanted
        assert [*predictable([], config, setting="masks")] == []
    for config, given in ((causal, "token"), (both, "next-token")):
        with pytest.raises(MaskwiseError, match=rf"got masks=\['{given}'\]; set masks="):
            predictable([given], config, setting="masks")


CLM, MLM = {"objective": "clm"}, {"objective": "mlm"}
MASKS = ("token", "whole-word")


@pytest.mark.parametrize(
    ("settings", "masks"),
    [
        ({}, MASKS),
        (CLM, ("next-token",)),
        (CLM | {"evaluation": {"rows": 9}}, ("next-token",)),
        (CLM | {"evaluation": {"masks": []}}, ()),
        (CLM | {"evaluation": {"masks": "token"}}, ("token",)),
        ({"phases": [CLM, {}]}, MASKS),
        ({"phases": [{}, CLM]}, ("next-token",)),
        (CLM | {"study": {"arms": {"a": {}, "b": MLM}}}, (*MASKS, "next-token")),
        ({"study": {"arms": {"a": {}, "b": CLM}}}, (*MASKS, "next-token")),
        ({"objective": {"mlm": {}, "clm": {}}}, MASKS),
        ({"objective": {"clm": {}}}, ("next-token",)),
        ({"study": {"arms": {"a": {}, "b": {"objective": {"clm": {}}}}}}, (*MASKS, "next-token")),
    ],
)
def test_next_tokens_are_measured_where_an_arm_ends_with_them(settings, masks):
    recipe = read_recipe(settings)
    for again in (recipe, read_recipe(recipe), Recipe(**yaml.safe_load(recipe.to_yaml()))):
        assert again.links()[-1].evaluation.masks == masks
        for name in again.study.arms:
            assert again.arm(name, seed=0).links()[-1].evaluation.masks == masks


def test_a_new_decoder_is_trained_and_is_an_arm_beside_an_encoder_made_from_it(tmp_path, capfd):
    recipe = write_inputs(tmp_path)
    settings = yaml.safe_load(recipe.read_text())
    settings |= {
        "model": {"architecture": "llama", "settings": small("llama")},
        "objective": "clm",
    }
    del settings["study"], settings["tasks"]
    recipe.write_text(json.dumps(settings))
    out = tmp_path / "decoder"
    schedule = ["training.steps=30", "training.eval_every=10", "training.patience=9"]
    assert maskwise("pretrain", recipe, *schedule, "--out", out) == 0
    lines = [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "train"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    curve = [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "eval"]
    assert {line["masks"] for line in curve} == {"next-token"} and len(curve) == 3
    assert curve[-1]["loss"] < curve[0]["loss"]
    AutoModelForCausalLM.from_pretrained(out / "checkpoint")
    card = (out / "checkpoint" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card and "next tokens: " in card
    shown = capfd.readouterr().out
    assert "next-token" in shown and "%" not in shown
    # The folder alone, on any text.
    text = tmp_path / "corpus.jsonl"
    found = evaluate_checkpoint(str(out / "checkpoint"), [], text=str(text))
    model, split = found
    assert (model.outcome, split.outcome) == ("heldout:next-token@0", "unigram:next-token@0")
    assert model.items == split.items and model.facts["per_byte"] > 0
    assert maskwise("evaluate", out / "checkpoint", "--text", text) == 0
    assert "held-out loss, next-token " in capfd.readouterr().out
    # What it cannot do is refused before anything is written.
    for measure, said in (
        ("heldout(masks=token)", "fills no masks.*set masks=next-token"),
        ("pseudo-perplexity", "reads earlier tokens only"),
    ):
        command = ("evaluate", out / "checkpoint", "--text", text, "--with", measure)
        assert maskwise(*command) == 2 and re.search(said, capfd.readouterr().err)
    for changes, said in (
        (["objective=mlm"], "a decoder reads earlier tokens only.*objective: clm"),
        (["evaluation.masks=token"], "fills no masks.*evaluation.masks=next-token"),
        (["training.patience=2", "evaluation.masks=[]"], "patience chooses .*got clm"),
    ):
        refused = tmp_path / "refused"
        assert maskwise("pretrain", recipe, *changes, "--out", refused) == 2
        assert re.search(said, capfd.readouterr().err)
        assert not refused.exists()
    pairs = [{"query": f"a{n}", "passage": f"a{n} b"} for n in range(40)]
    write_lines(tmp_path / "pairs.jsonl", pairs)
    arms = {
        "both": {"model.changes": "bidirectional()", "objective": "mntp"},
        "causal": {"objective": "clm"},
    }
    settings |= {
        "model": {"pretrained": str(out / "checkpoint")},
        "training": {"steps": 2, "batch_size": 4, "eval_every": 0},
        "tasks": [
            f"{tmp_path}/pairs.jsonl(kind=retrieval, fine_tuned={tuned}, pooling={pooling}, "
            f"name={pooling}-{tuned})"
            for pooling in ("mean", "last")
            for tuned in ("true", "false")
        ],
        "finetune": {"steps": 2, "seeds": 1, "max_length": 16},
        "study": {"seeds": 1, "arms": arms, "contrasts": [["both", "causal"]]},
    }
    del settings["objective"], settings["tokenizer"]
    measured = read_recipe(settings, ["evaluation.measures=pseudo-perplexity(4)"])
    with pytest.raises(MaskwiseError, match=r"fills no masks.*evaluation\.measures="):
        run_study(measured, tmp_path / "out", jobs=1)
    result = run_study(read_recipe(settings), tmp_path / "out", jobs=1)
    assert not result["failures"]
    lines = read_lines(tmp_path / "out" / "records.jsonl")
    scores = {(line["arm"], line["measure"]) for line in lines if line["kind"] == "task"}
    assert len(scores) == 3 * 4
    # Each model is measured by what it predicts.
    losses = defaultdict(set)
    for line in lines:
        if line["kind"] == "heldout":
            losses[line["arm"]].add(line["measure"])
    assert losses == {"both": {*MASKS}, "causal": {"next-token"}, REFERENCE: {"next-token"}}


def test_decoders_are_compared_by_the_loss_of_next_tokens(tmp_path):
    recipe = write_inputs(tmp_path)
    plain = yaml.safe_load(recipe.read_text())
    plain |= {"model": {"architecture": "llama", "settings": small("llama")}, "objective": "clm"}
    plain["training"] = {"steps": 8, "batch_size": 8, "eval_every": 4}
    del plain["study"], plain["tasks"]
    out = tmp_path / "decoder"
    recipe.write_text(json.dumps(plain))
    assert maskwise("pretrain", recipe, "--out", out) == 0
    plain["model"] = {"pretrained": str(out / "checkpoint")}
    del plain["tokenizer"]
    arms = {"further": {}, "slower": {"training.learning_rate": 1e-5}}
    plain["study"] = {"arms": arms, "seeds": 2, "outcome": "heldout:next-token"}
    for wrong in ("heldout:next-token@0.15", "heldout:token"):
        with pytest.raises(MaskwiseError, match=r"allowed: heldout:next-token(;|$)"):
            make_plan(read_recipe(plain, [f"study.outcome={wrong}"]))
    result = run_study(read_recipe(plain), tmp_path / "out", jobs=1)
    assert not result["failures"]
    primary = [row for row in result["contrasts"] if row["primary"]]
    assert {row["outcome"] for row in primary} == {"heldout:next-token"} and primary
    means = [loss["means"] for loss in result["losses"]]
    assert [{*arms, REFERENCE}] == [{*each} for each in means]
    assert means[0]["further"] < means[0][REFERENCE]
    study = load_json(tmp_path / "out" / "study.json")
    assert study["arms"]["further"]["judged_on"] == ["next-token"]
    _, checkpoint = needed_run(tmp_path / "out", "further")
    save_model(checkpoint, tmp_path / "saved", of={"arm": "further"})
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("next tokens", "Next tokens", "predicts next tokens"):
        assert words in page
    assert "Masked 0" not in page and "next-token masks" not in page


@pytest.mark.parametrize("pad", [None, "[SEP]"])
def test_a_decoder_needs_no_mask_token(tmp_path, capfd, pad):
    """Published decoders have none, and often no padding token; next tokens need neither."""
    recipe = write_inputs(tmp_path)
    text = tmp_path / "corpus.jsonl"
    plain = train_tokenizer([line["text"] for line in read_lines(text)], vocab_size=120)
    kinds = ("bos_token", "eos_token", "unk_token")
    bare = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, pad_token=pad, **dict.fromkeys(kinds, "[SEP]")
    )
    assert bare.mask_token is None
    bare.save_pretrained(tmp_path / "gpt2")
    config = AutoConfig.for_model("gpt2", vocab_size=len(bare), n_embd=16, n_layer=2, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    settings = yaml.safe_load(recipe.read_text())
    settings |= {"model": {"pretrained": str(tmp_path / "gpt2")}, "objective": "clm"}
    settings["training"] = {"steps": 2, "batch_size": 8, "eval_every": 0}
    del settings["study"], settings["tasks"], settings["tokenizer"]
    recipe.write_text(json.dumps(settings))
    assert maskwise("pretrain", recipe, "--out", tmp_path / "out") == 0
    for folder in ("gpt2", "out/checkpoint"):
        (loss, _) = evaluate_checkpoint(str(tmp_path / folder), [], text=str(text))
        assert loss.outcome == "heldout:next-token@0" and loss.value > 0
    capfd.readouterr()
    assert maskwise("pretrain", recipe, "objective=mlm", "--out", tmp_path / "other") == 2
    assert "a decoder reads earlier tokens only" in capfd.readouterr().err
