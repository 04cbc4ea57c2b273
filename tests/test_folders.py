"""Files and folders are whole or not there; a second process is kept out; damage is found."""

from __future__ import annotations

import json
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from maskwise.base import folders
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import (
    IDENTITY,
    UNFINISHED,
    USED,
    OutputFolder,
    claim,
    damage,
    fill_folder,
    is_locked,
    locked,
    read_json,
    read_lines,
    sweep,
    write_folder,
    write_json,
    write_lines,
    write_whole,
)
from maskwise.base.signals import AskedToLeave
from processes import forked, wait_for


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"é": [1, None]})
    assert read_json(tmp_path / "deep" / "a.json") == {"é": [1, None]}
    write_lines(tmp_path / "a.jsonl", [{"a": 1}, {"b": 2}])
    assert list(read_lines(tmp_path / "a.jsonl")) == [{"a": 1}, {"b": 2}]
    assert [path.name for path in tmp_path.rglob("*.partial")] == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\x00", b"null", b"[" * 100_000])
def test_damaged_json_is_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + content)
    assert list(read_lines(tmp_path / "a.jsonl")) == [{"a": 1}]


def test_missing_files_and_lines_below_a_file_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "stage").write_text("in the way")
    for name in ("no", "stage/metrics.jsonl"):
        assert read_json(tmp_path / name) is None and list(read_lines(tmp_path / name)) == []


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskwiseError, match=r"cannot write .*; got Not a directory"):
        write_whole(tmp_path / "file" / "below", b"x")
    (tmp_path / "taken").mkdir()
    with pytest.raises(MaskwiseError, match="cannot write"):
        write_whole(tmp_path / "taken", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_a_folder_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, lambda target: (target / "a").write_text("1"))
    write_folder(folder, lambda target: (target / "b").write_text("2"))
    assert damage(folder) is None and not (folder / "a").exists()

    def fail(target: Path) -> None:
        (target / "c").write_text("3")
        raise OSError(28, "No space left on device")

    with pytest.raises(MaskwiseError, match="No space left"):
        write_folder(folder, fail)
    assert damage(folder) is None and [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_cannot_get_its_place_gets_it_later(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, lambda target: (target / "a").write_text("1"))
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if target == folder:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(MaskwiseError, match="No space left"):
            write_folder(folder, lambda target: (target / "b").write_text("2"))
    sweep(tmp_path)
    assert damage(folder) is None and [path.name for path in folder.iterdir() if path.stem == "b"]
    # What was written meanwhile is newer.
    (tmp_path / ".folder.77.partial").mkdir()
    write_json(tmp_path / ".folder.77.partial" / "manifest.json", {"sha256": {}})
    sweep(tmp_path)
    assert (folder / "b").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_old_folder_is_never_seen_in_parts(tmp_path, monkeypatch) -> None:
    """It was removed file by file before the new folder got its place."""
    folder = tmp_path / "folder"
    write_folder(folder, lambda target: (target / "a").write_text("1"))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: seen.append(damage(folder)))
    seen: list[str | None] = []
    write_folder(folder, lambda target: (target / "b").write_text("2"))
    assert seen and set(seen) == {None} and (folder / "b").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, exists: bool) -> None:
    """It was replaced by a folder on the disk of the link, and a hidden link was left."""
    there = tmp_path / "large" / "out"
    there.parent.mkdir()
    if exists:
        there.mkdir()
    link = tmp_path / "out"
    link.symlink_to(there)
    for text in ("first", "second"):
        write_folder(link, lambda folder, text=text: (folder / "a.txt").write_text(text))
        assert link.is_symlink() and (there / "a.txt").read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["large", "out"] and os.listdir(there.parent) == ["out"]


