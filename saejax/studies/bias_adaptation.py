"""Group Bias Adaptation on planted dictionaries and on real activations.

    python experiments/bias_adaptation.py \\
      --flagfile=experiments/flags/bias-adaptation.flags

References:
  Chen et al., Taming Polysemanticity in LLMs: Provable Feature Recovery via
  Sparse Autoencoders, 2025, arXiv:2506.14002.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from saejax import checks
from saejax.data import synthetic
from saejax.data.harvest import HarvestConfig
from saejax.evals import matching, recovery
from saejax.recipes import bias_adaptation, row_sparse, thresholds
from saejax.report import curves, extras, page, study
from saejax.runs import folder as run_folder
from saejax.sae import prep
from saejax.studies import arms
from saejax.training.config import TrainConfig

ROWS, HELD_OUT = 131_072, 4096
PLANTED_KEY = 1_000_003
TAU = 0.9  # cosine at which a planted direction counts as found
JUMPRELU: dict[str, Any] = {
  "coefficient": 1.0,
  "penalty": "l0_target",
  "theta": 0.05,
  "bandwidth": 0.05,
}
GROUPS = 8  # of group bias adaptation; divides the usual numbers of latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the study."""

  run_dir: str = "runs/bias_adaptation"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()
  train: TrainConfig = TrainConfig()
  seeds: int = 3  # SAEs of each arm, paired across arms by seed
  every: int = 5  # steps between adaptations
  directions: int = 64  # planted features
  d: int = 32  # width of planted rows
  active: int = 3  # active planted features per row
  n: int = 256  # latents on planted rows
  targets: tuple[float, ...] = (0.01, 0.02, 0.047, 0.1, 0.2, 0.4)  # of BA
  phase_n: tuple[int, ...] = (64, 128, 256)  # latents of the phase diagram
  phase_d: tuple[int, ...] = (16, 32)  # widths
  phase_active: tuple[int, ...] = (1, 3, 6, 10)  # active features per row
  real_n: int = 768  # latents on real rows

  def __post_init__(self):
    arms.check(self.train)
    checks.at_least(self, 1, "seeds", "directions", "every", "d", "n", "real_n")
    checks.at_least(self, 1, "active")
    checks.at_most(self, self.directions, "active")
    checks.distinct(self, "phase_n", "phase_d", "phase_active")
    checks.distinct(self, "targets", least=1e-6, most=1)


def main(config: Config) -> None:
  """Trains every arm and writes the report."""
  extras.check()
  with run_folder.opened(config.run_dir, config) as folder:
    real = arms.harvested(config.harvest)
    planted, V = planted_rows(config.directions, config.d, config.active)
    resonance = resonance_arms(
      planted,
      config.train,
      n=config.n,
      targets=config.targets,
      active=config.active,
      every=config.every,
    )
    phase, truths = phase_arms(config)
    front = real_arms(real, config.train, n=config.real_n, every=config.every)
    truths |= {arm.name: V for arm in resonance}
    points = arms.run(
      folder,
      [*resonance, *phase, *front],
      real,
      config.train,
      seeds=config.seeds,
      measure=measure(truths),
    )
    study.write(
      folder,
      sections(points, config.active / config.directions),
      config=config,
      points=points,
      data=real.about,
      title="Group bias adaptation",
      script="experiments/bias_adaptation.py",
    )


def planted_rows(
  n: int, d: int, active: int, *, seed: int = 0
) -> tuple[arms.Rows, np.ndarray]:
  """Rows with exactly `active` of n directions each, and those directions.

  Coefficients are uniform on (0.5, 1.5); rows are scaled to mean square norm 1.

  Args:
    n: number of directions.
    d: width of rows.
    active: active directions per row.
    seed: seed of directions and rows.
  """
  # Not the keys of initial weights: those would start at the truth.
  keys = jax.random.split(jax.random.key(PLANTED_KEY + seed), 3)
  V = synthetic.directions(keys[0], n, d)

  def draw(key, rows):
    where, size = jax.random.split(key)
    on = synthetic.exactly(where, rows, active, np.ones((n,), np.float32))
    return synthetic.coefficients(size, on) @ V

  both = jax.jit(lambda: (draw(keys[1], ROWS), draw(keys[2], HELD_OUT)))
  x, held_out = both()
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

  def measured(trained: arms.Trained) -> list[dict[str, Any]]:
    settings = len(trained.arm.k) * len(trained.arm.coefficients)
    shares = matching.shared_with_next(
      trained.saes,
      [m.density for m in trained.found],
      len(trained.saes) // settings,
    )
    truth, points = truths.get(trained.arm.name), []
    for sae, share in zip(trained.saes, shares, strict=True):
      point: dict[str, Any] = {} if share is None else {"shared": share}
      if truth is not None:
        directions = recovery.recovery(truth, np.asarray(sae.W_dec), tau=TAU)
        point |= {"frr": directions.frr, "recall": directions.recall}
      points.append(point)
    return points

  return measured


