"""Run hostile command lines: each is refused in one line, or does what it says.

    python scripts/hostile_commands.py [COMMANDS] [FIRST]

Every command begins as a good command on small files, and up to three of its parts are replaced:
by a wrong type, a missing, empty, binary or damaged file, a folder in place of a file, an unknown
name, a number that is negative, huge or no number, text with control characters, an option that
contradicts another, or an output that is a file or has other content. Command number N is the same
on every machine. All commands run in one process, because importing torch takes seconds.

``COMMANDS`` (500 by default) commands are run, from number ``FIRST`` on. One line is printed for
each command that ends wrongly (``wrong_with``), and counts at the end; the exit code is then 1.
Windows is not supported.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from maskwise.base.errors import is_visible  # noqa: E402
from maskwise.cli import main as run_command  # noqa: E402
from maskwise.jobs import pools  # noqa: E402
from processes import SamePool  # noqa: E402
from tiny import write_inputs, write_lines  # noqa: E402

COMMANDS = 500
LIMIT_SECONDS, WAIT_SECONDS = 60, 600
"""A command that needs more processor time, or more time on a busy machine, hangs: the good
commands need a few seconds."""
MOST_BYTES = 6 << 30
"""Memory of the process. A command that asks for more must say so in one line."""

Random = np.random.Generator


def pick(rng: Random, values: Any) -> Any:
    values = list(values)
    return values[int(rng.integers(len(values)))]


# The files that commands read
# ------------------------------------------------------------------------------------------------

SENTENCE = "Marie Curie was born in Warsaw. She moved to Paris in 1891. "


def write_world(world: Path) -> None:
    """Write good and hostile files into an empty folder, which becomes the working folder."""
    write_inputs(world)
    os.chdir(world)
    small = {"extends": "recipe.yaml", "training": {"steps": 2, "batch_size": 4}}
    small["training"] |= {"eval_every": 1, "save_every": 1}
    small |= {"finetune": {"epochs": 1, "seeds": 1}, "evaluation": {"rows": 4}}
    small |= {"tasks": ["task.jsonl"], "corpus": {"source": "corpus.jsonl"}}
    Path("small.yaml").write_text(json.dumps(small))
    learn = small | {"learning": {"method": "supervised", "task": "spans.jsonl"}}
    learn["learning"] |= {"supervised": {"training": {"steps": 2, "batch_size": 4}}}
    Path("learn.yaml").write_text(json.dumps(learn))
    rows = [{"question": "Where was she born?", "context": SENTENCE, "answers": ["Warsaw"]}] * 24
    write_lines(Path("spans.jsonl"), rows)
    titled = [{"title": f"Curie {n}", "text": f"{n} {SENTENCE} " * 2} for n in range(60)]
    write_lines(Path("titled.jsonl"), titled)
    pairs = [{"good": "The cats sleep.", "bad": "The cats sleeps."}] * 4
    write_lines(Path("pairs.jsonl"), pairs)
    Path("texts.txt").write_text(SENTENCE * 30 + "\n\n" + SENTENCE * 20)
    Path("table.csv").write_text("text,label\n" + "a good day,x\na bad day,y\n" * 20)
    code = quiet(["pretrain", "small.yaml", "--out", "run"])[0]
    assert code == 0, "the good run failed"
    shutil.copytree("run/checkpoint", "old")
    torch.save(load_file("old/model.safetensors"), "old/pytorch_model.bin")
    Path("old/model.safetensors").unlink()
    scores = [f"{arm},{seed},{seed * len(arm) % 7 / 7}" for arm in ("a", "bb") for seed in range(8)]
    Path("scores.csv").write_text("\n".join(["arm,seed,score", *scores]))
    code = quiet(["study", "small.yaml", "--out", "study"])[0]
    assert code == 0, "the good study failed"
    write_hostile(world)


def write_hostile(world: Path) -> None:
    """Write files that no command can use as they are."""
    corpus = Path("corpus.jsonl").read_bytes()
    files = {
        "empty.jsonl": b"",
        "empty.txt": b"",
        "empty.yaml": b"",
        "blank.txt": b"\n \n\t\n",
        "binary.jsonl": bytes(range(256)) * 20,
        "binary.txt": bytes(range(256)) * 20,
        "binary.yaml": bytes(range(256)) * 4,
        "latin.txt": ("Größe " * 50 + "\n").encode("latin-1") * 20,
        "utf16.csv": "text,label\na,x\nb,y\n".encode("utf-16"),
        "half.jsonl": corpus[: len(corpus) // 2],
        "scalars.jsonl": b"1\nnull\ntrue\n[1, 2]\n" * 20,
        "nested.jsonl": b"[" * 5000 + b"\n",
        "numbers.jsonl": b'{"text": 3, "label": 1e999}\n' * 20,
        "nan.jsonl": b'{"text": "a word", "label": NaN}\n' * 20,
        "nolabel.jsonl": b'{"text": "a word or two"}\n' * 20,
        "onelabel.jsonl": b'{"text": "a word or two", "label": "x"}\n' * 20,
        "ids.jsonl": b'{"input_ids": [1, 2, 3]}\n' * 20,
        "control.jsonl": b'{"text": "\\u001b[31mred\\u0007 \\u0000", "label": "\\u001b[2J"}\n' * 20,
        "surrogate.jsonl": b'{"text": "\\ud800 word", "label": "\\udfff"}\n' * 20,
        "one.txt": b"A single document.",
        "cut.jsonl.gz": gzip.compress(corpus)[:60],
        "not.jsonl.gz": corpus,
        "not.parquet": corpus,
        "not.json": b'{"text": ',
        "ragged.csv": b'text,label\n"a,b\nc,d,e,f\n' * 5,
        "broken.yaml": b"training: {steps: [\n",
        "list.yaml": b"- 1\n- 2\n",
        "scalar.yaml": b"3\n",
        "tabs.yaml": b"training:\n\tsteps: 2\n",
        "twice.yaml": b"name: a\nname: b\n",
        "loop.yaml": b"extends: loop.yaml\n",
        "alias.yaml": b"a: &a [*a]\n",
        "bomb.yaml": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 9)) for c in range(97, 106)
        ),
        "tag.yaml": b"name: !!python/object/apply:os.getcwd []\n",
        "unknown.yaml": b"extends: quick-start\ntrainin: {steps: 2}\n",
        "types.yaml": b"extends: quick-start\ntraining: 7\ncorpus: []\nstudy: text\n",
        "keys.yaml": b"1: 2\nnull: 3\n[a]: 4\n",
    }
    for name, content in files.items():
        (world / name).write_bytes(content)
    for name in ("folder.jsonl", "folder.yaml", "folder.txt", "hollow"):
        (world / name).mkdir()
    (world / "dangling.jsonl").symlink_to("nowhere")
    (world / "circle.jsonl").symlink_to("circle.jsonl")
    os.mkfifo(world / "pipe.jsonl")
    (world / "a\nb\x1b[31m.txt").write_text(SENTENCE * 40)
    os.close(os.open(os.fsencode(world) + b"/caf\xe9.txt", os.O_CREAT))
    # A folder with other content, which no command may touch
    (world / "in-use").mkdir()
    (world / "in-use" / "notes.txt").write_text("mine")
    # Damaged models, studies and outputs
    checkpoint = world / "run" / "checkpoint"
    for name, damage in {
        "configless": lambda folder: (folder / "config.json").unlink(),
        "weightless": lambda folder: (folder / "model.safetensors").unlink(),
        "badconfig": lambda folder: (folder / "config.json").write_text('{"model_type": 3}'),
        "noconfig": lambda folder: (folder / "config.json").write_text("[]"),
        "unknowntype": lambda folder: (folder / "config.json").write_text('{"model_type": "x"}'),
        "cutweights": lambda folder: cut(folder / "model.safetensors"),
        "badtokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "notokenizer": lambda folder: [path.unlink() for path in folder.glob("*token*")],
    }.items():
        shutil.copytree(checkpoint, world / name)
        (world / name / "manifest.json").unlink(missing_ok=True)
        damage(world / name)
    study = world / "study"
    for name, file, content in (
        ("norecords", "records.jsonl", None),
        ("emptyrecords", "records.jsonl", b""),
        ("badrecords", "records.jsonl", b'{"kind": "task"}\n[]\n{"kind": 3, "seed": "x"}\n'),
        ("binaryrecords", "records.jsonl", bytes(range(256))),
        ("nostudy", "study.json", None),
        ("badstudy", "study.json", b'{"arms": 3, "seeds": "x"}'),
        ("liststudy", "study.json", b"[]"),
        ("badsummary", "summary.json", b'{"contrasts": 4}'),
        ("badsamples", "samples.json", b"[[1]]"),
        ("badtimings", "timings.jsonl", b'{"seconds": "x"}\n'),
    ):
        shutil.copytree(study, world / name)
        if content is None:
            (world / name / file).unlink()
        else:
            (world / name / file).write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


CORPORA = ["corpus.jsonl", "titled.jsonl", "texts.txt", "table.csv"]
TASKS = ["task.jsonl", "table.csv", "spans.jsonl"]
MODELS = ["run/checkpoint", "bundled:encoder"]
FILES = ["nowhere.jsonl", "no/such/file.txt", "empty.jsonl", "empty.txt", "blank.txt", "latin.txt"]
FILES += ["binary.jsonl", "binary.txt", "utf16.csv", "half.jsonl", "scalars.jsonl", "nested.jsonl"]
FILES += ["numbers.jsonl", "nan.jsonl", "nolabel.jsonl", "onelabel.jsonl", "ids.jsonl", "one.txt"]
FILES += ["control.jsonl", "surrogate.jsonl", "cut.jsonl.gz", "not.jsonl.gz", "not.parquet"]
FILES += ["not.json", "ragged.csv", "folder.jsonl", "folder.txt", "hollow", "dangling.jsonl"]
FILES += ["circle.jsonl", "pipe.jsonl", "a\nb\x1b[31m.txt", "caf\udce9.txt", ".", "..", "/", ""]
FILES += ["/dev/null", "/dev/zero", "/proc/self/mem", "hf:", "hf:nobody/nothing", "bundled:x", "~"]
FILES += ["task.jsonl(", "task.jsonl(kind=x)", "task.jsonl(text=nope)", "task.jsonl(limit=-1)"]
FILES += ["texts.txt" * 60, "corpus.jsonl/inside", "small.yaml", "run/checkpoint", "study", "-"]
RECIPES = ["empty.yaml", "binary.yaml", "broken.yaml", "list.yaml", "scalar.yaml", "tabs.yaml"]
RECIPES += ["twice.yaml", "loop.yaml", "alias.yaml", "bomb.yaml", "tag.yaml", "unknown.yaml"]
RECIPES += ["types.yaml", "keys.yaml", "folder.yaml", "nowhere.yaml", "quickstart", "corpus.jsonl"]
DAMAGED = ["configless", "weightless", "badconfig", "noconfig", "unknowntype", "cutweights"]
DAMAGED += ["badtokenizer", "notokenizer", "hollow", "bundled:x", "package:", "package:os", "a/b/c"]
DAMAGED += [
    "old",
    "bundled:tokenizer",
    "bundled:seq2seq",
    "bert-base-uncased",
    "corpus.jsonl",
    "study",
]
STUDIES = ["norecords", "emptyrecords", "badrecords", "binaryrecords", "nostudy", "badstudy"]
STUDIES += ["liststudy", "badsummary", "badsamples", "badtimings", "run", "hollow", "corpus.jsonl"]
STUDIES += ["nowhere", "", "run/checkpoint"]
OUTS = ["corpus.jsonl", "corpus.jsonl/out", "in-use", "/dev/null", "/dev/null/x", "/proc/nothing"]
OUTS += ["", ".", "..", "/", "o" * 300, "dangling.jsonl", "circle.jsonl", "run/checkpoint", "study"]
NUMBERS = ["-1", "0", "0.5", "1.5", "nan", "inf", "-inf", "1e999", "1e300", str(2**63), str(2**70)]
NUMBERS += ["", " ", "ten", "1_000", "٣", "0x10", "1e-400", "true", "null", "[1]", "{a: 1}", "--"]
WORDS = ["", " ", "unknown", "None", "token(", "token)", "token()", "span(0)", "span(p=nan)", "a,b"]
WORDS += ["span(p=2)", "token,", ",", "uniform(1, 0)", "linear(2, 3)", "linear(nan, 1)", "weighted"]
WORDS += [
    "learned('nowhere')",
    "mix(token)",
    "__import__('os')",
    "tok\x1b[31men",
    "t\u202eoken",
    "é",
]
WORDS += ["token(x=1)", "linear(0.3)", "span(mean=1e999)", "a" * 5000, "(" * 500, "'" * 9, "\ud800"]
KEYS = ["training.steps", "training.batch_size", "training.learning_rate", "corpus.length"]
KEYS += ["corpus.held_out", "masking.ratio", "masking.policy", "masking.corruption", "study.seeds"]
KEYS += ["tokenizer.vocab_size", "finetune.max_length", "model.settings", "model.pretrained"]
KEYS += ["corpus.source", "corpus.layers", "corpus.limit", "corpus.stream", "objective", "phases"]
KEYS += ["objective.mlm", "sampler", "tasks", "study.arms", "study.contrasts", "name"]
KEYS += ["study.search", "study.baseline", "study.outcome", "training.optimizer", "model.adapter"]
KEYS += ["training.precision", "training.accumulate", "evaluation.rows", "evaluation.masks"]
KEYS += ["evaluation.measures", "learning", "learning.method", "masking.keep", "masking.exclude"]
KEYS += ["training", "corpus", "", "training.nothing", "a.b.c", "study.arms.token-15", "phases.9.x"]
AMOUNTS = ("steps", "seeds", "epochs", "batch_size", "vocab_size", "accumulate", "length", "rows")
"""Endings of settings that say how much work there is. They are never set to a large number that
is valid, because the command would then work for years."""


def value(rng: Random) -> str:
    return str(pick(rng, pick(rng, [NUMBERS, WORDS, FILES, RECIPES, DAMAGED])))


def override(rng: Random) -> str:
    key = pick(rng, KEYS)
    made = value(rng)
    if key.endswith(AMOUNTS) and re.fullmatch(r"[0-9_]{5,}|1e300", made):
        made = "-1"
    how = rng.random()
    if how < 0.05:
        return str(pick(rng, ["=", "training.steps", "==1", "a=b=c", "=1", "training.steps:2"]))
    if how < 0.3:
        other = pick(
            rng, ["[{}]", "{{a: {}}}", "[{}, {}]", "{{{}: {}}}", "&a {}", "!!int {}", "*{}"]
        )
        made = other.replace("{}", made).replace("{{", "{").replace("}}", "}")
    return f"{key}={made}"


# The commands
# ------------------------------------------------------------------------------------------------


def replaced(rng: Random, good: str, hostile: list[str], *, share: float = 0.4) -> str:
    return str(pick(rng, hostile)) if rng.random() < share else good


def options(rng: Random, choices: dict[str, list[str]], *, share: float = 0.25) -> list[str]:
    """Return some options with hostile values."""
    words: list[str] = []
    for name, values in choices.items():
        if rng.random() < share / max(1, len(choices) / 3):
            words += [name, *([pick(rng, values)] if values else [])]
    return words


def overrides(rng: Random, good: list[str]) -> list[str]:
    return [*good, *(override(rng) for _ in range(int(rng.integers(0, 3))))]


def study(rng: Random) -> list[str]:
    words = ["study", replaced(rng, "small.yaml", RECIPES), *overrides(rng, [])]
    more = {"--jobs": NUMBERS, "--only-seeds": [*NUMBERS, "0-1", "5", "1-0"], "--retries": NUMBERS}
    more |= {"--engine": WORDS, "--stages": OUTS, "--json": [], "--dry-run": []}
    return words + options(rng, more)


def new(rng: Random) -> list[str]:
    words = ["new", replaced(rng, pick(rng, CORPORA), FILES, share=0.7)]
    if rng.random() < 0.5:
        words.append(replaced(rng, pick(rng, TASKS), FILES))
    return words + options(rng, {"--jobs": ["2"], "--out": ["x.yaml"]}, share=0.1)


def pretrain(rng: Random) -> list[str]:
    words = ["pretrain", replaced(rng, "small.yaml", RECIPES), *overrides(rng, [])]
    return words + options(rng, {"--json": []})


def finetune(rng: Random) -> list[str]:
    words = ["finetune", replaced(rng, "run/checkpoint", DAMAGED), "--runs", "1"]
    words += ["--task", replaced(rng, pick(rng, TASKS), FILES)]
    settings = ["epochs", "learning_rate", "steps", "batch_size", "max_length", "nothing", "seeds"]
    small = ["steps=2", "max_length=16"]
    for _ in range(int(rng.integers(0, 2))):
        made = f"{pick(rng, settings)}={pick(rng, NUMBERS)}"
        small.append(re.sub(r"=(\d{5,}|1e300)$", "=-1", made))
    return words + small + options(rng, {"--runs": NUMBERS[:6], "--json": [], "--task": FILES})


def learn(rng: Random) -> list[str]:
    words = ["learn", replaced(rng, "learn.yaml", [*RECIPES, "small.yaml"]), *overrides(rng, [])]
    return words + options(rng, {"--json": []})


def adapt(rng: Random) -> list[str]:
    words = ["adapt", replaced(rng, "run/checkpoint", DAMAGED, share=0.3)]
    words += [replaced(rng, "titled.jsonl", FILES, share=0.3), "--steps", "2", "--runs", "1"]
    # The usual general text has thousands of documents.
    words += ["--keep", "corpus.jsonl"]
    words += overrides(rng, ["finetune.steps=2", "training.batch_size=4", "corpus.held_out=0.4"])
    more = {"--task": [*TASKS, *FILES], "--arms": [*WORDS, "tsdae,token-15"], "--policy": DAMAGED}
    more |= {
        "--steps": NUMBERS[:7],
        "--head-steps": NUMBERS[:7],
        "--runs": NUMBERS,
        "--seeds": [*NUMBERS, "0-1", "1-0"],
    }
    more |= {"--time": [*NUMBERS, "2h", "1h30m"], "--jobs": NUMBERS, "--dry-run": [], "--json": []}
    return words + options(rng, more)


def annotate(rng: Random) -> list[str]:
    words = ["annotate", replaced(rng, pick(rng, CORPORA), FILES)]
    words += ["--with", replaced(rng, "words", [*WORDS, "words,words", "pos", "salient,phrases"])]
    functions = ["os:getcwd", "nothing:x", "x", ":", "os:", "os:path", "json:loads(kind='weight')"]
    more = {"--limit": NUMBERS, "--text-field": WORDS, "--text-per": [*WORDS, "line", "block"]}
    more |= {"--function": functions, "--jobs": NUMBERS, "--engine": WORDS, "--html": OUTS}
    return words + options(rng, more | {"--json": []})


def check(rng: Random) -> list[str]:
    words = ["check", replaced(rng, "small.yaml", [*RECIPES, *FILES], share=0.6), "--no-timing"]
    return words + overrides(rng, []) + options(rng, {"--json": []})


def evaluate(rng: Random) -> list[str]:
    words = ["evaluate", replaced(rng, "run/checkpoint", DAMAGED)]
    measures = [
        "pairs:pairs.jsonl",
        "heldout",
        "pseudo-perplexity:2",
        "cloze:pairs.jsonl",
        "bound:2",
    ]
    measures += [f"pairs:{name}" for name in FILES[:20]] + WORDS
    measures += ["pseudo-perplexity:-1", "bound:nan", "cloze:", "pairs:", "cloze:x(items=0)"]
    words += ["--with", pick(rng, measures)]
    words += ["--text", replaced(rng, "texts.txt", FILES)] if rng.random() < 0.7 else []
    return words + options(rng, {"--text-field": WORDS, "--json": []})


def generate(rng: Random) -> list[str]:
    words = ["generate", replaced(rng, "run/checkpoint", DAMAGED)]
    prompts = ["[MASK]", "[MASK*3] w", "[MASK*0]", "[MASK*-1]", "[MASK*999999999]", "[MASK*x]", ""]
    prompts += ["[MASK*" + "9" * 5000 + "]", "a\x1b[31m", "\ud800", "[CLS] [SEP]", "a" * 100_000]
    more = {"--prompt": prompts, "--length": NUMBERS, "--steps": NUMBERS, "--block": NUMBERS}
    more |= {"--temperature": NUMBERS, "--seed": NUMBERS, "--order": [*WORDS, "block", "random"]}
    return words + options(rng, more | {"--json": []}, share=0.6)


def inspect(rng: Random) -> list[str]:
    words = [
        "inspect",
        replaced(rng, SENTENCE, [*FILES, "[[", "]]", "[[]]", "[[a]] [[b", "\x1b[2J"]),
    ]
    more = {"--policy": [*WORDS, "span", "token,whole-word"], "--ratio": [*NUMBERS, *WORDS]}
    more |= {"--budget": WORDS, "--corruption": [*WORDS, "t5"], "--fill": [*WORDS, "random"]}
    more |= {"--tokenizer": DAMAGED, "--seed": NUMBERS, "--step": NUMBERS, "--total-steps": NUMBERS}
    return words + options(rng, more | {"--html": [*OUTS, "page.html"], "--json": []}, share=0.5)


def report(rng: Random) -> list[str]:
    words = ["report", replaced(rng, "study", STUDIES, share=0.8)]
    if rng.random() < 0.3:
        words.append(replaced(rng, "study", STUDIES))
    return words + options(rng, {"--html": [*OUTS, "page.html"], "--json": []}, share=0.4)


def status(rng: Random) -> list[str]:
    words = ["status", replaced(rng, "study", [*STUDIES, *FILES], share=0.8)]
    return words + options(rng, {"--json": []})


def compare(rng: Random) -> list[str]:
    tables = ["table.csv", "study/records.jsonl", "study", *FILES]
    words = ["compare", replaced(rng, "scores.csv", tables)]
    words += ["--baseline", replaced(rng, "a", WORDS, share=0.2)]
    words += ["--replicate", replaced(rng, "pretraining", ["items", "finetuning", *WORDS])]
    more = {"--column": ["seed=arm", "score=seed", "arm=", "=x", "seed", "task=arm", *WORDS]}
    more |= {"--contrast": ["bb:a", "a:bb", "a:a", "a", ":", "a:b:c", *WORDS], "--json": []}
    more |= {"--lower": ["score", "seed", *WORDS], "--chance": ["score=0.5", "score=x", *NUMBERS]}
    return words + options(rng, more | {"--margin": NUMBERS}, share=0.6)


def convert(rng: Random) -> list[str]:
    words = ["convert", replaced(rng, "old", ["run/checkpoint", *DAMAGED, *FILES])]
    words.append(replaced(rng, "out", OUTS, share=0.2))
    return words + options(rng, {"--tokenizer": ["bundled:encoder", *DAMAGED], "--json": []})


def change(rng: Random) -> list[str]:
    words = ["change", replaced(rng, pick(rng, MODELS), DAMAGED, share=0.3)]
    words.append(replaced(rng, "out", OUTS, share=0.2))
    good = ["layers(1)", "trim-tokens('corpus.jsonl')", "positions(64)", "layers('0, 1')"]
    names = ("layers", "trim-tokens", "new-tokens", "positions")
    for _ in range(int(rng.integers(1, 3))):
        made = f"{pick(rng, names)}({pick(rng, [*NUMBERS[:12], *(repr(file) for file in FILES)])})"
        words += ["--with", pick(rng, [pick(rng, good), made, pick(rng, WORDS)])]
    return words + options(rng, {"--json": []})


def export(rng: Random) -> list[str]:
    words = ["export", replaced(rng, pick(rng, CORPORA), FILES)]
    words += ["--tokenizer", replaced(rng, pick(rng, MODELS), DAMAGED, share=0.3)]
    settings = ["policy", "ratio", "budget", "corruption", "fill", "keep", "nothing"]
    words += [f"{pick(rng, settings)}={value(rng)}"] if rng.random() < 0.4 else []
    more = {"--epochs": ["0-1", "1-0", "0,0", "0-", *NUMBERS[:7]], "--max-length": NUMBERS}
    more |= {"--seed": NUMBERS, "--step": NUMBERS, "--total-steps": NUMBERS, "--with": WORDS}
    more |= {"--words": ["spaces", "regex:(", "regex:", *WORDS], "--text-field": WORDS}
    return words + options(rng, more | {"--format": ["datasets", *WORDS], "--json": []}, share=0.5)


def list_names(rng: Random) -> list[str]:
    tables = ["policies", "recipes", "tasks", "keys", "objectives", "", *WORDS]
    return ["list", pick(rng, tables), *options(rng, {"--json": []})]


def none(rng: Random) -> list[str]:
    first = ["", "stud", "--nothing", "-x", "--version", "\x1b[31m", "study study", "help", "é"]
    return [pick(rng, first)]


MAKERS: list[Callable[[Random], list[str]]] = [study, new, pretrain, finetune, learn, adapt]
MAKERS += [annotate, check, evaluate, generate, inspect, report, list_names, none]
MAKERS += [status, compare, convert, change, export]
# Commands that take more arguments, or more kinds of files, are tried more often.
TIMES = [6, 3, 4, 5, 4, 7, 5, 5, 5, 4, 5, 5, 2, 1, 2, 4, 3, 4, 5]
NAMES = ("adapt", "annotate", "change", "check", "compare", "convert", "evaluate", "export")
NAMES += ("finetune", "generate", "inspect", "learn", "list", "new", "pretrain", "report", "status")
NAMES += ("study",)
WRITES = ("study", "pretrain", "finetune", "learn", "adapt", "annotate", "compare", "export")


def command(number: int) -> list[str]:
    """Return the hostile command with a number. Its output folder is ``out``, unless it is bad."""
    rng = np.random.default_rng([number, 66])
    make = MAKERS[int(rng.choice(len(MAKERS), p=np.array(TIMES) / sum(TIMES)))]
    words = make(rng)
    if words[0] in WRITES:
        words += ["--out", replaced(rng, "out", OUTS, share=0.15)]
    how = rng.random()
    if how < 0.04:
        words.insert(
            int(rng.integers(len(words) + 1)), pick(rng, ["--nothing", "-z", "extra", "--"])
        )
    elif how < 0.08 and len(words) > 1:
        del words[int(rng.integers(1, len(words)))]
    elif how < 0.1:
        words.append(pick(rng, ["--help", "--json=3", "--out", "--jobs"]))
    return words


# Running
# ------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """A command took too long."""


def quiet(words: list[str]) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(words)
        except SystemExit as end:
            code = int(end.code) if isinstance(end.code, int) else 0
            return code, out.getvalue(), err.getvalue()
    raise AssertionError("main always exits")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise ``Hang`` after ``LIMIT_SECONDS`` or ``WAIT_SECONDS``, again and again."""

    def late(*_: object) -> None:
        raise Hang

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, LIMIT_SECONDS)}
    timers[signal.SIGALRM] = (signal.ITIMER_REAL, WAIT_SECONDS)
    before = {number: signal.signal(number, late) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds, 5)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


