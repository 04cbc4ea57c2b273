"""Build the data of maskwise and maskwise-data from public data sets.

    python scripts/build_data.py SOURCE

SOURCE is a folder with wikipedia_en/, glue_like/, ud_english_ewt/, ner_wikigold/, ner_wnut17/ and
qa/. The README.md next to the data lists origins and licences. A second run writes the same bytes,
because rows are selected at even intervals and gzip files have no time stamp. (A different version
of zlib may compress the same rows differently.) All data have licences that allow redistribution
(CC BY, CC BY-SA). In total, they are a few megabytes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from maskwise.text.conll import read_sentences
from maskwise.text.source import read_records

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "packages/maskwise-data/src/maskwise_data"
# The wheel of maskwise contains the data for the quick start.
QUICK_START = {"wikipedia": ROOT / "src/maskwise/data", "ud_ewt_pos": ROOT / "src/maskwise/data"}
WIKIPEDIA_STRIDE = 8

# Frequent intents with distinct meanings. Some of the 77 intents have nearly the same meaning, and
# test the care of the annotators more than models.
BANKING77 = [
    "activate_my_card",
    "age_limit",
    "apple_pay_or_google_pay",
    "automatic_top_up",
    "beneficiary_not_allowed",
    "cancel_transfer",
    "card_about_to_expire",
    "card_arrival",
    "change_pin",
    "country_support",
    "declined_cash_withdrawal",
    "direct_debit_payment_not_recognised",
    "edit_personal_details",
    "exchange_via_app",
    "getting_spare_card",
    "lost_or_stolen_phone",
    "Refund_not_showing_up",
    "terminate_account",
    "transaction_charged_twice",
    "visa_or_mastercard",
]
# Two or three intents of every domain except banking and credit cards.
CLINC150 = [
    "book_flight",
    "lost_luggage",
    "translate",
    "recipe",
    "calories",
    "restaurant_reservation",
    "play_music",
    "shopping_list",
    "smart_home",
    "traffic",
    "tire_pressure",
    "uber",
    "weather",
    "alarm",
    "measurement_conversion",
    "pto_request",
    "schedule_meeting",
    "tell_joke",
    "greeting",
    "change_language",
]
# Categories of trivia questions that are topics.
TRIVIA = [
    "animals",
    "geography",
    "history",
    "literature",
    "movies",
    "music",
    "religion-faith",
    "science-technology",
    "sports",
    "video-games",
]
PER_CATEGORY = {"test": 70, "dev": 25, "train": 100}
PER_INTENT = {"train": 60, "dev": 15}
SENTENCES = {"train": 1500, "dev": 300, "test": 600}
POSTS = {"train": 1500, "dev": 300, "test": 1287}

Row = dict[str, Any]


Pairs = list[tuple[str, str]]


def main(source: Annotated[Path, typer.Argument()] = Path("../shared/data")) -> None:
    """Write all files."""
    write("wikipedia", wikipedia(source / "wikipedia_en"))
    write("banking77", banking77(source / "glue_like" / "banking77"))
    write("clinc150", clinc150(source / "glue_like" / "clinc150"))
    write("ud_ewt_pos", ud_ewt_pos(source / "ud_english_ewt"))
    # Sentences from Wikipedia with their named entities, without splits: {"tokens", "tags"}.
    write("wikigold", read_records(source / "ner_wikigold" / "wikigold.conll.txt.gz"))
    write("wnut17", wnut17(source / "ner_wnut17"))
    write("trivia", trivia(source / "qa" / "open_trivia_qa"))


def wikipedia(folder: Path) -> list[Row]:
    """Return every eighth article: {"id", "title", "text"}."""
    files = sorted(folder.glob("*.jsonl.gz"))
    return list(chain.from_iterable(map(read_records, files)))[::WIKIPEDIA_STRIDE]


def banking77(folder: Path) -> Iterator[Row]:
    """Return train and dev rows from the official training split, and test rows from the official
    test split: {"split", "text", "label"}.
    """
    train, test = (
        [(row["text"], row["category"]) for row in read_records(folder / name)]
        for name in ("train.csv.gz", "test.csv")
    )
    unseen = without(train, test)
    dev = spread_intents(unseen, BANKING77, PER_INTENT["dev"])
    yield from rows("train", spread_intents(without(unseen, dev), BANKING77, PER_INTENT["train"]))
    yield from rows("dev", dev)
    yield from rows("test", spread_intents(test, BANKING77, 40))


def clinc150(folder: Path) -> Iterator[Row]:
    """Return the official train, validation and test splits, in the same format."""
    data = json.loads(gzip.decompress((folder / "data_full.json.gz").read_bytes()))
    dev = without(data["val"], data["test"])
    train = without(without(data["train"], data["test"]), dev)
    yield from rows("train", spread_intents(train, CLINC150, PER_INTENT["train"]))
    yield from rows("dev", spread_intents(dev, CLINC150, PER_INTENT["dev"]))
    yield from rows("test", spread_intents(data["test"], CLINC150, 30))


def ud_ewt_pos(folder: Path) -> Iterator[Row]:
    """Return sentences of 4 to 40 words: {"split", "tokens", "tags", "relations"}.

    Relations are the universal relations to the heads, without subtypes.
    """
    for split, count in SENTENCES.items():
        chosen = []
        for _, lines in read_sentences(folder / f"en_ewt-ud-{split}.conllu.gz", columns=10):
            # Lines "1-2" repeat words, and words on lines "1.1" are not in the text.
            words = [columns for columns in lines if columns[0].isdigit()]
            if 4 <= len(words) <= 40:
                chosen.append(words)
        for words in spread(chosen, count):
            yield {
                "split": split,
                "tokens": [columns[1] for columns in words],
                "tags": [columns[3] for columns in words],
                "relations": [columns[7].split(":")[0] for columns in words],
            }


def wnut17(folder: Path) -> Iterator[Row]:
    """Return posts and comments with named entities, in the official splits: {"split", "tokens",
    "tags"}.
    """
    files = {"train": "train.conll.gz", "dev": "dev.conll", "test": "test.conll"}
    for split, count in POSTS.items():
        for post in spread(read_records(folder / files[split]), count):
            yield {"split": split, **post}


def trivia(folder: Path) -> Iterator[Row]:
    """Return quiz questions and their topics, without duplicates: {"split", "text", "label"}."""
    records = read_records(folder / "open_trivia_qa.jsonl.gz")
    left = without([(row["question"], row["category"]) for row in records], [])
    for split, count in PER_CATEGORY.items():
        chosen = spread_intents(left, TRIVIA, count)
        left = without(left, chosen)
        yield from rows(split, chosen)


def spread(items: list[Any], count: int) -> list[Any]:
    """Return `count` items at even intervals."""
    assert count <= len(items)
    return [items[place * len(items) // count] for place in range(count)]


def spread_intents(pairs: Pairs, intents: list[str], count: int) -> Pairs:
    """Return `count` rows of each intent, in turn, so the first n rows are balanced for any n."""
    columns = [spread([pair for pair in pairs if pair[1] == intent], count) for intent in intents]
    return list(chain.from_iterable(zip(*columns)))


def without(pairs: Pairs, others: Pairs) -> Pairs:
    """Return the pairs whose text is new, ignoring case and spacing, without duplicates."""
    seen = {plain(text) for text, _ in others}
    new = {}
    for text, label in pairs:
        if plain(text) not in seen:
            new.setdefault(plain(text), (text, label))
    return list(new.values())


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


def rows(split: str, pairs: Pairs) -> Iterator[Row]:
    for text, label in pairs:
        yield {"split": split, "text": " ".join(text.split()), "label": label}


def write(name: str, content: Iterable[Row]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
    path = QUICK_START.get(name, TARGET) / f"{name}.jsonl.gz"
    path.write_bytes(gzip.compress("".join(lines).encode(), compresslevel=9, mtime=0))
    print(f"{path.name}: {len(lines)} rows, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
