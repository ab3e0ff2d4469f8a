"""SAEBench's own numbers of the core evaluation, for comparison with published ones.

Some of them are not what their names say; `evals.core` has the corrected ones. On
token windows without padding, with r = x - x_hat and "tokens" all but special ones:

  explained_variance         1 - R / (q d - q^2), with R the mean of |r|^2 and q
                             the mean of x^2 over tokens and coordinates; both
                             are means of the batches' means. It is above 1
                             where q > d.
  explained_variance_legacy  mean over tokens of 1 - |r|^2 / |x - m|^2, with m
                             the mean of the batch
  mse                        mean over tokens of |r|^2 / tokens of the batch
  relative_reconstruction_bias   mean over batches of mean |x_hat|^2 / mean
                             <x, x_hat>
  l1, feature_density        sum z, and share of tokens with z > 0: latents below
                             0 reduce the one and are not counted in the other
  kl_div_with_sae            counts the last position too, ce_loss_with_sae each
                             whose own token is not special, whatever the next
  kl_div_with_ablation       zeros at all positions, special ones as well

Decoder rows have unit norm: z_i is c_i times ours, c_i the norm of the row in the
units of the model. SAEBench itself folds norms in the SAEs that it loads by name,
but for those that rank latents by z.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532; the package sae-bench 0.6.0.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError
from saejax.evals import latent_records, splices
from saejax.interventions import operators
from saejax.models import mesh, taps
from saejax.models.model import Model
from saejax.sae.sae import SAE

SAEBENCH = "saebench"
NAMES = (SAEBENCH,)
SMALLEST_NORM = 1e-4  # of x in l2_ratio; below it the norm counts as 1
Windows = Sequence[Int[np.ndarray, "B T"]]


class _Window(NamedTuple):
  """Tokens without padding, see `splices.Tokens`."""

  ids: np.ndarray
  mask: np.ndarray
  keep: np.ndarray
  doc: np.ndarray


class Reference(NamedTuple):
  """SAEBench's numbers of one SAE.

  Attributes:
    metrics: by category and name; NaN is -1.
    details: a flat record for each latent.
  """

  metrics: dict[str, dict[str, float]]
  details: list[dict[str, float | int]]


def saebench(
  sae: SAE,
  model: Model,
  site: str,
  reconstruction: Windows,
  variance: Windows,
  special: Collection[int],
  *,
  keep_special: bool = True,
) -> Reference:
  """The core metrics of one SAE as SAEBench computes them.

  Args:
    sae: the SAE, in the inference form.
    model: a causal language model.
    site: the site, in any of the forms of `models.taps`.
    reconstruction: batches of windows without padding for losses, see `packed`.
    variance: batches for all other metrics; may be the same.
    special: ids of BOS, EOS and padding, which are left out of averages.
    keep_special: whether they keep their activations in the forward pass with
      the SAE, as in the released results.

  Raises:
    InputError: as `check`, the SAE has no form on rows alone, there is no such site, or there is no batch.
  """
  check(model)
  if not len(reconstruction) or not len(variance):
    rule = "must have a batch of windows for losses and one for the rest"
    raise InputError("windows", "no batch", rule, "give more text")
  site = taps.resolve(model, *taps.parse(site, model.family)).name
  ids = np.array(sorted(special), np.int32)
  metrics = _losses(sae, model, site, reconstruction, ids, keep_special)
  more, latents = _rows(sae, model, site, variance, ids)
  count = lambda windows: sum(np.size(batch) for batch in windows)
  metrics |= more
  metrics["token_stats"] = {
    "total_tokens_eval_reconstruction": count(reconstruction),
    "total_tokens_eval_sparsity_variance": count(variance),
  }
  metrics["misc_metrics"] = latent_records.summary(latents)
  return Reference(
    latent_records.cleaned(metrics), latent_records.details(latents)
  )


def check(model: Model) -> None:
  """Refuses a model that predicts no token.

  Args:
    model: the model.

  Raises:
    InputError: it is an encoder, or its checkpoint has no head.
  """
  if not model.causal:
    rule = "must predict the next token for --compat, and is an encoder"
    raise InputError("model", model.name, rule, "name a language model")
  _ = model.head


def packed(
  documents: Iterable[Int[np.ndarray, "t"]], *, context: int, bos: int | None
) -> Iterator[Int[np.ndarray, "T"]]:
  """Windows of one document after another, without padding.

  BOS is in front of each window and of each document. The end of the text, less
  than a window, is left out.

  Args:
    documents: token ids of each document, without special tokens around them.
    context: tokens per window, with BOS.
    bos: id of BOS; None for none.

  >>> text = [np.asarray([5, 6, 7]), np.asarray([8, 9])]
  >>> [w.tolist() for w in packed(text, context=3, bos=1)]
  [[1, 5, 6], [1, 7, 1], [1, 8, 9]]
  """
  window: list[int] = []
  for ids in documents:
    at = 0
    while at < len(ids):
      begins = at == 0 or not window
      if begins and bos is not None and ids[at] != bos:
        window.append(bos)
      taken = ids[at : at + context - len(window)]
      window.extend(map(int, taken))
      at += len(taken)
      if len(window) == context:
        yield np.asarray(window, np.int32)
        window = []


# --- losses ------------------------------------------------------------------


def _losses(
  sae: SAE,
  model: Model,
  site: str,
  windows: Windows,
  special: Int[np.ndarray, "s"],
  keep_special: bool,
) -> dict[str, dict[str, float]]:
  edits = [
    splices.prepared(model, edit)
    for edit in (operators.splice(sae), operators.zero())
  ]
  rows: list[Mapping[str, np.ndarray]] = []
  for batch in windows:
    ordinary, every = ~np.isin(batch, special), np.ones(np.shape(batch), bool)
    tokens = _Window(
      np.asarray(batch), every, every, np.zeros(batch.shape, int)
    )
    read = splices.Reading(model, site, tokens)
    keeps = (ordinary if keep_special else every), every
    changed = [
      read.hidden(read.edited(edit, jnp.asarray(keep)))
      for edit, keep in zip(edits, keeps, strict=True)
    ]
    stacked = jnp.stack(changed)
    found = _compared(model, read.ids, read.hidden(), stacked)
    found = jax.device_get(mesh.settled(found, model.mesh))
    counted = {"kl": ordinary, "ce": ordinary[:, :-1]}
    rows.append({k: v[counted[k[:2]]] for k, v in found.items()})
  mean = {
    name: float(np.concatenate([row[name] for row in rows]).mean(dtype="f8"))
    for name in rows[0]
  }
  share = lambda worst, best, at: (worst - at) / (worst - best)
  with np.errstate(invalid="ignore", divide="ignore"):
    kl = share(np.float64(mean["kl_zero"]), 0.0, mean["kl_sae"])
    ce = share(np.float64(mean["ce_zero"]), mean["ce"], mean["ce_sae"])
  return {
    "model_behavior_preservation": {
      "kl_div_score": float(kl),
      "kl_div_with_ablation": mean["kl_zero"],
      "kl_div_with_sae": mean["kl_sae"],
    },
    "model_performance_preservation": {
      "ce_loss_score": float(ce),
      "ce_loss_with_ablation": mean["ce_zero"],
      "ce_loss_with_sae": mean["ce_sae"],
      "ce_loss_without_sae": mean["ce"],
    },
  }


@jax.jit
def _compared(
  model: Model,
  ids: Int[Array, "B T"],
  clean: Float[Array, "B T d"],
  changed: Float[Array, "2 B T d"],
) -> dict[str, Array]:
  """KL at each position, CE at each but the last, a window at a time."""

  def log_softmax(h):
    logits = model.logits(h[None]).astype(jnp.float32)[0]
    return jax.nn.log_softmax(logits, axis=-1)

  def window(at):
    ids, clean, changed = at
    ce = lambda logs: -jnp.take_along_axis(logs[:-1], ids[1:, None], 1)[:, 0]
    log_p = log_softmax(clean)
    found = {"ce": ce(log_p)}
    for name, hidden in zip(("sae", "zero"), changed, strict=True):
      log_q = log_softmax(hidden)
      found[f"ce_{name}"] = ce(log_q)
      found[f"kl_{name}"] = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return found

  by_row = ids, clean, jnp.swapaxes(changed, 0, 1)
  return mesh.by_row(window, by_row, model.mesh)


# --- rows --------------------------------------------------------------------


def _rows(
  sae: SAE,
  model: Model,
  site: str,
  windows: Windows,
  special: Int[np.ndarray, "s"],
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
  """Metrics of rows by category, and measures of latents."""
  c = latent_records.norms(sae)
  parts: list[dict[str, np.ndarray]] = []
  tokens, prompts, total = np.zeros(sae.n), np.zeros(sae.n), 0
  for batch in windows:
    every = np.ones(np.shape(batch), bool)
    x = taps.read(model, jnp.asarray(batch), every, [site])[site]
    x = x.reshape(*batch.shape, -1).astype(jnp.float32)
    ordinary = ~np.isin(batch, special)
    row, fired = jax.device_get(_of_batch(sae, c, x, ordinary))
    parts.append(_of_tokens(row, np.asarray(x)[ordinary], ordinary))
    tokens += fired.sum(axis=0)
    prompts += (fired > 0).sum(axis=0)
    total += int(ordinary.sum())
  mean = lambda name: float(np.concatenate([p[name] for p in parts]).mean())
  each = lambda name: float(np.mean([p[name].mean() for p in parts]))
  q = float(np.mean([p["square"] for p in parts]))
  explained = 1 - each("error") / (q * sae.d - q * q)
  measures = {
    latent_records.DENSITY: tokens / total,
    latent_records.CONSISTENT: latent_records.ratio(tokens, prompts),
  }
  metrics = {
    "shrinkage": {n: mean(n) for n in ("l2_norm_in", "l2_norm_out", "l2_ratio")}
    | {"relative_reconstruction_bias": each("bias")},
    "sparsity": {name: mean(name) for name in ("l0", "l1")},
    "reconstruction_quality": {"explained_variance": explained}
    | {n: mean(n) for n in ("explained_variance_legacy", "mse", "cossim")},
  }
  return metrics, measures | latent_records.of_weights(sae)


@jax.jit
def _of_batch(
  sae: SAE,
  c: Float[Array, "n"],
  x: Float[Array, "B T d"],
  ordinary: Bool[Array, "B T"],
) -> tuple[dict[str, Array], Int[Array, "B n"]]:
  """Measures [B, T], and the number of active tokens by window and latent."""

  def window(at):
    x, ordinary = at
    z = sae.encode(x)
    x_hat = sae.reconstruct(x)
    row = {
      "error": jnp.sum((x - x_hat) ** 2, axis=-1),
      "l2_norm_in": jnp.linalg.norm(x, axis=-1),
      "l2_norm_out": jnp.linalg.norm(x_hat, axis=-1),
      "dot": jnp.sum(x * x_hat, axis=-1),
      "l0": jnp.sum(z != 0, axis=-1),
      "l1": jnp.sum(z * c, axis=-1),
    }
    return row, jnp.sum((z > 0) & ordinary[:, None], axis=0)

  return jax.lax.map(window, (x, ordinary))


def _of_tokens(
  row: Mapping[str, np.ndarray],
  x: Float[np.ndarray, "R d"],
  ordinary: Bool[np.ndarray, "B T"],
) -> dict[str, Any]:
  """The terms of a batch, for tokens that are not special."""
  of = {k: v[ordinary].astype(np.float64) for k, v in row.items()}
  x = x.astype(np.float64)
  length, out = of["l2_norm_in"], of["l2_norm_out"]
  about = np.square(x - x.mean(axis=0)).sum(axis=-1)
  with np.errstate(invalid="ignore", divide="ignore"):
    return of | {
      "square": np.square(x).mean(),
      "mse": of["error"] / len(x),
      "explained_variance_legacy": 1 - of["error"] / about,
      "cossim": of["dot"] / (length * out),
      "l2_ratio": out / np.where(length < SMALLEST_NORM, 1.0, length),
      "bias": np.square(out).mean() / of["dot"].mean(),
    }
