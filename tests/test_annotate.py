"""Annotations are made once: what is there stays, what changed is made anew, and nothing else."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from rich.progress import Progress

import annotate_tools
import maskwise as mw
from maskwise.annotate import kept, registry, run, tagger, tally
from maskwise.annotate.kept import Store, cut_shards, to_parquet
from maskwise.annotate.registry import annotator, spec_of
from maskwise.annotate.run import Live, annotate_corpus
from maskwise.annotate.tally import Tally
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_json
from maskwise.jobs import pools
from maskwise.masking.settings import Masking
from maskwise.masks.export import export_masks
from maskwise.masks.show import examples, render_layers, write_layers
from maskwise.recipe import Recipe
from maskwise.studies import work
from maskwise.studies.stages import prepare_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text import Document, Prepared, read_documents, train_tokenizer
from maskwise.text.documents import Joined
from maskwise.text.layers import CharSpans, Found, Layer, check_spans
from processes import PATIENCE, marked, wait_for
from tiny import flip, maskwise, unversioned

HERE = Path(__file__).parent


WORDS = [
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
    "👩🏽\u200d🔬",
]


def corpus(count: int = 60) -> list[dict[str, str]]:
    """Documents of a few sentences, each another."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, size=12)) for _ in range(count)]
    return [{"id": f"d{n}", "text": f"{text}. Number {n}!"} for n, text in enumerate(texts)]


def texts_of(documents: list[dict[str, str]]) -> list[str]:
    return [document["text"] for document in documents]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(kept, "SHARD_DOCUMENTS", 8)
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
    run.forget()


def files(out: Path) -> dict[str, tuple[int, bytes]]:
    """Shards with when they were written and what is in them."""
    paths = out.glob("*/*.parquet")
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths
    }


def contents(out: Path) -> dict[str, bytes]:
    return {name: content for name, (_, content) in files(out).items()}


# ---- the store


def test_what_is_stored_comes_back(tmp_path):
    """Spans of every kind, in any order of the texts; some texts have none."""
    tools = ("vowels(kind='categorical', labels=('vowel',))", "lengths(kind='weight')", "capitals")
    functions = [f"annotate_tools:{tool}" for tool in tools]
    documents = [*corpus(30), {"id": "none", "text": "!"}]
    annotate_corpus(documents, [], tmp_path, functions=functions)
    texts = texts_of(documents)[::-1]
    again = Store(tmp_path).annotate(texts)
    for maker in [annotator(spec_of(name), functions=True) for name in functions]:
        for spans, expected in zip(again, maker.annotate(texts), strict=True):
            for name, layer in maker.layers.items():
                check_spans(spans[name], layer, 500)
                np.testing.assert_equal(tuple(spans[name]), tuple(expected[name]))


def test_shards_are_cut_by_content():
    documents = [Document(one["id"], one["text"]) for one in corpus(400)]
    before = [part.key for part in cut_shards(documents)]
    assert 20 < len(before) < 100
    one_more = [*documents[:100], Document("new", "a new text"), *documents[100:]]
    after = [part.key for part in cut_shards(one_more)]
    assert len(set(after) - set(before)) <= 2  # the borders behind it stay where they were


# ---- runs


def test_the_limit_holds_for_documents_too(tmp_path):
    # A dry run once annotated the whole corpus, because the limit of its sample was ignored.
    documents = read_documents([document["text"] for document in corpus()], limit=20)
    assert annotate_corpus(documents, ["words"], tmp_path / "whole")["documents"] == 20
    assert annotate_corpus(documents, ["words"], tmp_path / "part", limit=3)["documents"] == 3
    joined = Joined([documents, read_documents(["One more text."])])
    assert annotate_corpus(joined, ["words"], tmp_path / "joined", limit=4)["documents"] == 4
    assert (len(list(documents)), len(list(joined))) == (20, 21)


def test_a_second_run_makes_nothing_and_a_change_only_what_it_touches(tmp_path):
    texts = corpus()
    first = annotate_corpus(texts, ["words", "sentences"], tmp_path)
    before = files(tmp_path)
    assert first["made"] == 2 * first["shards"] == len(before) > 8
    assert annotate_corpus(texts, ["words", "sentences"], tmp_path) == first | {"made": 0}
    assert files(tmp_path) == before
    texts[30]["text"] = texts[30]["text"].replace(".", ",")  # one character
    assert 2 <= annotate_corpus(texts, ["words", "sentences"], tmp_path)["made"] <= 6
    # What was made of the text as it was stays there.
    assert before.items() <= files(tmp_path).items()


def test_a_conllu_file_is_a_corpus_with_a_name(tmp_path):
    """Its layers are made again after a change, as those of other files; it was called a list."""
    path = tmp_path / "x.conllu"
    for text in ("Owls", "Mice"):
        path.write_text(f"1\t{text}\t_\tNOUN\t_\t_\t_\t_\t_\t_\n\n")
        assert annotate_corpus(path, ["words"], tmp_path / "out")["source"] == str(path)
        assert len(Store(tmp_path / "out").annotate([text])) == 1


