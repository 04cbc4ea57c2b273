"""Draw fact worlds (a corpus that states facts, and questions about these facts) from T-REx.

    python scripts/trex.py TREX.jsonl.gz RELATIONS.jsonl OUT --relations P106 P413 --seeds 0 500 501

Each folder OUT/SEED has

- corpus.jsonl: ``text``; ``spans``, the positions of the answers to the questions; and ``content``,
  the positions of content words (nouns, names, verbs, adjectives, adverbs and numbers, by the
  bundled tagger);
- questions.jsonl: ``question``, ``answers``, ``relation``, ``split``. All questions about a subject
  are in one split. Training questions therefore reveal nothing about test subjects;
- RELATION.jsonl, for each relation that is in the corpus but not in ``--asked``: questions about
  this relation.

The sentences are real. Each seed is one world with new facts, and all relations have the same
number of facts. An answer is a single token of the tokenizer that a study trains on the corpus. The
licence of T-REx is CC BY-NC. Therefore, do not add OUT to the repository.
"""

import argparse
import json
import random
from bisect import bisect
from collections import Counter, defaultdict
from itertools import accumulate
from pathlib import Path

from maskwise.annotate.registry import annotators
from maskwise.base.constants import UPOS
from maskwise.base.folders import read_lines
from maskwise.text import train_tokenizer
from maskwise.text.source import read_records

MASK = "[MASK]"
MOST_WORDS = 30
CONTENT = ("ADJ", "ADV", "NOUN", "NUM", "PROPN", "VERB")
SHARES = {"train": 0.5, "dev": 0.1, "test": 0.4}


def read_facts(path, relations):
    """Return the facts whose answer is one word and occurs verbatim in a sentence."""
    facts = defaultdict(list)
    known = set()
    for fact in read_records(path):
        relation, subject, answer = fact["predicate_id"], fact["sub_label"], fact["obj_label"]
        sentences = []
        for evidence in fact["evidences"]:
            sentence, surface = evidence["masked_sentence"], evidence["obj_surface"]
            short = len(sentence.split()) <= MOST_WORDS
            if short and sentence.count(MASK) == 1 and surface.lower() == answer.lower():
                start = sentence.index(MASK)
                text = sentence.replace(MASK, surface)
                sentences.append((text, [start, start + len(surface)]))
        # If a subject has two answers to a question, the question is ambiguous.
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
    """Return the sentences, and the positions of the answers for the asked relations."""
    spans = {}
    for relation, _, _, sentences in drawn:
        for text, place in sentences:
            places = spans.setdefault(text, [])
            if relation in asked and place not in places:
                places.append(place)
    return spans


def content_words(texts):
    """Return the positions of the content words of each text."""
    [tagger] = annotators(["pos"])
    # In the layer, 0 means no part of speech.
    wanted = [UPOS.index(tag) + 1 for tag in CONTENT]
    places = []
    for found in tagger.annotate(texts):
        words = found["pos"]
        of_text = []
        for start, end, tag in zip(words.start, words.end, words.value):
            if tag in wanted:
                of_text.append([int(start), int(end)])
        places.append(of_text)
    return places


def world_of(facts, asked, args, seed):
    """Draw facts until each answer is one token of a tokenizer trained on the drawn sentences."""
    facts = dict(facts)
    while True:
        # Each attempt uses the same random numbers. If a fact is removed, few other facts change.
        rng = random.Random(f"trex {seed}")
        drawn = draw(facts, args.facts, args.most, rng)
        spans = corpus_of(drawn, asked)
        vocabulary = train_tokenizer(list(spans), vocab_size=args.vocabulary).get_vocab()
        long = {fact[2] for fact in drawn if fact[2] not in vocabulary}
        if not long:
            return drawn, spans, rng
        for relation, known in facts.items():
            facts[relation] = [fact for fact in known if fact[2] not in long]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("facts_file", metavar="TREX.jsonl.gz", type=Path)
    parser.add_argument("names_file", metavar="RELATIONS.jsonl", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--relations", nargs="+", required=True, help="relations in the corpus")
    parser.add_argument("--asked", nargs="+", help="relations of questions; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--facts", type=int, default=500)
    parser.add_argument("--most", type=int, default=45, help="maximum facts per answer")
    parser.add_argument("--vocabulary", type=int, default=4096, help="the study's vocab_size")
    args = parser.parse_args(arguments)

    names = {}
    for relation in read_lines(args.names_file):
        names[relation["relation"]] = relation["label"].partition(" / ")[0]
    asked = args.asked or args.relations
    facts = read_facts(args.facts_file, args.relations)
    edges = list(accumulate(SHARES.values()))
    for seed in args.seeds:
        drawn, spans, rng = world_of(facts, asked, args, seed)
        subjects = sorted({fact[1] for fact in drawn})
        rng.shuffle(subjects)
        split_of = {}
        for place, subject in enumerate(subjects):
            split_of[subject] = list(SHARES)[bisect(edges, place / len(subjects))]
        files = defaultdict(list)
        content = content_words(list(spans))
        for (text, places), words in zip(spans.items(), content):
            files["corpus"].append({"text": text, "spans": sorted(places), "content": words})
        for relation, subject, answer, _ in drawn:
            question = {
                "question": f"{names[relation]} of {subject} ?",
                "answers": [answer],
                "relation": relation,
                "split": split_of[subject],
            }
            files["questions" if relation in asked else relation].append(question)
        folder = args.out / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        for name, records in files.items():
            lines = [json.dumps(record) + "\n" for record in records]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        answers = {(fact[0], fact[2]) for fact in drawn}
        print(f"{seed}: {len(drawn)} facts, {len(spans)} sentences, {len(answers)} answers")


if __name__ == "__main__":
    main()
