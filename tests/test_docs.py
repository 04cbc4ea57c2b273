"""What README and the pages of docs/ show works: blocks of Python run, recipes are read, commands
and files exist.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import typer
import yaml

import maskwise as mw
from maskwise.annotate.registry import ANNOTATORS
from maskwise.base.folders import read_lines
from maskwise.changes import CHANGES
from maskwise.cli import app, main
from maskwise.cli.views import describe_table, names_in
from maskwise.masking import SCHEDULES
from maskwise.recipe import read_recipe, shipped, validate
from maskwise.recipe.described import recipe_keys
from maskwise.tasks import KINDS, METRICS
from maskwise.verdict.flags import FLAGS
from maskwise.verdict.statistics import ALPHA, can_decide, powers, sign_flip_interval
from training_tools import model, tokenizer

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "RESULTS.md"

# Long runs of the examples, as short ones. Every replacement must be used, or an example has
# changed unseen.
SHORTER = {
    "max_steps=1000": "max_steps=2, report_to='none', disable_tqdm=True",
    "max_steps=100, per": "max_steps=2, report_to='none', disable_tqdm=True, per",
    '"bert-base-uncased"': "checkpoint",
    '"runs/mine/checkpoint"': "checkpoint",
    "epochs=1,": "epochs=0.05, batch_size=4,",
    '"steps": 300, "batch_size": 16': '"steps": 4, "batch_size": 4',
    '{"seeds": 6, "arms"': '{"seeds": 1, "arms"',
}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    reason: str | None
    """Why it is not run, as the comment before it says: <!-- not run: … -->."""


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    pattern = re.compile(
        r"(?:<!-- not run: ([^>]*) -->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE
    )
    return [
        Block(page, language, text, reason) for reason, language, text in _groups(pattern, page)
    ]


def _groups(pattern: re.Pattern[str], page: Path) -> list[Any]:
    return [match.groups() for match in pattern.finditer(page.read_text(encoding="utf-8"))]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
LANGUAGES = {"python", "yaml", "bash", "text", "toml"}


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_block_names_its_language() -> None:
    assert len(BLOCKS) > 20
    assert [name(block.page) for block in BLOCKS if block.language not in LANGUAGES] == []


def test_a_block_is_left_out_only_for_a_reason_that_is_given() -> None:
    assert [(name(block.page), block.reason) for block in BLOCKS if block.reason] == [
        (
            "docs/drop-ins.md",
            "it needs lightning; tests/test_packed_collator.py runs it with a stand-in",
        ),
        ("docs/scaling.md", "it needs a Slurm cluster"),
    ]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [" ".join(f"w{(i * (j + 1) // 3 + j * j) % 40}" for j in range(12)) for i in range(101)]


def given(texts: list[str]) -> dict[str, Any]:
    """What the pages say an example needs, and files of the names that they use, in the folder of
    today.
    """
    Path("corpus.jsonl").write_text('{"id": "a", "text": "Ada wrote. It ran."}\n')
    labels = ["review,stars"] + [f"w{i % 40} w{i % 2},{i % 2}" for i in range(60)]
    for name in ("my_labels.csv", "my_reviews.csv"):
        Path(name).write_text("\n".join(labels) + "\n")
    Path("my_texts.txt").write_text("\n".join(texts) + "\n")
    model("bert").save_pretrained("checkpoint")
    tokenizer().save_pretrained("checkpoint")
    return {
        "mw": mw,
        "tokenizer": tokenizer(),
        "texts": texts,
        "checkpoint": "checkpoint",
        "rows": mw.encode(tokenizer(), texts),
    }


@pytest.mark.parametrize("page", sorted({block.page for block in of("python")}), ids=name)
def test_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    """The blocks of a page run one after the other, in a few steps, with a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    # Classes of a page can be pickled, as those of a module can.
    module = ModuleType("maskwise_page")
    monkeypatch.setitem(sys.modules, "maskwise_page", module)
    names = vars(module)
    names.update(given(texts))
    for block in blocks_of(page):
        if block.language == "python" and block.reason is None:
            names["model"] = model("bert")
            text = block.text
            for long, short in SHORTER.items():
                text = text.replace(long, short)
            with warnings.catch_warnings():
                warnings.simplefilter("error" if page.name == "README.md" else "ignore")
                exec(compile(text, name(page), "exec"), names)
    if page.name == "plug-ins.md":
        check_plug_ins(names)
    if "loss" in names:
        assert float(names["loss"].detach()) > 0
    if page.name == "drop-ins.md":
        assert (
            isinstance(names["trainer"], mw.MaskingTrainer)
            and names["trainer"].state.global_step == 2
        )


