"""Streams: the same rows and masks whatever reads them, and found again at once after a stop."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from maskwise.annotate.run import Live
from maskwise.base.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.text import (
    Document,
    Documents,
    Prepared,
    Stream,
    read_documents,
    shards_of,
    tokenise,
    train_tokenizer,
)
from maskwise.text.opening import LONG_LINE, Skip
from maskwise.text.rows import held_out_below
from maskwise.text.settings import CorpusSettings
from maskwise.text.source import NOT_JSON, NOT_UTF8, FieldNames, Shard
from maskwise.text.stream import BlockMaker
from maskwise.text.words import text_id
from maskwise.training import MaskedSource, TrainingSettings
from maskwise.training.stream import StreamedRows
from tiny import WORDS, write_lines

ENDINGS = (
    *(".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".txt", ".txt.gz", ".lines.txt", ".parquet"),
    *(".csv", ".tsv.zst", ".fasta", ".fasta.zst"),
)


def texts(count: int, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)
    return [
        {"id": f"{seed}-{n}", "text": " ".join(draw.choices(WORDS, k=draw.randint(3, 60)))}
        for n in range(count)
    ]


def write_shard(path: Path, rows: list[dict[str, str]]) -> Path:
    """The rows as a file whose ending says how; without names, so that they are called after their
    places.
    """
    plain = [row["text"].capitalize() for row in rows]
    between = "\n" if ".lines" in path.name else "\n\n"
    if ".jsonl" in path.name:
        between = "\n"
        plain = [json.dumps({"text": text}) for text in plain]
    if ".fasta" in path.name:
        plain = [f">\n{text.upper()}" for text in plain]
    content = between.join(plain).encode()
    if ".json" in path.suffixes:
        content = json.dumps(plain).encode()
    elif ".csv" in path.name or ".tsv" in path.name:
        content = "\n".join(["text", *(f'"{text}"' for text in plain)]).encode()
    if path.name.endswith(".parquet"):
        pq.write_table(pa.table({"text": plain}), path, row_group_size=7)
    elif path.name.endswith(".zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    else:
        path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(" ".join(WORDS) for _ in range(9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of forty documents, and one that is empty."""
    (tmp_path / "texts").mkdir()
    for number in range(3):
        write_lines(tmp_path / "texts" / f"part-{number}.jsonl", texts(40, seed=number))
    (tmp_path / "texts" / "part-3.jsonl").touch()
    return tmp_path / "texts"


def stream(folder: Path | str, tokenizer, *, held_out: float = 0.1, **more) -> Stream:
    shards = shards_of(folder)
    return Stream(
        {"texts": shards},
        BlockMaker(tokenizer, 32, held_out=held_out),
        **{"shuffle": 0.004, **more},
    )


def drawn(
    stream: Stream, steps: int = 40, batch_size: int = 8, workers: int = 0, seed: int = 0, **more
) -> StreamedRows:
    how = TrainingSettings(steps=steps, batch_size=batch_size, workers=workers, seed=seed)
    return StreamedRows(stream, how, **more)


def ids_of(rows: StreamedRows, step: int) -> list[int]:
    numbers, _ = rows.draw(step)
    return rows.line(numbers).example_id.tolist()


def documents_of(chunks: Iterable[Shard]) -> list[Document]:
    return [*Documents([*chunks], name="chunks", fields=FieldNames(), keep_repeated=True)]


# Shards
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_chunks_hold_the_documents_of_the_file_under_their_names(
    tmp_path: Path, ending: str
) -> None:
    path = write_shard(tmp_path / f"a{ending}", texts(50))
    whole = list(read_documents(path, keep_repeated=True))
    assert len(whole) == 50
    [shard] = shards_of(path)
    for size in (1, 500, 10**6):
        chunks = list(shard.chunks(size))
        assert [*documents_of(chunks)] == whole
        assert (len(chunks) == 1) == (size == 10**6) and (len(chunks) >= 40 or size > 1)
        again = [[*chunk.read()] for chunk in shard.chunks(size)]
        assert again == [[*chunk.read()] for chunk in chunks]


