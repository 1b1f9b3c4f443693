"""Generators of views. A new one is a file and a place in this union of settings."""

from genview.generators.embedded import Embedded, EmbeddedSettings
from genview.generators.generate import generate
from genview.generators.generator import Generator, Text
from genview.generators.img2img import Img2Img, Img2ImgSettings
from genview.generators.imported import Account, ImportSettings, import_views
from genview.generators.ip_adapter import IpAdapter, IpAdapterSettings
from genview.generators.kandinsky import Kandinsky, KandinskySettings
from genview.generators.maker import Maker
from genview.generators.plan import Plan
from genview.generators.planning import Job, make_plan
from genview.generators.settings import FilterSettings, GenerateSettings, ScoreSettings
from genview.generators.unclip import Unclip, UnclipSettings
from genview.generators.views import ViewTable

GeneratorSettings = EmbeddedSettings | UnclipSettings | IpAdapterSettings | KandinskySettings | Img2ImgSettings

__all__ = [
    "Account",
    "Embedded",
    "EmbeddedSettings",
    "FilterSettings",
    "GenerateSettings",
    "Generator",
    "GeneratorSettings",
    "Img2Img",
    "Img2ImgSettings",
    "ImportSettings",
    "IpAdapter",
    "IpAdapterSettings",
    "Job",
    "Kandinsky",
    "KandinskySettings",
    "Maker",
    "Plan",
    "ScoreSettings",
    "Text",
    "Unclip",
    "UnclipSettings",
    "ViewTable",
    "generate",
    "import_views",
    "make_plan",
]
