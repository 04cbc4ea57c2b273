"""Draw the claims of RESULTS.md that were compared by a test: one figure for each paper.

    python benchmarks/figure.py   # writes benchmarks/results/claims-PAPER.svg

The page opens with a figure and a table for each paper, of its main claims (``OPENING``):
``opening-PAPER.svg``, and the rows that are printed.

A line is the mean difference of two arms and its 95 % interval, in points of the tasks' metric or
in nats; right of 0, the first arm is better. Several tasks have their plain mean. The colour is the
verdict, which rests on the test of the ledger and not on this interval.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import altair
from ledger import RESULTS, read_ledger
from own_and_other_tasks import main as own_and_other_tasks
from pandas import DataFrame

from maskwise.base.constants import NATS
from maskwise.results.estimates import shown_in
from maskwise.results.files import Contrast
from maskwise.studies.result import StudyResult

Claim = tuple[str, str, str, str]
"""The name in the figure, the record, the arm and its baseline."""
CLAIMS: dict[str, list[Claim]] = {
    "time-variant": [
        ("control: a falling ratio", "schedule-control-2026-11-21", "linear", "constant-30"),
        ("45 → 15 % against 30 %", "decay-new-head", "decay-45-15", "constant-30"),
        ("45 → 15 % against 45 %", "decay-new-head", "decay-45-15", "constant-45"),
        ("45 → 15 % against 15 %", "decay-new-head", "decay-45-15", "constant-15"),
        ("earlier: 45 → 15 % against 30 %", "decay-claim-2026-11-22", "decay-45-15", "constant-30"),
        ("earlier: 45 → 15 % against 45 %", "decay-claim-2026-11-22", "decay-45-15", "constant-45"),
        ("earlier: 30 → 15 % against 30 %", "decay-claim-2026-11-22", "decay-30-15", "constant-30"),
        (
            "earlier: cosine decay against 15 %",
            "decay-claim-2026-11-22",
            "cosine-decay",
            "constant-15",
        ),
        (
            "earlier: cosine decay against 30 %",
            "decay-claim-2026-11-22",
            "cosine-decay",
            "constant-30",
        ),
        (
            "as published: cosine against 15 %",
            "published-decay-medium",
            "cosine-decay",
            "constant-15",
        ),
        (
            "as published: cosine against 30 %",
            "published-decay-medium",
            "cosine-decay",
            "constant-30",
        ),
        (
            "80/10/10: 30 → 15 % against 15 %",
            "published-decay-medium",
            "linear-30-15",
            "constant-15",
        ),
        (
            "80/10/10: 30 → 15 % against 30 %",
            "published-decay-medium",
            "linear-30-15",
            "constant-30",
        ),
        ("control: parts of speech, ours", "ptw-control-2026-11-21", "ptw", "words"),
        ("control: parts of speech, published", "ptw-control-2026-11-21", "ptw-faithful", "words"),
        (
            "parts of speech, published",
            "pos-weighted-new-head",
            "ptw-faithful-bert",
            "words-bert",
        ),
        ("parts of speech, ours", "pos-weighted-replication", "ptw", "words"),
    ],
    "mometas": [
        (
            "control: mometas-plus, even draws",
            "sampler-control-2026-11-21",
            "mometas-plus",
            "uniform",
        ),
        ("control: mometas, even draws", "sampler-control-2026-11-21", "mometas", "uniform"),
        ("five objectives against one", "samplers-replication", "uniform", "mlm"),
        ("mometas against even draws", "samplers-replication", "mometas", "uniform"),
        ("mometas-plus against even draws", "samplers-replication", "mometas-plus", "uniform"),
        ("best fixed shares, even draws", "best-shares", "best-shares", "uniform"),
        ("half the rate: five objectives", "samplers-replication-1e-3", "uniform", "mlm"),
        ("half the rate: mometas", "samplers-replication-1e-3", "mometas", "uniform"),
        ("half the rate: mometas-plus", "samplers-replication-1e-3", "mometas-plus", "uniform"),
        ("earlier: mometas, even draws", "mometas-claim-2026-11-23", "mometas", "uniform"),
        (
            "earlier: mometas-plus, even draws",
            "mometas-claim-2026-11-23",
            "mometas-plus",
            "uniform",
        ),
        ("earlier: mometas-plus, one objective", "mometas-2026-11-20", "mometas-plus", "mlm"),
    ],
    "policies": [
        ("invented: meta against salient", "learn-meta-full-2026-11-22", "meta", "salient"),
        ("invented, new: meta against salient", "learn-meta-full-2026-11-22-d", "meta", "salient"),
        ("invented: meta against random", "learn-meta-full-2026-11-22-b", "meta", "random"),
        ("names: salient against random", "factworld-university-2026-11-21", "salient", "random"),
        ("seq2seq: meta against random", "learn-meta-seq2seq-2026-11-22", "meta", "random"),
        ("seq2seq: meta against salient", "learn-meta-seq2seq-2026-11-22", "meta", "salient"),
        ("full text: meta, random", "learn-meta-seq2seq-2026-11-22", "meta-full", "random-full"),
        ("oracle: spans against full text", "format-and-policy", "oracle", "oracle-full"),
        ("random: full text against spans", "format-and-policy", "random-full", "random"),
        ("policy of its own task, random", "transfer-2026-11-22", "own-task", "random"),
        ("policy of other tasks, random", "transfer-2026-11-22", "other-tasks", "random"),
        ("true answers, exchanged ones", "false-answers", "right-random", "shuffled-random"),
        ("exchanged answers, foreign ones", "false-answers", "shuffled-random", "foreign-random"),
        ("foreign answers, unchanged model", "false-answers", "foreign-slow", "no-pretraining"),
        ("right corpus again: salient, random", "false-answers", "right-salient", "right-random"),
        ("T-REx nouns: supervised, salient", "trex-nouns", "supervised", "salient"),
        ("T-REx nouns: meta, salient", "trex-nouns", "meta", "salient"),
        ("T-REx names: oracle, salient", "trex-names", "oracle", "salient"),
        ("T-REx: related policy, random", "trex-transfer", "occupations", "random"),
        ("T-REx: another policy, random", "trex-transfer", "birthplaces", "random"),
        ("T-REx: content words, random", "trex-content", "content", "random"),
        ("T-REx: related policy, content words", "trex-content", "occupations", "content"),
        ("T-REx: another policy, content words", "trex-content", "birthplaces", "content"),
        ("T-REx: own policy, salient", "trex-content", "own", "salient"),
        (
            "trivia, full text: oracle, random",
            "format-and-policy-trivia",
            "oracle-full",
            "random-full",
        ),
        (
            "trivia, random: full text against spans",
            "format-and-policy-trivia",
            "random-full",
            "random",
        ),
        ("trivia: supervised against salient", "trivia-own", "supervised", "salient"),
        ("trivia: supervised against random", "trivia-own", "supervised", "random"),
        (
            "trivia, other questions: supervised, salient",
            "learn-trivia-2026-11-22",
            "supervised",
            "salient",
        ),
        (
            "trivia, other questions: supervised, random",
            "learn-trivia-2026-11-22",
            "supervised",
            "random",
        ),
        ("the right corpus against another", "corpus-and-policy", "right-random", "other-random"),
        (
            "the right corpus, unchanged model",
            "corpus-and-policy",
            "right-random",
            "no-pretraining",
        ),
        ("right corpus again, best rates", "corpus-rates", "right-4", "other-slow"),
        ("right corpus again, one rate", "corpus-rates", "right-4", "other-4"),
        ("right corpus: salient, random", "corpus-and-policy", "right-salient", "right-random"),
        ("questions' texts against Wikipedia", "intermediate-2026-11-21", "contexts", "wikipedia"),
        ("the best span, or one of the best five", "one-span", "top-1", "top-5"),
    ],
    "others": [
        ("an encoder on its domain, unchanged", "adapt-2026-11-22", "words-30", "no-pretraining"),
        ("the same, 80 steps", "adapt-2026-11-21", "words-30", "no-pretraining"),
        ("MiniLM on novels, unchanged", "adapt-novels", "words-30", "no-pretraining"),
        ("the encoder on novels, unchanged", "forgotten", "words-30", "no-pretraining"),
        ("MiniLM on docstrings, unchanged", "adapt-documentation", "words-30", "no-pretraining"),
        ("MiniLM on medical terms again, unchanged", "adapt-medical", "words-30", "no-pretraining"),
        ("MiniLM on novels again, unchanged", "adapt-novels-control", "words-30", "no-pretraining"),
        ("on medical terms, unchanged model", "new-words", "words-30", "no-pretraining"),
        ("the same again, other test terms", "own-text", "words-30", "no-pretraining"),
        ("the same again, other text", "own-text", "words-30", "words-30-other-text"),
        ("500 medical terms, unchanged", "text-sizes", "terms-500", "no-pretraining"),
        ("14,222 medical terms, unchanged", "text-sizes", "terms-14222", "no-pretraining"),
        ("the same with new words", "new-words", "new-words", "words-30"),
        ("new words, random words", "new-words", "new-words", "random-words"),
        ("MiniLM on medical terms, unchanged", "new-words-minilm", "words-30", "no-pretraining"),
        ("MiniLM, the same with new words", "new-words-minilm", "new-words", "words-30"),
        ("MiniLM, new words, random words", "new-words-minilm", "new-words", "random-words"),
        ("half of the tokens, trained further", "trim-tokens", "words-30", "no-pretraining"),
        ("half of the tokens, not trained", "trim-tokens", "trimmed", "no-pretraining"),
        ("half of the layers, unchanged model", "half-the-layers", "student", "no-pretraining"),
        ("half of the layers, no teacher", "half-the-layers", "student", "alone"),
        ("a decoder in both directions, causal", "decoder-to-encoder", "both", "causal"),
        ("the same, unchanged decoder", "decoder-to-encoder", "both", "no-pretraining"),
        ("RetroMAE, unchanged encoder", "retrieval-pretraining", "retromae", "no-pretraining"),
        ("RetroMAE, TSDAE", "retrieval-pretraining", "retromae", "tsdae"),
        ("RetroMAE, masked words", "retrieval-pretraining", "retromae", "words-30"),
        ("rows of 512: trained on 512, on 128", "longer-rows-by-length", "long-512", "short-512"),
        ("rows of 512, rows of 128", "longer-rows-by-length", "long-512", "long-128"),
        ("replay with the masks of the start", "replay", "token-15-replay", "token-15"),
        ("chosen length against the last", "how-long", "lengths", "last"),
        ("diffusion: a bell against U(0, 1)", "diffusion-2026-11-21", "bell", "uniform"),
        ("diffusion: end token a target, none", "text-ends", "token", "none"),
        ("diffusion: padding a target, none", "text-ends", "padding", "none"),
        ("states in bf16 against float32", "residual", "bf16", "fp32"),
    ],
}
"""The claims by paper, in the order of RESULTS.md."""
OPENING: dict[str, list[Claim]] = {
    "time-variant": [
        (
            "a cosine from 32 to 2 % against 15 %",
            "published-decay-medium",
            "cosine-decay",
            "constant-15",
        ),
        ("the same against 30 %", "published-decay-medium", "cosine-decay", "constant-30"),
        ("45 → 15 % against 30 %", "decay-new-head", "decay-45-15", "constant-30"),
        ("45 → 15 % against 45 %", "decay-new-head", "decay-45-15", "constant-45"),
        (
            "words by the loss of parts of speech, published rule",
            "pos-weighted-new-head",
            "ptw-faithful-bert",
            "words-bert",
        ),
        ("the same, our rule ‡", "pos-weighted-replication", "ptw", "words"),
        ("control: a falling ratio", "schedule-control-2026-11-21", "linear", "constant-30"),
    ],
    "mometas": [
        ("five objectives against one ‡", "samplers-replication", "uniform", "mlm"),
        ("mometas against even draws ‡", "samplers-replication", "mometas", "uniform"),
        ("the same at half the rate ‡", "samplers-replication-1e-3", "mometas", "uniform"),
        ("best of six fixed shares against even draws", "best-shares", "best-shares", "uniform"),
        (
            "control: mometas against even draws",
            "sampler-control-2026-11-21",
            "mometas",
            "uniform",
        ),
    ],
    "policies": [
        ("common nouns: learned against salient spans", "trex-nouns", "supervised", "salient"),
        ("common nouns: meta-gradient against salient", "trex-nouns", "meta", "salient"),
        ("names: oracle against salient spans", "trex-names", "oracle", "salient"),
        ("another task's policy against random", "trex-transfer", "birthplaces", "random"),
        ("content words against random tokens", "trex-content", "content", "random"),
        ("trivia: learned against salient spans", "trivia-own", "supervised", "salient"),
        ("trivia: salient spans against random", "false-answers", "right-salient", "right-random"),
        ("trivia: right against other text", "corpus-rates", "right-4", "other-slow"),
    ],
}
"""The main claims of each paper, with which RESULTS.md opens."""
POLICIES_OF_TRANSFER = [
    "from-jobs=factworld-job",
    "from-universities=factworld-university",
    "from-causes=causalworld",
]
"""From which task each policy of ``transfer-2026-11-22`` was learned. Its two claims are of means
over policies, which are no arms."""
COLOURS = {
    "decided": "#0b6e99",
    "open": "#8a8a8a",
    "no difference that matters": "#448361",
    "not comparable": "#d9730d",
}


def leads_of(record: str) -> Iterator[dict[str, Any]]:
    """Yield the lead of the arm in each primary contrast of a study, in points or nats."""
    rows = [
        row for row in StudyResult.read(RESULTS / record).summary["contrasts"] if row["primary"]
    ]
    # With a search, a pair may be a gate and a contrast; the last is at tuned settings.
    for row in sorted(rows, key=lambda row: not row.get("gate")):
        pair = {"arm": row["arm"], "baseline": row["baseline"], "verdict": row["verdict"]}
        yield pair | _lead(row) | {"n": row["n"], "better": row["better"]}
    if record.startswith("transfer"):
        found = own_and_other_tasks(RESULTS / record, "random", POLICIES_OF_TRANSFER)
        judged = {line["arm"]: line["verdict"] for line in read_ledger().values()}
        for side in found["sides"]:
            arm = side["side"].replace(" ", "-")
            lead = {name: 100 * side["natural"][name] for name in ("mean", "low", "high")}
            yield {
                "arm": arm,
                "baseline": "random",
                "verdict": judged[arm],
                "unit": "points",
                **lead,
            }


def _lead(row: Contrast) -> dict[str, Any]:
    estimate = row.get("natural") or row
    unit = "score" if row.get("natural") else row["unit"]
    found = shown_in(unit, row["metric"], estimate, None, higher=row["higher_is_better"])
    named = NATS if found.unit == NATS else "points"
    return {"unit": named, "mean": found.mean, "low": found.low, "high": found.high}


def leads(claims: list[Claim]) -> DataFrame:
    """Return the lead in each claim, in their order."""
    names = DataFrame(claims, columns=["claim", "record", "arm", "baseline"])
    known = []
    for record in names.record.unique():
        known += [{"record": record, **lead} for lead in leads_of(record)]
    keys = ["record", "arm", "baseline"]
    return names.merge(DataFrame(known).drop_duplicates(keys, keep="last"), on=keys, how="left")


def rows_of(claims: list[Claim]) -> list[str]:
    """Return the rows of a table of claims: lead with its interval, verdict, pairs and record."""
    rows = []
    for lead in leads(claims).itertuples():
        places = 3 if lead.unit == NATS else 1
        mean, low, high = (_written(value, places) for value in (lead.mean, lead.low, lead.high))
        sign = "+" if lead.mean > 0 else ""
        worse = ": worse" if lead.better == "baseline" else ""
        cells = [
            lead.claim,
            f"{sign}{mean} {lead.unit} ({low} to {high})",
            f"*{lead.verdict}*{worse}",
            f"{lead.n:.0f}",
            f"[{lead.record}](results/{lead.record})",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _written(value: float, places: int) -> str:
    """Return a number as RESULTS.md has it: with a minus sign, and no 0 before the point."""
    whole, point, rest = f"{abs(value):.{places}f}".partition(".")
    minus = "−" if value < 0 and float(f"{value:.{places}f}") else ""
    return f"{minus}{whole.lstrip('0')}{point}{rest}"


def draw(claims: list[Claim]) -> altair.VConcatChart:
    """Return the claims of a paper, with an axis of points above one of nats."""
    table = leads(claims)
    panels = [
        _panel(rows, unit) for unit in ("points", NATS) if len(rows := table[table.unit == unit])
    ]
    return altair.vconcat(*panels)


def _panel(table: DataFrame, unit: str) -> altair.LayerChart:
    claim = altair.Y("claim", sort=None, title=None, axis=altair.Axis(labelLimit=400))
    verdict = altair.Color(
        "verdict", scale=altair.Scale(domain=[*COLOURS], range=[*COLOURS.values()])
    )
    base = altair.Chart(table).encode(y=claim, color=verdict)
    title = f"lead of the first arm over the second, in {unit}"
    dots = base.mark_point(filled=True, size=60).encode(x=altair.X("mean", title=title))
    bars = base.mark_rule(strokeWidth=2).encode(x="low", x2="high")
    zero = altair.Chart(DataFrame({"x": [0]})).mark_rule(strokeDash=[4, 4]).encode(x="x")
    return (zero + bars + dots).properties(width=460)


if __name__ == "__main__":
    for paper, claims in CLAIMS.items():
        draw(claims).save(RESULTS / f"claims-{paper}.svg")
    for paper, claims in OPENING.items():
        draw(claims).save(RESULTS / f"opening-{paper}.svg")
        sys.stdout.write("\n".join([paper, *rows_of(claims), ""]))
