"""How much a function computes: the operations of its dense matrix products and convolutions.

The same number on every device. Sparse products, sorting and what is done element by element are
not counted, and of a `while` one turn is.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """Multiplications and additions of what `jax.make_jaxpr` or `jitted.trace(...).jaxpr` hold;
    a scan counts as often as it turns, of a `cond` the dearest branch."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    inside = [matmul_flops(x) for x in _inside(params)]
    if name == "scan":
        return params["length"] * sum(inside)
    if name == "shard_map":  # its shapes are those of one device
        return params["mesh"].size * sum(inside)
    if name == "cond":
        return max(inside, default=0.0)
    own = {"dot_general": _dot, "conv_general_dilated": _convolution}.get(name)
    return sum(inside) + (own(equation) if own else 0.0)


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for x in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(x, (ClosedJaxpr, Jaxpr)):
                yield x


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _convolution(equation: Any) -> float:
    kernel, numbers = equation.invars[1].aval, equation.params["dimension_numbers"]
    return 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[numbers.rhs_spec[0]]
