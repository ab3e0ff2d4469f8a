"""Several processes of `jax.distributed` put together the batches of one."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.data import loader
from saejax.data.store import create
from saejax.training import orbax_io
from tests import shared

ROWS, BATCH = 2_000, 48
CODE = """
import json, sys
import jax
index, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, index)
import jax.numpy as jnp
import numpy as np
from saejax.data import loader
from saejax.data.store import reader
from saejax.training import sharding

mesh = sharding.make_mesh((1, 2, 1))
part = sharding.rows_part(mesh, BATCH)
assert part == {"process_index": index, "process_count": 2}, part
alone = sharding.rows_part(sharding.make_mesh((2, 1, 1)), BATCH)
assert alone == {"process_index": 0, "process_count": 1}, alone
ranked = jax.jit(lambda x: (x[:, 0] * jnp.arange(BATCH)).sum())
found = []
for batch in loader.batches(reader.open(path), batch_rows=BATCH, seed=0, **part):
  x = sharding.put(mesh, {"x": batch["x"]}, 2)["x"]
  assert x.shape == (BATCH, 4) and not x.is_fully_addressable
  assert x.addressable_shards[0].data.shape == (BATCH // 2, 4)
  found.append(float(ranked(x)))
print(json.dumps(found))
"""


class ProcessesTest(absltest.TestCase):
  def test_parts_of_two_processes_are_the_batches_of_one(self):
    path = pathlib.Path(self.create_tempdir().full_path) / "store"
    x = np.arange(ROWS, dtype=np.float32)[:, None] + np.zeros(4, np.float32)
    sizes = {"bucket_rows": 512, "shard_rows": 256, "chunk_rows": 64}
    store = create.write_store(path, {"x": x}, **sizes)
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      port = probe.getsockname()[1]
    code = textwrap.dedent(CODE).replace("BATCH", str(BATCH))
    started = [
      subprocess.Popen(
        [sys.executable, "-c", code, str(i), str(port), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=shared.ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
      )
      for i in range(2)
    ]
    wanted = [
      float((b["x"][:, 0] * np.arange(BATCH)).sum())
      for b in loader.batches(store, batch_rows=BATCH, seed=0)
    ]
    self.assertLen(wanted, ROWS // BATCH)
    ended = [process.communicate(timeout=120) for process in started]
    for process, (out, err) in zip(started, ended, strict=True):
      self.assertEqual(process.returncode, 0, err)
      found = json.loads(out.splitlines()[-1])  # collectives print before it
      np.testing.assert_allclose(found, wanted, rtol=1e-6)

  def test_a_position_saved_by_more_processes_is_read(self):
    path = pathlib.Path(self.create_tempdir().full_path) / "1"
    arrays = {"a": jnp.arange(3)}
    orbax_io.begin(path, arrays, '{"batches": 3}').result()
    (file,) = path.rglob("process-0-of-1.json")
    file.rename(file.with_name("process-0-of-2.json"))
    abstract = {"a": orbax_io.abstract(arrays["a"])}
    found, position = orbax_io.load(path, abstract, position=True)
    self.assertEqual(json.loads(position), {"batches": 3})
    np.testing.assert_array_equal(found["a"], arrays["a"])


if __name__ == "__main__":
  absltest.main()