def test_json_lines_are_parsed_only_where_blocks_are_made(tmp_path, monkeypatch) -> None:
    [shard] = shards_of(write_shard(tmp_path / "a.jsonl.gz", texts(50)))
    parsed = []
    parse = json.JSONDecoder().decode
    read = "maskwise.text.source._parse"
    monkeypatch.setattr(read, lambda line: parsed.append(line) or parse(line))
    chunk, *_ = shard.chunks(500)
    assert not parsed
    assert len(documents_of([chunk])) == len(parsed) > 0


BAD, LONG = Skip(NOT_UTF8), Skip(LONG_LINE)
LINES = b'\xef\xbb\xbf{"text": "a"}\n\n \t\r\n\xff\n{"text": "b"}\nbad\n{"text": "c"}\n\n \n'
OF_LINES = [
    (1, {"text": "a"}),
    (4, BAD),
    (5, {"text": "b"}),
    (6, Skip(NOT_JSON)),
    (7, {"text": "c"}),
]
MARKED = b'\xef\xbb\xbf \n\n{"text": "a"}\n\xef\xbb\xbf\n'
BLANKS = b"\n".join([b"", b" " * 99, b" " * 100, b"1", b" " * 450, b""])
OF_BLANKS = [(3, LONG), (4, 1), (5, LONG)]
BLOCKS = b"one\n\xff\ntwo\n\n\xff\nthree\n\xff\n\n\xff\n"
OF_BLOCKS = [(0, BAD), (1, "one\ntwo"), (1, BAD), (1, BAD), (2, "three"), (2, BAD)]


@pytest.mark.parametrize(
    ("content", "size", "sizes", "records"),
    [
        (LINES, 1, [1, 1, 1, 1, 1], OF_LINES),
        (LINES, 18, [2, 2, 1], OF_LINES),
        (LINES, 32, [3, 2], OF_LINES),
        (LINES, 10**6, [5], OF_LINES),
        (b"\xef\xbb\xbf\n", 1, [], []),
        (MARKED, 1, [1, 1], [(3, {"text": "a"}), (4, Skip(NOT_JSON))]),
        (BLANKS, 1, [1, 1, 1], OF_BLANKS),
        (BLANKS, 203, [2, 1], OF_BLANKS),
        # The lines before a bad one belong to the block that goes on after it.
        (BLOCKS, 1, [2, 1, 2, 1], OF_BLOCKS),
    ],
)
def test_chunks_end_with_a_record_and_count_every_line(
    tmp_path, monkeypatch, content, size, sizes, records
) -> None:
    monkeypatch.setattr("maskwise.text.opening.LONGEST_LINE", 100)
    monkeypatch.setattr("maskwise.text.opening._MAX_BAD_SHARE", 1)
    path = tmp_path / ("a.txt" if content == BLOCKS else "a.jsonl")
    path.write_bytes(content)
    [shard] = shards_of(path, FieldNames(per="block"))
    chunks = list(shard.chunks(size))
    assert [len([*chunk.read()]) for chunk in chunks] == sizes
    found = [entry for chunk in chunks for entry in chunk.records()]
    assert records == [
        (number, Skip(record.reason) if isinstance(record, Skip) else record)
        for number, record in found
    ]


