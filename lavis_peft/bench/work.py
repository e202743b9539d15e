"""What every contender is given: the same pictures, prompts, targets and candidates."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from lavis_peft.bench.words import Vocabulary

#: Words of the shortest and the longest answer.
_ANSWER = (1, 4)
_CANDIDATES = 4


@dataclass(frozen=True)
class Work:
    """A batch.

    Args:
        image: (B, 3, H, W).
        prompts: B instructions.
        targets: B answers.
        candidates: For each sample, its answers to choose from; the target is one of them.
    """

    image: Tensor
    prompts: list[str]
    targets: list[str]
    candidates: list[list[str]]

    @classmethod
    def drawn(
        cls, batch: int, image_size: int, words: int, prompt: tuple[int, int], device: str, seed: int = 0
    ) -> "Work":
        """Draw a batch; the same seed gives the same."""
        generator, vocabulary = random.Random(seed), Vocabulary(words)
        pictures = torch.randn(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(seed))
        prompts = [vocabulary.text(generator.randint(*prompt), generator) for _ in range(batch)]
        answers = [
            [vocabulary.text(generator.randint(*_ANSWER), generator) for _ in range(_CANDIDATES)] for _ in range(batch)
        ]
        return cls(pictures.to(device), prompts, [own[0] for own in answers], answers)

    @property
    def samples(self) -> dict[str, object]:
        """As LAVIS's loaders give a batch to a model in training."""
        return {"image": self.image, "text_input": self.prompts, "text_output": self.targets}

    @property
    def tokens(self) -> int:
        """Words of all prompts and targets, the unit of tokens per second."""
        return sum(len(text.split()) for text in (*self.prompts, *self.targets))
