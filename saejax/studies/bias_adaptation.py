"""Firing rates held by biases: recovery of planted dictionaries, real frontiers.

References:
  Chen et al., Taming Polysemanticity in LLMs: Provable Feature Recovery via
  Sparse Autoencoders, 2025, arXiv:2506.14002.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from saejax.data import synthetic
from saejax.evals import matching, recovery
from saejax.recipes import bias_adaptation, row_sparse, thresholds
from saejax.report import curves, page, study
from saejax.sae import prep
from saejax.studies import arms
from saejax.training.parts import sparsity

ROWS, HELD_OUT = 131_072, 4096
PLANTED_KEY = 1_000_003
TAU = 0.9  # cosine at which a planted direction counts as found
GROUPS = 8  # of group bias adaptation; divides the usual numbers of latents


def planted_rows(
  n: int, d: int, active: int, *, seed: int = 0
) -> tuple[arms.Rows, np.ndarray]:
  """Rows with exactly `active` of n directions each, and those directions.

  Coefficients are uniform on (0.5, 1.5); rows are scaled to mean square norm 1.
  """
  # Not the keys of initial weights: those would start at the truth.
  keys = jax.random.split(jax.random.key(PLANTED_KEY + seed), 3)
  V = synthetic.directions(keys[0], n, d)

  def draw(key, rows):
    where, size = jax.random.split(key)
    on = synthetic.exactly(where, rows, active, np.ones((n,), np.float32))
    return synthetic.coefficients(size, on) @ V

  x, held_out = jax.jit(
    lambda: (draw(keys[1], ROWS), draw(keys[2], HELD_OUT))
  )()
  scale = float(np.sqrt(np.mean(np.sum(np.square(x), axis=-1))))
  about = {"directions": n, "d": d, "active": active, "seed": seed}
  made = arms.planted({"x": x / scale}, {"x": held_out / scale}, about)
  return made, np.asarray(V)


def measure(
  truths: Mapping[str, np.ndarray],
) -> Callable[[arms.Trained], list[dict[str, Any]]]:
  """Recovery of the planted directions, and agreement of seeds.

  Args:
    truths: by name of the arm; arms of real rows have none.

  Returns:
    A measure that gives frr, recall (planted) and shared: the fraction of live
    latents that the next seed of the same setting has too.
  """

  def of(trained: arms.Trained) -> list[dict[str, Any]]:
    truth, points = truths.get(trained.arm.name), []
    count = len(trained.saes)
    seeds = count // (len(trained.arm.k) * len(trained.arm.coefficients))
    for i, sae in enumerate(trained.saes):
      point: dict[str, Any] = {}
      if truth is not None:
        found = recovery.recovery(truth, np.asarray(sae.W_dec), tau=TAU)
        point = {"frr": found.frr, "recall": found.recall}
      if seeds > 1:
        j = i - i % seeds + (i + 1) % seeds
        pair = matching.match(
          sae,
          trained.saes[j],
          by="decoder",
          alive_a=trained.found[i].density > 0,
          alive_b=trained.found[j].density > 0,
        )
        point["shared"] = pair.fraction
      points.append(point)
    return points

  return of


def resonance_arms(
  rows: arms.Rows,
  config: arms.StudyConfig,
  *,
  n: int,
  targets: Sequence[float],
  active: int,
  every: int,
) -> list[arms.Arm]:
  """BA over target frequencies, and what it is compared with, on planted rows."""
  options = {**arms.options(config, rows), "prep": prep.Identity()}
  d = rows.d
  made = [
    arms.Arm(
      name=f"BA p={target:g}",
      make=lambda k, p=target: bias_adaptation.ba(
        d, n, target=p, every=every, **options
      ),
      n=n,
      rows=rows,
      facts={"method": "BA", "target": target},
    )
    for target in targets
  ]
  others = {
    "GBA": lambda k: bias_adaptation.gba(
      d, n, groups=GROUPS, every=every, **options
    ),
    "TopK": lambda k: row_sparse.topk(d, n, active, **options),
    "L1": lambda k: row_sparse.relu_l1(d, n, coefficient=0.05, **options),
    "JumpReLU": lambda k: thresholds.jumprelu(
      d,
      n,
      coefficient=1.0,
      penalty=sparsity.l0_target(active),
      coefficient_steps=config.steps // 10,
      theta=0.05,
      eps=0.05,
      **options,
    ),
  }
  return made + [
    arms.Arm(
      name=name,
      make=make,
      n=n,
      rows=rows,
      facts={"method": name, "target": None},
    )
    for name, make in others.items()
  ]


def phase_arms(
  config: arms.StudyConfig,
  *,
  widths: Sequence[int],
  dims: Sequence[int],
  actives: Sequence[int],
  directions: int,
  every: int,
) -> tuple[list[arms.Arm], dict[str, np.ndarray]]:
  """GBA over width n, dimension d and sparsity s, with the planted truths."""
  made, truths = [], {}
  for d, active in itertools.product(dims, actives):
    rows, V = planted_rows(directions, d, active)
    options = {**arms.options(config, rows), "prep": prep.Identity()}
    for n in widths:
      name = f"phase n={n} d={d} s={active}"
      truths[name] = V
      made.append(
        arms.Arm(
          name=name,
          make=lambda k, n=n, d=d, options=options: bias_adaptation.gba(
            d, n, groups=GROUPS, every=every, **options
          ),
          n=n,
          rows=rows,
          facts={"method": "phase", "d": d, "active": active},
        )
      )
  return made, truths


def real_arms(
  rows: arms.Rows, config: arms.StudyConfig, *, n: int, every: int
) -> list[arms.Arm]:
  """The loss-L0 frontier on real activations."""
  options, d = arms.options(config, rows), rows.d

  def arm(name, make, **swept):
    return arms.Arm(
      name=f"real {name}", make=make, n=n, facts={"method": name}, **swept
    )

  made = [
    arm("TopK", lambda k: row_sparse.topk(d, n, k, **options), k=(8, 16, 32)),
    arm(
      "L1",
      lambda k: row_sparse.relu_l1(d, n, coefficient=0.05, **options),
      coefficients=(0.5, 1.0, 2.0, 4.0),
    ),
    arm(
      "JumpReLU",
      lambda k: thresholds.jumprelu(
        d,
        n,
        coefficient=1.0,
        penalty=sparsity.l0_target(k),
        coefficient_steps=config.steps // 10,
        theta=0.05,
        eps=0.05,
        **options,
      ),
      k=(8, 16, 32),
    ),
  ]
  for htf in (0.05, 0.1, 0.3):
    made.append(
      arms.Arm(
        name=f"real GBA htf={htf:g}",
        make=lambda k, htf=htf: bias_adaptation.gba(
          d, n, htf=htf, every=every, groups=GROUPS, **options
        ),
        n=n,
        facts={"method": "GBA", "htf": htf},
      )
    )
  return made


def sections(
  points: Sequence[Mapping[str, Any]], frequency: float
) -> tuple[list[page.Section], dict[str, Any]]:
  """What the page says, and its plots by name.

  Args:
    points: of all arms.
    frequency: of the planted features, in rows.
  """
  blocks, drawn = [], {}
  planted = [p for p in points if "frr" in p and p["method"] != "phase"]
  if planted:
    drawn["resonance"] = _resonance(planted)
    blocks.append(
      page.Section(
        "Recovery against target frequency",
        [
          page.Prose(
            f"Each planted feature is on in {frequency:.3f} of the rows. A "
            f"direction counts as found at a cosine above {TAU}; level lines "
            "are methods that have no target."
          ),
          study.figure(
            drawn["resonance"],
            "Share of planted features found against the target frequency.",
            "Bias adaptation over its target frequency; means over seeds.",
          ),
        ],
      )
    )
  phase = [p for p in points if p["method"] == "phase"]
  if phase:
    drawn["phase"] = _phase(phase)
    blocks.append(
      page.Section(
        "Phase diagram of group bias adaptation",
        [
          study.figure(
            drawn["phase"],
            "Share of features found over width and sparsity.",
            "Share of planted features found; means over seeds.",
          )
        ],
      )
    )
  real = [{**p, "arm": p["method"]} for p in points if "frr" not in p]
  if real:
    made = curves.panels(
      {
        "Reconstruction": curves.by_arm(
          real, "l0", "fvu", by=("k", "coefficient", "htf")
        ),
        "Agreement of seeds": curves.by_arm(
          real, "l0", "shared", by=("k", "coefficient", "htf")
        ),
      },
      curves.Axis("held-out L0", log=True),
      [
        curves.Axis("FVU", log=True),
        curves.Axis("share of latents of another seed"),
      ],
    )
    drawn["frontier"] = made
    blocks.append(
      page.Section(
        "Real activations",
        [
          study.figure(
            made,
            "FVU and share of latents found by another seed, against L0.",
            "Held-out rows; latents are shared at a decoder cosine above "
            f"{matching.TAU}.",
          )
        ],
      )
    )
  columns = {
    "arm": ("Arm", ""),
    "n": ("n", "d"),
    "k": ("k", "d"),
    "coefficient": ("×", ".3g"),
    "seed": ("Seed", "d"),
    "l0": ("L0", ".2f"),
    "fvu": ("FVU", ".4f"),
    "dead": ("Dead", ".3f"),
    "frr": ("Found", ".3f"),
    "recall": ("Mean max cosine", ".3f"),
    "shared": ("Shared", ".3f"),
  }
  blocks.append(
    page.Section(
      "Every SAE", [study.table(points, columns, "All that were trained.")]
    )
  )
  return blocks, drawn


def _resonance(planted):
  swept = [p for p in planted if p["target"] is not None]
  targets = sorted({p["target"] for p in swept})
  drawn = {}
  for title, name in (("Found (FRR)", "frr"), ("Mean max cosine", "recall")):
    drawn[title] = curves.by_arm(
      [{**p, "arm": "BA"} for p in swept], "target", name, by=("target",)
    )
    for method in dict.fromkeys(p["method"] for p in planted):
      values = [
        p[name]
        for p in planted
        if p["method"] == method and p["target"] is None
      ]
      if values:
        mean = float(np.mean(values))
        drawn[title][method] = curves.Curve(targets, [mean] * len(targets))
  return curves.panels(
    drawn,
    curves.Axis("target frequency", log=True),
    [
      curves.Axis("share of planted features"),
      curves.Axis("cosine, mean over planted features"),
    ],
  )


def _phase(points):
  ns = sorted({p["n"] for p in points})
  actives = sorted({p["active"] for p in points})
  maps = {}
  for d in sorted({p["d"] for p in points}):
    cell = lambda n, s, d=d: [
      p["frr"] for p in points if (p["n"], p["active"], p["d"]) == (n, s, d)
    ]
    maps[f"d = {d}"] = np.array(
      [[np.mean(cell(n, s) or [np.nan]) for n in ns] for s in actives]
    )
  return curves.heat(
    maps,
    ("latents n", ns),
    ("features on a row s", actives),
    "share of features found",
  )
