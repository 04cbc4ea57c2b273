"""Trains the general encoder that maskwise ships: `python scripts/train_encoder.py SOURCE`, about an hour of one core.

SOURCE holds wikipedia_en/ and wikinews_en/ (their origin and licences: src/maskwise/data/encoder-en/README.md). The
recipe is `general-encoder`, as anybody would run it; what is shipped is its checkpoint in half precision, which is
loaded as single precision again. A second run on the same machine, with the same thread count, writes the same bytes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoModelForMaskedLM, AutoTokenizer

TARGET = Path(__file__).parent.parent / "src" / "maskwise" / "data" / "encoder-en"
TEXTS = ("wikipedia_en", "wikinews_en")


def main(source: Path) -> None:
    with TemporaryDirectory() as folder:
        texts, run = Path(folder, "texts"), Path(folder, "run")
        texts.mkdir()
        for file in (file for name in TEXTS for file in sorted((source / name).glob("*.jsonl.gz"))):
            (texts / file.name).symlink_to(file.resolve())
        command = ["maskwise", "pretrain", "general-encoder", f"corpus.source={texts}", "--out", str(run)]
        subprocess.run(command, check=True)
        ship(run / "checkpoint", TARGET)


def ship(checkpoint: Path, target: Path) -> None:
    """The checkpoint in half precision; the card in `target` stays."""
    AutoModelForMaskedLM.from_pretrained(checkpoint).half().save_pretrained(target)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"))
