"""Write invented worlds: synthetic texts with questions, for which the best masks are known.

    python scripts/worlds.py OUT "factworld(people=200, asked='university')" --seeds 0 1 2

The texts of ``factworld`` are about invented people, and a question asks for an attribute of a
person. Only the texts contain the answer, because fine-tuning uses *other* people and teaches only
the form of the questions. In ``causalworld``, answers follow from a rule that no text states, so
pre-training cannot help. All worlds share their words (worlds.yaml), so a model can be trained
further in another world. A seed always gives the same world.

Each folder OUT/SEED has

- corpus.jsonl: ``id``; ``text``; ``salient``, the positions of all named entities; ``asked``, the
  positions of the attribute in question; and with the option ``tags``, ``tag``: the position and
  the label of each word. Recipes read positions by the annotator ``spans(FILE, field='asked',
  layer='asked')``;
- questions.jsonl: ``question``, ``answers``, ``split`` and, in ``factworld``, ``relation``. Recipes
  read this file as a task: ``FILE(kind=cloze-qa)``.

The worlds that come with maskwise-data as ``bundled:world-SEED`` were made by

    python scripts/worlds.py packages/maskwise-data/src/maskwise_data 'factworld(people=200)' \
        --seeds 0 1 2 3 4 5 6 7 8 9 10 11 --bundled
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain, cycle, islice, product
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import yaml

from maskwise.base.errors import MaskwiseError, finite_number, whole_number
from maskwise.base.specs import Call, build, parse_call

LANGUAGE = Path(__file__).with_name("worlds.yaml")
TRAIN_SHARE = 0.5
DEV_SHARE = 0.1
"""Shares of people or questions in the train and dev splits; the rest is the test split."""

ATTRIBUTES = ("job", "city", "year", "university", "employer")
"""Attributes of a person that questions can ask for. All but the job are named entities."""
SAME_WORDS = {
    "trade": "job",
    "place": "city",
    "time": "year",
    "school": "university",
    "firm": "employer",
}
"""Slots (words in braces) of sentences that state no fact about the person, such as ``trade`` in
"{friend} saw a {trade}", and the attribute whose words fill the slot."""
TAGS = (*ATTRIBUTES, *SAME_WORDS, "name", "friend", "adjective", "noun", "verb", "other")
"""Labels of words in the field ``tag``: facts about the person, the slots in ``SAME_WORDS``, and
kinds of other words."""

Row = TypeVar("Row")
Record: TypeAlias = dict[str, Any]
Piece: TypeAlias = tuple[str, str]
"""A word of a text, and the name of the slot that the word fills, or "" outside slots."""


# Words and sentences
# -------------------------------------------------------------------------------------------


@cache
def language() -> dict[str, Any]:
    """Return the contents of worlds.yaml: sentence templates, words and parts of names."""
    return dict(yaml.safe_load(LANGUAGE.read_text(encoding="utf-8")))


@cache
def lexicon() -> dict[str, list[str]]:
    """Return the words of all worlds, keyed by slot. An invented name is in one list only."""
    # The seed is constant, so all worlds share these words. Therefore a model that was trained in
    # one world can be trained further in another.
    draw = random.Random("words of invented worlds")
    words = {kind: text.split() for kind, text in language()["words"].items()}
    words["noun"] += words["cause"]
    words["year"] = [str(year) for year in range(1900, 1960)]
    used = set(chain.from_iterable(words.values()))
    parts = language()["names"]
    openings = parts["openings"].split()
    middles = parts["middles"].split()
    for kind, (count, endings) in parts["endings"].items():
        names: list[str] = []
        while len(names) < count:
            name = draw.choice(openings) + draw.choice(middles) + draw.choice(endings)
            if name not in used:
                used.add(name)
                names.append(name.capitalize())
        words[kind] = names
    for other, kind in SAME_WORDS.items():
        words[other] = words[kind]
    return words


def filled(templates: Sequence[str], person: Mapping[str, str], draw: random.Random) -> list[Piece]:
    """Fill the slots of templates with a person's attributes, or else with random words."""
    pieces = []
    for word in " ".join(templates).split():
        kind = ""
        if word.startswith("{"):
            kind = word[1:-1]
            word = person.get(kind) or draw.choice(lexicon()[kind])
        pieces.append((word, kind))
    return pieces


