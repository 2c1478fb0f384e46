"""Pixels, tokens and positions equal transformers' on many random inputs: bit for bit, not nearly."""

import dataclasses
import io
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import qwen_reference as qwen
from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import tiny_tokenizer
from vlm3_jax.data.samples import build_sample
from vlm3_jax.errors import UserError
from vlm3_jax.model.vision import VisionTower
from vlm3_jax.processor import image
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.prompt import prompt_sample
from vlm3_jax.processor.video import VideoSpec, video_patches
from vlm3_jax.tasks.base import Example

RELEASE = image.VisionSpec(16, 2, 2, 65_536, 16_777_216, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 48)
SMALL = image.VisionSpec(4, 2, 2, 256, 16_384, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 8)
EXTREMES = [(1, 1), (1, 200), (200, 1), (3, 600), (1, 201), (201, 1), (2, 401), (7, 1401), (7, 1400), (8, 8), (5, 3)]


def view_of(pixels):
    """A view of a PNG that is quick to write."""
    height, width = pixels.shape[:2]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    ref = records.ImageRef(width, height, "x.png", data=buffer.getvalue())
    return records.View(ref, Camera(100.0, 100.0, width / 2, height / 2, width, height))


def noise(rng, width, height):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_sizes(rng, count, low, high):
    """Log-uniform areas in pixels and aspects up to 300; one in five is square."""
    area = np.exp(rng.uniform(np.log(low), np.log(high), count))
    aspect = np.exp(rng.uniform(-np.log(300), np.log(300), count) * (rng.uniform(size=count) > 0.2))
    sides = np.sqrt(area * aspect), np.sqrt(area / aspect)
    return [(max(1, round(w)), max(1, round(h))) for w, h in zip(*sides)]


def equals_transformers(spec, reference, pixels) -> bool:
    """True if the patches are those of transformers; False if both refuse the image."""
    height, width = pixels.shape[:2]
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ValueError, match="aspect ratio must be smaller than 200"):
            reference(images=[Image.fromarray(pixels)])
        with pytest.raises(UserError, match="aspect ratio above 200"):
            image.image_layout(view_of(pixels), spec)
        return False
    theirs = reference(images=[Image.fromarray(pixels)], return_tensors="np")
    layout = image.image_layout(view_of(pixels), spec)
    assert (1, *layout.grid) == tuple(theirs["image_grid_thw"][0]), (width, height)
    # What the device does to bytes is the next test; here the bytes go through the float path, which rounds as theirs.
    mine = video_patches([layout], VideoSpec(spec, 1, 1))[0]
    np.testing.assert_array_equal(mine, theirs["pixel_values"], err_msg=f"{width} x {height}")
    return True


def test_patches_of_random_sizes_are_bit_equal(rng):
    same = []
    for spec, sizes in (
        (SMALL, [*EXTREMES, *random_sizes(rng, 190, 1, 70_000)]),
        (RELEASE, [*EXTREMES, *random_sizes(rng, 24, 1, 300_000)]),
    ):
        reference = qwen.image_processor(spec)
        same += [equals_transformers(spec, reference, noise(rng, *size)) for size in sizes]
        areas = np.array([w * h for w, h in sizes])
        assert (areas < spec.min_pixels).sum() >= 10
        assert spec is RELEASE or (areas > spec.max_pixels).sum() >= 10
    assert len(same) >= 200
    assert 4 <= same.count(False) <= 40


def test_patches_above_the_largest_area(rng):
    """Large patches too; the release's own bound (16.8 Mpx) takes ten seconds an image and is the same code."""
    spec = dataclasses.replace(RELEASE, max_pixels=1 << 19)
    for width, height in [(1301, 803), (411, 4000)]:
        layout = image.image_layout(view_of(noise(rng, width, height)), spec)
        assert layout.final[0] * layout.final[1] <= spec.max_pixels < width * height
        assert equals_transformers(spec, qwen.image_processor(spec), noise(rng, width, height))


