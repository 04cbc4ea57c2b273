"""Words by segmenters, for scripts without spaces: by name, by entry point, or by a function."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from functools import partial
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertJapaneseTokenizer, PreTrainedTokenizerFast, PythonBackend

import maskwise as mw
from maskwise.base import errors, plugins
from maskwise.base.errors import MaskwiseError
from maskwise.cli import main
from maskwise.masking import IGNORE
from maskwise.masks.inspection import inspect_text
from maskwise.recipe import read_recipe
from maskwise.studies.forecast import check
from maskwise.studies.from_files import recipe_for
from maskwise.studies.plan import make_plan
from maskwise.studies.samples import samples
from maskwise.studies.stages import prepare_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text import (
    Document,
    Pieces,
    Prepared,
    Stream,
    load_tokenizer,
    read_pieces,
    tokenise,
    train_tokenizer,
)
from maskwise.text.segmenters import (
    SEGMENTERS,
    segmented_words,
    segmenter,
    segmenter_version,
    unspaced,
)
from maskwise.text.settings import CorpusSettings
from maskwise.text.words import tokenised_by_words, words_of_tokens
from processes import processor_seconds
from tiny import write_inputs

CHINESE = "我们在北京大学学习自然语言处理。他们也喜欢机器学习,但是没有时间。"
WORDS = ["我们", "在", "北京大学", "学习", "自然语言", "处理", "。", "他们", "也", "喜欢", "机器"]
WORDS += ["学习", ",", "但是", "没有", "时间", "。"]
THAI = "ฉันรักภาษาไทยมาก และอยากเรียนต่อ"
JAPANESE = "私は東京大学で自然言語処理を研究しています。"


def longest(text: str) -> Iterator[str]:
    """A stub of a segmenter: the longest known word at each place."""
    known = sorted(set(WORDS), key=len, reverse=True)
    place = 0
    while place < len(text):
        found = next((word for word in known if text.startswith(word, place)), text[place])
        yield found
        place += len(found)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([CHINESE] * 3, vocab_size=100)


def groups(row: dict[str, Any], tokenizer: Any) -> list[str]:
    """The words of a row, as the tokens that have the same number."""
    found: dict[int, str] = {}
    for token, word in zip(row["input_ids"], row["word_ids"], strict=True):
        if word >= 0:
            found[word] = found.get(word, "") + tokenizer.convert_ids_to_tokens(token)
    return list(found.values())


def test_masks_follow_the_words_of_a_segmenter(tokenizer: PreTrainedTokenizerFast) -> None:
    [plain] = mw.encode(tokenizer, [CHINESE])
    assert groups(plain, tokenizer) == list(CHINESE), "a character is a word"
    rows = mw.encode(tokenizer, [CHINESE, "我们"], words=longest)
    assert groups(rows[0], tokenizer) == WORDS and groups(rows[1], tokenizer) == ["我们"]
    # Only the words differ.
    assert rows[0]["input_ids"] == plain["input_ids"]
    assert rows[0]["example_id"] == plain["example_id"]
    masker = mw.Masker(tokenizer, policy="whole-word", ratio=0.5, corruption="mask-only")
    for epoch in range(4):
        labels = masker([rows[0]], epoch=epoch).labels[0].numpy()
        numbers = np.array(rows[0]["word_ids"])
        hidden = set(numbers[labels != IGNORE].tolist())
        assert hidden and -1 not in hidden
        # All characters of a masked word are masked.
        assert (labels[np.isin(numbers, [*hidden])] != IGNORE).all()


def test_words_are_the_same_for_rows_of_a_corpus(tokenizer: PreTrainedTokenizerFast) -> None:
    document = Document("a", CHINESE)
    [tokens] = tokenise([document], tokenizer, words=longest)
    [row] = mw.encode(tokenizer, [CHINESE], words=longest)
    assert tokens.columns["word_ids"].tolist() == row["word_ids"][1:-1]
    pieces = read_pieces([tokens], tokenizer=tokenizer, length=10)
    # Pieces are cut between words.
    assert len(pieces) > 2 and (pieces.columns["word_ids"] >= 0).all()
    [split, *_] = mw.encode(tokenizer, [CHINESE], words=longest, max_length=8, split=True)
    assert groups(split, tokenizer) == WORDS[:2]


def test_annotate_rows_finds_words_in_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    columns = mw.annotate_rows({"text": [CHINESE]}, tokenizer, words=longest)
    [row] = mw.encode(tokenizer, [CHINESE], words=longest)
    assert columns["word_ids"] == [row["word_ids"]]


@pytest.mark.parametrize("rule", ["auto", "spaces", "token", "regex:[a-z]+"])
def test_word_rules_of_encode_are_those_of_a_corpus(rule: str) -> None:
    english = train_tokenizer(["the cat sat, don't on 3 mats"] * 3, vocab_size=90)
    texts = ["the cat, sat", "", " don't  ", "3 mats the"]
    documents = [Document(str(n), text) for n, text in enumerate(texts)]
    [tokens] = tokenise(documents, english, words=rule)
    rows = mw.encode(english, texts, words=rule)
    inside = [word for row in rows for word in row["word_ids"][1:-1]]
    assert tokens.columns["word_ids"].tolist() == inside
    assert all(row["word_ids"][0] == row["word_ids"][-1] == -1 for row in rows)


@pytest.mark.parametrize("words", ["spaces", r"regex:\w+", str.split])
def test_a_lone_space_belongs_to_the_next_word_by_any_rule(words: Any) -> None:
    """As "▁" before a word that SentencePiece has only in pieces."""
    offsets = np.array([[0, 3], [3, 4], [4, 5], [5, 7]])
    _, numbers = words_of_tokens(["the zoo"], offsets, np.array([4]), rule=words)
    assert numbers.tolist() == [0, 1, 1, 1]


def test_spaces_and_marks_may_be_left_out() -> None:
    find = lambda text: ["Ab", "c", "d"]  # noqa: E731
    assert list(segmented_words(find, "  Ab, c\n(d)!")) == [(2, 4), (6, 7), (9, 10)]
    assert list(segmented_words(lambda text: [" Ab", " ", "c d "], " Ab c d ")) == [(1, 3), (4, 7)]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A segmenter that a package would add by an entry point."""
    point = EntryPoint("stub", "test_segmenters:stub", "maskwise.segmenters")

    monkeypatch.setattr(plugins, "entry_points", lambda: EntryPoints([point]))
    yield "stub"
    SEGMENTERS._loaded.pop("stub", None)
    plugins._points.cache_clear()


