"""Low-rank updates: few weights are trained, and checkpoints load without peft."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM

from maskwise import encode
from maskwise.base.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.models.families import encoder_of
from maskwise.models.flops import Flops
from maskwise.models.loading import load_task_model
from maskwise.models.lora import Lora, lora
from maskwise.models.weights import share_encoder
from maskwise.objectives import MaskedLanguageModelling, objective, objective_class
from maskwise.objectives.base import encoded
from maskwise.recipe import read_recipe
from maskwise.studies.stages import evaluate_stage, prepare_stage, pretrain_stage
from maskwise.studies.work import starting_from
from maskwise.training.building import empty_model_from
from maskwise.training.checkpoint import save_checkpoint
from maskwise.training.data import Step
from maskwise.training.log import Meter
from maskwise.training.optim import hidden_matrices
from maskwise.training.settings import ModelSettings
from tiny import maskwise, write_inputs
from training_tools import Language, model, tokenizer

FAMILIES = ["bert", "modernbert", "albert", "electra", "esm", "esmc", "distilbert", "deberta-v2"]


def test_muon_leaves_the_factors_of_updates_to_adamw() -> None:
    """Their product maps hidden states, and they do not."""
    network = model("bert")
    Lora(rank=2).add(network, seed=0)
    ids = {id(weight) for weight in hidden_matrices(network)}
    found = [name for name, weight in network.named_parameters() if id(weight) in ids]
    assert found == ["cls.predictions.transform.dense.weight"]


def test_an_encoder_with_updates_is_not_shared() -> None:
    """Its weights have other names, so the encoder of a task kept its random weights."""
    task = load_task_model(None, model("bert").config, head="sequence-classification", seed=0)
    network = model("bert")
    share_encoder(network, task)
    assert encoder_of(network) is encoder_of(task)
    with pytest.raises(MaskwiseError, match="not a part of the model: BertModel"):
        share_encoder(encoder_of(model("bert")), task)
    network = model("bert")
    Lora(rank=2).add(network, seed=0)
    with pytest.raises(MaskwiseError, match="lacks a weight of the encoder"):
        share_encoder(network, task)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_updates_and_the_head_are_trained_and_the_sum_is_an_ordinary_model(
    family: str, tmp_path: Path
) -> None:
    network = model(family).eval()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    every = sum(weight.numel() for weight in network.parameters())
    ids = torch.randint(5, 40, (3, 9))
    plain = network(input_ids=ids).logits
    Lora(rank=2, alpha=8).add(network, seed=0)
    torch.testing.assert_close(network(input_ids=ids).logits, plain)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trained) < every / 2
    body = encoder_of(network).named_parameters()
    updates = [name for name, weight in body if weight.requires_grad]
    assert updates and all("lora_" in name for name in updates)
    batch = Masker(tokenizer(), ratio=0.4)(encode(tokenizer(), ["w1 w2 w3 w4 w5 w6"] * 3))
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(3):
        MaskedLanguageModelling(network)(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_checkpoint(tmp_path / "model", network, tokenizer())
    again, loading = AutoModelForMaskedLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    changed = network(input_ids=ids).logits
    torch.testing.assert_close(again.eval()(input_ids=ids).logits, changed, atol=1e-5, rtol=1e-4)
    assert (changed - plain).abs().max() > 1e-3
    prefix = f"{again.base_model_prefix}."
    after = encoder_of(again).state_dict(prefix=prefix)
    moved = [name for name, weight in after.items() if not torch.equal(weight, before[name])]
    assert moved and all(any(step.isdigit() for step in name.split(".")) for name in moved)


def test_flops_leave_out_gradients_of_weights_that_are_not_trained() -> None:
    """Against torch's own count of matrix products; the first block needs no gradient of its
    input, which the formula ignores."""
    network = model("bert", hidden_size=64, intermediate_size=256, num_hidden_layers=12)
    network.set_attn_implementation("eager")
    whole = Flops(MaskedLanguageModelling(network)).trained(300, 60)
    recipe = ModelSettings(architecture="bert", adapter="lora(rank=4)")
    empty = MaskedLanguageModelling(empty_model_from(recipe, network.config))
    Lora(rank=4).add(network, seed=0)
    objective = MaskedLanguageModelling(network)
    ids = torch.randint(5, 40, (10, 30))
    labels = torch.full_like(ids, -100)
    labels[:, ::5] = 7
    with FlopCounterMode(display=False) as counter:
        objective({"input_ids": ids, "labels": labels}).total.backward()
    products = counter.get_flop_counts()["Global"].items()
    counted = sum(number for operation, number in products if "bmm" not in str(operation))
    found = Flops(objective).trained(300, 60)
    assert counted == pytest.approx(found, rel=0.05)
    assert found < 0.8 * whole and Flops(empty).trained(300, 60) == found
    meter = Meter(objective, torch.device("cpu"), ranks=1, frozen=False, rate=1.0)
    meter.add(Step(0, [], 60, {"tokens": 300.0}, 60))
    assert meter.flops == pytest.approx(found, rel=1e-6)


WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None
from maskwise.models.loading import load_model
network = load_model(sys.argv[1])
assert not [name for name, _ in network.named_parameters() if "lora" in name]
"""