def test_a_folder_that_links_to_itself_is_refused(tmp_path: Path) -> None:
    """It ended in a traceback."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(MaskwiseError, match="cannot write"):
        write_folder(tmp_path / "a", lambda folder: None)


def test_all_files_of_a_folder_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    def fill(target: Path) -> None:
        save_file({"a": torch.zeros(2)}, target / "model.safetensors")
        (target / "config.json").write_text("{}")
        (target / "tool").write_text("")
        (target / "tool").chmod(0o755)

    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "folder", fill)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "folder").iterdir()}
    assert modes.pop("tool") == 0o755 and set(modes.values()) == {0o640}


@pytest.mark.parametrize("name", ["letters/..", "..", "."])
def test_a_folder_without_a_name_is_not_replaced(tmp_path: Path, monkeypatch, name: str) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "to.txt").write_text("mine")
    monkeypatch.chdir(folder)
    with pytest.raises(MaskwiseError, match="not the name"):
        write_folder(Path(name), lambda target: (target / "a").write_text("1"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["letters", "to.txt"]


def test_damage_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_folder(
        folder, lambda target: [(target / name).write_bytes(b"abc") for name in ("a", "README.md")]
    )
    (folder / "README.md").write_bytes(b"a card that its owner has edited")
    assert damage(folder) is None
    (folder / "a").write_bytes(b"abd")
    assert damage(folder) == "a is damaged"
    (folder / "a").unlink()
    assert damage(folder) == "a is missing"
    for manifest in (b"[]", b'{"sha256": null}', b"\xff", b""):
        (folder / "manifest.json").write_bytes(manifest)
        assert damage(folder) == "no readable manifest"


def _second(folder: Path) -> str:
    try:
        with claim(folder / ".lock", "another run trains here"):
            return "claimed"
    except MaskwiseError as error:
        return str(error)


def test_a_second_process_is_kept_out_until_the_first_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "RELEASE_SECONDS", 0.1)
    with claim(tmp_path / ".lock", "another run trains here"):
        assert forked(_second, tmp_path)().startswith(
            f"another run trains here; got process {os.getpid()} on "
        )
    assert _second(tmp_path) == "claimed"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    OutputFolder(tmp_path / "new", "study").require()
    (tmp_path / "thesis.tex").write_text("")
    says = r"something else; got thesis\.tex; give a new folder, or that of an earlier study"
    with pytest.raises(MaskwiseError, match=says):
        OutputFolder(tmp_path, "study").require()
    OutputFolder(tmp_path, "study", known=True).require()
    with pytest.raises(MaskwiseError, match="is a file"):
        OutputFolder(tmp_path / "thesis.tex", "study").require()


def identity(out: Path) -> dict[str, Any] | None:
    """Return what was called, and require that it is written once."""
    found = [read_json(path) for path in (out / UNFINISHED / IDENTITY, out / IDENTITY)]
    assert found.count(None) >= 1
    return found[0] or found[1]


def test_a_folder_belongs_to_one_call_while_it_is_used_and_afterwards(tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = "maskwise pretrain mine"
    folder = OutputFolder(out, "pretrain", call)
    with pytest.raises(KeyboardInterrupt), folder.used({"training": {"steps": 9}}):
        (out / "recipe.yaml").touch()
        raise KeyboardInterrupt
    for finished in (False, True):
        assert identity(out) == {"kind": "pretrain", "call": call, "of": {"training": {"steps": 9}}}
        assert (out / UNFINISHED).is_dir() != finished
        # Another call is refused, early and when it begins, by the name of the first.
        for other, named in (
            (OutputFolder(out, "pretrain"), f"{call}, with other values of training.steps"),
            (OutputFolder(out, "learn", known=True), call),
        ):
            for refused in (other.require, lambda of, other=other: other.used(of).__enter__()):
                with pytest.raises(MaskwiseError, match=f"got {named}; give a new folder"):
                    refused({"training": {"steps": 8}})
        # The same call goes on, also if the folder was moved.
        out = out.rename(tmp_path / f"moved-{finished}")
        with OutputFolder(out, "pretrain").used({"training": {"steps": 9}}):
            assert identity(out)
    assert sorted(path.name for path in out.iterdir()) == [IDENTITY, "recipe.yaml"]
    assert not [path for path in tmp_path.iterdir() if path != out]


def test_an_identity_that_does_not_stay_is_known_until_the_work_is_done(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, "convert", keeps=False)
    with folder.used({}):
        (tmp_path / "config.json").touch()
        folder.require({})
    with pytest.raises(MaskwiseError, match="something else"):
        folder.require({})
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "left",
    [
        [f"{UNFINISHED}/.lock"],
        [f"{UNFINISHED}/{IDENTITY}", f"{UNFINISHED}/.host-1{USED}"],
        [f"{UNFINISHED}/files/model.safetensors"],
        ["data/mine-0a1b2c3d.jsonl"],
        ["data/.mine-77.partial"],
    ],
)
def test_what_a_killed_process_left_in_its_first_moment_is_no_content(
    left: list[str], tmp_path: Path
) -> None:
    """The same command refused the folder for ever."""
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    OutputFolder(tmp_path, "pretrain").require({"a": 1})
    with (
        pytest.raises(MaskwiseError, match="failed"),
        OutputFolder(tmp_path, "pretrain").used({"a": 1}),
    ):
        assert (identity(tmp_path) or {})["of"] == {"a": 1}
        raise MaskwiseError("failed")
    # Rows may be those of the user.
    assert {path.name for path in tmp_path.iterdir()} <= {"data"}


@pytest.mark.parametrize(
    "name",
    [
        "task/seed-0/done.json",
        "resume/step-1/state.json",
        "records.jsonl",
        "notes",
        "empty/metrics.jsonl",
        "stages/prepare-1/done.json",
    ],
)
@pytest.mark.parametrize("error", [MaskwiseError("failed"), OSError("failed"), SystemExit(1)])
def test_a_new_folder_that_has_some_work_stays_after_a_failure(
    name: str, error: BaseException, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(type(error)), OutputFolder(out, "finetune").used({}):
        write_whole(out / name, "{}" * (name != "empty/metrics.jsonl"))
        raise error
    lost = name in ("notes", "empty/metrics.jsonl", "stages/prepare-1/done.json")
    assert out.exists() != lost and (lost or identity(out))


@pytest.mark.parametrize("name", ["task/rate-1/metrics.jsonl", "stages/prepare-1/done.json"])
def test_what_failed_leaves_its_logs_and_the_texts_of_hours_to_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "KEPT_SECONDS", 60.0 if "metrics" in name else 0.0)
    with pytest.raises(MaskwiseError), OutputFolder(tmp_path, "pretrain").used({"steps": 9}):
        write_whole(tmp_path / name, "{}")
        raise MaskwiseError("failed")
    with pytest.raises(MaskwiseError, match="another call; got maskwise pretrain;"):
        OutputFolder(tmp_path, "learn").require()
    with pytest.raises(MaskwiseError), OutputFolder(tmp_path, "pretrain").used({"steps": 7}):
        raise MaskwiseError("failed at once")
    with OutputFolder(tmp_path, "pretrain").used({"steps": 8}):
        assert (tmp_path / name).exists()
    with pytest.raises(MaskwiseError, match="other values of steps"):
        OutputFolder(tmp_path, "pretrain").require({"steps": 9})


def test_a_folder_that_is_called_data_is_not_removed(tmp_path: Path) -> None:
    """One file with a name like ours made a folder of the user's new, and a failure removed it."""
    for name in ("crawl-20240131.jsonl", "labels.csv"):
        write_whole(tmp_path / "data" / name, "mine")
        with suppress(MaskwiseError), OutputFolder(tmp_path, "study").used({"a": 1}):
            raise MaskwiseError("failed")
        assert (tmp_path / "data" / name).read_text() == "mine"
    with pytest.raises(MaskwiseError, match="something else; got data"):
        OutputFolder(tmp_path, "study").require({"a": 1})


