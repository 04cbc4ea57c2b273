"""Files and folders: atomic writes, manifests, locks, JSON lines, and paths of recipes.

Files are written under a temporary name and then renamed, so an interruption leaves either the old
or the new content. Hashing a folder for its manifest takes about a second per gigabyte.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from filelock import FileLock, Timeout

from maskwise import __version__
from maskwise.base.errors import MaskwiseError, option, require_library, unknown_name, visible
from maskwise.base.signals import LEFT, AskedToLeave, held, remove
from maskwise.base.specs import different_settings, is_path, local_name, split_options, user_path

if TYPE_CHECKING:
    from jinja2 import Environment

MANIFEST = "manifest.json"
LAYERS = "layers.json"
CARD = "README.md"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Error numbers on file systems without locks."""
FilesState: TypeAlias = tuple[tuple[str, int, int], ...]
"""Name, modification time in nanoseconds, and size of each file. If it differs, a file changed."""
FORMATS = {
    "study.json": 1,
    "summary.json": 1,
    "plan.json": 1,
    "adapted.json": 1,
    "finetune.json": 1,
    ".identity.json": 1,
    "stage.json": 2,
    "done.json": 1,
    "state.json": 1,
    "shown.json": 1,
    "stream.json": 1,
    "origins.json": 1,
    "columns.json": 4,
    LAYERS: 1,
    "annotator.json": 1,
    "facts.json": 1,
    "masks.json": 1,
    MANIFEST: 2,
}
"""Versions of the formats of JSON files, by the names of the files, which have them as ``format``.
A version rises if an older maskwise would misread the file; see docs/files.md."""
GOVERNED = {
    "records.jsonl": ("study.json", "finetune.json"),
    "timings.jsonl": ("study.json",),
    "predictions.jsonl": ("study.json", "stage.json"),
    "samples.json": ("study.json",),
    "metrics.jsonl": ("stage.json",),
}
"""Files that have no version of their own, because they are tables of lines or are keyed by names
of the user. Each is read as the version of a JSON file beside it says."""
BY_NAMES = "names of files and lines decided which texts are held out and how they are masked"
USABLE = {"stage.json": (2, BY_NAMES), "columns.json": (4, BY_NAMES)}
"""The lowest versions from which work goes on, and what was otherwise in those before."""
UNFINISHED = ".unfinished"
"""The folder, inside of an output folder, of what a command needs until it has finished: its
identity, its locks, and files that are not complete."""
IDENTITY = ".identity.json"
"""What was called: in ``UNFINISHED``, and in the output folder itself as soon as it is finished."""
LOADED_FIRST = (MANIFEST, "dataset_info.json", "masks.json", "config.json", "done.json")
"""Files that those who load a folder look for first. They get their places last, in this order."""
OLD = ".maskwise-replaced"
"""The place of a folder that is replaced, inside of the new one, until that has its name."""
USED = ".use.lock"
"""The ending of the lock files that processes hold in ``UNFINISHED`` while they work."""
WORK = ("**/records.jsonl", "**/resume/*/*", "**/done.json")
"""Patterns of files that have content if some work was done, from which the same call goes on."""
LOGS = ("**/metrics.jsonl",)
TEXTS = "prepare-*"
"""The folders of prepared texts, which take less work than anything that is done with them."""
OWN_ROWS = (f"data/*-{'[0-9a-f]' * 8}.jsonl", "data/.*.partial")
"""Patterns of the files of rows that Python gives, which are there before a command begins."""
LOCK_TRIES = 10
"""The maximum number of tries to lock a file whose folder other processes remove."""
PLAIN = (".txt",)
FASTA = (".fasta", ".fa", ".faa", ".fna")
TABLES = (".csv", ".tsv")
OBJECTS = (".jsonl", ".jsonlines", ".json", ".parquet")
ARRAYS = (".npy", ".npz")
SENTENCES = (".conllu", ".conll", ".conll.txt", ".iob2")
"""Extensions of files of texts, token ids and labels, by how they are read (``text.source``)."""
ENDINGS = (*PLAIN, *FASTA, *TABLES, *OBJECTS, *ARRAYS, *SENTENCES, ".yaml", ".yml", ".gz", ".zst")
"""Extensions of the files that commands read, and of compressed files."""
MOST_BYTES = 10_000_000
"""The maximum size of a text that is copied, such as a licence."""
LONGEST_NAME = 50
"""Most characters of the name of a study, and of its folder; file systems allow 255 bytes."""
RELEASE_SECONDS = 2.0
"""How long to wait for a lock that a process, which may have just been killed, still holds."""
LATE_SECONDS, RANK_SECONDS = 30.0, 3600.0
"""How long to wait for files from another machine, and for files from rank 0."""
KEPT_SECONDS = 60.0
"""What a run prepared in this time or longer, such as annotations, is kept if the run fails."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors while writing to ``path`` into one-line errors.

    Raises:
        MaskwiseError: the disk is full, or the folder is missing or read-only.
    """
    try:
        yield
    except Exception as error:
        got = str(error)
        if isinstance(error, OSError):
            got = error.strerror or got
        # On a full disk, safetensors and tokenizers raise errors of Rust instead of an OSError.
        elif "(os error " not in got:
            raise
        do = "free disk space, or give a writable folder; finished work is kept"
        raise MaskwiseError(f"cannot write {path}", got=got, do=do) from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file atomically, and create its parent folders.

    Raises:
        MaskwiseError: the file cannot be written.
    """
    # Renaming is atomic only within a file system, so the temporary file is in the same folder.
    with writing(path), _partial(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = in_utf8(content)
        partial.write_bytes(content)
        partial.replace(path)


def in_utf8(text: str) -> bytes:
    """Encode a text that a file will hold.

    Names of files may contain bytes that are not UTF-8, which Python reads as halves of surrogate
    pairs. They are written as escapes, such as \\udce9, which JSON and YAML read back unchanged.

    >>> in_utf8("caf" + chr(0xDCE9))
    b'caf\\\\udce9'
    """
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, atomically; add the version of its format if it has one."""
    if path.name in FORMATS and isinstance(value, Mapping):
        value = {**value, "format": FORMATS[path.name]}
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False))


