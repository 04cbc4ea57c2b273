"""Golden losses of whole trainings: every objective in both layouts, arms, streams,
encoder-decoders and Muon.

Every training runs through ``maskwise pretrain``, in single precision, on one thread and with a
tiny model. Losses are compared to ``TOLERANCE``: kernels for other processors round another way
(``ATEN_CPU_CAPABILITY=default``, without AVX, moves the losses below by at most 7e-7), and one mask
more or less moves them by 1e-3. Probabilities of a sampler that learns multiply such differences:
there it is 6e-5.

``python tests/test_golden.py trainings`` (``arms``, ``onward``, ``stream``, ``meta``) writes the
values anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import test_meta
from maskwise.learning.meta import learn_policy
from maskwise.training import engine
from test_golden import LAYOUTS, read_golden, rounded
from tiny import maskwise, read_lines, write_inputs, write_lines

TOLERANCE = 1e-5
STEPS = 8
"""Of each training."""

DECODED_BY_T5 = (
    "model={architecture: t5, settings: {d_model: 16, d_kv: 8, num_heads: 2, "
    "num_layers: 1, d_ff: 32}}"
)
DECODED_BY_BART = (
    "model={architecture: bart, settings: {d_model: 16, encoder_layers: 1, decoder_layers: 1, "
    "encoder_attention_heads: 2, decoder_attention_heads: 2, encoder_ffn_dim: 32, "
    "decoder_ffn_dim: 32}}"
)
SPANS = "masking.policy=span"


def denoising(model: str, corruption: str) -> tuple[str, ...]:
    """The settings of an encoder-decoder that restores spans."""
    masked = f"masking={{policy: span, ratio: 0.3, corruption: {corruption!r}}}"
    return ("objective=denoise", "tokenizer.sentinels=20", model, masked)


OBJECTIVES: dict[str, tuple[str, ...]] = {
    "mlm": ("objective=mlm",),
    "emlm": ("objective={emlm: {}}", "corpus.layers=[\"spans('SPANS', layer='salient')\"]"),
    "atd": ("objective={atd: {}}",),
    "dtd": ("objective={dtd: {}}",),
    "cse": ("objective={cse: {}}",),
    "rtd": ("objective={rtd: {}}",),
    "clm": ("objective=clm",),
    "diffusion": ("objective=diffusion",),
    "tsdae": ("objective={tsdae: {}}",),
    "denoise": denoising(DECODED_BY_T5, "t5"),
}
"""The settings of each objective; SPANS is a file with spans of the corpus."""

OTHERS: dict[str, tuple[str, ...]] = {
    "t5 writes the full text": denoising(DECODED_BY_T5, "t5(target='full')"),
    "bart writes the full text": denoising(DECODED_BY_BART, "infill"),
    "bart writes the masked spans": denoising(DECODED_BY_BART, "infill(target='spans')"),
    "muon": ("training.optimizer=muon", "training.muon_learning_rate=0.02"),
    "accumulated": ("training.accumulate=4",),
    "lora": ("model.adapter=lora(rank=2)",),
    "weights of groups are learned": ("masking.policy=group-weighted(layer=word_ids, groups=40)",),
    "weights of types are learned": ("masking.policy=type-weighted(every=2)",),
    "every second visit masks the rest": ("masking.visits=complement",),
    "modernbert, whole words, attention over rows": (
        "model.architecture=modernbert",
        "model.attention_dropout=0",
        "masking.policy=whole-word",
        "corpus.attention=row",
    ),
}
"""Trainings on packed rows."""

CASES = {
    f"{name} {layout}": settings for name, settings in OBJECTIVES.items() for layout in LAYOUTS
}
CASES |= {f"{name} packed": settings for name, settings in OTHERS.items()}


def inputs(folder: Path) -> Path:
    """The tiny corpus with a recipe that trains on it and judges nothing, and spans of its texts
    beside it.
    """
    path = write_inputs(folder)
    recipe = yaml.safe_load(path.read_text())
    for part in ("study", "tasks", "finetune"):
        del recipe[part]
    recipe["model"]["attention_dropout"] = 0.1  # as in ``OF_BERT``
    recipe["training"] |= {"steps": STEPS, "log_every": 1, "save_every": 0, "eval_every": 0}
    path.write_text(yaml.safe_dump(recipe))
    texts = [line["text"] for line in read_lines(folder / "corpus.jsonl")]
    write_lines(
        folder / "spans.jsonl", [{"text": text, "spans": every_third_word(text)} for text in texts]
    )
    return path


def every_third_word(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer(r"\w+", text)][::3]


def train(recipe: Path, out: Path, *settings: str) -> list[dict[str, Any]]:
    """The lines of metrics of a training, one a step."""
    spans = str(recipe.parent / "spans.jsonl")
    given = [setting.replace("SPANS", spans) for setting in settings]
    assert maskwise("pretrain", recipe, *given, "--out", out) == 0
    return steps_of(out)


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "train"]


def losses(folder: Path, case: str) -> list[float]:
    """The loss of every step."""
    layout = case.rpartition(" ")[2]
    lines = train(inputs(folder), folder / "out", *CASES[case], f"corpus.layout={layout}")
    return [rounded(line["loss"]) for line in lines]


def all_losses(folder: Path) -> dict[str, list[float]]:
    return {case: losses(folder / str(number), case) for number, case in enumerate(CASES)}


def arms(folder: Path) -> dict[str, Any]:
    """A training on four arms that mometas-plus chooses among: losses, drawn arms, probabilities
    and probes.
    """
    lines = train(
        inputs(folder),
        folder / "out",
        "objective={mlm: {}, low: {objective: mlm, masking: {ratio: 0.15}}, dtd: {}, cse: {}}",
        "sampler=mometas-plus(every=1, rows=8, memory=40, entropy=0.05)",
        "masking={ratio: 0.3, corruption: mask-only}",
        "training.steps=36",
        # With these two, the probabilities move, but not to their bounds.
        "training.learning_rate=3e-3",
        "corpus.layout=document",
        "evaluation.rows=4",
        "corpus.held_out=0.3",
    )
    probed = [line for line in lines if "probe_losses" in line]
    return {
        "drawn": [arm for line in lines for arm, steps in line["objective_steps"].items() if steps],
        "losses": [rounded(line["loss"]) for line in lines],
        "probabilities": {arm: rounded(share) for arm, share in lines[-1]["probabilities"].items()},
        "first probe": {arm: rounded(loss) for arm, loss in probed[0]["probe_losses"].items()},
        "last probe": {arm: rounded(loss) for arm, loss in probed[-1]["probe_losses"].items()},
    }


def onward(folder: Path) -> dict[str, list[float]]:
    """The losses of a second phase, and of a training that goes on with new tokens."""
    recipe = inputs(folder)
    two = "phases=[{}, {training.steps: 4, masking.ratio: 0.4, masking.policy: whole-word}]"
    train(recipe, folder / "first", two)
    start = f"model={{pretrained: {folder / 'first' / 'checkpoint'}, changes: new-tokens(3)}}"
    new = train(recipe, folder / "new", start, "tokenizer.name=null", "corpus.group_field=id")
    runs = {"second phase": steps_of(folder / "first"), "new tokens": new}
    return {name: [rounded(line["loss"]) for line in lines] for name, lines in runs.items()}


def test_a_second_phase_and_new_tokens(tmp_path: Path) -> None:
    measured, known = onward(tmp_path), read_golden()["onward"]
    assert measured.keys() == known.keys()
    for name in known:
        assert measured[name] == pytest.approx(known[name], rel=TOLERANCE), name


def stream_recipe(folder: Path) -> Path:
    """The recipe on a stream of three shards, which three passes of the training read."""
    path = inputs(folder)
    documents = read_lines(folder / "corpus.jsonl")
    shards = folder / "shards"
    shards.mkdir()
    for number in range(3):
        write_lines(shards / f"part-{number}.jsonl", documents[20 * number :][:20])
    recipe = yaml.safe_load(path.read_text())
    recipe["corpus"] |= {"source": str(shards), "stream": True, "shuffle": 0.004}
    recipe["training"] |= {"workers": 0, "steps": 24, "save_every": 5}
    path.write_text(yaml.safe_dump(recipe))
    return path


def stream(folder: Path) -> dict[str, Any]:
    """The losses of a stream, and where in it the training ended."""
    lines = train(stream_recipe(folder), folder / "out")
    place = {name: lines[-1]["stream"][name] for name in ("epoch", "shard")}
    return {"losses": [rounded(line["loss"]) for line in lines], "place": place}


DRAWS = {
    "bart writes the full text packed",
    "bart writes the masked spans packed",
    "modernbert, whole words, attention over rows packed",
}
"""Older versions of transformers draw a number for each layer of BART, and torch 2.9 draws
ModernBERT's first weights differently."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.pinned) if case in DRAWS else case for case in CASES],
)
def test_losses(case: str, tmp_path: Path) -> None:
    assert losses(tmp_path, case) == pytest.approx(read_golden()["trainings"][case], rel=TOLERANCE)


