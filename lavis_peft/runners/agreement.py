"""Work of the main process alone whose outcome, good or bad, is every process's."""

from collections.abc import Callable
from typing import Any, TypeVar

from lavis_peft.errors import UserError
from lavis_peft.runners import distributed

T = TypeVar("T")


def agreed(work: Callable[[], T]) -> T:
    """What the main process gets from its work, or raises as a user's error, on every process."""
    outcome: Any = None
    if distributed.is_main():
        try:
            outcome = work()
        except UserError as error:
            outcome = error
    outcome = distributed.from_main(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome
