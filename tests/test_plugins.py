"""Packages of users add policies, annotators, objectives and so on, by entry points."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import operator
import os
import random
import re
import subprocess
import sys
import tomllib
import warnings
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskwise as mw
from annotate_tools import capitals
from maskwise import learning
from maskwise.annotate import register, registry
from maskwise.annotate.registry import ANNOTATORS, SPANS, ByText, annotator
from maskwise.annotate.run import Live, annotate_corpus, forget
from maskwise.base import plugins, specs
from maskwise.base.errors import MaskwiseError, PlugInError
from maskwise.base.plugins import Table
from maskwise.base.specs import find, parse_call
from maskwise.changes import CHANGES
from maskwise.cli.views import TABLES as LISTS
from maskwise.evaluation import EvaluationSettings, evaluate_checkpoint
from maskwise.evaluation.evaluate import MEASURES, measure_of
from maskwise.evaluation.measure import Measure
from maskwise.evaluation.returned import numbers_of
from maskwise.evaluation.sets import Pairs
from maskwise.jobs.pools import Failure, open_pool
from maskwise.masking import CORRUPTIONS, SCHEDULES, schedules
from maskwise.masking.corruptions import Bert, Masked, corruption
from maskwise.masking.policies import POLICIES, Policy, SpanLayer, Token, WholeWord, policy
from maskwise.masking.units import Units
from maskwise.masks.inspection import inspect_text
from maskwise.objectives import (
    OBJECTIVES,
    MaskedDiffusion,
    MaskedLanguageModelling,
    ObjectiveSettings,
    base,
    objective,
    objective_class,
)
from maskwise.objectives.base import Loss
from maskwise.recipe import Recipe, read_recipe
from maskwise.results.measurements import Measurement
from maskwise.samplers import SAMPLERS, Single, sampler
from maskwise.studies.plan import make_plan
from maskwise.studies.rehearsal import STEPS
from maskwise.tasks import KINDS, METRICS, load_task
from maskwise.tasks.kinds.classes import SEQUENCE_CLASSIFICATION
from maskwise.text import train_tokenizer
from maskwise.text.layers import CharSpans
from maskwise.text.segmenters import SEGMENTERS
from maskwise.training import engine
from tiny import maskwise, write_inputs
from training_tools import model, tokenizer

TABLES = (
    *(POLICIES, CORRUPTIONS, SCHEDULES, OBJECTIVES, SAMPLERS),
    *(ANNOTATORS, MEASURES, KINDS, METRICS, SEGMENTERS, CHANGES),
)
CODE = '''
import re
from dataclasses import dataclass, replace

from maskwise.annotate.registry import SPANS, ByText
from maskwise.evaluation.measure import Measure
from maskwise.evaluation.returned import numbers_of
from maskwise.results.measurements import Measurement
from maskwise.masking.corruptions import Bert
from maskwise.masking.policies import WholeWord
from maskwise.masking.schedules import linear
from maskwise.objectives import MaskedLanguageModelling
from maskwise.samplers import Single
from maskwise.tasks.kinds.classes import SEQUENCE_CLASSIFICATION
from maskwise.text.layers import CharSpans


@dataclass(frozen=True)
class Verse(WholeWord):
    """Masks words of verses."""

    feet: int = 5


def verses() -> ByText:
    """Annotate verses, which end at a slash."""

    def find(text):
        places = [match.span() for match in re.finditer("[^/]+", text)]
        return {"verse": CharSpans.of(places, SPANS)}

    return ByText("verses", {"verse": SPANS}, find, "1")


class Rhymes(MaskedLanguageModelling):
    """Predicts rhymes."""


class Odd(Bert):
    """Replaces tokens."""


class Only(Single):
    """Trains one objective."""


class Counted(Measure):
    """Counts what it is told."""

    def __init__(self, n: int = 1):
        self.name, self.n = "counted", n

    def measure(self, model, tokenizer, *, seed=0, folder=None):
        scale = {"metric": "number", "unit": "number", "items": self.n}
        return [Measurement(measure=self.name, value=float(self.n), **scale)]


RHYME = replace(SEQUENCE_CLASSIFICATION, name="rhyme")
NOTHING = 7
'''
POINTS = """
[maskwise.policies]
by-verse = verse_masks:Verse
by_line = verse_masks:Verse
token = verse_masks:Verse
lost = verse_masks:Lost
number = verse_masks:NOTHING
sunk = no_such_module:Verse
[maskwise.annotators]
verses = verse_masks:verses
learned = maskwise.learning:learned
words = verse_masks:verses
[maskwise.objectives]
rhymes = verse_masks:Rhymes
[maskwise.corruptions]
odd = verse_masks:Odd
[maskwise.schedules]
straight = verse_masks:linear
[maskwise.samplers]
only = verse_masks:Only
[maskwise.measures]
counted = verse_masks:Counted
verse = verse_masks:Verse
[maskwise.kinds]
rhyme = verse_masks:RHYME
rhymes = verse_masks:Verse
"""


def install(folder: Path, points: str = POINTS, *, name: str = "verse-masks") -> None:
    """Write a package and its metadata, as pip does."""
    (folder / "verse_masks.py").write_text(CODE, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("verse_masks", None)
    for table in TABLES:
        table._loaded.clear()
        table._warned.clear()


def test_names_of_plugins_are_known(installed, tmp_path):
    assert policy("by-verse(feet=4)").feet == 4 == policy("by-line(feet=4)").feet
    assert objective_class("rhymes").__name__ == "Rhymes"
    assert ObjectiveSettings(objective="rhymes").kind is objective_class("rhymes")
    assert type(corruption("odd(mask=1.0, random=0.0)")).__name__ == "Odd"
    assert isinstance(sampler("only", ["mlm"]), Single)
    cats = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    rows = mw.encode(cats, ["the cat/the mat"], layers=["verses"])
    assert rows[0]["verse"] == [-1, 0, 0, -1, 1, 1, -1]
    made = mw.Masker(cats, policy="by-verse", ratio="straight(0.5, 0.2)", corruption="odd")
    assert made(rows, step=0, total_steps=2).targets == 2
    path = tmp_path / "labels.csv"
    path.write_text("text,label\n" + "".join(f"word {n},{n % 2}\n" for n in range(80)))
    assert load_task(path).kind.name == "sequence-classification"
    assert load_task(path, kind="rhyme").kind.name == "rhyme"
    with pytest.raises(MaskwiseError, match=r"package verse-masks is not valid.*a TaskKind"):
        load_task(path, kind="rhymes")


def test_a_measure_of_a_package_is_recorded(installed, tmp_path):
    model("bert").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    [record] = evaluate_checkpoint(str(tmp_path), ["counted(n=3)"], text=None)
    assert (record.measure, record.metric, record.value) == ("counted", "number", 3.0)
    with pytest.raises(MaskwiseError, match=r"unknown measure 'count'.*did you mean 'counted'"):
        evaluate_checkpoint(str(tmp_path), ["count"], text=None)
    with pytest.raises(MaskwiseError, match=r"measure verse is not valid.*Measure"):
        evaluate_checkpoint(str(tmp_path), ["verse"], text=None)


class Weights(Measure):
    """The number of weights, in millions."""

    name = "weights"

    def measure(self, model, tokenizer, *, seed=0, folder=None):
        scale = {"metric": "millions", "unit": "millions", "higher_is_better": False}
        return [Measurement(measure="weights", value=model.num_parameters() / 1e6, **scale)]


def test_a_registered_measure_is_in_the_table_of_a_study(tmp_path, monkeypatch):
    monkeypatch.setattr(MEASURES, "_members", dict(MEASURES._members))
    monkeypatch.setattr(MEASURES, "_registered", set())
    MEASURES.register("weights", Weights)
    settings = ["evaluation.measures=[weights]", "evaluation.rows=4", "study.seeds=1", "tasks=[]"]
    with ThreadPoolExecutor(1) as threads:
        result = mw.study(
            write_inputs(tmp_path), out=tmp_path / "out", overrides=settings, executor=threads
        )
    table = result.to_dataframe()
    rows = table[table.outcome == "evaluation:weights:millions"]
    assert sorted(zip(rows.arm, rows.seed)) == [("token-15", 0), ("words-30", 0)]
    assert rows.value.nunique() == 1 and 0 < rows.value.iloc[0] < 1
    (row,) = [row for row in result.summary["contrasts"] if row["outcome"] in set(rows.outcome)]
    assert (row["mean"], row["unit"], row["higher_is_better"]) == (0, "millions", False)


def test_a_measure_changes_the_name_of_an_evaluation_only_if_there_is_one():
    assert "measures" not in EvaluationSettings().model_dump()
    assert EvaluationSettings(measures="counted").model_dump()["measures"] == ("counted",)


def test_the_page_names_every_group():
    page = (Path(__file__).parents[1] / "docs/plug-ins.md").read_text(encoding="utf-8")
    groups = {table.group for table in TABLES}
    assert {*re.findall(r"^\| `(maskwise\.\w+)`", page, re.MULTILINE)} == groups


def test_a_package_is_imported_only_for_its_names(installed):
    assert policy("token") == Token() and "by-verse" in POLICIES and "by-verse" in [*POLICIES]
    with pytest.raises(MaskwiseError, match=r"unknown policy 'by-verze'.*did you mean 'by-verse'"):
        policy("by-verze")
    assert "by-verse" not in POLICIES.without_plugins()
    assert "verse_masks" not in sys.modules
    policy("by-verse")
    assert "verse_masks" in sys.modules


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lost", "cannot be loaded; got AttributeError"),
        ("sunk", "cannot be loaded; got ModuleNotFoundError"),
        ("number", "is not valid; got 7; allowed: a function or a class"),
    ],
)
def test_a_broken_plugin_is_one_line_that_names_its_package(installed, name, reason):
    with pytest.raises(MaskwiseError, match=f"policy '{name}' of the package verse-masks {reason}"):
        policy(name)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
@pytest.mark.parametrize("raised", ["SystemExit(0)", "GeneratorExit", "RuntimeError('no')"])
def test_a_package_that_ends_its_import_stops_no_other_member(tmp_path, monkeypatch, table, raised):
    (tmp_path / "endless_masks.py").write_text(f"raise {raised}\n", encoding="utf-8")
    install(tmp_path, f"[{table.group}]\nended = endless_masks:Any\n")
    monkeypatch.syspath_prepend(tmp_path)
    members, faults = table.usable()
    assert members.keys() >= table.without_plugins().keys() and "ended" not in members
    (fault,) = faults
    assert "'ended'" in fault and "verse-masks" in fault and raised.partition("(")[0] in fault
    with pytest.raises(MaskwiseError, match="verse-masks"):
        table["ended"]


def test_an_interrupted_import_of_a_package_is_no_fault_of_it(tmp_path, monkeypatch):
    (tmp_path / "endless_masks.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    install(tmp_path, "[maskwise.policies]\nended = endless_masks:Any\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        POLICIES.usable()


@pytest.mark.parametrize("what", LISTS)
def test_lists_name_a_broken_plugin_once(installed, capsys, what):
    """``metrics`` shows the kind of task that has each of them."""
    assert maskwise("list", what) == 0
    assert capsys.readouterr().err.count("'rhymes' of the package") == (
        what in ("kinds", "metrics")
    )


def test_a_plugin_with_the_name_of_a_built_in_member_is_named_once(installed):
    with pytest.warns(UserWarning, match="policy 'token' of the package verse-masks is ignored"):
        assert policy("token") == Token()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy("token")
        policy("whole-word")
        # maskwise registers this annotator, and its own entry point names the same function.
        assert ANNOTATORS["learned"]


def test_lists_show_plugins_and_what_is_wrong(installed, capsys):
    assert maskwise("list", "policies", "--json") == 0
    shown = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(shown.out)}
    assert rows["by-verse"]["what"] == "Masks words of verses."
    assert rows["token"]["what"] != rows["by-verse"]["what"]
    assert {"lost", "sunk", "number"}.isdisjoint(rows)
    for name in ("lost", "sunk", "number", "token"):
        lines = [line for line in shown.err.splitlines() if f"policy '{name}'" in line]
        assert len(lines) == 1 and "verse-masks" in lines[0], name
    # ``learned`` is an entry point of maskwise itself, which registers it, too.
    assert maskwise("list", "annotators", "--json") == 0
    shown = capsys.readouterr()
    assert {"verses", "learned"} < {row["name"] for row in json.loads(shown.out)}
    assert "'words'" in shown.err and "'learned'" not in shown.err


def test_a_name_in_two_packages_is_refused(installed, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    install(other, "[maskwise.policies]\nby-verse = verse_masks:Verse\n", name="more-verse")
    monkeypatch.syspath_prepend(other)
    with pytest.raises(MaskwiseError, match=r"more-verse and verse-masks.*uninstall one"):
        policy("by-verse")


@pytest.mark.slow
def test_a_recipe_and_workers_know_plugins(installed, tmp_path):
    """In a process of its own, so that nothing was imported by this one."""
    out = tmp_path / "layers"
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat/the mat\na dog/a log\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from maskwise.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(installed)]
    annotate = ["annotate", str(texts), "--with", "verses", "--out", str(out)]
    subprocess.run([*command, *annotate], check=True, capture_output=True)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["annotators"]["verses"]["layers"]["verse"]["spans"] == 3
    check = ["check", write_inputs(tmp_path), "masking.policy=by-verse(feet=3)"]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([*command, *check], check=True, capture_output=True, env=os.environ | cache)


# ---- names that a program registers


@pytest.fixture
def own_annotator():
    register("capitals", make_capitals)
    yield
    del ANNOTATORS["capitals"]
    ANNOTATORS._registered.discard("capitals")


def make_capitals():
    return annotator("function('annotate_tools:capitals')", functions=True)


def test_a_registered_annotator_is_known_by_name(own_annotator, tmp_path):
    text = "Ada met Charles."
    assert annotator("capitals").annotate([text])[0]["capitals"].start.tolist() == [0, 8]
    made = annotate_corpus([text], ["capitals"], tmp_path / "layers")
    assert made["annotators"]["capitals"]["layers"]["capitals"]["spans"] == len(capitals([text])[0])
    register("capitals", make_capitals)  # as a notebook does
    for name, factory in (("capitals", lambda: None), ("words", make_capitals)):
        with pytest.raises(MaskwiseError, match=f"an annotator|annotator '{name}' already"):
            register(name, factory)
    for bad in ("two words", "under_score", "", 3):
        with pytest.raises(MaskwiseError, match="no name"):
            register(bad, make_capitals)
    with pytest.raises(MaskwiseError, match="a function or a class"):
        register("another", 3)
    assert "another" not in ANNOTATORS


@dataclass(frozen=True)
class Names(SpanLayer):
    """Masks words with a capital, which its annotator finds."""

    layer: str = "capitals"

    def annotators(self):
        return ("capitals",)


def test_a_policy_brings_its_annotators_into_a_recipe(own_annotator, monkeypatch):
    monkeypatch.setattr(POLICIES, "_members", {**POLICIES._members, "names": Names})
    recipe = read_recipe("quick-start", ["masking.policy=names", "corpus.layers=[sentences]"])
    [link] = recipe.links()
    assert link.corpus.layers == ("sentences", "capitals")
    [shown] = inspect_text("Ada met Charles.", "names", {"ratio": 1.0})
    assert shown.policy == "names"


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's, whose policy and annotator this process has registered."""
    code = """
from maskwise.annotate.registry import SPANS, ByText
from maskwise.masking.policies import WholeWord, policy

class Mine(WholeWord):
    pass

def nothing():
    return ByText("nothing", {"nothing": SPANS}, None, "1")

def made(spec):
    return type(policy(spec)).__name__

def written(annotator):
    return list(annotator.layers)
"""
    (tmp_path / "own_masks.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for table in (POLICIES, ANNOTATORS):
        monkeypatch.setattr(table, "_members", dict(table._members))
        monkeypatch.setattr(table, "_registered", set(table._registered))
    module = importlib.import_module("own_masks")
    POLICIES.register("mine", module.Mine)
    register("nothing", module.nothing)
    yield module
    del sys.modules["own_masks"]


def test_stages_of_an_edited_plug_in_have_other_names(own_module, tmp_path):
    path = Path(own_module.__file__)
    code = path.read_text()
    source = write_inputs(tmp_path / "inputs")

    def names(text: str, *settings: str) -> list[str]:
        path.write_text(text)
        again = importlib.reload(own_module)
        POLICIES.register("mine", again.Mine)
        run = make_plan(read_recipe(source, [arms, *settings])).runs[0]
        return [stage.name for stage in run.stages]

    mine = "masking.policy=mixture(mine, token)"
    arms = "study={arms: {a: {}, b: {masking.ratio: 0.3}}, seeds: 1}"
    first = names(code, mine)
    assert names(code + "# Nothing is different.\n\n", mine) == first
    assert names(code, mine) == first
    edited = names(code.replace("    pass", "    scales = True"), mine)
    # The text is prepared and searched as before.
    kept = {name.partition("-")[0] for name in {*edited} & {*first}}
    assert kept == {"prepare", "overlap"}
    # Runs that do not use it keep their names.
    assert names(code) == names(code + "LATER = 1\n")
    # A module that is not reloaded does what it did before.
    before = names(code, mine)
    path.write_text(code + "LATER = 2\n")
    run = make_plan(read_recipe(source, [arms, mine])).runs[0]
    assert [stage.name for stage in run.stages] == before


class Slotted:
    __slots__ = ("module",)

    def __init__(self, module: Any):
        self.module = module

    def __call__(self, *given: Any) -> Any:
        return self.module.Mine(*given)


def test_code_of_objects_that_can_be_called_is_that_of_their_functions(own_module):
    """Their printed forms differ from process to process."""
    found = {}
    for name, one in {
        "slotted": Slotted(own_module),
        "bound": Slotted(own_module).__call__,
        "partial": partial(own_module.made, "token"),
        "cached": cache(own_module.made),
        "compiled": operator.itemgetter(1),
    }.items():
        POLICIES.register(name, one)
        [found[name]] = plugins.code_of([name]).values()
        assert plugins.code_of([f"a/{name}/b", "line\n" + name]) == {f"policy {name}": found[name]}
        assert found[name] == plugins.hash_of_code(one)
    assert plugins.hash_of_code(Slotted(own_module)) == found["slotted"]
    homes = {name: [*plugins._homes(POLICIES[name])] for name in found}
    assert homes["partial"] == homes["cached"] == ["own_masks"] and homes["compiled"] == []
    assert homes["slotted"] == homes["bound"] == [__name__]


def test_an_edited_segmenter_names_other_texts(own_module, tmp_path, monkeypatch):
    for attribute in ("_members", "_registered"):
        monkeypatch.setattr(SEGMENTERS, attribute, copy(getattr(SEGMENTERS, attribute)))
    SEGMENTERS.register("own-words", own_module.made)
    assert [*plugins.code_of(["own-words", "pos"])] == ["segmenter own-words"]


def test_code_of_plug_ins_is_that_of_their_modules(own_module):
    assert plugins.code_of({"masking": {"policy": "token"}, "text": "a mine_of gold"}) == {}
    assert {*plugins.code_of(["span(p=0.2)", {"mine": 1}])} == {"policy mine"}
    kind = replace(SEQUENCE_CLASSIFICATION, name="mine", row=own_module.made)
    assert [*plugins._homes(kind)] == ["own_masks"]
    assert [*plugins._homes(own_module.Mine)] == ["own_masks"]
    assert plugins._homes(SEQUENCE_CLASSIFICATION) == {}


def test_each_part_of_a_plug_in_of_a_program_is_in_its_hash(tmp_path, monkeypatch):
    """A class and its base, and both functions of a kind of task, are in one script."""
    code = """
from maskwise.masking.policies import Token

class Base(Token):
    first = 1

class Mine(Base):
    second = 1

def row():
    third = 1

def gold():
    fourth = 1
"""

    def hashes(text: str) -> list[str]:
        path = tmp_path / f"program{abs(hash(text))}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("__main__", path)
        program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(program)
        kind = replace(SEQUENCE_CLASSIFICATION, name="mine", row=program.row, gold=program.gold)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "__main__", program)
            return [plugins.hash_of_code(each) for each in (program.Mine, kind)]

    before = hashes(code)
    assert hashes("LATER = 1\n" + code) == before
    for part, changed in (("first", 0), ("second", 0), ("third", 1), ("fourth", 1)):
        after = hashes(code.replace(f"{part} = 1", f"{part} = 2"))
        assert [old != new for old, new in zip(before, after)] == [changed == 0, changed == 1]


