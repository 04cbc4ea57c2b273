"""What is installed: the wheel of maskwise is small and enough to mask, train and inspect. The
other models and texts are in maskwise-data, and an error names the command that installs it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
import zlib
from email.message import Message
from pathlib import Path

import pytest
import yaml

import maskwise
from maskwise.base import errors
from maskwise.base.errors import MaskwiseError, require_library
from maskwise.base.folders import bundled_file, credit
from maskwise.evaluation.sets import BUNDLED_SETS
from maskwise.masks.inspection import inspect_text
from maskwise.models.starts import BUNDLED, TOKENIZER_FILES, resolve_start
from maskwise.recipe import read_recipe
from maskwise.studies.stages import start_fingerprint
from maskwise.text.source import BUNDLED as TEXTS

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
DATA = ROOT / "packages" / "maskwise-data"
BYTES = 8_000_000
SAMPLES = [f"{name}.jsonl.gz" for name in (*TEXTS, *BUNDLED_SETS)]
NAMES = [*SAMPLES, *BUNDLED.values(), "tagger-en"]


def files_of(package: Path) -> set[str]:
    """The files that hatchling puts into a wheel: all but those that git ignores."""
    found = [path for path in package.rglob("*") if path.is_file()]
    kept = [path for path in found if "__pycache__" not in path.parts]
    return {path.relative_to(package.parent).as_posix() for path in kept}


def compressed_bytes(names: set[str], source: Path) -> int:
    return sum(len(zlib.compress((source / name).read_bytes())) for name in names)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with the wheel of maskwise, but without maskwise-data and a checkout."""

    def find(name: str) -> object:
        return None if name == "maskwise_data" else importlib.util.find_spec(name)

    monkeypatch.setattr(errors, "find_spec", find)
    monkeypatch.setattr(errors, "CHECKOUT", ROOT / "nowhere")


# The two distributions
# ----------------------------------------------------------------------------


def test_the_wheel_is_small_and_has_the_data_of_the_quick_start() -> None:
    names = files_of(SOURCE / "maskwise")
    assert compressed_bytes(names, SOURCE) <= BYTES
    assert {"maskwise/data/wikipedia.jsonl.gz", "maskwise/data/README.md"} <= names


def test_each_bundled_file_is_in_one_distribution() -> None:
    def where(folder: Path) -> set[str]:
        return {name for name in NAMES if (folder / name).exists()}

    ours = where(SOURCE / "maskwise" / "data")
    others = where(DATA / "src" / "maskwise_data")
    assert ours == {"wikipedia.jsonl.gz", "ud_ewt_pos.jsonl.gz", "tokenizer-en"}
    assert ours.isdisjoint(others)
    assert ours | others == set(NAMES)


def test_the_bundled_tokenizer_is_that_of_the_encoder() -> None:
    prints = {
        start_fingerprint(f"bundled:{name}", TOKENIZER_FILES) for name in ("encoder", "tokenizer")
    }
    assert len(prints) == 1


def test_both_distributions_have_the_version_of_the_package() -> None:
    for folder in (ROOT, DATA):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["version"] == maskwise.__version__


# The address of the project, and its citation
# ----------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"].get("Repository")


def test_one_address_stands_wherever_the_project_is_named() -> None:
    """``project.urls`` has it. Without one, readers are told of a clone, and nobody of a host."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.get("repository-code") == ADDRESS
    papers = [ROOT / "README.md", *sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))]
    for paper in papers:
        text = paper.read_text(encoding="utf-8")
        cloned = set(re.findall(r"git(?: clone |\+)(https?://[^\s\"'\\@]+)", text))
        assert cloned <= {ADDRESS}, paper
        if ADDRESS is not None:
            assert ADDRESS in text, paper
    installs = (ROOT / "docs" / "notebooks" / "adapt.ipynb").read_text(encoding="utf-8")
    assert json.dumps(f'ADDRESS = "{ADDRESS or ""}"').strip('"') in installs


@pytest.mark.parametrize("urls", [[], ["Repository, https://example.org/maskwise"]])
def test_cards_have_the_address_of_the_installed_project(
    urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = Message()
    for url in urls:
        facts["Project-URL"] = url
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: facts)
    assert maskwise.__version__ in credit()
    assert ("(https://example.org/maskwise)" in credit()) == bool(urls)


def test_the_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == maskwise.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == [{"name": "The maskwise developers"}]
    assert maskwise.__version__ in (ROOT / "README.md").read_text(encoding="utf-8")


# The line that README gives
# ----------------------------------------------------------------------------


def install_line() -> list[str]:
    """Return the words of the command in README's section on installing."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, section = readme.partition("## Install\n")
    (line,) = re.findall(r"```bash\n(pip install .*)\n```", section.partition("\n## ")[0])
    return shlex.split(line)


