"""Streams that several processes share: the rows of one process, and each text tokenised once."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from maskwise.base.constants import rank_here
from maskwise.base.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.masking.batch import MaskedBatch
from maskwise.objectives import objective
from maskwise.text import shards_of, train_tokenizer
from maskwise.text.stream import BlockMaker, Stream
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.training.engine import Engine
from maskwise.training.stream import StreamedRows
from processes import as_ranks, two_ranks
from test_stream import texts
from tiny import WORDS, read_lines, write_lines
from training_tools import model

SLOW = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of forty documents."""
    (tmp_path / "texts").mkdir()
    for number in range(3):
        write_lines(tmp_path / "texts" / f"part-{number}.jsonl", texts(40, seed=number))
    return tmp_path / "texts"


class Noted(MaskedSource):
    """Notes the ids of this rank's pieces in each step."""

    noted: dict[int, list[int]]

    def batches(self, step: int, *, rank: int, ranks: int) -> list[MaskedBatch]:
        made = super().batches(step, rank=rank, ranks=ranks)
        self.noted[step] = [each for batch in made for each in batch.line.example_id.tolist()]
        return made


def pretrain(
    folder: Path,
    out: Path,
    *,
    workers: int = 0,
    stop: int = -1,
    shares: bool = False,
) -> None:
    """Train on the stream, and write the ids of this rank's pieces and the chunks that it made."""
    tokenizer = train_tokenizer(" ".join(WORDS) for _ in range(9))
    shards = shards_of(folder)
    sources = {"a": shards[:1], "b": shards[1:]} if shares else {"texts": shards}
    made: Counter[str] = Counter()

    class Counting(BlockMaker):
        def __call__(self, chunk: Any) -> Any:
            made[str(next(iter(chunk.read())))] += 1
            return super().__call__(chunk)

    maker = (BlockMaker if workers else Counting)(tokenizer, 32, held_out=0.1)
    stream = Stream(sources, maker, shuffle=0.002)
    how = TrainingSettings(
        steps=12, batch_size=8, workers=workers, save_every=5, precision="no", log_every=1
    )
    trainee = objective("mlm", model("bert", vocab_size=len(tokenizer)))
    update = Engine.update

    def stopping(self: Engine, step: Any, *rest: Any, **others: Any) -> Any:
        if step.number == stop:
            raise KeyboardInterrupt
        return update(self, step, *rest, **others)

    given = {"a": 0.75, "b": 0.25} if shares else {}
    rows = StreamedRows(stream, how, shares=given)
    with closing(rows), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "update", stopping)
        source = Noted(rows, Masker(tokenizer), how)
        source.noted = {}
        streams = source.streams()
        with suppress(KeyboardInterrupt):
            train(trainee, source, how, folder=out, streams=streams)
    found = {"ids": source.noted, "made": made}
    (out / f"rank-{rank_here()}.json").write_text(json.dumps(found))


def ids_of(out: Path) -> dict[str, list[int]]:
    """The ids of the pieces of all ranks in each step, in the order of the rows."""
    together: dict[str, list[int]] = {}
    for path in sorted(out.glob("rank-*.json")):
        for step, ids in json.loads(path.read_text())["ids"].items():
            together.setdefault(step, []).extend(ids)
    return together


def made_by(out: Path) -> list[Counter[str]]:
    """How often each rank made each chunk."""
    paths = sorted(out.glob("rank-*.json"))
    return [Counter(json.loads(path.read_text())["made"]) for path in paths]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_lines(out / "metrics.jsonl")]


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=SLOW)])
def test_ranks_read_the_rows_of_one_process_and_make_each_block_once(
    folder: Path, tmp_path: Path, ranks: int, shares: bool
) -> None:
    pretrain(folder, tmp_path / "one", shares=shares)
    as_ranks(ranks, _rank, folder, tmp_path / "many", {"shares": shares})
    assert ids_of(tmp_path / "many") == ids_of(tmp_path / "one")
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    [alone] = made_by(tmp_path / "one")
    parts = made_by(tmp_path / "many")
    assert sum(parts, Counter()) == alone
    sizes = [part.total() for part in parts]
    # In each source, the ranks take turns.
    assert max(sizes) - min(sizes) <= (2 if shares else 1) and min(sizes) >= 2, sizes


def _rank(folder: Path, out: Path, how: dict[str, Any]) -> None:
    pretrain(folder, out, **how)


@pytest.mark.slow
@pytest.mark.process
def test_workers_of_ranks_make_the_same_rows(folder: Path, tmp_path: Path) -> None:
    pretrain(folder, tmp_path / "one")
    two_ranks(_rank, folder, tmp_path / "many", {"workers": 1})
    assert ids_of(tmp_path / "many") == ids_of(tmp_path / "one")


@pytest.mark.parametrize("again", [1, 2, pytest.param(4, marks=SLOW)])
def test_another_number_of_ranks_goes_on_in_the_stream(
    folder: Path, tmp_path: Path, again: int
) -> None:
    pretrain(folder, tmp_path / "one")
    two_ranks(_rank, folder, tmp_path / "parts", {"stop": 8})
    (tmp_path / "parts" / "rank-1.json").unlink()
    if again == 1:
        pretrain(folder, tmp_path / "parts")
    else:
        as_ranks(again, _rank, folder, tmp_path / "parts", {})
    known = ids_of(tmp_path / "one")
    assert ids_of(tmp_path / "parts") == {step: known[step] for step in map(str, range(5, 12))}
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_a_state_has_the_position_as_plain_data(folder: Path, tmp_path: Path) -> None:
    pretrain(folder, tmp_path / "new", stop=8)
    [path] = tmp_path.glob("new/resume/step-*/state.json")
    position = json.loads(path.read_text())["streams"]["stream packed"]
    assert position["step"] == 5 and len(position["shards"]) == 3
    assert list(position["at"][0]) == ["epoch", "shard", "chunk", "block", "row"]


def failing_ranks(folder: Path, out: Path) -> None:
    """A shard that one rank cannot read, and one that has changed on its disk only."""
    pretrain(folder, out / "run", stop=8)
    mine = folder
    if rank_here():
        mine = out / "mine"
        mine.mkdir()
        for path in folder.iterdir():
            (mine / path.name).write_bytes(path.read_bytes())
        write_lines(mine / "part-1.jsonl", texts(41, seed=1))
    with pytest.raises(MaskwiseError) as changed:
        pretrain(mine, out / "run")
    if rank_here():
        (mine / "part-1.jsonl").write_bytes(b"\0" * 9)
    with pytest.raises(MaskwiseError) as unread:
        pretrain(mine, out / "new")
    said = {"changed": str(changed.value), "unread": str(unread.value)}
    (out / f"said-{dist.get_rank()}.json").write_text(json.dumps(said))


def test_what_one_rank_cannot_read_ends_all_ranks(folder: Path, tmp_path: Path) -> None:
    two_ranks(failing_ranks, folder, tmp_path)
    first, second = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in (0, 1))
    for name, fact in (("changed", "part-1.jsonl"), ("unread", "NUL bytes")):
        assert fact in second[name] and not second[name].startswith("process")
        assert first[name].startswith("process 1 failed") and fact in first[name]
