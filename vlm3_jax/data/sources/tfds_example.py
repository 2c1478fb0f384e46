"""The envelope that TFDS puts around a record: a tf.train.Example of one feature of bytes, read without TensorFlow.

An Example is Protocol Buffers' wire format: features (1) -> map entry (1) -> name (1) and Feature (2) -> BytesList (1)
-> value (1). Our own records are msgpack maps, whose first byte is never that of an Example.
"""

from vlm3_jax.errors import BadRecord

# Field 1, of the wire type that a length comes before.
FIRST = 0x0A


def is_wrapped(data: bytes) -> bool:
    """Whether the bytes may be an Example; no record of ours begins so."""
    return data[:1] == bytes([FIRST])


def unwrapped(data: bytes) -> bytes:
    """The bytes of the one feature of an Example. BadRecord if it is none, or has several features or values."""
    try:
        features = _one(_fields(data), 1, "features")
        entry = _one(_fields(features), 1, "feature")
        feature = _one(_fields(entry), 2, "value")
        return _one(_fields(_one(_fields(feature), 1, "bytes_list")), 1, "value")
    except IndexError:
        raise BadRecord("a tf.train.Example that ends too early") from None


def _one(fields: list[tuple[int, bytes]], number: int, what: str) -> bytes:
    found = [value for key, value in fields if key == number]
    if len(found) != 1:
        raise BadRecord(f"a tf.train.Example with {len(found)} times {what}, expected one")
    return found[0]


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """(field number, bytes) of all fields of a message that have a length; any other is no part of an Example."""
    place, found = 0, []
    while place < len(data):
        key, place = _varint(data, place)
        length, place = _varint(data, place)
        if key & 7 != 2:
            raise BadRecord(f"not a tf.train.Example (wire type {key & 7})")
        if place + length > len(data):
            raise IndexError
        found.append((key >> 3, data[place : place + length]))
        place += length
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise BadRecord("not a tf.train.Example (a number that is too long)")
