"""``maskwise annotate``: annotate a corpus, and write the layers to a folder (a store, store.py).

A layer is one annotation of the texts, such as parts of speech or phrases. A shard is a group of
about 128 consecutive documents, and each annotator writes one file for each shard.

The corpus is read three times: to find out which files are missing, to annotate the shards that
lack a file, and to count what the files have (tally.py). Annotators that need counts over the whole
corpus read it once more, after the first time.
Worker processes (jobs.py) annotate shards and send the contents of the files to this process. Only
this process writes files, so the nodes of a cluster need a shared disk only if an annotator reads
files. The files are byte-identical whether the workers run on this machine or on Ray.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import asdict, replace
from itertools import compress, product, zip_longest
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypedDict

from rich.progress import Progress
from threadpoolctl import threadpool_limits

from maskwise.annotate.registry import annotator, check_layer_names, spec_of
from maskwise.annotate.shard import ShardTask, annotate_shard, forget
from maskwise.annotate.store import (
    MANIFEST,
    Manifest,
    StoredAnnotator,
    cut_shards,
    is_whole,
    read_shard,
    shard_key,
)
from maskwise.annotate.tagger import one_pass
from maskwise.annotate.tally import AnnotatorSummary, Tally
from maskwise.constants import cores_here
from maskwise.errors import MaskwiseError, items_of, require_known, whole_number
from maskwise.folders import (
    OutputFolder,
    claim,
    damage,
    read_json,
    sweep,
    write_folder,
    write_json,
    write_whole,
)
from maskwise.jobs import ENGINES, Pool, open_pool
from maskwise.printing import err_console, note, shows_progress
from maskwise.signals import AskedToLeave
from maskwise.specs import user_path
from maskwise.text.documents import (
    Document,
    Documents,
    field_note,
    read_documents,
    require_documents,
)
from maskwise.text.layers import Annotator, Fitted, digest
from maskwise.text.source import UNNAMED, refuse_fields

Corpus: TypeAlias = str | Path | Sequence[str | Mapping[str, object]] | Documents

LOCK = ".lock"
FIT = "annotator.json"
WORKER_CHARACTERS = 4_000_000
"""One more process is started for every this many characters to annotate. A process needs three
seconds to start, and about six seconds to tag as many characters."""


class AnnotationSummary(TypedDict):
    """The content of ``summary.json``.

    Attributes:
        source: the name of the corpus.
        corpus: the hash of the corpus.
        documents, characters, words, shards: their numbers in the corpus.
        made: the number of files of shards that this run wrote.
        skipped: the number of documents that could not be used, keyed by reason.
        annotators: the counts of each annotator, keyed by the annotator as the user wrote it.
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


class _WantedAnnotator(NamedTuple):
    """An annotator to run.

    Attributes:
        asked: the annotator as the user wrote it, such as ``phrases(size=9000)``.
        spec: the string from which workers build the annotator. For an annotator that was fitted to
            the corpus, the string names the folder of the fit.
        annotator: the annotator.
    """

    asked: str
    spec: str
    annotator: Annotator

    @property
    def part(self) -> StoredAnnotator:
        maker = self.annotator
        return StoredAnnotator(maker.name, self.asked, maker.version, dict(maker.layers))


