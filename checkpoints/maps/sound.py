"""AST, which is a ViT inside, the encoder of Whisper, and Wav2Vec2."""

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
POSITIONS = r"encoder\.pos_conv_embed\.conv\."
WAVE: Rules = (
    (r"feature_extractor\.conv_layers\.(\d+)\.conv", r"convolution_\1", "patch"),
    (r"feature_extractor\.conv_layers\.0\.layer_norm", "time_norm", "norm"),
    (r"feature_projection\.layer_norm", "features_norm", "norm"),
    (r"feature_projection\.projection", "projection", "dense"),
    # the weight's length and direction under their new and old names
    (POSITIONS + r"(?:parametrizations\.weight\.original0|weight_g)", "position_length", "array"),
    (
        POSITIONS + r"(?:parametrizations\.weight\.original1|weight_v)",
        "position_direction",
        "array",
    ),
    (POSITIONS + r"bias", "position_bias", "array"),
    (r"encoder\.layer_norm", "norm", "norm"),
    (r"encoder\." + LAYER + r"attention\.q_proj", BLOCK + "attention/query", "dense"),
    (r"encoder\." + LAYER + r"attention\.k_proj", BLOCK + "attention/key", "dense"),
    (r"encoder\." + LAYER + r"attention\.v_proj", BLOCK + "attention/value", "dense"),
    (r"encoder\." + LAYER + r"attention\.out_proj", BLOCK + "attention/out", "dense"),
    (r"encoder\." + LAYER + r"layer_norm", BLOCK + "attention_norm", "norm"),
    (r"encoder\." + LAYER + r"feed_forward\.intermediate_dense", BLOCK + "ffn/in", "dense"),
    (r"encoder\." + LAYER + r"feed_forward\.output_dense", BLOCK + "ffn/out", "dense"),
    (r"encoder\." + LAYER + r"final_layer_norm", BLOCK + "ffn_norm", "norm"),
    (r"masked_spec_embed", None, "any"),  # stands for hidden frames in pretraining
)
WAV2VEC2: Rules = (
    *under(r"(?:wav2vec2\.)?", "audio/", WAVE),
    (r"(lm_head|quantizer|project_hid|project_q)\..*", None, "any"),
)
