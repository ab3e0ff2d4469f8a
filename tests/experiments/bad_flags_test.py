"""Bad flags of every script: refused by name before any work, exit code 2."""

import pathlib
from unittest import mock

from absl.testing import absltest, parameterized

from tests.experiments import script

BASE = {"train": ("--store=s", "--held_out=h", "--sae.k=4")}
HUGE = "1e15"

# Script -> flags -> words of the rule. The first line begins with the flag.
STUDIES = (
  "allocation",
  "architectures",
  "bias_adaptation",
  "ensembling",
  "variational",
)
WHOLE = ("0", "-1", "1.5", "x", "")
TRAIN = {
  "--train.batch_rows": WHOLE,
  "--train.epochs": ("0", HUGE, "1.5", ""),
  "--train.learning_rate": ("0", "-1", "inf", "nan", "fast", ""),
  "--train.learning_rate_n": ("0", "-5"),
  "--train.learning_rate_exponent": ("inf", "-inf", "nan", "x"),
  "--train.warmup_steps": ("-1", "1.5", ""),
  "--train.decay_fraction": ("-0.1", "1.5", "nan", "inf"),
  "--train.clip_norm": ("0", "-1", "inf", "nan"),
  "--train.ema_decay": ("0", "1", "-1", "inf"),
  "--train.dead_after_tokens": ("-1",),
  "--train.engine": ("fast", ""),
  "--train.dtype": ("float16",),
  "--train.members": ("all",),
  "--train.mesh": ("1,x,1", "a"),
  "--train.steps_per_dispatch": ("0", "-1"),
  "--train.window_chunks": ("0",),
  "--train.lanes": ("0",),
  "--train.nonfinite": ("ignore",),
  "--train.checkpoint_steps": ("0", "-1"),
  "--train.eval_rows": ("0",),
  "--train.eval_steps": ("-1", "1.5"),
  "--train.log_steps": ("0", "1.5"),
  "--train.seed": ("-1", "x"),
  "--sae.recipe": ("", "sae"),
  "--sae.n": ("0", "-1", "", "8,8", "8,x", "8,,16"),
  "--sae.seeds": ("0", "-1", ""),
  "--sae.prep": ("zscore", ""),
  "--sae.k": ("x", "", "4,4", "1.5"),
  "--sae.k_aux": ("x", "2,2"),
  "--sae.aux_weight": ("x", "nan", ""),
  "--sae.bandwidth": ("0.1",),
}
HARVEST = {
  "--harvest.rows": WHOLE,
  "--harvest.layers": ("x", "1,1", "-1,2"),
  "--harvest.cond": ("layer", "depth"),
  "--harvest.score": ("length",),
  "--harvest.held_out_rows": ("0", "-1"),
  "--harvest.held_out_fraction": ("0", "1", "nan", "-0.5", "inf"),
  "--harvest.document_tokens": ("-1",),
  "--harvest.context": ("0", "-1", "x"),
  "--harvest.forward_batch": ("0", "1e9", HUGE),
  "--harvest.pool_batches": ("0",),
  "--harvest.bucket_rows": ("0", "100"),
  "--harvest.shard_rows": ("0", "100"),
  "--harvest.chunk_rows": ("0",),
  "--harvest.outlier_multiple": ("-1", "inf", "nan"),
  "--harvest.calibration_rows": ("0",),
  "--harvest.drop_ids": ("1,x",),
  "--harvest.dtype": ("float16", ""),
  "--harvest.seed": ("-1",),
}
STUDY = {
  "train.steps": WHOLE,
  "train.window_chunks": ("8",),
  "train.eval_rows": ("100",),
  "train.eval_steps": ("100",),
  "train.clip_norm": ("0", "inf", "on"),
  "seeds": ("0", ""),
}
OWN = {
  "scaling": {
    "--resamples": ("-1", "0", "1", "x"),
    "--run_dir": ("",),
  },
  "train": {"--run_dir": ("",), "--store": ("",), "--held_out": ("",)},
  "allocation": {
    "--run_dir": ("",),
    "--k": ("", "0", "8,8", "-4"),
    "--n": ("0", "-1"),
    "--shown_k": ("7",),
  },
  "architectures": {
    "--run_dir": ("",),
    "--k": ("", "0", "8,8"),
    "--methods": ("", "nothing", "topk,topk"),
    "--more_sites": ("gpt2",),
    "--expansion": ("0", "-1", "inf", "nan"),
  },
  "bias_adaptation": {
    "--every": ("0",),
    "--directions": ("0",),
    "--d": ("0",),
    "--active": ("0", "65"),
    "--n": ("0",),
    "--targets": ("", "0", "2", "0.1,0.1"),
    "--phase_n": ("", "0", "64,64"),
    "--phase_d": ("", "-16"),
    "--phase_active": ("", "0"),
    "--real_n": ("0",),
  },
  "claims": {
    "--first.k": ("", "32,8", "8,8", "0"),
    "--second.k": ("", "32,8"),
    "--first.n": ("0",),
    "--sites": ("0", "3"),
    "--run_dir": ("",),
  },
  "ensembling": {
    "--sizes": ("", "0", "2,1", "1,1"),
    "--n": ("0",),
    "--k": ("0", "999", ""),
    "--harvest.held_out_rows": ("1000",),
    "--run_dir": ("",),
  },
  "variational": {
    "--weights": ("", "0", "-1", "inf", "0.1,0.1", "nan"),
    "--n": ("0",),
    "--k": ("0", "999"),
  },
}
UNKNOWN = ("--nothing=1", "--sae.nothing=1", "--k", "stray", "--flagfile=")


