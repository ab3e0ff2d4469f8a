"""GPT-NeoX (Pythia), a pre-norm decoder with parallel attention and MLP.

Black et al., GPT-NeoX-20B, 2022, arXiv:2204.06745; Biderman et al., Pythia, 2023,
arXiv:2304.01373.

h = token; per layer
  post = h + attn(LN(h)) + W2 act(W1 LN'(h)),
or one after the other where the residuals are not parallel:
  mid = h + attn(LN(h)),  post = mid + W2 act(W1 LN'(mid));
out = LN(h); logits = out W_head^T. The first entries of each head are rotated.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int

from saejax.models import (
  config_file,
  family,
  lazy,
  ops,
  rotary,
  stack,
  weights,
)
from saejax.models.family import Place

PREFIX = "gpt_neox."
HEADS = ("lm_head.weight", "embed_out.weight")
_LAYER = PREFIX + "layers.{}"
_QKV = Place(f"{_LAYER}.attention.query_key_value", layout=family.INTERLEAVED)
SITES = {
  "resid_pre": Place(_LAYER, "in"),
  "q": _QKV,
  "k": _QKV,
  "v": _QKV,
  "z": Place(f"{_LAYER}.attention.dense", "in", layout=family.HEADS),
  "attn_out": Place(f"{_LAYER}.attention", index=0),
  "resid_mid": Place(f"{_LAYER}.post_attention_layernorm", "in"),
  "mlp_in": Place(f"{_LAYER}.mlp", "in"),
  "mlp_hidden": Place(f"{_LAYER}.mlp.dense_4h_to_h", "in"),
  "mlp_out": Place(f"{_LAYER}.mlp"),
  "resid_post": Place(_LAYER, index=0),
  "embed": Place(f"{PREFIX}embed_in"),
  "final_norm": Place(f"{PREFIX}final_layer_norm"),
}
# Other modules with the same output.
ALIASES = {
  f"{_LAYER}.attention.dense": "attn_out",
  f"{_LAYER}.post_attention_layernorm": "mlp_in",
  f"{_LAYER}.mlp.act": "mlp_hidden",
  f"{_LAYER}.mlp.dense_4h_to_h": "mlp_out",
}


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of config.json that the forward pass uses.

  Attributes:
    max_positions: the training length; longer rows are possible.
    parallel: whether attention and MLP both read the layer's input.
    attention_bias: whether the maps of attention have biases.
    tied: whether the head is the token table.
    has_head: whether the weights must have a head where it is untied.
    rope: rotary positions.
  """

  family: ClassVar[str] = "gpt_neox"
  vocabulary: int
  d: int
  layers: int
  heads: int
  d_mlp: int
  max_positions: int
  eps: float
  activation: str
  parallel: bool
  attention_bias: bool
  tied: bool
  has_head: bool
  rope: rotary.Rope

  @property
  def key_heads(self) -> int:
    """Number of heads of keys and values."""
    return self.heads

  @property
  def head(self) -> int:
    """Width of a head."""
    return self.d // self.heads


