"""The released sizes of Qwen3-VL, for benchmarks and planning without weights."""

from vlm3_jax.model.config import TextConfig, VisionConfig, VLMConfig

_SMALL_TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "taps": (5, 11, 17)}
_LARGE_TOWER = {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "taps": (8, 16, 24)}
# hidden, mlp, layers, heads, kv heads, tied, vision tower
_NUMBERS = {
    "2b": (2048, 6144, 28, 16, 8, True, _SMALL_TOWER),
    "4b": (2560, 9728, 36, 32, 8, True, _SMALL_TOWER),
    "8b": (4096, 12288, 36, 32, 8, False, _LARGE_TOWER),
    "32b": (5120, 25600, 64, 64, 8, False, _LARGE_TOWER),
    "30b-a3b": (2048, 6144, 48, 32, 4, False, _LARGE_TOWER),
    "235b-a22b": (4096, 12288, 94, 64, 4, False, _LARGE_TOWER),
    # Of our own: what two cores can step in seconds.
    "cpu": (
        512, 1536, 8, 8, 4, False,
        {"hidden_size": 384, "intermediate_size": 1536, "depth": 6, "taps": (1, 3), "heads": 6},
    ),
}  # fmt: skip
# Size of an expert; each of these has 128 experts in every layer, 8 of them for a token.
_EXPERT_SIZE = {"30b-a3b": 768, "235b-a22b": 1536}
NAMES = tuple(_NUMBERS)


def released(name: str) -> VLMConfig:
    """The config of a size in `NAMES`."""
    hidden, mlp, layers, heads, kv_heads, tied, tower = _NUMBERS[name]
    own = name == "cpu"
    text = TextConfig(
        vocab_size=8192 if own else 151_936,
        hidden_size=hidden,
        intermediate_size=mlp,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64 if own else 128,
        rms_norm_eps=1e-6,
        rope_theta=5e6,
        mrope_section=(12, 10, 10) if own else (24, 20, 20),
        tie_word_embeddings=tied,
        **({"experts": 128, "experts_per_token": 8, "expert_size": _EXPERT_SIZE[name]} if name in _EXPERT_SIZE else {}),
    )
    vision = VisionConfig(
        **{"heads": 16} | tower,
        in_channels=3,
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        table_side=48,
        out_hidden_size=hidden,
        rope_theta=10_000.0,
    )
    ids = range(8000, 8004) if own else (151_655, 151_656, 151_652, 151_653)
    return VLMConfig(text, vision, *ids)
