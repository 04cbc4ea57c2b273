"""Behind ``maskwise inspect`` and ``maskwise list``: the same text under several policies, and what names there are."""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from maskwise.corpus import load_tokenizer, read_documents, require_documents, train_tokenizer
from maskwise.errors import MaskwiseError
from maskwise.masking import CORRUPTIONS, POLICIES, SCHEDULES, Masker
from maskwise.objectives import OBJECTIVES
from maskwise.recipe import shipped
from maskwise.show import Shown, show_masks
from maskwise.specs import split_calls
from maskwise.tasks.data import BUNDLED_TASKS

STYLES = {
    "shown": "default", "masked": "bold black on #e69f00", "random": "bold white on #cc3f7a",
}  # fmt: skip
MAX_TEXTS = 5


@dataclass(frozen=True)
class Inspected:
    """One text under one policy."""

    policy: str
    text: str
    shown: Shown

    def as_dict(self) -> dict[str, Any]:
        pieces = [piece.as_dict() for piece in self.shown.pieces]
        facts = {"source": self.shown.source, "target": self.shown.target} if self.shown.target else {}
        return {"policy": self.policy, "text": self.text, "ratio": self.shown.ratio, "pieces": pieces, **facts}


def inspect_text(
    text: str, policies: str, *, ratio: str, budget: str, corruption: str, fill: str, tokenizer: str | None, seed: int,
    step: int, total_steps: int,
) -> list[Inspected]:  # fmt: skip
    """Mask a text (or the first texts of a file) under each policy.

    Raises:
        MaskwiseError: no text, an unknown name, a policy whose layers a plain text does not have.
    """
    texts = _texts(text)
    tools = load_tokenizer(tokenizer, needs_mask=False) if tokenizer else _small_tokenizer()
    settings = {"ratio": ratio, "budget": budget, "corruption": corruption, "fill": fill, "seed": seed}
    maskers = {spec: Masker(tools, policy=spec, **settings) for spec in split_calls(policies)}
    return [
        Inspected(spec, one, show_masks(masker, tools, one, step=step, total_steps=total_steps))
        for one in texts
        for spec, masker in maskers.items()
    ]


def _texts(text: str) -> list[str]:
    looks_like_file = len(text) < 400 and "\n" not in text and Path(text).suffix in (".txt", ".jsonl", ".gz", ".parquet")
    if looks_like_file or (len(text) < 250 and Path(text).is_file()):
        documents = require_documents(read_documents(text))
        found = []
        for document in documents:
            found.append(" ".join(document.text.split())[:600])
            if len(found) == MAX_TEXTS:
                break
        return found
    if not text.strip():
        raise MaskwiseError("no text to mask", got="an empty text")
    return [text]


def _small_tokenizer() -> Any:
    """A WordPiece tokenizer of 4,096 pieces from the start of the bundled text: two seconds, no download."""
    texts = [document.text for document in read_documents("bundled:wikipedia", limit=400)]
    return train_tokenizer(texts, vocab_size=4096, lowercase=False)


def render_terminal(found: list[Inspected]) -> RenderableType:
    """Coloured text: chosen tokens stand out; what the model reads instead stands behind an arrow."""
    parts: list[RenderableType] = []
    for number, entry in enumerate(found):
        if not number or entry.text != found[number - 1].text:
            parts.append(_legend())
        title = Text.assemble((entry.policy, "bold"), f"   {entry.shown.ratio:.1%} of the tokens")
        line = Text()
        for piece in entry.shown.pieces:
            body = piece.text.lstrip()
            line.append(piece.text[: len(piece.text) - len(body)])
            line.append(body, style=STYLES[piece.state])
            if piece.shown:
                line.append(f"→{piece.shown}", style="italic #cc3f7a")
        parts += [title, Padding(line, (0, 0, 1, 2))]
        if entry.shown.target:
            parts.append(Padding(Text.assemble(("reads   ", "dim"), entry.shown.source), (0, 0, 0, 2)))
            parts.append(Padding(Text.assemble(("writes  ", "dim"), entry.shown.target), (0, 0, 1, 2)))
    return Group(*parts)


def _legend() -> Text:
    words = [("masked", "masked"), ("random", "another token"), ("kept", "chosen, shown unchanged")]
    pieces: list[Any] = []
    for state, label in words:
        pieces += [(f" {label} ", STYLES[state]), "  "]
    return Text.assemble(*pieces, "\n")


def render_html(found: list[Inspected], path: Path) -> None:
    """One self-contained page; every text is escaped."""
    environment = Environment(loader=PackageLoader("maskwise", "report"), autoescape=True)
    page = environment.get_template("masks.html.j2").render(found=found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


# Names for ``maskwise list``

TABLES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "policies": lambda: POLICIES,
    "schedules": lambda: SCHEDULES,
    "corruptions": lambda: CORRUPTIONS,
    "objectives": lambda: OBJECTIVES,
    "tasks": lambda: BUNDLED_TASKS,
    "recipes": shipped,
}


def describe_table(what: str) -> list[tuple[str, str, str]]:
    """(name, arguments, first line of the documentation) of every member."""
    return [(name, *_describe(member)) for name, member in TABLES[what]().items()]


def _describe(member: Any) -> tuple[str, str]:
    if isinstance(member, Path):
        lines = [line.lstrip("# ") for line in member.read_text().splitlines() if line.startswith("#")]
        return "", lines[0] if lines else ""
    if isinstance(member, str):
        return "", f"bundled: {member}.jsonl.gz"
    signature = python_inspect.signature(member)
    arguments = ", ".join(
        name if p.default is p.empty else f"{name}={p.default!r}" for name, p in signature.parameters.items()
    )
    return arguments, (python_inspect.getdoc(member) or "").split("\n")[0]
