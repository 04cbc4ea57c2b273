"""Tasks: metrics against published examples, alignment, data rules, bad input, a whole
fine-tuning.
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace

import datasets
import numpy as np
import pandas
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from maskwise.base.errors import MaskwiseError
from maskwise.models.loading import new_config
from maskwise.objectives import Classification
from maskwise.studies.single import run_finetune
from maskwise.tasks import (
    BUNDLED_TASKS,
    KINDS,
    FinetuneSettings,
    Task,
    TaskSource,
    evaluate_tasks,
    finetune,
    finetuning,
    load_task,
    task_tensors,
)
from maskwise.tasks.finetuning import answers_of, load_network, task_record
from maskwise.tasks.kinds.classes import TaggedRow, TextRow
from maskwise.tasks.metrics import METRICS, accuracy, entities, entity_f1
from maskwise.tasks.reading import WHAT_THEY_ARE
from maskwise.text import train_tokenizer
from maskwise.text.source import read_records
from maskwise.training import TrainingSettings
from tiny import SPLITS, load_rows, write_lines

TEXT = (
    "the cat sat on the mat . unbelievable kittens never walked across running water again ! " * 20
)


# Metrics
# ----------------------------------------------------------------------------


def test_accuracy_counts_unseen_and_lost_as_wrong():
    assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75
    assert accuracy([-1, 0, 0], [0, -2, 0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O", []),
        ("B-A I-A O", [(0, 2, "A")]),
        ("I-A I-A B-A", [(0, 2, "A"), (2, 3, "A")]),  # IOB1: I begins, B only parts neighbours
        ("B-A I-B I-B", [(0, 1, "A"), (1, 3, "B")]),  # another type begins another entity
        ("B-A I-A E-A I-A", [(0, 3, "A"), (3, 4, "A")]),  # IOBES: E ends
        ("S-A S-A I-A", [(0, 1, "A"), (1, 2, "A"), (2, 3, "A")]),
        ("B-A-B I-A-B", [(0, 2, "A-B")]),  # a type with a hyphen
        ("B I O B B", [(0, 2, ""), (3, 4, ""), (4, 5, "")]),  # a single type
        ("B-A I-A L-A I-A U-A U-A", [(0, 3, "A"), (3, 4, "A"), (4, 5, "A"), (5, 6, "A")]),  # BILOU
        ("B M E S O", [(0, 3, ""), (3, 4, "")]),  # BMES
    ],
)
def test_entities_by_hand(tags, spans):
    assert entities(tags.split()) == set(spans)


@pytest.mark.parametrize(
    ("labels", "metric"),
    [
        ("B I O", "entity-f1"),
        ("B O", "entity-f1"),  # no entity of two words
        ("B E M S", "entity-f1"),  # segmentation into words
        ("B-A I-A L-A O U-A", "entity-f1"),
        ("B-A I-A", "entity-f1"),
        ("B I", "accuracy"),  # letters of another kind
        ("S U", "accuracy"),
        ("NOUN O VERB", "accuracy"),
        ("B I O X", "accuracy"),
        ("B E O", "accuracy"),  # languages
        ("U-A U-B O", "entity-f1"),  # BILOU without entities of two words
        ("S-1 M-1 L-1", "accuracy"),
        ("E-EN S-ES U", "accuracy"),
    ],
)
def test_tags_of_entities_are_judged_by_their_entities(labels, metric):
    assert KINDS["token-classification"].metric_for(tuple(labels.split()), None) == metric


def test_the_best_constant_tag_is_a_guess_at_entities_without_types():
    """Always O has no entities; always B has as many hits as there are entities of one word."""
    rows = [TaggedRow(("a", "b", "c"), ("B", "O", "O")), TaggedRow(("a", "b"), ("B", "I"))] * 5
    task = task_of("token-classification", rows, ("B", "I", "O"), "entity-f1")
    always = [entity_f1(["B", "O", "O", "B", "I"], [tag] * 5, [0, 3]) for tag in "BIO"]
    assert task.majority == pytest.approx(max(always)) and max(always) > 0.2


# Data
# ----------------------------------------------------------------------------


def rows_of(n, classes=3, **more):
    return [
        {"text": f"row {i} is topic{i % classes}", "label": f"c{i % classes}"} | more
        for i in range(n)
    ]


def lines_of(rows):
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.mark.parametrize("name", BUNDLED_TASKS)
def test_the_list_says_what_a_bundled_task_is(name: str) -> None:
    task = load_task(name)
    rows = f"{len(task.splits['train']):,} training rows, {task.test_items:,} test items"
    assert WHAT_THEY_ARE[name] == f"{task.kind.name}, {len(task.labels)} classes, {rows}"


@pytest.mark.parametrize("name", BUNDLED_TASKS)
def test_bundled_tasks_load(name):
    task = load_task(name)
    names = name in ("wikigold", "wnut17")
    assert (
        task.name == name
        and task.metric == ("entity-f1" if names else "accuracy")
        and not task.skipped
    )
    assert task.facts()["test_items"] > 500 and len(task.labels) >= (5 if names else 10)
    assert task.majority == 0 if names else 0 < task.majority < 0.3


def test_a_single_file_is_cut_by_the_text(tmp_path):
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(lines_of(rows_of(400))))
    task = load_task(tmp_path / "mine.jsonl.gz")
    sizes = {split: len(rows) for split, rows in task.splits.items()}
    assert sum(sizes.values()) == 400 and 250 < sizes["train"] < 310 and 35 < sizes["test"] < 90
    again = load_rows(tmp_path, rows_of(500)[::-1], name="more")
    assert {row.text for row in task.splits["test"]} <= {row.text for row in again.splits["test"]}
    assert task.name == "mine" and task.fingerprint != again.fingerprint


def test_all_tables_give_the_same_task(tmp_path):
    rows = rows_of(60)
    table = pandas.DataFrame(rows)
    table.to_parquet(tmp_path / "t.parquet")
    write_lines(tmp_path / "t.jsonl", rows)
    table.to_csv(tmp_path / "t.csv", index=False)
    table.rename(columns={"text": "sentence"}).to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    tasks = [load_task(tmp_path / f"t.{ending}") for ending in ("parquet", "jsonl", "csv", "tsv")]
    assert len({task.fingerprint for task in tasks}) == 1


def test_conll_files(tmp_path):
    conllu = (
        "# text = dogs "
        "bark\n1-2\tdogsbark\t_\t_\n1\tdogs\tdog\tNOUN\n2\tbark\tbark\tVERB\n2.1\tx\tx\tX\n\n"
    )
    conll = "-DOCSTART- O\n\n# O\nParis B-LOC\n\nis O\nit O\n"
    (tmp_path / "ner.conll").write_text(conll * 20)
    (tmp_path / "pos").mkdir()
    for split in SPLITS:
        (tmp_path / "pos" / f"{split}.conllu").write_text(conllu)
    task = load_task(tmp_path / "pos")
    assert list(task.splits["test"]) == [TaggedRow(["dogs", "bark"], ["NOUN", "VERB"])]
    assert task.metric == "accuracy" and task.test_items == 2
    ner = read_records(tmp_path / "ner.conll")
    assert ner[0] == {"tokens": ["#", "Paris"], "tags": ["O", "B-LOC"]} and len(ner) == 40
    uner = "# newdoc id = x\n1\tIn\tO\t-\t-\n2\tUlm\tB-LOC\t-\tme\n"
    (tmp_path / "u.iob2").write_text(uner)
    assert read_records(tmp_path / "u.iob2") == [{"tokens": ["In", "Ulm"], "tags": ["O", "B-LOC"]}]


def test_a_folder_without_test_is_scored_on_dev(tmp_path):
    write_lines(tmp_path / "train.jsonl", rows_of(200))
    dev = [{"text": f"dev {i}", "label": f"c{i % 4}"} for i in range(8)]
    write_lines(tmp_path / "validation.jsonl", dev)
    write_lines(tmp_path / "test.jsonl", [{"text": "hidden", "label": -1}] * 5)
    task = load_task(tmp_path)
    assert [row.text for row in task.splits["test"]] == [f"dev {i}" for i in range(8)]
    assert len(task.splits["train"]) + len(task.splits["dev"]) == 200
    assert task.skipped == {"test: no label": 5}
    assert task.labels == ("c0", "c1", "c2") and task.test_items == 8  # c3 is unseen; its rows stay


def test_data_sets_from_the_hub_get_class_names(monkeypatch):
    rows = [{"sentence1": f"a{i}", "sentence2": "b", "label": i % 2} for i in range(50)]
    names = datasets.ClassLabel(names=["no", "yes"])
    split = datasets.Dataset.from_list(rows).cast_column("label", names)
    asked = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *args: asked.append(args) or {"train": split, "test": split},
    )
    task = load_task("hf:glue:rte")
    assert asked == [("glue", "rte")] and task.labels == ("no", "yes") and task.name == "glue-rte"
    assert task.splits["test"][0] == TextRow("a0", "b", "no")


def test_fewer_training_rows_are_balanced_and_nested():
    task = load_task("banking77")
    few, fewer = task.with_train_rows(100), task.with_train_rows(40)
    counts = np.unique([row.label for row in few.splits["train"]], return_counts=True)[1]
    assert (counts == 5).all() and few.splits["test"] is task.splits["test"]
    texts = [{row.text for row in t.splits["train"]} for t in (fewer, few)]
    assert texts[0] < texts[1]


def test_fewer_test_rows_are_nested_and_noted():
    task = load_task("banking77")
    few, fewer = load_task("banking77(test_rows=100)"), task.with_test_rows(40)
    assert few.test_items == 100 and few.splits["train"] == task.splits["train"]
    for split in ("dev", "test"):
        texts = [{row.text for row in t.splits[split]} for t in (fewer, few, task)]
        assert len(texts[0]) <= 40 and texts[0] < texts[1] < texts[2]
    assert any("test is 100 of 800 rows" in note for note in few.notes)
    assert few.fingerprint != task.fingerprint and task.with_test_rows(10**6).splits == task.splits


# Encoding
# ----------------------------------------------------------------------------


def metaspace_tokenizer(scheme):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace()
    special = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    ends = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    names = [f"{name}_token" for name in ("bos", "eos", "pad", "unk", "mask")]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(names, special)))


TOKENIZERS = {
    "wordpiece": lambda: train_tokenizer([TEXT], kind="wordpiece", vocab_size=64),
    "byte-level": lambda: train_tokenizer([TEXT], kind="bpe", vocab_size=300),
    "metaspace": lambda: metaspace_tokenizer("first"),
    "metaspace-never": lambda: metaspace_tokenizer("never"),
}


def task_of(kind, rows, labels=(), metric="accuracy"):
    return Task("mine", KINDS[kind], metric, labels, dict.fromkeys(SPLITS, rows))


def tagging_task(rows, labels=("ODD", "EVEN")):
    return task_of("token-classification", rows, labels)


def tagged(*sentences):
    return [
        TaggedRow(s.split(), ["ODD" if len(w) % 2 else "EVEN" for w in s.split()])
        for s in sentences
    ]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_tags_stand_on_the_first_piece_of_every_word(family):
    tokenizer = TOKENIZERS[family]()
    rows = tagged("the cat sat", "unbelievable kittens walked across running water", "never again")
    data = task_tensors(tagging_task(rows), tokenizer, max_length=64)["train"]
    assert data.lost == 0
    batch = data.batch(torch.arange(3))
    assert (batch["labels"] != -100).sum() == 3 + 6 + 2
    several = 0
    for i, row in enumerate(rows):
        ids, labels = batch["input_ids"][i], batch["labels"][i]
        firsts = (labels != -100).nonzero().flatten().tolist()
        assert labels[firsts].tolist() == [("ODD", "EVEN").index(tag) for tag in row.tags]
        ends = [*firsts[1:], int(batch["attention_mask"][i].sum()) - 1]
        for word, start, end in zip(row.tokens, firsts, ends, strict=True):
            assert tokenizer.decode(ids[start:end]).strip() == word
            several += end - start > 1
        # A word is written as inside a sentence: as in the text with a space before it.
        text = tokenizer(" " + " ".join(row.tokens), add_special_tokens=False)["input_ids"]
        if family != "metaspace-never":
            assert ids[1 : ends[-1]].tolist() == text
    assert several >= 3  # else the test shows nothing


def test_words_cut_off_or_without_a_piece_are_lost_and_wrong():
    tokenizer = TOKENIZERS["wordpiece"]()
    rows = [TaggedRow(["cat", "\u200b", "sat", "the", "mat"], ["ODD"] * 5)]
    task = tagging_task(rows)
    whole = task_tensors(task, tokenizer, max_length=64)["test"]
    cut = task_tensors(task, tokenizer, max_length=4)["test"]
    assert whole.lost == 1 and cut.lost == 3 and len(cut.flat.ids) == 4
    always = torch.where(cut.place < 0, -2, 0)
    assert task.score("test", always) == pytest.approx(2 / 5)


def test_entity_scores_of_lost_and_unseen_words():
    rows = [TaggedRow(["the", "cat", "sat"], ["B-X", "I-X", "B-Y"])]
    task = task_of("token-classification", rows, ("B-X", "I-X", "O"), "entity-f1")
    data = task_tensors(task, TOKENIZERS["wordpiece"](), max_length=4)["test"]
    assert task.gold("test").tolist() == [0, 1, -1] and data.lost == 1
    # X found; Y cannot be
    assert task.score("test", torch.tensor([0, 1, -2])) == pytest.approx(2 / 3)
    assert task.majority == pytest.approx(entity_f1(["B-X", "I-X", "B-Y"], ["B-X"] * 3))


def test_pairs_and_special_names_in_texts():
    tokenizer = TOKENIZERS["wordpiece"]()
    rows = [TextRow("the cat [MASK]", "sat again", c) for c in ("a", "b")]
    task = task_of("sequence-classification", rows, ("a", "b"))
    batch = task_tensors(task, tokenizer, max_length=64)["train"].batch(torch.arange(2))
    assert (batch["input_ids"] == tokenizer.sep_token_id).sum() == 4
    assert tokenizer.mask_token_id not in batch["input_ids"]  # text is text
    types = batch["token_type_ids"][0]
    assert types[0] == 0 and types[-1] == 1
    short = task_tensors(task, tokenizer, max_length=7)["train"]
    assert short.lengths.tolist() == [7, 7]
    assert (short.flat.ids == tokenizer.sep_token_id).sum() == 4


def test_source_gives_every_row_once_an_epoch_and_is_stateless():
    task = tagging_task(tagged(*(["the cat sat", "water"] * 32)))
    data = task_tensors(task, TOKENIZERS["wordpiece"](), max_length=16)["train"]
    settings = TrainingSettings(steps=100, batch_size=4, accumulate=2, seed=3)
    source = TaskSource(data, settings)
    epoch = torch.cat([source.planned(step)[:, 0] for step in range(16)])
    assert epoch.sort().values.tolist() == list(range(64))
    later = source.planned(21)[:, 0].tolist()
    assert TaskSource(data, settings).planned(21)[:, 0].tolist() == later
    # Another epoch, another order.
    assert source.planned(5)[:, 0].tolist() != later
    one = source.batches(7, rank=0, ranks=1)
    assert [len(batch["input_ids"]) for batch in one] == [2, 2]
    two = source.batches(7, rank=0, ranks=2) + source.batches(7, rank=1, ranks=2)
    targets = [sum(int((b["labels"] != -100).sum()) for b in batches) for batches in (one, two)]
    assert targets[0] == targets[1]


# Objective and fine-tuning
# ----------------------------------------------------------------------------


def tiny_config(tokenizer, **more):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return new_config("modernbert", tokenizer, 32, **sizes, intermediate_size=32, **more)


def test_classification_is_the_models_own_loss():
    tokenizer = TOKENIZERS["wordpiece"]()
    task = tagging_task(tagged("the cat sat on", "water"))
    batch = task_tensors(task, tokenizer, max_length=16)["train"].batch(torch.arange(2))
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(tiny_config(tokenizer, num_labels=2)).eval()
    types = {"token_type_ids": torch.zeros_like(batch["input_ids"])}  # ModernBERT has none
    total, count, *_ = Classification(model)({**batch, **types})
    assert int(count) == 5
    torch.testing.assert_close(total / count, model(**batch).loss)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    total, count, *_ = Classification(model)(nothing)
    assert total.item() == 0 and int(count) == 0


def topics(n):
    words = ["cat", "mat", "water"]
    texts = [f"the {words[i % 3]} sat on {'again ' * (i % 5)}!" for i in range(n)]
    rows = [TextRow(text, None, words[i % 3]) for i, text in enumerate(texts)]
    task = task_of("sequence-classification", rows[n // 2 :], tuple(words))
    return replace(task, splits={**task.splits, "train": rows[: n // 2]})


def test_a_whole_fine_tuning_learns_and_repeats(tmp_path):
    tokenizer = TOKENIZERS["wordpiece"]()
    task = topics(120)
    settings = FinetuneSettings(
        epochs=6, batch_size=8, learning_rate=3e-3, precision="no", max_length=32
    )
    start = {"tokenizer": tokenizer, "settings": settings, "config": tiny_config(tokenizer)}
    runs = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        runs[name] = finetune(None, task, seed=seed, folder=tmp_path / name, **start)
    first = runs["first"]
    assert first["score"] > 0.9 > 0.4 > first["majority"]
    assert (first["test_items"], first["steps"], runs["other"]["seed"]) == (60, 45, 2)
    assert {**first, "seconds": 0} == {**runs["again"], "seconds": 0}
    files = [tmp_path / name / "checkpoint/model.safetensors" for name in runs]
    weights = [file.read_bytes() for file in files]
    assert weights[0] == weights[1] != weights[2]
    # The checkpoint is the start of another fine-tuning: same body, a new head by the seed alone.
    other = tagging_task(tagged("the cat"))
    start = {"config": None, "max_length": 8}
    tuned = [
        load_network(files[0].parent, other, tokenizer, seed=seed, **start) for seed in (0, 0, 1)
    ]
    heads = [model.classifier.weight for model in tuned]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    bodies = [model.model.embeddings.tok_embeddings.weight for model in tuned]
    assert torch.equal(bodies[0], bodies[2])


def test_answers_do_not_depend_on_the_batches(monkeypatch):
    tokenizer = TOKENIZERS["wordpiece"]()
    task = tagging_task(tagged("the cat sat on the mat", "water", "never again !"))
    data = task_tensors(task, tokenizer, max_length=32)["test"]
    torch.manual_seed(0)
    objective = Classification(
        AutoModelForTokenClassification.from_config(tiny_config(tokenizer, num_labels=2))
    )
    together = answers_of(objective, data)
    monkeypatch.setattr(sys.modules["maskwise.tasks.tensors"], "EVAL_TOKENS", 1)
    assert answers_of(objective, data).tolist() == together.tolist() and len(together) == 10


def test_a_score_that_is_no_number_is_no_record(tmp_path, monkeypatch):
    def not_finite(_, flat, **options):
        return torch.full((len(flat.lengths), 4), torch.nan)

    monkeypatch.setattr("maskwise.tasks.finetuning.embed", not_finite)
    rows = [{"s1": f"the cat {i}", "s2": "sat", "score": i % 5} for i in range(30)]
    load_rows(tmp_path, rows, kind="zero-shot-similarity")
    given = {"overrides": ["max_length=8"], "seeds": 1, "out": tmp_path / "out"}
    with pytest.raises(MaskwiseError, match="task 'mine-zero-shot' on test is not a number"):
        run_finetune(
            "bundled:encoder", [f"{tmp_path}/mine.jsonl(kind='zero-shot-similarity')"], **given
        )
    assert not (tmp_path / "out").exists()


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="extra"):
        FinetuneSettings(epoch=3)
    task = topics(64)
    assert FinetuneSettings(epochs=2, batch_size=8).training(task, seed=5).steps == 8
    assert FinetuneSettings(steps=3).training(task, seed=5).seed == 5
    assert set(METRICS) == {name for kind in KINDS.values() for name in kind.metrics}


def test_relations_are_other_labels_of_the_same_file() -> None:
    relations = load_task("ud-relations").labels
    assert {"nsubj", "root", "punct"} <= set(relations) and "NOUN" not in relations


def test_a_rate_is_searched_on_dev_with_a_seed_of_its_own() -> None:
    tokenizer = TOKENIZERS["wordpiece"]()
    sizes = {"steps": 30, "batch_size": 8, "max_length": 32}
    settings = FinetuneSettings(**sizes, learning_rate=1e-4, precision="no", search_rate=True)
    task = topics(120)
    how = {"tokenizer": tokenizer, "config": tiny_config(tokenizer), "seeds": [0]}
    record = task_record(None, task, settings=settings, **how)
    tried = record["tried"]
    assert list(tried) == ["3.3e-05", "0.0001", "0.0003"] and tried["0.0003"] == max(tried.values())
    plain = settings.model_copy(update={"search_rate": False, "learning_rate": 3e-4})
    assert task_record(None, task, settings=plain, **how)["score"] == record["score"]


def test_the_scores_of_a_task_are_rows_of_a_study():
    task = load_task("trivia(kind='sentence-embedding', train_rows=50, test_rows=50)")
    (record,) = evaluate_tasks("bundled:encoder", [task], seeds=2)
    (score, dev, *_) = finetuning.rows_of(record)
    assert (score.kind, score.measure, score.split) == ("task", task.name, "test")
    assert dev.split == "dev" and len(score.facts["fine_tuning"]) == 1


@pytest.mark.parametrize("names", [("title", "body", "grade"), ("headline", "text2", "stars")])
def test_each_column_may_have_several_names(tmp_path, names):
    rows = [dict(zip(names, (f"title {n}", f"body {n}", "ab"[n % 2]))) for n in range(40)]
    task = load_rows(tmp_path, rows, text="title|headline", pair="body|text2", label="grade|stars")
    assert {row.texts[0][:5] for row in task.splits["train"]} == {"title"}
    assert {row.texts[1][:4] for row in task.splits["train"]} == {"body"}
