"""The words of a domain become tokens of a pre-trained encoder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError
from maskwise.evaluation.measures.spelling import WORDS as WORD_LOSS
from maskwise.models.loading import (
    add_tokens,
    load_model,
    new_config,
    new_model,
    vocabulary_tables,
)
from maskwise.recipe import read_recipe
from maskwise.studies.adapt import Request
from maskwise.studies.adapt.answer import answer_sentences
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.checks import notes_of_texts
from maskwise.studies.forecast import check
from maskwise.studies.inputs import text_source
from maskwise.studies.plan import make_plan, make_run
from maskwise.studies.single import inputs_of_policy
from maskwise.studies.stages import prepare_stage, pretrain_stage, tokenizer_of
from maskwise.studies.store import StageStore
from maskwise.studies.text_sample import Samples
from maskwise.studies.work import run_stage
from maskwise.text import Document, Prepared, load_tokenizer, read_documents, train_tokenizer
from maskwise.text.changed import new_ids
from maskwise.text.new_words import choose_words, count_words, extend, given_words, read_words
from tiny import WORDS, maskwise, write_inputs, write_lines
from training_tools import config

# What these tests ask does not depend on what the encoder knows.
pytestmark = pytest.mark.usefixtures("small_encoder")

DOMAIN = ("cardiomyopathy", "electrolyte", "Neuropathy", "arrhythmia")
WIKIPEDIA = [document.text for document in read_documents("bundled:wikipedia", limit=300)]


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer like that of XLM-R, with a mask token behind its vocabulary."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(WIKIPEDIA[:60], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="<s>",
        pad_token="<pad>",
        sep_token="</s>",
        unk_token="<unk>",
    )
    made.add_special_tokens({"mask_token": "<mask>"})
    return made


def tokenizer_of_kind(kind: str) -> PreTrainedTokenizerFast:
    if kind == "unigram":
        return unigram()
    if kind == "bundled":
        return load_tokenizer("bundled:encoder")
    return train_tokenizer(WIKIPEDIA[:60], kind="bpe", vocab_size=900, lowercase=False)


KINDS = ("bundled", "bpe", pytest.param("unigram", marks=pytest.mark.slow))


@pytest.mark.parametrize("kind", KINDS)
def test_new_words_are_tokens_and_other_words_keep_their_pieces(kind, tmp_path):
    before = tokenizer_of_kind(kind)
    words = [word.lower() if kind == "bundled" else word for word in DOMAIN]
    made = extend(before, given_words(words, before))
    made.tokenizer.save_pretrained(tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    old = before.get_vocab()
    assert {token: after.get_vocab()[token] for token in old} == old
    assert after.all_special_ids == before.all_special_ids and len(after) == max(made.pieces) + 1
    text = f"A patient with {words[0]}, {words[2]} ({words[1]}) and {words[3]}s or un{words[3]}."
    ids = after(text)["input_ids"]
    assert set(made.pieces) & set(ids) and len(ids) < len(before(text)["input_ids"])
    assert after.decode(ids) == before.decode(before(text)["input_ids"])
    # Each new token stands for its pieces.
    spelt = [piece for number in ids for piece in made.pieces.get(number, (number,))]
    assert spelt == before(text)["input_ids"]
    lines = [line for text in WIKIPEDIA for line in text.splitlines() if line.strip()]
    rows = before(lines)["input_ids"]
    assert after(lines)["input_ids"] == rows
    assert after.batch_decode(rows) == before.batch_decode(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_chosen_by_the_pieces_that_they_save(kind):
    tokenizer = tokenizer_of_kind(kind)
    draw = random.Random(0)
    texts = []
    for number in range(12):
        words = ["electrolyte"] * 3 + ["cardiomyopathy", "p53cardio", "the", "arrhythmia-free"]
        if number < 4:
            words.append("neuropathologist")
        texts.append(" ".join(["the", *draw.sample(words, len(words)), "the"]))
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    counted = {word.text: word for word in count_words(documents, tokenizer)}
    assert counted["electrolyte"].times == 36 and counted["electrolyte"].documents == 12
    chosen = choose_words(documents, tokenizer, 99)
    # Too rare: neuropathologist, in four documents. Not of letters alone: p53cardio.
    names = {word.text for word in chosen}
    assert {"electrolyte", "cardiomyopathy", "arrhythmia"} <= names
    assert names.isdisjoint({"neuropathologist", "p53cardio"})
    saved = [word.saved for word in chosen]
    assert saved == sorted(saved, reverse=True) and chosen[0].text == "electrolyte"
    assert choose_words(documents, tokenizer, 1) == chosen[:1]
    made = extend(tokenizer, chosen)
    for text in texts:
        ids = made.tokenizer(text)["input_ids"]
        spelt = [piece for number in ids for piece in made.pieces.get(number, (number,))]
        assert spelt == tokenizer(text)["input_ids"] and spelt != ids


def test_tokens_outside_words_are_not_counted():
    tokenizer = tokenizer_of_kind("bpe")
    counted = count_words([Document("", "an electrolyte  \n\n\t  an electrolyte")], tokenizer)
    assert [(word.text, word.times) for word in counted if not word.text.isalpha()] == []
    assert ("electrolyte", 2) in [(word.text, word.times) for word in counted]


def test_tokens_that_were_added_to_bpe_keep_their_ids():
    before = tokenizer_of_kind("bpe")
    before.add_tokens(["<first>", "<second>"])
    after = extend(before, given_words(["electrolyte"], before)).tokenizer
    vocabulary = after.get_vocab()
    assert {token: vocabulary[token] for token in before.get_vocab()} == before.get_vocab()
    text = "an <first> electrolyte <second>"
    assert len(after(text)["input_ids"]) < len(before(text)["input_ids"])
    for token in ("<first>", "<second>"):
        assert vocabulary[token] in after(text)["input_ids"]


def test_a_new_token_of_unigram_is_preferred_to_its_pieces_by_a_margin_for_each():
    tokenizer = unigram()
    words = given_words(["num", "electrolyte"], tokenizer)
    made = extend(tokenizer, words)
    old, new = (
        json.loads(each.backend_tokenizer.to_str())["model"]["vocab"]
        for each in (tokenizer, made.tokenizer)
    )
    assert len({len(pieces) for pieces in made.pieces.values()}) == 2
    for number, pieces in made.pieces.items():
        better = new[number][1] - sum(old[piece][1] for piece in pieces)
        assert better == pytest.approx(1e-4 * len(pieces), rel=1e-6)


def test_a_word_that_unigram_cuts_in_several_ways_is_one_word():
    """The same word was two tokens, of which one was never used."""
    tokenizer = unigram()
    documents = [
        Document(f"{number}", "the ndarray, an ndarray; ndarrays of ndarray-like (ndarray) ndarray")
        for number in range(6)
    ]
    words = count_words(documents, tokenizer)
    assert len({word.text for word in words}) == len(words)
    made = extend(tokenizer, choose_words(documents, tokenizer, 99))
    assert "\u2581ndarray" in made.tokenizer.tokenize("an ndarray, ndarray")


def test_a_new_word_may_begin_another_one():
    """Both had the same score, so that the longer one was never used."""
    tokenizer = unigram()
    made = extend(tokenizer, given_words(["num", "numpy"], tokenizer))
    assert made.tokenizer.tokenize("num numpy num") == [
        "\u2581num",
        "\u2581numpy",
        "\u2581num",
    ]


FAMILIES = (
    *("bert", "roberta", "mpnet", "albert", "electra", "modernbert", "deberta-v2", "distilbert"),
    *("xlm-roberta", "camembert", "nomic_bert", "esm"),
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_are_means_of_their_pieces(family, tied, tmp_path):
    tokenizer = load_tokenizer("bundled:encoder")
    made = config(family, vocab_size=len(tokenizer), tie_word_embeddings=tied)
    log_unigram = torch.randn(len(tokenizer))
    model = new_model(made, seed=1, log_unigram=log_unigram).eval()
    rows = torch.tensor([[2, 60, 70, 4, 80, 3]])
    before = model(rows).logits
    size = len(tokenizer)
    pieces = {size: (60, 61), size + 1: (70, 71, 72)}
    add_tokens(model, pieces)
    after = model(rows).logits
    assert torch.allclose(after[..., :size], before, atol=1e-6)
    for number, ids in pieces.items():
        assert torch.allclose(after[..., number], before[..., list(ids)].mean(-1), atol=1e-5)
        table = model.get_input_embeddings().weight
        assert torch.allclose(table[number], table[list(ids)].mean(0), atol=1e-7)
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(rows).logits, after) and again.config.vocab_size == size + 2
    kept = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert kept is same


def test_a_newer_head_of_deberta_has_its_own_bias():
    """The layer before was taken for the output layer."""
    torch.manual_seed(0)
    log_unigram = torch.randn(45)
    made = config("deberta-v2", legacy=False, hidden_size=48, vocab_size=48)
    model = new_model(made, seed=1, log_unigram=log_unigram).eval()
    head = model.lm_predictions.lm_head
    assert torch.equal(head.bias[:45], log_unigram) and not head.dense.bias.any()
    assert all(table is not head.dense.weight for table in vocabulary_tables(model))
    ids = torch.tensor([[2, 20, 30, 4, 9, 3]])
    before = model(ids).logits
    add_tokens(model, {47: (6, 7)})
    after = model(ids).logits
    assert torch.allclose(after[..., 47], before[..., 6:8].mean(-1), atol=1e-6)


def test_a_model_with_spare_rows_keeps_its_size():
    tokenizer = load_tokenizer("bundled:encoder")
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = new_config("bert", tokenizer, 16, vocab_size=len(tokenizer) + 64, **fields)
    model = new_model(config, seed=1)
    add_tokens(model, {len(tokenizer): (60, 61)})
    table = model.get_input_embeddings().weight
    assert len(table) == len(tokenizer) + 64
    assert torch.allclose(table[len(tokenizer)], table[[60, 61]].mean(0))


# Recipes
# -------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    return write_inputs(tmp_path / "inputs")


START = ("model={pretrained: bundled:encoder}", "tokenizer={}", "training.steps=2", "tasks=[]")


def text_of(source: Path, tmp_path: Path, *more: str) -> tuple[dict[str, Any], Prepared]:
    stage = prepare_stage(read_recipe(source, [*START, *more]))
    store = StageStore(tmp_path / "stages")
    return run_stage(stage, store), Prepared.open(store.output(stage))


def test_words_come_from_training_text_alone(source, tmp_path):
    # The groups decide which documents are held out, also after their texts have changed.
    given = ("model.changes=new-tokens(99)", "corpus.group_field=id")
    recipe = read_recipe(source, [*START, *given])
    held = {document.name for document in recipe.corpus.held_out_documents()}
    assert held and len(held) < 60
    lines = [json.loads(line) for line in (source.parent / "corpus.jsonl").read_text().splitlines()]
    for line in lines:
        line["text"] += " Cardiomyopathy." if line["id"] in held else " Electrolyte."
    write_lines(source.parent / "corpus.jsonl", lines)
    result, data = text_of(source, tmp_path, *given)
    vocabulary = data.tokenizer.get_vocab()
    assert "electrolyte" in vocabulary and "cardiomyopathy" not in vocabulary
    assert result["changes"][0]["tokens"][1] == len(data.tokenizer)
    assert 0 < result["changes"][0]["saved"] < 1


def test_a_run_loads_in_transformers_and_the_reference_is_not_extended(source, tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("Electrolyte\n\ncardiomyopathy\n")
    recipe = read_recipe(
        source,
        [
            *START,
            "study.arms={plain: {}, words: {model.changes: [\"new-tokens('" + str(file) + "')\"]}}",
            "study.seeds=1",
        ],
    )
    runs = {run.arm: run for run in make_plan(recipe).runs}
    store = StageStore(tmp_path / "stages")
    assert tokenizer_of(runs["plain"].texts[0]) != tokenizer_of(runs["words"].texts[0])
    assert runs["no-pretraining"].texts == [runs["plain"].texts[0]]
    for stage in runs["words"].stages:
        run_stage(stage, store)
    checkpoint = store.output(runs["words"].pretrained)
    model = AutoModelForMaskedLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert len(tokenizer) == model.config.vocab_size == len(load_tokenizer("bundled:encoder")) + 2
    assert tokenizer.tokenize("Cardiomyopathy") == ["cardiomyopathy"]
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_words_are_measured_in_a_study_folder_that_was_moved(tmp_path):
    """Rows of Python are in the folder of the study, whose prepared texts are kept."""
    texts = [f"The {WORDS[i % 60]} number {i} was seen by the {WORDS[i % 7]}." for i in range(120)]
    names = []
    for folder in (tmp_path / "before", tmp_path / "after"):
        if names:
            (tmp_path / "before").rename(folder)
        given = {"source": text_source(texts, folder), "length": 32, "held_out": 0.2}
        measured = {"rows": 4, "measures": "word-loss(3)", "masks": ["token"], "ratios": [0.15]}
        recipe = read_recipe(
            {
                "corpus": given,
                "model": {"pretrained": "bundled:encoder"},
                "evaluation": measured,
                "study": {"arms": {"a": {}}, "seeds": 1},
            },
            ["tasks=[]"],
        )
        run = make_run(recipe, REFERENCE, 0, contents={})
        store = StageStore(folder / "stages")
        if not names:
            run_stage(run.prepared, store)
        names.append(run.evaluated.name)
    assert len({*names}) == 1 and store.result(run.prepared)
    rows = run_stage(run.evaluated, store)["measurements"]
    assert WORD_LOSS in {row["measure"] for row in rows}


def test_fine_tunings_of_models_with_new_tokens_are_timed(source, tmp_path, monkeypatch, recwarn):
    """The pre-trained model was given the larger tokenizer, and the time of a study was unknown."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"text": f"{word} {number}", "label": word} for number in range(40) for word in DOMAIN]
    task = write_lines(tmp_path / "rows.jsonl", rows)
    more = [*START[:-1], f"tasks=[{task}]", "finetune.max_length=5"]
    more += ["study={arms: {a: {model.changes: new-tokens(3)}}, seeds: 1}"]
    assert check(str(source), more)["time"]["unknown"] == []
    assert not [one for one in recwarn if "rows cut" in str(one.message)]


