"""Invented worlds: synthetic texts with questions. What should be masked in the texts is known.

The texts of ``factworld`` are about invented people, and a question asks for an attribute of a
person. Only the texts contain the answer, because fine-tuning uses *other* people and teaches only
the form of the questions. In ``causalworld``, answers follow from a rule that no text states, so
pre-training cannot help. A recipe can use a world, such as ``factworld(people=300, asked="job")``,
as its corpus or as a task. The texts have two annotation layers: ``salient``, the spans of all
named entities, and ``asked``, the spans of the attribute in question. All worlds share their words,
so a model can be trained further in another world. ``seed`` selects the people; ``seed="run"`` is
the seed of the training run.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, lru_cache
from itertools import cycle, islice, product
from os.path import exists
from typing import Any, ClassVar, TypeAlias, TypeVar

from maskwise.errors import MaskwiseError, finite_number, whole_number
from maskwise.specs import Call, build, parse_call
from maskwise.text.layers import CharSpans, Found, Layer, Layers, digest, no_spans
from maskwise.text.lexicon import ATTRIBUTES, SAME_WORDS, TAGS, Piece, filled, language, lexicon
from maskwise.text.words import text_id

TRAIN_SHARE = 0.5
DEV_SHARE = 0.1
"""Shares of people or questions in the train and dev splits; the rest is the test split."""
RUN = "run"

Row = TypeVar("Row")
WorldQuestion: TypeAlias = dict[str, str | list[str]]
Questions: TypeAlias = dict[str, list[WorldQuestion]]

WorldTexts: TypeAlias = Iterator[tuple[str, list[Piece]]]


@dataclass(frozen=True, kw_only=True)
class World(ABC):
    """An invented world: texts, their annotation layers, and questions."""

    seed: int | str = 0

    name: ClassVar[str]
    whole_texts: ClassVar[bool] = True
    salient: ClassVar[frozenset[str]]
    """Kinds of words that are named entities."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]]
    """Smallest and largest allowed value of each numeric option."""

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges.items():
            check = finite_number if isinstance(low, float) else whole_number
            check(f"{name} of {self.name}", getattr(self, name), least=low, most=high)
        if self.seed != RUN:
            whole_number(f"seed of {self.name}", self.seed, do=f"or use {RUN!r}")

    def __str__(self) -> str:
        """Return the world's spec: the name, and the options that differ from their defaults."""
        changed = {}
        # The seed is the first field, but is written last.
        seed, *others = fields(self)
        for option in (*others, seed):
            value = getattr(self, option.name)
            if value != option.default:
                changed[option.name] = value
        return str(Call(self.name, (), changed))

    @abstractmethod
    def _texts(self) -> WorldTexts:
        """Yield the name and the words (`Piece`) of each text."""

    @abstractmethod
    def questions(self) -> Questions:
        """Return each split's questions: ``question``, ``answers``, and maybe ``relation``."""

    @property
    def task_name(self) -> str:
        """The name of the task that asks the world's questions."""
        return self.name

    @property
    @abstractmethod
    def answers(self) -> tuple[str, ...]:
        """The slots (`Piece`) whose words may be answers."""

    @property
    def layers(self) -> Layers:
        """The annotation layers of the world's texts."""
        return {"salient": Layer("spans"), "asked": Layer("spans")}

    def documents(self) -> list[tuple[str, str]]:
        """Return the name and the text of every document."""
        return [(name, text) for name, text, _ in self._written]

    @cached_property
    def _written(self) -> list[tuple[str, str, Found]]:
        """The names, texts and spans of all documents."""
        written = []
        for name, pieces in self._texts():
            text = ""
            places: dict[str, list[tuple[int, ...]]] = {layer: [] for layer in self.layers}
            for word, kind in pieces:
                # Punctuation marks follow a word without a space.
                if text and word not in ".,?":
                    text += " "
                start = len(text)
                text += word
                if kind in self.salient:
                    places["salient"].append((start, len(text)))
                if kind in self.answers:
                    places["asked"].append((start, len(text)))
                if "tag" in places:
                    tag = kind if kind in TAGS else "other"
                    # Code 0 is "none" in every layer with labels.
                    places["tag"].append((start, len(text), 1 + TAGS.index(tag)))
            spans = {}
            for name_of_layer, layer in self.layers.items():
                spans[name_of_layer] = CharSpans.of(places[name_of_layer], layer)
            written.append((name, text, spans))
        return written

    @cached_property
    def _known(self) -> dict[int, Found]:
        return {text_id(text): spans for _, text, spans in self._written}

    @property
    def version(self) -> str:
        """A hash of the texts and of what is annotated in them."""
        return _version(self)

    def annotate(self, texts: list[str]) -> list[Found]:
        """Return the spans of the world's texts, and no spans for any other text."""
        none = no_spans(self.layers)
        return [self._known.get(text_id(text), none) for text in texts]

    def _draw(self, purpose: str) -> random.Random:
        """Return a random generator for one purpose, such as "names"."""
        seed = self.seed
        # Outside a training run, ``seed="run"`` is the same as seed 0.
        if seed == RUN:
            seed = 0
        return random.Random(f"{self.name} {seed} {purpose}")


