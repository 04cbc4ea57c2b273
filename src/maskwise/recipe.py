"""Recipes: YAML, checked by pydantic, with ``key=value`` overrides. Configuration stops here.

Everything behind takes plain arguments. A recipe says what a study varies (``study.arms``: overrides of
settings) and what everything else is. Unknown keys name the nearest one; every name is looked up when the
recipe is read, so that nothing fails after an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.evaluation import EvaluationSettings
from maskwise.masking.corruptions import corruption
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule
from maskwise.masking.select import BUDGETS, FILLS
from maskwise.tasks import FinetuneSettings
from maskwise.training import TrainingSettings

ARM_PARTS = ("corpus", "tokenizer", "model", "masking", "training")
"""What an arm may change. All else is how arms are judged, and must be the same for all."""

NOT_AN_ARM = "no-pretraining"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusPart(_Part):
    """Where the text comes from and how it is cut into rows."""

    source: str = "bundled:wikipedia"
    """A file or folder (.txt, .jsonl, .gz, .parquet), ``hf:NAME`` for a datasets id, or the sample."""
    text_field: str = "text"
    limit: int | None = Field(None, ge=1)
    """At most this many documents."""
    length: int = Field(64, ge=4)
    """Positions a row."""
    layout: Literal["packed", "document"] = "packed"
    """Rows filled with one document after another, or a document piece each."""
    held_out: float = Field(0.02, gt=0, lt=0.5)
    """Share of the documents that is never trained on."""


class TokenizerPart(_Part):
    """A tokenizer by name, or one trained on the corpus."""

    name: str | None = None
    """A folder or hub id. None: train one."""
    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    vocab_size: int = Field(2048, ge=64)
    lowercase: bool = True


class ModelPart(_Part):
    """A model from a configuration, or a pre-trained one to go on with."""

    pretrained: str | None = None
    """A folder or hub id. None: fresh weights."""
    architecture: str = "modernbert"
    settings: dict[str, Any] = {}
    """Fields of the architecture's configuration, such as hidden_size."""
    unigram_bias: bool = True
    """Start the output bias at the log-frequencies of the training text."""


class MaskingPart(_Part):
    """What is masked, how much, and how it is shown."""

    policy: str = "token"
    ratio: str | float = 0.15
    budget: str = "exact"
    fill: str = "none"
    corruption: str = "bert"
    min_targets: int = Field(1, ge=0)
    predict: str | float = 1.0
    """The loss is taken on at most this share of each row's tokens."""

    @field_validator("policy", "ratio", "predict", "corruption")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:
        {"policy": policy, "corruption": corruption}.get(str(info.field_name), schedule)(value)
        return value

    @field_validator("corruption")
    @classmethod
    def _keeps_length(cls, value: str) -> str:
        if not corruption(value).keeps_length:
            do = "masked language models predict in place: take one that keeps lengths, such as bert"
            raise MaskwiseError(f"corruption {value} changes lengths", do=do)
        return value

    @field_validator("budget", "fill")
    @classmethod
    def _listed(cls, value: str, info: Any) -> str:
        names = BUDGETS if info.field_name == "budget" else FILLS
        if value not in names:
            raise unknown_name(str(info.field_name), value, names)
        return value


class StudyPart(_Part):
    """What is compared."""

    arms: dict[str, dict[str, Any]] = {}
    """By name: overrides of any setting, such as ``{masking.ratio: 0.30}``."""
    baseline: str | None = None
    """The arm that the others are compared with; the first one if not said."""
    seeds: int | tuple[int, ...] = 3
    """Pre-training runs per arm (how many, or which seeds). They are the replicates, paired by seed."""

    @model_validator(mode="after")
    def _consistent(self) -> StudyPart:
        if self.baseline is not None and self.baseline not in self.arms:
            raise unknown_name("baseline arm", self.baseline, self.arms)
        if NOT_AN_ARM in self.arms:
            raise MaskwiseError(f"an arm cannot be called {NOT_AN_ARM}: the reference of every study is")
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
            raise MaskwiseError(
                "study.seeds: a number of runs, or different seeds", got=self.seeds, allowed="≥ 1"
            )
        return self

    @field_validator("arms", mode="before")
    @classmethod
    def _nothing_changed(cls, arms: Any) -> Any:
        """``token-15:`` alone is an arm that changes nothing."""
        return {name: over or {} for name, over in arms.items()} if isinstance(arms, dict) else arms

    @property
    def seed_list(self) -> tuple[int, ...]:
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)


