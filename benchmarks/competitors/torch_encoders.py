"""Encoders in PyTorch: texts through Sentence Transformers, pictures through a ViT.

text-<batch>: every text of --texts; image-<batch>: as many pictures as --pictures holds. What a
work gives is kept beside its input, as <name>.torch.npy.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from turns import serve

BATCHES = (2, 4, 8, 16, 32, 64)
VIT = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}


def vit(folder: Path) -> transformers.ViTModel:
    """A ViT-S/16 of random weights, written where the zoo reads it."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**VIT, intermediate_size=1536)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    works = texts(args) if args.texts else pictures(args)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    serve(works, {"versions": versions})


def texts(args: argparse.Namespace) -> dict:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(args.encoder), device="cpu", local_files_only=True)
    said = json.loads(args.texts.read_text())

    def work(batch: int) -> None:
        made = model.encode(said, batch_size=batch, show_progress_bar=False)
        np.save(args.texts.with_suffix(".torch.npy"), made)

    return {f"text-{batch}": lambda batch=batch: work(batch) for batch in BATCHES}


def pictures(args: argparse.Namespace) -> dict:
    model = vit(args.encoder)
    x = torch.from_numpy(np.load(args.pictures)).permute(0, 3, 1, 2).contiguous()

    @torch.inference_mode()
    def work(batch: int) -> None:
        made = [model(pixel_values=part).last_hidden_state[:, 0] for part in x.split(batch)]
        np.save(args.pictures.with_suffix(".torch.npy"), torch.cat(made).numpy())

    return {f"image-{batch}": lambda batch=batch: work(batch) for batch in BATCHES}


if __name__ == "__main__":
    main()
