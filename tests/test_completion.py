"""Shell completion: it is installed, shown and asked for without an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import maskwise


def test_completion_is_installed_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both were called the end of the program by other code, with exit code 2.

    typer asks which shell it runs in; the tests may run in none that completes.
    """
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for option, beginning in (("install", "bash completion installed"), ("show", "_maskwise")):
        assert maskwise(f"--{option}-completion") == 0
        printed = capfd.readouterr()
        assert printed.out.startswith(beginning) and not printed.err


def test_a_shell_that_completes_gets_no_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each press of the tabulator printed one."""
    monkeypatch.setenv("_MASKWISE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "maskwise st")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert maskwise() == 0
    assert capfd.readouterr() == ("study\nstatus\n", "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("study quick", ["quick-start"]),
        ("pretrain modern", ["modernbert"]),
        ("check intermed", ["intermediate"]),
        ("study quick-start training.batch_si", ["training.batch_size="]),
        ("adapt bundled:encoder a.txt corpus.held", ["corpus.held_out="]),
        ("inspect a.txt --policy whole-w", ["whole-word"]),
    ],
)
def test_a_shell_completes_names_without_torch(words: str, found: list[str]) -> None:
    code = (
        "import sys, maskwise.__main__ as m\n"
        "try: m.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    asked = {
        "_MASKWISE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"maskwise {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == found
