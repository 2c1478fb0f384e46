"""The reckoning of a build: every item is written, skipped or failed; and the files that make the folder a TFDS one."""

import dataclasses
import json
from collections.abc import Sequence

from vlm3_jax.builders.common import Builder
from vlm3_jax.builders.running.envelope import FEATURE
from vlm3_jax.builders.running.plan import Build, Job
from vlm3_jax.errors import UserError
from vlm3_jax.files import write_text
from vlm3_jax.storage import AnyPath

RECORD = "build.json"
REJECTED = "rejected.jsonl"
COUNTS = ("items", "written", "skipped", "failed", "images", "labels_removed", "record_bytes", "bytes")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a build has come to."""

    out: AnyPath
    shards: int
    counts: dict[str, int]

    def __str__(self):
        c = self.counts
        text = f"{self.out}: {c['written']:,} records of {c['items']:,} items in {self.shards} shards, "
        text += f"{c['bytes'] / 1e9:.2f} GB"
        if c["skipped"] or c["failed"]:
            text += f"; {c['skipped']:,} skipped and {c['failed']:,} failed, see {REJECTED}"
        if c["labels_removed"]:
            text += f"; {c['labels_removed']:,} unusable labels left out, see {REJECTED}"
        return text


def too_many(build: Build, done: Sequence[dict], intended: int, max_bad: float) -> UserError | None:
    """The error of a build that has failed on more than that share of its items; its shards are not finished then."""
    failed = sum(one["failed"] for one in done)
    if failed <= max_bad * intended:
        return None
    first = next(row for one in done for row in one["rejected"] if row["kind"] == "failed")
    return UserError(
        f"{build.out}: {failed:,} of {intended:,} items failed, more than --max-bad={max_bad:g} allows; the first, "
        f"{first['key']}: {first['reason']} (all in {REJECTED}); mend them and give the same command again, which "
        "reads only those shards anew, or raise --max-bad"
    )


def finish(about: dict, builder: Builder, jobs: Sequence[Job], done: Sequence[dict]) -> Summary:
    """Writes what describes the whole folder, the record of completion last."""
    build = jobs[0].build
    done = sorted(done, key=lambda one: one["number"])
    counts = {name: sum(one[name] for one in done) for name in COUNTS}
    if counts["items"] != about["items"] or counts["items"] != sum(counts[n] for n in ("written", "skipped", "failed")):
        raise ValueError(f"{build.out}: the counts do not add up: {counts}, intended {about['items']}")
    write_rejected(build, done)
    write_text(build.out / "features.json", _json(features()))
    write_text(build.out / "dataset_info.json", _json(dataset_info(build, builder, done)))
    shards = [
        {"name": job.shard.name, "records": one["written"], "bytes": one["bytes"], "sha256": one["sha256"]}
        for job, one in zip(jobs, done, strict=True)
    ]
    write_text(build.out / RECORD, _json({**about, "counts": counts, "shards": shards}))
    return Summary(build.out, len(shards), counts)


def write_rejected(build: Build, done: Sequence[dict]) -> None:
    """One line for every item that gave no record, or not all of its labels, in the order of the items."""
    rows = [row for one in sorted(done, key=lambda one: one["number"]) for row in one["rejected"]]
    write_text(build.out / REJECTED, "".join(json.dumps(row) + "\n" for row in rows))


def features() -> dict:
    """What TFDS reads of the features: one of bytes."""
    scalar = {
        "pythonClassName": "tensorflow_datasets.core.features.scalar.Scalar",
        "tensor": {"shape": {}, "dtype": "string", "encoding": "none"},
        "description": "A vlm3_jax Record: vlm3_jax.records.from_bytes reads it.",
    }
    return {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {FEATURE.decode(): scalar}},
    }


def dataset_info(build: Build, builder: Builder, done: Sequence[dict]) -> dict:
    """What TFDS reads of the data set (its proto DatasetInfo as JSON, where 64-bit numbers are texts)."""
    split = {
        "name": build.split,
        "shardLengths": [str(one["written"]) for one in done],
        "numBytes": str(sum(one["record_bytes"] for one in done)),
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    return {
        "name": build.name,
        "version": builder.version,
        "description": f"{builder.title}: {builder.labels}",
        "citation": "",
        "fileFormat": "array_record",
        "splits": [split],
    }


def _json(tree) -> str:
    return json.dumps(tree, indent=2) + "\n"