def stub(extra: str = "") -> Any:
    """Words of a made-up language, which are all syllables of two letters."""

    def find(text: str) -> list[str]:
        return [part for word in text.split() for part in (word[:2], word[2:]) if part]

    return find


def test_a_recipe_names_a_segmenter_of_a_package(registered: str, tmp_path: Path) -> None:
    recipe = write_inputs(tmp_path)
    whole = read_recipe(recipe, ["corpus.words=stub"])
    assert whole.corpus.words == "stub"
    assert "stub" in SEGMENTERS
    with pytest.raises(MaskwiseError, match="argument"):
        read_recipe(recipe, ["corpus.words=stub(wrong=1)"])


def test_a_study_trains_on_the_words_of_a_segmenter(
    registered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_inputs(tmp_path)
    runs = {}
    for words in ("auto", "stub"):
        out = tmp_path / words
        command = ["pretrain", str(recipe), f"corpus.words={words}", "masking.policy=whole-word"]
        with pytest.raises(SystemExit) as end:
            main(
                [*command, "training.steps=2", "study={}", "tasks=[]", "--out", str(out), "--json"]
            )
        assert not end.value.code
        runs[words] = json.loads(capsys.readouterr().out)["heldout"]
    assert runs["auto"] != runs["stub"]


def test_a_stream_has_the_words_of_a_segmenter(registered: str, tmp_path: Path) -> None:
    texts = [f"abcd efghi number{number}, and jklm." for number in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    tokenizer = train_tokenizer(texts, vocab_size=120)
    settings = {"source": str(tmp_path / "texts.jsonl"), "length": 24, "words": "stub"}
    corpus = CorpusSettings(**settings, stream=True)
    folder = tmp_path / "data"
    Prepared.begin(folder, corpus, tokenizer)
    data = Prepared.open(folder)
    assert isinstance(data.training, Stream)
    [shards] = data.training.sources.values()
    blocks = [data.training.maker(chunk) for chunk in shards[0].chunks(500)]
    parts = [data.held_out.pieces, *(block.pieces for block in blocks if block)]
    tokens = tokenise(CorpusSettings(**settings).documents(), tokenizer, words="stub")
    whole = read_pieces(tokens, tokenizer=tokenizer, length=24)

    def words_of(pieces: Pieces) -> dict[int, list[int]]:
        words = np.split(pieces.columns["word_ids"], pieces.offsets[1:-1])
        return {int(name): part.tolist() for name, part in zip(pieces.example_ids, words)}

    streamed: dict[int, list[int]] = {}
    for part in parts:
        streamed |= words_of(part)
    assert streamed == words_of(whole) and len(parts) > 3
    plain = read_pieces(tokenise(corpus.documents(), tokenizer), tokenizer=tokenizer, length=24)
    assert streamed != words_of(plain)


def test_the_page_shows_masks_of_the_words_of_a_segmenter(registered: str, tmp_path: Path) -> None:
    shown = {}
    for words in ("auto", "stub"):
        settings = [f"corpus.words={words}", "corpus.stream=true", "training.steps=9", "tasks=[]"]
        recipe = read_recipe(write_inputs(tmp_path), settings)
        runs = [run for run in make_plan(recipe).runs if run.arm == "words-30"]
        store = StageStore(tmp_path / "stages")
        run_stage(runs[0].chain[0], store)
        shown[words] = samples(runs, store)["words-30"]
    pieces = {words: [sample["pieces"] for sample in shown[words]] for words in shown}
    assert len(pieces["stub"]) == 4 and pieces["stub"] != pieces["auto"]


def test_rows_of_another_version_of_a_segmenter_are_other_rows(
    registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_inputs(tmp_path)
    plain = prepare_stage(read_recipe(recipe))
    assert "segmenter" not in plain.what
    named = []
    for number in ("stub-words 1.0", "stub-words 1.1"):
        monkeypatch.setattr(SEGMENTERS, "package", lambda name, number=number: number)
        named.append(prepare_stage(read_recipe(recipe, ["corpus.words=stub"])))
        assert named[-1].what["segmenter"] == number
    assert len({plain.name, *(stage.name for stage in named)}) == 3
    monkeypatch.setattr(errors, "find_spec", lambda module: None)
    with pytest.raises(MaskwiseError, match="jieba"):
        prepare_stage(read_recipe(recipe, ["corpus.words=jieba"]))


@pytest.mark.parametrize("name", ["jieba", "fugashi", "pythainlp"])
def test_a_segmenter_that_is_not_installed_is_named_with_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda module: None)
    from maskwise.text import segmenters

    getattr(segmenters, f"_{name}").cache_clear()
    with pytest.raises(MaskwiseError) as caught:
        mw.encode(tokenizer, [CHINESE], words=name)
    assert caught.value.do == f"pip install 'maskwise[{name}]'"


class Slow(PythonBackend):
    """A tokenizer that runs in Python: a token for each letter of its words."""

    def __init__(self, *, marks: bool = False, **more: Any):
        self.marks = marks
        letters = sorted(set(CHINESE + "abcdefghijklmnopqrstuvwxyz,. 3▁"))
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
        self.ids = {name: number for number, name in enumerate(names)}
        super().__init__(
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            special_tokens_pattern="cls_sep",
            **more,
        )

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def _tokenize(self, text: str, **more: Any) -> list[str]:
        if self.marks:
            return list("▁" + text.strip().replace(" ", "▁"))
        return [letter for letter in text if not letter.isspace()]

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, self.ids["[UNK]"])

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.ids)[index]