def resonance_arms(
  rows: arms.Rows,
  config: TrainConfig,
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
        d, n, frequency=p, every=every, **options
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
      d, n, target_l0=active, **JUMPRELU, **options
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
  config: Config,
) -> tuple[list[arms.Arm], dict[str, np.ndarray]]:
  """GBA over width n, dimension d and sparsity s, with the planted truths."""
  made, truths = [], {}
  for d, active in itertools.product(config.phase_d, config.phase_active):
    rows, V = planted_rows(config.directions, d, active)
    options = {**arms.options(config.train, rows), "prep": prep.Identity()}
    for n in config.phase_n:
      name = f"phase n={n} d={d} s={active}"
      truths[name] = V
      made.append(
        arms.Arm(
          name=name,
          make=lambda k, n=n, d=d, options=options: bias_adaptation.gba(
            d, n, groups=GROUPS, every=config.every, **options
          ),
          n=n,
          rows=rows,
          facts={"method": "phase", "d": d, "active": active},
        )
      )
  return made, truths


def real_arms(
  rows: arms.Rows, config: TrainConfig, *, n: int, every: int
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
      lambda k: thresholds.jumprelu(d, n, target_l0=k, **JUMPRELU, **options),
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


COLUMNS = {
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


def sections(
  points: Sequence[Mapping[str, Any]], frequency: float
) -> tuple[list[page.Section], dict[str, Any]]:
  """The sections of the page, and its plots by name.

  Args:
    points: of all arms.
    frequency: of the planted features, in rows.
  """
  planted = [p for p in points if "frr" in p and p["method"] != "phase"]
  phase = [p for p in points if p["method"] == "phase"]
  real = [{**p, "arm": p["method"]} for p in points if "frr" not in p]
  blocks, drawn = [], {}
  if planted:
    drawn["resonance"] = _resonance(planted)
    about = page.Prose(
      f"Each planted feature is active on {frequency:.3f} of the rows. A "
      f"direction is found at a cosine above {TAU}; horizontal lines are "
      "methods without a target."
    )
    plot = study.figure(
      drawn["resonance"],
      "Share of planted features found against the target frequency.",
      "Bias adaptation over its target frequency; means over seeds.",
    )
    title = "Recovery against target frequency"
    blocks.append(page.Section(title, [about, plot]))
  if phase:
    drawn["phase"] = _phase(phase)
    plot = study.figure(
      drawn["phase"],
      "Share of features found over width and sparsity.",
      "Share of planted features found; means over seeds.",
    )
    title = "Phase diagram of group bias adaptation"
    blocks.append(page.Section(title, [plot]))
  if real:
    drawn["frontier"] = _frontier(real)
    plot = study.figure(
      drawn["frontier"],
      "FVU and share of latents found by another seed, against L0.",
      "Held-out rows; latents are shared at a decoder cosine above "
      f"{matching.TAU}.",
    )
    blocks.append(page.Section("Real activations", [plot]))
  table = study.table(points, COLUMNS, "All trained SAEs.")
  return [*blocks, page.Section("Every SAE", [table])], drawn


def _frontier(real):
  by = ("k", "coefficient", "htf")
  return curves.panels(
    {
      "Reconstruction": curves.by_arm(real, "l0", "fvu", by=by),
      "Agreement of seeds": curves.by_arm(real, "l0", "shared", by=by),
    },
    curves.Axis("held-out L0", log=True),
    [
      curves.Axis("FVU", log=True),
      curves.Axis("share of latents of another seed"),
    ],
  )


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
    ("active features per row s", actives),
    "share of features found",
  )