def finite(value: Any) -> Any:
    """Replace infinite numbers and NaN with None, because JSON has neither.

    >>> finite({"score": float("nan"), "dev": [0.5]})
    {'score': None, 'dev': [0.5]}
    """
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write JSON lines, atomically."""
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_json(path: Path, *, usable: bool = False) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if the file is missing or damaged.

    The version of the format, which ``write_json`` added, is checked and left out.

    Args:
        path: the file.
        usable: whether work shall go on from what the file describes (``USABLE``).

    Raises:
        MaskwiseError: a newer maskwise has written the file, or one that is too old.
    """
    _refuse_newer_table(path)
    try:
        value = json.loads(path.read_bytes())
    # In a damaged file, brackets may be nested too deeply for the parser.
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    if path.name in FORMATS:
        _refuse_newer(path, value)
        # A file of the first format may lack the version.
        version = value.pop("format", 1)
        least, otherwise = USABLE.get(path.name, (1, ""))
        if usable and version < least:
            raise MaskwiseError(
                f"an older maskwise wrote {path.parent}, where {otherwise}",
                do="give a new folder",
            )
    return value


def _refuse_newer(path: Path, content: Mapping[str, Any]) -> None:
    known = FORMATS[path.name]
    # Files of the first format (most recorded studies) and of other origin may lack the version.
    if content.get("format", known) not in range(1, known + 1):
        raise MaskwiseError(
            f"{path} has a format that this version does not know; a newer maskwise wrote it",
            got=f"format {content['format']}",
            allowed=f"up to {known}",
            do="install that version: pip install --upgrade maskwise",
        )


def _refuse_newer_table(path: Path) -> None:
    """Check the version of the file that says how a table beside it is read."""
    for name in GOVERNED.get(path.name, ()):
        read_json(path.with_name(name))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a file of JSON lines; yield nothing if the file is missing.

    Raises:
        MaskwiseError: a newer maskwise has written the file (``GOVERNED``).
    """
    _refuse_newer_table(path)
    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        for line in file:
            # A power failure may leave an incomplete line, which is skipped.
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Write a folder and its manifest under a temporary name, then rename the folder.

    An existing folder is replaced. Until the new one is complete, the old one keeps its place; from
    then on whatever ends the process leaves the new one, to which ``sweep`` gives its place. If
    ``folder`` is a link, the folder to which it leads is written.

    Args:
        folder: the folder to write.
        fill: a function that writes the files into the temporary folder.

    Raises:
        MaskwiseError: the folder cannot be written.
    """
    if folder.is_symlink():  # perhaps to a larger disk; the link would be replaced
        folder = Path(os.path.realpath(folder))
    with writing(folder), _partial(folder) as partial:
        partial.mkdir(parents=True)
        fill(partial)
        _complete(partial, {})
        LEFT.discard(partial)
        # The old folder is inside of the new one until that has its name.
        with held():
            if folder.is_dir():
                folder.rename(partial / OLD)
            partial.rename(folder)
        remove(folder / OLD)