@pytest.mark.process
def test_workers_know_what_a_program_registered(own_module):
    with open_pool(jobs=1) as pool:
        assert pool.submit(own_module.made, "mine").result() == "Mine"
        assert pool.submit(own_module.written, Live(["nothing"])).result() == ["nothing"]


@pytest.mark.process
def test_workers_say_why_they_do_not_know_a_registered_name(own_module):
    class Hidden(Token):
        pass

    POLICIES.register("hidden", Hidden)
    with open_pool(jobs=1) as pool:
        assert pool.submit(own_module.made, "token").result() == "Token"
        with pytest.raises(Failure, match=r"'hidden'.*cannot be loaded.*top of a module"):
            pool.submit(own_module.made, "hidden").result()


def test_a_task_in_this_process_adopts_nothing(own_module):
    before = plugins.registered()
    assert before["maskwise.policies"]["mine"] == "own_masks:Mine"
    plugins.adopt(before)
    assert plugins._ADOPTED == {}


def test_learned_is_an_entry_point_of_the_distribution():
    """Programs that import only ``maskwise.annotate`` know the name, too."""
    page = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    points = page["project"]["entry-points"]["maskwise.annotators"]
    assert points == {"learned": "maskwise.learning:learned"}
    point = EntryPoint("learned", points["learned"], "maskwise.annotators")
    assert point.load() is learning.learned is ANNOTATORS["learned"]


