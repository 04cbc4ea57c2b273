"""Trainings that cannot begin, and starts that lead nowhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from maskwise.models.loading import has_head, load_config, load_model, new_config
from maskwise.text import load_tokenizer
from maskwise.training.optim import Optimizers
from refusals import Refusal, cases
from test_starts import headless
from test_training import run, settings
from training_tools import model, tokenizer


def frozen() -> Any:
    """A model of which only the embeddings are trained."""
    made = model("bert").requires_grad_(False)
    made.get_input_embeddings().requires_grad_(True)
    return made


def trained(more: dict[str, Any], folder: Path) -> object:
    return run(**{"folder": folder, "steps": 1, **more})


def half(folder: Path) -> object:
    """Load an encoder that lacks a layer."""
    made = model("bert")
    kept = {name: value for name, value in made.state_dict().items() if "layer.1." not in name}
    made.save_pretrained(folder, state_dict=kept)
    return load_model(folder, seed=0)


def bare(name: str, folder: Path) -> object:
    """Load a tokenizer from something that has none."""
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    model("bert").save_pretrained(folder / "bare")
    return load_tokenizer(str(folder / name))


def saved(name: str, folder: Path) -> object:
    tokenizer().save_pretrained(folder / name)
    return load_tokenizer(str(folder / name))


ROWS = [
    *cases(
        "Muon for",
        lambda net: Optimizers(net, settings(optimizer="muon")),
        *(nn.Linear(3, 3), frozen()),
        facts=["matrices", "optimizer: adamw"],
        good=lambda: Optimizers(frozen(), settings(optimizer="adamw")),
    ),
    *(
        Refusal(f"train: {facts[0]}", partial(trained, more), facts)
        for more, facts in (
            ({"accumulate": 3}, ("accumulate", "got 8 for 3 × 1")),
            ({"batch_size": 64}, ("got 40 rows", "batch_size = 64")),
            ({"trackers": ("tensorbord",)}, ("'tensorbord'", "'tensorboard'")),
            ({"trackers": ("comet_ml",)}, ("comet_ml", "pip install comet-ml")),
            ({"trackers": ("tensorboard",), "folder": None}, ("trackers", "folder")),
        )
    ),
    *cases(
        "a new model of",
        lambda given: new_config(given[0], tokenizer(), 16, **given[1]),
        (("bret", {}), "'bret'", "did you mean 'bert'"),
        (("bert", {"hiden_size": 3}), "'hiden_size'", "did you mean 'hidden_size'"),
    ),
    *(
        row
        for load in (load_config, load_model, load_tokenizer, has_head)
        for row in cases(
            f"{load.__name__} of",
            load,
            ("bundled:encodr", "'encodr'", "allowed: encoder"),
            ("package:no_such_thing", "'no_such_thing'", "install"),
            # of the standard library: not imported
            ("package:antigravity", "installed"),
            # a module of the working folder
            ("package:tiny", "'tiny'", "installed"),
            ("package:yaml", "'yaml'", "no model"),
        )
    ),
    *cases(
        "a tokenizer of the hub", load_tokenizer, ("some/other", "'some/other'", "HF_HUB_OFFLINE")
    ),
    *(
        Refusal(
            f"a tokenizer of an {name} folder",
            partial(bare, name),
            (name, "save_pretrained"),
            partial(saved, name),
        )
        for name in ("empty", "bare")
    ),
    Refusal("a tokenizer of a file", partial(bare, "file"), ("got a file",)),
    Refusal("a model without a head", lambda folder: load_model(headless(folder)), ("MLM head",)),
    Refusal("a model without a layer", half, ("lacks weights", "bert.encoder.layer.1")),
]