def test_the_identity_stays_if_it_cannot_be_written_anew(tmp_path: Path, monkeypatch) -> None:
    """A full disk left an empty one, and the same call was refused."""

    def full(*_: object) -> None:
        raise MaskwiseError("no space")

    with (
        pytest.raises(MaskwiseError, match="failed"),
        monkeypatch.context() as patch,
        OutputFolder(tmp_path, "pretrain").used({"steps": 9}),
    ):
        write_whole(tmp_path / "metrics.jsonl", "{}")
        patch.setattr(folders, "write_json", full)
        raise MaskwiseError("failed")
    assert (identity(tmp_path) or {})["of"] == {"steps": 9}


def test_a_call_that_was_killed_and_then_fails_may_be_mended(tmp_path: Path) -> None:
    """The corrected call was refused, and to repeat the first could not work."""
    with suppress(KeyboardInterrupt), OutputFolder(tmp_path, "pretrain").used({"steps": 9}):
        raise KeyboardInterrupt
    with suppress(MaskwiseError), OutputFolder(tmp_path, "pretrain").used({"steps": 9}):
        raise MaskwiseError("failed")
    OutputFolder(tmp_path, "pretrain").require({"steps": 8})


@pytest.mark.parametrize("end", [KeyboardInterrupt(), AskedToLeave(143)])
def test_what_a_signal_ended_stays_that_of_the_call(end: BaseException, tmp_path: Path) -> None:
    with suppress(BaseException), OutputFolder(tmp_path / "out", "learn").used({"steps": 9}):
        raise end
    assert (identity(tmp_path / "out") or {})["of"] == {"steps": 9}


