"""Every sentence that verdicts and the page say, in one snapshot, so that wording can be improved
in one place.

``python tests/test_sentences.py`` writes ``sentences.json`` anew; read the difference before you
commit it. All other tests check codes and facts (``flags``, ``effect``, numbers, names), never the
words.
"""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from maskwise.report import write_report
from maskwise.scores.compared import compare
from maskwise.verdict import summarise
from report_fixture import (
    CLEAR,
    COST,
    HIGH,
    LOW,
    cost_record,
    evaluation_record,
    failure_record,
    heldout_record,
    make_metrics,
    make_records,
    make_samples,
    make_study,
    run_facts,
    score_record,
    shared_selection,
    summary_of,
    with_unigram,
    write_json,
    write_lines,
    write_run,
    write_study,
)

SNAPSHOT = Path(__file__).with_name("sentences.json")
CLOSE = [x + 0.02 + 1e-4 * i for i, x in enumerate(LOW)]
SMALL = [x + 0.003 + 1e-4 * i for i, x in enumerate(LOW)]
NOISY = [0.53, 0.50, 0.53, 0.55, 0.49, 0.54, 0.52, 0.52]
STARTS = [
    line
    for seed in range(8)
    for line in with_unigram(heldout_record("no-pretraining", seed, "token", 5.5))
]


def without_tasks(
    records: Sequence[dict], *, units: str = "token", runs: int = 8, **changes: Any
) -> dict[str, Any]:
    """The summary of held-out losses and evaluations; ``units`` are those of the second arm."""
    study = make_study(runs=runs, arms=dict.fromkeys(CLEAR, 0), tasks=0) | changes
    study["arms"]["token-30"]["units"] = units
    return summarise([*records, *run_facts(study)], study)


def task_against() -> dict[str, Any]:
    study = make_study(runs=8, arms=dict.fromkeys(CLEAR, 0), tasks=2)
    records = [
        score_record(arm, seed, task, score - 0.21 * (task == "task-1" and arm == "token-30"))
        for task in study["tasks"]
        for arm, scores in CLEAR.items()
        for seed, score in enumerate(scores)
    ]
    return summarise([*records, *run_facts(study)], study)


def pair_losses(better: float, *, level: float = 4.0) -> list[dict]:
    """Eight runs of each arm; the second arm is better by nearly as much in every run."""
    lines = []
    for seed in range(8):
        better_level = level - better + 0.01 * seed
        lines += with_unigram(heldout_record("token-15", seed, "token", level))
        lines += with_unigram(heldout_record("token-30", seed, "token", better_level))
    return lines


def evaluations() -> list[dict]:
    rng = np.random.default_rng(0)
    lines = []
    for arm, gain in (("token-15", 0.0), ("token-30", 0.2)):
        for seed in range(8):
            hits, perplexity = 0.4 + gain + rng.normal(0, 0.01), 90 - 50 * gain + rng.normal(0, 1)
            lines.append(evaluation_record(arm, seed, "facts", "hits@1", hits, chance=0.1))
            lines.append(evaluation_record(arm, seed, "pairs", "accuracy", 0.5, chance=0.5))
            lines.append(
                evaluation_record(
                    arm, seed, "pseudo-perplexity", "token", perplexity, higher_is_better=False
                )
            )
    return lines


def two_tasks() -> dict[str, Any]:
    arms = {"token-15": 0.0, "whole-word-15": 0.05, "linear": 0.0}
    study = make_study(runs=10, arms=arms, untrained={"no-pretraining": "no-pretraining"})
    study["arms"]["linear"] |= {"ratio": "linear(0.15, 0.45)"}
    study["contrasts"].append(["token-15", "no-pretraining"])
    return summarise(make_records(study, arms), study)


def other_costs(**changes: Any) -> dict[str, Any]:
    double = {
        "steps": 400,
        "tokens": 819_200,
        "targets": 2 * COST["targets"],
        "flops": 1.2 * COST["flops"],
    }
    facts = [
        r for r in run_facts(make_study(runs=8)) if (r["kind"], r["arm"]) != ("cost", "token-30")
    ]
    return summary_of(
        CLEAR, facts=[*facts, *(cost_record("token-30", s, **double) for s in range(8))], **changes
    )


