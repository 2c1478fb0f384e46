"""One scene seen twice: `render_views` gives the dense maps, `record` the labelled record."""

import dataclasses

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.records import Record, View, encode_image
from vlm3_jax.synth import labels
from vlm3_jax.synth.options import SynthOptions
from vlm3_jax.synth.render import Caster, Rendered, render
from vlm3_jax.synth.scene import Scene, make_scene
from vlm3_jax.synth.viewpoints import choose_poses


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """Two views of a scene with their dense maps (see `render.Rendered`); both share `camera`.

    `poses`: camera-to-world, float64 [2, 4, 4], metres, OpenCV cameras, world y straight down, floor at y = 0.
    """

    scene: Scene
    caster: Caster
    camera: Camera
    poses: np.ndarray
    rendered: Rendered


def render_views(seed: int, index: int, options: SynthOptions) -> Views:
    """The scene number `index` of data set `seed`, rendered; depends on nothing but the three arguments."""
    rng = np.random.default_rng([seed, index, 0])
    scene = make_scene(rng, options)
    caster = Caster(scene)
    focal = options.focal_px * float(np.exp(rng.uniform(*np.log(options.focal_factor))))
    # The middle of the image in pixel numbers, whose first pixel is 0.
    centre = (options.width - 1) / 2, (options.height - 1) / 2
    camera = Camera(focal, focal, *centre, options.width, options.height)
    poses = np.stack(choose_poses(rng, scene, caster, camera, options))
    return Views(scene, caster, camera, poses, render(scene, caster, camera, poses))


def record(seed: int, index: int, options: SynthOptions) -> Record:
    """The labelled pair number `index` of data set `seed`, bitwise the same wherever and in whatever order it is made.

    Labels: distance at random pixels of both views, objects of view 0, matches, poses (metric) and covisibility.
    """
    views = render_views(seed, index, options)
    rng = np.random.default_rng([seed, index, 1])
    camera, z_maps = views.camera, views.rendered.z_m
    name = f"synth-{seed}-{index:08d}"
    return Record(
        id=name,
        views=tuple(
            View(encode_image(image, f"{name}/{k}.png"), camera, pose)
            for k, (image, pose) in enumerate(zip(views.rendered.images, views.poses))
        ),
        depth=tuple(labels.depth_points(rng, camera, z_maps[k], k, options) for k in (0, 1)),
        objects=(labels.objects(rng, views.scene, camera, views.rendered, views.poses[0], options),),
        matches=labels.matches(rng, camera, views.caster, z_maps, views.poses, options),
        covisibility=labels.covisibility(camera, z_maps, views.poses),
        metric=True,
    )