Files = dict[str, tuple[int, int]]


def contents(world: Path) -> Files:
    """Return size and time of change of every file below a folder, and of the empty folders."""
    found = {}
    for folder, folders, files in os.walk(world):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            state = os.lstat(path)
            if not stat.S_ISDIR(state.st_mode) or not os.listdir(path):
                found[path.removeprefix(f"{world}/")] = (state.st_size, state.st_mtime_ns)
    return found


def tried(words: list[str], world: Path, before: Files) -> tuple[str, str]:
    """Run a command in a folder with the files ``before``; return how it ended, and what is wrong
    with this; "" if nothing is.
    """
    try:
        with limited():
            code, out, err = quiet(words)
    except Hang:
        where = traceback.format_exc().splitlines()[-3].strip()
        return "hang", f"takes more than {LIMIT_SECONDS} s: {where}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "maskwise/src" in frame.filename] or frames
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        return "error", f"{type(error).__name__} in {where}: {str(error)[:200]}"
    return f"exit {code}", wrong_with(words, code, out, err, before, contents(world))


def wrong_with(words: list[str], code: int, out: str, err: str, before: Files, after: Files) -> str:
    """Return what is wrong with the end of a command, from what it printed and which files it left
    (``contents``).
    """
    lines = err.splitlines()
    last = lines[-1] if lines else ""
    said = [line for line in lines if line.startswith("maskwise: ")]
    if "Traceback" in err or re.search(r"\.py:\d+: ", err):
        return f"code in stderr: {err[-300:]!r}"
    unclean = [char for char in out + err if not (is_visible(char) or char == "\n")]
    if unclean:
        return f"prints {unclean[0]!r}"
    if any(".partial" in name for name in after):
        return f"leaves {[name for name in after if '.partial' in name][:2]}"
    changed = sorted(name for name, state in before.items() if after.get(name) != state)
    made = sorted(after.keys() - before.keys())
    if code == 2:
        if said != [last] or not last.removeprefix("maskwise: ").strip():
            return f"exit code 2, and the last line is {last!r}"
        # What a finished stage leaves is kept for the next run.
        if made and not any(name.endswith("done.json") for name in made):
            return f"refused ({last[:120]}), and leaves {made[:3]}"
        if changed:
            return f"refused ({last[:120]}), and changes {changed[:3]}"
    elif code == 1:
        # Runs that failed are reported, each in one line.
        if not re.search("failed", err + out):
            return f"exit code 1 without a failed run: {err[-200:]!r}"
    elif code != 0:
        return f"exit code {code}"
    elif "--dry-run" in words and (made or changed):
        return f"a dry run leaves {made[:3]} {changed[:3]}"
    return ""


