"""InstructBLIP with adapters: vision encoder → Q-Former → projection → language model.

One base for both language-model families. It computes what LAVIS main's ``blip2_t5_instruct`` and
``blip2_vicuna_instruct`` compute (Dai et al. 2023, arXiv 2305.06500).

Shapes: B samples, T video frames (1 for an image), P image patches, Q query tokens, L tokens, D width of the LLM,
N candidates of all samples together.
"""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from lavis.models.blip2_models.blip2 import LayerNorm, disabled_train
from omegaconf import OmegaConf
from torch import Tensor, nn

from lavis_peft.adapters import inject
from lavis_peft.adapters.adalora import RankBudget
from lavis_peft.adapters.spec import AdaptersSpec
from lavis_peft.errors import ConfigError
from lavis_peft.models.answering import Answering
from lavis_peft.models.attention import fuse_qformer, fuse_vision
from lavis_peft.models.encoding import Encoding
from lavis_peft.models.language import build_language_model, read_config
from lavis_peft.models.linear import quicken
from lavis_peft.models.loading import Checkpointed, load_base_weights
from lavis_peft.models.machine import fused_llm, machine_problems, save_memory
from lavis_peft.models.parking import park, watch
from lavis_peft.models.parts import Parts
from lavis_peft.models.qformer import build_qformer, check_qformer, load_qformer_tokenizer
from lavis_peft.models.spec import ModelSpec, local_folder, parse_model
from lavis_peft.models.tokens import TokenCache
from lavis_peft.models.vision import VisionSpec, build_vision_encoder

logger = logging.getLogger(__name__)