# The version is cached, because a study needs it hundreds of times.
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
        asked: the attributes that questions ask for, one or several of ``ATTRIBUTES``.
        facts: facts in a biography: birth (city, year), work (job, employer), study (university).
        biographies: number of texts about each person, with the same facts in a different order.
        paraphrases: number of wordings for each fact, up to three.
        friends: whether a biography also says whom the person met, and where.
        fillers: number of sentences in a biography that state no fact.
        decoys: number of sentences per asked attribute that mention, for example, another job.
        others: whether to use other people, who do not occur in the same world without ``others``.
        tags: whether the texts have a third layer, ``tag``, with the label (``TAGS``) of each word.
        seed: the seed that selects the people and the texts.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = self.answers
        if not asked or not set(asked) <= set(ATTRIBUTES) or len(set(asked)) < len(asked):
            raise MaskwiseError(
                "asked of factworld is not valid", got=self.asked, allowed=", ".join(ATTRIBUTES)
            )
        known = language()["facts"]
        templates = ""
        for fact in set(self.facts) & set(known):
            templates += known[fact][0]
        told = all(f"{{{attribute}}}" in templates for attribute in asked)
        if not told or not set(self.facts) <= set(known):
            raise MaskwiseError(
                "factworld's facts are unknown, or do not state an asked attribute",
                got=self.facts,
                allowed=f"a list of {', '.join(known)} that states the {' and the '.join(asked)}",
            )

    @property
    def layers(self) -> Layers:
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
        """The name and the attributes of each person."""
        words = lexicon()
        names = list(map(" ".join, product(words["first"], words["last"])))
        # Other people come from the end of the same list, so no name occurs in both groups.
        self._draw("names").shuffle(names)
        if self.others:
            names = names[-self.people :]
        persons = [{"name": name} for name in names[: self.people]]
        for attribute in ATTRIBUTES:
            # Each value is used equally often, so no answer is much more frequent than another.
            dealt = list(islice(cycle(words[attribute]), self.people))
            self._draw(f"{attribute} of {self._who}").shuffle(dealt)
            for person, value in zip(persons, dealt):
                person[attribute] = value
        return persons

    @property
    def _who(self) -> str:
        return "others" if self.others else "people"

    def _texts(self) -> WorldTexts:
        draw = self._draw(f"biographies of {self._who}")
        title = "other" if self.others else "person"
        sentences = language()
        for number, person in enumerate(self.persons):
            for copy in range(self.biographies):
                templates = []
                for fact in self.facts:
                    templates.append(draw.choice(sentences["facts"][fact][: self.paraphrases]))
                if self.friends:
                    templates.append(sentences["meeting"])
                for _ in range(self.fillers):
                    templates.append(draw.choice(sentences["fillers"]))
                for _ in range(self.decoys):
                    for attribute in self.answers:
                        templates.append(sentences["decoys"][attribute])
                # A sentence's position must not reveal which fact the sentence states.
                draw.shuffle(templates)
                yield f"{title}-{number}-{copy}", filled(templates, person, draw)

    def questions(self) -> Questions:
        """Return questions about all people. Only the texts have the answers of the test split."""
        questions: Questions = {}
        # People, not questions, are split: nobody in the test split is in another split.
        for split, people in _split(self.persons).items():
            questions[split] = []
            for person, asked in product(people, self.answers):
                question = f"what {asked} {person['name']}?"
                questions[split].append(
                    {"question": question, "answers": [person[asked]], "relation": asked}
                )
        return questions


