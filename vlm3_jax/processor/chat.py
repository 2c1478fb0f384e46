"""Chat tokens: a checkpoint's own template and tokenizer, with the text of questions and answers filled in.

Rendering a Jinja template for every sample is slow and would read "<|im_end|>" in a question as a real turn end. So the
skeleton of a conversation (its number of images and turns) is rendered once with marks in place of the texts; a sample
only tokenises its own texts, in which special tokens stay plain text. Tokens equal those of transformers'
`apply_chat_template`, with two exceptions beside that: texts go in as they are, whatever the template would strip from
them, and the tokens of an answer never merge with the template's newline before it.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
from collections.abc import Sequence

import jinja2
import numpy as np

from vlm3_jax.errors import UserError
from vlm3_jax.files import Fields
from vlm3_jax.model.config import model_fields


@dataclasses.dataclass(frozen=True)
class Frames:
    """A video as a prompt shows it: at each of `times_s` (seconds) a group of frames of `n_visual` tokens."""

    times_s: tuple[float, ...]
    n_visual: int


@dataclasses.dataclass(frozen=True)
class _Shown:
    """An image or a video, by its number among both."""

    number: int


@dataclasses.dataclass(frozen=True)
class _Question:
    """A user (or system) text with the template's on both sides up to the next special token: one piece of text.

    `number`: which of the conversation's texts it is, answers not counted.
    """

    number: int
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class _Answer:
    """An assistant text; `closing` are the supervised tokens after it: the turn end and its newline."""

    turn: int
    closing: tuple[int, ...]


# Any of these is a tokenizer; the second is what older checkpoints have in place of the first.
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_Part = tuple[int, ...] | _Shown | _Question | _Answer
# Of every user turn the kinds of what it holds: "image", "video", "text".
_Layout = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
    """Tokens of a conversation and where its pieces lie.

    tokens: int32 [n]; questions: int32 [n], 0 for what all questions share, k > 0 for the k-th independent question;
    images: (first index, number of visual tokens) of each image and group of frames; answers: (first index, index after
    the last supervised token).
    """

    tokens: np.ndarray
    questions: np.ndarray
    images: tuple[tuple[int, int], ...]
    answers: tuple[tuple[int, int], ...]


class ChatFormat:
    """The chat format of one checkpoint. Safe to share between threads.

    `model_dir`: where it was read; `image_id`, `video_id`, `vision_start_id`, `vision_end_id` come from config.json,
    `stop_ids` from generation_config.json; the token that ends a turn in the template is always among them.
    """

    def __init__(self, model_dir):
        # Its advice to install torch is not for those who want the tokenizer only.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        self.model_dir = model_dir = pathlib.Path(model_dir)
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        config = model_fields(model_dir, *names)
        self.image_id, self.video_id, self.vision_start_id, self.vision_end_id = (config.integer(n, 0) for n in names)
        if not any(all((model_dir / name).is_file() for name in files) for files in _TOKENIZERS):
            raise UserError(f"{model_dir / _TOKENIZERS[0][0]}: no such file; a model directory holds its tokenizer")
        try:
            self._tokenizer = _tokenizer_class(model_dir).from_pretrained(model_dir, local_files_only=True)
        except Exception as error:  # a broken tokenizer.json raises almost anything, a bare Exception among it
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{model_dir}: no tokenizer can be loaded from this directory ({reason})") from None
        self._template = _chat_template(model_dir, self._tokenizer)
        # Only this object calls the backend, so the switch that keeps special tokens in texts as text can stay on.
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True
        self.specials = {t.content: i for i, t in self._tokenizer.added_tokens_decoder.items() if t.special}
        self._turn_end_id = self._find_turn_end()
        self.stop_ids = self._find_stop_ids(model_dir)
        self._skeleton = functools.lru_cache(maxsize=256)(self._parts)

    @classmethod
    def from_dir(cls, model_dir) -> "ChatFormat":
        """The format of an HF directory, loaded once a process (seconds). UserError if something is missing."""
        return _load(pathlib.Path(model_dir).resolve())

    @property
    def vocab_size(self) -> int:
        """Number of tokens the tokenizer knows; a model's table may be padded beyond it."""
        return len(self._tokenizer)

    def encode_text(self, text: str) -> list[int]:
        """Tokens of plain text: special tokens in it are text. UserError if it is not text that UTF-8 can write."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            odd = [c for c in text if 0xD800 <= ord(c) < 0xE000] if isinstance(text, str) else [text]
            raise UserError(f"a question or answer is no text in UTF-8 ({odd[0]!a} is in it)") from None

    def decode(self, ids) -> str:
        """The text of tokens, without special tokens."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def encode_turns(self, shown: Sequence[int | Frames], turns: Sequence[tuple[str, str]]) -> Encoding:
        """One conversation of (question, answer) turns.

        `shown`: what the first user turn shows before its question: the number of tokens of an image, `Frames` of a
        video.
        """
        questions, answers = zip(*turns, strict=True)
        writer = _Writer(self)
        writer.add(self._skeleton(_layout(shown, len(turns)), False), shown, questions, answers)
        return writer.finish()

    def encode_dialogue(
        self, shown: Sequence[int], turns: Sequence[tuple[Sequence[str | None], str]], system: str = ""
    ) -> Encoding:
        """One conversation of (question, answer) turns, each question in pieces: None where the next image is shown.

        `shown`: the number of tokens of each image. A `system` text goes first.
        """
        pieces = [_joined(question) for question, _ in turns]
        layout = tuple(tuple("image" if piece is None else "text" for piece in question) for question in pieces)
        texts = [system] * bool(system) + [piece for question in pieces for piece in question if piece is not None]
        writer = _Writer(self)
        writer.add(self._skeleton(layout, False, bool(system)), shown, texts, [answer for _, answer in turns])
        return writer.finish()

    def encode_independent(self, shown: Sequence[int | Frames], turns: Sequence[tuple[str, str]]) -> Encoding:
        """The images once, then every (question, answer) as if it were the only one; marked in `questions`."""
        skeleton = self._skeleton(_layout(shown), False)
        cut = _prefix_length(skeleton)
        writer = _Writer(self)
        writer.add(skeleton[:cut], shown)
        for number, (question, answer) in enumerate(turns, 1):
            writer.add(skeleton[cut:], shown, (question,), (answer,), number)
        return writer.finish()

    def prompt(self, shown: Sequence[int | Frames], question: str) -> tuple[np.ndarray, np.ndarray]:
        """(prefix, suffix) int32 tokens of one question to be answered; see `prompt_prefix` and `prompt_suffix`."""
        return self.prompt_prefix(shown).tokens, self.prompt_suffix(shown, question)

    def prompt_prefix(self, shown: Sequence[int | Frames]) -> Encoding:
        """What all questions about the same images share: everything up to the end of the last image."""
        skeleton = self._skeleton(_layout(shown), True)
        writer = _Writer(self)
        writer.add(skeleton[: _prefix_length(skeleton)], shown)
        return writer.finish()

    def prompt_suffix(self, shown: Sequence[int | Frames], question: str) -> np.ndarray:
        """The tokens from the end of the last image to where the answer starts, int32."""
        skeleton = self._skeleton(_layout(shown), True)
        writer = _Writer(self)
        writer.add(skeleton[_prefix_length(skeleton) :], (), (question,))
        return writer.finish().tokens

    def _find_turn_end(self) -> int:
        rendered = self.render([{"role": "user", "content": [{"type": "text", "text": "\ue000"}]}], False)
        found = self.special_pattern().search(rendered, rendered.index("\ue000"))
        if found is None:
            raise UserError("the chat template ends a turn without a special token; it cannot be used for training")
        return self.specials[found.group()]

    def _find_stop_ids(self, model_dir: pathlib.Path) -> tuple[int, ...]:
        path = model_dir / "generation_config.json"
        fields = Fields.read(path, null=True) if path.exists() else Fields({}, str(path))
        # One number or a list of them; a checkpoint that names another end only would write on to the limit.
        last = {"maximum": len(self._tokenizer) - 1}
        key = "eos_token_id"
        ids = (
            fields.integers(key, default=(), **last)
            if isinstance(fields.tree.get(key), list)
            else (fields.integer(key, 0, self._turn_end_id, **last),)
        )
        return tuple(dict.fromkeys((*ids, self._turn_end_id)))

    def special_pattern(self) -> re.Pattern:
        """What finds special tokens in a rendered conversation, the longest first."""
        return re.compile("|".join(re.escape(t) for t in sorted(self.specials, key=len, reverse=True)))

    def render(self, messages, generation: bool) -> str:
        """The messages by the checkpoint's template; with `generation` up to where an answer starts."""
        try:
            return self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=generation
            )
        except jinja2.TemplateError as error:
            raise UserError(f"{self.model_dir}: the chat template cannot be rendered ({error})") from None

    def _parts(self, layout: _Layout, generation: bool, system: bool = False) -> tuple[_Part, ...]:
        """The parts of a conversation; with `generation` the last turn is a question that waits for its answer."""
        numbers = itertools.count()
        messages: list[dict] = [{"role": "system", "content": f"\ue000{next(numbers)}\ue001"}] if system else []
        for turn, kinds in enumerate(layout):
            content = [
                {"type": "text", "text": f"\ue000{next(numbers)}\ue001"} if kind == "text" else {"type": kind}
                for kind in kinds
            ]
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": f"\ue002{turn}\ue001"}]})
        rendered = self.render(messages[:-1] if generation else messages, generation)
        parts, found, pads = [], [], {self.image_id: "image", self.video_id: "video"}
        for piece in re.split(f"({self.special_pattern().pattern})", rendered):
            if (special := self.specials.get(piece)) is not None:
                parts.append(_Shown(len(found)) if special in pads else (special,))
                found += [pads[special]] if special in pads else []
            elif piece:
                parts.extend(self._text_parts(piece))
        kinds = [kind for turn in layout for kind in turn if kind != "text"]
        if found != kinds:
            given, shown = (", ".join(names) or "nothing" for names in (kinds, found))
            raise UserError(
                f"{self.model_dir}: given {given} the chat template shows {shown}; it is not a Qwen3-VL template"
            )
        return _merge_fixed(_supervise(parts, self._turn_end_id, self._backend))

    def _text_parts(self, piece: str) -> list[_Part]:
        found = re.fullmatch("(.*?)([\ue000\ue002])(\\d+)\ue001(.*)", piece, re.DOTALL)
        if found is None:
            return [tuple(self.encode_text(piece))]
        before, mark, turn, after = found.groups()
        if mark == "\ue000":
            return [_Question(int(turn), before, after)]
        # An answer starts on a token of its own, as it does when the model writes it.
        return [tuple(self.encode_text(before)), _Answer(int(turn), tuple(self.encode_text(after)))]


