"""A study that takes seconds: a made-up language, a model of two layers and sixteen numbers, forty
steps.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from invented import World
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import FORMATS, GOVERNED
from maskwise.recipe import read_recipe, shipped

SYLLABLES = "ba ke lo mi nu pra sto tri vel zun", "da fe gor lin mas pet rok sun tal wix"
WORDS = [first + second for first in SYLLABLES[0].split() for second in SYLLABLES[1].split()]


def write_inputs(folder: Path) -> Path:
    """corpus.jsonl (60 documents), task.jsonl (40 rows) and recipe.yaml; returns the recipe's
    path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    texts = []
    for number in range(60):
        topic = WORDS[20 * (number % 4) :][:20]
        texts.append(
            " ".join(" ".join(draw.choices(topic, k=8)).capitalize() + "." for _ in range(8))
        )
    write_lines(
        folder / "corpus.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    )
    rows = []
    for number in range(40):
        label, split = number % 2, ("train", "train", "dev", "test")[number // 2 % 4]
        words = draw.choices(WORDS[30 * label :][:30], k=6)
        rows.append({"text": " ".join(words), "label": "ab"[label], "split": split})
    write_lines(folder / "task.jsonl", rows)
    recipe = {
        "corpus": {"source": str(folder / "corpus.jsonl"), "length": 32, "held_out": 0.2},
        "tokenizer": {"vocab_size": 120},
        "model": {
            "architecture": "bert",
            "settings": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
            },
        },
        "training": {
            "steps": 40,
            "batch_size": 8,
            "log_every": 5,
            "save_every": 5,
            "eval_every": 20,
            "learning_rate": 5e-3,
            "precision": "no",
        },
        "evaluation": {"rows": 16},
        # A task that names its kind keeps its spec, and its stages their names, in every command.
        "tasks": [f"{folder / 'task.jsonl'}(kind='sequence-classification')"],
        "finetune": {"epochs": 2, "seeds": 2, "max_length": 32},
        "study": {
            "seeds": 2,
            "arms": {
                "token-15": {},
                "words-30": {
                    "masking": {"policy": "whole-word", "budget": "expected"},
                    "masking.ratio": 0.3,
                },
            },
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


SMALLER = [
    "corpus.length=32",
    "tokenizer.vocab_size=300",
    "model.settings={hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 2, "
    "intermediate_size: 48}",
    "training.accumulate=2",
    "training.compile=false",
]
"""A recipe for accelerators, on a processor."""


def find_recipe(name: str) -> Path:
    """A shipped recipe, or one of benchmarks/recipes."""
    path = Path(__file__).parent.parent / "benchmarks" / "recipes" / f"{name}.yaml"
    return shipped().get(name, path)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def load_rows(
    folder: Path, rows: list[dict[str, Any]], *, name: str = "mine", **options: Any
) -> Any:
    """Load a task from rows, which are written to a file."""
    from maskwise.tasks import load_task

    return load_task(write_lines(folder / f"{name}.jsonl", rows), **options)


SPLITS = ("train", "dev", "test")


def in_every_split(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Repeat rows, so that train, dev and test are equal."""
    return [{**row, "split": split} for split in SPLITS for row in rows]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


OTHERS = {
    # of transformers, tokenizers and sentence-transformers
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    # read by keys or by people
    *("recipe.yaml", "adapt.yaml", "README.md", "report.html", "error.txt"),
    # read by editors
    ".maskwise.schema.json",
}
"""Files without a version of maskwise's."""


def unversioned(out: Path) -> list[str]:
    """List the files in a folder whose format no version says."""
    found = []
    for path in out.rglob("*"):
        name = path.name
        known = name in OTHERS or name.endswith((".safetensors", ".lock", ".parquet", ".arrow"))
        if name in FORMATS:
            known = load_json(path).get("format") == FORMATS[name]
        elif name in GOVERNED:
            above = path.relative_to(out).parents
            known = any((out / each / by).is_file() for each in above for by in GOVERNED[name])
        elif path.suffix == ".bin":
            known = path.with_name("columns.json").is_file()
        if path.is_file() and not known:
            found.append(str(path.relative_to(out)))
    return found


def records_of(out: Path, kind: str) -> list[dict[str, Any]]:
    """The records of a study of one kind."""
    return [line for line in read_lines(out / "records.jsonl") if line["kind"] == kind]


def compare(recipe: Path, overrides: Any, out: Path, **options: Any) -> dict[str, Any]:
    """Run a study in silence."""
    from maskwise.recipe import read_recipe
    from maskwise.studies import run_study

    return run_study(read_recipe(recipe, overrides), out, **options)


def maskwise(*arguments: Any) -> int:
    """Run a command in this process; returns the exit code."""
    from maskwise.cli import main

    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    raise AssertionError("main always exits")


def interrupt(patch: pytest.MonkeyPatch, step: int, **settings: Any) -> None:
    """Press Ctrl-C once, at a step of a training with these settings."""
    from maskwise.training.engine import Engine

    update = Engine.update

    def stopping(self: Engine, now: Any, *rest: Any, **more: Any) -> Any:
        if now.number == step and settings.items() <= self.settings.model_dump().items():
            patch.undo()
            raise KeyboardInterrupt
        return update(self, now, *rest, **more)

    patch.setattr(Engine, "update", stopping)


def start(*arguments: Any, **more: Any) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    command = [sys.executable, "-m", "maskwise", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **{**pipes, **more})


def learning_study(world: World, *tasks: str, rest: str) -> str:
    """A recipe of seconds on a text of a world, with ``rest`` for what is learned and compared."""
    return f"""
corpus:
  source: "{world.source}"
  layers: {json.dumps(world.layers)}
  length: 32
  layout: document
tokenizer: {{vocab_size: 512}}
model:
  architecture: bert
  settings: {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}}
masking: {{corruption: mask-only, ratio: 0.15, fill: random}}
training: {{steps: 4, batch_size: 8}}
evaluation: {{ratios: [0.15], masks: [whole-word], rows: 8}}
tasks: {json.dumps(tasks)}
finetune: {{steps: 2, batch_size: 8, max_length: 16, seeds: 1}}
{rest}"""


def check_refused(recipe: Path, override: str, said: str, out: Path) -> None:
    """An override is refused in one line when the recipe is read, and by a study before it writes
    anything.
    """
    with pytest.raises(MaskwiseError) as caught:
        read_recipe(recipe, [override])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert maskwise("study", recipe, override, "--out", out) == 2
    assert not out.exists()


def flip(path: Path, *, at: float) -> bytes:
    """Change one bit of a file, a share of its length from the beginning; returns what it was."""
    content = path.read_bytes()
    place = int(at * (len(content) - 1))
    changed = content[place] ^ 1
    path.write_bytes(content[:place] + bytes([changed]) + content[place + 1 :])
    return content
