"""The public benchmarks, a record each: which built data they ask about, how much of them, and what is reported.

What is asked was chosen once, when the data were built, and stands in a manifest beside the shards
(evaluate/manifest.py). Where the published list of images or points is not public, `selection` says what stands for it.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

from vlm3_jax import storage
from vlm3_jax.errors import UserError

RULES = ("metres", "depthlm")
"""Whose labels: true metres, or those that DepthLM's curators stored, on which the published numbers were measured."""
# UFM's evaluation asks so many of each set.
QUERIES = 8192
# As DepthLM's curators draw from each image.
POINTS = 100

Choice = Callable[[list[str]], list[str]]


def _all(ids: list[str]) -> list[str]:
    return ids


def _every(step: int) -> Choice:
    return lambda ids: ids[::step]


def _first_scenes(count: int) -> Choice:
    def chosen(ids: list[str]) -> list[str]:
        scenes = sorted({id.split("/")[0] for id in ids})[:count]
        return [id for id in ids if id.split("/")[0] in scenes]

    return chosen


def _first_pairs(count: int) -> Choice:
    """Of ids PLACE/NUMBER_0-NUMBER_1 those of the lowest numbers, in the order of the ids."""

    def chosen(ids: list[str]) -> list[str]:
        numbers = sorted(id.rsplit("/", 1)[-1] for id in ids)[:count]
        return [id for id in ids if id.rsplit("/", 1)[-1] in set(numbers)]

    return chosen


def _of_type(word: str) -> Choice:
    return lambda ids: [id for id in ids if f"-{word}-" in id]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """`where`: the built data below VLM3_DATA, made by `builder` of its `split`; `metric`: the headline.

    `choose` takes the ids of all built records and returns those asked about, as `selection` says in words; of each
    `labels` are drawn (0: all it has), of all together at most `total` (0: no bound). `published`: whether published
    tables have a column for it, which is called `title`. `depthlm`: whether DepthLM's labels are others. `typical`:
    (width, height, focal length) of its images in px, and `records`: how many are asked about, for plans without data
    and, where that is `exact`, to tell when a set is not built whole.
    """

    name: str
    title: str
    task: str
    metric: str
    builder: str
    split: str
    where: str
    typical: tuple[float, float, float]
    records: int
    selection: str = "all records of the split"
    choose: Choice = _all
    labels: int = 0
    total: int = 0
    published: bool = True
    depthlm: bool = False
    tolerance: tuple[float, float] = (0.1, 0.005)
    exact: bool = False

    def folder(self, rules: str = "metres") -> storage.AnyPath:
        """Where its built data are looked for."""
        end = "_depthlm" if rules == "depthlm" and self.depthlm else ""
        return storage.path(os.environ.get("VLM3_DATA", "runs/data"), "VLM3_DATA") / f"{self.where}{end}"

    def command(self, rules: str = "metres") -> str:
        """What makes its built data and its manifest."""
        end = " --depthlm" if rules == "depthlm" and self.depthlm else ""
        return f"vlm3 data build {self.builder} --raw=DIR --split={self.split}{end}"


def _depth(name: str, title: str, builder: str, split: str, where: str, typical, records: int, **fields) -> Benchmark:
    return Benchmark(name, title, "depth", "delta1", builder, split, where, typical, records, labels=POINTS, **fields)


def _objects(kind: str, metric: str, records: int) -> Benchmark:
    return Benchmark(
        f"spatialrgpt_{kind}",
        f"SpatialRGPT-Bench, {kind}",
        "objects",
        metric,
        "spatialrgpt_bench",
        "test",
        "bench/spatialrgpt_bench/held_out",
        (1024, 768, 900),
        records,
        f"its {kind} questions",
        _of_type(kind),
        exact=True,
    )


def _matches(name: str, title: str, builder: str, split: str, where: str, typical, records: int, **fields) -> Benchmark:
    return Benchmark(
        name, title, "correspondence", "epe", builder, split, where, typical, records, total=QUERIES, **fields
    )


def _pose(name: str, title: str, builder: str, split: str, where: str, typical, records: int, **fields) -> Benchmark:
    return Benchmark(name, title, "pose", "auc30", builder, split, where, typical, records, **fields)


