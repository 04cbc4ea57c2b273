"""Libraries of the extras: what is missing is named, before any work, with its command."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from maskwise.annotate import tagger
from maskwise.base import errors
from maskwise.base.errors import EXTRAS, MaskwiseError, install_command, require_library
from maskwise.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GENERATION = "trivia(kind='generation', metric='rouge-1')"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Hides a library from the check."""

    def hide(missing: str) -> None:
        def find(name: str) -> object:
            return None if name == missing else importlib.util.find_spec(name)

        monkeypatch.setattr(errors, "find_spec", find)

    return hide


@pytest.mark.parametrize("module", EXTRAS)
def test_every_library_belongs_to_an_extra_of_the_project_and_to_all(module: str) -> None:
    extra = EXTRAS[module]
    names = " ".join(PROJECT["optional-dependencies"][extra])
    renamed = {"sklearn": "scikit-learn"}
    assert renamed.get(module, module.replace("_", "-")) in names
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert extra in everything.partition("[")[2].rstrip("]").split(",")
    assert not any(name in " ".join(PROJECT["dependencies"]) for name in (module, *renamed))


def test_the_lowest_versions_that_are_allowed_are_the_tested_ones() -> None:
    """What ``make test-floor`` installs is what pyproject.toml allows."""
    extras = PROJECT["optional-dependencies"]
    allowed = [*PROJECT["dependencies"]]
    for name in {*EXTRAS.values()} - {"data"}:
        allowed += extras[name]
    lowest = {}
    for line in allowed:
        name, least = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<\d+)?", line).groups()
        lowest[name] = least
    tested = {}
    for line in (ROOT / "tests" / "floor.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            tested[name] = version
    assert tested.keys() == lowest.keys()
    for name, least in lowest.items():
        shorter = tested[name].removesuffix(".0")
        assert least in (tested[name], shorter, shorter.removesuffix(".0")), name


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("sklearn", lambda: load_task("trivia(kind='sentence-embedding', train_rows=50)")),
        ("rouge_score", lambda: load_task(GENERATION)),
        ("spacy", tagger.salient),
    ],
)
def test_what_is_missing_is_named_with_its_command(
    module: str, use: Callable[[], object], without: Callable[[str], None]
) -> None:
    use()
    load_task.__globals__["_LOADED"].clear()
    without(module)
    with pytest.raises(MaskwiseError) as raised:
        use()
    assert raised.value.do == f"pip install 'maskwise[{EXTRAS[module]}]'"
    assert module in raised.value.what


@pytest.mark.parametrize("metric", ["f1", "nats"])
def test_a_task_with_another_metric_does_without_rouge(
    metric: str, without: Callable[[str], None]
) -> None:
    """A fine-tuning of several minutes ended in an ImportError."""
    task = load_task(f"trivia(kind='generation', metric={metric!r})")
    every = task.other_metrics()
    without("rouge_score")
    assert task.other_metrics() == [name for name in every if not name.startswith("rouge")]
    assert "rouge-l" in every and task.other_metrics()


def test_an_installed_library_needs_no_command() -> None:
    assert install_command("sklearn") is None
    require_library("sklearn", use="a test")
