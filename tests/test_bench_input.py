"""Scripts of benchmarks: bad input is one line, and what failed stands in the record."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import decision_transfer
import false_positives
import first_contact
import forecasts
import install_size
import kills
import mask
import oracle_shares
import other_contrasts
import parts_of_speech
import pytest
import quick_step
import start_up
import torch
from command import in_one_line

from masking_tools import tokenizer as small_tokenizer
from maskwise.base.constants import UPOS
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_json
from maskwise.masking import Masker, Vocabulary

pytestmark = pytest.mark.script

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
STUDY = RESULTS / "trex-nouns"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: other_contrasts.main(STUDY, ["random"]), "random"),
        (lambda: other_contrasts.main(STUDY, ["random,random"]), "random,random"),
        (lambda: other_contrasts.main(STUDY, ["random,nobody"]), "nobody"),
        (lambda: other_contrasts.main(STUDY, ["random,oracle"], ["nothing"]), "nothing"),
        (lambda: other_contrasts.main(RESULTS / "no-study", ["a,b"]), "no-study"),
        (lambda: decision_transfer.main([RESULTS / "no-study"]), "no-study"),
        (lambda: decision_transfer.main([STUDY]), "trex-nouns"),
        (lambda: oracle_shares.main(STUDY, "nobody", "random"), "nobody"),
        (lambda: oracle_shares.main(STUDY, "random", "random"), "random"),
        (lambda: false_positives.main(only="powers,nothing"), "nothing"),
        (lambda: kills.main(ways="single,nothing"), "nothing"),
        (lambda: forecasts.main(only="nothing"), "nothing"),
        (lambda: first_contact.main("minutes"), "minutes"),
        (lambda: first_contact.main("plateau", ["quick-start"]), "quick-start"),
        (lambda: quick_step.main(), "--trainer"),
        (lambda: install_size.main(["nothing"]), "nothing"),
        (lambda: start_up.folders_of(["src"]), "src"),
        (lambda: parts_of_speech.train_models(Path("nowhere"), "9-3"), "9-3"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    call: Callable[[], object], named: str
) -> None:
    with pytest.raises(MaskwiseError, match=named):
        call()


def test_what_commands_import_is_there_before_they_are_killed() -> None:
    kills.preload()
    assert all(f"maskwise.{room}" in sys.modules for room in ("studies", "learning", "masks"))


def test_seeds_of_parts_of_speech_are_written_as_in_commands(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"seed": 2000}\n{"seed": 2005}\n')
    for seeds, known in (("2000", "[2000]"), ("2000-2003,2005", "[2000, 2005]")):
        with pytest.raises(MaskwiseError) as error:
            parts_of_speech.train_models(tmp_path / "lines.jsonl", seeds)
        assert str(error.value.got) == known


def test_the_unchanged_model_of_a_study_may_be_compared() -> None:
    pairs = other_contrasts.pairs_of(["random,no-pretraining"], read_json(STUDY / "study.json"))
    assert pairs == [("random", "no-pretraining")]


@pytest.mark.parametrize("error", [MaskwiseError("not so"), FileNotFoundError("nowhere")])
def test_an_error_of_the_user_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, in_one_line():
        raise error
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(str(error))


def test_a_source_without_the_package_is_not_the_installed_one(tmp_path: Path) -> None:
    with pytest.raises(MaskwiseError, match="nowhere"):
        start_up.folders_of(["now=src", f"before={tmp_path / 'nowhere'}"])
    assert start_up.folders_of([f"now={start_up.ROOT / 'src'}"])["now"].is_dir()


def test_starts_that_end_differently_have_all_exit_codes() -> None:
    assert start_up.line_of([(1.0, 0.5, 0), (3.0, 0.7, 0), (2.0, 0.6, 0)]) == {
        "wall": 2.0,
        "processor": 0.6,
        "code": 0,
    }
    assert start_up.line_of([(1.0, 1.0, 0), (1.0, 1.0, 2), (1.0, 1.0, 0)])["code"] == [0, 2]


def test_a_case_without_a_forecast_or_to_an_end_is_in_the_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compared(recipe: str, folder: Path) -> Any:
        yield {"kind": "prepare", "work": "", "forecast": 1.0, "seconds": 2.0, "timing": 0.1}
        yield {"kind": "overlap", "work": "", "forecast": None, "seconds": 2.0, "timing": 0.0}
        if recipe == "bad":
            raise MaskwiseError("it cannot train")
        yield {"kind": "pretrain", "work": "", "forecast": 1.0, "seconds": 1.0, "timing": 0.1}

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(forecasts, "CASES", {"first": ("bad", []), "second": ("good", [])})
    for name, value in (("compared", compared), ("write_files", lambda: None), ("probe", float)):
        monkeypatch.setattr(forecasts, name, value)
    monkeypatch.setattr(forecasts, "read_recipe", lambda recipe, overrides: recipe)
    before = Path.cwd()
    found = forecasts.main()
    assert Path.cwd() == before
    assert list(found["failed"]) == ["first"] and "cannot train" in found["failed"]["first"]
    assert [(line["case"], line["kind"]) for line in found["stages"]] == [
        *(("first", "prepare"), ("first", "overlap")),
        *(("second", "prepare"), ("second", "overlap"), ("second", "pretrain")),
    ]
    counts = {name: found[name] for name in ("count", "near", "far", "without_forecast")}
    assert counts == {"count": 5, "near": 1, "far": 2, "without_forecast": 2}
    # JSON has no infinity.
    assert found["worst"]["factor"] == 2 and "Infinity" not in json.dumps(found)


def test_each_side_begins_every_other_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def turn(side: str, kind: str, name: str) -> tuple[float, float]:
        order.append(side)
        return {"old": 2.0, "new": 1.0}[side], 0.5

    monkeypatch.setattr(quick_step, "_turn", turn)
    found = quick_step._contest({"before": "old", "now": "new"}, "pretraining", 3)
    # The first turn of each side is not timed.
    assert order == ["old", "new", "old", "new", "new", "old", "old", "new"]
    assert found["now_over_before"] == 0.5 and (found["ms_before"], found["ms_now"]) == (2000, 1000)


def test_a_source_that_cannot_train_is_named() -> None:
    side: Any = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(""))
    with pytest.raises(MaskwiseError, match="before"):
        quick_step._turn(side, "pretraining", "before")


def test_a_run_that_is_recorded_twice_is_no_second_pair() -> None:
    line = {"seed": 2000, "groups": UPOS}
    with pytest.raises(MaskwiseError, match="2000"):
        next(parts_of_speech.rows_of([line, dict(line)]))


def test_masks_of_lists_are_those_of_tensors_and_the_peer_looks_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = small_tokenizer()
    words = torch.tensor([[-1, 0, 0, 1, 2, 3, 3, -1], [-1, 4, 5, 6, 7, 8, 9, -1]])
    ids = torch.where(words < 0, tokenizer.sep_token_id, 10 + words)
    batch = {"input_ids": ids, "word_ids": words, "example_id": torch.tensor([3, 4])}
    for policy in ("token", "whole-word"):
        masker = Masker(Vocabulary.of(tokenizer), policy=policy, ratio=0.4)
        ours, listed = masker(batch, epoch=0), masker(mask._rows_of(batch), epoch=0)
        assert torch.equal(ours.input_ids, listed.input_ids)
        assert torch.equal(ours.labels, listed.labels) and ours.targets > 0

    def looked_up(*args: object, **named: object) -> None:
        raise AssertionError("the collator looks for special tokens in Python")

    monkeypatch.setattr(tokenizer, "get_special_tokens_mask", looked_up)
    sample: Any = SimpleNamespace(tokenizer=tokenizer)
    for name, call in mask._peers(sample, [batch]).items():
        found = call(0)
        labels = found["labels"] if isinstance(found, dict) or "labels" in found else found[1]
        assert (labels[words < 0] == -100).all(), name
