"""``maskwise annotate``: annotate a corpus, and keep the annotations in a folder (kept.py).

A layer is one annotation of the texts, such as parts of speech or phrases. A shard is a group of
about 128 neighbouring documents, and each annotator writes one file for each shard.

The corpus is read once. A shard whose files are all there is only counted (tally.py); the others
are annotated first. An annotator that must be fitted to the whole corpus reads it before. If there
are earlier fits of it, or a progress bar is shown, another reading finds the hash of the corpus, by
which its fit is known, and its size.

Worker processes (jobs/pools.py) annotate shards and send the contents of the files to this process.
Only this process writes files, so the nodes of a cluster need a shared disk only if an annotator
reads files. The files are byte-identical whether the workers run on this machine or on Ray.

To bound memory, annotators get long documents in parts of at most `PART_CHARACTERS` characters, cut
at line breaks or spaces. Annotators with ``whole_texts`` get whole documents. If an annotator fails
on a text, the text gets no spans from this annotator and is counted as a failure. The run ends if
an annotator fails on all texts of a shard, or if a file, the network or memory is the cause.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import asdict
from functools import cache, cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from maskwise.annotate.kept import (
    KeptAnnotator,
    Store,
    TextShard,
    cut_shards,
    is_whole,
    kept_annotators,
    read_shard,
    to_parquet,
)
from maskwise.annotate.registry import annotator, check_layer_names, spec_of
from maskwise.annotate.tagger import one_pass, text_parts
from maskwise.annotate.tally import AnnotatorSummary, Tally
from maskwise.base.errors import MaskwiseError, items_of, located, require_known, whole_number
from maskwise.base.folders import (
    LAYERS,
    OutputFolder,
    claim,
    damage,
    read_json,
    remove,
    sweep,
    write_folder,
    write_json,
    write_whole,
)
from maskwise.base.printing import err_console, note, shows_progress
from maskwise.base.signals import AskedToLeave
from maskwise.base.specs import user_path
from maskwise.jobs.pools import ENGINES, Pool, ThisProcess, open_pool
from maskwise.text.documents import Documents, field_note, read_documents, require_documents
from maskwise.text.layers import (
    Annotator,
    CharSpans,
    Fitted,
    Found,
    Together,
    digest,
    joined_spans,
    no_spans,
    spans_found,
)
from maskwise.text.source import refuse_fields

Corpus: TypeAlias = str | Path | Sequence[str | Mapping[str, object]] | Documents

LOCK = ".lock"
FIT = "annotator.json"
FITS = "fitted"
NEW = "new"
"""The folder in ``FITS`` of a fit that is not finished."""
WORKER_CHARACTERS = 4_000_000
"""Other processes are started for at least so many characters to annotate. A process needs three
seconds to start, and about six seconds to tag as many characters."""
SURE_FAILURES = 8
"""If an annotator fails on all texts of a shard, the run ends only if the shard has at least this
many texts."""


class AnnotationSummary(TypedDict):
    """The content of ``summary.json``.

    Attributes:
        source: the name of the corpus.
        corpus: the hash of the texts, in order.
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

    Annotations that are in the folder are not made again, whichever corpus they were made for, and
    all stay there. An annotator that is fitted to a corpus, such as ``frequency``, is fitted and
    computed anew for a changed corpus, and a note says so. Texts in another order are annotated
    anew.

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
        MaskwiseError: the input is not valid, the folder contains other files, or the disk is full.
            After an error, finished files stay in the folder. If no file is finished, the call
            leaves nothing behind.
    """
    out = Path(out)
    require_known("engine", engine, ENGINES)
    asked = one_pass([*items_of("annotators", annotators, of="names", single=True)])
    given = items_of("functions", functions, of="names, such as 'module:function'", single=True)
    wanted = [(spec, annotator(spec)) for spec in asked]
    for spec in map(str, map(spec_of, given)):
        wanted.append((spec, annotator(spec, functions=True)))
    check_layer_names([maker for _, maker in wanted])
    if not wanted:
        raise MaskwiseError("no annotators", do="name some, such as words,pos,salient")
    documents = require_documents(open_corpus(source, text_field=text_field, limit=limit))
    note(field_note(documents, text_field))
    hidden = not (shows_progress() and err_console.is_terminal)
    bars = Progress(console=err_console, disable=hidden, transient=True)
    with _claimed(out), bars, open_pool(engine=engine, jobs=jobs) as pool:
        before = kept_annotators(out)
        first = _Reading(documents, bars)
        # Workers build annotators from these strings; those of fits name the folder of the fit.
        makers = {}
        kept = {}
        for asked_spec, unfitted in wanted:
            spec, maker = _fitted(asked_spec, unfitted, first, out)
            makers[spec] = maker
            folder = f"{maker.name}-{digest(maker.version)}"
            layers = {**maker.layers}
            kept[spec] = KeptAnnotator(folder, asked_spec, unfitted.version, layers)
        if not hidden:
            first.know()
        folders = {spec: out / part.folder for spec, part in kept.items()}
        tally = Tally(makers)
        shown = bars.add_task("annotating", total=first.characters or None)
        reading = _Reading(documents)
        made = 0

        def count(shard: TextShard) -> None:
            tables = {spec: read_shard(folder / shard.file) for spec, folder in folders.items()}
            tally.add(shard.texts, tables)
            bars.advance(shown, shard.characters)

        def missing() -> Iterator[TextShard]:
            """Count the shards that are annotated, and yield the others."""
            for shard in reading.shards():
                tally.recognise(shard.texts)
                lacking = [spec for spec in folders if not is_whole(folders[spec] / shard.file)]
                if lacking:
                    yield shard._replace(annotators=tuple(lacking))
                else:
                    count(shard)

        for shard, files in _annotated(missing(), pool, engine=engine, jobs=jobs):
            for spec, content in zip(shard.annotators, files, strict=True):
                write_whole(folders[spec] / shard.file, content)
            made += len(files)
            count(shard)
        if first.key and first.key != reading.key:
            raise MaskwiseError(
                f"{documents.name} changed while it was being read", do="annotate it again"
            )
        summary: AnnotationSummary = {
            "source": documents.name,
            "corpus": reading.key,
            "documents": documents.read,
            "characters": reading.characters,
            "words": tally.words,
            "shards": len(reading.keys),
            "made": made,
            "skipped": dict(documents.skipped),
            "annotators": {kept[spec].spec: each for spec, each in tally.summaries().items()},
        }
        write_json(out / "summary.json", summary)
        # Written last: a folder without it is unfinished.
        parts = {part.folder: asdict(part) for part in [*kept.values(), *before]}
        write_json(out / LAYERS, {"annotators": [*parts.values()]})
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


def _annotated(
    shards: Iterator[TextShard], pool: Pool, *, engine: str, jobs: int | None
) -> Iterator[tuple[TextShard, list[bytes]]]:
    """Annotate shards, in this process or in those of a pool."""
    first = []
    size = 0
    for shard in shards:
        first.append(shard)
        size += shard.characters
        if len(first) > 1 and (jobs or size >= WORKER_CHARACTERS):
            break
    else:
        # They are too few for other processes.
        jobs = 1
    if jobs == 1 and engine == "local":
        pool = ThisProcess()
        # Annotators from an earlier call in this process may have read an older version of a file.
        forget()
    # A worker runs matrix products on one thread. This process does the same.
    with threadpool_limits(1, user_api="blas"):
        yield from pool.results(annotate_shard, chain(first, shards))


# Fits
# -------------------------------------------------------------------------------------------


class _Reading:
    """A reading of a corpus.

    Attributes:
        key: the hash of the texts, in order, after the reading; "" before.
        keys: the keys of the shards that were read.
        characters: the number of characters in these shards.
    """

    def __init__(self, documents: Documents, bars: Progress | None = None):
        self.documents = documents
        self.bars = bars
        self.key = ""
        self.keys: list[str] = []
        self.characters = 0

    def shards(self) -> Iterator[TextShard]:
        self.keys = []
        self.characters = 0
        for shard in cut_shards(self.documents):
            self.keys.append(shard.key)
            self.characters += shard.characters
            yield shard
        self.key = digest(*self.keys)

    def texts(self) -> Iterator[str]:
        """Yield all texts, and show progress."""
        assert self.bars is not None
        for shard in self.bars.track(self.shards(), description="reading"):
            yield from shard.texts

    def know(self) -> None:
        """Read the corpus if it has not been read to its end."""
        if not self.key:
            deque(self.texts(), maxlen=0)


def _fitted(spec: str, unfitted: Annotator, reading: _Reading, out: Path) -> tuple[str, Annotator]:
    """Fit an annotator to the corpus if it needs a fit. A fit to the same texts is used again.

    Returns:
        The string from which the fitted annotator is built, and the annotator.
    """
    if not isinstance(unfitted, Fitted) or unfitted.fitted:
        return spec, unfitted
    fits = (out / FITS).resolve()
    name = f"{unfitted.name}-{digest(unfitted.version)}-"
    earlier = any(fits.glob(f"{name}*"))
    if earlier:
        reading.know()
    folder = fits / (name + reading.key)
    # ``damage`` also reports a folder that does not exist.
    if damage(folder):
        if earlier:
            note([f"{spec}: {out} has no fit to these texts, so it is computed anew"])

        def fill(partial: Path) -> None:
            # ``partial`` is a temporary folder, and users may move the final folder. Therefore the
            # stored spec has a placeholder in place of the path.
            spec = unfitted.fit(reading.texts(), partial)
            write_json(partial / FIT, {"spec": spec.replace(repr(str(partial)), "{folder}")})

        write_folder(fits / NEW, fill)
        # The hash of the texts may be known only now.
        reading.know()
        folder = fits / (name + reading.key)
        remove(folder)
        (fits / NEW).rename(folder)
    stored = read_json(folder / FIT)
    assert stored is not None, "the folder was just compared with its manifest"
    spec = stored["spec"].replace("{folder}", repr(str(folder)))
    return spec, annotator(spec)


# The folder
# -------------------------------------------------------------------------------------------


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Lock the folder for this process. After an error, clean it up if no file is finished."""
    kept_annotators(out)  # says what an older folder is
    known = (out / LOCK).exists() or (out / LAYERS).is_file()
    OutputFolder(out, "annotate", known=known).require()
    existed = out.is_dir()
    with claim(out / LOCK, f"another run annotates into {out}"):
        sweep(out)
        remove(out / FITS / NEW)
        try:
            yield
        # Ctrl-C raises ``KeyboardInterrupt``, which is not an ``Exception``. After Ctrl-C or a
        # signal, the folder therefore stays, and the same command resumes.
        except AskedToLeave:
            raise
        except (Exception, SystemExit):
            # Without a finished file, there is nothing to resume from.
            if not (out / LAYERS).is_file() and not any(out.glob("*/*.parquet")):
                # Files that this program did not write must stay.
                remove(out / FITS)
                (out / LOCK).unlink(missing_ok=True)
                if not existed:
                    with suppress(OSError):
                        out.rmdir()
            raise


# Annotating texts
# -------------------------------------------------------------------------------------------


# Users' functions are allowed here, because the caller has already checked that the user named
# them. Each process builds an annotator only once, because an annotator may load a model.
_annotator = cache(partial(annotator, functions=True))


def forget() -> None:
    """Clear the cache of annotators, because a file that an annotator reads may have changed."""
    _annotator.cache_clear()


def annotate_shard(shard: TextShard) -> list[bytes]:
    """Annotate a shard, and return the bytes of one file for each annotator.

    Raises:
        MaskwiseError: spans do not fit the text, or an annotator fails on all texts.
    """
    files = []
    for maker in map(_annotator, shard.annotators):
        failures = Counter[str]()
        spans = spans_of(maker, shard.texts, failures)
        files.append(to_parquet(shard.texts, spans, maker.layers, failures))
    return files


def spans_of(maker: Annotator, texts: Sequence[str], failures: Counter[str]) -> list[Found]:
    """Return the spans of each text, keyed by layer. A text on which the annotator fails has none.

    Args:
        failures: a counter of failed texts, keyed by error. New failures are added.

    Raises:
        MaskwiseError: spans do not fit the text, the annotator fails on all texts, or a file, the
            network or memory is the cause.
    """
    try:
        return _annotate(maker, texts)
    except MaskwiseError:
        raise
    except Exception as error:
        if len(texts) > 1:
            # One bad text must not stop the run, so the texts are annotated one by one.
            found = [spans for text in texts for spans in spans_of(maker, [text], failures)]
            if failures.total() == len(texts) >= SURE_FAILURES:
                raise MaskwiseError(
                    f"{maker.name} failed on all {len(texts)} texts of a shard",
                    got=next(iter(failures)),
                    do="fix the annotator and run the same command again; finished files are kept",
                ) from error
            return found
        # Without folders, the files of a shard are equal on all machines.
        line = located(error, folders=False)
        # A text does not cause such an error. Therefore the shard must not be stored as finished.
        if isinstance(error, OSError | MemoryError):
            raise MaskwiseError(
                f"the annotator {maker.name} failed",
                got=line,
                do="run the same command again, which resumes",
            ) from error
        failures[line] += 1
        return [no_spans(maker.layers)]