def test_layers_come_one_after_the_other_and_a_pass_leaves_the_others_alone(tmp_path):
    texts = corpus(6)
    annotate_corpus(texts, ["pos", "salient"], tmp_path)
    before = Store(tmp_path, ["pos"]).annotate(texts_of(texts))
    annotate_corpus(texts, ["salient", "words"], tmp_path)
    assert sorted(Store(tmp_path).layers) == ["pos", "salient", "words"]
    after = Store(tmp_path, only=["pos"]).annotate(texts_of(texts))
    np.testing.assert_equal(after, before)
    assert annotate_corpus(texts, ["pos", "salient"], tmp_path)["made"] == 0


def test_corpora_share_a_folder(tmp_path):
    """Each text is annotated once, whichever corpus it is in, and all annotations stay."""
    small, large = corpus(20), corpus(60)
    first = annotate_corpus(small, ["words", "sentences"], tmp_path)
    before = files(tmp_path)
    other = [{"text": one["text"].upper()} for one in small]
    assert annotate_corpus(other, ["words"], tmp_path)["made"] > 0
    more = annotate_corpus(large, ["words", "sentences"], tmp_path)
    assert more["made"] < 2 * more["shards"], "some shards were there"
    assert before.items() <= files(tmp_path).items()
    for texts in (small, other, large):
        found = Store(tmp_path, "words").annotate(texts_of(texts))
        np.testing.assert_equal(found, annotator("words").annotate(texts_of(texts)))
    again = annotate_corpus(small, ["words", "sentences"], tmp_path)
    assert again == first | {"made": 0}
    with pytest.raises(MaskwiseError, match="different texts"):
        Store(tmp_path).annotate(texts_of(other))  # they have no sentences


def test_each_text_is_read_once_and_twice_with_a_fit(tmp_path, rare, monkeypatch):
    reads = Counter[str]()
    plain = kept.cut_shards

    def counted(documents):
        for part in plain(documents):
            reads.update(part.texts)
            yield part

    monkeypatch.setattr(run, "cut_shards", counted)
    for wanted, times in ((["words"], 1), (["rare"], 2), (["words", "rare"], 2)):
        reads.clear()
        annotate_corpus(corpus(30), wanted, tmp_path)
        assert {*reads.values()} == {times}


@pytest.fixture
def fits(tmp_path) -> tuple[list[str], list[str], list[str]]:
    """A corpus, the same with more texts, and another one, whose words have other frequencies."""
    small, large = texts_of(corpus(40)), texts_of(corpus(60))
    other = [text.replace("owl", "Ulm") for text in small]
    for texts in (small, large, other):
        annotate_corpus(texts, ["frequency", "words"], tmp_path)
    return small, large, other


def weights_of(found: list[Found]) -> list[list[float]]:
    return [spans["frequency"].value.tolist() for spans in found]


def test_the_fit_of_the_texts_is_read(tmp_path, fits):
    stored = f"stored({str(tmp_path)!r})"
    for number, texts in enumerate(fits):
        alone = tmp_path / f"alone-{number}"
        annotate_corpus(texts, ["frequency"], alone)
        expected = weights_of(Store(alone).annotate(texts))
        assert weights_of(Store(tmp_path).annotate(texts)) == expected
        # A study annotates its corpus, shard by shard, with what is stored.
        annotate_corpus(texts, [stored], tmp_path / f"again-{number}")
        assert weights_of(Store(tmp_path / f"again-{number}").annotate(texts)) == expected
    # Part of the corpus: the smaller fit that has it, also after the larger one was asked for.
    small, large, other = fits
    annotate_corpus(large, ["frequency"], tmp_path)
    few = weights_of(Store(tmp_path).annotate(small[:3]))
    assert few == weights_of(Store(tmp_path / "alone-0").annotate(small[:3]))
    with pytest.raises(MaskwiseError, match="made from different texts") as caught:
        Store(tmp_path).annotate([*small, *other])
    assert "\n" not in str(caught.value) and "the 60 texts" in caught.value.allowed


def test_rows_are_made_with_the_fit_of_all_texts_or_with_none(tmp_path, fits):
    tokenizer = train_tokenizer(WORDS * 9, vocab_size=100)
    stored = f"stored({str(tmp_path)!r}, only='frequency')"
    _, large, other = fits
    annotate_corpus(large, ["frequency"], tmp_path / "alone")
    found = []
    for layers in ([stored], [f"stored({str(tmp_path / 'alone')!r})"]):
        rows = mw.encode(tokenizer, large, max_length=64, layers=layers)
        found.append([row["frequency"] for row in rows])
    assert found[0] == found[1]
    (tmp_path / "large.txt").write_text("\n".join(large))
    how = {"tokenizer": "bundled:tokenizer", "max_length": 64, "text_per": "line"}
    masking = Masking.of(policy="frequency")
    rows_of = set()
    for name, spec in (("first", stored), ("second", f"stored({str(tmp_path / 'alone')!r})")):
        facts = export_masks(
            tmp_path / "large.txt", tmp_path / name, masking=masking, layers=[spec], **how
        )
        rows_of.add(facts["rows_sha256"])
    assert len(rows_of) == 1
    # Those that get the texts in parts refuse it, and name those of the latest call.
    batch = {"text": other[:2]}
    for call in (
        lambda name: mw.annotate_rows(batch, tokenizer, layers=[name]),
        lambda name: Live([name]),
    ):
        with pytest.raises(MaskwiseError, match="whole corpus first") as caught:
            call(stored)
        [named] = re.findall(r"stored\([^()]*\([^()]*\)\)", caught.value.do)
        assert "\n" not in str(caught.value)
        call(named)


