"""For people with photos: `vlm3_jax.load(path)` answers in numpy, with units in the names."""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vlm3_jax import tasks
from vlm3_jax.camera import AsIs, Camera, Resize, normalize_points
from vlm3_jax.checkpoint import hf
from vlm3_jax.errors import UserError
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.sampling import GREEDY, Sampling, stored_max_new_tokens
from vlm3_jax.infer.video import ask_video
from vlm3_jax.pretrained import resolve_model
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.conversation import conversation_images, conversation_prompt
from vlm3_jax.processor.image import ImageLayout, VisionSpec, image_layout
from vlm3_jax.records import FORMATS, ImageRef, View
from vlm3_jax.tasks import correspondence, depth, pose, protocol
from vlm3_jax.tasks.protocol import Protocol

# Without a camera a photo is taken to see this much: a guess, and metric depth is as wrong as the guess.
ASSUMED_FOV_DEG = 60.0
MAX_NEW_TOKENS = 256

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Depth:
    """Points asked about (px of the given image, int [N, 2]), distances in metres [N] (NaN: unreadable), the texts."""

    points_px: np.ndarray
    distance_m: np.ndarray
    answers: list[str]


@dataclasses.dataclass(frozen=True)
class Match:
    """Points of the first image (px, [N, 2]), where the model sees them in the second (px, [N, 2]), the texts."""

    points_px: np.ndarray
    matches_px: np.ndarray
    answers: list[str]


@dataclasses.dataclass(frozen=True)
class RelativePose:
    """The second camera in the frame of the first: rotation [3, 3], unit direction [3], distance in metres (or NaN)."""

    rotation: np.ndarray
    direction: np.ndarray
    distance_m: float
    answers: dict[str, str]


