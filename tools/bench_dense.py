"""Dense maps on rendered scenes whose depth is known: error against questions, beside the full grid and the truth.

    python tools/bench_dense.py                          # answers are the truth, in centimetres: what the filling costs
    python tools/bench_dense.py --noise=0.1              # the truth, each answer off by 10 % at random
    python tools/bench_dense.py --model=runs/demo        # a model's answers, asked at the demo's 128 x 96 px
    python tools/bench_dense.py --model=runs/demo --spread --first=200   # whether maps of its spread are true

Scenes are the demo's held-out ones (vlm3_jax.demo), rendered here; --size=640x480 renders them larger. Every line is
the mean over the scenes: questions, seconds of the questions and of the filling, |log(map / grid)| against the answers
of the full grid filled alike, |log(map / truth)|, and delta1 against the truth. With --spread: of the points asked and
of all pixels, the share of truths in the calibrated intervals, and |log(map / truth)| of the surest (the narrowest
interval, as a ratio of its ends). `vlm3 calibrate` must have learnt from other scenes (--first).
"""

import argparse
import dataclasses
import time

import numpy as np

from vlm3_jax import demo, synth
from vlm3_jax.camera import Camera
from vlm3_jax.infer.dense import DensePlan, dense_map
from vlm3_jax.synth.pairs import render_views

BUDGETS = (128, 256, 512, 1024, 2048)


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """An image, its camera, and the distance of every pixel (NaN: sky, or beyond what the demo asks about)."""

    pixels: np.ndarray
    camera: Camera
    truth_m: np.ndarray


def scene(index: int, options: synth.SynthOptions) -> Scene:
    """The first view of a scene."""
    views = render_views(0, index, options)
    z, camera = views.rendered.z_m[0].astype(np.float64), views.camera
    rows, columns = np.indices(z.shape)
    points = np.stack([columns, rows], -1).reshape(-1, 2)
    distance = camera.distance_from_z(points, z.ravel()).reshape(z.shape)
    known = (z > 0) & (distance <= options.max_depth_m)
    return Scene(views.rendered.images[0], camera, np.where(known, distance, np.nan))


class Asker:
    """Answers about a scene, each point once; `seconds` that they took. Of a model, or the truth with noise."""

    def __init__(self, shown: Scene, model, noise: float, seed: int):
        self.shown, self.seconds, self.noise = shown, 0.0, noise
        self._rng = np.random.default_rng(seed)
        self._questions = model._depth_questions(shown.pixels, shown.camera, "distance")[1] if model else None

    def __call__(self, points):
        """Metres at pixels [N, 2]."""
        start = time.perf_counter()
        if self._questions:
            found = self._questions.metres(points)
        else:
            exact = self.shown.truth_m[points[:, 1], points[:, 0]]
            found = np.round(exact * np.exp(self.noise * self._rng.standard_normal(len(points))), 2)
        self.seconds += time.perf_counter() - start
        return found


def against(found, wanted) -> float:
    """Mean |log(a / b)| where both are known."""
    return float(np.nanmean(np.abs(np.log(found / wanted))))


def measure(shown: Scene, plan: DensePlan, model, noise: float, grid) -> list[float]:
    """Questions, seconds asking, seconds filling, error against `grid` (a map), error and delta1 against the truth."""
    ask = Asker(shown, model, noise, 0)
    start = time.perf_counter()
    found, *_ = dense_map(ask, shown.pixels, plan)
    filling = time.perf_counter() - start - ask.seconds
    ratio = found.distance_m / shown.truth_m
    known = np.isfinite(shown.truth_m)
    right = np.maximum(ratio, 1 / ratio)[known] < 1.25
    error = against(found.distance_m, found.distance_m if grid is None else grid)
    return [found.questions, ask.seconds, filling, error, against(found.distance_m, shown.truth_m), float(right.mean())]


SUREST = (0.25, 0.5, 0.75, 1.0)