def _tokenizer_class(model_dir: pathlib.Path) -> type:
    """What transformers reads the tokenizer with.

    AutoTokenizer imports torch where it is installed (seconds); it is not asked where its answer is known.
    """
    paths = (model_dir / "config.json", "model_type"), (model_dir / "tokenizer_config.json", "tokenizer_class")
    names = [json.loads(path.read_bytes()).get(key) if path.exists() else None for path, key in paths]
    if names[0] in ("qwen3_vl", "qwen3_vl_moe") and names[1] in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

        return Qwen2Tokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer


@functools.cache
def _load(model_dir: pathlib.Path) -> ChatFormat:
    return ChatFormat(model_dir)


def _chat_template(model_dir: pathlib.Path, tokenizer) -> str:
    """The one that transformers' processor takes if several are stored: chat_template.json, else the tokenizer's.

    The tokenizer's is chat_template.jinja, else what stands in tokenizer_config.json.
    """
    if (path := model_dir / "chat_template.json").exists():
        return Fields.read(path).text("chat_template")
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        raise UserError(
            f"{model_dir}: no chat template (chat_template.json, chat_template.jinja, tokenizer_config.json)"
        ) from None


def _layout(shown: Sequence[int | Frames], n_turns: int = 1) -> _Layout:
    """All that is shown before the first of so many questions."""
    kinds = ("video" if isinstance(item, Frames) else "image" for item in shown)
    return ((*kinds, "text"), *[("text",)] * (n_turns - 1))