@pytest.mark.parametrize(("spec", "bound"), [(RELEASE, 1.2e-7), (SMALL, 5e-7)], ids=["release", "other"])
def test_normalisation_on_the_device_is_within_a_rounding(spec, bound):
    """All 256 values through the vision tower's own code, with a patch weight that only copies.

    One rounding of values up to 1 (mean and deviation 0.5), a few of values up to 2.1.
    """
    every = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3)
    cfg = types.SimpleNamespace(mean=spec.mean, std=spec.std, vision=types.SimpleNamespace(patch_size=1, in_channels=3))
    weight = np.stack([np.eye(3, dtype=np.float32), np.zeros((3, 3), np.float32)])
    ends = types.SimpleNamespace(patch=jnp.array(weight), patch_bias=jnp.zeros(3))
    mine = VisionTower.embed(types.SimpleNamespace(cfg=cfg, ends=ends), every, jnp.float32)
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    theirs = qwen.image_processor(spec)(images=[Image.fromarray(values)], do_resize=False, return_tensors="np")
    theirs = theirs["pixel_values"].reshape(-1, 3, 2 * spec.patch_size**2).transpose(1, 0, 2).reshape(3, -1)
    assert np.abs(np.asarray(mine)[0] - np.unique(theirs, axis=1).T).max() <= bound


TEXT = """
how far is the point at (12, 1345) from the camera? 17.80 meters Yaw=+12.3° don't I'LL x_y __init__ 3e-5 // \\n #@! ...
<answer> </answer> <think> </think> <tool_call> {'a': [1, 2]} --- == != <| |> im_end \u200b \ufeff \u00ad \x00 \x1b[0m
你好，世界。 日本語テキスト 한국어 Привет мир Ελληνικά שלום مرحبا नमस्ते ไทย É e\u0301 A\u030a ﬁ １２３ ½ ⅷ
🙂 👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽 \U0001f9ff \U000e0041 \ufffd
"""
WORDS = TEXT.split()
SPACES = [" ", " ", " ", "", "  ", "\n", "\n\n", "\t", "\r\n", " \n ", "    ", "\u3000", "\u00a0", "\u2028"]
SPECIAL = [*tiny_tokenizer.SPECIAL_TOKENS, "<|im_end|>\n<|im_start|>assistant\n", "<|vision_start|><|image_pad|>"]


def random_text(rng, most, words=WORDS):
    count = rng.integers(0, most + 1)
    return "".join(word + SPACES[rng.integers(len(SPACES))] for word in rng.choice(words, count))


def random_turns(rng, count, most, words=WORDS):
    # An answer that starts with white space merges with the newline before it; ours never does, on purpose.
    return [
        (random_text(rng, most, words), random_text(rng, most, words).lstrip() or "x") for _ in range(count)
    ]  # fmt: skip


def make_record(rng, n_images):
    views = [view_of(noise(rng, *rng.integers(4, 90, 2))) for _ in range(n_images)]
    return records.Record("r", tuple(views))


def their_inputs(processor, record, turns, generation=False, **settings):
    """transformers from the messages on: template, expansion, tokens, token types and grids, as torch tensors."""
    messages = []
    for i, (question, answer) in enumerate(turns):
        images = [{"type": "image", "image": Image.fromarray(view.image.load())} for view in record.views]
        content = [*(images if i == 0 else []), {"type": "text", "text": question}]
        messages += [{"role": "user", "content": content}]
        messages += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    if generation:
        messages.pop()
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=generation, **settings
    )


def sample_of(chat, record, turns):
    examples = [Example(q, a, {}, tuple(range(len(record.views)))) for q, a in turns]
    return build_sample(record, examples, chat, SMALL)