def fill_folder(folder: Path, fill: Callable[[Path], object], *, adds: bool = False) -> None:
    """Write files and their manifest in ``UNFINISHED``, then move each to its place in a folder.

    Nothing is written beside the folder. The files of an earlier call (those of its manifest) are
    replaced, and all other files stay.

    Args:
        folder: the folder of a user.
        fill: a function that writes the files into another folder.
        adds: whether the files of earlier calls stay, too.

    Raises:
        MaskwiseError: the folder cannot be written.
    """
    part = folder / UNFINISHED / "files"
    remove(part)
    try:
        with writing(folder):
            part.mkdir(parents=True)
            fill(part)
            before = manifest_hashes(folder)
            new = _complete(part, before if adds else {})
            with held():
                for name in before.keys() - new.keys():
                    (folder / name).unlink(missing_ok=True)
                for path in sorted(filter(Path.is_file, part.rglob("*")), key=_turn):
                    target = folder / path.relative_to(part)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
    finally:
        remove(part)
        # Whoever called this may have other files there.
        with suppress(OSError):
            part.parent.rmdir()


def _turn(path: Path) -> int:
    """Return the sort key by which files get their places."""
    return LOADED_FIRST.index(path.name) if path.name in LOADED_FIRST else -1


def _complete(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Write the manifest of a folder, with ``more`` hashes, and return the hashes."""
    written = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    # Model cards are not hashed, because users may edit them.
    own = [path for path in written if path.name != CARD]
    hashes = {**more, **{str(path.relative_to(folder)): file_hash(path) for path in own}}
    write_json(folder / MANIFEST, {"sha256": hashes})
    # safetensors writes files that only their owner may read.
    usual = stat.S_IMODE((folder / MANIFEST).stat().st_mode)
    for path in written:
        # Some network file systems have no permissions.
        with suppress(OSError):
            path.chmod(usual | stat.S_IMODE(path.stat().st_mode))
    return hashes


def linked(source: str | Path, target: str | Path) -> None:
    """Copy a file that never changes: without its bytes, if the file system has links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def not_to_copy(
    folder: Path, patterns: Iterable[str], *, most: float = math.inf
) -> dict[Path, str]:
    """List the files of somebody's folder that a copy leaves out, each with the reason.

    Copies are published, and a link may lead to a private file of this machine, or to a device that
    never ends. In the hub's cache, all files are links to ``blobs``.

    Args:
        folder: a folder from elsewhere, such as that of a checkpoint.
        patterns: the files that may be copied.
        most: the maximum size in bytes.
    """
    home = Path(os.path.realpath(folder))
    homes = [home]
    # …/models--OWNER--NAME/snapshots/COMMIT. Large files may be those of several repositories.
    if re.search(r"/models--[^/]+/snapshots/[^/]+$", home.as_posix()):
        blobs = (home.parents[1] / "blobs", home.parents[2] / "blobs")
        # The cache itself may lie on another disk.
        homes += [Path(os.path.realpath(each)) for each in blobs]
    reasons = {}
    for path in chain.from_iterable(map(folder.glob, patterns)):
        real = Path(os.path.realpath(path))
        if not any(map(real.is_relative_to, homes)):
            reasons[path] = f"a link to {real}, outside of its folder"
        elif not real.is_file():
            reasons[path] = "no file"
        elif real.stat().st_size > most:
            reasons[path] = f"more than {most:,} bytes"
    return reasons


def copy_texts(folder: Path, patterns: Sequence[str], target: Path) -> list[str]:
    """Copy small files of somebody's folder to their places in another one. Return a line about
    each that is left out.
    """
    reasons = not_to_copy(folder, patterns, most=MOST_BYTES)
    for path in chain.from_iterable(map(folder.glob, patterns)):
        if path not in reasons:
            copied = target / path.relative_to(folder)
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copied)
    return left_out(reasons)