def check_plug_ins(names: dict[str, Any]) -> None:
    """Check what the examples of docs/plug-ins.md compute."""
    try:
        assert names["task"].kind.name == "opening-classification"
        assert names["task"].metric == "worst-class"
        assert names["worst_class"]([0, 0, 1, 1], [0, 1, 1, 1]) == 0.5
    finally:
        del KINDS["opening-classification"], METRICS["worst-class"]
        del SCHEDULES["staircase"], ANNOTATORS["terms"], CHANGES["every-second-layer"]
        ANNOTATORS._registered.discard("terms")
    assert (names["found"].start.tolist(), names["found"].end.tolist()) == ([8], [12])
    assert names["ratio"] == pytest.approx(0.20) and names["row"].value > 0
    assert names["drawn"][0] == "mlm" and names["drawn"][-1] == "cse"
    # The word pieces of gram, helium and iron have labels, and at 20 % those are mostly masked.
    [labelled] = names["labelled"]
    tokens = names["english"].convert_ids_to_tokens(labelled["input_ids"])
    named = {
        label: "".join(t for t, at in zip(tokens, labelled["term"], strict=True) if at == label)
        for label in (0, 1)
    }
    assert named == {0: "gr##am", 1: "hel##iumir##on"}
    masked = [names["masker"](names["labelled"], epoch=epoch).selected[0] for epoch in range(200)]
    shares = torch.stack(masked).double().mean(0)
    term = torch.tensor(labelled["term"])
    low, middle, high = (shares[term == label].mean() for label in (-1, 0, 1))
    assert low < middle < high and names["term_batch"].targets > 0
    # Swapped tokens come from the same text, and the labels are the tokens that stood there.
    batch = names["batch"]
    assert batch.targets > 0
    for shown, labels, row in zip(batch.input_ids, batch.labels, names["rows"], strict=True):
        text = torch.tensor(row["input_ids"])
        shown, labels = shown[: len(text)], labels[: len(text)]
        assert {*shown.tolist()} <= {*text.tolist()}
        assert torch.equal(torch.where(labels == -100, shown, labels), text)
    target = torch.tensor([[False, True, True, False, True, False]])
    before, after, place = (each[target].tolist() for each in names["borders"](target))
    assert (before, after, place) == ([0, 0, 3], [3, 3, 5], [0, 1, 0])


