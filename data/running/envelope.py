"""The envelope of TFDS: a `tf.train.Example` with one feature, `record`, that holds the bytes of a Record.

Written by hand, for it is four nested fields of protobuf: no TensorFlow is needed to make or to read one.
Source: tensorflow/core/example/{example,feature}.proto.
"""

FEATURE = b"record"
# Field 1, a length and that many bytes: of Example, Features and BytesList, and the key of a map's entry.
_FIRST, _VALUE = b"\x0a", b"\x12"


def wrap(record: bytes) -> bytes:
    """The serialized Example."""
    bytes_list = _field(_FIRST, record)
    feature = _field(_FIRST, bytes_list)
    entry = _field(_FIRST, FEATURE) + _field(_VALUE, feature)
    features = _field(_FIRST, entry)
    return _field(_FIRST, features)


def _field(tag: bytes, data: bytes) -> bytes:
    """A field of bytes: its tag, its length as a varint, itself."""
    length, left = bytearray(), len(data)
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    length.append(left)
    return tag + bytes(length) + data
