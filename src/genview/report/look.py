"""How the page looks: one style sheet, light and dark, and the frame around its sections with their scripts."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from importlib.resources import files

from genview.report.section import Section

FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
{header}
</header>
<main>
{sections}
</main>
<footer>Written by genview. This file needs nothing else: it can be moved, mailed and kept.</footer>
{scripts}
</body>
</html>
"""
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'"


def framed(title: str, header: str, sections: Sequence[Section]) -> str:
    """Return a page that loads nothing and runs no script but those of its sections.

    `title` is text, `header` HTML.
    """
    scripts = [_asset(name) for name in dict.fromkeys(section.script for section in sections) if name]
    allowed = "".join(f" 'sha256-{_digest(script)}'" for script in scripts)
    return FRAME.format(
        policy=POLICY + (f"; script-src{allowed}" if allowed else ""),
        title=html.escape(title),
        style=_asset("style.css"),
        header=header,
        sections="\n".join(section.drawn() for section in sections),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _asset(name: str) -> str:
    return (files("genview.report") / "assets" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
