"""Changes of models that exist: fewer tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from hub import talking_to_a_hub
from maskwise import check, study
from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_json, read_lines
from maskwise.changes import CHANGES, Change, Changed, Positions, change
from maskwise.changes.trim import trim
from maskwise.models.families import most_tokens
from maskwise.models.loading import load_model, new_config, new_model
from maskwise.recipe import read_recipe
from maskwise.studies.adapt import Adaptation, Request
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.plan import make_plan
from maskwise.studies.records import recorded
from maskwise.studies.stages import prepare_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text import read_documents, train_tokenizer
from maskwise.text.new_words import of_json
from test_new_words import tokenizer_of_kind
from tiny import maskwise

WIKIPEDIA = [document.text for document in read_documents("bundled:wikipedia", limit=300)]
LINES = [line for text in WIKIPEDIA for line in text.splitlines() if line.strip()]
KINDS = ("bundled", "bpe", "unigram")
SMALL = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
}
"""The settings of small models."""


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_kept_tokens_is_tokenised_as_before(kind: str, tmp_path: Path) -> None:
    before = tokenizer_of_kind(kind)
    rows = before(LINES)["input_ids"]
    kept = {number for row in rows[:40] for number in row}
    after, ids = trim(before, kept)
    after.save_pretrained(tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert len(after) == len(ids) < len(before)
    assert after.convert_ids_to_tokens(range(len(ids))) == before.convert_ids_to_tokens(ids)
    assert after.all_special_tokens == before.all_special_tokens
    kept = {*ids}
    same = [(line, row) for line, row in zip(LINES, rows, strict=True) if kept.issuperset(row)]
    assert 40 <= len(same) < len(LINES)
    found = after([line for line, _ in same])["input_ids"]
    assert [[ids[number] for number in row] for row in found] == [row for _, row in same]
    # What was cut is read in smaller pieces, down to single characters.
    assert after.decode(after(LINES[-1])["input_ids"]) == before.decode(rows[-1])


def test_special_tokens_around_a_text_get_their_new_ids() -> None:
    before = tokenizer_of_kind("bpe")
    vocabulary = before.get_vocab()
    around = [(token, vocabulary[token]) for token in ("[SEP]", "[CLS]")]
    before.backend_tokenizer.post_processor = processors.RobertaProcessing(*around)
    after, ids = trim(before, [vocabulary["e"]])
    (first, *_, last) = after("e")["input_ids"]
    assert (ids[first], ids[last]) == (vocabulary["[CLS]"], vocabulary["[SEP]"])


def text_file(folder: Path, lines: list[str]) -> str:
    path = folder / "texts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta", "esm", "deberta-v2"])
def test_a_model_computes_the_same_for_what_is_kept(family: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(WIKIPEDIA[:60], vocab_size=900)
    config = new_config(family, tokenizer, 128, **SMALL)
    model = new_model(config, seed=0).eval()
    model.save_pretrained(tmp_path / "old")
    tokenizer.save_pretrained(tmp_path / "old")
    text = text_file(tmp_path, LINES[:30])
    facts = change(tmp_path / "old", tmp_path / "new", f"trim-tokens({text!r})")
    after = AutoModelForMaskedLM.from_pretrained(tmp_path / "new").eval()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new")
    ids = tokenizer.convert_tokens_to_ids(loaded.convert_ids_to_tokens(range(len(loaded))))
    (did,) = facts["changes"].values()
    assert did["tokens"] == [900, len(ids)] and after.config.vocab_size == len(ids)
    assert facts["weights"][1] == sum(each.numel() for each in after.parameters())
    assert did["pieces_per_word"][0] == did["pieces_per_word"][1]
    with torch.no_grad():
        old = model(**tokenizer(LINES[3], return_tensors="pt")).logits
        new = after(**loaded(LINES[3], return_tensors="pt")).logits
    torch.testing.assert_close(new, old[..., ids])


def test_an_encoder_decoder_keeps_its_answers(tmp_path: Path) -> None:
    text = text_file(tmp_path, LINES[:30])
    change("bundled:seq2seq", tmp_path / "new", f"trim-tokens({text!r})")
    models = []
    for start in (load_model("bundled:seq2seq", kind=None), None):
        model: Any = start or AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "new")
        models.append(model.eval())
    from maskwise.text import load_tokenizer

    tokenizers = [
        load_tokenizer("bundled:seq2seq"),
        AutoTokenizer.from_pretrained(tmp_path / "new"),
    ]
    written = []
    for model, tokenizer in zip(models, tokenizers, strict=True):
        rows = tokenizer(LINES[3], return_tensors="pt")
        found = model(**rows, labels=rows["input_ids"])
        written.append(found.loss.item())
        assert model.config.pad_token_id == tokenizer.pad_token_id
    # The kept tokens have the same logits, among fewer of them.
    assert written[1] <= written[0]


def test_a_folder_of_sentence_transformers_stays_one(tmp_path: Path) -> None:
    old = tmp_path / "old"
    tokenizer = train_tokenizer(WIKIPEDIA[:60], vocab_size=900)
    config = new_config("bert", tokenizer, 128, **SMALL)
    new_model(config, seed=0).base_model.save_pretrained(old)
    tokenizer.save_pretrained(old)
    (old / "1_Pooling").mkdir()
    (old / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
    (old / "modules.json").write_text("[]")
    change(str(old), tmp_path / "new", f"trim-tokens({text_file(tmp_path, LINES[:30])!r})")
    assert json.loads((tmp_path / "new" / "1_Pooling" / "config.json").read_text())
    assert (tmp_path / "new" / "modules.json").read_text() == "[]"
    # It had no head, and gets none.
    kept = AutoModel.from_pretrained(tmp_path / "new")
    assert kept.config.architectures == ["BertModel"]


def test_the_most_frequent_tokens_are_kept(tmp_path: Path) -> None:
    text = text_file(tmp_path, LINES[:30])
    sizes = []
    for most in (50, 200, 10**6):
        facts = change(
            "bundled:encoder", tmp_path / str(most), f"trim-tokens({text!r}, most={most})"
        )
        (did,) = facts["changes"].values()
        sizes.append(did["tokens"][1])
        assert (did["pieces_per_word"][1] > did["pieces_per_word"][0]) == (most < 10**6)
    assert sizes == sorted({*sizes})


class Shallow(Change):
    """Leaves out layers, and tells only a part of the configuration."""

    def __call__(self, model: Any, tokenizer: Any) -> Changed:
        model.base_model.layers = model.base_model.layers[:2]
        model.config.num_hidden_layers = 2
        return Changed(model, {})


def test_a_configuration_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(CHANGES._members, "shallow", Shallow)
    with pytest.raises(MaskwiseError, match=r"shallow: .*num_hidden_layers.*layer_types"):
        change("bundled:encoder", tmp_path / "new", "shallow")
    assert not (tmp_path / "new").exists()


class Silent(Change):
    """A change that changes nothing."""

    def __call__(self, model: Any, tokenizer: Any) -> Changed:
        return Changed(model, {"what": "nothing"})


def test_a_plug_in_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHANGES._members, "silent", Silent)
    facts = change("bundled:encoder", tmp_path / "new", ["silent", "silent()"])
    assert facts["weights"][0] == facts["weights"][1]
    assert list(facts["changes"]) == ["silent", "silent()"]


def test_the_command_says_what_it_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = text_file(tmp_path, LINES[:30])
    call = ("change", "bundled:encoder", tmp_path / "new", "--with", f"trim-tokens({text!r})")
    assert maskwise(*call) == 0
    said = capsys.readouterr().out
    assert "tokens are kept" in said and "MB of weights" in said
    assert maskwise("inspect", "An owl.", "--tokenizer", tmp_path / "new") == 0


@pytest.mark.parametrize(
    ("with_", "said"),
    [
        ([], "no change is named"),
        ("trim-token('a.txt')", "did you mean"),
        ("trim-tokens()", "no text to read"),
        ("trim-tokens('nowhere.txt')", "nowhere.txt"),
        ("trim-tokens('texts.txt', most=0)", "most"),
    ],
)
def test_what_is_impossible_is_said_and_nothing_is_written(
    with_: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text_file(tmp_path, LINES[:3])
    with pytest.raises(MaskwiseError, match=said):
        change("bundled:encoder", "new", with_)
    assert not Path("new").exists()


def small(folder: Path, kind: str, **fields: Any) -> Any:
    """Save a small BERT with a head, and its tokenizer; return the model."""
    import transformers

    tokenizer = train_tokenizer(WIKIPEDIA[:60], vocab_size=900)
    config = new_config("bert", tokenizer, 128, **SMALL)
    for name, value in fields.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_the_head_of_a_task_is_kept(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = small(tmp_path / "old", "BertForSequenceClassification", num_labels=3)
    before = AutoTokenizer.from_pretrained(tmp_path / "old")
    text = text_file(tmp_path, LINES[:30])
    change(tmp_path / "old", tmp_path / "new", f"trim-tokens({text!r})")
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "new").eval()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new")
    with torch.no_grad():
        logits = [
            each(**of(LINES[3], return_tensors="pt")).logits
            for each, of in ((model, before), (after, loaded))
        ]
    torch.testing.assert_close(*logits)


def test_a_folder_keeps_its_precision(tmp_path: Path) -> None:
    model = small(tmp_path / "float", "BertForMaskedLM")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "old")
    AutoTokenizer.from_pretrained(tmp_path / "float").save_pretrained(tmp_path / "old")
    text = text_file(tmp_path, LINES[:30])
    facts = change(tmp_path / "old", tmp_path / "new", f"trim-tokens({text!r})")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("old", "new")]
    assert sizes[1] < sizes[0]
    assert facts["megabytes"] == pytest.approx([2e-6 * count for count in facts["weights"]])


def test_ids_in_lists_and_rows_longer_than_the_model_reads(tmp_path: Path) -> None:
    small(tmp_path / "old", "BertForMaskedLM", eos_token_id=[3, 899], max_position_embeddings=12)
    text = text_file(tmp_path, LINES[:30])
    change(tmp_path / "old", tmp_path / "new", f"trim-tokens({text!r})")
    config = AutoModelForMaskedLM.from_pretrained(tmp_path / "new").config
    before, after = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("old", "new"))
    kept = set(after.get_vocab())
    tokens = [token for token in before.convert_ids_to_tokens([3, 899]) if token in kept]
    assert after.convert_ids_to_tokens(config.eos_token_id) == tokens


def test_a_model_that_counts_positions_from_the_padding_is_refused(tmp_path: Path) -> None:
    """RoBERTa's positions begin behind the id of [PAD], which moves if tokens before it go."""
    tokenizer = train_tokenizer(WIKIPEDIA[:60], vocab_size=900)
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = plain["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary["[PAD]"], vocabulary[last] = vocabulary[last], vocabulary["[PAD]"]
    for token in plain["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    moved = of_json(plain, tokenizer)
    config = new_config("roberta", moved, 128, **SMALL)
    config.max_position_embeddings = 1200
    new_model(config, seed=0).save_pretrained(tmp_path / "old")
    moved.save_pretrained(tmp_path / "old")
    text = text_file(tmp_path, LINES[:30])
    with pytest.raises(MaskwiseError, match="computes something else"):
        change(tmp_path / "old", tmp_path / "new", f"trim-tokens({text!r})")
    assert not (tmp_path / "new").exists()


def test_tokens_around_a_text_need_not_be_special() -> None:
    before = tokenizer_of_kind("bpe")
    vocabulary = before.get_vocab()
    number = max(vocabulary.values())
    word = before.convert_ids_to_tokens(number)
    before.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{word} $A", special_tokens=[(word, number)]
    )
    after, ids = trim(before, [vocabulary["e"]])
    assert ids[after("e")["input_ids"][0]] == number


def test_pickled_weights_of_a_module_are_not_left_behind(tmp_path: Path) -> None:
    small(tmp_path / "old", "BertModel")
    (tmp_path / "old" / "2_Dense").mkdir()
    (tmp_path / "old" / "2_Dense" / "pytorch_model.bin").touch()
    with pytest.raises(MaskwiseError, match="2_Dense"):
        change(tmp_path / "old", tmp_path / "new", "trim-tokens('bundled:wikipedia')")


def test_a_finished_folder_is_not_changed_again(tmp_path: Path) -> None:
    text = text_file(tmp_path, LINES[:30])
    change("bundled:encoder", tmp_path / "new", f"trim-tokens({text!r})")
    with pytest.raises(MaskwiseError, match=r"give a new folder$"):
        change("bundled:encoder", tmp_path / "new", f"trim-tokens({text!r})")


def test_a_folder_of_sentence_transformers_on_the_hub_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    small(old, "BertModel")
    (old / "1_Pooling").mkdir()
    (old / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
    (old / "modules.json").write_text("[]")
    text = text_file(tmp_path, LINES[:30])
    with talking_to_a_hub(monkeypatch, tmp_path / "cache") as files:
        files["ada/sentences"] = {
            str(path.relative_to(old)): path.read_bytes()
            for path in old.rglob("*")
            if path.is_file()
        }
        change("ada/sentences", tmp_path / "new", f"trim-tokens({text!r})")
    assert (tmp_path / "new" / "modules.json").read_text() == "[]"
    assert (tmp_path / "new" / "1_Pooling" / "config.json").is_file()


def test_recipes_trim_to_the_training_text_alone(tmp_path: Path) -> None:
    """The arm keeps what its training documents need; its checkpoint loads in transformers."""
    rows = [{"text": line, "id": str(number)} for number, line in enumerate(LINES[:80])]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = read_recipe(
        {
            "corpus": {"source": str(texts), "length": 32, "held_out": 0.3},
            "model": {"pretrained": "bundled:encoder"},
            "training": {"steps": 1, "batch_size": 2},
            "evaluation": {"rows": 2},
            "study": {
                "seeds": 1,
                "arms": {"a": {"model.changes": ["trim-tokens(300)", "new-tokens(3)"]}},
            },
        },
        ["tasks=[]"],
    )
    runs = {run.arm: run for run in make_plan(recipe).runs}
    store = StageStore(tmp_path / "stages")
    results = [run_stage(stage, store) for stage in runs["a"].stages]
    trimmed, longer = results[0]["changes"]
    assert trimmed["saved"] < 0 <= longer["saved"]
    assert trimmed["tokens"][1] == longer["tokens"][0] < longer["tokens"][1]
    tokenizer = AutoTokenizer.from_pretrained(store.output(runs["a"].pretrained))
    model = AutoModelForMaskedLM.from_pretrained(store.output(runs["a"].pretrained))
    assert len(tokenizer) == model.config.vocab_size == longer["tokens"][1]
    # The reference is the model without changes.
    assert "changes" not in runs[REFERENCE].texts[0].what


@pytest.mark.parametrize("measures", [[], ["word-loss(9)"]])
def test_arms_with_other_tokens_are_compared_by_the_loss_of_words_alone(
    tmp_path: Path, measures: list[str]
) -> None:
    """Without tasks, the check before the first stage ended with a traceback."""
    arms = {"plain": {}, "trimmed": {"model.changes": "trim-tokens(300)"}}
    recipe = {
        "corpus": {"source": text_file(tmp_path, LINES[:80]), "length": 32, "held_out": 0.3},
        "model": {"pretrained": "bundled:encoder"},
        "training": {"steps": 1, "batch_size": 2},
        "evaluation": {"rows": 2, "measures": measures},
        "tasks": [],
        "study": {"seeds": 1, "arms": arms},
    }
    doubts = check(recipe, timing=False).doubts
    told = "trimmed against plain will not be comparable: the arms have different tokenizers"
    assert any(what.startswith(told) for what in doubts) == (not measures)
    study(recipe, out=tmp_path / "out")
    contrasts = read_json(tmp_path / "out" / "summary.json")["contrasts"]
    [row] = [row for row in contrasts if row["primary"]]
    assert ("different-tokenizers" in {flag["code"] for flag in row["flags"]}) == (not measures)
    if measures:
        assert row["outcome"] == "evaluation:words:nats per byte"


def test_the_stage_depends_on_the_content_of_what_a_change_reads(tmp_path: Path) -> None:
    text = text_file(tmp_path, LINES[:3])
    names = []
    for content in ("An owl.", "A newt."):
        Path(text).write_text(content, encoding="utf-8")
        recipe = read_recipe(
            {
                "corpus": {"source": "bundled:wikipedia"},
                "model": {"pretrained": "bundled:encoder", "changes": [f"trim-tokens({text!r})"]},
            }
        )
        names.append(prepare_stage(recipe).name)
    assert names[0] != names[1]


def test_the_former_setting_is_refused_with_the_line_that_replaces_it() -> None:
    model = {"pretrained": "bundled:encoder", "new_tokens": 5}
    with pytest.raises(MaskwiseError, match=r"write model.changes: \[\"new-tokens\(5\)\"\]"):
        read_recipe({"corpus": {"source": "bundled:wikipedia"}, "model": model})
    now = recorded({"model": model, "study": {"arms": {"a": {"model.new_tokens": "w.txt"}}}})
    assert now["model"]["changes"] == ["new-tokens(5)"]
    assert now["study"]["arms"]["a"] == {"model.changes": ["new-tokens('w.txt')"]}


@pytest.mark.parametrize(
    ("family", "kind", "size"),
    [
        ("bert", "encoder", SMALL),
        ("roberta", "encoder", SMALL),
        ("bart", "encoder-decoder", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}),
    ],
)
def test_a_copied_table_of_positions_gives_the_same_states(
    family: str, kind: Any, size: dict[str, Any]
) -> None:
    tokenizer = train_tokenizer(WIKIPEDIA[:60], vocab_size=900)
    model = new_model(new_config(family, tokenizer, 16, kind=kind, **size), seed=0).eval()
    rows = torch.randint(10, 800, (1, 14))
    with torch.no_grad():
        before = model(input_ids=rows).logits
        longer = Positions(40)(model, tokenizer).model
        torch.testing.assert_close(longer(input_ids=rows).logits, before)
        assert longer(input_ids=torch.randint(10, 800, (1, 40))).logits.isfinite().all()
    assert Positions(40).check(model.config, tokenizer).max_position_embeddings == (
        longer.config.max_position_embeddings
    )


def test_a_raised_base_changes_the_frequencies_by_its_formula() -> None:
    tokenizer = train_tokenizer(WIKIPEDIA[:60], vocab_size=900)
    model = new_model(new_config("eurobert", tokenizer, 16, **SMALL), seed=0).eval()
    made = Positions(64, rope_base=50_000.0)(model, tokenizer).model
    (found,) = (each for name, each in made.named_buffers() if name.endswith(".inv_freq"))
    size = 2 * len(found)
    torch.testing.assert_close(found, 50_000.0 ** -(torch.arange(0, size, 2) / size))
    assert made.config.max_position_embeddings == 64


V3 = {
    "position_biased_input": False,
    "relative_attention": True,
    "position_buckets": 16,
    "pos_att_type": ["c2p", "p2c"],
}
"""The relative positions of DeBERTa-v3, in buckets."""


def test_more_positions_leave_the_buckets_of_deberta_as_they_were() -> None:
    """The buckets were computed anew, so that trained weights got another meaning."""
    tokenizer = train_tokenizer(WIKIPEDIA[:60], vocab_size=900)
    config = new_config("deberta-v2", tokenizer, 16, initializer_range=0.5, **SMALL, **V3)
    model = new_model(config, seed=0).eval()
    longer = Positions(64)(model, tokenizer).model
    assert most_tokens(longer.config) == 64
    rows = torch.randint(10, 800, (1, 30))
    with torch.no_grad():
        torch.testing.assert_close(longer(input_ids=rows).logits, model(input_ids=rows).logits)


YARN = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("eurobert", {"rope_type": "dynamic", "factor": 2.0}),
        ("modernbert", {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}),
    ],
)
def test_frequencies_that_depend_on_the_positions_are_not_changed_unseen(
    family: str, rope: dict[str, Any]
) -> None:
    tokenizer = train_tokenizer(WIKIPEDIA[:60], vocab_size=900)
    config = new_config(family, tokenizer, 16, **SMALL)
    of_layers = config.rope_parameters.get("full_attention", config.rope_parameters)
    of_layers |= rope.get("full_attention", rope)
    with pytest.raises(MaskwiseError, match=r"rope_type=.*give scaling"):
        Positions(64).check(config, tokenizer)
    assert most_tokens(Positions(64, scaling="linear").check(config, tokenizer)) == 64
    of_layers |= {"rope_type": "linear", "factor": 2.0}
    assert most_tokens(Positions(64).check(config, tokenizer)) == 64
    with pytest.raises(MaskwiseError, match="raised"):
        Positions(64, rope_base=5000).check(config, tokenizer)
    of_layers |= YARN
    for how in ({}, {"scaling": "linear"}, {"rope_base": 1e6}):
        with pytest.raises(MaskwiseError, match=r"rope_type=yarn; leave out positions"):
            Positions(64, **how).check(config, tokenizer)


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_positions_are_scaled_once(scaling: str) -> None:
    """A second scaling replaced the first in silence, by a factor from the longer length."""
    tokenizer = train_tokenizer(WIKIPEDIA[:60], vocab_size=900)
    config = new_config("eurobert", tokenizer, 16, **SMALL)
    twice = Positions(32, scaling=scaling).check(config, tokenizer)
    assert twice.rope_parameters["factor"] == 2
    with pytest.raises(MaskwiseError, match="scaled already"):
        Positions(64, scaling=scaling).check(twice, tokenizer)
    assert most_tokens(Positions(64).check(twice, tokenizer)) == 64


