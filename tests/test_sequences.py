"""Text without words: FASTA, tokenizers of letters, rules for words, slow tokenizers, prompts, and
what is refused.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import EsmTokenizer, ProphetNetTokenizer

from maskwise import encode
from maskwise.annotate.registry import annotator
from maskwise.base.errors import MaskwiseError
from maskwise.evaluation.evaluate import evaluate_checkpoint
from maskwise.masks.generate import Writer
from maskwise.masks.inspection import inspect_text
from maskwise.recipe import Recipe, validate
from maskwise.studies import run_study
from maskwise.studies.checks import check_inputs
from maskwise.studies.forecast import check
from maskwise.studies.single import run_pretrain
from maskwise.text import read_documents, tokenise, train_tokenizer
from maskwise.text.documents import Document
from maskwise.text.tokenizers import dna_note, load_tokenizer
from maskwise.text.words import word_rule
from tiny import maskwise

AMINO = "ACDEFGHIKLMNPQRSTVWY"


def fasta(path: Path, count: int, *, length: int = 300) -> Path:
    draw = random.Random(1)
    lines = []
    for number in range(count):
        text = "".join(draw.choices(AMINO, k=length))
        lines += [f">sp|P{number:05}| a protein", *(text[i : i + 60] for i in range(0, length, 60))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_fasta_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_text(
        ">one first\nMKV-L\nA.A*\n; a comment\n>two\nACdeF\n\n>bad\nAC1F\n>empty\n>three\nGG\n"
    )
    documents = read_documents(str(path))
    found = [(document.name, document.text) for document in documents]
    assert found == [("one first", "MKVLAA"), ("two", "ACDEF"), ("three", "GG")]
    bad = "sequence with characters that are not letters"
    assert dict(documents.skipped) == {bad: 1, "empty": 1}
    with gzip.open(tmp_path / "b.fa.gz", "wt") as file:
        file.write(">x\nACGT\n")
    assert [document.text for document in read_documents(str(tmp_path / "b.fa.gz"))] == ["ACGT"]


def test_masks_of_sequences_are_shown_letter_by_letter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fasta(tmp_path / "a.fasta", 2, length=40)
    shown = inspect_text(str(path), "token", {"ratio": 0.25})
    assert [entry.tokenizer for entry in shown] == ["letter", "letter"]
    for entry, document in zip(shown, read_documents(str(path)), strict=True):
        assert [piece.text for piece in entry.pieces] == list(document.text)
        assert entry.ratio == 0.25
    assert maskwise("inspect", path, "--json") == 0
    by_default = {entry["policy"] for entry in json.loads(capsys.readouterr().out)}
    assert by_default == {"token", "span(over='token')"}
    with pytest.raises(MaskwiseError, match="does not exist"):
        inspect_text(str(tmp_path / "nowhere.fasta"), "token", {})


def test_fasta_without_headers_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_text("MKVLAA\nACDEF\n")
    with pytest.raises(MaskwiseError, match="no header") as error:
        list(read_documents(str(path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "pieces"), [("letter", list("MKVLA")), ("k-mer", ["MKV", "LA"])])
def test_letters_and_kmers(kind: Any, pieces: list[str]) -> None:
    texts = ["MKVLA MKVMK", "LAMKV"]
    tokenizer = train_tokenizer(texts, kind=kind, vocab_size=64, lowercase=False)
    assert tokenizer.tokenize("MKVLA") == pieces
    assert tokenizer.decode(tokenizer("MKVLA", add_special_tokens=False)["input_ids"]) == "MKVLA"
    assert tokenizer.unk_token_id in tokenizer("mkv")["input_ids"]
    assert train_tokenizer(texts, kind=kind, vocab_size=64).tokenize("MKVLA") == [
        p.lower() for p in pieces
    ]


@pytest.mark.parametrize(
    ("more", "got"),
    [
        ({"kind": "wordpiece", "vocab_size": 63}, 63),
        ({"kind": "k-mer", "k": 0}, "0"),
        ({"kind": "k-mer", "k": 1.5}, "1.5"),
    ],
)
def test_sizes_of_tokenizers_that_are_refused(more: dict[str, Any], got: Any) -> None:
    with pytest.raises(MaskwiseError) as raised:
        train_tokenizer(["MKVLA"], **more)
    assert raised.value.got == got


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("auto", [0, 1, 2, 3, 4]),
        ("spaces", [0, 0, 0, 1, 1]),
        ("token", [0, 1, 2, 3, 4]),
        (r"regex:\w+'\w+|\w+", [0, 0, 0, 1, -1]),
        ("regex:[d-t]+", [0, -1, 1, 2, -1]),
    ],
)
def test_rules_for_words(rule: str, words: list[int]) -> None:
    """don ' t go ! – by BERT's rule, by spaces, by tokens, by patterns."""
    tokenizer = train_tokenizer(["don't go! go! don't"] * 9, vocab_size=64)
    assert tokenizer.tokenize("don't go!") == ["don", "'", "t", "go", "!"]
    (tokens,) = tokenise([Document("a", "don't go!")], tokenizer, words=word_rule(rule))
    assert tokens.columns["word_ids"].tolist() == words


def test_a_pattern_is_matched_text_by_text() -> None:
    tokenizer = train_tokenizer(["go on go on"] * 9, vocab_size=64)
    rule = word_rule(r"regex:\w+\s\w+|\w+")
    documents = [Document("a", "go"), Document("b", "on go")]
    (tokens,) = tokenise(documents, tokenizer, words=rule)
    assert tokens.columns["word_ids"].tolist() == [0, 0, 0]
    with pytest.raises(MaskwiseError, match="matches an empty word"):
        list(tokenise(documents, tokenizer, words=word_rule("regex:(?=o)|[a-z]+|.")))


def recipe(source: str, **more: Any) -> Recipe:
    """A recipe on sequences, with a tiny model."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = {**sizes, "intermediate_size": 24}
    base: dict[str, Any] = {
        "corpus": {"source": source, "length": 64, "layout": "document", "held_out": 0.1},
        "tokenizer": {"kind": "letter", "lowercase": False},
        "model": {"architecture": "bert", "settings": settings},
        "evaluation": {"masks": ["token"], "rows": 32, "ratios": [0.15]},
        "training": {"steps": 20, "batch_size": 8, "precision": "no"},
    }
    for key, value in more.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return validate(base, origin="test")


