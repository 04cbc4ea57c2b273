"""Invented worlds: a corpus and questions about it of which everything is known, and so also the
best policy.

``factworld`` tells of invented people. A question asks for one attribute of a person, and the
answer can be known from the corpus alone: those who answer learn the form of the question from
*other* people. ``causalworld`` is the contrary. There the answer follows from the question by a
rule that fine-tuning teaches and no text states, so no stage of pre-training can help.

A world is named wherever a corpus or a task is, ``factworld(people=300, asked="job", seed=0)``, and
its texts carry their own layers: ``salient``, the spans of all named entities, and ``asked``, those
of the attribute that is asked for. The words are the same in every world, so that a model can go on
from one world to the next; ``seed`` decides who lives there, and ``seed="run"`` makes it the seed
of the run, so that a study's replicate is a world and a model.

Cost: a thousand texts in 0.3 s.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from maskwise.errors import MaskwiseError
from maskwise.specs import Call, build, parse_call
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.words import text_id

ATTRIBUTES = ("job", "city", "year", "university", "employer")
"""What can be asked of a person. A job is no named entity; the others are."""
SAME_WORDS = {
    "trade": "job",
    "place": "city",
    "time": "year",
    "school": "university",
    "firm": "employer",
}
"""The same words where they are of nobody who is asked about, by what they are called there."""
SHARES = {"train": 0.5, "dev": 0.1, "test": 0.4}
"""How people are split: those whose answers are shown, those that settings are chosen on, and those
that count.
"""
TAGS = (*ATTRIBUTES, *SAME_WORDS, "name", "friend", "adjective", "noun", "verb", "other")
"""What a word of a biography is: of nobody but the person, of somebody else, or of the language."""
RUN = "run"

Row = TypeVar("Row")
Piece = tuple[str, str]
"""A word or name of a text, and what it is: an attribute, ``name``, ``friend``, ``change``, or
nothing.
"""


@cache
def language() -> dict[str, Any]:
    """Templates of sentences, words, and what names are made of."""
    path = Path(__file__).parent.parent / "data" / "worlds.yaml"
    parts: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return parts


@cache
def lexicon() -> dict[str, list[str]]:
    """The words of all worlds by what they are. Names are invented, and none stands for two things."""
    draw, parts = random.Random("words of invented worlds"), language()["names"]
    words = {kind: text.split() for kind, text in language()["words"].items()}
    words["noun"] += words["cause"]
    words["year"] = [str(year) for year in range(1900, 1960)]
    used = {word for known in words.values() for word in known}
    for kind, (count, endings) in parts["endings"].items():
        names: list[str] = []
        while len(names) < count:
            beginning = draw.choice(parts["openings"].split()) + draw.choice(
                parts["middles"].split()
            )
            name = beginning + draw.choice(endings)
            if name not in used:
                used.add(name)
                names.append(name.capitalize())
        words[kind] = names
    return words | {other: words[kind] for other, kind in SAME_WORDS.items()}


@dataclass(frozen=True, kw_only=True)
class World(ABC):
    """An invented world: its texts, their layers, and questions.

    It is also the annotator of its own texts, which it looks up; to other texts it has nothing to
    say.
    """

    seed: int | str = 0

    name: ClassVar[str]
    whole_texts: ClassVar[bool] = True
    salient: ClassVar[frozenset[str]]
    """What of a text is a named entity."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]]
    """The least and the greatest value of options that are numbers."""
    lists: ClassVar[frozenset[str]] = frozenset()
    """Options that may be lists of what they are else."""

    def __post_init__(self) -> None:
        if self.seed != RUN and type(self.seed) is not int:
            raise MaskwiseError(
                f"seed of {self.name}", got=self.seed, allowed=f"a whole number, or {RUN}"
            )
        for name, (value, default) in self._options().items():
            good = type(value) is type(default) or (name in self.lists and type(value) is tuple)
            allowed = f"such as {default!r}"
            if name in self.ranges:
                low, high = self.ranges[name]
                number = "whole number" if type(default) is int else "number"
                good = type(value) in (int, type(default)) and low <= value <= high
                allowed = f"a {number}, {low} to {high}"
            if name != "seed" and not good:
                raise MaskwiseError(f"{name} of {self.name}", got=value, allowed=allowed)

    def __str__(self) -> str:
        """The world as one writes it: only what is not as usual."""
        options = self._options().items()
        return str(
            Call(self.name, (), {name: value for name, (value, usual) in options if value != usual})
        )

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers of its texts."""
        return {"salient": Layer("spans"), "asked": Layer("spans")}

    def _options(self) -> dict[str, tuple[Any, Any]]:
        """Every option's value and its default; the seed comes last."""
        options = sorted(fields(self), key=lambda option: option.name == "seed")
        return {option.name: (getattr(self, option.name), option.default) for option in options}

    @abstractmethod
    def _texts(self) -> Iterator[tuple[str, list[Piece]]]:
        """The name and the pieces of every text."""

    @abstractmethod
    def questions(self) -> dict[str, list[dict[str, Any]]]:
        """Records with ``question`` and ``answers``, and ``relation`` if there are several, by
        split.
        """

    @property
    @abstractmethod
    def task_name(self) -> str:
        """What records call its task."""

    @property
    @abstractmethod
    def answers(self) -> tuple[str, ...]:
        """The kinds of words that answers are."""

    def documents(self) -> list[tuple[str, str]]:
        """The name of every text, and the text."""
        return [(name, text) for name, text, _ in self._told]

    @cached_property
    def _told(self) -> list[tuple[str, str, dict[str, CharSpans]]]:
        told = []
        layers = self.layers
        for name, pieces in self._texts():
            text = ""
            spans: dict[str, list[Any]] = {layer: [] for layer in layers}
            for word, kind in pieces:
                if text and word not in ".,?":
                    text += " "
                place = (len(text), len(text) + len(word))
                text += word
                if kind in self.salient:
                    spans["salient"].append(place)
                if kind in self.answers:
                    spans["asked"].append(place)
                if "tag" in spans:
                    tag = kind if kind in TAGS else "other"
                    spans["tag"].append((*place, 1 + TAGS.index(tag)))
            found = {layer: CharSpans.of(spans[layer], layers[layer]) for layer in layers}
            told.append((name, text, found))
        return told

    @cached_property
    def _known(self) -> dict[int, dict[str, CharSpans]]:
        return {text_id(text): spans for _, text, spans in self._told}

    @property
    def version(self) -> str:
        """Hash of the texts and of what is asked."""
        return _version(self)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """The spans of its own texts; none for any other text."""
        none = {name: CharSpans.of([], layer) for name, layer in self.layers.items()}
        return [self._known.get(text_id(text), none) for text in texts]

    def _draw(self, purpose: str) -> random.Random:
        """Random draws that depend on the world's seed and on what they are for."""
        return random.Random(f"{self.name} {0 if self.seed == RUN else self.seed} {purpose}")