def test_a_python_tokenizer_reads_the_words_of_a_segmenter() -> None:
    slow = Slow()
    assert not slow.is_fast
    texts = [CHINESE, "the cat, 3", ""]
    rows = mw.encode(slow, texts, words=longest)
    assert groups(rows[0], slow) == WORDS
    assert rows[0]["input_ids"] == slow(CHINESE)["input_ids"]
    assert rows[2]["input_ids"] == slow("")["input_ids"] and rows[2]["word_ids"] == [-1, -1]
    [spaced] = mw.encode(slow, ["the cat, 3"], words="spaces")
    assert groups(spaced, slow) == ["the", "cat,", "3"]
    # Text that no word covers is kept, and is never masked as a word.
    [some] = mw.encode(slow, ["the cat, 3"], words="regex:[a-z]+")
    assert groups(some, slow) == ["the", "cat"]
    assert some["input_ids"] == spaced["input_ids"]
    documents = [Document(str(n), text) for n, text in enumerate(texts)]
    [tokens] = tokenise(documents, slow, words=longest)
    inside = [word for row in rows for word in row["word_ids"][1:-1]]
    assert tokens.columns["word_ids"].tolist() == inside
    masker = mw.Masker(slow, policy="whole-word", ratio=0.3)
    assert masker(rows[:2], epoch=0).targets > 0
    [sentence] = mw.encode(slow, ["the cat. a mat."], words="spaces", layers=["sentences"])
    assert sentence["sentence"] == [-1, *[0] * 7, *[1] * 5, -1]


