"""Invented worlds: a corpus and questions about it for which the best policy is known.

``factworld`` tells of invented people. A question asks for one attribute of a person, and the
corpus alone has the answer: those who answer learn the form of the question from *other* people.
``causalworld`` is the contrary: the answer follows from the question by a rule that fine-tuning
teaches and no text states, so no stage of pre-training can help.

A world is named wherever a corpus or a task is, ``factworld(people=300, asked="job", seed=0)``, and
its texts carry their own layers: ``salient``, the spans of all named entities, and ``asked``, those
of the attribute in question. The words are the same in every world, so that a model can continue in
another one; ``seed`` decides who lives there, and ``seed="run"`` takes the seed of the run, so that
a study's replicate is a world and a model.

Cost: 0.3 ms a text.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, lru_cache
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from maskwise.errors import MaskwiseError, finite_number, whole_number
from maskwise.specs import Call, build, parse_call
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.lexicon import ATTRIBUTES, SAME_WORDS, language, lexicon
from maskwise.text.words import text_id

TRAIN_SHARE = 0.5
DEV_SHARE = 0.1
"""Shares of the people for training and for choosing settings; the others are for testing."""
TAGS = (*ATTRIBUTES, *SAME_WORDS, "name", "friend", "adjective", "noun", "verb", "other")
"""Kinds of words in a biography: facts about the person, about others, or the language."""
RUN = "run"

Row = TypeVar("Row")
Question = dict[str, Any]
Piece = tuple[str, str]
"""A word or name, and its kind: an attribute, ``name``, ``friend``, ``change``, or ""."""


@dataclass(frozen=True, kw_only=True)
class World(ABC):
    """An invented world: its texts, their layers, and questions.

    It also annotates its own texts, which it looks up.
    """

    seed: int | str = 0

    name: ClassVar[str]
    whole_texts: ClassVar[bool] = True
    salient: ClassVar[frozenset[str]]
    """Kinds of words that are named entities."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]]
    """Least and greatest values of options that are numbers."""
    flags: ClassVar[tuple[str, ...]] = ()
    """Options that are true or false."""

    def __post_init__(self) -> None:
        for option in fields(self):
            what = f"{option.name} of {self.name}"
            value = getattr(self, option.name)
            if option.name in self.ranges:
                low, high = self.ranges[option.name]
                check = whole_number if isinstance(option.default, int) else finite_number
                check(what, value, least=low, most=high)
            elif option.name == "seed" and value != RUN:
                whole_number(what, value, do=f"or take {RUN!r}")
            elif option.name in self.flags and type(value) is not bool:
                raise MaskwiseError(what, got=value, allowed="True or False")

    def __str__(self) -> str:
        """Write the world with the options that differ from their defaults, the seed last."""
        changed = {}
        for option in sorted(fields(self), key=lambda option: option.name == "seed"):
            value = getattr(self, option.name)
            if value != option.default:
                changed[option.name] = value
        return str(Call(self.name, (), changed))

    @abstractmethod
    def _texts(self) -> Iterator[tuple[str, list[Piece]]]:
        """Yield the name and the pieces of every text."""

    @abstractmethod
    def questions(self) -> dict[str, list[Question]]:
        """Return records with ``question``, ``answers`` and, of several, ``relation``, by split."""

    @property
    def task_name(self) -> str:
        """Name of its task in records."""
        return self.name

    @property
    @abstractmethod
    def answers(self) -> tuple[str, ...]:
        """Kinds of words that answers are."""

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers of its texts."""
        return {"salient": Layer("spans"), "asked": Layer("spans")}

    def documents(self) -> list[tuple[str, str]]:
        """Return the name of every text, and the text."""
        return [(name, text) for name, text, _ in self._written]

    @cached_property
    def _written(self) -> list[tuple[str, str, dict[str, CharSpans]]]:
        """Names, texts and their spans."""
        written = []
        for name, pieces in self._texts():
            text = ""
            spans: dict[str, list[tuple[int, ...]]] = {layer: [] for layer in self.layers}
            for word, kind in pieces:
                # marks follow their word without a blank
                if text and word not in ".,?":
                    text += " "
                place = (len(text), len(text) + len(word))
                text += word
                if kind in self.salient:
                    spans["salient"].append(place)
                if kind in self.answers:
                    spans["asked"].append(place)
                if "tag" in spans:
                    code = 1 + TAGS.index(kind if kind in TAGS else "other")
                    spans["tag"].append((*place, code))
            found = {key: CharSpans.of(spans[key], layer) for key, layer in self.layers.items()}
            written.append((name, text, found))
        return written

    @cached_property
    def _known(self) -> dict[int, dict[str, CharSpans]]:
        return {text_id(text): spans for _, text, spans in self._written}

    @property
    def version(self) -> str:
        """Hash of the texts and of what is asked."""
        return _version(self)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """Return the spans of its own texts; none for any other text."""
        none = {name: CharSpans.of([], layer) for name, layer in self.layers.items()}
        return [self._known.get(text_id(text), none) for text in texts]

    def _draw(self, purpose: str) -> random.Random:
        """Return random draws for a purpose."""
        # without a run the seed is that of the first run
        seed = 0 if self.seed == RUN else self.seed
        return random.Random(f"{self.name} {seed} {purpose}")


# cached, because a study asks for it for each of its hundreds of stages
@cache
def _version(world: World) -> str:
    parts = [world.name, " ".join(world.answers)]
    if "tag" in world.layers:
        parts.append("tag")
    for name, text in world.documents():
        parts += [name, text]
    return digest(*parts)


@dataclass(frozen=True, kw_only=True)
class FactWorld(World):
    """Invented people, each with several short biographies of about 50 tokens.

    Attributes:
        people: number of people.
        asked: the attribute that questions ask for: one of ``ATTRIBUTES``, or several.
        facts: of a biography: birth (city, year), work (job, employer), study (university).
        biographies: texts for each person, with the same facts in another order.
        paraphrases: number of wordings of a fact, up to three.
        friends: whether a biography also says whom the person met, and where.
        fillers: sentences in it about nobody.
        decoys: sentences in it with a useless word of the asked kind: some friend once saw a baker.
        others: other people than those of the questions, with other names.
        tags: whether the texts carry a third layer, ``tag``: the kind of every word, of ``TAGS``.
        seed: of the people and the texts.

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
    salient = frozenset({"name", "friend", *ATTRIBUTES, *SAME_WORDS} - {"job", "trade"})
    ranges = {
        "people": (10, 1800),
        "biographies": (1, 1000),
        "paraphrases": (1, 3),
        "fillers": (0, 100),
        "decoys": (0, 100),
    }
    flags = ("friends", "others", "tags")

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = self.answers
        if not asked or not set(asked) <= set(ATTRIBUTES) or len(set(asked)) < len(asked):
            raise MaskwiseError("asked of factworld", got=self.asked, allowed=", ".join(ATTRIBUTES))
        known = language()["facts"]
        templates = " ".join(known[fact][0] for fact in self.facts if fact in known)
        missing = [attribute for attribute in asked if f"{{{attribute}}}" not in templates]
        if missing or not set(self.facts) <= set(known):
            allowed = f"some of {', '.join(known)}, with one about the {' and the '.join(asked)}"
            raise MaskwiseError("facts of factworld", got=list(self.facts), allowed=allowed)

    @property
    def layers(self) -> Mapping[str, Layer]:
        layers = dict(super().layers)
        if self.tags:
            layers["tag"] = Layer("categorical", TAGS)
        return layers

    @property
    def task_name(self) -> str:
        return "-".join(("factworld", *self.answers))

    @property
    def answers(self) -> tuple[str, ...]:
        if isinstance(self.asked, str):
            return (self.asked,)
        return self.asked

    @cached_property
    def persons(self) -> list[dict[str, str]]:
        """Every person's name and attributes. The values of an attribute are dealt out evenly."""
        words = lexicon()
        names = list(map(" ".join, product(words["first"], words["last"])))
        # one order for people and others, who are its two ends
        self._draw("names").shuffle(names)
        if self.others:
            # from the end, so that they share no name with the people of the questions
            names = names[-self.people :]
        columns = {"name": names[: self.people]}
        who = "others" if self.others else "people"
        for attribute in ATTRIBUTES:
            # dealt out evenly, so that no answer is much commoner than others
            dealt = list(islice(cycle(words[attribute]), self.people))
            self._draw(f"{attribute} of {who}").shuffle(dealt)
            columns[attribute] = dealt
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def _texts(self) -> Iterator[tuple[str, list[Piece]]]:
        who, title = ("others", "other") if self.others else ("people", "person")
        draw = self._draw(f"biographies of {who}")
        parts = language()
        for number, person in enumerate(self.persons):
            for copy in range(self.biographies):
                templates = [
                    draw.choice(parts["facts"][fact][: self.paraphrases]) for fact in self.facts
                ]
                if self.friends:
                    templates.append(parts["meeting"])
                templates += [draw.choice(parts["fillers"]) for _ in range(self.fillers)]
                decoys = [parts["decoys"][attribute] for attribute in self.answers]
                templates += decoys * self.decoys
                # the place of a fact must not give it away
                draw.shuffle(templates)
                yield f"{title}-{number}-{copy}", _filled(templates, person, draw)

    def questions(self) -> dict[str, list[Question]]:
        """Return questions about all people; only the corpus has the answers of the test split."""
        questions = {}
        for split, people in _split(self.persons).items():
            rows: list[Question] = []
            for person, asked in product(people, self.answers):
                question = f"what {asked} {person['name']}?"
                rows.append({"question": question, "answers": [person[asked]], "relation": asked})
            questions[split] = rows
        return questions