def pretrained(folder: Path, source: str, **more: Any) -> Any:
    return run_pretrain(recipe(source, **more), folder / "run")


@pytest.fixture(scope="module")
def proteins(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fasta(tmp_path_factory.mktemp("proteins") / "p.fasta", 120, length=58))


@pytest.mark.parametrize("policy", ["whole-word", "span"])
@pytest.mark.parametrize("budget", ["exact", "expected"])
def test_words_are_refused_where_there_are_none(
    policy: str, budget: str, proteins: str, tmp_path: Path
) -> None:
    with pytest.raises(MaskwiseError, match=r"no words|masks nothing") as error:
        pretrained(tmp_path, proteins, masking={"policy": policy, "budget": budget})
    assert "token" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", ["token", "span(over='token')"])
def test_letters_and_runs_train(policy: str, proteins: str, tmp_path: Path) -> None:
    result = pretrained(tmp_path, proteins, masking={"policy": policy})
    assert result["targets"] > 500 and result["heldout"][0]["masks"] == "token"


def test_letters_outside_the_alphabet(proteins: str, tmp_path: Path) -> None:
    """Most of a text unknown: an error before training; it names what to do."""
    train_tokenizer(["acgt"] * 9, kind="letter", vocab_size=64).save_pretrained(tmp_path / "dna")
    with pytest.raises(MaskwiseError, match=r"unknown to the tokenizer.*letter"):
        pretrained(tmp_path, proteins, tokenizer={"name": str(tmp_path / "dna")})


@pytest.fixture(scope="module")
def slow_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ProphetNet's, which transformers has in Python alone."""
    folder = tmp_path_factory.mktemp("slow")
    # It splits a word into a first piece and others.
    pieces = [*AMINO, *(f"##{letter}" for letter in AMINO)]
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[X_SEP]", "[MASK]", *pieces]
    (folder / "vocab.txt").write_text("\n".join(names))
    made = ProphetNetTokenizer(str(folder / "vocab.txt"), do_lower_case=False)
    made.save_pretrained(folder)
    return str(folder)


