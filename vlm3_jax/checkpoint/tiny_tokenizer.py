"""The tokenizer of the tiny model: Qwen's rules and added tokens over a vocabulary of 512.

All 256 bytes are tokens, so any text can be encoded; the remaining room goes to byte-pair merges learnt from the
prompts that the model sees. Digits stay single tokens, because Qwen's pre-tokenizer splits them. The chat template
writes the same text as Qwen3-VL's for system, user and assistant turns with text, image and video parts (no tools).
"""

import functools
import json
import pathlib

PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's 26 added tokens in the order of their ids: 14 special ones, then 12 that decoding keeps."""

VOCABULARIES = {"tiny": 512, "bytes": 256 + len(SPECIAL_TOKENS) + len(PLAIN_TOKENS)}

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- macro body(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.images = seen.images + 1 -%}
{%- if add_vision_id -%}{{ 'Picture ' ~ seen.images ~ ': ' }}{%- endif -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{%- if add_vision_id -%}{{ 'Video ' ~ seen.videos ~ ': ' }}{%- endif -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role in ('user', 'assistant') or (message.role == 'system' and loop.first) -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ body(message.content) ~ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

# What the merges are learnt from: the chat frame and the wording of questions and answers, the frequent ones repeated.
_CORPUS = (
    ("user\nassistant\nsystem\n\n", 40),
    (
        "Given this image, how far is the point at coordinates (, ) from the camera? The coordinates are in normalised "
        "[, ] format relative to image width and height. Output the thinking process in <think> </think> and final "
        "answer (the meter number only, without the unit) in <answer> </answer> tags. <answer>. </answer> The point is "
        "around . meters away from the camera.",
        12,
    ),
    (
        "How far is the pixel at (, ) from the camera? Both x and y are normalized to between [, ). . meters Given "
        "these two images, what pixel in the second image corresponds to pixel (, ) in the first image? Report the "
        "answer as (x, y). The corresponding pixel is (, )",
        6,
    ),
    (
        "Given these two images captured from different viewpoints, what is the relative rotation angle (in degrees) "
        "between the two camera poses? Rotation angle: . degrees Yaw=+.°, Pitch=-.°, Roll=+.° The camera moves left, "
        "right, up, down, forward, backward, unit vector (-., +., +.). Translation distance: . meters",
        4,
    ),
    ("bounding box region (, , , ) left right above below behind front wide tall big small", 4),
)


def write_tokenizer(out_dir, vocab: str = "tiny") -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `out_dir`.

    `vocab`: "tiny" (512 tokens with merges) or "bytes" (282, none). transformers loads the result as Qwen2Tokenizer.
    """
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "tokenizer.json").write_text(_tokenizer_json(vocab), encoding="utf-8")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 262144,
    }
    (out_dir / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out_dir / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def special_ids(vocab: str = "tiny") -> dict[str, int]:
    """Ids that a model config needs, by their config names, and `vocab_size`, the number of tokens."""
    first = VOCABULARIES[vocab] - len(SPECIAL_TOKENS) - len(PLAIN_TOKENS)
    ids = {token: first + i for i, token in enumerate(SPECIAL_TOKENS)}
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "im_start_token_id": ids["<|im_start|>"],
        "im_end_token_id": ids["<|im_end|>"],
        "endoftext_token_id": ids["<|endoftext|>"],
        "vocab_size": VOCABULARIES[vocab],
    }


@functools.cache
def _tokenizer_json(vocab: str) -> str:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARIES[vocab] - len(SPECIAL_TOKENS) - len(PLAIN_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text, times in _CORPUS for _ in range(times)], trainer)
    added = [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(added)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN_TOKENS])
    return tokenizer.to_str(pretty=True)