def test_a_fit_to_a_changed_corpus_is_announced(tmp_path, caplog):
    texts = corpus(30)
    with caplog.at_level("INFO", logger="maskwise"):
        annotate_corpus(texts, ["frequency"], tmp_path)
        annotate_corpus(texts, ["frequency"], tmp_path)
        assert "computed anew" not in caplog.text
        made = annotate_corpus(texts[:-1], ["frequency"], tmp_path)
    assert "frequency" in caplog.text and "computed anew" in caplog.text
    assert made["made"] == made["shards"]


def test_a_reordered_corpus_is_annotated_anew(tmp_path):
    texts = corpus(60)
    first = annotate_corpus(texts, ["words"], tmp_path)
    again = annotate_corpus(texts[::-1], ["words"], tmp_path)
    assert again["made"] == again["shards"] >= first["shards"] - 1
    assert Store(tmp_path).fitted
    for order in (texts, texts[::-1]):
        found = Store(tmp_path).annotate(texts_of(order))
        np.testing.assert_equal(found, annotator("words").annotate(texts_of(order)))


@pytest.mark.parametrize("wanted", ["words", "rare"])
def test_the_bar_knows_its_total(wanted, tmp_path, rare, monkeypatch):
    texts = corpus(40)
    seen = []

    class Bars(Progress):
        def __exit__(self, *error):
            seen.append(self.tasks[-1])
            super().__exit__(*error)

    monkeypatch.setattr(run, "Progress", Bars)
    monkeypatch.setattr(run, "err_console", Console(file=io.StringIO(), force_terminal=True))
    for _ in range(2):
        annotate_corpus(texts, [wanted], tmp_path)
        assert seen[-1].total == seen[-1].completed == sum(map(len, texts_of(texts)))


def test_a_corpus_that_changes_between_fit_and_annotation_is_noticed(tmp_path, rare, monkeypatch):
    source = jsonl(tmp_path, 30)
    plain = annotate_tools.Rare.fit

    def fit(self, texts, folder):
        spec = plain(self, texts, folder)
        jsonl(tmp_path, 31)
        return spec

    monkeypatch.setattr(annotate_tools.Rare, "fit", fit)
    with pytest.raises(MaskwiseError, match="changed while it was being read"):
        annotate_corpus(source, ["rare"], tmp_path / "out")


def test_a_changed_annotator_is_noticed(tmp_path, monkeypatch):
    texts, out = corpus(30), tmp_path / "out"
    annotate_corpus(texts, ["words", "sentences"], out)
    before, version = files(out), Store(out, ["sentence"]).version
    change_sentences(monkeypatch)
    again = annotate_corpus(texts, ["words", "sentences"], out)
    assert again["made"] == again["shards"]
    assert before.items() <= files(out).items()
    assert Store(out, ["sentence"]).latest().version != version
    # Another name of a layer, and another content of a file, are another annotator too.
    path = tmp_path / "x.jsonl"
    for name, end in (("birds", 4), ("owls", 4), ("owls", 8)):
        path.write_text(json.dumps({"text": "Owls fly", "spans": [[0, end]]}))
        annotate_corpus(["Owls fly"], [f"spans({str(path)!r}, layer={name!r})"], tmp_path / "o")
        assert Store(tmp_path / "o").annotate(["Owls fly"])[0][name].end.tolist() == [end]


def test_damage_is_refused_and_mended(tmp_path):
    texts = corpus(60)
    first = annotate_corpus(texts, ["sentences"], tmp_path)
    before = contents(tmp_path)
    for content in ("{", "{}"):
        (tmp_path / "layers.json").write_text(content)
        with pytest.raises(MaskwiseError, match=r"layers\.json is missing or damaged"):
            Store(tmp_path)
    assert annotate_corpus(texts, ["sentences"], tmp_path) == first | {"made": 0}
    (tmp_path / "layers.json").write_text('{"format": 2}')
    for read in (lambda: Store(tmp_path), lambda: annotate_corpus(texts, ["sentences"], tmp_path)):
        with pytest.raises(MaskwiseError, match="newer maskwise wrote it; got format 2"):
            read()
    (tmp_path / "layers.json").unlink()
    annotate_corpus(texts, ["sentences"], tmp_path)
    shard_file = next(tmp_path.glob("*/*.parquet"))
    whole = shard_file.read_bytes()
    shard_file.unlink()
    assert annotate_corpus(texts, ["sentences"], tmp_path)["made"] == 1
    # cut, and with a footer that is as it was
    for damaged in (whole[:-20], whole[:200] + bytes(40) + whole[240:]):
        shard_file.write_bytes(damaged)
        with pytest.raises(MaskwiseError, match="missing or damaged"):
            Store(tmp_path).annotate(texts_of(texts))
        assert annotate_corpus(texts, ["sentences"], tmp_path)["made"] == 1
        assert contents(tmp_path) == before


