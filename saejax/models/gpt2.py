"""GPT-2, a pre-norm decoder with learned positions.

Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

h = wte + wpe; per layer
  mid = h + attn(LN(h)),  post = mid + W2 act(W1 LN(mid));
out = LN(h); logits = out wte^T (out W_head^T where the head is untied).
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Array, Float, Int

from saejax.models import config_file, family, ops, stack, weights
from saejax.models.family import Place

_LAYER = "transformer.h.{}"
_QKV = Place(f"{_LAYER}.attn.c_attn", layout=family.FUSED)
SITES = {
  "resid_pre": Place(_LAYER, "in"),
  "q": _QKV,
  "k": _QKV,
  "v": _QKV,
  "z": Place(f"{_LAYER}.attn.c_proj", "in", layout=family.HEADS),
  "attn_out": Place(f"{_LAYER}.attn", index=0),
  "resid_mid": Place(f"{_LAYER}.ln_2", "in"),
  "mlp_in": Place(f"{_LAYER}.mlp", "in"),
  "mlp_hidden": Place(f"{_LAYER}.mlp.c_proj", "in"),
  "mlp_out": Place(f"{_LAYER}.mlp"),
  "resid_post": Place(_LAYER, index=0),
  "embed": Place("transformer.wte"),
  "final_norm": Place("transformer.ln_f"),
}
# Other modules with the same output.
ALIASES = {
  f"{_LAYER}.attn.c_proj": "attn_out",
  f"{_LAYER}.ln_2": "mlp_in",
  f"{_LAYER}.mlp.act": "mlp_hidden",
  f"{_LAYER}.mlp.c_proj": "mlp_out",
}
PREFIX = "transformer."


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of config.json that the forward pass uses.

  Attributes:
    scale: whether scores are divided by sqrt(head width).
    scale_by_layer: whether scores are also divided by the layer's number from 1.
    tied: whether the head is the token table.
    has_head: whether the weights must have a head where it is untied; weights of
      a base model or a classifier may lack it.
  """

  family: ClassVar[str] = "gpt2"
  vocabulary: int
  d: int
  layers: int
  heads: int
  d_mlp: int
  max_positions: int
  eps: float
  activation: str
  scale: bool
  scale_by_layer: bool
  tied: bool
  has_head: bool

  @property
  def key_heads(self) -> int:
    """Number of heads of keys and values."""
    return self.heads

  @property
  def head(self) -> int:
    """Width of a head."""
    return self.d // self.heads


def read_config(file: config_file.ConfigFile) -> Config:
  """Reads the settings of a GPT-2 model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  file.refuse_unknown()
  d = file.integer("n_embd")
  config = Config(
    vocabulary=file.integer("vocab_size"),
    d=d,
    layers=file.integer("n_layer"),
    heads=file.integer("n_head"),
    d_mlp=file.integer("n_inner", 4 * d),
    max_positions=file.integer("n_positions", 1024),
    eps=file.number("layer_norm_epsilon", 1e-5),
    activation=file.choice("activation_function", ops.ACTIVATIONS, "gelu_new"),
    scale=file.flag("scale_attn_weights", True),
    scale_by_layer=file.flag("scale_attn_by_inverse_layer_idx", False),
    tied=file.flag("tie_word_embeddings", True),
    has_head=file.has_head,
  )
  if config.d % config.heads:
    raise file.refusal("n_head", f"must divide {config.d}")
  return config


def read_params(w: weights.Weights, config: Config) -> dict[str, Any]:
  """Reads the weights by role; GPT-2 stores linear maps as [in, out] (Conv1D).

  Args:
    w: the tensors of the checkpoint.
    config: the settings.

  Raises:
    InputError: a tensor is missing or has another shape or type.
  """
  w.strip_prefix("wte.weight", PREFIX, "")
  d, d_mlp = config.d, config.d_mlp

  conv = partial(w.map, conv=True)

  def layer(at: str) -> dict[str, Any]:
    qkv = conv(f"{at}.attn.c_attn", i=d, o=3 * d)
    return {
      "norm_pre": w.norm(f"{at}.ln_1", d),
      "qkv": w.joint(qkv.split((d, d, d))),
      "out": w.linear(conv(f"{at}.attn.c_proj", i=d, o=d), split=0),
      "norm_mid": w.norm(f"{at}.ln_2", d),
      "up": w.linear(conv(f"{at}.mlp.c_fc", i=d, o=d_mlp), split=1),
      "down": w.linear(conv(f"{at}.mlp.c_proj", i=d_mlp, o=d), split=0),
    }

  params = {
    "token": w.take("wte.weight", config.vocabulary, d, split=0),
    "position": w.take("wpe.weight", config.max_positions, d),
    "layers": tuple(layer(f"h.{l}") for l in range(config.layers)),
    "norm": w.norm("ln_f", d),
  }
  return params | weights.head(w, config)


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
  h = tap("embed", ops.embed(params["token"], ids))
  h = h + ops.embed(params["position"], view.positions)
  scale = config.head**-0.5 if config.scale else 1.0
  by_layer = [
    l + 1 if config.scale_by_layer else 1 for l in range(config.layers)
  ]
  scales = tuple(scale / n for n in by_layer)

  def block(l, p, h, cache, tap):
    h = tap("resid_pre", h)
    a = ops.layer_norm(h, p["norm_pre"], config.eps)
    qkv = zip("qkv", ops.joint(a, p["qkv"], [config.d] * 3), strict=True)
    q, k, v = (tap(name, ops.heads(x, config.head)) for name, x in qkv)
    scale = stack.pick(scales, l)
    seen = stack.named(tap, family.PATTERN)
    z, cache = ops.attend(view, q, k, v, cache, scale=scale, tap=seen)
    a = ops.linear(ops.joined(tap("z", z)), p["out"])
    h = tap("resid_mid", h + tap("attn_out", a))
    m = tap("mlp_in", ops.layer_norm(h, p["norm_mid"], config.eps))
    m = tap("mlp_hidden", act(ops.linear(m, p["up"])))
    m = tap("mlp_out", ops.linear(m, p["down"]))
    return tap("resid_post", h + m), cache

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
)
