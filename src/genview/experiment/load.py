"""The one boundary between YAML and the dataclasses: load, override, check, dump."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from genview.errors import UserError, nearest

T = TypeVar("T")
VERBS = {"vary": "study", "backbone": "evaluate", "fit": "fit-generator", "lora": "fit-generator"}
"""The verb that a file is for which has this key; any other is for `run` and its stages."""


def load(kind: type[T], file: Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply 'path=value' overrides, and check it into the dataclass `kind`.

    Raises:
        UserError: the file is missing or no YAML, or a key or value does not fit; all faults are listed.
    """
    return parse(kind, overridden(read_yaml(file), overrides), str(file))


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key, _ in node.value:
            name = (key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key))
            if name in known and key.value != "<<":
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' is given twice", problem_mark=key.start_mark)
            known.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        UserError: it is missing, or no YAML, or gives a key twice.
    """
    try:
        content = yaml.load(file.read_text(), _OnceLoader)
    except FileNotFoundError:
        siblings = [str(p) for p in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        raise UserError(f"There is no experiment file {file}.{nearest(str(file), siblings)}") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{file} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no experiment: it should be a mapping with keys such as images and method.")
    return content


def verb_of(file: Path) -> str:
    """Return the verb that an experiment file is for.

    Raises:
        UserError: see `read_yaml`.
    """
    content = read_yaml(file)
    return next((verb for key, verb in VERBS.items() if key in content), "run")


def overridden(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the content with 'a.b=value' applied; values are read as YAML."""
    content = yaml.safe_load(yaml.safe_dump(content, sort_keys=False))
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise UserError(f"--set {text}: write path=value, for example --set images.root=PHOTOS.")
        *parents, last = path.strip().split(".")
        place = content
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {text}: '{name}' holds a single value and has nothing named '{last}' in it.")
        try:
            place[last] = yaml.load(value, _OnceLoader)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text}: this is no YAML: {' '.join(str(error).split())}") from error
    return content


def parse(kind: type[T], content: dict[str, Any], where: str, what: str = "an experiment") -> T:
    """Check a mapping into the dataclass `kind`.

    Raises:
        UserError: it does not describe `what`; all faults are listed.
    """
    for dataclass in _dataclasses_in(kind):
        dataclass.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(kind, fault)}" for fault in _meant([dict(fault) for fault in error.errors()]))
        raise UserError(f"{where} does not describe {what}:\n{faults}") from None


def dump(value: object) -> dict[str, Any]:
    """Return a dataclass as plain JSON-like values, defaults included."""
    content: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return content


def to_yaml(value: object) -> str:
    """Return the resolved experiment as YAML text."""
    return yaml.safe_dump(dump(value), sort_keys=False, allow_unicode=True, width=100)


def _meant(faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what is wrong with the alternatives that another `kind` was given for, where anything else is."""
    others = [f["loc"][:-1] for f in faults if f["type"] == "literal_error" and f["loc"][-1] == "kind"]
    return [f for f in faults if not any(f["loc"][: len(other)] == other for other in others)] or faults


def _fault(kind: type, fault: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = {field.name for found in _dataclasses_in(kind) for field in dataclasses.fields(found)}
        return f"{path}: unknown key.{nearest(str(fault['loc'][-1]), names)}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{path}: is needed."
    if fault["type"] == "union_tag_not_found":
        return f"{path}: say which kind, for example {{kind: ...}}; {fault['msg']}."
    return f"{path}: {fault['msg']} (given: {fault['input']!r})."


def _dataclasses_in(kind: object, seen: set[type] | None = None) -> Iterator[type]:
    """Yield `kind` and every dataclass that its fields mention."""
    seen = set() if seen is None else seen
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if kind in seen:
            return
        seen.add(kind)
        yield kind
        for hint in typing.get_type_hints(kind, include_extras=True).values():
            yield from _dataclasses_in(hint, seen)
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind) is not None:
        for part in typing.get_args(kind):
            yield from _dataclasses_in(part, seen)
