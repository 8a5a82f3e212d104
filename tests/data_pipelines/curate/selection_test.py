"""data_pipelines/curate/selection.py: which of the things that look alike stays."""

from data_pipelines.curate import engine
from data_pipelines.curate import selection
from data_pipelines.curate import tables


def _item(name, path, sharpness, hashes=(1, 2, 3, 4)):
  scores = {'width': 640, 'height': 360, 'sharpness': sharpness}
  return tables.Item(name, path, 'video', path, scores=scores, hashes=hashes)


def test_segments_of_one_file_may_look_alike():
  """A face that talks for a minute is four segments; its copy is none."""
  items = [_item(f'talk#{i}', 'talk.mp4', 0.5 + i / 10) for i in range(4)]
  items += [_item(f'copy#{i}', 'copy.mp4', 0.2) for i in range(2)]
  items += [_item('other', 'other.mp4', 0.1, ((1 << 64) - 1,) * 4)]
  done = selection.select(engine.Settings('out', ()), items)
  assert {x.id for x in done if not x.dropped} == {'other', *(f'talk#{i}' for i in range(4))}
  assert all('looks like talk#3' in str(x.dropped) for x in done if x.dropped)