def test_what_an_annotator_counted_is_counted_again_where_a_bit_has_flipped(tmp_path):
    annotate_corpus(corpus(30), ["frequency"], tmp_path)
    assert not unversioned(tmp_path)
    before = contents(tmp_path)
    (table,) = tmp_path.glob("fitted/*/words.parquet")
    flip(table, at=0.5)
    with pytest.raises(MaskwiseError, match=r"changed since it was written; got words.parquet"):
        annotator(f"frequency(table={str(table.parent)!r})")
    annotate_corpus(corpus(30), ["frequency"], tmp_path)
    assert contents(tmp_path) == before and table.is_file()


@pytest.mark.process
def test_any_number_of_processes_gives_the_same_bytes(tmp_path):
    texts = corpus(40)
    how = {"functions": ["annotate_tools:lengths(kind='weight')"]}
    one = annotate_corpus(texts, ["words"], tmp_path / "one", **how)
    two = annotate_corpus(texts, ["words"], tmp_path / "two", jobs=2, **how)
    assert one == two and contents(tmp_path / "one") == contents(tmp_path / "two")
    for name in ("layers.json", "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('one\\ntwo')", "RuntimeError: one"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def find(:", "SyntaxError"),
    ],
)
def test_a_module_that_raises_when_it_is_imported_is_one_line(source, said, tmp_path, monkeypatch):
    (tmp_path / "mine_that_raises.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MaskwiseError, match=said) as caught:
        annotate_corpus(corpus(4), [], tmp_path / "o", functions=["mine_that_raises:find"])
    assert "\n" not in str(caught.value)


@pytest.mark.process
def test_a_killed_run_goes_on(tmp_path):
    source, out = jsonl(tmp_path, 80), tmp_path / "out"
    code = (
        "import sys; from maskwise.annotate import run, kept; kept.SHARD_DOCUMENTS = 8;"
        "run.annotate_corpus(sys.argv[1], [], sys.argv[2], functions=['annotate_tools:slow'])"
    )
    arguments = [sys.executable, "-c", code, str(source), str(out)]
    process = subprocess.Popen(arguments, env=with_tools(SLOW="0.3"))
    wait_for(lambda: process.poll() is not None or len(list(out.glob("*/*.parquet"))) >= 3)
    process.kill()
    process.wait()
    before = {name: facts for name, facts in files(out).items() if name.endswith("parquet")}
    with pytest.raises(MaskwiseError, match="no finished annotations"):
        Store(out)
    again = partial(annotate_corpus, source, [], out, functions=["annotate_tools:slow"])
    found = again()
    assert 3 <= len(before) == found["shards"] - found["made"] < found["shards"]
    assert again()["made"] == 0
    after = files(out)
    assert before.items() <= after.items() and len(after) == found["shards"]
    assert len(Store(out).annotate(texts_of(corpus(80)))) == 80


@pytest.mark.process
def test_a_document_that_kills_its_worker_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    texts = corpus(30)
    texts[7]["text"] += " poison"
    with pytest.raises(MaskwiseError, match=r"exit code 9\); if memory ran out") as caught:
        annotate_corpus(texts, [], tmp_path, functions=["annotate_tools:kills"], jobs=2)
    first, last = re.search(r"\(documents 'd(\d+)' to 'd(\d+)'\): ", str(caught.value)).groups()
    assert int(first) <= 7 <= int(last) < 29
    # What was finished stays, and the text without the poison is annotated.
    assert annotate_corpus(corpus(30), [], tmp_path, functions=["annotate_tools:kills"])["made"]


def test_annotators_that_count_first(tmp_path, rare):
    texts = corpus(30)
    annotate_corpus(texts, ["rare(floor=2)"], tmp_path)
    stored = Store(tmp_path)
    spans = stored.annotate([texts[3]["text"]])[0]["rare"]
    assert [texts[3]["text"][a:b] for a, b in zip(*spans[:2])] == ["3!"]
    annotate_corpus(texts, ["rare(floor=2)"], tmp_path)
    assert annotate_tools.Rare.fits == 1
    # a different corpus has other counts
    annotate_corpus(texts[:-1], ["rare(floor=2)"], tmp_path)
    assert annotate_tools.Rare.fits == 2 and Store(tmp_path).version != stored.version
    # paths are not part of any key
    moved = tmp_path.rename(tmp_path.with_name("a\\moved 'folder'"))
    assert annotate_corpus(texts[:-1], ["rare(floor=2)"], moved)["made"] == 0
    assert annotate_tools.Rare.fits == 2


def test_long_documents_go_in_parts(tmp_path, monkeypatch):
    text = " ".join(f"word{number}. Another\n" for number in range(400))
    whole = annotator("words").annotate([text])[0]["words"]
    monkeypatch.setattr(tagger, "PART_CHARACTERS", 100)
    annotate_corpus([text, "short"], ["words"], tmp_path)
    again = Store(tmp_path).annotate([text])[0]["words"]
    assert whole.start.tolist() == again.start.tolist() and whole.end.tolist() == again.end.tolist()


# ---- mistakes


def test_a_text_that_an_annotator_chokes_on_has_no_spans_and_is_counted(tmp_path, monkeypatch):
    """A long text counted once per part, kept the spans of its other parts, and could end a run."""
    monkeypatch.setattr(tagger, "PART_CHARACTERS", 100)
    texts = corpus(30)
    texts[7]["text"] += " poison and More" * 20
    found = annotate_corpus(texts, [], tmp_path, functions=["annotate_tools:chokes"])
    failures = found["annotators"]["function('annotate_tools:chokes')"]["failures"]
    [(failure, count)] = failures.items()
    assert count == 1
    assert re.fullmatch(r"RuntimeError: cannot digest this \(annotate_tools.py:\d+\)", failure)
    spans = Store(tmp_path).annotate(texts_of(texts))
    assert [len(one["chokes"].start) == 0 for one in spans].index(True) == 7


def test_an_edited_function_is_loaded_again(tmp_path, monkeypatch):
    """Also in the process that has imported its module, as in a notebook."""
    code = "def find(texts):\n    return [[(0, {})] for text in texts]\n"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    ends = []
    for end in (2, 3):
        (tmp_path / "edited_here.py").write_text(code.format(end))
        annotate_corpus(corpus(4), [], tmp_path / "out", functions=["edited_here:find"])
        found = Store(tmp_path / "out", only="find").annotate([corpus(4)[0]["text"]])
        ends.append(found[0]["find"].end.tolist())
    assert ends == [[2], [3]]
    del sys.modules["edited_here"]


def test_functions_are_annotators(tmp_path):
    annotate_corpus(corpus(4), [], tmp_path, functions=["annotate_tools:capitals"])
    text = corpus(4)[0]["text"]
    start, end, _ = Store(tmp_path).annotate([text])[0]["capitals"]
    assert [text[a:b] for a, b in zip(start, end)] == re.findall(r"\b[A-Z]\w*", text)


@pytest.mark.parametrize(("per", "documents"), [("line", 3), ("block", 2), ("auto", 2)])
def test_a_document_is_a_line_or_a_block_as_in_a_recipe(per, documents, tmp_path, capsys):
    text, out = tmp_path / "texts.txt", tmp_path / "out"
    text.write_text("Anna saw New York.\nIt rained.\n\nBen stayed.\n")
    command = f"annotate {text} --with words --text-per {per} --out {out} --json"
    assert maskwise(*command.split()) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == documents
    texts = [document.text for document in read_documents(text, text_per=per)]
    assert len(Store(out).annotate(texts)) == documents


def test_a_place_that_no_page_may_have_is_refused_before_the_work(tmp_path, capsys):
    text, out = tmp_path / "small.txt", tmp_path / "out"
    text.write_text("Anna saw New York in May.\n")
    for page in (tmp_path, text):
        assert maskwise("annotate", text, "--with", "words", "--out", out, "--html", page) == 2
        assert "no page" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("wanted", ["words,phrases", "phrases"])
def test_a_small_text_has_no_phrases_and_is_told_so(wanted, tmp_path, capsys):
    text, page = tmp_path / "small.txt", tmp_path / "p.html"
    text.write_text("Anna saw <b>New York</b> in May.\n\nNew York is large.\n")
    command = f"annotate {text} --with {wanted} --out {tmp_path / 'out'} --html {page}"
    for _ in range(2):  # the second run counts nothing, and still says it
        assert maskwise(*command.split()) == 0
        error = capsys.readouterr().err.replace(f"wrote {page}\n", "")
        assert error.count("\n") == 1
        assert "no phrases among these 12 words" in error and "phrases(min_count=" in error
    assert "no phrases among these" in page.read_text()


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize(
    ("wanted", "functions"),
    [(["rare", "informativeness(min_count=1000)"], ()), (["rare"], ["annotate_tools:outside"])],
)
def test_a_run_that_ends_before_its_first_shard_leaves_nothing(
    count, wanted, functions, tmp_path, rare
):
    """Whether an annotator that counts finds too little, or one fails on the first text it sees."""
    out = tmp_path / "out"

    def fails():
        with pytest.raises(MaskwiseError):
            annotate_corpus(corpus(count), wanted, out, functions=functions)

    fails()
    assert not out.exists()
    out.mkdir()
    fails()
    assert not list(out.iterdir()), "a folder that was there stays, as it was"
    annotate_corpus(corpus(count), ["words"], out)
    before = files(out)
    fails()
    assert files(out) == before and len(Store(out).annotate([corpus(count)[0]["text"]])) == 1


@pytest.mark.parametrize("out", ["back\\slash", "quo'te", "tab\there", "{folder}"])
def test_annotators_that_count_write_into_any_folder(out, tmp_path, rare):
    annotate_corpus(corpus(9), ["rare"], tmp_path / out)
    assert annotate_corpus(corpus(9), ["rare"], tmp_path / out)["made"] == 0


# ---- gold and given layers


@pytest.mark.parametrize("labels", [("bird",), ()])
def test_given_spans(labels, tmp_path):
    path = tmp_path / "x.jsonl"
    given = {"text": "Owls don't fly.", "spans": [[0, 4, "bird"]]}
    path.write_text(json.dumps(given) + "\n" + json.dumps({"text": "nothing"}) + "\n")
    spec = f"spans({str(path)!r}, labels={labels!r})"
    first, second = annotator(spec).annotate([given["text"], "nothing"])
    start, end, value = first["spans"]
    assert (start, end) == (0, 4) and (value == 1 if labels else value is None)
    assert not len(second["spans"].start)


def test_given_spans_of_nested_fields(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"article": {"body": "Owls fly.", "marks": [[0, 4]]}}))
    spec = f"spans({str(path)!r}, field='article.marks', text_field='article.body')"
    (found,) = annotator(spec).annotate(["Owls fly."])
    assert found["spans"].end.tolist() == [4]


