"""Controls of a core evaluation: what they take from training rows, and which SAEs
can stand in for a site at all.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.evals import held_out, recovery
from saejax.sae import activations, initial, prep
from saejax.sae.context import Batch
from saejax.sae.sae import SAE


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
  """Facts of training rows, which the controls follow from.

  Attributes:
    mean_in, square_in: mean of the rows that SAEs read, and of their |x|^2.
    mean, square: those of the rows that they reconstruct.
    directions: principal directions of the latter, largest variance first, as
      many as the SAEs have active latents at most; none for transcoders.
    k: active latents per training row of each SAE, rounded, at least 1.
    limit: largest norm of a row that SAEs read, see `splices`.
  """

  mean_in: Float[np.ndarray, "d"]
  square_in: float
  mean: Float[np.ndarray, "d_out"]
  square: float
  directions: Float[np.ndarray, "m d_out"]
  k: Mapping[str, int]
  limit: float = np.inf


def training(
  saes: Mapping[str, SAE],
  x: Float[np.ndarray, "S d"],
  target: Float[np.ndarray, "S d_out"] | None = None,
  *,
  limit: float = np.inf,
) -> Training:
  """Computes the facts of training rows.

  Args:
    saes: SAEs by name, in the inference form.
    x: rows that they read.
    target: rows that transcoders write, for transcoders.
    limit: largest norm of a row that SAEs read.
  """
  k = {
    name: max(1, round(held_out.evaluate(sae, Batch(x=x, target=target)).l0))
    for name, sae in saes.items()
  }
  (mean_in, square_in), (mean, square) = (
    _moments(rows) for rows in (x, x if target is None else target)
  )
  most = max(k.values(), default=1) if target is None else 0
  return Training(
    mean_in=mean_in,
    square_in=square_in,
    mean=mean,
    square=square,
    directions=recovery.principal_directions(x, most),
    k=k,
    limit=limit,
  )


def _moments(x: Float[np.ndarray, "S d"]) -> tuple[np.ndarray, float]:
  """The mean of rows and of their squared norms."""
  wide = x.astype(np.float64)
  return wide.mean(axis=0), float(np.square(wide).sum(axis=1).mean())


def check(
  saes: Mapping[str, SAE], width: int, width_out: int, *, source: str = ""
) -> None:
  """Refuses SAEs that cannot stand in for a site, by their names.

  Args:
    saes: SAEs by name.
    width: width of the rows that they read.
    width_out: width of the rows that they reconstruct.
    source: the site that transcoders read; "" for SAEs.

  Raises:
    InputError: an SAE has another width, needs a condition of each row, or is a
      transcoder without a source or has a source without being one.
  """
  for name, sae in saes.items():
    transcodes = sae.target_prep is not None
    if transcodes != bool(source):
      kind = "a transcoder" if transcodes else "an SAE of one site"
      remedy = "give the site of its target: harvest.target_point"
      if source:
        remedy = "leave out harvest.target_point, or name transcoders"
      raise InputError(
        "sae", name, f"is {kind}, and is given {_sites(source)}", remedy
      )
    widths = sae.encoder.width(sae.decoder), sae.d
    for own, theirs in zip(widths, (width, width_out), strict=True):
      if own != theirs:
        raise InputError(
          "sae",
          name,
          f"must have the width of the site, {theirs}, and has {own}",
          "name an SAE of this model and site",
        )
    rows = jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
    try:
      jax.eval_shape(lambda sae, x: sae.reconstruct(Batch(x=x)), sae, rows)
    except (InputError, ValueError) as error:
      needs = "a condition of each row, which tokens of a text have not"
      if not isinstance(error, InputError) or error.field != "cond":
        needs = f"more than activations of the site ({error})"
      raise InputError(
        "sae",
        name,
        f"must reconstruct activations alone, and needs {needs}",
        "evaluate it on the rows of its store: saejax.evaluate",
      ) from error


def _sites(source: str) -> str:
  return "two sites" if source else "one site"


def random_dictionary(
  facts: Training, *, n: int, k: int, seed: int, transcodes: bool = False
) -> SAE:
  """An untrained TopK SAE with random unit rows, for centred and scaled rows.

  Args:
    facts: facts of the rows, for the prep.
    n: number of latents.
    k: active latents.
    seed: of the rows.
    transcodes: whether it writes another site than it reads.
  """
  own, other = (
    prep.from_stats("centre_scale", {"mean": mean, "mean_square": square})
    for mean, square in (
      (facts.mean_in, facts.square_in),
      (facts.mean, facts.square),
    )
  )
  more = {"d_target": facts.mean.shape[-1], "target_prep": other}
  return initial.init(
    jax.random.key(seed),
    d=facts.mean_in.shape[-1],
    n=n,
    activation=activations.TopK(min(k, n)),
    prep=own,
    **(more if transcodes else {}),
  )