def test_parts_of_a_long_block_are_on_one_side(tmp_path, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("maskwise.text.source.LONGEST_TEXT", 60)
    blocks = ["\n".join(f"the {n} word {line}" for line in range(12)) for n in range(40)]
    (tmp_path / "a.txt").write_text("\n\n".join(blocks))
    maker = BlockMaker(tokenizer, 32, held_out=0.3, fields=FieldNames(per="block"))
    [shard] = shards_of(tmp_path / "a.txt", maker.fields)
    sides: dict[str, set[bool]] = {}
    for chunk in shard.chunks(50):
        for document in maker.documents([chunk], "a chunk"):
            number = document.text.split("the ")[1].split()[0]
            sides.setdefault(number, set()).add(maker.holds_out(document))
    assert len(sides) == 40 and all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {True, False}


def test_a_dataset_is_read_shard_by_shard(folder: Path) -> None:
    (folder / "part-3.jsonl").unlink()
    shards = shards_of(f"hf:{folder}")
    assert [shard.name for shard in shards] == [f"{folder}/{number}" for number in range(3)]
    chunks = [list(shard.chunks(900)) for shard in shards]
    read = documents_of(chunk for part in chunks for chunk in part)
    assert read == list(read_documents(folder)) and len(chunks[1]) > 5


def test_patterns_lists_and_folders_name_shards(folder: Path, tmp_path: Path) -> None:
    names = [f"part-{n}.jsonl" for n in range(4)]
    for source in (folder, f"{folder}/*.jsonl"):
        assert [shard.name for shard in shards_of(source)] == names
    for name in ("a/z.txt", "b/y.txt", "b/x.csv", "b/w.log", "b/part-1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\n")
    found = [shard.name for shard in shards_of(f"{tmp_path}/?/?.*")]
    assert found == ["x.csv", "y.txt", "z.txt"]  # other files are passed over
    # Files of the same name are read in the order of their folders.
    alike = shards_of(f"{tmp_path}/*/part-1.jsonl")
    assert [shard.path for shard in alike] == [
        tmp_path / "b" / "part-1.jsonl",
        folder / "part-1.jsonl",
    ]
    for source, said in (
        ("nowhere/*.jsonl", "no file matches it"),
        (str(tmp_path / "x.csv"), "does not exist"),
        (f"{tmp_path}/*/*.log", "can be read"),
    ):
        with pytest.raises(MaskwiseError, match=re.escape(said)):
            shards_of(source)


def test_a_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    content = bytearray(b"x" * (1 << 18))
    seen = set()
    for place in (None, 0, len(content) - 1):
        if place is not None:
            content[place] ^= 1
        path.write_bytes(bytes(content))
        [shard] = shards_of(path)
        seen.add(shard.fingerprint())
    path.write_bytes(bytes(content) + b"\n")
    assert len({*seen, shards_of(path)[0].fingerprint()}) == 4


# Rows
# ----------------------------------------------------------------------------


def test_an_epoch_has_every_piece_once_and_nothing_that_is_held_out(
    folder: Path, tokenizer
) -> None:
    rows = drawn(stream(folder, tokenizer), batch_size=4)
    batches: dict[int, list[int]] = {}
    for step in range(60):
        numbers, epoch = rows.draw(step)
        batches.setdefault(epoch, []).extend(rows.line(numbers).example_id.tolist())
    first, second, *_ = batches.values()
    assert len(set(first)) == len(first) and first != second
    pieces = Counter()
    for shard in shards_of(folder):
        for chunk in shard.chunks(rows.readers[0].stream.chunk_size):
            block = rows.pool.make(chunk)
            if block:
                pieces.update(block.pieces.example_ids.tolist())
    assert set(first) <= set(pieces) and len(pieces) - len(first) < 20  # those of less than a batch
    held = [
        d
        for d in read_documents(folder, keep_repeated=True)
        if text_id(d.text) < held_out_below(0.1)
    ]
    assert held and not {d.id for d in held} & set(pieces)


def test_rows_depend_neither_on_workers_nor_on_how_they_are_asked_for(
    folder: Path, tokenizer
) -> None:
    text = stream(folder, tokenizer)
    alone, helped = drawn(text), drawn(text, workers=2)
    try:
        known = [ids_of(alone, step) for step in range(30)]
        assert [ids_of(helped, step) for step in range(30)] == known
    finally:
        helped.close()
    for step in (29, 3, 3, 17, 0, 25):  # in any order, and twice
        assert ids_of(alone, step) == known[step]
    assert ids_of(drawn(text, seed=1), 0) != known[0]
    plain = drawn(stream(folder, tokenizer, shuffle=0.0))
    first = next(iter(read_documents(folder)))
    assert first.id in ids_of(plain, 0)


def test_a_worker_that_dies_is_made_up_for(folder: Path, tokenizer) -> None:
    text = stream(folder, tokenizer)
    known = [ids_of(drawn(text), step) for step in range(12)]
    helped = drawn(text, workers=1)
    try:
        assert ids_of(helped, 0) == known[0]
        for step in range(1, 12):
            for worker in helped.pool.pool.workers.values():
                worker.process.kill()
            assert ids_of(helped, step) == known[step]
    finally:
        helped.close()


def test_batches_do_not_depend_on_ranks_and_masks_are_those_of_a_prepared_text(
    folder, tokenizer, tmp_path
):
    text = stream(folder, tokenizer)
    how = TrainingSettings(steps=20, batch_size=8, workers=0)
    whole, left, right = (
        MaskedSource(StreamedRows(text, how), Masker(tokenizer), how) for _ in range(3)
    )
    for step in (0, 1, 13):
        [every] = whole.batches(step, rank=0, ranks=1)
        [first] = left.batches(step, rank=0, ranks=2)
        [second] = right.batches(step, rank=1, ranks=2)
        assert torch.equal(every.input_ids, torch.cat([first.input_ids, second.input_ids]))
        assert torch.equal(every.labels, torch.cat([first.labels, second.labels]))
    corpus = CorpusSettings(source=str(folder), length=32, held_out=0.1)
    tokens = tokenise(corpus.documents(), tokenizer)
    settings = {"length": 32, "layout": "document", "held_out": 0.1}
    training = Prepared.make(tmp_path / "data", tokens, tokenizer, **settings).training
    rows = drawn(text.laid("document"))
    numbers, epoch = rows.draw(2)
    mine = rows.line(numbers).example_id
    names = training.pieces.example_ids[training.order].tolist()
    same = [row for row, name in enumerate(mine.tolist()) if name in names]
    assert len(same) > 4
    theirs = training.line([names.index(mine[row]) for row in same])
    masker = Masker(tokenizer)
    when = {"step": 9, "total_steps": 20, "epoch": epoch}
    ours = masker(rows.line(numbers[same]), **when)
    assert torch.equal(ours.input_ids, masker(theirs, **when).input_ids)


def test_a_mix_has_its_shares_and_its_sources_have_epochs_of_their_own(
    folder: Path, tokenizer
) -> None:
    sources = {name: shards_of(folder / f"part-{n}.jsonl") for n, name in enumerate("ab")}
    text = Stream(sources, BlockMaker(tokenizer, 32, held_out=0.1), shuffle=0.004)
    rows = drawn(text, shares={"a": 0.75, "b": 0.25})
    counts: Counter[str] = Counter()
    names = {text_id(row["text"]): row["id"][0] for n in (0, 1) for row in texts(40, seed=n)}
    for step in range(40):
        numbers, epoch = rows.draw(step)
        assert epoch is None and sorted(numbers.tolist()) == list(range(8))
        half = rows.counts(numbers[:4])
        counts.update(half)
        counts.update(rows.counts(numbers[4:]))
        for number in numbers.tolist():
            [source] = [name for name, n in rows.counts(torch.tensor([number])).items() if n]
            first = rows.line(torch.tensor([number])).example_id.tolist()
            assert all(names[i] == "ab".index(source).__str__() for i in first if i in names)
    assert counts == {"a": 240, "b": 80}
    again = drawn(text, shares={"a": 0.75, "b": 0.25})
    assert ids_of(again, 33) == ids_of(rows, 33)


# Going on
# ----------------------------------------------------------------------------


def saved(rows: StreamedRows, step: int) -> dict[str, object]:
    """The position before a step, as ``state.json`` keeps it."""
    return json.loads(json.dumps(rows.position(step)))


def test_a_state_leads_to_the_next_step_without_reading_what_came_before(
    folder, tokenizer, monkeypatch
):
    text = stream(folder, tokenizer)
    rows = drawn(text)
    known = [ids_of(rows, step) for step in range(40)]
    made = []
    whole = BlockMaker.__call__

    def count(self, chunk):
        made.append(chunk)
        return whole(self, chunk)

    monkeypatch.setattr(BlockMaker, "__call__", count)
    rows = drawn(text)
    states = {}
    for step in range(40):
        ids_of(rows, min(step + 1, 39))  # as the look-ahead does
        states[step + 1] = saved(rows, step + 1)
    for done in (1, 7, 26, 39):
        made.clear()
        fresh = drawn(text)
        fresh.resume(states[done])
        assert ids_of(fresh, done) == known[done] and len(made) <= 3
        assert [ids_of(fresh, step) for step in range(done, 40)] == known[done:]
    fresh.resume(states[7])  # back, and on behind some batches
    assert ids_of(fresh, 12) == known[12]


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ending", [".jsonl.gz", ".txt.zst", ".parquet"])
def test_a_stream_goes_on_after_any_of_its_rows(tmp_path, tokenizer, ending, workers) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number}{ending}", texts(12, seed=number))
    text = stream(tmp_path, tokenizer)
    rows = drawn(text, batch_size=1, steps=50)
    known = [ids_of(rows, step) for step in range(50)]
    assert len({rows.facts(step)["shard"] for step in range(42, 51)}) > 1
    assert rows.facts(50)["epoch"] >= 1
    states = []
    rows = drawn(text, batch_size=1, steps=50)
    for step in range(47):
        states.append(saved(rows, step))
        ids_of(rows, step)
    fresh = drawn(text, batch_size=1, steps=50, workers=workers)
    try:
        for step in range(0, 47, 7 if workers else 1):
            fresh.resume(states[step])
            assert [ids_of(fresh, step + more) for more in range(3)] == known[step:][:3]
    finally:
        fresh.close()