def test_importing_learning_stays_light():
    code = "import sys, maskwise.learning; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_table_is_a_mapping_that_tests_can_change(monkeypatch):
    table = Table("policy", "maskwise.no-such-group", {"token": Token})
    with monkeypatch.context() as patched:
        patched.setitem(table, "other", Token)
        assert list(table) == ["token", "other"] and len(table) == 2
    assert dict(table) == {"token": Token} == table.copy()
    with pytest.raises(KeyError):
        table["other"]


def test_a_decorated_schedule_replaces_no_built_in_one() -> None:
    def linear(f: float, start: float = 0.9) -> float:
        return start

    with pytest.raises(MaskwiseError, match="schedule 'linear' already"):
        schedules.published(linear)
    assert schedules.schedule("linear(0.3, 0.1)")(0, 10) == 0.3


@pytest.mark.parametrize("name", ["lambda", "None", "1a", "a_b", "a.b", ""])
def test_a_registered_name_can_be_written_in_a_recipe(name: str) -> None:
    with pytest.raises(MaskwiseError, match="no name of a"):
        Table("policy", "none", {}).register(name, str)


class Unfinished(Policy):
    """A policy without the method ``cut``."""


def test_what_a_table_makes_has_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CORRUPTIONS, "mine", Token)
    monkeypatch.setitem(SCHEDULES, "mine", lambda p=0.03: p)
    monkeypatch.setitem(POLICIES, "mine", Unfinished)
    for make, said in (
        (corruption, "corruption mine is not a corruption; got Token.*; allowed: Corruption"),
        (schedules.schedule, "schedule mine is not a schedule; got 0.03; allowed: Schedule"),
        (policy, "policy mine: its class is not complete; define cut, unit_kind"),
    ):
        with pytest.raises(MaskwiseError, match=said):
            make("mine")


