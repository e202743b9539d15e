"""How InstructBLIP answers: free text, short answers, and ranking of candidates, with LAVIS's arguments.

Shapes as in ``base``.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor

from lavis_peft.models import prompts


class Answering:
    """Mixed into the base model; leaves to the families how their language model is fed."""

    prompt: str
    #: Default of ``predict_answers``' length penalty: −1 for T5, 0 for LLaMA (LAVIS main).
    answer_length_penalty: ClassVar[float]

    def encode_images(self, image: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Visual prefix for the language model (B, T·Q, D), and its attention mask."""
        raise NotImplementedError

    def language_scores(self, prefix: Tensor, mask: Tensor, texts: list[str], candidates: list[list[str]]) -> Tensor:
        """Summed negative log-likelihood of each candidate, flat in sample order, shape (N,)."""
        raise NotImplementedError

    def language_generate(self, prefix: Tensor, mask: Tensor, texts: list[str], options: dict[str, Any]) -> list[str]:
        """Decode answers to the prefixes and instructions."""
        raise NotImplementedError

    def using(self, adapter_names: Sequence[str | None] | None) -> AbstractContextManager[None]:
        """Let each sample of a batch have an adapter of its own."""
        raise NotImplementedError

    def length_options(self, max_length: int, min_length: int) -> dict[str, int]:
        """LAVIS's bounds on an answer's length in the words of transformers' ``generate``."""
        raise NotImplementedError

    @torch.no_grad()
    def score_candidates(
        self,
        image: Tensor,
        texts: list[str],
        candidates: list[list[str]],
        adapter_names: Sequence[str | None] | None = None,
    ) -> list[Tensor]:
        """Score each sample's own candidates; image and instruction are encoded once per sample.

        Args:
            image: (B, 3, H, W) or (B, 3, T, H, W).
            texts: B finished instructions.
            candidates: For each sample, the answers to choose from; numbers may differ.
            adapter_names: For each sample, the adapter to use; None uses the active one for all.

        Returns:
            For each sample, the sum of token negative log-likelihoods of each of its candidates; lower is likelier.
        """
        if not any(candidates):
            return [torch.zeros(0, device=image.device) for _ in candidates]
        with self.using(adapter_names):
            prefix, mask = self.encode_images(image, texts)
            scores = self.language_scores(prefix, mask, texts, candidates)
        return list(scores.split([len(own) for own in candidates]))

    @torch.no_grad()
    def generate(
        self,
        samples: Mapping[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 5,
        max_length: int = 256,
        min_length: int = 1,
        top_p: float = 0.9,
        repetition_penalty: float = 1.5,
        length_penalty: float = 1.0,
        num_captions: int = 1,
        temperature: float = 1,
    ) -> list[str]:
        """Answers in free text, with LAVIS's arguments and defaults.

        Args:
            samples: ``image`` and, unless the model has a prompt of its own, ``prompt``: one string or B of them;
                ``ocr_tokens`` fill a ``{}`` in the prompt. ``adapter`` may name each sample's adapter.
            max_length: Most tokens of an answer, counted as LAVIS counts: LLaMA's opening token is one of them.
        """
        image = samples["image"]
        texts = prompts.generation_prompts(samples, self.prompt, image.shape[0])
        options = {
            "do_sample": use_nucleus_sampling,
            "num_beams": num_beams,
            "repetition_penalty": repetition_penalty,
            "length_penalty": length_penalty,
            "num_return_sequences": num_captions,
        }
        if use_nucleus_sampling:  # transformers warns about sampling settings that nothing uses
            options |= {"top_p": top_p, "temperature": temperature}
        options |= self.length_options(max_length, min_length)
        with self.using(samples.get("adapter")):
            prefix, mask = self.encode_images(image, texts)
            return self.language_generate(prefix, mask, texts, options)

    def predict_answers(
        self,
        samples: dict[str, Any],
        num_beams: int = 5,
        inference_method: str = "generate",
        max_len: int = 10,
        min_len: int = 1,
        num_ans_candidates: int = 128,
        answer_list: Sequence[str] | None = None,
        prompt: str = "",
        length_penalty: float | None = None,
        **_: Any,
    ) -> list[str]:
        """Short answers to ``samples["text_input"]``, with LAVIS's arguments; those LAVIS ignores are ignored too."""
        penalty = self.answer_length_penalty if length_penalty is None else length_penalty
        filled = {**samples, "prompt": prompts.answer_prompts(samples, prompt)}
        return self.generate(
            filled, num_beams=num_beams, max_length=max_len, min_length=min_len, length_penalty=penalty
        )

    def predict_class(
        self, samples: Mapping[str, Any], candidates: Sequence[Any], n_segments: int = 1
    ) -> Tensor | list[list[int]]:
        """Rank candidates as LAVIS does.

        Args:
            samples: ``image``, ``prompt`` and what LAVIS fills it with (``text_input``, ``context``, …).
            candidates: One list for all samples, or a list for each sample.
            n_segments: LAVIS's memory bound; scores don't depend on it.

        Returns:
            Indices of the candidates, likeliest first: a tensor (B, candidates), or lists where numbers differ.
        """
        image = samples["image"]
        own = isinstance(candidates[0], (list, tuple))
        each = [list(c) for c in candidates] if own else [list(candidates)] * image.shape[0]
        texts = prompts.class_prompts(samples, image.shape[0])
        scores = self.score_candidates(image, texts, each, samples.get("adapter"))
        ranks = [torch.argsort(score) for score in scores]
        if len({len(rank) for rank in ranks}) == 1:
            return torch.stack(ranks)
        return [rank.tolist() for rank in ranks]
