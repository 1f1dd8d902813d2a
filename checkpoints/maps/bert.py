"""BERT, MiniLM, RoBERTa and XLM-RoBERTa, with or without the heads of their pretraining."""

from checkpoints.maps.family import Rules, under

LAYER = r"encoder\.layer\.(\d+)\."
BLOCK = r"stack/block_\1/"

ENCODER: Rules = (
    (r"embeddings\.word_embeddings", "words", "table"),
    (r"embeddings\.position_embeddings", "positions", "table"),
    (r"embeddings\.token_type_embeddings", "types", "table"),
    (r"embeddings\.LayerNorm", "norm", "norm"),
    (LAYER + r"attention\.self\.(query|key|value)", BLOCK + r"attention/\2", "dense"),
    (LAYER + r"attention\.output\.dense", BLOCK + "attention/out", "dense"),
    (LAYER + r"attention\.output\.LayerNorm", BLOCK + "attention_norm", "norm"),
    (LAYER + r"intermediate\.dense", BLOCK + "ffn/in", "dense"),
    (LAYER + r"output\.dense", BLOCK + "ffn/out", "dense"),
    (LAYER + r"output\.LayerNorm", BLOCK + "ffn_norm", "norm"),
    (r"pooler\.dense", "pooler", "dense"),
    (r"embeddings\.(position_ids|token_type_ids)", None, "any"),  # counts, kept by old releases
)
HEADS: Rules = (
    (r"cls\..*", None, "any"),  # masked words and next sentence
    (r"lm_head\..*", None, "any"),
)
BERT: Rules = under(r"(?:bert\.|roberta\.)?", "text/", ENCODER) + HEADS