def test_the_time_of_a_python_tokenizer_is_linear_in_the_number_of_texts() -> None:
    seconds = []
    for count in (5_000, 40_000):
        tokenise_all = partial(tokenised_by_words, Slow(), ["cat"] * count, "spaces")
        ids, _, lengths = tokenise_all()
        seconds.append(processor_seconds(tokenise_all))
    assert len(ids) == lengths.sum() == 3 * count
    assert seconds[1] < 16 * seconds[0]


def python_tokenizer(folder: Path, *, family: str = "bert", **settings: Any) -> str:
    """Save a tokenizer of transformers that exists only in Python, as a model's folder has it."""
    letters = sorted(set(CHINESE))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    usual = {"word_tokenizer_type": "basic", "model_max_length": 64}
    made = BertJapaneseTokenizer(str(folder / "vocab.txt"), **usual | settings)
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    return str(folder)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_python_tokenizer_loads_from_the_folder_of_any_family(
    family: str, tmp_path: Path
) -> None:
    folder = python_tokenizer(tmp_path / "model", family=family)
    loaded = load_tokenizer(folder, needs_words=False)
    assert not loaded.is_fast and loaded.tokenize("北京") == ["北", "##京"]


@pytest.mark.parametrize("subwords", ["character", "wordpiece"])
def test_inspect_shows_the_masks_of_a_python_tokenizer(
    subwords: str, registered: str, tmp_path: Path
) -> None:
    folder = python_tokenizer(tmp_path / "model", subword_tokenizer_type=subwords)
    text = "我们 学习，处理"
    settings = {"ratio": 0.5, "corruption": "mask-only"}
    [seen] = inspect_text(text, "whole-word", settings, tokenizer=folder, words="stub")
    shown = "".join(piece.text for piece in seen.pieces)
    assert shown == text and seen.whole_words and not seen.words_in_part
    assert all(len(piece.text.strip()) == 1 for piece in seen.pieces)


