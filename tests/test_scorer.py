"""Policies as models: saved, loaded, shared; damaged ones refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hub import talking_to_a_hub
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import write_folder
from maskwise.learning.annotator import PolicyAnnotator
from maskwise.learning.scorer import PolicyModel
from maskwise.text import train_tokenizer
from tiny import WORDS, flip

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
KINDS = {
    "light": {"settings": {"hidden_size": 8}},
    "bert": {"architecture": "bert", "settings": SMALL},
    "modernbert": {"architecture": "modernbert", "settings": SMALL},
    "spans": {"settings": {"hidden_size": 8}, "head": "spans"},
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 9, vocab_size=120)


def new(tokenizer, kind="light", **more) -> PolicyModel:
    """A policy whose head says something: new ones weigh all words alike."""
    policy = PolicyModel.new(tokenizer, **{**KINDS[kind], **more})
    torch.nn.init.normal_(policy.head.weight, generator=torch.Generator().manual_seed(1))
    return policy


def logits(policy: PolicyModel) -> torch.Tensor:
    rows = policy.tokenizer(["bada kefe", "zunwix"], return_tensors="pt", padding=True)
    with torch.no_grad():
        return policy(rows["input_ids"], rows["attention_mask"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_reloaded_policy_gives_the_same_scores(kind, tokenizer, tmp_path):
    policy = new(tokenizer, kind)
    policy.card = "# mine"
    policy.save_pretrained(tmp_path / "policy")
    again = PolicyModel.from_pretrained(tmp_path / "policy")
    assert torch.equal(logits(again), logits(policy))
    assert logits(policy).shape[2:] == ((2,) if kind == "spans" else ())
    assert again.config == policy.config and again.card == "# mine" and not again.training
    written = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= written
    assert not [name for name in written if name.endswith((".bin", ".pt", ".py", ".pkl"))]


@pytest.mark.parametrize("kind", ["light", "bert", "modernbert"])
def test_a_row_does_not_depend_on_its_batch(kind, tokenizer):
    policy = new(tokenizer, kind)
    alone = policy.tokenizer(["zunwix"], return_tensors="pt")
    with torch.no_grad():
        own = policy(alone["input_ids"], alone["attention_mask"])
    torch.testing.assert_close(logits(policy)[1:, : own.shape[1]], own)


def test_a_new_policy_weighs_all_tokens_alike_and_its_seed_decides_the_rest(tokenizer):
    policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8})
    assert not logits(policy).any()
    tables = [PolicyModel.new(tokenizer, seed=seed).encoder.table.weight for seed in (0, 0, 1)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])


def test_an_encoder_by_its_path_brings_its_weights(tokenizer, tmp_path):
    from maskwise.models.loading import new_config, new_model

    model = new_model(new_config("bert", tokenizer, 32, **SMALL), seed=3)
    model.save_pretrained(tmp_path / "encoder")
    policy = PolicyModel.new(tokenizer, pretrained=str(tmp_path / "encoder"), length=32)
    table = policy.encoder.embeddings.word_embeddings.weight
    assert torch.equal(table, model.bert.embeddings.word_embeddings.weight)


def test_the_folder_of_a_learning_is_told_from_a_damaged_policy(tokenizer, tmp_path):
    new(tokenizer).save_pretrained(tmp_path / "policy")
    with pytest.raises(
        MaskwiseError, match=r"holds no masking policy; got no config.json; give .*/policy$"
    ):
        PolicyModel.from_pretrained(tmp_path)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_encoder(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    rewrite(folder, encoder=config["encoder"] | changes)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def without_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), *folder.glob("special*")]:
        path.unlink()


def spoil(folder: Path) -> None:
    policy = PolicyModel.from_pretrained(folder)
    torch.nn.init.constant_(policy.head.bias, float("nan"))
    policy.save_pretrained(folder)


CODE = {"AutoModel": "evil.py"}
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no masking policy"),
    "cut config": (lambda f: (f / "config.json").write_text('{"model_type": "mask'), "is damaged"),
    "another model": (lambda f: rewrite(f, format=None), "no masking policy"),
    "strange field": (lambda f: rewrite(f, shape="round"), "is damaged"),
    "code": (lambda f: rewrite(f, auto_map=CODE), "auto_map"),
    "code of the encoder": (lambda f: rewrite_encoder(f, auto_map=CODE), "auto_map"),
    "no encoder": (lambda f: rewrite(f, encoder=None), "is damaged"),
    "half a word": (lambda f: rewrite(f, longest=2.5), "is damaged"),
    "other weights": (lambda f: rewrite_encoder(f, hidden_size=16), "is damaged"),
    "a terabyte": (lambda f: rewrite_encoder(f, hidden_size=10**10), "is damaged"),
    "cut weights": (lambda f: cut(f / "model.safetensors"), "is damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "is damaged"),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled"),
    "not finite": (spoil, "not finite; got head.bias"),
    "no tokenizer": (without_tokenizer, "no tokenizer"),
    "nothing": (shutil.rmtree, "no such folder"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_no_whole_policy_is_refused_in_one_line(what, tokenizer, tmp_path):
    folder = tmp_path / "policy"
    new(tokenizer).save_pretrained(folder)
    harm, said = DAMAGE[what]
    harm(folder)
    with pytest.raises(MaskwiseError, match=said) as raised:
        PolicyModel.from_pretrained(folder)
    assert "\n" not in str(raised.value)


def test_a_flipped_bit_in_any_file_of_a_policy_is_refused(tokenizer, tmp_path):
    folder = tmp_path / "policy"
    write_folder(folder, new(tokenizer).save_pretrained)
    PolicyModel.from_pretrained(folder)
    names = {path.name for path in folder.iterdir()} - {"README.md", "manifest.json"}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= names
    for name in sorted(names):
        for at in (0, 0.3, 0.7, 1):
            before = flip(folder / name, at=at)
            for read in (PolicyModel.from_pretrained, PolicyAnnotator):
                with pytest.raises(MaskwiseError, match=f"got {name} is damaged"):
                    read(str(folder))
            (folder / name).write_bytes(before)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"settings": {"window": 4}}, "an odd window"),
        ({"settings": {"depth": 2}}, "light encoder setting"),
        ({"settings": {"hidden_size": 0}}, "hidden_size of a light encoder .* got 0"),
        ({"settings": {"hidden_size": 8.5}}, "hidden_size of a light encoder .* got 8.5"),
        ({"settings": {"hidden_size": 10**13}}, "does not fit into memory"),
        ({"settings": {"window": "5"}}, "window of a light encoder .* got '5'"),
        ({"head": "words"}, "policy head"),
        ({"architecture": "t5"}, "needs an encoder"),
        ({"length": 0}, "length of a policy .* got 0"),
        ({"pretrained": "./nowhere"}, "no such folder"),
        (
            {"pretrained": "bundled:encoder", "length": 256},
            "learning.policy.length is more than the model's positions",
        ),
    ],
)
def test_a_policy_that_cannot_be_made_is_refused_in_one_line(settings, said, tokenizer):
    with pytest.raises(MaskwiseError, match=said) as raised:
        PolicyModel.new(tokenizer, **settings)
    assert "\n" not in str(raised.value)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[dict[str, dict[str, bytes]]]:
    """The files of a stand-in for the hub, to which this process now talks."""
    with talking_to_a_hub(monkeypatch, tmp_path / "cache") as files:
        yield files


def test_a_policy_goes_to_the_hub_and_comes_back(hub, tokenizer):
    policy = new(tokenizer)
    policy.card = "---\nlibrary_name: maskwise\n---\n# masks names"
    policy.push_to_hub("ada/names", token="hf_of_nobody")
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= set(
        hub["ada/names"]
    )
    again = PolicyModel.from_pretrained("ada/names")
    assert torch.equal(logits(again), logits(policy)) and "masks names" in again.card


def test_code_and_pickles_on_the_hub_are_not_even_brought_here(hub, tokenizer, tmp_path):
    policy = new(tokenizer)
    policy.push_to_hub("ada/evil", token="hf_of_nobody")
    hub["ada/evil"] |= {"evil.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"}
    PolicyModel.from_pretrained("ada/evil")
    brought = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert "config.json" in brought and not {"evil.py", "pytorch_model.bin"} & brought
    config = json.loads(hub["ada/evil"]["config.json"]) | {"auto_map": {"AutoModel": "evil.py"}}
    hub["ada/worse"] = {**hub["ada/evil"], "config.json": json.dumps(config).encode()}
    with pytest.raises(MaskwiseError, match="auto_map"):
        PolicyModel.from_pretrained("ada/worse")
    with pytest.raises(MaskwiseError, match="cannot download the policy 'ada/nothing'"):
        PolicyModel.from_pretrained("ada/nothing")
