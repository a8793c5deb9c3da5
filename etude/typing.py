"""The shape legend of the package, and the annotations that carry it.

One letter means one thing everywhere; a file may restate letters where a paper's own are known.

| letter | meaning | letter | meaning | letter | meaning |
|-|-|-|-|-|-|
| B | sequences | T | query positions | S | key positions |
| N | packed tokens | D | model width | V | vocabulary |
| H | query heads | G | key/value heads | K | head width |
| R | latent rank | F | feed-forward width | L | layers |
| E | experts | A | active experts | O | rollouts per prompt |

`Float[Tensor, "B T D"]` is checked in the test suite and is only an annotation in production.
One-letter shapes need a leading space: `Float[Tensor, " N"]`.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Tensor"]
