"""A synthetic study folder, written as docs/files.md says, for the tests of verdicts and of the
page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import maskwise
from maskwise.verdict import summarise

TEXT = "In 1916 Shaw moved to Dublin , where he worked as a clerk and wrote five novels ."
SENTENCE = TEXT.split()
COST = {"steps": 400, "tokens": 819_200, "targets": 122_880, "flops": 2.1e12}

START = "no-pretraining"
"""The arm that is not trained."""


def make_study(
    *, runs: int = 3, arms: dict[str, float] | None = None, tasks: int = 2, **changes: Any
) -> dict:
    """study.json: token-15 as the baseline; the values of `arms` are only read by make_records."""
    names = list(arms or {"token-15": 0, "token-30": 0})
    return {
        "name": "quick-start",
        "description": "Does masking more of the text make a better small model?",
        "maskwise": maskwise.__version__,
        "started": "2026-11-20T08:20:00Z",
        "versions": {
            "python": "3.11.9",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "altair": "6.3.0",
        },
        "hardware": {
            "cpu": "Some CPU @ 2.9 GHz",
            "cores": 2,
            "memory_gib": 23.4,
            "accelerator": None,
        },
        "recipe": {"steps": 400},
        "recipe_yaml": "model:\n  layers: 2\n  hidden: 128\nsteps: 400\nbatch: 32\n",
        "baseline": names[0],
        "untrained": {START: "the untrained model"},
        "seeds": list(range(runs)),
        "arms": {name: _arm(name, runs) for name in names},
        "tasks": {
            f"task-{i}": {
                "metric": "accuracy",
                "kind": "sequence-classification",
                "classes": 20,
                "majority": 0.05,
                "test_items": 400,
            }
            for i in range(tasks)
        },
        "contrasts": [[name, names[0]] for name in names[1:]],
        "match": {"by": "steps", "arms": {name: dict(COST) for name in names}},
        "search": {
            "grid": {"training.learning_rate": [0.002, 0.004, 0.006]},
            "own": None,
            "by": "dev",
        },
        "seconds": 331.2,
        **changes,
    }


def _arm(name: str, runs: int) -> dict[str, Any]:
    policy, _, percent = name.rpartition("-")
    ratio = f"constant({int(percent) / 100:g})" if percent.isdigit() else "linear(0.3, 0.15)"
    if policy != "whole-word":
        policy = "token"
    runs_of = {str(seed): f"stages/pretrain-{name.encode().hex()}-{seed}" for seed in range(runs)}
    facts = {"policy": policy, "units": policy, "judged_on": [policy], "ratio": ratio}
    return {**facts, "overrides": {"masking": {"ratio": ratio}}, "runs": runs_of}


def study_of(
    scores: dict[str, list[float]], *, facts: bool = True, **changes: Any
) -> tuple[dict, list[dict]]:
    """One task, one line per run; ``facts``: with searches and costs."""
    runs = max(map(len, scores.values()))
    study = make_study(runs=runs, arms=dict.fromkeys(scores, 0), tasks=1) | changes
    records = [
        score_record(arm, seed, "task-0", score)
        for arm, by_seed in scores.items()
        for seed, score in enumerate(by_seed)
    ]
    return study, records + (run_facts(study) if facts else [])


LOW = [0.50, 0.52, 0.51, 0.53, 0.50, 0.52, 0.51, 0.52]
HIGH = [x + 0.2 + 0.001 * i for i, x in enumerate(LOW)]
CLEAR = {"token-15": LOW, "token-30": HIGH}
"""The scores of eight runs of two arms, whose difference is decided."""


def summary_of(
    scores: dict[str, list[float]] = CLEAR,
    *,
    more: Sequence[dict] = (),
    facts: Sequence[dict] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The summary of one task, one score per run; ``facts`` replace the searches and costs."""
    study, records = study_of(scores, facts=facts is None, **changes)
    summary = summarise([*records, *(facts or ()), *more], study)
    json.dumps(summary, allow_nan=False)
    return summary


def row_of(*arguments: Any, **changes: Any) -> dict:
    """The only primary row of ``summary_of``."""
    (row,) = primary_rows(summary_of(*arguments, **changes))
    return row


