"""The core evaluation of SAEs: reconstruction, sparsity, and the model with them.

Rows are activations x of a site with x_hat, z of the SAE; sums over rows in
float64:

  fvu             sum |x - x_hat|^2 / sum |x - mean|^2, mean of the training rows
  l2_ratio        mean |x_hat| / |x|
  relative_bias   sum |x_hat|^2 / sum <x, x_hat>, below 1 where norms shrink
  l0, l1          mean number of active latents, mean sum |z|
  alive           share of latents that are active on some row
  dense_1, dense_10       share of latents active on more than 1 %, 10 % of rows
  dense_1_activity, dense_10_activity     share of all activity that they have
  consistent_activation   mean over live latents of rows where one is active per
                          window with any
  max_encoder_cosine, max_decoder_cosine  mean over latents of the largest cosine
                          with another

A transcoder reads another site than it writes: x is then the activation of the
site that it writes, as the target of x_hat.

In the model see `in_model` (language models) and `embeddings`. Controls tell what
the numbers mean: zeros and the mean at the site; the projection on as many principal
components of the training rows as the SAE has active latents there ("pca", not for
transcoders); and a random dictionary of the same shape with that many active latents
("random"). The identity is the model itself: nothing lost. Measures of each latent:
`latent_records`.

The text is read once, whatever the number of SAEs: the layers before the site run
once a batch, and SAEs of equal shape and k share their controls. All that depends on
the text is a sum, so that parts of it merge: `Core.part`, `Sums.merged`.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532, whose names the record has.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from saejax.errors import InputError
from saejax.evals import (
  core_controls,
  core_rows,
  embeddings,
  in_model,
  latent_records,
  reconstruction,
  splices,
)
from saejax.interventions import operators
from saejax.models import mesh
from saejax.models.edits import Edit
from saejax.models.model import Model
from saejax.sae.sae import SAE

IDENTITY, MEAN, PCA, RANDOM = "identity", "mean", "pca", "random"
ZERO = in_model.ZERO


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
  """Sums of an evaluation over some batches.

  Attributes:
    rows: sums over rows of each SAE, by name.
    error: sum over finite rows of |y - y'|^2 for each edit [E].
    model: losses of the model, or embeddings of windows, with each edit.
  """

  rows: Mapping[str, core_rows.RowSums]
  error: Float[np.ndarray, "E"]
  model: in_model.InModel | embeddings.Embeddings

  def merged(self, other: "Sums") -> "Sums":
    """The sums over both.

    Args:
      other: sums over other batches, of the same SAEs and controls.

    Raises:
      ValueError: it is of other edits.
    """
    return Sums(
      {
        name: reconstruction.merge(mine, other.rows[name])
        for name, mine in self.rows.items()
      },
      self.error + other.error,
      self.model.merged(other.model),  # pyright: ignore[reportArgumentType]
    )


class Core:
  """An evaluation of SAEs of one site, with their controls.

  Args:
    saes: SAEs by name, in the inference form.
    model: the model.
    site: the site that they reconstruct, in any of the forms of `models.taps`.
    facts: facts of training rows.
    source: the site that transcoders read; "" for SAEs.
    seed: seed of the random dictionaries.

  Attributes:
    edits: edits of the site by name: SAEs and controls, each of them once.
    controls: names of the edits that are controls of each SAE, by kind.

  Raises:
    InputError: as `core_controls.check`, an SAE has the name of a control, there
      is no such site, or the model is causal and has no head.
  """

  def __init__(
    self,
    saes: Mapping[str, SAE],
    model: Model,
    site: str,
    facts: core_controls.Training,
    *,
    source: str = "",
    seed: int = 0,
  ):
    self.saes, self.model, self.facts = saes, model, facts
    self.site = splices.name(model, site)
    self.source = splices.name(model, source) if source else ""
    core_controls.check(
      saes, facts.mean_in.shape[-1], facts.mean.shape[-1], source=source
    )
    if model.causal:
      in_model.check(model)
    centre = jnp.asarray(facts.mean, jnp.float32)
    self.edits = {ZERO: operators.zero(), MEAN: operators.constant(centre)}
    self.controls: dict[str, dict[str, str]] = {}
    for name, sae in saes.items():
      k = facts.k[name]
      of = self.controls[name] = {ZERO: ZERO, MEAN: MEAN}
      if not source:
        V = jnp.asarray(facts.directions[:k])
        self.edits[f"{PCA}-{k}"] = operators.projection(centre, V)
        of[PCA] = f"{PCA}-{k}"
      of[RANDOM] = f"{RANDOM}-{sae.n}-{k}"
      if of[RANDOM] not in self.edits:
        drawn = core_controls.random_dictionary(
          facts, n=sae.n, k=k, seed=seed, transcodes=bool(source)
        )
        self.edits[of[RANDOM]] = self._splice(drawn)
    if taken := saes.keys() & {*self.edits, IDENTITY}:
      rule = "must not be the name of a control"
      raise InputError("sae", min(taken), rule, "rename its folder")
    self.edits |= {name: self._splice(sae) for name, sae in saes.items()}
    put = lambda tree: mesh.put(tree, model.mesh)
    self._prepared = [splices.prepared(model, e) for e in self.edits.values()]
    self._saes, self._mean = put(dict(saes)), put(centre)

  def _splice(self, sae: SAE) -> Edit:
    if self.source:
      return operators.transcoded(sae, self.source)
    return operators.splice(sae)

  def nothing(self) -> Sums:
    """Returns the sums over no batch."""
    names, d = tuple(self.edits), self.model.d
    return Sums(
      {name: core_rows.nothing(sae) for name, sae in self.saes.items()},
      np.zeros(len(names)),
      in_model.nothing(names)
      if self.model.causal
      else embeddings.nothing(names, d),
    )

  def part(self, batch: splices.Tokens, first: int = 0) -> Sums:
    """Computes the sums of one batch.

    Args:
      batch: the tokens.
      first: number of its first window in the text.
    """
    read = splices.Reading(
      self.model, self.site, batch, source=self.source, limit=self.facts.limit
    )
    x, y, own = read.x, read.target, self.model.mesh
    rows = {}
    for name, sae in self._saes.items():
      found = core_rows.batch(sae, x, y, read.rows, self._mean)
      rows[name] = mesh.settled(found, own)
    changed, error = [], []
    for edit in self._prepared:
      h = read.edited(edit)
      changed.append(h)
      error.append(mesh.settled(_error(y, h, read.rows), own))
    names = tuple(self.edits)
    model = (
      in_model.part(names, read, batch, changed)
      if self.model.causal
      else embeddings.part(names, read, batch, changed, first=first)
    )
    nothing = {name: core_rows.nothing(sae) for name, sae in self.saes.items()}
    return Sums(
      {name: reconstruction.merge(nothing[name], rows[name]) for name in rows},
      np.asarray(jax.device_get(error), np.float64),
      model,
    )

  def records(self, sums: Sums) -> dict[str, dict[str, Any]]:
    """Computes the record of each SAE, by name.

    It has "rows", "latents", "model", and "controls" by kind, whose names are
    under "control_names".

    Args:
      sums: sums over all batches.

    Raises:
      InputError: there were no rows, or no token that is counted.
    """
    if isinstance(sums.model, in_model.InModel):
      in_model.check_counted(sums.model)
    else:
      embeddings.check_counted(sums.model)
    whole = sums.model.record()
    common = {k: v for k, v in whole.items() if k not in self.edits}
    found = {}
    for name, sae in self.saes.items():
      rows, latents = core_rows.measures(sae, sums.rows[name])
      spread = float(sums.rows[name].base.about_mean)
      error = dict(zip(self.edits, sums.error, strict=True))
      fvu = lambda edit: error[edit] / spread if spread else float("nan")  # noqa: B023
      found[name] = {
        "rows": rows,
        "latents": latents,
        "model": common | whole[name],
        "controls": {IDENTITY: _unchanged(whole)}
        | {
          kind: {"fvu": float(fvu(edit))} | whole[edit]
          for kind, edit in self.controls[name].items()
        },
        "control_names": self.controls[name],
      }
    return found


def _unchanged(whole: Mapping[str, Any]) -> dict[str, float]:
  """The measures of the model itself."""
  if "clean" not in whole:
    return {"fvu": 0.0, "cosine": 1.0, "retrieval": 1.0}
  shares = {"ce_recovered": 1.0, "kl_recovered": 1.0}
  return {"fvu": 0.0, "ce": whole["clean"], "kl": 0.0} | shares


@jax.jit
def _error(
  y: Float[Array, "B T d"], h: Array, rows: Bool[Array, "B T"]
) -> Array:
  """Sum over finite rows of |y - h|^2."""
  use = rows & jnp.isfinite(y).all(axis=-1)
  h = h.reshape(y.shape).astype(jnp.float32)
  return jnp.sum(jnp.where(use[..., None], jnp.square(y - h), 0))


def evaluate(
  saes: Mapping[str, SAE],
  model: Model,
  site: str,
  batches: Iterable[splices.Tokens],
  *,
  train: Float[np.ndarray, "S d"],
  target: Float[np.ndarray, "S d_out"] | None = None,
  source: str = "",
  limit: float = np.inf,
  seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], Any]:
  """Evaluates SAEs of one site, with their controls.

  Args:
    saes: SAEs by name, in the inference form.
    model: the model.
    site: the site that they reconstruct.
    batches: held-out tokens for the model.
    train: training rows that the SAEs read, for the mean and the controls.
    target: training rows that transcoders write, for transcoders.
    source: the site that transcoders read; "" for SAEs.
    limit: largest norm of a row, see `splices`.
    seed: seed of the random dictionaries.

  Returns:
    (records by name, see `Core.records`; the `in_model.InModel` or
    `embeddings.Embeddings` over all edits).

  Raises:
    InputError: as `Core`.
  """
  widths = train.shape[-1], (train if target is None else target).shape[-1]
  core_controls.check(saes, *widths, source=source)
  facts = core_controls.training(saes, train, target, limit=limit)
  core = Core(saes, model, site, facts, source=source, seed=seed)
  total, first = core.nothing(), 0
  for batch in batches:
    total = total.merged(core.part(batch, first))
    first += len(batch.ids)
  return core.records(total), total.model


# --- SAEBench's record -------------------------------------------------------


def saebench(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
  """The measures of a record under the names that SAEBench gives them.

  They are the corrected ones: its explained_variance and mse are defined
  otherwise. What a record lacks, such as losses of an embedding model, is left
  out; NaN is -1 as there.

  Args:
    record: one of `evaluate`.
  """
  rows, model = record["rows"], record["model"]
  zero = record["controls"]["zero"]
  names: dict[str, dict[str, Any]] = {
    "model_behavior_preservation": {
      "kl_div_with_sae": model.get("kl"),
      "kl_div_with_ablation": zero.get("kl"),
      "kl_div_score": model.get("kl_recovered"),
    },
    "model_performance_preservation": {
      "ce_loss_without_sae": model.get("clean"),
      "ce_loss_with_sae": model.get("ce"),
      "ce_loss_with_ablation": zero.get("ce"),
      "ce_loss_score": model.get("ce_recovered"),
    },
    "reconstruction_quality": {
      "explained_variance": rows["explained_variance"],
      "mse": rows["mse"],
      "cossim": rows["cosine"],
    },
    "shrinkage": {
      "l2_norm_in": rows["l2_norm_in"],
      "l2_norm_out": rows["l2_norm_out"],
      "l2_ratio": rows["l2_ratio"],
      "relative_reconstruction_bias": rows["relative_bias"],
    },
    "sparsity": {"l0": rows["l0"], "l1": rows["l1"]},
    "token_stats": {
      "total_tokens_eval_reconstruction": model.get("tokens"),
      "total_tokens_eval_sparsity_variance": rows["rows"],
    },
    "misc_metrics": {
      "freq_over_1_percent": rows["dense_1"],
      "freq_over_10_percent": rows["dense_10"],
      "normalized_freq_over_1_percent": rows["dense_1_activity"],
      "normalized_freq_over_10_percent": rows["dense_10_activity"],
      "frac_alive": rows["alive"],
      "average_max_encoder_cosine_sim": rows.get("max_encoder_cosine"),
      "average_max_decoder_cosine_sim": rows["max_decoder_cosine"],
    },
  }
  known = {
    category: {k: v for k, v in values.items() if v is not None}
    for category, values in names.items()
  }
  return latent_records.cleaned({k: v for k, v in known.items() if v})