def test_the_line_of_the_readme_names_what_is_here() -> None:
    words = install_line()
    assert words[words.index("-c") + 1] == "constraints.txt"
    for place in (word for word in words if word.startswith(("packages/", "."))):
        folder, _, extra = place.partition("[")
        assert (ROOT / folder / "pyproject.toml").is_file()
        assert not extra or extra.rstrip("]") in PROJECT["optional-dependencies"]


@pytest.mark.slow
@pytest.mark.parametrize("leave_out", [[], ["-e"]], ids=["a clone", "wheels"])
def test_the_line_of_the_readme_installs(leave_out: list[str], tmp_path: Path) -> None:
    """Both distributions are installed; all that they need is found."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    pip, *words = [word for word in install_line() if word not in leave_out]
    # Once is enough to look for everything: it may fetch torch.
    for more in ([["--dry-run"]] if not leave_out else []) + [["--no-deps"]]:
        command = [tmp_path / "empty" / "bin" / pip, *words, "--quiet", *more]
        subprocess.run(command, check=True, cwd=ROOT)
    listed = [tmp_path / "empty" / "bin" / pip, "list", "--format", "json"]
    packages = json.loads(subprocess.run(listed, check=True, capture_output=True).stdout)
    found = {package["name"]: package.get("editable_project_location") for package in packages}
    for name in ("maskwise", "maskwise-data"):
        assert (found[name] is None) == bool(leave_out)


# Images for docker
# ----------------------------------------------------------------------------

IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def steps_of(image: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, whose lines are not continued, as (word, rest)."""
    lines = image.read_text(encoding="utf-8").splitlines()
    steps = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in steps]


