"""What readers see: the page (one file, no network, the user's texts escaped, no crash over a
missing piece), and the verdicts in the terminal.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import chain, product
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from maskwise.base.errors import MaskwiseError
from maskwise.base.printing import Terminal
from maskwise.cli import terminal as printing
from maskwise.report import compare_studies, drawing, summary_of, write_report
from maskwise.report.charts import (
    MOST_POINTS,
    MOST_SMALL,
    curve_charts,
    objectives_view,
    thin,
    weight_charts,
)
from maskwise.report.drawing import arm_colours, choice_chart, dot_chart, line_chart
from maskwise.report.page import page_content, vega_code, write_policy_page
from maskwise.report.reading import NO_STUDY, NO_SUMMARY, Folder, read_folder
from maskwise.report.tables import forest_groups, score_table
from maskwise.results.estimates import loss_table
from maskwise.results.files import RULES
from maskwise.results.measurements import Measurement
from maskwise.studies.prospects import recorded_spreads
from maskwise.studies.result import StudyResult
from maskwise.verdict import judge, summarise
from maskwise.verdict.outcomes import Outcomes
from maskwise.verdict.sentences import advice_of
from report_fixture import (
    CLEAR,
    START,
    cost_record,
    evaluation_record,
    make_metrics,
    make_records,
    make_samples,
    make_study,
    primary_rows,
    run_facts,
    score_record,
    study_of,
    write_json,
    write_lines,
    write_run,
    write_study,
)
from tiny import load_json, maskwise, read_lines

ARMS = {"token-15": 0.0, "token-30": 0.03, "whole-word-15": 0.0}
EVIL = '"><script>alert(1)</script>'


@pytest.fixture
def folder(tmp_path):
    study = make_study(runs=3, arms=ARMS)
    records = make_records(study, ARMS)
    summary = summarise(records, study)
    return write_study(
        tmp_path / "study", study, records, summary=summary, samples=make_samples(study)
    )


def page_of(folder) -> str:
    """The page without the Vega code, which is not ours."""
    text = write_report(folder).read_text("utf-8")
    return text.replace(vega_code(), "VEGA") if vega_code() in text else text


def content_of(folder) -> dict:
    return page_content(read_folder(folder))


def specs_of(page: str) -> list[dict]:
    return json.loads(re.search(r"const specs = (\[.*\]);\n", page)[1])


def test_a_study_makes_one_file_with_everything(folder):
    page = page_of(folder)
    # the bundle once, not per chart
    assert page.count("VEGA") == 1 and page.count("vegaEmbed(") == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["headline"].split(":")[0] in page.replace("\u00a0", " ")
    # what an interval is of
    assert (
        "runs on this corpus, with these tasks" in page
        and "say nothing about other corpora" in page
    )
    charts = specs_of(page)
    assert (
        len(charts) == page.count('id="chart-') == 2 + 2 + 1 + 1 + 1 + 1
    )  # tasks, held-out, compute, train, eval, ratio
    assert sorted(p.name for p in folder.iterdir() if p.suffix == ".html") == ["report.html"]


def test_what_a_study_does_not_say_is_left_out_of_its_page(folder):
    """Such as a study.json of scores from elsewhere, or one that was written by hand."""
    study = json.loads((folder / "study.json").read_text())
    needed = {"arms", "seeds", "tasks", "baseline", "contrasts"}
    for name in study.keys() - needed:
        part = {key: value for key, value in study.items() if key != name}
        write_json(folder / "study.json", part)
        assert "<html" in page_of(folder), name
    write_json(folder / "study.json", {key: study[key] for key in needed})
    page = page_of(folder)
    assert all(arm in page for arm in study["arms"]) and study["description"] not in page


KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize("missing", ["vl_convert", ""])
def test_tables_stand_in_place_of_charts_that_cannot_be_made(folder, monkeypatch, missing):
    """The extra is not installed, or a limit of address space ends V8's process with a signal."""
    monkeypatch.setattr(
        "maskwise.base.errors.find_spec", lambda name: None if name == missing else 1
    )
    monkeypatch.setattr(drawing, "VEGA", KILLED)
    drawing.made_vega.cache_clear()
    try:
        text = write_report(folder).read_text("utf-8")
    finally:
        drawing.made_vega.cache_clear()
    said = "pip install &#39;maskwise[report]&#39;" if missing else "exit code -9"
    assert said in text and 'id="chart-' not in text and "vegaEmbed" not in text
    drawn = [*read_folder(folder).numbers("task").values()]
    assert drawn
    for row in chain.from_iterable(drawn):
        assert row.arm not in ARMS or f"<td>{row.value:.4g}</td>" in text
    assert text.count('class="dataframe"') > 2 and len(text) < 300_000


def cells_of(html: str) -> list[list[str]]:
    """The rows of a table: its head, and the texts of all cells."""
    rows = re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


@pytest.fixture
def no_charts(monkeypatch):
    monkeypatch.setattr(drawing, "vega_code", lambda: "")


@pytest.mark.usefixtures("no_charts")
def test_a_table_of_a_curve_ends_where_the_curve_ends():
    places = range(10, 510, 10)
    points = [{"arm": "a", "seed": 0, "step": step, "value": 1 / step} for step in places]
    html = line_chart(points, {}, title=None)["html"]
    assert "<th>500</th>" in html and "<td>0.002</td>" in html
    assert html.count("<td>") <= drawing.MOST_COLUMNS


@pytest.mark.usefixtures("no_charts")
def test_a_table_of_a_curve_has_every_run_though_no_two_are_logged_at_the_same_tokens():
    runs = [("a", 0), ("a", 1), ("b", 0)]
    points = [
        {"arm": arm, "seed": seed, "tokens": 1000 * part + number, "value": number + part / 100}
        for number, (arm, seed) in enumerate(runs)
        for part in range(1, 41)
    ]
    head, _, a, b = cells_of(line_chart(points, {}, title=None, x="tokens")["html"])
    assert head[-1] == "40002" and len(head) <= drawing.MOST_COLUMNS + 1
    assert "–" not in a + b and a[-1] == "0.9" and b[-1] == "2.4"


@pytest.mark.usefixtures("no_charts")
def test_a_table_of_dots_has_every_run_and_one_of_measures_all_of_them():
    seeds = range(10)
    points = [{"arm": "a", "seed": seed, "value": float(seed)} for seed in seeds]
    points.append({"arm": "b", "seed": 3, "value": 0.5})
    row = cells_of(dot_chart(points, {}, title="")["html"])
    assert row[-2] == ["a", "4.5", "3.028", "10", *map(str, seeds)]
    assert row[-1] == ["b", "0.5", "–", "1", *("0.5" if seed == 3 else "–" for seed in seeds)]
    names = [f"measure {number}" for number in reversed(range(11))]
    points = [
        {"arm": arm, "seed": seed, "measure": name, "x": 2e9, "value": 0.25 + seed}
        for name in names
        for arm in ("b", "a")
        for seed in (0, 1)
    ]
    table = cells_of(choice_chart(points, {}, quantity="flops")["html"])
    assert table[-12:] == [["flops", "2e+09", "2e+09"], *([name, "0.75", "0.75"] for name in names)]
    assert table[0][1:] == ["b", "a"]


