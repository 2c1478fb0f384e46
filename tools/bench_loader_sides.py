r"""The loader beside Pillow and transformers' processor, on the same images, in turns. Needs the test extra.

    python tools/bench_loader_sides.py                     (a minute or two)

One core. Photographs of 1,920 x 1,200 px (JPEG, focal length 1,400 px) are brought to a focal length of 1,000 px, asked
ten questions each and put into rows. Ours: the whole loader without threads. Theirs: `json`, Pillow's decoding and
bicubic resizing, the questions as a conversation through transformers' Qwen3-VL processor (its image processor for
Pillow, its tokenizer). Both give the same pixels, which is checked. Rounds take turns, so other programs slow both;
the ratio is the median over rounds. The photographs are made of one of VLM3_SAMPLES. The last line is the gate, held or
not (so is the exit code); Ctrl-C ends it with what it has.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "data")]

import gates  # noqa: E402
import numpy as np  # noqa: E402
import qwen_reference as qwen  # noqa: E402
from PIL import Image  # noqa: E402
from small_data import QWEN_VISION, Opened, loader_of  # noqa: E402

from vlm3_jax import config as configs  # noqa: E402
from vlm3_jax.data.component import SampleSettings  # noqa: E402
from vlm3_jax.data.packing import RowBudget  # noqa: E402
from vlm3_jax.processor import image  # noqa: E402
from vlm3_jax.processor.chat import ChatFormat  # noqa: E402
from vlm3_jax.processor.video import VideoSpec  # noqa: E402
from vlm3_jax.tasks import depth  # noqa: E402
from vlm3_jax.tasks.protocol import RELEASE  # noqa: E402

WIDTH, HEIGHT, FOCAL, TARGET, QUESTIONS, QUALITY = 1920, 1200, 1400.0, 1000.0, 10, 92
RATIO = "ours times theirs, equal pixels"
GATES = {RATIO: (">=", 1.5)}
ANSWER = "<think> The point is around {d:.2f} meters away from the camera. </think>\n\n<answer> {d:.2f} </answer>"


def photographs(folder: pathlib.Path, count: int) -> pathlib.Path:
    """A DepthLM jsonl of `count` photographs: a real one, enlarged, with a little noise of its own in each."""
    samples = pathlib.Path(os.environ.get("VLM3_SAMPLES", ROOT.parent / "shared" / "data"))
    source = sorted(samples.glob("ibims1/**/*.png"))[0]
    rng, rows = np.random.default_rng(0), []
    large = np.asarray(Image.open(source).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), np.int16)
    for number in range(count):
        noisy = np.clip(large + rng.normal(0, 2, large.shape).astype(np.int16), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=QUALITY)
        points = rng.integers(0, (WIDTH, HEIGHT), (100, 2)).tolist()
        rows.append(
            {
                "image": f"{number}.jpg",
                "intrinsics": [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT],
                "pixel_coords": points,
                "depth": rng.uniform(1, 40, 100).round(2).tolist(),
            }
        )
    path = folder / "photographs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


class Theirs:
    """What a training script around transformers does with a line."""

    def __init__(self, path: pathlib.Path, folder: pathlib.Path):
        self.lines, self.folder = path.read_text().splitlines(), path.parent
        self.processor = qwen.processor(VideoSpec(QWEN_VISION, 1, 1), folder)

    def sample(self, number: int) -> dict:
        """Token ids, pixel values and grid."""
        row = json.loads(self.lines[number % len(self.lines)])
        scale = TARGET / row["intrinsics"][0]
        photo = Image.open(self.folder / row["image"]).convert("RGB")
        photo = photo.resize((int(photo.width * scale), int(photo.height * scale)), Image.Resampling.BICUBIC)
        rng, turns = np.random.default_rng(number), []
        for place, index in enumerate(rng.permutation(len(row["depth"]))[:QUESTIONS].tolist()):
            (x, y), d = row["pixel_coords"][index], row["depth"][index]
            x, y = (round(int(v * scale) * 2000 / side) for v, side in zip((x, y), photo.size, strict=True))
            question = [{"type": "text", "text": depth.question(x, y, RELEASE["depth"])}]
            turns.append({"role": "user", "content": ([] if place else [{"type": "image"}]) + question})
            answer = ANSWER.format(d=d)
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text = self.processor.apply_chat_template(turns, tokenize=False)
        return self.processor(text=[text], images=[photo], return_tensors="np")


def ours(opened: Opened, settings: SampleSettings, batches: int) -> float:
    """Samples a second of processor time."""
    with loader_of(opened, settings, workers=0) as loader:
        next(loader)
        start, samples = time.process_time(), 0
        for _ in range(batches):
            samples += next(loader).samples
        return samples / (time.process_time() - start)


def theirs(side: Theirs, count: int) -> float:
    """Samples a second of processor time."""
    start = time.process_time()
    for number in range(count):
        side.sample(number)
    return count / (time.process_time() - start)


def same_pixels(opened: Opened, side: Theirs) -> bool:
    """Whether the first images of both sides are equal to the last bit, as bytes."""
    for number in range(2):
        sample = opened.components[0].sample(number, (0, number), "x")
        (layout,), values = sample.images, side.sample(number)["pixel_values"]
        bytes_ = np.rint((values.reshape(len(values), 3, 2, -1)[:, :, 0] * 0.5 + 0.5) * 255).astype(np.uint8)
        if not np.array_equal(layout.load(QWEN_VISION), bytes_.reshape(len(values), -1)):
            return False
    return True


def main() -> None:
    """Prints one line of JSON, and the gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2, help="of ours in a round, four rows each")
    parser.add_argument("--samples", type=int, default=16, help="of theirs in a round")
    parser.add_argument("--plain", action="store_true", help="without the machine code of the extra fast")
    args = parser.parse_args()
    gates.run(GATES, lambda values: measure(args, values))


def measure(args, values: dict[str, float]) -> None:
    """Prints the line; the ratio into `values` if both sides give the same pixels."""
    if args.plain:
        image.compiled = lambda: None
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        qwen.write_qwen(folder)
        path = photographs(folder, 8)
        settings = SampleSettings(
            ChatFormat.from_dir(folder), QWEN_VISION, RowBudget.from_config(configs.load("depth").data)
        )
        entry = {"kind": "depthlm", "path": str(path), "depth_kind": "z", "questions": QUESTIONS}
        opened, side = Opened({"photographs": entry}, settings, 4), Theirs(path, folder)
        found = {"machine code": image.compiled() is not None, "same pixels": same_pixels(opened, side)}
        found |= {"ours": [], "theirs": []}
        ratios = []
        for _ in range(args.rounds):
            found["ours"].append(round(ours(opened, settings, args.batches), 2))
            found["theirs"].append(round(theirs(side, args.samples), 2))
            ratios.append(found["ours"][-1] / found["theirs"][-1])
            if found["same pixels"]:
                values[RATIO] = round(statistics.median(ratios), 2)
    ratio = {"ratio": round(statistics.median(ratios), 2), "of rounds": [round(ratio, 2) for ratio in ratios]}
    print(json.dumps(found | ratio), flush=True)


if __name__ == "__main__":
    main()
