"""Train a bundled model, in about an hour on one core.

    python scripts/train_starts.py encoder|seq2seq [SOURCE]

SOURCE is a folder with wikipedia_en/ and wikinews_en/. The README.md next to the model lists
origins and licences. The recipes are `general-encoder` and `general-seq2seq`. The result is a
checkpoint in half precision, which maskwise loads in single precision. A second run on the same
machine, with the same number of threads, writes the same bytes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoTokenizer

from maskwise.models.loading import load_model

ROOT = Path(__file__).parent.parent
DATA = ROOT / "packages/maskwise-data/src/maskwise_data"
TARGETS = {"encoder": "encoder-en", "seq2seq": "seq2seq-en"}
TEXTS = ("wikipedia_en", "wikinews_en")


def main(name: str, source: Path) -> None:
    with TemporaryDirectory() as folder:
        texts, run = Path(folder, "texts"), Path(folder, "run")
        texts.mkdir()
        for part in TEXTS:
            for file in (source / part).glob("*.jsonl.gz"):
                (texts / file.name).symlink_to(file.resolve())
        command = ["maskwise", "pretrain", f"general-{name}", f"corpus.source={texts}"]
        command += ["--out", str(run)]
        subprocess.run(command, check=True)
        ship(run / "checkpoint", DATA / TARGETS[name])


def ship(checkpoint: Path, target: Path) -> None:
    """Write the checkpoint in half precision, and keep the model card in `target`."""
    load_model(checkpoint, kind=None).half().save_pretrained(target)
    # transformers loads weights in the dtype of config.json. Training in half precision diverges.
    config = target / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(target)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "../shared/data"))