def test_a_python_tokenizer_reads_single_tokens(tmp_path: Path) -> None:
    slow = load_tokenizer(python_tokenizer(tmp_path / "model"), needs_words=False)
    [row] = mw.encode(slow, [CHINESE], words="token")
    assert row["input_ids"] == slow(CHINESE)["input_ids"]
    assert row["word_ids"] == [-1, *range(len(row["input_ids"]) - 2), -1]


def test_words_by_which_a_tokenizer_has_other_tokens_are_warned_of(tmp_path: Path) -> None:
    slow = load_tokenizer(python_tokenizer(tmp_path / "model"), needs_words=False)
    with pytest.warns(UserWarning, match="1 of the first 1 text"):
        [row] = mw.encode(slow, [CHINESE], words=longest)
    assert row["input_ids"] != slow(CHINESE)["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mw.encode(slow, ["我们 北京"], words="spaces")


def test_a_new_tokenizer_knows_the_characters_of_a_text_without_spaces(tmp_path: Path) -> None:
    # As in lists of messages, there are blanks, but not between words.
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 900)]
    draws = np.random.default_rng(0)
    lines = [" ".join("".join(draws.choice(characters, 12)) for _ in range(3)) for _ in range(300)]
    (tmp_path / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = recipe_for(str(tmp_path / "texts.txt"))
    assert recipe.tokenizer.kind == "bpe" and recipe.evaluation.masks == ("token",)
    tokenizer = recipe.tokenizer.tokenizer(recipe.corpus.documents())
    assert tokenizer.unk_token_id not in tokenizer(" ".join(lines[:20]))["input_ids"]


def test_scripts_without_spaces_are_found() -> None:
    assert unspaced(["plain English, naïve Ελληνικά русский 한국어"]) == {}
    for text, script in ((CHINESE, "Chinese"), (JAPANESE, "Japanese"), (THAI, "Thai")):
        shares = unspaced([text])
        assert [*shares] == [script] and shares[script] == pytest.approx(1)
    assert unspaced(["ພາສາລາວ", "ភាសាខ្មែរ", "မြန်မာ"]).keys() == {"Lao", "Khmer", "Burmese"}
    # A quotation is not worth a segmenter.
    assert unspaced(["word " * 200, "我们"]) == {}


def test_check_names_the_segmenter_of_the_text(tmp_path: Path) -> None:
    lines = [f"{CHINESE} {number}" for number in range(120)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    settings = ["training.steps=2"]
    said = check(str(tmp_path / "texts.txt"), settings, timing=False)["doubts"]
    [found] = [doubt for doubt in said if "Chinese" in doubt["what"]]
    assert "corpus.words=jieba" in found["do"] and "100%" in found["what"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("jieba", "我们在北京学习。", ["我们", "在", "北京", "学习", "。"]),
        ("fugashi", "東京大学で研究する。", ["東京", "大学", "で", "研究", "する", "。"]),
        ("pythainlp", "ฉันรักภาษาไทย", ["ฉัน", "รัก", "ภาษาไทย"]),
        ("pythainlp(engine='longest')", "ฉันรักภาษาไทย", ["ฉัน", "รัก", "ภาษาไทย"]),
    ],
)
def test_real_segmenters_find_words(name: str, text: str, words: list[str]) -> None:
    for module in {"fugashi": ["fugashi", "unidic_lite"]}.get(name, [name.partition("(")[0]]):
        pytest.importorskip(module)
    assert name.partition("(")[0] in segmenter_version(name)
    find = segmenter(name)
    assert [text[start:end] for start, end in segmented_words(find, text)] == words
    # Any text can be read: line breaks, other scripts, control characters, emoji, nothing.
    for odd in ("", " \n", f"a{text}\n\n{text} b", "x\0y " + text, "👩‍🔬 don't 3.14 €", "é\u0301"):
        inside = "".join(odd[start:end] for start, end in segmented_words(find, odd))
        assert [letter for letter in odd if letter.isalnum()] == [
            letter for letter in inside if letter.isalnum()
        ]
