"""Where public data sets are to be had: address, checksum, licence, citation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Official:
    """Where a public data set is to be had, and what it must be."""

    url: str
    size: int  # bytes
    sha256: str
    folder: str  # inside the archive
    optional: tuple[str, ...]  # which of NUMBERS it has
    columns: tuple[str, ...]  # of its item table
    homepage: str
    licence: str
    citation: str


OFFICIAL = {
    "ml-latest-small": Official(
        url="https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
        size=978202,
        sha256="696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        folder="ml-latest-small",
        optional=("timestamp", "rating"),
        columns=("title", "genres"),
        homepage="https://grouplens.org/datasets/movielens/latest/",
        licence="research use with acknowledgement; redistribution under the same conditions; no "
        "commercial use without permission of GroupLens; no endorsement by GroupLens or UMN",
        citation="@article{harper2015movielens, title={The MovieLens Datasets: History and "
        "Context}, author={Harper, F. Maxwell and Konstan, Joseph A.}, journal={ACM Transactions "
        "on Interactive Intelligent Systems}, volume={5}, number={4}, year={2015}, "
        "doi={10.1145/2827872}}",
    )
}
