"""``maskwise annotate``: takes a corpus through annotators into a store (store.py).

The corpus is streamed twice: to know its shards and which of them are there already, then to
annotate the others. Annotators that count over the whole corpus read it once more in between.
Shards go to a pool of workers (jobs.py), and their files come back to this process, which alone
writes: a cluster needs no shared disk (but for what annotators read themselves: a fitted
    vocabulary, a file of given spans). Every engine gives the same bytes.

Cost: reading and hashing 9 million words takes seconds; texts and files go through a pipe, a few
    per cent of the
tagger's time; all else is the annotators'.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypedDict

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from maskwise.annotate.given import spec_of
from maskwise.annotate.registry import annotator, check_names
from maskwise.annotate.shard import (
    AnnotatorSummary,
    ShardTask,
    add_up,
    annotate_shard,
    forget,
)
from maskwise.annotate.store import (
    MANIFEST,
    Manifest,
    Part,
    ShardFacts,
    cut_shards,
    facts_in,
    file_name,
    shard_key,
    stored_facts,
)
from maskwise.annotate.tagger import one_pass
from maskwise.errors import MaskwiseError
from maskwise.folders import (
    claim,
    damage,
    require_own,
    sweep,
    write_folder,
    write_json,
    write_whole,
)
from maskwise.jobs import Pool, open_pool, require_engine
from maskwise.text.documents import UNNAMED, Documents, read_documents, require_documents
from maskwise.text.layers import Annotator, Fitted, digest

Corpus: TypeAlias = str | Path | Sequence[str | Mapping[str, object]] | Documents

LOCK = ".lock"
FIT = "annotator.json"
WORKER_CHARACTERS = 4_000_000
"""For each further process: six seconds of a tagger's time, where to start the first ones takes
three.
"""


class Summary(TypedDict):
    """What ``summary.json`` holds.

    ``corpus`` is its key; ``made`` counts the files that the folder has gained since the last
    finished run; ``skipped`` is reason → documents; ``annotators`` has an entry for each string
    that was asked for.
    """

    source: str
    corpus: str
    documents: int
    characters: int
    words: int
    shards: int
    made: int
    skipped: dict[str, int]
    annotators: dict[str, AnnotatorSummary]


class _Shard(NamedTuple):
    """What is remembered of a shard between the two readings."""

    key: str
    documents: int
    characters: int


class _Wanted(NamedTuple):
    """An annotator: as it was asked for, and the string from which workers build it."""

    asked: str
    spec: str
    annotator: Annotator

    @property
    def part(self) -> Part:
        maker = self.annotator
        return Part(maker.name, self.asked, maker.version, dict(maker.layers))


Lacking: TypeAlias = dict[int, list[_Wanted]]
"""Number of a shard → the annotators whose layers it lacks."""


def annotate_corpus(
    source: Corpus,
    annotators: Sequence[str],
    out: str | Path,
    *,
    text_field: str = "text",
    limit: int | None = None,
    engine: str = "local",
    jobs: int | None = 1,
    functions: Sequence[str | Callable[..., object]] = (),
    quiet: bool = True,
) -> Summary:
    """Annotate a corpus into the folder ``out``; what is there already is not done again.

    Layers of other annotators that ``out`` holds for the same corpus stay.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = annotate_corpus(["Ada met Charles. They talked."], ["words", "sentences"], f"{folder}/out")
    ...     summary["words"], summary["annotators"]["sentences"]["layers"]["sentence"]["spans"]
    (7, 2)

    Args:
        source: whatever `read_documents` takes, or what it gave; or a CoNLL-U file, for its texts.
        annotators: strings such as ``words`` or ``pos(model="en_core_web_sm")``; registry.py has
            the names.
        text_field, limit: as for `read_documents`.
        engine: "local" or "ray".
        jobs: processes of the local engine; None: as many as there are cores, or fewer for a small
            corpus. Ray takes what the cluster has, or at most this many cores.
        functions: annotators of your own (function.py): functions that can be imported, or
            "module:function".
        quiet: no progress on the terminal.

    Raises:
        MaskwiseError: bad input; a folder that holds something else or layers that would be lost; a
            full disk. Shards that were finished are kept; a run that ends before its first one
            leaves nothing.
    """
    out = Path(out)
    require_engine(engine)
    wanted = [_Wanted(spec, spec, annotator(spec)) for spec in one_pass(annotators)]
    for spec in map(str, map(spec_of, functions)):
        wanted.append(_Wanted(spec, spec, annotator(spec, functions=True)))
    check_names([each.annotator for each in wanted])
    if not wanted:
        raise MaskwiseError("no annotators", do="name some, such as words,pos,salient")
    documents = open_corpus(source, text_field=text_field, limit=limit)
    with (
        _claimed(out),
        _progress(quiet) as progress,
        open_pool(annotate_shard, engine=engine, jobs=jobs) as pool,
    ):
        before = _last_manifest(out)
        unfinished = not (out / MANIFEST).is_file()
        if (jobs or 1) > 1 and unfinished:  # else there may be nothing to do
            imports = set[str]()
            for each in wanted:
                imports.update(getattr(each.annotator, "imports", ()))
            pool.warm(jobs or 1, imports=imports)  # while this process reads

        shards = []
        for shard in cut_shards(progress.track(documents, description="reading")):
            characters = sum(len(document.text) for document in shard)
            shards.append(_Shard(shard_key(shard), len(shard), characters))
        corpus = digest(*(shard.key for shard in shards))
        if before and before.corpus != corpus:
            _require_nothing_lost(before, documents, shards, wanted, out)
        wanted = [_fitted(each, corpus, documents, out, progress) for each in wanted]
        parts = [each.part for each in wanted]

        # What is there already, by the number of the shard and the string of the annotator.
        paths: dict[tuple[int, str], Path] = {}
        facts: dict[tuple[int, str], ShardFacts | None] = {}
        lacking: Lacking = {}
        for each, part in zip(wanted, parts, strict=True):
            for number, known in enumerate(shards):
                path = out / "shards" / file_name(part.name, part.version, known.key)
                paths[number, each.spec] = path
                facts[number, each.spec] = stored_facts(path)
                if facts[number, each.spec] is None:
                    lacking.setdefault(number, []).append(each)
        made = sum(map(len, lacking.values()))
        if before or unfinished:  # files that an interrupted run left count as made
            old = _files_of(before) if before else set()
            made += sum(path.name not in old for place, path in paths.items() if facts[place])

        characters = sum(shards[number].characters for number in lacking)
        tasks = _tasks(documents, shards, lacking)
        workers = _workers(engine, jobs, characters, len(lacking))
        shown = progress.add_task("annotating", total=characters)
        for task, contents in _annotated(tasks, pool, workers):
            for spec, content in zip(task.annotators, contents, strict=True):
                write_whole(paths[task.number, spec], content)
                facts[task.number, spec] = facts_in(content)
            progress.advance(shown, shards[task.number].characters)

        summary: Summary = {
            "source": documents.name,
            "corpus": corpus,
            "documents": sum(shard.documents for shard in shards),
            "characters": sum(shard.characters for shard in shards),
            "words": 0,
            "shards": len(shards),
            "made": made,
            "skipped": dict(documents.skipped),
            "annotators": {},
        }
        for each in wanted:
            stored = [entry for (_, spec), entry in facts.items() if spec == each.spec and entry]
            summary["words"] = sum(entry["words"] for entry in stored)
            summary["annotators"][each.asked] = add_up(stored, each.annotator)
        write_json(out / "summary.json", summary)
        kept = _kept(before, parts) if before and before.corpus == corpus else []
        manifest = Manifest(
            documents.name,
            corpus,
            summary["documents"],
            summary["characters"],
            (*kept, *parts),
            tuple(shard.key for shard in shards),
        )
        write_whole(out / MANIFEST, manifest.to_json())
        named = _files_of(manifest)
        for path in (out / "shards").iterdir():
            if path.name not in named:  # of earlier texts, or of another version
                path.unlink()
    return summary


def open_corpus(source: Corpus, *, text_field: str = "text", limit: int | None = None) -> Documents:
    """The documents of a corpus; of a CoNLL-U file its texts."""
    if isinstance(source, Documents):
        return require_documents(source)
    if isinstance(source, str | Path) and str(source).endswith((".conllu", ".conllu.gz")):
        from maskwise.text.labelled import read_conllu

        source = [
            {"id": gold.id, text_field: gold.text}
            for gold in read_conllu(Path(source).expanduser())
        ]
    return require_documents(read_documents(source, text_field=text_field, limit=limit))


def _progress(quiet: bool) -> Progress:
    """Bars on a terminal, with the time left."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )


def _workers(engine: str, jobs: int | None, characters: int, shards: int) -> int | None:
    """How many shards at once; 1: in this process; None: as many as Ray has room for."""
    if engine == "ray":
        return None
    enough = min(os.cpu_count() or 1, 1 + characters // WORKER_CHARACTERS)
    return max(1, min(jobs or enough, shards))


def _annotated(
    tasks: Iterator[ShardTask], pool: Pool[ShardTask, list[bytes]], workers: int | None
) -> Iterator[tuple[ShardTask, list[bytes]]]:
    if workers != 1:
        yield from pool.results(tasks, at_once=workers)
        return
    # this process may have worked before, and files that annotators read may have changed since
    forget()
    with threadpool_limits(1, user_api="blas"):  # as in workers: a job is a core
        for task in tasks:
            yield task, annotate_shard(task)


def _fitted(
    wanted: _Wanted, corpus: str, documents: Documents, out: Path, progress: Progress
) -> _Wanted:
    """The annotator that has seen the corpus, for one that has to: read from ``fitted/``, or made
    now.
    """
    unfitted = wanted.annotator
    if not isinstance(unfitted, Fitted) or unfitted.fitted:
        return wanted
    folder = (out / "fitted" / f"{unfitted.name}-{digest(unfitted.version, corpus)}").resolve()
    if damage(folder):  # or not there yet
        title = f"counting for {unfitted.name}"
        read = progress.track(documents, description=title, total=documents.read)

        def fill(partial: Path) -> None:
            spec = unfitted.fit((document.text for document in read), partial)
            text = json.dumps({"spec": spec.replace(repr(str(partial)), "{folder}")})
            (partial / FIT).write_text(text, encoding="utf-8")

        write_folder(folder, fill)
    stored = json.loads((folder / FIT).read_text(encoding="utf-8"))
    spec = stored["spec"].replace("{folder}", repr(str(folder)))
    return _Wanted(wanted.asked, spec, annotator(spec))


def _tasks(documents: Documents, shards: Sequence[_Shard], lacking: Lacking) -> Iterator[ShardTask]:
    if not lacking:
        return
    for number, shard in enumerate(cut_shards(documents)):
        if number >= len(shards) or shard_key(shard) != shards[number].key:
            raise MaskwiseError(
                f"{documents.name} changed while it was read", do="annotate it again"
            )
        if number in lacking:
            specs = tuple(each.spec for each in lacking[number])
            yield ShardTask(number, [(name, text) for name, text in shard], specs)


# The folder
# ------------------------------------------------------------------------------------------------


def _last_manifest(out: Path) -> Manifest | None:
    """What the last finished run wrote; None if there was none, or it is damaged: this run makes a
    new one.
    """
    with suppress(MaskwiseError):
        return Manifest.load(out)
    return None


def _require_nothing_lost(
    before: Manifest,
    documents: Documents,
    shards: Sequence[_Shard],
    wanted: Sequence[_Wanted],
    out: Path,
) -> None:
    """Refuse to replace the layers of another corpus, or layers that a changed corpus would not get
    anew.
    """
    same_source = documents.name == before.source != UNNAMED
    if not same_source and not {shard.key for shard in shards} & set(before.shards):
        got = f"{before.documents:,} documents of {before.source}"
        raise MaskwiseError(
            f"--out {out} holds the layers of another corpus", got=got, do="give a new folder"
        )
    lost = _kept(before, [each.part for each in wanted])
    if lost:
        layers = ", ".join(name for part in lost for name in part.layers)
        do = f"ask for them too ({', '.join(part.spec for part in lost)}), or give a new folder"
        raise MaskwiseError(f"the corpus has changed since {out} got the layers {layers}", do=do)


def _kept(before: Manifest, new: Sequence[Part]) -> list[Part]:
    """What an earlier run made, without the layers that are made anew."""
    taken = set[str]()
    for part in new:
        taken.update(part.layers)
    kept = []
    for part in before.annotators:
        layers = {name: layer for name, layer in part.layers.items() if name not in taken}
        if layers:
            kept.append(replace(part, layers=layers))
    return kept


def _files_of(manifest: Manifest) -> set[str]:
    return {
        file_name(part.name, part.version, key)
        for part in manifest.annotators
        for key in manifest.shards
    }


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """The folder, for this process alone."""
    require_own(out, LOCK, what="annotations")
    existed = out.is_dir()
    with claim(out, "another run annotates into", lock=LOCK):
        sweep(out)
        try:
            yield
        except Exception:  # but not after Ctrl-C, from which the same command goes on
            # Without a shard there is nothing that a next run could go on from, so nothing stays.
            if not (out / MANIFEST).is_file() and not any((out / "shards").glob("*.parquet")):
                for part in ("shards", "fitted"):
                    shutil.rmtree(out / part, ignore_errors=True)
                (out / LOCK).unlink(missing_ok=True)
                if not existed:
                    with suppress(OSError):
                        out.rmdir()
            raise
