"""The BERT encoder (post-norm) and sentence embeddings of its outputs.

Devlin et al., BERT, 2018, arXiv:1810.04805. all-MiniLM-L6-v2 is a BERT encoder.

h = LN(word + type + position); per layer
  mid = LN(h + attn(h)),  post = LN(mid + W2 act(W1 mid)).

Post-norm: attention and MLP outputs are the dense outputs before addition and
norm, so resid_pre + attn_out + mlp_out is not resid_post here.
"""

import collections.abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.models import config_file, ops, weights

# point: (name of the module in transformers, port, index of its output tuple)
SITES = {
  "resid_pre": ("encoder.layer.{}", "in", None),
  "resid_mid": ("encoder.layer.{}.attention.output.LayerNorm", "out", None),
  "resid_post": ("encoder.layer.{}.output.LayerNorm", "out", None),
  "attn_out": ("encoder.layer.{}.attention.output.dense", "out", None),
  "mlp_out": ("encoder.layer.{}.output.dense", "out", None),
}
# Other modules with the same output.
ALIASES = {
  "encoder.layer.{}": "resid_post",
  "encoder.layer.{}.output": "resid_post",
  "encoder.layer.{}.attention": "resid_mid",
  "encoder.layer.{}.attention.output": "resid_mid",
}
PREFIX = "bert."


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of config.json that the forward pass uses."""

  family: ClassVar[str] = "bert"
  vocabulary: int
  d: int
  layers: int
  heads: int
  d_mlp: int
  max_positions: int
  types: int
  eps: float
  activation: str


def read_config(file: config_file.ConfigFile) -> Config:
  """Reads the settings of a BERT encoder.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  file.refuse_unknown()
  config = Config(
    vocabulary=file.integer("vocab_size"),
    d=file.integer("hidden_size"),
    layers=file.integer("num_hidden_layers"),
    heads=file.integer("num_attention_heads"),
    d_mlp=file.integer("intermediate_size"),
    max_positions=file.integer("max_position_embeddings", 512),
    types=file.integer("type_vocab_size", 2),
    eps=file.number("layer_norm_eps", 1e-12),
    activation=file.choice("hidden_act", ops.ACTIVATIONS, "gelu"),
  )
  if config.d % config.heads:
    raise file.refusal("num_attention_heads", f"must divide {config.d}")
  return config


def read_params(w: weights.Weights, config: Config) -> dict[str, Any]:
  """Reads the weights by role; pooler and task heads are not read.

  Args:
    w: the tensors of the checkpoint.
    config: the settings.

  Raises:
    InputError: a tensor is missing or has another shape or type.
  """
  w.strip_prefix("embeddings.word_embeddings.weight", "", PREFIX)
  d, d_mlp = config.d, config.d_mlp

  def layer(at: str) -> dict[str, weights.Linear | weights.Norm]:
    qkv = [f"{at}.attention.self.{n}" for n in ("query", "key", "value")]
    return {
      "qkv": w.linear(*qkv, i=d, o=d),
      "out": w.linear(f"{at}.attention.output.dense", i=d, o=d),
      "norm_mid": w.norm(f"{at}.attention.output.LayerNorm", d),
      "up": w.linear(f"{at}.intermediate.dense", i=d, o=d_mlp),
      "down": w.linear(f"{at}.output.dense", i=d_mlp, o=d),
      "norm_post": w.norm(f"{at}.output.LayerNorm", d),
    }

  table = "embeddings.{}_embeddings.weight".format
  return {
    "word": w.take(table("word"), config.vocabulary, d),
    "position": w.take(table("position"), config.max_positions, d),
    "type": w.take(table("token_type"), config.types, d),
    "norm": w.norm("embeddings.LayerNorm", d),
    "layers": tuple(layer(f"encoder.layer.{l}") for l in range(config.layers)),
  }


def forward(
  params: dict[str, Any],
  config: Config,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  tap: collections.abc.Callable[[str, Array], Array],
) -> Float[Array, "B T d"]:
  """Computes the last hidden state, with token type 0 for every token.

  Args:
    params: the result of `read_params`.
    config: the settings.
    ids: token ids.
    mask: which tokens are real.
    tap: called with name and h at every point, returns h, see `Model.hidden`.
  """
  B, T = ids.shape
  act = ops.ACTIVATIONS[config.activation]
  h = ops.embed(params["word"], ids) + params["type"][0][None, None]
  h = h + ops.embed(params["position"], ops.positions(mask))
  h = ops.layer_norm(h, params["norm"], config.eps)
  visible = mask[:, None, :]
  head = config.d // config.heads
  for l, p in enumerate(params["layers"]):
    h = tap(f"layers.{l}.resid_pre", h)
    qkv = ops.linear(h, p["qkv"]).reshape(B, T, 3, config.heads, head)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    a = ops.linear(ops.attention(q, k, v, visible, head**-0.5), p["out"])
    a = tap(f"layers.{l}.attn_out", a)
    h = ops.layer_norm(h + a, p["norm_mid"], config.eps)
    h = tap(f"layers.{l}.resid_mid", h)
    m = ops.linear(act(ops.linear(h, p["up"])), p["down"])
    m = tap(f"layers.{l}.mlp_out", m)
    h = ops.layer_norm(h + m, p["norm_post"], config.eps)
    h = tap(f"layers.{l}.resid_post", h)
  return h


def sentence_embedding(
  h: Float[Array, "B T d"], mask: Bool[Array, "B T"]
) -> Float[Array, "B d"]:
  """Computes sentence embeddings as all-MiniLM-L6-v2 does.

  These are the means of the last hidden states over real tokens, CLS and SEP
  included, scaled to norm 1; 0 for a row without tokens.

  Args:
    h: last hidden states.
    mask: which tokens are real.
  """
  real = mask[..., None]
  total = jnp.sum(jnp.where(real, h, 0), axis=-2, dtype=jnp.float32)
  mean = total / jnp.maximum(jnp.sum(real, axis=-2, dtype=jnp.float32), 1)
  return mean / jnp.maximum(_norm(mean), 1e-12)


def _norm(x: Float[Array, "*b d"]) -> Float[Array, "*b 1"]:
  return jax.lax.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
