"""What maskwise changes in a model for a while is undone, also after an error."""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, Trainer, TrainingArguments

import maskwise as mw
from maskwise.evaluation import EvaluationSettings
from maskwise.evaluation.evaluate import Text, evaluate
from maskwise.evaluation.measure import HeldOutText
from maskwise.evaluation.measures.heldout import FixedMasks
from maskwise.masking import Masker
from maskwise.models.families import patched
from maskwise.objectives import ContrastiveSentences, MaskedLanguageModelling, objective
from maskwise.objectives.base import Objective
from maskwise.objectives.denoising import generated
from maskwise.training import MaskedSource, train
from maskwise.training.ranks import Ranks
from test_training import DATA, settings
from training_tools import bart, model, tokenizer

UNEVEN: dict[str, Any] = {"ratio": 0.3, "min_targets": 1}


def state_of(net: torch.nn.Module) -> list[Any]:
    """All attributes of the modules of a model, except for weights, and how it attends."""
    found: list[Any] = []
    for part in net.modules():
        own = {k: v for k, v in vars(part).items() if k not in ("_parameters", "_modules")}
        own = {k: dict(v) if isinstance(v, dict) else v for k, v in own.items()}
        own.pop("_buffers")
        config = own.pop("config", None)
        found.append(own)
        if config is not None:
            parts = [config, *(getattr(config, name) for name in config.sub_configs)]
            found.append([each and each._attn_implementation for each in parts])
    found.append([parameter.requires_grad for parameter in net.parameters()])
    return found


class Broken(Exception):
    pass


def run(trainee: Objective, masker: Any, *, fails: bool, **more: Any) -> None:
    """Two steps of training, in a real run; ``fails`` stops it with an error after the first."""
    chosen = settings(**{"steps": 2, "eval_every": 1, **more})

    def judge(step: int, _: Ranks) -> list[Any]:
        if fails:
            raise Broken
        return []

    source = MaskedSource(DATA, masker, chosen)
    if not fails:
        train(trainee, source, chosen, evaluate=judge)
        return
    with pytest.raises(Broken):
        train(trainee, source, chosen, evaluate=judge)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"activation_checkpointing": True}, {"freeze": "encoder"}], ids=str
)
@pytest.mark.parametrize("family", ["bert", "modernbert", "esm", "distilbert"])
def test_a_run_leaves_a_model_as_it_was(family: str, more: dict[str, Any], fails: bool) -> None:
    """The attention of the model stayed maskwise's own."""
    net = model(family)
    before = state_of(net)
    assert net.config._attn_implementation == "sdpa"
    run(MaskedLanguageModelling(net), Masker(tokenizer(), **UNEVEN), fails=fails, **more)
    assert state_of(net) == before


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ["clm", "rtd", "cse", "denoise"])
def test_a_run_of_another_objective_does_too(name: str, fails: bool) -> None:
    net = bart() if name == "denoise" else model("bert")
    before = state_of(net)
    trainee = objective(name, net)
    alone = state_of(trainee)
    corruption = {"corruption": "infill"} if name == "denoise" else {}
    masker = type(trainee).maker(tokenizer(), seed=0, length=16, **corruption)
    run(trainee, masker, fails=fails, batch_size=8)
    assert state_of(net) == before and state_of(trainee) == alone


def test_contrast_keeps_its_dropout_after_an_error() -> None:
    """After an error all twins were equal for ever, and the objective learned nothing."""
    trainee = ContrastiveSentences(model("bert"))
    before = state_of(trainee)
    with pytest.raises(Broken), trainee.without_dropout():
        assert not trainee.drops
        raise Broken
    assert trainee.drops
    with pytest.raises(Broken), trainee.some_dropout():
        assert trainee.model.training or trainee.model.base_model.training
        raise Broken
    assert state_of(trainee) == before


@pytest.mark.parametrize("fails", [False, True])
def test_generating_keeps_the_users_generation_config(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = bart()
    net.generation_config = own = GenerationConfig(max_new_tokens=3, do_sample=True)
    if fails:
        monkeypatch.setattr(net, "generate", lambda **_: (_ for _ in ()).throw(Broken))
    before = state_of(net)
    inputs = {"input_ids": torch.tensor([[7, 8, 9]])}
    try:
        generated(net, inputs, most=2, beams=1, length_penalty=1.0)
    except Broken:
        assert fails
    assert net.generation_config is own and state_of(net) == before


@pytest.mark.parametrize("fails", [False, True])
def test_an_evaluation_keeps_the_mode_of_every_part(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model("bert").train()
    net.base_model.eval()  # as with a frozen encoder
    before = state_of(net)

    def measured(_: object, asked: Any, *__: object, **___: object) -> list[Any]:
        assert not any(part.training for part in asked.modules())
        if fails:
            raise Broken
        return []

    monkeypatch.setattr(FixedMasks, "measure", measured)
    module = sys.modules["maskwise.evaluation.evaluate"]
    monkeypatch.setattr(module, "_held_out_text", lambda data, _: HeldOutText(data.held_out, None))
    data = Text(tokenizer(), DATA)  # type: ignore[arg-type]
    with pytest.raises(Broken) if fails else nullcontext():
        evaluate(net, data, EvaluationSettings(masks=("token",), rows=4))
    assert state_of(net) == before


def test_a_trainer_gives_the_attention_back(tmp_path: Any) -> None:
    net = model("bert")
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    rows = [{"input_ids": [10, 11, 12, 13], "example_id": [n, n, n + 1, n + 1]} for n in range(16)]
    trainer: Trainer = mw.MaskingTrainer(
        net, arguments, masker=Masker(tokenizer(), ratio=0.5), train_dataset=rows, eval_dataset=rows
    )
    trainer.train()
    trainer.evaluate()
    assert net.config._attn_implementation == "sdpa"


def test_nested_changes_are_undone_one_by_one() -> None:
    net = model("bert")
    before = copy.deepcopy(state_of(net)[-1])
    with patched(net):
        net.base_model.requires_grad_(False)
        with pytest.raises(Broken), patched(net):
            net.requires_grad_(True)
            raise Broken
        assert not any(each.requires_grad for each in net.base_model.parameters())
    assert state_of(net)[-1] == before