def annotate_corpus(
    source: Corpus,
    annotators: Sequence[str],
    out: str | Path,
    *,
    text_field: str = "text",
    limit: int | None = None,
    engine: str = "local",
    jobs: int | None = 1,
    functions: Sequence[str] = (),
) -> AnnotationSummary:
    """Annotate a corpus and write the layers into the folder ``out``.

    Files that an earlier call finished are not written again. Layers of the same corpus from
    earlier calls stay in the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = f"{folder}/out"
    ...     text = "Ada met Charles. They talked."
    ...     summary = annotate_corpus([text], ["words", "sentences"], out)
    ...     summary["words"], summary["annotators"]["sentences"]["layers"]["sentence"]["spans"]
    (7, 2)

    Args:
        source: anything that `read_documents` reads, a `Documents` object, or a CoNLL-U file. Of a
            CoNLL-U file, only the texts are used.
        annotators: strings such as ``words`` or ``pos(model="en_core_web_sm")``. The table
            ``ANNOTATORS`` in registry.py lists the names.
        out: the folder to write.
        text_field: the field or column of the texts, as for `read_documents`.
        limit: the maximum number of documents, also of a `Documents` object; None for no further
            limit.
        engine: "local" for processes on this machine, or "ray" for a Ray cluster.
        jobs: the number of local processes, or the maximum number of cores in a Ray cluster. None
            uses one local process per core (fewer if the corpus is small), or all cores of the Ray
            cluster.
        functions: your own functions as annotators, such as "module:function"; see registry.py.

    Returns:
        The content of ``summary.json``.

    Raises:
        MaskwiseError: the input is not valid, the folder contains other files or layers that this
            call would destroy, or the disk is full. After an error, finished files stay in the
            folder. If no file is finished, the call leaves nothing behind.
    """
    out = Path(out)
    require_known("engine", engine, ENGINES)
    wanted = []
    asked = [*items_of("annotators", annotators, of="names", single=True)]
    for spec in one_pass(asked):
        wanted.append(_WantedAnnotator(spec, spec, annotator(spec)))
    given = items_of("functions", functions, of="names, such as 'module:function'", single=True)
    for spec in map(str, map(spec_of, given)):
        wanted.append(_WantedAnnotator(spec, spec, annotator(spec, functions=True)))
    check_layer_names([each.annotator for each in wanted])
    if not wanted:
        raise MaskwiseError("no annotators", do="name some, such as words,pos,salient")
    documents = require_documents(open_corpus(source, text_field=text_field, limit=limit))
    note(field_note(documents, text_field))
    hidden = not (shows_progress() and err_console.is_terminal)
    bars = Progress(console=err_console, disable=hidden, transient=True)
    with _claimed(out), bars, open_pool(engine=engine, jobs=jobs) as pool:
        # If the folder has a manifest, all files may exist already, and no worker is needed.
        if (jobs or 1) > 1 and not (out / MANIFEST).is_file():
            # Workers start, and import annotators, while this process reads the corpus.
            for _ in range(jobs or 1):
                pool.submit(forget)

        before = None
        # The layers of another version would be lost.
        read_json(out / MANIFEST, usable=True)
        # If the manifest is missing or damaged, this run writes a new one.
        with suppress(MaskwiseError):
            before = Manifest.load(out)
        # A corpus may be larger than memory, so only the hash and the size of each shard are kept.
        keys = []
        lengths = []
        count = 0
        for contents in cut_shards(bars.track(documents, description="reading")):
            keys.append(shard_key(contents))
            lengths.append(sum(len(document.text) for document in contents))
            count += len(contents)
        corpus = digest(*keys)
        if before and before.corpus != corpus:
            _require_nothing_lost(before, documents, keys, wanted, out)
        wanted = [_fitted(each, corpus, documents, out, bars) for each in wanted]
        parts = {each.spec: each.part for each in wanted}
        # For each shard, the annotators without a file. The texts of a shard are sent to a worker
        # only once, even if several annotators lack a file.
        missing = []
        for key in keys:
            lacking = []
            for spec, part in parts.items():
                if not is_whole(out / "shards" / part.file(key)):
                    lacking.append(spec)
            missing.append(tuple(lacking))
        # The progress bar counts only the shards that at least one annotator lacks.
        characters = sum(compress(lengths, missing))
        shown = bars.add_task("annotating", total=characters)
        workers = _workers(engine, jobs, characters, sum(map(bool, missing)))
        for task, files in _annotated(_tasks(documents, keys, missing), pool, workers):
            for spec, content in zip(task.annotators, files, strict=True):
                path = out / "shards" / parts[spec].file(keys[task.number])
                write_whole(path, content)
            bars.advance(shown, lengths[task.number])

        tally = Tally({each.asked: each.annotator for each in wanted})
        read = bars.track(documents, description="counting", total=count)
        for key, contents in _shards(documents.name, read, keys):
            tables = {}
            for each in wanted:
                tables[each.asked] = read_shard(out / "shards" / each.part.file(key))
            tally.add([document.text for document in contents], tables)
        summary: AnnotationSummary = {
            "source": documents.name,
            "corpus": corpus,
            "documents": count,
            "characters": sum(lengths),
            "words": tally.words,
            "shards": len(keys),
            "made": sum(map(len, missing)),
            "skipped": dict(documents.skipped),
            "annotators": tally.summaries(),
        }
        write_json(out / "summary.json", summary)
        # The manifest is written last: a store without it is unfinished.
        kept = []
        if before and before.corpus == corpus:
            kept = _kept(before, parts.values())
        manifest = Manifest(
            documents.name,
            corpus,
            summary["documents"],
            summary["characters"],
            (*kept, *parts.values()),
            tuple(keys),
        )
        write_json(out / MANIFEST, asdict(manifest))
        named = {part.file(key) for part, key in product(manifest.annotators, keys)}
        for path in (out / "shards").iterdir():
            # Other files are from earlier texts, or from an earlier version of an annotator.
            if path.name not in named:
                path.unlink()
    return summary