def test_tokens_of_a_slow_tokenizer(slow_tokenizer: str) -> None:
    with pytest.raises(MaskwiseError, match=r"is slow: it has no character offsets"):
        load_tokenizer(slow_tokenizer)
    slow = load_tokenizer(slow_tokenizer, needs_words=False)
    documents = [Document("a", "ACD"), Document("b", ""), Document("c", "A")]
    (plain,) = tokenise(documents, slow)
    assert plain.columns["input_ids"].tolist() == [6, 27, 28, 6]
    assert list(plain.columns) == ["input_ids"] and plain.lengths.tolist() == [3, 0, 1]
    (each,) = tokenise(documents, slow, words="token")
    assert each.columns["word_ids"].tolist() == [0, 1, 2, 0]
    (parted,) = tokenise(documents, slow, words="spaces")
    assert parted.columns["word_ids"].tolist() == [0, 0, 0, 0]
    for more in ({"layers": object()}, {"places": True}):
        with pytest.raises(MaskwiseError, match=r"need a fast tokenizer, .*; got ProphetNet"):
            list(tokenise(documents, slow, **more))


def test_a_slow_tokenizer_that_frames_texts_in_its_own_way_says_what_it_adds(
    slow_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = load_tokenizer(slow_tokenizer, needs_words=False)
    monkeypatch.setattr(slow, "build_inputs_with_special_tokens", lambda ids: [1, *ids, 2, 2])
    with pytest.raises(MaskwiseError, match="get_special_tokens_mask"):
        encode(slow, ["ACD"], words="spaces")


@pytest.mark.parametrize(
    "changed",
    [
        {"masking": {"policy": "whole-word"}},
        {"evaluation": {"masks": ["token", "whole-word"]}},
        {"evaluation": {"measures": ["pairs('bundled:pairs')"]}},
        {"corpus": {"layers": ["prompt(until='A')"], "words": "token"}},
    ],
)
def test_words_that_a_slow_tokenizer_cannot_find(
    proteins: str, slow_tokenizer: str, changed: dict[str, Any]
) -> None:
    with pytest.raises(MaskwiseError, match=r"a (slow|fast) tokenizer|is slow"):
        check_inputs(recipe(proteins, tokenizer={"name": slow_tokenizer}, **changed))


@pytest.mark.parametrize(
    "more",
    [
        {"corpus": {"layout": "packed"}},
        pytest.param({"corpus": {"stream": True}}, marks=pytest.mark.slow),
        {"masking": {"policy": "whole-word", "budget": "expected"}, "corpus": {"words": "token"}},
    ],
)
def test_pretraining_with_a_slow_tokenizer(
    proteins: str, slow_tokenizer: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    source = tmp_path / "lines.txt"
    documents = read_documents(proteins)
    source.write_text("\n\n".join(document.text for document in documents))
    made = recipe(str(source), tokenizer={"name": slow_tokenizer}, **more)
    assert check_inputs(made) == []
    assert run_pretrain(made, tmp_path / "run")["targets"] > 500
    checkpoint = str(tmp_path / "run" / "checkpoint")
    *losses, pseudo = evaluate_checkpoint(checkpoint, ["pseudo-perplexity(2)"], text=proteins)
    assert {loss.measure for loss in losses} == {"token"} and len(losses) == 4
    assert pseudo.metric == "token" and pseudo.value > 1
    *_, last = Writer(checkpoint).write("A", length=3)
    assert len(last.text) == 4


def test_a_study_with_a_slow_tokenizer_ends_with_a_page(
    proteins: str, slow_tokenizer: str, tmp_path: Path
) -> None:
    """It shows no texts, since their masks are shown by character offsets."""
    study = {"arms": {"more": {"masking.ratio": 0.3}}, "seeds": 1, "outcome": "heldout:token"}
    training = {"steps": 2}
    arms = recipe(proteins, tokenizer={"name": slow_tokenizer}, training=training, study=study)
    run_study(arms, tmp_path / "out", jobs=1)
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("architecture", ["esm", "esmc"])
def test_a_new_protein_model_is_checked_before_its_tokenizer_is_trained(
    proteins: str, architecture: str
) -> None:
    """Its configuration names the tokenizer's mask token."""
    assert check_inputs(recipe(proteins, model={"architecture": architecture})) == []


def test_prompts_are_kept_and_must_leave_something(tmp_path: Path) -> None:
    made = annotator("prompt(until='? ')").annotate(["Who? Ada did.", "Nobody asked."])
    assert [spans["prompt"].start.tolist() for spans in made] == [[0], []]
    assert made[0]["prompt"].end.tolist() == [5]
    source = tmp_path / "pairs.txt"
    source.write_text("\n\n".join(f"who is {n} ? it is {n} and {n}" for n in range(200)))
    tokenizer = {"kind": "wordpiece", "vocab_size": 80}
    settings: dict[str, Any] = {"tokenizer": tokenizer, "masking": {"keep": "prompt"}}
    first = {"corpus": {"layers": ["prompt(until='?')"]}, **settings, "objective": "diffusion"}
    assert pretrained(tmp_path, str(source), **first)["targets"] > 100
    last = {**first, "corpus": {"layers": ["prompt(until='and', last=True)"]}}
    assert pretrained(tmp_path / "last", str(source), **last)["targets"] > 0
    source.write_text("\n\n".join(f"who is {n} or {n} ?" for n in range(200)))
    with pytest.raises(MaskwiseError, match="keeps every token visible"):
        pretrained(tmp_path / "none", str(source), **first)
    with pytest.raises(MaskwiseError, match="'prompt'"):
        check_inputs(recipe(str(source), **settings))


def esm_tokenizer(folder: Path) -> Any:
    letters = [*"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-"]
    names = ["<cls>", "<pad>", "<eos>", "<unk>", *letters, "<null_1>", "<mask>"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(names))
    return EsmTokenizer(str(vocabulary))


def test_esms_tokenizer_is_converted_with_the_same_ids(tmp_path: Path) -> None:
    slow = esm_tokenizer(tmp_path)
    assert not slow.is_fast
    slow.save_pretrained(tmp_path / "esm")
    fast = load_tokenizer(str(tmp_path / "esm"))
    assert fast.is_fast
    draw = random.Random(0)
    for size in range(1, 40):
        text = "".join(draw.choices(AMINO + "XBUZO", k=size))
        assert fast(text)["input_ids"] == slow(text)["input_ids"]
        assert fast(text, text)["input_ids"] == slow(text, text)["input_ids"]
        assert fast.decode(fast(text)["input_ids"], skip_special_tokens=True) == text
    rows = encode(slow, ["MKTAY"])
    assert rows[0]["input_ids"] == slow("MKTAY")["input_ids"]


def test_sequences_without_words_are_told(tmp_path: Path) -> None:
    slow = esm_tokenizer(tmp_path)
    with pytest.warns(UserWarning, match="span"):
        encode(slow, ["".join(random.Random(0).choices(AMINO, k=90))])
    with pytest.warns(UserWarning, match="unknown"):
        encode(slow, ["mktayiakqr"])


def test_dna_that_a_protein_model_reads_is_told(tmp_path: Path) -> None:
    esm_tokenizer(tmp_path).save_pretrained(tmp_path / "esm")
    fast = load_tokenizer(str(tmp_path / "esm"))
    with pytest.warns(UserWarning, match="like DNA"):
        encode(fast, ["GATTACAN", "acgt"])
    letters = train_tokenizer([AMINO, "J"], kind="letter", vocab_size=64, lowercase=False)
    texts = ["GATTACAN" * 5, "ACGT" * 9]
    assert dna_note(letters, texts) is dna_note(fast, [*texts, "M"]) is dna_note(fast, [""]) is None
    file = tmp_path / "dna.fasta"
    file.write_text("".join(f">{n}\n{'ACGTTGCA' * (n + 2)}\n" for n in range(40)))
    (note,) = check_inputs(recipe(str(file), tokenizer={"name": str(tmp_path / "esm")}))
    assert note == f"{file}: {dna_note(fast, texts)}"


def test_texts_of_one_word_are_not_taken_for_a_long_word(recwarn: Any) -> None:
    tokenizer = train_tokenizer(["the cat sat"] * 9, vocab_size=64)
    encode(tokenizer, ["cat"] * 60)
    assert not recwarn.list


def test_a_fasta_file_of_one_sequence_is_told_what_begins_a_document(tmp_path):
    """Only advice on .txt files was given."""
    path = tmp_path / "one.fasta"
    path.write_text(">one\n" + "ACDEFGHIKL" * 500 + "\n")
    with pytest.raises(MaskwiseError, match="in a FASTA file each header"):
        check(str(path), timing=False)
