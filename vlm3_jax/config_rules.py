"""What the fields of a config may be: their ranges and choices, and what suits what."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import ml_collections

from vlm3_jax import kinds, storage
from vlm3_jax.config import TABLES, base, component_config, group_config, hint, protocol_of
from vlm3_jax.errors import UserError
from vlm3_jax.kinds import KINDS
from vlm3_jax.model import params as parameters
from vlm3_jax.tasks import TASKS
from vlm3_jax.tasks.protocol import WORDINGS
from vlm3_jax.weighting import WORDS, Rule


def check(config: ml_collections.ConfigDict) -> None:
    """UserError, naming the field, if there is no such field, or its value is not allowed or does not suit the others.

    Judged from the config alone, before files are opened or devices started; what needs the model or the mesh is judged
    where these are made.
    """
    _check_names(config, base(), "")
    for name in ("model", "base", "workdir"):
        storage.path(config[name], f"config.{name}")
    for field, allowed in ALLOWED.items():
        value = functools.reduce(lambda node, key: node[key], field.split("."), config)
        if not allowed.test(value):
            raise UserError(f"{field} is {value!r}, but must be {allowed.words}")
    for table in (config.data.components, config.eval.components):
        for name, fields in table.items():
            check_component(name, fields)
    _check_groups(config.data)
    _check_rows(config.data)
    _check_training(config)


def check_component(name: str, fields) -> ml_collections.ConfigDict:
    """A component's fields, defaults filled in; UserError, naming component and field, if a value is not allowed."""
    try:
        fields = component_config(**dict(fields))
    except UserError as error:
        raise UserError(f"component {name!r}: {error}") from None
    allowed = {"kind": tuple(KINDS), "task": tuple(TASKS), "protocol": WORDINGS}
    for field, choices in allowed.items():
        if fields[field] not in choices:
            raise UserError(f"component {name!r}: {field} is {fields[field]!r}; choose one of {choices}")
    ranges = {
        "weight": 0 <= fields.weight < math.inf,
        "coord_range": fields.coord_range >= 0,
        "questions": fields.questions >= 0,
        "flip": 0 <= fields.flip <= 1,
        "records": fields.records >= 0,
        "first": fields.first >= 0,
        "limit": fields.limit >= 0,
    }
    for field, good in ranges.items():
        if not good:
            raise UserError(f"component {name!r}: {field} = {fields[field]} is out of range")
    if not fields.path:
        raise UserError(f"component {name!r}: path is empty")
    try:
        kinds.check(fields)
    except UserError as error:
        raise UserError(f"component {name!r}: {error}") from None
    for field in ("path", "images", "scenes"):
        storage.path(fields[field], f"component {name!r}: {field}")
    try:
        protocol_of(fields)
    except ValueError as error:
        raise UserError(f"component {name!r}: {error}") from None
    return fields


def check_group(name: str, fields) -> ml_collections.ConfigDict:
    """A group's fields, defaults filled in; UserError, naming group and field, if a value is not allowed."""
    try:
        fields = group_config(**dict(fields))
        Rule.parse(fields.weights)
    except (UserError, ValueError) as error:
        raise UserError(f"data.groups.{name}: {error}") from None
    if not 0 < fields.weight < math.inf:
        raise UserError(
            f"data.groups.{name}: weight = {fields.weight} must be above 0; to leave a group out give its components "
            "weight 0"
        )
    return fields


def _check_names(node, known, above: str) -> None:
    """A config file may write to any name: one that nobody reads would change nothing, without a word."""
    for key, value in node.items():
        if key not in known:
            raise UserError(f"config.{above}{key}: there is no such field{hint(known, above, key)}")
        if isinstance(value, ml_collections.ConfigDict) and f"{above}{key}" not in TABLES:
            _check_names(value, known[key], f"{above}{key}.")


def _check_groups(data) -> None:
    for name, fields in data.groups.items():
        check_group(name, fields)
    for name, fields in data.components.items():
        if fields.group and fields.group not in data.groups:
            known = ", ".join(data.groups) or "none"
            raise UserError(f"component {name!r}: data.groups has no group {fields.group!r} (there are: {known})")


def _check_rows(data) -> None:
    for rows, blocks in (("row_tokens", "pair_block"), ("row_patches", "pair_block")):
        if data[rows] % max(1, data[blocks]):
            raise UserError(f"data.{rows} = {data[rows]} must be a multiple of data.{blocks} = {data[blocks]}")


