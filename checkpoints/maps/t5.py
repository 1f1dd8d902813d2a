"""The encoder of T5 with one feed-forward matrix in (v1.0); the decoder is left out."""

from checkpoints.maps.family import Rules

LAYER = r"encoder\.block\.(\d+)\.layer\."
BLOCK = r"text/stack/block_\1/"

T5: Rules = (
    (r"shared", "text/words", "table"),
    (
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias",
        "text/stack/relative",
        "table",
    ),
    (LAYER + r"0\.SelfAttention\.q", BLOCK + "attention/query", "dense"),
    (LAYER + r"0\.SelfAttention\.k", BLOCK + "attention/key", "dense"),
    (LAYER + r"0\.SelfAttention\.v", BLOCK + "attention/value", "dense"),
    (LAYER + r"0\.SelfAttention\.o", BLOCK + "attention/out", "dense"),
    (LAYER + r"0\.layer_norm", BLOCK + "attention_norm", "norm"),
    (LAYER + r"1\.DenseReluDense\.wi", BLOCK + "ffn_in", "dense"),
    (LAYER + r"1\.DenseReluDense\.wo", BLOCK + "ffn_out", "dense"),
    (LAYER + r"1\.layer_norm", BLOCK + "ffn_norm", "norm"),
    (r"encoder\.final_layer_norm", "text/stack/norm", "norm"),
    (r"encoder\.embed_tokens\.weight", None, "any"),  # the shared words once more
    (r"(decoder|lm_head)\..*", None, "any"),
)
