"""transformers' own InstructBLIP with peft, at the same sizes and with the same adapters."""

from typing import Any

import torch
from torch import Tensor, nn

from lavis_peft.bench.contender import GENERATION, mixed_precision, optimizer_of, step
from lavis_peft.bench.work import Work
from lavis_peft.models.language import PRECISIONS, untied
from lavis_peft.models.shapes import QFORMER

#: The Q-Former's linear layers that `sublayers: [self_attention, cross_attention, ffn]` names, by transformers' names.
_TARGETS = (
    r".*qformer\.encoder\.layer\.\d+\.("
    r"attention\.attention\.(query|value)|"
    r"crossattention\.(attention\.(query|key|value)|output\.dense)|"
    r"(intermediate|intermediate_query|output|output_query)\.dense)"
)
_TRAINED = ("query_tokens", "language_projection", "post_layernorm")
_IGNORE = -100


def missing() -> str | None:
    """Why this contender can't take part, or None."""
    import transformers

    if not hasattr(transformers, "InstructBlipForConditionalGeneration"):
        return f"transformers {transformers.__version__} has no InstructBLIP"
    config = transformers.InstructBlipConfig()
    if not hasattr(config, "image_token_id") and not hasattr(config, "image_token_index"):
        return (
            f"transformers {transformers.__version__}: its InstructBLIP takes no adapter on its Q-Former through peft"
        )
    return None


class HuggingFace:
    """Built by its own classes at the sizes of a `model` section.

    Args:
        section: The same `model` section that the plugin is given.
        ours: The plugin's model, for its tokenizers and for how it counts an answer's length.
        device: Where it runs.
    """

    def __init__(self, section: dict[str, Any], ours: Any, device: str) -> None:
        import transformers
        from peft import LoraConfig, get_peft_model

        self.t5 = "t5_model" in section
        self.bert, self.text = ours.tokenizer, ours.t5_tokenizer if self.t5 else ours.llm_tokenizer
        lengths = ours.length_options(GENERATION["max_length"], GENERATION["min_length"])
        self.options = {key: value for key, value in GENERATION.items() if key not in ("max_length", "min_length")}
        self.options |= lengths
        # The picture's placeholders are a word that no text has.
        self.image_token = len(self.text)
        self.queries = section["num_query_token"]
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(PRECISIONS[section["llm_precision"]])
        try:
            with torch.device(device):
                model = transformers.InstructBlipForConditionalGeneration(self._config(section))
        finally:
            torch.set_default_dtype(before)
        if self.t5:
            untied(model.language_model)
        adapter = section["adapters"]["qformer"]
        config = LoraConfig(r=adapter["r"], lora_alpha=adapter["lora_alpha"], target_modules=_TARGETS)
        self.model: nn.Module = get_peft_model(model, config)
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in _TRAINED):
                parameter.requires_grad_(True)
            # As the plugin: half precision for what is frozen in the big parts, float32 for Q-Former and what trains.
            if parameter.requires_grad or ".qformer." in name:
                parameter.data = parameter.data.float()
        self.mixed = mixed_precision(section, device)
        self.optimizer = optimizer_of(self.model)

    def _config(self, section: dict[str, Any]) -> Any:
        import transformers

        vit, qformer = section["vit_model"], {**QFORMER, **section["qformer"]}
        llm = {**section["t5_model" if self.t5 else "llm_model"]}
        llm["vocab_size"] = max(llm["vocab_size"], self.image_token + 1)
        text = transformers.T5Config(**llm, dense_act_fn="gelu") if self.t5 else transformers.LlamaConfig(**llm)
        return transformers.InstructBlipConfig(
            vision_config=transformers.InstructBlipVisionConfig(
                hidden_size=vit["embed_dim"],
                intermediate_size=int(vit["embed_dim"] * vit["mlp_ratio"]),
                num_hidden_layers=vit["depth"],
                num_attention_heads=vit["num_heads"],
                image_size=section["image_size"],
                patch_size=vit["patch_size"],
            ).to_dict(),
            qformer_config=transformers.InstructBlipQFormerConfig(
                **{**qformer, "vocab_size": len(self.bert)}, encoder_hidden_size=vit["embed_dim"]
            ).to_dict(),
            text_config=text.to_dict(),
            num_query_tokens=section["num_query_token"],
            image_token_id=self.image_token,
            image_token_index=self.image_token,
        )

    def _inputs(self, work: Work, answers: bool) -> dict[str, Tensor]:
        device = work.image.device
        tokenizer = self.text
        bert = self.bert(work.prompts, padding="longest", return_tensors="pt").to(device)
        tokenizer.padding_side = "right" if answers or self.t5 else "left"
        texts = work.prompts
        if answers and not self.t5:
            ends = [f" {target} {tokenizer.eos_token}" for target in work.targets]
            texts = [prompt + end for prompt, end in zip(texts, ends, strict=True)]
        tokens = tokenizer(texts, padding="longest", return_tensors="pt").to(device)
        picture = torch.full((len(texts), self.queries), self.image_token, device=device)
        found = {
            "pixel_values": work.image,
            "qformer_input_ids": bert.input_ids,
            "qformer_attention_mask": bert.attention_mask,
            "input_ids": torch.cat([picture, tokens.input_ids], dim=1),
            "attention_mask": torch.cat([torch.ones_like(picture), tokens.attention_mask], dim=1),
        }
        if answers:
            found["labels"] = self._labels(work, found)
        return found

    def _labels(self, work: Work, inputs: dict[str, Tensor]) -> Tensor:
        if self.t5:
            targets = self.text(work.targets, padding="longest", return_tensors="pt").to(work.image.device)
            return targets.input_ids.masked_fill(targets.attention_mask == 0, _IGNORE)
        prompts = torch.tensor([len(self.text(text).input_ids) for text in work.prompts], device=work.image.device)
        place = torch.arange(inputs["input_ids"].shape[1], device=work.image.device)
        asked = place < self.queries + prompts[:, None]
        return inputs["input_ids"].masked_fill(asked | (inputs["attention_mask"] == 0), _IGNORE)

    def train(self, work: Work) -> float:
        """One optimizer step."""
        self.model.train()
        with self.mixed:
            loss = self.model(**self._inputs(work, answers=True)).loss
        return step(self.model, self.optimizer, loss)

    @torch.no_grad()
    def generate(self, work: Work) -> list[str]:
        """The whole batch at once."""
        with self.mixed:
            ids = self.model.eval().generate(**self._inputs(work, answers=False), **self.options)
        return self.text.batch_decode(ids, skip_special_tokens=True)