def of_spread(truth, found, low, high) -> list[float]:
    """The share of truths inside, and |log(found / truth)| of the surest."""
    known = np.isfinite(truth) & np.isfinite(found) & np.isfinite(low)
    truth, found, low, high = (x[known] for x in (truth, found, low, high))
    errors = np.abs(np.log(found / truth))[np.argsort(high / low)]
    inside = float(((low <= truth) & (truth <= high)).mean())
    return [inside, *(float(errors[: round(share * len(errors))].mean()) for share in SUREST)]


def print_spread(model, scenes: list[Scene]) -> None:
    """Of points asked and of all pixels."""
    rows = {f"{of}, {what}": [] for of in ("points", "pixels") for what in ("greedy", "median")}
    for shown in scenes:
        found = model.depth(shown.pixels, shown.camera, dense=True, spread=True)
        x, y = found.points_px.T
        told, maps = found.spread, found.spread_maps()
        ends = told.low_m, told.high_m
        for name, values in (("greedy", found.distance_m), ("median", told.median_m)):
            rows[f"points, {name}"].append((shown.truth_m[y, x], values, *ends))
        ends = maps["low"], maps["high"]
        for name, values in (("greedy", found.map_m()), ("median", maps["median"])):
            rows[f"pixels, {name}"].append([array.ravel() for array in (shown.truth_m, values, *ends)])
    print("| of | number | truths in the interval | " + " | ".join(f"surest {share:.0%}" for share in SUREST) + " |")
    print("|---" * (3 + len(SUREST)) + "|")
    for name, found in rows.items():
        arrays = [np.concatenate(column) for column in zip(*found)]
        values = " | ".join(f"{value:.1%}" for value in of_spread(*arrays))
        print(f"| {name} | {len(arrays[0]):,} | {values} |")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="HF directory or finished workdir; without one the truth answers")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="of the held-out scenes the first that is taken")
    parser.add_argument("--spread", action="store_true", help="whether maps of the model's calibrated spread are true")
    parser.add_argument("--noise", type=float, default=0.0, help="of the truth as answers: deviation of the logarithm")
    parser.add_argument("--size", default="128x96", help="of the images")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    options = dataclasses.replace(demo.options(), width=width, height=height, focal_px=float(width))
    scenes = [scene(demo.HELD_OUT_FIRST + args.first + k, options) for k in range(args.scenes)]
    model, finest = None, (1.0, 1.0)
    if args.model:
        import vlm3_jax

        model = vlm3_jax.load(args.model)
        if args.spread:
            print_spread(model, scenes)
            return
        finest = tuple(side / model.protocol("depth").coord_range for side in (width, height))
        # Compiling is no part of an answer.
        Asker(scenes[0], model, 0.0, 0)(np.array([[1, 1], [50, 50]]))
    cells = int(min(width, 128))
    full = DensePlan(10**9, cells=cells, halvings=0, finest_px=finest)
    rows, grids = {}, []
    for shown in scenes:
        ask = Asker(shown, model, args.noise, 1)
        grids.append(dense_map(ask, shown.pixels, full)[0].distance_m)
    rows["full grid"] = [measure(s, full, model, args.noise, g) for s, g in zip(scenes, grids)]
    for most in BUDGETS:
        plan = DensePlan(most, finest_px=finest)
        rows[f"at most {most:,}"] = [measure(s, plan, model, args.noise, g) for s, g in zip(scenes, grids)]
        even = DensePlan(10**9, cells=max(2, int(np.sqrt(most * width / height)) - 1), halvings=0, finest_px=finest)
        rows[f"{most:,} evenly"] = [measure(s, even, model, args.noise, g) for s, g in zip(scenes, grids)]
    of = args.model or f"the truth, noise {args.noise:g}"
    print(f"{args.scenes} scenes of {width} x {height} px; answers of {of}")
    print("| | questions | asking s | filling s | off the full grid | off the truth | delta1 |")
    print("|---|---|---|---|---|---|---|")
    for name, found in rows.items():
        questions, asking, filling, grid, truth, right = np.mean(found, 0)
        print(
            f"| {name} | {questions:,.0f} | {asking:.1f} | {filling:.2f} | {grid:.1%} | {truth:.1%} | {right:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
