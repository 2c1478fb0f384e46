"""Rows of conversation files as turns: ShareGPT, LLaVA, LLaMA-Factory, Qwen, HF `messages`, SpatialRGPT.

A row holds its turns under `conversations` ({"from", "value"}) or `messages` ({"role", "content"}), or is one question
(`instruction`, `input`, `output`), and its images under `image`, `images` or in the contents. SpatialRGPT's rows name
their image by `filename` (without ".jpg") or `image_info`, and have a region for each "<mask>".
"""

import dataclasses

from vlm3_jax.errors import BadRecord
from vlm3_jax.formats.regions import region_boxes
from vlm3_jax.records import Conversation, Turn
from vlm3_jax.records.conversation import IMAGE, MASK, check_order

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row's conversation, the paths of the images that it shows (views 0, 1, ...), and what identifies it."""

    id: str
    conversation: Conversation
    images: tuple[str, ...]


def parse_row(tree, number: int) -> Row:
    """The row in a JSON object. BadRecord that names the field if it is not as it should be."""
    if not isinstance(tree, dict):
        raise BadRecord(f"expected a JSON object, got {type(tree).__name__}")
    for field in ("videos", "video", "audios", "audio"):
        if tree.get(field):
            raise BadRecord(f"{field}: only images can be shown")
    said = _turns(tree)
    within = [path for _, _, own in said for path in own]
    files = within or _images(tree)
    boxes = region_boxes(tree)
    check_order([role for role, _, _ in said], "turns")
    turns = _placed(said, len(files))
    turns = _with_regions(turns, len(boxes))
    id = str(tree.get("id", "") or (files[0] if files else ""))
    return Row(f"{id}#{number}", Conversation(tuple(turns), boxes), tuple(files))


def _turns(tree: dict) -> list[tuple[str, str, list[str]]]:
    """(role, text, images in its content) of each turn."""
    field = next((f for f in ("conversations", "messages", "conversation") if tree.get(f)), None)
    if field is None:
        return _single(tree)
    given = tree[field]
    if not isinstance(given, list):
        raise BadRecord(f"{field}: expected a list of turns")
    turns = [_turn(turn, f"{field}[{n}]") for n, turn in enumerate(given)]
    if isinstance(tree.get("system"), str) and tree["system"] and turns[0][0] != "system":
        turns.insert(0, ("system", tree["system"], []))
    return turns


def _single(tree: dict) -> list[tuple[str, str, list[str]]]:
    """LLaMA-Factory's form of one question, with earlier ones in `history`."""
    texts = [tree.get(field, "") for field in ("system", "instruction", "input", "output")]
    if not all(isinstance(text, str) for text in texts) or not texts[1] or not texts[3]:
        raise BadRecord("no turns: expected conversations, messages, or instruction and output")
    history = tree.get("history") or []
    pairs = [pair for pair in history if isinstance(pair, list) and len(pair) == 2]
    if len(pairs) != len(history) or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise BadRecord("history: expected pairs of texts")
    system, instruction, more, output = texts
    turns = [("system", system, [])] if system else []
    for question, answer in [*pairs, (f"{instruction}\n{more}" if more else instruction, output)]:
        turns += [("user", question, []), ("assistant", answer, [])]
    return turns


def _turn(turn, name: str) -> tuple[str, str, list[str]]:
    if not isinstance(turn, dict):
        raise BadRecord(f"{name}: expected an object")
    role = turn.get("from", turn.get("role"))
    if role not in ROLES:
        raise BadRecord(f"{name}: {role!r} is no role of a conversation; expected one of {', '.join(ROLES)}")
    text = turn.get("value", turn.get("content"))
    images: list[str] = []
    if isinstance(text, list):
        text = "".join(_part(part, images, f"{name}.content[{n}]") for n, part in enumerate(text))
    if not isinstance(text, str):
        raise BadRecord(f"{name}: expected text")
    return ROLES[role], text, images


def _part(part, images: list[str], name: str) -> str:
    """The text of a part of a content; the place of an image, which is added to `images`."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "image_url"):
        image = part.get("image", part.get("image_url", part.get("url", part.get("path"))))
        image = image.get("url") if isinstance(image, dict) else image
        if image is None:
            # HF's rows hold the images beside the messages, in their order.
            return IMAGE
        images.append(_path(image, name))
        return IMAGE
    raise BadRecord(f"{name}: expected a text or an image, got {kind!r}")


def _images(tree: dict) -> list[str]:
    """The images that a row names, in order."""
    if isinstance(tree.get("filename"), str):
        name = tree["filename"]
        return [name if "." in name.rpartition("/")[2] else f"{name}.jpg"]
    if isinstance(tree.get("image_info"), dict):
        return [_path(tree["image_info"].get("file_path"), "image_info.file_path")]
    given = tree.get("images", tree.get("image"))
    if not given:
        return []
    listed = given if isinstance(given, list) else [given]
    return [_path(image, f"images[{n}]") for n, image in enumerate(listed)]


def _path(image, name: str) -> str:
    if isinstance(image, dict):
        image = image.get("path")
    if not isinstance(image, str) or not image.strip("/") or "\0" in image:
        raise BadRecord(f"{name}: expected the path of an image, got {str(image)[:80]!r}")
    if image.startswith(("http:", "https:", "data:")):
        raise BadRecord(f"{name}: images are read from files, not from {image[:40]!r}")
    return image.removeprefix("file://")


def _placed(said, count: int) -> list[Turn]:
    """The turns with the images that they show: one for each "<image>" of a question, the rest before the first."""
    places = sum(text.count(IMAGE) for role, text, _ in said if role == "user") if count else 0
    if places > count:
        raise BadRecord(f"it shows {places} images ({IMAGE}), and names {count}")
    first = next(n for n, (role, _, _) in enumerate(said) if role == "user")
    number, turns = 0, []
    for n, (role, text, _) in enumerate(said):
        own = (text.count(IMAGE) if role == "user" and count else 0) + (count - places if n == first else 0)
        turns.append(Turn(role, text, tuple(range(number, number + own))))
        number += own
    return turns


def _with_regions(turns: list[Turn], count: int) -> list[Turn]:
    """The turns with the regions that they speak of: the i-th "<mask>" of all questions is region i."""
    if not count:
        return turns
    places = sum(turn.text.count(MASK) for turn in turns if turn.role == "user")
    if places != count:
        raise BadRecord(f"it speaks of {places} regions ({MASK}), and has {count}")
    number, found = 0, []
    for turn in turns:
        own = turn.text.count(MASK) if turn.role == "user" else 0
        found.append(dataclasses.replace(turn, regions=tuple(range(number, number + own))))
        number += own
    return found
