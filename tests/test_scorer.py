"""Policies as models: saved, loaded, shared; damaged ones refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
import torch

from hub import talking_to_a_hub
from maskwise.errors import MaskwiseError
from maskwise.folders import write_folder
from maskwise.learning.annotator import Learned
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
    from maskwise.models import new_config, new_model

    model = new_model(new_config("bert", tokenizer, 32, **SMALL), seed=3)
    model.save_pretrained(tmp_path / "encoder")
    policy = PolicyModel.new(tokenizer, pretrained=str(tmp_path / "encoder"), length=32)
    table = policy.encoder.embeddings.word_embeddings.weight
    assert torch.equal(table, model.bert.embeddings.word_embeddings.weight)
    policy.save_pretrained(tmp_path / "policy")
    assert torch.equal(
        PolicyModel.from_pretrained(tmp_path / "policy").encoder.embeddings.word_embeddings.weight,
        table,
    )


def test_the_folder_of_a_learning_is_told_from_a_damaged_policy(tokenizer, tmp_path):
    new(tokenizer).save_pretrained(tmp_path / "policy")
    with pytest.raises(
        MaskwiseError, match=r"holds no masking policy; got no config.json; give .*/policy$"
    ):
        PolicyModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "what",
    [
        "no config",
        "cut config",
        "another model",
        "code",
        "code of the encoder",
        "cut weights",
        "other weights",
        "no weights",
        "pickled",
        "no tokenizer",
        "nothing",
        "strange field",
        "a terabyte",
        "not finite",
    ],
)
def test_what_is_no_whole_policy_is_refused_in_one_line(what, tokenizer, tmp_path):
    folder = tmp_path / "policy"
    new(tokenizer).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())

    def rewrite(**changes) -> None:
        (folder / "config.json").write_text(json.dumps(config | changes))

    said = "is damaged"
    if what == "no config":
        (folder / "config.json").unlink()
        said = "holds no masking policy"
    elif what == "cut config":
        (folder / "config.json").write_text('{"model_type": "mask')
    elif what == "another model":
        rewrite(format=None, model_type="bert")
        said = "no masking policy"
    elif what == "code":
        rewrite(auto_map={"AutoModel": "evil.py"})
        said = "auto_map"
    elif what == "code of the encoder":
        rewrite(encoder={**config["encoder"], "auto_map": {"AutoModel": "evil.py"}})
        said = "auto_map"
    elif what == "cut weights":
        (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:200]
        )
    elif what == "other weights":
        rewrite(encoder={**config["encoder"], "hidden_size": 16})
    elif what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        said = "pickled"
    elif what == "no tokenizer":
        for path in [*folder.glob("tokenizer*"), *folder.glob("special*")]:
            path.unlink()
        said = "no tokenizer"
    elif what == "a terabyte":
        rewrite(encoder={**config["encoder"], "hidden_size": 10**10})
    elif what == "not finite":
        policy = new(tokenizer)
        torch.nn.init.constant_(policy.head.bias, float("nan"))
        policy.save_pretrained(folder)
        said = "not finite; got head.bias"
    elif what == "nothing":
        shutil.rmtree(folder)
        said = "no such folder"
    else:
        rewrite(shape="round")
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
            for read in (PolicyModel.from_pretrained, Learned):
                with pytest.raises(MaskwiseError, match=f"got {name} is damaged"):
                    read(str(folder))
            (folder / name).write_bytes(before)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"settings": {"window": 4}}, "an odd window"),
        ({"settings": {"depth": 2}}, "light encoder setting"),
        ({"head": "words"}, "policy head"),
        ({"architecture": "berd"}, "did you mean"),
        ({"architecture": "t5"}, "needs an encoder"),
        ({"length": 0}, "at least 1"),
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