def test_every_shortening_is_used() -> None:
    everything = "".join(block.text for block in of("python"))
    assert [long for long in SHORTER if long not in everything] == []


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: name(block.page))
def test_recipes_are_read(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a recipe, or a part of one that can stand over the quick start."""
    monkeypatch.chdir(tmp_path)
    written = yaml.safe_load(block.text)
    if "corpus" in written:
        assert validate(written, origin=name(block.page)).name
    else:
        Path("part.yaml").write_text(yaml.safe_dump({"extends": "quick-start", **written}))
        assert set(read_recipe(Path("part.yaml")).model_dump()) >= set(written) - {"extends"}


PTW_TASKS = ("trivia", "ud-relations", "wikigold", "wnut17")


@pytest.mark.parametrize(
    ("record", "arm", "baseline", "tasks", "unit", "sentence"),
    [
        (
            "decay-new-head",
            "decay-45-15",
            "constant-30",
            ("ud-pos", "ud-relations"),
            100,
            "+.4 points on two tagging tasks (−.3 to 1.1; 24 pairs), *open*",
        ),
        (
            "published-decay-medium",
            "cosine-decay",
            "constant-15",
            ("ud-pos", "ud-relations"),
            100,
            "+5.8 points on two tagging tasks (5.0 to 6.6; 24 pairs), *decided*",
        ),
        (
            "published-decay-medium",
            "cosine-decay",
            "constant-30",
            ("ud-pos", "ud-relations"),
            100,
            "−1.7 points (−2.1 to −1.4; 24 pairs), *decided*: worse",
        ),
        (
            "pos-weighted-new-head",
            "ptw-faithful-bert",
            "words-bert",
            PTW_TASKS,
            100,
            "−.4 points (−.9 to .1; 24 pairs), *open*",
        ),
        (
            "samplers-replication",
            "mometas",
            "uniform",
            ("trivia", "ud-pos", "ud-relations", "wikigold"),
            100,
            "+.1 points (−.2 to .3; 12 pairs), *no difference that matters*",
        ),
        (
            "trex-nouns",
            "supervised",
            "salient",
            ("nouns",),
            100,
            "+18.7 points, 15.2 to 22.2; 10 pairs, *decided*",
        ),
        (
            "corpus-rates",
            "right-4",
            "other-slow",
            ("apart",),
            -1,
            ".432 nats a token of the answer (.418 to .446; 8 pairs), *decided*",
        ),
        (
            "corpus-and-policy",
            "right-salient",
            "right-random",
            ("apart",),
            -1,
            "lowers the loss by .055 nats (.043 to .071), *decided*",
        ),
        (
            "false-answers",
            "right-random",
            "shuffled-random",
            ("apart",),
            -1,
            "by .117 nats (.093 to .146; 8 pairs), *decided*",
        ),
        (
            "false-answers",
            "shuffled-random",
            "foreign-random",
            ("apart",),
            -1,
            "by .348 (.334 to .360), *decided*",
        ),
        (
            "decay-claim-2026-11-22",
            "cosine-decay",
            "constant-15",
            ("ud-pos", "ud-relations"),
            100,
            "+.2 points (−.5 to .9; 10 pairs), *open*",
        ),
        (
            "pos-weighted-replication",
            "ptw",
            "words",
            PTW_TASKS,
            100,
            ".0 points (−.6 to .5), *no difference that matters*",
        ),
        (
            "trex-content",
            "own",
            "salient",
            ("roles",),
            100,
            "15.7 points (11.6 to 20.1; 10 pairs), *decided*",
        ),
    ],
)
def test_the_evidence_of_the_summary_is_that_of_the_records(
    record: str, arm: str, baseline: str, tasks: tuple[str, ...], unit: int, sentence: str
) -> None:
    """Verdicts are those of the ledger; means and intervals are computed from the scores."""
    _, _, summary = RESULTS.read_text(encoding="utf-8").partition("## In short")
    assert sentence in " ".join(summary.split())
    check_evidence(record, arm, baseline, tasks, unit, sentence)


def test_the_readme_is_read_in_minutes() -> None:
    assert len(README.split()) <= 800


README_ROWS = [
    ("published-decay-medium", "cosine-decay", "constant-30", ("ud-pos", "ud-relations")),
    ("published-decay-medium", "cosine-decay", "constant-15", ("ud-pos", "ud-relations")),
    ("decay-new-head", "decay-45-15", "constant-30", ("ud-pos", "ud-relations")),
    (
        "pos-weighted-new-head",
        "ptw-faithful-bert",
        "words-bert",
        PTW_TASKS,
    ),
    (
        "samplers-replication",
        "mometas",
        "uniform",
        ("trivia", "ud-pos", "ud-relations", "wikigold"),
    ),
    ("trex-nouns", "supervised", "salient", ("nouns",)),
]
"""The contrast of each row of README's table of results, in its order."""


def test_each_row_of_the_readme_is_that_of_a_record() -> None:
    _, _, section = README.partition("## What we found")
    rows = [line for line in section.splitlines() if re.search(r"\(.* to .*; \d+\)", line)]
    for row, (record, arm, baseline, tasks) in zip(rows, README_ROWS, strict=True):
        _, _, difference, verdict, _ = row.split("|")
        check_evidence(record, arm, baseline, tasks, 100, difference + verdict)


def check_evidence(
    record: str, arm: str, baseline: str, tasks: tuple[str, ...], unit: int, sentence: str
) -> None:
    """Compare a written difference with the ledger and the scores of its record.

    Args:
        sentence: the difference, the ends of its interval, perhaps the number of pairs, and the
            verdict in italics.
    """
    results = ROOT / "benchmarks" / "results"
    ledger = (results / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    key = (record, arm, baseline)
    lines = list(map(json.loads, ledger))
    (line,) = [one for one in lines if (one["record"], one["arm"], one["baseline"]) == key]
    assert f"*{line['verdict']}*" in sentence
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for score in read_lines(results / record / "records.jsonl"):
        full = score["kind"] == "task"
        if full and score["split"] == "test":
            of = scores.setdefault((score["arm"], score["measure"]), {})
            of[score["seed"]] = score["value"]
    pairs = [unit * _mean_difference(scores, arm, baseline, tasks, seed) for seed in of]
    mean = sum(pairs) / len(pairs)
    for word, right in (("worse", mean < 0), ("better", mean > 0)):
        assert right or f"*: {word}" not in sentence
    for written in re.findall(r"(?:; )(\d+)(?: pairs)?\)|(\d+) pairs", sentence):
        assert int("".join(written)) == len(pairs)
    for written, value in zip(
        re.findall(r"−?\d*\.\d+", sentence), (mean, *sign_flip_interval(pairs)), strict=True
    ):
        assert abs(float(written.replace("−", "-")) - value) <= 0.5001 * 10 ** -len(
            written.partition(".")[2]
        )


def test_the_table_of_power_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text("utf-8")
    _, _, section = page.partition("## How many runs a study needs")
    rows = re.findall(r"^\| (\d+) \| (\d+) % \| (\d+) % \| (\d) \|$", section, flags=re.M)
    assert len(rows) == 5
    for runs, one, more, contrasts in (map(int, row) for row in rows):
        power = powers(runs, alpha=ALPHA)
        assert (one, more) == (round(100 * power["1"]), round(100 * power["1.5"]))
        # A study has at most six primary contrasts.
        assert contrasts == max(k for k in range(1, 7) if can_decide(runs, k))


def test_each_flag_of_a_verdict_is_explained() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text("utf-8")
    listed = " ".join(re.findall(r"^- (`[a-z-]+`.*?): ", page, flags=re.M))
    assert {flag.code for flag in FLAGS} <= {*re.findall(r"[a-z-]+", listed)}


def _mean_difference(
    scores: dict[tuple[str, str], dict[int, float]],
    arm: str,
    baseline: str,
    tasks: tuple[str, ...],
    seed: int,
) -> float:
    differences = [scores[arm, task][seed] - scores[baseline, task][seed] for task in tasks]
    return sum(differences) / len(differences)


def commands(page: Path) -> list[list[str]]:
    """The words of every ``maskwise …`` in the page's blocks of bash, without the program's
    name.
    """
    lines = [
        line
        for block in blocks_of(page)
        if block.language == "bash"
        for line in block.text.splitlines()
    ]
    words = [shlex.split(line, comments=True) for line in lines if re.search(r"\bmaskwise\b", line)]
    places = [(line, line.index("maskwise")) for line in words if "maskwise" in line]
    return [line[place + 1 :] for line, place in places]


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(
    "command", [c for _, c in COMMANDS if c[0] in ("inspect", "list")], ids=" ".join
)
def test_commands_that_only_show(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0 and capsys.readouterr().out.strip()


def test_the_pages_show_every_command() -> None:
    made = typer.main.get_command(app)
    assert isinstance(made, typer.core.TyperGroup)
    visible = {name for name, command in made.commands.items() if not command.hidden}
    assert {command[0] for _, command in COMMANDS} >= visible


@pytest.mark.parametrize("name", sorted({command[0] for _, command in COMMANDS}))
def test_options_and_recipes_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the commands do is run elsewhere; here, what is written on a page is not out of date."""
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for _, command in COMMANDS:
        if command[0] == name:
            assert [word for word in command if word.startswith("--") and word not in text] == []
            if name in ("study", "pretrain"):
                known = {
                    *shipped(),
                    "my.yaml",
                    "my_texts.yaml",
                    "start.yaml",
                    "family.yaml",
                    "RECIPE",
                }
                assert command[1] in known or (ROOT / command[1]).is_file()


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """``mkdocs build --strict`` sees to the links of docs/."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert links or page.name != "README.md"
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|json|jsonl|yaml))`")
MADE = {
    "stages/",
    "worlds/",
    "fitted/",
    "shards/",
    "lama/",
    "ner/",
    "glue/",
    "out/",
    "OUT/",
    "runs/",
}
"""Paths that begin so are a user's."""


def test_recipes_that_pages_name_are_known_to_commands() -> None:
    """Others are named by their path, as of a file in a clone."""
    others = {path.stem for path in (ROOT / "benchmarks" / "recipes").glob("*.yaml")} - {*shipped()}
    for page in PAGES:
        named = re.findall(r"`([\w-]+)`", page.read_text(encoding="utf-8"))
        assert others.intersection(named) <= CONTROLS, page


CONTROLS = {"schedule-control", "sampler-control", "ptw-control", "policy-control"}
"""Recipes of a table of docs/evidence.md, whose caption has their folder."""


def missing(text: str) -> list[str]:
    """Paths in backticks that are neither in the repository nor below src/maskwise."""
    paths = [
        path for path in PATH.findall(text) if not any(path.startswith(folder) for folder in MADE)
    ]
    homes = (ROOT, ROOT / "src" / "maskwise")
    return [path for path in paths if not any((home / path).exists() for home in homes)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_pages_name_exist(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


def test_files_that_docstrings_name_exist() -> None:
    sources = sorted((ROOT / "src" / "maskwise").rglob("*.py"))
    wrong = {
        str(path): missing(path.read_text(encoding="utf-8").replace("``", "`")) for path in sources
    }
    assert {path: names for path, names in wrong.items() if names} == {}


MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
DIARY = re.compile(
    r"Xeon|EPYC|Cascade Lake|\bAMD\b|\bIntel\b"
    rf"|\b\d{{1,2}} (?:{MONTHS})\b|\b(?:{MONTHS}) 20\d\d\b"
    # A year of ours; "Hong et al. 2026" is a source, and samples of files carry times.
    r"|(?<!et al\. )(?<!\()\b2026\b(?!-\d\d-\d\dT)(?! \(arXiv)"
    r"|\b(?:was|were) run\b|\b[Ii]ssue \d|#\d|\b[Ss]eeds? [1-9]\d\d\b"
)
"""Dates, processors and runs belong to benchmarks/RESULTS.md."""
LINKS = re.compile(r"\]\([^)]*\)")
"""Names of recorded pages have their date."""


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name != "decisions"], ids=name
)
def test_pages_for_users_are_no_diary(page: Path) -> None:
    text = LINKS.sub("]", page.read_text(encoding="utf-8"))
    assert DIARY.findall(text) == []


def test_the_tour_names_every_room() -> None:
    """The tree in CONTRIBUTING.md, against src/maskwise: every folder is named, and nothing that is
    not there.
    """
    (tour,) = [
        block.text
        for block in blocks_of(ROOT / "CONTRIBUTING.md")
        if block.text.startswith("src/maskwise/")
    ]
    rooms = {path.name + "/" * path.is_dir() for path in (ROOT / "src" / "maskwise").glob("[a-z]*")}
    named = set(re.findall(r"[a-z_]+(?:/|\.py)(?=\s)", tour.partition("\n")[2]))
    assert [room for room in rooms - named if room.endswith("/")] == []
    assert sorted(named - rooms) == []