def test_texts_that_are_looked_up_come_whole_however_long(tmp_path, monkeypatch):
    monkeypatch.setattr(tagger, "PART_CHARACTERS", 100)
    path, text = tmp_path / "x.jsonl", "An owl flies. " * 20
    path.write_text(json.dumps({"text": text, "spans": [[3, 6], [255, 258]]}))
    stored = f"stored({str(tmp_path / 'spans')!r})"
    for out, spec in (("spans", f"spans({str(path)!r})"), ("again", stored)):
        annotate_corpus(path, [spec], tmp_path / out)
        assert Store(tmp_path / out).annotate([text])[0]["spans"].start.tolist() == [3, 255]
    gold = tmp_path / "x.conllu"
    rows = [f"{n}\tword\t_\tNOUN" + "\t_" * 6 for n in range(1, 60)]
    gold.write_text("\n".join([*rows, "", ""]))
    found = annotate_corpus(gold, [f"gold({str(gold)!r})"], tmp_path / "gold")
    (facts,) = found["annotators"].values()
    assert facts["layers"]["pos"]["labels"] == {"NOUN": 59}


# ---- what was found


def test_the_summary_counts(tmp_path):
    texts = texts_of(corpus(50))
    labelled = "annotate_tools:vowels(kind='categorical', labels=('vowel',))"
    weights = "annotate_tools:lengths(kind='weight')"
    found = annotate_corpus(corpus(50), [], tmp_path, functions=[labelled, weights])
    words = re.findall(r"[a-z]+", " ".join(texts))
    opens = Counter(word for word in words if word[0] in "aeiou")
    vowels, lengths = (entry["layers"] for entry in found["annotators"].values())
    labels = {"none": len(words) - opens.total(), "vowel": opens.total()}
    assert vowels["vowels"]["labels"] == labels
    assert dict(vowels["vowels"]["top"]["vowel"]) == opens
    every = list(map(len, re.findall(r"\w+", " ".join(texts))))
    weight = {"mean": pytest.approx(np.mean(every)), "least": 1.0, "greatest": max(every)}
    assert lengths["lengths"]["weight"] == weight
    assert (found["documents"], found["characters"]) == (50, sum(map(len, texts)))
    assert found == read_json(tmp_path / "summary.json")
    assert not unversioned(tmp_path)


