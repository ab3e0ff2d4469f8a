"""saejax/models/torch_pickle.py: pickles as data, and programs refused."""

import builtins
import os
import struct
from unittest import mock

from absl.testing import absltest, parameterized

from saejax.models import torch_file
from tests.models import torch_files as files

HUGE = 2**60


class TorchPickleTest(files.Files):
  @parameterized.parameters(
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("__builtin__", "exec"),
    ("subprocess", "Popen"),
    ("numpy", "load"),
    ("torch", "load"),
    ("torch", "nn.Module"),
    ("collections", "OrderedDict.fromkeys"),
    ("torch.hub", "load"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
  )
  def test_classes_and_functions_are_refused_by_name(self, module, attribute):
    call = (
      files.name(module, attribute) + files.group(files.text("true")) + b"R"
    )
    stacked = (
      files.text(module)
      + files.text(attribute)
      + b"\x93"
      + files.group()
      + b"R"
    )
    for body in (call, stacked, b"](" + call + b"e"):
      for write in (self.zipped, self.in_line):
        write(body)
        with (
          mock.patch.object(os, "system", side_effect=AssertionError),
          mock.patch.object(
            builtins, "__import__", wraps=__import__
          ) as imported,
        ):
          self.assert_refused(f"{module}.{attribute}", "was not imported")
        names = {call.args[0] for call in imported.call_args_list}
        self.assertNoCommonElements(names, {"subprocess", "torch", "torch.hub"})

  @parameterized.parameters(
    (b"cos\nsystem\n", "os.system"),
    (b"(ios\nsystem\n", "the instruction INST"),
    (b"(" + files.name("collections", "OrderedDict") + b"o", "instruction OBJ"),
    (b"\x82\x01", "the instruction EXT1"),
    (b"P0\n", "the instruction PERSID"),
    (b"}\x97", "the instruction NEXT_BUFFER"),
    (b"\x8f", "the instruction EMPTY_SET"),
    (b"\x96" + struct.pack("<Q", 1) + b"a", "the instruction BYTEARRAY8"),
    # Known names, used otherwise.
    (files.name("torch", "FloatStorage") + b")R", "a call that is not known"),
    (
      files.name("torch", "FloatStorage") + b")\x81",
      "an object that is not known",
    ),
    (files.text("x") + b")R", "a call that is not known"),
    (files.tensor(of=files.text("x")), "tensors of a storage"),
    (files.text("x") + b"Q", "refer to whole storages"),
    (files.storage(kind="FloatStorage", count=-4), "known type and size"),
    (b"]}b", "attributes of no object"),
    (b"})K\x01s", "a key that is no text or number"),
    (b"}]K\x01s", "a key that is no text or number"),
    (b"K\x01K\x02a", "items of no list"),
  )
  def test_instructions_that_make_more_than_data(self, body, part):
    self.zipped(body)
    self.assert_refused(part)

  @parameterized.parameters(
    b"",  # nothing on the stack
    b"K\x01K\x02",  # two objects
    b"t",  # no mark
    b"0",
    b"h\x05",  # not in the memo
    b"R",
    b"u",
    b"\x93",
    b"\xff",  # no instruction
    b"X\xff\xff\xff\x7fabc",  # longer than the file
    b"\x8d" + struct.pack("<Q", 2**63 - 1),
    b"\x8b" + struct.pack("<i", 2**31 - 1),
    b"\x95" + struct.pack("<Q", 2**62) + b"N)R",
  )
  def test_broken_pickles_are_refused(self, body):
    for write in (self.zipped, self.in_line):
      write(body)
      self.assert_refused("pickles")

  @parameterized.product(
    write=("zipped", "in_line"),
    case=(
      ({"shape": (5,)}, "a tensor [5] with strides [1] at 0 must lie in"),
      ({"offset": 1}, "must lie in storage '0' of 4 values"),
      ({"shape": (2,), "strides": (4,)}, "must lie in storage '0'"),
      ({"shape": (HUGE, HUGE), "strides": (0, 0)}, "must lie in storage"),
      ({"shape": (5,), "strides": (0,)}, "must lie in storage '0'"),
      ({"shape": (-1,)}, "one size and stride, at least 0"),
      ({"strides": (-1,)}, "one size and stride, at least 0"),
      ({"offset": -1, "shape": (1,)}, "one size and stride, at least 0"),
      ({"strides": (1, 1)}, "one size and stride"),
      ({"shape": (1,) * 33, "strides": (1,) * 33}, "at most 32 dimensions"),
    ),
  )
  def test_views_outside_their_storage(self, write, case):
    changes, part = case
    getattr(self, write)(files.tensor(**changes))
    self.assert_refused(part)

  def test_deep_and_circular_objects(self):
    body = b"]q\x00h\x00a"  # a list in itself
    self.zipped(body)
    found = torch_file.read(self.path)
    self.assertIs(found[0], found)
    deep = b"N" + b"\x85" * 200_000  # tuples of tuples
    self.zipped(deep)
    found = torch_file.read(self.path)
    for _ in range(200_000):
      (found,) = found
    self.assertIsNone(found)
    self.zipped(b"}" + deep + b"K\x01s")
    self.assert_refused("a key that is no text or number")


if __name__ == "__main__":
  absltest.main()