def test_names_of_stages_without_new_tokens_do_not_have_the_key(source):
    recipe = read_recipe(source, START)
    prepared = prepare_stage(recipe)
    assert "changes" not in json.dumps(prepared.as_dict())
    assert "changes" not in json.dumps(pretrain_stage(recipe, prepared).as_dict())


def test_a_policy_is_learned_for_the_tokens_of_the_checkpoint(source):
    """The meta-gradient failed after reading all texts: the model had fewer tokens than they."""
    how = [*START, "learning={task: banking77, method: meta}"]
    plain, more = (
        read_recipe(source, [*how, *new]) for new in ([], ["model.changes=new-tokens(2)"])
    )
    assert more.model.changes == ("new-tokens(2)",)
    assert inputs_of_policy(more) == inputs_of_policy(plain)


def test_two_phases_extend_the_model_once(source, tmp_path):
    recipe = read_recipe(
        source,
        [
            *START,
            "study={arms: {a: {model.changes: new-tokens(3)}}, seeds: 1}",
            "phases=[{training: {freeze: encoder, seed: 0}}, {corpus.length: 16}]",
        ],
    )
    (run,) = (run for run in make_plan(recipe).runs if run.arm == "a")
    store = StageStore(tmp_path / "stages")
    for stage in run.stages:
        run_stage(stage, store)
    sizes = [len(Prepared.open(store.output(text)).tokenizer) for text in run.texts]
    assert sizes == [len(load_tokenizer("bundled:encoder")) + 3] * 2
    assert new_ids(Prepared.open(store.output(run.texts[1])).origins)
    first, last = (
        AutoModelForMaskedLM.from_pretrained(store.output(stage)) for stage in run.trainings
    )
    # The encoder was frozen in the first phase, so its new rows are the means still.
    for number, pieces in Prepared.open(store.output(run.texts[0])).origins[0].pieces.items():
        table = first.get_input_embeddings().weight
        assert torch.allclose(table[number], table[[*pieces]].mean(0), atol=1e-6)
        trained = last.get_input_embeddings().weight
        assert not torch.allclose(trained[number], trained[[*pieces]].mean(0), atol=1e-6)


