"""The envelope of TFDS: written here by protobuf from the message's own definition, taken off by our reader."""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from small_data import small_record, write_shard

from vlm3_jax import records
from vlm3_jax.data.sources import make_source
from vlm3_jax.data.sources.tfds_example import is_wrapped, unwrapped
from vlm3_jax.errors import BadRecord


@pytest.fixture(scope="module")
def example_class():
    """tf.train.Example as tensorflow/core/example/{example,feature}.proto define it."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def message(name, *fields, parent=None):
        made = (parent or file).message_type.add(name=name) if parent is None else parent.nested_type.add(name=name)
        for number, (field, kind, repeated) in enumerate(fields, 1):
            label = 3 if repeated else 1
            types = {"bytes": 12, "string": 9, "float": 2, "int64": 3}
            if kind in types:
                made.field.add(name=field, number=number, type=types[kind], label=label)
            else:
                made.field.add(name=field, number=number, type=11, label=label, type_name=f".tensorflow.{kind}")
        return made

    message("BytesList", ("value", "bytes", True))
    message("FloatList", ("value", "float", True))
    message("Int64List", ("value", "int64", True))
    lists = (("bytes_list", "BytesList", False), ("float_list", "FloatList", False), ("int64_list", "Int64List", False))
    message("Feature", *lists)
    features = message("Features", ("feature", "Features.FeatureEntry", True))
    entry = message("FeatureEntry", ("key", "string", False), ("value", "Feature", False), parent=features)
    entry.options.map_entry = True
    message("Example", ("features", "Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def wrapped(example_class, *values, name="record") -> bytes:
    example = example_class()
    example.features.feature[name].bytes_list.value.extend(values)
    return example.SerializeToString()


def test_the_envelope_is_taken_off(example_class, tmp_path):
    items = [records.to_bytes(small_record(n)) for n in range(3)]
    for data in (b"", b"x", bytes(300), *items):
        envelope = wrapped(example_class, data)
        assert is_wrapped(envelope)
        assert unwrapped(envelope) == data
    assert not any(map(is_wrapped, items))
    write_shard(tmp_path / "own-train.array_record-00000-of-00001", [wrapped(example_class, data) for data in items])
    found = make_source("a", {"path": str(tmp_path)})
    assert [found[n].id for n in range(3)] == ["r0", "r1", "r2"]


def test_what_is_no_envelope_of_one_record_is_bad(example_class):
    two = example_class()
    for name in "ab":
        two.features.feature[name].bytes_list.value.append(b"x")
    number = example_class()
    number.features.feature["a"].int64_list.value.append(3)
    good = wrapped(example_class, bytes(200))
    for data in (
        two.SerializeToString(),
        number.SerializeToString(),
        wrapped(example_class, b"a", b"b"),
        example_class().SerializeToString(),
        good[:-1],
        good[:2],
        b"\x0a",
        b"\x0a" + b"\xff" * 20,
        b"\x0a\x02\x08\x01",
    ):
        with pytest.raises(BadRecord, match=r"tf\.train\.Example"):
            unwrapped(data)
