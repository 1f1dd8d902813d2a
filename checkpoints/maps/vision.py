"""ViT and DINOv2: one layout, other names inside a block."""

from checkpoints.maps.family import Rules, under

LAYER = r"encoder\.layer\.(\d+)\."
BLOCK = r"stack/block_\1/"

SHARED: Rules = (
    (r"embeddings\.cls_token", "cls", "array"),
    (r"embeddings\.position_embeddings", "positions", "array"),
    (r"embeddings\.patch_embeddings\.projection", "patches", "patch"),
    (LAYER + r"attention\.attention\.(query|key|value)", BLOCK + r"attention/\2", "dense"),
    (LAYER + r"attention\.output\.dense", BLOCK + "attention/out", "dense"),
    (r"layernorm", "norm", "norm"),
    (r"embeddings\.mask_token", None, "any"),  # stands for hidden patches in pretraining
)
VIT_BLOCKS: Rules = (
    (LAYER + r"layernorm_before", BLOCK + "attention_norm", "norm"),
    (LAYER + r"layernorm_after", BLOCK + "ffn_norm", "norm"),
    (LAYER + r"intermediate\.dense", BLOCK + "ffn/in", "dense"),
    (LAYER + r"output\.dense", BLOCK + "ffn/out", "dense"),
    (r"pooler\.dense", "pooler", "dense"),
)
DINO_BLOCKS: Rules = (
    (LAYER + r"norm1", BLOCK + "attention_norm", "norm"),
    (LAYER + r"norm2", BLOCK + "ffn_norm", "norm"),
    (LAYER + r"mlp\.fc1", BLOCK + "ffn/in", "dense"),
    (LAYER + r"mlp\.fc2", BLOCK + "ffn/out", "dense"),
    (LAYER + r"layer_scale1\.lambda1", BLOCK + "attention_scale", "array"),
    (LAYER + r"layer_scale2\.lambda1", BLOCK + "ffn_scale", "array"),
)
CLASSIFIER: Rules = ((r"classifier\..*", None, "any"),)
VIT: Rules = under(r"(?:vit\.)?", "image/", SHARED + VIT_BLOCKS) + CLASSIFIER
DINOV2: Rules = under(r"(?:dinov2\.)?", "image/", SHARED + DINO_BLOCKS) + CLASSIFIER