@pytest.mark.parametrize("frozen", ["old-rows", pytest.param("none", marks=pytest.mark.slow)])
def test_only_new_rows_are_trained_in_a_phase(frozen, source, tmp_path):
    # Old rows have no weight decay, so a setting of it is refused with them.
    decay = "weight_decay: 0.5, " if frozen == "none" else ""
    recipe = read_recipe(
        source,
        [
            *START,
            "study={arms: {a: {model.changes: new-tokens(3)}}, seeds: 1}",
            f"training={{freeze: {frozen}, steps: 3, {decay}learning_rate: 0.01}}",
        ],
    )
    (run,) = (run for run in make_plan(recipe).runs if run.arm == "a")
    store = StageStore(tmp_path / "stages")
    for stage in run.stages:
        run_stage(stage, store)
    pieces = Prepared.open(store.output(run.texts[0])).origins[0].pieces
    model = load_model("bundled:encoder")
    add_tokens(model, pieces)
    before = model.state_dict()
    after = AutoModelForMaskedLM.from_pretrained(store.output(run.pretrained)).state_dict()
    new = [*pieces]
    for name, weight in before.items():
        old = len(weight) - len(new) if len(weight) == max(new) + 1 else len(weight)
        if frozen == "old-rows":
            assert torch.equal(after[name][:old], weight[:old]), name
    table = "cls.predictions.decoder.weight"
    table = table if table in before else next(name for name in before if "embeddings" in name)
    assert not torch.equal(after[table][new], before[table][new])


