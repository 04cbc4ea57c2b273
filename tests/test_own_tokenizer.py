"""A tokenizer belongs to a model or not by its content; nothing that belongs to it is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from maskwise.models.starts import resolve_start
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies.checks import check_inputs
from maskwise.text import load_tokenizer, read_documents, train_tokenizer
from maskwise.text.new_words import choose_words, extend
from maskwise.text.own_tokenizer import other_ids, other_reading, own_tokenizer
from maskwise.text.tokenizers import fast_esm
from tiny import write_inputs
from training_tools import model

TEXTS = [document.text for document in read_documents("bundled:wikipedia")][:50]


@cache
def trained(kind: str, *, lowercase: bool = True, half: int = 0) -> PreTrainedTokenizerFast:
    texts = TEXTS[25 * half :][:25]
    if kind != "unigram":
        return train_tokenizer(texts, kind=kind, vocab_size=900, lowercase=lowercase)  # type: ignore[arg-type]
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "<unk>", "<mask>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    roles = dict(zip(("pad_token", "unk_token", "mask_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def resaved(
    folder: Path, tokenizer: Any, change: Callable[[dict[str, Any]], object] = lambda plain: None
) -> Any:
    """The tokenizer as it is read from a folder, with a change of its tokenizer.json."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text(encoding="utf-8"))
    change(plain)
    path.write_text(json.dumps(plain), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def differing(tokenizer: Any, own: Any, texts: list[str] = TEXTS) -> str | None:
    ids = other_ids(tokenizer.get_vocab(), own.get_vocab())
    return ids or other_reading(tokenizer, own, texts)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_an_extended_vocabulary_is_the_models_in_both_directions(kind: str) -> None:
    own = trained(kind)
    words = choose_words([*islice(read_documents("bundled:wikipedia"), 80)], own, 100)
    longer = extend(own, words).tokenizer
    assert len(longer) == len(own) + len(words) > 700
    assert differing(longer, own) is None is differing(own, longer)


def test_added_tokens_are_no_other_vocabulary() -> None:
    longer = copy.deepcopy(trained("wordpiece"))
    longer.add_tokens(["Warsaw", "the"])
    longer.add_special_tokens({"additional_special_tokens": ["[E1]", "[E2]"]})
    assert (
        differing(longer, trained("wordpiece")) is None is differing(trained("wordpiece"), longer)
    )


def lower(plain: dict[str, Any], *, value: bool) -> None:
    plain["normalizer"].update(lowercase=value)


CASES: dict[str, tuple[Any, Callable[[dict[str, Any]], object]]] = {
    "saved again": (trained("bpe"), lambda plain: None),
    "capitals are kept": (trained("wordpiece"), lambda plain: lower(plain, value=False)),
    "capitals are lost": (
        trained("wordpiece", lowercase=False),
        lambda plain: lower(plain, value=True),
    ),
    "a space before each text": (
        trained("bpe", lowercase=False),
        lambda plain: plain["pre_tokenizer"].update(add_prefix_space=True),
    ),
    "no space before a text": (
        trained("unigram"),
        lambda plain: plain["pre_tokenizer"].update(prepend_scheme="never"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_settings_that_move_no_id_are_no_other_vocabulary(name: str, tmp_path: Path) -> None:
    own, change = CASES[name]
    other = resaved(tmp_path, own, change)
    assert differing(other, own) is None is differing(own, other)


def test_a_tokenizer_in_python_and_its_fast_pair_belong_together(tmp_path: Path) -> None:
    names = [
        "<cls>",
        "<pad>",
        "<eos>",
        "<unk>",
        *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
        "<null_1>",
        "<mask>",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    slow = transformers.EsmTokenizer(tmp_path / "vocab.txt")
    assert differing(fast_esm(slow), slow, ["MKTAYIAKQRQISFVKSHFSRQ"] * 5) is None
    own = trained("wordpiece")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/vocab.txt").write_text(
        "\n".join(sorted(own.get_vocab(), key=own.get_vocab().__getitem__)), encoding="utf-8"
    )
    # Before version 5, this was the name of the tokenizer in Python.
    kind = getattr(transformers, "BertTokenizerLegacy", transformers.BertTokenizer)
    legacy = kind(str(tmp_path / "words/vocab.txt"))
    assert differing(legacy, own) is None is differing(own, legacy)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "k-mer"])
def test_a_tokenizer_of_other_texts_and_the_same_size_is_another(kind: str) -> None:
    one, other = trained(kind), trained(kind, half=1)
    assert len(one) == len(other)
    assert "other ids" in str(differing(one, other))


def test_the_same_tokens_with_fewer_merges_are_another_tokenizer(tmp_path: Path) -> None:
    def fewer(plain: dict[str, Any]) -> None:
        plain["model"]["merges"] = plain["model"]["merges"][:300]

    own = trained("bpe")
    other = resaved(tmp_path, own, fewer)
    assert other_ids(other.get_vocab(), own.get_vocab()) is None
    assert "parts of texts" in str(differing(other, own))


def other_tokens(folder: Path) -> tuple[Path, Path]:
    """A model with its tokenizer, and a tokenizer of the same tokens in another order."""
    own = trained("wordpiece")
    for name, part in (("model", slice(None)), ("other", slice(None, None, -1))):
        backend = json.loads(own.backend_tokenizer.to_str())
        words = [*backend["model"]["vocab"]]
        backend["model"]["vocab"] = {
            word: at for at, word in enumerate(words[:5] + words[5:][part])
        }
        made = copy.deepcopy(own)
        made._tokenizer = Tokenizer.from_str(json.dumps(backend))
        made.save_pretrained(folder / name)
    # The embeddings are padded, as for a GPU.
    model("bert", vocab_size=1024, max_position_embeddings=64).save_pretrained(folder / "model")
    return folder / "model", folder / "other"


def recipe_of(folder: Path, *more: str, pretrained: object = None) -> Recipe:
    start, other = other_tokens(folder)
    changes = [
        f"model={{pretrained: '{pretrained or start}'}}",
        f"tokenizer={{name: '{other}'}}",
        "training.freeze=none",
    ]
    return read_recipe(str(write_inputs(folder)), [*changes, *more])


def test_a_pair_that_is_meant_is_named_in_the_plan(tmp_path: Path) -> None:
    notes = check_inputs(recipe_of(tmp_path, "tokenizer.replaces=true"))
    assert [note for note in notes if "other tokens" in note and str(tmp_path / "model") in note]


def test_the_models_own_tokenizer_by_another_name_is_no_other(tmp_path: Path) -> None:
    start, _ = other_tokens(tmp_path)
    shutil.copytree(start, tmp_path / "again", ignore=shutil.ignore_patterns("model*", "config*"))
    recipe = recipe_of(tmp_path, f"tokenizer.name={tmp_path / 'again'}")
    assert not [note for note in check_inputs(recipe) if "other tokens" in note]


def test_a_model_without_a_tokenizer_takes_any(tmp_path: Path) -> None:
    start, _ = other_tokens(tmp_path)
    for path in start.glob("*token*"):
        path.unlink()
    assert own_tokenizer(start) is None
    recipe = recipe_of(tmp_path, pretrained=start)
    for path in start.glob("*token*"):
        path.unlink()
    assert not [note for note in check_inputs(recipe) if "other tokens" in note]


def test_whether_it_replaces_another_is_in_no_name_of_a_stage(tmp_path: Path) -> None:
    from maskwise.studies.stages import prepare_stage

    names = {
        prepare_stage(recipe_of(tmp_path, *more).arm("token-15", seed=0)).name
        for more in ((), ("tokenizer.replaces=true",))
    }
    assert len(names) == 1


def test_a_tokenizer_in_the_hubs_cache_is_found_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--you--mine"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(Path(resolve_start("bundled:tokenizer")), snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    found = own_tokenizer("you/mine")
    assert found is not None
    assert found.get_vocab() == load_tokenizer("bundled:tokenizer").get_vocab()
    assert own_tokenizer("you/other") is None
