"""The config.json of a published encoder as our modules. Numbers it leaves out are its family's."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from zoo.encoders.audio import SpectrogramTransformer, Wav2Vec2, WhisperEncoder
from zoo.encoders.blocks import ACTIVATIONS, EncoderStack
from zoo.encoders.image import VisionTransformer
from zoo.encoders.t5 import T5Stack
from zoo.encoders.t5_text import T5Text
from zoo.encoders.text import Bert, ContrastiveText
from zoo.encoders.video import VideoMAE

Config = Mapping[str, Any]
Towers = dict[str, Any]  # modality -> Linen module

TRANSFORMER = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
)
BERT = TRANSFORMER | dict(vocab_size=30522, max_position_embeddings=512, type_vocab_size=2)
ROBERTA = BERT | dict(vocab_size=50265, pad_token_id=1)
VIT = TRANSFORMER | dict(image_size=224, patch_size=16, num_channels=3, qkv_bias=True)
DINOV2 = VIT | dict(patch_size=14, layer_norm_eps=1e-6, mlp_ratio=4, use_swiglu_ffn=False)
CLIP = TRANSFORMER | dict(hidden_act="quick_gelu", layer_norm_eps=1e-5)
CLIP_TEXT = CLIP | dict(
    hidden_size=512,
    num_attention_heads=8,
    intermediate_size=2048,
    vocab_size=49408,
    max_position_embeddings=77,
    eos_token_id=49407,
)
CLIP_IMAGE = CLIP | dict(image_size=224, patch_size=32, num_channels=3)
AST = TRANSFORMER | dict(
    patch_size=16,
    frequency_stride=10,
    time_stride=10,
    max_length=1024,
    num_mel_bins=128,
)
VIDEOMAE = VIT | dict(num_frames=16, tubelet_size=2, qv_bias=True, use_mean_pooling=True)
WHISPER = dict(
    d_model=384,
    encoder_layers=4,
    encoder_attention_heads=6,
    encoder_ffn_dim=1536,
    activation_function="gelu",
    num_mel_bins=80,
    max_source_positions=1500,
)
WAV2VEC2 = TRANSFORMER | dict(
    layer_norm_eps=1e-5,
    conv_kernel=(10, 3, 3, 3, 3, 2, 2),
    conv_stride=(5, 2, 2, 2, 2, 2, 2),
    conv_dim=(512,) * 7,
    feat_extract_activation="gelu",
    num_conv_pos_embeddings=128,
    num_conv_pos_embedding_groups=16,
)
SIGLIP = TRANSFORMER | dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
T5 = dict(
    d_model=512,
    num_layers=6,
    num_heads=8,
    d_kv=64,
    d_ff=2048,
    vocab_size=32128,
    layer_norm_epsilon=1e-6,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
)
SIGLIP_TEXT = SIGLIP | dict(vocab_size=32000, max_position_embeddings=64)
SIGLIP_IMAGE = SIGLIP | dict(image_size=224, patch_size=16, num_channels=3, vision_use_head=True)


def towers(config: Config, head: bool = True, **stack: Any) -> Towers:
    """The modules of a config.json, by modality.

    Args:
      config: the parsed file.
      head: whether the weights have the pooler of BERT, RoBERTa or ViT, VideoMAE's fc_norm.
      stack: fields of EncoderStack: dtype, dropout, scan, remat.

    Raises ValueError for an architecture, or an option of one, that is not there.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} in config.json is not among {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type](config, head, stack)


def _stack(c: Config, extra: dict[str, Any], **fields: Any) -> EncoderStack:
    if c["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act {c['hidden_act']!r} in config.json is not among {sorted(ACTIVATIONS)}."
        )
    sizes = dict(
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        inner=c["intermediate_size"],
        activation=c["hidden_act"],
        epsilon=c["layer_norm_eps"],
    )
    return EncoderStack(**(sizes | fields | extra))


def _refuse(c: Config, **expected: Any) -> None:
    """Raise ValueError where the file asks for a variant that these modules do not have."""
    for name, value in expected.items():
        if c.get(name, value) != value:
            raise ValueError(
                f"{name}={c[name]!r} in config.json: only {value!r} is supported for "
                f"model_type {c.get('model_type')!r}."
            )


