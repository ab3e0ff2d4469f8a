"""The BERT encoder (post-norm) and sentence embeddings of its outputs.

Devlin et al., BERT, 2018, arXiv:1810.04805. all-MiniLM-L6-v2 is a BERT encoder.

h = LN(word + type + position); per layer
  mid = LN(h + attn(h)),  post = LN(mid + W2 act(W1 mid)).

Post-norm: attention and MLP outputs are the dense outputs before addition and
norm, so resid_pre + attn_out + mlp_out is not resid_post here.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.models import config_file, family, ops, stack, weights
from saejax.models.family import Place

_LAYER = "encoder.layer.{}"
_ATTENTION = f"{_LAYER}.attention"
SITES = {
  "resid_pre": Place(_LAYER, "in"),
  "q": Place(f"{_ATTENTION}.self.query", layout=family.HEADS),
  "k": Place(f"{_ATTENTION}.self.key", layout=family.HEADS),
  "v": Place(f"{_ATTENTION}.self.value", layout=family.HEADS),
  "z": Place(f"{_ATTENTION}.output.dense", "in", layout=family.HEADS),
  "attn_out": Place(f"{_ATTENTION}.output.dense"),
  "resid_mid": Place(f"{_ATTENTION}.output.LayerNorm"),
  "mlp_in": Place(f"{_LAYER}.intermediate.dense", "in"),
  "mlp_hidden": Place(f"{_LAYER}.output.dense", "in"),
  "mlp_out": Place(f"{_LAYER}.output.dense"),
  "resid_post": Place(f"{_LAYER}.output.LayerNorm"),
  "embed": Place("embeddings.word_embeddings"),
}
# Other modules with the same output.
ALIASES = {
  _LAYER: "resid_post",
  f"{_LAYER}.output": "resid_post",
  _ATTENTION: "resid_mid",
  f"{_ATTENTION}.output": "resid_mid",
  f"{_LAYER}.intermediate": "mlp_hidden",
}
# TransformerLens names the residual stream before the norm hook_resid_post.
HOOKS = {
  point: name
  for point, name in family.HOOKS.items()
  if point not in ("resid_mid", "resid_post", "embed")
} | {
  "resid_mid": "blocks.{}.hook_normalized_resid_mid",
  "resid_post": "blocks.{}.hook_normalized_resid_post",
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

  @property
  def key_heads(self) -> int:
    """Number of heads of keys and values."""
    return self.heads

  @property
  def head(self) -> int:
    """Width of a head."""
    return self.d // self.heads


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

  def layer(at: str) -> dict[str, Any]:
    own = f"{at}.attention.self"
    qkv = [w.map(f"{own}.{n}", i=d, o=d) for n in ("query", "key", "value")]
    out = w.map(f"{at}.attention.output.dense", i=d, o=d)
    up = w.map(f"{at}.intermediate.dense", i=d, o=d_mlp)
    down = w.map(f"{at}.output.dense", i=d_mlp, o=d)
    return {
      "qkv": w.joint(qkv),
      "out": w.linear(out, split=0),
      "norm_mid": w.norm(f"{at}.attention.output.LayerNorm", d),
      "up": w.linear(up, split=1),
      "down": w.linear(down, split=0),
      "norm_post": w.norm(f"{at}.output.LayerNorm", d),
    }

  table = "embeddings.{}_embeddings.weight".format
  return {
    "word": w.take(table("word"), config.vocabulary, d, split=0),
    "position": w.take(table("position"), config.max_positions, d),
    "type": w.take(table("token_type"), config.types, d),
    "norm": w.norm("embeddings.LayerNorm", d),
    "layers": tuple(layer(f"encoder.layer.{l}") for l in range(config.layers)),
  }


def forward(
  params: dict[str, Any],
  config: Config,
  ids: Int[Array, "B T"],
  view: ops.View,
  tap: stack.Tap,
  cache: None = None,
) -> tuple[Float[Array, "B T d"], None]:
  """Computes the last hidden state, with token type 0 for every token.

  Args:
    params: the result of `read_params`.
    config: the settings.
    ids: token ids.
    view: positions, and which tokens each sees.
    tap: called with name and h at every point, returns h, see `Model.hidden`.
    cache: always None.
  """
  act = ops.ACTIVATIONS[config.activation]
  h = tap("embed", ops.embed(params["word"], ids))
  h = h + params["type"][0][None, None]
  h = h + ops.embed(params["position"], view.positions)
  h = ops.layer_norm(h, params["norm"], config.eps)

  def block(l, p, h, cache, tap):
    h = tap("resid_pre", h)
    qkv = zip("qkv", ops.joint(h, p["qkv"], [config.d] * 3), strict=True)
    q, k, v = (tap(name, ops.heads(x, config.head)) for name, x in qkv)
    scale, seen = config.head**-0.5, stack.named(tap, family.PATTERN)
    z, cache = ops.attend(view, q, k, v, cache, scale=scale, tap=seen)
    a = ops.linear(ops.joined(tap("z", z)), p["out"])
    h = ops.layer_norm(h + tap("attn_out", a), p["norm_mid"], config.eps)
    h = tap("resid_mid", h)
    m = tap("mlp_hidden", act(ops.linear(tap("mlp_in", h), p["up"])))
    m = tap("mlp_out", ops.linear(m, p["down"]))
    h = ops.layer_norm(h + m, p["norm_post"], config.eps)
    return tap("resid_post", h), cache

  return stack.run(block, params["layers"], h, tap, cache)


FAMILY = family.Family(
  read_config, read_params, forward, SITES, ALIASES, PREFIX, HOOKS, heads=()
)


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
