"""Tests of saejax/config.py."""

import dataclasses
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from typing import Literal

from absl import flags
from absl.testing import absltest, parameterized

from saejax import config, fields, usage
from saejax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sae:
  k: int = 32  # active latents of an example
  kind: Literal["relu", "topk"] = "topk"  # activation

  def __post_init__(self):
    if self.k < 1:
      raise InputError("k", self.k, "must be at least 1", "raise it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  sae: Sae = Sae(k=8)
  # learning rate,
  # a step
  rate: float = 1e-3
  sizes: tuple[int, ...] = (512, 1_024)  # latents: naïve comment
  mesh: tuple[int, int, int] = (1, 1, 1)  # ensemble, data, latent
  betas: tuple[float, ...] = ()  # decay rates

  def __post_init__(self):
    if self.sae.k > max(self.sizes):
      raise InputError("sae.k", self.sae.k, "must be at most n", "lower it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  prompt: tuple[str, ...] = dataclasses.field(
    default=(), metadata={"repeated": True}
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  train: Train = Train(rate=2e-3)
  name: str = "a run"  # shown in the report
  note: str | None = None
  seed: int | None = 0
  resume: bool = False
  tags: tuple[str, ...] = ()
  batch: int = dataclasses.field(default_factory=lambda: 7)  # rows


def parsed(cls, *args):
  values = flags.FlagValues()
  flags.DEFINE_string("flagfile", "", "", flag_values=values)
  config.define(cls, values)
  config.parse(["program", *args], values)
  return config.from_flags(cls, values)


class FlagsTest(parameterized.TestCase):
  def test_without_flags_the_defaults_come_back(self):
    self.assertEqual(parsed(Run), Run())

  def test_default_of_a_nested_field_is_that_of_the_config_around_it(self):
    self.assertEqual(parsed(Run).train.sae.k, 8)
    self.assertEqual(parsed(Run).train.rate, 2e-3)

  def test_a_repeated_flag_is_not_divided_at_commas_and_replays(self):
    self.assertEqual(parsed(Texts), Texts())
    found = parsed(Texts, "--prompt=a, b", "--prompt", "c=d (e,")
    self.assertEqual(found.prompt, ("a, b", "c=d (e,"))
    path = pathlib.Path(self.create_tempdir().full_path, "run.flags")
    config.write(path, found)
    self.assertEqual(parsed(Texts, f"--flagfile={path}"), found)
    with self.assertRaisesRegex(InputError, "on one line"):
      config.write(path, Texts(prompt=("a", "b\nc")))
    self.assertIn("may be given several times", usage.text(Texts, "", "p"))

  @parameterized.parameters(
    ("--train.sae.k=300_000", "--train.sizes=300_000", 300_000),
    ("--train.sae.k=3e5", "--train.sizes=1,3e5", 300_000),
    ("--train.sae.k", "4", 4),
  )
  def test_whole_numbers(self, *args):
    self.assertEqual(parsed(Run, *args[:-1]).train.sae.k, args[-1])

  @parameterized.parameters(
    (["--train.rate=1e-3"], "rate", 1e-3),
    (["--train.rate=1"], "rate", 1.0),
    (["--train.sizes=8,16, 32"], "sizes", (8, 16, 32)),
    (["--train.mesh=2,2,2"], "mesh", (2, 2, 2)),
    (["--train.betas=0.9,1e-8"], "betas", (0.9, 1e-8)),
    (["--train.betas="], "betas", ()),
    (["--train.sae.kind=relu"], "sae", Sae(k=8, kind="relu")),
    (["--train.rate=1", "--train.rate=2"], "rate", 2.0),
  )
  def test_typed_values(self, args, name, value):
    got = getattr(parsed(Run, *args).train, name)
    self.assertEqual(got, value)
    self.assertIs(type(got), type(value))

  @parameterized.parameters(
    (["--resume"], True),
    (["--resume=true"], True),
    (["--noresume"], False),
    (["--resume", "--resume=false"], False),
  )
  def test_bool(self, args, value):
    self.assertIs(parsed(Run, *args).resume, value)

  def test_none_is_written_none(self):
    self.assertIsNone(parsed(Run, "--seed=none").seed)
    self.assertEqual(parsed(Run, "--note=").note, "")
    with self.assertRaises(InputError):
      parsed(Run, "--batch=none")

  def test_flag_without_default_must_be_given(self):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Needs:
      path: str

    self.assertEqual(parsed(Needs, "--path=x").path, "x")
    with self.assertRaisesRegex(InputError, "path=: must be given"):
      parsed(Needs)

  @parameterized.parameters(dict, list[int], int | dict, tuple[int, str])
  def test_type_that_no_flag_can_hold_is_refused_on_definition(self, kind):
    cls = dataclasses.make_dataclass("C", [("x", kind)])
    with self.assertRaisesRegex(TypeError, "no flag can hold"):
      config.define(cls, flags.FlagValues())

  def test_prefix_leads_every_name(self):
    values = flags.FlagValues()
    config.define(Sae, values, prefix="first.")
    config.define(Sae, values, prefix="second.")
    config.parse(["program", "--second.k=3"], values)
    self.assertEqual(config.from_flags(Sae, values, "first."), Sae())
    self.assertEqual(config.from_flags(Sae, values, "second."), Sae(k=3))


class BadFlagsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("--train.sae.k=x", "train.sae.k", "x", "whole number"),
    ("--train.sae.k=1.5", "train.sae.k", "1.5", "whole number"),
    ("--train.sae.k=1e999999999", "train.sae.k", "1e99", "whole number"),
    ("--train.rate=fast", "train.rate", "fast", "a number"),
    ("--train.rate=nan", "train.rate", "nan", "a number"),
    ("--train.sizes=1,,2", "train.sizes", "1,,2", "whole number"),
    ("--train.mesh=1,2", "train.mesh", "1,2", "3 values"),
    ("--train.sae.kind=gelu", "train.sae.kind", "gelu", "relu, topk"),
    ("--resume=maybe", "resume", "maybe", "true or false"),
    ("--train.sae.k=0", "train.sae.k", "0", "at least 1; raise it"),
    ("--train.sizes=4", "train.sae.k", "8", "at most n; lower it"),
    ("--train.rat=1", "--train.rat", "1", r"mean --train\.rate\?"),
    ("--k=1", "--k", "1", r"mean --train\.sae\.k\?"),
    ("--xyzzy=1", "--xyzzy", "1", "--help lists"),
    ("--name", "--name", "", "needs a value"),
    ("--noresume=1", "--noresume", "1", "does not take"),
    ("stray", "argument", "stray", "not a flag"),
    ("seed=1", "argument", "seed=1", "write --seed=1"),
    ("--flagfile=/no/such", "--flagfile", "/no/such", "No such file"),
    ("--flagfile=", "--flagfile", "", "must not be empty"),
    ("--flagfile", "--flagfile", "", "needs a value"),
  )
  def test_error_names_field_value_and_what_to_do(self, arg, field, value, say):
    with self.assertRaisesRegex(InputError, say) as caught:
      parsed(Run, arg)
    self.assertEqual(caught.exception.field, field)
    self.assertStartsWith(str(caught.exception.value), value)
    self.assertNotIn("\n", str(caught.exception))

  def test_flagfile_of_bytes_and_line_without_dashes_are_refused(self):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, "f")
      path.write_bytes(b"\xff\xfe\x00")
      with self.assertRaisesRegex(InputError, "is not text"):
        parsed(Run, f"--flagfile={path}")
      path.write_text("# comment\n\nseed=3\n")
      with self.assertRaisesRegex(InputError, "argument=seed=3"):
        parsed(Run, f"--flagfile={path}")


class WriteTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name, "run.flags")

  @parameterized.parameters(
    Run(),
    Run(name="", note=None, seed=None, tags=("a b", "#c", "--d=e")),
    Run(name="naïve = 'x' # y", note="//z", seed=-3, resume=True),
    Run(train=Train(rate=0.1 + 0.2, sizes=(8,), betas=(1e-300, 1e22))),
    Run(train=Train(sae=Sae(k=2, kind="relu"), mesh=(2, 2, 2))),
    Run(train=Train(rate=float("inf"))),
  )
  def test_flagfile_gives_an_equal_config(self, wrote):
    config.write(self.path, wrote)
    self.assertEqual(parsed(Run, f"--flagfile={self.path}"), wrote)

  def test_every_flag_is_written_and_later_flags_win(self):
    config.write(self.path, Run())
    *lines, last = self.path.read_text().splitlines()
    self.assertStartsWith(last, "# sha256 of the lines above: ")
    names = ["--" + leaf.name for leaf in fields.leaves(Run)]
    self.assertEqual([line.partition("=")[0] for line in lines], names)
    again = parsed(Run, f"--flagfile={self.path}", "--seed=5")
    self.assertEqual(again, Run(seed=5))

  @parameterized.parameters(
    ("name", "two\nlines"),
    ("name", "return\r"),
    ("name", " edge"),
    ("name", "edge\t"),
    ("name", "\udcff"),
    ("note", "none"),
    ("tags", ("a,b",)),
    ("tags", ("",)),
    ("tags", ("a", "b ")),
    ("tags", "ab"),
    ("batch", True),
    ("batch", 1.5),
    ("batch", None),
  )
  def test_value_that_would_not_replay_is_refused(self, field, value):
    self.path.write_text("before")
    with self.assertRaises(InputError) as caught:
      config.write(self.path, Run(**{field: value}))
    self.assertEqual(caught.exception.field, field)
    self.assertEqual(self.path.read_text(), "before")
    self.assertEqual(list(self.path.parent.iterdir()), [self.path])


