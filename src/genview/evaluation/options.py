"""What options of evaluations must be: seen when settings are made, as their use may be days of training later."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from genview.errors import UserError
from genview.training.duration import steps_of


class Rule(NamedTuple):
    """What a number must be, in words, and whether it is."""

    words: str
    holds: Callable[[float], bool]


POSITIVE = Rule("above 0", lambda value: value > 0)
NOT_NEGATIVE = Rule("at least 0", lambda value: value >= 0)
COUNT = Rule("at least 1", lambda value: value >= 1)
FACTOR = Rule("above 0 and at most 1", lambda value: 0 < value <= 1)
BELOW_ONE = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)


def want(kind: str, settings: object, rule: Rule, *names: str) -> None:
    """See that these options keep a rule: each number of those that are several.

    Raises:
        UserError: one does not.
    """
    for name in names:
        value = getattr(settings, name)
        several = isinstance(value, tuple)
        if not all(rule.holds(number) for number in (value if several else (value,))):
            raise UserError(
                f"Evaluation {kind} needs {name} to be {rule.words}{', each of them' * several}; "
                f"{f'they are {list(value)}' if several else f'it is {value}'}."
            )


def want_some(kind: str, settings: object, *names: str) -> None:
    """See that the options, each of which has several values, have one between them.

    Raises:
        UserError: they have none.
    """
    if not any(getattr(settings, name) for name in names):
        raise UserError(f"Evaluation {kind} needs at least one of {' or '.join(names)}; there is none.")


def want_text(kind: str, settings: object, parse: Callable[[str], object], *names: str) -> None:
    """See that options can be parsed.

    Raises:
        UserError: one cannot.
    """
    for name in names:
        try:
            parse(getattr(settings, name))
        except (UserError, ValueError, OverflowError) as error:  # as '1.2.3 epochs' and '1e999 epochs' raise
            raise UserError(f"Evaluation {kind} cannot use its {name}: {error}") from error


def duration(text: str) -> int:
    """Parse a duration, whatever an epoch may be.

    Raises:
        UserError: it is none.
    """
    return steps_of(text, images=1, batch=1)


def length(text: str) -> int:
    """Parse the duration of a training.

    Raises:
        UserError: it is none, or of nothing.
    """
    steps = duration(text)
    if not steps:
        raise UserError(f"'{text}' is no training. Write a number above 0.")
    return steps
