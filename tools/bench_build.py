"""How fast data sets are built: images a second of processor time, and what a second process brings.

    python tools/bench_build.py                       (four minutes on a free machine)

RGB with dense depth at 640 x 480, in the generic street layout: JPEG of quality 95 and depth in 16-bit PNG, of a scene
rendered for it. Images a second of processor time, so other programs count little. Then one process against two, in
turns, by the clock, which says little on a busy machine (`load`), and by `work`: how much more processor time two take
for the same files (1 would be none). Both are of a long build less a short one, for a start is paid once; the last line
before the gates has the medians of the turns. Nothing else keeps two processes from being twice as fast: they share no
lock and write files of their own. The last lines are the gates, held or not (so is the exit code); Ctrl-C ends it with
what it has.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import tempfile
import time

import gates
import numpy as np
from PIL import Image

from vlm3_jax.builders.running.build import build
from vlm3_jax.builders.running.command import QWEN, vision
from vlm3_jax.builders.running.plan import Images, make_build
from vlm3_jax.synth import SynthOptions, render_views

WIDTH, HEIGHT, FOCAL = 640, 480, 525.0
KINDS = {
    "as published": Images(),
    "--focal=1000": Images("focal:1000"),
    "--focal=1000 --final": Images("focal:1000", vision(QWEN)),
}

PUBLISHED, CLOCK = "images/s of a core, as published", "two processes times one, by the clock"
GATES = {PUBLISHED: (">=", 40), CLOCK: (">=", 1.7)}


def write(root: pathlib.Path, count: int) -> None:
    """So many frames; a dozen rendered ones, again and again under other names."""
    (root / "about.json").parent.mkdir(parents=True)
    (root / "about.json").write_text(json.dumps({"depth_kind": "z", "depth_scale": 1e-3}))
    options = SynthOptions(width=WIDTH, height=HEIGHT, focal_px=FOCAL)
    shots = [render_views(0, number, options) for number in range(6)]
    for kind in ("rgb", "depth", "intrinsics"):
        (root / "train" / kind / "scene").mkdir(parents=True)
    for number in range(count):
        views = shots[number % len(shots)]
        rgb, z, camera = views.rendered.images[0], views.rendered.z_m[0], views.camera
        there = (z > 0) & (z < 65)
        Image.fromarray(rgb).save(root / "train" / "rgb" / "scene" / f"{number:05d}.jpg", quality=95)
        steps = np.where(there, np.rint(np.where(there, z, 0) * 1000), 0).astype(np.uint16)
        Image.fromarray(steps).save(root / "train" / "depth" / "scene" / f"{number:05d}.png")
        intrinsics = [camera.fx, camera.fy, camera.cx, camera.cy, WIDTH, HEIGHT]
        (root / "train" / "intrinsics" / "scene" / f"{number:05d}.json").write_text(json.dumps(intrinsics))


def spent(raw: pathlib.Path, out: pathlib.Path, images: Images, workers: int, shard: int) -> tuple[float, float, int]:
    """(processor seconds of all processes, seconds, images) of a build."""
    shutil.rmtree(out, ignore_errors=True)
    what = make_build("street_scenes", raw, out, images=images, shard_items=shard)
    before, start = _used(), time.perf_counter()
    summary = build(what, workers=workers)
    return _used() - before, time.perf_counter() - start, summary.counts["images"]


def _used() -> float:
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in found)


def main() -> None:
    """Prints a line of JSON for each way of storing, for each turn of one process against two, and for each gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120, help="of each measurement")
    parser.add_argument("--scaling-images", type=int, default=360, help="of one process against two")
    parser.add_argument("--turns", type=int, default=3, help="of one process against two")
    parser.add_argument("--scaling-only", action="store_true", help="leave the ways of storing out")
    args = parser.parse_args()
    gates.run(GATES, lambda values: measure(args, values))


def measure(args, values: dict[str, float]) -> None:
    """Prints the lines; what the gates ask for into `values`."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        raw, out = root / "raw", root / "out"
        write(raw, args.images)
        spent(raw, out, Images(), 1, args.images)
        for name, images in {} if args.scaling_only else KINDS.items():
            used, _, made = spent(raw, out, images, 1, args.images)
            size = sum(path.stat().st_size for path in out.glob("*.array_record*"))
            row = {"stored": name, "images/s of a core": round(made / used, 1), "kB a record": round(size / made / 1e3)}
            values |= {PUBLISHED: row["images/s of a core"]} if name == "as published" else {}
            print(json.dumps(row), flush=True)
        counts = {"short": args.scaling_images // 10, "long": args.scaling_images}
        for name, count in counts.items():
            write(root / name, count)
        rows = []
        for _ in range(args.turns):
            rows.append(_turn(root, out, counts))
            medians = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
            values[CLOCK] = round(medians["speedup by the clock"], 2)
            print(json.dumps({name: round(value, 2) for name, value in rows[-1].items()}), flush=True)
        print(json.dumps({name: round(value, 2) for name, value in medians.items()}), flush=True)


def _turn(root: pathlib.Path, out: pathlib.Path, counts: dict[str, int]) -> dict[str, float]:
    """One process and then two."""
    found = {}
    for workers in (1, 2):
        for name, count in counts.items():
            used, wall, _ = spent(root / name, out, Images("focal:1000"), workers, count // 8)
            found[name, workers] = np.array([used, wall])
    one, two = (found["long", workers] - found["short", workers] for workers in (1, 2))
    return {
        "speedup by the clock": one[1] / two[1],
        "work": two[0] / one[0],
        "speedup on two free processors": 2 * one[0] / two[0],
        "start of two, s": found["short", 2][0] - found["short", 1][0],
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