def test_rows_of_new_tokens_need_new_tokens(source, tmp_path, capfd):
    command = ["study", source, *START, "training.freeze=old-rows", "--out", tmp_path / "out"]
    assert maskwise(*command) == 2
    assert "model.changes" in capfd.readouterr().err


def test_fewer_words_than_wanted_are_a_note(source, tmp_path):
    stage = prepare_stage(read_recipe(source, [*START, "model.changes=new-tokens(5000)"]))
    store = StageStore(tmp_path / "stages")
    before, after = run_stage(stage, store)["changes"][0]["tokens"]
    added = after - before
    (note,) = (note for note in notes_of_texts([stage], store) if "new tokens" in note)
    assert 0 < added < 5000 and f"{added:,}" in note and "5,000" in note


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("the\n", ("'the'", "a token already")),
        ("electrolyte balance\n", ("line 1", "not one word", "electrolyte balance")),
        ("electrolyte\n\nelectrolyte\n", ("line 3", "line 1", "electrolyte")),
        ("\n", ("no words",)),
        (None, ("cannot read",)),
    ],
)
def test_a_bad_file_of_words_is_one_line(content, facts, source, tmp_path, capfd):
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_text(content)
    more = [*START, f"model.changes=[\"new-tokens('{file}')\"]"]
    assert maskwise("study", source, *more, "--out", tmp_path / "out") == 2
    said = capfd.readouterr().err
    assert all(fact in " ".join(said.split()) for fact in facts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        (["model.changes=new-tokens(3)"], "model.pretrained"),
        ([*START, "model.changes=new-tokens(0)"], "words"),
        ([*START, "model.changes=new-tokens(3)", "model.adapter=lora"], "model.adapter"),
    ],
)
def test_new_tokens_that_cannot_be_trained_are_refused(settings, fact, source):
    with pytest.raises(MaskwiseError) as caught:
        read_recipe(source, settings)
    assert fact in str(caught.value) and "\n" not in str(caught.value)


