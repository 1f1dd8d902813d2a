"""The options of the shell's commands: which data, which mesh, and a model's own fields."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any


def parse(kind: type, argv: list[str], command: str, description: str) -> Any:
    """The options of a command, by the fields of a dataclass."""
    import tyro

    return tyro.cli(kind, args=argv, prog=f"zoo {command}", description=description)


def positional(argv: list[str], what: str, command: str) -> str:
    """The word that a command's options stand behind; ValueError where it is none."""
    if not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        raise ValueError(f"expected {what} first: zoo {command} {what} ...")
    return argv[0]


def behind(argv: list[str]) -> list[str]:
    """What stands behind the first word, unless that asks for help."""
    return argv if argv[0] in ("-h", "--help") else argv[1:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataArgs:
    """A data folder and how to read it."""

    data: Path
    part: str | None = None
    """Which interactions file, where a folder holds several."""
    protocol: str | None = None
    """leave-one-out, random, labels, global-time, cold-items, or a protocol's name."""
    k_core: int | None = None
    """Keep users and items with at least this many interactions."""
    require: tuple[str, ...] | None = None
    """Keep only items that have these modalities."""
    split_seed: int | None = None
    tie_seed: int | None = None
    text: str | None = None
    """Features of words: lsa, or hashed, the same space in every data set; lsa:200: of so many
    columns."""
    codes: str | None = None
    """Semantic ids of generative models: a column, FILE.json, rkmeans[:MODALITY], opq or random;
    A,B for several languages."""
    features: tuple[str, ...] | None = None
    """Folders of `zoo embed`, one a modality: an encoder's vectors as the items' features."""
    json: bool = False
    """Print exactly one JSON object on standard output."""

    def options(self, base=None):
        """DataOptions: `base` with what was named on the command line."""
        from zoo.data import DataOptions

        named = {
            "part": self.part,
            "split": self.protocol,
            "k_core": self.k_core,
            "require": self.require,
            "split_seed": self.split_seed,
            "tie_seed": self.tie_seed,
            "text": self.text,
            "codes": self.codes,
            "features": self.features,
        }
        given = {k: v for k, v in named.items() if v is not None}
        return dataclasses.replace(base or DataOptions(), **given)


@dataclasses.dataclass(frozen=True)
class MeshArgs:
    """Devices along the two mesh axes; data None: all that `model` leaves."""

    data: int | None = None
    model: int = 1


def train_args(model: str, **preset: Any) -> type:
    """The options of `zoo train MODEL`: data, settings, mesh and the model's own fields.

    preset: other defaults of the model's fields.
    """
    from zoo.encoders.small import Encoding
    from zoo.models import entry, fields
    from zoo.settings import Settings, settings_for

    family = dataclasses.asdict(settings_for(model))
    own = [f for f in dataclasses.fields(Settings) if f.default != family[f.name]]
    settings_args = dataclasses.make_dataclass(
        "SettingsArgs",
        [(f.name, f.type, family[f.name]) for f in own],
        bases=(Settings,),
        frozen=True,
        kw_only=True,
    )
    chosen = [
        (k, kind, dataclasses.field(default=preset.get(k, v)))
        for k, (kind, v) in fields(model).items()
    ]
    told = {"__doc__": inspect.getdoc(entry(model).constructor())}
    model_args = dataclasses.make_dataclass("ModelArgs", chosen, frozen=True, namespace=told)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class TrainArgs(DataArgs, settings_args):
        out: Path
        more_data: tuple[Path, ...] = ()
        """Further data sets, merged with the first: users and items side by side."""
        graft: str | None = None
        """A pretrained run or bundle whose parameters to start from."""
        names: tuple[str, ...] = ()
        """What parameters are called in the graft, HERE=THERE, a regex and its replacement, first
        match wins: items/image=items/text; HERE= leaves them fresh."""
        control: Path | None = None
        """Then train the model without the graft, too, into this folder, for as many operations as
        pretraining and this run took together: the control."""
        adapt: str | None = None
        """How to adapt it: freeze, bitfit, lora:8, adapter:16, prompt:8, or several joined by +."""
        vectors: str | None = None
        """A run whose user and item vectors the model reads, frozen (mmgrec)."""
        objective: str | None = None
        """Short for --model.objective, where the model has one."""
        encode: Encoding = Encoding()
        """Content that the model encodes itself: --encode.modalities image text."""
        model: model_args = model_args()
        mesh: MeshArgs = MeshArgs()

        def settings(self) -> Settings:
            names = [f.name for f in dataclasses.fields(Settings)]
            return Settings(**{name: getattr(self, name) for name in names})

        def chosen(self) -> dict[str, Any]:
            """The model's fields that differ from its defaults."""
            known = {k: v for k, (_, v) in fields(model).items()}
            given = {k: v for k, v in vars(self.model).items() if v != known[k]}
            return given | ({"objective": self.objective} if self.objective else {})

    return TrainArgs