class Bell(MaskedDiffusion):
    """Masked diffusion of another package."""


class Words(MaskedLanguageModelling):
    """Masked language modelling of another package, as a part of a mix only."""

    alone = False


def test_objectives_of_other_packages_are_trained_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(OBJECTIVES, "bell", Bell)
    monkeypatch.setitem(OBJECTIVES, "words", Words)
    recipe = Recipe.model_validate({"objective": "bell", "masking": {"ratio": "bell"}})
    assert recipe.masking_of(recipe.only).values["ratio"] == schedules.schedule("bell")
    mixed = {"objective": {"mlm": {}, "bell": {}}, "masking": {"ratio": "bell"}}
    mix = Recipe.model_validate(mixed)
    assert mix.masking_of(mix.objectives["bell"]).values["ratio"] == schedules.schedule("bell")
    with pytest.raises(
        ValueError, match=r"cannot be trained alone.*mlm, mntp, clm, diffusion, .*bell"
    ):
        Recipe.model_validate({"objective": "words"})


def test_a_corruption_that_returns_something_else_is_named() -> None:
    class Careless(Bert):
        def corrupt(self, *given: Any) -> Any:
            return 3

    masker = mw.Masker(train_tokenizer(["a b"] * 3, vocab_size=80), corruption=Careless())
    with pytest.raises(MaskwiseError, match="does not return masked rows; got int"):
        masker([{"input_ids": [5, 6], "example_id": 0}], epoch=0)


class Mistaken(Bert):
    """A corruption of a user with a mistake in its result, which ``change`` makes."""

    def __init__(self, change: Any):
        super().__init__()
        object.__setattr__(self, "change", change)

    def __str__(self) -> str:
        return "mistaken"

    def corrupt(self, line: Any, choice: Any, draws: Any, vocabulary: Any) -> Any:
        shown = super().corrupt(line, choice, draws, vocabulary)
        return self.change(line, shown) or shown


def in_input_ids(line: Any, shown: Any) -> None:
    line.input_ids[0] = 7


def in_a_layer(line: Any, shown: Any) -> None:
    line.layers["score"] += 1