def test_tokenizers_of_letters_cannot_be_extended():
    letters = train_tokenizer(["abcab"] * 9, kind="letter")
    with pytest.raises(MaskwiseError) as caught:
        choose_words([Document("a", "abc")] * 9, letters, 3)
    assert "WordLevel" in str(caught.value) and "WordPiece" in str(caught.value)


def test_a_text_of_known_words_has_none_to_add(tmp_path):
    tokenizer = load_tokenizer("bundled:encoder")
    with pytest.raises(MaskwiseError, match="no word"):
        choose_words([Document(str(n), "the of and") for n in range(9)], tokenizer, 3)


def test_a_file_may_have_a_mark_of_its_encoding(tmp_path):
    (tmp_path / "words.txt").write_text("\ufeffneuron\nβ2\n", encoding="utf-8")
    assert read_words(tmp_path / "words.txt") == ("neuron", "β2")


# maskwise adapt --new-words
# -------------------------------------------------------------------------------------------


def asked(source: Path, tmp_path: Path, **more: Any) -> Request:
    folder = source.parent
    return Request(
        model="bundled:encoder",
        texts=str(folder / "corpus.jsonl"),
        out=tmp_path / "out",
        tasks=(str(folder / "task.jsonl"),),
        **{"new_words": 5, "seeds": 7, **more},
    )