def test_a_position_is_known_after_steps_that_others_read(folder: Path, tokenizer) -> None:
    """As of one of several objectives, whose stream is not read in every step."""
    text = stream(folder, tokenizer)
    rows, fresh = drawn(text), drawn(text)
    ids_of(rows, 3)
    position = saved(rows, 30)
    assert position["step"] == 4
    fresh.resume(position)
    assert ids_of(fresh, 31) == ids_of(rows, 31)


def test_a_changed_shard_is_refused(folder: Path, tokenizer) -> None:
    rows = drawn(stream(folder, tokenizer))
    ids_of(rows, 0)
    state = saved(rows, 1)
    write_lines(folder / "part-1.jsonl", texts(41, seed=1))
    with pytest.raises(
        MaskwiseError, match=r"a shard of the stream has changed .*part-1\.jsonl"
    ) as error:
        drawn(stream(folder, tokenizer)).resume(state)
    assert "\n" not in str(error.value)


def test_the_end_of_a_stream_is_the_next_epoch_or_one_line(folder: Path, tokenizer) -> None:
    rows = drawn(stream(folder, tokenizer, repeat=False))
    steps = 0
    with pytest.raises(
        MaskwiseError, match=r"the stream ends after \d+ of 40 steps.*repeat"
    ) as error:
        for step in range(40):
            ids_of(rows, step)
            steps += 1
    assert f"after {steps} of" in str(error.value) and steps > 5
    again = drawn(stream(folder, tokenizer))
    assert {again.draw(step)[1] for step in range(40)} >= {0, 1}