def test_pretrain_with_updates_from_recipe_to_checkpoint(tmp_path: Path) -> None:
    recipe = write_inputs(tmp_path / "in")
    few = ["training.steps=4", "training.eval_every=0"]
    assert maskwise("pretrain", recipe, *few, "--out", tmp_path / "start") == 0
    start = tmp_path / "start" / "checkpoint"
    more = [f"model={{pretrained: {start}, adapter: lora(rank=2)}}", "phases=[{}, {}]"]
    assert maskwise("pretrain", recipe, *few, *more, "--out", tmp_path / "out") == 0
    checkpoint = tmp_path / "out" / "checkpoint"
    assert "lora(rank=2)" in (checkpoint / "README.md").read_text(encoding="utf-8")
    subprocess.run([sys.executable, "-c", WITHOUT_PEFT, str(checkpoint)], check=True)
    old = AutoModelForMaskedLM.from_pretrained(start).state_dict()
    new = AutoModelForMaskedLM.from_pretrained(checkpoint).state_dict()
    table = "bert.embeddings.word_embeddings.weight"
    layer = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(old[table], new[table]) and not torch.equal(old[layer], new[layer])
    assert torch.linalg.matrix_rank(new[layer] - old[layer]) <= 4, "of two phases"


def test_names_of_stages_change_only_where_updates_are_trained(tmp_path: Path) -> None:
    recipe = read_recipe(write_inputs(tmp_path), []).arm("token-15", seed=0)
    changed = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"adapter": "lora(rank=2)"})}
    )
    text = prepare_stage(recipe)
    first, second = pretrain_stage(recipe, text), pretrain_stage(changed, text)
    assert "adapter" not in first.what["model"] and first.name != second.name
    assert evaluate_stage(recipe, text, None).name == evaluate_stage(changed, text, None).name
    later = pretrain_stage(changed, text, after=second)
    assert later.what["model"] == {"adapter": "lora(rank=2)"}
    assert "model" not in pretrain_stage(recipe, text, after=first).what
    assert starting_from(tmp_path, changed).model.adapter == "lora(rank=2)"


def test_twins_differ_also_with_the_dropout_of_updates() -> None:
    """The second factor of an update is 0 at first, so its dropout changes nothing."""
    network = model("modernbert")
    lora("lora(rank=4, dropout=0.1)").add(network, seed=0)
    arm = objective("cse", network)
    maker = objective_class("cse").maker(tokenizer(), seed=0)
    batch = maker(Language(16).line(torch.arange(16)), epoch=0)
    with arm.some_dropout():
        first, second = encoded(network, batch)[:, 0].chunk(2)
    assert not torch.allclose(first, second)


def test_decoders_and_machines_without_peft_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training_tools import bart

    with pytest.raises(MaskwiseError, match="needs an encoder; got bart"):
        Lora().check(bart().config)
    monkeypatch.setattr("maskwise.base.errors.find_spec", lambda name: None)
    more: list[Any] = ["model.adapter=lora", "--out", tmp_path / "out"]
    assert maskwise("study", write_inputs(tmp_path), *more) == 2
    assert "pip install 'maskwise[lora]'" in " ".join(capsys.readouterr().err.split())
