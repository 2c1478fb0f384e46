"""Image planning and patches against transformers' processor, torch and PIL."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from vlm3_jax import records
from vlm3_jax.camera import Camera, Focal
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.processor import image

SPEC = image.VisionSpec(16, 2, 2, 65_536, 16_777_216, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 48)
TINY = image.VisionSpec(4, 2, 2, 256, 4_096, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 8)


def view_of(pixels, focal=100.0):
    height, width = pixels.shape[:2]
    camera = Camera(focal, focal, width / 2, height / 2, width, height)
    return records.View(records.encode_image(pixels, "x.png"), camera)


def noise(rng, width, height):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def reference_processor(spec):
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=spec.patch_size,
        temporal_patch_size=spec.temporal_patch_size,
        merge_size=spec.merge_size,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
        size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels},
    )


def normalised(patches, spec):
    """As the device does it, with the temporal slice repeated."""
    x = (patches.reshape(len(patches), 3, 1, -1).astype(np.float32) / 255 - 0.5) / 0.5
    return np.repeat(x, spec.temporal_patch_size, 2).reshape(len(patches), -1)


@pytest.mark.parametrize("spec", [SPEC, TINY], ids=["release", "tiny"])
def test_patches_equal_the_reference_processor(spec, rng):
    reference = reference_processor(spec)
    sizes = [(1, 1), (1, 200), (200, 1), (32, 32), (33, 31), (48, 80), (1169, 70), (5, 600)]
    sizes += [tuple(rng.integers(2, 150, 2)) for _ in range(32)]
    for width, height in sizes:
        pixels = noise(rng, width, height)
        layout = image.image_layout(view_of(pixels), spec)
        theirs = reference(images=[Image.fromarray(pixels)], return_tensors="np")
        assert (1, *layout.grid) == tuple(theirs["image_grid_thw"][0]), (width, height)
        mine = layout.load(spec)
        assert mine.dtype == np.uint8
        assert mine.shape == (layout.n_patches, 3 * spec.patch_size**2)
        assert np.abs(normalised(mine, spec) - theirs["pixel_values"]).max() <= 1e-6, (width, height)


def test_sizes_equal_the_reference_rule(rng):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for height, width in rng.integers(1, 9000, (2000, 2)).tolist():
        if max(height, width) <= 200 * min(height, width):
            theirs = smart_resize(height, width, SPEC.factor, SPEC.min_pixels, SPEC.max_pixels)
            assert image.smart_resize(height, width, SPEC) == tuple(theirs)


def test_extreme_aspect_is_refused():
    assert image.smart_resize(10, 2000, TINY) is not None
    with pytest.raises(BadRecord, match=r"wide\.png: 2001 x 10 pixels has an aspect ratio above 200"):
        image.smart_resize(10, 2001, TINY, "wide.png")


def test_photo_is_resized_to_the_focal_length_first(samples):
    path = samples / "nyu_sample" / "rgb_00000.jpg"
    with Image.open(path) as stored:
        stored = stored.convert("RGB")
    ref = records.ImageRef(*stored.size, path.name, path=path)
    camera = Camera(500.0, 510.0, stored.width / 2, stored.height / 2, *stored.size).unify(333.0)
    layout = image.image_layout(records.View(ref, camera), SPEC)
    resized = stored.resize((camera.width, camera.height), Image.Resampling.BICUBIC)
    theirs = reference_processor(SPEC)(images=[resized], return_tensors="np")["pixel_values"]
    assert np.abs(normalised(layout.load(SPEC), SPEC) - theirs).max() <= 1e-6


def test_flip_blank_and_foreign_reference(rng):
    pixels = noise(rng, 24, 16)
    view = view_of(pixels)
    layout = image.image_layout(view, TINY)
    mirrored = image.image_layout(dataclasses.replace(view, flip=True), TINY)
    np.testing.assert_array_equal(mirrored.load(TINY), image.patchify(pixels[:, ::-1], TINY))
    assert (dataclasses.replace(layout, blank=True).load(TINY) == 128).all()
    other = dataclasses.replace(layout, ref=records.encode_image(noise(rng, 50, 70), "other.png"))
    assert other.load(TINY).shape == layout.load(TINY).shape


def test_crop_cuts_the_resized_image(rng):
    pixels = noise(rng, 60, 40)
    record = records.unify(records.Record("a", (view_of(pixels, 100.0),)), Focal(120.0))
    full = record.views[0].camera
    camera = full.crop(9, 5, 32, 24)
    view = records.with_cameras(record, [camera]).views[0]
    layout = image.image_layout(view, TINY)
    expected = Image.fromarray(pixels).resize((72, 48), Image.Resampling.BICUBIC).crop((9, 5, 41, 29))
    np.testing.assert_array_equal(layout.load(TINY), image.patchify(np.asarray(expected), TINY))
    again = records.with_cameras(records.with_cameras(record, [full.crop(4, 4, 50, 40)]), [camera]).views[0]
    assert again.crop == view.crop == (9, 5, 72, 48)


def test_fit_camera_keeps_the_focal_length_and_the_budget(rng):
    spec = dataclasses.replace(SPEC, min_pixels=4096)
    for width, height in [*rng.integers(60, 4000, (200, 2)).tolist(), (4000, 40), (33, 3000)]:
        camera = Camera(500.0, 500.0, width / 2 + 3, height / 2, width, height)
        for max_patches in (256, 1000, 4096):
            crop = image.fit_camera(camera, spec, max_patches)
            final = image.smart_resize(crop.height, crop.width, spec)
            patches = final[0] * final[1] // 256
            assert patches <= max_patches
            whole = image.smart_resize(height, width, spec)
            if whole[0] * whole[1] // 256 <= max_patches:
                assert crop is camera
            else:
                assert (crop.fx, crop.fy) == (500.0, 500.0)
                assert patches >= 0.5 * max_patches, (width, height, max_patches)
                corner = camera.cx - crop.cx, camera.cy - crop.cy
                assert abs(2 * corner[0] + crop.width - width) <= 1
                assert abs(2 * corner[1] + crop.height - height) <= 1


def test_fit_camera_names_a_budget_that_is_too_small():
    with pytest.raises(BadRecord, match="cannot be cropped to 64 patches"):
        image.fit_camera(Camera(500.0, 500.0, 320, 240, 640, 480), SPEC, 64)


@pytest.mark.parametrize("spec", [SPEC, TINY], ids=["release", "tiny"])
def test_table_lookup_equals_torch_and_transformers(spec):
    import torch
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    generator = torch.Generator().manual_seed(0)
    table = torch.randn(spec.table_side, spec.table_side, 5, generator=generator)
    for grid in [(2, 2), (4, 6), (14, 8), (48, 48), (94, 130), (2, 200)]:
        index, weight = image.table_lookup(grid, spec)
        assert index.dtype == np.int32
        assert weight.dtype == np.float32
        thw = torch.tensor([[1, *grid]])
        their_index, their_weight = get_vision_interpolation_indices_and_weights(
            thw, spec.table_side, mode="bilinear", align_corners=True, spatial_merge_size=spec.merge_size
        )
        np.testing.assert_array_equal(index, their_index.numpy())
        np.testing.assert_array_equal(weight, their_weight.numpy())
        mine = (table.reshape(-1, 5).numpy()[index] * weight[..., None]).sum(1)
        whole = torch.nn.functional.interpolate(
            table.permute(2, 0, 1)[None], size=grid, mode="bilinear", align_corners=True
        )[0].permute(1, 2, 0)
        positions = image.patch_positions(grid, spec)
        np.testing.assert_array_equal(positions, get_vision_position_ids(thw, spec.merge_size).numpy())
        # torch interpolates with positions of its own rounding: 1e-4 of a table step at side 48.
        np.testing.assert_allclose(mine, whole.numpy()[positions[:, 0], positions[:, 1]], atol=1e-4)


def test_spec_from_both_size_spellings(tmp_path):
    vision = {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304}
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision}))
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    edges = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    pixels = {"min_pixels": 65536, "max_pixels": 16777216}
    for sizes in (edges, pixels):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, **sizes}))
        assert image.VisionSpec.from_dir(tmp_path) == SPEC
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json: no such file"):
        image.VisionSpec.from_dir(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**processor, **edges}}))
    assert image.VisionSpec.from_dir(tmp_path) == SPEC
    # Both files: the joint one counts, unless it says nothing about images.
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(edges))
    assert image.VisionSpec.from_dir(tmp_path) == SPEC
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen3VLProcessor"}))
    with pytest.raises(UserError, match="names no image_mean and no image_std"):
        image.VisionSpec.from_dir(tmp_path)
