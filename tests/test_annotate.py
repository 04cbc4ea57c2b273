"""Annotations are made once: what is there stays, what changed is made anew, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import annotate_tools
from maskwise.annotate import registry, shard, store
from maskwise.annotate.registry import annotator
from maskwise.annotate.run import annotate_corpus
from maskwise.annotate.shard import shard_facts
from maskwise.annotate.store import Manifest, Store, cut_shards, to_parquet
from maskwise.cli import main
from maskwise.errors import MaskwiseError
from maskwise.folders import write_whole
from maskwise.inspection import examples, render_layers, write_layers
from maskwise.recipe import Recipe
from maskwise.study.stages import prepare_stage
from maskwise.study.work import run_stage
from maskwise.text import Document, Prepared, read_pieces, tokenise, train_tokenizer
from maskwise.text.layers import CharSpans, Layer, check_spans
from processes import PATIENCE, marked, wait_for
from tiny import flip

HERE = Path(__file__).parent


def corpus(count: int = 60) -> list[dict[str, str]]:
    """Documents of a few sentences, each another."""
    draw = np.random.default_rng(0)
    words = [
        "the",
        "Ulm",
        "owl",
        "sat",
        "on",
        "a",
        "Mat",
        "eats",
        "ice",
        "quietly",
        "naïve",
        "東京",
        "👩🏽‍🔬",
    ]
    texts = [
        " ".join(draw.choice(words, size=12)) + f". Number {number}!" for number in range(count)
    ]
    return [{"id": f"d{number}", "text": text} for number, text in enumerate(texts)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_DOCUMENTS", 8)
    monkeypatch.syspath_prepend(str(HERE))


def change_sentences(monkeypatch):
    """Give the annotator of sentences another version."""
    changed = annotator("sentences")
    changed.version = "another"
    monkeypatch.setitem(registry.ANNOTATORS, "sentences", lambda: changed)


@pytest.fixture
def rare(monkeypatch):
    monkeypatch.setitem(registry.ANNOTATORS, "rare", annotate_tools.Rare)
    monkeypatch.setattr(annotate_tools.Rare, "fits", 0)
    shard._annotator.cache_clear()


def files(out: Path) -> dict[str, tuple[int, bytes]]:
    """Shards with when they were written and what is in them."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (out / "shards").iterdir()
    }


def contents(out: Path) -> dict[str, bytes]:
    return {name: content for name, (_, content) in files(out).items()}


# ---- the store


