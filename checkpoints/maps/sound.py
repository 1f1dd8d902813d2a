"""AST, which is a ViT inside, and the encoder of Whisper."""

from checkpoints.maps.family import Rules, under
from checkpoints.maps.vision import CLASSIFIER, SHARED, VIT_BLOCKS

LAYER = r"layers\.(\d+)\."
BLOCK = r"stack/block_\1/"

AST: Rules = (
    *under(r"(?:audio_spectrogram_transformer\.)?", "audio/", SHARED + VIT_BLOCKS),
    (
        r"(?:audio_spectrogram_transformer\.)?embeddings\.distillation_token",
        "audio/distillation",
        "array",
    ),
    *CLASSIFIER,
)
ENCODER: Rules = (
    (r"conv([12])", r"convolution_\1", "patch"),
    (r"embed_positions\.weight", "positions", "array"),
    (LAYER + r"self_attn_layer_norm", BLOCK + "attention_norm", "norm"),
    (LAYER + r"self_attn\.q_proj", BLOCK + "attention/query", "dense"),
    (LAYER + r"self_attn\.k_proj", BLOCK + "attention/key", "dense"),
    (LAYER + r"self_attn\.v_proj", BLOCK + "attention/value", "dense"),
    (LAYER + r"self_attn\.out_proj", BLOCK + "attention/out", "dense"),
    (LAYER + r"final_layer_norm", BLOCK + "ffn_norm", "norm"),
    (LAYER + r"fc1", BLOCK + "ffn/in", "dense"),
    (LAYER + r"fc2", BLOCK + "ffn/out", "dense"),
    (r"layer_norm", "norm", "norm"),
)
WHISPER: Rules = (
    *under(r"(?:model\.)?encoder\.", "audio/", ENCODER),
    (r"(?:model\.)?decoder\..*", None, "any"),  # writes the words
    (r"proj_out\..*", None, "any"),
    ("", r"audio/stack/.*/attention/key/bias", "zeros"),  # the source has none: the same
)