def _joined(question: Sequence[str | None]) -> list[str | None]:
    """The pieces of a question, neighbouring texts as one, and one at least."""
    pieces: list[str | None] = []
    for piece in question:
        if piece is not None and pieces and pieces[-1] is not None:
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces or [""]


def _supervise(parts: list[_Part], turn_end_id: int, backend) -> list[_Part]:
    """Move the turn end and the newline after each answer from the template's parts into the answer."""
    parts = list(parts)
    for i, part in enumerate(parts):
        if not isinstance(part, _Answer):
            continue
        closing = part.closing
        if parts[i + 1 : i + 2] == [(turn_end_id,)]:
            closing, parts[i + 1] = (*closing, turn_end_id), ()
            tail = parts[i + 2] if i + 2 < len(parts) else ()
            if isinstance(tail, tuple) and tail and not backend.decode(list(tail), skip_special_tokens=False).strip():
                closing, parts[i + 2] = (*closing, *tail), ()
        parts[i] = _Answer(part.turn, closing)
    return parts


def _merge_fixed(parts: list[_Part]) -> tuple[_Part, ...]:
    merged: list[_Part] = []
    for part in parts:
        if isinstance(part, tuple) and merged and isinstance(merged[-1], tuple):
            merged[-1] = merged[-1] + part
        elif part != ():
            merged.append(part)
    return tuple(merged)