spans_of_text = st.lists(st.integers(0, 40), min_size=0, max_size=12, unique=True).map(sorted)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(borders=st.lists(spans_of_text, min_size=1, max_size=6), seed=st.integers(0, 99))
def test_what_is_stored_comes_back(borders, seed, tmp_path):
    rng = np.random.default_rng(seed)
    layers = {
        "tag": Layer("categorical", ("a", "b")),
        "span": Layer("spans"),
        "weight": Layer("weight"),
    }
    documents = [Document(f"n{i}", f"{i} " + "x" * 60) for i in range(len(borders))]
    found = []
    for ends in borders:
        start, end = (
            np.array(ends[side : len(ends) // 2 * 2 : 2], dtype=np.int32) for side in (0, 1)
        )
        code = rng.integers(0, 3, len(start)).astype(np.int16)
        weight = rng.random(len(start)).astype(np.float32)
        found.append(
            {
                "tag": CharSpans(start, end, code),
                "span": CharSpans(start, end),
                "weight": CharSpans(start, end, weight),
            }
        )
    key, out = store.shard_key(documents), tmp_path / f"s{seed}"
    made = store.Part("x", "x", "v", layers)
    write_whole(out / "shards" / made.file(key), to_parquet(documents, found, layers, {}))
    manifest = Manifest("here", "c", len(documents), 0, (made,), (key,))
    write_whole(out / "manifest.json", manifest.to_json())
    assert Manifest.load(out) == manifest
    order = rng.permutation(len(documents))
    again = Store(out).annotate([documents[at].text for at in order])
    for at, spans in zip(order, again):
        for name, layer in layers.items():
            check_spans(spans[name], layer, 80)
            for mine, given_ in zip(spans[name], found[at][name]):
                assert mine is given_ is None or (
                    mine.tolist() == given_.tolist() and mine.dtype == given_.dtype
                )


def test_shards_are_cut_by_content():
    documents = [Document(one["id"], one["text"]) for one in corpus(400)]
    before = [store.shard_key(part) for part in cut_shards(documents)]
    assert 20 < len(before) < 100
    one_more = [*documents[:100], Document("new", "a new text"), *documents[100:]]
    after = [store.shard_key(part) for part in cut_shards(one_more)]
    assert len(set(after) - set(before)) <= 2  # the borders behind it stay where they were


# ---- runs


def test_a_second_run_makes_nothing_and_a_change_only_what_it_touches(tmp_path):
    texts = corpus()
    first = annotate_corpus(texts, ["words", "sentences"], tmp_path, jobs=1)
    before = files(tmp_path)
    assert first["made"] == 2 * first["shards"] == len(before) > 8
    assert annotate_corpus(texts, ["words", "sentences"], tmp_path, jobs=1) == first | {"made": 0}
    assert files(tmp_path) == before
    texts[30]["text"] = texts[30]["text"].replace(".", ",")  # one character
    again = annotate_corpus(texts, ["words", "sentences"], tmp_path, jobs=1)
    assert 2 <= again["made"] <= 6
    kept = {name: facts for name, facts in files(tmp_path).items() if name in before}
    assert kept == {name: before[name] for name in kept} and len(kept) >= len(before) - 4
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        "manifest.json",
        "shards",
        "summary.json",
    }


def test_layers_come_in_any_order_and_stay_with_their_corpus(tmp_path):
    texts = corpus(20)
    annotate_corpus(texts, ["words"], tmp_path, jobs=1)
    annotate_corpus(texts, ["sentences"], tmp_path, jobs=1)
    assert [*Store(tmp_path).layers] == ["words", "sentence"]
    assert [*Store(tmp_path, only=["sentence"]).layers] == ["sentence"]


def test_no_layer_is_lost_unasked(tmp_path):
    """Neither of another corpus, nor of this one where it has changed and only some layers are
    asked for.
    """
    annotate_corpus(corpus(20), ["words", "sentences"], tmp_path, jobs=1)
    before = files(tmp_path)
    others = [{"id": one["id"], "text": one["text"].upper()} for one in corpus(20)]
    with pytest.raises(
        MaskwiseError,
        match=r"another corpus; got 20 documents of the list of documents; give a new",
    ):
        annotate_corpus(others, ["words", "sentences"], tmp_path, jobs=1)
    with pytest.raises(
        MaskwiseError,
        match=r"has changed since .* got the layers words; ask for them too \(words\)",
    ):
        annotate_corpus(corpus(21), ["sentences"], tmp_path, jobs=1)
    assert files(tmp_path) == before
    annotate_corpus(corpus(21), ["sentences", "words"], tmp_path, jobs=1)
    assert [*Store(tmp_path).layers] == ["sentence", "words"]
    named = jsonl(tmp_path / "..", 20)
    annotate_corpus(named, ["words"], tmp_path / "named", jobs=1)
    # a file of that name is the same corpus, whatever is in it now
    named.write_text(json.dumps(others[0]))
    assert annotate_corpus(named, ["words"], tmp_path / "named", jobs=1)["documents"] == 1


def test_a_changed_annotator_is_noticed(tmp_path, monkeypatch):
    texts = corpus(30)
    annotate_corpus(texts, ["words", "sentences"], tmp_path, jobs=1)
    before, version = files(tmp_path), Store(tmp_path).version
    change_sentences(monkeypatch)
    shard._annotator.cache_clear()
    again = annotate_corpus(texts, ["words", "sentences"], tmp_path, jobs=1)
    assert again["made"] == again["shards"]
    assert {n for n in before if n.startswith("words")} == {
        n for n in files(tmp_path) if n.startswith("words")
    }
    assert Store(tmp_path).version != version


def test_a_damaged_shard_is_made_again(tmp_path):
    texts = corpus(30)
    annotate_corpus(texts, ["words"], tmp_path, jobs=1)
    before = contents(tmp_path)
    hit = sorted((tmp_path / "shards").iterdir())[1]
    hit.write_bytes(hit.read_bytes()[:-20])
    with pytest.raises(MaskwiseError, match="missing or damaged"):
        Store(tmp_path).annotate([one["text"] for one in texts])
    assert annotate_corpus(texts, ["words"], tmp_path, jobs=1)["made"] == 1
    assert contents(tmp_path) == before


def test_what_an_annotator_counted_is_counted_again_where_a_bit_has_flipped(tmp_path):
    texts = corpus(30)
    annotate_corpus(texts, ["frequency"], tmp_path, jobs=1)
    before = contents(tmp_path)
    (table,) = tmp_path.glob("fitted/*/words.parquet")
    flip(table, at=0.5)
    with pytest.raises(MaskwiseError, match=r"not as it was written; got words.parquet is damaged"):
        annotator(f"frequency(table={str(table.parent)!r})")
    annotate_corpus(texts, ["frequency"], tmp_path, jobs=1)
    assert contents(tmp_path) == before and (table.parent / "facts.json").is_file()


@pytest.mark.process
def test_any_number_of_processes_gives_the_same_bytes(tmp_path):
    texts = corpus(40)
    how = {"functions": ["annotate_tools:lengths(kind='weight')"]}
    one = annotate_corpus(texts, ["words"], tmp_path / "one", jobs=1, **how)
    two = annotate_corpus(texts, ["words"], tmp_path / "two", jobs=2, **how)
    assert one == two and contents(tmp_path / "one") == contents(tmp_path / "two")
    for name in ("manifest.json", "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('one\\ntwo')", "RuntimeError: one"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def find(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_module_that_raises_when_it_is_imported_is_one_line(
    source, said, tmp_path, monkeypatch, capsys
):
    (tmp_path / "mine_that_raises.py").write_text(source)
    (tmp_path / "texts.txt").write_text("Owls fly.")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(
            [
                "annotate",
                str(tmp_path / "texts.txt"),
                "--out",
                str(tmp_path / "o"),
                "--function",
                "mine_that_raises:find",
            ]
        )
    error = capsys.readouterr().err
    assert end.value.code == 2 and said in error and error.count("\n") == 1
    with pytest.raises(MaskwiseError, match="module:function"):
        annotate_corpus(str(tmp_path / "texts.txt"), [], tmp_path / "o", functions=[":find"])


@pytest.mark.process
def test_a_killed_run_goes_on(tmp_path):
    texts, out = corpus(80), tmp_path / "out"
    jsonl(tmp_path, 80)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from maskwise.annotate import run, store;"
        "store.SHARD_DOCUMENTS = 8;"
        "run.annotate_corpus(sys.argv[2], [], sys.argv[3], "
        "functions=['annotate_tools:slow'], jobs=1)"
    )
    environment = os.environ | {"SLOW": "0.3"}
    arguments = [sys.executable, "-c", code, str(HERE), str(tmp_path / "corpus.jsonl"), str(out)]
    process = subprocess.Popen(arguments, env=environment)
    wait_for(lambda: process.poll() is not None or len(list(out.glob("shards/*.parquet"))) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {name: facts for name, facts in files(out).items() if not name.startswith(".")}
    with pytest.raises(MaskwiseError, match="no finished annotations"):
        Store(out)
    found = annotate_corpus(
        tmp_path / "corpus.jsonl", [], out, functions=["annotate_tools:slow"], jobs=1
    )
    assert 3 <= len(before) < found["shards"]
    assert found["made"] == found["shards"]  # as it would be without the interruption
    assert (
        annotate_corpus(tmp_path / "corpus.jsonl", [], out, functions=["annotate_tools:slow"])[
            "made"
        ]
        == 0
    )
    after = files(out)
    assert {name: after[name] for name in before} == before and len(after) == found["shards"]
    assert len(Store(out).annotate([one["text"] for one in texts])) == 80


def test_annotators_that_count_first(tmp_path, rare):
    texts = corpus(30)
    annotate_corpus(texts, ["rare(floor=2)"], tmp_path, jobs=1)
    stored = Store(tmp_path)
    spans = stored.annotate([texts[3]["text"]])[0]["rare"]
    assert [texts[3]["text"][a:b] for a, b in zip(*spans[:2])] == ["3!"]
    annotate_corpus(texts, ["rare(floor=2)"], tmp_path, jobs=1)
    assert annotate_tools.Rare.fits == 1
    # another corpus has other counts
    annotate_corpus(texts[:-1], ["rare(floor=2)"], tmp_path, jobs=1)
    assert annotate_tools.Rare.fits == 2 and Store(tmp_path).version != stored.version
    # paths are not part of any key
    moved = tmp_path.rename(tmp_path.with_name("a\\moved 'folder'"))
    assert annotate_corpus(texts[:-1], ["rare(floor=2)"], moved, jobs=1)["made"] == 0
    assert annotate_tools.Rare.fits == 2


def test_long_documents_go_in_parts(tmp_path, monkeypatch):
    text = " ".join(f"word{number}. Another\n" for number in range(400))
    whole = annotator("words").annotate([text])[0]["words"]
    monkeypatch.setattr(shard, "PART_CHARACTERS", 100)
    annotate_corpus([text, "short"], ["words"], tmp_path, jobs=1)
    again = Store(tmp_path).annotate([text])[0]["words"]
    assert whole.start.tolist() == again.start.tolist() and whole.end.tolist() == again.end.tolist()


# ---- mistakes


def test_a_text_that_an_annotator_chokes_on_has_no_spans_and_is_counted(tmp_path):
    texts = corpus(30)
    texts[7]["text"] += " poison"
    found = annotate_corpus(texts, [], tmp_path, functions=["annotate_tools:chokes"], jobs=1)
    assert found["annotators"]["function('annotate_tools:chokes')"]["failures"] == {
        "RuntimeError: cannot digest this": 1
    }
    spans = Store(tmp_path).annotate([one["text"] for one in texts])
    assert [len(one["chokes"].start) == 0 for one in spans].count(True) == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("annotate_tools:outside", "must be sorted, not overlap and lie in the text"),
        ("annotate_tools:overlapping", "must be sorted, not overlap and lie in the text"),
        ("annotate_tools:too_few", "one list of spans per text"),
        ("annotate_tools:nothing", "cannot load the function"),
        ("annotate_toolz:capitals", "cannot load the function"),
        ("capitals", "allowed: module:function"),
        ("annotate_tools:lengths", r"a span; got \(0, 3, 3.0\)|a span"),
        ("annotate_tools:vowels(kind='categorical')", "spans, categorical"),
        ("annotate_tools:vowels(kind='categorical', labels=('other',))", "a label; got vowel"),
        (lambda texts: [], "cannot import this function"),
    ],
)
def test_functions_that_do_not_fit(function, message, tmp_path):
    with pytest.raises(MaskwiseError, match=message) as caught:
        annotate_corpus(corpus(4), [], tmp_path, functions=[function], jobs=1)
    assert "\n" not in str(caught.value)


def test_functions(tmp_path):
    labelled = "annotate_tools:vowels(kind='categorical', labels=('vowel',))"
    annotate_corpus(corpus(4), [], tmp_path, functions=[annotate_tools.capitals, labelled], jobs=1)
    text = corpus(4)[0]["text"]
    spans = Store(tmp_path).annotate([text])[0]
    big = [text[a:b] for a, b in zip(*spans["capitals"][:2])]
    assert big == re.findall(r"\b[A-Z]\w*", text)
    for start, end, code in zip(*spans["vowels"]):
        assert (text[start] in "aeiou") == (code == 1), text[start:end]


def test_no_recipe_runs_code():
    with pytest.raises(MaskwiseError, match="unknown annotator 'function'"):
        annotator('function("os:getcwd")')


def test_other_texts_are_refused(tmp_path):
    texts = corpus(20)
    annotate_corpus(texts, ["words"], tmp_path, jobs=1)
    documents = [Document(one["id"], one["text"]) for one in texts]
    tokenizer = train_tokenizer([text for _, text in documents], vocab_size=100)
    tokens = tokenise(documents, tokenizer, layers=Store(tmp_path))
    assert read_pieces(tokens, tokenizer=tokenizer, length=32).columns["words"].max() > 3
    documents[3] = Document("d3", documents[3].text + " ")
    with pytest.raises(
        MaskwiseError, match=r"made from another text; got '.*text key \d+; allowed: the 20 doc"
    ) as caught:
        list(tokenise(documents, tokenizer, layers=Store(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--with", "wordz"], "did you mean 'words'"),
        (["--with", "words,words"], "two annotators make the layer 'words'"),
        (["--with", " "], "no annotators"),
        (["--with", "words", "--engine", "spark"], "unknown engine 'spark'"),
        (["--with", "words(3)"], "annotator words"),
        (["--with", "gold('nowhere.conllu')"], "no such file of annotations"),
        (["--with", "stored('nowhere')"], "holds no finished annotations"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main(["annotate", "bundled:wikipedia", "--limit", "3", "--out", str(out), *arguments])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.strip().count("\n") == 0
    assert not out.exists()


@pytest.mark.parametrize("wanted", ["words,phrases", "phrases"])
def test_a_small_text_has_no_phrases_and_is_told_so(wanted, tmp_path, capsys):
    text, out = tmp_path / "small.txt", tmp_path / "out"
    text.write_text("Anna saw <b>New York</b> in May.\n\nNew York is large.\n")
    command = [
        "annotate",
        str(text),
        "--with",
        wanted,
        "--out",
        str(out),
        "--html",
        str(tmp_path / "p.html"),
    ]
    for _ in range(2):  # the second run counts nothing, and still says it
        with pytest.raises(SystemExit) as caught:
            main(command)
        error = capsys.readouterr().err.replace(f"wrote {tmp_path / 'p.html'}\n", "")
        assert not caught.value.code and error.count("\n") == 1
        assert "no phrase among these 12 words" in error and "phrases(min_count=" in error
    assert "no phrase among these" in (tmp_path / "p.html").read_text()
    documents = ["Anna saw <b>New York</b> in May.", "New York is large."]
    assert all(not len(found["phrase"].start) for found in Store(out).annotate(documents))
    assert json.loads((out / "summary.json").read_text())["annotators"]["phrases"]["notice"]


@pytest.mark.parametrize("count", [1, 40])
def test_a_run_that_ends_before_its_first_shard_leaves_nothing(count, tmp_path, rare):
    """Whether an annotator that counts finds too little, or one fails on the first text it sees."""
    for number, (wanted, function) in enumerate(
        [(["rare", "informativeness(min_count=1000)"], []), (["rare"], ["annotate_tools:outside"])]
    ):
        out = tmp_path / str(number) / "out"
        with pytest.raises(MaskwiseError):
            annotate_corpus(corpus(count), wanted, out, functions=function, jobs=1)
        assert not out.exists()
        out.mkdir()
        with pytest.raises(MaskwiseError):
            annotate_corpus(corpus(count), wanted, out, functions=function, jobs=1)
        assert not list(out.iterdir()), "a folder that was there stays, as it was"
    annotate_corpus(corpus(count), ["words"], out, jobs=1)
    before = files(out)
    with pytest.raises(MaskwiseError):
        annotate_corpus(corpus(count), wanted, out, functions=function, jobs=1)
    assert files(out) == before and len(Store(out).annotate([corpus(count)[0]["text"]])) == 1


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(MaskwiseError, match="holds something else; got precious"):
        annotate_corpus(corpus(3), ["words"], tmp_path, jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("out", ["back\\slash", "quo'te", "tab\there", "{folder}"])
def test_annotators_that_count_write_into_any_folder(out, tmp_path, rare):
    annotate_corpus(corpus(9), ["rare"], tmp_path / out, jobs=1)
    assert annotate_corpus(corpus(9), ["rare"], tmp_path / out, jobs=1)["made"] == 0


def test_a_ray_cluster_that_does_not_answer_is_one_line_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(MaskwiseError, match=r"^no Ray cluster at RAY_ADDRESS; got 127.0.0.1:1"):
        annotate_corpus(corpus(3), ["words"], tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_share_a_folder(tmp_path):
    import fcntl

    annotate_corpus(corpus(3), ["words"], tmp_path, jobs=1)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MaskwiseError, match="another run"):
            annotate_corpus(corpus(3), ["words"], tmp_path, jobs=1)


def test_a_full_disk_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        texts = [
            {"id": str(number), "text": one["text"] * 80} for number, one in enumerate(corpus(150))
        ]
        out = disk / "out"
        with pytest.raises(
            MaskwiseError, match=r"No space left on device; make room.*; what was finished is kept"
        ) as caught:
            annotate_corpus(texts, ["words"], out, jobs=1)
        assert "\n" not in str(caught.value)
        before = files(out)
        assert len(before) > 1 and all(
            pq.read_table(out / "shards" / name).num_rows for name in before
        )
        assert not list(out.rglob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        found = annotate_corpus(texts, ["words"], out, jobs=1)
        assert found["made"] == found["shards"] > len(before)
        assert {name: files(out)[name] for name in before} == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- gold and given layers


def test_gold_and_given_spans(tmp_path):
    rows = [
        "1\tOwls\t_\tNOUN",
        "2\tdo\t_\tAUX",
        "3\tn't\t_\tPART",
        "4\tfly\t_\tVERB",
        "5\t.\t_\tPUNCT",
    ]
    glue = {"2": "SpaceAfter=No", "4": "SpaceAfter=No"}
    lines = ["\t".join([row, *["_"] * 5, glue.get(row[0], "_")]) for row in rows]
    (tmp_path / "x.conllu").write_text(
        "# newdoc id = one\n# sent_id = 1\n" + "\n".join(lines) + "\n\n"
    )
    path = str(tmp_path / "x.conllu")
    found = annotate_corpus(path, [f"gold({path!r})"], tmp_path / "gold", jobs=1)
    labels = found["annotators"][f"gold({path!r})"]["layers"]["pos"]["labels"]
    assert labels == {"AUX": 1, "NOUN": 1, "PART": 1, "PUNCT": 1, "VERB": 1}
    text = "Owls don't fly."
    spans = Store(tmp_path / "gold").annotate([text])[0]["pos"]
    assert [text[a:b] for a, b in zip(*spans[:2])] == ["Owls", "do", "n't", "fly", "."]

    given_ = {"text": text, "spans": [[0, 4, "bird"]]}
    (tmp_path / "x.jsonl").write_text(
        json.dumps(given_) + "\n" + json.dumps({"text": "nothing"}) + "\n"
    )
    path = str(tmp_path / "x.jsonl")
    annotate_corpus(path, [f"spans({path!r}, labels=('bird',))"], tmp_path / "spans", jobs=1)
    first, second = Store(tmp_path / "spans").annotate([text, "nothing"])
    assert [side.tolist() for side in first["spans"]] == [[0], [4], [1]] and not len(
        second["spans"].start
    )
    for bad in ([[0, 99, "bird"]], [[0, 4, "cat"]], [[0]], 3):
        (tmp_path / "bad.jsonl").write_text(json.dumps(given_ | {"spans": bad}) + "\n")
        with pytest.raises(MaskwiseError, match=r"bad\.jsonl"):
            annotator(f"spans({str(tmp_path / 'bad.jsonl')!r}, labels=('bird',))")


def test_texts_that_are_looked_up_come_whole_however_long(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "PART_CHARACTERS", 100)
    text = "An owl flies. " * 20
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": text, "spans": [[3, 6], [255, 258]]}))
    path = str(tmp_path / "x.jsonl")
    annotate_corpus(path, [f"spans({path!r})"], tmp_path / "spans", jobs=1)
    assert Store(tmp_path / "spans").annotate([text])[0]["spans"].start.tolist() == [3, 255]
    stored = f"stored({str(tmp_path / 'spans')!r})"
    annotate_corpus(path, [stored], tmp_path / "again", jobs=1)
    assert Store(tmp_path / "again").annotate([text])[0]["spans"].start.tolist() == [3, 255]
    word = "\n".join(f"{n}\tword\t_\tNOUN" + "\t_" * 6 for n in range(1, 60))
    (tmp_path / "x.conllu").write_text(word + "\n\n")
    gold = str(tmp_path / "x.conllu")
    found = annotate_corpus(gold, [f"gold({gold!r})"], tmp_path / "gold", jobs=1)
    assert found["annotators"][f"gold({gold!r})"]["layers"]["pos"]["labels"] == {"NOUN": 59}


def test_a_layer_under_another_name_is_made_anew(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "Owls fly", "spans": [[0, 4]]}))
    path = str(tmp_path / "x.jsonl")
    for name in ("birds", "owls"):
        annotate_corpus(path, [f"spans({path!r}, layer={name!r})"], tmp_path / "out", jobs=1)
        function = f"annotate_tools:capitals(layer='{name}_too')"
        annotate_corpus(path, [], tmp_path / "out", functions=[function], jobs=1)
    found = Store(tmp_path / "out").annotate(["Owls fly"])[0]
    assert [found[name].end.tolist() for name in ("owls", "owls_too")] == [[4], [4]]


# ---- what was found


def test_the_summary_counts(tmp_path):
    texts = corpus(50)
    labelled = "annotate_tools:vowels(kind='categorical', labels=('vowel',))"
    weights = "annotate_tools:lengths(kind='weight')"
    found = annotate_corpus(texts, ["words"], tmp_path, functions=[labelled, weights], jobs=1)
    words = [word for one in texts for word in re.findall(r"[a-z]+", one["text"])]
    opens = [word for word in words if word[0] in "aeiou"]
    _, vowels, lengths = (entry["layers"] for entry in found["annotators"].values())
    assert vowels["vowels"]["labels"] == {"none": len(words) - len(opens), "vowel": len(opens)}
    top = dict(vowels["vowels"]["top"]["vowel"])
    assert top == {word: opens.count(word) for word in set(opens)}
    every = [len(word) for one in texts for word in re.findall(r"\w+", one["text"])]
    weight = lengths["lengths"]["weight"]
    assert weight == {"mean": pytest.approx(np.mean(every)), "least": 1.0, "greatest": max(every)}
    assert found["documents"] == 50 and found["characters"] == sum(
        len(one["text"]) for one in texts
    )
    assert found == json.loads((tmp_path / "summary.json").read_text())


def test_facts_of_a_shard_are_those_of_counting_one_after_the_other():
    """Spans of five codes over texts of which some are empty; few of the commonest are kept, ties
    by their text.
    """
    draw, layer = np.random.default_rng(3), Layer("categorical", ("a", "b", "c", "d"))
    texts = [*(one["text"] for one in corpus(40)), "", " ", "x" * 90]
    found = [
        CharSpans.of(
            [(m.start(), m.end(), draw.integers(0, 5)) for m in re.finditer(r"\S+", t)], layer
        )
        for t in texts
    ]
    facts = shard_facts(texts, [{"l": spans} for spans in found], {"l": layer})
    count = Counter((int(c), t[a:b]) for t, spans in zip(texts, found) for a, b, c in zip(*spans))
    for code in range(5):
        mine = sorted((-n, text) for (c, text), n in count.items() if c == code and len(text) <= 60)
        assert facts["layers"]["l"]["top"][str(code)] == {text: -n for n, text in mine[:20]}
    labels = Counter(str(code) for code, _ in count.elements())
    assert facts["layers"]["l"]["labels"] == labels and facts["characters"] == sum(map(len, texts))
    assert facts["layers"]["l"]["words"] == facts["words"] > facts["layers"]["l"]["spans"]


def test_pages_show_texts_and_escape_them(tmp_path, capsys):
    texts = [
        {"id": "<i>", "text": "Ulm <script>alert(1)</script> \x1b[31mRed " + "a" * 700},
        *corpus(3),
    ]
    found = annotate_corpus(
        texts, ["words"], tmp_path / "out", functions=["annotate_tools:capitals"], jobs=1
    )
    shown = examples(Store(tmp_path / "out"), [Document(one["id"], one["text"]) for one in texts])
    assert {example.layer for example in shown} == {"capitals"} and len(shown) == 3
    assert [stretch.text for stretch in shown[0].stretches if stretch.style][:1] == ["Ulm"]
    write_layers(found, shown, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (
        "<script>" not in page
        and "<i>" not in page
        and "&lt;script&gt;" in page
        and ">Ulm</mark>" in page
    )
    from rich.console import Console

    Console(width=100).print(render_layers(found, shown))
    assert "capitals in <i>" in (text := capsys.readouterr().out) and "\x1b[31mRed" not in text


def test_command(tmp_path, capsys):
    arguments = [
        "annotate",
        "bundled:wikipedia",
        "--limit",
        "40",
        "--with",
        "words,sentences",
        "--jobs",
        "1",
    ]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--out", str(tmp_path), "--html", str(tmp_path / "page.html"), "--json"])
    assert not caught.value.code
    found = json.loads(capsys.readouterr().out)
    assert (
        found["documents"] == 40
        and found["annotators"]["words"]["layers"]["words"]["spans"] == found["words"]
    )
    assert (tmp_path / "page.html").is_file()
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path)])
    assert "sentence: " in capsys.readouterr().out


# ---- in studies


def test_the_rows_of_a_prepared_corpus_carry_layers(tmp_path, monkeypatch):
    recipe = Recipe(
        corpus={
            "source": str(jsonl(tmp_path, 60)),
            "length": 24,
            "held_out": 0.2,
            "layers": ["words", "sentences"],
        },
        tokenizer={"vocab_size": 100},
        masking={"policy": "sentence"},
    )
    stage = prepare_stage(recipe)
    run_stage(stage, tmp_path / "stages")
    data = Prepared.open(stage.folder(tmp_path / "stages") / "data")
    for side in (data.training, data.held_out):
        batch = side.tensors(range(len(side)))
        inside = batch["word_ids"] >= 0
        assert (batch["words"][inside] >= 0).all() and (batch["sentence"][~inside] == -1).all()
    # The words of the annotator are those of the word layer, numbered by the document, not by the
    # row.
    batch = data.training.tensors([0])
    word, layer = batch["word_ids"][0], batch["words"][0]
    assert ((word[1:] != word[:-1]) == (layer[1:] != layer[:-1])).all()
    stored = f"stored({str(stage.folder(tmp_path / 'stages') / 'layers')!r}, only=('sentence',))"
    again = recipe.model_copy(
        update={"corpus": recipe.corpus.model_copy(update={"layers": (stored,)})}
    )
    assert prepare_stage(again).name != stage.name
    run_stage(prepare_stage(again), tmp_path / "stages")
    other = Prepared.open(prepare_stage(again).folder(tmp_path / "stages") / "data").training.pieces
    assert [*other.columns] == ["input_ids", "word_ids", "sentence"]
    assert (other.columns["sentence"] == data.training.pieces.columns["sentence"]).all()

    change_sentences(monkeypatch)
    assert prepare_stage(recipe).name != stage.name  # a changed annotator is another stage


def test_a_study_refuses_phrases_of_a_text_that_has_none(tmp_path):
    """Its arm of phrases would be whole words under another name."""
    corpus = {"source": str(jsonl(tmp_path, 8)), "length": 24, "layers": ["phrases"]}
    stage = prepare_stage(
        Recipe(corpus=corpus, tokenizer={"vocab_size": 100}, masking={"policy": "phrase"})
    )
    with pytest.raises(MaskwiseError, match="phrases: no phrase among these"):
        run_stage(stage, tmp_path / "stages")


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"layers": ["wordz"]}, "did you mean 'words'"),
        ({"layers": ["words", "words"]}, "make the layer 'words'"),
    ],
)
def test_recipes_name_known_annotators(corpus, message):
    with pytest.raises(ValueError, match=message):
        Recipe(corpus=corpus)


