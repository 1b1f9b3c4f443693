"""Generators of views. A new one is a file and a place in this union of settings."""

from genview.generators.embedded import Embedded, EmbeddedSettings
from genview.generators.generate import GenerateSettings, Job, generate
from genview.generators.generator import Generator, Text
from genview.generators.unclip import Unclip, UnclipSettings
from genview.generators.views import ViewTable

GeneratorSettings = EmbeddedSettings | UnclipSettings

__all__ = [
    "Embedded",
    "EmbeddedSettings",
    "GenerateSettings",
    "Generator",
    "GeneratorSettings",
    "Job",
    "Text",
    "Unclip",
    "UnclipSettings",
    "ViewTable",
    "generate",
]
