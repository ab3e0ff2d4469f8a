"""saejax/models/torch_file.py: values as PyTorch saved them, damaged files none.

tests/golden/make_torch_files.py made the golden files; the others are written
by torch_files.py.
"""

import pickle
import resource
import struct
import zipfile

import ml_dtypes
import numpy as np
import safetensors
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.models import torch_file, torch_pickle
from tests.models import golden
from tests.models import torch_files as files

FORMS = ("torch_zip.pt", "torch_old.pt")
HUGE = 2**60


class TorchFileTest(files.Files):
  @parameterized.parameters(*FORMS)
  def test_values_equal_those_that_pytorch_saved(self, form):
    found = torch_file.read(golden.FILES / form, namespaces=True)
    with safetensors.safe_open(
      golden.FILES / "torch_values.safetensors", framework="numpy"
    ) as file:
      names = file.keys()
      want = {key: file.get_tensor(key) for key in names}
    got = {
      f"{k}/{n}": v for k in ("model", "tensors") for n, v in found[k].items()
    }
    self.assertEqual(got.keys(), want.keys())
    for key, value in want.items():
      self.assertEqual(
        (got[key].dtype, got[key].shape), (value.dtype, value.shape)
      )
      np.testing.assert_array_equal(got[key], value, key)
      self.assertTrue(got[key].flags.aligned, key)
    np.testing.assert_array_equal(found["parameter"], [[0, 1, 2], [3, 4, 5]])
    self.assertEqual(found["steps"], [1, -2, 2**40, 2**70, {"a": 1.5}])
    self.assertIsInstance(found["args"], torch_pickle.Attributes)
    rates = (0.1, None, True)
    self.assertEqual(found["args"], {"layers": 2, "name": "né", "rates": rates})
    self.assertEqual(found["tensors"]["bfloat16"].dtype, ml_dtypes.bfloat16)

  @parameterized.parameters(*FORMS)
  def test_namespaces_are_refused_where_they_are_not_allowed(self, form):
    self.path.write_bytes((golden.FILES / form).read_bytes())
    self.assert_refused("'argparse.Namespace', which was not imported")

  def test_handwritten_files_of_both_forms(self):
    views = {
      "all": (files.tensor(), files.VALUES),
      "two": (
        files.tensor(offset=1, shape=(2,), strides=(2,)),
        files.VALUES[1::2],
      ),
      "table": (
        files.tensor(shape=(2, 2), strides=(1, 2)),
        files.VALUES.reshape(2, 2).T,
      ),
      "none": (
        files.tensor(offset=9, shape=(0, 7), strides=(7, 1)),
        np.zeros((0, 7)),
      ),
    }
    body = b"}("
    for key, (code, _) in views.items():
      body += files.text(key) + code
    for write in (self.zipped, self.in_line):
      write(body + b"u")
      found = torch_file.read(self.path)
      for key, (_, want) in views.items():
        np.testing.assert_array_equal(found[key], want)
      with self.assertRaises(ValueError):
        found["all"][0] = 1  # a view of the file

  def test_arrays_outlive_the_reading(self):
    self.zipped(files.tensor())
    found = torch_file.read(self.path)
    self.path.unlink()
    np.testing.assert_array_equal(found, files.VALUES)

  @parameterized.parameters(
    (
      files.storage(count=5),
      {},
      "'0' must have 5 values of float32, has 16 bytes",
    ),
    (files.storage(count=HUGE), {}, f"must have {HUGE} values"),
    (files.storage(kind="HalfStorage"), {}, "values of float16, has 16 bytes"),
    (files.storage(), {"data/0": None}, "must have the storage '0'"),
    (files.storage(key="../version"), {}, "must have the storage '../version'"),
    (files.storage(), {"byteorder": b"big"}, "must be little-endian"),
  )
  def test_storages_of_an_archive(self, of, members, part):
    self.zipped(files.tensor(of=of), members=members)
    self.assert_refused(part)

  @parameterized.parameters(
    (files.storage(count=5), {}, "must be complete: storage '0' ends at byte"),
    (
      files.storage(count=HUGE),
      {},
      "must be complete: storage '0' ends at byte",
    ),
    (files.storage(), {"keys": ()}, "must list each storage"),
    (files.storage(), {"keys": ("0", "0")}, "must list each storage"),
    (files.storage(), {"keys": ("0", "1")}, "must list each storage"),
    (files.storage(), {"keys": (0,)}, "must list each storage"),
    (files.storage(), {"after": b""}, "must be complete: storage '0'"),
    (
      files.storage(),
      {"after": struct.pack("<q", 3) + bytes(16)},
      "storage '0' must have 4 values, has 3",
    ),
    (
      files.storage(),
      {"after": struct.pack("<q", 4) + bytes(17)},
      "must end with its",
    ),
    (files.storage(), {"magic": 7}, "must have the magic number"),
  )
  def test_storages_in_line(self, of, changes, part):
    self.in_line(files.tensor(of=of), **changes)
    self.assert_refused(part)

  def test_one_storage_of_two_sizes_is_refused(self):
    two = (
      b"]("
      + files.tensor()
      + files.tensor(of=files.storage(count=3), shape=(3,))
      + b"e"
    )
    self.in_line(two)
    self.assert_refused("one size and type of the storage '0'")

  @parameterized.parameters(*FORMS)
  def test_files_cut_anywhere_are_refused(self, form):
    whole = (golden.FILES / form).read_bytes()
    rng = np.random.default_rng(0)
    sizes = {
      0,
      1,
      2,
      4,
      len(whole) - 1,
      *rng.integers(0, len(whole), 60).tolist(),
    }
    for size in sizes:
      self.path.write_bytes(whole[:size])
      with self.subTest(size=size):
        self.assert_refused("must ", namespaces=True)

  @parameterized.parameters(*FORMS)
  def test_bytes_changed_anywhere_are_read_or_refused(self, form):
    whole = (golden.FILES / form).read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for at in rng.integers(0, min(len(whole), 6000), 200):
      content = bytearray(whole)
      content[at] = rng.integers(256)
      self.path.write_bytes(content)
      try:
        torch_file.read(self.path, namespaces=True)
      except InputError:
        refused += 1
    self.assertGreater(refused, 20)

  def test_values_of_an_archive_have_a_checksum(self):
    self.zipped(files.tensor())
    whole = self.path.read_bytes()
    self.path.write_bytes(whole.replace(files.VALUES.tobytes(), bytes(16)))
    self.assert_refused("'archive/data/0' undamaged; its checksum differs")

  def test_archives_that_unpack_to_more_are_refused(self):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    self.zipped(
      files.tensor(),
      members={"data/0": bytes(200_000_000)},
      compression=zipfile.ZIP_DEFLATED,
    )
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    self.assertLess(self.path.stat().st_size, 1_000_000)
    self.assert_refused("no compressed or encrypted member", "declares")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    self.assertLess(after - max(before, made), 32 * 1024)  # kB
    # Members that are one place of the file.
    content = files.VALUES.tobytes() * 1000
    names = [f"data/{i}" for i in range(20)]
    self.zipped(
      files.tensor(), members={"data/0": content} | dict.fromkeys(names, b"")
    )
    raw = self.path.read_bytes()
    with zipfile.ZipFile(self.path) as archive:
      first = archive.getinfo("archive/data/0")
    crc = struct.pack("<I", first.CRC)
    sizes = struct.pack("<II", len(content), len(content))
    central = raw.index(b"PK\x01\x02")
    parts = raw[central:].split(b"PK\x01\x02")
    for i, part in enumerate(parts):
      if b"archive/data/" in part:
        head = part[:12] + crc + sizes + part[24:]
        parts[i] = (
          head[:38] + struct.pack("<I", first.header_offset) + head[42:]
        )
    self.path.write_bytes(raw[:central] + b"PK\x01\x02".join(parts))
    self.assert_refused("bytes of members in a file of")

  def test_archives_of_other_things_are_refused(self):
    with zipfile.ZipFile(self.path, "w") as archive:
      archive.writestr("readme.txt", "hello")
    self.assert_refused("must have one member data.pkl, has 0")
    self.path.write_bytes(b"PK\x03\x04" + bytes(100))
    self.assert_refused("a complete zip archive")
    self.path.write_bytes(b"\x93NUMPY" + bytes(100))
    self.assert_refused("starts with b'\\x93NUM'")
    self.path.write_bytes(pickle.dumps({"a": 1}, 2))
    self.assert_refused("magic number")
    self.path.write_bytes(b"")
    self.assert_refused("must not be empty")
    self.path.unlink()
    self.assert_refused("No such file")
    with self.assertRaisesRegex(InputError, "^model.weights="):
      torch_file.read(self.path, field="model.weights")


if __name__ == "__main__":
  absltest.main()