def small_difference() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    base, d = rng.normal(0.5, 0.02, 10), rng.normal(0, 0.02, 10)
    return summary_of(
        {"token-15": base.tolist(), "token-30": (base + d - d.mean() + 2e-4).tolist()}
    )


def gate() -> dict[str, Any]:
    pair = ["token-30", "token-15"]
    scores = {"token-15": LOW, "token-30": NOISY, "method": HIGH}
    closes = [["method", "token-15"]]
    return summary_of(scores, contrasts=closes, gate={"contrast": pair, "closes": closes})


def second_question() -> dict[str, Any]:
    """The gate's arm is decided to be worse, so the second contrast is not asked."""
    first, second = ["token-15", "token-30"], ["token-15", "method"]
    gate = {"contrast": first, "closes": [second]}
    contrasts = [first, second]
    return summary_of(CLEAR | {"method": NOISY}, contrasts=contrasts, gate=gate, search=None)


def against_the_start() -> dict[str, Any]:
    lines = [score_record("no-pretraining", s, "task-0", 0.3 + 0.001 * s) for s in range(8)]
    return summary_of(
        CLEAR,
        more=lines,
        contrasts=[("token-30", "no-pretraining")],
        untrained={"no-pretraining": "the untrained model"},
    )


def opposite_tasks() -> dict[str, Any]:
    """The arm gains 2 SDs on a narrow task and loses 1 SD on a wide one: plain points would point
    elsewhere.
    """
    study, records = make_study(runs=4, tasks=2), []
    luck = {"token-15": [-1.0, 0, 1, 0], "token-30": [1.0, 0, 0, -1]}
    for arm, gains in (("token-15", (0, 0)), ("token-30", (2, -1))):
        for s, base in enumerate(luck[arm]):
            records.append(score_record(arm, s, "task-0", 0.5 + 0.01 * (base + gains[0])))
            records.append(score_record(arm, s, "task-1", 0.5 + 0.10 * (base + gains[1])))
    return summarise(records + run_facts(study), study)