@pytest.mark.process
def test_processes_use_a_folder_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one that ends finishes the folder, and what ended with an error removes nothing."""
    monkeypatch.setattr(folders, "RELEASE_SECONDS", 0.1)
    out = tmp_path / "out"

    def other(together: bool) -> list[str] | str:
        found: list[str] = []
        try:
            with OutputFolder(out, "study").used({}, found.extend, together=together):
                return found
        except MaskwiseError as error:
            return str(error)

    with OutputFolder(out, "study").used({}, together=True):
        assert forked(other, True)() == [f"{socket.gethostname()}-{os.getpid()}"]
        assert (out / UNFINISHED / IDENTITY).is_file()
        refused = forked(other, False)()
        assert refused.startswith("another process works in ") and f"-{os.getpid()};" in refused
        (out / "study.json").touch()
    assert sorted(path.name for path in out.iterdir()) == [IDENTITY, "study.json"]


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "a" / ".checkpoint.77.partial").mkdir(parents=True)
    (tmp_path / "a" / ".checkpoint.77.partial" / "x").write_text("")
    (tmp_path / ".done.json.77.partial").write_text("")
    (tmp_path / "kept").write_text("")
    (tmp_path / ".old").mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".old", "a", "kept"]


@pytest.mark.parametrize("moment", [1, 2])
@pytest.mark.parametrize("signal", ["kill", "second signal"])
def test_no_moment_of_a_replacement_loses_both_folders(
    moment: int, signal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second signal removed the old folder and the new one, and so did a kill."""
    write_folder(tmp_path / "a", lambda folder: (folder / "old").touch())
    rename = Path.rename
    renamed: list[Path] = []

    def ends(path: Path, target: Path) -> None:
        if len(renamed) < moment:
            renamed.append(path)
            rename(path, target)
        if len(renamed) == moment:
            renamed.append(path)
            for left in folders.LEFT if signal == "second signal" else ():
                folders.remove(left)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", ends)
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path / "a", lambda folder: (folder / "new").touch())
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert damage(tmp_path / "a") is None and (tmp_path / "a" / "new").exists()


def test_files_get_their_places_in_the_order_in_which_loaders_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "epoch-0").mkdir(parents=True)
    write_lines(out / "notes.jsonl", [{"mine": 1}])

    def fill(folder: Path) -> None:
        assert not [path for path in tmp_path.iterdir() if path != out]
        looked_for = ("config.json", "masks.json", "epoch-0/dataset_info.json")
        for name in (*looked_for, "z.safetensors", "epoch-0/x"):
            write_whole(folder / name, name)

    moved: list[str] = []
    replace = Path.replace

    def seen(path: Path, target: Path) -> Path:
        if target.is_relative_to(out) and UNFINISHED not in target.parts:
            moved.append(target.name)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", seen)
        fill_folder(out, fill)
    assert {*moved[:2]} == {"x", "z.safetensors"}
    assert moved[2:] == ["manifest.json", "dataset_info.json", "masks.json", "config.json"]
    # Files of an earlier call go, unless this one adds to them; those of a user stay.
    for adds, stays in ((True, True), (False, False)):
        fill_folder(out, lambda folder: (folder / "more").write_text("1"), adds=adds)
        assert damage(out) is None and (out / "epoch-0" / "x").exists() == stays
    assert (out / "notes.jsonl").exists() and not (out / UNFINISHED).exists()


