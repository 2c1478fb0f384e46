"""For people with photos: `vlm3_jax.load(path)` answers in numpy, with units in the names."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlm3_jax import pretrained, tasks
from vlm3_jax.answers.values import Depth, Match, RelativePose, Spread, check_kind
from vlm3_jax.camera import AsIs, Camera, Focal, Resize, as_boxes, as_points, grid_points, normalize_points
from vlm3_jax.errors import UserError
from vlm3_jax.infer import spread as spreads
from vlm3_jax.infer.dense import DensePlan, dense_map
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.points import PointQuestions
from vlm3_jax.infer.sampling import GREEDY, Sampling, stored_max_new_tokens
from vlm3_jax.infer.spread import Calibration
from vlm3_jax.infer.video import ask_video
from vlm3_jax.pose import matrix_from_euler, unit_vector
from vlm3_jax.processor.conversation import conversation_images, conversation_prompt
from vlm3_jax.processor.image import ImageLayout, image_layout
from vlm3_jax.processor.photo import Photo, open_photo
from vlm3_jax.records import ImageRef, View
from vlm3_jax.tasks import correspondence, pose, protocol
from vlm3_jax.tasks.objects_words import region
from vlm3_jax.tasks.protocol import Protocol

MAX_NEW_TOKENS = 256
# Of what was seen in images, for the next questions about them.
KEEP_BYTES = 1 << 29
# An image whose focal length is off by this factor is told. Whole visual tokens alone make it a tenth of small ones.
MOST_OFF = 1.2
# Where a question speaks of a box.
REGION = "<mask>"

_log = logging.getLogger(__name__)


def common_rule(protocols: Mapping[str, Protocol]) -> Resize:
    """The resize rule of all these protocols; as they are, if there is none or they differ."""
    rules = {one.resize for one in protocols.values()}
    return rules.pop() if len(rules) == 1 else AsIs()


def _dense_plan(dense, points, size: tuple[int, int], asked: Protocol) -> DensePlan:
    """The plan of a map; its nodes are no nearer to each other than the coordinates that the model is told."""
    if points is not None:
        raise UserError("dense: a map chooses its points itself; leave them out")
    if isinstance(dense, DensePlan):
        return dense
    questions = {} if dense is True else {"questions": dense}
    return DensePlan(**questions, finest_px=tuple(side / asked.coord_range for side in size))


class VLM3:
    """A model and how it is asked.

    `protocols`: by task, in place of what the model's `vlm3.json` says; a task that neither names is asked as the
    release asks it, which is said once. `max_new_tokens`: where answers are cut; None for what generation_config.json
    says, or 256. `dtype`: of the weights and of the computation, "float32" or "bfloat16". `mesh`: the devices that the
    weights are spread over (`parallel.mesh.make_mesh`); None for one device. `base`: of a PEFT adapter folder, in place
    of the base that it names.

    Images are paths, `file://` or `data:` URLs, PIL images or arrays, shown and measured upright; cameras are `Camera`s
    or K matrices of the upright image, and looked for beside the photo and in its EXIF data if none is given
    (`processor.photo.open_photo`).
    """

    def __init__(
        self,
        path,
        protocols: Mapping[str, Protocol] | None = None,
        max_new_tokens: int | None = None,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        base: str = "",
    ):
        model = pretrained.open(path, base=base)
        self._model, self._folder, self._spec = model, model.folder, model.spec
        self.protocols = model.protocols | dict(protocols or {})
        self._common = common_rule(self.protocols)
        self._told: set[tuple] = set()
        new = stored_max_new_tokens(model.folder) if max_new_tokens is None else max_new_tokens
        sizes = {"image_sets": 1, "questions": 128, "max_new_tokens": MAX_NEW_TOKENS if new is None else new}
        params = model.params(mesh, dtype)
        self._engine = Engine(
            model.cfg, params, model.chat, model.spec, jnp.dtype(dtype), mesh, **sizes, keep_bytes=KEEP_BYTES
        )

    def fingerprint(self) -> str:
        """What tells this model's files from those of another."""
        return self._model.fingerprint()

    def calibration(self) -> Calibration | None:
        """What makes intervals of the spread of this model's depths; None if it was not calibrated."""
        return Calibration.read(self._folder)

    def protocol(self, task: str) -> Protocol:
        """How this model is asked about a task."""
        if task not in self.protocols:
            self.protocols[task] = protocol.RELEASE[task]
            _log.warning(
                "%s: no %s says how %s is asked; it is asked as the release asks it (%s)",
                self._folder,
                protocol.FILE,
                task,
                self.protocols[task].resize,
            )
        return self.protocols[task]

    def resize_rule(self, task: str | None = None) -> Resize:
        """How images are resized for a free question: as its task's are, else as those of all tasks of `vlm3.json`.

        As they are, if it names none or they differ: lengths in answers then mean nothing.
        """
        if task is not None:
            if task not in tasks.TASKS:
                raise UserError(f"task: {task!r} is unknown; choose one of {', '.join(tasks.TASKS)}")
            return self.protocol(task).resize
        return self._common

    def ask(self, images, question: str, boxes=None, sampling: Sampling | None = None, task: str | None = None) -> str:
        """The answer to a question about an image or a list of them, resized as `resize_rule(task)` says.

        `boxes` (px of the first image, x1, y1, x2, y2, [N, 4]): the i-th `<mask>` in the question is written as the
        region of the i-th box, and images are resized as the task "objects" has it, unless `task` is another.
        `sampling`: how tokens are drawn, see `sampling()`; None for the greedy answer.
        """
        images = images if isinstance(images, list | tuple) else [images]
        shown = self._shown(images, self.resize_rule("objects" if task is None and boxes is not None else task))
        if boxes is not None or REGION in question:
            question = self._with_regions(question, [] if boxes is None else boxes, shown)
        return self._engine.answer([shown], [[question]], sampling or GREEDY)[0][0]

    def chat(self, messages, sampling: Sampling | None = None) -> str:
        """The next answer of a conversation: [{"role": "user", "content": text or parts}, {"role": "assistant", ...}].

        Parts are {"type": "text", "text": ...} and, in any user turn, {"type": "image", "image": path, PIL image or
        uint8 array}; a first message may have the role "system". UserError names the message that is not so. Images
        are resized as `resize_rule()` says.
        """
        layouts = self._shown(conversation_images(messages), self.resize_rule())
        prompt = conversation_prompt(messages, layouts, self._engine.chat)
        patches = [layout.load(self._spec) for layout in layouts]
        return self._engine.chat.decode(self._engine.generate([prompt], [patches], sampling or GREEDY)[0][0])

    def ask_video(
        self, frames, question: str, fps: float | None = None, times_s=None, images=(), sampling: Sampling | None = None
    ) -> str:
        """The answer about a video (see `infer.video.ask_video`); still `images` are shown before it."""
        shown = self._shown(images, AsIs())
        return ask_video(self._engine, frames, question, fps, times_s, shown, sampling or GREEDY)

    def sampling(self, **given) -> Sampling:
        """What the checkpoint proposes for drawing tokens, with the `given` fields of `Sampling` in its place."""
        return Sampling.from_dir(self._folder, **given)

    def depth(
        self,
        image,
        camera: Camera | None = None,
        points=None,
        grid: tuple[int, int] = (8, 6),
        *,
        dense: bool | int | DensePlan = False,
        kind: str = "distance",
        meant: str = "distance",
        spread: bool = False,
    ) -> Depth:
        """Distance to the camera centre at `points` (px, [N, 2]), or at a `grid` of columns x rows.

        `dense`: a map of every pixel instead, of at most so many questions (True: 1024), which are asked where answers
        change (`infer.dense`); the points are then those asked about. `kind`: what maps in files will hold, "distance"
        or "z"; `meant`: what this model's lengths are, as the labels were that it learnt from. `spread`: also the
        expected value and the deviation of each answer, from the probabilities of its digits (`infer.spread`), and of a
        map its median, deviation and interval.
        """
        # Before what takes long.
        check_kind(kind)
        photo, questions = self._depth_questions(image, camera, meant, spread)
        size, made = (photo.camera.width, photo.camera.height), None
        if dense is not False:
            plan = _dense_plan(dense, points, size, questions.asked)
            made, points, carry = dense_map(questions.metres, photo.pixels, plan)
            made = dataclasses.replace(made, questions=len(questions.texts))
        else:
            points = grid_points(grid, *size) if points is None else as_points(points, *size)
        distance_m, answers = questions.metres(points), questions.answers(points)
        found = Depth(points, distance_m, answers, photo.camera, photo.source, kind, made)
        if spread:
            found = dataclasses.replace(found, spread=self._spread(questions, points))
        if spread and made is not None:
            names = ["median_m", "deviation_m", *(["low_m", "high_m"] if np.isfinite(found.spread.level) else [])]
            maps = {name: carry(getattr(found.spread, name)) for name in names}
            found = dataclasses.replace(found, dense=dataclasses.replace(made, **maps))
        return found

    def _spread(self, questions: PointQuestions, points) -> Spread:
        scale = questions.distances(points, np.ones(len(points)))
        return spreads.spread(questions.numbers(points), scale, self.calibration())

    def _depth_questions(self, image, camera, meant: str, spread: bool = False) -> tuple[Photo, PointQuestions]:
        asked = self.protocol("depth")
        layout, photo, unified = self._layout(image, camera, asked.resize)
        return photo, PointQuestions(self._engine, layout, photo.camera, unified, asked, meant, spread)

    def match(
        self,
        a,
        b,
        points=None,
        camera_a: Camera | None = None,
        camera_b: Camera | None = None,
        *,
        grid: tuple[int, int] = (8, 6),
    ) -> Match:
        """Where the surface at `points` (px of image a), or at a `grid` of columns x rows, appears in image b."""
        asked = self.protocol("correspondence")
        layout_a, photo_a, unified_a = self._layout(a, camera_a, asked.resize)
        layout_b, photo_b, _ = self._layout(b, camera_b, asked.resize)
        size = photo_a.camera.width, photo_a.camera.height
        points = grid_points(grid, *size) if points is None else as_points(points, *size)
        coords = self._coords(points, photo_a.camera, unified_a, asked)
        questions = [correspondence.question(x, y, asked) for x, y in coords]
        answers = self._engine.answer([(layout_a, layout_b)], [questions])[0]
        parsed = [tasks.get("correspondence").parse(text, {"coords": xy}) for text, xy in zip(answers, coords)]
        scale = np.array([photo_b.camera.width, photo_b.camera.height]) / asked.coord_range
        found = np.array([(np.nan, np.nan) if p is None else p for p in parsed], float).reshape(-1, 2)
        outside = ((found < 0) | (found >= asked.coord_range)).any(1)
        found[outside] = np.nan
        sources, cameras = (photo_a.source, photo_b.source), (photo_a.camera, photo_b.camera)
        return Match(points, found * scale, answers, outside, sources, cameras)

    def pose(self, a, b, camera_a: Camera | None = None, camera_b: Camera | None = None) -> RelativePose:
        """How the camera moved from image a to image b (frame of a: x right, y down, z forward)."""
        asked = self.protocol("pose")
        opened = self._layout(a, camera_a, asked.resize), self._layout(b, camera_b, asked.resize)
        layouts = tuple(layout for layout, _, _ in opened)
        kinds = list(pose.KINDS)
        answers = dict(zip(kinds, self._engine.answer([layouts], [[pose.question(kind, asked) for kind in kinds]])[0]))
        parsed = {kind: tasks.get("pose").parse(text, {"kind": kind}) for kind, text in answers.items()}
        euler, direction = parsed["euler_natural"], parsed["translation_direction"]
        distance = parsed["translation_distance"]
        return RelativePose(
            np.full((3, 3), np.nan) if euler is None else matrix_from_euler(*euler),
            np.full(3, np.nan) if direction is None else unit_vector(direction),
            float("nan") if distance is None or distance < 0 else float(distance),
            answers,
            tuple(photo.source for _, photo, _ in opened),
            tuple(photo.camera for _, photo, _ in opened),
        )

    def _with_regions(self, question: str, boxes, shown: Sequence[ImageLayout]) -> str:
        """The question with its boxes as text: normalised from the image's own size, as the release does."""
        if not shown:
            raise UserError(f"boxes: the question speaks of a box, {REGION}, and there is no image")
        size = shown[0].ref.width, shown[0].ref.height
        parts = question.split(REGION)
        corners = as_boxes(boxes, *size).reshape(-1, 2) if np.size(boxes) else np.zeros((0, 2))
        coords = normalize_points(corners, size, self.protocol("objects").coord_range).reshape(-1, 4)
        if len(parts) - 1 != len(coords):
            raise UserError(f"boxes: the question has {len(parts) - 1} places {REGION} for {len(coords)} boxes")
        regions = [*map(region, coords.tolist()), ""]
        return "".join(part + place for part, place in zip(parts, regions, strict=True))

    def _shown(self, images, rule: Resize) -> tuple[ImageLayout, ...]:
        return tuple(self._layout(image, None, rule)[0] for image in images)

    def _layout(self, image, camera, rule: Resize) -> tuple[ImageLayout, Photo, Camera]:
        """The image's layout, the photo that it is of, and the camera as `rule` resizes it."""
        photo = open_photo(image, camera)
        resized = rule.camera(photo.camera)
        ref = ImageRef(photo.camera.width, photo.camera.height, photo.name, pixels=photo.pixels)
        layout = image_layout(View(ref, resized), self._spec)
        if isinstance(rule, Focal):
            self._tell_other_focal(photo.name, layout, rule)
        return layout, photo, resized

    def _tell_other_focal(self, name: str, layout: ImageLayout, rule: Focal) -> None:
        """Says, once of a size, that the model's limits make an image of another focal length than it learnt from."""
        scale = math.sqrt(math.prod(layout.final) / math.prod(layout.size))
        if not 1 / MOST_OFF < scale < MOST_OFF and (layout.size, layout.final) not in self._told:
            self._told.add((layout.size, layout.final))
            _log.warning(
                "%s: the model's limits of an image's size make its focal length %.0f px, not %.0f: lengths may be as "
                "wrong",
                name,
                rule.px * scale,
                rule.px,
            )

    def _coords(self, points, given: Camera, unified: Camera, asked: Protocol) -> Sequence:
        size = unified.width, unified.height
        return normalize_points(given.map_points(points, unified), size, asked.coord_range).tolist()