class VLM3:
    """A model and how it is asked.

    `protocols`: by task, in place of what the model's `vlm3.json` says; a task that neither names is asked as the
    release asks it, which is said once. `max_new_tokens`: where answers are cut; None for what generation_config.json
    says, or 256.
    """

    def __init__(self, path, protocols: Mapping[str, Protocol] | None = None, max_new_tokens: int | None = None):
        self._folder = folder = resolve_model(str(path), ".")
        self.protocols = {**protocol.read(folder), **(protocols or {})}
        self._spec = VisionSpec.from_dir(folder)
        cfg, params = hf.load(folder)
        params, chat = jax.tree.map(jnp.asarray, params), ChatFormat.from_dir(folder)
        new = max_new_tokens or stored_max_new_tokens(folder) or MAX_NEW_TOKENS
        self._engine = Engine(cfg, params, chat, self._spec, image_sets=1, questions=32, max_new_tokens=new)

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

    def ask(self, images, question: str, sampling: Sampling | None = None) -> str:
        """The answer to a question about images (paths, PIL images or uint8 arrays), shown as they are.

        `sampling`: how tokens are drawn, see `sampling()`; None for the greedy answer.
        """
        images = images if isinstance(images, list | tuple) else [images]
        return self._engine.answer([self._as_they_are(images)], [[question]], sampling or GREEDY)[0][0]

    def chat(self, messages, sampling: Sampling | None = None) -> str:
        """The next answer of a conversation: [{"role": "user", "content": text or parts}, {"role": "assistant", ...}].

        Parts are {"type": "text", "text": ...} and, in any user turn, {"type": "image", "image": path, PIL image or
        uint8 array}; a first message may have the role "system". UserError names the message that is not so.
        """
        layouts = self._as_they_are(conversation_images(messages))
        prompt = conversation_prompt(messages, layouts, self._engine.chat)
        patches = [layout.load(self._spec) for layout in layouts]
        return self._engine.chat.decode(self._engine.generate([prompt], [patches], sampling or GREEDY)[0][0])

    def ask_video(
        self, frames, question: str, fps: float | None = None, times_s=None, images=(), sampling: Sampling | None = None
    ) -> str:
        """The answer about a video (see `infer.video.ask_video`); still `images` are shown before it."""
        shown = self._as_they_are(images)
        return ask_video(self._engine, frames, question, fps, times_s, shown, sampling or GREEDY)

    def sampling(self, **given) -> Sampling:
        """What the checkpoint proposes for drawing tokens, with the `given` fields of `Sampling` in its place."""
        return Sampling.from_dir(self._folder, **given)

    def depth(self, image, camera: Camera | None = None, points=None, grid: tuple[int, int] = (8, 6)) -> Depth:
        """Distance to the camera centre at `points` (px, [N, 2]), or at a `grid` of columns x rows."""
        asked = self.protocol("depth")
        layout, given, unified = self._layout(image, camera, asked.resize)
        if points is None:
            columns, rows = ((np.arange(n) + 0.5) * size / n for n, size in zip(grid, (given.width, given.height)))
            points = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
        points = np.asarray(points).astype(int).reshape(-1, 2)
        coords = self._coords(points, given, unified, asked)
        answers = self._engine.answer([(layout,)], [[depth.question(x, y, asked) for x, y in coords]])[0]
        found = [tasks.get("depth").parse(text) for text in answers]
        return Depth(points, np.array([np.nan if value is None else value for value in found]), answers)

    def match(self, a, b, points, camera_a: Camera | None = None, camera_b: Camera | None = None) -> Match:
        """Where the surface at `points` (px of image a) appears in image b; NaN where the answer cannot be read."""
        asked = self.protocol("correspondence")
        layout_a, given_a, unified_a = self._layout(a, camera_a, asked.resize)
        layout_b, given_b, _ = self._layout(b, camera_b, asked.resize)
        points = np.asarray(points).astype(int).reshape(-1, 2)
        coords = self._coords(points, given_a, unified_a, asked)
        questions = [correspondence.question(x, y, asked) for x, y in coords]
        answers = self._engine.answer([(layout_a, layout_b)], [questions])[0]
        parsed = [tasks.get("correspondence").parse(text) for text in answers]
        scale = np.array([given_b.width, given_b.height]) / asked.coord_range
        found = np.array([(np.nan, np.nan) if p is None else p for p in parsed], float).reshape(-1, 2)
        return Match(points, found * scale, answers)

    def pose(self, a, b, camera_a: Camera | None = None, camera_b: Camera | None = None) -> RelativePose:
        """How the camera moved from image a to image b (frame of a: x right, y down, z forward)."""
        from vlm3_jax.pose import matrix_from_euler

        asked = self.protocol("pose")
        layouts = self._layout(a, camera_a, asked.resize)[0], self._layout(b, camera_b, asked.resize)[0]
        kinds = list(pose.KINDS)
        answers = dict(zip(kinds, self._engine.answer([layouts], [[pose.question(kind, asked) for kind in kinds]])[0]))
        parsed = {kind: tasks.get("pose").parse(text, {"kind": kind}) for kind, text in answers.items()}
        euler, direction = parsed["euler_natural"], parsed["translation_direction"]
        distance = parsed["translation_distance"]
        return RelativePose(
            np.full((3, 3), np.nan) if euler is None else matrix_from_euler(*euler),
            np.full(3, np.nan) if direction is None else np.asarray(direction, float),
            float("nan") if distance is None else float(distance),
            answers,
        )

    def _as_they_are(self, images) -> tuple[ImageLayout, ...]:
        """Layouts of images at their own size: no focal length is unified."""
        return tuple(self._layout(image, None, AsIs())[0] for image in images)

    def _layout(self, image, camera: Camera | None, rule: Resize) -> tuple[ImageLayout, Camera, Camera]:
        """The image's layout, its camera as given (or assumed) and the unified one."""
        if isinstance(image, np.ndarray):
            image = np.asarray(Image.fromarray(image).convert("RGB"))
        else:
            try:
                own = isinstance(image, Image.Image)
                with contextlib.nullcontext(image) if own else Image.open(image, formats=FORMATS) as opened:
                    if opened.mode[0] in "IF":
                        # Converting would clip nearly all of them to white.
                        raise UserError(f"{image}: {opened.mode} has more than 8 bits a pixel; convert it to 8 bits")
                    image = np.asarray(opened.convert("RGB"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise UserError(f"{image}: cannot be read as an image ({error})") from None
        height, width = image.shape[:2]
        given = camera or Camera.from_fov(width, height, ASSUMED_FOV_DEG)
        if (given.width, given.height) != (width, height):
            raise UserError(f"the camera is for {given.width} x {given.height} px, the image has {width} x {height}")
        unified = rule.camera(given)
        return image_layout(View(ImageRef(width, height, "image", pixels=image), unified), self._spec), given, unified

    def _coords(self, points, given: Camera, unified: Camera, asked: Protocol) -> Sequence:
        size = unified.width, unified.height
        return normalize_points(given.map_points(points, unified), size, asked.coord_range).tolist()
