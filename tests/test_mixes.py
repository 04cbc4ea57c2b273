"""Corpora that are mixes of several: exact shares, one order for all ranks, and nothing to save for
a resume.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import file_hash
from maskwise.recipe import read_recipe
from maskwise.studies import make_plan, rehearsal, run_stage
from maskwise.studies.checks import tokenizer_and_config
from maskwise.studies.pretraining import masked_source
from maskwise.studies.single import run_pretrain
from maskwise.studies.store import StageStore
from maskwise.studies.text_sample import Samples
from maskwise.text import Prepared
from maskwise.text.settings import CorpusSettings
from maskwise.text.words import text_id
from maskwise.training import TrainingSettings
from maskwise.training.data import Mix
from maskwise.training.stream import apportioned
from tiny import interrupt, maskwise, read_lines, write_inputs, write_lines

SMALL = [
    "tasks=[]",
    "study.seeds=1",
    "study.arms={a: {}}",
    "training.steps=10",
    "training.eval_every=0",
    "training.log_every=2",
    "training.save_every=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three corpora: the made-up language, its words backwards (half as much), and copies of a few
    of its texts.
    """
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    rows = read_lines(folder / "corpus.jsonl")
    backwards = [{"id": f"b{row['id']}", "text": row["text"][::-1]} for row in rows[:30]]
    write_lines(folder / "backwards.jsonl", backwards)
    write_lines(
        folder / "copies.jsonl", [{"id": f"c{row['id']}", "text": row["text"]} for row in rows[:5]]
    )
    return folder


def mix(folder: Path, **weights: float) -> str:
    mixed = {str(folder / f"{name}.jsonl"): weight for name, weight in weights.items()}
    return f"corpus.source={json.dumps(mixed)}"


@pytest.fixture(scope="module")
def read(folder):
    """Read the tiny recipe with overrides."""
    return lambda *overrides: read_recipe(folder / "recipe.yaml", [*SMALL, *overrides])


def prepare(recipe, stages: Path) -> Prepared:
    [text, *_] = make_plan(recipe).stages()
    run_stage(text, StageStore(stages))
    return Prepared.open(StageStore(stages).folder(text) / "data")


def trained(out: Path) -> list[dict]:
    return [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "train"]


@given(
    st.lists(st.integers(0, 1 << 40), min_size=1, max_size=12).filter(any), st.integers(0, 10**12)
)
@settings(max_examples=200)
def test_the_rows_of_a_mix_are_shared_out_exactly(weights, rows):
    now, then = apportioned(rows, weights), apportioned(rows + 1, weights)
    assert sum(now) == rows and sorted(b - a for a, b in zip(now, then)) == [
        *[0] * (len(weights) - 1),
        1,
    ]
    most = {1: 0, 2: 0.5, 3: 1}.get(len(weights), 2)
    assert all(abs(n - rows * w / sum(weights)) <= most for n, w in zip(now, weights))


def test_each_source_is_read_in_epochs_of_its_own():
    how = TrainingSettings(steps=60, batch_size=10)
    shares = {"a": 0.75, "b": 0.25}
    mixed = Mix(shares, [40, 7], how)
    batches = [mixed.draw(step)[0] for step in range(60)]
    rows = torch.cat(batches)
    assert mixed.counts(rows) == {"a": 450, "b": 150}
    seen = Counter(rows.tolist())
    assert {seen[row] for row in range(40)} == {11, 12}
    assert {seen[row] for row in range(40, 47)} == {21, 22}
    first = batches[0]
    assert not torch.equal(first.sort().values, first)  # a batch is mixed too
    far = mixed.draw(10**9)[0]  # no more work than the first
    other = Mix(shares, [40, 7], how.model_copy(update={"seed": 1})).draw(0)[0]
    assert len(far) == 10 and not torch.equal(far, first) and not torch.equal(other, first)


@pytest.fixture(scope="module")
def prepared(folder, read, tmp_path_factory):
    """A mix, prepared: its recipe and its data."""
    recipe = read(mix(folder, corpus=2, backwards=1, copies=0))
    return recipe, prepare(recipe, tmp_path_factory.mktemp("stages"))