def losses(levels: dict[str, float], masks: str = "token", **more: Any) -> list[dict]:
    """Eight runs of each arm, with held-out losses close to its level; the unigram loss is 6.28."""
    return [
        line | more
        for arm, level in levels.items()
        for seed in range(8)
        for line in with_unigram(heldout_record(arm, seed, masks, level + 0.001 * seed))
    ]


def facts_of(row: dict, code: str) -> dict:
    return next(flag["facts"] for flag in row["flags"] if flag["code"] == code)


def rows_of(summary: dict, outcome: str = "tasks") -> list[dict]:
    return [row for row in summary["contrasts"] if row["outcome"] == outcome]


def primary_rows(summary: dict) -> list[dict]:
    return [row for row in summary["contrasts"] if row["primary"]]


def codes(row: dict) -> list[str]:
    return [flag["code"] for flag in row["flags"]]


def make_records(
    study: dict,
    effect: dict[str, float],
    *,
    base: float = 0.6,
    noise: float = 0.02,
    loss: float = 4.6,
    seed: int = 0,
) -> list[dict]:
    """Scores and held-out losses: a seed effect shared by all arms, plus `effect`, plus a little
    noise.
    """
    rng = np.random.default_rng(seed)
    shared = {s: rng.normal(0, noise) for s in study["seeds"]}
    records = []
    for arm in [*study["arms"], START]:
        for s in study["seeds"]:
            for i, task in enumerate(study["tasks"]):
                score = base + 0.1 * i + shared[s] + effect.get(arm, 0) + rng.normal(0, noise / 3)
                if arm == START:
                    score = 0.2 + 0.05 * i + rng.normal(0, noise / 2)
                tuned = [round(score + d, 4) for d in (-0.01, 0.0, 0.01)]
                records.append(score_record(arm, s, task, float(np.mean(tuned)), fine_tuning=tuned))
            if arm == START:
                continue
            words = study["arms"][arm]["policy"] == "whole-word"
            own = loss - 5 * effect.get(arm, 0) + rng.normal(0, 0.05)
            for masks, worse in (("token", 1.5 * words), ("whole-word", 0.5 - 0.3 * words)):
                records += with_unigram(heldout_record(arm, s, masks, own + worse))
    return records + run_facts(study)


def run_facts(study: dict) -> list[dict]:
    """What every arm chose inside every replicate, and what every run cost."""
    records: list[dict] = []
    for arm in study["arms"]:
        records += [selection_record(arm, seed) for seed in study["seeds"]]
        records += [cost_record(arm, seed) for seed in study["seeds"]]
    return records


RATES = (0.002, 0.004, 0.006)


def selection_record(arm: str, seed: int, **more: Any) -> dict:
    """The middle of three rates was chosen."""
    points = [{"training.learning_rate": rate} for rate in RATES]
    candidates = [
        {"setting": point, "score": score}
        for point, score in zip(points, (0.5, 0.6, 0.55), strict=True)
    ]
    line = {
        "kind": "selection",
        "arm": arm,
        "seed": seed,
        "search_seed": seed,
        "by": "dev",
        "tied": False,
    }
    return line | {"candidates": candidates, "chosen": points[1], **more}


def shared_selection(arm: str, rate: float = 0.004) -> dict:
    """One search for all seeds, as in studies that were recorded before searches per seed."""
    chosen = {"training.learning_rate": rate}
    return selection_record(arm, 0, chosen=chosen) | {"seed": None, "search_seed": None}


def cost_record(arm: str, seed: int, **more: Any) -> dict:
    return {"kind": "cost", "arm": arm, "seed": seed, **COST, **more}


def score_record(arm: str, seed: int, task: str, score: float, **more: Any) -> dict:
    return {
        "kind": "task",
        "arm": arm,
        "seed": seed,
        "measure": task,
        "metric": "accuracy",
        "value": score,
        **more,
    }


