"""The published results of VLM3 and of the models it is compared with, as data (VLM3 paper, arXiv 2605.30561).

Means are kept as published. Two of them (DKM's correspondence error and Qwen3-VL-4B's depth) do not follow from their
own entries, so `Row.mean_of_entries` stands beside the published one wherever a table is shown.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One model's results: an entry a column (None: not published) and the mean or overall value as published."""

    model: str
    values: tuple[float | None, ...]
    published: float | None = None

    def mean_of_entries(self, columns: tuple[int, ...]) -> float | None:
        """Plain mean of the entries in `columns`; None if one is missing (means over fewer sets mislead)."""
        entries = [self.values[i] for i in columns]
        return None if None in entries else sum(entries) / len(entries)


@dataclasses.dataclass(frozen=True)
class Table:
    """One published table. `averaged`: the columns that the mean covers; `overall`: what the last column is called."""

    task: str
    metric: str
    higher_is_better: bool
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    overall: str = "mean"
    digits: int = 3
    averaged: tuple[int, ...] = ()
    source: str = "VLM3 paper, arXiv 2605.30561"

    def __post_init__(self):
        object.__setattr__(self, "averaged", self.averaged or tuple(range(len(self.columns))))

    def cells(self) -> list[list[str]]:
        """The table as text: a header, then a row a model: entries, `overall` as published, mean of the entries."""

        def text(value):
            return "–" if value is None else f"{value:.{self.digits}f}"

        header = ["model", *self.columns, f"{self.overall} (as published)", "mean of the entries"]
        rows = [
            [row.model, *map(text, row.values), text(row.published), text(row.mean_of_entries(self.averaged))]
            for row in self.rows
        ]
        return [header, *rows]


_DEPTH = Table(
    "depth",
    "delta1",
    True,
    ("Argoverse2", "DDAD", "NuScenes", "ETH3D", "ScanNet++", "SUN RGB-D", "iBims-1", "NYUv2"),
    (
        Row("VLM3-4B", (0.896, 0.818, 0.970, 0.810, 0.976, 0.867, 0.960, 0.935), 0.904),
        Row("DepthLM-7B", (0.833, 0.747, 0.865, 0.718, 0.850, 0.859, 0.920, 0.915), 0.838),
        Row("DepthLM-3B", (0.808, 0.724, 0.870, 0.745, 0.838, 0.850, 0.890, 0.868), 0.824),
        Row("GPT-5", (0.218, 0.302, 0.382, 0.313, 0.428, 0.471, 0.307, 0.540), 0.370),
        Row("Gemini-2.5-Pro", (0.280, 0.252, 0.365, 0.328, 0.380, 0.270, 0.466, 0.394), 0.342),
        Row("Seed1.5-VL", (0.040, 0.074, 0.028, 0.309, 0.593, 0.689, 0.627, 0.841), 0.400),
        Row("Qwen3-VL-32B", (0.017, 0.099, 0.029, 0.167, 0.373, 0.463, 0.122, 0.393), 0.208),
        Row("Qwen3-VL-4B", (0.004, 0.073, 0.070, 0.071, 0.147, 0.176, 0.080, 0.158), 0.101),
        Row("Qwen2.5-VL-72B", (0.119, 0.140, 0.186, 0.220, 0.272, 0.276, 0.212, 0.324), 0.219),
        Row("SpatialRGPT-8B", (0.055, 0.046, 0.100, 0.220, 0.346, 0.369, 0.240, 0.265), 0.205),
        Row("SpaceLLaVA-13B", (0.100, 0.067, 0.083, 0.090, 0.269, 0.233, 0.208, 0.178), 0.154),
        Row("UniDepthV2 (expert)", (None, 0.882, 0.870, 0.852, None, 0.964, 0.945, None)),
        Row("MoGe-2 (expert)", (None, 0.856, None, 0.908, None, None, 0.924, None)),
    ),
)

# "Overall" pools questions, so it is not the mean of the groups.
_QUALITATIVE = Table(
    "objects",
    "qualitative accuracy (%)",
    True,
    ("below/above", "left/right", "big/small", "tall/short", "wide/thin", "behind/front"),
    (
        Row("VLM3-4B", (97.84, 99.37, 90.78, 90.82, 92.86, 75.54), 91.35),
        Row("SpatialRGPT-8B", (99.17, 99.04, 79.24, 89.28, 83.65, 87.27), 89.80),
        Row("Qwen3-VL-32B", (72.50, 83.81, 82.08, 68.75, 87.50, 67.27), 76.98),
        Row("Qwen3-VL-4B", (63.33, 85.71, 85.85, 70.54, 83.65, 60.91), 75.00),
    ),
    overall="overall",
    digits=2,
)

_QUANTITATIVE = Table(
    "objects",
    "quantitative success (%)",
    True,
    ("direct", "horizontal", "vertical", "width", "height", "direction"),
    (
        Row("VLM3-4B", (34.09, 53.38, 58.41, 44.11, 65.64, 95.42), 58.51),
        Row("SpatialRGPT-8B", (35.1, 59.0, 53.8, 51.9, 54.9, 95.3), 58.33),
    ),
    overall="overall",
    digits=2,
)

_QUANTITATIVE_ERROR = Table(
    "objects",
    "quantitative AbsRel (direction: degrees)",
    False,
    ("direct", "horizontal", "vertical", "width", "height", "direction (deg)"),
    (
        Row("VLM3-4B", (0.37, 0.29, 0.27, 0.39, 0.41, 10.5), 0.35),
        Row("SpatialRGPT-8B", (0.35, 0.27, 0.27, 0.31, 0.63, 17.1), 0.37),
    ),
    overall="overall without direction",
    digits=2,
    averaged=(0, 1, 2, 3, 4),
)

_CORRESPONDENCE = Table(
    "correspondence",
    "EPE (px of 560 x 420)",
    False,
    ("ETH3D", "DTU", "TA-WB"),
    (
        Row("VLM3-4B", (15.18, 10.71, 20.21), 15.37),
        Row("UFM", (3.83, 7.28, 12.56), 7.89),
        Row("RoMa", (10.01, 11.84, 43.79), 21.88),
        Row("DKM", (30.83, 30.15, 61.80), 41.30),
        Row("Qwen3-VL-4B", (179.80, 89.64, 190.40), 153.28),
        Row("Qwen3-VL-32B", (196.53, 88.76, 195.53), 160.27),
    ),
    digits=2,
)

_POSE = Table(
    "pose",
    "AUC@30 (%)",
    True,
    ("ETH3D", "ScanNet++"),
    (
        Row("VLM3-4B", (93.3, 94.7), 94.0),
        Row("DA3-Giant", (91.2, 98.1), 94.7),
        Row("VGGT", (80.8, 95.1), 88.0),
        Row("MapAnything", (77.4, 84.1), 80.8),
        Row("DUSt3R", (None, None), 30.6),
        Row("Qwen3-VL-4B", (10.0, 0.7), 5.4),
        Row("Qwen3-VL-32B", (11.7, 3.9), 7.8),
    ),
    digits=1,
)

_TABLES = (_DEPTH, _QUALITATIVE, _QUANTITATIVE, _QUANTITATIVE_ERROR, _CORRESPONDENCE, _POSE)


def table(task: str) -> tuple[Table, ...]:
    """The published tables of a task: one each, three for "objects"; () for a task with none published."""
    return tuple(t for t in _TABLES if t.task == task)
