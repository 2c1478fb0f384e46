"""`vlm3 plan --eval`: memory and hours of benchmarks on a topology, from shapes alone.

Devices answer in groups of `tensor` that share the weights by heads and columns; groups are independent of each other.
A record costs one pass over its images and the prefix, and for each question one over its tokens; then all questions of
a call take steps together, each of which reads the weights and the caches once. Time is the longest of arithmetic at
the peak, memory traffic at full bandwidth and the sums over a group, for each of the two parts, over `reached`.
Memory: the weights by their shardings; the prefix's and the questions' caches; the widest layer of a prefill; logits.
Shapes are padded to buckets, a third more in the mean of both.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from vlm3_jax import pretrained, storage
from vlm3_jax.camera import Camera
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import manifest
from vlm3_jax.evaluate.benchmarks import Asked
from vlm3_jax.model import flops
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.planning.plan import model_config
from vlm3_jax.planning.samples import IMAGES, SHORT, TEXT, vision_spec
from vlm3_jax.planning.topology import Topology
from vlm3_jax.processor.image import VisionSpec, image_layout
from vlm3_jax.records import ImageRef, View
from vlm3_jax.tasks.pose import KINDS
from vlm3_jax.tasks.protocol import RELEASE, Protocol

PADDING = 4 / 3
# Rows of a manifest whose image sizes stand for all.
LOOKED_AT = 64


@dataclasses.dataclass(frozen=True)
class Work:
    """A benchmark: `records` with `images` each of `visual` tokens and `patches` together, `questions` a record.

    `asked`, `answered`: tokens of a question and of its answer. `built`: whether a manifest told the numbers.
    """

    key: str
    records: int
    questions: float
    patches: int
    visual: int
    images: int
    asked: int
    answered: int
    built: bool


@dataclasses.dataclass(frozen=True)
class Option:
    """So many `groups` of `tensor` devices; bytes of one device, and `hours` of each benchmark on all of them."""

    tensor: int
    groups: int
    weights: float
    caches: float
    working: float
    hours: dict[str, float]
    topology: Topology

    @property
    def total(self) -> float:
        """Bytes of memory."""
        return self.weights + self.caches + self.working

    @property
    def fits(self) -> bool:
        """Whether the memory of a device is enough."""
        return self.total <= self.topology.capacity


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """All options, the fastest that fits first."""

    model: str
    dtype: str
    image_sets: int
    questions: int
    reached: float
    topology: Topology
    works: tuple[Work, ...]
    options: tuple[Option, ...]

    def to_json(self) -> dict[str, Any]:
        """All figures, JSON-able."""
        tree = dataclasses.asdict(self)
        tree["topology"] = self.topology.name
        for option, one in zip(tree["options"], self.options, strict=True):
            option |= {"topology": self.topology.name, "total": one.total, "fits": one.fits}
            option["hours_in_all"] = sum(one.hours.values())
        return tree

    def rich(self, price: float | None = None):
        """For the terminal."""
        import rich.box
        import rich.console
        import rich.table

        works = rich.table.Table(title=f"{self.model} asked {len(self.works)} benchmarks", box=rich.box.SIMPLE_HEAD)
        best = self.options[0]
        for name in ("benchmark", "records", "questions", "visual tokens a record", "hours"):
            works.add_column(name, justify="left" if name == "benchmark" else "right")
        for work in self.works:
            count = f"{work.records:,}" if work.built else f"about {work.records:,}"
            asked = f"{round(work.records * work.questions):,}"
            works.add_row(work.key, count, asked, f"{work.visual:,}", f"{best.hours[work.key]:.2f}")
        table = rich.table.Table(
            title=f"on {self.topology.name}: {self.topology.devices} x {self.topology.chip.kind}, {self.dtype}",
            box=rich.box.SIMPLE_HEAD,
        )
        for name in ("tensor", "groups", "weights GB", "caches GB", "working GB", "total GB", "hours"):
            table.add_column(name, justify="right")
        for option in self.options:
            sizes = [f"{size / 1e9:.1f}" for size in (option.weights, option.caches, option.working, option.total)]
            sizes[-1] += "" if option.fits else " too much"
            hours = f"{sum(option.hours.values()):.2f}"
            table.add_row(str(option.tensor), str(option.groups), *sizes, hours, style=None if option.fits else "dim")
        lines = [
            f"A group answers {self.questions} questions of each of {self.image_sets} image sets at a time; time = the "
            f"longest bound / {self.reached:g}."
        ]
        if price is not None:
            cost = sum(best.hours.values()) * self.topology.devices * price
            lines.append(f"cost = hours x {self.topology.devices} devices x {price:g} = {cost:,.2f}")
        if best.fits:
            lines.append(
                f"Suggested, with a process a node: --config.mesh.tensor={best.tensor} --config.mesh.fsdp=1 "
                f"--config.mesh.replica=(devices of a process / {best.tensor}) --config.eval.dtype={self.dtype}"
            )
        else:
            lines.append("No group fits: take larger devices, or --config.eval.image_sets and questions smaller.")
        return rich.console.Group(works, table, *lines)


def make_plan(config, asked: Sequence[Asked], topology: Topology, reached: float) -> EvalPlan:
    """The options of a topology for benchmarks. UserError for a model or size that cannot be planned."""
    cfg, evaluation = model_config(config.model), config.eval
    spec = vision_spec(config.model, cfg)
    known = pretrained.open(config.model).protocols if storage.path(config.model).is_dir() else {}
    works = tuple(_work(one, known.get(one.benchmark.task) or RELEASE[one.benchmark.task], spec) for one in asked)
    options = [
        _option(cfg, evaluation, works, topology, tensor, reached)
        for tensor in (1, 2, 4, 8)
        if topology.devices % tensor == 0 and (topology.is_tpu or topology.shape[0] % tensor == 0)
    ]
    options.sort(key=lambda option: (not option.fits, sum(option.hours.values())))
    return EvalPlan(
        config.model,
        evaluation.dtype,
        evaluation.image_sets,
        evaluation.questions,
        reached,
        topology,
        works,
        tuple(options),
    )


def _work(asked: Asked, protocol: Protocol, spec: VisionSpec) -> Work:
    benchmark, built = asked.benchmark, False
    records = benchmark.records
    labels = benchmark.labels or (benchmark.total / records if benchmark.total else 1)
    width, height, focal = benchmark.typical
    cameras = [Camera(focal, focal, width / 2, height / 2, round(width), round(height))]
    try:
        found = manifest.read(asked)
        records, labels, built = len(found), found.head["labels"] / len(found), True
        cameras = [found[number].cameras[0] for number in range(0, len(found), -(-len(found) // LOOKED_AT))]
    except manifest.NotThere:
        pass
    # Pairs of cameras are asked all kinds of questions, and both ways.
    pose = benchmark.task == "pose"
    questions, records = (len(KINDS), 2 * records) if pose else (labels, records)
    images = IMAGES[benchmark.task]
    patches = sum(_patches(protocol.resize.camera(camera), spec) for camera in cameras) / len(cameras) * images
    turn, answer = TEXT.get((benchmark.task, protocol.wording), SHORT)
    visual = round(patches / spec.merge_size**2)
    return Work(asked.key, records, questions, round(patches), visual, images, turn - answer, answer, built)


def _patches(camera: Camera, spec: VisionSpec) -> int:
    return image_layout(View(ImageRef(camera.width, camera.height, "", data=b""), camera), spec).n_patches


def _option(
    cfg: VLMConfig, evaluation, works: Sequence[Work], topology: Topology, tensor: int, reached: float
) -> Option:
    item = jnp.dtype(evaluation.dtype).itemsize
    sizes = {"replica": 1, "fsdp": 1, "tensor": tensor}
    rows = parameters.table(cfg)
    weights = item * sum(row.size / math.prod(sizes[a] for a in meshes.resolve(row, sizes)[0] if a) for row in rows)
    t, v, B, Q = cfg.text, cfg.vision, evaluation.image_sets, evaluation.questions
    per_token = item * 2 * t.layers * t.kv_heads * t.head_dim / min(tensor, t.kv_heads)
    widest = max(works, key=lambda work: work.visual)
    own = max(work.asked + work.answered for work in works)
    caches = PADDING * B * per_token * (widest.visual + Q * own)
    layer = 3 * t.intermediate_size + 4 * t.heads * t.head_dim
    block = 2 * v.intermediate_size + 8 * v.hidden_size
    working = PADDING * B * item * max(widest.visual * layer, widest.patches * block) / tensor
    working += B * (Q * t.vocab_size * 4 / tensor + PADDING * (len(v.taps) + 1) * widest.visual * t.hidden_size * item)
    groups = topology.devices // tensor
    hours = {
        work.key: _seconds(cfg, work, evaluation, topology, tensor, weights, per_token) / reached / groups / 3600
        for work in works
    }
    return Option(tensor, groups, weights, caches, working, hours, topology)


def _seconds(cfg, work: Work, evaluation, topology: Topology, tensor: int, weights: float, per_token: float) -> float:
    """What one group would take for all of a benchmark."""
    chip, t = topology.chip, cfg.text
    B, Q = evaluation.image_sets, min(evaluation.questions, math.ceil(work.questions))
    peak = chip.peak * (1 if evaluation.dtype == "bfloat16" else 0.5)
    # An image is read again for each part of its questions.
    parts = math.ceil(work.questions / Q)
    calls = work.records * parts / B
    V, M, N = math.ceil(PADDING * work.visual), math.ceil(PADDING * work.asked), work.answered
    vision_pairs = PADDING * work.patches**2 / work.images
    prefix = flops.Lengths(V, math.ceil(PADDING * work.patches), 0, V * V / 2, vision_pairs)
    suffix = flops.Lengths(Q * M, 0, Q, Q * (M * V + M * M / 2), 0)
    step = flops.Lengths(Q, 0, Q, Q * (V + M + N / 2), 0)
    sums = 4 * (tensor - 1) / tensor * t.layers * t.hidden_size * jnp.dtype(evaluation.dtype).itemsize / chip.link

    def part(lengths: flops.Lengths, read: float) -> float:
        arithmetic = B * sum(flops.forward(cfg, lengths).values()) / tensor / peak
        return max(arithmetic, read / chip.bandwidth, B * lengths.tokens * sums)

    prefill = part(prefix + suffix, weights)
    steps = N * part(step, weights + B * per_token * (V + Q * (M + N / 2)))
    return calls * (prefill + steps)


def check(config) -> None:
    """UserError unless the config names a model."""
    if not config.model:
        raise UserError("--model: missing; name the model whose evaluation is planned")