@pytest.mark.parametrize("name", folders.FORMATS)
def test_a_format_that_a_newer_version_wrote_is_refused_in_one_line(name, tmp_path):
    path = tmp_path / name
    folders.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1, "format": folders.FORMATS[name]}
    assert folders.read_json(path) == {"a": 1}
    # Files of other origin may have none.
    path.write_text('{"a": 1}')
    assert folders.read_json(path) == {"a": 1}
    for newer in (folders.FORMATS[name] + 1, "2", None):
        path.write_text(json.dumps({"format": newer}))
        with pytest.raises(MaskwiseError, match=r"newer maskwise wrote it; got format") as error:
            folders.read_json(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", folders.GOVERNED)
def test_a_table_is_refused_if_a_newer_version_wrote_the_file_beside_it(name, tmp_path):
    path = tmp_path / name
    path.write_text('{"a": 1}\n')
    read = folders.read_json if path.suffix == ".json" else lambda path: [*folders.read_lines(path)]
    assert read(path) in ({"a": 1}, [{"a": 1}])
    for beside in folders.GOVERNED[name]:
        assert beside in folders.FORMATS
        folders.write_json(tmp_path / beside, {})
        assert read(path)
        (tmp_path / beside).write_text('{"format": 99}')
        with pytest.raises(MaskwiseError, match=f"{beside} has a format .* newer maskwise"):
            read(path)
        (tmp_path / beside).unlink()


def test_a_lock_that_may_not_be_written_may_be_held(tmp_path: Path, monkeypatch) -> None:
    held = locked(tmp_path / ".lock", wait=0)
    assert is_locked(tmp_path / ".lock")
    held.release()
    assert not is_locked(tmp_path / ".lock")

    def refused(*given: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders, "locked", refused)
    assert is_locked(tmp_path / ".lock")


def test_to_look_at_a_lock_creates_none(tmp_path: Path) -> None:
    """A process that had ended seemed to have left one."""
    assert not is_locked(tmp_path / "gone" / ".lock")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_removed_while_it_is_listed_is_empty(tmp_path: Path) -> None:
    """``glob`` looks whether it is there, and fails if it is removed before it is listed."""
    (tmp_path / "file").touch()
    assert folders.listing(tmp_path) == {tmp_path / "file"}
    assert folders.listing(tmp_path / "file") == folders.listing(tmp_path / "gone") == set()


@pytest.mark.process
def test_a_folder_is_waited_for_although_it_is_removed(tmp_path: Path) -> None:
    """By another process, which failed before it did any work."""
    out = tmp_path / "out"
    waits = tmp_path / "waits"

    def other() -> list[str]:
        waits.touch()
        with OutputFolder(out, "study").used({}, together=True):
            return sorted(path.name for path in out.rglob("*") if path.is_file())

    folder = OutputFolder(out, "study")
    with folder.alone():
        (out / "study.json").write_text("{}")
        found = forked(other)
        wait_for(waits.exists)
        folders.remove(out)
    names = found()
    assert len(names) == 3 and {".lock", IDENTITY} < {*names}


def test_a_folder_that_is_removed_while_it_is_found_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python then says that the folder exists, because it is no folder any more."""
    made = []
    mkdir = Path.mkdir

    def removed_once(path: Path, *given: object, **options: bool) -> None:
        made.append(path)
        if len(made) == 1:
            raise FileExistsError(path)
        mkdir(path, *given, **options)

    monkeypatch.setattr(Path, "mkdir", removed_once)
    locked(tmp_path / "stages" / ".lock", wait=0).release()
    assert len(made) > 1
    # A file in its place stays an error.
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        locked(tmp_path / "file" / ".lock", wait=0)


def test_a_folder_in_which_another_process_begins_now_is_of_the_same_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its identity was looked for before the content was listed."""
    content_of = folders.content_of

    def begins(folder: Path) -> list[str]:
        write_json(tmp_path / UNFINISHED / IDENTITY, {"kind": "study", "call": "", "of": {}})
        return content_of(folder)

    (tmp_path / "study.json").touch()
    monkeypatch.setattr(folders, "content_of", begins)
    OutputFolder(tmp_path, "study").require()


@pytest.mark.parametrize("kind", ["link", "here", "folder"])
def test_a_run_that_fails_early_reports_its_error_and_keeps_a_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A link and the current folder cannot be removed: that error replaced the first one."""
    folder = tmp_path / "large"
    folder.mkdir()
    out = folder
    if kind == "link":
        out = tmp_path / "link"
        out.symlink_to(folder)
    elif kind == "here":
        monkeypatch.chdir(folder)
        out = Path()
    with pytest.raises(MaskwiseError, match="the reason"), OutputFolder(out, "study").used({}):
        (out / "recipe.yaml").write_text("name: a")
        raise MaskwiseError("the reason")
    assert folder.is_dir() and not [*folder.iterdir()]
    assert kind != "link" or out.is_symlink()
