"""Where a model's base weights lie: files that can be read one tensor at a time, without building the model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavis_peft.adapters.checkpoint import check_keys, check_shapes
from lavis_peft.adapters.download import local_file
from lavis_peft.adapters.merge import plain_state
from lavis_peft.errors import ConfigError
from lavis_peft.hf.files import Weights, open_weights
from lavis_peft.hf.hub import snapshot
from lavis_peft.hf.keys import is_unused
from lavis_peft.hf.tensors import EMBEDDINGS, language_recipes
from lavis_peft.models.base import Blip2InstructPeft
from lavis_peft.models.spec import local_folder
from lavis_peft.models.vision import VisionSpec
from lavis_peft.models.vision_weights import weights_file

VISION = "visual_encoder."


@dataclass(frozen=True)
class Sources:
    """The base weights of a model, under LAVIS's plain names.

    Args:
        model: The model; on the meta device it is enough.
    """

    model: Blip2InstructPeft = field(repr=False)

    @property
    def llm_prefix(self) -> str:
        """What the language model's names begin with."""
        return f"{self.model.llm_key}."

    def qformer(self) -> Weights:
        """Q-Former, query tokens, ln_vision and projection.

        Raises:
            ConfigError: The model's section names none.
            CheckpointError: They are another model's.
        """
        spec = self.model.spec
        if not (spec.load_pretrained and spec.pretrained):
            raise ConfigError("model.pretrained: names no base weights, so there is nothing to write")
        found = open_weights(local_file(spec.pretrained))
        fitting = _fitting(found, self._shapes(besides=(VISION, self.llm_prefix)), spec.pretrained)
        # A constant, which LAVIS's own checkpoints carry: what had it keeps it.
        constants = {key: entry for key, entry in found.entries.items() if key.endswith("position_ids")}
        return fitting | Weights(constants)

    def vision(self) -> Weights:
        """The vision encoder.

        Raises:
            ConfigError: The model's section gives sizes alone.
            CheckpointError: They are another model's.
        """
        vision = VisionSpec.parse(self.model.spec.vit_model)
        if vision.weights is None:
            raise ConfigError("model.vit_model: names no weights, so the vision encoder would be a random one")
        path = weights_file(vision.weights)
        shapes, found = self._shapes(below=VISION), open_weights(path).under(VISION)
        position = f"{VISION}pos_embed"
        if position in found and found.shape(position) != shapes[position].shape:
            found |= Weights({position: self._interpolated(found.read(position))})
        return _fitting(found, shapes, str(path), foreign=True)

    def _interpolated(self, position: Tensor) -> Tensor:
        """The position embedding for the model's own image size, as LAVIS makes it when it loads one."""
        from lavis.models.eva_vit import interpolate_pos_embed

        state = {"pos_embed": position.float()}
        interpolate_pos_embed(self.model.visual_encoder, state)
        return state["pos_embed"]

    def llm_folder(self) -> Path:
        """The language model's folder; from the hub, if it is named so and isn't on this machine.

        Raises:
            ConfigError: There is none, or the model's section gives sizes alone.
        """
        source, key = self.model.spec.llm, f"model.{self.model.llm_key}"
        if not isinstance(source, str):
            raise ConfigError(f"{key}: gives sizes and no weights, so the language model would be a random one")
        if folder := local_folder(source):
            return folder
        return snapshot(source, key)

    def llm(self) -> Weights:
        """The language model, names as the model has them.

        Raises:
            ConfigError: As `llm_folder`.
            CheckpointError: They are another model's.
        """
        folder = self.llm_folder()
        found = open_weights(folder)
        # Whatever name a file has an embedding under: a plan reads it, and it carries the plan's.
        named = Weights({each.target: found.entries[each.sources[0]] for each in language_recipes(list(found))})
        shapes = self._shapes(below=self.llm_prefix)
        wanted = {recipe.target for recipe in language_recipes(list(plain_state(self.model.llm)))}
        own = named.under(self.llm_prefix)
        required = {key: value for key, value in shapes.items() if key.removeprefix(self.llm_prefix) in wanted}
        tied = f"{self.llm_prefix}lm_head.weight"
        if tied not in own and _is_tied(self.model.llm):
            required.pop(tied, None)
        # Rows are tokens, and InstructBLIP adds some.
        tokens = tuple(f"{self.llm_prefix}{name}" for name in EMBEDDINGS)
        return _fitting(own, required, str(folder), foreign=True, loose=tokens)

    def _shapes(self, below: str = "", besides: tuple[str, ...] = ()) -> dict[str, Tensor]:
        state = plain_state(self.model)
        own = {key: value for key, value in state.items() if key.startswith(below) and not is_unused(key)}
        return {key: value for key, value in own.items() if not (besides and key.startswith((*besides, "adalora.")))}


def _is_tied(llm: nn.Module) -> bool:
    head = llm.get_output_embeddings()
    return head is None or head.weight is llm.get_input_embeddings().weight


def _fitting(
    found: Weights, wanted: dict[str, Tensor], source: str, *, foreign: bool = False, loose: tuple[str, ...] = ()
) -> Weights:
    """The weights that a model has a place for, in the model's order.

    Args:
        found: What a file has.
        wanted: The model's own.
        source: The file's name in messages.
        foreign: It may have others.
        loose: Names that may be of another shape.
    """
    names = {key for key in found if not is_unused(key)}
    check_keys(list(wanted), wanted, [key for key in names if key in wanted] if foreign else names, source)
    shapes: dict[str, Any] = {key: torch.empty(found.shape(key), device="meta") for key in wanted if key not in loose}
    check_shapes(shapes, wanted, source)
    return Weights({key: found.entries[key] for key in wanted})
