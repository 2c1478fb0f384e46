"""Relative camera pose of two views in words and numbers. AUC@30 as VGGT, Depth Anything 3 and MapAnything share it."""

import collections

import numpy as np

from vlm3_jax import pose as geometry
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import MAX_DEPTH_M, Record
from vlm3_jax.tasks import angles, lengths, measures, numbers, release_rules
from vlm3_jax.tasks.base import Example, Task
from vlm3_jax.tasks.metrics import mean_or_nan
from vlm3_jax.tasks.numbers import signed
from vlm3_jax.tasks.pose_questions import QUESTIONS
from vlm3_jax.tasks.protocol import Protocol

AUC_DEGREES = (3, 5, 15, 30)
DIRECTION_THRESHOLD = 0.1
MIN_BASELINE = 1e-6

# Euler and direction come first: both are needed for AUC where fewer questions are asked than there are.
KINDS = ("euler_natural", "translation_direction", "translation_distance", "rotation_angle")
PAPER_KINDS = KINDS[:3]
_SHORT = {"rotation_angle": "pa", "euler_natural": "pe", "translation_direction": "pt", "translation_distance": "pd"}
_WORDS = (("left", "right"), ("up", "down"), ("backward", "forward"))


def question(kind: str, protocol: Protocol, template: int = 0) -> str:
    """The question of that kind (one of `KINDS`) about two images, in the protocol's words; 0: the release's."""
    return _SHORT[kind] if protocol.wording == "short" else QUESTIONS[kind][template]


class PoseTask(Task):
    """How the camera moved from view 0 to view 1.

    Parsed answers: degrees (rotation angle), (yaw, pitch, roll) in degrees, a vector [3] that is not zero, metres.
    """

    name = "pose"
    headline = "auc30"
    higher_is_better = True
    target_fields = {  # noqa: RUF012
        kind: {
            "pair": "id",
            "translation": "vector" if kind == "translation_direction" else "numbers3",
            "rotation": "rotation",
        }
        for kind in KINDS
    }
    answer_forms = {  # noqa: RUF012
        "euler_natural": "numbers3",
        "translation_direction": "vector",
        "translation_distance": "number",
        "rotation_angle": "number",
    }

    def examples(
        self, record: Record, rng: np.random.Generator, protocol: Protocol, vary: bool = False
    ) -> list[Example]:
        """The four questions (the paper's three) about views 0 and 1 in random order; [] without both poses.

        The distance is asked only where `record.metric`, the direction only where the camera moved. With fewer
        `protocol.questions` than there are: the first of `KINDS`, or any of them, in any of their wordings, under
        `vary`. `target` holds the pair's id and cam1_T_cam2 (`rotation` row by row, `translation`). BadRecord for a
        pose that is no rigid motion.
        """
        relative = _relative(record)
        if relative is None:
            return []
        kinds = _kinds(record, relative, protocol)
        if vary:
            kinds = rng.permutation(kinds).tolist()
        kinds = rng.permutation(kinds[: protocol.questions]).tolist()
        return [_ask(record, relative, kind, protocol, rng if vary else None) for kind in kinds]

    def frozen(self, record: Record, protocol: Protocol) -> list[Example]:
        """All kinds of questions, in the order of `KINDS`."""
        relative = _relative(record)
        if relative is None:
            return []
        return [_ask(record, relative, kind, protocol) for kind in _kinds(record, relative, protocol)]

    def read(self, text: str, target=None):
        """The answer to the question of `target["kind"]`; without a target, its form tells which question it was."""
        return _by_kind(_READERS, text, target)

    def read_as_release(self, text: str, target=None):
        """The same with the first number before "degrees" or "meters", after the name, or the first triple."""
        return _by_kind(_RELEASE_READERS, text, target)

    def item_scores(self, parsed, targets) -> np.ndarray:
        """A pair's AUC@30 on the later of its Euler and direction answers, NaN for every other item.

        A pair of which only one of the two was asked has no score.
        """
        scores = np.full(len(targets), np.nan)
        for last, rotation, translation in _pair_errors(parsed, targets):
            scores[last] = auc(max(rotation, _sign_blind(translation)), 30)
        return scores

    def item_errors(self, parsed, targets) -> np.ndarray:
        """A pair's larger error (deg, sign-blind) on the later of its two answers, 180 if one cannot be read."""
        errors = np.full(len(targets), np.nan)
        for last, rotation, translation in _pair_errors(parsed, targets):
            errors[last] = min(max(rotation, _sign_blind(translation)), 180)
        return errors

    def metrics(self, parsed, targets) -> dict[str, float]:
        """`auc30` (sign-blind) and further AUCs over `pairs`; angle (deg) and distance (AbsRel) over parsed answers.

        `aucN_signed` counts a reversed direction as wrong. A pair with an unreadable answer has infinite error; the
        medians over pairs include it.
        """
        pairs = _pair_errors(parsed, targets)
        rotation = [p[1] for p in pairs]
        translation = [_sign_blind(p[2]) for p in pairs]
        blind = [max(p) for p in zip(rotation, translation)]
        aware = [max(p[1:]) for p in pairs]
        angle_errors, distance_errors = _other_errors(parsed, targets)
        return {
            "auc30": mean_or_nan([auc(e, 30) for e in blind]),
            **{f"auc{n}": mean_or_nan([auc(e, n) for e in blind]) for n in AUC_DEGREES if n != 30},
            **{f"auc{n}_signed": mean_or_nan([auc(e, n) for e in aware]) for n in AUC_DEGREES},
            "rotation_error_deg": _median(rotation),
            "translation_error_deg": _median(translation),
            "rotation_angle_error_deg": mean_or_nan(angle_errors),
            "distance_abs_rel": mean_or_nan(distance_errors),
            "pairs": len(pairs),
            "count": len(targets),
            "parse_failures": sum(p is None for p in parsed),
        }

    def constant_answers(self, targets) -> list:
        """No rotation and one direction for all pairs, the median angle and the median distance.

        A camera that does not move has no direction of motion, so the best of right, down and forward for AUC@30 is
        taken (their signs do not matter to it).
        """
        truth = {kind: [_truth(t) for t in targets if t["kind"] == kind] for kind in KINDS}
        angle = _median([geometry.rotation_angle(R) for R, _ in truth["rotation_angle"]])
        distance = _median([np.linalg.norm(t) for _, t in truth["translation_distance"]])

        def answers(direction):
            constant = {
                "euler_natural": (0.0, 0.0, 0.0),
                "translation_direction": direction,
                "rotation_angle": angle,
                "translation_distance": distance,
            }
            return [constant[t["kind"]] for t in targets]

        candidates = [answers(d) for d in ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))]
        return max(candidates, key=lambda c: np.nansum(self.item_scores(c, targets)))