def left_out(reasons: Mapping[Path, str]) -> list[str]:
    """Return a line about each file that a copy leaves out."""
    return [f"{path} is left out, because it is {why}" for path, why in reasons.items()]


def manifest_hashes(folder: Path) -> dict[str, str]:
    """Return the hashes in the manifest of a folder by file; {} without a readable manifest."""
    hashes = (read_json(folder / MANIFEST) or {}).get("sha256")
    return hashes if isinstance(hashes, dict) else {}


def damage(folder: Path, *, weights: bool = True) -> str | None:
    """Compare a folder with its manifest. Return a description of the damage, or None.

    Args:
        weights: whether to check ``*.safetensors``, too, which may be large.
    """
    hashes = (read_json(folder / MANIFEST) or {}).get("sha256")
    if not isinstance(hashes, dict):
        return "no readable manifest"
    for name, expected in hashes.items():
        path = folder / name
        if path.suffix == ".safetensors" and not weights:
            continue
        if not path.is_file():
            return f"{name} is missing"
        if file_hash(path) != expected:
            return f"{name} is damaged"
    return None


def refuse_damaged(folder: Path, *, weights: bool = True) -> None:
    """Raise an error if a folder is damaged. Folders without a manifest are accepted.

    Args:
        weights: whether to check ``*.safetensors``, too.

    Raises:
        MaskwiseError: a file has changed since the manifest was written.
    """
    if (folder / LAYERS).exists():
        do = "policies read it by corpus.layers: ['stored(\"FOLDER\")']"
        raise MaskwiseError(f"{folder} is a folder of annotations, and no model", do=do)
    # Models from the hub have no manifest.
    if not (folder / MANIFEST).exists():
        return
    wrong = damage(folder, weights=weights)
    if wrong:
        do = f"copy it again, or remove its {MANIFEST} if the change is intended"
        raise MaskwiseError(f"{folder} has changed since it was written", got=wrong, do=do)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_state(path: Path) -> FilesState:
    """Return the name, modification time and size of a file, or of each file in a folder."""
    path = path.absolute()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    state = []
    for file in files:
        if file.is_file():
            facts = file.stat()
            state.append((str(file), facts.st_mtime_ns, facts.st_size))
    return tuple(state)


@contextmanager
def claim(path: Path, what: str, *, stays: bool = True) -> Iterator[None]:
    """Lock a file against other processes.

    If the process dies, the operating system releases the lock. On a file system without locks,
    nothing is locked.

    Args:
        path: the lock file. It is created if necessary, and so is its folder.
        what: the beginning of the error message, such as "another run is training in".
        stays: whether the lock file is kept at the end.

    Raises:
        MaskwiseError: another process holds the lock, or the folder cannot be written.
    """
    with writing(path.parent):
        try:
            own = locked(path, wait=RELEASE_SECONDS)
        except Timeout:
            holder = None
            # Windows does not let other processes read a locked file.
            with suppress(OSError):
                holder = path.read_text() or None
            do = "wait until it ends, or give another folder"
            raise MaskwiseError(what, got=holder, do=do) from None
    # This text is only for error messages in other processes, so it may be missing (full disk).
    with suppress(OSError):
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    finally:
        if not stays:
            path.unlink(missing_ok=True)
        own.release()


