"""Greedy answers: those of transformers' generate(), however many questions and images share a call."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from tests.infer.random_prompts import NEVER, Greedy
from tests.support import blocks
from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import hf
from vlm3_jax.cli import main
from vlm3_jax.infer.buckets import bucket
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.lanes import side_by_side
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec, image_layout
from vlm3_jax.records import View, encode_image

NEW = 16
# (width, height) of the images of each set; 30 x 22 is resized by both processors.
IMAGES = [[(32, 24), (48, 8)], [], [(30, 22)], [(16, 56)]]
QUESTIONS = [
    ["How far is (12, 7)?", "And the wall behind?", "Which of them moved?", "What is to the left?"],
    ["What is two and two?", "Name a colour, please", "Hello, who are you? 7"],
    ["How far is (12, 7)?", "How far is (3, 21)?", "How far is (29, 14)?", "Is there a chair, 5?"],
    ["How far is (12, 7)?", "How far is (8, 50)?", "What is in the image?"],
]


@pytest.fixture(scope="module")
def layouts(lively):
    rng, spec = np.random.default_rng(5), VisionSpec.from_dir(lively)

    def layout(size):
        pixels = blocks(rng, (64, 64))[: size[1], : size[0]]
        return image_layout(View(encode_image(pixels, "image"), Camera(50.0, 50.0, *np.divide(size, 2), *size)), spec)

    return [tuple(layout(size) for size in sizes) for sizes in IMAGES]


@pytest.fixture(scope="module")
def greedy(lively, layouts) -> list[list[Greedy]]:
    model = Qwen3VLForConditionalGeneration.from_pretrained(lively).eval()
    model.generation_config.eos_token_id = None
    processor, chat = Qwen2VLImageProcessorPil.from_pretrained(lively), ChatFormat.from_dir(lively)
    found = []
    for images, questions in zip(layouts, QUESTIONS, strict=True):
        inputs = {}
        if images:
            inputs = dict(processor(images=[Image.fromarray(p.ref.load()) for p in images], return_tensors="pt"))
        found.append([])
        for question in questions:
            prefix, suffix = chat.prompt([layout.n_visual for layout in images], question)
            ids = torch.tensor(np.concatenate([prefix, suffix]))[None].long()
            model.model.rope_deltas = None
            kind = (ids == chat.image_id).int()
            out = model.generate(
                **inputs, input_ids=ids, attention_mask=ids * 0 + 1, mm_token_type_ids=kind, max_new_tokens=NEW,
                do_sample=False, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            best = torch.cat(out.logits).topk(2).values
            found[-1].append(Greedy(out.sequences[0, ids.shape[1] :].tolist(), (best[:, 0] - best[:, 1]).tolist()))
    return found


@pytest.fixture(scope="module")
def make(lively):
    """Engines whose answers are token ids."""
    cfg, params = hf.load(lively)
    spec = VisionSpec.from_dir(lively)

    def engine(stops, **sizes) -> Engine:
        chat = ChatFormat(lively)
        chat.stop_ids, chat.decode = stops, list
        return Engine(cfg, params, chat, spec, max_new_tokens=NEW, **sizes)

    return engine


@pytest.fixture(scope="module")
def together(make, layouts):
    """All questions in one call, no stop token."""
    return make((NEVER,), image_sets=4, questions=4).answer(layouts, QUESTIONS)


def test_answers_are_those_of_transformers(greedy, together):
    same = [their.agrees(ours) for row, mine in zip(greedy, together) for their, ours in zip(row, mine, strict=True)]
    assert len(same) == 14
    assert {len(ours) for row in together for ours in row} == {NEW}
    # Not in vain: hardly any answer leaves the common path, they vary, and they depend on the images.
    assert np.mean(same) > 0.95 * NEW
    assert len({tuple(ours) for row in together for ours in row}) == 14
    assert np.mean([len(set(ours)) for row in together for ours in row]) > 6
    assert len({tuple(together[i][0]) for i in (0, 2, 3)}) == 3, "the same question about other images"


def test_a_question_alone_gets_the_same_answer(make, layouts, greedy, together):
    """One place: every question is read and answered by itself."""
    alone = make((NEVER,), image_sets=1, questions=1)
    calls = []
    plan = alone._calls
    alone._calls = lambda prompts: calls.extend(plan(prompts)) or calls
    answers = alone.answer(layouts, QUESTIONS)
    assert [(call.rows, call.places) for call in calls] == [(1, 1)] * 4
    for row, mine, shared in zip(greedy, answers, together, strict=True):
        for their, one, other in zip(row, mine, shared, strict=True):
            their.agrees(one)
            assert one == other or min(their.gaps) < 1e-4


def test_lanes_change_no_answer(make, layouts, greedy, together, monkeypatch):
    """Sixteen questions or two, in two lanes of which each has every other one; the calls say how many there are."""
    monkeypatch.setattr("vlm3_jax.infer.engine._FOR_LANES", 2)
    lanes = []
    monkeypatch.setattr("vlm3_jax.infer.engine.side_by_side", lambda of: lanes.append(len(of)) or side_by_side(of))
    for sizes in ({"image_sets": 4, "questions": 4}, {"image_sets": 1, "questions": 2}):
        found = make((NEVER,), **sizes).answer(layouts, QUESTIONS)
        for row, mine, shared in zip(greedy, found, together, strict=True):
            for their, one, other in zip(row, mine, shared, strict=True):
                their.agrees(one)
                assert one == other or min(their.gaps) < 1e-4
    assert set(lanes) == {2}


def test_a_stop_token_ends_an_answer(make, layouts, greedy):
    """One engine for both: answers with the token end before it, the others are cut at max_new_tokens."""
    inside = [set(their.tokens[2:]) - set(their.tokens[:2]) for row in greedy for their in row]
    counts = {token: sum(token in tokens for tokens in inside) for token in set.union(*inside)}
    stop = max(counts, key=lambda token: min(counts[token], 7))
    answers = make((NEVER, stop), image_sets=4, questions=4).answer(layouts, QUESTIONS)
    ended = 0
    for row, mine in zip(greedy, answers, strict=True):
        for their, ours in zip(row, mine, strict=True):
            assert stop not in ours
            expected = their.tokens.index(stop) if stop in their.tokens else NEW
            ended += expected < NEW
            if min(their.gaps) > 1e-4:
                assert ours == their.tokens[:expected]
    assert 1 <= ended < 14


def test_answers_come_in_the_order_asked(make, layouts, monkeypatch):
    """Sets are sorted by size, one with many questions is alone; a stand-in for the device repeats its prompts."""
    engine = make((NEVER,), image_sets=3, questions=4)
    seen = []

    def repeat(prompts, patches, call, sampling, plan):
        seen.append((call.rows, call.places, [(len(p.images), len(p.suffix_tokens)) for p in prompts]))
        for b, (prompt, arrays) in enumerate(zip(prompts, patches, strict=True)):
            assert [len(array) for array in arrays] == [layout.n_patches for layout in prompt.images]
            for q, suffix in reversed(list(enumerate(prompt.suffix_tokens))):
                yield b, q, [len(prompt.prefix_tokens), *suffix], None

    monkeypatch.setattr(engine, "_call", repeat)
    asked = [*QUESTIONS[:3], QUESTIONS[3] * 5]
    answers = engine.answer(layouts, asked)
    for images, questions, mine in zip(layouts, asked, answers, strict=True):
        for question, ours in zip(questions, mine, strict=True):
            prefix, suffix = engine.chat.prompt([layout.n_visual for layout in images], question)
            assert ours == [len(prefix), *suffix]
    # 15 questions have the 12 places to themselves, then the smallest sets come first.
    assert seen == [(1, 12, [(1, 15)]), (3, 4, [(0, 3), (1, 4), (2, 4)])]
    assert engine.answer([], []) == []
    assert engine.answer([layouts[1]], [[]]) == [[]]


def test_buckets_grow_by_half_or_double():
    sizes = [bucket(n, 16) for n in range(200)]
    assert sorted(set(sizes)) == [16, 32, 48, 64, 96, 128, 192, 256]
    assert all(n <= size <= max(16, 2 * n) for n, size in enumerate(sizes))
    assert sizes == sorted(sizes)
    fine = [bucket(n, 8, 8) for n in range(1, 2000)]
    assert all(n <= size < max(n + 8, 1.13 * n) for n, size in enumerate(fine, 1))
    assert len(set(fine)) < 60


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(lively, tmp_path, value, capsys):
    """No answer is made up from them: one line and exit code 1, greedy or drawn."""
    cfg, params = hf.load(lively)
    params["text"]["norm"][3] = value
    folder = hf.save(tmp_path / "broken", cfg, params, lively)
    for options in ((), ("--temperature=1",)):
        assert main(["ask", f"--model={folder}", "--question=What is it?", "--max-new-tokens=4", *options]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"vlm3 ask: {folder}: logits are not finite: its weights hold NaN or infinity")


@pytest.mark.parametrize("name", ["norm1", "qkv_bias"])
def test_an_image_of_several_blocks_does_not_hide_them(lively, tmp_path, rng, name, capsys):
    """They are in queries and keys of the vision tower, and no score of a patch is a number."""
    cfg, params = hf.load(lively)
    params["vision"]["blocks_0"][name] = np.full_like(params["vision"]["blocks_0"][name], np.nan)
    folder = hf.save(tmp_path / "broken", cfg, params, lively)
    Image.fromarray(blocks(rng, (96, 64))).save(tmp_path / "photo.png")
    asked = [str(tmp_path / "photo.png"), "--question=What is it?", "--max-new-tokens=4"]
    assert main(["ask", f"--model={folder}", *asked]) == 1
    assert "logits are not finite" in capsys.readouterr().err