@dataclass(frozen=True, kw_only=True)
class CausalWorld(World):
    """Weather and crops. The answer to a question follows from a rule that no text states.

    Each cause, such as rain, helps or harms all crops. A question names a few changes of causes. If
    most changes help, the answer is ``more``, else ``less``. The texts name changes, not effects.

    Attributes:
        causes: number of causes; the seed selects which causes help.
        influences: number of changes in a question; it is odd, so that there are no ties.
        asked: number of questions in all splits together.
        texts: number of texts in the corpus.
        noise: share of questions with the wrong answer, which keeps scores below 100 %.

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
    answers = ("change",)
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
            raise MaskwiseError(
                "causalworld's influences must be odd and not exceed its causes",
                got=self.influences,
                allowed=f"an odd number, at most {self.causes} (the number of causes)",
            )

    def _texts(self) -> WorldTexts:
        draw = self._draw("reports")
        for number in range(self.texts):
            templates = [draw.choice(language()["reports"]) for _ in range(4)]
            yield f"report-{number}", filled(templates, {}, draw)

    def questions(self) -> Questions:
        """Return the questions of each split, all distinct, with their answers."""
        draw = self._draw("questions")
        # The noise has its own generator, so the questions are the same for any noise.
        noise = self._draw("noise")
        causes = lexicon()["cause"][: self.causes]
        crops = lexicon()["crop"]
        helping = draw.sample(causes, len(causes))[::2]
        answers: dict[str, str] = {}
        # Questions may repeat by chance, so more questions than needed are generated.
        for _ in range(20 * self.asked):
            if len(answers) == self.asked:
                break
            changes = []
            good = 0
            for cause in draw.sample(causes, self.influences):
                change = draw.choice(("more", "less"))
                changes.append(f"{change} {cause}")
                if (change == "more") == (cause in helping):
                    good += 1
            question = f"{', '.join(changes)}. what {draw.choice(crops)}?"
            more = 2 * good > self.influences
            if noise.random() < self.noise:
                more = not more
            answers[question] = "more" if more else "less"
        if len(answers) < self.asked:
            raise MaskwiseError(
                "causalworld has fewer different questions than asked",
                got=self.asked,
                do="raise causes or influences, or lower asked",
            )
        rows: list[WorldQuestion] = []
        for question, answer in answers.items():
            rows.append({"question": question, "answers": [answer]})
        return _split(rows)


WORLDS: Mapping[str, Callable[..., World]] = {"factworld": FactWorld, "causalworld": CausalWorld}


def _split(rows: list[Row]) -> dict[str, list[Row]]:
    """Cut rows into splits. The rows must be in random order."""
    first = round(TRAIN_SHARE * len(rows))
    second = round((TRAIN_SHARE + DEV_SHARE) * len(rows))
    return {"train": rows[:first], "dev": rows[first:second], "test": rows[second:]}


def read_world(source: object) -> World | None:
    """Return the world that ``source`` names, or None if ``source`` is a file or names no world.

    Raises:
        MaskwiseError: the world does not have an option of the spec, or a value is not allowed.

    >>> str(read_world("factworld(seed=0, people=40)")), read_world("texts.txt")
    ('factworld(people=40)', None)
    """
    if not isinstance(source, str) or not _names_world(source) or exists(source):
        return None
    return _read(source)


def _names_world(source: str) -> bool:
    return source.partition("(")[0].strip() in WORLDS


@lru_cache(maxsize=32)
def _read(source: str) -> World:
    call = parse_call(source)
    options = {}
    for name, value in call.kwargs.items():
        options[name] = _plain(value)
    return build("world", replace(call, kwargs=options), WORLDS)


def _plain(value: object) -> object:
    """Return the value of an option; an unquoted word is a string."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    # The parser reads an unquoted word as a call without arguments.
    if isinstance(value, Call):
        return str(value)
    return value


def of_run(settings: Any, seed: int) -> Any:
    """Replace ``seed="run"`` in worlds and ``{seed}`` in paths with a run's seed.

    >>> of_run({"source": "factworld(seed=run)", "tasks": ["facts/{seed}.jsonl"]}, 7)
    {'source': 'factworld(seed=7)', 'tasks': ['facts/7.jsonl']}
    """
    if isinstance(settings, Mapping):
        return {of_run(key, seed): of_run(value, seed) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return type(settings)(of_run(value, seed) for value in settings)
    if not isinstance(settings, str):
        return settings
    if _names_world(settings):
        # Ordinary text may begin with the name of a world, too, so an error is ignored.
        with suppress(MaskwiseError):
            call = parse_call(settings)
            if str(call.kwargs.get("seed")) == RUN:
                return str(replace(call, kwargs={**call.kwargs, "seed": seed}))
    return settings.replace("{seed}", str(seed))