def test_every_key_of_a_recipe_is_described() -> None:
    keys = recipe_keys()
    assert [name for name, key in keys.items() if not key.what] == []
    assert keys["training.decay"].allowed == "linear, cosine, 1-sqrt, wsd, constant"
    assert (keys["corpus.held_out"].default, keys["corpus.held_out"].allowed) == (
        "0.02",
        "> 0, < 0.5",
    )
    rows = {row["name"]: row for row in describe_table("keys")}
    assert rows.keys() == keys.keys()
    assert rows["corpus.held_out"]["example"] == "corpus.held_out=0.02"


def test_the_reference_is_that_of_the_source(tmp_path: Path) -> None:
    """Readers of the repository found pages that only told them to build the site."""
    # In a process of its own: other tests register names.
    script = ROOT / "scripts" / "reference.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    for made in tmp_path.iterdir():
        page = ROOT / "docs" / made.name
        assert page.read_text() == made.read_text(), f"{page} is old: run python {script}"


def test_the_reference_has_every_option_and_name() -> None:
    """The options are those that the pages show, whose names another test compares with --help."""
    page = (ROOT / "docs" / "commands.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    for _, (name, *words) in COMMANDS:
        options = [word for word in words if word.startswith("--")]
        assert [word for word in options if f"{word}`" not in sections[name]] == []
    names = (ROOT / "docs" / "names.md").read_text()
    assert ">>>" not in names
    for table in re.findall(r"^## (\w+)$", names, re.MULTILINE):
        # Other tests register names.
        members = names_in(table.lower()).items()
        own = [name for name, kind in members if kind.__module__.startswith("maskwise.")]
        assert own and [name for name in own if f"\n### {name}\n" not in names] == []


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").rglob("*.py")), ids=name)
def test_scripts_import_what_exists(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(script)])
    assert runpy.run_path(str(script), run_name="script")
