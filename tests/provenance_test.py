"""sr4/provenance.py: every file says what made it, and a signature tells when it was changed."""

import datetime
import io
import json
import wave
from xml.etree import ElementTree

import av
import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
import numpy as np
import PIL.Image
import pytest

from sr4 import pipeline
from sr4 import provenance
from sr4 import sample

RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.integers(0, 256, (5, 32, 32, 3), np.uint8)
SAMPLES = np.float32(RANDOM.uniform(-1, 1, (5001, 1)))
PROMPT = 'a <red> circle & its "sound"'
CLIPS = {
  'mp4': pipeline.Clip(PROMPT, FRAMES, SAMPLES, None, {}),
  'png': pipeline.Clip(PROMPT, FRAMES[:1], None, None, {}),
  'wav': pipeline.Clip(PROMPT, None, SAMPLES, None, {}),
}


@pytest.fixture(scope='module')
def signer(tmp_path_factory):
  """Of a certificate that an authority of our own has signed."""
  path = tmp_path_factory.mktemp('keys')
  named = lambda name: x509.Name(
    [
      x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, 'sr4'),
      x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
    ]
  )
  now = datetime.datetime.now(datetime.UTC)

  def certificate(name, key, issuer, by, leaf):
    usage = dict.fromkeys(
      ('content_commitment', 'key_encipherment', 'data_encipherment', 'key_agreement'), False
    )
    usage |= dict(encipher_only=False, decipher_only=False, crl_sign=not leaf)
    build = (
      x509.CertificateBuilder()
      .subject_name(named(name))
      .issuer_name(named(issuer))
      .public_key(key.public_key())
      .serial_number(x509.random_serial_number())
      .not_valid_before(now - datetime.timedelta(days=1))
      .not_valid_after(now + datetime.timedelta(days=30))
      .add_extension(x509.BasicConstraints(not leaf, None), True)
      .add_extension(x509.KeyUsage(digital_signature=leaf, key_cert_sign=not leaf, **usage), True)
      .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
      .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), False)
    )
    if leaf:
      purpose = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
      build = build.add_extension(purpose, False)
    return build.sign(by, hashes.SHA256())

  root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
  chain = (
    certificate('signer', own, 'root', root, True),
    certificate('root', root, 'root', root, False),
  )
  pem = serialization.Encoding.PEM
  (path / 'chain.pem').write_bytes(b''.join(one.public_bytes(pem) for one in chain))
  plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
  (path / 'key.pem').write_bytes(own.private_bytes(pem, *plain))
  return provenance.Signer(str(path / 'chain.pem'), str(path / 'key.pem'))


def write(path, kind, given=False, signer=None):
  origin = provenance.Origin(PROMPT, given)
  file = sample.write(str(path / 'clip'), CLIPS[kind], 8.0, 8000, origin, signer)
  assert file == str(path / f'clip.{kind}')
  return path / f'clip.{kind}'


@pytest.mark.parametrize('given', [False, True])
def test_an_mp4_says_it(tmp_path, given):
  with av.open(str(write(tmp_path, 'mp4', given))) as container:
    told = container.metadata
  assert told['comment'] == PROMPT and told['software'].startswith('sr4 ')
  kind = 'compositeWithTrainedAlgorithmicMedia' if given else 'trainedAlgorithmicMedia'
  assert told['digital_source_type'] == provenance.IPTC + kind


def test_a_png_says_it_and_is_the_same_picture(tmp_path):
  with PIL.Image.open(write(tmp_path, 'png')) as image:
    image.load()
    xmp = ElementTree.fromstring(image.info['XML:com.adobe.xmp'])
    np.testing.assert_array_equal(np.asarray(image), FRAMES[0])
  told = {x.tag.rpartition('}')[2]: x.text for x in xmp.iter()}
  assert told['DigitalSourceType'] == f'{provenance.IPTC}trainedAlgorithmicMedia'
  assert told['CreatorTool'].startswith('sr4 ') and told['li'] == PROMPT


def test_a_wav_says_it_and_sounds_the_same(tmp_path):
  path = write(tmp_path, 'wav')
  with wave.open(str(path)) as f:
    found = np.frombuffer(f.readframes(f.getnframes()), '<i2')
  assert len(found) == len(SAMPLES) and np.max(np.abs(found / 32768 - SAMPLES[:, 0])) < 1e-4
  with av.open(str(path)) as container:
    assert container.metadata['comment'] == PROMPT
    assert container.metadata['encoder'].startswith('sr4 ')


@pytest.mark.parametrize('kind', CLIPS)
def test_a_signed_file_tells_when_it_was_changed(tmp_path, signer, kind):
  path = write(tmp_path, kind, signer=signer)
  told = json.loads(c2pa.Reader(provenance.KINDS[kind], io.BytesIO(path.read_bytes())).json())
  manifest = told['manifests'][told['active_manifest']]
  (action,) = next(
    a['data']['actions'] for a in manifest['assertions'] if a['label'].startswith('c2pa.actions')
  )
  assert action['digitalSourceType'] == f'{provenance.IPTC}trainedAlgorithmicMedia'
  assert manifest['claim_generator_info'][0]['name'] == 'sr4' and manifest['title'] == PROMPT
  # Nobody trusts our authority; all else holds.
  assert failures(path, kind) <= {'signingCredential.untrusted'}
  data = bytearray(path.read_bytes())
  data[100 if kind == 'wav' else -200] ^= 1  # of the samples or pixels
  path.write_bytes(data)
  assert failures(path, kind) - {'signingCredential.untrusted'}


def failures(path, kind) -> set[str]:
  told = json.loads(c2pa.Reader(provenance.KINDS[kind], io.BytesIO(path.read_bytes())).json())
  return {one['code'] for one in told['validation_results']['activeManifest']['failure']}


def test_what_cannot_sign_is_told(tmp_path):
  (tmp_path / 'x.pem').write_text('no key')
  with pytest.raises(provenance.SigningError, match=r'x\.pem.*a chain of certificates and its key'):
    provenance.Signer(str(tmp_path / 'x.pem'), str(tmp_path / 'x.pem'))
  with pytest.raises(ValueError, match='does not sign with secp192r1'):
    provenance.algorithm(ec.generate_private_key(ec.SECP192R1()))
