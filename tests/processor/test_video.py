"""Videos: frames, patches, prompts and positions equal transformers' Qwen3-VL processor, bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize
from transformers.video_utils import VideoMetadata

from tests import qwen_reference as qwen
from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import unsupervised
from vlm3_jax.errors import UserError
from vlm3_jax.processor import image, video
from vlm3_jax.processor.bicubic import resize
from vlm3_jax.processor.chat import ChatFormat

VISION = image.VisionSpec(4, 2, 2, 256, 16_384, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 8)
SPEC = video.VideoSpec(VISION, 2_000, 20_000, (0.5, 0.4, 0.6), (0.5, 0.3, 0.2), fps=2.0, min_frames=4, max_frames=9)
RELEASE = video.VideoSpec(image.VisionSpec(16, 2, 2, 65_536, 16_777_216, (0.5,) * 3, (0.5,) * 3, 48), 4_096, 25_165_824)


def random_video(rng, count=None, size=None):
    count, (width, height) = count or rng.integers(2, 20), size or rng.integers(3, 110, 2)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def still(rng):
    width, height = rng.integers(4, 60, 2).tolist()
    ref = records.encode_image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), "x.png")
    return image.image_layout(
        records.View(ref, Camera(9.0, 9.0, width / 2, height / 2, int(width), int(height))), VISION
    )


@pytest.fixture
def torchvision_stand_in(monkeypatch):
    qwen.stand_in_for_torchvision(monkeypatch)


@pytest.fixture(scope="module")
def chat(tiny_model):
    return ChatFormat.from_dir(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model):
    return qwen.processor(SPEC, tiny_model)


def test_resizing_is_torch_bit_for_bit(rng):
    """uint8, bicubic, antialiased, as torchvision resizes; one side may grow while the other shrinks."""
    for height, width, new_height, new_width in [*rng.integers(1, 140, (150, 4)).tolist(), (270, 480, 96, 160)]:
        frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = qwen.torch_resize(torch.tensor(frame).permute(2, 0, 1)[None], (new_height, new_width))
        np.testing.assert_array_equal(resize(frame, new_height, new_width), theirs[0].permute(1, 2, 0).numpy())


def test_sizes_equal_the_reference_rule(rng):
    for spec in (RELEASE, SPEC):
        areas = []
        for frames, height, width in rng.integers((2, 1, 1), (200, 2200, 2200), (1000, 3)).tolist():
            if max(height, width) <= 200 * min(height, width) and min(height, width) >= 8:
                arguments = frames, height, width, 2, spec.vision.factor, spec.min_pixels, spec.max_pixels
                mine = video.smart_resize(frames, height, width, spec)
                assert mine == smart_resize(*arguments), arguments
                areas.append(frames * mine[0] * mine[1])
        assert max(areas) > 0.5 * spec.max_pixels
    assert video.smart_resize(4, 3, 9, SPEC) == smart_resize(4, 3, 9, 2, 8, SPEC.min_pixels, SPEC.max_pixels)


def test_frames_are_chosen_as_by_the_reference(rng):
    for spec in (SPEC, RELEASE, dataclasses.replace(RELEASE, fps=0.7)):
        theirs = qwen.video_processor(spec)
        for count, fps in zip(rng.integers(1, 3000, 200).tolist(), rng.uniform(0.5, 120, 200).tolist()):
            expected = theirs.sample_frames(VideoMetadata(total_num_frames=count, fps=fps), fps=spec.fps)
            assert video.sample_frames(count, fps, spec) == expected.tolist()


def their_inputs(processor, media, question, rates):
    """transformers from the messages on; `media`: uint8 videos and layouts of still images."""
    content, images, videos = [], [], []
    for item in media:
        kind = "video" if isinstance(item, np.ndarray) else "image"
        content.append({"type": kind})
        (videos if kind == "video" else images).append(
            item if kind == "video" else Image.fromarray(item.ref.load())
        )  # fmt: skip
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    metadata = [{"total_num_frames": len(v), "fps": fps} for v, fps in zip(videos, rates)]
    return processor(
        text=[text], images=images or None, videos=videos, video_metadata=metadata, do_sample_frames=True,
        return_tensors="pt",
    )  # fmt: skip


@pytest.mark.usefixtures("torchvision_stand_in")
@pytest.mark.parametrize("kinds", ["v", "vi", "iv", "vv", "ivivvi"])
def test_everything_equals_the_processor(processor, chat, rng, kinds):
    for _ in range(6):
        media = [random_video(rng) if kind == "v" else still(rng) for kind in kinds]
        rates = [float(rng.choice([1, 3, 8, 23.976, 30])) for kind in kinds if kind == "v"]
        theirs = their_inputs(processor, media, "What happens?\n", rates)
        fps = iter(rates)
        layouts = [m if isinstance(m, image.ImageLayout) else video.video_layout(m, SPEC, next(fps)) for m in media]
        prompt = video.video_prompt(layouts, "What happens?\n", chat)
        tokens = np.concatenate([prompt.prefix_tokens, prompt.suffix_tokens[0]])
        np.testing.assert_array_equal(tokens, theirs["input_ids"][0].numpy())
        places = np.concatenate([prompt.prefix_positions, prompt.suffix_positions[0]], 1)
        np.testing.assert_array_equal(places, qwen.rope_index(theirs))
        np.testing.assert_array_equal(prompt.visual_slot, np.flatnonzero(theirs["mm_token_type_ids"][0].numpy()))
        patches = video.video_patches(layouts, SPEC)
        assert [len(array) for array in patches] == [look.n_patches for look in prompt.images]
        # transformers keeps the patches of images and of videos apart.
        is_video = [isinstance(look, video.FrameGroup) for look in prompt.images]
        for wanted, name in ((True, "pixel_values_videos"), (False, "pixel_values")):
            mine = [array for array, moving in zip(patches, is_video) if moving == wanted]
            if mine:
                np.testing.assert_array_equal(np.concatenate(mine), theirs[name].numpy())
        grids = [
            [len(layout.times_s), *layout.group.grid] for layout in layouts if isinstance(layout, video.VideoLayout)
        ]
        assert grids == theirs["video_grid_thw"].tolist()


@pytest.mark.usefixtures("torchvision_stand_in")
def test_cap_of_a_frame_equals_the_reference(rng):
    spec = dataclasses.replace(SPEC, max_pixels=90_000, frame_pixels=60 * 64)
    theirs = qwen.video_processor(spec, cap_pixels_per_frame=True, max_video_tokens=60)
    for count, size in [(2, (300, 200)), (9, (300, 200)), (8, (90, 100)), (40, (500, 60))]:
        frames = random_video(rng, count, size)
        expected = theirs(videos=[frames], do_sample_frames=False, return_tensors="pt")
        layout = video.video_layout(frames, spec, times_s=range(count))
        assert [[len(layout.times_s), *layout.group.grid]] == expected["video_grid_thw"].tolist()
        np.testing.assert_array_equal(np.concatenate(layout.load(spec)), expected["pixel_values_videos"].numpy())


def test_given_times_show_every_frame(chat, rng):
    frames = random_video(rng, 5, (40, 24))
    layout = video.video_layout([Image.fromarray(f) for f in frames], SPEC, times_s=[0, 0.5, 1.5, 4, 10.26])
    assert layout.times_s == (0.25, 2.75, 10.26)
    text = chat._tokenizer.decode(video.video_prompt([layout], "q", chat).prefix_tokens)
    pads = "<|vision_start|>" + "<|video_pad|>" * layout.group.n_visual + "<|vision_end|>"
    shown = f"<0.2 seconds>{pads}<2.8 seconds>{pads}<10.3 seconds>{pads}"
    assert text == f"<|im_start|>user\n<|vision_start|>{shown}<|vision_end|>"
    loaded = layout.load(SPEC)
    last = loaded[2].reshape(-1, 3, 2, 16)
    np.testing.assert_array_equal(last[:, :, 0], last[:, :, 1])
    assert (loaded[0].reshape(-1, 3, 2, 16)[:, :, 0] != loaded[0].reshape(-1, 3, 2, 16)[:, :, 1]).any()


def test_packed_rows_keep_float_patches(chat, rng):
    """Groups are images of their own in a row; empty rows and failed images fit beside them."""
    layout = video.video_layout(random_video(rng, 4, (16, 16)), SPEC, times_s=range(4))
    prompt = video.video_prompt([layout], "q", chat)
    patches = video.video_patches([layout], SPEC)
    sample = unsupervised(prompt.prefix_tokens, prompt.prefix_positions, prompt.visual_slot, prompt.images)
    n = layout.group.n_patches
    batch = pack([[sample], [sample], []], [[patches], [[patches[0], None]], []], RowBudget(200, 2 * n + 4, 1), VISION)
    assert (batch["patches"].dtype, batch["patches"].shape) == (np.float32, (3, 2 * n + 4, 96))
    np.testing.assert_array_equal(batch["patches"][0, : 2 * n], np.concatenate(patches))
    assert batch["patch_images"][0].tolist() == [1] * n + [2] * n + [0] * 4
    np.testing.assert_array_equal(batch["patches"][1, :n], patches[0])
    assert not batch["patches"][1, n:].any()
    assert pack([[]], [[]], RowBudget(8, 4, 1), VISION)["patches"].dtype == np.uint8


def test_spec_comes_from_where_transformers_looks(tmp_path):
    vision = {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304}
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision}))
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = {**mean, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    videos = {**mean, "size": {"shortest_edge": 4096, "longest_edge": 25165824}}
    joint = {"shortest_edge": 8192, "longest_edge": 1 << 20}
    nested = {"image_processor": images, "video_processor": {**videos, "size": joint, "fps": 1, "max_frames": 32}}
    for name, fields, smallest in [
        ("preprocessor_config.json", images, 65536),
        ("video_preprocessor_config.json", videos, 4096),
        ("processor_config.json", nested, 8192),
    ]:
        (tmp_path / name).write_text(json.dumps(fields))
        mine, theirs = video.VideoSpec.from_dir(tmp_path), Qwen3VLVideoProcessor.from_pretrained(tmp_path)
        assert mine.min_pixels == smallest == theirs.size["shortest_edge"]
        assert mine.max_pixels == theirs.size["longest_edge"]
        assert (mine.fps, mine.min_frames, mine.max_frames) == (theirs.fps, theirs.min_frames, theirs.max_frames)
        assert (mine.mean, mine.std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
        assert mine.frame_pixels is None
    capped = {**nested, "video_processor": {**videos, "cap_pixels_per_frame": True}}
    (tmp_path / "processor_config.json").write_text(json.dumps(capped))
    assert video.VideoSpec.from_dir(tmp_path).frame_pixels == 768 * 32 * 32
    (tmp_path / "processor_config.json").write_text(json.dumps({**nested, "video_processor": mean}))
    with pytest.raises(UserError, match="video processor config names no smallest and largest"):
        video.VideoSpec.from_dir(tmp_path)


FRAMES = np.zeros((4, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        (FRAMES, {}, "give either the frames per second"),
        (FRAMES, {"fps": 2, "times_s": [0, 1, 2, 3]}, "give either the frames per second"),
        (FRAMES, {"fps": 0}, "0 frames per second; expected a positive number"),
        (FRAMES, {"times_s": [0, 1]}, "2 times for 4 frames"),
        (FRAMES[:1], {"fps": 2}, r"1 frame\(s\); a video needs at least 2"),
        (FRAMES[:0], {"fps": 2}, r"0 frame\(s\); a video needs at least 2"),
        ([FRAMES[0], FRAMES[0, :8]], {"fps": 2}, "different sizes .*16 x 8, 16 x 16"),
        (FRAMES[..., 0], {"fps": 2}, r"a frame is uint8 \[16, 16\]; expected uint8 \[height, width, 3\]"),
        (FRAMES / 255, {"fps": 2}, "a frame is float64"),
        (["a.png", "b.png"], {"fps": 2}, "a frame is str"),
        (np.zeros((4, 8, 1608, 3), np.uint8), {"fps": 2}, "clip: 1608 x 8 pixels has an aspect ratio above 200"),
    ],
)
def test_unusable_videos_are_named(frames, arguments, message):
    with pytest.raises(UserError, match=message):
        video.video_layout(frames, SPEC, **arguments, name="clip")