def test_too_little_text_is_one_line(folder: Path, tokenizer) -> None:
    with pytest.raises(
        MaskwiseError, match=r"the stream is smaller than one batch.*at least 1000 rows"
    ):
        drawn(stream(folder, tokenizer), batch_size=1000).draw(0)
    with pytest.raises(MaskwiseError, match="smaller than one batch"):
        drawn(stream(folder / "part-3.jsonl", tokenizer)).draw(0)


# What is prepared
# ----------------------------------------------------------------------------


def test_ids_of_a_stream_may_have_gaps(folder: Path, tmp_path: Path) -> None:
    """The largest id is above the number of tokens, as if tokens had been removed."""
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {name: number for number, name in enumerate((*names, *WORDS[:-1]))} | {
        WORDS[-1]: 900
    }
    backend = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    gaps = PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(roles, names)))
    corpus = CorpusSettings(source=str(folder), length=32, held_out=0.2, stream=True)
    Prepared.begin(tmp_path / "data", corpus, gaps)
    stream = Prepared.open(tmp_path / "data").training
    counts = stream.unigram_counts(901)
    assert counts[900] and counts.sum() == counts[: len(vocabulary)].sum() + counts[900]
    with pytest.raises(MaskwiseError, match="outside the vocabulary; got 900"):
        stream.unigram_counts(len(gaps))