class Recipe(_Part):
    """A whole experiment."""

    name: str = "recipe"
    description: str = ""
    corpus: CorpusPart = CorpusPart()
    tokenizer: TokenizerPart = TokenizerPart()
    model: ModelPart = ModelPart()
    masking: MaskingPart = MaskingPart()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tasks: tuple[str, ...] = ()
    """What a checkpoint is judged by: bundled names, files, folders or ``hf:`` ids."""
    finetune: FinetuneSettings = FinetuneSettings()
    study: StudyPart = StudyPart()

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        fresh = not self.model.pretrained and "max_position_embeddings" not in self.model.settings
        if self.tasks and fresh and self.finetune.max_length > self.corpus.length:
            raise MaskwiseError(
                "finetune.max_length is more than the positions that a new model has",
                got=self.finetune.max_length,
                allowed=f"≤ corpus.length = {self.corpus.length}",
            )
        return self

    @property
    def baseline(self) -> str | None:
        """The arm that the others are compared with."""
        return self.study.baseline or next(iter(self.study.arms), None)

    def arm(self, name: str, *, seed: int) -> Recipe:
        """The recipe of one run: the arm's overrides and the seed put in."""
        raw = self.model_dump(mode="json", exclude={"study"})
        for key, value in _leaves(self.study.arms[name]):
            if key.split(".")[0] not in ARM_PARTS or key == "training.seed":
                allowed = ", ".join(ARM_PARTS)
                raise MaskwiseError(
                    f"arm {name!r} cannot change {key}", allowed=allowed, do="or all arms alike"
                )
            _put(raw, key, value)
        return validate({**raw, "training": {**raw["training"], "seed": seed}}, origin=f"arm {name!r}")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def shipped() -> dict[str, Path]:
    """The recipes that come with maskwise, by name."""
    folder = Path(str(files("maskwise") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a shipped recipe (by name) or a file, apply ``key=value`` overrides, check everything.

    Raises:
        MaskwiseError: no such recipe, no YAML, an unknown key or name, a value out of range.
    """
    path = shipped().get(str(source), Path(source))
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or "/" in str(source):
            raise MaskwiseError("no such recipe file", got=str(source))
        raise unknown_name("recipe", str(source), shipped(), do="or give the path of a YAML file")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MaskwiseError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(raw, dict):
        raise MaskwiseError(f"{path} is not a recipe", got=type(raw).__name__, allowed="keys and values")
    raw.setdefault("name", path.stem)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise MaskwiseError("an override is key=value", got=override, do="for example training.steps=500")
        _put(raw, key.strip(), parse_value(text))
    recipe = validate(raw, origin=str(source))
    for arm in recipe.study.arms:
        one = recipe.arm(arm, seed=0)  # every arm is checked now, not after the first has been trained
        kinds = policy(one.masking.policy).judged_on()
        if not recipe.tasks and not set(kinds) & set(recipe.evaluation.masks):
            raise MaskwiseError(
                f"arm {arm!r} would be judged by nothing: no tasks, and no held-out masks of its kind",
                got=f"evaluation.masks {list(recipe.evaluation.masks)}", allowed=" or ".join(kinds),
            )  # fmt: skip
    return recipe


def validate(raw: Mapping[str, Any], *, origin: str) -> Recipe:
    """A recipe from plain values, or one line that says what is wrong with them."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, origin) from None


def parse_value(text: str) -> Any:
    """The value of an override: YAML, with 1e-3 read as a number."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    # YAML 1.1 reads 1e-3 as a string; people mean a number.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``a.b.c`` in nested dicts."""
    *path, last = dotted.split(".")
    for part in path:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise MaskwiseError(f"cannot set {dotted}", got=f"{part} is a value, not a group of settings")
    raw[last] = value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ``a.b.c``, value: a dict changes only the keys that it names."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _explain(error: ValidationError, origin: str) -> MaskwiseError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        group: Any = Recipe
        for part in first["loc"][:-1]:
            group = group.model_fields[part].annotation
        return unknown_name(f"setting in {origin}:", place, [*_dotted(first["loc"][:-1], group.model_fields)])
    message = str(first["msg"]).removeprefix("Value error, ")
    got = first.get("input")
    plain = not isinstance(got, dict | BaseModel) and "got " not in message
    return MaskwiseError(f"{origin}: {place}: {message}", got=repr(got) if plain else None)


def _dotted(prefix: tuple[Any, ...], names: Iterable[str]) -> Iterable[str]:
    return (".".join([*map(str, prefix), name]) for name in names)