@pytest.mark.parametrize("merged", [1, 50, 1 << 20])
def test_counts_are_those_of_counting_one_after_the_other(merged, monkeypatch):
    """Over several shards, with texts of every width of UTF-8; ties by text."""
    monkeypatch.setattr(tally, "MERGE_SPANS", merged)
    draw, layer = np.random.default_rng(3), Layer("categorical", ("a", "b", "c", "d"))
    maker = SimpleNamespace(layers={"l": layer})
    texts = [*texts_of(corpus(40)), "", " ", "x" * 90, "é\U00010000 é\uffff \U0010ffff"]
    counting, count = Tally({"maker": maker}), Counter()
    for part in (texts[:13], texts[13:40], texts[40:41], texts[41:]):
        found = []
        for text in part:
            spans = [(*m.span(), int(draw.integers(0, 5))) for m in re.finditer(r"\S+", text)]
            found.append({"l": CharSpans.of(spans, layer)})
            count.update((code, text[start:end]) for start, end, code in spans)
        counting.add(part, {"maker": read_back(part, found, maker.layers)})
    of_layer = counting.summaries()["maker"]["layers"]["l"]
    for code, label in enumerate(("none", *layer.labels)):
        mine = sorted((-n, text) for (c, text), n in count.items() if c == code and len(text) <= 60)
        assert of_layer["top"][label] == [[text, -n] for n, text in mine[:20]]
        assert of_layer["labels"][label] == sum(n for (c, _), n in count.items() if c == code)
    assert of_layer["spans"] == count.total() < counting.words
    assert of_layer["share_of_words"] == 1.0