def heldout_record(arm: str, seed: int, masks: str, loss: float, *, split: str = "test") -> dict:
    return {
        "kind": "heldout",
        "arm": arm,
        "seed": seed,
        "measure": masks,
        "value": loss,
        "unit": "nats",
        "higher_is_better": False,
        "split": split,
        "ratio": 0.15,
        "items": 1234,
    }


def with_unigram(loss: dict, unigram: float = 6.28) -> list[dict]:
    """A held-out loss, and that of a model that knows only word frequencies."""
    return [loss, loss | {"split": "unigram", "value": unigram}]


def dev_record(score: dict, dev: float) -> dict:
    """The dev score that belongs to a score on test."""
    return score | {"split": "dev", "value": dev}


def evaluation_record(
    arm: str, seed: int, name: str, metric: str, value: float, **more: Any
) -> dict:
    line = {
        "kind": "evaluation",
        "arm": arm,
        "seed": seed,
        "measure": name,
        "metric": metric,
        "value": value,
    }
    line |= {"items": 500, "chance": None, "higher_is_better": True, **more}
    unit = metric
    if line["chance"] is not None and line["higher_is_better"]:
        unit = "score"
    elif name == "pseudo-perplexity":
        unit = "perplexity"
    return {"unit": unit, **line}


def failure_record(arm: str, seed: int, **more: Any) -> dict:
    return {
        "kind": "failure",
        "arm": arm,
        "seed": seed,
        "stage": "pretrain-x",
        "error": "disk full",
        **more,
    }


def make_metrics(ratio: str, *, steps: int = 400, loss: float = 4.6, seed: int = 0) -> list[dict]:
    """metrics.jsonl of one run: a loss that falls from 7.6 towards `loss`, and the ratio in
    force.
    """
    numbers = [float(x) for x in ratio[ratio.index("(") + 1 : -1].split(",")]
    lines = []
    for step in range(20, steps + 1, 20):
        share = numbers[0] + (numbers[-1] - numbers[0]) * step / steps
        now = loss + (7.6 - loss) * math.exp(-4 * step / steps) + 0.01 * (seed % 5)
        line = {"kind": "train", "step": step, "loss": now, "ratio": share, "targets": 2210}
        times = {"tokens": step * 2048, "seconds": step / 15}
        lines.append(line | times | {"scheduled_ratio": share})
        if step % 100 == 0:
            held_out = {"masks": "token", "ratio": 0.15, "loss": now + 0.05, "unigram": 6.28}
            lines.append({"kind": "eval", "step": step, **held_out})
    return lines


def make_samples(
    study: dict, *, seed: int = 0, words: list[str] | None = None
) -> dict[str, list[dict]]:
    rng = np.random.default_rng(seed)
    samples: dict[str, list[dict]] = {}
    for arm in study["arms"]:
        samples[arm] = []
        for document in ("56564559", "1204"):
            pieces = []
            for i, word in enumerate(words or SENTENCE):
                state = str(
                    rng.choice(["shown", "masked", "random", "kept"], p=[0.72, 0.2, 0.04, 0.04])
                )
                piece = {"text": word if i == 0 else f" {word}", "state": state}
                pieces.append(piece | ({"shown": " station"} if state == "random" else {}))
            samples[arm].append({"document": document, "pieces": pieces})
    return samples


def write_study(
    folder: Path,
    study: dict,
    records: list[dict],
    *,
    summary: dict | None = None,
    samples: dict | None = None,
) -> Path:
    """The folder as a finished study leaves it (without checkpoints)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", study)
    write_lines(folder / "records.jsonl", records)
    for name, content in (("summary.json", summary), ("samples.json", samples)):
        if content is not None:
            write_json(folder / name, content)
    for i, arm in enumerate(study["arms"].values()):
        for seed, stage in arm["runs"].items():
            write_run(
                folder / stage,
                make_metrics(arm["ratio"], seed=100 * i + int(seed), loss=4.6 + 0.3 * i),
            )
    return folder


def write_run(folder: Path, metrics: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "metrics.jsonl", metrics)
    (folder / "recipe.yaml").write_text("steps: 400\n", encoding="utf-8")
    write_json(folder / "done.json", {"steps": 400, "seconds": 26.0})
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
