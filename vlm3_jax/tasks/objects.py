"""Object-level 3-D relations and sizes, asked by bounding box (after SpatialRGPT's template families).

Questions are generated from objects with surface points in a gravity-aligned frame; answers are read by the
deterministic judge in `objects_answers`.
"""

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from vlm3_jax.camera import normalize_points
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import Objects, Record
from vlm3_jax.tasks import measures, release_rules, stored
from vlm3_jax.tasks import objects_answers as answers
from vlm3_jax.tasks import objects_words as words
from vlm3_jax.tasks.base import Example, Task
from vlm3_jax.tasks.metrics import best_ratio_constant, mean_or_nan
from vlm3_jax.tasks.protocol import Protocol

SUCCESS = (0.75, 1.25)
# Comparisons closer than this are a matter of taste and are not asked.
MARGIN = 0.1
MIN_QUANTITY_M = 0.05
CHOICE_SHARE = 0.3
MAX_CLOUD = 256

GROUPS = tuple(words.GROUPS)
QUANTITIES = ("direct", "horizontal", "vertical", "width", "height")
FAMILIES = (*GROUPS, *QUANTITIES, "direction")


class ObjectsTask(Task):
    """Which is left, above, nearer, bigger, taller, wider; how far, how wide, how tall; in which direction.

    Parsed answers by `target["kind"]`: "predicate" bool, "choice" 0 or 1 (which box), "quantity" metres, "direction"
    clock hour 1 to 12.
    """

    name = "objects"
    headline = "success"
    higher_is_better = True
    draws = True
    target_fields = {  # noqa: RUF012
        "predicate": {"family": GROUPS, "word": tuple(words.OPPOSITE), "truth": "bool", "boxes": "boxes2"},
        "choice": {"family": GROUPS, "word": tuple(words.OPPOSITE), "truth": "index", "boxes": "boxes2"},
        "quantity": {"family": QUANTITIES, "truth": "positive"},
        "direction": {"family": ("direction",), "truth": "hour"},
        "stored": {"family": (stored.FAMILY,), "truth": "text"},
    }
    answer_forms = {  # noqa: RUF012
        "predicate": "bool",
        "choice": "index",
        "quantity": "number",
        "direction": "hour",
        "stored": "text",
    }

    def examples(
        self, record: Record, rng: np.random.Generator, protocol: Protocol, vary: bool = False
    ) -> list[Example]:
        """Up to `protocol.questions` questions about one view drawn from those with objects, spread over the families.

        Yes and no, and both words of a group, are equally likely. Comparisons within 10 %, quantities below 0.05 m or
        too small for the answer's decimals, and pairs with equal boxes are not asked; distances and sizes only where
        `record.metric`. BadRecord if boxes, names and points disagree in number or an object has no finite points.

        A record that has a conversation alone (OpenSpatialDataset) gives its turns instead, as many of them and drawn
        too: each asks about its own regions of the same image.
        """
        if record.conversation is not None and not record.objects:
            found = stored.examples(record, protocol, alone=True)
            if vary and len(found) > 1:
                found = [found[i] for i in rng.permutation(len(found))]
            return found[: protocol.questions]
        labelled = [o for o in record.objects if len(o.names)]
        if not labelled:
            return []
        labels = labelled[rng.integers(len(labelled))]
        scene = _Scene.build(record, labels, protocol)
        queues = collections.deque(
            (family, _subjects(family, len(scene.boxes), rng))
            for family in rng.permutation(_families(record.metric)).tolist()
        )
        examples: list[Example] = []
        while queues and len(examples) < protocol.questions:
            family, subjects = queues.popleft()
            example = next((e for s in subjects if (e := _ask(scene, family, s, rng, protocol, vary))), None)
            if example:
                examples.append(dataclasses.replace(example, views=(labels.view,)))
                queues.append((family, subjects))
        return examples

    def frozen(self, record: Record, protocol: Protocol) -> list[Example]:
        """Every question of the record's conversation, as it is stored."""
        return [] if record.conversation is None else stored.examples(record, protocol, alone=True)

    def read(self, text: str, target=None) -> bool | int | float | None:
        """What the answer says; without a target: an hour, else a quantity in metres, else yes or no."""
        if target is None:
            found = (
                answers.hour(text),
                answers.metres(text),
                measures.read(text, lambda part, _: answers.polarity(part)),
            )
            return next((value for value in found if value is not None), None)
        if target["kind"] == stored.FAMILY:
            return stored.read(text, target["truth"])
        if target["kind"] in ("quantity", "direction"):
            return (answers.metres if target["kind"] == "quantity" else answers.hour)(text)
        return measures.read(text, lambda part, _: _judge(part, target))

    def read_as_release(self, text: str, target=None) -> bool | int | float | None:
        """The release's units and whole hours; relations by our judge too, where the published one is a model."""
        if target is None:
            prepared = release_rules.prepared(text)
            found = (release_rules.hour(text), release_rules.length(text), answers.polarity(prepared))
            return next((value for value in found if value is not None), None)
        if target["kind"] == stored.FAMILY:
            return stored.read(text, target["truth"])
        if target["kind"] in ("quantity", "direction"):
            return (release_rules.length if target["kind"] == "quantity" else release_rules.hour)(text)
        return _judge(release_rules.prepared(text), target)

    def item_scores(self, parsed, targets) -> np.ndarray:
        """1 for a right answer: equal; a quantity within 0.75 to 1.25 of the truth; a direction within one hour."""
        return np.array([_correct(p, t) for p, t in zip(parsed, targets, strict=True)], np.float64)

    def metrics(self, parsed, targets) -> dict[str, float]:
        """`success` of all items; `qualitative` pooled; `quantitative` and `abs_rel` the mean over their families.

        The mean over families (not items) is how the published overall numbers of quantities come out. Failures score
        0 and are left out of AbsRel and `direction_error_deg`. Families that were not asked are absent.
        """
        scores = self.item_scores(parsed, targets)
        families = np.array([t["family"] for t in targets], object)
        asked = [f for f in FAMILIES if (families == f).any()]
        rates = {f: mean_or_nan(scores[families == f]) for f in asked}
        errors = {f: mean_or_nan(_errors(f, parsed, targets)) for f in asked if f not in GROUPS}
        metric_errors = [errors[f] for f in QUANTITIES if f in errors and np.isfinite(errors[f])]
        return {
            "success": mean_or_nan(scores),
            "qualitative": mean_or_nan(scores[np.isin(families, GROUPS)]),
            "quantitative": mean_or_nan([rates[f] for f in asked if f not in GROUPS]),
            "abs_rel": mean_or_nan(metric_errors),
            **{f if f in GROUPS else f"{f}_success": rates[f] for f in asked},
            **{"direction_error_deg" if f == "direction" else f"{f}_abs_rel": errors[f] for f in errors},
            **({"stored": mean_or_nan(scores[told])} if (told := families == stored.FAMILY).any() else {}),
            "count": len(targets),
            "parse_failures": sum(p is None for p in parsed),
        }

    def constant_answers(self, targets) -> list:
        """The best single answer to each kind of question (predicates and choices by their word) on these targets."""
        groups = collections.defaultdict(list)
        for target in targets:
            groups[_sort(target)].append(target["truth"])
        best = {sort: _best_constant(sort[0], truths) for sort, truths in groups.items()}
        return [best[_sort(target)] for target in targets]