def test_what_is_common_in_no_shard_is_counted_too(monkeypatch):
    monkeypatch.setitem(tally.TOP, "spans", 2)
    counting = Tally({"words": annotator("words")})
    for part in ("a a a b b b owl owl", "c c c d d d owl owl", "e e e f f f owl"):
        found = annotator("words").annotate([part])
        counting.add([part], {"words": read_back([part], found, annotator("words").layers)})
    top = counting.summaries()["words"]["layers"]["words"]["top"]["words"]
    assert top == [["owl", 5], ["a", 3]]


def test_words_are_counted_in_parts_of_a_text():
    """A text that is no longer than a part is not cut, wherever it is in its shard."""
    counting = Tally({})
    counting.add(["ab " * 3000, "カ" * 95000], {})
    assert counting.words == 3001


def read_back(texts: list[str], found: list[Found], layers: dict[str, Layer]) -> pa.Table:
    return pq.read_table(pa.BufferReader(to_parquet(texts, found, layers, {})))


def test_pages_show_texts_and_escape_them(tmp_path, capsys):
    odd = {"id": "<i>", "text": "Ulm <script>alert(1)</script> \x1b[31mRed " + "a" * 700}
    texts = [odd, *corpus(3)]
    found = annotate_corpus(
        texts, ["words"], tmp_path / "out", functions=["annotate_tools:capitals"]
    )
    shown = examples(Store(tmp_path / "out"), [Document(one["id"], one["text"]) for one in texts])
    assert {example.layer for example in shown} == {"capitals"} and len(shown) == 3
    assert [stretch.text for stretch in shown[0].stretches if stretch.style][:1] == ["Ulm"]
    write_layers(found, shown, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page and ">Ulm</mark>" in page
    found["annotators"]["words"]["doubt"] = "these texts seem not to be English"
    write_layers(found, shown, tmp_path / "page.html")
    assert "seem not to be English" in (tmp_path / "page.html").read_text()
    # Arabic and Hebrew are written from right to left.
    assert page.count('<p class="text" dir="auto">') == 3
    Console(width=100).print(render_layers(found, shown, colours=True))
    printed = capsys.readouterr().out
    assert "capitals in <i>" in printed and "\x1b[31mRed" not in printed


def test_command(tmp_path, capsys):
    command = f"annotate bundled:wikipedia --limit 40 --with words,sentences --out {tmp_path}"
    assert maskwise(*command.split(), "--html", tmp_path / "page.html", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    layers = found["annotators"]["words"]["layers"]
    assert found["documents"] == 40 and layers["words"]["spans"] == found["words"]
    assert (tmp_path / "page.html").is_file()
    assert maskwise(*command.split()) == 0
    assert "sentence: " in capsys.readouterr().out


# ---- in studies


def test_the_rows_of_a_prepared_corpus_carry_layers(tmp_path, monkeypatch):
    corpus = {"source": str(jsonl(tmp_path, 60)), "length": 24, "held_out": 0.2}
    rest = {"tokenizer": {"vocab_size": 100}, "masking": {"policy": "sentence"}}
    recipe = Recipe(corpus=corpus | {"layers": ["words", "sentences"]}, **rest)
    stage = prepare_stage(recipe)
    run_stage(stage, StageStore(tmp_path / "stages"))
    folder = StageStore(tmp_path / "stages").folder(stage)
    data = Prepared.open(folder / "data")
    for side in (data.training, data.held_out):
        batch = side.tensors(range(len(side)))
        inside = batch["word_ids"] >= 0
        assert (batch["words"][inside] >= 0).all() and (batch["sentence"][~inside] == -1).all()
    # The words of the annotator are those of the word layer, numbered by the document, not by the
    # row.
    batch = data.training.tensors([0])
    word, layer = batch["word_ids"][0], batch["words"][0]
    assert ((word[1:] != word[:-1]) == (layer[1:] != layer[:-1])).all()
    stored = f"stored({str(folder / 'layers')!r}, only=('sentence',))"
    assert prepare_stage(Recipe(corpus=corpus | {"layers": [stored]}, **rest)).name != stage.name
    change_sentences(monkeypatch)
    assert prepare_stage(recipe).name != stage.name  # a changed annotator is another stage
    # An arm of phrases would be whole words under another name.
    jsonl(tmp_path, 8)
    phrases = Recipe(corpus=corpus | {"layers": ["phrases"]}, **rest)
    with pytest.raises(MaskwiseError, match="phrases: no phrases among these"):
        run_stage(prepare_stage(phrases), StageStore(tmp_path / "stages"))


@pytest.mark.parametrize(
    ("given", "forked", "used"),
    [(None, False, "true"), ("false", False, "false"), (None, True, None)],
)
def test_a_corpus_is_tokenised_by_many_threads(given, forked, used, tmp_path, monkeypatch):
    """Unless the user says otherwise, or a fork has lost the threads and would wait for them."""
    told = []
    plain = work.write_rows

    def write_rows(*given, **named):
        told.append(os.environ.get(pools.PARALLEL))
        return plain(*given, **named)

    monkeypatch.setattr(work, "write_rows", write_rows)
    monkeypatch.setattr(pools, "_FORKED", threading.Event())
    monkeypatch.delenv(pools.PARALLEL, raising=False)
    if given:
        monkeypatch.setenv(pools.PARALLEL, given)
    if forked:
        pools._FORKED.set()
    corpus = {"source": str(jsonl(tmp_path, 20)), "length": 24, "held_out": 0.2}
    stage = prepare_stage(Recipe(corpus=corpus, tokenizer={"vocab_size": 100}))
    run_stage(stage, StageStore(tmp_path / "stages"))
    assert told == [used] and os.environ.get(pools.PARALLEL) == given


def jsonl(folder: Path, count: int) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in corpus(count)))
    return path