# maskwise adapt --trim-tokens
# -------------------------------------------------------------------------------------------


def trimmed_request(folder: Path, **more: Any) -> Request:
    (folder / "texts.txt").write_text("\n\n".join(WIKIPEDIA[:60]), encoding="utf-8")
    return Request(
        model="bundled:encoder",
        texts=str(folder / "texts.txt"),
        out=folder / "out",
        tasks=("banking77(train_rows=60)",),
        keep="none",
        **{"trim_tokens": 2000, "seeds": 7, **more},
    )


def test_adapt_asks_what_fewer_tokens_cost_and_whether_training_makes_up(tmp_path: Path) -> None:
    request = trimmed_request(tmp_path, new_words=5, lengths=(0.5, 1.0))
    recipe = draft_of(request, Texts(request.texts, tmp_path)).recipe
    assert [*recipe.study.arms] == ["words-30", "trimmed", "words-30-new-words"]
    trained, untrained, longer = (recipe.arm(name, seed=0) for name in recipe.study.arms)
    assert trained.model.changes == untrained.model.changes == ("trim-tokens(2000)",)
    assert longer.model.changes == ("trim-tokens(2000)", "new-tokens(5)")
    assert not untrained.training.steps and not trained.unchanged().model.changes
    assert ("trimmed", REFERENCE) in recipe.study.pairs and recipe.study.gate is None
    assert "word-loss" in recipe.evaluation.named and request.least_runs == 7
    assert "--trim-tokens 2000" in request.invocation().command


