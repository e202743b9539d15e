"""What a compatibility patch is."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Patch:
    """One thing in an installed library that keeps LAVIS from working, and the way around it.

    Args:
        name: `library.what`, shown by `lavis-peft doctor`.
        broke: What fails without the patch.
        since: The library version that brought the failure, or the condition under which it appears.
        needed: Looks at the installed library itself, never at its version number.
        apply: Puts the missing thing in place; runs only where `needed()` holds.
        after: The LAVIS module that must have been imported first; empty for what must be there before LAVIS.
    """

    name: str
    broke: str
    since: str
    needed: Callable[[], bool] = field(repr=False, compare=False)
    apply: Callable[[], None] = field(repr=False, compare=False)
    after: str = ""
