"""saejax/models/gguf.py: tensors bit for bit, and damaged files refused."""

import pathlib
import resource
import struct

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.models import gguf, gguf_types
from tests.models import gguf_files

HUGE = 2**62


class GgufTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, "model.gguf")

  def test_tensors_equal_those_of_the_package_gguf_bit_for_bit(self):
    file = gguf.read(gguf_files.GOLDEN)
    kinds = set()
    for key, want in gguf_files.expected().items():
      if key.startswith("tensor/"):
        name = key.removeprefix("tensor/")
        got = file.get_slice(name)[:]
        self.assertEqual((got.shape, got.dtype), (want.shape, np.float32))
        np.testing.assert_array_equal(
          got.view(np.uint32), want.view(np.uint32), name
        )
        kinds.add(file.tensors[name].kind.name)
    # Those of float32 are views of the file.
    named = {k.name for k in gguf_types.KINDS.values()}
    self.assertEqual(kinds | {"F32", "Q4_K", "Q5_K", "Q6_K"}, named)
    norm = file.get_slice("output_norm.weight")[:]
    self.assertTrue(np.shares_memory(norm, file.data))

  @parameterized.parameters("Q4_K", "Q5_K", "Q6_K")
  def test_blocks_of_256_equal_those_of_the_package_gguf_bit_for_bit(
    self, name
  ):
    found = gguf_files.blocks()
    raw, want = found[f"{name}/bytes"], found[f"{name}/values"]
    numbers = {kind.name: n for n, kind in gguf_types.KINDS.items()}
    tensors = {"x.weight": (numbers[name], (2, 512), raw.tobytes())}
    file = gguf.read(gguf_files.write(self.path, tensors=tensors))
    whole = file.get_slice("x.weight")[:]
    want = want.reshape(2, 512)
    np.testing.assert_array_equal(whole.view(np.uint32), want.view(np.uint32))
    part = file.get_slice("x.weight")[1:, 100:300]
    np.testing.assert_array_equal(part, want[1:, 100:300])

  def test_blocks_equal_the_formulas(self):
    d, m = np.float16(0.37), np.float16(-1.25)
    q = np.arange(32) * 7 % 16
    packed = bytes((q[:16] | q[16:] << 4).astype(np.uint8))
    signed = np.arange(-128, 128, 8, dtype=np.int8)
    scale = lambda x: np.float32(d) * x.astype(np.float32)
    for number, content, want in (
      (2, d.tobytes() + packed, scale(q - 8)),
      (3, d.tobytes() + m.tobytes() + packed, scale(q) + np.float32(m)),
      (8, d.tobytes() + signed.tobytes(), scale(signed)),
    ):
      tensors = {"x.weight": (number, (1, 32), content)}
      file = gguf.read(gguf_files.write(self.path, tensors=tensors))
      np.testing.assert_array_equal(file.get_slice("x.weight")[:][0], want)

  def test_metadata_of_every_type(self):
    settings = {"a.text": "né", "a.flag": True, "a.float": 0.5, "a.int": 7}
    lists = {f"{k}s": [v, v] for k, v in settings.items()}
    more = settings | lists | {"a.empty": []}
    file = gguf.read(gguf_files.write(self.path, settings=more, version=2))
    for key, value in more.items():
      self.assertEqual(file.metadata[key], value)

  # --- refusals --------------------------------------------------------------

  def assert_refused(self, *parts: str):
    with self.assertRaises(errors.InputError) as caught:
      gguf.read(self.path)
    message = str(caught.exception)
    self.assertStartsWith(message, f"harvest.model={self.path}: ")
    self.assertNotIn("\n", message)
    for part in parts:
      self.assertIn(part, message)

  def test_a_file_cut_anywhere_is_refused(self):
    whole = gguf_files.GOLDEN.read_bytes()
    rng = np.random.default_rng(0)
    header = gguf.read(gguf_files.GOLDEN).tensors["token_embd.weight"].start
    # The last bytes may be alignment.
    last = max(t.start + t.size for t in self.golden().tensors.values())
    sizes = {*range(40), *rng.integers(0, header, 80).tolist()}
    for size in (*sizes, header, last - 1):
      self.path.write_bytes(whole[:size])
      with self.subTest(size=size):
        rule = "must be complete" if size >= 4 else "must be a GGUF file"
        self.assert_refused(rule)

  def golden(self) -> gguf.File:
    return gguf.read(gguf_files.GOLDEN)

  def test_bytes_changed_anywhere_are_read_or_refused(self):
    whole = gguf_files.GOLDEN.read_bytes()
    header = self.golden().tensors["token_embd.weight"].start
    rng = np.random.default_rng(1)
    refused = 0
    for at in rng.integers(0, header, 300):
      content = bytearray(whole)
      content[at] = rng.integers(256)
      self.path.write_bytes(content)
      try:
        gguf.read(self.path)
      except errors.InputError:
        refused += 1
    self.assertGreater(refused, 20)

  def test_other_files_are_refused(self):
    for content, part in (
      (b"", "starts with b''"),
      (b"PK\x03\x04" + bytes(100), "starts with b'PK"),
      (gguf.MAGIC + struct.pack("<I", 1) + bytes(100), "has version 1"),
      (gguf.MAGIC + struct.pack(">I", 3) + bytes(100), "little-endian GGUF"),
    ):
      self.path.write_bytes(content)
      self.assert_refused(part)
    self.path.unlink()
    self.assert_refused("No such file")
    self.path.mkdir()
    self.assert_refused("Is a directory")

  @parameterized.parameters(
    ({"counts": (HUGE, 20)}, f"{HUGE} tensors"),
    ({"counts": (20, HUGE)}, f"{HUGE} settings"),
    ({"shift": 32}, "must follow the tensor before it"),
    ({"tensors": {"x.weight": (10, (1, 256), bytes(84))}}, "has Q2_K (10)"),
    ({"tensors": {"x.weight": (99, (1, 256), bytes(210))}}, "has type (99)"),
    ({"tensors": {"x.weight": (0, (HUGE, HUGE), b"")}}, "must be complete"),
    ({"tensors": {"x.weight": (3, (1, 48), bytes(40))}}, "a multiple of 32"),
    ({"tensors": {"x.weight": (0, (3, 0), b"")}}, "shape [3, 0]"),
    ({"tensors": {"x.weight": (0, (), b"")}}, "1 to 4 dimensions, has 0"),
    ({"tensors": {"x.weight": (0, (1,) * 5, bytes(4))}}, "has 5"),
    # The rest of what it declares belongs to the next.
    (
      {"tensors": {"output_norm.weight": (0, (16,), bytes(128))}},
      "must follow",
    ),
    ({"tensors": {"x.weight": (0, (8,), bytes(640))}}, "must end with its"),
    ({"settings": {"general.alignment": 48}}, "a power of two, is 48"),
    ({"settings": {"general.alignment": "32"}}, "a power of two, is '32'"),
    ({"settings": {"x": b"\xff\xfe"}}, "text in UTF-8, and the x"),
    ({"version": 4}, "has version 4"),
  )
  def test_contradictions_are_refused(self, changes, part):
    gguf_files.write(self.path, **changes)
    self.assert_refused(part)

  def test_names_that_come_twice_are_refused(self):
    gguf_files.write(self.path, settings={"x.1": 1, "x.2": 2})
    whole = self.path.read_bytes()
    self.path.write_bytes(whole.replace(b"blk.1.attn_k.", b"blk.0.attn_k."))
    self.assert_refused("each tensor once, has 'blk.0.attn_k.weight' twice")
    self.path.write_bytes(whole.replace(b"x.2", b"x.1"))
    self.assert_refused("each setting once, has 'x.1' twice")

  def test_huge_lengths_in_metadata_allocate_nothing(self):
    whole = gguf_files.write(self.path, settings={"x": [1, 2, 3]}).read_bytes()
    name = struct.pack("<Q", 1) + b"x"
    at = whole.index(name + struct.pack("<I", 9)) + len(name) + 4
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in (0, 4, 8):
      for count in (2**40, HUGE, 2**64 - 1):
        changed = bytearray(whole)
        changed[at : at + 12] = struct.pack("<IQ", kind, count)
        self.path.write_bytes(changed)
        self.assert_refused(f"must be complete: {count}")
    changed[at : at + 12] = struct.pack("<IQ", 9, 1)
    self.path.write_bytes(changed)
    self.assert_refused("x has type 9")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    self.assertLess(after - before, 64 * 1024)  # kB


if __name__ == "__main__":
  absltest.main()