def cases() -> list[tuple[str, str]]:
  """Every script with every bad flag."""
  found = []
  tables = {"scaling": {**TRAIN, **HARVEST}, "harvest": HARVEST}
  for name in STUDIES:
    tables[name] = {f"--{flag}": v for flag, v in STUDY.items()}
  for name, table in OWN.items():
    tables[name] = {**tables.get(name, {}), **table}
  for name, table in tables.items():
    for flag, values in table.items():
      found += [(name, f"{flag}={value}") for value in values]
    found += [(name, flag) for flag in UNKNOWN]
  return found


class BadFlagsTest(parameterized.TestCase):
  def test_the_table_is_long(self):
    self.assertGreater(len(cases()), 150)
    self.assertLen(set(cases()), len(cases()))

  def test_each_is_one_line_with_its_name_before_any_work(self):
    modules = {name: script.load(name) for name, _ in cases()}
    for name, flag in cases():
      with self.subTest(name, flag=flag):
        module = modules[name]
        with (
          mock.patch.object(script, "load", lambda name: modules[name]),
          mock.patch.object(module, "main", _work),
        ):
          base = BASE.get(name, ())
          code, out, err = script.run(name, *base, flag)
        self.assertEqual((code, out), (2, ""), err)
        lines = err.splitlines()
        self.assertLen(lines, 1, err)
        shown = flag.partition("=")[0]
        if flag == "stray":
          shown = "argument=stray"
        if flag == "--k" and name in ("scaling", "train", "harvest", "claims"):
          shown = "--k"
        self.assertStartsWith(lines[0], shown)
        self.assertRegex(lines[0], ": .+; .+")  # a rule and a remedy

  def test_a_flagfile_that_names_itself_is_refused(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    one, two = folder / "one.flags", folder / "two.flags"
    one.write_text(f"--flagfile={two}\n")
    two.write_text(f"--flagfile={one}\n")
    code, _, err = script.run("harvest", f"--flagfile={one}")
    self.assertEqual(code, 2)
    self.assertRegex(err, "^--flagfile=.*must not name itself .*; remove .*\n$")


def _work(_) -> None:
  raise AssertionError("work began")


if __name__ == "__main__":
  absltest.main()
