"""What a section of the page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, title, one line on how to read it, and its body; all of them HTML.

    `script` names the file in `assets` that makes it move, "" where nothing does.
    """

    anchor: str
    title: str
    reading: str
    body: str
    script: str = ""

    def drawn(self) -> str:
        """Return the section as HTML."""
        return (
            f'<section id="{self.anchor}" aria-labelledby="{self.anchor}-title">'
            f'<h2 id="{self.anchor}-title">{self.title}</h2>'
            f'<p class="reading">{self.reading}</p>{self.body}</section>'
        )


def contents(sections: Sequence[Section]) -> str:
    """Return links to sections, for the head of their page."""
    links = "".join(f'<a href="#{section.anchor}">{section.title}</a>' for section in sections)
    return f'<nav aria-label="Sections">{links}</nav>'


def missing(verb: str, more: str = "") -> str:
    """Say which verb makes what is not there."""
    return f'<p class="missing">Nothing here yet: <code>genview {verb}</code> makes this{more}.</p>'


def chart(title: str, text: str, drawing: str) -> str:
    """Return a drawing below its title and a few words."""
    return f"<figure><figcaption><strong>{title}</strong>{text}</figcaption>{drawing}</figure>"
