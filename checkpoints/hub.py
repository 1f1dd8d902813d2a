"""Where a bundle comes from: a folder, a name shipped with the package, the Hugging Face Hub; and
where a published encoder does."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from checkpoints.manifest import FILES, MANIFEST

PRETRAINED = Path(__file__).parent / "pretrained"
REPOSITORY = r"\w[\w.-]*/\w[\w.-]*"  # owner/name
# Of a published encoder: nothing that runs when it is read.
PUBLISHED = ("*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/config.json")


class HubError(LookupError):
    """A bundle that could not be found or fetched. The message says what was looked for, where."""


def shipped() -> dict[str, Path]:
    """The bundles that come with the package: name -> folder, sorted by name."""
    return {path.parent.name: path.parent for path in sorted(PRETRAINED.glob(f"*/{MANIFEST}"))}


def resolve(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The folder of a bundle, found in this order:

    1. a folder that exists and holds a manifest, named as the caller sees it;
    2. a name in `shipped()`;
    3. "owner/name" on the Hugging Face Hub at `revision` (a branch, tag or commit), from its
       cache where that suffices. Only the files of a bundle are fetched.

    A name is compared, never joined to a path. Raises HubError naming what to do.
    """
    name, ours = str(name_or_path), shipped()
    if name and (Path(name) / MANIFEST).is_file():
        return _unrevised(Path(name), revision)
    if name in ours:
        return _unrevised(ours[name], revision)
    if name and (Path(name) / "run.json").is_file() and not (Path(name) / "bundle").is_dir():
        raise HubError(f"{name} is a run that is not finished: give its command again to go on.")
    if name and Path(name).exists():
        raise HubError(f"{name} exists but holds no {MANIFEST}: expected a bundle's folder.")
    if re.fullmatch(REPOSITORY, name, re.ASCII):
        folder = _from_hub(name, revision, FILES)
        if not (folder / MANIFEST).is_file():
            raise HubError(f"{name!r} holds no {MANIFEST}: it is not a bundle of this project.")
        return folder
    near = difflib.get_close_matches(name, ours, n=3, cutoff=0.4) or list(ours)
    raise HubError(
        f"no bundle {name!r}: it is no folder here and does not come with the package. "
        f"Nearest names: {', '.join(near) or 'none shipped'}. "
        "Hugging Face repositories are written owner/name."
    )


def encoder_folder(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The folder of a published encoder: one that is here, else "owner/name" on the Hugging Face
    Hub at `revision`. Weights other than safetensors are not fetched. Raises HubError."""
    name = str(name_or_path)
    if Path(name).exists() or not re.fullmatch(REPOSITORY, name, re.ASCII):
        return _unrevised(Path(name), revision)
    return _from_hub(name, revision, PUBLISHED)


def _unrevised(folder: Path, revision: str | None) -> Path:
    if revision is not None:
        raise HubError(f"{folder} has no revisions; leave out revision={revision!r}.")
    return folder


def _from_hub(name: str, revision: str | None, files: Sequence[str]) -> Path:
    where = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise HubError(
            f"{where} would come from the Hugging Face Hub, which needs the package "
            "huggingface_hub: pip install 'mmrec-zoo[hub]'. Or name a bundle's folder."
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # what the client raises: HTTP, offline, bad name
        raise HubError(
            f"there is no folder {name} here, and {where} could not be fetched from the Hugging "
            f"Face Hub: {error} Check the name and the connection, or download the repository "
            "elsewhere and name its folder."
        ) from error