def _relative(record: Record) -> np.ndarray | None:
    """cam1_T_cam2 of views 0 and 1; None without both poses. BadRecord for a pose that cannot be one."""
    if len(record.views) < 2 or any(view.world_T_cam is None for view in record.views[:2]):
        return None
    poses = [geometry.check_pose(view.world_T_cam, f"{record.id}, view {i}") for i, view in enumerate(record.views[:2])]
    relative = geometry.relative_pose(*poses)
    apart = np.linalg.norm(relative[:3, 3])
    if record.metric and apart > MAX_DEPTH_M:
        raise BadRecord(f"{record.id}: its cameras are {apart:.3g} m apart, above {MAX_DEPTH_M:g}")
    return relative


def _kinds(record: Record, relative, protocol: Protocol) -> list[str]:
    """What can be asked about the pair."""
    return [
        kind
        for kind in (PAPER_KINDS if protocol.wording == "paper" else KINDS)
        if (kind != "translation_distance" or record.metric)
        and (kind != "translation_direction" or np.linalg.norm(relative[:3, 3]) > MIN_BASELINE)
    ]


def _ask(record: Record, relative, kind: str, protocol: Protocol, rng: np.random.Generator | None = None) -> Example:
    """One question about the pair, in the published words or in drawn ones."""
    R, t = relative[:3, :3], relative[:3, 3]
    answer = _short_answer(kind, R, t) if protocol.wording == "short" else _answer(kind, R, t)
    target = {"kind": kind, "pair": record.id, "rotation": R.ravel().tolist(), "translation": t.tolist()}
    template = 0 if rng is None else int(rng.integers(len(QUESTIONS[kind])))
    return Example(question(kind, protocol, template), answer, target, (0, 1))


def auc(error_deg: float, degrees: int) -> float:
    """One pair's share of AUC@degrees.

    The histogram over integer edges 0..n puts e into bin floor(e) (e = n into the last); the cumulative sums from that
    bin on count it, so it adds (n - bin) / n to their mean.
    """
    if not error_deg <= degrees:
        return 0.0
    return (degrees - min(int(error_deg), degrees - 1)) / degrees


def _sign_blind(error_deg: float) -> float:
    return min(error_deg, 180 - error_deg) if error_deg < np.inf else error_deg