def open_corpus(
    source: Corpus, *, text_field: str, limit: int | None, text_per: str = "auto"
) -> Documents:
    """Open a corpus; see ``annotate_corpus`` for the arguments. Only CoNLL-U files are read now.

    Raises:
        MaskwiseError: the corpus does not exist, or an argument is not valid.
    """
    if isinstance(source, Documents):
        if limit is not None:
            source = copy(source)
            limit = whole_number("limit", limit, least=1)
            source.limit = min(limit, source.limit or limit)
        return source
    refuse_fields(source, text_field=text_field, text_per=text_per)
    name = None
    if isinstance(source, str | Path) and str(source).endswith((".conllu", ".conllu.gz")):
        from maskwise.text.conll import read_conllu

        name = str(source)
        gold = read_conllu(user_path(source))
        source = [{"id": document.id, text_field: document.text} for document in gold]
    documents = read_documents(source, text_field=text_field, text_per=text_per, limit=limit)
    documents.name = name or documents.name
    return documents


def _workers(
    engine: str,
    jobs: int | None,
    characters: int,
    shards: int,
) -> int | None:
    """Return the number of processes that annotate.

    Args:
        characters: the number of characters to annotate.
        shards: the number of shards to annotate.

    Returns:
        The number of processes. If it is 1, this process annotates. With Ray, None: the cluster
        decides.
    """
    if engine == "ray":
        return None
    enough = min(cores_here(), 1 + characters // WORKER_CHARACTERS)
    return max(1, min(jobs or enough, shards))


def _annotated(
    tasks: Iterator[ShardTask],
    pool: Pool,
    workers: int | None,
) -> Iterator[tuple[ShardTask, list[bytes]]]:
    if workers != 1:
        yield from pool.results(annotate_shard, tasks, at_once=workers)
        return
    # Annotators from an earlier call in this process may have read an older version of a file.
    forget()
    # A worker runs matrix products on one thread. This process does the same.
    with threadpool_limits(1, user_api="blas"):
        for task in tasks:
            yield task, annotate_shard(task)


def _tasks(
    documents: Documents,
    keys: Sequence[str],
    missing: Sequence[tuple[str, ...]],
) -> Iterator[ShardTask]:
    if not any(missing):
        return
    shards = _shards(documents.name, documents, keys)
    for number, (_, contents) in enumerate(shards):
        if missing[number]:
            lacking = missing[number]
            yield ShardTask(number, contents, lacking)


def _shards(
    name: str,
    documents: Iterable[Document],
    keys: Sequence[str],
) -> Iterator[tuple[str, list[Document]]]:
    """Yield the key and the documents of each shard.

    Raises:
        MaskwiseError: the shards do not have these keys.
    """
    for key, contents in zip_longest(keys, cut_shards(documents), fillvalue=()):
        if not contents or shard_key(contents) != key:
            raise MaskwiseError(
                f"{name} changed while it was being read",
                do="annotate it again",
            )
        yield key, contents


def _fitted(
    wanted: _WantedAnnotator,
    corpus: str,
    documents: Documents,
    out: Path,
    bars: Progress,
) -> _WantedAnnotator:
    """Fit an annotator to the corpus if it needs a fit.

    A fit reads the whole corpus, for example to count words. The fit of an earlier run is reused.
    """
    unfitted = wanted.annotator
    if not isinstance(unfitted, Fitted) or unfitted.fitted:
        return wanted
    key = digest(unfitted.version, corpus)
    folder = (out / "fitted" / f"{unfitted.name}-{key}").resolve()
    # ``damage`` also reports a folder that does not exist.
    if damage(folder):
        title = f"counting for {unfitted.name}"
        read = bars.track(documents, description=title, total=documents.read)

        def fill(partial: Path) -> None:
            # ``partial`` is a temporary folder, and users may move the final folder. Therefore the
            # stored spec has a placeholder in place of the path.
            spec = unfitted.fit((document.text for document in read), partial)
            write_json(partial / FIT, {"spec": spec.replace(repr(str(partial)), "{folder}")})

        write_folder(folder, fill)
    stored = read_json(folder / FIT)
    assert stored is not None, "the folder was just compared with its manifest"
    spec = stored["spec"].replace("{folder}", repr(str(folder)))
    return _WantedAnnotator(wanted.asked, spec, annotator(spec))


# The folder
# -------------------------------------------------------------------------------------------


def _require_nothing_lost(
    before: Manifest,
    documents: Documents,
    keys: Sequence[str],
    wanted: Sequence[_WantedAnnotator],
    out: Path,
) -> None:
    """Check that this run destroys no layers, if the folder has layers of different texts.

    Args:
        before: the manifest of the earlier run.
        keys: the keys of this corpus's shards.
        wanted: the annotators of this run.

    Raises:
        MaskwiseError: the folder has layers of an unrelated corpus, or layers of an earlier version
            of this corpus that this run does not write again.
    """
    same_source = documents.name == before.source != UNNAMED
    if not same_source and not set(keys) & set(before.shards):
        raise MaskwiseError(
            f"{out} contains the layers of a different corpus",
            got=f"{before.documents:,} documents of {before.source}",
            do="give a new folder",
        )
    lost = _kept(before, [each.part for each in wanted])
    if lost:
        layers: list[str] = []
        specs = []
        for part in lost:
            layers += part.layers
            specs.append(part.spec)
        raise MaskwiseError(
            f"the corpus has changed since the layers {', '.join(layers)} in {out} were made",
            do=f"add their annotators ({', '.join(specs)}) to this call, or give a new folder",
        )


def _kept(before: Manifest, new: Iterable[StoredAnnotator]) -> list[StoredAnnotator]:
    """Return the annotators of an earlier run, without the layers that ``new`` writes again.

    An annotator is left out if ``new`` writes all its layers.
    """
    taken = set[str]()
    for part in new:
        taken.update(part.layers)
    kept = []
    for part in before.annotators:
        layers = {name: layer for name, layer in part.layers.items() if name not in taken}
        if layers:
            kept.append(replace(part, layers=layers))
    return kept


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Lock the folder for this process. After an error, clean it up if no file is finished."""
    OutputFolder(out, "annotate", known=(out / LOCK).exists()).require()
    existed = out.is_dir()
    with claim(out / LOCK, f"another run annotates into {out}"):
        sweep(out)
        try:
            yield
        # Ctrl-C raises ``KeyboardInterrupt``, which is not an ``Exception``. After Ctrl-C or a
        # signal, the folder therefore stays, and the same command resumes.
        except AskedToLeave:
            raise
        except (Exception, SystemExit):
            # Without a finished file, there is nothing to resume from.
            if not (out / MANIFEST).is_file() and not any((out / "shards").glob("*.parquet")):
                # Files that this program did not write must stay.
                for part in ("shards", "fitted"):
                    shutil.rmtree(out / part, ignore_errors=True)
                (out / LOCK).unlink(missing_ok=True)
                if not existed:
                    with suppress(OSError):
                        out.rmdir()
            raise
