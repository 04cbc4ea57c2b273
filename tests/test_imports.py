"""Imports point one way, along the flow of data; and nothing heavy is imported before it is
needed.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskwise

ROOT = Path(maskwise.__file__).parent

# Below → above. A module may import its own room and what stands before it; a row does not see its
# own.
ORDER = [
    # Rooms whose files have places of their own.
    {"base", "jobs", "models", "masks", "hf"},
    {"base.errors", "base.constants", "base.signals", "base.devices"},
    {"base.effects", "base.printing"},
    {"base.specs", "base.plugins"},
    {"base.folders"},
    {"jobs.pools", "results"},
    {"jobs.torchrun", "verdict"},
    {"masking"},
    {"models.attention"},
    {"models.starts", "models.families"},
    {"models.cards", "models.decoders", "models.lora", "models.weights"},
    {"models.loading", "models.flops"},
    {"text", "report", "testing"},
    {"annotate", "scores"},
    {"objectives"},
    {"samplers", "changes"},
    {"training"},
    {"evaluation"},
    {"tasks"},
    {"learning"},
    {"masks.show", "masks.generate", "models.convert"},
    {"masks.inspection", "masks.export"},
    {"recipe"},
    {"studies"},
    {"hf.packed_collator"},
    {"hf.trainer"},
    {"api"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")

# Rooms that see less than stands below them.
ONLY = {
    "text": {"base", "masking", "models.starts"},
    "masking": {"base"},
    "report": {"base", "results", "verdict"},
    "verdict": {"base", "results"},
}


def room_of(module: str) -> str:
    """``masking.policies.given`` → ``masking``; the most exact name that has a place in the
    order.
    """
    parts = module.split(".")
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((name for name in names if name in LEVEL), parts[0])


def imports(path: Path) -> set[str]:
    """The modules of maskwise that a file imports, also inside of functions, or names in a string,
    such as ``"maskwise.masking:POLICIES"``, by which they might be imported.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            # The package itself gives every public name.
            found |= {"maskwise.api" if a.name == "maskwise" else a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                home = str(node.module)
                if home == "maskwise":
                    home = maskwise._HOMES.get(alias.name, home)
                found.add(deeper if _is_module(deeper) else home)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value.partition(":")[0]
            if re.fullmatch(r"maskwise(\.\w+)+", named) and _is_module(named):
                found.add(named)
    return {name.removeprefix("maskwise.") for name in found if name.startswith("maskwise.")}


def imported_by_name(path: Path) -> list[int]:
    """The lines that import a module of maskwise by a string, or a part of one."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            values = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            if any("maskwise" in value for value in values if isinstance(value, str)):
                lines.append(node.lineno)
    return lines


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_module(name: str) -> bool:
    path = ROOT.parent / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_stands_below_it(path):
    own = room_of(name_of(path))
    assert own in LEVEL, f"{own} has no place in the order of tests/test_imports.py"
    for module in imports(path):
        room = room_of(module)
        if room == own:
            continue
        assert LEVEL[room] < LEVEL[own], f"{name_of(path)} imports {module}"
        seen = ONLY.get(own.partition(".")[0], {room})
        assert {room, room.partition(".")[0]} & seen, f"{name_of(path)} may not know {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_package_itself_imports_its_modules_by_name(path):
    assert imported_by_name(path) == []


@pytest.mark.parametrize("name", ["Tensors", "TensorDict"])
def test_a_type_has_one_home(name):
    homes = [path.name for path in MODULES if f"\n{name}: TypeAlias" in path.read_text()]
    assert homes == ["devices.py"]


def test_the_test_sees_what_is_imported(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from maskwise.masking import Masker, schedules\n    import "
        "maskwise.studies.plan\n"
    )
    assert imports(path) == {"masking", "masking.schedules", "studies.plan"}
    assert room_of("masking.policies.given") == "masking"
    path.write_text(
        "import maskwise\nfrom maskwise import MaskingTrainer, __version__\n"
        "TABLE = {'a': 'maskwise.studies.plan:NAMES', 'b': 'maskwise.policies', 'c': 'maskwise'}\n"
    )
    assert imports(path) == {"api", "hf.trainer", "studies.plan"}
    path.write_text(
        "import_module('maskwise.masking')\nimportlib.import_module(f'maskwise.{room}')\n"
        "__import__('maskwise')\nimport_module(name)\n"
    )
    assert imported_by_name(path) == [1, 2, 3]


HEAVY = {
    *("torch", "transformers", "datasets", "pandas", "scipy", "sklearn", "spacy", "altair"),
    *("pyarrow", "numpy", "pydantic", "scipy.optimize", "scipy.stats", "pyarrow.compute"),
    *("huggingface_hub.hf_api", "maskwise.learning.lesson", "maskwise.studies"),
}
MASKWISE = "from maskwise.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass"


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh process imports."""
    lines = f"import sys\n{code}\nprint(*sys.modules, sep=chr(10))"
    command = [sys.executable, "-c", lines, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return {*ran.stdout.splitlines()}


def imported(code: str, *arguments: str) -> tuple[set[str], int]:
    """The heavy modules that a fresh process imports, and the number of all."""
    names = loaded(code, *arguments)
    return HEAVY & names, len(names)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import maskwise", set()),
        ("import maskwise.cli", set()),
        ("import maskwise.base.errors, maskwise.base.specs", set()),
        ("import maskwise.masking", {"numpy", "pydantic"}),
        ("import maskwise.report", {"numpy", "scipy"}),
        ("import maskwise.recipe", {"numpy", "pyarrow", "pydantic"}),
        ("import maskwise.objectives, maskwise.tasks", {"numpy", "pydantic"}),
        ("import maskwise.training.settings, maskwise.evaluation.settings", {"numpy", "pydantic"}),
        (
            "from maskwise.verdict.statistics import detectable_sds\ndetectable_sds(6, alpha=0.05)",
            {"numpy", "scipy"},
        ),
        (
            "import maskwise.studies.adapt, maskwise.studies.forecast",
            {"torch", "scipy", "pyarrow", "numpy", "pydantic", "maskwise.studies"},
        ),
        # each of its processes would pay for them
        ("import maskwise.annotate.run", HEAVY - {"torch", "transformers", "spacy"}),
    ],
)
def test_a_light_import_stays_light(code, allowed):
    heavy, _ = imported(code)
    assert heavy <= allowed