def test_a_layer_made_anew_leaves_what_came_in_the_same_pass(tmp_path):
    texts = corpus(6)
    annotate_corpus(texts, ["pos", "salient"], tmp_path)
    before = Store(tmp_path, ["pos"]).annotate([texts[0]["text"]])[0]["pos"]
    annotate_corpus(texts, ["salient", "words"], tmp_path)
    assert Store(tmp_path).layers.keys() == {"pos", "salient", "words"}
    after = Store(tmp_path, ["pos"]).annotate([texts[0]["text"]])[0]["pos"]
    assert all(np.array_equal(a, b) for a, b in zip(before, after)) and len(after.start)
    # nothing was thrown away
    assert annotate_corpus(texts, ["pos", "salient"], tmp_path)["made"] == 0


def test_a_file_of_spans_that_was_changed_is_read_again(tmp_path):
    given, texts = tmp_path / "spans.jsonl", [{"id": "a", "text": "one two three"}]
    found = []
    for end in (3, 7):
        given.write_text(
            json.dumps({"id": "a", "text": "one two three", "spans": [[0, end]]}) + "\n"
        )
        annotate_corpus(texts, [f'spans("{given}")'], tmp_path / "out")
        found += Store(tmp_path / "out").annotate(["one two three"])[0]["spans"].end.tolist()
    assert found == [3, 7]


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("always", "failed on all .* of a shard; got .*no such dictionary"),
        ("offline", "server is away"),
    ],
)
def test_an_annotator_that_fails_everywhere_ends_the_run(function, told, tmp_path):
    with pytest.raises(MaskwiseError, match=told):
        annotate_corpus(corpus(90), [], tmp_path / "out", functions=[f"annotate_tools:{function}"])
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_damaged_manifest_and_a_damaged_shard_are_mended(tmp_path):
    texts = corpus(60)
    first = annotate_corpus(texts, ["sentences"], tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert annotate_corpus(texts, ["sentences"], tmp_path) == first | {"made": 0}
    damaged = next((tmp_path / "shards").iterdir())
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200] + bytes(40) + whole[240:])  # its footer is as it was
    assert annotate_corpus(texts, ["sentences"], tmp_path)["made"] == 1
    assert damaged.read_bytes() == whole


