"""``maskwise annotate``: a corpus through annotators into a store (store.py), as often as it takes.

The corpus is read twice: to know its shards and what of them is there already, then to annotate what is not.
Both times it streams. Annotators that count over the whole corpus read it once more, the first time.

Cost: reading and hashing 9 million words takes seconds; all else is the annotators'.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from maskwise.annotate.engines import ENGINES, run_tasks, start_server
from maskwise.annotate.function import spec_of
from maskwise.annotate.registry import annotator, check_names
from maskwise.annotate.spacy_pipeline import one_pass
from maskwise.annotate.store import (
    MANIFEST,
    Made,
    Manifest,
    cut_shards,
    facts_in,
    file_name,
    shard_key,
    stored_facts,
    write_whole,
)
from maskwise.annotate.summary import add_up
from maskwise.annotate.work import Task
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.text.documents import Documents, read_documents, require_documents
from maskwise.text.layers import Annotator, digest

LOCK = ".lock"
FIT = "annotator.json"
WORKER_CHARACTERS = 4_000_000
"""For each further process: six seconds of a tagger's time, where to start the first ones takes three."""


class _Shard(NamedTuple):
    """What is remembered of a shard between the two readings."""

    key: str
    documents: int
    characters: int


class _Wanted(NamedTuple):
    """An annotator: as it was asked for, and the string that workers build it from."""

    asked: str
    spec: str
    made: Annotator