MASKS = """
import numpy as np
from maskwise.masking import CORRUPTIONS, Line, Masker, Vocabulary
from maskwise.masking.line import Frame
from maskwise.masking.policies import When

text = np.arange(80) > 4
sentinels = tuple(range(60, 80))
by_name = {"[R]": 5, "[S]": 6, "[X]": 7}
vocabulary = Vocabulary(80, 4, 0, text, text, sentinels=sentinels, eos=3, by_name=by_name)
ids = np.arange(10, 34)
line = Line.of_pieces(
    {"input_ids": ids, "word_ids": ids // 2, "pos": ids % 2, "sentence": ids // 4},
    np.array([10, 14]),
    np.array([0, 1]),
    example_id=np.array([7, 8]),
    length=16,
    frame=Frame(2, 3, 0),
)
for policy in ("token", "span", "group-weighted(pos)", "type-weighted"):
    for corruption in set(CORRUPTIONS):
        masker = Masker(vocabulary, policy=policy, corruption=corruption, ratio=0.5)
        masked, choice = masker.corrupted(line, When(step=0, total_steps=1, epoch=0))
        assert isinstance(masked.labels, np.ndarray) and (masked.labels >= 0).any()
"""


def test_masking_down_to_numpy_loads_neither_torch_nor_transformers():
    heavy, _ = imported(MASKS)
    assert heavy == {"numpy", "pydantic"}


@pytest.mark.pinned
@pytest.mark.parametrize(
    ("arguments", "allowed", "most"),
    [
        (["--help"], set(), 500),
        (["list", "recipes"], {"pydantic"}, 500),
        (["list", "policies"], {"numpy", "pydantic"}, 600),
        (["list", "schedules"], {"numpy", "pydantic"}, 600),
        (["list", "keys"], {"numpy", "pyarrow", "pydantic"}, 1400),
        (["list", "tasks"], {"numpy", "pyarrow", "pydantic"}, 1400),
    ],
)
def test_commands_that_look_start_quickly(arguments, allowed, most):
    """Modules are counted, since a time depends on the machine; torch alone brings a thousand."""
    heavy, number = imported(MASKWISE, *arguments)
    assert heavy <= allowed and number <= most


@pytest.mark.parametrize(
    "arguments",
    [
        ["study", "quick-start", "training.stesp=3"],
        ["study", "quick-start", "traning.steps=3"],
        pytest.param(["study", "quick-start", "masking.policy=tokne"], marks=pytest.mark.slow),
        pytest.param(["study", "quick-start", "training.steps=-3"], marks=pytest.mark.slow),
        pytest.param(["pretrain", "quick-start", "training.stesp=3"], marks=pytest.mark.slow),
        pytest.param(["learn", "learn-meta", "training.stesp=3"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_misspelt_setting_is_refused_without_torch(arguments):
    assert HEAVY & loaded(MASKWISE, *arguments) <= {"pyarrow", "numpy", "pydantic"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["study", "quick-start", "objective=mln"],
        pytest.param(["check", "quick-start", "training.stesp=3"], marks=pytest.mark.slow),
        pytest.param(
            ["finetune", "bert-base-uncased", "--task", "ud-poss"], marks=pytest.mark.slow
        ),
        ["evaluate", "bert-base-uncased", "--with", "word-los"],
    ],
    ids=str,
)
def test_a_command_that_is_refused_needs_no_transformers(arguments):
    """Recipes are checked against objectives, which are torch modules. A model comes later."""
    names = loaded(MASKWISE, *arguments)
    assert not {"transformers", "accelerate", "scipy.stats"} & names


def test_public_names_are_there():
    for name in maskwise.__all__:
        assert getattr(maskwise, name) is not None
    assert {*maskwise.__all__} <= {*dir(maskwise)}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = maskwise.nonsense


def test_an_import_looks_for_no_plug_ins():
    """Reading the entry points of all installed packages takes some milliseconds."""
    code = (
        "import maskwise.masking, maskwise.base.plugins as p; print(p._points.cache_info().misses)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "0"
