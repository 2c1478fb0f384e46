"""Every builder as a builder of TFDS, for `tfds build` (extra `builders`).

    tfds build --imports=vlm3_jax.builders.running.tfds --datasets=taskonomy --manual_dir=RAW --data_dir=DIR \
        --file_format=array_record

The same records as by `vlm3 data build`, in the order and the shards that TFDS likes, with all splits at once.
"""

import logging
import pathlib
import types
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from vlm3_jax.builders import registry
from vlm3_jax.builders.common import Builder
from vlm3_jax.builders.running.envelope import FEATURE
from vlm3_jax.builders.running.plan import MAX_BAD, Build, Images, Job
from vlm3_jax.builders.running.shards import Rejected, read
from vlm3_jax.errors import UserError

_log = logging.getLogger(__name__)


class _Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Records of the builder `OURS`, as bytes."""

    OURS: type[Builder]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "--manual_dir: the folder of the data set as it is published (docs/datasets.md)."

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({FEATURE.decode(): tfds.features.Scalar(np.object_)})
        text = f"{self.OURS.title}: {self.OURS.labels}"
        return tfds.core.DatasetInfo(builder=self, description=text, features=features)

    def _split_generators(self, dl_manager):
        raw = pathlib.Path(dl_manager.manual_dir)
        return {split: self._generate_examples(raw, split) for split in _splits(self.OURS(), raw)}

    def _generate_examples(self, raw: pathlib.Path, split: str) -> Iterator[tuple[str, dict]]:
        builder = self.OURS()
        items = builder.frames(raw, split)
        job = Job(Build(self.OURS.name, split, raw, raw, images=Images()), 0, 1, "", tuple(items))
        failed = 0
        for item in items:
            found = read(builder, job, item)
            if isinstance(found, Rejected):
                _log.warning("%s: %s: %s: %s", self.OURS.name, found.kind, found.key, found.reason)
                failed += found.kind == "failed"
                if failed > MAX_BAD * len(items):
                    raise UserError(f"{failed} of {len(items)} items failed, the last, {found.key}: {found.reason}")
                continue
            yield item.key, {FEATURE.decode(): found[0]}


def _splits(builder: Builder, raw: pathlib.Path) -> list[str]:
    """The splits that the folder has; UserError, that of the first, if it has none."""
    there, first = [], None
    for split in builder.splits:
        try:
            builder.frames(raw, split)
            there.append(split)
        except UserError as error:
            first = first or error
    if not there:
        raise first
    return there


def _make(name: str, builder: type[Builder]) -> type[_Records]:
    """The class of TFDS, which registers itself under the builder's name."""

    def fill(namespace):
        namespace.update(
            OURS=builder,
            name=name,
            VERSION=tfds.core.Version(builder.version),
            __doc__=builder.__doc__,
            __module__=__name__,
        )

    return types.new_class("".join(part.capitalize() for part in name.split("_")), (_Records,), {}, fill)


BUILDERS = {name: _make(name, builder) for name, builder in registry.table().items()}