def annotate_corpus(
    source: str | Path | Sequence[Any], annotators: Sequence[str], out: str | Path, *, text_field: str = "text",
    limit: int | None = None, engine: str = "local", jobs: int | None = 1,
    functions: Sequence[str | Callable[..., Any]] = (), quiet: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Annotate a corpus into the folder ``out``; what is there already is not done again.

    Layers of other annotators that ``out`` holds for the same corpus stay.

    Args:
        source: whatever `read_documents` takes; or a CoNLL-U file, for its texts.
        annotators: strings such as ``words`` or ``pos(model="en_core_web_sm")``; registry.py has the names.
        text_field, limit: as for `read_documents`.
        engine: "local" or "ray".
        jobs: processes of the local engine; None: as many as there are cores, or fewer for a small corpus. A script
            that asks for more than one needs ``if __name__ == "__main__":``, as theirs import it.
        functions: annotators of your own (function.py): functions that can be imported, or "module:function".
        quiet: no progress on the terminal.

    Returns:
        What ``summary.json`` holds: "source", "corpus" (its key), "documents", "characters", "words", "shards",
        "made" (files written by this run), "skipped" (reason → documents) and "annotators": for each what
        `summary.add_up` returns, and a "notice": a line to tell the user, or None.

    Raises:
        MaskwiseError: bad input; a folder that holds something else; a full disk. Shards that were finished are
            kept; a run that ends before its first one leaves nothing.
    """
    out = Path(out)
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    wanted = [_Wanted(spec, spec, annotator(spec)) for spec in one_pass(annotators)]
    for spec in map(str, map(spec_of, functions)):
        wanted.append(_Wanted(spec, spec, annotator(spec, functions=True)))
    check_names([one.made for one in wanted])
    if not wanted:
        raise MaskwiseError("no annotators", do="name some, such as words,pos,salient")
    documents = open_corpus(source, text_field=text_field, limit=limit)
    with _claimed(out), _Bar(quiet) as bar:
        imports = {module for one in wanted for module in getattr(one.made, "imports", ())}
        if engine == "local" and (jobs or 1) > 1 and not (out / MANIFEST).is_file():
            start_server(imports)  # beside the reading; where there is a manifest there may be nothing to do
        shards = [
            _Shard(shard_key(shard), len(shard), sum(len(document.text) for document in shard))
            for shard in bar.watch("reading", cut_shards(documents), lambda shard: len(shard), "documents")
        ]
        corpus = digest(*(shard.key for shard in shards))
        wanted = [_fitted(one, corpus, documents, out, bar) for one in wanted]
        files = {
            (number, one.asked): out / "shards" / file_name(one.made.name, one.made.version, shard.key)
            for number, shard in enumerate(shards)
            for one in wanted
        }
        facts = {place: stored_facts(path) for place, path in files.items()}
        tasks = _tasks(documents, shards, wanted, {place for place, found in facts.items() if found is None})
        lacking = {number for (number, _), found in facts.items() if found is None}
        made = 0
        characters = sum(shards[number].characters for number in lacking)
        enough = min(os.cpu_count() or 1, 1 + characters // WORKER_CHARACTERS)
        workers = max(1, min(jobs or enough, len(lacking)))
        names = {one.spec: one.asked for one in wanted}
        with bar.part("annotating", characters, "characters"):
            done = run_tasks(tasks, engine=engine, jobs=workers, imports=imports) if lacking else ()
            for task, contents in done:
                for spec, content in zip(task.annotators, contents, strict=True):
                    place = task.number, names[spec]
                    write_whole(files[place], content)
                    facts[place] = facts_in(content)
                    made += 1
                bar.advance(shards[task.number].characters)
        parts = [Made(one.made.name, one.asked, one.made.version, dict(one.made.layers)) for one in wanted]
        kept = _kept(out, corpus, parts)
        summary: dict[str, Any] = {
            "source": documents.name, "corpus": corpus, "documents": sum(shard.documents for shard in shards),
            "characters": sum(shard.characters for shard in shards),
            "words": 0, "shards": len(shards), "made": made, "skipped": dict(documents.skipped),
            "annotators": {},
        }  # fmt: skip
        for one in wanted:
            of_shards = [facts[number, one.asked] or {} for number in range(len(shards))]
            found = add_up(of_shards, one.made.layers)
            summary["words"] = found.pop("words")
            said = {"notice": getattr(one.made, "notice", None)}
            summary["annotators"][one.asked] = said | {key: found[key] for key in ("failures", "layers")}
        write_whole(out / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False).encode())
        total = summary["documents"], summary["characters"]
        manifest = Manifest(documents.name, corpus, *total, (*kept, *parts), tuple(one.key for one in shards))
        write_whole(out / MANIFEST, manifest.to_json().encode())
        _sweep(out, manifest)
    return summary


def open_corpus(source: Any, *, text_field: str = "text", limit: int | None = None) -> Documents:
    """The documents of a corpus; of a CoNLL-U file its texts."""
    if isinstance(source, str | Path) and str(source).endswith((".conllu", ".conllu.gz")):
        from maskwise.annotate.gold import read_conllu

        source = [{"id": one.id, text_field: one.text} for one in read_conllu(Path(source).expanduser())]
    return require_documents(read_documents(source, text_field=text_field, limit=limit))


def _fitted(wanted: _Wanted, corpus: str, documents: Documents, out: Path, bar: _Bar) -> _Wanted:
    """The annotator that has seen the corpus, for one that has to: read from ``fitted/``, or made now."""
    made: Any = wanted.made
    if getattr(made, "fitted", True):
        return wanted
    folder = (out / "fitted" / f"{made.name}-{digest(made.version, corpus)}").resolve()
    if not (folder / FIT).is_file():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        try:
            partial.mkdir(parents=True)
            texts = bar.watch(
                f"counting for {made.name}", documents, lambda one: 1, "documents", documents.read
            )
            spec = made.fit((document.text for document in texts), partial)
            (partial / FIT).write_text(json.dumps({"spec": spec.replace(str(partial), "{folder}")}))
            partial.rename(folder)
        except OSError as error:
            raise MaskwiseError(f"cannot write {folder}", got=error.strerror, do="is there room?") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    spec = json.loads((folder / FIT).read_text())["spec"].replace("{folder}", str(folder))
    return _Wanted(wanted.asked, spec, annotator(spec))


def _tasks(
    documents: Documents, shards: Sequence[_Shard], wanted: Sequence[_Wanted], lacking: set[tuple[int, str]]
) -> Iterator[Task]:
    for number, shard in enumerate(cut_shards(documents)):
        specs = tuple(one.spec for one in wanted if (number, one.asked) in lacking)
        if number >= len(shards) or shard_key(shard) != shards[number].key:
            raise MaskwiseError(f"{documents.name} changed while it was read", do="annotate it again")
        if specs:
            yield Task(number, [(name, text) for name, text in shard], specs)


def _kept(out: Path, corpus: str, new: Sequence[Made]) -> list[Made]:
    """What earlier runs made of the same corpus, but for what is made anew."""
    if not (out / MANIFEST).is_file():
        return []
    try:
        before = Manifest.load(out)
    except MaskwiseError:  # damaged: this run makes a new one
        return []
    taken = {layer for made in new for layer in made.layers}
    left = (
        replace(made, layers={name: layer for name, layer in made.layers.items() if name not in taken})
        for made in before.annotators
        if before.corpus == corpus
    )
    return [made for made in left if made.layers]


def _sweep(out: Path, manifest: Manifest) -> None:
    """Remove shards that the manifest does not name (of other texts, or another version), and half-done counts of
    runs that were killed."""
    named = {
        file_name(made.name, made.version, key) for made in manifest.annotators for key in manifest.shards
    }
    for path in (out / "shards").iterdir():
        if path.name not in named:
            path.unlink()
    for path in (out / "fitted").glob(".*.partial"):
        shutil.rmtree(path)


def _leave(out: Path, *, ours: bool) -> None:
    """After a failure: without a shard there is nothing that a next run could go on from, so nothing stays."""
    if (out / MANIFEST).is_file() or any((out / "shards").glob("*.parquet")):
        return
    for part in ("shards", "fitted"):
        shutil.rmtree(out / part, ignore_errors=True)
    (out / LOCK).unlink(missing_ok=True)
    if ours:
        with suppress(OSError):
            out.rmdir()


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """The folder, ours alone."""
    if out.exists() and not out.is_dir():
        raise MaskwiseError("--out is a file", got=str(out), do="give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / LOCK).is_file():
        found = ", ".join(sorted(path.name for path in out.iterdir())[:3])
        raise MaskwiseError(f"--out {out} holds something else", got=found, do="give a new folder")
    ours = not out.is_dir()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
    except OSError as error:
        raise MaskwiseError(f"cannot write {out}", got=error.strerror) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            do = "wait for it, or give another folder"
            raise MaskwiseError(f"another run annotates into {out}", do=do) from None
        try:
            yield
        except Exception:  # but not of Ctrl-C, behind which the same command goes on
            _leave(out, ours=ours)
            raise


class _Bar:
    """Progress with rate and time left, on a terminal."""

    def __init__(self, quiet: bool):
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
            console=console, disable=quiet or not console.is_terminal, transient=True,
        )  # fmt: skip

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    @contextmanager
    def part(self, title: str, total: int | None, unit: str) -> Iterator[None]:
        self.unit, self.task = unit, self.bar.add_task(title, total=total, rate="")
        yield
        self.bar.remove_task(self.task)

    def advance(self, amount: int) -> None:
        self.bar.advance(self.task, amount)
        speed = self.bar.tasks[-1].speed
        self.bar.update(self.task, rate=f"{speed:,.0f} {self.unit}/s" if speed else "")

    def watch(
        self, title: str, items: Iterable[Any], size: Any, unit: str, total: int | None = None
    ) -> Iterator[Any]:
        with self.part(title, total, unit):
            for item in items:
                yield item
                self.advance(size(item))
