"""The licence of a generator's weights, as their folder states it."""

from __future__ import annotations

import re
from pathlib import Path


def licence_of(folder: Path) -> str | None:
    """Return the licence that the model card in a folder of weights names in its head, None where none does.

    The card is README.md with the hub's YAML head; there `license_name` says what `license: other` is.
    """
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    found = {
        name: value.strip().strip("'\"")
        for name, value in re.findall(r"^(license|license_name):[ \t]*(\S.*)$", head[1] if head else "", re.MULTILINE)
    }
    stated = found.get("license_name") if found.get("license", "other") == "other" else None
    return stated or found.get("license")