# ---- processes

MASKWISE = (sys.executable, "-m", "maskwise")


@pytest.mark.process
def test_ctrl_c_pressed_twice_ends_all_in_one_line(tmp_path):
    out, marker = tmp_path / "out", str(tmp_path)
    command = f"annotate {jsonl(tmp_path, 4000)} --with words --out {out} --jobs 2"
    process = subprocess.Popen(
        [*MASKWISE, *command.split(), "--function", "annotate_tools:slow"],
        env=with_tools(SLOW="0.5", MARKER=marker),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: process.poll() is not None or list(out.glob("*/*.parquet")))
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in printed, printed
    wait_for(lambda: not marked(marker))


@pytest.mark.process
def test_a_long_name_of_the_temporary_folder_does_no_harm(tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    command = f"annotate {jsonl(tmp_path, 400)} --with words --out {tmp_path / 'out'} --jobs 2"
    environment = os.environ | {"TMPDIR": str(long)}
    assert not subprocess.run([*MASKWISE, *command.split()], env=environment).returncode


def with_tools(**settings: str) -> dict[str, str]:
    """The environment of a process that can import annotate_tools."""
    path = ":".join(map(str, [HERE, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path} | settings


# ---- slow


@pytest.mark.slow
@pytest.mark.process
def test_ray_gives_the_same_bytes(tmp_path, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    functions = ["annotate_tools:lengths(kind='weight')"]
    run = partial(annotate_corpus, corpus(300), ["words", "sentences"], functions=functions)
    run(tmp_path / "local")
    monkeypatch.setenv("PYTHONPATH", with_tools()["PYTHONPATH"])
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        found = run(tmp_path / "ray", engine="ray")
        assert found["made"] == 3 * found["shards"] > 60
        assert contents(tmp_path / "ray") == contents(tmp_path / "local")
        with pytest.raises(MaskwiseError, match="must be sorted, not overlap"):
            run(tmp_path / "bad", engine="ray", functions=["annotate_tools:outside"])
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_ten_megabytes_in_one_document(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(json.dumps("A long text, with no end. " * 400_000))
    code = (
        "import torch; from maskwise.annotate.run import annotate_corpus;"
        "from maskwise.base.devices import peak_memory;"
        "peak = lambda: peak_memory(torch.device('cpu')) >> 20;"
        "before = peak(); annotate_corpus('corpus.jsonl', ['words', 'sentences'], 'out');"
        "print(peak() - before)"
    )
    more = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path)
    assert int(more) < 900, "MiB more than before"


@pytest.mark.parametrize("result", [[], [{}]])
def test_an_annotator_that_leaves_out_results_is_named(monkeypatch, result):
    """Texts without spans were stored as finished."""
    maker = annotator("words")
    monkeypatch.setattr(type(maker), "annotate", lambda self, texts: result)
    with pytest.raises(MaskwiseError, match=r"words must return (the|all).* of every text"):
        run.spans_of(maker, ["a text"], Counter())


GERMAN = "Der Hund schläft im Garten, und die Katze sitzt auf dem alten Dach. "
ENGLISH = "The dog sleeps in the garden, and the cat sits on top of the old roof. "


@pytest.mark.parametrize(
    ("text", "annotators", "doubt"),
    [
        (GERMAN * 9, ["pos", "salient"], "for English"),
        (ENGLISH * 9, ["pos"], None),
        # Too short to know its language.
        (GERMAN, ["pos"], None),
        (ENGLISH, ["spans('my_spans.jsonl')"], "letter by letter"),
        ("Owls fly.", ["spans('my_spans.jsonl')"], None),
        ("Owls fly.", ["prompt('?')"], "nothing"),
    ],
)
def test_annotations_of_no_use_are_doubted(text, annotators, doubt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_spans.jsonl").write_text('{"text": "Owls fly.", "spans": [[0, 4]]}\n')
    summary = annotate_corpus([text], annotators, tmp_path / "out")
    for entry in summary["annotators"].values():
        # A notice would end a study.
        assert entry["notice"] is None
        assert (entry["doubt"] is None) if doubt is None else (doubt in entry["doubt"])
