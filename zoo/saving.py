"""The bundle of a fitted model: everything that serving needs, and a card that says what it is."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from checkpoints.bundle import Bundle, save_bundle
from zoo import coding
from zoo import mesh as meshes
from zoo.data import Data
from zoo.encoders.own import word_ids_sha256
from zoo.encoders.small import Encoding, encoders
from zoo.end_to_end import end_to_end
from zoo.models import build, entry, fields, reads
from zoo.recipes import adapted_by
from zoo.run import Fitted
from zoo.transfer import users_told


def save(
    folder: str | Path,
    model: str,
    chosen: dict[str, Any],
    fitted: Fitted,
    data: Data,
    titles: bool = True,
    results: dict[str, Any] | None = None,
    adapt: str | None = None,
    encoding: Encoding | None = None,
    before: float | None = 0.0,
) -> Path:
    """Write the bundle of a fitted model: everything that serving needs, hashes included.

    before: the flops of what its parameters started from; None: unknown.
    """
    uses_content, graph = reads(model, chosen) != "id", entry(model).family == "graph"
    catalogue = fitted.catalogue
    if encoding:
        made = encoders(encoding, meshes.fetch(catalogue["raw"]))
        plain = end_to_end(build(model, **chosen), made, centre=encoding.centre)
        whole = adapted_by(plain, adapt)
        catalogue = jax.jit(whole.draw)(fitted.params, catalogue, jax.random.key(0))
    catalogue = data.linked(meshes.fetch(catalogue))
    kept = ("valid", "popularity") + (("features", "present") if uses_content else ())
    kept += ("users",) if graph or chosen.get("user") == "id" else ()
    kept += ("train",) if graph else ()
    kept += ("rows",) if uses_content and "rows" in catalogue else ()
    kept += ("vectors",) if data.vectors else ()
    columns = {"title": data.dataset.columns["title"]} if _titled(data, titles) else {}
    known = fields(model)
    config = {
        "model": model,
        "fields": {k: chosen.get(k, default) for k, (_, default) in known.items()},
        "steps": fitted.steps,
        "max_len": fitted.max_len,
        **({} if before is None else {"flops": before + fitted.flops}),
        **({"adapt": adapt} if adapt else {}),
        **(_encoded(encoding, data) if encoding else {}),
    }
    split = {
        "name": data.split.name,
        "protocol": data.split.protocol,
        **data.learned_from(),
        "options": asdict(data.options),
        **({"users": users_told(data)} if "users" in kept else {}),
    }
    evaluation_row = {"valid": fitted.best, **(results or {})}
    params = meshes.fetch(fitted.params)
    spelled = coding.arrays(data.codes, len(catalogue["valid"]))
    codes = {f"{k}.{v}": x for k, tables in spelled.items() for v, x in tables.items()}
    if jax.process_index():  # several hosts: the first one writes
        return Path(folder)
    return save_bundle(
        folder,
        config=config,
        params=params,
        item_ids=data.dataset.item_ids,
        item_columns=columns,
        features={k: catalogue[k] for k in kept},
        feature_manifest=_manifest(data, catalogue["features"]) if uses_content else {},
        split=split,
        evaluation=evaluation_row,
        card=card(model, config, split, evaluation_row),
        codes=codes or None,
    )


def save_again(
    folder: str | Path,
    bundle: Bundle,
    config: dict[str, Any],
    params: Any,
    evaluation: dict[str, Any],
    titles: bool = True,
) -> Path:
    """A bundle with another config, other parameters or figures; all else as it was."""
    return save_bundle(
        folder,
        config=config,
        params=params,
        item_ids=bundle.item_ids,
        item_columns=bundle.item_columns if titles else {},
        features=bundle.catalogue,
        feature_manifest=bundle.features,
        split=bundle.split,
        evaluation=evaluation,
        card=card(config["model"], config, bundle.split, evaluation),
        codes=bundle.codes,
    )


def _merged(config: dict[str, Any]) -> list[str]:
    if "merged" not in config:
        return []
    ids = ["id"] * (config["merged"]["items"] == "both")
    made_of = ", ".join([*ids, *config["merged"]["features"]])
    return [f"Items: one vector each, made of {made_of}; closed to new ones (zoo merge --items)."]


def _prior(config: dict[str, Any]) -> list[str]:
    if "prior" not in config:
        return []
    told = config["prior"]
    return [f"Prior: {told['floor']}, {told['how']}, weight {told['weight']}."]


def _encoded(encoding: Encoding, data: Data) -> dict[str, Any]:
    return {"encoding": asdict(encoding), "word_ids_sha256": word_ids_sha256(data.raw)}


def _titled(data: Data, titles: bool) -> bool:
    return titles and "title" in data.dataset.columns


def _manifest(data: Data, features: dict[str, Any]) -> dict[str, Any]:
    made = {m: {"made_by": x} for m, x in data.dataset.source.get("embedded", {}).items()}
    for m, size in data.dataset.source.get("divided_by", {}).items():
        made[m] = made.get(m, {}) | {"divided_by": size}
    return {
        m: {"width": int(x.shape[1]), "present": int(data.dataset.present[m].sum())}
        | made.get(m, {})
        for m, x in features.items()
    }


def card(model: str, config: dict, split: dict, results: dict) -> str:
    """The bundle's README: what it is, what it learned from, what it reached."""
    lines = [f"# {model}", "", entry(model).summary + f" ({entry(model).paper}).", ""]
    lines += [f"Data: {split['data']}, split {split['name']} ({split['protocol']}),"]
    how = f"trained for {config['steps']} steps"
    if not config["steps"]:
        how = (
            "counted, not trained" if entry(model).family == "floor" else "not trained any further"
        )
    lines += [f"split hash `{split['hash']}`; {how}."]
    lines += [*_merged(config), *_prior(config), ""]
    lines += ["| split | metric | value |", "|---|---|---|"]
    for name, metrics in results.items():
        lines += [f"| {name} | {k} | {v:.4f} |" for k, v in metrics.items() if "@" in k]
    lines += ["", "```python", "import zoo", "bundle = zoo.from_pretrained(FOLDER)"]
    return "\n".join([*lines, "bundle.recommend(history, k=10)", "```", ""])