def jsonl(folder: Path, count: int) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in corpus(count)))
    return path


# ---- processes


@pytest.mark.process
def test_a_worker_that_dies_is_one_line(tmp_path):
    with pytest.raises(
        MaskwiseError, match=r"the worker process died \(exit code 3\); was there enough memory"
    ) as caught:
        annotate_corpus(corpus(40), [], tmp_path, functions=["annotate_tools:dies"], jobs=2)
    assert "\n" not in str(caught.value)


@pytest.mark.process
def test_workers_leave_with_their_parent(tmp_path):
    code = (
        "import sys; from maskwise.annotate import run, store; store.SHARD_DOCUMENTS = 8\n"
        "run.annotate_corpus(sys.argv[1], [], sys.argv[2], "
        "functions=['annotate_tools:slow'], jobs=2)"
    )
    (tmp_path / "go.py").write_text(code)
    out = tmp_path / "out"
    arguments = [sys.executable, str(tmp_path / "go.py"), str(jsonl(tmp_path, 400)), str(out)]
    process = subprocess.Popen(arguments, env=with_tools(SLOW="0.5", MARKER=str(tmp_path)))
    wait_for(lambda: process.poll() is not None or list(out.glob("shards/*.parquet")))
    assert len(marked(str(tmp_path))) == 3  # itself and two workers
    process.kill()
    process.wait()
    wait_for(lambda: not marked(str(tmp_path)))