def test_held_out_text_is_the_beginning_of_what_the_hash_holds_out(
    folder: Path, tokenizer, tmp_path
) -> None:
    corpus = CorpusSettings(source=str(folder), length=32, held_out=0.2, stream=True)
    facts = Prepared.begin(tmp_path / "data", corpus, tokenizer)
    data = Prepared.open(tmp_path / "data")
    documents = list(read_documents(folder, keep_repeated=True))
    hashes = {text_id(d.text) for d in documents}
    held = {place for place in hashes if place < held_out_below(0.2)}
    assert set(data.held_out.documents.tolist()) == held
    assert facts["held_out_rows"] == len(data.held_out)
    assert facts["read_characters"] == sum(len(d.text) for d in documents)
    others = [d.text for d in documents if text_id(d.text) not in held]
    ids = tokenizer(others, add_special_tokens=False)["input_ids"]
    expected = np.bincount(np.concatenate(ids), minlength=len(tokenizer))
    assert np.array_equal(data.training.unigram_counts(len(tokenizer)), expected)
    with pytest.raises(MaskwiseError, match="leaves no held-out documents in the beginning"):
        Prepared.begin(tmp_path / "none", corpus.model_copy(update={"held_out": 1e-9}), tokenizer)


def test_the_rows_of_a_step_may_be_read_in_any_parts(folder: Path, tokenizer) -> None:
    sizes = []

    class Noted(BlockMaker):
        def __call__(self, chunk: Shard):
            block = super().__call__(chunk)
            sizes.append(len(block or ()))
            return block

    text = replace(stream(folder, tokenizer, shuffle=0.001), maker=Noted(tokenizer, 32))
    rows = drawn(text, batch_size=32)
    numbers, _ = rows.draw(1)
    whole = rows.line(numbers)
    assert max(sizes) < 32  # The batch is of several blocks.
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    mixed, straight = rows.line(order).columns()["input_ids"], whole.columns()["input_ids"]
    assert np.array_equal(mixed, straight[order.numpy()])


def test_layers_are_made_as_the_text_is_read(folder: Path, tokenizer) -> None:
    text = stream(folder, tokenizer)
    made = replace(text, maker=replace(text.maker, layers=Live(["sentences"])))
    rows = drawn(made, workers=1)
    try:
        for step in (0, 9):
            numbers, _ = rows.draw(step)
            batch = rows.line(numbers)
            assert batch.example_id.tolist() == ids_of(drawn(text), step)
            inside = batch.layers["word_ids"] >= 0
            # the texts are without full stops
            assert (batch.layers["sentence"][inside] == 0).all()
    finally:
        rows.close()
    with pytest.raises(MaskwiseError, match="must read the whole corpus"):
        Live(["words", "phrases"])