@contextlib.contextmanager
def a_world() -> Iterator[Path]:
    """Make a folder with all files, without workers and without the network."""
    where = Path.cwd()
    patched = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "100"}
    old = {name: os.environ.get(name) for name in (*patched, "XDG_CACHE_HOME")}
    local = pools.ENGINES["local"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(patched, XDG_CACHE_HOME=f"{folder}/cache")
        pools.ENGINES["local"] = SamePool
        world = Path(folder) / "world"
        world.mkdir()
        try:
            write_world(world)
            yield world
        finally:
            os.chdir(where)
            pools.ENGINES["local"] = local
            for name, value in old.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def restore(world: Path, spare: Path, before: Files, after: Files) -> None:
    """Make the content of a folder, which was ``before`` and is ``after``, equal to its copy."""
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    for name in {name.partition("/")[0] for name in changed}:
        path = world / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if os.path.lexists(spare / name):
            copy(spare / name, path)


def copy(source: Path, target: Path) -> None:
    if source.is_fifo():
        os.mkfifo(target)
    elif source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def run_all(
    numbers: range, *, say: Callable[[str], object] = print
) -> tuple[Counter[str], list[str]]:
    """Run commands in a new folder.

    Returns:
        How often each command ended in which way, and a line for every command that is wrong.
    """
    counts = Counter[str]()
    bad = []
    with a_world() as world:
        spare = world.with_name("spare")
        spare.mkdir()
        for path in world.iterdir():
            copy(path, spare / path.name)
        state = contents(world)
        for number in numbers:
            words = command(number)
            end, wrong = tried(words, world, state)
            counts[end] += 1
            counts[words[0] if words[0] in NAMES else "none"] += 1
            if wrong:
                bad.append(f"{number} maskwise {shlex.join(words)[:300]!a}: {wrong}")
                say(bad[-1])
            now = contents(world)
            if now != state:
                restore(world, spare, state, now)
                state = contents(world)
    return counts, bad


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COMMANDS
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    counts, bad = run_all(range(first, first + count))
    print(f"{count} commands, {len(bad)} wrong: {dict(counts)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