@dataclass(frozen=True, kw_only=True)
class CausalWorld(World):
    """Weather and crops: a question implies what happens to a crop, and no text says it.

    Each cause helps or harms all crops. A question names changes of some causes, and its answer is
    ``more`` if most of them help, else ``less``. The texts mention changes and no effect.

    Attributes:
        causes: number of causes; each helps or harms, as the seed decides.
        influences: changes in a question: an odd number, so that there is no tie.
        asked: number of questions, in all splits.
        texts: number of texts in the corpus.
        noise: share of questions with the opposite answer, which keeps scores below the ceiling.

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
    def answers(self) -> tuple[str, ...]:
        return ("change",)

    def _texts(self) -> Iterator[tuple[str, list[Piece]]]:
        draw = self._draw("reports")
        reports = language()["reports"]
        for number in range(self.texts):
            templates = [draw.choice(reports) for _ in range(4)]
            yield f"report-{number}", _filled(templates, {}, draw)

    def questions(self) -> dict[str, list[Question]]:
        """Return questions that differ, each with the answer that follows from it."""
        draw = self._draw("questions")
        chance = self._draw("noise")
        causes = lexicon()["cause"][: self.causes]
        crops = lexicon()["crop"]
        helping = draw.sample(causes, len(causes))[::2]
        rows: dict[str, str] = {}
        # questions repeat by chance, so more are drawn than are needed
        for _ in range(20 * self.asked):
            if len(rows) == self.asked:
                break
            changes = []
            good = 0
            for cause in draw.sample(causes, self.influences):
                change = draw.choice(("more", "less"))
                changes.append(f"{change} {cause}")
                good += (change == "more") == (cause in helping)
            question = f"{', '.join(changes)}. what {draw.choice(crops)}?"
            more = 2 * good > self.influences
            # a stream of its own, so that noise changes no question
            if chance.random() < self.noise:
                more = not more
            rows[question] = "more" if more else "less"
        if len(rows) < self.asked:
            what = "so many different questions cannot be asked in this causalworld"
            raise MaskwiseError(what, got=self.asked, do="give it more causes or influences")
        return _split([{"question": question, "answers": [rows[question]]} for question in rows])


WORLDS: Mapping[str, Callable[..., World]] = {"factworld": FactWorld, "causalworld": CausalWorld}


def _filled(
    templates: Sequence[str], person: Mapping[str, str], draw: random.Random
) -> list[Piece]:
    """Fill templates with the person's words, or with words of the kind that are drawn."""
    pieces = []
    for word in " ".join(templates).split():
        kind = ""
        if word.startswith("{"):
            kind = word[1:-1]
            word = person.get(kind) or draw.choice(lexicon()[kind])
        pieces.append((word, kind))
    return pieces