def _prefix_length(skeleton: tuple[_Part, ...]) -> int:
    """How many parts come before the first question's text."""
    return next(i for i, part in enumerate(skeleton) if isinstance(part, _Question))


class _Writer:
    """Collects tokens and marks the spans of images and answers."""

    def __init__(self, chat: ChatFormat):
        self.chat = chat
        self.tokens: list[int] = []
        self.bounds: list[tuple[int, int]] = []
        self.images: list[tuple[int, int]] = []
        self.answers: list[tuple[int, int]] = []

    def add(self, parts: Sequence[_Part], shown, texts=(), answers=(), question: int = 0) -> None:
        start = len(self.tokens)
        for part in parts:
            if isinstance(part, tuple):
                self.tokens.extend(part)
            elif isinstance(part, _Question):
                self.tokens.extend(self.chat.encode_text(part.before + texts[part.number] + part.after))
            elif isinstance(part, _Shown):
                self._show(shown[part.number])
            else:
                first = len(self.tokens)
                self.tokens.extend(self.chat.encode_text(answers[part.turn]))
                self.tokens.extend(part.closing)
                self.answers.append((first, len(self.tokens)))
        self.bounds.append((len(self.tokens) - start, question))

    def _show(self, item: int | Frames) -> None:
        if not isinstance(item, Frames):
            self._pads(self.chat.image_id, item)
            return
        # The template writes a vision start and end around the video's place; transformers keeps that pair (it did not
        # before 5.10) and gives every group of frames another one.
        for time in item.times_s:
            self.tokens += [*self.chat.encode_text(f"<{time:.1f} seconds>"), self.chat.vision_start_id]
            self._pads(self.chat.video_id, item.n_visual)
            self.tokens.append(self.chat.vision_end_id)

    def _pads(self, token: int, count: int) -> None:
        self.images.append((len(self.tokens), count))
        self.tokens.extend([token] * count)

    def finish(self) -> Encoding:
        lengths, questions = zip(*self.bounds, strict=True)
        return Encoding(
            np.array(self.tokens, np.int32),
            np.repeat(np.array(questions, np.int32), lengths),
            tuple(self.images),
            tuple(self.answers),
        )
