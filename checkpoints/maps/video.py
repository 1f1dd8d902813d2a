"""VideoMAE: a ViT whose keys have no bias, and whose biases of queries and values stand apart."""

from checkpoints.maps.family import Rules, under
from checkpoints.maps.vision import CLASSIFIER, SHARED, VIT_BLOCKS

ATTENTION = r"encoder\.layer\.(\d+)\.attention\.attention\."
BLOCK = r"stack/block_\1/"

APART: Rules = (
    (ATTENTION + r"q_bias", BLOCK + "attention/query/bias", "array"),
    (ATTENTION + r"v_bias", BLOCK + "attention/value/bias", "array"),
)
VIDEOMAE: Rules = (
    *under(r"(?:videomae\.)?", "video/", APART + SHARED + VIT_BLOCKS),
    (r"fc_norm", "video/mean_norm", "norm"),
    *CLASSIFIER,
    (r"(decoder|encoder_to_decoder)\..*", None, "any"),  # paints the hidden tubes in pretraining
    (r"mask_token|position_embeddings", None, "any"),
    ("", r"video/stack/.*/attention/key/bias", "zeros"),  # the source has none: the same
)