def read_config(file: config_file.ConfigFile) -> Config:
  """Reads the settings of a GPT-NeoX model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  file.refuse_unknown("use_parallel_residual", "partial_rotary_factor")
  d, heads = file.integer("hidden_size"), file.integer("num_attention_heads")
  if d % heads:
    raise file.refusal("num_attention_heads", f"must divide {d}")
  max_positions = file.integer("max_position_embeddings", 2048)
  rope = rotary.read(
    file,
    d // heads,
    max_positions=max_positions,
    theta=file.number("rotary_emb_base", 10000.0),
    share=file.number("rotary_pct", 0.25),
  )
  return Config(
    vocabulary=file.integer("vocab_size"),
    d=d,
    layers=file.integer("num_hidden_layers"),
    heads=heads,
    d_mlp=file.integer("intermediate_size"),
    max_positions=rope.reach(max_positions),
    eps=file.number("layer_norm_eps", 1e-5),
    activation=file.choice("hidden_act", ops.ACTIVATIONS, "gelu"),
    parallel=file.flag("use_parallel_residual", True),
    attention_bias=file.flag("attention_bias", True),
    tied=file.flag("tie_word_embeddings", False),
    has_head=file.has_head,
    rope=rope,
  )


def read_params(w: weights.Weights, config: Config) -> dict[str, Any]:
  """Reads the weights by role.

  Checkpoints have query, key and value of a head next to each other; here all
  queries come first, then all keys, then all values.

  Args:
    w: the tensors of the checkpoint.
    config: the settings.

  Raises:
    InputError: a tensor is missing or has another shape or type.
  """
  w.strip_prefix("embed_in.weight", PREFIX, "")
  d, d_mlp, bias = config.d, config.d_mlp, config.attention_bias

  def apart(rows: lazy.Lazy, j: int) -> lazy.Lazy:
    """Queries, keys or values of all heads, of which whole heads are read."""

    def read(part: lazy.Part) -> np.ndarray:
      heads = slice(3 * part[0].start, 3 * part[0].stop)
      found = rows.read((heads, *part[1:]))
      found = found.reshape(-1, 3, config.head, *found.shape[1:])[:, j]
      return found.reshape(-1, *found.shape[2:])

    return lazy.Lazy((d, *rows.shape[1:]), read)

  def qkv(name: str) -> list[weights.Map]:
    W = w.stored(f"{name}.weight", 3 * d, d)
    b = w.stored(f"{name}.bias", 3 * d) if bias else None
    return [
      weights.Map(apart(W, j).T, None if b is None else apart(b, j))
      for j in range(3)
    ]

  def layer(at: str) -> dict[str, Any]:
    out = w.map(f"{at}.attention.dense", i=d, o=d, bias=bias)
    up = w.map(f"{at}.mlp.dense_h_to_4h", i=d, o=d_mlp)
    down = w.map(f"{at}.mlp.dense_4h_to_h", i=d_mlp, o=d)
    return {
      "norm_pre": w.norm(f"{at}.input_layernorm", d),
      "qkv": w.joint(qkv(f"{at}.attention.query_key_value")),
      "out": w.linear(out, split=0),
      "norm_mid": w.norm(f"{at}.post_attention_layernorm", d),
      "up": w.linear(up, split=1),
      "down": w.linear(down, split=0),
    }

  params = {
    "token": w.take("embed_in.weight", config.vocabulary, d, split=0),
    "layers": tuple(layer(f"layers.{l}") for l in range(config.layers)),
    "norm": w.norm("final_layer_norm", d),
  }
  return params | weights.head(w, config, HEADS)


def forward(
  params: dict[str, Any],
  config: Config,
  ids: Int[Array, "B T"],
  view: ops.View,
  tap: stack.Tap,
  cache: ops.Caches | None = None,
) -> tuple[Float[Array, "B T d"], ops.Caches | None]:
  """Computes the last hidden state, after the last norm.

  Args:
    params: the result of `read_params`.
    config: the settings.
    ids: token ids.
    view: positions, and which tokens each sees.
    tap: called with name and h at every point, returns h, see `Model.hidden`.
    cache: keys and values of the tokens before, or None.
  """
  act = ops.ACTIVATIONS[config.activation]
  turn = rotary.cos_sin(config.rope, view.positions, view.lengths)

  def block(l, p, h, cache, tap):
    h = tap("resid_pre", h)
    a = ops.layer_norm(h, p["norm_pre"], config.eps)
    qkv = zip("qkv", ops.joint(a, p["qkv"], [config.d] * 3), strict=True)
    q, k, v = (tap(name, ops.heads(x, config.head)) for name, x in qkv)
    q, k = rotary.rotate(q, turn), rotary.rotate(k, turn)
    scale, seen = config.head**-0.5, stack.named(tap, family.PATTERN)
    z, cache = ops.attend(view, q, k, v, cache, scale=scale, tap=seen)
    a = ops.linear(ops.joined(tap("z", z)), p["out"])
    mid = h + tap("attn_out", a)
    if not config.parallel:
      h = mid = tap("resid_mid", mid)
    m = tap("mlp_in", ops.layer_norm(h, p["norm_mid"], config.eps))
    m = tap("mlp_hidden", act(ops.linear(m, p["up"])))
    m = tap("mlp_out", ops.linear(m, p["down"]))
    return tap("resid_post", mid + m), cache

  h = tap("embed", ops.embed(params["token"], ids))
  h, cache = stack.run(block, params["layers"], h, tap, cache)
  h = ops.layer_norm(h, params["norm"], config.eps)
  return tap("final_norm", h), cache


FAMILY = family.Family(
  read_config,
  read_params,
  forward,
  SITES,
  ALIASES,
  PREFIX,
  family.LAYER_NORM_HOOKS,
  heads=HEADS,
  absent=lambda config: ("resid_mid",) if config.parallel else (),
)
