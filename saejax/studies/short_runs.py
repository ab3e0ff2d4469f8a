"""Arguments of each method in the studies' short runs of small SAEs.

Papers train for long on many rows; their defaults are those of the recipes. A
few hundred steps need thresholds and windows that move faster, and penalties
for rows of mean square norm 1 (prep "centre_scale").
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from saejax.recipes import arguments, catalogue
from saejax.training.parts import bias_rule
from saejax.training.recipe import Recipe

K, COEFFICIENT, NOTHING = "k", "coefficient", "nothing"
SOFT = {"theta": 0.03, "bandwidth": 0.03}  # what a few hundred steps can move


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """A method as the studies compare it.

  Attributes:
    recipe: name in the catalogue.
    arguments: of the recipe, from (k, n, d).
    sweeps: what moves L0: "k", "coefficient", or "nothing".
    coefficients: factors of the swept term, which reach L0 of about 5 to 60.
  """

  recipe: str
  arguments: Callable[[int, int, int], Mapping[str, Any]] = lambda k, n, d: {
    "k": k
  }
  sweeps: str = K
  coefficients: tuple[float, ...] = (1.0,)

  @property
  def method(self) -> catalogue.Method:
    """The line of the catalogue."""
    return catalogue.METHODS[self.recipe]

  def make(
    self, k: int, *, d: int, n: int, options: Mapping[str, Any]
  ) -> Recipe:
    """The recipe with about k active latents per row.

    Args:
      k: active latents per row; ignored by methods without a k.
      d: width of rows.
      n: latents.
      options: settings that all recipes of a study share, see `arms.options`.
    """
    given = self.arguments(k, n, d)
    return arguments.make(self.recipe, d=d, n=n, arguments=given, **options)


def _with_k(recipe: str, **more: Any) -> Variant:
  """A method with a k and other arguments that do not depend on it."""
  return Variant(recipe=recipe, arguments=lambda k, n, d: {"k": k, **more})


def _swept(
  recipe: str, coefficients: tuple[float, ...], **fixed: Any
) -> Variant:
  """A method whose coefficient moves L0."""
  return Variant(
    recipe=recipe,
    arguments=lambda k, n, d: fixed,
    sweeps=COEFFICIENT,
    coefficients=coefficients,
  )


def _gba(k: int, n: int, d: int) -> dict[str, Any]:
  """Targets over a factor of 50 that let k latents fire on a row."""
  falling = bias_rule.targets(8, 1.0, 1 / 50)
  htf = min(k / (n * sum(falling) / len(falling)), 0.9)
  return {"groups": 8, "every": 5, "htf": htf, "ltf": htf / 50}


def _adaptivek(k: int, n: int, d: int) -> dict[str, Any]:
  """Bounds about k."""
  least = max(1, k // 4)
  return {"min_k": least, "max_k": 2 * k - least, "l1_weight": 0.005 / d}


def _msae(k: int, n: int, d: int) -> dict[str, Any]:
  """Levels that end at k."""
  return {"levels": tuple(sorted({max(1, k // 4), max(1, k // 2), k}))}


L1 = (0.5, 1.0, 2.0, 4.0, 8.0)
L0 = (1.0, 3.0, 10.0, 30.0)

VARIANTS: Mapping[str, Variant] = {
  "topk": _with_k("topk"),
  "k_sparse": _with_k("k_sparse"),
  "abstopk": _with_k("abstopk"),
  "group_max": _with_k("group_max"),
  "relu_l1": _swept("relu_l1", L1, coefficient=0.05),
  "jumprelu_l0": _swept("jumprelu", L0, coefficient=1e-3, **SOFT),
  "jumprelu_target": Variant(
    recipe="jumprelu",
    arguments=lambda k, n, d: {
      "coefficient": 1.0,
      "penalty": "l0_target",
      "target_l0": max(k, 1),
      **SOFT,
    },
  ),
  "gated": _swept("gated", L1, coefficient=0.05),
  "gemma_scope": _swept(
    "gemma_scope", L0, coefficient=1e-3, coefficient_warmup=0.2, **SOFT
  ),
  "llama_scope": _with_k("llama_scope"),
  "batchtopk": _with_k("batchtopk"),
  "mutual_choice_zipf": _with_k("batchtopk", aux="zipf"),
  "feature_choice": _with_k("feature_choice"),
  "feature_choice_zipf": _with_k("feature_choice", budget="zipf"),
  "mc_then_fc": _with_k("mc_then_fc"),
  "gba": Variant(recipe="gba", arguments=_gba),
  "matryoshka": _with_k("matryoshka"),
  "msae": Variant(recipe="msae", arguments=_msae),
  "hierarchical_topk": _with_k("hierarchical_topk"),
  "multi_topk": _with_k("multi_topk"),
  "kronsae": _with_k("kronsae"),
  "ortsae": _with_k("ortsae", every=1),
  "ra_sae": _with_k("ra_sae"),
  "topafa": Variant(
    recipe="topafa", arguments=lambda k, n, d: {}, sweeps=NOTHING
  ),
  "adaptivek": Variant(recipe="adaptivek", arguments=_adaptivek),
  "vsae": _with_k("vsae", coefficient=1e-4, posterior="learned"),
  "topk_l2": _with_k("topk_l2"),
  "atm": _swept("atm", L1, coefficient=0.05),
}