def _bert(config: Config, head: bool, extra: dict, default: Config, offset: bool) -> Towers:
    c = default | dict(config)
    _refuse(c, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    module = Bert(
        vocabulary=c["vocab_size"],
        positions=c["max_position_embeddings"],
        types=c["type_vocab_size"],
        width=c["hidden_size"],
        stack=_stack(c, extra, kind="post"),
        pad_id=c["pad_token_id"] if offset else None,
        pooler=head,
    )
    return {"text": module}


def _vit(config: Config, head: bool, extra: dict) -> Towers:
    c = VIT | dict(config)
    _refuse(
        c, num_channels=3, qkv_bias=True, pooler_act="tanh", pooler_output_size=c["hidden_size"]
    )
    return {"image": _image(c, _stack(c, extra), pooling="pooler" if head else "cls")}


def _dinov2(config: Config, head: bool, extra: dict) -> Towers:
    c = DINOV2 | dict(config)
    _refuse(c, num_channels=3, qkv_bias=True, use_swiglu_ffn=False)
    inner = int(c["hidden_size"] * c["mlp_ratio"])
    return {"image": _image(c, _stack(c, extra, inner=inner, layer_scale=True))}


def _image(c: Config, stack: EncoderStack, **fields: Any) -> VisionTransformer:
    return VisionTransformer(
        image=c["image_size"], patch=c["patch_size"], width=c["hidden_size"], stack=stack, **fields
    )


def _text(c: Config, stack: EncoderStack, **fields: Any) -> ContrastiveText:
    return ContrastiveText(
        vocabulary=c["vocab_size"],
        positions=c["max_position_embeddings"],
        width=c["hidden_size"],
        stack=stack,
        **fields,
    )


def _clip(config: Config, head: bool, extra: dict) -> Towers:
    t, v = CLIP_TEXT | dict(config["text_config"]), CLIP_IMAGE | dict(config["vision_config"])
    _refuse(v, num_channels=3)
    width = config.get("projection_dim", 512)
    # The first release wrote 2 for the end of text, which is not it: the largest id is.
    pooling = "largest" if t["eos_token_id"] == 2 else "eos"
    text = _text(t, _stack(t, extra), pooling=pooling, eos_id=t["eos_token_id"], projection=width)
    image = _image(
        v,
        _stack(v, extra),
        patch_bias=False,
        first_norm=True,
        tokens_normed=False,
        projection=width,
    )
    return {"text": text, "image": image}


def _siglip(config: Config, head: bool, extra: dict) -> Towers:
    t, v = SIGLIP_TEXT | dict(config["text_config"]), SIGLIP_IMAGE | dict(config["vision_config"])
    _refuse(v, num_channels=3, vision_use_head=True)
    width = t.get("projection_size", t["hidden_size"])
    text = _text(
        t,
        _stack(t, extra),
        causal=False,
        pooling="last",
        projection=width,
        projection_bias=True,
    )
    image = _image(v, _stack(v, extra), class_token=False, pooling="attention")
    return {"text": text, "image": image}


def _t5(config: Config, head: bool, extra: dict) -> Towers:
    c = T5 | dict(config)
    _refuse(c, feed_forward_proj="relu", is_gated_act=False)
    if extra.get("scan") or extra.get("remat"):
        raise ValueError("scan and remat are not fields of T5's stack: leave them out.")
    sizes = (c["num_layers"], c["num_heads"], c["d_kv"], c["d_model"], c["d_ff"])
    stack = T5Stack(
        *sizes,
        dropout=extra.get("dropout", 0.0),
        epsilon=c["layer_norm_epsilon"],
        buckets=c["relative_attention_num_buckets"],
        furthest=c["relative_attention_max_distance"],
        dtype=extra.get("dtype", jnp.float32),
    )
    return {"text": T5Text(c["vocab_size"], c["d_model"], stack)}


def _ast(config: Config, head: bool, extra: dict) -> Towers:
    c = AST | dict(config)
    _refuse(c, qkv_bias=True)
    module = SpectrogramTransformer(
        frames=c["max_length"],
        bands=c["num_mel_bins"],
        patch=c["patch_size"],
        stride=(c["frequency_stride"], c["time_stride"]),
        width=c["hidden_size"],
        stack=_stack(c, extra),
    )
    return {"audio": module}


def _whisper(config: Config, head: bool, extra: dict) -> Towers:
    c = WHISPER | dict(config)
    _refuse(c, scale_embedding=False)
    sizes = dict(
        num_hidden_layers=c["encoder_layers"],
        num_attention_heads=c["encoder_attention_heads"],
        intermediate_size=c["encoder_ffn_dim"],
        hidden_act=c["activation_function"],
        layer_norm_eps=1e-5,
    )
    module = WhisperEncoder(
        positions=c["max_source_positions"],
        bands=c["num_mel_bins"],
        width=c["d_model"],
        activation=c["activation_function"],
        stack=_stack(sizes, extra),
    )
    return {"audio": module}


def _wav2vec2(config: Config, head: bool, extra: dict) -> Towers:
    c = WAV2VEC2 | dict(config)
    _refuse(c, feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False)
    _refuse(c, add_adapter=False, feat_extract_activation=c["hidden_act"])
    module = Wav2Vec2(
        kernels=tuple(c["conv_kernel"]),
        strides=tuple(c["conv_stride"]),
        channels=tuple(c["conv_dim"]),
        activation=c["hidden_act"],
        position_kernel=c["num_conv_pos_embeddings"],
        position_groups=c["num_conv_pos_embedding_groups"],
        width=c["hidden_size"],
        stack=_stack(c, extra, kind="post"),
    )
    return {"audio": module}


def _videomae(config: Config, head: bool, extra: dict) -> Towers:
    c = VIDEOMAE | dict(config)
    _refuse(c, num_channels=3, qv_bias=True)
    module = VideoMAE(
        frames=c["num_frames"],
        image=c["image_size"],
        patch=c["patch_size"],
        tube=c["tubelet_size"],
        width=c["hidden_size"],
        stack=_stack(c, extra),
        norm=not c["use_mean_pooling"],
        mean_norm=head,
    )
    return {"video": module}


FAMILIES: dict[str, Callable[[Config, bool, dict], Towers]] = {
    "audio-spectrogram-transformer": _ast,
    "bert": lambda c, head, extra: _bert(c, head, extra, BERT, offset=False),
    "clip": _clip,
    "dinov2": _dinov2,
    "roberta": lambda c, head, extra: _bert(c, head, extra, ROBERTA, offset=True),
    "siglip": _siglip,
    "t5": _t5,
    "videomae": _videomae,
    "vit": _vit,
    "wav2vec2": _wav2vec2,
    "whisper": _whisper,
    "xlm-roberta": lambda c, head, extra: _bert(c, head, extra, ROBERTA, offset=True),
}