@dataclasses.dataclass(frozen=True)
class _Scene:
    """Objects as the templates need them: normalised boxes, and centre, extent and nearest z of each AABB (m)."""

    boxes: list[list[int]]
    clouds: list[np.ndarray]
    centres: np.ndarray
    extents: np.ndarray
    nearest_z: np.ndarray

    @classmethod
    def build(cls, record: Record, labels: Objects, protocol: Protocol) -> "_Scene":
        boxes_px = np.asarray(labels.boxes_px, np.float64).reshape(-1, 4)
        if not len(boxes_px) == len(labels.names) == len(labels.points_m):
            raise BadRecord(
                f"{record.id}: objects of view {labels.view} have {len(boxes_px)} boxes, {len(labels.names)} names and "
                f"{len(labels.points_m)} point sets"
            )
        camera = record.views[labels.view].camera
        size = np.array([camera.width, camera.height])
        centre_px = (boxes_px[:, :2] + boxes_px[:, 2:]) / 2
        # A crop can leave an object outside; one whose box centre is in the image can still be pointed at.
        keep = np.flatnonzero(((centre_px >= 0) & (centre_px < size)).all(-1))
        clouds = [np.asarray(labels.points_m[i], np.float64).reshape(-1, 3) for i in keep]
        if not all(len(cloud) and np.isfinite(cloud).all() for cloud in clouds):
            raise BadRecord(f"{record.id}: every object of view {labels.view} needs finite surface points")
        low = np.array([cloud.min(0) for cloud in clouds]).reshape(-1, 3)
        high = np.array([cloud.max(0) for cloud in clouds]).reshape(-1, 3)
        corners = normalize_points(boxes_px[keep].reshape(-1, 2), size, protocol.coord_range)
        return cls(corners.reshape(-1, 4).tolist(), clouds, (low + high) / 2, high - low, low[:, 2])


