"""Corpora that are mixes of several: exact shares, one order for all ranks, and nothing to save for
a resume.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwise.errors import MaskwiseError
from maskwise.folders import file_hash
from maskwise.recipe import read_recipe
from maskwise.study import make_plan, run_stage
from maskwise.study.checks import start_of
from maskwise.study.pretraining import masked_source
from maskwise.study.single import run_pretrain
from maskwise.text import Prepared
from maskwise.text.settings import CorpusSettings
from maskwise.text.words import text_id
from maskwise.training import TrainingSettings
from maskwise.training.data import Mix
from maskwise.training.engine import Engine
from maskwise.training.stream import apportioned
from tiny import maskwise, read_lines, write_inputs, write_lines

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
def folder(tmp_path_factory) -> Path:
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
    mixed = Mix({"a": 0.75, "b": 0.25}, [40, 7], how)

    def drawn(step: int) -> torch.Tensor:
        return mixed.draw(step)[0]

    rows = torch.cat([drawn(step) for step in range(60)])
    seen = Counter(rows.tolist())
    assert mixed.counts(rows) == {"a": 450, "b": 150}
    assert {seen[row] for row in range(40)} == {11, 12} and {
        seen[row] for row in range(40, 47)
    } == {21, 22}
    assert not torch.equal(drawn(0).sort().values, drawn(0))  # a batch is mixed too
    far = Mix({"a": 0.75, "b": 0.25}, [40, 7], how).draw(10**9)[0]  # no more work than the first
    assert len(far) == 10 and not torch.equal(far, drawn(0))
    other = Mix({"a": 0.75, "b": 0.25}, [40, 7], how.model_copy(update={"seed": 1}))
    assert not torch.equal(other.draw(0)[0], drawn(0))


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """A mix, prepared: its recipe and its data."""
    recipe = read_recipe(
        folder / "recipe.yaml", [*SMALL, mix(folder, corpus=2, backwards=1, copies=0)]
    )
    stages = tmp_path_factory.mktemp("stages")
    [text, *_] = make_plan(recipe).stages()
    run_stage(text, stages)
    return recipe, Prepared.open(text.folder(stages) / "data")


def test_a_row_is_of_one_source_and_a_text_of_one_too(prepared, folder):
    _, data = prepared
    sizes = data.training.by_source(3)
    # the copies are left out
    assert sizes[0] > sizes[1] > 0 and sizes[2] == 0 and sum(sizes) == len(data.training)
    names = {
        text_id(row["id"]): name
        for name in ("corpus", "backwards")
        for row in read_lines(folder / f"{name}.jsonl")
    }
    for row in range(len(data.training)):
        pieces = data.training.order[data.training.first[row] : data.training.first[row + 1]]
        [source] = {names[int(name)] for name in data.training.pieces.documents[pieces]}
        assert source == ("corpus" if row < sizes[0] else "backwards")
    assert data.training.laid("document").by_source(3)[2] == 0


def test_shares_of_batches_do_not_depend_on_ranks(prepared):
    recipe, data = prepared
    arm = recipe.arm("a", seed=3)
    source = masked_source(data, arm, start_of(arm)[1])
    for step in (0, 7):
        [whole] = source.batches(step, rank=0, ranks=1)
        halves = [source.batches(step, rank=rank, ranks=2)[0] for rank in (0, 1)]
        assert torch.equal(whole.input_ids, torch.cat([half.input_ids for half in halves]))
        assert torch.equal(whole.labels, torch.cat([half.labels for half in halves]))
        sums = Counter(halves[0].sources) + Counter(halves[1].sources)
        assert sums == Counter(whole.sources) and sum(sums.values()) == 8
    [first], [again] = (source.batches(step, rank=0, ranks=1) for step in (2, 2))
    assert torch.equal(first.input_ids, again.input_ids)
    rows = Counter()
    for step in range(9):
        rows += Counter(source.batches(step, rank=0, ranks=1)[0].sources)
    assert sorted(rows.values()) == [24, 48]


def test_weights_are_no_part_of_the_text(folder):
    arms = {
        "a": {},
        "b": {
            "corpus.source": {str(folder / "corpus.jsonl"): 1, str(folder / "backwards.jsonl"): 3}
        },
        "c": {"corpus": {"source": str(folder / "corpus.jsonl")}},
    }
    recipe = read_recipe(
        folder / "recipe.yaml",
        [*SMALL, mix(folder, corpus=2, backwards=1), f"study.arms={json.dumps(arms)}"],
    )
    a, b, c = (run for run in make_plan(recipe).runs if run.arm in arms)
    assert a.prepared == b.prepared != c.prepared and a.trainings[0] != b.trainings[0]
    assert recipe.arm("b", seed=0).corpus.shares([9, 9]) != recipe.arm("a", seed=0).corpus.shares(
        [9, 9]
    )
    assert read_recipe(
        folder / "recipe.yaml",
        [*SMALL, f"phases=[{{}}, {{{mix(folder, corpus=2, backwards=1).replace('=', ': ')}}}]"],
    )


def test_a_mix_by_temperature():
    def shares(**more: float) -> list[float]:
        return [*CorpusSettings(source=["a", "b"], **more).shares([900, 100]).values()]

    assert shares() == shares(temperature=1) == [0.9, 0.1]
    assert shares(temperature=2) == pytest.approx([0.75, 0.25])
    assert shares(temperature=1e9) == pytest.approx([0.5, 0.5])


def test_a_training_on_a_mix_says_its_shares_and_goes_on_where_it_was_stopped(
    folder, tmp_path, monkeypatch
):
    recipe = read_recipe(folder / "recipe.yaml", [*SMALL, mix(folder, corpus=1, backwards=1)])
    run_pretrain(recipe, tmp_path / "whole", quiet=True)
    lines = [
        line for line in read_lines(tmp_path / "whole" / "metrics.jsonl") if line["kind"] == "train"
    ]
    names = [str(folder / f"{name}.jsonl") for name in ("corpus", "backwards")]
    assert [line["sources"] for line in lines] == [dict.fromkeys(names, 0.5)] * 5
    update, stops = Engine.update, []

    def stopping(self, step, observe, **more):
        if step.number == 5 and not stops:
            stops.append(step.number)
            raise KeyboardInterrupt
        return update(self, step, observe, **more)

    monkeypatch.setattr(Engine, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_pretrain(recipe, tmp_path / "stopped", quiet=True)
    run_pretrain(recipe, tmp_path / "stopped", quiet=True)
    hashes = [
        file_hash(tmp_path / name / "checkpoint" / "model.safetensors")
        for name in ("whole", "stopped")
    ]
    assert stops == [5] and hashes[0] == hashes[1]


def test_each_of_several_objectives_reads_the_mix(folder, tmp_path):
    more = [
        mix(folder, corpus=1, backwards=1),
        "objectives={mlm: {}, cse: {}}",
        "sampler=sequential",
        "training.steps=4",
    ]
    run_pretrain(read_recipe(folder / "recipe.yaml", [*SMALL, *more]), tmp_path, quiet=True)
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert [set(line["sources"].values()) for line in lines] == [{0.5}, {0.5}]


def test_layers_of_a_mix(folder, tmp_path):
    more = [
        "corpus.layers=[salient]",
        "masking.policy=mixture(salient=0.5, token=0.5)",
        mix(folder, corpus=1, backwards=1),
    ]
    recipe = read_recipe(folder / "recipe.yaml", [*SMALL, *more[::2]])
    [text, *_] = make_plan(recipe).stages()
    run_stage(text, tmp_path)
    assert "salient" in Prepared.open(text.folder(tmp_path) / "data").training.pieces.columns


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
    command = (
        "study",
        folder / "recipe.yaml",
        *SMALL,
        f"corpus.source={source}",
        "--out",
        tmp_path / "out",
    )
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
        (["training.group_by_length=true"], "a mix are not grouped by length"),
    ],
)
def test_what_does_not_go_with_a_mix(folder, more, said, tmp_path):
    weighed = mix(folder, corpus=1, copies=1)
    with pytest.raises(MaskwiseError, match=said):
        run_pretrain(
            read_recipe(folder / "recipe.yaml", [*SMALL, weighed, *more]),
            tmp_path / "out",
            quiet=True,
        )
    with pytest.raises(MaskwiseError, match="temperature needs a list of sources"):
        read_recipe(folder / "recipe.yaml", ["corpus.temperature=2"])


def test_stages_of_a_mix_by_size(folder, tmp_path):
    names = [str(folder / f"{name}.jsonl") for name in ("corpus", "backwards")]
    more = [f"corpus.source={json.dumps(names)}", "training.steps=2"]
    [run, *_] = make_plan(read_recipe(folder / "recipe.yaml", [*SMALL, *more])).runs
    for stage in run.chain:
        run_stage(stage, tmp_path)
    [line] = [
        line
        for line in read_lines(run.trainings[0].folder(tmp_path) / "metrics.jsonl")
        if "sources" in line
    ]
    sizes = Prepared.open(run.prepared.folder(tmp_path) / "data").training.by_source(2)
    assert line["sources"][names[0]] == pytest.approx(sizes[0] / sum(sizes), abs=0.5 / 16)
