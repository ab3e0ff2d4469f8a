"""The least time that a training step can take on a chip, by what it must do.

Per step of B rows, with P parameters of which those with an axis of latents lie on
T devices, on D devices of rows:

  operations   2 B P_enc for encoding, and per kept latent 8 d (decode and the
               three products of its gradient); dense: 10 B n d in all
  bytes        26 P for Adam in float32, fused with its gradient, and 6 d per kept
               latent in bfloat16; dense: 38 P and twelve passes over [B, n]; a
               batch in A parts: 8 (A - 1) P more, to add up gradients
  links        the bytes of the step's collectives, AuxK's with them, around one
               ring; all-reduces count twice

The three are taken not to overlap: the encoder is bound by operations, everything
else by bytes, and both wait for the links. What a step does beside these comes on
top. The links are an estimate: a slice whose axes all carry a collective has several
rings, and without dead latents AuxK exchanges nothing.
"""

import dataclasses
import math
from typing import Any

import jax

from saejax.plans.chips import Chip
from saejax.sae.sae import SAE

ADAM_BYTES, DENSE_BYTES = 26, 12  # per parameter; beside the update, if dense
PASSES = 12  # over [B, n] in bfloat16, of the dense engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """What a step of one SAE must do on one device.

  Attributes:
    flops: operations.
    bytes: to and from memory.
    exchanged: bytes over the links.
  """

  flops: float
  bytes: float
  exchanged: float = 0.0

  def seconds(self, chip: Chip) -> dict[str, float]:
    """Least time by what bounds it: compute, memory, links.

    Args:
      chip: the device.
    """
    return {
      "compute": self.flops / chip.flops,
      "memory": self.bytes / chip.bandwidth,
      "links": self.exchanged / chip.link,
    }


def parameters(sae: SAE) -> int:
  """Entries of an SAE's arrays, without its prep.

  Args:
    sae: the SAE, or its shapes.
  """
  return _entries((sae.encoder, sae.activation, sae.decoder))


def _entries(tree: Any) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def work(
  sae: SAE,
  *,
  rows: int,
  mesh: tuple[int, int],
  engine: str,
  update: float = ADAM_BYTES,
) -> Work:
  """What a step must do on one device, without collectives.

  Args:
    sae: the SAE, or its shapes.
    rows: of a batch, over all devices.
    mesh: devices of rows and of latents.
    engine: "dense" or "sparse".
    update: bytes per parameter of a device that the optimizer reads and writes,
      see `update_bytes`.
  """
  data, latent = mesh
  own, held = rows / data, parameters(sae) / latent
  encode = 2 * own * _entries(sae.encoder) / latent
  kept = sae.activation.mean_k
  if engine == "sparse" and kept is not None:
    entries = own * min(kept, sae.n) / latent
    return Work(
      flops=encode + 8 * entries * sae.d,
      bytes=update * held + 6 * entries * sae.d + 2 * sae.n / latent * sae.d,
    )
  return Work(
    flops=encode + 8 * own * sae.n / latent * sae.d,
    bytes=(update + DENSE_BYTES) * held + PASSES * 2 * own * sae.n / latent,
  )


def update_bytes(
  state: float, *, accumulate: int = 1, shards: int = 1
) -> float:
  """Bytes per parameter that an update reads and writes on a device.

  Args:
    state: bytes of weights and moments per parameter: 12 for Adam in float32,
      which gives `ADAM_BYTES`.
    accumulate: parts of a batch, whose gradients are added up.
    shards: devices that divide the update; new weights are gathered from them.
  """
  update = (2 * state + 2) / shards + 4 * (shards > 1)
  return update + 8 * (accumulate - 1)


def expected_exchange(
  sae: SAE, *, rows: int, mesh: tuple[int, int], engine: str
) -> float:
  """Bytes over the links of a device that a step is expected to take.

  Gradients in float32 over the devices of rows; over those of latents the
  reconstruction and the candidates of each row. Only to order meshes before one
  is compiled: what a program exchanges is counted in its text.

  Args:
    sae, rows, mesh, engine: as for `work`.
  """
  data, latent = mesh
  total = 0.0
  if data > 1:
    total += 2 * 4 * parameters(sae) / latent
  if latent > 1:
    kept = sae.activation.mean_k or 0
    total += rows / data * (2 * 4 * sae.d + 8 * kept * latent)
  return total