def test_adapt_compares_new_words_with_the_same_arm_without_them(source, tmp_path):
    request = asked(source, tmp_path)
    recipe = draft_of(request, Texts(request.texts, tmp_path)).recipe
    plain, longer = (recipe.arm(name, seed=0) for name in recipe.study.arms)
    assert [*recipe.study.arms] == ["words-30", "words-30-new-words"]
    assert longer.model.changes == ("new-tokens(5)",) and longer.unchanged() == plain
    # Two questions in one family: seven runs can decide both.
    assert recipe.study.pairs == [
        ("words-30", "no-pretraining"),
        ("words-30-new-words", "words-30"),
    ]
    assert recipe.study.gate is None and request.least_runs == 7
    assert (
        "--new-words 5" in request.invocation().command
        and "--runs" not in request.invocation().command
    )
    assert "--runs 6" in asked(source, tmp_path, seeds=6).invocation().command


def test_a_plan_chooses_words_from_its_whole_sample(source, tmp_path):
    """A document alone has no word that occurs in five documents, and plans refused the arm."""
    # Of 60 documents, the usual share may hold out none.
    request = asked(source, tmp_path, overrides=("corpus.held_out=0.2",))
    recipe = draft_of(request, Texts(request.texts, tmp_path)).recipe
    longer = recipe.arm("words-30-new-words", seed=0)
    data = Samples(longer, tmp_path / "samples").of(longer).data
    assert len(new_ids(data.origins)) == 5


def test_the_answer_speaks_of_both_questions(source, tmp_path):
    request = asked(source, tmp_path)
    recipe = draft_of(request, Texts(request.texts, tmp_path)).recipe
    common = {"primary": True, "verdict": "open", "better": None, "outcome": "tasks"}
    common |= {"outlook": "", "n": 7}
    rows = [
        {**common, "arm": "words-30", "baseline": "no-pretraining", "brief": "A."},
        {**common, "arm": "words-30-new-words", "baseline": "words-30", "brief": "B."},
    ]
    first, second, *_ = answer_sentences({"contrasts": rows, "seconds": 60.0}, recipe)
    assert (first, second) == ("A.", "New words: B.")


@pytest.mark.slow
def test_adapt_with_new_words_loads_in_other_libraries(source, tmp_path):
    folder = source.parent
    task = folder / "task.jsonl"
    command = ["adapt", "bundled:encoder", folder / "corpus.jsonl", "--task", task]
    command += ["--new-words", 5, "--steps", 2, "--runs", 2, "--out", tmp_path / "out", "--jobs", 1]
    command += ["finetune.steps=2", "corpus.held_out=0.2"]
    assert maskwise(*command) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    flags = {
        flag["code"]
        for row in summary["contrasts"]
        if row["outcome"].startswith("heldout:") and row["arm"].endswith("new-words")
        for flag in row["flags"]
    }
    assert "different-tokenizers" in flags
    for name in ("model", "sentence-model"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / name)
        config = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert len(tokenizer) == config["vocab_size"]
