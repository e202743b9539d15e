"""The vision encoder as a cache sees it: what identifies it, and its output for pictures."""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lavis_peft.errors import RunFailed
from lavis_peft.features.digests import FileDigests

# The models' package imports LAVIS, whose import registers the runners, which need this module: hence imports below.


@dataclass(frozen=True)
class Encoder:
    """The vision encoder of a model.

    Args:
        model: One of the plugin's models, on the device that it computes on.
    """

    model: Any

    @property
    def _module(self) -> Any:
        return self.model.visual_encoder

    @property
    def is_random(self) -> bool:
        """Whether its weights come from no file."""
        return self._module.source is None

    @property
    def shape(self) -> tuple[int, int]:
        """Patches and width of its output for a picture."""
        return self._module.pos_embed.shape[1], self._module.num_features

    def identity(self, digests: FileDigests) -> dict[str, Any]:
        """All that its output depends on besides the picture, as plain values; nothing that only rounds otherwise.

        Weights count by their file, so that they needn't be read into a model to be told.

        Args:
            digests: Remembers the file's digest.

        Raises:
            CheckpointError, OSError: The weights can't be read.
        """
        from lavis_peft.models.vision import VisionSpec
        from lavis_peft.models.vision_weights import weights_file

        spec = self.model.spec
        source, lower = self._module.source, self.model.autocast_dtype()
        if source is None:
            weights = self._digest()
        else:
            weights = digests.of(weights_file(source).absolute()).hex()
            digests.save()
        return {
            **asdict(replace(VisionSpec.parse(spec.vit_model), weights=None)),
            "image_size": spec.image_size,
            "precision": spec.vit_precision,
            "computed_in": "fp32" if lower is None else str(lower).removeprefix("torch."),
            "weights": weights,
        }

    def _digest(self) -> str:
        found = hashlib.sha256()
        for name, tensor in sorted(self._module.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()

    def fingerprint(self) -> str:
        """The fingerprint of its weights by which a resumed run is compared."""
        from lavis_peft.models.parking import fetch
        from lavis_peft.runners.fingerprint import fingerprint_of

        fetch(self._module, self.model.device)
        return fingerprint_of(self._module)

    def encode(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        """Features of pictures (B, 3, H, W): (B, patches, width), on the CPU.

        Args:
            pictures: On any device.
            dtype: In which they are wanted.

        Raises:
            RunFailed: They aren't finite numbers, or too great for that precision.
        """
        count = len(pictures)
        # A product of a single row may be rounded otherwise than the same row among others.
        pictures = pictures.expand(2, -1, -1, -1) if count == 1 else pictures
        features = self.model.encode_vision(pictures.to(self.model.device))[:count]
        kept = features.to(dtype).cpu()
        if not kept.isfinite().all():
            if features.isfinite().all():
                raise RunFailed(
                    f"run.feature_cache: the vision encoder's output reaches {float(features.abs().max()):.3g}, which "
                    "half precision doesn't hold; set run.feature_cache.dtype: float32"
                )
            raise RunFailed("run.feature_cache: the vision encoder's output isn't all finite numbers")
        return kept

    def put_away(self, fingerprint: str | None) -> None:
        """Free its memory until a picture must be encoded.

        Args:
            fingerprint: As `fingerprint` gives it; None where nobody knows it, and then its weights are read.
        """
        from lavis_peft.models.parking import park

        if fingerprint is None:
            fingerprint = self.fingerprint()
        self._module.fingerprint = fingerprint
        park(self._module)