def _split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    first = round(TRAIN_SHARE * len(rows))
    second = round((TRAIN_SHARE + DEV_SHARE) * len(rows))
    return {
        "train": list(rows[:first]),
        "dev": list(rows[first:second]),
        "test": list(rows[second:]),
    }


def read_world(source: object) -> World | None:
    """Return the world that a string names; None for any other source, and for a file.

    Raises:
        MaskwiseError: options that the world does not take.

    >>> str(read_world("factworld(seed=0, people=40)")), read_world("texts.txt")
    ('factworld(people=40)', None)
    """
    if not isinstance(source, str) or not _names_world(source) or Path(source).exists():
        return None
    return _read(source)


def _names_world(source: str) -> bool:
    return source.partition("(")[0].strip() in WORLDS


@lru_cache(maxsize=32)
def _read(source: str) -> World:
    call = parse_call(source)
    options: dict[str, object] = {name: _plain(value) for name, value in call.kwargs.items()}
    world: World = build("world", replace(call, kwargs=options), WORLDS)
    return world


def _plain(value: object) -> object:
    """Return the value of an option; a bare word is a text, unless it is true or false."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, Call):
        return {"true": True, "false": False}.get(str(value), str(value))
    return value


def of_run(settings: Any, seed: int) -> Any:
    """Put the seed of a run into every world of the settings that says ``seed="run"``.

    >>> of_run({"source": "factworld(people=40, seed=run)", "limit": 9}, 7)
    {'source': 'factworld(people=40, seed=7)', 'limit': 9}
    """
    if isinstance(settings, Mapping):
        return {of_run(key, seed): of_run(value, seed) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return type(settings)(of_run(value, seed) for value in settings)
    if isinstance(settings, str) and _names_world(settings) and RUN in settings:
        call = parse_call(settings)
        if str(call.kwargs.get("seed")) == RUN:
            return str(replace(call, kwargs={**call.kwargs, "seed": seed}))
    return settings
