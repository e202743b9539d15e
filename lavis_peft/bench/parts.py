"""How a training step's time divides among the parts of the model."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from lavis_peft.bench.contender import Ours
from lavis_peft.bench.measure import settle
from lavis_peft.bench.work import Work

PARTS = ("data", "vision", "Q-Former", "LLM", "optimizer")


class Clock:
    """Adds the time between two marks to the part that the second one ends."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def mark(self, part: str | None = None) -> None:
        """End a part; None begins the next without counting the time since the last mark."""
        settle(self.device)
        now = time.perf_counter()
        if part is not None:
            self.spent[part] += now - self.last
        self.last = now


def step_parts(ours: Ours, work: Work, load: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each part of one training step, forward and backward pass together.

    Args:
        ours: The plugin's contender.
        work: Its batch.
        load: What a data loader does for a batch of as many pictures.
    """
    model = ours.model
    clock = Clock(str(work.image.device))
    clock.mark()
    load()
    clock.mark("data")
    encode, vision = model.encode_images, model.visual_encoder.register_forward_hook(lambda *_: clock.mark("vision"))

    def encode_images(*given: Any) -> Any:
        prefix, mask = encode(*given)
        clock.mark("Q-Former")
        prefix.register_hook(lambda _: clock.mark("LLM"))  # its gradient is there: the LLM's backward pass is done
        return prefix, mask

    model.encode_images = encode_images
    try:
        loss = ours.loss(work)
        clock.mark("LLM")
        loss.backward()
        clock.mark("Q-Former")
    finally:
        del model.encode_images
        vision.remove()
    ours.optimizer.step()
    ours.optimizer.zero_grad()
    clock.mark("optimizer")
    return {part: clock.spent[part] for part in PARTS}