def test_a_row_is_of_one_source_and_a_text_of_one_too(prepared, folder):
    rows = prepared[1].training
    sizes = rows.by_source(3)
    # the copies are left out
    assert sizes[0] > sizes[1] > 0 and sizes[2] == 0 and sum(sizes) == len(rows)
    names = {}
    for name in ("corpus", "backwards"):
        for line in read_lines(folder / f"{name}.jsonl"):
            names[text_id(line["text"])] = name
    for row, (first, end) in enumerate(pairwise(rows.first)):
        documents = rows.pieces.documents[rows.order[first:end]]
        [source] = {names[int(name)] for name in documents}
        assert source == ("corpus" if row < sizes[0] else "backwards")
    assert rows.laid("document").by_source(3)[2] == 0


def test_shares_of_batches_do_not_depend_on_ranks(prepared):
    recipe, data = prepared
    arm = recipe.arm("a", seed=3)
    source = masked_source(data, arm, tokenizer_and_config(arm)[1])

    def batch(step, rank=0, ranks=1):
        [one] = source.batches(step, rank=rank, ranks=ranks)
        return one

    for step in (0, 7):
        whole, *halves = batch(step), batch(step, 0, 2), batch(step, 1, 2)
        for name in ("input_ids", "labels"):
            joined = torch.cat([getattr(half, name) for half in halves])
            assert torch.equal(getattr(whole, name), joined)
        sums = Counter(halves[0].sources) + Counter(halves[1].sources)
        assert sums == Counter(whole.sources) and sum(sums.values()) == 8
    assert torch.equal(batch(2).input_ids, batch(2).input_ids)
    rows = sum((Counter(batch(step).sources) for step in range(9)), Counter())
    assert sorted(rows.values()) == [24, 48]


def test_weights_are_no_part_of_the_text(folder, read):
    corpus, backwards = (str(folder / f"{name}.jsonl") for name in ("corpus", "backwards"))
    sources = {"a": {corpus: 2, backwards: 1}, "b": {corpus: 1, backwards: 3}, "c": corpus}
    arms = {name: {"corpus.source": source} for name, source in sources.items()}
    recipe = read(f"study.arms={json.dumps(arms)}")
    a, b, c = (run for run in make_plan(recipe).runs if run.arm in arms)
    assert a.prepared == b.prepared != c.prepared and a.trainings[0] != b.trainings[0]
    shares = [[*run.recipe.corpus.shares([9, 9]).values()] for run in (a, b)]
    assert shares == [pytest.approx([2 / 3, 1 / 3]), [0.25, 0.75]]
    assert read(f"phases=[{{}}, {{corpus.source: {json.dumps(sources['a'])}}}]")


def test_files_of_the_same_name_have_each_its_own_texts(tmp_path):
    sources = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        sources.append(str(tmp_path / folder / "train.jsonl"))
        Path(sources[-1]).write_text(f'{{"text": "a text of {folder}"}}\n')
    one, other = CorpusSettings(source=sources).documents()
    assert one.name == other.name == "train.jsonl#1"
    assert (one.source, other.source) == (0, 1) and one.id != other.id


def test_a_source_without_a_name_is_refused():
    for source in ("", ["a.txt", ""]):
        with pytest.raises(
            ValueError, match=r"corpus.source names no text|a source name must be text"
        ):
            CorpusSettings(source=source).documents()


def test_a_mix_by_temperature():
    def shares(**more: float) -> list[float]:
        return [*CorpusSettings(source=["a", "b"], **more).shares([900, 100]).values()]

    assert shares() == shares(temperature=1) == [0.9, 0.1]
    assert shares(temperature=2) == pytest.approx([0.75, 0.25])
    assert shares(temperature=1e9) == pytest.approx([0.5, 0.5])


def test_a_training_on_a_mix_says_its_shares_and_goes_on_where_it_was_stopped(
    folder, read, tmp_path, monkeypatch
):
    recipe = read(mix(folder, corpus=1, backwards=1))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_pretrain(recipe, whole)
    names = [str(folder / f"{name}.jsonl") for name in ("corpus", "backwards")]
    assert [line["sources"] for line in trained(whole)] == [dict.fromkeys(names, 0.5)] * 5
    interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        run_pretrain(recipe, stopped)
    run_pretrain(recipe, stopped)
    weights = "checkpoint/model.safetensors"
    assert file_hash(whole / weights) == file_hash(stopped / weights)


def test_each_of_several_objectives_reads_the_mix(folder, read, tmp_path):
    more = ("objective={mlm: {}, cse: {}}", "sampler=sequential", "training.steps=4")
    run_pretrain(read(mix(folder, corpus=1, backwards=1), *more), tmp_path)
    assert [set(line["sources"].values()) for line in trained(tmp_path)] == [{0.5}, {0.5}]


def test_layers_and_sizes_of_a_mix(folder, read, tmp_path):
    names = [str(folder / f"{name}.jsonl") for name in ("corpus", "backwards")]
    source = f"corpus.source={json.dumps(names)}"
    recipe = read(source, "corpus.layers=[salient]")
    data = prepare(recipe, tmp_path)
    assert "salient" in data.training.pieces.columns
    arm = recipe.arm("a", seed=0)
    [batch] = masked_source(data, arm, tokenizer_and_config(arm)[1]).batches(0, rank=0, ranks=1)
    sizes = data.training.by_source(2)
    assert batch.sources[names[0]] == pytest.approx(8 * sizes[0] / sum(sizes), abs=1)


@pytest.mark.parametrize("layers", ["[]", "[salient]"])
def test_the_sample_of_a_mix_has_text_of_every_source(layers, folder, read, tmp_path, monkeypatch):
    """Behind a long first source, the other ones had no rows, and check refused the arm."""
    monkeypatch.setattr(rehearsal, "SAMPLE_CHARACTERS", 8000)
    monkeypatch.setattr(rehearsal, "LEAST_CHARACTERS", 0)
    names = [str(folder / f"{name}.jsonl") for name in ("corpus", "backwards")]
    recipe = read(f"corpus.source={json.dumps(names)}", f"corpus.layers={layers}")
    samples = Samples(recipe, tmp_path / "samples")
    assert samples.first.part.times > 1
    assert min(samples.first.data.training.by_source(2)) > 0
    later = samples.of(read(f"corpus.source={json.dumps(names[::-1])}", "corpus.length=32"))
    assert min(later.rows.by_source(2)) > 0


def test_the_beginning_of_a_mix_is_whole_only_if_all_sources_are(folder):
    short, long = (str(folder / f"{name}.jsonl") for name in ("copies", "corpus"))
    mix = CorpusSettings(source=[short, long])
    sizes = [sum(len(document.text) for document in part) for part in mix.parts()]
    for most, whole in ((2 * sizes[0] + 2, False), (2 * sizes[1] + 2, True)):
        beginning = mix.documents().beginning(most)
        found = Counter(document.source for document in beginning)
        assert beginning.whole is whole
        assert found.keys() == {0, 1}
    assert [*mix.documents()] == [*beginning]


@pytest.mark.parametrize(
    "source, said",
    [
        ("{a.jsonl: -1, b.jsonl: 2}", "the weight of a.jsonl in a mix is not valid; got -1"),
        ("{a.jsonl: .nan, b.jsonl: 2}", "the weight of a.jsonl in a mix is not valid; got nan"),
        ("{a.jsonl: much, b.jsonl: 2}", "the weight of a.jsonl in a mix is not valid; got 'much'"),
        ("{a.jsonl: 0, b.jsonl: 0}", "the weights of a mix are all 0"),
        ("{}", "the mix names no source"),
        ("[]", "the mix names no source"),
        ("{'': 1, b.jsonl: 2}", "a source name must be text"),
        ("[a.jsonl, 3]", "a source name must be text; got 3"),
        ("[a.jsonl, ./a.jsonl]", "a mix names a source twice"),
        (
            "{no-such-file.jsonl: 1, 'bundled:wikipedia': 2}",
            "corpus 'no-such-file.jsonl' does not exist",
        ),
        ("{'bundled:wikipedio': 1, 'bundled:wikipedia': 2}", "did you mean 'wikipedia'"),
    ],
)
def test_bad_mixes_are_refused_in_one_line(folder, source, said, tmp_path, capfd):
    override = f"corpus.source={source}"
    command = ("study", folder / "recipe.yaml", *SMALL, override, "--out", tmp_path / "out")
    assert maskwise(*command) == 2
    error = capfd.readouterr().err.strip()
    assert said in error and "\n" not in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["corpus.temperature=2"], "temperature needs a list of sources"),
        (
            ["training.batch_size=40"],
            "copies.jsonl has fewer rows than its share of a batch; got 0",
        ),
        (["training.group_by_length=true"], "a mix cannot be grouped by length"),
    ],
)
def test_what_does_not_go_with_a_mix(folder, read, more, said, tmp_path):
    with pytest.raises(MaskwiseError, match=said):
        run_pretrain(read(mix(folder, corpus=1, copies=1), *more), tmp_path / "out")