def kept_for_images() -> list[str]:
    """Return the files and folders that .dockerignore does not leave out."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    everything, *kept = [line for line in lines if not line.startswith("#")]
    assert everything == "*" and all(line.startswith("!") for line in kept)
    return [line.removeprefix("!") for line in kept]


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_an_image_has_what_the_project_asks_for(image: Path) -> None:
    steps = steps_of(image)
    [(_, base)] = [step for step in steps if step[0] == "FROM"]
    minor = int(re.fullmatch(r"python:3\.(\d+)-slim", base)[1])  # type: ignore[index]
    assert minor >= int(PROJECT["requires-python"].removeprefix(">=3."))
    assert ("ENTRYPOINT", '["maskwise"]') in steps and ("COPY", ". .") in steps
    assert f"docker build . -f docker/{image.name} " in image.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_the_lines_of_an_image_run(image: Path, tmp_path: Path) -> None:
    """In a folder with what COPY copies, and an environment with nothing. No docker is needed, and
    no system package is installed.
    """
    context = tmp_path / "context"
    context.mkdir()
    for name in kept_for_images():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, context / name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    binaries = tmp_path / "empty" / "bin"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"
    for line in (rest for word, rest in steps_of(image) if word == "RUN"):
        if not line.startswith("apt-get"):
            subprocess.run(line, shell=True, check=True, cwd=context, env=environment)
    command = [binaries / "maskwise", "inspect", "Marie Curie.", "--tokenizer", "bundled:encoder"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)


# Without maskwise-data
# ----------------------------------------------------------------------------


def test_the_wheel_alone_finds_its_own_files(alone: None) -> None:
    assert bundled_file("wikipedia.jsonl.gz").is_file()
    (found,) = inspect_text("Marie Curie was born in Warsaw.", "token", {})
    assert found.tokenizer == "bundled:tokenizer"


@pytest.mark.parametrize("name", ["encoder", "seq2seq"])
def test_what_is_missing_names_one_command(name: str, alone: None) -> None:
    with pytest.raises(MaskwiseError) as raised:
        resolve_start(f"bundled:{name}")
    assert raised.value.do == "pip install maskwise-data"
    assert BUNDLED[name] in raised.value.what


@pytest.mark.parametrize("recipe", ["factworld", "learn-meta", "learn-supervised"])
def test_recipes_of_worlds_name_one_command(recipe: str, alone: None) -> None:
    with pytest.raises(MaskwiseError) as raised:
        read_recipe(recipe)
    assert "world-0" in str(raised.value) and "pip install maskwise-data" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_in_a_checkout_the_command_installs_from_there(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(MaskwiseError) as raised:
        require_library("maskwise_data", use="a test")
    assert raised.value.do == f"pip install -e {DATA}"


def test_an_older_maskwise_data_is_named() -> None:
    with pytest.raises(MaskwiseError) as raised:
        bundled_file("of-tomorrow.jsonl.gz")
    assert "of-tomorrow" in str(raised.value) and "pip install" in str(raised.value.do)


# The wheel in an empty environment
# ----------------------------------------------------------------------------

SCRIPT = """
import torch
import maskwise as mw
from maskwise.text.tokenizers import load_tokenizer

tokenizer = load_tokenizer("bundled:tokenizer")
rows = mw.encode(tokenizer, ["Marie Curie was born in Warsaw in 1867."])
batch = mw.Masker(tokenizer, policy="whole-word", ratio=0.3)(rows, step=0, total_steps=1)
assert (batch.labels != -100).any()
"""
PRETRAIN = [
    *("pretrain", "quick-start", "corpus.limit=200", "training.steps=4", "training.eval_every=2"),
    *("training.save_every=2", "evaluation.rows=8", "tasks=[]", "--out", "one"),
]


@pytest.mark.slow
def test_the_wheel_alone_masks_trains_and_inspects(tmp_path: Path) -> None:
    """It takes minutes, an index of packages, and the room of torch."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*command: object, code: int = 0) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=tmp_path,
            env=environment,
            text=True,
            capture_output=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    run(sys.executable, "-m", "venv", "empty")
    python, command = tmp_path / "empty/bin/python", tmp_path / "empty/bin/maskwise"
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "build")
    # build makes the sdist, and the wheel from the sdist.
    run(python, "-m", "build", "--outdir", "built", ROOT)
    (wheel,) = (tmp_path / "built").glob("*.whl")
    assert wheel.stat().st_size <= BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files_of(SOURCE / "maskwise")
    run(python, "-m", "build", "--outdir", "data", DATA)
    (data,) = (tmp_path / "data").glob("*.whl")

    run(*pip, "install", "-c", ROOT / "constraints.txt", wheel)
    # With --quiet, pip prints no list.
    installed = json.loads(run(*pip[:3], "list", "--format", "json", pip[-1]))
    names = {package["name"] for package in installed}
    assert "maskwise" in names and names.isdisjoint({"maskwise-data", "spacy", "altair"})

    run(python, "-c", SCRIPT)
    assert "bundled:tokenizer" in run(command, "inspect", "Marie Curie was born in Warsaw.")
    run(command, *PRETRAIN)
    assert (tmp_path / "one/checkpoint/model.safetensors").is_file()
    missing = run(command, "finetune", "bundled:encoder", "--task", "ud-pos", code=2)
    assert "pip install maskwise-data" in missing

    run(*pip, "install", "--no-deps", data)
    run(command, "inspect", "Marie Curie was born in Warsaw.", "--tokenizer", "bundled:encoder")