@pytest.mark.process
@pytest.mark.parametrize("event", [pytest.param("import", marks=pytest.mark.slow), "shard"])
def test_ctrl_c_pressed_twice_ends_all_in_one_line(event, tmp_path):
    """Early, while the workers import, or after the first shards."""
    out, marker = tmp_path / "out", str(tmp_path)
    arguments = [
        "annotate",
        str(jsonl(tmp_path, 4000)),
        "--with",
        "words",
        "--out",
        str(out),
        "--jobs",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "maskwise.cli", *arguments, "--function", "annotate_tools:slow"],
        env=with_tools(SLOW="0.5", MARKER=marker),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if event == "shard":
        wait_for(lambda: process.poll() is not None or list(out.glob("shards/*.parquet")))
    else:
        wait_for(lambda: process.poll() is not None or len(marked(marker)) == 3)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in printed, printed
    wait_for(lambda: not marked(marker))


@pytest.mark.process
def test_a_long_name_of_the_temporary_folder_does_no_harm(tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    arguments = [
        "annotate",
        str(jsonl(tmp_path, 400)),
        "--with",
        "words",
        "--out",
        str(tmp_path / "out"),
    ]
    command = [sys.executable, "-m", "maskwise.cli", *arguments, "--jobs", "2"]
    assert not subprocess.run(command, env=os.environ | {"TMPDIR": str(long)}).returncode


def with_tools(**settings: str) -> dict[str, str]:
    """The environment of a process that can import annotate_tools."""
    path = ":".join(map(str, [HERE, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path} | settings


# ---- slow


@pytest.mark.slow
@pytest.mark.process
def test_ray_gives_the_same_bytes(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    texts = corpus(300)
    how = {"functions": ["annotate_tools:lengths(kind='weight')"]}
    annotate_corpus(texts, ["words", "sentences"], tmp_path / "local", jobs=1, **how)
    os.environ["PYTHONPATH"] = f"{HERE}:{os.environ.get('PYTHONPATH', '')}"
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        found = annotate_corpus(
            texts, ["words", "sentences"], tmp_path / "ray", engine="ray", **how
        )
        assert found["made"] == 3 * found["shards"] > 60
        assert contents(tmp_path / "ray") == contents(tmp_path / "local")
        bad = ["annotate_tools:outside"]
        with pytest.raises(MaskwiseError, match="must be sorted, not overlap") as caught:
            annotate_corpus(texts, [], tmp_path / "bad", engine="ray", functions=bad)
        assert "\n" not in str(caught.value)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_ten_megabytes_in_one_document(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        json.dumps({"text": "A long text, with no end. " * 400_000}) + "\n"
    )
    code = (
        "import resource, sys; from maskwise.annotate.run import annotate_corpus;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; before = "
        "peak();"
        "annotate_corpus(sys.argv[1], ['words', 'sentences'], sys.argv[2], jobs=1); "
        "print(peak() - before)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "corpus.jsonl"), str(tmp_path / "out")]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 900, "MiB more than before"
