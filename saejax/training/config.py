"""How SAEs are trained: the settings of runs and studies, and their defaults."""

import dataclasses
import math
from typing import Any, Literal

from saejax import checks
from saejax.errors import InputError
from saejax.training.parts import rules, schedules

# Of methods without a schedule of their own. These, and the defaults of batch and
# rate, were chosen by the held-out error of TopK after one pass over 320,000 rows:
# benchmarks/defaults.py.
WARMUP_FRACTION, MOST_WARMUP, DECAY_FRACTION = 0.1, 1000, 0.5
# Settings that do not determine results: cadences, devices, and where metrics go.
NO_RESULT = (
  "log_steps",
  "eval_steps",
  "checkpoint_steps",
  "mesh",
  "first_device",
  "shard_optimizer",
  "wandb",
)
MOST_RATE = 6e-3  # that the law of n alone leads to; TIDE diverges above


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """How a run trains; what it trains is the recipe's business."""

  batch_rows: int = 512  # rows per step, over all devices
  # parts of a batch that are computed one after the other, to save memory
  accumulate: int = 1
  steps: int | None = None  # batches; none: as many as the epochs have
  epochs: int = 1  # passes over the rows, where steps is not given
  learning_rate: float = 6e-3  # peak, of an SAE with learning_rate_n latents
  learning_rate_n: int = 1024  # latents at which learning_rate holds
  learning_rate_exponent: float = -0.5  # rate ~ n^exponent, as Gao et al.
  # linear rise of the rate; none: the method's own schedule, or a tenth of the
  # run, at most 1,000
  warmup_steps: int | None = None
  # part of the run over which the rate falls to 0; none: likewise, or 0.5
  decay_fraction: float | None = None
  # largest global norm of gradients, in the units of the method's loss; unit:
  # every gradient is divided by its norm; none: the method's own, or unit
  clip_norm: float | Literal["unit", "off"] | None = None
  ema_decay: float | None = None  # of the average of weights kept; none: off
  dead_after_tokens: int = 0  # 0: 10 million or a 50th of the run, if less
  engine: Literal["auto", "dense", "sparse"] = "auto"  # auto: sparse if it can
  # form of the kernels; auto: Pallas on a TPU where it is expected to pay
  kernels: Literal["auto", "xla", "pallas"] = "auto"
  # on a CPU: C++ kernels, which the system's compiler makes at their first use
  native: bool = False
  dtype: Literal["float32", "bfloat16"] = "float32"  # of matmul operands
  # in which matrices are kept between steps; bfloat16: rounded stochastically
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  # Adam's second moments: of each entry, or of each latent's row
  second_moments: Literal["element", "row"] = "element"
  # how members are stepped; auto: chosen for the hardware
  members: Literal["auto", "in_turn", "stacked"] = "auto"
  mesh: tuple[int, ...] = (1, 1, 1)  # devices: ensemble, data, latent
  # whether devices of the data axis share the optimizer's state
  shard_optimizer: bool = False
  # number of the mesh's first device, such as the one after those of a model
  first_device: int = 0
  # steps in one call of the compiled program; none: more than 1, up to 50, where
  # steps are small
  steps_per_dispatch: int | None = None
  window_chunks: int = 64  # chunks of the store that are mixed
  # parts that a store's chunks are dealt to: up to as many processes read no
  # chunk twice
  lanes: int = 1
  nonfinite: Literal["stop", "skip"] = "stop"  # policy on non-finite numbers
  # steps between checkpoints; a shorter run writes none
  checkpoint_steps: int = 500
  # held-out rows that rate a checkpoint, and give the curves during training
  eval_rows: int = 4096
  # steps between records on these rows, after whole dispatches; none: an eighth
  # of the run; 0: no records
  eval_steps: int | None = None
  log_steps: int = 10  # steps between records
  # project at Weights & Biases that metrics go to as well; none where empty
  wandb: str = ""
  seed: int = 0  # of the order of rows

  def __post_init__(self):
    given = lambda *names: [n for n in names if getattr(self, n) is not None]
    checks.at_least(
      self,
      1,
      "batch_rows",
      "accumulate",
      "epochs",
      "learning_rate_n",
      "window_chunks",
      "lanes",
      "checkpoint_steps",
      "eval_rows",
      "log_steps",
      *given("steps", "steps_per_dispatch"),
    )
    checks.at_least(
      self,
      0,
      "dead_after_tokens",
      "seed",
      "first_device",
      *given("warmup_steps", "eval_steps"),
    )
    checks.at_most(self, 1_000_000, "epochs")
    checks.positive(self, "learning_rate")
    checks.finite(self, "learning_rate_exponent")
    checks.fraction(self, *given("decay_fraction"))
    if not isinstance(self.clip_norm, str):
      checks.positive(self, "clip_norm")
    if self.ema_decay is not None and not 0 < self.ema_decay < 1:
      raise InputError(
        "ema_decay", self.ema_decay, "must be in (0, 1)", "none turns it off"
      )
    if self.steps is not None and self.epochs != 1:
      rule = "cannot be set beside steps"
      raise InputError("epochs", self.epochs, rule, "give one of the two")

    if self.batch_rows % self.accumulate:
      rule = f"must divide train.batch_rows, {self.batch_rows}"
      raise InputError("accumulate", self.accumulate, rule, "use a divisor")
    if self.native and math.prod(self.mesh) > 1:
      mesh = ",".join(map(str, self.mesh))
      rule = f"runs on one device, and the mesh is {mesh}"
      raise InputError("native", True, rule, "leave one of the two out")

  def total_steps(self, rows: int) -> int:
    """Number of batches of a run.

    Args:
      rows: number of rows in one epoch; not read where `steps` is given.

    Raises:
      InputError: the warmup is longer.
    """
    total = self.steps
    if total is None:
      total = rows * self.epochs // self.batch_rows
    if self.warmup_steps is not None and self.warmup_steps > total:
      raise InputError(
        "train.warmup_steps",
        self.warmup_steps,
        f"must be at most the {total} steps of the run",
        "lower it, or train for longer (train.steps, train.epochs)",
      )
    return total

  def decisive(self) -> dict[str, Any]:
    """The settings that decide results: all but `NO_RESULT`."""
    found = dataclasses.asdict(self)
    for name in NO_RESULT:
      del found[name]
    if not self.native:  # as runs from before this setting have it
      del found["native"]
    usual = TrainConfig()
    for name in ("accumulate", "lanes", "param_dtype", "second_moments"):
      if found[name] == getattr(usual, name):
        del found[name]
    return found

  def rate(self, n: int) -> float:
    """Peak learning rate of an SAE with n latents, for methods of rate 1.

    That of the law, see `schedules.learning_rate_for`, but at most 6e-3, or the
    given rate where that is above it.

    Args:
      n: number of latents.
    """
    law = schedules.learning_rate_for(
      n,
      base=self.learning_rate,
      base_n=self.learning_rate_n,
      exponent=self.learning_rate_exponent,
    )
    return min(law, max(MOST_RATE, self.learning_rate))

  def options(self, steps: int) -> dict[str, Any]:
    """The settings that all recipes of a run share.

    Args:
      steps: of the whole run.

    Returns:
      Keywords of a recipe, see `recipes.common.Options`. Schedule and clipping
      are among its defaults, which a method's own precede, unless they are
      given.
    """
    warmup, decay = self.warmup_steps, self.decay_fraction
    if warmup is None:
      warmup = min(MOST_WARMUP, round(WARMUP_FRACTION * steps))
    schedule = schedules.warmup_decay(
      steps,
      warmup_steps=warmup,
      decay_fraction=DECAY_FRACTION if decay is None else decay,
    )
    made: dict[str, Any] = {
      "dead_after_tokens": self.dead_after_tokens
      or rules.dead_after(steps * self.batch_rows),
      "steps": steps,
      "batch_rows": self.batch_rows,
      "ema_decay": self.ema_decay,
      "dtype": self.dtype,
      "defaults": {"schedule": schedule, "clip_norm": "unit"},
    }
    for name in ("param_dtype", "second_moments"):
      if getattr(self, name) != getattr(TrainConfig(), name):
        made[name] = getattr(self, name)
    if self.warmup_steps is not None or decay is not None:
      made["schedule"] = schedule
    if self.clip_norm is not None:
      made["clip_norm"] = None if self.clip_norm == "off" else self.clip_norm
    return made