def _check_training(config) -> None:
    train = config.train
    if train.freeze and train.lora.rank:
        raise UserError(
            "train.freeze: with train.lora.rank above 0 only the adapters are trained; leave it empty and choose "
            "products by train.lora.targets"
        )
    if set(train.freeze) == set(parameters.GROUPS):
        raise UserError(f"train.freeze names all groups ({', '.join(train.freeze)}): nothing is left to train")
    held_out = config.eval.components.items() if config.eval.loss_batches else ()
    measured = "", *(f"eval_loss/{name}" for name, fields in held_out if fields.weight > 0)
    if train.keep_best not in measured:
        choices = ", ".join(map(repr, measured))
        raise UserError(f"train.keep_best: {train.keep_best!r} is not measured; choose one of {choices}")


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What a field may be: a test of its value, and the same in words; `names`: the choices, if it is one of some."""

    test: Callable[[Any], bool]
    words: str
    names: tuple[str, ...] = ()


def _least(number: int) -> Allowed:
    return Allowed(lambda value: value >= number, f"at least {number}")


def _one_of(*names: str) -> Allowed:
    return Allowed(lambda value: value in names, f"one of {', '.join(map(repr, names))}", names)


# Tests are written so that nan fails them.
_ABOVE_0 = Allowed(lambda value: 0 < value < math.inf, "finite and above 0")
_FINITE = Allowed(lambda value: 0 <= value < math.inf, "finite and at least 0")
_DECAY = Allowed(lambda value: 0 <= value < 1, "at least 0 and below 1")
VARIANTS = ("model", "blind", "shuffled")
_WINDOW = re.compile(r"(\d+):(\d+)")


def _is_window(text: str) -> bool:
    found = _WINDOW.fullmatch(text)
    return not text or (found is not None and 1 <= int(found[1]) <= int(found[2]))


def _is_rule(text: str) -> bool:
    try:
        Rule.parse(text)
    except ValueError:
        return False
    return True


# Every field whose values are not all allowed.
ALLOWED = {
    "seed": Allowed(lambda value: 0 <= value < 2**63, "at least 0 and below 2^63"),
    "mesh.replica": _least(1),
    "mesh.fsdp": Allowed(lambda value: value >= 1 or value == -1, "at least 1, or -1 for what the others leave"),
    "mesh.tensor": _least(1),
    "mesh.cpu_devices": _least(0),
    "synth.motion": _one_of("orbit", "crane"),
    "data.weights": Allowed(_is_rule, f"one of {WORDS}"),
    "data.mode": _one_of("turns", "independent"),
    "data.row_tokens": _least(1),
    "data.row_patches": _least(0),
    "data.row_targets": _least(1),
    "data.pair_block": _least(0),
    "data.pairs": _least(0),
    "data.patch_pairs": _least(0),
    "data.rows": _least(1),
    "data.oversize": _one_of("crop", "error"),
    "data.first_answer_weight": _FINITE,
    "data.max_bad_fraction": Allowed(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "data.workers": _least(0),
    "data.prefetch": _least(0),
    "data.worker_timeout_s": Allowed(lambda value: value > 0, "above 0"),
    # A rate or moment that is not finite would reach the weights past the check of loss and gradient.
    "optimizer.learning_rate": _ABOVE_0,
    "optimizer.b1": _DECAY,
    "optimizer.b2": _DECAY,
    "optimizer.eps": _ABOVE_0,
    "optimizer.weight_decay": _FINITE,
    "optimizer.clip": Allowed(_FINITE.test, "finite and at least 0 (0: no clipping)"),
    "optimizer.schedule": _one_of("cosine", "linear_tail", "constant"),
    "optimizer.warmup": Allowed(_DECAY.test, "a share of the run: at least 0 and below 1"),
    "optimizer.tail": Allowed(lambda value: 0 < value <= 1, "a share of the run: above 0 and at most 1"),
    "optimizer.final": Allowed(lambda value: 0 <= value <= 1, "a share of the rate: from 0 to 1"),
    **{
        f"optimizer.rates.{group}": Allowed(_ABOVE_0.test, "finite and above 0; to freeze it, name it in train.freeze")
        for group in parameters.GROUPS
    },
    "train.samples": _least(0),
    "train.batch": _least(0),
    "train.max_steps": _least(0),
    "train.accumulation": _least(1),
    "train.dtype": _one_of("float32", "bfloat16"),
    "train.remat": _one_of("none", "minimal", "full", "offload"),
    "train.attention": _one_of("auto", "xla", "pallas"),
    "train.freeze": Allowed(
        lambda value: set(value) <= set(parameters.GROUPS), f"groups of {', '.join(parameters.GROUPS)}"
    ),
    "train.frozen_dtype": _one_of("float32", "bfloat16"),
    "train.lora.rank": _least(0),
    "train.lora.alpha": _ABOVE_0,
    "train.balance": _FINITE,
    "train.z_loss": _FINITE,
    "train.max_skipped": _least(1),
    "train.log_every": _least(1),
    "train.save_every": _least(0),
    "train.eval_every": _least(0),
    "train.profile": Allowed(_is_window, 'a window of steps FIRST:LAST, such as 20:25, or ""'),
    "train.keep": _least(1),
    "train.keep_every": _least(0),
    "train.export": _one_of("", "float32", "bfloat16", "float16"),
    "eval.dtype": _one_of("float32", "bfloat16"),
    "eval.records": _least(1),
    "eval.loss_batches": _least(0),
    "eval.image_sets": _least(1),
    "eval.questions": _least(1),
    "eval.max_new_tokens": _least(1),
    "eval.variants": Allowed(
        lambda value: {"model"} <= set(value) <= set(VARIANTS), f"of {', '.join(VARIANTS)}, model among them", VARIANTS
    ),
}
