"""Conversations that wait for their next answer: any number of turns, images in any user turn, a system text.

The checkpoint's template is rendered with the texts themselves, since it may look at them (a thinking model's template
drops earlier thoughts). Special tokens in texts are broken by a mark first and mended after the template's own have
been found, so that they stay text.
"""

import re
from collections.abc import Sequence

import numpy as np

from vlm3_jax.errors import UserError
from vlm3_jax.processor.chat import ChatFormat, Encoding
from vlm3_jax.processor.image import ImageLayout
from vlm3_jax.processor.prompt import Prompt, positions

ROLES = ("system", "user", "assistant")


def conversation_images(messages) -> list:
    """What stands under "image" in the messages' contents, in order.

    messages: [{"role": "system", "user" or "assistant", "content": text or parts}], parts {"type": "text", "text": ...}
    or, in user turns, {"type": "image", "image": ...}; the last one is the user's. UserError names what is wrong where.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError('messages: expected a list of {"role": ..., "content": ...}')
    images = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise UserError(f"{where}: role is {role!r}, expected one of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise UserError(f"{where}: content is neither a text nor a list of parts")
        for place, part in enumerate(content):
            images += _image(part, role, f"{where}.content[{place}]")
    if messages[-1]["role"] != "user":
        raise UserError("messages: the last one must be the user's, it is what will be answered")
    return images


def _image(part, role: str, where: str) -> list:
    """The image of a part, if it is one."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return []
    if kind == "image" and "image" in part and role == "user":
        return [part["image"]]
    raise UserError(
        f'{where}: expected {{"type": "text", "text": ...}} or, in a user turn, {{"type": "image", "image": ...}}'
    )


def conversation_prompt(messages, layouts: Sequence[ImageLayout], chat: ChatFormat) -> Prompt:
    """The prompt of the next answer; `layouts`: of `conversation_images(messages)`.

    All but the last token is the prefix, so there is one question of one token.
    """
    encoding = encode_conversation(messages, [layout.n_visual for layout in layouts], chat)
    axes = positions(encoding, layouts)
    slots = [np.arange(first, first + count, dtype=np.int32) for first, count in encoding.images]
    return Prompt(
        images=tuple(layouts),
        prefix_tokens=encoding.tokens[:-1],
        prefix_positions=axes[:, :-1],
        visual_slot=np.concatenate(slots) if slots else np.zeros(0, np.int32),
        suffix_tokens=(encoding.tokens[-1:],),
        suffix_positions=(axes[:, -1:],),
    )


def encode_conversation(messages, n_visual: Sequence[int], chat: ChatFormat) -> Encoding:
    """Tokens up to where the answer starts, with `n_visual` tokens for each image."""
    texts = [text for message in messages for text in _texts(message["content"])]
    mark = next(c for c in map(chr, range(0xE000, 0xF900)) if not any(c in text for text in texts))
    special = chat.special_pattern()

    def broken(text: str) -> str:
        return special.sub(lambda found: found[0][0] + mark + found[0][1:], text)

    def shown(content):
        if isinstance(content, str):
            return broken(content)
        return [{"type": p["type"]} | ({"text": broken(p["text"])} if p["type"] == "text" else {}) for p in content]

    rendered = chat.render([{"role": m["role"], "content": shown(m["content"])} for m in messages], True)
    tokens, images = [], []
    for piece in re.split(f"({special.pattern})", rendered):
        number = chat.specials.get(piece)
        if number is None:
            tokens += chat.encode_text(piece.replace(mark, ""))
        elif number == chat.image_id:
            count = n_visual[len(images)] if len(images) < len(n_visual) else 0
            images.append((len(tokens), count))
            tokens += [number] * count
        else:
            tokens.append(number)
    if len(images) != len(n_visual):
        raise UserError(f"{chat.model_dir}: the chat template shows {len(images)} of {len(n_visual)} images")
    tokens = np.array(tokens, np.int32)
    return Encoding(tokens, np.zeros_like(tokens), tuple(images), ())


def _texts(content) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
