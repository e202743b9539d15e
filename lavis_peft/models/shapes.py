"""Published shapes of the models that InstructBLIP is built from, so that nothing need be downloaded to count them.

The figures are those of the models' own ``config.json`` on the Hugging Face hub.
"""

from typing import Any

_FLAN_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "d_kv": 64,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}

_VICUNA: dict[str, Any] = {"vocab_size": 32000, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}

#: Language models by the name or the model type that LAVIS uses.
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "google/flan-t5-xl": {**_FLAN_T5, "d_model": 2048, "d_ff": 5120, "num_heads": 32},
    "google/flan-t5-xxl": {**_FLAN_T5, "d_model": 4096, "d_ff": 10240, "num_heads": 64},
    "vicuna7b": {
        **_VICUNA,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "vicuna13b": {
        **_VICUNA,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}

#: The Q-Former's trunk: bert-base-uncased, plus the [DEC] token in its vocabulary.
QFORMER: dict[str, Any] = {
    "vocab_size": 30523,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
