"""Latents of attention outputs, attributed to what earlier layers wrote.

With attention patterns and the scales of norms held fixed, the values at a source s
are affine in the residual stream there, which is a sum of what was written before:

  v_l[s] = F_l(x_l[s]),   x_l = x_0 + sum_{l' < l} (attn_l' + mlp_l')

so that the contribution of source s to latent i at t (see `head_attribution`) is a
sum over x_0, each attn_l' and mlp_l', and a bias, exactly. An SAE of the outputs of
the heads of layer l' divides attn_l' into its latents, its error and biases; an
active latent is z_j = m_j a_j, with m_j held fixed (1 for ReLU, TopK and JumpReLU),
and a_j is divided among its own sources in turn (recursive attribution). The leaves
of a tree, with biases, sum to a_i - c_i, wherever the tree is cut.

The recursion is our reading of the paper's description.

References:
  Kissane et al., Interpreting Attention Layer Outputs with Sparse Autoencoders,
  2024, arXiv:2406.17759.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError
from saejax.evals.heads import head_attribution, indices
from saejax.models import taps, weights
from saejax.models.model import Model
from saejax.sae import folding
from saejax.sae.sae import SAE

Step = tuple[int, int, int]  # layer, latent, position


class Linear(NamedTuple):
  """y -> y W + constant."""

  W: Float[np.ndarray, "i o"]
  constant: Float[np.ndarray, "o"] | float

  def pull(self, g: Float[np.ndarray, "*b o"]) -> Float[np.ndarray, "*b i"]:
    """Returns the gradient of <g, output>.

    Args:
      g: direction of the output.
    """
    return g @ self.W.T


class Norm(NamedTuple):
  """y -> (y - mean(y)) scale gain + constant; without a mean in an RMS norm."""

  scale: Float[np.ndarray, "*b 1"]
  gain: Float[np.ndarray, "d"]
  constant: Float[np.ndarray, "d"] | float
  centred: bool

  def pull(self, g: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b d"]:
    """Returns the gradient of <g, output>.

    Args:
      g: direction of the output.
    """
    g = g * self.gain * self.scale
    return g - g.mean(axis=-1, keepdims=True) if self.centred else g


Affine: TypeAlias = Sequence[Linear | Norm]  # one after another


def pulled(
  affine: Affine, g: Float[np.ndarray, "*b o"]
) -> tuple[Float[np.ndarray, "*b i"], Float[np.ndarray, "*b"]]:
  """Returns (r, b) with <g, affine(y)> = <r, y> + b.

  Args:
    affine: maps, the first one of the input first.
    g: direction of the output.
  """
  bias = np.zeros(g.shape[:-1])
  for one in reversed(affine):
    bias = bias + np.sum(g * one.constant, axis=-1)
    g = one.pull(g)
  return g, bias


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A term of a pre-activation.

  Attributes:
    kind: "embed" (what is in the residual stream before the first layer), "attn"
      or "mlp" of a layer, "latent" or "error" of the SAE of a layer's heads, or
      "bias".
    layer: the layer that wrote it; for a bias, the layer that it is added in.
    source: position that it was read at.
    value: its contribution.
    latent: the latent, for kind "latent".
    path: latents it went through, from the one explained: (layer, latent,
      position) of each.
  """

  kind: str
  layer: int
  source: int
  value: float
  latent: int | None
  path: tuple[Step, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
  """Tensors of a forward pass over one text.

  Attributes:
    model: the model.
    tensors: by name of the site, without the axis of texts.
    pattern: attention patterns by layer.
  """

  model: Model
  tensors: Mapping[str, np.ndarray]
  pattern: Float[np.ndarray, "L H T T"]

  def __getitem__(self, site: str) -> np.ndarray:
    return self.tensors[site]

  def values(self, layer: int) -> Affine:
    """The map x_l [T, d] -> v_l [T, K h], with the norm's scale held fixed.

    Args:
      layer: number of the layer.
    """
    config, p = self.model.config, weights_of(self.model, layer)
    x = self[f"layers.{layer}.resid_pre"]
    norm = frozen_norm(config, p["norm_pre"], x)
    W, b = p["qkv"]
    own = config.key_heads * config.head // W.shape[1]  # of each part, the last
    flat = np.asarray(W[:, :, -own:], np.float64).reshape(W.shape[0], -1)
    constant = 0.0 if b is None else np.asarray(b[:, -own:]).reshape(-1)
    return norm, Linear(flat, constant)


def observe(model: Model, ids: Int[Array, "T"], layers: int) -> Observed:
  """Runs a model over one text and keeps what attributions of a layer need.

  Args:
    model: a model with norms before attention, in float32.
    ids: token ids of one text.
    layers: number of layers from the first, the last of which is explained.

  Raises:
    InputError: the model has norms after its layers (BERT), there are not as
      many layers, or an id is outside the vocabulary.
  """
  weights_of(model, 0)
  ids, mask = jnp.asarray(ids)[None], jnp.ones((1, len(ids)), bool)
  points = ("resid_pre", "z", "attn_out", "mlp_out")
  names = [f"layers.{l}.{point}" for l in range(layers) for point in points]
  found = taps.read(model, ids, mask, names)
  return Observed(
    model,
    {name: np.asarray(h[0], np.float64) for name, h in found.items()},
    np.asarray(taps.patterns(model, ids, mask, range(layers))[:, 0]),
  )


def trace(
  observed: Observed,
  saes: Mapping[int, SAE],
  layer: int,
  latent: int,
  position: int,
  *,
  depth: int = 1,
  count: int = 4,
) -> list[Leaf]:
  """Divides a pre-activation, less its constant, among leaves that sum to it.

  Args:
    observed: the forward pass.
    saes: SAEs of the outputs of the heads, by layer; that of `layer` and of
      those earlier ones that are divided into latents.
    layer: layer of the latent.
    latent: the latent.
    position: the destination t.
    depth: number of times that latents of earlier layers are divided in turn.
    count: number of latents, of largest contribution, that each time are.

  Raises:
    InputError: there is no SAE of the layer.
  """
  if layer not in saes:
    rule = f"must have one of layer {layer}"
    raise InputError("saes", list(saes), rule, "add it")
  indices.check("layer", layer, len(observed.pattern))
  indices.check("latent", latent, saes[layer].n)
  indices.check("position", position, observed.pattern.shape[-1])
  folded = {l: folding.fold_prep(sae) for l, sae in saes.items()}
  return _trace(observed, folded, (layer, latent, position), (), depth, count)


def _trace(observed, saes, step: Step, path, depth, count) -> list[Leaf]:
  layer, latent, position = step
  path = (*path, step)
  heads = observed.model.config.heads
  row = np.asarray(head_attribution.head_rows(saes[layer], heads).W[latent])
  pattern = observed.pattern[layer, :, position]
  g = np.einsum(
    "ks,kh->skh", pattern, row
  )  # what is read of each head's values
  g = g.reshape(len(g), observed.model.config.key_heads, -1, row.shape[-1])
  g = g.sum(axis=2).reshape(len(g), -1)  # heads that share values
  r, bias = pulled(observed.values(layer), g)
  dot = lambda site: np.sum(r * observed[site], axis=-1)

  leaves = _leaves("bias", layer, bias, path)
  leaves += _leaves("embed", 0, dot("layers.0.resid_pre"), path)
  for earlier in range(layer):
    leaves += _leaves("mlp", earlier, dot(f"layers.{earlier}.mlp_out"), path)
    if earlier not in saes:
      written = dot(f"layers.{earlier}.attn_out")
      leaves += _leaves("attn", earlier, written, path)
  among: list[tuple[Leaf, float]] = []
  for earlier in (l for l in saes if l < layer):
    rest, latents = _divided(observed, saes[earlier], earlier, r, path)
    leaves += rest
    among += latents
  among.sort(key=lambda one: -abs(one[0].value))
  split = count if depth > 0 else 0
  leaves += [leaf for leaf, _ in among[split:]]
  for leaf, weight in among[:split]:
    assert leaf.latent is not None
    below = (leaf.layer, leaf.latent, leaf.source)
    own = _trace(observed, saes, below, path, depth - 1, count)
    c = float(head_attribution.head_rows(saes[leaf.layer], heads).c[below[1]])
    constant = Leaf("bias", leaf.layer, leaf.source, c, None, (*path, below))
    leaves += [
      dataclasses.replace(one, value=weight * one.value)
      for one in (*own, constant)
    ]
  return leaves


def _divided(
  observed: Observed, sae: SAE, layer: int, r: Float[np.ndarray, "S d"], path
) -> tuple[list[Leaf], list[tuple[Leaf, float]]]:
  """What a layer's heads wrote: error and biases; latents with da_i / da_j."""
  z = observed[f"layers.{layer}.z"]
  flat = z.reshape(len(z), -1)
  g, bias = pulled(outputs(observed.model, layer, flat), r)
  rows = head_attribution.head_rows(sae, z.shape[1])
  a = flat @ np.asarray(rows.W).reshape(sae.n, -1).T + np.asarray(rows.c)
  latents = np.asarray(sae.encode(flat.astype(np.float32)))
  W_dec, b_dec = (np.asarray(p, np.float64) for p in (sae.W_dec, sae.b_dec))
  per_unit = g @ W_dec.T
  error = flat - latents @ W_dec - b_dec
  rest = _leaves("error", layer, np.sum(g * error, axis=-1), path)
  rest += _leaves("bias", layer, bias + g @ b_dec, path)
  found = []
  for s, j in np.argwhere((latents != 0) & (a != 0)):
    value = float(latents[s, j] * per_unit[s, j])
    leaf = Leaf("latent", layer, int(s), value, int(j), path)
    found.append((leaf, value / float(a[s, j])))
  return rest, found


def _leaves(kind: str, layer: int, values: np.ndarray, path) -> list[Leaf]:
  return [
    Leaf(kind, layer, s, float(value), None, path)
    for s, value in enumerate(values)
  ]


def logit_attribution(
  model: Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  layer: int,
  *,
  at: Int[Array, "B"],
  tokens: Int[Array, "B"],
  centred: bool = True,
) -> Float[np.ndarray, "B H"]:
  """Computes what each head of a layer adds directly to the logit of a token.

  The scale of the last norm is held fixed, so that the terms of all heads, MLPs,
  biases and the embedding sum to the logit, before its soft cap.

  Args:
    model: a causal model with norms before attention.
    ids: token ids.
    mask: which tokens are real.
    layer: number of the layer.
    at: position whose prediction it is, per text.
    tokens: the token, per text.
    centred: whether the logit is taken less the mean of all tokens' logits, as
      what is added to all of them changes no prediction.

  Raises:
    InputError: as `observe`, or the model has no language head.
  """
  weights_of(model, layer)
  indices.check("at", at, ids.shape[1])
  indices.check("tokens", tokens, len(model.head))
  names = [f"layers.{layer}.z", f"layers.{model.layers - 1}.resid_post"]
  z, last = taps.read(model, ids, mask, names).values()
  each = np.arange(len(ids))
  z, last = (
    np.asarray(h[each, jnp.asarray(at)], np.float64) for h in (z, last)
  )
  final = frozen_norm(model.config, model.params["norm"], last)
  flat = z.reshape(len(z), -1)
  unit = model.head[jnp.asarray(tokens)].astype(jnp.float32)
  if centred:
    unit = unit - jnp.mean(model.head, axis=0, dtype=jnp.float32)
  unit = np.asarray(unit, np.float64)
  g, _ = pulled((*outputs(model, layer, flat), final), unit)
  return np.sum((g * flat).reshape(z.shape), axis=-1)


def outputs(model: Model, layer: int, z: Float[np.ndarray, "*b Hh"]) -> Affine:
  """The map of a layer's heads to attn_l, with a norm's scale held fixed.

  Args:
    model: the model.
    layer: number of the layer.
    z: outputs of the heads, joined.
  """
  p = weights_of(model, layer)
  W, b = p["out"]
  constant = 0.0 if b is None else np.asarray(b, np.float64)
  linear = Linear(np.asarray(W, np.float64), constant)
  if p.get("norm_attn") is None:
    return (linear,)
  written = z @ linear.W + linear.constant
  return linear, frozen_norm(model.config, p["norm_attn"], written)


def weights_of(model: Model, layer: int) -> dict[str, Any]:
  """Returns the weights of a layer by role.

  Args:
    model: the model.
    layer: number of the layer.

  Raises:
    InputError: the model has no norm before attention, or no such layer.
  """
  taps.resolve(model, layer, "z")
  layers = model.params["layers"]
  stacked = not isinstance(layers, tuple)
  p = jax.tree.map(lambda a: a[layer], layers) if stacked else layers[layer]
  if "norm_pre" not in p:
    raise InputError(
      "model",
      model.name,
      "must have a norm before attention, and this one norms after each addition",
      "use a language model, or head_attribution, which needs no norm",
    )
  return p


def frozen_norm(
  config: Any, norm: weights.Norm | Array, x: Float[np.ndarray, "*b d"]
) -> Norm:
  """Returns a norm with the scales that it has at x.

  Args:
    config: settings of the model.
    norm: gain and bias of a layer norm, or gain of an RMS norm.
    x: vectors, whose scales are held fixed.
  """
  centred = isinstance(norm, weights.Norm)
  h = x - x.mean(axis=-1, keepdims=True) if centred else x
  scale = 1 / np.sqrt(np.mean(h * h, axis=-1, keepdims=True) + config.eps)
  gain, bias = norm if centred else (config.norm_offset + norm, 0.0)
  return Norm(scale, np.asarray(gain, np.float64), np.asarray(bias), centred)
