"""What README shows works."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest
import yaml

from maskwise.cli import main
from maskwise.recipe import read_recipe, shipped, validate
from maskwise.text import encode
from training_tools import model, tokenizer

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("maskwise")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_python_example() -> None:
    tools = tokenizer()
    words = sorted(word for word in tools.get_vocab() if word.startswith("w"))
    names = {"tokenizer": tools, "texts": [" ".join(words[:9]), " ".join(words[2:7])], "model": model("bert")}
    (example,) = blocks("python")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(example, names)
    assert float(names["loss"].detach()) > 0  # type: ignore[union-attr]
    assert len(encode(tools, names["texts"])) == 2  # type: ignore[arg-type]


def test_the_recipes_are_some(tmp_path: Path) -> None:
    recipe, several = blocks("yaml")
    (tmp_path / "several.yaml").write_text(several)
    assert set(read_recipe(tmp_path / "several.yaml").objectives) == {"mlm", "mlm-low", "atd", "dtd", "cse"}
    read = validate(yaml.safe_load(recipe), origin="README")
    assert set(read.study.arms) == {"default", "more", "decay", "words", "spans"}
    assert [read.arm(name, seed=0).masking.policy for name in ("words", "spans")] == [
        "whole-word",
        "span(p=0.2)",
    ]


@pytest.mark.parametrize("command", [c for c in commands() if c[0] in ("inspect", "list")], ids=" ".join)
def test_commands_that_only_show(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0 and capsys.readouterr().out.strip()


def test_commands_that_work_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    """Their options exist and their recipes ship; what they do is run elsewhere."""
    found = {command[0] for command in commands()}
    assert found == {
        "inspect", "study", "pretrain", "finetune", "annotate", "evaluate", "report", "bench", "list",
    }  # fmt: skip
    for command in commands():
        with pytest.raises(SystemExit) as end:
            main([command[0], "--help"])
        text = capsys.readouterr().out
        assert end.value.code == 0
        assert all(word in text for word in command if word.startswith("--"))
        if command[0] in ("study", "pretrain"):
            assert command[1] in shipped() or command[1] == "my.yaml"


def test_linked_files_are_there() -> None:
    root = Path(__file__).parent.parent
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links and [link for link in links if not (root / link).exists()] == []