def compare(scene, group: str, a: int, b: int) -> int:
    """+1 if the group's first word holds of a against b, -1 if its second does, 0 if it is too close to say."""
    if group in ("left_right", "below_above"):
        difference = scene.centres[b] - scene.centres[a]
        axis, scale = (0 if group == "left_right" else 1), np.linalg.norm(difference)
        # Below is larger y, left is smaller x.
        value = difference[axis] if group == "left_right" else -difference[axis]
    elif group == "behind_front":
        value = scene.nearest_z[a] - scene.nearest_z[b]
        scale = np.abs(scene.nearest_z[[a, b]]).max()
    else:
        sizes = _size(scene.extents[a], group), _size(scene.extents[b], group)
        value, scale = sizes[0] - sizes[1], max(sizes)
    return 0 if abs(value) <= MARGIN * scale else int(np.sign(value))


def _size(extent, group: str) -> float:
    # The cube root makes 10 % of a volume mean 10 % of an edge, as for height and width.
    return {"tall_short": extent[1], "wide_thin": extent[0], "big_small": np.prod(extent) ** (1 / 3)}[group]


def measure(scene, family: str, a: int, b: int | None) -> float:
    """A quantity in metres; direct distance is the mean distance to the other object's nearest point, both ways."""
    if family in ("width", "height"):
        return float(scene.extents[a][0 if family == "width" else 1])
    difference = scene.centres[b] - scene.centres[a]
    if family == "horizontal":
        return float(np.hypot(difference[0], difference[2]))
    if family == "vertical":
        return float(abs(difference[1]))
    first, second = (cloud[:: -(-len(cloud) // MAX_CLOUD)] for cloud in (scene.clouds[a], scene.clouds[b]))
    distances = np.linalg.norm(first[:, None] - second[None], axis=-1)
    return float(np.concatenate([distances.min(0), distances.min(1)]).mean())


def clock_hour(difference_m) -> int:
    """Direction of a horizontal offset (x, y, z) as an hour: 12 is forward, 3 the viewer's right."""
    angle = np.degrees(np.arctan2(-difference_m[0], difference_m[2])) % 360
    return int(12 - angle // 30) or 12


def _families(metric: bool) -> list[str]:
    return [f for f in FAMILIES if metric or f not in QUANTITIES]


def _subjects(family: str, count: int, rng) -> Iterator[tuple[int, int | None]]:
    """Objects or ordered pairs of them in random order, each once (a pair in one of its two orders)."""
    if family in ("width", "height"):
        yield from ((int(a), None) for a in rng.permutation(count))
        return
    firsts, seconds = np.triu_indices(count, 1)
    for i in rng.permutation(len(firsts)):
        pair = int(firsts[i]), int(seconds[i])
        yield pair if rng.random() < 0.5 else pair[::-1]


def _ask(scene: _Scene, family: str, subject, rng, protocol: Protocol, vary: bool) -> Example | None:
    """The family's question about these objects, or None where it should not be asked."""
    a, b = subject
    R = protocol.coord_range
    boxes = [scene.boxes[i] for i in subject if i is not None]
    if len(boxes) == 2 and boxes[0] == boxes[1]:
        return None
    if family in GROUPS:
        sign = compare(scene, family, a, b)
        return _ask_relation(family, sign, boxes, rng, protocol, vary) if sign else None
    if family == "direction":
        difference = scene.centres[b] - scene.centres[a]
        if np.hypot(difference[0], difference[2]) <= MARGIN * np.linalg.norm(difference):
            return None
        hour = clock_hour(difference)
        target = {"kind": "direction", "family": family, "truth": hour, "boxes": boxes, "coord_range": R}
        return Example(*words.direction(hour, boxes, rng, protocol, vary), target)
    truth = measure(scene, family, a, b)
    if truth < MIN_QUANTITY_M:
        return None
    target = {"kind": "quantity", "family": family, "truth": truth, "boxes": boxes, "coord_range": R}
    question, answer = words.quantity(family, truth, boxes, rng, protocol, vary)
    # Both rules read our own answers alike; the release's do it faster.
    return Example(question, answer, target) if _correct(release_rules.length(answer), target) else None


def _ask_relation(group: str, sign: int, boxes, rng, protocol: Protocol, vary: bool) -> Example:
    """A yes-no question or a choice; the word asked for is drawn, so that neither answer is more likely."""
    holds, other = words.GROUPS[group][::sign]
    truth = bool(rng.random() < 0.5)
    R = protocol.coord_range
    if protocol.wording != "short" and rng.random() < CHOICE_SHARE:
        word, index = (holds, 0) if truth else (other, 1)
        target = {"kind": "choice", "family": group, "word": word, "truth": index, "boxes": boxes, "coord_range": R}
        return Example(*words.choice(word, index, boxes, rng, vary), target)
    word = holds if truth else other
    target = {"kind": "predicate", "family": group, "word": word, "truth": truth, "boxes": boxes, "coord_range": R}
    return Example(*words.predicate(word, holds, truth, boxes, rng, protocol, vary), target)


def _judge(text: str, target) -> bool | int | None:
    judge = answers.choice if target["kind"] == "choice" else answers.predicate
    return judge(text, target["word"], target["boxes"])


def _correct(answer, target) -> bool:
    if answer is None:
        return False
    if target["kind"] == stored.FAMILY:
        return stored.same(answer, target["truth"])
    if target["kind"] == "quantity":
        return SUCCESS[0] * target["truth"] <= answer <= SUCCESS[1] * target["truth"]
    if target["kind"] == "direction":
        return _hours_apart(answer, target["truth"]) <= 1
    return answer == target["truth"]


def _hours_apart(first: int, second: int) -> int:
    return min((first - second) % 12, (second - first) % 12)


def _errors(family: str, parsed, targets) -> list[float]:
    """Degrees for directions, relative errors for quantities, of the family's parsed answers."""
    pairs = [(p, t["truth"]) for p, t in zip(parsed, targets) if t["family"] == family and p is not None]
    if family == "direction":
        return [30.0 * _hours_apart(p, truth) for p, truth in pairs]
    return [abs(p / truth - 1) for p, truth in pairs]


def _sort(target) -> tuple[str, str]:
    return target["kind"], target.get("word") or target["family"]


def _best_constant(kind: str, truths):
    if kind == "quantity":
        return best_ratio_constant(truths, *SUCCESS)
    if kind == stored.FAMILY:
        return stored.commonest(truths)
    if kind == "direction":
        return max(range(1, 13), key=lambda hour: sum(_hours_apart(hour, t) <= 1 for t in truths))
    return collections.Counter(truths).most_common(1)[0][0]