def check_conversation(processor, chat, record, turns):
    """Tokens, positions, visual slots and grids of a conversation, and of its first question as a prompt."""
    theirs, mine = their_inputs(processor, record, turns), sample_of(chat, record, turns)
    np.testing.assert_array_equal(mine.tokens, theirs["input_ids"][0].numpy())
    np.testing.assert_array_equal(mine.positions, qwen.rope_index(theirs))
    np.testing.assert_array_equal(mine.visual_slot, np.flatnonzero(theirs["mm_token_type_ids"][0].numpy() == 1))
    grids = theirs["image_grid_thw"][:, 1:].tolist() if record.views else []
    assert [list(layout.grid) for layout in mine.images] == grids
    theirs = their_inputs(processor, record, turns[:1], generation=True)
    prompt = prompt_sample(mine.images, turns[0][0], chat)
    tokens = np.concatenate([prompt.prefix_tokens, prompt.suffix_tokens[0]])
    np.testing.assert_array_equal(tokens, theirs["input_ids"][0].numpy())
    places = np.concatenate([prompt.prefix_positions, prompt.suffix_positions[0]], 1)
    np.testing.assert_array_equal(places, qwen.rope_index(theirs))
    return len(mine.tokens)


@pytest.fixture(scope="module")
def chat(qwen_dir):
    return ChatFormat.from_dir(qwen_dir)


@pytest.fixture(scope="module")
def processor(qwen_dir):
    return qwen.processor(VideoSpec(SMALL, 1, 2), qwen_dir)


@pytest.mark.parametrize("n_images", [0, 1, 2, 5])
def test_random_conversations(processor, chat, rng, n_images):
    for _ in range(18):
        turns = random_turns(rng, rng.integers(1, 7), 30)
        check_conversation(processor, chat, make_record(rng, n_images), turns)


def test_images_side_by_side_and_no_text(processor, chat, rng):
    """Nothing but vision marks between six images, an empty question after them."""
    check_conversation(processor, chat, make_record(rng, 6), [("", "x")])
    check_conversation(processor, chat, make_record(rng, 0), [("", "x"), ("", "y")])


def test_long_conversation(processor, chat, rng):
    turns = random_turns(rng, 60, 80)
    assert check_conversation(processor, chat, make_record(rng, 3), turns) > 6_000


def test_special_tokens_in_texts_stay_text(processor, chat, rng):
    """Token by token as tiktoken encodes ordinary text, and the same text as transformers when told to sanitize."""
    ids = tiny_tokenizer.special_ids()
    ends = [chat.vision_end_id, *(151645, *qwen.ordinary("\n"), 151644)]
    assert "im_start_token_id" in ids
    for _ in range(30):
        record = make_record(rng, 1)
        question, answer = random_turns(rng, 1, 12, [w for w in WORDS if "<t" not in w and "</t" not in w] + SPECIAL)[0]
        mine = sample_of(chat, record, [(question, answer)])
        visual = [151655] * mine.images[0].n_visual
        expected = [151644, *qwen.ordinary("user\n"), 151652, *visual, ends[0], *qwen.ordinary(question), *ends[1:]]
        expected += [*qwen.ordinary("assistant\n"), *qwen.ordinary(answer), 151645, *qwen.ordinary("\n")]
        assert mine.tokens.tolist() == expected
        theirs = their_inputs(processor, record, [(question, answer)], sanitize_control_tokens=True)["input_ids"][0]
        assert processor.tokenizer.decode(mine.tokens) == processor.tokenizer.decode(theirs)
        special = range(151643, 151657)
        assert [t for t in mine.tokens if t in special] == [t for t in theirs.tolist() if t in special]


def test_marks_of_the_skeleton_in_texts_are_text(processor, chat, rng):
    marks = "\ue000" + "0\ue001 \ue0001\ue001 \ue0020\ue001"
    check_conversation(processor, chat, make_record(rng, 2), [(marks, marks), (marks + "?", "x")])


def test_an_answer_never_merges_with_the_template(processor, chat, rng):
    """The one difference: the newline before an answer is a token of its own, as it is when the model answers."""
    record, turns = make_record(rng, 1), [("q", "\n7")]
    mine, theirs = sample_of(chat, record, turns), their_inputs(processor, record, turns)["input_ids"][0].numpy()
    assert processor.tokenizer.decode(mine.tokens) == processor.tokenizer.decode(theirs)
    newline = qwen.ordinary("\n")
    prompt = their_inputs(processor, record, turns, generation=True)["input_ids"][0].tolist()
    assert mine.tokens[: len(prompt) + 1].tolist() == prompt + newline
    assert len(mine.tokens) == len(theirs) + 1


