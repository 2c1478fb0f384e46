"""What TartanAir V2 and its wide-baseline pairs share: environments, their hold-outs, and where their sky begins."""

import re

import numpy as np

VAL = ("EndofTheWorld", "HongKong", "WesternDesertTown")
TEST = ("DesertGasStation", "OldScandinavia", "PolarSciFi", "Sewerage", "Supermarket")
"""Environments of TartanVO's and UFM's hold-outs, as MapAnything lists them."""
SKY_M = {"Prison": 80.0, "OldTown": 80.0, "ShoreCaves": 120.0, "OldBrickHouse": 35.0}
SKY_ELSEWHERE_M = 200.0
NED = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
"""opencv_T_ned of axes: (north, east, down) or (forward, right, down) as (right, down, forward)."""

_SEASONS = re.compile("Autumn|Spring|SummerNight|WinterNight|Winter|Day|Night|Fall|Summer")


def place(environment: str) -> str:
    """The environment without season and time of day: the same houses stand in all of them."""
    return _SEASONS.sub("", environment)


def split_of(environment: str) -> str:
    """train, val or test, by the place."""
    name = place(environment)
    return "val" if name in VAL else "test" if name in TEST else "train"


def without_sky(depth: np.ndarray, environment: str) -> np.ndarray:
    """Depth (m) with NaN from the distance on at which the environment's sky is painted."""
    depth = np.array(depth, np.float32)
    depth[depth >= SKY_M.get(place(environment), SKY_ELSEWHERE_M)] = np.nan
    return depth
