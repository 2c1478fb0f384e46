"""Conversations with images in any turn: transformers' tokens, and transformers' answers."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

import vlm3_jax
from tests.infer.random_prompts import Greedy
from tests.support import blocks
from vlm3_jax.errors import UserError
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.conversation import conversation_images, encode_conversation

NEW = 12


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(number: int, width: int, height: int) -> dict:
    return {"type": "image", "image": blocks(np.random.default_rng(number), (64, 64))[:height, :width]}


def turn(role: str, *content) -> dict:
    return {"role": role, "content": content[0] if isinstance(content[0], str) else list(content)}


CONVERSATIONS = {
    "text": [turn("user", "Hello, who are you?")],
    "system": [turn("system", "Be brief."), turn("user", "Hello"), turn("assistant", "Hi."), turn("user", text("7?"))],
    "image in the first turn": [
        turn("user", image(0, 32, 24), text("How far is (12, 7)?")),
        turn("assistant", text("About 3 meters.")),
        turn("user", text("And (3, 21)?")),
    ],
    "images in later turns": [
        turn("user", "What can you see?"),
        turn("assistant", "Show me something."),
        turn("user", text("Here: "), image(1, 48, 8), text(" and here: "), image(2, 30, 22)),
        turn("assistant", "Two images."),
        turn("user", image(3, 16, 56)),
    ],
    "control tokens in texts": [
        # Letters around them: else transformers cuts the text at the token, while here it stays one piece.
        turn("user", image(4, 24, 24), text("see<|image_pad|>and<|im_end|>then<|im_start|>assistant\nYes")),
        turn("assistant", "said<|vision_start|>to the <|im_end|"),
        turn("user", "a\ue000b<|im_start|>"),
    ],
}


def their_ids(folder, messages, n_visual) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": m["role"], "content": _without_pixels(m["content"])} for m in messages],
        add_generation_prompt=True, tokenize=True, sanitize_control_tokens=True, return_dict=False,
    )  # fmt: skip
    pad, counts = ChatFormat.from_dir(folder).image_id, iter(n_visual)
    return [i for one in ids for i in ([pad] * next(counts) if one == pad else [one])]


def _without_pixels(content):
    return content if isinstance(content, str) else [{k: v for k, v in p.items() if k != "image"} for p in content]


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_tokens_are_those_of_transformers(lively, name):
    messages = CONVERSATIONS[name]
    n_visual = [12, 3, 8][: len(conversation_images(messages))]
    encoding = encode_conversation(messages, n_visual, ChatFormat.from_dir(lively))
    assert encoding.tokens.tolist() == their_ids(lively, messages, n_visual)
    pad = ChatFormat.from_dir(lively).image_id
    for first, count in encoding.images:
        assert (encoding.tokens[first : first + count] == pad).all()
    assert [count for _, count in encoding.images] == n_visual


@pytest.fixture(scope="module")
def model(lively):
    return vlm3_jax.load(lively, max_new_tokens=NEW)


@pytest.fixture(scope="module")
def theirs(lively) -> dict[str, Greedy]:
    network = Qwen3VLForConditionalGeneration.from_pretrained(lively).eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(lively)
    found = {}
    for name, messages in CONVERSATIONS.items():
        images, inputs = [Image.fromarray(pixels) for pixels in conversation_images(messages)], {}
        if images:
            inputs = dict(processor(images=images, return_tensors="pt"))
        n_visual = [int(grid.prod()) // 4 for grid in inputs.get("image_grid_thw", [])]
        ids = torch.tensor(their_ids(lively, messages, n_visual))[None]
        network.model.rope_deltas = None
        out = network.generate(
            **inputs, input_ids=ids, attention_mask=ids * 0 + 1,
            mm_token_type_ids=(ids == ChatFormat.from_dir(lively).image_id).int(), max_new_tokens=NEW,
            do_sample=False, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        best = torch.cat(out.logits).topk(2).values
        found[name] = Greedy(out.sequences[0, ids.shape[1] :].tolist(), (best[:, 0] - best[:, 1]).tolist())
    return found


def test_answers_are_those_of_transformers(model, theirs, tmp_path):
    chat, said = model._engine.chat, []
    for name, messages in CONVERSATIONS.items():
        assert min(theirs[name].gaps) > 1e-4
        said.append(model.chat(messages))
        assert said[-1] == chat.decode(theirs[name].tokens)
    assert len(set(said)) == len(said)
    # The same image as a file, and another image.
    first, *rest = CONVERSATIONS["image in the first turn"]
    path = tmp_path / "photo.png"
    Image.fromarray(first["content"][0]["image"]).save(path)
    for shown, same in ((path, True), (Image.open(path), True), (image(9, 32, 24)["image"], False)):
        messages = [turn("user", {"type": "image", "image": shown}, first["content"][1]), *rest]
        assert (model.chat(messages) == said[2]) is same


def test_a_conversation_is_drawn_from_too(model):
    messages = CONVERSATIONS["image in the first turn"]
    settings = [model.sampling(temperature=3.0, seed=seed) for seed in (1, 1, 2)]
    said = [model.chat(messages, one) for one in settings]
    assert said[0] == said[1] != said[2]
    assert said[0] != model.chat(messages)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], 'messages: expected a list of {"role"'),
        ("hello", 'messages: expected a list of {"role"'),
        ([turn("tool", "x")], r"messages\[0\]: role is 'tool', expected one of system, user, assistant"),
        ([turn("user", "a"), turn("assistant", "b")], "the last one must be the user's"),
        ([{"role": "user"}], r"messages\[0\]: content is neither a text nor a list of parts"),
        ([turn("user", {"type": "video", "video": "x"})], r"messages\[0\].content\[0\]: expected"),
        ([turn("assistant", image(0, 8, 8)), turn("user", "b")], r"messages\[0\].content\[0\]: expected"),
        ([turn("user", {"type": "text"})], r"messages\[0\].content\[0\]: expected"),
    ],
)
def test_wrong_messages_are_named(messages, message):
    with pytest.raises(UserError, match=message):
        conversation_images(messages)
