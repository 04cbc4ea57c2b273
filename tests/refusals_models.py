"""Settings of models that cannot be meant, and models that cannot be used."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from maskwise.changes import Positions
from maskwise.models.loading import check_start, load_config, new_config, with_fields
from maskwise.training.building import config_from
from maskwise.training.settings import ModelSettings
from refusals import Refusal
from training_tools import config, model, tokenizer

# Settings of a new model: the family, one of its settings, and the facts of the line.
NEW: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("t5gemma", {"encoder": 5}, ("encoder", "t5gemma", "mapping", "5")),
    ("t5gemma", {"encoder": {"hiden_size": 64}}, ("did you mean 'hidden_size'",)),
    # These two would be overwritten by the configuration of the whole model.
    ("t5gemma", {"encoder": {"dropout_rate": 0.5}}, ("0.5", "set model.settings.dropout_")),
    ("t5gemma", {"decoder": {"is_decoder": False}}, ("leave out", "decoder.is_decoder")),
    ("bert", {"num_hidden_layers": -1}, ("num_hidden_layers", "got -1", "0 to")),
    ("deberta-v2", {"position_bucket": 6}, ("did you mean 'position_buckets'",)),
    *(
        ("bert", {field: None}, ("bert", f"'{field}'"))
        for field in ("dtype", "id2label", "_attn_implementation", "output_attentions")
    ),
]
# Settings that a checkpoint of a family cannot take.
CHECKPOINT: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("bert", {"hidden_size": 64}, ("hidden_size", "64")),
    ("bert", {"num_attention_heads": 1}, ("num_attention_heads",)),
    ("bert", {"hidden_dropout": 0.1}, ("did you mean 'hidden_dropout_prob'",)),
    ("bert", {"hidden_dropout_prob": 1.5}, ("hidden_dropout_prob", "1.5", "from 0 to 1")),
    ("bert", {"hidden_dropout_prob": "low"}, ("hidden_dropout_prob", "'low'", "from 0 to 1")),
    ("esm", {"token_dropout": False}, ("token_dropout",)),
    ("modernbert", {"_attn_implementation": "eager"}, ("modernbert", "_attn_implementation")),
]


def new(family: str, fields: dict[str, Any], folder: Path) -> object:
    kind = "encoder-decoder" if family == "t5gemma" else "encoder"
    return new_config(family, tokenizer(), 16, kind=kind, **fields)


def changed(family: str, fields: dict[str, Any], folder: Path) -> object:
    return with_fields(model(family).config, fields)


def more_positions(folder: Path) -> None:
    """Follow the advice of a checkpoint that cannot change its positions by a setting."""
    Positions(900).check(model("bert").config, tokenizer())


def of_wrong_type(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": "wide"}))
    load_config(folder)


def dropout_of_t5(folder: Path) -> None:
    chosen = ModelSettings(architecture="t5", attention_dropout=0.1)
    config_from(chosen, tokenizer(), 16, kind="encoder-decoder")


def large(size: int, folder: Path) -> None:
    check_start(config("bert", hidden_size=size), 45, loaded=False)


ROWS = [
    *(
        Refusal(f"new {name} {fields}", partial(new, name, fields), said)
        for name, fields, said in NEW
    ),
    *(
        Refusal(f"checkpoint {name} {fields}", partial(changed, name, fields), said)
        for name, fields, said in CHECKPOINT
    ),
    Refusal(
        "positions of a checkpoint as a setting",
        partial(changed, "bert", {"max_position_embeddings": 900}),
        ("max_position_embeddings", "900", 'model.changes=["positions(900)"]'),
        more_positions,
    ),
    Refusal("a field of another type", of_wrong_type, ("'hidden_size'", "int", "str")),
    Refusal("attention dropout of T5", dropout_of_t5, ("t5", "attention dropout")),
    Refusal("a model larger than memory", partial(large, 1_000_000), ("memory", "weights", "GB")),
    Refusal("a model larger than torch counts", partial(large, 100_000_000), ("model",)),
]