@cache  # a study asks for it again for each of its hundreds of stages
def _version(world: World) -> str:
    return digest(
        world.name,
        " ".join(world.answers),
        *(["tag"] if "tag" in world.layers else []),
        *(part for name, text in world.documents() for part in (name, text)),
    )


@dataclass(frozen=True, kw_only=True)
class FactWorld(World):
    """Invented people, each told of in several short biographies of about 50 tokens.

    Attributes:
        people: how many.
        asked: the attribute that questions ask for: one of ``ATTRIBUTES``, or several.
        facts: what a biography tells: birth (city and year), work (job and employer), study
            (university).
        biographies: texts for each person; the same facts in another order, among other
            distractors.
        paraphrases: in how many ways a fact may be put, of three.
        friends: whether a biography also says whom the person met, and where.
        fillers: sentences in it that are about nobody.
        decoys: sentences in it where a word of the asked kind is of no use: some friend once saw a
            baker. What is useful can then be told by the place of a word, and not by the word.
        others: other people than those of the questions, none of whom has the name of one of them.
        tags: whether the texts carry a third layer, ``tag``: what every word is, of ``TAGS``.
        seed: who lives there, and what is said of them.

    >>> world = FactWorld(people=20, fillers=0, friends=False)
    >>> world.documents()[0][1].partition(".")[0]
    'Truno Panwick worked as a farmer for Pinco'
    """

    people: int = 300
    asked: str | tuple[str, ...] = "job"
    facts: tuple[str, ...] = ("birth", "work", "study")
    biographies: int = 4
    paraphrases: int = 1
    friends: bool = True
    fillers: int = 2
    decoys: int = 0
    others: bool = False
    tags: bool = False

    name = "factworld"
    salient = frozenset(
        {
            "name",
            "friend",
            "city",
            "year",
            "university",
            "employer",
            "place",
            "time",
            "school",
            "firm",
        }
    )
    ranges = {
        "people": (10, 1800),
        "biographies": (1, 1000),
        "paraphrases": (1, 3),
        "fillers": (0, 100),
        "decoys": (0, 100),
    }
    lists = frozenset({"asked"})

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = self.answers
        if not asked or not set(asked) <= set(ATTRIBUTES) or len(set(asked)) < len(asked):
            raise MaskwiseError("asked of factworld", got=self.asked, allowed=", ".join(ATTRIBUTES))
        known = language()["facts"]
        told = " ".join(known[fact][0] for fact in self.facts if fact in known)
        if not set(self.facts) <= set(known) or any(
            f"{{{attribute}}}" not in told for attribute in asked
        ):
            allowed = f"some of {', '.join(known)}, and what tells the {' and the '.join(asked)}"
            raise MaskwiseError("facts of factworld", got=list(self.facts), allowed=allowed)

    @property
    def layers(self) -> Mapping[str, Layer]:
        return {**super().layers, **({"tag": Layer("categorical", TAGS)} if self.tags else {})}

    @property
    def task_name(self) -> str:
        return "-".join(("factworld", *self.answers))

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.asked,) if isinstance(self.asked, str) else self.asked

    @cached_property
    def persons(self) -> list[dict[str, str]]:
        """Every person's name and attributes. The values of an attribute are dealt out evenly."""
        words, who = lexicon(), "others" if self.others else "people"
        names = [f"{first} {last}" for first in words["first"] for last in words["last"]]
        self._draw("names").shuffle(names)
        taken = names[-self.people :] if self.others else names[: self.people]
        dealt = {}
        for attribute in ATTRIBUTES:
            values = words[attribute]
            dealt[attribute] = [values[place % len(values)] for place in range(self.people)]
            self._draw(f"{attribute} of {who}").shuffle(dealt[attribute])
        return [
            {"name": name, **{a: dealt[a][place] for a in ATTRIBUTES}}
            for place, name in enumerate(taken)
        ]

    def _texts(self) -> Iterator[tuple[str, list[Piece]]]:
        draw, parts = (
            self._draw("biographies of " + ("others" if self.others else "people")),
            language(),
        )
        for number, person in enumerate(self.persons):
            for copy in range(self.biographies):
                templates = [
                    draw.choice(parts["facts"][fact][: self.paraphrases]) for fact in self.facts
                ]
                templates += [parts["meeting"]] * self.friends
                templates += [draw.choice(parts["fillers"]) for _ in range(self.fillers)]
                templates += [
                    parts["decoys"][attribute] for attribute in self.answers
                ] * self.decoys
                draw.shuffle(templates)
                pieces = [
                    piece for template in templates for piece in _filled(template, person, draw)
                ]
                yield f"{'other' if self.others else 'person'}-{number}-{copy}", pieces

    def questions(self) -> dict[str, list[dict[str, Any]]]:
        """One for every person and attribute; the people are split, so that the answers of test
        stand in the corpus alone."""
        questions = {}
        for split, people in _split(self.persons).items():
            questions[split] = rows = list[dict[str, Any]]()
            for person in people:
                for asked in self.answers:
                    question = f"what {asked} {person['name']}?"
                    rows.append(
                        {"question": question, "answers": [person[asked]], "relation": asked}
                    )
        return questions