class Blip2InstructPeft(Encoding, Answering, Parts, Checkpointed):
    """What both families share; subclasses say how their language model is fed.

    Args:
        spec: The checked `model` section.
        weights: False builds shapes only, for the meta device: nothing is read, and no tokenizer is needed.
        base_follows: Leave on the meta device what `load_base_weights` will put in place, so that it is allocated once.
        vision_later: Leave the vision encoder's weights unread, if they are in a file, until a picture is encoded.
    """

    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {}
    #: The model's arch in LAVIS's registry, its family, and its YAML key and attribute for the language model.
    arch: ClassVar[str]
    family: ClassVar[str]
    llm_key: ClassVar[str]
    projection_key: ClassVar[str]
    #: The Q-Former's tokenizer; None where only shapes are built.
    tokenizer: Any

    def __init__(
        self,
        spec: ModelSpec,
        *,
        model_type: str | None = None,
        weights: bool = True,
        base_follows: bool = False,
        vision_later: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.token_cache = TokenCache()
        self.model_type = model_type
        self.prompt = spec.prompt
        self.max_txt_len = spec.max_txt_len
        self.max_output_txt_len = spec.max_output_txt_len
        # Everything that can be wrong without a weight being read comes first.
        vision = VisionSpec.parse(spec.vit_model)
        vision = vision if weights else replace(vision, weights=None)
        if problems := [*check_qformer(spec.qformer), *(machine_problems(spec) if weights else [])]:
            raise ConfigError(problems)
        llm_config = read_config(spec.llm, self.family, f"model.{self.llm_key}", model_type)
        # For shapes alone, tokenizers only say how many tokens there are; they are read where that takes no download.
        local = local_folder(spec.qformer_tokenizer) is not None
        self.tokenizer = load_qformer_tokenizer(spec.qformer_tokenizer) if weights or local else None
        if weights or local_folder(spec.llm_tokenizer or spec.llm) is not None:
            self.load_llm_tokenizers()
        llm_config = self.adjust_config(llm_config)
        if not weights:
            llm_config = self.shape_config(llm_config)

        self.visual_encoder = build_vision_encoder(
            vision,
            spec.image_size,
            drop_path_rate=spec.drop_path_rate,
            use_grad_checkpoint=spec.use_grad_checkpoint,
            precision=spec.vit_precision,
            later=vision_later,
        )
        watch(self.visual_encoder)
        if vision_later and self.visual_encoder.source is not None:
            park(self.visual_encoder)
        self.visual_encoder.requires_grad_(False).eval()
        self.visual_encoder.train = partial(disabled_train, self.visual_encoder)  # a bound method couldn't be unpickled
        vocab = len(self.tokenizer) if self.tokenizer is not None else None
        width = llm_config.d_model if self.family == "t5" else llm_config.hidden_size
        with torch.device("meta") if base_follows else contextlib.nullcontext():
            self.ln_vision = LayerNorm(self.visual_encoder.num_features)
            self.Qformer, self.query_tokens = build_qformer(spec, self.visual_encoder.num_features, vocab)
            setattr(self, self.projection_key, nn.Linear(self.Qformer.config.hidden_size, width))
        if not fused_llm(spec) and hasattr(llm_config, "_attn_implementation"):
            llm_config._attn_implementation = "eager"  # otherwise transformers takes the fused one where it has it
        llm = build_language_model(
            spec.llm,
            llm_config,
            self.family,
            str(spec.llm_precision),
            f"model.{self.llm_key}",
            weights=weights,
            load_in=spec.llm_load_in,
        )
        if weights:
            llm = self.adjust_llm(llm)
        setattr(self, self.llm_key, llm.requires_grad_(False))
        if spec.kernels == "fast":
            fuse_vision(self.visual_encoder)
            fuse_qformer(self.Qformer.bert)
        #: The budget of `peft_type: ADALORA`.
        self.adalora: RankBudget | None = None

    # What a family says

    def tokenizer_source(self) -> tuple[str, str]:
        """Where the language model's tokenizer is, and the key that says so."""
        if self.spec.llm_tokenizer:
            return self.spec.llm_tokenizer, "model.llm_tokenizer"
        return str(self.spec.llm), f"model.{self.llm_key}"

    def adjust_config(self, config: Any) -> Any:
        """Change the language model's configuration the way InstructBLIP does."""
        return config

    def shape_config(self, config: Any) -> Any:
        """Where only shapes are built: give the configuration what ``adjust_llm`` gives the built model."""
        return config

    def adjust_llm(self, llm: nn.Module) -> nn.Module:
        """Change the built language model the way InstructBLIP does."""
        return llm

    def load_llm_tokenizers(self) -> None:
        """Set the language model's tokenizers."""
        raise NotImplementedError

    def language_loss(self, prefix: Tensor, mask: Tensor, samples: Mapping[str, Any]) -> Tensor:
        """Mean token loss of ``samples["text_output"]`` given the visual prefix (B, T·Q, D) and the instruction."""
        raise NotImplementedError

    @property
    def adapters(self) -> AdaptersSpec:  # type: ignore[override]  # declared as an attribute for the mixin
        """What is tuned, as checked from the YAML."""
        return self.spec.adapters

    def apply_adapters(self) -> None:
        """Put the adapters in and decide what trains. Base weights must be loaded before."""
        families = {"qformer": "qformer", "llm": self.family}
        if self.adapters.llm.mode == "full":
            self.llm.float()  # AdamW's steps get lost in half precision, and a GradScaler refuses fp16 parameters
        loaded = bool(self.spec.load_finetuned)
        inject.apply(self.adapters, self.adapter_parts(), families, self.extra_parts(), loaded=loaded)
        if self.spec.kernels == "fast":
            quicken(self)  # the adapters' own linear layers, too
        self.adalora = inject.rank_budget(self.adapters, self.adapter_parts(), families)

    # Forward

    def forward(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        """Training loss.

        Args:
            samples: ``image`` (B, 3, H, W), or features in its place as `encode_images` takes them; ``text_input`` and
                ``text_output``: B instructions and targets; in evaluation ``adapter`` may name each sample's adapter.

        Returns:
            ``{"loss": …}``, the mean over the targets' tokens; in training, AdaLoRA's orthogonality term is added.

        Raises:
            UserError: AdaLoRA is trained by a runner that doesn't allocate ranks.
        """
        budget = self.adalora if self.training and torch.is_grad_enabled() else None
        if budget is not None:
            budget.check_pass()
        with self.using(samples.get("adapter")):
            prefix, mask = self.encode_images(samples["image"], samples["text_input"])
            loss = self.language_loss(prefix, mask, samples)
        return {"loss": loss if budget is None else loss + budget.penalty()}

    # Loading

    @classmethod
    def parse_config(cls, cfg: Any) -> ModelSpec:
        """The checked form of a `model` section (OmegaConf or plain mapping); nothing is loaded."""
        section = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else dict(cfg)
        return parse_model(section, family=cls.family, llm_key=cls.llm_key)

    @classmethod
    def from_config(cls, cfg: Any, vision_later: bool = False) -> "Blip2InstructPeft":
        """Build the model a run config describes: base weights, then adapters, then a finetuned checkpoint.

        Args:
            cfg: Its `model` section.
            vision_later: As the constructor's.

        Raises:
            ConfigError: Every problem of the section, before anything is loaded.
            CheckpointError: Weights that can't be read or belong to another model.
        """
        cls.on_meta(cfg)  # a sub-layer that matches nothing is found here, before a weight is read
        spec = cls.parse_config(cfg)
        based = bool(spec.load_pretrained and spec.pretrained)
        model = cls(spec, model_type=cfg.get("model_type"), base_follows=based, vision_later=vision_later)
        if based:
            load_base_weights(model, spec.pretrained)
        elif spec.qformer is None:
            logger.warning("no base weights are loaded (model.pretrained): the Q-Former starts from random weights")
        model.apply_adapters()
        save_memory(model, spec)
        if spec.load_finetuned:
            model.load_checkpoint(spec.finetuned)
        return model

    @classmethod
    def on_meta(cls, cfg: Any) -> "Blip2InstructPeft":
        """The model's shape without weights: nothing is read, downloaded or allocated."""
        with torch.device("meta"):
            model = cls(cls.parse_config(cfg), model_type=cfg.get("model_type"), weights=False)
            model.apply_adapters()
        return model
