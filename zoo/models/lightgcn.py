"""BPR-MF and LightGCN: free vectors, as they are or smoothed over the interaction graph.

BPR-MF (Rendle et al. 2009, arXiv 1205.2618), LightGCN (He et al. 2020, arXiv 2002.02126).
Train:  zoo train lightgcn --data tiktok --out runs/lightgcn
"""

import flax.linen as nn
import jax

from zoo.graph import light_mean
from zoo.models.collaborative import Free, batch_norms, batch_squares, collaborative, ranking_loss
from zoo.names import unknown
from zoo.recommender import Recommender

Array = jax.Array
NORMS = {"norm": batch_norms, "square": batch_squares}


class LightGCN(nn.Module):
    """users, items: the mean over layers of E^{l+1} = L̂ E^l; ego_users, ego_items: E^0."""

    width: int = 64
    layers: int = 3

    @nn.compact
    def __call__(self, catalogue: dict, train: bool = False) -> dict[str, Array]:
        users, items = Free(self.width, name="free")(catalogue)
        u, i = light_mean(catalogue["graph"], users, items, self.layers)
        return {"users": u, "items": i, "ego_users": users, "ego_items": items}


def lightgcn(
    width: int = 64, layers: int = 3, reg: float = 1e-4, reg_kind: str = "norm"
) -> Recommender:
    """Score e_u·e_i of the layer means; BPR + reg · penalty of E^0 on the batch.

    reg_kind: `norm` Frobenius norms over B, as MMRec has it; `square` half squares over B.
    """
    if reg_kind not in NORMS:
        raise unknown("unknown reg_kind", reg_kind, NORMS)

    def aim(params, out, pairs, catalogue, key):
        penalty = NORMS[reg_kind](out["ego_users"], out["ego_items"], pairs)
        return ranking_loss(out["users"], out["items"], pairs) + reg * penalty

    return collaborative(LightGCN(width, layers), aim)


def bpr(width: int = 64, reg: float = 1e-2, reg_kind: str = "norm") -> Recommender:
    """Score e_u·e_i of free rows: matrix factorisation by BPR."""
    return lightgcn(width, 0, reg, reg_kind)
