"""sr4/core/flags.py: a generation's flags, and who has the last word."""

import pytest

from sr4.core import errors
from sr4.core import flags

VMEM = 'xla_tpu_scoped_vmem_limit_kib'


def test_a_generation_has_its_file():
  assert flags.of('v5p', {})[VMEM] == '65536'
  assert flags.of('v9', {}) == flags.of(None, {}) == {}


def test_the_environment_has_the_last_word():
  given = flags.of('v5p', {'LIBTPU_INIT_ARGS': f'--other=1 --{VMEM}=1024'})
  assert VMEM not in given and set(given) == set(flags.of('v5p', {})) - {VMEM}


@pytest.mark.parametrize('line', ['xla_a=1', '--xla_a', 'a file of something else'])
def test_what_is_no_flag(tmp_path, line):
  path = tmp_path / 'flags'
  path.write_text(f'# Why.\n\n--xla_b=x=y\n{line}\n')
  with pytest.raises(errors.UserError, match='must read --NAME=VALUE'):
    flags.read(path)
  path.write_text('# Why.\n\n--xla_b=x=y\n')
  assert flags.read(path) == {'xla_b': 'x=y'}