class OutputFolder:
    """The output folder of a command: whose it is, and which processes work in it.

    What was called is written down once, before anything else (``IDENTITY``). It says what decides
    the results by content, so a folder that was moved stays the same. The same call goes on where
    an interrupted one ended, or returns the results; another call is refused. While a command has
    not finished, ``UNFINISHED`` is in the folder. Locks end with their process, even if it is
    killed.

    Args:
        out: the folder.
        kind: the command, such as "pretrain"; that of an adaptation is "study".
        call: the call, for messages to those who call something else with this folder.
        known: whether a folder without an identity is of this kind, such as one that was copied
            without hidden files.
        keeps: whether the identity stays when the work is done. Otherwise, another call with the
            folder is refused as one with any other content.

    Attributes:
        work: the folder ``UNFINISHED``.
        lock: the file that a process locks while it writes files that other processes write, too.
        own: the file that this process locks while it uses the folder.
    """

    def __init__(
        self,
        out: Path,
        kind: str = "",
        call: str = "",
        *,
        known: bool = False,
        keeps: bool = True,
    ):
        self.out = out
        self.kind = kind
        self.call = call or f"maskwise {kind}"
        self.known = known
        self.keeps = keeps
        self.work = out / UNFINISHED
        self.lock = self.work / ".lock"
        self.own = self.work / f".{socket.gethostname()}-{os.getpid()}{USED}"

    def require(self, of: Mapping[str, Any] | None = None) -> None:
        """Raise an error if the folder is not that of this call, or not of this kind.

        Args:
            of: what decides the results, as JSON; None to compare the kind only.

        Raises:
            MaskwiseError: the folder, or one above it, is a file; or it belongs to another call, or
                has unrelated content.
        """
        refuse_file(self.out)
        # Another process may begin now. It writes its identity first, so this is read last.
        names = content_of(self.out)
        known = self._identity()
        if known is None:
            if names and not self.known:
                kept = f", or that of an earlier {self.kind}" if self.keeps else ""
                raise MaskwiseError(
                    f"the output folder {self.out} contains something else",
                    got=", ".join(names[:3]),
                    do=f"give a new folder{kept}",
                )
            return
        got = known["call"]
        if known["kind"] == self.kind:
            before = known["of"]
            changed = different_settings(before, of) if before and of else []
            if not changed:
                return
            got += f", with other values of {', '.join(changed)}"
        raise MaskwiseError(
            f"{option('out', self.out)} is the folder of another call",
            got=got,
            do="give a new folder, or repeat that call",
        )

    def _identity(self) -> dict[str, Any] | None:
        return read_json(self.work / IDENTITY) or read_json(self.out / IDENTITY)

    @contextmanager
    def used(
        self,
        of: Mapping[str, Any],
        begin: Callable[[list[str]], Any] | None = None,
        *,
        together: bool = False,
    ) -> Iterator[Any]:
        """Use the folder, and tell other processes so.

        If an error ends the work, and nothing is there from which the same call could go on, other
        calls of this kind may use the folder. If it logged no training, and took less than
        ``KEPT_SECONDS``, what is in the folder is removed. All stays that a signal ended.

        Args:
            of: what decides the results, as for ``require``.
            begin: gets the other processes that use the folder, and checks and writes what those
                that join later compare their work with. Nobody joins or writes meanwhile.
            together: whether other processes may use the folder, too, for the same work.

        Yields:
            The result of ``begin``; None without it.

        Raises:
            MaskwiseError: ``require`` raises it, or another process uses the folder.
        """
        existed = self.out.exists()
        before = listing(self.out)
        began = time.monotonic()
        new = fresh = False
        use = ExitStack()
        try:
            with self.alone(), ExitStack() as joined:
                users = self.users(wait=0.0 if together else RELEASE_SECONDS)
                if users and not together:
                    raise MaskwiseError(
                        f"another process works in {self.out}",
                        got=", ".join(users),
                        do="wait until it ends, or give another folder",
                    )
                # Containers may have the same name, and the same number of a process.
                twice = f"this process, or one of the same name, works in {self.out} already"
                joined.enter_context(claim(self.own, twice, stays=False))
                self.require(of)
                new = not content_of(self.out)
                # A call that was killed may fail in another way now, and be mended.
                fresh = not (self.out / IDENTITY).exists()
                if not (self._identity() or {}).get("of"):
                    fresh = True
                    self._identify(of)
                # Files of stages in progress are removed when these stages are run again.
                for folder in (self.out, self.out / "stages"):
                    sweep(folder, below=False)
                begun = begin(users) if begin else None
                use = joined.pop_all()
            yield begun
            with self.alone():
                use.close()
                if not self.users():
                    self._finish()
        except AskedToLeave:
            raise
        except (Exception, SystemExit):
            with suppress(MaskwiseError), self.alone():
                use.close()
                if fresh and not self.users() and not self._has(WORK):
                    short = time.monotonic() - began < KEPT_SECONDS
                    if new and short and not self._has(LOGS):
                        self._undo(before)
                    else:
                        write_json(self.work / IDENTITY, self._described({}))
            raise
        finally:
            use.close()
            # An empty folder that the user made may be a link, a mount point or the current one.
            if not existed:
                with suppress(OSError):
                    self.out.rmdir()

    def _described(self, of: Mapping[str, Any]) -> dict[str, Any]:
        """Return the identity. If ``of`` is empty, any call of this kind may take it over."""
        return {"kind": self.kind, "call": self.call, "of": of, "format": FORMATS[IDENTITY]}

    def _identify(self, of: Mapping[str, Any]) -> None:
        path = self.work / IDENTITY
        with writing(path):
            # A process that was killed may have left an empty file.
            path.unlink(missing_ok=True)
            with path.open("x", encoding="utf-8") as file:
                json.dump(self._described(of), file, indent=1)
        # On a file system without locks, another process may have been the first.
        self.require(of)

    def _finish(self) -> None:
        path = self.work / IDENTITY
        if not self.keeps:
            path.unlink()
        # A folder that was finished before has its identity there already.
        elif path.exists():
            path.replace(self.out / IDENTITY)

    def _undo(self, before: Collection[Path]) -> None:
        """Remove what this call made."""
        for path in (*self.out.iterdir(), *self.work.iterdir()):
            if path not in (self.work, self.lock, *before):
                remove(path)

    def _has(self, patterns: Iterable[str]) -> bool:
        """Return whether a file that is no prepared text has content."""
        found = chain.from_iterable(map(self.out.glob, patterns))
        own = [path for path in found if not path.parent.match(TEXTS)]
        return any(path.is_file() and path.stat().st_size for path in own)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing the files of the folder. Wait while they write.

        Raises:
            MaskwiseError: the folder cannot be written.
        """
        with holding(self.lock):
            try:
                yield
            finally:
                # Of processes that were killed.
                for path in self.work.glob(f".*{USED}"):
                    if path != self.own and not is_locked(path):
                        path.unlink(missing_ok=True)
                # The folder may have been removed meanwhile, or another process begins there.
                with suppress(OSError):
                    if [*self.work.iterdir()] == [self.lock]:
                        self.lock.unlink()
                        self.work.rmdir()

    def users(self, *, wait: float = 0.0) -> list[str]:
        """List the other processes that use the folder, as HOST-NUMBER.

        Args:
            wait: seconds in which a process that was just killed may release its lock.
        """
        end = time.monotonic() + wait
        while True:
            locks = (path for path in sorted(self.work.glob(f".*{USED}")) if path != self.own)
            users = [path.name[1:].removesuffix(USED) for path in locks if is_locked(path)]
            if not users or time.monotonic() >= end:
                return users
            time.sleep(0.1)


def locked(path: Path, *, wait: float) -> FileLock:
    """Acquire a lock file and return the lock. On a file system without locks, nothing is locked.

    Args:
        path: the lock file. It is created if necessary, and so is its folder.
        wait: seconds to wait for another process; negative for no limit.

    Raises:
        Timeout: another process still holds the lock.
    """
    for again in reversed(range(LOCK_TRIES)):
        lock = FileLock(path, timeout=wait, fallback_to_soft=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (FileNotFoundError, FileExistsError):
            # The process that held the lock has removed its folder, in which it had done nothing;
            # ``mkdir`` found the folder, and then found that it is none.
            if not again:
                raise
            continue
        # ``Timeout`` is an OSError, but has no error number, so it is raised again.
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        break
    return lock


@contextmanager
def holding(path: Path, *, wait: float = -1) -> Iterator[None]:
    """A context in which no other process holds a lock file, as in ``locked``.

    Raises:
        MaskwiseError: another process still holds the lock, or the folder cannot be written.
    """
    with writing(path.parent):
        lock = locked(path, wait=wait)
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock file. Without the right to write, nobody can tell, and
    the answer is yes.
    """
    try:
        # To lock it would create the file.
        if path.exists():
            locked(path, wait=0).release()
    except (Timeout, PermissionError):
        return True
    return False