def _answer(kind: str, R, t) -> str:
    if kind == "rotation_angle":
        return f"Rotation angle: {geometry.rotation_angle(R):.1f} degrees"
    if kind == "euler_natural":
        yaw, pitch, roll = (signed(v, 1) for v in geometry.euler_from_matrix(R))
        return f"Yaw={yaw}°, Pitch={pitch}°, Roll={roll}°"
    if kind == "translation_distance":
        return f"Translation distance: {np.linalg.norm(t):.2f} meters"
    unit = t / np.linalg.norm(t)
    vector = ", ".join(signed(float(v), 2) for v in unit)
    return f"The camera moves {', '.join(direction_words(unit))}, unit vector ({vector})."


def direction_words(unit, threshold: float = DIRECTION_THRESHOLD) -> list[str]:
    """left/right, up/down, backward/forward for each component of at least `threshold`, in the order x, y, z."""
    return [words[int(v > 0)] for v, words in zip(unit, _WORDS) if abs(v) >= threshold]


def _short_answer(kind: str, R, t) -> str:
    """Numbers of fixed width, the larger digits first: what greedy decoding picks digit by digit is then sensible."""
    if kind == "rotation_angle":
        return f"{geometry.rotation_angle(R):02.0f}"
    if kind == "euler_natural":
        return ",".join(f"{round(v):+03d}" for v in geometry.euler_from_matrix(R))
    if kind == "translation_distance":
        return f"{np.linalg.norm(t):.2f}"
    return ",".join(signed(float(v), 2) for v in t / np.linalg.norm(t))


def _direction(text: str, tagged: bool = False) -> tuple[float, ...] | None:
    return next((vector.values for vector in numbers.lists(text, 3) if any(vector.values)), None)


_READERS = {
    "rotation_angle": lambda text: measures.read(text, angles.degrees),
    "euler_natural": lambda text: measures.read(text, angles.euler),
    "translation_direction": lambda text: measures.read(text, _direction),
    "translation_distance": lambda text: measures.read(text, lengths.metres),
}
_RELEASE_READERS = {
    "rotation_angle": release_rules.angle,
    "euler_natural": release_rules.euler,
    "translation_direction": release_rules.direction,
    "translation_distance": release_rules.distance,
}


def _by_kind(readers, text: str, target):
    if target is not None:
        return readers[target["kind"]](text)
    for kind in ("euler_natural", "translation_direction", "rotation_angle", "translation_distance"):
        if (kind != "euler_natural" or "yaw" in text.lower()) and (value := readers[kind](text)) is not None:
            return value
    return None


def _truth(target) -> tuple[np.ndarray, np.ndarray]:
    return np.array(target["rotation"], np.float64).reshape(3, 3), np.array(target["translation"], np.float64)


def _pair_errors(parsed, targets) -> list[tuple[int, float, float]]:
    """(index of the later answer, rotation error, sign-aware direction error) of each pair; degrees, inf if unread.

    A pair that is asked again (another epoch) is another unit.
    """
    errors: dict = {}
    asked: collections.Counter = collections.Counter()
    for index, (answer, target) in enumerate(zip(parsed, targets, strict=True)):
        R, t = _truth(target)
        if target["kind"] == "euler_natural":
            found = np.inf if answer is None else geometry.rotation_angle(R.T @ geometry.matrix_from_euler(*answer))
        elif target["kind"] == "translation_direction":
            found = np.inf if answer is None else geometry.direction_angle(t, answer)
        else:
            continue
        question = target["pair"], target["kind"]
        errors.setdefault((target["pair"], asked[question]), {})[target["kind"]] = (index, found)
        asked[question] += 1
    complete = [pair for pair in errors.values() if len(pair) == 2]
    return [
        (max(e[0], d[0]), e[1], d[1])
        for e, d in ((pair["euler_natural"], pair["translation_direction"]) for pair in complete)
    ]


def _other_errors(parsed, targets) -> tuple[list[float], list[float]]:
    """|difference| of the rotation angles (deg) and relative errors of the distances, over parsed answers."""
    angles, distances = [], []
    for answer, target in zip(parsed, targets):
        R, t = _truth(target)
        if answer is None:
            continue
        if target["kind"] == "rotation_angle":
            angles.append(abs(answer - geometry.rotation_angle(R)))
        elif target["kind"] == "translation_distance" and np.any(t):
            distances.append(abs(answer / np.linalg.norm(t) - 1))
    return angles, distances


def _median(values) -> float:
    return float(np.median(values)) if len(values) else float("nan")
