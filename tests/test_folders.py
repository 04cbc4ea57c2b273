"""Files and folders are whole or not there; a second process is kept out; damage is found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maskwise import folders
from maskwise.errors import MaskwiseError
from maskwise.folders import (
    claim,
    claim_run,
    damage,
    is_locked,
    is_new,
    locked,
    read_json,
    read_lines,
    remove_new,
    require_own,
    sweep,
    write_folder,
    write_json,
    write_lines,
    write_whole,
)
from maskwise.study.together import StudyFolder
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


def test_a_folder_that_cannot_get_its_place_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, lambda target: (target / "a").write_text("1"))
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if target == folder and ".old." not in path.name:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(MaskwiseError, match="No space left"):
        write_folder(folder, lambda target: (target / "b").write_text("2"))
    assert damage(folder) is None and (folder / "a").exists()
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
        with claim(folder, "another study runs in", lock=".lock"):
            return "claimed"
    except MaskwiseError as error:
        return str(error)


def test_a_second_process_is_kept_out_until_the_first_is_done(tmp_path: Path) -> None:
    with claim(tmp_path, "another study runs in", lock=".lock"):
        assert forked(_second, tmp_path)().startswith(
            f"another study runs in {tmp_path}; got process {os.getpid()} on "
        )
    assert _second(tmp_path) == "claimed"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    require_own(tmp_path / "new", "stages", what="a study")
    (tmp_path / "thesis.tex").write_text("")
    says = r"something else; got thesis\.tex; give a new folder, or the folder of a study"
    with pytest.raises(MaskwiseError, match=says):
        require_own(tmp_path, "stages", what="a study")
    (tmp_path / "stages").mkdir()
    require_own(tmp_path, "stages", what="a study")
    with pytest.raises(MaskwiseError, match="is a file"):
        require_own(tmp_path / "thesis.tex", what="a study")


@pytest.mark.parametrize(
    "left",
    [
        [".lock"],
        ["stages/.training.lock"],
        [".learning.lock", ".recipe.yaml.77.partial"],
        [".checkpoint.77.partial/model.safetensors", "stages/.lock"],
    ],
)
def test_what_a_killed_process_left_in_its_first_moment_is_no_content(
    left: list[str], tmp_path: Path
) -> None:
    """The same command refused the folder for ever."""
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    require_own(tmp_path, "recipe.yaml", what="a run")
    with (
        pytest.raises(MaskwiseError, match="failed"),
        claim_run(tmp_path, "another run", lock="stages/.lock", work=["**/metrics.jsonl"]),
    ):
        assert not list(tmp_path.rglob("*.partial"))
        raise MaskwiseError("failed")
    assert not [*tmp_path.iterdir()]
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "notes.lock").write_text("")
    with pytest.raises(MaskwiseError, match="something else; got stages"):
        require_own(tmp_path, "recipe.yaml", what="a run")


@pytest.mark.parametrize(
    "name",
    ["task/seed-0/done.json", "task/rate-1/metrics.jsonl", "notes", "empty/metrics.jsonl"],
)
def test_a_new_folder_that_has_some_work_stays_after_a_failure(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = ["**/metrics.jsonl", "*/*/done.json"]
    with pytest.raises(MaskwiseError), claim_run(out, "another run", lock=".lock", work=work):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}" * (name != "empty/metrics.jsonl"))
        raise MaskwiseError("failed")
    assert out.exists() == (name not in ("notes", "empty/metrics.jsonl"))


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "a" / ".checkpoint.77.partial").mkdir(parents=True)
    (tmp_path / "a" / ".checkpoint.77.partial" / "x").write_text("")
    (tmp_path / ".done.json.77.partial").write_text("")
    (tmp_path / "kept").write_text("")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]


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


@pytest.mark.parametrize("look", [is_new, lambda out: require_own(out, "a", what="a run")])
def test_a_folder_that_another_process_removes_now_has_no_content(
    tmp_path: Path, monkeypatch, look
) -> None:
    (tmp_path / "resume" / "step-1").mkdir(parents=True)
    is_dir = Path.is_dir

    def removes(path: Path) -> bool:
        found = is_dir(path)
        if found and path.name == "step-1":
            path.rmdir()
        return found

    monkeypatch.setattr(Path, "is_dir", removes)
    assert look(tmp_path) in (True, None)


@pytest.mark.process
def test_a_lock_is_waited_for_although_its_folder_is_removed(tmp_path: Path) -> None:
    """By another process, which failed before it did any work."""
    out = tmp_path / "out"
    lock = out / "stages" / ".lock"
    held = locked(lock, wait=0)
    (out / "study.json").write_text("{}")
    waits = tmp_path / "waits"

    def other() -> list[str]:
        waits.touch()
        locked(lock, wait=-1)
        return [path.name for path in out.rglob("*") if path.is_file()]

    found = forked(other)
    wait_for(waits.exists)
    remove_new(out, existed=False, lock=lock)
    held.release()
    assert found() == [".lock"]


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


def test_the_lock_of_a_folder_is_removed_last(tmp_path: Path, monkeypatch) -> None:
    """Another process locks a new one as soon as it is gone, and its files were removed, too."""
    lock = tmp_path / "out" / "stages" / ".lock"
    held = locked(lock, wait=0)
    for name in ("a", "z", "stages/a", "stages/b/c", ".a"):
        write_whole(tmp_path / "out" / name, b"")
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    gone = []
    unlink = Path.unlink

    def seen(path: Path, **options: bool) -> None:
        gone.append(path)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", seen)
    remove_new(tmp_path / "out", existed=False, lock=lock)
    held.release()
    assert gone[-1] == lock and len(gone) == 7
    assert not [*tmp_path.iterdir()]


def test_a_folder_in_which_another_process_begins_now_is_of_the_same_kind(
    tmp_path: Path, monkeypatch
) -> None:
    """Marks were looked for before the content was listed."""
    has_content = folders._has_content

    def begins(path: Path) -> bool:
        (tmp_path / "stages").mkdir(exist_ok=True)
        (tmp_path / "stages" / ".lock").touch()
        return has_content(path)

    (tmp_path / "study.json").touch()
    monkeypatch.setattr(folders, "_has_content", begins)
    require_own(tmp_path, "stages/.lock", what="a study")


@pytest.mark.parametrize("kind", ["link", "here", "folder"])
@pytest.mark.parametrize("command", ["run", "study"])
def test_a_run_that_fails_early_reports_its_error_and_keeps_a_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, command: str
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
    work = ["**/metrics.jsonl"]
    claimed = claim_run(out, "another run", lock="stages/.lock", work=work)
    used = StudyFolder(out).used(lambda: None) if command == "study" else claimed
    with pytest.raises(MaskwiseError, match="the reason"), used:
        (out / "recipe.yaml").write_text("name: a")
        raise MaskwiseError("the reason")
    assert folder.is_dir() and not [*folder.iterdir()]
    assert kind != "link" or out.is_symlink()