@pytest.mark.slow
def test_an_arm_of_no_steps_is_the_changed_model(tmp_path: Path) -> None:
    request = trimmed_request(
        tmp_path,
        steps=2,
        seeds=1,
        overrides=("corpus.held_out=0.3", "finetune.steps=2", "evaluation.rows=8"),
    )
    with Adaptation(request) as adaptation:
        found = adaptation.run()
    assert not found["failures"] and "Fewer tokens, without training:" in " ".join(
        [found["answer"], *found["details"]]
    )
    lines = [*read_lines(request.out / "records.jsonl")]
    spent = {line["arm"]: line["steps"] for line in lines if line["kind"] == "cost"}
    assert spent == {"words-30": 2, "trimmed": 0}
    words = {line["arm"]: line for line in lines if line.get("measure") == "words"}
    assert len({line["items"] for line in words.values()}) == 1
    assert words["trimmed"]["value"] != words[REFERENCE]["value"]
    # Its weights are those of the changed model.
    alone = tmp_path / "alone"
    text = tmp_path / "training.txt"
    kept = recipe_texts(request)
    text.write_text("\n\n".join(kept), encoding="utf-8")
    change("bundled:encoder", alone, f"trim-tokens({str(text)!r}, most=2000)")
    checkpoints = [
        path.parent
        for path in (request.out / "stages").glob("pretrain-*/checkpoint/config.json")
        if not read_json(path.parents[1] / "done.json")["steps"]
    ]
    (untrained,) = (load_model(path).state_dict() for path in checkpoints)
    for name, weights in load_model(alone).state_dict().items():
        torch.testing.assert_close(untrained[name], weights, rtol=0, atol=0)


def recipe_texts(request: Request) -> list[str]:
    """Return the training documents of a request."""
    recipe = draft_of(request, Texts(request.texts, request.out)).recipe
    return [document.text for document in recipe.corpus.training_documents()]