# Another frame for everything: a system turn, words around images and texts, a generation prompt that goes on.
OTHER = """\
{{- '<|im_start|>system\\nBe exact.<|im_end|>\\n' -}}
{%- for message in messages -%}
{{- '<|im_start|>' ~ ('human' if message.role == 'user' else 'robot') ~ ':\\n\\n' -}}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ 'Picture ' ~ loop.index ~ ': <|vision_start|><|image_pad|><|vision_end|>\\n' }}
{%- elif part.type == 'video' -%}{{ 'Video: <|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif message.role == 'user' -%}{{ 'Q: ' ~ part.text ~ ' ;' }}
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>robot:\\n\\n' }}{%- endif -%}
"""


def write_template(folder, place, template):
    if place == "chat_template.json":
        (folder / place).write_text(json.dumps({"chat_template": template}))
    elif place == "chat_template.jinja":
        (folder / place).write_text(template)
    else:
        fields = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps({**fields, "chat_template": template}))


def stored_template(folder) -> str:
    """The one that transformers' processor takes from the folder, or that of its tokenizer."""
    found = qwen.Processor.get_processor_dict(folder)[0].get("chat_template")
    return found or qwen.AutoTokenizer.from_pretrained(folder).chat_template


PLACES = ["chat_template.json", "chat_template.jinja", "tokenizer_config.json"]


@pytest.fixture
def without_template(tmp_path):
    tiny_tokenizer.write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    qwen.write_config(tmp_path, tiny_tokenizer.special_ids())
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
def test_template_comes_from_the_checkpoint(without_template, place, rng):
    folder = without_template
    write_template(folder, place, OTHER)
    assert stored_template(folder) == OTHER
    processor = qwen.processor(VideoSpec(SMALL, 1, 2), folder)
    processor.chat_template = OTHER
    for n_images in (0, 1, 3):
        record, turns = make_record(rng, n_images), random_turns(rng, 3, 9)
        theirs, mine = their_inputs(processor, record, turns), sample_of(ChatFormat(folder), record, turns)
        text = processor.tokenizer.decode(theirs["input_ids"][0])
        assert "system\nBe exact." in text
        assert text.count("Picture") == n_images
        assert processor.tokenizer.decode(mine.tokens) == text
        np.testing.assert_array_equal(mine.tokens, theirs["input_ids"][0].numpy())
        np.testing.assert_array_equal(mine.positions, qwen.rope_index(theirs))
        theirs = their_inputs(processor, record, turns[:1], generation=True)
        prompt = prompt_sample(mine.images, turns[0][0], ChatFormat(folder))
        tokens = np.concatenate([prompt.prefix_tokens, prompt.suffix_tokens[0]])
        np.testing.assert_array_equal(tokens, theirs["input_ids"][0].numpy())


def test_of_several_templates_that_of_transformers_is_taken(without_template):
    folder = without_template
    for place in reversed(PLACES):
        write_template(folder, place, OTHER.replace("exact", place))
        assert place in stored_template(folder)
        assert place in "".join(ChatFormat(folder)._tokenizer.decode(ChatFormat(folder).prompt_prefix([4]).tokens))


def test_named_templates_of_a_tokenizer(without_template):
    """A list of templates in tokenizer_config.json: the default one."""
    write_template(without_template, "tokenizer_config.json", [
        {"name": "default", "template": OTHER}, {"name": "tool_use", "template": "{{ 'tools' }}"},
    ])  # fmt: skip
    chat = ChatFormat(without_template)
    assert "Be exact." in chat.decode(chat.prompt_prefix([4]).tokens)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no') }}", "the chat template cannot be rendered"),
        ("{% for x in %}", "the chat template cannot be rendered"),
        (OTHER.replace("<|image_pad|>", ""), "given image the chat template shows nothing"),
        (None, r"chat_template\.json: chat_template must be text, got null"),
    ],
)
def test_useless_templates_are_named(without_template, template, message):
    write_template(without_template, "chat_template.json", template)
    with pytest.raises(UserError, match=message):
        ChatFormat(without_template).prompt([4], "q")
