"""What a translation finds on its way through a config."""

from dataclasses import dataclass, field


@dataclass
class Findings:
    """Sentences about keys of a config, in the order they were found.

    Args:
        problems: Keys that can't be honoured.
        notes: Settings that stand elsewhere now, or were defaults of the research code's.
        dropped: Keys that had no effect there, each with the reason.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