def appears(path: Path, *, within: float | None = None) -> bool:
    """Wait for a file, because files from other machines may appear late.

    Args:
        within: the time limit in seconds; if None, ``LATE_SECONDS``.

    Returns:
        Whether the file exists.
    """
    if within is None:
        within = LATE_SECONDS
    end = time.monotonic() + within
    while not path.is_file():
        if time.monotonic() > end:
            return False
        # Network file systems refresh their listings every few seconds.
        time.sleep(0.2)
    return True


def require_file(path: Path) -> None:
    """Wait up to an hour for a file from rank 0. A barrier of torch would time out earlier.

    Raises:
        MaskwiseError: the file did not appear within an hour.
    """
    if not appears(path, within=RANK_SECONDS):
        raise MaskwiseError(f"{path} did not appear", do="can all processes read this folder?")


def refuse_file(folder: Path) -> None:
    """Raise a `MaskwiseError` if an output folder or a folder above it is a file."""
    if folder.is_file():
        raise MaskwiseError("the output folder is a file", got=str(folder), do="give a folder")
    refuse_below_file(folder, what="the output folder")


def listing(folder: Path) -> set[Path]:
    """Return what is in a folder: nothing if it is not there (another process may remove it at any
    moment) or cannot be read.
    """
    try:
        return {*folder.iterdir()}
    except OSError:
        return set()


