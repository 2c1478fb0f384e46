"""The folder of a build as a data set of TFDS, and builds by TFDS and by Beam, where these are installed."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.builders import streets
from tests.builders.test_running import contents, of, stored
from vlm3_jax.builders.running.build import build
from vlm3_jax.builders.running.envelope import wrap

COUNT = 7
# TensorFlow and Beam hold protobuf back to version 6, which warns of what TFDS asks of it.
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("streets"), COUNT)


def example_class():
    """`tf.train.Example`, from its published description, by protobuf itself."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    bytes_list = file.message_type.add(name="BytesList")
    bytes_list.field.add(name="value", number=1, type=12, label=3)
    feature = file.message_type.add(name="Feature")
    feature.field.add(name="bytes_list", number=1, type=11, label=1, type_name=".t.BytesList")
    features = file.message_type.add(name="Features")
    features.field.add(name="feature", number=1, type=11, label=3, type_name=".t.Features.FeatureEntry")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".t.Feature")
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=11, label=1, type_name=".t.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16_383, 16_384, 3_000_000])
def test_the_envelope_is_the_example_that_protobuf_writes(size):
    data = os.urandom(size)
    example = example_class()()
    example.features.feature["record"].bytes_list.value.append(data)
    assert wrap(data) == example.SerializeToString(deterministic=True)


def test_tfds_reads_the_folder(raw, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    build(of(raw, tmp_path / "out"), workers=1)
    builder = tfds.builder_from_directory(str(tmp_path / "out"))
    assert builder.info.splits["train"].num_examples == COUNT
    source = builder.as_data_source("train")
    assert [source[n]["record"] for n in range(COUNT)] == stored(tmp_path / "out")


def test_tfds_builds_the_same_records(raw, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    from vlm3_jax.builders.running.tfds import BUILDERS

    build(of(raw, tmp_path / "out"), workers=1)
    builder = BUILDERS["street_scenes"](data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(raw)))
    same_records(tfds, tmp_path)


@pytest.mark.slow
def test_the_command_of_tfds_builds_them_too(raw, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow", reason="the command line of TFDS needs it, the data sets do not")
    build(of(raw, tmp_path / "out"), workers=1)
    code = "from tensorflow_datasets.scripts.cli.main import launch_cli; launch_cli()"
    command = [sys.executable, "-c", code, "build", "--imports=vlm3_jax.builders.running.tfds"]
    command += ["--datasets=street_scenes", f"--manual_dir={raw}", f"--data_dir={tmp_path / 'tfds'}"]
    command += ["--file_format=array_record"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    same_records(tfds, tmp_path)


def same_records(tfds, root):
    """What TFDS has written holds what a build has, in its own order."""
    folder = root / "tfds" / "street_scenes" / "1.0.0"
    source = tfds.builder_from_directory(str(folder)).as_data_source("train")
    assert sorted(source[n]["record"] for n in range(COUNT)) == sorted(stored(root / "out"))
    ours, theirs = (json.loads((part / "features.json").read_text()) for part in (root / "out", folder))
    assert ours["featuresDict"]["features"].keys() == theirs["featuresDict"]["features"].keys()


def test_beam_writes_the_same_files(raw, tmp_path):
    pytest.importorskip("apache_beam")
    build(of(raw, tmp_path / "pool"), workers=1)
    build(of(raw, tmp_path / "beam"), workers=2, beam=[])
    assert contents(pathlib.Path(tmp_path / "beam")) == contents(pathlib.Path(tmp_path / "pool"))
