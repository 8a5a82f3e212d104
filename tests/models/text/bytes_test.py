"""sr4/models/text/bytes.py: a function of the words, the same for ever."""

import numpy as np
import pytest

from sr4.core.batch import Size
from sr4.core.prompt import Prompt
from sr4.models.text import bytes as bytes_lib


@pytest.fixture(scope='module')
def encode():
  made = bytes_lib.ByteEncoder(bytes_lib.Config(width=16, tokens=6))
  return lambda texts: made.read(list(map(Prompt, texts)), Size(1, 16, 16, 16.0, 0))


def test_shapes_padding_and_cutting(encode):
  text, valid = encode(['a red ball', '', 'one two three four five six seven'])
  assert text.shape == (3, 6, 16) and text.dtype == np.float32 and valid.dtype == bool
  np.testing.assert_array_equal(valid.sum(1), [3, 0, 6])
  assert not np.any(text[~valid]) and np.all(np.any(text[valid], -1))


def test_equal_words_are_equal_vectors_wherever_they_stand(encode):
  text, _ = encode(['red ball', 'A RED ball rings'])
  np.testing.assert_array_equal(text[0, :2], text[1, 1:3])
  assert np.abs(text[0, 0] - text[0, 1]).max() > 0.1
  bytes_lib.words.cache_clear()
  again, _ = encode(['red ball'])
  np.testing.assert_array_equal(again[0], text[0])


def test_places_of_bytes_count(encode):
  text, _ = encode(['on no'])
  assert np.abs(text[0, 0] - text[0, 1]).max() > 0.1


@pytest.mark.parametrize(
  'prompt, pieces',
  [
    ('A ball, red!', [b'a', b'ball', b',', b'red', b'!']),
    ('<sfx>Ding</sfx>', [b'<sfx>', b'ding', b'</sfx>']),
    ('x' * 20, [b'x' * 16, b'x' * 4]),
    ('\u7403', ['\u7403'.encode()]),
    ('', []),
  ],
)
def test_pieces(prompt, pieces):
  assert bytes_lib.pieces(prompt) == pieces


def test_golden_numbers(encode):
  """Checkpoints are trained on these vectors: they may never change."""
  text, _ = encode(['ball'])
  np.testing.assert_allclose(text[0, 0, :3], [-0.54099482, 0.64481598, 0.71663386], rtol=1e-6)
