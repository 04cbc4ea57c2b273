"""Golden values of studies: names of stages, the numbers of recorded studies, and the tables of
three pages.

``golden_studies.json`` holds what the recorded studies of ``benchmarks/results`` come to under the
rules of the day. A change of the rules of verdicts renews it with ``python tests/test_golden.py
verdicts``, and its commit says which rows moved. For a single task or loss, the differences, their
means and plain p values follow from the records alone and should stay.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from invented import write_worlds
from maskwise.base.folders import read_lines
from maskwise.recipe import read_recipe
from maskwise.report import write_report
from maskwise.results import files
from maskwise.studies import plan, stages
from maskwise.studies.result import Adapted, StudyResult
from maskwise.tasks import load_task
from maskwise.verdict import summarise
from report_fixture import make_records, make_samples, make_study, write_study
from test_golden import read_golden, rounded, same
from tiny import find_recipe, write_lines
from tiny import maskwise as command

VERDICTS = Path(__file__).with_name("golden_studies.json")
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

# Names of stages
# ----------------------------------------------------------------------------

STAND_INS = {
    "continual-minilm": ["model.pretrained=bundled:encoder"],
    "learn-trivia": ["learning.task=bundled:world-0-questions(kind='cloze-qa')"],
}
"""For what a recipe wants installed or downloaded."""
LOADED = cache(load_task)


def stage_names(folder: Path, recipe: str) -> dict[str, str]:
    """By kind of stage, how many a recipe has with one seed, and a hash of their names.

    The names are taken without the versions of libraries and of maskwise. Files that a recipe names
    and that people bring are made up, in a working folder of their own.
    """
    write_worlds(folder, find_recipe(recipe), 0, 10_000)
    (folder / "trivia").mkdir(exist_ok=True)
    questions = [{"question": f"who is {n}?", "answer": f"name {n}"} for n in range(40)]
    write_lines(folder / "trivia" / "questions.jsonl", questions)
    write_lines(
        folder / "trivia" / "contexts.jsonl", [{"text": f"This is name {n}."} for n in range(40)]
    )
    given = ["study.seeds=1", *STAND_INS.get(recipe, [])]
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        here.setattr(stages, "numerics", lambda: ())
        for module in (stages, plan):  # recipes share tasks, which are long to read
            here.setattr(module, "load_task", LOADED, raising=False)
        planned = plan.make_plan(read_recipe(find_recipe(recipe), given))
        names: dict[str, list[str]] = defaultdict(list)
        for stage in planned.stages():
            names[stage.kind].append(stage.name)
    return {
        kind: f"{len(found)} {hashlib.sha256(repr(sorted(found)).encode()).hexdigest()[:12]}"
        for kind, found in sorted(names.items())
    }


# The names depend on the version of spaCy.
@pytest.mark.pinned
@pytest.mark.parametrize("recipe", sorted(read_golden()["stages"]))
def test_names_of_stages(recipe: str, tmp_path: Path) -> None:
    assert stage_names(tmp_path, recipe) == read_golden()["stages"][recipe]


# Recorded studies
# ----------------------------------------------------------------------------

STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/study.json"))
COLUMNS = (
    "arm",
    "baseline",
    "outcome",
    "n",
    "verdict",
    "flags",
    "mean",
    "low",
    "high",
    "p",
    "p_adjusted",
)


@cache
def result_of(study: str) -> StudyResult:
    """A recorded study, judged anew."""
    return StudyResult.read(RESULTS / study)


def rows(study: str) -> dict[str, Any]:
    """The rows of a recorded study, judged anew.

    Returns:
        "primary": the primary rows; "others": the number of all other rows, and a hash of what they
        compare, their number of pairs, verdicts and flags.
    """
    primary = []
    others = []
    for row in result_of(study).summary["contrasts"]:
        flags = [f"{flag['code']} ({flag['effect']})" for flag in row["flags"]]
        found = {**row, "flags": flags}
        if row["primary"]:
            primary.append({name: short(found[name]) for name in COLUMNS})
        else:
            others.append([found[name] for name in COLUMNS[:6]])
    known = hashlib.sha256(json.dumps(others).encode()).hexdigest()[:12]
    return {"primary": primary, "others": f"{len(others)} {known}"}


def short(value: Any) -> Any:
    return rounded(value) if isinstance(value, float) else value


@pytest.mark.parametrize("study", STUDIES)
def test_a_recorded_study_is_a_result_in_python(study: str) -> None:
    result = result_of(study)
    assert result.study["name"] and str(result)
    assert isinstance(result, Adapted) == (RESULTS / study / "adapt.yaml").is_file()


@pytest.mark.parametrize("study", STUDIES)
def test_rows_of_recorded_studies(study: str) -> None:
    pinned = json.loads(VERDICTS.read_text())[study]
    found = rows(study)
    same(found["primary"], pinned["primary"])
    assert found["others"] == pinned["others"]


def write_verdicts(folder: Path) -> None:
    """Write ``golden_studies.json``, a line for each primary row."""
    parts = []
    for study in STUDIES:
        found = rows(study)
        lines = ",\n   ".join(json.dumps(row) for row in found["primary"])
        others = json.dumps(found["others"])
        parts.append(f'{json.dumps(study)}: {{"others": {others}, "primary": [\n   {lines}\n ]}}')
    VERDICTS.write_text("{\n " + ",\n ".join(parts) + "\n}\n")


# Pages
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES)
def test_recorded_studies_have_the_keys_of_today(study: str) -> None:
    """Each file has all keys that maskwise writes, and no others."""
    types = get_type_hints(files.Study, include_extras=True)
    recorded = json.loads((RESULTS / study / "study.json").read_text())
    always = types.keys() - {"looked", "earlier_hardware", "shared_stages"}
    # Files of the first format may lack its version.
    always -= {"compared", "secondary", "format"}
    if "compared" in recorded:  # a table of scores has no recipe of its runs
        always -= {"gate", "inputs", "looks", "match", "outcome", "pending", "search"}
    # Former keys: shares of an oracle's gain and shorter runs, which scripts of benchmarks read,
    # and the share of runs in which training had to help on a task for the task to count.
    assert always <= recorded.keys() <= types.keys() | {"share", "companions", "helps"}
    arms = get_type_hints(files.ArmFacts).keys()
    assert all(facts.keys() <= arms for facts in recorded["arms"].values())
    for line in read_lines(RESULTS / study / "records.jsonl"):
        if line["kind"] == "selection":
            assert {"seed", "search_seed", "tied"} <= line.keys()


@pytest.mark.parametrize("name", ["adapt-novels", "factworld-2026-11-21", "transfer-2026-11-22"])
def test_reports_of_recorded_studies_write_only_the_page(name: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    folder = shutil.copytree(RESULTS / name, tmp_path / name)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert command("report", folder, "--html", page) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    recorded = json.loads((RESULTS / name / "study.json").read_text())
    text = page.read_text(encoding="utf-8")
    assert all(html.escape(arm) in text for arm in recorded["arms"])


def tables_of(page: str) -> list[list[str]]:
    """The text of the tables of a page, a line for each row; words around them may change."""
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    return [
        [" | ".join(cells_of(row)) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
        for table in re.findall(r"<table.*?</table>", shown, re.DOTALL)
    ]


def cells_of(row: str) -> list[str]:
    cells = re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", cell)).split()) for cell in cells]


def synthetic_study(folder: Path) -> Path:
    effects = {"token-15": 0.0, "token-30": 0.03, "whole-word-15": 0.0}
    study = make_study(runs=6, arms=effects)
    records = make_records(study, effects)
    samples = make_samples(study)
    return write_study(
        folder / "study", study, records, summary=summarise(records, study), samples=samples
    )


PAGES: dict[str, Callable[[Path], Path]] = {
    "a synthetic study": synthetic_study,
    "a study of a world": lambda folder: RESULTS / "factworld-2026-11-21",
    "a study of general tasks": lambda folder: RESULTS / "decay-claim-2026-11-22",
}


def tables(folder: Path, name: str) -> list[list[str]]:
    page = write_report(PAGES[name](folder), folder / "page.html")
    return tables_of(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_tables_of_pages(name: str, tmp_path: Path) -> None:
    assert tables(tmp_path, name) == read_golden()["pages"][name]


MAKERS: dict[str, Callable[[Path], Any]] = {
    "stages": lambda folder: {
        recipe: stage_names(folder, recipe) for recipe in read_golden()["stages"]
    },
    "pages": lambda folder: {name: tables(folder, name) for name in PAGES},
    "verdicts": write_verdicts,
}
