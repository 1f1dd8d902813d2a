"""Tables from published names to ours, one file a source family; data only."""

from checkpoints.maps.bert import BERT
from checkpoints.maps.contrastive import CONTRASTIVE
from checkpoints.maps.family import Rules
from checkpoints.maps.sound import AST, WAV2VEC2, WHISPER
from checkpoints.maps.t5 import T5
from checkpoints.maps.video import VIDEOMAE
from checkpoints.maps.vision import DINOV2, VIT

# The `model_type` of a config.json -> its table.
MAPS: dict[str, Rules] = {
    "audio-spectrogram-transformer": AST,
    "bert": BERT,
    "clip": CONTRASTIVE,
    "dinov2": DINOV2,
    "roberta": BERT,
    "siglip": CONTRASTIVE,
    "t5": T5,
    "videomae": VIDEOMAE,
    "vit": VIT,
    "wav2vec2": WAV2VEC2,
    "whisper": WHISPER,
    "xlm-roberta": BERT,
}
