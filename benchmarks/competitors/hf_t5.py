"""Hugging Face `generate` on a T5, held to codes that exist; one batch for every line of stdin.

A line names the way, the answer is one line of JSON with milliseconds:
prefix: `prefix_allowed_tokens_fn` over a dict of all prefixes, made beforehand
vectorised: a logits processor of our own that masks all beams at once, without that function
free: no constraint
lists: `prefix` once more, renormalised, and what it found
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import random_codes
import torch
from random_codes import LEVELS, PAD, SHAPE, SIZE, START
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    T5Config,
    T5ForConditionalGeneration,
    __version__,
)
from turns import serve


def model_of(attention: str) -> T5ForConditionalGeneration:
    """The T5 of random_codes.weights. Raises ValueError where a name is missing or left over."""
    config = T5Config(
        vocab_size=PAD + 1,
        d_model=SHAPE["width"],
        d_kv=SHAPE["head_width"],
        d_ff=SHAPE["inner"],
        num_layers=SHAPE["layers"],
        num_decoder_layers=SHAPE["layers"],
        num_heads=SHAPE["heads"],
        pad_token_id=PAD,
        eos_token_id=None,
        decoder_start_token_id=START,
        attn_implementation=attention,
    )
    model = T5ForConditionalGeneration(config).eval()
    found = {name: torch.from_numpy(array) for name, array in random_codes.weights().items()}
    missing, extra = model.load_state_dict(found, strict=False)
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    if set(missing) - tied or extra:
        raise ValueError(f"weights missing in random_codes.py: {missing}; not in T5: {extra}")
    model.tie_weights()
    return model


def followers(codes: np.ndarray, tables: str) -> dict[tuple[int, ...], object]:
    """Tokens that may follow each prefix of tokens, START first: lists or int64 tensors."""
    tokens = codes[np.lexsort(codes.T[::-1])] + SIZE * np.arange(LEVELS)[None]
    found, rows = {}, np.zeros(len(tokens), bool)
    rows[:1] = True
    for level in range(LEVELS):
        starts = np.flatnonzero(rows)
        rows[1:] |= tokens[1:, level] != tokens[:-1, level]
        edges = np.flatnonzero(rows)
        parts = np.split(tokens[edges, level], np.searchsorted(edges, starts[1:]))
        names = tokens[starts, :level].tolist()
        made = torch.from_numpy if tables == "tensors" else np.ndarray.tolist
        found |= {(START, *name): made(part) for name, part in zip(names, parts, strict=True)}
    return found


def allowed_by(table: dict) -> Callable[[int, Tensor], object]:
    """What `generate` asks for every beam of every step."""
    return lambda row, tokens: table[tuple(tokens.tolist())]


class Held(LogitsProcessor):
    """Masks all beams at once: prefixes as numbers, found in the sorted codes by bisection."""

    def __init__(self, codes: np.ndarray):
        keys, self.levels = np.zeros(len(codes), np.int64), []
        for level in range(LEVELS):
            keys = keys * SIZE + codes[:, level]
            self.levels.append(torch.from_numpy(np.unique(keys)))

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        level = tokens.shape[1] - 1
        prefix = torch.zeros(len(tokens), dtype=torch.int64)
        for i in range(level):
            prefix = prefix * SIZE + tokens[:, i + 1] - SIZE * i
        keys = prefix[:, None] * SIZE + torch.arange(SIZE)[None]
        table = self.levels[level]
        exists = table[torch.searchsorted(table, keys).clamp(max=len(table) - 1)] == keys
        columns = slice(SIZE * level, SIZE * (level + 1))
        out = torch.full_like(scores, -torch.inf)
        out[:, columns] = scores[:, columns].masked_fill(~exists, -torch.inf)
        return out


def generation(args: argparse.Namespace, **more) -> GenerationConfig:
    """LEVELS tokens for every beam; nothing else is returned than what is asked."""
    return GenerationConfig(
        num_beams=args.beam,
        num_return_sequences=args.beam,
        max_new_tokens=LEVELS,
        length_penalty=0.0,
        use_cache=True,
        do_sample=False,
        pad_token_id=PAD,
        decoder_start_token_id=START,
        **more,
    )


def ways(args: argparse.Namespace) -> tuple[dict[str, Callable], dict[str, float]]:
    """What a line of stdin can ask for, and what it cost to make."""
    codes = random_codes.codes(args.items)
    rows = random_codes.histories(args.batch, args.items, args.length) - 1
    tokens = codes[rows] + SIZE * np.arange(LEVELS)[None, None]
    tokens = torch.from_numpy(tokens.reshape(len(rows), -1).astype(np.int64))
    seen, usual, model = torch.ones_like(tokens), generation(args), model_of(args.attention)
    if args.compile:  # what generate can compile by itself, its beam search does not use
        model.decoder.compile(dynamic=True)
    full = {"output_scores": True, "return_dict_in_generate": True}
    renormalised = generation(args, renormalize_logits=True, **full)
    begun = time.perf_counter()
    prefix = {"prefix_allowed_tokens_fn": allowed_by(followers(codes, args.tables))}
    built = {"dict_s": round(time.perf_counter() - begun, 2)}
    begun = time.perf_counter()
    held = {"logits_processor": [Held(codes)]}
    built["vectorised_s"] = round(time.perf_counter() - begun, 2)

    def work(config=usual, **more):
        with torch.inference_mode():
            return model.generate(tokens, attention_mask=seen, generation_config=config, **more)

    def lists() -> dict[str, list]:
        found = work(renormalised, **prefix)
        numbers = {tuple(row): item for item, row in enumerate(codes.tolist(), 1)}
        spelled = found.sequences[:, 1:] - SIZE * torch.arange(LEVELS)[None]
        items = np.array([numbers[tuple(row)] for row in spelled.tolist()])
        told = {"items": items, "scores": found.sequences_scores.numpy()}
        return {key: array.reshape(-1, args.beam).tolist() for key, array in told.items()}

    made = {"prefix": prefix, "vectorised": held, "free": {}}
    return {"lists": lists} | {key: partial(work, **more) for key, more in made.items()}, built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"items": 12_000, "beam": 20, "batch": 32, "length": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tables", choices=("lists", "tensors"), default="lists")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the decoder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found, built = ways(args)
    versions = {"torch": torch.__version__, "transformers": __version__}
    serve(found, {"built": built, "versions": versions})


if __name__ == "__main__":
    main()
