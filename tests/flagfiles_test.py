"""Tests of saejax.flagfiles."""

import pathlib

from absl.testing import absltest, parameterized

from saejax import flagfiles
from saejax.errors import InputError


class FlagfilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / flagfiles.RUN_FLAGS
    self.content = flagfiles.sealed("--n=8\n--name=a b\n")

  def check(self, content: bytes, path=None):
    path = path or self.path
    path.write_bytes(content)
    flagfiles.check([f"--flagfile={path}"])

  def test_a_file_as_it_was_written_passes(self):
    self.check(self.content)
    flagfiles.check(["--flagfile", str(self.path)])

  def test_every_changed_byte_and_every_cut_is_refused(self):
    for at in range(len(self.content)):
      flipped = bytes([self.content[at] ^ 1])
      for changed in (
        self.content[:at] + flipped + self.content[at + 1 :],
        self.content[:at],
      ):
        with self.assertRaisesRegex(InputError, "run.flags: must be unchanged"):
          self.check(changed)

  def test_a_file_written_by_hand_needs_no_checksum(self):
    self.check(b"--n=8\n# a comment\n", self.folder / "mine.flags")

  def test_a_file_that_another_one_names_is_checked_too(self):
    self.path.write_bytes(self.content.replace(b"8", b"9", 1))
    outer = f"--flagfile={self.path}\n".encode()
    with self.assertRaisesRegex(InputError, "run.flags"):
      self.check(outer, self.folder / "mine.flags")

  def test_a_circle_is_refused_and_two_mentions_are_not(self):
    one, two = self.folder / "one", self.folder / "two"
    two.write_text("--n=8\n")
    self.check(f"--flagfile={two}\n--flagfile={two}\n".encode(), one)
    two.write_text(f"--flagfile={one}\n")
    with self.assertRaisesRegex(InputError, "one -> .*two -> .*one"):
      flagfiles.check([f"--flagfile={one}"])

  def test_what_cannot_be_read_is_left_to_the_parser(self):
    flagfiles.check([f"--flagfile={self.folder / 'absent'}", "--flagfile"])


if __name__ == "__main__":
  absltest.main()