SEVEN = {"token-15": LOW, "token-30": HIGH[:7]}
OVERLAP = {"kind": "overlap", "task": "task-0", "corpus": "wiki", "items": 400, "overlapping": 12}
BASELINES = {"mlm": [0.80, 0.81, 0.82], "uniform": [0.51, 0.50, 0.53], "plus": [0.50, 0.52, 0.52]}
SUMMARIES: dict[str, Callable[[], dict[str, Any]]] = {
    "significant": lambda: summary_of(CLEAR),
    "few-runs": lambda: summary_of({arm: runs[:3] for arm, runs in CLEAR.items()}),
    "one run": lambda: summary_of({"token-15": [0.5], "token-30": [0.9]}),
    "one arm": lambda: summary_of({"token-15": [0.5, 0.6]}),
    "nothing measured": lambda: without_tasks(
        [line | {"measure": "whole-word"} for line in pair_losses(0.2)]
    ),
    "equal": lambda: summary_of({"token-15": [0.5] * 3, "token-30": [0.5] * 3}),
    "not-significant": lambda: summary_of(
        {"token-15": [0.5] * 6, "token-30": [0.53, 0.49, 0.52, 0.54, 0.48, 0.51]}
    ),
    "within-margin": lambda: summary_of(
        {"token-15": LOW, "token-30": [x + 0.001 for x in LOW[::-1]]}, margin=0.05
    ),
    "margin of an open contrast": lambda: summary_of(
        {"token-15": [0.5] * 6, "token-30": [0.53, 0.49, 0.52, 0.54, 0.48, 0.51]}, margin=0.03
    ),
    "margin that few runs cannot decide": lambda: summary_of(
        {arm: runs[:3] for arm, runs in CLEAR.items()}, margin=0.01
    ),
    "margin that no number of runs decides": lambda: summary_of(
        {"token-15": [0.5] * 6, "token-30": [0.53, 0.49, 0.52, 0.54, 0.48, 0.51]}, margin=0.001
    ),
    "decided within the margin": lambda: summary_of(
        {"token-15": LOW, "token-30": [x + 0.003 + 1e-4 * i for i, x in enumerate(LOW)]},
        margin=0.01,
    ),
    "too few contrasts": lambda: summary_of({"a": LOW[:6], "b": HIGH[:6], "c": LOW[:6]}),
    "small difference": small_difference,
    "keep the baseline": lambda: summary_of(
        {"token-15": [0.80, 0.81, 0.82], "token-30": [0.50, 0.50, 0.51]}
    ),
    "several baselines": lambda: summary_of(
        BASELINES, contrasts=[("plus", "uniform"), ("plus", "mlm")]
    ),
    "two tasks": two_tasks,
    "opposite tasks": opposite_tasks,
    "floor": lambda: summary_of(CLEAR, more=pair_losses(0.1, level=6.1)),
    "worse than word frequencies": lambda: without_tasks(pair_losses(0.1, level=7.1)),
    "fell back": lambda: without_tasks([*pair_losses(0.8, level=6.1), *STARTS]),
    "chance-level": lambda: summary_of({"token-15": [0.05] * 8, "token-30": [0.06, 0.05] * 4}),
    "losses": lambda: without_tasks(pair_losses(0.2)),
    "different-units": lambda: without_tasks(
        [*pair_losses(0.2), *evaluations()], units="whole-word"
    ),
    "different-tokenizers": lambda: without_tasks(
        pair_losses(0.2),
        arms={
            name: facts | {"tokenizer": name} for name, facts in make_study(runs=8)["arms"].items()
        },
    ),
    "different-vocabularies": lambda: without_tasks(
        [
            evaluation_record(arm, seed, "words", "nats per byte", value, higher_is_better=False)
            for arm, value in (("token-15", 0.9), ("token-30", 0.8))
            for seed in range(8)
        ],
        arms={
            name: facts | {"tokenizer": name} for name, facts in make_study(runs=8)["arms"].items()
        },
    ),
    "different-formats": lambda: without_tasks(
        pair_losses(0.2),
        arms={
            name: facts | {"judged_on": [f"token {name}"]}
            for name, facts in make_study(runs=8)["arms"].items()
        },
    ),
    "evaluations": lambda: without_tasks(evaluations()),
    "no search": lambda: summary_of(CLEAR, search=None, facts=[]),
    "settings differ": lambda: summary_of(
        CLEAR, facts=[shared_selection("token-15"), shared_selection("token-30", 0.002)]
    ),
    "looked before": lambda: summary_of(
        CLEAR, looked=[{"runs": 6, "seeds": [*range(6)], "contrasts": 1, "looks": None}]
    ),
    "next look": lambda: summary_of({"token-15": LOW, "token-30": NOISY}, looks=[8, 16]),
    "gate": gate,
    "second question": second_question,
    "replicates to come": lambda: summary_of(CLEAR, seeds=[*range(12)], pending=[8, 9, 10, 11]),
    "against the start": against_the_start,
    "compute": other_costs,
    "compute that was to be matched": lambda: other_costs(match={"by": "targets", "arms": {}}),
    "compute unknown": lambda: summary_of(CLEAR, facts=[], match=None),
    "some runs missing": lambda: summary_of(SEVEN, more=[failure_record("token-30", 7)]),
    "all runs missing": lambda: summary_of(
        {"token-15": LOW, "token-30": []}, more=[failure_record("token-30", s) for s in range(8)]
    ),
    "small lead": lambda: summary_of({"token-15": LOW, "token-30": SMALL}),
    "margin of a large lead": lambda: summary_of(CLEAR, margin=0.1),
    "task against": task_against,
    "item-noise": lambda: summary_of({"token-15": LOW, "token-30": CLOSE}),
    "overlap": lambda: summary_of(CLEAR, more=[OVERLAP]),
}