def content_of(folder: Path) -> list[str]:
    """List the names in an output folder, but for what is there before a command begins."""
    names = {path.name for path in listing(folder)} - {UNFINISHED}
    data = folder / "data"
    # A folder of the user's may have such a name, and so may a file in it.
    if data.is_dir() and not listing(data) - own_rows(folder):
        names.discard(data.name)
    return sorted(names)


def own_rows(folder: Path) -> set[Path]:
    """Return the files of rows that Python gave for an output folder."""
    return {*chain.from_iterable(map(folder.glob, OWN_ROWS))}


def refuse_below_file(folder: Path, *, what: str) -> None:
    """Raise a `MaskwiseError` if a folder cannot be made because a folder above it is a file."""
    above = next((path for path in folder.absolute().parents if path.exists()), folder)
    if above.is_file():
        got = f"{folder}, and {above} is a file"
        raise MaskwiseError(f"{what} cannot be made", got=got, do="give a folder")


def sweep(folder: Path, *, below: bool = True) -> None:
    """Remove partial files that killed processes left in a folder, and finish complete folders.

    A complete folder gets its place if nothing has it. The caller must hold the folder's lock.

    Args:
        below: whether to look in the folders inside of the folder, too.
    """
    found = folder.rglob if below else folder.glob
    for old in list(found(OLD)):
        remove(old)
    for partial in list(found(".*.partial")):
        folder = partial.with_name(partial.stem[1:].rpartition(".")[0])
        if (partial / MANIFEST).is_file() and not folder.exists():
            partial.rename(folder)
        else:
            remove(partial)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A context with a temporary path beside ``path``. What still has it at the end is removed."""
    # The name of ".." is "..", although the folder has another name.
    if path.name in ("", ".."):
        raise MaskwiseError("this is not the name of a file or a folder", got=str(path))
    _require_no_device(path)
    # Processes on other machines, or in other containers, may have the same number.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    LEFT.add(partial)
    try:
        yield partial
    finally:
        # A folder that is complete is left to ``sweep``.
        if partial in LEFT:
            LEFT.discard(partial)
            remove(partial)


def _require_no_device(path: Path) -> None:
    """Raise an error if a file would replace a device or a pipe. Root may do so: without /dev/null,
    no program can discard what it prints.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise MaskwiseError(
            f"{path} is a device or a pipe, and would be replaced", do="give the name of a file"
        )


def credit() -> str:
    """Return maskwise and its version for a model card: in Markdown, a link if there is an address
    (``project.urls`` in pyproject.toml).
    """
    made = f"maskwise {__version__}"
    try:
        urls = importlib.metadata.metadata("maskwise").get_all("Project-URL", [])
    except importlib.metadata.PackageNotFoundError:  # a copy of the sources on the path
        return made
    address = dict(url.split(", ", 1) for url in urls).get("Repository")
    return made if address is None else f"[{made}]({address})"


