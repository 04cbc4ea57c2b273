"""Models and checkpoints that are refused: foreign code, pickles, damage, holes, other kinds,
impossible sizes.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5Config

import maskwise
from maskwise.annotate.word_weights import vectors_of
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import CARD, write_folder
from maskwise.models import loading
from maskwise.models.cards import push_to_hub
from maskwise.models.loading import (
    check_start,
    empty_model,
    has_head,
    load_config,
    load_model,
    load_task_model,
    new_config,
    size_of,
    task_config,
    with_fields,
)
from maskwise.models.weights import Size
from maskwise.studies.adapt import Request
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.costs import Forecast
from maskwise.studies.store import StageStore
from maskwise.text import load_tokenizer
from maskwise.training.building import changed_config, config_from, model_from
from maskwise.training.settings import ModelSettings, attention_dropout_of
from processes import forked
from tiny import flip
from tiny import maskwise as command
from training_tools import FIRST, WORDS, bart, config, model, tokenizer

ROOT = Path(maskwise.__file__).parent
ONLY_IN_MODELS = ("AutoModel", "AutoConfig", "base_model", "from_config")


def test_only_one_file_knows_how_transformers_builds_and_names_its_models() -> None:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", getattr(node, "attr", getattr(node, "name", None)))
            if isinstance(name, str) and name.startswith(ONLY_IN_MODELS):
                home = "families.py" if name == "base_model" else "loading.py"
                said = f"{path}:{getattr(node, 'lineno', 0)} says {name}"
                assert path == ROOT / "models" / home, said


def saved(folder: Path, architecture: str = "bert") -> Path:
    model(architecture).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def for_task(folder: Path) -> Any:
    return load_task_model(
        folder, task_config(folder, {"num_labels": 3}), head="sequence-classification", seed=0
    )


LOADERS: dict[str, Callable[[Path], Any]] = {
    "pretrain": lambda folder: load_model(folder, seed=0),
    "evaluate": load_model,
    "check": lambda folder: has_head(str(folder)),
    "finetune": for_task,
}


def rewrite(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def damage_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def digits(path: Path, field: str) -> None:
    """Write a whole number that Python itself refuses to read."""
    path.write_text(re.sub(rf'"{field}": \d+', rf'"{field}": {"9" * 5000}', path.read_text()))


def spoil(folder: Path, value: float) -> None:
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["bert.embeddings.word_embeddings.weight"][3, 2] = value
        return weights

    damage_weights(folder, change)


def without_layers(folder: Path) -> None:
    damage_weights(folder, lambda w: {k: t for k, t in w.items() if ".layer." not in k})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "remote code": (
        lambda f: rewrite(f, auto_map={"AutoModel": "evil.Evil"}),
        "contains Python code",
    ),
    "pickled weights": (pickled, "are pickled; got pytorch_model.bin"),
    "no weights": (
        lambda f: (f / "model.safetensors").rename(f / "training_args.bin"),
        "no file named model.safetensors",
    ),
    "no object": (
        lambda f: (f / "config.json").write_text("[]"),
        "cannot load .*its config.json has no JSON object",
    ),
    "missing weights": (without_layers, "lacks weights of its encoder"),
    "another family": (lambda f: rewrite(f, model_type="electra"), "lacks weights of its encoder"),
    "another vocabulary": (
        lambda f: rewrite(f, vocab_size=50),
        r"do not fit its config.*\(45, 16\) instead of \(50",
    ),
    "size in words": (
        lambda f: rewrite(f, hidden_size="wide"),
        "cannot load|cannot build the bert model",
    ),
    "a billion layers": (
        lambda f: rewrite(f, num_hidden_layers=10**9),
        "num_hidden_layers; got 1000000000",
    ),
    "a billion classes": (
        lambda f: rewrite(f, num_labels=10**9),
        "num_labels; got 1000000000; allowed: 0 to 1,000,000",
    ),
    "a billion tokens": (
        lambda f: rewrite(f, vocab_size=10**9),
        r"do not fit its config.*\(45, 16\) instead of \(1000000000",
    ),
    "5,000 digits": (lambda f: digits(f / "config.json", "hidden_size"), "cannot load"),
    "NaN": (lambda f: spoil(f, math.nan), "are not finite; got bert.embeddings"),
    "infinity": (lambda f: spoil(f, -math.inf), "are not finite; got bert.embeddings"),
    "cut config": (cut("config.json", 40), "cannot load"),
    "a list for a config": (lambda f: (f / "config.json").write_text("[]"), "cannot load"),
    "cut weights": (cut("model.safetensors", 5000), "cannot load"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_that_is_not_whole_is_refused_in_one_line(
    kind: str, loader: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model")
    harm, words = DAMAGE[kind]
    harm(folder)
    if loader == "check" and kind in ("NaN", "infinity"):
        return  # it reads names only
    with pytest.raises(MaskwiseError, match=words) as error:
        LOADERS[loader](folder)
    assert "\n" not in str(error.value)


READERS: dict[str, Callable[[Path], Any]] = {
    **LOADERS,
    "tokenizer": lambda folder: load_tokenizer(str(folder)),
    "config": load_config,
    "task config": lambda folder: task_config(folder, {"num_labels": 3}),
    "vectors": lambda folder: vectors_of(["a"], folder),
    "share": lambda folder: push_to_hub(folder, "you/it"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_bit_in_any_file_is_seen_by_the_manifest(reader: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_folder(folder, saved)
    (folder / CARD).write_text("its owner may change this")
    if reader != "share":
        READERS[reader](folder)
    names = {path.name for path in folder.iterdir()} - {CARD, "manifest.json"}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"} <= names
    if reader in ("tokenizer", "config", "task config"):
        names -= {"model.safetensors"}  # which these do not read
    for name in sorted(names):
        for at in (0, 0.2, 0.4, 0.6, 0.8, 1):
            before = flip(folder / name, at=at)
            with pytest.raises(
                MaskwiseError, match=f"has changed since it was written; got {name} is damaged"
            ):
                READERS[reader](folder)
            (folder / name).write_bytes(before)


def yes_to_all(*arguments: object) -> tuple[int, str]:
    sys.stdin, sys.stderr = io.StringIO("y\n" * 100), io.StringIO()
    return command(*arguments), sys.stderr.getvalue()


def test_nobody_is_asked_on_stdin_whether_a_checkpoint_may_run_its_code(tmp_path: Path) -> None:
    """With ``yes |`` before the command, its code ran."""
    folder = saved(tmp_path / "model")
    rewrite(
        folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    code, said = forked(
        yes_to_all, "finetune", folder, "--task", "ud-pos", "--out", tmp_path / "o"
    )()
    assert code == 2 and not (tmp_path / "ran").exists()
    assert "contains Python code; got auto_map in config.json" in said and "Traceback" not in said


def test_a_tokenizer_with_code_is_refused_too(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.T", None]}}
    path.write_text(json.dumps(fields))
    with pytest.raises(MaskwiseError, match=r"auto_map in tokenizer_config\.json"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("size", [2**31, 2**40, "9" * 5000])
def test_a_tokenizer_with_a_huge_id_is_refused_before_tables_are_made(
    size: object, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model")
    path = folder / "tokenizer.json"
    changed = re.sub(r'("w7": )\d+', rf"\g<1>{size}", path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(
        MaskwiseError, match=r"a token id that is too large; got 2147483648; allowed: <|cannot load"
    ) as error:
        load_tokenizer(str(folder))
    assert "\n" not in str(error.value)


SEQ2SEQ = {
    "bart": bart().config,
    "t5": T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=45),
}


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoders_are_refused_where_their_decoder_would_be_read(
    name: str, tmp_path: Path
) -> None:
    """BART stands in transformers' table of masked language models, and trained on nonsense without
    a word.
    """
    AutoModelForSeq2SeqLM.from_config(SEQ2SEQ[name]).save_pretrained(tmp_path)
    for load in (
        lambda folder: new_config(name, tokenizer(), 16),
        load_config,
        load_model,
        lambda folder: load_task_model(folder, task_config(folder, {}), head="embedding", seed=0),
    ):
        with pytest.raises(MaskwiseError, match=f"needs an encoder; got {name}"):
            load(tmp_path)


CAUSAL = {"bert": "is_decoder", "xlm": "causal"}


@pytest.mark.parametrize("architecture", CAUSAL)
def test_encoders_that_read_in_one_direction_are_refused(architecture: str, tmp_path: Path) -> None:
    """A saved BertLMHeadModel was trained with causal attention, without a word."""
    field = CAUSAL[architecture]
    made = config(architecture, **{field: True})
    made.save_pretrained(tmp_path)
    for load in (
        load_config,
        load_model,
        lambda folder: new_config(architecture, tokenizer(), 16, **{field: True}),
        lambda folder: load_task_model(None, made, head="sequence-classification", seed=0),
    ):
        with pytest.raises(MaskwiseError, match=f"needs attention in .*with {field}: true"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "kind", "facts"),
    [
        ("gpt2", "encoder", ("no MLM head", "got gpt2", "bert", "modernbert")),
        ("t5", "encoder", ("encoder of an encoder–decoder", "denoise")),
        ("speech_to_text", "encoder-decoder", ("writes text", "got speech_to_text", "bart")),
    ],
)
def test_models_without_a_head_for_pre_training_are_named(
    architecture: str, kind: Any, facts: tuple[str, ...], tmp_path: Path
) -> None:
    """transformers listed the names of all its configurations."""
    made = AutoConfig.for_model(architecture)
    made.is_encoder_decoder = kind == "encoder-decoder"
    made.save_pretrained(tmp_path)
    with pytest.raises(MaskwiseError) as refused:
        load_config(tmp_path, kind=kind)
    assert all(fact in str(refused.value) for fact in (*facts, str(tmp_path)))
    if kind == "encoder":
        request = Request(str(tmp_path), "bundled:wikipedia", out=tmp_path / "out")
        with pytest.raises(MaskwiseError) as refused:
            draft_of(request, Texts(request.texts, request.out))
        assert all(fact in str(refused.value) for fact in facts)


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_size_of_a_model_is_counted_once_on_a_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where it is known, the code of the model is not imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built: list[str] = []
    real = loading.empty_model
    small = config("bert")

    def counted(asked: Any) -> Any:
        built.append(asked.model_type)
        return real(type(small)(**asked.to_dict()))

    monkeypatch.setattr(loading, "empty_model", counted)
    own = Size.of(model("bert"))
    assert size_of(small) == size_of(small) == own and built == ["bert"]
    assert size_of(config("bert", hidden_size=48)).weights > own.weights and len(built) == 2
    # Other versions may build another model, and so may code that is not part of transformers.
    monkeypatch.setattr(loading, "versions", lambda: {"transformers": "1.0"})
    assert size_of(small) == own and len(built) == 3
    foreign = type("Foreign", (type(small),), {"__module__": "own.code"})(**small.to_dict())
    assert size_of(foreign) == size_of(foreign) == own and len(built) == 5
    # Without a folder for the cache, too.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    assert size_of(small) == own and len(built) == 6
    # And without a home folder.
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert size_of(small) == own and len(built) == 7
    forecast = Forecast({}, StageStore(tmp_path / "stages"))
    forecast.key = str
    forecast.keep("a", {"step": 1.0})
    assert forecast.rates == {"a": {"step": 1.0}}


# --- dropout of attention


def rate_of(config: Any) -> float:
    own = attention_dropout_of(config)
    assert own is not None
    return own[1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"architecture": "bert"}, 0.0),
        ({"architecture": "bert", "attention_dropout": 0.2}, 0.2),
        ({"architecture": "bert", "settings": {"attention_probs_dropout_prob": 0.1}}, 0.1),
        ({"architecture": "modernbert"}, 0.0),
    ],
)
def test_new_models_have_no_dropout_of_attention_unless_some_is_set(
    settings: dict[str, Any], expected: float
) -> None:
    chosen = ModelSettings(**settings)
    assert rate_of(config_from(chosen, tokenizer(), 16, kind="encoder")) == expected
    # What the name of a stage says is read back, also where it is what recorded studies had.
    again = ModelSettings.from_name(chosen.named())
    assert rate_of(config_from(again, tokenizer(), 16, kind="encoder")) == expected
    assert ("attention_dropout" in chosen.named()) == (
        expected != rate_of(AutoConfig.for_model(chosen.architecture))
        and "attention_probs_dropout_prob" not in chosen.settings
    )


def test_a_checkpoint_keeps_its_dropout_of_attention_unless_another_is_set(
    tmp_path: Path,
) -> None:
    model("bert", attention_probs_dropout_prob=0.3).save_pretrained(tmp_path)
    for given, expected in ((None, 0.3), (0.0, 0.0)):
        chosen = ModelSettings(pretrained=str(tmp_path), attention_dropout=given)
        net = model_from(
            chosen, tokenizer(), 16, kind="encoder", seed=0, log_unigram=torch.zeros(FIRST + WORDS)
        )
        dropout = net.bert.encoder.layer[0].attention.self.dropout
        assert dropout.p == rate_of(net.config) == expected


def test_a_rate_of_a_model_in_two_parts_is_that_of_both() -> None:
    chosen = ModelSettings(architecture="t5gemma", attention_dropout=0.2)
    config = config_from(chosen, tokenizer(), 16, kind="encoder-decoder")
    assert rate_of(config) == rate_of(config.encoder) == rate_of(config.decoder) == 0.2


def test_a_rate_is_set_once() -> None:
    fields = {"attention_probs_dropout_prob": 0.1}
    with pytest.raises(ValueError, match="set twice"):
        ModelSettings(architecture="bert", attention_dropout=0.0, settings=fields)


def test_rates_of_a_checkpoint_are_those_of_the_settings(tmp_path: Path) -> None:
    """They were part of the recipe and of the name of the stage, but not of the training."""
    model("bert", hidden_dropout_prob=0.3).save_pretrained(tmp_path)
    plain = ModelSettings(pretrained=str(tmp_path))
    chosen = ModelSettings(pretrained=str(tmp_path), settings={"hidden_dropout_prob": 0.0})
    for settings, expected in ((plain, 0.3), (chosen, 0.0)):
        again = ModelSettings.from_name(settings.named())
        assert again == settings
        net = model_from(
            again, tokenizer(), 16, kind="encoder", seed=0, log_unigram=torch.zeros(FIRST + WORDS)
        )
        rates = {part.p for name, part in net.named_modules() if name.endswith("output.dropout")}
        assert rates == {expected}
    assert plain.named() != chosen.named()
    assert changed_config(plain, tokenizer(), 16, kind="encoder") is None


def test_a_new_deberta_can_have_the_settings_of_its_third_version() -> None:
    """They have no defaults in transformers, and were refused as unknown."""
    given = {"position_buckets": 6, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    fields = given | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    made = new_config("deberta-v2", tokenizer(), 16, hidden_size=48, **fields)
    encoder = empty_model(made).deberta.encoder
    assert encoder.rel_embeddings.weight.shape == (2 * 6, 48) and encoder.LayerNorm


def test_both_parts_of_a_model_embed_all_tokens() -> None:
    """A smaller vocabulary of one part ended in a traceback, and that of both was ignored."""
    tokens = len(tokenizer())
    make = partial(new_config, "t5gemma", tokenizer(), 16, kind="encoder-decoder")
    made = make(vocab_size=tokens + 5)
    assert {made.encoder.vocab_size, made.decoder.vocab_size} == {tokens + 5}
    # null is the default, that of the tokenizer.
    made = make(vocab_size=None)
    assert {made.encoder.vocab_size, made.decoder.vocab_size} == {make().encoder.vocab_size}
    with pytest.raises(MaskwiseError, match=f"got {tokens} tokens; allowed: ≤ 9"):
        check_start(make(encoder={"vocab_size": 9}), tokens, loaded=False)


def test_the_rates_of_a_checkpoint_in_two_parts_are_changed_in_both() -> None:
    new = config_from(
        ModelSettings(architecture="t5gemma"), tokenizer(), 16, kind="encoder-decoder"
    )
    config = with_fields(new, {"dropout_rate": 0.25})
    assert {part.dropout_rate for part in (config, config.encoder, config.decoder)} == {0.25}
    assert new.dropout_rate != 0.25


def test_a_setting_of_a_model_is_written_once() -> None:
    with pytest.raises(ValueError, match="set twice"):
        ModelSettings(
            pretrained="bundled:encoder", attention_dropout=0, settings={"attention_dropout": 0.1}
        )