def sentences_of(summary: dict[str, Any]) -> list[str]:
    """Each sentence once, in the order of the page."""
    lines = [summary["headline"], *summary["advice"]]
    for row in summary["contrasts"]:
        lines += [row["sentence"], row["brief"], *(flag["sentence"] for flag in row["flags"])]
    return list(dict.fromkeys(lines))


def study_page(folder: Path) -> Path:
    """A page with every section: evaluations, a search, an overlap, a failure, objectives,
    weights.
    """
    arms = {"token-15": 0.0, "token-30": 0.03, "whole-word-15": 0.0}
    study = make_study(runs=3, arms=arms)
    records = [*make_records(study, arms), OVERLAP, failure_record("token-15", 9)]
    for arm in arms:
        records += [
            evaluation_record(arm, s, "facts", "hits@1", 0.25, chance=0.04) for s in study["seeds"]
        ]
    write_study(
        folder,
        study,
        records,
        summary=summarise(records, study),
        samples=make_samples(study, words=["She", "sat", "down"]),
    )
    for seed, stage in study["arms"]["token-30"]["runs"].items():
        lines = make_metrics("constant(0.3)", seed=int(seed))
        for line in lines:
            if line["kind"] == "train":
                shares = {"mlm": 0.5 + line["step"] / 1000, "cse": 0.5 - line["step"] / 1000}
                line |= {
                    "objective_steps": {"mlm": 18, "cse": 2},
                    "probabilities": shares,
                    "weights": {"NOUN": 0.9},
                }
        write_lines(folder / stage / "metrics.jsonl", lines)
    return write_report(folder)


def bare_page(folder: Path) -> Path:
    """A study that has only begun."""
    folder.mkdir()
    write_json(folder / "study.json", make_study(runs=1))
    return write_report(folder)


def compared_page(folder: Path, replicate: str) -> Path:
    """Scores from elsewhere."""
    rows = [
        {"arm": arm, "seed": seed, "task": "rte", "score": score}
        for arm, scores in CLEAR.items()
        for seed, score in enumerate(scores)
    ]
    return compare(rows, baseline="token-15", replicate=replicate).save(folder)


PAGES: dict[str, Callable[[Path], Path]] = {
    "page of a study": study_page,
    "page of a study that has begun": bare_page,
    "page of compared fine-tunings": lambda folder: compared_page(folder, "finetuning"),
    "page of compared pre-trainings": lambda folder: compared_page(folder, "pretraining"),
    "page of a run": lambda folder: write_report(
        write_run(folder, make_metrics("linear(0.3, 0.15)"))
    ),
}


def text_of(page: str) -> list[str]:
    """What a reader sees, block by block, and the labels of charts; without numbers, which other
    tests check.
    """
    body = re.sub(r"<(script|style|svg|pre).*?</\1>", "", page[page.index("<body>") :], flags=re.S)
    labels = re.findall(r'(?:title|aria-label)="([^"]+)"', body)
    blocks = re.split(
        r"</?(?:p|h\d|li|td|th|tr|div|dt|dd|summary|figcaption|header|article|ul)\b[^>]*>", body
    )
    plain = (html.unescape(re.sub(r"<[^>]+>", "", block)) for block in [*blocks, *labels])
    found = (" ".join(text.replace("\u00a0", " ").split()) for text in plain)
    return list(
        dict.fromkeys(
            re.sub(r"[−+]?\d[\d.,]*", "0", text) for text in found if re.search("[a-z]{3}", text)
        )
    )


def said(name: str) -> list[str]:
    if name in SUMMARIES:
        return sentences_of(SUMMARIES[name]())
    with TemporaryDirectory() as folder:
        return text_of(PAGES[name](Path(folder, "quick-start")).read_text("utf-8"))


@pytest.mark.parametrize("name", [*SUMMARIES, *PAGES])
def test_what_is_said_is_the_snapshot(name):
    assert said(name) == json.loads(SNAPSHOT.read_text("utf-8"))[name]


if __name__ == "__main__":
    content = {name: said(name) for name in [*SUMMARIES, *PAGES]}
    SNAPSHOT.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{sum(map(len, content.values()))} sentences in {SNAPSHOT}\n")
