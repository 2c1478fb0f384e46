"""What storing images resized saves: our data path on stored records, and Pillow + transformers, on one core.

    python tools/bench_stored.py                     (three minutes; needs the test extra and VLM3_SAMPLES)

Depth samples: 1920 x 1200 JPEG (fx 1400), focal length 1000, ten questions, rows with their lists of blocks, Qwen's
vocabulary. The images are photographs of iBims-1, enlarged. Stored as published, after the first resize (--focal=1000)
and after both (--final). `theirs`: Pillow decodes and resizes to the focal length, transformers' image processor (its
Pillow form) and tokenizer make patches and tokens of the same samples. Samples a second of processor time, in rounds
that take turns; ratios are medians over rounds. Then how far the pixels that the vision tower sees are from the exact
ones, by JPEG quality. The last lines are the gates, held or not (so is the exit code); Ctrl-C ends it with what it has.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "data")]

import gates  # noqa: E402
from qwen_reference import image_processor, tokenizer, write_qwen  # noqa: E402
from small_data import QWEN_VISION, Opened, loader_of, write_shard  # noqa: E402

from vlm3_jax import config as configs  # noqa: E402
from vlm3_jax import records  # noqa: E402
from vlm3_jax.builders.common import Item  # noqa: E402
from vlm3_jax.builders.running.plan import Images  # noqa: E402
from vlm3_jax.builders.running.prepare import prepare  # noqa: E402
from vlm3_jax.camera import Camera, Focal  # noqa: E402
from vlm3_jax.data.component import SampleSettings  # noqa: E402
from vlm3_jax.data.packing import RowBudget  # noqa: E402
from vlm3_jax.processor.chat import ChatFormat  # noqa: E402
from vlm3_jax.processor.image import image_layout  # noqa: E402

SIZE, FOCAL, ROWS = (1920, 1200), 1400.0, 4
RULE = Focal(1000.0)
KINDS = {
    "as published": Images(),
    "--focal=1000": Images("focal:1000"),
    "--focal=1000 --final": Images("focal:1000", QWEN_VISION),
}

GATES = {"times theirs, as published": (">=", 1.5), "times theirs, --focal=1000 --final": (">=", 4.0)}


def published(count: int) -> list[records.Record]:
    """Records of photographs, of JPEG quality 92 as cameras write them, with 100 labelled points each."""
    folder = pathlib.Path(os.environ.get("VLM3_SAMPLES", ROOT.parent / "shared" / "data")) / "ibims1"
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))[:count]
    found, rng = [], np.random.default_rng(0)
    for number in range(count):
        photo = Image.open(paths[number % len(paths)]).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=92)
        image = records.ImageRef(*SIZE, f"photo {number}", data=buffer.getvalue())
        view = records.View(image, Camera(FOCAL, FOCAL, SIZE[0] / 2, SIZE[1] / 2, *SIZE))
        points = records.DepthPoints(rng.integers(0, SIZE, (100, 2)), rng.uniform(1, 9, 100), "z")
        found.append(records.Record(f"r{number}", (view,), (points,)))
    return found


def ours(folder: pathlib.Path, settings: SampleSettings, batches: int) -> float:
    """Samples a second of the whole loader, without threads."""
    with loader_of(opened(folder, settings), settings, workers=0) as loader:
        next(loader)
        start, samples = time.process_time(), 0
        for _ in range(batches):
            samples += next(loader).samples
        return samples / (time.process_time() - start)


def opened(folder: pathlib.Path, settings: SampleSettings) -> Opened:
    """The mixture of one folder of records."""
    return Opened({"stored": {"kind": "records", "path": str(folder), "task": "depth"}}, settings, ROWS)


def theirs(source: list[records.Record], texts: list[str], folder: pathlib.Path) -> float:
    """Samples a second of Pillow and transformers."""
    process, tokenize = image_processor(QWEN_VISION), tokenizer(folder)
    camera = RULE.camera(source[0].views[0].camera)

    def one(number: int) -> None:
        image = Image.open(io.BytesIO(source[number % len(source)].views[0].image.data)).convert("RGB")
        image = image.resize((camera.width, camera.height), Image.Resampling.BICUBIC)
        process([image], return_tensors="np")
        tokenize(texts[number % len(texts)])

    one(0)
    start = time.process_time()
    for number in range(len(source)):
        one(number)
    return len(source) / (time.process_time() - start)


def difference(source: list[records.Record], quality: int) -> dict:
    """How far the stored pixels are from those that the loader would have made, 0..255, and bytes an image."""
    values, size = [], 0
    for record in source:
        wanted = image_layout(records.unify(record, RULE).views[0], QWEN_VISION).shown()
        images = Images("focal:1000", QWEN_VISION, quality)
        stored = records.from_bytes(prepare(record, Item(record.id, "", {}), images)[0]).views[0].image
        values.append(np.abs(stored.load().astype(int) - wanted))
        size += len(stored.data)
    found = np.concatenate([value.ravel() for value in values])
    psnr = 10 * np.log10(255**2 / np.square(found.astype(float)).mean())
    row = {"quality": quality, "mean": found.mean(), "99 %": np.percentile(found, 99), "PSNR, dB": psnr}
    return {name: round(float(value), 2) for name, value in row.items()} | {"kB": round(size / len(source) / 1e3)}


def main() -> None:
    """Prints one line of JSON for each round, each way of storing, each JPEG quality and each gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=3, help="of ours in a round, four rows each")
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args()
    gates.run(GATES, lambda values: measure(args, values))


def measure(args, values: dict[str, float]) -> None:
    """Prints the lines; the medians of the ratios into `values`."""
    budget = RowBudget.from_config(configs.load("depth").data)
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        write_qwen(root)
        settings = SampleSettings(ChatFormat.from_dir(root), QWEN_VISION, budget)
        source = published(args.images)
        for number, images in enumerate(KINDS.values()):
            folder = root / f"{number}"
            folder.mkdir()
            data = [prepare(record, Item(record.id, "", {}), images)[0] for record in source]
            write_shard(folder / "records.array_record", data)
        samples = [opened(root / "0", settings).mixture.sample(number) for number in range(8)]
        texts, rates = [settings.chat.decode(sample.tokens) for sample in samples], {name: [] for name in KINDS}
        ratios = {name: [] for name in KINDS}
        for _ in range(args.rounds):
            reference = theirs(source, texts, root)
            row = {"theirs": round(reference, 2)}
            for number, name in enumerate(KINDS):
                rates[name].append(ours(root / f"{number}", settings, args.batches))
                ratios[name].append(rates[name][-1] / reference)
                row[name] = round(rates[name][-1], 1)
                values[f"times theirs, {name}"] = round(statistics.median(ratios[name]), 2)
            print(json.dumps({"samples/s": row}), flush=True)
        for name in KINDS:
            row = {"stored": name, "samples/s": round(statistics.median(rates[name]), 1)}
            row |= {"times theirs": round(statistics.median(ratios[name]), 2)}
            print(json.dumps(row | {"of rounds": [round(ratio, 2) for ratio in ratios[name]]}), flush=True)
        for quality in (90, 95, 98):
            print(json.dumps(difference(source[:8], quality)), flush=True)


if __name__ == "__main__":
    main()
