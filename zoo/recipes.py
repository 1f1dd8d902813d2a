"""Adaptations by name, as the command line, run.json and a bundle's config.json write them.

    freeze            the item representation stays, everything behind it trains
    encoders          encoders of raw content stay (end_to_end.py), the rest trains; then what is
                      added to them: encoders+lora:8:encoders/.*(query|value)/kernel$
    bitfit            biases and norms alone
    lora:8            a pair of rank 8 beside every kernel; lora:8:query|value beside those named so
    adapter:16        a bottleneck of 16 behind modules called attention and ffn
    prompt:8          8 tokens before what the trunk reads

Several are joined by +, the first one innermost: bitfit+lora:4.
"""

import re
from collections.abc import Callable
from typing import Any

from zoo.adapt import bitfit, freeze, lora
from zoo.names import unknown
from zoo.recommender import Recommender

ITEMS = (("^items/", "frozen"), (".*", "train"))
ENCODERS = (("^encoders/", "frozen"), (".*", "train"))


def _adapter(recommender: Recommender, width: str = "16", *where: str) -> Recommender:
    from zoo.adapters import adapter

    return adapter(recommender, _number("adapter", width), *where)


def _prompt(recommender: Recommender, tokens: str = "8", *where: str) -> Recommender:
    from zoo.adapters import prompt

    return prompt(recommender, _number("prompt", tokens), *where)


RECIPES: dict[str, Callable[..., Recommender]] = {
    "freeze": lambda r: freeze(r, ITEMS),
    "encoders": lambda r: freeze(r, ENCODERS),
    "bitfit": bitfit,
    "lora": lambda r, rank="8", where="kernel$": lora(r, _number("lora", rank), where),
    "adapter": _adapter,
    "prompt": _prompt,
}


BETWEEN = r"\+(?=(?:" + "|".join(RECIPES) + r")\b)"  # a regex of names may hold a +


def adapted_by(recommender: Recommender, recipe: str | None) -> Recommender:
    """The recommender adapted as `recipe` says; itself where that is None.

    Raises ValueError for a name that is none of the above, or a number that is none.
    """
    for part in re.split(BETWEEN, recipe) if recipe else ():
        name, *options = part.split(":", 2)
        if name not in RECIPES:
            raise unknown("unknown adaptation", name, RECIPES)
        try:
            recommender = RECIPES[name](recommender, *options)
        except TypeError as error:
            raise ValueError(f"adaptation '{part}': {name} takes no such options.") from error
    return recommender


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"adaptation '{name}:{text}': expected a whole number, as in {name}:8.")
    return int(text)


def told(params: Any, recommender: Recommender) -> str:
    """How many parameters train, for a log line."""
    from zoo.adapt import plan_of
    from zoo.plan import counts

    found = counts(params, plan_of(recommender))
    return f"{found.trainable:,} of {found.total:,} parameters train"