@dataclass(frozen=True, kw_only=True)
class CausalWorld(World):
    """Weather and crops: what happens to a crop follows from the question, and no text says it.

    Each cause helps or harms all crops. A question names changes of some causes, and its answer is
    ``more`` if more of the changes help than harm, else ``less``. The texts speak of the same
    changes and of no effect.

    Attributes:
        causes: how many there are; each helps or harms, as the seed decides.
        influences: changes that a question names: an odd number, so that there is no tie.
        asked: how many questions there are, in all splits.
        texts: how many the corpus has.
        noise: the share of all questions whose answer is the other one, by chance: nobody can be
            right about more than the rest, so arms that have all learned the rule stand clear of
            the ceiling.

    >>> world = CausalWorld(asked=20)
    >>> world.questions()["train"][0]
    {'question': 'more heat, less rain, more rust. what beet?', 'answers': ['less']}
    """

    causes: int = 24
    influences: int = 3
    asked: int = 600
    texts: int = 1200
    noise: float = 0.0

    name = "causalworld"
    salient = frozenset({"year", "place", "friend"})

    ranges = {
        "causes": (3, 29),
        "influences": (1, 9),
        "asked": (10, 100_000),
        "texts": (1, 1_000_000),
        "noise": (0.0, 0.5),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.influences % 2 == 0 or self.influences > self.causes:
            allowed = f"an odd number, at most {self.causes}, the causes"
            raise MaskwiseError("influences of causalworld", got=self.influences, allowed=allowed)

    @property
    def task_name(self) -> str:
        return "causalworld"

    @property
    def answers(self) -> tuple[str, ...]:
        return ("change",)

    def _texts(self) -> Iterator[tuple[str, list[Piece]]]:
        draw = self._draw("reports")
        for number in range(self.texts):
            templates = [draw.choice(language()["reports"]) for _ in range(4)]
            yield (
                f"report-{number}",
                [p for template in templates for p in _filled(template, {}, draw)],
            )

    def questions(self) -> dict[str, list[dict[str, Any]]]:
        """Questions that differ, each with the answer that follows from it."""
        draw, causes = self._draw("questions"), lexicon()["cause"][: self.causes]
        helps = {
            cause: place % 2 == 0 for place, cause in enumerate(draw.sample(causes, len(causes)))
        }
        rows: dict[str, str] = {}
        chance = self._draw("noise")
        for _ in range(20 * self.asked):
            if len(rows) == self.asked:
                break
            changes = [
                (draw.choice(("more", "less")), cause)
                for cause in draw.sample(causes, self.influences)
            ]
            said = ", ".join(f"{change} {cause}" for change, cause in changes)
            good = sum((change == "more") == helps[cause] for change, cause in changes)
            question = f"{said}. what {draw.choice(lexicon()['crop'])}?"
            true = (2 * good > self.influences) != (chance.random() < self.noise)
            rows[question] = "more" if true else "less"
        if len(rows) < self.asked:
            what = "so many different questions cannot be asked in this causalworld"
            raise MaskwiseError(what, got=self.asked, do="give it more causes or influences")
        return _split(
            [{"question": question, "answers": [answer]} for question, answer in rows.items()]
        )


WORLDS: Mapping[str, Callable[..., World]] = {"factworld": FactWorld, "causalworld": CausalWorld}


def _filled(template: str, person: Mapping[str, str], draw: random.Random) -> Iterator[Piece]:
    """The pieces of a sentence: the person's own, or drawn from the words of that kind."""
    for part in template.split():
        kind = part[1:-1] if part.startswith("{") else ""
        yield (person.get(kind) or draw.choice(lexicon()[kind]) if kind else part), kind


def _split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows, in their order, by ``SHARES``."""
    first, second = round(SHARES["train"] * len(rows)), round((1 - SHARES["test"]) * len(rows))
    return {
        "train": list(rows[:first]),
        "dev": list(rows[first:second]),
        "test": list(rows[second:]),
    }


def read_world(source: object) -> World | None:
    """The world that a string names; None for any other source, and for a file of that name.

    Raises:
        MaskwiseError: options that the world does not take.

    >>> str(read_world("factworld(seed=0, people=40)")), read_world("texts.txt")
    ('factworld(people=40)', None)
    """
    if (
        not isinstance(source, str)
        or source.partition("(")[0].strip() not in WORLDS
        or Path(source).exists()
    ):
        return None
    return _read(source)


@lru_cache(maxsize=32)
def _read(source: str) -> World:
    call = parse_call(source)
    world: World = build(
        "world", replace(call, kwargs={k: _plain(v) for k, v in call.kwargs.items()}), WORLDS
    )
    return world


def _plain(value: Any) -> Any:
    """The value of an option; a bare word is a text, and ``true`` and ``false`` are what they say."""
    if isinstance(value, tuple):
        return tuple(_plain(member) for member in value)
    return (
        {"true": True, "false": False}.get(str(value), str(value))
        if isinstance(value, Call)
        else value
    )


def of_run(settings: Any, seed: int) -> Any:
    """The same settings with the seed of a run in every world that says ``seed="run"``.

    >>> of_run({"source": "factworld(people=40, seed=run)", "limit": 9}, 7)
    {'source': 'factworld(people=40, seed=7)', 'limit': 9}
    """
    if isinstance(settings, Mapping):
        return {of_run(key, seed): of_run(value, seed) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return type(settings)(of_run(value, seed) for value in settings)
    if (
        isinstance(settings, str)
        and settings.partition("(")[0].strip() in WORLDS
        and RUN in settings
    ):
        call = parse_call(settings)
        if str(call.kwargs.get("seed")) == RUN:
            return str(Call(call.name, call.args, {**call.kwargs, "seed": seed}))
    return settings
