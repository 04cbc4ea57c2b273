"""The page: one file, no network, the user's texts escaped, and no crash over a missing piece."""

from __future__ import annotations

import json
import re

import pytest

from maskwise.errors import MaskwiseError
from maskwise.files import RULES
from maskwise.report import compare_studies, drawing, summary_of, write_report
from maskwise.report.drawing import arm_colours, dot_chart
from maskwise.report.page import page_content, vega_code
from maskwise.report.reading import read_folder
from maskwise.report.tables import forest_groups
from maskwise.study.verdict import summarise
from report_fixture import (
    evaluation_record,
    make_metrics,
    make_records,
    make_samples,
    make_study,
    primary_rows,
    write_json,
    write_lines,
    write_run,
    write_study,
)
from tiny import maskwise, read_lines

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
        "holds for this corpus, these tasks" in page and "says nothing about other corpora" in page
    )
    charts = specs_of(page)
    assert (
        len(charts) == page.count('id="chart-') == 2 + 2 + 1 + 1 + 1 + 1
    )  # tasks, held-out, compute, train, eval, ratio
    assert sorted(p.name for p in folder.iterdir() if p.suffix == ".html") == ["report.html"]


def test_a_page_is_made_where_the_code_of_charts_cannot_be(folder, monkeypatch):
    """Under a limit of address space V8 ends its process, with a signal."""
    monkeypatch.setattr(drawing, "VEGA", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    drawing.made_vega.cache_clear()
    try:
        text = write_report(folder).read_text("utf-8")
    finally:
        drawing.made_vega.cache_clear()
    assert "exit code -9" in text
    assert 'id="chart-' not in text and "vegaEmbed" not in text
    assert len(text) < 300_000 and "<table" in text


@pytest.mark.parametrize("missing", ["altair", "vl_convert"])
def test_tables_stand_in_place_of_charts_without_the_extra(folder, monkeypatch, missing):
    monkeypatch.setattr("maskwise.errors.find_spec", lambda name: None if name == missing else 1)
    drawing.made_vega.cache_clear()
    try:
        content = page_content(read_folder(folder))
        text = write_report(folder).read_text("utf-8")
    finally:
        drawing.made_vega.cache_clear()
    assert "pip install &#39;maskwise[report]&#39;" in text and "vegaEmbed" not in text
    for runs in read_folder(folder).numbers("score").values():
        drawn = runs[runs.arm.isin([*content["colours"]])]
        assert all(f"<td>{value:.4g}</td>" in text for value in drawn.value)
    assert text.count('class="dataframe"') > len(content["scores"])


def test_a_table_of_a_curve_ends_where_the_curve_ends():
    points = [{"arm": "a", "step": step, "value": 1 / step} for step in range(10, 510, 10)]
    html = drawing.table_of(points, "arm", across="step")["html"]
    assert "<th>500</th>" in html and "<td>0.002</td>" in html
    assert html.count("<td>") <= drawing.MOST_COLUMNS


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


@pytest.mark.parametrize("lost", ["summary.json", "samples.json", "records.jsonl", "stages"])
def test_missing_pieces_make_a_smaller_page(folder, lost):
    whole = len(page_of(folder))
    target = folder / lost
    target.rename(folder.parent / lost)
    assert len(page_of(folder)) < whole


def test_a_study_that_has_only_begun(tmp_path):
    study = make_study(runs=3)
    write_json(tmp_path / "study.json", study)
    content = content_of(tmp_path)
    assert (
        content["story"] is None and content["summary"]["headline"] == "" and not content["scores"]
    )
    assert "vegaEmbed(" not in page_of(tmp_path)


def test_half_written_and_odd_lines_are_left_out(folder):
    records, damaged = folder / "records.jsonl", folder / "summary.json"
    lines = records.read_text().splitlines()
    odd = [
        '{"kind": "score", "arm": "token-15", "score": NaN}',
        "[1]",
        "",
        '{"kind": "heldout", "arm": "token-15"}',
    ]
    records.write_text("\n".join([*lines, *odd, lines[0][: len(lines[0]) // 2]]))
    damaged.write_text('{"headline": ')
    metrics = next((folder / "stages").glob("*/metrics.jsonl"))
    metrics.write_text(
        metrics.read_text() + '{"kind": "train", "step": 420, "loss": NaN}\n{"kind": "tr'
    )
    assert content_of(folder)["story"] is None and "NaN" not in page_of(folder)
    assert len(read_folder(folder).records) == len(lines)


def test_a_stage_outside_of_the_study_is_not_read(folder):
    write_run(folder.parent / "elsewhere", make_metrics("constant(0.9)"))
    study = json.loads((folder / "study.json").read_text())
    study["arms"]["token-15"]["runs"] = {"0": "../elsewhere"}
    write_json(folder / "study.json", study)
    assert not any(line["arm"] == "token-15" for line in read_folder(folder).curves)


def test_a_single_run_has_a_smaller_page(tmp_path):
    run = write_run(tmp_path / "my <run>", make_metrics("linear(0.3, 0.15)"))
    target = write_report(run, tmp_path / "pages" / "run.html")
    assert target == tmp_path / "pages" / "run.html"
    page = target.read_text("utf-8")
    assert "my &lt;run&gt;" in page and len(specs_of(page)) == 3
    content = content_of(run)
    assert ("Time", "26 s") in content["facts"] and not content["forests"] and not content["scores"]


def test_a_page_says_how_fast_the_training_was(tmp_path):
    metrics = make_metrics("constant(0.3)")
    for number, line in enumerate(line for line in metrics if line["kind"] == "train"):
        speed = {"tokens_per_second": 1000.0 * number, "mfu": 0.21, "memory_gib": 0.5 + number}
        line |= {
            "padding": 0.04,
            "speed": speed if number > 2 else {},
        }
    facts = dict(content_of(write_run(tmp_path, metrics))["facts"])
    last = max(
        number for number, line in enumerate(line for line in metrics if line["kind"] == "train")
    )
    assert facts["Training"] == (
        f"{500 * (3 + last):,.0f} tokens a second in each run, 21 % of the "
        f"measured speed of matrix products (MFU), "
        f"4 % padding, at most {0.5 + last:.1f} GiB of memory"
    )


@pytest.mark.parametrize("damaged", ["metrics.jsonl", "recipe.yaml", "done.json", "samples.json"])
def test_a_damaged_file_of_a_run_makes_a_smaller_page(tmp_path, damaged):
    run = write_run(tmp_path / "run", make_metrics("constant(0.3)"))
    (run / damaged).write_bytes(b"\xff\xfe\x00{[\x80" * 50)
    assert len(page_of(run)) > 5000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff\xfe\x00",
        b'{"arms": [',
        b'{"arms": []}',
        b'{"arms": {"a": 1}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_study_json_is_one_line(tmp_path, content):
    (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(MaskwiseError, match=r"study\.json"):
        write_report(tmp_path)
    with pytest.raises(MaskwiseError, match=r"study\.json"):
        summary_of(tmp_path)


@pytest.mark.parametrize("damaged", ["records.jsonl", "summary.json", "samples.json"])
def test_a_damaged_file_of_a_study_makes_a_smaller_page(folder, damaged):
    (folder / damaged).write_bytes(b"\xff\xfe\x00{[\x80" * 50)
    assert len(page_of(folder)) > 5000
    if damaged == "summary.json":
        with pytest.raises(MaskwiseError, match=r"summary\.json"):
            summary_of(folder)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(
        MaskwiseError,
        match=r"neither a study nor a pre-training run.*study\.json or metrics\.jsonl",
    ):
        write_report(tmp_path)
    with pytest.raises(MaskwiseError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(MaskwiseError, match="cannot be read"):
        write_report(tmp_path)
    assert not list(tmp_path.glob("*.html*"))


def test_every_run_is_a_dot(folder):
    dots = dots_of(specs_of(page_of(folder))[0])
    shown = {(row["arm"], row["seed"]): row["value"] for row in dots}
    scores = [line for line in read_folder(folder).of_kind("score") if line["task"] == "task-0"]
    arms = [line for line in scores if line["arm"] in ARMS]
    assert shown == {(line["arm"], line["seed"]): line["score"] for line in arms}
    assert len(shown) == 9


def layer_of(spec: dict, mark: str) -> dict:
    return next(layer for layer in spec["layer"] if layer["mark"]["type"] == mark)


def dots_of(spec: dict) -> list[dict]:
    """What is drawn as dots; data that all layers share stand above them."""
    return layer_of(spec, "circle").get("data", spec.get("data"))["values"]


def contrast_row(outcome: str, unit: str, mean: float | None, spread: float = 0.1, **facts) -> dict:
    ends = {"low": None, "high": None}
    if mean is not None:
        ends = {"low": mean - spread, "high": mean + spread}
    row = {"arm": "a", "baseline": "b", "outcome": outcome, "unit": unit, "mean": mean, **ends}
    row |= {"primary": False, "verdict": None, "sentence": "", "flags": [], "metric": None}
    return row | {"higher_is_better": unit in ("SDs", "score")} | facts


NO_HELP = {"code": "no-help", "effect": "notes", "sentence": "x", "facts": {}}


def test_forests_are_by_kind_and_unit_and_right_is_better():
    rows = [
        contrast_row("tasks", "SDs", 0.5, primary=True),
        contrast_row("seen", "score", 0.02),
        contrast_row("blind", "score", -0.03, flags=[NO_HELP]),
        contrast_row("written", "nats", -0.2, flags=[NO_HELP]),
        contrast_row("evaluation:facts:hits@1", "score", 0.1),
        contrast_row("evaluation:pseudo-perplexity:token", "perplexity", 5.0),
        contrast_row("evaluation:bound:nats per token", "nats per token", 0.2),
        contrast_row("evaluation:bound:bits per byte", "bits per byte", 0.1),
        contrast_row("heldout:token@0.15", "nats", -0.3),
    ]
    views = forest_groups(rows, {"a": "#000"})
    found = [(view["title"], view["unit"], view["rows"][0]["figure"]) for view in views]
    assert found == [
        ("On the tasks", "SDs between seeds", "+0.5"),
        ("Task by task", "points", "+2.0"),
        ("Tasks that do not count", "points", "−3.0"),
        ("Tasks that do not count", "nats", "+0.200"),
        ("Without fine-tuning", "points", "+10.0"),
        ("Pseudo-perplexity", "perplexity", "−5.000"),
        ("The bound of masked diffusion", "nats per token", "−0.200"),
        ("The bound of masked diffusion", "bits per byte", "−0.100"),
        ("Held-out loss", "nats", "+0.300"),
    ]
    assert views[-1]["rows"][0]["label"] == "token masks, 15 %"


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


def test_losses_above_the_plateau_do_not_push_the_band_out_of_the_chart():
    """Vega draws what lies outside the domain too, and then squeezes the chart to nothing."""
    rows = [{"arm": "a", "seed": seed, "value": 6.7 + 0.05 * seed} for seed in range(3)]
    spec = dot_chart(rows, {"a": "#000000"}, title="loss", plateau=6.59)
    low, high = layer_of(spec, "circle")["encoding"]["x"]["scale"]["domain"]
    [ends] = layer_of(spec, "rect")["data"]["values"]
    assert low <= ends["from"] < ends["to"] <= high


def test_arms_have_their_own_colours():
    colours = arm_colours(["x", "base", "y", "z"], "base")
    assert len(set(colours.values())) == 4 and list(colours) == ["x", "base", "y", "z"]


# What studies found, beside their charts
# ------------------------------------------------------------


@pytest.fixture
def rich(tmp_path):
    """A study with companions, evaluations, a search, an overlap and learned weights."""
    study = make_study(runs=6, arms=ARMS)
    records = make_records(study, ARMS)
    for line in list(records):
        half = line | {"fraction": 0.5}
        if line["kind"] == "score" and line["arm"] in ARMS:
            records.append(half | {"score": line["score"] - 0.05})
        elif line["kind"] == "cost":
            records.append(half | {"steps": 200, "targets": 61_440})
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


def test_plain_words_stand_first_and_warnings_beside_them(rich):
    page, content = page_of(rich).replace("\u00a0", " "), content_of(rich)
    compared = content["story"]["compared"]
    places = [page.index(text) for text in (compared, 'class="advice"', 'class="forest"')]
    assert places == sorted(places)
    for fact in ("3 ways", "6 runs", "task-0, task-1", "equal steps"):
        assert fact in compared
    primary = [row["verdict"] for row in primary_rows(content["summary"])]
    assert [line["verdict"] for line in content["story"]["lines"]] == primary
    [warning] = content["warnings"]
    assert "7 of 400" in warning and "task-0" in warning and EVIL in warning


def test_arms_with_another_grid_have_a_table_of_their_own(rich):
    """Scores of one arm stood below the settings of another, whose search had more points."""
    lines = list(read_lines(rich / "records.jsonl"))
    for line in lines:
        if line["kind"] == "selection" and line["arm"] == "token-15":
            line["candidates"] = line["candidates"][:2]
    write_lines(rich / "records.jsonl", lines)
    alone, others = content_of(rich)["choices"]
    assert [line["arm"] for line in alone] == ["token-15"] and len(others) == len(ARMS) - 1


def test_quality_against_compute_has_every_length_and_a_choice(rich):
    specs = specs_of(page_of(rich))
    (spec,) = (spec for spec in specs if spec.get("params"))
    (menu,) = (menu for menu in spec["params"] if "bind" in menu)
    assert menu["bind"]["options"][:2] == ["mean over tasks", "task-0"]
    mine = [
        r for r in dots_of(spec) if (r["arm"], r["seed"], r["measure"]) == ("token-15", 0, "task-0")
    ]
    half, whole = sorted(mine, key=lambda row: row["fraction"])
    assert (half["x"], whole["x"]) == (2.1e12, 2.1e12)
    assert half["value"] == pytest.approx(whole["value"] - 0.05)
    assert len(dots_of(specs[0])) == 3 * 6  # the scores of task-0: whole runs only


def test_one_axis_of_compute_has_one_unit(rich):
    summary = json.loads((rich / "summary.json").read_text())
    del summary["efficiency"]["points"][0]["flops"]
    write_json(rich / "summary.json", summary)
    (spec,) = (spec for spec in specs_of(page_of(rich)) if spec.get("params"))
    assert {row["x"] for row in dots_of(spec)} == {200, 400}


def test_evaluations_and_choices_are_tables(rich):
    page = page_of(rich)
    assert "hits@1" in page and page.count("0.250") >= 3 and "0.040" in page
    (table,) = content_of(rich)["choices"]
    assert [line["arm"] for line in table] == list(ARMS)
    assert {(one["setting"], one["chosen"]) for line in table for one in line["candidates"]} == {
        ("learning_rate 0.002", 0),
        ("learning_rate 0.004", 6),
        ("learning_rate 0.006", 0),
    }
    assert "<strong>0.600</strong><small> 6 of 6</small>" in page


def test_what_was_learnt_is_drawn_per_arm(rich):
    page = page_of(rich)
    assert [chart["name"] for chart in content_of(rich)["weights"]] == ["token-30"]
    assert content_of(rich)["several"] is None  # no run chose among objectives
    charts = [s for s in specs_of(page) if "NOUN" in json.dumps(s)]
    assert len(charts) == 1 and charts[0]["layer"][0]["encoding"]["color"]["scale"]["domain"] == [
        "NOUN",
        EVIL,
    ]


def test_stages_behind_links_are_read(folder):
    study = json.loads((folder / "study.json").read_text())
    stage = folder / study["arms"]["token-15"]["runs"]["0"]
    moved = folder.parent / "shared"
    stage.rename(moved)
    stage.symlink_to(moved, target_is_directory=True)
    assert any(
        (line["arm"], line["seed"]) == ("token-15", 0) for line in read_folder(folder).curves
    )


def test_the_summary_of_a_study(folder, tmp_path):
    found = summary_of(folder)
    assert found["rules"] == RULES
    assert {row["verdict"] for row in primary_rows(found)} == {"open"}
    (folder / "summary.json").unlink()
    with pytest.raises(MaskwiseError, match="no summary yet"):
        summary_of(folder)
    with pytest.raises(MaskwiseError, match="no verdicts"):
        summary_of(write_run(tmp_path / "run", make_metrics("constant(0.3)")))


def test_a_page_of_a_study_with_replicates_to_come_has_no_verdict(folder):
    study = json.loads((folder / "study.json").read_text()) | {"pending": [2]}
    write_json(folder / "study.json", study)
    summary = summarise(read_folder(folder).records, study)
    write_json(folder / "summary.json", summary)
    page, content = page_of(folder), content_of(folder)
    assert "2 of 3 planned runs" in page and not content["forests"] and content["story"] is None
    assert "p = " not in page.partition("<script")[0]


def test_two_studies_stand_side_by_side(folder, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    study = make_study(runs=3, name=EVIL) | {"recipe": {"training": {"steps": 99}}}
    write_json(other / "study.json", study)
    assert maskwise("report", folder, other, "--json", "--html", tmp_path / "both.html") == 0
    compared = json.loads(capsys.readouterr().out)
    missing = [study["missing"] for study in compared["studies"]]
    assert missing == [[], ["records.jsonl", "summary.json"]]
    assert {"setting": "training.steps", "values": [None, 99]} in compared["differences"]
    assert all(row["studies"][0] and row["studies"][1] is None for row in compared["outcomes"])
    page = (tmp_path / "both.html").read_text("utf-8")
    assert "<script" not in page and "records.jsonl" in page
    twice = compare_studies(folder, folder)
    assert not twice["differences"] and {row["change"] for row in twice["outcomes"]} == {0.0}
    assert maskwise("report", folder, tmp_path / "nowhere") == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_a_summary_of_earlier_rules_keeps_its_words(folder):
    """Its reasons are read as flags, and the page says by which rules it was judged."""
    reasons = [
        {"code": "few-runs", "effect": "tests", "sentence": "only 3 runs"},
        {"code": "no-dev-selection", "effect": "caps", "sentence": "no settings were searched"},
    ]
    row = contrast_row("tasks", "SDs", 1.0, primary=True, verdict="suggests", reasons=reasons)
    row |= {"natural": {"mean": 0.02, "low": 0.01, "high": 0.03}, "brief": "b", "n": 3}
    row |= {"arm": "token-30", "compute": {"by": "steps", "matched": True, "ratios": {}}}
    del row["flags"]
    efficiency = {"points": [], "time_to_quality": [{}]}
    old = {"headline": "Perhaps.", "contrasts": [row], "efficiency": efficiency}
    write_json(folder / "summary.json", old | {"verdict": "suggests", "advice": [], "arms": {}})
    (line,) = content_of(folder)["forests"][0]["rows"]
    assert (line["row"]["verdict"], line["figure"]) == ("suggests", "+2.0")
    assert [flag["effect"] for flag in line["row"]["flags"]] == ["notes"]
    page = page_of(folder)
    assert "follow earlier rules" in page and "suggests" in page
