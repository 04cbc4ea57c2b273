"""Draw fact worlds of real sentences from T-REx, one for each seed.

    python scripts/trex.py TREX.jsonl.gz RELATIONS.jsonl OUT --relations P106 P413 --seeds 0 500 501

Each folder OUT/SEED has

- corpus.jsonl: ``text``, and ``spans``, the positions of the answers to the questions;
- questions.jsonl: ``question``, ``answers``, ``relation``, ``split``. A subject is in one split, so
  the sentences about test subjects are only in the corpus;
- RELATION.jsonl: the same for a relation of the corpus that is not among ``--asked``.

Facts are drawn anew for each seed, equally many of each relation. Answers are one token of the
tokenizer that a study trains on the corpus. T-REx is CC BY-NC: keep OUT out of the repository.
"""

import argparse
import gzip
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

from maskwise.text import train_tokenizer

MASK = "[MASK]"
MOST_WORDS = 30
SHARES = {"train": 0.5, "dev": 0.1, "test": 0.4}


def read_facts(path, relations):
    """Return the facts whose answer is one word and occurs verbatim in a sentence."""
    facts = defaultdict(list)
    known = set()
    # Sentences hold line separators other than the end of a line.
    for line in gzip.decompress(path.read_bytes()).decode().strip().split("\n"):
        fact = json.loads(line)
        relation, subject, answer = fact["predicate_id"], fact["sub_label"], fact["obj_label"]
        sentences = []
        for evidence in fact["evidences"]:
            sentence, surface = evidence["masked_sentence"], evidence["obj_surface"]
            short = len(sentence.split()) <= MOST_WORDS
            if short and sentence.count(MASK) == 1 and surface.lower() == answer.lower():
                start = sentence.index(MASK)
                text = sentence.replace(MASK, surface)
                sentences.append((text, [start, start + len(surface)]))
        # A subject with two answers to one question would be asked for one of them only.
        key = (relation, subject.lower())
        if relation in relations and sentences and answer.isalpha() and key not in known:
            known.add(key)
            facts[relation].append((relation, subject, answer.lower(), sentences))
    return facts


def draw(facts, number, most, rng):
    """Draw equally many facts per relation, from pools with at most ``most`` facts per answer."""
    drawn = []
    for relation in sorted(facts):
        pool = []
        answers = Counter()
        for fact in rng.sample(facts[relation], len(facts[relation])):
            answers[fact[2]] += 1
            if answers[fact[2]] <= most:
                pool.append(fact)
        drawn += rng.sample(pool, min(number // len(facts), len(pool)))
    return drawn


def corpus_of(drawn, asked):
    """Return the sentences with the positions of the answers of the asked relations."""
    spans = {}
    for relation, _, _, sentences in drawn:
        for text, place in sentences:
            places = spans.setdefault(text, [])
            if relation in asked and place not in places:
                places.append(place)
    return spans


def world_of(facts, asked, args, seed):
    """Draw facts until every answer is one token of the tokenizer of their sentences."""
    facts = dict(facts)
    while True:
        # The same stream each time: a fact that goes changes little else.
        rng = random.Random(f"trex {seed}")
        drawn = draw(facts, args.facts, args.most, rng)
        spans = corpus_of(drawn, asked)
        vocabulary = train_tokenizer(list(spans), vocab_size=args.vocabulary).get_vocab()
        long = {fact[2] for fact in drawn if fact[2] not in vocabulary}
        if not long:
            return drawn, spans, rng
        for relation, known in facts.items():
            facts[relation] = [fact for fact in known if fact[2] not in long]


def write(path, records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("facts_file", metavar="TREX.jsonl.gz", type=Path)
    parser.add_argument("names_file", metavar="RELATIONS.jsonl", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--relations", nargs="+", required=True, help="those of the corpus")
    parser.add_argument("--asked", nargs="+", help="those of the questions; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--facts", type=int, default=500)
    parser.add_argument("--most", type=int, default=45, help="facts to draw from, an answer")
    parser.add_argument("--vocabulary", type=int, default=4096, help="the study's vocab_size")
    args = parser.parse_args(arguments)

    names = {}
    for line in args.names_file.read_text(encoding="utf-8").splitlines():
        relation = json.loads(line)
        names[relation["relation"]] = relation["label"].partition(" / ")[0]
    asked = args.asked or args.relations
    facts = read_facts(args.facts_file, args.relations)
    for seed in args.seeds:
        drawn, spans, rng = world_of(facts, asked, args, seed)
        subjects = sorted({fact[1] for fact in drawn})
        rng.shuffle(subjects)
        split_of = {}
        for place, subject in enumerate(subjects):
            share = place / len(subjects)
            split_of[subject] = "train"
            if share >= SHARES["train"]:
                split_of[subject] = "dev"
            if share >= SHARES["train"] + SHARES["dev"]:
                split_of[subject] = "test"
        questions = defaultdict(list)
        for relation, subject, answer, _ in drawn:
            questions["questions" if relation in asked else relation].append(
                {
                    "question": f"{names[relation]} of {subject} ?",
                    "answers": [answer],
                    "relation": relation,
                    "split": split_of[subject],
                }
            )
        folder = args.out / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        write(
            folder / "corpus.jsonl",
            [{"text": text, "spans": sorted(places)} for text, places in spans.items()],
        )
        for name, rows in questions.items():
            write(folder / f"{name}.jsonl", rows)
        answers = {(fact[0], fact[2]) for fact in drawn}
        print(f"{seed}: {len(drawn)} facts, {len(spans)} sentences, {len(answers)} answers")


if __name__ == "__main__":
    main()
