"""InstructBLIP with adapters: vision encoder → Q-Former → projection → language model.

One base for both language-model families. It computes what LAVIS main's ``blip2_t5_instruct`` and
``blip2_vicuna_instruct`` compute (Dai et al. 2023, arXiv 2305.06500).

Shapes: B samples, T video frames (1 for an image), P image patches, Q query tokens, L tokens, D width of the LLM,
N candidates of all samples together.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lavis.models.blip2_models.blip2 import Blip2Base, LayerNorm, disabled_train
from omegaconf import OmegaConf
from torch import Tensor, nn

from lavis_peft.adapters import checkpoint, identity, inject
from lavis_peft.adapters.adalora import RankBudget
from lavis_peft.adapters.spec import AdaptersSpec
from lavis_peft.errors import CheckpointError, ConfigError
from lavis_peft.models import prompts
from lavis_peft.models.language import build_language_model, read_config
from lavis_peft.models.loading import load_base_weights
from lavis_peft.models.qformer import build_qformer, check_qformer, load_qformer_tokenizer
from lavis_peft.models.spec import ModelSpec, parse_model
from lavis_peft.models.vision import VisionSpec, build_vision_encoder

logger = logging.getLogger(__name__)


class Blip2InstructPeft(Blip2Base):
    """What both families share; subclasses say how their language model is fed.

    Args:
        spec: The checked `model` section.
        weights: False builds shapes only, for the meta device: nothing is read, and no tokenizer is needed.
    """

    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {}
    #: The model's arch in LAVIS's registry, its family, and its YAML key and attribute for the language model.
    arch: ClassVar[str]
    family: ClassVar[str]
    llm_key: ClassVar[str]
    projection_key: ClassVar[str]

    def __init__(self, spec: ModelSpec, *, model_type: str | None = None, weights: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.model_type = model_type
        self.prompt = spec.prompt
        self.max_txt_len = spec.max_txt_len
        self.max_output_txt_len = spec.max_output_txt_len
        # Everything that can be wrong without a weight being read comes first.
        vision = VisionSpec.parse(spec.vit_model)
        vision = vision if weights else replace(vision, weights=None)
        if problems := check_qformer(spec.qformer):
            raise ConfigError(problems)
        llm_config = read_config(spec.llm, self.family, f"model.{self.llm_key}", model_type)
        self.tokenizer = load_qformer_tokenizer(spec.qformer_tokenizer) if weights else None
        self.load_llm_tokenizers(weights=weights)
        llm_config = self.adjust_config(llm_config)

        self.visual_encoder = build_vision_encoder(
            vision,
            spec.image_size,
            drop_path_rate=spec.drop_path_rate,
            use_grad_checkpoint=spec.use_grad_checkpoint,
            precision=spec.vit_precision,
        )
        self.visual_encoder.requires_grad_(False).eval()
        self.visual_encoder.train = disabled_train.__get__(self.visual_encoder)
        self.ln_vision = LayerNorm(self.visual_encoder.num_features)
        vocab = len(self.tokenizer) if self.tokenizer is not None else None
        self.Qformer, self.query_tokens = build_qformer(spec, self.visual_encoder.num_features, vocab)
        llm = build_language_model(
            spec.llm, llm_config, self.family, str(spec.llm_precision), f"model.{self.llm_key}", weights=weights
        )
        llm = self.adjust_llm(llm, llm_config)
        setattr(self, self.llm_key, llm.requires_grad_(False))
        width = llm_config.d_model if self.family == "t5" else llm_config.hidden_size
        setattr(self, self.projection_key, nn.Linear(self.Qformer.config.hidden_size, width))
        #: The budget of `peft_type: ADALORA`.
        self.adalora: RankBudget | None = None

    # What a family says

    def adjust_config(self, config: Any) -> Any:
        """Change the language model's configuration the way InstructBLIP does."""
        return config

    def adjust_llm(self, llm: nn.Module, config: Any) -> nn.Module:
        """Change the built language model the way InstructBLIP does."""
        return llm

    def load_llm_tokenizers(self, *, weights: bool) -> None:
        """Set the language model's tokenizers."""
        raise NotImplementedError

    def language_loss(self, prefix: Tensor, mask: Tensor, samples: Mapping[str, Any]) -> Tensor:
        """Mean token loss of ``samples["text_output"]`` given the visual prefix (B, T·Q, D) and the instruction."""
        raise NotImplementedError

    def language_scores(self, prefix: Tensor, mask: Tensor, texts: list[str], candidates: list[list[str]]) -> Tensor:
        """Summed negative log-likelihood of each candidate, flat in sample order, shape (N,)."""
        raise NotImplementedError

    def language_generate(self, prefix: Tensor, mask: Tensor, texts: list[str], options: dict[str, Any]) -> list[str]:
        """Decode answers to the prefixes and instructions."""
        raise NotImplementedError

    # Parts

    @property
    def llm(self) -> nn.Module:
        """The language model, under whichever name LAVIS gives it."""
        return getattr(self, self.llm_key)

    @property
    def projection(self) -> nn.Linear:
        """The linear layer from the Q-Former's width to the language model's."""
        return getattr(self, self.projection_key)

    @property
    def adapters(self) -> AdaptersSpec:
        """What is tuned, as checked from the YAML."""
        return self.spec.adapters

    def adapter_parts(self) -> dict[str, nn.Module]:
        """The modules that adapters go into, by their YAML name."""
        return {"qformer": self.Qformer.bert, "llm": self.llm}

    def all_parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """Every part of the model by its name in reports, in the order data walks through them."""
        return {
            "vision": self.visual_encoder,
            "ln_vision": self.ln_vision,
            "query_tokens": self.query_tokens,
            "qformer": self.Qformer.bert,
            "projection": self.projection,
            "llm": self.llm,
        }

    def extra_parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """What the ``train`` list of the adapters section names."""
        return {"query_tokens": self.query_tokens, "projection": self.projection, "ln_vision": self.ln_vision}

    def apply_adapters(self) -> None:
        """Put the adapters in and decide what trains. Base weights must be loaded before."""
        families = {"qformer": "qformer", "llm": self.family}
        if self.adapters.llm.mode == "full":
            self.llm.float()  # AdamW's steps get lost in half precision, and a GradScaler refuses fp16 parameters
        inject.apply(self.adapters, self.adapter_parts(), families, self.extra_parts())
        self.adalora = inject.rank_budget(self.adapters, self.adapter_parts(), families)

    def maybe_autocast(self, dtype: torch.dtype = torch.float16) -> contextlib.AbstractContextManager:
        """LAVIS's autocast on a GPU; on a CPU only where weights are held in half precision."""
        device = self.device.type
        if device != "cpu":
            return torch.autocast(device, dtype=dtype)
        # By the weights, not by the YAML: LAVIS's load_model_and_preprocess casts a model for a CPU to float32.
        weights = (next(self.llm.parameters()), self.visual_encoder.blocks[0].attn.qkv.weight)
        half = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in weights)
        return torch.autocast("cpu", dtype=torch.bfloat16) if half else contextlib.nullcontext()

    # Forward

    def encode_images(self, image: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Visual prefix for the language model.

        Args:
            image: (B, 3, H, W), or (B, 3, T, H, W) for video, whose frames are encoded one by one.
            texts: The instruction of each sample, which the Q-Former reads.

        Returns:
            Embeddings (B, T·Q, D) and their attention mask (B, T·Q).
        """
        tokens = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=self.max_txt_len, return_tensors="pt"
        ).to(image.device)
        frames = image.unbind(dim=2) if image.dim() == 5 else [image]
        prefix = torch.cat([self._encode_frame(frame, tokens) for frame in frames], dim=1)
        return prefix, torch.ones(prefix.shape[:2], dtype=torch.long, device=image.device)

    def _encode_frame(self, frame: Tensor, tokens: Any) -> Tensor:
        with self.maybe_autocast():
            features = self.ln_vision(self.visual_encoder(frame))  # (B, P, width of the vision encoder)
        ones = torch.ones(features.shape[:2], dtype=torch.long, device=frame.device)
        queries = self.query_tokens.expand(frame.shape[0], -1, -1)  # (B, Q, width of the Q-Former)
        query_mask = torch.ones(queries.shape[:2], dtype=torch.long, device=frame.device)
        output = self.Qformer.bert(
            tokens.input_ids,
            attention_mask=torch.cat([query_mask, tokens.attention_mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=features,
            encoder_attention_mask=ones,
            return_dict=True,
        )
        return self.projection(output.last_hidden_state[:, : queries.shape[1]])  # (B, Q, D)

    def forward(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        """Training loss.

        Args:
            samples: ``image`` (B, 3, H, W), ``text_input`` and ``text_output``: B instructions and targets.

        Returns:
            ``{"loss": …}``, the mean over the targets' tokens; in training, AdaLoRA's orthogonality term is added.

        Raises:
            UserError: AdaLoRA is trained by a runner that doesn't allocate ranks.
        """
        budget = self.adalora if self.training and torch.is_grad_enabled() else None
        if budget is not None:
            budget.check_pass()
        prefix, mask = self.encode_images(samples["image"], samples["text_input"])
        loss = self.language_loss(prefix, mask, samples)
        return {"loss": loss if budget is None else loss + budget.penalty()}

    @torch.no_grad()
    def score_candidates(self, image: Tensor, texts: list[str], candidates: list[list[str]]) -> list[Tensor]:
        """Score each sample's own candidates; image and instruction are encoded once per sample.

        Args:
            image: (B, 3, H, W) or (B, 3, T, H, W).
            texts: B finished instructions.
            candidates: For each sample, the answers to choose from; numbers may differ.

        Returns:
            For each sample, the sum of token negative log-likelihoods of each of its candidates; lower is likelier.
        """
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
                ``ocr_tokens`` fill a ``{}`` in the prompt.
            max_length: Most tokens of an answer, counted as LAVIS counts: LLaMA's opening token is one of them.
        """
        image = samples["image"]
        texts = prompts.generation_prompts(samples, self.prompt, image.shape[0])
        prefix, mask = self.encode_images(image, texts)
        options = {
            "do_sample": use_nucleus_sampling,
            "num_beams": num_beams,
            "repetition_penalty": repetition_penalty,
            "length_penalty": length_penalty,
            "num_return_sequences": num_captions,
        }
        if use_nucleus_sampling:  # transformers warns about sampling settings that nothing uses
            options |= {"top_p": top_p, "temperature": temperature}
        return self.language_generate(prefix, mask, texts, options | self.length_options(max_length, min_length))

    def length_options(self, max_length: int, min_length: int) -> dict[str, int]:
        """LAVIS's bounds on an answer's length in the words of transformers' ``generate``."""
        raise NotImplementedError

    #: Default of ``predict_answers``' length penalty: −1 for T5, 0 for LLaMA (LAVIS main).
    answer_length_penalty: ClassVar[float]

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
        scores = self.score_candidates(image, prompts.class_prompts(samples, image.shape[0]), each)
        ranks = [torch.argsort(score) for score in scores]
        if len({len(rank) for rank in ranks}) == 1:
            return torch.stack(ranks)
        return [rank.tolist() for rank in ranks]

    # Loading

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load exactly what a checkpoint of this model holds.

        LAVIS saves what trains and loads it strictly on resume, or not strictly at all. Here every trained parameter
        must be there, whatever ``strict`` says, and nothing may be there that the model hasn't.

        Raises:
            CheckpointError: Names the keys that are missing, foreign or of another shape; nothing is loaded then.
        """
        required = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        own = super().state_dict()
        required += [key for key in own if key.endswith(checkpoint.EXTRA_STATE)]
        checkpoint.check_keys(required, own, state_dict)
        checkpoint.check_shapes(state_dict, own)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def load_checkpoint(self, url_or_filename: str) -> Any:
        """Load a checkpoint that a runner of this model wrote (path or URL), as data only.

        Raises:
            CheckpointError: It can't be read, or belongs to another model or adapter configuration.
        """
        found = checkpoint.read_checkpoint(url_or_filename)
        state = checkpoint.model_state(found, url_or_filename)
        if differ := identity.differences(found, self.arch, self.model_type or "", self.adapters):
            raise CheckpointError(f"{url_or_filename} belongs to another model: {'; '.join(differ)}")
        try:
            return self.load_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(f"{url_or_filename}: {error}") from error

    @classmethod
    def parse_config(cls, cfg: Any) -> ModelSpec:
        """The checked form of a `model` section (OmegaConf or plain mapping); nothing is loaded."""
        section = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else dict(cfg)
        return parse_model(section, family=cls.family, llm_key=cls.llm_key)

    @classmethod
    def from_config(cls, cfg: Any) -> "Blip2InstructPeft":
        """Build the model a run config describes: base weights, then adapters, then a finetuned checkpoint.

        Raises:
            ConfigError: Every problem of the section, before anything is loaded.
            CheckpointError: Weights that can't be read or belong to another model.
        """
        cls.on_meta(cfg)  # a sub-layer that matches nothing is found here, before a weight is read
        spec = cls.parse_config(cfg)
        model = cls(spec, model_type=cfg.get("model_type"))
        if spec.load_pretrained and spec.pretrained:
            load_base_weights(model, spec.pretrained)
        elif spec.qformer is None:
            logger.warning("no base weights are loaded (model.pretrained): the Q-Former starts from random weights")
        model.apply_adapters()
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