SCRIPT = '''"""Does a thing."""
import dataclasses, signal, sys, time, types
# A shell may have started these tests with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
saejax = types.ModuleType("saejax")  # without __init__: starts in no time
saejax.__path__ = [{root!r} + "/saejax"]
sys.modules["saejax"] = saejax
from saejax import config, usage
from saejax.errors import InputError

@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
  k: int = 1  # how many
  def __post_init__(self):
    if self.k < 0:
      raise InputError("k", self.k, "must not be negative", "raise it")

@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
  inner: Inner = Inner()
  run_dir: str = "nowhere"  # folder

def main(c):
  if c.inner.k == 7:
    raise InputError("inner.k", c.inner.k, "is not liked", "take 8")
  if c.inner.k == 9:
    raise InputError("store", "x", "is half-written", "harvest again")
  if c.inner.k == 10:
    print("ready", flush=True)
    time.sleep(60)
  if c.inner.k == 11:
    raise KeyError("lost")
  print("ran", c.inner.k)
  return 3

if __name__ == "__main__":
  config.run(main, Outer)
'''


class RunTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.script = pathlib.Path(folder.name, "script.py")
    cls.script.write_text(SCRIPT.format(root=str(ROOT)))

  def start(self, *args):
    return subprocess.Popen(
      [sys.executable, str(self.script), *args],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  @parameterized.parameters(
    ("--inner.k=-1", "--inner.k=-1: must not be negative; raise it"),
    ("--inner.k=7", "--inner.k=7: is not liked; take 8"),
    ("--inner.k=9", "store=x: is half-written; harvest again"),
    ("--iner.k=9", "--iner.k=9: unknown flag; did you mean --inner.k?"),
  )
  def test_bad_input_is_one_line_and_exit_code_2(self, arg, line):
    process = self.start(arg)
    out, err = process.communicate(timeout=60)
    self.assertEqual((process.returncode, out, err), (2, "", line + "\n"))

  def test_what_main_returns_is_the_exit_code(self):
    process = self.start("--inner.k=5")
    out, _ = process.communicate(timeout=60)
    self.assertEqual((process.returncode, out), (3, "ran 5\n"))

  def test_help_shows_each_flag_with_default_and_comment(self):
    process = self.start("--help")
    out, err = process.communicate(timeout=60)
    self.assertEqual((process.returncode, err), (0, ""))
    self.assertIn("Does a thing.", out)
    self.assertRegex(out, r"--inner\.k=1 .*\n +how many\n")

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_a_signal_is_one_line_and_its_exit_code(self, number):
    process = self.start("--inner.k=10")
    self.assertEqual(process.stdout.readline(), "ready\n")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 128 + number)
    self.assertRegex(err, f"^{signal.Signals(number).name}: stopped; .*\n$")

  @parameterized.parameters(True, False)
  def test_an_unexpected_exception_is_one_line_that_names_a_file(self, made):
    folder = pathlib.Path(self.create_tempdir().full_path)
    run_dir = folder if made else folder / "absent"
    process = self.start("--inner.k=11", f"--run_dir={run_dir}")
    _, err = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 1)
    found = re.fullmatch(
      "error: KeyError: 'lost'; the traceback is in (.*)\n", err
    )
    self.assertIsNotNone(found, err)
    path = pathlib.Path(found[1])
    self.addCleanup(path.unlink)
    self.assertEqual(path.parent == folder, made)
    self.assertIn('raise KeyError("lost")', path.read_text())


class UsageTest(absltest.TestCase):
  def test_without_source_the_help_still_lists_the_flags(self):
    space = {}
    exec(
      "import dataclasses\n"
      "@dataclasses.dataclass(frozen=True)\n"
      "class NoSource:\n"
      "  width: int = 3  # lost\n",
      space,
    )
    self.assertIn("--width=3", usage.text(space["NoSource"], None, "p"))


if __name__ == "__main__":
  absltest.main()