@pytest.mark.parametrize("method", ["supervised", "meta"])
def test_a_number_that_was_not_finite_is_left_out_of_the_curves_of_a_policy(method, tmp_path):
    lost = {"loss": None, "grad_norm": None}
    logged = [{"loss": 3.0, "grad_norm": 1.5}, lost, {"loss": 2.0, "grad_norm": 0.5}, lost]
    lines = [{"kind": "train", "step": step, **facts} for step, facts in enumerate(logged)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    measures = {"method": method, "task": "t", "policy": "policy", "held_out": {}}
    page = write_policy_page(tmp_path, title="t", measures=measures).read_text("utf-8")
    assert page.count("<polyline") == 2 and page.count("steps 0 to 2") == 2


@pytest.mark.parametrize(
    ("steps", "of_first_arm", "charts"),
    [
        ([500], [500], 0),
        ([500], [400], 0),
        ([250, 500], [250, 500], 1),
        ([250, 500], [500], 1),
    ],
)
def test_held_out_losses_are_a_curve_if_a_run_has_two(folder, steps, of_first_arm, charts):
    """Runs that were evaluated only at their ends had a chart without a line."""
    read = read_folder(folder)
    held_out = {"kind": "eval", "masks": "token", "ratio": 0.15, "loss": 3.0, "unigram": 6.0}
    first, *others = ARMS
    lines = [*product([first], range(2), of_first_arm), *product(others, range(2), steps)]
    read.curves = [
        {**held_out, "arm": arm, "seed": seed, "step": step} for arm, seed, step in lines
    ]
    assert len(curve_charts(read, dict.fromkeys(ARMS, "black"))["eval"]) == charts


def test_nothing_is_loaded_from_anywhere(folder):
    page = page_of(folder)
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", page, re.I)
    assert not re.search(
        r"@import|(?<!Object)url\(|<link(?![^>]*href=\"data:,)|<iframe|<img|<object", page, re.I
    )
    assert "default-src 'none'" in page and "unsafe-eval" not in page
    assert not re.search("https?://", page.replace("https://vega.github.io/schema/vega-lite/", ""))


def test_what_users_write_is_escaped(tmp_path):
    names = {"token-15": 0.0, f"arm {EVIL}": 0.01, "naïve ‘日本’ & co <b>": 0.0}
    study = make_study(runs=3, arms=names, name=EVIL, description=EVIL, recipe_yaml=f"name: {EVIL}")
    study["tasks"] = {
        f"task {EVIL}": {"metric": EVIL, "classes": 20, "majority": 0.05, "test_items": 400}
    }
    study["versions"] = {EVIL: EVIL}
    study["hardware"]["cpu"] = EVIL
    study["earlier_hardware"] = [{"cpu": f"another {EVIL}"}, {"cpu": "an EPYC", "cores": 2}]
    records = make_records(study, names)
    records.append({"kind": "failure", "arm": "token-15", "seed": 9, "stage": EVIL, "error": EVIL})
    samples = make_samples(study, words=["plain", EVIL, "</p>", "'\"&"])
    page = page_of(
        write_study(tmp_path, study, records, summary=summarise(records, study), samples=samples)
    )
    assert "alert(1)" in page
    assert "<script>alert" not in page and "<b>" not in page and 'title=""' not in page
    assert page.count("<script") == page.count("</script>") == 3
    assert "naïve ‘日本’ &amp; co &lt;b&gt;" in page
    # All machines of the study are listed.
    assert "; cpu an EPYC, cores 2" in page


def test_a_name_cannot_reverse_the_text_after_it(tmp_path, monkeypatch):
    """Such as a verdict. Text that is written from right to left is set so."""
    odd = "left\u202eright"
    names = {"token-15": 0.0, odd: 0.2}
    study = make_study(runs=3, arms=names, name=odd, description=f"שלום {odd}")
    study["tasks"] = {odd: study["tasks"]["task-0"]}
    records = [line for line in make_records(study, names) if line["kind"] != "heldout"]
    samples = make_samples(study, words=["שלום", "\u200fעולם"])
    folder = write_study(tmp_path, study, records, summary=None, samples=samples)
    for code in ("VEGA", ""):
        for module in ("drawing", "page"):
            made = f"maskwise.report.{module}.made_vega"
            monkeypatch.setattr(made, lambda code=code: (code, "none"))
        page = write_report(folder).read_text("utf-8")
        assert "\u202e" not in page and "\\u202e" not in page
        assert "<bdi>left·right</bdi>" in page
        assert re.search('<p dir="auto">(<span[^>]*>)?שלום', page) and "\u200fעולם" in page
        assert '<p class="description" dir="auto">שלום left·right</p>' in page
    result = StudyResult.read(folder)
    assert "left·right" in result._repr_html_() and "\u202e" not in result._repr_html_()


def test_chips_tell_what_was_hidden(tmp_path):
    pieces = [
        {"text": "Shaw", "state": "shown"},
        {"text": " mov", "state": "masked"},
        {"text": "ed", "state": "random", "shown": "station"},
        {"text": " to", "state": "kept"},
    ]
    study = make_study(runs=1)
    samples = {"token-15": [{"document": "7", "pieces": pieces}]}
    page = page_of(write_study(tmp_path, study, [], summary=None, samples=samples))
    chips = re.findall(r'(\s?)<span class="chip (\w+)" title="([^"]+)">([^<]+)</span>', page)
    assert [(space, state, text) for space, state, _, text in chips] == [
        (" ", "masked", "mov"),
        ("", "random", "station"),  # joined to its word: the space stands outside of the chip
        (" ", "kept", "to"),
    ]
    assert "predict “ed”" in chips[1][2] and "3 of 4 tokens" in page


@pytest.mark.parametrize("lost", ["samples.json", "records.jsonl", "stages"])
def test_missing_and_damaged_pieces_make_a_smaller_page(folder, lost):
    whole = len(page_of(folder))
    target = folder / lost
    target.rename(folder.parent / lost)
    assert len(page_of(folder)) < whole
    if lost == "stages":
        return
    target.write_bytes(b"\xff\xfe\x00{[\x80" * 50)
    assert 5000 < len(page_of(folder)) < whole


def test_nothing_is_said_that_a_file_says(folder):
    """Sentences come from records when the page is written; summary.json is only output."""
    whole = page_of(folder)
    path = folder / "summary.json"
    stored = json.loads(path.read_text())
    for each in (stored, *stored["contrasts"]):
        each |= dict.fromkeys(each.keys() & {"headline", "sentence", "brief"}, "An old sentence.")
    write_json(path, stored)
    assert page_of(folder) == whole
    path.write_bytes(b"\xff\xfe\x00{[\x80" * 50)
    assert page_of(folder) == whole
    path.unlink()
    assert page_of(folder) == whole and summary_of(folder)["headline"] != "An old sentence."


def test_lines_without_their_keys_are_counted(folder):
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"kind": "task", "arm": "token-15"}\n')
    assert read_folder(folder).incomplete == 1 and "1 line lacks keys" in page_of(folder)


@pytest.mark.parametrize("old", [{"kind": "score", "task": "t"}, {"kind": "heldout", "loss": 2.0}])
def test_records_of_an_earlier_version_are_one_line(folder, old):
    """Such lines lacked keys and were left out, and the verdicts were those of the other lines."""
    with (folder / "records.jsonl").open("a") as file:
        file.write(json.dumps({**old, "arm": "token-15", "seed": 0}) + "\n")
    for read in (write_report, summary_of):
        with pytest.raises(MaskwiseError, match="format of an earlier version"):
            read(folder)


