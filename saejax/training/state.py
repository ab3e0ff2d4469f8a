"""What a resumed run needs of one member."""

from collections.abc import Mapping
from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from saejax.sae.sae import SAE

Stats = Mapping[str, Array]


class TrainState(flax.struct.PyTreeNode):
  """All that a resumed run needs of one member (or of all, stacked).

  Attributes:
    step: batches consumed.
    sae: the weights.
    opt_state: of the optimizer.
    ema: of the weight average, () without one.
    stats: statistics moved by rules.
    key: of random numbers inside steps.
    alive: False from the step on whose loss or gradient was not finite; the
      member then keeps its last good weights.
    failed_step: that step, -1 while alive.
    halted: True once a batch held non-finite rows under the policy "stop";
      nothing changes from there on.
  """

  step: Int[Array, ""]
  sae: SAE
  opt_state: Any
  ema: Any
  stats: Stats
  key: PRNGKeyArray
  alive: Bool[Array, ""]
  failed_step: Int[Array, ""]
  halted: Bool[Array, ""]
