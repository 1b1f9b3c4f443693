"""Strict loading: what a network wants and what was found must agree, and each difference is named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Size, Tensor, nn

from genview.errors import UserError

COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches, on which nothing depends in eval mode and which old files lack."""


@dataclass(frozen=True)
class Differences:
    """Names of the weights that are missing and that are more, and (name, found, wanted) of those of another shape.

    False where there is none. As text: a line for each sort; a module that is concerned as a whole is named once.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, Size, Size], ...]
    wanted: frozenset[str]
    found: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        lines = (
            (len(self.missing), "missing", grouped(self.missing, self.wanted)),
            (len(self.unexpected), "unexpected", grouped(self.unexpected, self.found)),
            (len(self.reshaped), "of another shape", _alike(self.reshaped)),
        )
        return "\n".join(f"  {count} {sort}: {', '.join(names)}" for count, sort, names in lines if count)


def differences(wanted: Mapping[str, Size], found: Mapping[str, Size]) -> Differences:
    """Compare names and shapes of weights."""
    return Differences(
        missing=tuple(name for name in wanted if name not in found),
        unexpected=tuple(name for name in found if name not in wanted),
        reshaped=tuple((name, found[name], size) for name, size in wanted.items() if found.get(name, size) != size),
        wanted=frozenset(wanted),
        found=frozenset(found),
    )


def grouped(names: Iterable[str], among: Collection[str], within: str = "") -> list[str]:
    """Return names in order; where all of a module `among` the names is there, 'module.* (number)' instead."""
    chosen = [name for name in names if name.startswith(within)]
    heads = dict.fromkeys(name[len(within) :].split(".")[0] for name in chosen)
    found = list[str]()
    for head in heads:
        module = f"{within}{head}."
        own = [name for name in chosen if name.startswith(module)]
        if not own:
            found.append(f"{within}{head}")
        elif len(own) > 1 and len(own) == sum(name.startswith(module) for name in among):
            found.append(f"{module}* ({len(own)})")
        else:
            found += grouped(own, among, module)
    return found


def say_left_out(state: Mapping[str, Tensor], kept: Collection[str], say: Callable[[str], object] | None) -> None:
    """Tell `say` which weights of `state` are not `kept`, if there are any."""
    left = [name for name in state if name not in kept]
    if say is not None and left:
        say(f"Left out: {', '.join(grouped(left, state))}")


def shapes(state: Mapping[str, Tensor]) -> dict[str, Size]:
    """Return the shapes of weights by name."""
    return {name: value.shape for name, value in state.items()}


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load weights of which none is missing, more, or of another shape, also into a network without memory (meta).

    Raises:
        UserError: they differ; `what`, such as 'FILE does not fit the backbone', begins the message, and every
            difference follows.
    """
    if unlike := differences(shapes(net.state_dict()), shapes(state)):
        raise UserError(f"{what}:\n{unlike}")
    net.load_state_dict(dict(state), strict=True, assign=any(value.is_meta for value in net.parameters()))


def _alike(reshaped: Iterable[tuple[str, Size, Size]]) -> list[str]:
    """Return 'module.weight/bias (found, wanted …)': in one those of a module that differ alike."""
    groups = dict[tuple[str, Size, Size], list[str]]()
    for name, found, wanted in reshaped:
        module, dot, last = name.rpartition(".")
        groups.setdefault((module + dot, found, wanted), []).append(last)
    return [
        f"{module}{'/'.join(names)} ({_by(found)}, wanted {_by(wanted)})"
        for (module, found, wanted), names in groups.items()
    ]


def _by(size: Size) -> str:
    return "×".join(map(str, size)) or "a number"
