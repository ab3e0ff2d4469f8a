"""Two processes refuse together, and `saejax.fit` in them is that of one."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from safetensors import numpy as safetensors

from saejax import processes
from saejax.data import loader
from saejax.data.store import create
from saejax.errors import InputError
from saejax.processes import DistributedConfig
from tests import shared

ROWS, BATCH = 2_000, 48
CODE = """
import json, sys
import jax
index, count, port, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
if count > 1:
  jax.distributed.initialize(
    f"localhost:{port}", count, index, heartbeat_timeout_seconds=600)
import numpy as np
import saejax
from saejax import processes
from saejax.data import loader
from saejax.data.store import reader
from saejax.training import sharding

def refused(work):
  try:
    work()
  except saejax.InputError as error:
    return str(error)

def fail():
  raise saejax.InputError("run_dir", "x", "is in use", "wait")

x = np.random.default_rng(0).normal(size=(800, 8)).astype(np.float32)
fit = lambda mesh: saejax.fit(
  x, "batchtopk", n=16, k=2, steps=20, batch_rows=32, mesh=mesh, progress=False,
  native=False)
sae, metrics = fit((1, 2, 2))

def batches():
  # A sum over each batch that depends on the order of its rows.
  mesh = sharding.make_mesh((1, 4, 1))
  part = sharding.rows_part(mesh, BATCH)
  assert part == {"process_index": index, "process_count": count}, part
  whole = sharding.rows_part(sharding.make_mesh((2, 1, 2)), BATCH)
  assert whole == {"process_index": 0, "process_count": 1}, whole
  ranked = jax.jit(lambda x: (x[:, 0] * jax.numpy.arange(BATCH)).sum())
  store = reader.open(out + ".store")
  for batch in loader.batches(store, batch_rows=BATCH, seed=0, **part):
    x = sharding.put(mesh, {"x": batch["x"]}, count)["x"]
    assert x.shape == (BATCH, 4) and not x.is_fully_addressable
    assert x.addressable_shards[0].data.shape == (BATCH // 4, 4)
    yield float(ranked(x))

found = {
  "index": index,
  "first": refused(lambda: processes.first(fail)),
  "result": processes.first(lambda: 7),
  "agree": refused(lambda: processes.agree({"a": {"b": 1, "c": index}})),
  "shared": refused(lambda: processes.check_shared(f"{out}.own/{index}")),
  "same": refused(lambda: processes.check_shared(out + ".run")),
  "batches": list(batches()) if count > 1 else [],
  "rows": refused(lambda: saejax.fit(
    x + index, "batchtopk", n=16, k=2, steps=20, run_dir=out + ".run",
    mesh=(1, 2, 2), progress=False)) if count > 1 else "",
  "mesh": refused(lambda: fit((1, 2, 1))) if count > 1 else "",
  "batch": refused(lambda: saejax.fit(
    x, n=16, k=2, steps=2, batch_rows=30, mesh=(1, 4, 1), progress=False)),
  "fvu": metrics.fvu,
}
if index == 0:
  saejax.save(sae, out)
print(json.dumps(found))
if count > 1:
  jax.distributed.shutdown()
"""


def run(count: int, devices: int, out: pathlib.Path) -> list[dict]:
  """What each process found."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  flags = os.environ.get("XLA_FLAGS", "")
  forced = f"{flags} --xla_force_host_platform_device_count={devices}"
  arguments = [str(count), str(port), str(out)]
  code = CODE.replace("BATCH", str(BATCH))
  started = [
    subprocess.Popen(
      [sys.executable, "-c", code, str(i), *arguments],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=shared.ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": forced},
    )
    for i in range(count)
  ]
  ended = [process.communicate(timeout=600) for process in started]
  for process, (_, err) in zip(started, ended, strict=True):
    if process.returncode:
      raise AssertionError(err)
  return [json.loads(out.splitlines()[-1]) for out, _ in ended]


class PairTest(absltest.TestCase):
  def test_two_processes_refuse_together_and_fit_as_one(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    x = np.arange(ROWS, dtype=np.float32)[:, None] + np.zeros(4, np.float32)
    sizes = {"bucket_rows": 512, "shard_rows": 256, "chunk_rows": 64}
    store = create.write_store(folder / "two.store", {"x": x}, **sizes)
    found = run(2, 2, folder / "two")
    (alone,) = run(1, 4, folder / "one")
    for own in found:
      self.assertEqual(own["first"], "run_dir=x: is in use; wait")
      self.assertRegex(own["agree"], "^a.c=0: must be equal .* process 1 has 1")
      self.assertRegex(own["rows"], "^rows=.*must be equal in all processes")
      self.assertRegex(own["mesh"], "train.mesh=.*must have all 4 devices")
      self.assertRegex(own["batch"], "must divide by the 4 devices of the data")
      rule = "must be one folder for all, and 1 of 2 processes see another"
      self.assertIn(f"/two.own/{own['index']}: {rule}", own["shared"])
      self.assertIsNone(own["same"])
    self.assertEqual([own["result"] for own in found], [7, None])
    self.assertIsNone(alone["agree"])
    self.assertIsNone(alone["shared"])
    # Nothing was written where the folder or the rows were refused.
    self.assertFalse((folder / "two.own").exists())
    self.assertEmpty(list((folder / "two.run").glob("[!.]*")))
    # Parts of batches are put together as the batches of one process.
    wanted = [
      float((b["x"][:, 0] * np.arange(BATCH)).sum())
      for b in loader.batches(store, batch_rows=BATCH, seed=0)
    ]
    self.assertLen(wanted, ROWS // BATCH)
    for own in found:
      np.testing.assert_allclose(own["batches"], wanted, rtol=1e-6)
    one, two = (
      safetensors.load_file(folder / name / "sae.safetensors")
      for name in ("one", "two")
    )
    for name, wanted in one.items():
      if name.startswith("activation"):  # estimated by each process for itself
        np.testing.assert_allclose(two[name], wanted, rtol=1e-6)
      else:  # two devices along each axis: sums of two, in any order
        np.testing.assert_array_equal(two[name], wanted, err_msg=name)
    np.testing.assert_allclose(found[0]["fvu"], alone["fvu"], rtol=1e-5)
    self.assertEqual(found[0]["fvu"], found[1]["fvu"])


class OneProcessTest(parameterized.TestCase):
  def test_nothing_happens_in_one_process(self):
    tree = {"a": jnp.ones(3)}
    self.assertIs(processes.local(tree)["a"], tree["a"])
    self.assertEqual(processes.gathered([1, "a"]), [[1, "a"]])
    self.assertEqual(processes.first(lambda: 3), 3)
    processes.agree({"a": 1})
    self.assertIsNone(processes.stop_signal())
    with processes.logged(pathlib.Path("nowhere")):
      pass
    self.assertFalse(pathlib.Path("nowhere").exists())

  def test_an_error_of_the_only_process_is_raised_as_it_is(self):
    error = InputError("a", 1, "b", "c")
    with self.assertRaises(InputError) as raised:
      processes.first(mock.Mock(side_effect=error))
    self.assertIs(raised.exception, error)

  @parameterized.parameters(
    ({"processes": 0}, "processes=0: must be at least 1"),
    ({"processes": 2, "process": 2}, r"process=2: must be in \[0, 2\)"),
    ({"coordinator": "host"}, "coordinator=host: must be HOST:PORT"),
    ({"heartbeat_timeout_seconds": 0}, "heartbeat_timeout_seconds=0"),
  )
  def test_settings_out_of_range_are_refused(self, settings, text):
    with self.assertRaisesRegex(InputError, text):
      DistributedConfig(**settings)

  @parameterized.parameters(
    ({}, False),
    ({"SLURM_NTASKS": "4"}, False),  # in the script of sbatch, before srun
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-4]"}, True),
    ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, False),
  )
  def test_clusters_are_found(self, environment, wanted):
    given = {"JAX_PLATFORMS": "cpu", **environment}
    with mock.patch.dict(os.environ, given, clear=True):
      self.assertEqual(processes._on_cluster(), wanted)

  @parameterized.parameters(
    ("UNKNOWN: Gloo AllGather failed: Connection closed by peer", True),
    ("INTERNAL: Shutdown barrier in coordination service has failed", True),
    ("RESOURCE_EXHAUSTED: Out of memory", False),
    ("train.mesh=1,1,1: no connection", False),
  )
  def test_a_lost_process_is_told_from_other_errors(self, text, wanted):
    self.assertEqual(processes._is_lost(ValueError(text)), wanted)


if __name__ == "__main__":
  absltest.main()