MISTAKES = {
    "writes into input_ids": (in_input_ids, "read-only"),
    "writes into a layer": (in_a_layer, "read-only"),
    "int32": (
        lambda line, shown: Masked(shown.input_ids.astype(np.int32), shown.labels),
        "input_ids.*int32.*int64",
    ),
    "float labels": (lambda line, shown: Masked(shown.input_ids, shown.labels * 1.0), "labels"),
    "a list": (lambda line, shown: Masked([5, 6, 7], shown.labels), "input_ids.*list"),
    "too short": (
        lambda line, shown: Masked(shown.input_ids[1:], shown.labels),
        r"input_ids.*\(2,\).*\(3,\)",
    ),
    "too many lengths": (
        lambda line, shown: Masked(shown.input_ids, shown.labels, lengths=np.array([2, 1])),
        r"lengths.*\(2,\).*\(1,\)",
    ),
    "a large id": (lambda line, shown: Masked(shown.input_ids + 500, shown.labels), "vocabulary"),
    "a negative id": (
        lambda line, shown: Masked(shown.input_ids * 0 - 1, shown.labels),
        "vocabulary.*got -1",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_a_corruption_names_it(mistake: str) -> None:
    change, said = MISTAKES[mistake]
    masker = mw.Masker(train_tokenizer(["a b c d e"] * 3), corruption=Mistaken(change))
    ids = np.array([[5, 6, 7]])
    rows = {"input_ids": ids, "example_id": np.array([0]), "score": np.array([[1, 1, 1]])}
    with pytest.raises(MaskwiseError, match=f"corruption mistaken.*{said}"):
        masker(rows, epoch=0)
    assert ids.tolist() == [[5, 6, 7]] and rows["score"].tolist() == [[1, 1, 1]]


def test_a_corruption_may_return_the_arrays_of_its_line() -> None:
    def unchanged(line: Any, shown: Any) -> Masked:
        return Masked(line.input_ids, line.input_ids)

    masker = mw.Masker(train_tokenizer(["a b c d e"] * 3), corruption=Mistaken(unchanged))
    ids = np.array([[5, 6, 7]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = masker({"input_ids": ids, "example_id": np.array([0])}, epoch=0)
        batch.line.tensor(batch.line.input_ids)
    batch.input_ids[:] = 0
    assert ids.tolist() == batch.labels.tolist() == [[5, 6, 7]]


def test_a_policy_that_writes_into_its_line_is_named() -> None:
    class Writer(Token):
        def cut(self, line: Any, draws: Any, when: Any) -> Any:
            line.eligible[:] = True
            return super().cut(line, draws, when)

    masker = mw.Masker(train_tokenizer(["a b c d e"] * 3), policy=Writer())
    with pytest.raises(MaskwiseError, match=r"policy .*Writer.*read-only"):
        masker([{"input_ids": [5, 6], "example_id": 0}], epoch=0)


def mistaken(change: Any, ratios: Any = None) -> Policy:
    """A policy of a user that changes the units of words, or the ratios."""

    class Mistaken(WholeWord):
        def __str__(self) -> str:
            return "mistaken"

        def cut(self, line: Any, draws: Any, when: Any) -> Any:
            units = super().cut(line, draws, when)
            return change(units, line) if change else units

        def ratios(self, ratio_P: Any, draws: Any, when: Any) -> Any:
            return ratios(ratio_P) if ratios else ratio_P

    return Mistaken()


def with_weights(make: Any) -> Any:
    """A change of units that sets weights without ``Units.weighted``."""

    def change(units: Units, _: Any) -> Units:
        changed = copy(units)
        changed.weight = make(len(units.piece))
        return changed

    return change


def doubled(units: Units, line: Any) -> Units:
    columns = (units.piece, units.number, units.start, units.length)
    piece, number, start, length = map(np.concatenate, zip(columns, columns))
    number[len(units.number) :] += 1000
    return Units(line, piece, number, start, length)


MISTAKEN_POLICIES = {
    "weights of NaN": (with_weights(lambda n: np.full(n, np.nan)), None, "not a finite number"),
    "negative weights": (with_weights(lambda n: -np.ones(n)), None, "not a finite number"),
    "weights of NaN, checked": (
        lambda units, _: units.weighted(np.full(len(units.piece), np.nan)),
        None,
        "not a finite number",
    ),
    "a weight is missing": (with_weights(lambda n: np.ones(n - 1)), None, "weight.*shape"),
    "weights as a list": (with_weights(lambda n: [1.0] * n), None, "weight.*list"),
    "weights as text": (with_weights(lambda n: np.array(["1"] * n)), None, "weight.*<U1"),
    "weights of torch": (with_weights(torch.ones), None, "weight.*Tensor"),
    "lists": (lambda units, line: replace(units, piece=[0], length=[1]), None, "piece.*list"),
    "a unit twice": (doubled, None, "in the order of the text, and not overlap"),
    "special tokens": (
        lambda units, line: Units.single(line, np.arange(len(line.input_ids))),
        None,
        "must not be masked",
    ),
    "units beyond the text": (
        lambda units, line: Units(line, units.piece, units.number, units.start, units.length + 9),
        None,
        "do not fit the line",
    ),
    "weights alone": (lambda units, _: np.ones(len(units.piece)), None, "return units.*ndarray"),
    "ratios of NaN": (None, lambda ratio_P: ratio_P * np.nan, "share for each document.*nan"),
    "ratios in percent": (None, lambda ratio_P: ratio_P * 100, "share for each document.*15"),
    "one ratio": (None, lambda ratio_P: 0.3, "share for each document.*0.3"),
    "few ratios": (None, lambda ratio_P: ratio_P[:1], "share for each document.*2 numbers"),
    "no ratios": (None, lambda ratio_P: None, "share for each document.*None"),
}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("mistake", MISTAKEN_POLICIES)
def test_a_mistake_of_a_policy_names_it(mistake: str, mixed: bool) -> None:
    """No weight or ratio is silently read as another one, and no special token is masked."""
    change, ratios, said = MISTAKEN_POLICIES[mistake]
    own = mistaken(change, ratios)
    if mixed:
        own = POLICIES["mixture"](own, "token", shares=(1, 0))
    tools = train_tokenizer(["a b c d e"] * 3)
    masker = mw.Masker(tools, policy=own)
    rows = mw.encode(tools, ["a b c", "d e a"])
    with pytest.raises(PlugInError, match=f"policy .*mistaken.*{said}") as caught:
        masker(rows, epoch=0)
    assert "\n" not in str(caught.value)


class OtherArguments(WholeWord):
    def cut(self, line: Any) -> Any:
        return line


class OneLayer(WholeWord):
    def layers(self) -> Any:
        return "word_ids"


class OtherKind(WholeWord):
    unit_kind = "words"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OtherArguments, r"OtherArguments.*cut cannot be called.*\(line, draws, when\)"),
        (OneLayer, r"OneLayer.*layers\(\) must return a tuple of names; got 'word_ids'"),
        (OtherKind, "OtherKind.*unit_kind is no kind of units; got 'words'"),
    ],
)
def test_what_a_policy_declares_is_checked_when_it_is_made(
    kind: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POLICIES, "mine", kind)
    for spec in ("mine", kind()):
        with pytest.raises(PlugInError, match=said):
            policy(spec)


def mistaken_objective(change: Any) -> type[MaskedLanguageModelling]:
    """An objective of a user that changes its ``Loss``."""

    class Mistaken(MaskedLanguageModelling):
        def forward(self, batch: Any) -> Any:
            return change(super().forward(batch))

    return Mistaken


MISTAKEN_LOSSES = {
    "no gradient": (lambda loss: loss._replace(total=loss.total.detach()), "no gradient"),
    "a number": (lambda loss: 3, "does not return a Loss; got int"),
    "nothing": (lambda loss: None, "does not return a Loss; got NoneType"),
    "a tensor": (lambda loss: loss.total, "does not return a Loss; got Tensor"),
    "a plain tuple": (lambda loss: (loss.total, loss.divisor), "does not return a Loss; got tuple"),
    "a total of floats": (lambda loss: loss._replace(total=loss.total.item()), "total of its Loss"),
    "a loss for each row": (lambda loss: loss._replace(total=loss.total.repeat(4)), r"\(4,\)"),
    "a total in a list": (lambda loss: loss._replace(total=loss.total.reshape(1)), r"\(1,\)"),
    "a plain divisor": (lambda loss: loss._replace(divisor=8), "divisor of its Loss.*got 8"),
    "no divisor": (lambda loss: loss._replace(divisor=None), "divisor of its Loss"),
    "a divisor of 0": (lambda loss: loss._replace(divisor=loss.divisor * 0), "got divisor 0 for"),
    "one loss for the batch": (lambda loss: Loss.of(loss.total.reshape(1)), "got divisor 1 for"),
    "NaN": (lambda loss: loss._replace(total=loss.total * math.nan), "not finite in its first"),
}


@pytest.mark.parametrize("mistake", MISTAKEN_LOSSES)
def test_a_mistake_of_an_objective_names_it(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """No loss is trained in silence that is none, or that is divided by something else."""
    change, said = MISTAKEN_LOSSES[mistake]
    monkeypatch.setitem(OBJECTIVES, "mistaken", mistaken_objective(change))
    mixed = mistake in ("no gradient", "a number", "one loss for the batch", "NaN")
    chosen = "objective={mistaken: {}, mlm: {}}" if mixed else "objective=mistaken"
    settings = (chosen, "training.steps=8")
    recipe = str(write_inputs(tmp_path))
    command = ["pretrain", recipe, "--out", str(tmp_path / "out"), *settings]
    assert maskwise(*command) == 2
    assert re.search(rf"(?i)objective mistaken.*{said}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("saves", [0, 2])
def test_a_run_that_fails_leaves_only_what_it_can_resume(
    saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if code of the user raises any error. Its first line of metrics would be later."""
    steps = itertools.count()

    def change(loss: Loss) -> Loss:
        if next(steps) == 3:
            raise ZeroDivisionError
        return loss

    monkeypatch.setitem(OBJECTIVES, "mistaken", mistaken_objective(change))
    out = tmp_path / "out"
    settings = ("objective=mistaken", "training.steps=6", f"training.save_every={saves}")
    assert maskwise("pretrain", write_inputs(tmp_path), "--out", out, *settings) == 2
    assert out.exists() is (saves > 0)
    if saves:
        assert maskwise("pretrain", tmp_path / "recipe.yaml", "--out", out, *settings) == 0
        assert json.loads((out / "done.json").read_text())["steps"] == 6
        assert next(steps) == 4 + 4


def test_the_losses_of_own_objectives_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check would cost time in every step, and their tests check them."""

    def refuse(*_: object) -> None:
        raise AssertionError

    for module, name in (
        (base, "require_loss"),
        (engine, "require_gradient"),
        (engine, "require_counted"),
        (engine, "require_finite"),
    ):
        monkeypatch.setattr(module, name, refuse)
    tools = tokenizer()
    rows = mw.encode(tools, ["the cat sat on the mat"] * 8)
    batch = mw.Masker(tools, policy="token", ratio=0.5)(rows, epoch=0)
    assert MaskedLanguageModelling(model("bert"))(batch).total.requires_grad
    with pytest.raises(AssertionError):
        mistaken_objective(lambda loss: loss)(model("bert"))(batch)


def test_only_the_first_step_of_an_objective_waits_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its divisor is read only there. In later steps, the host must not wait for a number."""
    read = []

    class Divisor(torch.Tensor):
        def __float__(self) -> float:
            read.append(1)
            return float(self.item())

    def change(loss: Loss) -> Loss:
        return loss._replace(divisor=loss.divisor.as_subclass(Divisor))

    for kind in (mistaken_objective(change), MaskedLanguageModelling):
        monkeypatch.setitem(OBJECTIVES, "mistaken", kind)
        out = tmp_path / kind.__name__
        settings = ("objective=mistaken", "training.steps=4", "training.eval_every=0")
        assert maskwise("pretrain", write_inputs(tmp_path), "--out", out, *settings) == 0
        assert len(read) == 1


def test_a_run_whose_steps_were_all_skipped_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The error was that no token was masked."""
    right = MaskedLanguageModelling.forward

    def wrong(self: Any, batch: Any) -> Loss:
        loss = right(self, batch)
        return loss._replace(total=loss.total * math.nan) if self.training else loss

    monkeypatch.setattr(MaskedLanguageModelling, "forward", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where no time is known yet
    recipe = write_inputs(tmp_path)
    settings = ("training.on_nan=skip", "training.steps=8")
    assert maskwise("pretrain", recipe, "--out", tmp_path / "out", *settings) == 2
    assert "not finite in all of 8 steps" in capsys.readouterr().err
    assert maskwise("check", recipe, "tasks=[]", "training.on_nan=skip") == 2
    assert f"not finite in all of {STEPS[0]} steps" in capsys.readouterr().err
    assert maskwise("check", recipe, "tasks=[]") == 2
    assert "loss is not finite at step 1; got nan; no weight has" in capsys.readouterr().err


def mistaken_measure(rows: Any, **changes: Any) -> type[Measure]:
    """A measure of a user, with rows made by a function of a row and the model."""

    class Mistaken(Measure):
        name: Any = "mistaken"

        def measure(
            self, model: Any, tokenizer: Any, *, seed: int = 0, folder: Path | None = None
        ) -> Any:
            row = Measurement(measure=self.name, value=1.0, metric="number", unit="number")
            return rows(row, model)

    for name, value in changes.items():
        setattr(Mistaken, name, value)
    return Mistaken


def zeroed(row: Measurement, model: Any) -> list[Measurement]:
    next(model.parameters()).data.add_(0)
    with torch.no_grad():
        next(model.parameters()).zero_()
    return [row]


def valued(value: Any) -> Any:
    return lambda row, _: [replace(row, value=value)]


MISTAKEN_MEASURES = {
    "text": (valued("0.5"), "value is not a finite number; got '0.5'"),
    "NaN": (valued(math.nan), "value is not a finite number; got nan"),
    "None": (valued(None), "value is not a finite number; got None"),
    "True": (valued(True), "value is not a finite number; got True"),
    "two values": (valued(np.ones(2)), "value is not a finite number"),
    "nothing": (lambda row, _: None, "list of Measurement; got None"),
    "a row": (lambda row, _: row, "list of Measurement; got Measurement"),
    "a number": (lambda row, _: 0.5, "list of Measurement; got 0.5"),
    "numbers": (lambda row, _: [0.5], r"list of Measurement; got \[0.5"),
    "a dict": (lambda row, _: [{"value": 1}], "list of Measurement; got .*value"),
    "no rows": (lambda row, _: [], "returns no numbers"),
    "twice": (lambda row, _: [row, replace(row, value=2.0)], "mistaken:number: 1 and 2"),
    "another kind": (lambda row, _: [replace(row, kind="task")], "another kind; got 'task'"),
    "no metric": (lambda row, _: [replace(row, metric=None)], "no metric"),
    "an error of text": (lambda row, _: [replace(row, item_error="x")], "item_error is not"),
    "facts of columns": (lambda row, _: [replace(row, facts={"value": 9})], "columns; got value"),
    "facts of arrays": (
        lambda row, _: [replace(row, facts={"x": np.ones(2)})],
        "facts of a row cannot be written as JSON.*ndarray",
    ),
    "a changed model": (zeroed, "changed the weights"),
}


@pytest.mark.parametrize("mistake", MISTAKEN_MEASURES)
def test_a_mistake_of_a_measure_names_it(
    mistake: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """No row is read as another one, or left out, in silence."""
    rows, said = MISTAKEN_MEASURES[mistake]
    monkeypatch.setitem(MEASURES, "mistaken", mistaken_measure(rows))
    assert maskwise("evaluate", "bundled:encoder", "--with", "mistaken") == 2
    assert re.search(f"measure mistaken.*{said}", capsys.readouterr().err)


def test_a_nan_of_an_own_measure_means_a_damaged_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's code is not to blame, and of a short sample only the time is unknown."""

    def measure(self: Any, *_: Any, **__: Any) -> list[Measurement]:
        return [Measurement(measure="pairs", value=math.nan, metric="number", unit="number")]

    monkeypatch.setattr(Pairs, "measure", measure)
    with pytest.raises(MaskwiseError, match=r"pairs.*finite.*whether the checkpoint is") as caught:
        numbers_of(measure_of("pairs('bundled:pairs', items=2)"), model("bert"), tokenizer())
    assert type(caught.value) is MaskwiseError


def test_numbers_of_libraries_are_read_as_numbers() -> None:
    for value in (np.float32(0.5), torch.tensor(0.5), np.array(0.5)):
        measure = mistaken_measure(valued(value))()
        [row] = numbers_of(measure, model("bert"), tokenizer())
        assert row.value == 0.5 and type(row.value) is float
        json.dumps(row.line())


def two_arguments(self: Any, model: Any, tokenizer: Any) -> list[Measurement]:
    return []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": None}, "mistaken has no name; got None"),
        ({"name": 3}, "mistaken has no name; got 3"),
        ({"measure": two_arguments}, "mistaken.*cannot be called.*folder=None"),
    ],
)
def test_a_measure_is_checked_when_a_recipe_is_read(
    changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEASURES, "mistaken", mistaken_measure(valued(1.0), **changes))
    with pytest.raises(PlugInError, match=said):
        measure_of("mistaken")


def test_attributes_of_a_measure_that_name_no_stage_are_named() -> None:
    measure = mistaken_measure(valued(1.0))()
    measure.items = np.ones(2)
    with pytest.raises(PlugInError, match=r"JSON.*define content\(\)"):
        measure.content()


def test_check_says_what_is_wrong_with_plug_ins_that_only_run_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A check times a few steps. Their errors were taken for those of a short text."""
    recipe = str(write_inputs(tmp_path))
    monkeypatch.setitem(OBJECTIVES, "mistaken", mistaken_objective(lambda loss: 3))
    nan = mistaken_objective(lambda loss: loss._replace(total=loss.total * math.nan))
    nan.__name__ = "Nan"

    class Needy(MaskedLanguageModelling):
        def __init__(self, model: Any, more: int):
            super().__init__(model)

    class Built(MaskedLanguageModelling):
        def __init__(self, model: Any):
            super().__init__(model)
            self.size = len(3)  # type: ignore[arg-type]

    for name, kind in (("nan", nan), ("needy", Needy), ("built", Built)):
        monkeypatch.setitem(OBJECTIVES, name, kind)
    monkeypatch.setitem(MEASURES, "mistaken", mistaken_measure(valued("0.5")))
    for setting, said in (
        ("objective=mistaken", "objective Mistaken does not return a Loss; got int"),
        ("objective=nan", "objective Nan: its loss is not finite in its first step; got nan"),
        ("objective={mlm: , nan: }", "objective nan: its loss is not finite in its first step"),
        ("objective=needy", "objective needy: missing a required argument: 'more'"),
        ("objective={mlm: , cse(warmth=1): }", "objective cse(warmth=1): got an unexpected"),
        ("objective=built", "objective built: an argument of the wrong type: object of type"),
        ("evaluation.measures=[mistaken]", "value is not a finite number; got '0.5'"),
    ):
        assert maskwise("check", recipe, setting) == 2
        assert said in capsys.readouterr().err


class NoObjective:
    """A class of a user that is no objective."""


def test_a_class_that_is_no_objective_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherForward(MaskedLanguageModelling):
        def forward(self, batch: Any, more: Any) -> Any:
            return super().forward(batch)

    class OtherInit(MaskedLanguageModelling):
        def __init__(self) -> None:
            pass

    for kind, said in (
        (NoObjective, "mistaken is not an objective; got .*NoObjective"),
        (OtherForward, "mistaken: forward cannot be called"),
        (OtherInit, "mistaken: .*too many positional arguments"),
    ):
        monkeypatch.setitem(OBJECTIVES, "mistaken", kind)
        with pytest.raises(MaskwiseError, match=said):
            objective("mistaken", model("bert"))


class Marks:
    """An annotator of a user, which returns what a function makes of the texts."""

    name = "marks"
    version = "1"
    layers: Any = {"mark": SPANS}

    def __init__(self, make: Any = None, **changes: Any):
        self.make = make
        vars(self).update(changes)

    def annotate(self, texts: list[str]) -> Any:
        return self.make(texts)


def placed(start: Any, end: Any, value: Any = None) -> Any:
    return lambda texts: [{"mark": CharSpans(start, end, value)} for _ in texts]


START, END = np.array([0, 4], np.int32), np.array([3, 6], np.int32)
MISTAKEN_MARKS = {
    "too few": (lambda texts: placed(START, END)(texts[1:]), "9 results for 10 texts"),
    "nothing": (lambda texts: None, "list with the spans of every text; got NoneType"),
    "one for all": (lambda texts: {"mark": []}, "list with the spans of every text; got dict"),
    "no layers": (lambda texts: [CharSpans(START, END)] * 10, "all its layers.*CharSpans"),
    "another layer": (lambda texts: [{"other": None}] * 10, "all its layers.*other.*mark"),
    "tuples": (lambda texts: [{"mark": [(0, 3)]}] * 10, "mark must be CharSpans; got .*0, 3"),
    "lists": (placed([0], [3]), "start must be an array of whole numbers; got list"),
    "halves": (placed(START + 0.5, END), "start must be an array of whole numbers.*float64"),
    "overlapping": (placed(START, END + 2), "not overlap"),
    "beyond the text": (placed(START, END + np.int32([0, 90])), "lie in the text of"),
    "negative": (placed(START - 1, END), "lie in the text of"),
    "a list of values": (placed(START, END, [1, 2]), "value must be an array; got list"),
    "raises": (lambda texts: 1 / 0, r"failed on all 10 .*division by zero \(test_plugins.py:\d+"),
}


def test_the_name_of_an_annotator_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def parse(text: str) -> Any:
        parsed.append(text)
        return parse_call(text)

    for module in (specs, registry):
        monkeypatch.setattr(module, "parse_call", parse)
    for functions in (False, True):
        annotator("prompt(until='?')", functions=functions)
    assert parsed == ["prompt(until='?')"] * 2


@pytest.mark.parametrize("mistake", MISTAKEN_MARKS)
def test_a_mistake_of_an_annotator_names_it(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No span is moved or lost in silence, and nothing is left of the layers."""
    make, said = MISTAKEN_MARKS[mistake]
    monkeypatch.setitem(ANNOTATORS, "marks", lambda: Marks(make))
    forget()
    with pytest.raises(MaskwiseError, match=f"marks.*{said}"):
        annotate_corpus([f"text {n}" for n in range(10)], ["marks"], tmp_path / "layers")
    assert not (tmp_path / "layers").exists()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "not an annotator; got NoneType without name"),
        (Marks(name=3), "its name must be a text; got 3"),
        (Marks(version=None), "its version must be a text; got None"),
        (Marks(layers=["mark"]), "layers must be a dict"),
        (Marks(annotate=lambda texts, more: []), "cannot be called"),
    ],
    ids=["nothing", "name", "version", "layers", "arguments"],
)
def test_an_annotator_is_checked_when_it_is_made(
    made: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANNOTATORS, "marks", lambda: made)
    with pytest.raises(PlugInError, match=f"annotator marks.*{said}"):
        annotator("marks")


def test_own_annotators_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(
        registry, "_require_annotator", lambda made, call: checked.append(str(call))
    )
    monkeypatch.setitem(ANNOTATORS, "marks", lambda: ByText("marks", {}, dict, "1"))
    for spec in ("words", "pos", "marks"):
        annotator(spec)
    assert checked == ["marks"]


# ---- what a plug-in should not do


def doing(what: Any) -> dict[str, Any]:
    """Members of every group that call a function; the settings of a command that uses each."""

    class Acting(WholeWord):
        def cut(self, line: Any, draws: Any, when: Any) -> Any:
            what()
            return super().cut(line, draws, when)

    def change(loss: Loss) -> Loss:
        what()
        return loss

    def find(texts: Any) -> Any:
        what()
        return placed(START, END)(texts)

    def rows(row: Measurement, _: Any) -> list[Measurement]:
        what()
        return [row]

    def metric(gold: Any, answers: Any) -> float:
        what()
        return 0.5

    return {
        "policy": (POLICIES, Acting),
        "objective": (OBJECTIVES, mistaken_objective(change)),
        "annotator": (ANNOTATORS, lambda: Marks(find)),
        "measure": (MEASURES, mistaken_measure(rows)),
        "metric": (METRICS, metric),
    }


COMMANDS = {
    "policy": "pretrain RECIPE masking.policy=acting training.steps=2",
    "objective": "pretrain RECIPE objective=acting training.steps=4 training.eval_every=2",
    "annotator": "annotate TEXTS --with acting --jobs 1",
    "measure": "evaluate bundled:encoder --with acting",
    "metric": "finetune bundled:encoder --task TASK(kind='acting') --runs 1 steps=1 max_length=16",
}


def command_of(group: str, what: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that uses a member of a user, which calls a function."""
    table, member = doing(what)[group]
    monkeypatch.setitem(table, "acting", member)
    forget()
    recipe = write_inputs(folder)
    if group == "metric":
        monkeypatch.setitem(KINDS, "acting", replace(SEQUENCE_CLASSIFICATION, metrics=("acting",)))
    named = {"RECIPE": recipe, "TEXTS": folder / "corpus.jsonl", "TASK": folder / "task.jsonl"}
    command = COMMANDS[group]
    for name, path in named.items():
        command = command.replace(name, str(path))
    words = command.split()
    out = [] if group == "measure" else ["--out", str(folder / "out")]
    return [*words, *out, "--json"]


@pytest.mark.parametrize("group", COMMANDS)
def test_what_a_plug_in_prints_is_not_in_the_json(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    command = command_of(group, partial(print, "HELLO"), tmp_path, monkeypatch)
    assert maskwise(*command) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out) and "HELLO" not in shown.out
    assert "HELLO" in shown.err


@pytest.mark.process
def test_what_a_worker_prints_goes_to_stderr(capfd: Any) -> None:
    with open_pool(jobs=1) as pool:
        pool.submit(print, "HELLO").result()
    assert capfd.readouterr() == ("", "HELLO\n")


@pytest.mark.parametrize("group", COMMANDS)
def test_a_plug_in_that_ends_the_program_is_named(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """With ``sys.exit()``, a command was a success that printed nothing."""
    command = command_of(group, sys.exit, tmp_path, monkeypatch)
    assert maskwise(*command) == 2
    shown = capsys.readouterr()
    assert re.search(r"ended the program; got SystemExit.*test_plugins.py:\d+", shown.err)
    assert not shown.out and shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def fail() -> None:
    raise KeyError("no such verse\nof this poem")


@pytest.mark.parametrize("group", COMMANDS)
def test_a_plug_in_that_raises_is_named(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It was a traceback, which is mostly about maskwise, and the code was 1."""
    command = command_of(group, fail, tmp_path, monkeypatch)
    assert maskwise(*command) == 2
    shown = capsys.readouterr()
    assert re.search(r"got KeyError: .*no such verse.*test_plugins.py:\d+", shown.err)
    assert not shown.out and shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_error_outside_of_plug_ins_is_none_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "acting", OneLayer)
    with pytest.raises(MaskwiseError) as caught:
        find("policy", "no such name", POLICIES)
    assert plugins.mistake_of(caught.value)
    # The first line is one of this module, as the plug-in is.
    inner = caught.value.__traceback__.tb_next
    assert plugins.mistake_of(caught.value.with_traceback(inner)) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0.5", "metric acting returns is not valid; got '0.5'"),
        (None, "metric acting returns is not valid; got None"),
        (math.nan, "metric acting returns is not valid; got nan"),
    ],
)
def test_a_mistake_of_a_metric_names_it(
    value: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """NaN was 'the model's answers are not finite', and left a folder."""
    command = command_of("metric", int, tmp_path, monkeypatch)
    monkeypatch.setitem(METRICS, "acting", lambda gold, answers: value)
    assert maskwise(*command) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.process
@pytest.mark.parametrize("code", [None, 0, 3, "done"])
def test_a_task_that_ends_its_worker_has_failed(code: Any) -> None:
    """It was tried again, because the worker process had died."""
    with open_pool(jobs=1) as pool:
        with pytest.raises(Failure, match="ended the program; got SystemExit") as caught:
            pool.submit(sys.exit, code).result()
        assert not caught.value.passing
        assert pool.submit(len, "the same worker").result() == 15


def test_seeds_that_a_plug_in_sets_change_no_later_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seed() -> None:
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)

    weights = []
    for what in (seed, int):
        out = tmp_path / what.__name__
        command = command_of("objective", what, out, monkeypatch)
        assert maskwise(*command) == 0
        weights.append((out / "out/checkpoint/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    tools = train_tokenizer(["a b c d e"] * 3)
    rows = mw.encode(tools, ["a b c d e a b c", "d e a b c"])
    _, acting = doing(seed)["policy"]
    seeded, plain = (
        mw.Masker(tools, policy=each, ratio=0.4, corruption="bert")
        for each in (acting(), WholeWord())
    )
    for epoch in range(3):
        one, two = seeded(rows, epoch=epoch), plain(rows, epoch=epoch)
        assert torch.equal(one.input_ids, two.input_ids) and torch.equal(one.labels, two.labels)


def test_a_built_in_member_may_be_a_place_that_is_imported_when_it_is_looked_up() -> None:
    table: Table[object] = Table("thing", "maskwise.things", {"dumps": "json:dumps"})
    assert [*table] == ["dumps"] and table.foreign() == [] and table.added() == set()
    assert table["dumps"] is json.dumps
    assert table.without_plugins() == {"dumps": json.dumps}
