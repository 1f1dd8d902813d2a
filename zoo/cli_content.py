"""The shell's commands about content: embed, tokenize, and pretrain OBJECTIVE."""

import dataclasses
from pathlib import Path

from zoo.arguments import DataArgs, MeshArgs, parse
from zoo.console import Bar, tell

# As content_objectives.py has them, which would import jax before it is needed.
OBJECTIVES = ("contrastive", "siglip", "co-consumption", "masked", "autoregressive")


def embed_command(argv: list[str]) -> int:
    """zoo embed."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class EmbedArgs:
        data: Path
        part: str | None = None
        """Which interactions file, where a folder holds several."""
        encoder: Path
        """A published encoder: config.json, safetensors, its tokenizer or preprocessor_config; its
        repository owner/name on the Hugging Face Hub; or the run of zoo pretrain OBJECTIVE on
        these items."""
        out: Path
        """The folder of the vectors; the same command goes on after a kill."""
        modality: str | None = None
        """text, image or audio; None: what the encoder has, text if it has several."""
        batch: int = 64
        pooling: str = "pooled"
        """Which vector of what the encoder returns: pooled, or such as cls, mean, pooler;
        layers: of every layer, for side networks."""
        dtype: str = "float32"
        """Of the layers: float32 or bfloat16. The vectors are float32."""
        max_length: int | None = None
        """Tokens a text is cut to; None: as many as the encoder was trained on."""
        seconds: float = 5.0
        """wav2vec2: how much of a clip it hears."""
        sentences: int = 0
        """Text: above 0, as many rows an item at most, a sentence each, side by side: mp4sr and
        unisrec (combine sum) pool them, other models read one long vector."""
        json: bool = False

    args = parse(EmbedArgs, argv, "embed", "items through an encoder")
    if args.out.resolve() == args.data.resolve():
        raise ValueError(
            f"--out is the data folder {args.data}: features there follow the rows of its item "
            "table, these the items. Name another folder, and train with --features."
        )
    from pipelines import sources
    from zoo.embed import embed
    from zoo.mesh import make_mesh

    dataset = sources.load(args.data, args.part)
    own = ("modality", "batch", "pooling", "dtype", "max_length", "seconds")
    own += ("sentences",)
    chosen = {name: getattr(args, name) for name in own}
    with Bar("embed", "") as bar:
        told = embed(dataset, args.encoder, args.out, **chosen, mesh=make_mesh(), report=bar)
    return tell(told, args.json)


def tokenize_command(argv: list[str]) -> int:
    """zoo tokenize."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class TokenizeArgs(DataArgs):
        out: Path
        """The index to write; the codebooks go beside it."""
        append: Path | None = None
        """An index that zoo tokenize wrote: its items keep their codes, and the others get theirs
        by what made it. The options of the quantiser do not count then."""
        modality: str | None = None
        """Whose features to make codes of; None: those of --features, else text."""
        run: str | None = None
        """A trained run or bundle whose item vectors to make codes of, instead of features."""
        method: str = "rkmeans"
        """rkmeans, pq, opq or rqvae."""
        levels: int = 3
        size: int = 256
        """Codes a level."""
        resolver: str | None = None
        """What makes colliding codes unique: digit, popularity, relocate, sinkhorn, none. None:
        popularity with a run, else digit."""
        seed: int = 0
        batch: int | None = None
        """rkmeans: rows a step of mini-batch k-means; None: all of them."""
        steps: int | None = None
        """Of k-means a level, or with --batch so many batches (25); rqvae: of training (3000)."""
        hidden: tuple[int, ...] = (512, 256, 128)
        """rqvae: widths of the encoder's hidden layers; the decoder's are the same, turned."""
        width: int = 32
        """rqvae: of the codes' vectors."""
        balance: float = 0.0
        """rqvae: above 0, Sinkhorn's epsilon (.003) spreads the last level over its codes."""
        teacher: str | None = None
        """rqvae: a trained run or bundle whose item vectors, as wide, the codes shall follow, as
        LETTER's do."""
        alpha: float = 0.02
        """rqvae: the weight of following the teacher."""
        beta: float | None = None
        """rqvae: the weight of LETTER's other term, which spreads the codes of a level; None: 1e-4
        with a teacher, 0 without."""

    args = parse(TokenizeArgs, argv, "tokenize", "items as semantic ids")
    from zoo import api
    from zoo.append_codes import append_codes
    from zoo.mesh import make_mesh
    from zoo.tokenize import tokenize

    if args.append:
        data = api.load_data(args.data, args.options())
        return tell(append_codes(data, args.out, args.append), args.json)
    bundle, teacher = (
        api.from_pretrained(run) if run else None for run in (args.run, args.teacher)
    )
    known = bundle or teacher
    data = api.load_data(args.data, args.options(known.data_options() if known else None))
    shared = {f.name for f in dataclasses.fields(DataArgs)}
    own = {f.name for f in dataclasses.fields(TokenizeArgs)} - shared - {"append"}
    chosen = {k: getattr(args, k) for k in own} | {"run": bundle, "teacher": teacher}
    return tell(tokenize(data, **chosen, mesh=make_mesh()), args.json)


def content_command(name: str, argv: list[str]) -> int:
    """zoo pretrain OBJECTIVE: encoders from content alone."""
    from zoo.encoders.small import Encoding
    from zoo.pretraining import SETTINGS

    both = Encoding(("image",) if name == "autoregressive" else ("image", "text"))

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class PretrainArgs(DataArgs):
        out: Path
        epochs: int = SETTINGS.epochs
        batch: int = SETTINGS.batch
        rate: float = SETTINGS.rate
        patience: int = SETTINGS.patience
        """Evaluations on held-out items without a better one before stopping."""
        seed: int = 0
        width: int = 64
        """Of the space in which two views are compared."""
        encode: Encoding = both
        mesh: MeshArgs = MeshArgs()

    args = parse(PretrainArgs, argv, f"pretrain {name}", "encoders from content alone")
    from zoo import api
    from zoo import mesh as meshes
    from zoo.pretraining import pretrain_content

    own = ("epochs", "batch", "rate", "patience", "seed")
    settings = dataclasses.replace(SETTINGS, **{key: getattr(args, key) for key in own})
    data, mesh = (
        api.load_data(args.data, args.options()),
        meshes.make_mesh(args.mesh.data, args.mesh.model),
    )
    with Bar(f"pretrain {name}", "score") as bar:
        what = (name, data, args.out, args.encode, settings, mesh, bar, args.width)
        fitted, told = pretrain_content(*what)
    result = {"objective": name, "run": str(args.out), "steps": fitted.steps}
    result |= {"seconds": round(fitted.seconds, 3), **told}
    return tell(result, args.json)
