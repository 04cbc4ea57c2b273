"""Replace the key ``reference`` of recorded studies by ``untrained``, which names the arm.

Run once, and then deleted: python scripts/migrate_untrained.py benchmarks/results/*/study.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from maskwise.constants import REFERENCE


def migrated(study: dict[str, Any], records: str) -> dict[str, Any]:
    """Return the content of study.json in the new format, with the keys in the same order."""
    new: dict[str, Any] = {}
    for key, value in study.items():
        if key != "reference":
            new[key] = value
        elif value or f'"arm": "{REFERENCE}"' in records:
            # Without a name of its own, sentences call the arm by its name.
            new["untrained"] = {REFERENCE: value or REFERENCE}
        else:
            new["untrained"] = {}
    return new


for name in sys.argv[1:]:
    path = Path(name)
    study = json.loads(path.read_text(encoding="utf-8"))
    new = migrated(study, path.with_name("records.jsonl").read_text(encoding="utf-8"))
    path.write_text(json.dumps(new, indent=1, ensure_ascii=False), encoding="utf-8")