def splits_of(rows: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """Cut rows into splits. The rows must be in random order."""
    first = round(TRAIN_SHARE * len(rows))
    second = round((TRAIN_SHARE + DEV_SHARE) * len(rows))
    return {"train": rows[:first], "dev": rows[first:second], "test": rows[second:]}


# Worlds
# -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class World(ABC):
    """An invented world: texts, the positions of what is asked in them, and questions."""

    seed: int = 0

    name: ClassVar[str]
    salient: ClassVar[frozenset[str]]
    """Kinds of words that are named entities."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]]
    """Smallest and largest allowed value of each numeric option."""

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges.items():
            check = finite_number if isinstance(low, float) else whole_number
            check(f"{name} of {self.name}", getattr(self, name), least=low, most=high)
        whole_number(f"seed of {self.name}", self.seed)

    @property
    @abstractmethod
    def answers(self) -> tuple[str, ...]:
        """The slots (`Piece`) whose words may be answers."""

    @abstractmethod
    def written(self) -> Iterator[tuple[str, list[Piece]]]:
        """Yield the name and the words of each text."""

    @abstractmethod
    def questions(self) -> list[Record]:
        """Return the questions, with their answers and splits."""

    def corpus(self) -> Iterator[Record]:
        """Yield the record of each text."""
        for name, pieces in self.written():
            text = ""
            salient = []
            asked = []
            tags = []
            for word, kind in pieces:
                # Punctuation marks follow a word without a space.
                if text and word not in ".,?":
                    text += " "
                place = [len(text), len(text) + len(word)]
                text += word
                if kind in self.salient:
                    salient.append(place)
                if kind in self.answers:
                    asked.append(place)
                tags.append([*place, kind if kind in TAGS else "other"])
            record = {"id": name, "text": text, "salient": salient, "asked": asked}
            if getattr(self, "tags", False):
                record["tag"] = tags
            yield record

    def draw(self, purpose: str) -> random.Random:
        """Return a random generator for one purpose, such as "names"."""
        return random.Random(f"{self.name} {self.seed} {purpose}")


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
        tags: whether the texts have a field ``tag``, with the label (``TAGS``) of each word.
        seed: the seed that selects the people and the texts.
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
        self.draw("names").shuffle(names)
        if self.others:
            names = names[-self.people :]
        persons = [{"name": name} for name in names[: self.people]]
        for attribute in ATTRIBUTES:
            # Each value is used equally often, so no answer is much more frequent than another.
            dealt = list(islice(cycle(words[attribute]), self.people))
            self.draw(f"{attribute} of {self._who}").shuffle(dealt)
            for person, value in zip(persons, dealt):
                person[attribute] = value
        return persons

    @property
    def _who(self) -> str:
        return "others" if self.others else "people"

    def written(self) -> Iterator[tuple[str, list[Piece]]]:
        draw = self.draw(f"biographies of {self._who}")
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

    def questions(self) -> list[Record]:
        """Return questions about all people. Only the texts have the answers of the test split."""
        questions = []
        # People, not questions, are split: nobody in the test split is in another split.
        for split, people in splits_of(self.persons).items():
            for person, asked in product(people, self.answers):
                question = f"what {asked} {person['name']}?"
                row = {"question": question, "answers": [person[asked]], "relation": asked}
                questions.append({**row, "split": split})
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
        seed: the seed that selects the causes, the texts and the questions.
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

    def written(self) -> Iterator[tuple[str, list[Piece]]]:
        draw = self.draw("reports")
        for number in range(self.texts):
            templates = [draw.choice(language()["reports"]) for _ in range(4)]
            yield f"report-{number}", filled(templates, {}, draw)

    def questions(self) -> list[Record]:
        """Return the questions of each split, all distinct, with their answers."""
        draw = self.draw("questions")
        # The noise has its own generator, so the questions are the same for any noise.
        noise = self.draw("noise")
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
        questions = []
        for split, rows in splits_of([*answers.items()]).items():
            for question, answer in rows:
                questions.append({"question": question, "answers": [answer], "split": split})
        return questions


WORLDS = {"factworld": FactWorld, "causalworld": CausalWorld}


def read_world(spec: str, seed: int) -> World:
    """Return the world that a spec names, such as ``factworld(people=200)``.

    Raises:
        MaskwiseError: there is no such world or option, or a value is not allowed.
    """
    call = parse_call(spec)
    options = {name: _plain(value) for name, value in call.kwargs.items()}
    return build("world", replace(call, kwargs={**options, "seed": seed}), WORLDS)


def _plain(value: object) -> object:
    """Return the value of an option; an unquoted word is a string."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    # The parser reads an unquoted word as a call without arguments.
    if isinstance(value, Call):
        return str(value)
    return value


# Files
# -------------------------------------------------------------------------------------------


def write_world(world: World, out: Path, *, bundled: bool = False) -> None:
    """Write the files of a world into the folder OUT/SEED, or bundled files into OUT."""
    files = {"corpus": list(world.corpus()), "questions": world.questions()}
    for name, records in files.items():
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
        path = out / str(world.seed) / f"{name}.jsonl"
        if bundled:
            ending = "" if name == "corpus" else f"-{name}"
            path = out / f"world-{world.seed}{ending}.jsonl.gz"
            content = gzip.compress(content, compresslevel=9, mtime=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("world", metavar="WORLD", help="such as 'factworld(people=200)'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bundled", action="store_true", help="write gzipped files into OUT")
    args = parser.parse_args(arguments)
    try:
        # All worlds are checked before any is written.
        worlds = [read_world(args.world, seed) for seed in args.seeds]
        for world in worlds:
            write_world(world, args.out, bundled=args.bundled)
    except MaskwiseError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