def shipped() -> dict[str, Path]:
    """Return the paths of the recipes in the package, keyed by name."""
    folder = Path(str(files("maskwise") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def bundled_file(name: str) -> Path:
    """Return the path of a file or folder in the package maskwise or maskwise-data.

    Raises:
        MaskwiseError: the file is in maskwise-data, which is not installed.
    """
    path = Path(str(files("maskwise") / "data" / name))
    if not path.exists():
        require_library("maskwise_data", use=f"bundled {name}")
        path = Path(str(files("maskwise_data") / name))
    if not path.exists():
        # The installed maskwise-data is too old or damaged.
        do = "pip install --force-reinstall maskwise-data"
        raise MaskwiseError(f"maskwise-data has no {name}", got=f"no {path}", do=do)
    return path


def refuse_missing(*names: str) -> None:
    """Raise a `MaskwiseError` if a name looks like a file but does not exist."""
    for name in names:
        file, _ = split_options(name)
        if file.startswith(("hf:", "bundled:")):
            continue
        looks_like_file = Path(file).suffix or "/" in file
        if looks_like_file and not is_path(file):
            raise MaskwiseError(
                f"file {file!r} does not exist", got=str(user_path(file).absolute())
            )


def stem_of(name: str) -> str:
    """Return the name of a file without the extensions of known kinds of files.

    >>> stem_of("my.corpus.v2.jsonl.gz"), stem_of("bge-base-v1.5"), stem_of(".txt")
    ('my.corpus.v2', 'bge-base-v1.5', '')
    """
    while name.lower().endswith(ENDINGS):
        name = name[: name.rindex(".")]
    return name


def results_folder(source: str, command: str = "") -> Path:
    """Return the folder in ``runs`` for what a command makes of a recipe, a model or a text.

    Two recipes, models or texts have different folders, so that one command does not meet the
    results of another.

    Args:
        source: what the command reads.
        command: a prefix, for commands that leave other files than a study.

    >>> results_folder("texts/mine.jsonl.gz", "adapt").as_posix()
    'runs/adapt-mine'
    >>> results_folder("my.corpus.v2.txt", "adapt").as_posix()
    'runs/adapt-my-corpus-v2'
    >>> results_folder("runs/one/checkpoint", "finetune").as_posix()
    'runs/finetune-one'
    """
    file = local_name(split_options(source)[0])
    names = [name for name in Path(file).parts if name not in ("checkpoint", "..", "/")]
    name = stem_of(names[-1]) if names else ""
    words = [command, "-".join(re.findall(r"\w+", name))[:LONGEST_NAME]]
    return Path("runs") / ("-".join(filter(None, words)) or "study")


def recipe_path(source: str | Path) -> Path:
    """Return the file of a recipe, which is given by its path or by the name of a shipped recipe.

    Raises:
        MaskwiseError: there is no such recipe.
    """
    path = shipped().get(str(source), Path(source))
    if path.is_file():
        return path
    refuse_missing(str(source))
    if path.exists():
        raise MaskwiseError(f"recipe {str(source)!r} is not a file", do="give a YAML file")
    raise unknown_name("recipe", str(source), shipped(), do="or give the path of a YAML file")


LONGEST = 1000
"""Maximum number of bytes before the first tag of a page."""


def require_page(path: Path) -> Path:
    """Return a path if a page may be written there.

    Raises:
        MaskwiseError: it is a folder, a device, or a file that is no page.
    """
    _require_no_device(path)
    beginning = b""
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(LONGEST)
    wrong = None
    if path.is_dir():
        wrong = f"{path} is a folder and no page"
    elif beginning.strip() and b"<!doctype html>" not in beginning.lower():
        wrong = f"{path} is no page, and would be replaced"
    if wrong is not None:
        raise MaskwiseError(wrong, do="give another name, such as page.html")
    return path


def write_page(
    path: Path, template: str, filters: Mapping[str, object] | None = None, **values: object
) -> None:
    """Write a self-contained HTML page, in which all texts are escaped (and ``visible``).

    Args:
        template: the name of a file in ``report``.
        filters: functions that the template calls.
        values: the values of the template's variables.

    Raises:
        MaskwiseError: the page cannot be written, or would replace a file that is no page.
    """
    require_page(path)
    environment = _pages()
    environment.filters |= filters or {}
    write_whole(path, environment.get_template(template).render(**values))


@cache  # an environment keeps the templates that it has compiled
def _pages() -> Environment:
    # Commands that write no page start faster without the import of jinja2.
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("maskwise", "report"),
        autoescape=True,
        # A name may hold a character that reverses the text after it. Escaped text, such as a
        # sample in a paragraph of its own, is shown as it is.
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_function"] = _visible_json
    return environment


def _visible_json(value: object, **options: Any) -> str:
    return visible(json.dumps(value, ensure_ascii=False, **options))