def test_half_written_lines_and_diverged_losses_are_left_out(folder):
    records = folder / "records.jsonl"
    lines = records.read_text().splitlines()
    lacking = ['{"kind": "task", "measure": "x", "value": 0.5}', '{"a": 1}']
    records.write_text("\n".join([*lines, *lacking, "[1]", "", lines[0][: len(lines[0]) // 2]]))
    metrics = next((folder / "stages").glob("*/metrics.jsonl"))
    diverged = '{"kind": "train", "step": 420, "loss": NaN}\n{"kind": "tr'
    metrics.write_text(metrics.read_text() + diverged)
    assert len(read_folder(folder).records) == len(lines) and "NaN" not in page_of(folder)


def test_stages_are_read_behind_links_and_not_outside_of_the_study(folder):
    study = json.loads((folder / "study.json").read_text())
    stage = folder / study["arms"]["token-15"]["runs"]["0"]
    moved = folder.parent / "elsewhere"
    stage.rename(moved)
    stage.symlink_to(moved, target_is_directory=True)

    def curves() -> set[tuple[str, int]]:
        return {(line["arm"], line["seed"]) for line in read_folder(folder).curves}

    assert ("token-15", 0) in curves()
    study["arms"]["token-15"]["runs"]["0"] = "../elsewhere"
    write_json(folder / "study.json", study)
    assert ("token-15", 0) not in curves()


@pytest.mark.parametrize(
    "damaged", ["", "metrics.jsonl", "recipe.yaml", "done.json", "samples.json"]
)
def test_the_page_of_a_run(tmp_path, damaged):
    run = write_run(tmp_path / "my <run>", make_metrics("linear(0.3, 0.15)"))
    if damaged:
        (run / damaged).write_bytes(b"\xff\xfe\x00{[\x80" * 50)
    target = write_report(run, tmp_path / "pages" / "run.html")
    assert target == tmp_path / "pages" / "run.html"
    page = target.read_text("utf-8")
    assert "my &lt;run&gt;" in page and len(page) > 5000
    assert damaged or ("Time", "26 s") in content_of(run)["facts"]


def test_folders_without_a_readable_study_are_one_line(tmp_path):
    with pytest.raises(
        MaskwiseError,
        match=r"neither a study nor a pre-training run.*study\.json or metrics\.jsonl",
    ):
        write_report(tmp_path)
    with pytest.raises(MaskwiseError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    for content in (b"", b"[]", b"\xff\xfe\x00", b'{"arms": [', b"[" * 100_000):
        (tmp_path / "study.json").write_bytes(content)
        for read in (write_report, summary_of):
            with pytest.raises(MaskwiseError, match=r"study\.json cannot be read"):
                read(tmp_path)
    for arms in ("[]", "null", '{"a": "b"}'):
        (tmp_path / "study.json").write_text(f'{{"name": "x", "arms": {arms}}}')
        with pytest.raises(MaskwiseError, match=r"names no arms|is damaged; got arms"):
            write_report(tmp_path)
    assert not list(tmp_path.glob("*.html*"))


def test_every_run_is_a_dot(folder):
    dots = dots_of(specs_of(page_of(folder))[0])
    shown = {(row["arm"], row["seed"]): row["value"] for row in dots}
    scores = [line for line in read_folder(folder).of_kind("task") if line["measure"] == "task-0"]
    arms = [line for line in scores if line["arm"] in ARMS]
    assert shown == {(line["arm"], line["seed"]): line["value"] for line in arms}
    assert len(shown) == 9


@pytest.mark.parametrize("asked", [True, False])
def test_both_sides_of_a_question_are_drawn_with_lines_between_pairs(asked, tmp_path):
    """adapt asks whether an arm is better than the unchanged model, whose runs had no dots."""
    arms = {"token-30": 0.03, "token-40": 0.02}
    pairs = [["token-30", START if asked else "token-40"]]
    study = make_study(runs=6, arms=arms, contrasts=pairs, untrained={START: "the old model"})
    records = make_records(study, arms)
    folder = write_study(tmp_path, study, records, summary=None, samples=None)
    for spec in specs_of(page_of(folder))[: len(study["tasks"])]:
        dots = dots_of(spec)
        by_arm = Counter(row["arm"] for row in dots)
        assert by_arm == dict.fromkeys([*arms, *["the old model"] * asked], 6)
        lines = layer_of(spec, "line")["encoding"]
        assert lines["detail"]["field"] == "seed" and lines["order"]["field"] == "index"
        assert layer_of(spec, "circle")["encoding"]["y"]["sort"] == [*by_arm]


def test_comparisons_in_another_unit_have_another_heading(tmp_path):
    study = make_study(runs=3, arms=ARMS)
    study["tasks"]["task-1"]["metric"] = "entity-f1"
    records = make_records(study, ARMS)
    summary = summarise(records, study)
    folder = write_study(tmp_path / "study", study, records, summary=summary, samples=None)
    headings = re.findall(r"<summary>(Task by task.*?):", page_of(folder))
    assert headings == ["Task by task, in accuracy points", "Task by task, in entity-f1 points"]


def test_a_study_without_contrasts_says_so():
    study = make_study(runs=3, arms=ARMS)
    study["contrasts"] = []
    summary = summarise(make_records(study, ARMS), study)
    assert summary["headline"] == "No arms are compared, because study.contrasts is empty."


def layer_of(spec: dict, mark: str) -> dict:
    return next(layer for layer in spec["layer"] if layer["mark"]["type"] == mark)


def dots_of(spec: dict) -> list[dict]:
    """What is drawn as dots: the data that layers without own data share."""
    assert "data" not in layer_of(spec, "circle")
    return spec["data"]["values"]


def contrast_row(outcome: str, unit: str, mean: float | None, spread: float = 0.1, **facts) -> dict:
    ends = {"low": None, "high": None}
    if mean is not None:
        ends = {"low": mean - spread, "high": mean + spread}
    row = {"arm": "a", "baseline": "b", "outcome": outcome, "unit": unit, "mean": mean, **ends}
    row |= {"primary": False, "verdict": None, "sentence": "", "flags": [], "metric": None}
    return row | {"higher_is_better": unit in ("SDs", "score")} | facts


def test_the_axis_of_equal_arms_has_a_range_that_can_be_read():
    """Zero or rounding errors on every line once gave an axis of −1.1e-09 to +1.1e-09."""
    equal = {"mean": 0.0, "low": 0.0, "high": 0.0}
    rounding = {"mean": 1e-17, "low": 0.0, "high": 0.0}
    for facts in (equal, rounding):
        rows = [contrast_row("task", "score", 0.0) | facts]
        rows.append(contrast_row("heldout:token", "nats", 0.0) | facts)
        views = forest_groups(rows, {"a": "#000"})
        assert [(view["unit"], view["reach"]) for view in views] == [
            ("points", "1"),
            ("nats", "0.01"),
        ]


def test_the_interval_over_runs_and_items_is_on_the_page_of_primary_rows():
    """The docs said so, but no template read it."""
    items = {"low": -0.012, "high": 0.034, "alone": 0.02}
    for primary, paired in ((True, False), (True, True), (False, False)):
        known = {**items, "paired": True} if paired else items
        row = contrast_row("task", "score", 0.011, primary=primary, items=known)
        (view,) = forest_groups([row], {"a": "#000"})
        said = " ".join(view["rows"][0]["notes"])
        assert ("−1.2 to 3.4 points" in said) is primary
        assert ("correlate at .5" in said) is (primary and not paired)


def test_forests_are_by_kind_and_unit_and_right_is_better():
    rows = [
        contrast_row("tasks", "SDs", 0.5, primary=True),
        contrast_row("seen", "score", 0.02),
        contrast_row("blind", "score", -0.03),
        contrast_row("written", "nats", -0.2),
        contrast_row("evaluation:facts:hits@1", "score", 0.1),
        contrast_row("evaluation:pseudo-perplexity:token", "perplexity", 5.0),
        contrast_row("evaluation:bound:nats per token", "nats per token", 0.2),
        contrast_row("evaluation:bound:bits per byte", "bits per byte", 0.1),
        contrast_row("evaluation:words:nats per byte", "nats per byte", -0.1),
        contrast_row("evaluation:reading times:milliseconds", "milliseconds", 20.0),
        contrast_row("heldout:token@0.15", "nats", -0.3),
        contrast_row("heldout:token@0.4", "nats", -0.1),
        contrast_row("heldout:token", "nats", -0.2),
        contrast_row("heldout:span", "nats", -0.2),
    ]
    views = forest_groups(rows, {"a": "#000"})
    found = [(view["title"], view["unit"], view["rows"][0]["figure"]) for view in views]
    assert found == [
        ("On the tasks", "SDs of runs within an arm", "+0.5"),
        ("Task by task", "points", "+2.0"),
        ("Task by task", "nats", "+0.200"),
        ("Without fine-tuning", "points", "+10.0"),
        ("Pseudo-perplexity", "perplexity", "−5.000"),
        ("Loss of words", "nats per byte", "+0.100"),
        ("Other measures", "milliseconds", "−20.000"),
        ("The bound of masked diffusion", "nats per token", "−0.200"),
        ("The bound of masked diffusion", "bits per byte", "−0.100"),
        ("Held-out loss", "nats", "+0.300"),
    ]
    assert [line["label"] for line in views[-1]["rows"]] == [
        "token masks, 15 %",
        "token masks, 40 %",
        "token masks, mean of 15 and 40 %",
        "span masks",
    ]


@pytest.mark.parametrize(
    "outcome, name",
    [
        ("heldout:token", "held-out loss on token masks"),
        ("heldout:token@0.15", "held-out loss on token masks at 15 %"),
        ("heldout:diffusion", "the bound of masked diffusion"),
    ],
)
def test_the_primary_outcome_is_a_phrase_of_sentences(outcome, name, tmp_path):
    """Sentences said "in held-out loss on token masks, 15 % by 0.1 nats", and the page "held-out
    loss on bound of masked diffusion".
    """
    study = make_study(runs=6, outcome=outcome)
    records = make_records(study, {"token-30": 0.03})
    masks = outcome.removeprefix("heldout:").partition("@")[0]
    measured = []
    for line in records:
        if line.get("measure") == "token":
            measured += [line | {"measure": masks, "ratio": ratio} for ratio in (0.15, 0.4)]
        elif line["kind"] != "heldout":
            measured.append(line)
    summary = summarise(measured, study)
    assert f" in {name} (decided" in summary["headline"]
    folder = write_study(tmp_path / "study", study, measured, summary=summary, samples=None)
    story = content_of(folder)["story"]
    by = f" by the {name.removeprefix('the ')} (the primary outcome), and on these tasks: "
    assert by in story["compared"]
    assert f" in {name} by 0." in primary_rows(summary)[0]["brief"]


@pytest.mark.parametrize(
    "runs, others, needed",
    [
        (1, ["token-15"], "at least 6"),
        (2, ["token-15"], "at least 6"),
        (2, ["token-30", "token-15"], "at least 7"),
    ],
)
def test_the_runs_that_are_missing_are_those_of_the_contrasts_behind_a_gate(runs, others, needed):
    """With one run, the gate was counted as a contrast; with more, nothing but the gate was."""
    effect = {"token-15": 0.0, "token-30": 0.03, "token-40": 0.06}
    study = make_study(runs=runs, arms=effect, search=None)
    study["contrasts"] = [["token-40", other] for other in others]
    study["gate"] = {"contrast": ["token-40", "no-pretraining"], "closes": study["contrasts"]}
    advice = summarise(make_records(study, effect), study)["advice"]
    (sentence,) = (line for line in advice if line.startswith("Add seeds"))
    assert needed in sentence
    assert "decide anything" not in sentence


@pytest.mark.parametrize(("others", "folded"), [(3, 0), (4, 4)])
def test_a_verdict_stands_before_the_rows_that_explain_it(others, folded):
    rows = [contrast_row(f"heldout:token@0.{at}", "nats", -0.3) for at in range(1, others + 1)]
    asked = contrast_row("heldout:span", "nats", -0.1, primary=True, verdict="decided")
    [view] = forest_groups([*rows, asked], {"a": "#000"})
    assert view["rows"][0]["row"] == asked and len(view["folded"]) == folded
    assert [line["row"] for line in (*view["rows"], *view["folded"])] == [asked, *rows]
    # Without a verdict there is nothing to explain, so nothing is hidden.
    [view] = forest_groups(rows, {"a": "#000"})
    assert len(view["rows"]) == others and not view["folded"]


def test_a_forest_cuts_long_intervals_and_draws_no_missing_mean():
    loss = [
        contrast_row("heldout:token", "nats", mean, spread)
        for mean, spread in ((-0.3, 0.1), (0.1, 90))
    ]
    void = contrast_row("heldout:token", "nats", None, verdict="not comparable")
    [view] = forest_groups([*loss, void], {"a": "#000"})
    better, wide, nothing = view["rows"]
    assert 50 < better["from"] < better["at"] < better["to"]
    assert better["interval"] == "0.200 to 0.400"
    assert wide["at"] < 50 and wide["from_cut"] and wide["to_cut"]
    assert (wide["from"], wide["to"]) == (0, 100) and not nothing["drawn"]


def test_the_interval_of_a_null_result_is_in_its_axis():
    """The axis of a mean of .0 SDs ended at .025, and showed nothing of an interval of ±.5."""
    row = contrast_row("tasks", "SDs", 0.0056, 0.5, primary=True, verdict="open")
    [view] = forest_groups([row], {"a": "#000"})
    [line] = view["rows"]
    assert not line["from_cut"] and not line["to_cut"]
    assert float(view["reach"]) == pytest.approx(0.56, abs=0.011)
    # Their plain mean in points does not agree with the test, so the note says that it is weighted.
    plain = contrast_row("tasks", "score", 0.01, primary=True, verdict="open")
    assert forest_groups([plain], {"a": "#000"})[0]["note"] != view["note"]


def test_a_run_that_is_missing_keeps_its_place_among_the_seeds():
    lines = [
        {"kind": "task", "arm": arm, "seed": seed, "measure": "tags", "value": seed / 10}
        for arm, seeds in (("token-15", (2, 0, 1)), ("token-30", (2, 0)))
        for seed in seeds
    ]
    found = Folder("study", "x", study=make_study(tasks=0), records=lines)
    assert {row["arm"]: row["values"] for row in score_table(found)} == {
        "token-15": [0.0, 0.1, 0.2],
        "token-30": [0.0, None, 0.2],
    }


def test_weights_between_lines_of_losses_are_in_their_chart(monkeypatch):
    monkeypatch.setattr(drawing, "vega_code", lambda: "VEGA")
    curves = []
    for step in range(150):
        place = {"arm": "a", "seed": 0, "step": 10 * step}
        curves.append({**place, "kind": "train", "weights": {"NOUN": 0.5}})
        curves.append({**place, "kind": "eval", "loss": 5.0})
    [chart] = weight_charts(Folder("run", "a", curves=curves))
    assert len(chart["spec"]["data"]["values"]) == 150


@pytest.mark.parametrize("lines", [MOST_POINTS + 1, 2 * MOST_POINTS, 3 * MOST_POINTS + 1])
def test_a_thinned_curve_ends_where_the_run_ends(lines):
    run = [{"arm": "a", "seed": 0, "step": step} for step in range(lines)]
    kept = [line["step"] for line in thin(run)]
    assert kept == sorted(kept) and kept[-1] == lines - 1 and len(kept) <= MOST_POINTS


def test_dots_of_one_colour_have_shapes_of_their_own(monkeypatch):
    """The palette has twelve colours, and no axis of the chart of compute names its dots."""
    monkeypatch.setattr(drawing, "vega_code", lambda: "VEGA")

    def dots_of(count):
        colours = arm_colours([f"arm-{n}" for n in range(count)], "arm-0")
        points = [{"arm": arm, "seed": 0, "x": 1, "measure": "m", "value": 1.0} for arm in colours]
        [dots] = choice_chart(points, colours, quantity="steps")["layer"]
        return colours, dots["encoding"].get("shape", {}).get("scale", {})

    colours, scale = dots_of(30)
    looks = set(zip(scale["range"], (colours[arm] for arm in scale["domain"]), strict=True))
    assert len(looks) == 30
    assert dots_of(13)[1] == {}


def test_losses_of_different_tokenizers_are_not_called_comparable():
    effects = {"token-15": 0.0, "token-30": 0.1}
    study = make_study(arms=effects)
    summary = summarise(make_records(study, effects), study)
    pages = []
    for flags in ([], [{"code": "different-tokenizers", "effect": "invalid", "sentence": "x"}]):
        rows = [{**row, "flags": [*row["flags"], *flags]} for row in summary["contrasts"]]
        folder = Folder("study", "x", study=study, summary={**summary, "contrasts": rows})
        pages.append(page_content(folder)["tokenizers_differ"])
    assert pages == [False, True]


@pytest.mark.parametrize(
    ("amount", "ends"), [(0.0005, "0.055"), (0.1225, "14"), (0.09, "9.9"), (7.1, "790")]
)
def test_an_axis_ends_at_the_number_that_is_written(amount, ends):
    """13.5 was written as 14, and 790 as 7.9e+02."""
    row = contrast_row("task", "score", amount) | {"low": None, "high": None}
    [group] = forest_groups([row], {})
    assert group["reach"] == ends
    [line] = group["rows"]
    assert line["at"] == pytest.approx(50 + 50 * 100 * amount / float(ends), abs=0.01)


def test_axes_leave_the_number_of_digits_to_the_steps_of_their_ticks(monkeypatch):
    """Of five ticks from 46.4 to 46.6 %, three were 46.5%."""
    monkeypatch.setattr(drawing, "vega_code", lambda: "VEGA")
    points = [{"arm": "a", "seed": n, "step": n, "value": 0.464 + n / 900} for n in (0, 1)]
    for percent in (False, True):
        dots = dot_chart(points, {"a": "black"}, title="", percent=percent)["layer"][-1]
        lines = line_chart(points, {"a": "black"}, title="", percent=percent)["layer"][0]
        for axis in (dots["encoding"]["x"]["axis"], lines["encoding"]["y"]["axis"]):
            assert axis["format"] == "f%"[percent]


def test_losses_above_the_plateau_do_not_push_the_band_out_of_the_chart():
    """Vega draws what lies outside the domain too, and then squeezes the chart to nothing."""
    rows = [{"arm": "a", "seed": seed, "value": 6.7 + 0.05 * seed} for seed in range(3)]
    spec = dot_chart(rows, {"a": "#000000"}, title="loss", plateau=6.59)
    low, high = layer_of(spec, "circle")["encoding"]["x"]["scale"]["domain"]
    [ends] = layer_of(spec, "rect")["data"]["values"]
    assert low <= ends["from"] < ends["to"] <= high


def test_lines_of_the_same_colour_have_their_own_dashes(monkeypatch):
    """Of 17 groups, four had the colour of another one."""
    monkeypatch.setattr(drawing, "vega_code", lambda: "VEGA")
    groups = [f"group {number}" for number in range(17)]
    weights = dict.fromkeys(groups, 1.0)
    lines = [{"arm": "a", "seed": 0, "step": step, "weights": weights} for step in (1, 2)]
    [chart] = weight_charts(Folder("run", "a", curves=lines))
    for layer in chart["spec"]["layer"]:
        looks = []
        for channel in ("color", "strokeDash"):
            scale = layer["encoding"][channel]["scale"]
            assert scale["domain"] == groups
            looks.append(map(str, scale["range"]))
        assert len(set(zip(*looks))) == 17
    assert len({*map(str, drawing.dashes_of(arm_colours(groups[:13], groups[0])).values())}) == 1


def test_arms_have_their_own_colours():
    colours = arm_colours(["x", "base", "y", "z"], "base")
    assert len(set(colours.values())) == 4 and list(colours) == ["x", "base", "y", "z"]


# What studies found, beside their charts
# ------------------------------------------------------------


@pytest.fixture
def rich(tmp_path):
    """A study with evaluations, a search, an overlap and learned weights."""
    study = make_study(runs=6, arms=ARMS)
    records = make_records(study, ARMS)
    records += [
        evaluation_record(arm, seed, f"facts {EVIL}", "hits@1", 0.25, chance=0.04)
        for arm in ARMS
        for seed in study["seeds"]
    ]
    overlap = {"kind": "overlap", "task": "task-0", "corpus": EVIL, "items": 400}
    records.append(overlap | {"overlapping": 7})
    summary = summarise(records, study)
    folder = write_study(tmp_path / "study", study, records, summary=summary, samples=None)
    stage = folder / study["arms"]["token-30"]["runs"]["0"] / "metrics.jsonl"
    # The policy of the objective mlm has seen no group yet.
    more = {"weights": {"NOUN": 0.9, EVIL: 0.1}, "mlm weights": {}}
    write_lines(stage, [line | more for line in read_lines(stage)])
    return folder


def test_arms_with_another_grid_have_a_table_of_their_own(rich):
    """Scores of one arm stood below the settings of another, whose search had more points."""
    lines = list(read_lines(rich / "records.jsonl"))
    for line in lines:
        if line["kind"] == "selection" and line["arm"] == "token-15":
            line["candidates"] = line["candidates"][:2]
    write_lines(rich / "records.jsonl", lines)
    alone, others = content_of(rich)["choices"]
    assert [line["arm"] for line in alone] == ["token-15"] and len(others) == len(ARMS) - 1


def test_the_page_shows_the_chosen_length_of_every_run(tmp_path):
    study = make_study(runs=3)
    records = make_records(study, {"token-30": 0.1})
    for line in records:
        if line["kind"] == "cost" and (line["arm"], line["seed"]) != ("token-30", 1):
            steps = 100 * (1 + line["seed"])
            line |= {"best_step": steps, "planned_steps": 1200}
    gate = cost_record("token-15", 0, role="gate", best_step=1, planned_steps=2)
    folder = write_study(tmp_path / "study", study, [*records, gate])
    table = content_of(folder)["best_steps"]
    assert table["seeds"] == [0, 1, 2]
    assert [(row["arm"], row["steps"], row["planned"]) for row in table["rows"]] == [
        ("token-15", [100, 200, 300], 1200),
        ("token-30", [100, None, 300], 1200),
    ]
    assert page_of(folder).count(">1,200<") == 2
    write_lines(folder / "records.jsonl", make_records(study, {}))
    assert content_of(folder)["best_steps"] is None


def test_charts_and_tables_show_scores_in_the_same_unit(tmp_path, monkeypatch):
    """Correlations were × 100 in the table, but not in the chart."""
    monkeypatch.setattr(drawing, "vega_code", lambda: "VEGA")
    for metric, sign, percent in (
        ("spearman", 1, False),
        ("matthews", -1, False),
        ("accuracy", 1, True),
    ):
        scores = {arm: [sign * x for x in values] for arm, values in CLEAR.items()}
        study, records = study_of(scores)
        study["tasks"]["task-0"]["metric"] = metric
        records = [line | ({"metric": metric} if "metric" in line else {}) for line in records]
        content = content_of(write_study(tmp_path / metric, study, records))
        [chart] = content["scores"]
        assert chart["percent"] == percent
        row = content["task_table"]["rows"][0]
        drawn = [dot["value"] for dot in dots_of(chart["spec"]) if dot["arm"] == row["arm"]]
        mean = sum(drawn) / len(drawn)
        assert row["cells"]["task-0"]["mean"] == f"{100 * mean if percent else mean:.1f}"
        assert ("× 100" in chart["metric"]) != percent


def test_quality_against_compute_has_a_choice(rich):
    specs = specs_of(page_of(rich))
    (spec,) = (spec for spec in specs if spec.get("params"))
    (menu,) = (menu for menu in spec["params"] if "bind" in menu)
    assert menu["bind"]["options"][:2] == ["mean over tasks", "task-0"]
    mine = [
        r for r in dots_of(spec) if (r["arm"], r["seed"], r["measure"]) == ("token-15", 0, "task-0")
    ]
    assert [row["x"] for row in mine] == [2.1e12]
    assert len(dots_of(specs[0])) == 3 * 6  # the scores of task-0


@pytest.mark.parametrize("metrics", [("accuracy", "nats"), ("nats", "nats"), ("accuracy", "f1")])
def test_the_first_chart_never_shows_the_worse_arm_as_better(metrics, tmp_path):
    """A mean of points and nats without signs was the default: 1.75 of the worse arm, 1.30 of the
    better.
    """
    levels = {"accuracy": (0.5, 0.6), "f1": (0.4, 0.5), "nats": (3.0, 2.0)}
    study = make_study(runs=6)
    records = run_facts(study)
    for task, metric in zip(study["tasks"], metrics):
        study["tasks"][task]["metric"] = metric
        for arm, level in zip(study["arms"], levels[metric]):
            for seed in range(6):
                score = level + 0.01 * (seed % 3)
                records.append(score_record(arm, seed, task, score, metric=metric))
    summary = summarise(records, study)
    folder = write_study(tmp_path / "study", study, records, summary=summary, samples=None)
    (spec,) = (spec for spec in specs_of(page_of(folder)) if spec.get("params"))
    (menu,) = (menu for menu in spec["params"] if "bind" in menu)
    has_mean = [name.startswith("mean over tasks") for name in menu["bind"]["options"]]
    # Points and nats have no mean.
    assert has_mean == ([False] * 2 if metrics == ("accuracy", "nats") else [True, False, False])
    for measure in menu["bind"]["options"]:
        means = {}
        for arm in study["arms"]:
            dots = [r for r in dots_of(spec) if (r["arm"], r["measure"]) == (arm, measure)]
            means[arm] = np.mean([dot["value"] for dot in dots])
        better = means["token-30"] - means["token-15"]
        assert better * (-1 if "lower is better" in measure else 1) > 0


def test_one_axis_of_compute_has_one_unit(rich):
    lines = [json.loads(line) for line in (rich / "records.jsonl").read_text().splitlines()]
    del next(line for line in lines if line["kind"] == "cost")["flops"]
    write_lines(rich / "records.jsonl", lines)
    (spec,) = (spec for spec in specs_of(page_of(rich)) if spec.get("params"))
    assert {row["x"] for row in dots_of(spec)} == {400}


def test_evaluations_are_a_table(rich):
    page = page_of(rich)
    assert "hits@1" in page and page.count("0.250") >= 3 and "0.040" in page


def test_what_was_learnt_is_drawn_per_arm(rich):
    page = page_of(rich)
    assert [chart["name"] for chart in content_of(rich)["weights"]] == ["token-30"]
    assert content_of(rich)["several"] is None  # no run chose among objectives
    charts = [s for s in specs_of(page) if "NOUN" in json.dumps(s)]
    assert len(charts) == 1 and charts[0]["layer"][0]["encoding"]["color"]["scale"]["domain"] == [
        "NOUN",
        EVIL,
    ]


def test_report_prints_the_summary_of_a_study(folder, tmp_path, capsys):
    assert maskwise("report", folder, "--json", "--html", tmp_path / "page.html") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["rules"] == RULES and f"wrote {tmp_path / 'page.html'}" in err
    assert {row["verdict"] for row in primary_rows(found)} == {"open"}
    flags = [flag for row in found["contrasts"] for flag in row["flags"]]
    assert all(set(flag) == {"code", "effect", "sentence", "facts"} for flag in flags)
    assert "token-30" in (tmp_path / "page.html").read_text()
    assert not (folder / "report.html").exists()
    (folder / "records.jsonl").unlink()
    with pytest.raises(MaskwiseError, match="no records yet"):
        summary_of(folder)
    run = write_run(tmp_path / "run", make_metrics("constant(0.3)"))
    assert maskwise("report", run, "--json") == 2
    error = capsys.readouterr().err
    assert "a single run has no verdicts" in error and error.count("\n") == 1


def test_two_studies_stand_side_by_side(folder, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    study = make_study(runs=3, name=EVIL) | {"recipe": {"training": {"steps": 99}}}
    write_json(other / "study.json", study)
    assert maskwise("report", folder, other, "--json", "--html", tmp_path / "both.html") == 0
    compared = json.loads(capsys.readouterr().out)
    missing = [study["missing"] for study in compared["studies"]]
    assert missing == [[], ["records.jsonl"]]
    assert {"setting": "training.steps", "values": [None, 99]} in compared["differences"]
    assert all(row["studies"][0] and row["studies"][1] is None for row in compared["outcomes"])
    page = (tmp_path / "both.html").read_text("utf-8")
    assert "<script" not in page and "records.jsonl" in page
    twice = compare_studies(folder, folder)
    assert not twice["differences"] and {row["change"] for row in twice["outcomes"]} == {0.0}
    assert maskwise("report", folder, tmp_path / "nowhere") == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_the_bound_of_diffusion_is_called_so_beside_losses(folder):
    records = read_lines(folder / "records.jsonl")
    bound = {"kind": "heldout", "arm": "token-15", "seed": 0, "measure": "diffusion", "value": 4.0}
    losses = [bound | {"ratio": 0.5}, bound | {"measure": "token", "ratio": 0.125}]
    write_lines(folder / "records.jsonl", [*records, *losses])
    outcomes = {row["outcome"] for row in compare_studies(folder, folder)["outcomes"]}
    assert {"bound of masked diffusion", "held-out loss, token masks, 12.5 %"} <= outcomes


@pytest.mark.parametrize("ratio, said", [(0.125, "12.5 %"), (0.005, "0.5 %"), (0.15, "15 %")])
def test_ratios_of_held_out_masks_are_not_rounded(ratio, said, monkeypatch, capsys, tmp_path):
    row = Measurement(kind="heldout", measure="token", value=3.0, metric="nats", ratio=ratio)
    monkeypatch.setattr("maskwise.evaluation.evaluate.evaluate_checkpoint", lambda *_, **__: [row])
    assert maskwise("evaluate", "model") == 0
    line = {"masks": "token", "ratio": ratio, "loss": 3.0, "unigram": 6.0, "targets": 9}
    result = {"heldout": [line], "checkpoint": "x", "seconds": 1.0}
    monkeypatch.setattr("maskwise.studies.single.run_pretrain", lambda *_, **__: result)
    assert maskwise("pretrain", "quick-start", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.count(f" {said} ") == 2


def test_results_of_other_rules_are_judged_anew_and_this_is_said(tmp_path, capsys):
    """The version of the rules was written and never compared: pages had sentences of old rules."""
    study = make_study(runs=8)
    records = make_records(study, {"token-30": 0.1})
    summary = summarise(records, study)
    (row,) = primary_rows(summary)
    assert row["verdict"] == "decided"
    old = json.loads(json.dumps(summary)) | {"rules": RULES - 1, "headline": "An old sentence."}
    for each in old["contrasts"]:
        each |= {"sentence": "An old sentence.", "brief": "An old sentence."}
        each["verdict"] = each["verdict"] and "open"
    folder = write_study(tmp_path / "study", study, records, summary=old, samples=None)
    stored = (folder / "summary.json").read_bytes()
    assert maskwise("report", folder) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert "An old sentence." not in page and "better than token-15" in page
    said = capsys.readouterr().err
    for text in (page, said):
        assert f"version {RULES - 1}" in text and f"version {RULES}" in text
    assert "token-30 against token-15: was open, is decided" in said
    assert (folder / "summary.json").read_bytes() == stored
    assert maskwise("report", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == summary
    # In Python, too, no page shows them.
    assert "An old sentence." not in write_report(folder).read_text("utf-8")
    assert maskwise("report", folder, folder) == 0
    assert "An old sentence." not in (folder / "compared.html").read_text("utf-8")
    write_lines(folder / "records.jsonl", [{**records[0], "arm": "unknown"}])
    assert maskwise("report", folder) == 0
    assert "An old sentence." not in (folder / "report.html").read_text("utf-8")
    assert "cannot be judged" in capsys.readouterr().err
    assert maskwise("report", folder, "--json") == 2
    assert "unknown arm" in capsys.readouterr().err


def test_a_gate_that_is_the_question_is_not_called_a_gate(tmp_path, capsys):
    """In adapt, the gate is the only contrast, and nothing else is tested after it."""
    gate = ("token-30", "token-15")
    study = make_study(runs=6) | {"gate": {"contrast": gate, "closes": []}, "search": None}
    for contrasts, named in (([list(gate)], False), ([list(gate), ["token-15", "token-30"]], True)):
        study |= {"contrasts": contrasts}
        records = make_records(study, {"token-30": 0.03})
        summary = summarise(records, study)
        assert any("gate" in row for row in primary_rows(summary))
        folder = write_study(tmp_path / str(named), study, records, summary=summary, samples=None)
        assert ("the gate: tested first" in page_of(folder)) == named
        printing.print_verdicts(summary)
        assert (", gate" in capsys.readouterr().out) == named


def test_settings_of_arms_are_spelt_as_in_recipes(tmp_path):
    """A nested setting was a Python dict in the box of its arm."""
    study = make_study(runs=1)
    study["arms"]["token-30"]["overrides"] = {
        "model": {"settings": {"dropout": 0.1}, "adapter": None},
        "phases": [{"training": {"freeze": "encoder"}}, {"training.compile": True}],
        "corpus.source": {"a.txt": 1, "b.txt": 2},
    }
    arms = {
        arm["name"]: arm["facts"]["overrides"]
        for arm in page_content(Folder("study", "x", study=NO_STUDY | study | {"recipe": {}}))[
            "arms"
        ]
    }
    assert arms["token-30"] == {
        "model.settings.dropout": "0.1",
        "model.adapter": "null",
        "phases.0.training.freeze": "encoder",
        "phases.1.training.compile": "true",
        "corpus.source": "{a.txt: 1, b.txt: 2}",
    }


# Several objectives
# ------------------------------------------------------------

SAMPLERS = {"uniform": "#111111", "plus": "#222222", "turns": "#333333"}
CSE = "<b>cse</b>"


def train_line(arm: str, seed: int, step: int, share: float, **more: Any) -> dict[str, Any]:
    """A line of a run whose sampler draws mlm with this probability."""
    line = {"kind": "train", "arm": arm, "seed": seed, "step": step, "seconds": 2.0 * step}
    line |= {"probabilities": {"mlm": share, CSE: 1 - share}, "objective_steps": {"mlm": 6, CSE: 4}}
    return line | more


def test_objectives_have_a_table_and_charts_of_the_samplers_that_move_shares() -> None:
    lines = []
    for seed, step in product((0, 1), (10, 20, 30, 40)):
        # Constant shares may differ between runs.
        lines.append(train_line("uniform", seed, step, 0.5 + seed / 10))
        lines.append(train_line("turns", seed, step, float(step % 20 == 0)))
        probes = {"probe_seconds": step / 10, "reliability": 0.1 * seed + step / 100}
        probes["updates"] = step // 10
        plus = train_line("plus", seed, step, 0.5 + step / 100, **probes)
        lines.append(plus | {"objective_steps": {"mlm": 9, CSE: 1}})
    # The sampler of an arm or of a phase, and not the recipe's.
    arms = {"plus": {"sampler": "mometas-plus(every=20)"}, "turns": {"sampler": "sequential"}}
    records = [{"kind": "cost", "arm": "plus", "seed": s, "flops": 100 + s} for s in (0, 1)]
    study = NO_STUDY | {"arms": arms, "recipe": {"sampler": "uniform"}}
    folder = Folder("study", "x", study=study, curves=lines, records=records)
    view = objectives_view(folder, SAMPLERS)
    [chart] = view["shares"]
    assert chart["name"] == "plus"
    _, means, rule = chart["spec"]["layer"]
    assert rule["data"]["values"][0]["at"] == 0.5 and means["encoding"]["y"]["aggregate"] == "mean"
    rows = chart["spec"]["data"]["values"]
    assert {("mlm", 40, 0.9), (CSE, 10, 0.4)} <= {(r["arm"], r["step"], r["value"]) for r in rows}
    table = {row["arm"]: row for row in view["table"]}
    plus = table["plus"]
    assert plus["shares"] == {"mlm": 0.9, CSE: 0.1} and plus["steps"] == 40
    assert (plus["seconds"], plus["probing"], plus["flops"]) == (80, 0.05, 100.5)
    assert plus["reliability"] == pytest.approx(0.45)  # at the ends of both runs
    assert plus["updates"] == 4 and table["uniform"]["updates"] is None
    assert table["uniform"]["probing"] is None and table["uniform"]["reliability"] is None
    samplers = [table[arm]["sampler"] for arm in SAMPLERS]
    assert samplers == ["uniform", "mometas-plus(every=20)", "sequential"]


def test_long_runs_are_thinned_in_charts_and_counted_whole() -> None:
    lines = [train_line("plus", 0, step, step / 1000) for step in range(1, 3 * MOST_POINTS)]
    found = objectives_view(Folder("run", "plus", curves=lines), {"plus": "#000"})
    assert found and found["table"][0]["steps"] == 10 * len(lines)
    assert len(json.dumps(found["shares"][0]["spec"])) < 80 * 2 * MOST_SMALL + 5000


# The terminal
# ------------------------------------------------------------


@pytest.fixture
def summary() -> dict:
    """Six runs can decide one contrast, not two."""
    effects = {"token-15": 0.0, "token-30": 0.1, "token-45": 0.0}
    study = make_study(runs=6, arms=effects, search=None)
    records = [line for line in make_records(study, effects) if line["kind"] != "selection"]
    return summarise(records, study)


@pytest.fixture
def terminal(monkeypatch, capsys):
    """What ``print_verdicts`` prints, by line."""
    monkeypatch.setattr(printing, "out_console", Console(width=160))

    def printed(summary: dict) -> list[str]:
        printing.print_verdicts(summary)
        return capsys.readouterr().out.splitlines()

    return printed


def test_the_terminal_names_an_arm_once_beside_a_flag(summary, terminal):
    row, other = primary_rows(summary)
    common = {"effect": "caps", "code": "x", "sentence": "the text is short", "facts": {}}
    own = {"effect": "caps", "code": "x", "sentence": f"{row['arm']} read less", "facts": {}}
    rows = [
        row | {"flags": [common, own]},
        row | {"baseline": "else", "flags": [common]},
        other | {"flags": []},
    ]
    lines = terminal(summary | {"contrasts": rows})
    assert f"  · {row['arm']}: the text is short" in lines
    assert f"  · {row['arm']} read less" in lines


def test_the_terminal_says_verdicts_flags_and_what_to_do(summary, terminal):
    lines = terminal(summary)
    flags = [flag for row in primary_rows(summary) for flag in row["flags"]]
    (common,) = {flag["sentence"] for flag in flags if flag["code"] == "untuned"}
    assert sum(common in line for line in lines) == 1  # common to both, so said once
    assert all(f"  → {sentence}" in lines for sentence in summary["advice"])
    assert lines[0].split()[-1] == "verdict" and "points" in lines[1]
    assert next(n for n, line in enumerate(lines) if line.startswith("held-out")) <= 12
    assert all(line.rstrip().endswith("open, at these settings") for line in lines[1:3])
    row = primary_rows(summary)[0] | {"verdict": "decided", "better": "arm", "gate": True}
    gate = terminal(summary | {"contrasts": [row, primary_rows(summary)[1]], "advice": []})[1]
    assert gate.rstrip().endswith("better (decided), at these settings, gate")


def test_python_prints_what_the_command_prints(folder, terminal):
    printed = str(StudyResult.read(folder)).splitlines()
    assert list(map(str.split, printed)) == [
        line.split() for line in terminal(summary_of(folder)) if line
    ]


def test_terminal_notebook_and_page_have_one_table_of_held_out_losses(folder, terminal):
    summary = summary_of(folder)
    heads, *lines = loss_table(summary["losses"], make_study()["untrained"])
    assert len(heads) > 1 and len(lines) > 2
    result = StudyResult.read(folder)
    for shown in (terminal(summary), str(result).splitlines()):
        start = next(n for n, line in enumerate(shown) if line.startswith(heads[0]))
        for words, line in zip([heads, *lines], shown[start:]):
            assert re.split(r"\s\s+", line.strip()) == words
    for page in (page_of(folder), result._repr_html_()):
        plain = html.unescape(re.sub(r"<t[dh][^>]*>", "|", page)).replace("\u00a0", " ")
        for words in [heads, *lines]:
            row = "".join(f"\\|{re.escape(word)}</t[dh]>" for word in words)
            assert len(re.findall(row, plain)) == 1


def test_a_study_with_replicates_to_come_prints_one_sentence(folder, terminal):
    study = json.loads((folder / "study.json").read_text()) | {"pending": [2]}
    summary = summarise(read_folder(folder).records, study)
    assert [line for line in terminal(summary) if line] == [summary["headline"]]


def test_an_evaluation_is_not_called_held_out_loss(summary, terminal):
    row = primary_rows(summary)[0] | {"unit": "score", "metric": "accuracy", "mean": 0.023}
    row |= {"outcome": "evaluation:pairs:accuracy"}
    lines = terminal(summary | {"contrasts": [row]})
    assert "pairs (accuracy)" in lines[1] and "+2.3 points" in lines[1]


def test_a_table_in_a_pipe_is_not_cut(capfd: pytest.CaptureFixture[str]) -> None:
    cell = "x" * 300
    printing.print_table(("a long head", "another"), [(cell, cell)])
    out = capfd.readouterr().out
    assert "…" not in out and f"{cell}  {cell}" in out


@pytest.mark.parametrize("width", [40, 60, 79, 120])
def test_names_with_spaces_stay_on_one_line_of_a_table(width, monkeypatch, capsys) -> None:
    """Whole words of masks 15 % and whole words of masks 30 % began with two equal lines."""
    monkeypatch.setattr(printing, "out_console", Terminal(width=width, force_terminal=True))
    names = [f"whole words of masks {percent} %" for percent in (15, 30)]
    facts = ("the tasks", "+1.2 accuracy points", "−0.35 to +2.14", "better (decided)")
    heads = ("arm", "against", "outcome", "difference", "interval", "verdict")
    printing.print_table(heads, [(name, "no pre-training", *facts) for name in names])
    lines = capsys.readouterr().out.splitlines()
    for name in (*names, "no pre-training"):
        assert any(name in line for line in lines), lines


@pytest.mark.parametrize("width", [30, 80, 90, 200])
def test_a_table_on_a_terminal_shows_whole_names_and_numbers(width, monkeypatch, capsys) -> None:
    """At 80 columns, constant-rate-15 and constant-rate-30 were both constant-r…"""
    monkeypatch.setattr(printing, "out_console", Terminal(width=width, force_terminal=True))
    heads = ("arm", "against", "outcome", "difference", "95 % interval", "p", "", "verdict")
    facts = ("constant-rate-15", "the tasks", "+1.2 points", "−0.35 to +2.14", "0.031", "")
    rows = [(f"constant-rate-{rate}", *facts, Text("better (decided)")) for rate in (30, 45)]
    printing.print_table(heads, rows)
    printing.print_table(("", ""), [(Text("file"), f"/{'folder/' * 9}texts.jsonl")])
    out = capsys.readouterr().out
    assert "…" not in out and f"/{'folder/' * 9}texts.jsonl" in "".join(out.split())
    for row in rows:
        for word in " ".join(map(str, row)).split():
            assert word in out.split()


def test_arms_with_one_name_are_named_once() -> None:
    study = make_study(runs=6, margin=1e-6)
    table = Outcomes(make_records(study, {}), study)
    first = next(verdict for verdict in judge(table, table) if verdict.primary)
    hopeless = {"detectable": {"runs": 6, "difference": 1.0}, "runs_to_decide": None}
    both = [replace(first, arm=arm, **hopeless) for arm in ("a", "b")]
    names = {"a": "masking 45 %", "b": "masking 45 %", first.baseline: "the baseline"}
    assert advice_of(both, names, study)["no-more-seeds"].count("masking 45 %") == 1


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("study.json", "arms", 3),
        ("study.json", "arms", []),
        ("study.json", "seeds", "0-5"),
        ("study.json", "seeds", ["0"]),
        ("study.json", "contrasts", ["a", "b"]),
        ("study.json", "tasks", ["mine"]),
        ("study.json", "seconds", "long"),
        ("study.json", "started", "yesterday"),
        ("study.json", "versions", [1]),
        ("study.json", "hardware", "a laptop"),
        ("study.json", "earlier_hardware", ["a laptop"]),
        ("study.json", "margin", "small"),
        ("study.json", "compared", 1),
    ],
)
def test_a_value_of_another_type_in_a_study_is_one_line(file, key, value, tmp_path, capsys):
    study = make_study(runs=6)
    records = make_records(study, {"token-30": 0.1})
    folder = write_study(
        tmp_path / "study", study, records, summary=summarise(records, study), samples=None
    )
    content = load_json(folder / file) | {key: value}
    (folder / file).write_text(json.dumps(content))
    for options in ([], ["--json"]):
        assert maskwise("report", folder, *options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{file} is damaged; got {key}: " in line


@pytest.mark.parametrize(
    "facts",
    [
        *({"policy": value} for value in (3, 4.0, None, ["token"])),
        *({"runs": value} for value in (3, None, {"one": "stages/x"}, {"1": 2})),
        {"overrides": "none"},
        {"judged_on": "token"},
    ],
)
def test_an_arm_of_another_form_is_one_line(facts, tmp_path):
    study = make_study(runs=6)
    study["arms"]["token-30"] |= facts
    write_json(tmp_path / "study.json", study)
    with pytest.raises(MaskwiseError, match="is damaged"):
        read_folder(tmp_path)


def test_a_null_in_a_study_is_a_missing_value(folder, monkeypatch):
    monkeypatch.setattr("maskwise.report.drawing.made_vega", lambda: ("VEGA", ""))
    study = load_json(folder / "study.json")
    nulls = dict.fromkeys(("hardware", "versions", "earlier_hardware", "started", "compared"))
    write_json(folder / "study.json", study | nulls)
    content = content_of(folder)
    lacking = {key: value for key, value in study.items() if key not in nulls}
    write_json(folder / "study.json", lacking)
    assert content_of(folder) == content


def test_a_page_needs_no_more_of_a_study_than_it_shows(folder):
    study = load_json(folder / "study.json")
    study["versions"] = {"numpy": None}
    study["tasks"]["task-0"]["test_items"] = 100.0
    study["match"] = {"by": "steps"}
    write_json(folder / "study.json", study)
    assert read_folder(folder).study["arms"] == study["arms"]
    study["description"] = ["a study without a name"]
    write_json(folder / "study.json", study)
    with pytest.raises(MaskwiseError, match="is damaged; got description"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("looks", looks) for looks in ([], [-3, 6], [6, 0], [4, 5], [6.5, 9], [3, 6, 6])),
        *(("tasks", {"task-0": {"test_items": number}}) for number in (-1, 0.5, -4.0, math.nan)),
        ("tasks", {"task-0": {"classes": -2}}),
        ("looked", [{"runs": -1, "seeds": [0], "contrasts": 1, "looks": None}]),
        ("seeds", [0, 1, 2, 3, 3]),
        ("pending", [7, 7]),
        ("contrasts", [["token-30", "token-15"]] * 2),
    ],
)
def test_an_impossible_number_in_a_study_is_one_line(key, value, tmp_path, capsys):
    study = make_study(runs=6)
    folder = write_study(tmp_path / "study", study, make_records(study, {"token-30": 0.1}))
    write_json(folder / "study.json", study | {key: value})
    assert maskwise("report", folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"study.json is damaged; got {key}" in line
    with pytest.raises(MaskwiseError, match=f"is damaged; got {key}"):
        recorded_spreads(folder, [("token-30", "token-15")])


@pytest.mark.parametrize("seed", ["--1", "00", "1.5", "", "x"])
def test_a_key_of_a_run_that_is_no_seed_is_one_line(seed, folder, capsys):
    """--1 ended in a traceback."""
    study = load_json(folder / "study.json")
    study["arms"]["token-15"]["runs"][seed] = "stages/none"
    write_json(folder / "study.json", study)
    assert maskwise("report", folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "study.json is damaged" in line and f"the seed {seed!r}" in line


@pytest.mark.parametrize(
    ("looks", "rise"), [([4, 10], True), ([10, 4], False), ([0, 6], False), ([6, 6], False)]
)
def test_looks_that_do_not_rise_and_those_without_the_seeds_are_two_mistakes(looks, rise, tmp_path):
    study = {**make_study(runs=6), "looks": looks}
    write_json(tmp_path / "study.json", study)
    with pytest.raises(MaskwiseError, match=rf"; got looks: .*{looks[0]}, {looks[1]}") as error:
        read_folder(tmp_path)
    assert ("number of seeds, 6" in str(error.value)) == rise


def test_looks_are_read_without_seeds_and_as_whole_floats(folder):
    study = {**load_json(folder / "study.json"), "looks": [3, 10]}
    write_json(folder / "study.json", study)
    summary = read_folder(folder).summary
    write_json(folder / "study.json", {**study, "looks": [3.0, 10.0]})
    assert read_folder(folder).summary == summary != NO_SUMMARY
    # A study that somebody wrote by hand.
    del study["seeds"]
    write_json(folder / "study.json", study)
    assert read_folder(folder).study["looks"] == [3, 10]


def test_lines_with_impossible_counts_do_not_choose_the_best_arm(folder):
    records = read_lines(folder / "records.jsonl")
    best = StudyResult.read(folder).best_arm
    evaluation = evaluation_record("token-30", 0, "pairs", "accuracy", 0.5, items=-9)
    odd = [evaluation, {**records[0], "ratio": [0.15]}, {**records[0], "kind": ["task"]}]
    write_lines(folder / "records.jsonl", [*records, *odd])
    result = StudyResult.read(folder)
    assert result.best_arm == best and read_folder(folder).incomplete == 2
    assert "pairs" not in " ".join(row["outcome"] for row in result.summary["contrasts"])


@pytest.mark.parametrize("value", ["abc", [0.5], {"mean": 0.5}, True])
@pytest.mark.parametrize("kind", ["task", "heldout"])
def test_a_line_whose_value_is_no_number_is_counted(kind, value, folder, monkeypatch):
    monkeypatch.setattr("maskwise.report.drawing.made_vega", lambda: ("VEGA", ""))
    records = read_lines(folder / "records.jsonl")
    number = next(n for n, line in enumerate(records) if line["kind"] == kind)
    records[number]["value"] = value
    write_lines(folder / "records.jsonl", records)
    content = content_of(folder)
    assert any("1 line lacks keys" in line for line in content["missing"])


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("task", {"measure": None}),
        ("heldout", {"ratio": None}),
        ("selection", {"candidates": [{"setting": {}}]}),
        ("selection", {"candidates": None}),
        ("overlap", {"items": None}),
    ],
)
def test_a_line_of_another_form_is_counted(kind, facts, folder):
    counts = {"kind": "overlap", "task": "task-0", "corpus": "c", "items": 9, "overlapping": 1}
    records = [*read_lines(folder / "records.jsonl"), counts]
    next(line for line in records if line["kind"] == kind).update(facts)
    write_lines(folder / "records.jsonl", records)
    assert read_folder(folder).incomplete == 1