def test_every_case_is_recorded() -> None:
    assert set(read_golden()["trainings"]) == set(CASES)


def test_arms_that_a_sampler_chooses(tmp_path: Path) -> None:
    measured, known = arms(tmp_path), read_golden()["arms"]
    assert measured["drawn"] == known["drawn"]
    for name in set(known) - {"drawn"}:
        tolerance = 1e-3 if name == "probabilities" else TOLERANCE
        assert measured[name] == pytest.approx(known[name], rel=tolerance), name


# Resumed at steps 0, 5, 10 and 15: at the beginning, at the border of two shards, and inside one.
@pytest.mark.parametrize("stopped_at", [None, 3, 7, 13, 17])
def test_a_stream_with_and_without_a_stop(
    stopped_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stopped_at is None:
        measured = stream(tmp_path)
    else:
        recipe = stream_recipe(tmp_path)
        update = engine.Engine.update

        def stop(self: Any, step: Any, *rest: Any, **more: Any) -> Any:
            if step.number == stopped_at:
                raise KeyboardInterrupt
            return update(self, step, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr(engine.Engine, "update", stop)
            assert maskwise("pretrain", recipe, "--out", tmp_path / "out") == 130
        lines = train(recipe, tmp_path / "out")
        place = {name: lines[-1]["stream"][name] for name in ("epoch", "shard")}
        measured = {"losses": [rounded(line["loss"]) for line in lines], "place": place}
    assert measured["losses"] == pytest.approx(read_golden()["stream"]["losses"], rel=TOLERANCE)
    assert measured["place"] == read_golden()["stream"]["place"]


def meta(folder: Path) -> list[dict[str, float]]:
    """Ten outer steps of meta-learning in double precision, and two gains on dev."""
    lesson = test_meta.lesson(steps=10, eval_every=5)
    lesson.policy.double()
    lesson.losses.double()
    learn_policy(*lesson, folder=folder)
    names = {"loss": "outer"}
    known = ("loss", "inner", "grad_norm", "entropy", "answers", "gain", "agreement")
    lines = []
    for line in read_lines(folder / "metrics.jsonl"):
        lines.append({names.get(name, name): rounded(line[name]) for name in known if name in line})
    return lines


def test_outer_steps_of_meta_learning(tmp_path: Path) -> None:
    measured, known = meta(tmp_path), read_golden()["meta"]
    assert len(measured) == len(known) == 12
    for line, expected in zip(measured, known, strict=True):
        assert line == pytest.approx(expected, rel=1e-6)


MAKERS: dict[str, Callable[[Path], Any]] = {
    "trainings": all_losses,
    "arms": arms,
    "onward": onward,
    "stream": stream,
    "meta": meta,
}
