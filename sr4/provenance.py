"""What a file says of where it comes from: a tag in all that is made, and C2PA's signature.

The tag names the software, the prompt, and IPTC's digital source type: trained algorithmic media,
or a composite with such where some of it was given.  In an MP4 it is `software`, `comment` and
`digital_source_type` of the container, in a PNG an XMP packet, in a WAV its LIST chunk.  Anyone can
take a tag out; a signature (C2PA 2, extra [c2pa]) tells when the file was changed.
"""

import dataclasses
from importlib import metadata
import json
import struct
from xml.sax import saxutils
import zlib

from sr4.core import errors

IPTC = 'http://cv.iptc.org/newscodes/digitalsourcetype/'
KINDS = {'mp4': 'video/mp4', 'png': 'image/png', 'wav': 'audio/wav'}
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<xmp:CreatorTool>{software}</xmp:CreatorTool>
<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{prompt}</rdf:li></rdf:Alt></dc:description>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


class SigningError(errors.UserError):
  """A certificate or a key with which nothing can be signed."""


@dataclasses.dataclass(frozen=True)
class Origin:
  """How a clip was made."""

  prompt: str
  given: bool = False  # some of its pixels or its sound

  @property
  def software(self) -> str:
    return f'sr4 {metadata.version("sr4")}'

  @property
  def source(self) -> str:
    return IPTC + (
      'compositeWithTrainedAlgorithmicMedia' if self.given else 'trainedAlgorithmicMedia'
    )

  def tags(self) -> dict[str, str]:
    """The metadata of a container."""
    return {'comment': self.prompt, 'software': self.software, 'digital_source_type': self.source}

  def png(self, data: bytes) -> bytes:
    """A PNG with the tag, as its second chunk."""
    told = dict(software=self.software, source=self.source, prompt=self.prompt)
    xmp = XMP.format(**{name: saxutils.escape(x) for name, x in told.items()})
    body = b'iTXt' + b'XML:com.adobe.xmp' + bytes(5) + xmp.encode()
    chunk = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    first = 8 + 25  # the signature, and IHDR
    return data[:first] + chunk + data[first:]

  def wav(self, data: bytes) -> bytes:
    """A WAV with the tag, as its last chunk."""
    items = b''
    told = {'ISFT': self.software, 'ICMT': self.prompt, 'ISRC': self.source}
    for name, text in told.items():
      value = text.encode() + b'\0'
      items += name.encode() + struct.pack('<I', len(value)) + value + bytes(len(value) % 2)
    body = data[8:] + bytes(len(data) % 2)
    body += b'LIST' + struct.pack('<I', len(items) + 4) + b'INFO' + items
    return b'RIFF' + struct.pack('<I', len(body)) + body


class Signer:
  """Signs files as C2PA says, with a chain of certificates and the key of the first (PEM files).

  Raises:
    SigningError: c2pa-python is not there, a file cannot be read, or they do not fit each other.
  """

  def __init__(self, certificate: str, key: str):
    try:
      import c2pa
      from cryptography.hazmat.primitives import serialization
    except ImportError as error:
      raise SigningError(f"{error}; pip install 'sr4[c2pa]'") from error
    self.c2pa = c2pa
    chain, private = (self._read(path) for path in (certificate, key))
    try:
      kind = algorithm(serialization.load_pem_private_key(private, None))
      info = c2pa.C2paSignerInfo(kind, chain, private, None)
      self.signer = c2pa.Signer.from_info(info)
    except (ValueError, TypeError, c2pa.C2paError) as error:
      raise SigningError(
        f'{certificate} and {key}: {error}; give a chain of certificates and its key, in PEM'
      ) from error

  def _read(self, path: str) -> bytes:
    with open(path, 'rb') as f:
      return f.read()

  def __call__(self, data: bytes, kind: str, origin: Origin) -> bytes:
    """A file, one of KINDS, with a manifest in it."""
    import io

    name, version = origin.software.split()
    action = {'action': 'c2pa.created', 'digitalSourceType': origin.source}
    manifest = {
      'claim_generator_info': [{'name': name, 'version': version}],
      'title': origin.prompt,
      'format': KINDS[kind],
      'assertions': [{'label': 'c2pa.actions', 'data': {'actions': [action]}}],
    }
    out = io.BytesIO()
    try:
      builder = self.c2pa.Builder(json.dumps(manifest))
      builder.sign(self.signer, KINDS[kind], io.BytesIO(data), out)
    except self.c2pa.C2paError as error:
      raise SigningError(f'a file could not be signed: {error}') from error
    return out.getvalue()


def algorithm(key) -> str:
  """C2PA's name of what a private key signs with.  ValueError: none."""
  name = type(key).__name__.removeprefix('_')
  if name.startswith('Ed25519'):
    return 'ed25519'
  if name.startswith('RSA'):
    return 'ps256'
  known = {'secp256r1': 'es256', 'secp384r1': 'es384', 'secp521r1': 'es512'}
  curve = getattr(getattr(key, 'curve', None), 'name', name)
  if curve not in known:
    raise ValueError(
      f'C2PA does not sign with {curve}, but with RSA, Ed25519 and {", ".join(known)}'
    )
  return known[curve]
