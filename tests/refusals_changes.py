"""Changes of models, updates and new tokens that a family of models cannot have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForMaskedLM

from maskwise.changes import Bidirectional, KeptLayers, Positions
from maskwise.models.loading import add_tokens, check_more_tokens, check_start, new_config
from maskwise.models.lora import Lora
from maskwise.recipe import read_recipe
from maskwise.studies.checks import check_inputs
from refusals import Refusal, cases
from test_bidirectional import decoder
from tiny import write_inputs
from training_tools import config, model, tokenizer

SMALL = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
}
RELATIVE = {
    "position_biased_input": False,
    "relative_attention": True,
    "position_buckets": 16,
    "pos_att_type": ["c2p", "p2c"],
}
"""The relative positions of DeBERTa-v3, in buckets."""
FEWER_TOKENS: dict[str, dict[str, Any]] = {
    "deberta-v2": {"legacy": False},
    "ibert": {},
    "mobilebert": {"embedding_size": 8, "intra_bottleneck_size": 8},
    "perceiver": {"d_model": 16, "d_latents": 16, "num_latents": 4, "qk_channels": 16},
}
"""Families whose tokens are as many as they are: transformers ended in a traceback, or enlarged a
layer that is not the output layer.
"""


def with_positions(given: tuple[str, dict[str, Any], dict[str, Any]]) -> object:
    family, fields, how = given
    made = new_config(family, tokenizer(), 16, **SMALL, **fields)
    return Positions(64, **how).check(made, tokenizer())


def seeing_all(family: str) -> object:
    found = decoder(family).config
    if family == "lfm2":
        found.layer_types = ["conv", "full_attention"]
    return Bidirectional().check(found, tokenizer())


def kept(given: tuple[object, str, int]) -> object:
    layers, family, count = given
    return KeptLayers(layers).check(config(family, num_hidden_layers=count), tokenizer())


def with_convolutions(folder: Path) -> object:
    """SqueezeBERT has no matrices in its blocks, for which peft ended in a traceback."""
    groups = ("q", "k", "v", "post_attention", "intermediate", "output")
    fields = {f"{name}_groups": 1 for name in groups}
    return Lora().add(model("squeezebert", embedding_size=16, **fields), seed=0)


def adapted(*overrides: str, folder: Path) -> None:
    check_inputs(read_recipe(write_inputs(folder / "in"), ["model.adapter=lora", *overrides]))


def with_more_tokens(family: str) -> object:
    network = AutoModelForMaskedLM.from_config(config(family, **FEWER_TOKENS[family]))
    return add_tokens(network, {45: (6, 7)})


ROWS = [
    *cases(
        "positions of",
        with_positions,
        (("bert", {}, {"rope_base": 5000.0}), "table of positions"),
        (("eurobert", {}, {"scaling": "interpolate"}), "rotary positions"),
        # Transformers' dynamic scaling begins beyond the new length.
        (("eurobert", {}, {"scaling": "dynamic"}), "copy, interpolate, linear, yarn"),
        (("eurobert", {}, {"rope_base": 5000.0}), "raised", "> "),
        (("deberta-v2", {}, {"scaling": "linear"}), "table of positions"),
        (("bert", {}, {"scaling": "linear", "rope_base": 5000.0}), "two ways"),
        (("deberta-v2", RELATIVE, {"scaling": "copy"}), "relative positions"),
    ),
    *cases(
        "attention to later tokens of",
        seeing_all,
        ("falcon_h1", "FalconH1ForCausalLM"),
        ("lfm2", "Lfm2ForCausalLM"),
        ("recurrent_gemma", "RecurrentGemmaForCausalLM"),
        ("mamba", "MambaForCausalLM"),
    ),
    Refusal(
        "attention to later tokens of an encoder",
        lambda folder: Bidirectional().check(config("bert"), tokenizer()),
        ("no decoder",),
    ),
    *cases(
        "layers of",
        kept,
        ((5, "bert", 4), "got 5", "1 to 4"),
        (("0, 4", "bert", 4), "0 to 3"),
        (("2, 1", "bert", 4), "ascending"),
        ((1, "albert", 2), "albert", "own weights"),
        ((1, "esmc", 2), "esmc", "own weights"),
        # Its first layer has no norm before the attention.
        (("1", "modernbert", 2), "modernbert", "keep layer 0"),
    ),
    *cases("layers", KeptLayers, 0, "a", "1-3", "-1", facts=["layers"]),
    Refusal("updates of a model of convolutions", with_convolutions, ("squeezebert", "linear")),
    Refusal(
        "updates that are never trained",
        lambda folder: adapted("training.freeze=encoder", folder=folder),
        ("model.adapter",),
        # The head may be trained first.
        lambda folder: adapted(
            "phases=[{training.freeze: encoder}, {training.freeze: none}]", folder=folder
        ),
    ),
    *cases(
        "more tokens of",
        with_more_tokens,
        *FEWER_TOKENS,
        facts=["cannot have more tokens", "ForMaskedLM"],
    ),
    *cases(
        "more tokens, before the work, of",
        lambda family: check_more_tokens(config(family, **FEWER_TOKENS[family]), 47),
        *FEWER_TOKENS,
        facts=["cannot have more tokens"],
        good=partial(check_more_tokens, config("esm"), 47),
    ),
    *cases(
        "a tokenizer that is too large, loaded",
        lambda loaded: check_start(config("bert"), 10_000, loaded=loaded),
        (False, "vocab_size"),
        (True, "resize_token_embeddings"),
    ),
]
