"""Answers about videos: those of transformers' generate() on the same checkpoint."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration

from tests.infer.random_prompts import NEVER, Greedy
from tests.support import blocks
from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import hf
from vlm3_jax.errors import UserError
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.video import ask_media, ask_video
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import image_layout
from vlm3_jax.processor.video import VideoLayout, VideoSpec, video_layout, video_patches, video_prompt
from vlm3_jax.records import View, encode_image

NEW = 16
QUESTIONS = ["How far is (12, 7)?", "Who moved, 7?"]


@pytest.fixture(scope="module")
def engine(lively) -> Engine:
    """Answers of 16 tokens: no stop token."""
    cfg, params = hf.load(lively)
    spec, chat = VideoSpec.from_dir(lively), ChatFormat(lively)
    chat.stop_ids = (NEVER,)
    return Engine(cfg, params, chat, spec.vision, max_new_tokens=NEW, image_sets=1, questions=1)


@pytest.fixture(scope="module")
def spec(lively) -> VideoSpec:
    return VideoSpec.from_dir(lively)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Nine frames of 40 x 24 in which the picture moves to the left."""
    wide = blocks(np.random.default_rng(5), (128, 24))
    return np.stack([wide[:, 8 * i : 8 * i + 40] for i in range(9)])


@pytest.fixture(scope="module")
def still(spec):
    pixels = blocks(np.random.default_rng(6), (32, 40))
    return image_layout(View(encode_image(pixels, "image"), Camera(50.0, 50.0, 16, 20, 32, 40)), spec.vision)


@pytest.fixture(scope="module")
def their_model(lively):
    model = Qwen3VLForConditionalGeneration.from_pretrained(lively).eval()
    model.generation_config.eos_token_id = None
    return model


def their_answer(model, chat, media, question, spec) -> Greedy:
    prompt = video_prompt(media, question, chat)
    ids = torch.tensor(np.concatenate([prompt.prefix_tokens, prompt.suffix_tokens[0]]))[None].long()
    inputs = {"mm_token_type_ids": (ids == chat.image_id).int() + 2 * (ids == chat.video_id).int()}
    for moving, name in ((True, "video"), (False, "image")):
        mine = [layout for layout in media if isinstance(layout, VideoLayout) == moving]
        if mine:
            pixels = torch.tensor(np.concatenate(video_patches(mine, spec)))
            inputs["pixel_values_videos" if moving else "pixel_values"] = pixels
            grids = [[len(p.times_s), *p.group.grid] if moving else [1, *p.grid] for p in mine]
            inputs[f"{name}_grid_thw"] = torch.tensor(grids)
    model.model.rope_deltas = None
    out = model.generate(
        **inputs, input_ids=ids, attention_mask=ids * 0 + 1, max_new_tokens=NEW, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    best = torch.cat(out.logits).topk(2).values
    return Greedy(out.sequences[0, ids.shape[1] :].tolist(), (best[:, 0] - best[:, 1]).tolist())


@pytest.mark.slow
def test_answers_are_those_of_transformers(engine, their_model, frames, still, spec):
    clip, other = video_layout(frames, spec, fps=4), video_layout(frames[::-1, :, ::-1], spec, times_s=np.arange(9) / 2)
    sets = [[clip], [still, clip], [clip, still, other]]
    answers, same = [], []
    for media in sets:
        prompt, patches = video_prompt(media, QUESTIONS, engine.chat), video_patches(media, spec)
        mine = engine.generate([prompt], [patches])[0]
        theirs = [their_answer(their_model, engine.chat, media, question, spec) for question in QUESTIONS]
        same += [their.agrees(ours) for their, ours in zip(theirs, mine, strict=True)]
        texts = [engine.chat.decode(row) for row in mine]
        assert ask_media(engine, media, QUESTIONS, spec) == texts
        answers.append(texts)
    assert np.mean(same) > 0.9 * NEW
    assert len({text for texts in answers for text in texts}) == 6, "answers depend on question and media"

    def ask(shown, fps=4, **settings):
        return ask_video(engine, shown, QUESTIONS[0], fps=fps, **settings)

    assert ask(frames) == ask(list(map(Image.fromarray, frames))) == answers[0][0]
    assert ask(frames, images=[still]) == answers[1][0]
    assert ask(frames[::-1]) != answers[0][0], "frames have an order"
    assert ask(frames, fps=8) != answers[0][0], "frames have times"


def test_a_video_without_times_is_refused(engine, frames):
    with pytest.raises(UserError, match="give either the frames per second"):
        ask_video(engine, frames, "What moves?")