# Numbers of records are those of the published sets where these are known; the others are estimates for plans.
BENCHMARKS = {
    one.name: one
    for one in (
        _depth(
            "argoverse2",
            "Argoverse2",
            "argoverse2",
            "val",
            "depth/argoverse2/held_out",
            (2048, 1550, 1690),
            2200,
            selection="the ring cameras of the first two logs of val, as DepthLM's curator takes them",
            choose=_first_scenes(2),
        ),
        _depth(
            "ddad", "DDAD", "ddad", "val", "bench/ddad/held_out", (1936, 1216, 2180), 23_700, depthlm=True, exact=True
        ),
        _depth(
            "nuscenes",
            "NuScenes",
            "nuscenes",
            "bench",
            "depth/nuscenes/held_out",
            (1600, 900, 1266),
            126,
            selection="the last 5 % of the samples of v1.0-mini, as DepthLM's curator takes them",
            depthlm=True,
            exact=True,
        ),
        _depth(
            "eth3d",
            "ETH3D",
            "eth3d",
            "train",
            "bench/eth3d/held_out",
            (6000, 4000, 3400),
            454,
            depthlm=True,
            exact=True,
        ),
        _depth(
            "scannetpp",
            "ScanNet++",
            "scannetpp",
            "val",
            "depth/scannetpp/held_out",
            (1920, 1440, 1427),
            700,
            selection="every 50th frame of the held-out scenes; the published 2 % are the last rows of a list of all "
            "scenes, whose other rows are trained on",
            choose=_every(50),
            depthlm=True,
        ),
        _depth("sunrgbd", "SUN RGB-D", "sunrgbd", "bench", "bench/sunrgbd/bench", (640, 480, 530), 4395, depthlm=True),
        _depth(
            "ibims1",
            "iBims-1",
            "ibims1",
            "test",
            "bench/ibims1/held_out",
            (640, 480, 560),
            100,
            depthlm=True,
            exact=True,
        ),
        _depth(
            "nyuv2",
            "NYUv2",
            "nyuv2_sun",
            "bench",
            "bench/nyuv2_sun/held_out",
            (561, 427, 519),
            1449,
            selection="all 1,449 frames of SUN RGB-D's copy, as DepthLM's curator takes them",
            depthlm=True,
            exact=True,
        ),
        _objects("qualitative", "qualitative", 657),
        _objects("quantitative", "quantitative", 749),
        _matches(
            "eth3d_matches",
            "ETH3D",
            "eth3d_pairs",
            "test",
            "bench/eth3d_pairs/held_out",
            (6000, 4000, 3400),
            500,
            selection="every third pair of photos; UFM's list of pairs is not public",
            choose=_every(3),
        ),
        _matches(
            "dtu_matches",
            "DTU",
            "dtu",
            "test",
            "bench/dtu/held_out",
            (1600, 1200, 2892),
            80,
            selection="every 50th pair of pair.txt; UFM's list of pairs is not public",
            choose=_every(50),
            tolerance=(0.012, 0.01),
        ),
        _matches(
            "tawb_matches",
            "TA-WB",
            "tartanair_wb",
            "test",
            "pairs/tartanair_wb/held_out",
            (640, 640, 320),
            1500,
            selection="the first 1,500 pairs",
            choose=_first_pairs(1500),
            exact=True,
        ),
        _pose(
            "eth3d_pose",
            "ETH3D",
            "eth3d_pairs",
            "test",
            "bench/eth3d_pairs/held_out",
            (6000, 4000, 3400),
            1500,
            selection="all built pairs; the published list is not public",
        ),
        _pose(
            "scannetpp_pose",
            "ScanNet++",
            "scannetpp_pairs",
            "test",
            "pairs/scannetpp_pairs/held_out",
            (1752, 1168, 790),
            3000,
            selection="every tenth built pair of the 30 held-out scenes; the published list is not public",
            choose=_every(10),
        ),
        _pose(
            "scannet_pose",
            "ScanNet",
            "scannet",
            "test",
            "bench/scannet/held_out",
            (1296, 968, 1170),
            1500,
            published=False,
        ),
        _depth(
            "middlebury_depth",
            "Middlebury 2014",
            "middlebury",
            "test",
            "bench/middlebury/held_out",
            (2964, 1988, 3980),
            23,
            published=False,
        ),
        _matches(
            "middlebury_matches",
            "Middlebury 2014",
            "middlebury",
            "test",
            "bench/middlebury/held_out",
            (2964, 1988, 3980),
            23,
            published=False,
        ),
    )
}
GROUPS = ("depth", "objects", "correspondence", "pose", "all")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A benchmark under one kind of labels; `key` names its results."""

    benchmark: Benchmark
    rules: str = "metres"

    @property
    def key(self) -> str:
        """NAME or NAME-depthlm, also the name of its folder."""
        return self.benchmark.name + ("-depthlm" if self.rules == "depthlm" else "")

    @property
    def folder(self) -> storage.AnyPath:
        """Where its built data are looked for."""
        return self.benchmark.folder(self.rules)

    @property
    def command(self) -> str:
        """What makes its built data."""
        return self.benchmark.command(self.rules)


def find(names: Sequence[str], rules: str = "metres") -> list[Asked]:
    """The benchmarks of names, of groups ("depth", "all") and of results (NAME-depthlm), each once, in table order.

    Of a group those without a published column are left out. UserError for an unknown name, and for DepthLM's labels
    of what has none.
    """
    chosen = set()
    for name in names:
        base, own = name.removesuffix("-depthlm"), "depthlm" if name.endswith("-depthlm") else rules
        group = [one for one in BENCHMARKS.values() if one.published and base in (one.task, "all")]
        if own == "depthlm":
            group = [one for one in group if one.task == "depth"]
            if base in GROUPS and not group:
                raise UserError(f"--bench={name}: DepthLM's labels are depths, these are of {base}")
        found = [BENCHMARKS[base]] if base in BENCHMARKS else group if base in GROUPS else []
        if not found:
            known = ", ".join((*GROUPS, *BENCHMARKS))
            raise UserError(f"--bench={name}: choose of {known}")
        if own == "depthlm" and found[0].task != "depth":
            raise UserError(f"--bench={name}: DepthLM's labels are depths, this is {found[0].task}")
        chosen |= {Asked(one, own) for one in found}
    order = list(BENCHMARKS.values())
    return sorted(chosen, key=lambda asked: (RULES.index(asked.rules), order.index(asked.benchmark)))


def of_builder(builder: str, split: str) -> list[Benchmark]:
    """The benchmarks that are made of a builder's split."""
    return [one for one in BENCHMARKS.values() if (one.builder, one.split) == (builder, split)]


def of_key(key: str) -> Asked | None:
    """What the results of this name are of; None if that is no benchmark."""
    base = key.removesuffix("-depthlm")
    rules = "depthlm" if key.endswith("-depthlm") else "metres"
    return Asked(BENCHMARKS[base], rules) if base in BENCHMARKS else None
