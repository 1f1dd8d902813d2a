"""CLIP and SigLIP: two towers of one layout, with their own heads."""

from checkpoints.maps.family import Rules, under

LAYER = r"encoder\.layers\.(\d+)\."
BLOCK = r"stack/block_\1/"

BLOCKS: Rules = (
    (LAYER + r"layer_norm1", BLOCK + "attention_norm", "norm"),
    (LAYER + r"self_attn\.q_proj", BLOCK + "attention/query", "dense"),
    (LAYER + r"self_attn\.k_proj", BLOCK + "attention/key", "dense"),
    (LAYER + r"self_attn\.v_proj", BLOCK + "attention/value", "dense"),
    (LAYER + r"self_attn\.out_proj", BLOCK + "attention/out", "dense"),
    (LAYER + r"layer_norm2", BLOCK + "ffn_norm", "norm"),
    (LAYER + r"mlp\.fc1", BLOCK + "ffn/in", "dense"),
    (LAYER + r"mlp\.fc2", BLOCK + "ffn/out", "dense"),
    (r"embeddings\.position_ids", None, "any"),  # counts, kept by old releases
)
TEXT: Rules = (
    (r"embeddings\.token_embedding", "words", "table"),
    (r"embeddings\.position_embedding", "positions", "table"),
    *BLOCKS,
    (r"final_layer_norm", "norm", "norm"),
    (r"head", "projection", "dense"),  # SigLIP
)
IMAGE: Rules = (
    (r"embeddings\.class_embedding", "cls", "array"),
    (r"embeddings\.patch_embedding", "patches", "patch"),
    (r"embeddings\.position_embedding\.weight", "positions", "array"),
    (r"pre_layrnorm", "first_norm", "norm"),  # spelled so at the source
    *BLOCKS,
    (r"post_layernorm", "norm", "norm"),
    (r"head\.probe", "pool/query", "array"),
    (
        r"head\.attention\.in_proj",
        ("pool/attention/query", "pool/attention/key", "pool/attention/value"),
        "dense",
    ),
    (r"head\.attention\.out_proj", "pool/attention/out", "dense"),
    (r"head\.layernorm", "pool/norm", "norm"),
    (r"head\.mlp\.fc1", "pool/ffn/in", "dense"),
    (r"head\.mlp\.fc2", "pool/ffn/out", "dense"),
)
CONTRASTIVE: Rules = (
    *under(r"text_model\.", "text/", TEXT),
    *under(r"vision_model\.", "image/", IMAGE),
    (r"text_projection", "text/projection", "dense"),
    (r"visual_projection", "image/projection", "dense"),
    (r"logit_(scale|bias)", r"logit_\1", "array"),
)
