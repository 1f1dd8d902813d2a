"""Multimodal recommenders as pure functions. Names load on first use, so the import is free."""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Data": "zoo.api",
    "DataOptions": "zoo.api",
    "Encoding": "zoo.api",
    "Recommender": "zoo.recommender",
    "Settings": "zoo.api",
    "build": "zoo.api",
    "control": "zoo.api",
    "encoder": "zoo.encoders.load",
    "evaluate": "zoo.api",
    "fit": "zoo.api",
    "floors": "zoo.api",
    "from_pretrained": "zoo.api",
    "keep_freed_memory": "zoo.allocator",
    "load_data": "zoo.api",
    "save": "zoo.api",
    "settings_for": "zoo.api",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"zoo has no '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
