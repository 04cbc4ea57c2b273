"""What the front matter of a model's card cannot say."""

from __future__ import annotations

from typing import Any

from maskwise.models.cards import push_to_hub, with_metadata
from refusals import Refusal

CARD = "---\ntags: [maskwise]\n---\n\n# A model\n"


def shared_with(metadata: Any) -> object:
    return push_to_hub("bundled:encoder", "ada/encoder", token="hf_of_nobody", metadata=metadata)


ROWS = [
    Refusal(
        "a key of metadata that the hub does not have",
        lambda _: shared_with({"licence": "mit"}),
        ("licence", "'license'"),
        lambda _: with_metadata(CARD, {"license": "mit"}),
    ),
    Refusal(
        "metadata that is no dict",
        lambda _: shared_with("mit"),
        ("metadata", "'mit'", "'license'"),
        lambda _: with_metadata(CARD, {"license": "mit", "language": "en"}),
    ),
]
