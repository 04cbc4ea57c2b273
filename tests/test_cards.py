"""The front matter of model cards: what is known, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from maskwise.models.cards import BUNDLED_TEXTS, front_matter, metadata_of, with_metadata
from tiny import maskwise

DATA = Path(__file__).parents[1] / "src/maskwise/data/README.md"
MORE_DATA = Path(__file__).parents[1] / "packages/maskwise-data/src/maskwise_data/README.md"


def known(start: str | None, *texts: str) -> dict[str, Any]:
    front = front_matter(start, texts, library_name="transformers", tags=["fill-mask"])
    found = ModelCard(f"{front}# A model").data.to_dict()
    assert found == metadata_of(front)
    assert found.pop("library_name") == "transformers"
    assert found.pop("tags") == ["fill-mask", "maskwise"]
    return found


WIKIPEDIA = {"language": "en", "license": "cc-by-sa-4.0"}


@pytest.mark.parametrize(
    ("start", "texts", "found"),
    [
        (None, ["mine.txt"], {}),
        (None, ["bundled:wikipedia"], WIKIPEDIA),
        ("bundled:encoder", ["bundled:wikipedia"], WIKIPEDIA),
        ("bundled:encoder", ["mine.txt"], {}),
        (None, ["bundled:wikipedia", "mine.txt"], {}),
        # Two licences are none, and one language.
        (None, ["bundled:wikipedia", "bundled:world-0"], {"language": "en"}),
        ("ada/bert", ["bundled:wikipedia"], {"base_model": "ada/bert"}),
        (None, ["hf:ada/news:de:train", "hf:eve/mail"], {"datasets": ["ada/news", "eve/mail"]}),
        ("bert", ["hf:wikitext"], {"base_model": "bert", "datasets": ["wikitext"]}),
    ],
)
def test_a_card_says_what_is_known_and_guesses_nothing(
    start: str | None, texts: list[str], found: dict[str, Any]
) -> None:
    """Cards had a library and tags, and no language, licence, base model or data."""
    assert known(start, *texts) == found


def test_a_later_phase_has_the_base_of_the_first(tmp_path: Path) -> None:
    """It starts from a checkpoint of ours; a folder from elsewhere says nothing of itself."""
    (tmp_path / "config.json").write_text("{}")
    card = front_matter("ada/bert", ["hf:ada/news"], library_name="transformers", tags=[])
    (tmp_path / "README.md").write_text(f"{card}# A model")
    said = known(str(tmp_path), "hf:eve/mail")
    assert said == {"base_model": "ada/bert", "datasets": ["eve/mail", "ada/news"]}
    (tmp_path / "README.md").write_text("---\nbase_model: x/y\nlicense: mit\n---\n\n# Another")
    assert known(str(tmp_path), "mine.txt") == {}
    # What people have edited is no reason to lose a checkpoint.
    ours = "---\ntags: [maskwise]\nlicense: {a: b}\nlanguage: [[en]]\n---\n"
    for odd in (ours, "---\n: [\n---\n", "---\n- a\n---\n", "no front matter", "---\n"):
        (tmp_path / "README.md").write_text(odd)
        assert known(str(tmp_path), "mine.txt") == {}


def test_the_licences_of_bundled_texts_are_those_of_the_data() -> None:
    rows = re.findall(r"^\| (\S+?)\.jsonl.*\| (.*?) \|$", DATA.read_text(), flags=re.M)
    [written] = [licence for name, licence in rows if name == "wikipedia"]
    assert "CC BY-SA 4.0" in written
    assert BUNDLED_TEXTS["bundled:wikipedia"]["license"] == "cc-by-sa-4.0"
    [worlds] = [line for line in MORE_DATA.read_text().splitlines() if "world-11, .jsonl" in line]
    assert worlds.endswith("| as maskwise |")
    assert "Apache-2.0" in (DATA.parents[3] / "pyproject.toml").read_text()


def test_metadata_replaces_what_is_known_and_keeps_the_text() -> None:
    card = "---\ntags: [a]\nlicense: mit\n---\n\n# Text\n\n---\n\nmore\n"
    changed = with_metadata(card, {"license": "apache-2.0", "language": ["de", "en"]})
    wanted = {"tags": ["a"], "license": "apache-2.0", "language": ["de", "en"]}
    assert metadata_of(changed) == wanted
    assert changed.endswith("# Text\n\n---\n\nmore\n")
    assert with_metadata("# Text", {}).endswith("# Text")


@pytest.mark.usefixtures("small_encoder")
def test_a_trained_checkpoint_has_a_card_of_the_hub(tmp_path: Path) -> None:
    out = tmp_path / "run"
    texts = tmp_path / "mine.txt"
    texts.write_text("\n".join(f"This is the line {n} of a small text." for n in range(40)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"corpus: {{source: {texts}, held_out: 0.2, length: 16}}\n")
    options = ["training.steps=2", "training.batch_size=4", "evaluation.rows=4"]
    started = "model.pretrained=bundled:encoder"
    assert maskwise("pretrain", recipe, started, *options, "--out", out) == 0
    data = ModelCard.load(out / "checkpoint" / "README.md").data
    assert (data.library_name, data.tags) == ("transformers", ["fill-mask", "maskwise"])
    assert data.language is None and data.license is None and data.base_model is None