def _annotate(maker: Annotator, texts: Sequence[str]) -> list[Found]:
    """Annotate texts in parts, check the spans, and join the spans of all parts of a text."""
    # Annotators need not have ``whole_texts``, because the protocol `Annotator` does not have it.
    whole = getattr(maker, "whole_texts", False)
    cuts = [[(0, len(text))] if whole else text_parts(text) for text in texts]
    parts = [text[start:end] for text, own in zip(texts, cuts) for start, end in own]
    found = iter(spans_found(maker, parts))
    joined = []
    for own in cuts:
        of_parts = [*islice(found, len(own))]
        begins = np.array([start for start, _ in own])
        spans = {}
        for name in maker.layers:
            start, end, value = joined_spans([layers[name] for layers in of_parts], begins)
            spans[name] = CharSpans(start.astype(np.int32), end.astype(np.int32), value)
        joined.append(spans)
    return joined


# Streams
# -------------------------------------------------------------------------------------------


class Live(Together):
    """Annotate any texts with several annotators, without a folder.

    If an annotator fails on a text, its layers have no spans in this text. Only ``specs`` is
    pickled. Each process builds the annotators itself, once.

    Args:
        specs: the annotators, as strings such as ``pos(model="en_core_web_sm")``.

    Raises:
        MaskwiseError: an annotator is unknown, or must read the whole corpus first.

    >>> live = Live(["words"])
    >>> live.annotate(["Owls fly."])[0]["words"].start.tolist()
    [0, 5, 8]
    """

    def __init__(self, specs: Sequence[str]):
        self.specs = tuple(specs)
        for spec, maker in zip(self.specs, self.makers, strict=True):
            require_live(spec, maker)

    def __getstate__(self) -> dict[str, Any]:
        return {"specs": self.specs}

    @cached_property
    def makers(self) -> list[Any]:  # type: ignore[override]  # it cannot be set
        return list(map(annotator, self.specs))

    @staticmethod
    def find(maker: Any, texts: Sequence[str]) -> list[Found]:
        return spans_of(maker, texts, Counter())


def require_live(spec: str, maker: Annotator) -> None:
    """Check that an annotator can annotate a stream.

    Raises:
        MaskwiseError: the annotator must be fitted to the whole corpus first.
    """
    if not isinstance(maker, Fitted) or maker.fitted:
        return
    option = "vocabulary" if maker.name == "phrases" else "table"
    do = (
        f"count in a part of the corpus (maskwise annotate PART --with {maker.name} --out DIR) "
        f'and name the result: {maker.name}({option}="DIR/fitted/{maker.name}-…")'
    )
    if isinstance(maker, Store):
        do = f"name the annotations, such as {maker.spec}"
    raise MaskwiseError(
        f"the annotator {spec} must read the whole corpus first, but the corpus is a stream",
        do=f"{do}; or leave out corpus.stream",
    )
