"""The tree of digits: its probabilities are those of the plain forward pass, and nothing is counted twice."""

import functools
import types

import jax
import numpy as np
import pytest

from tests.support import blocks
from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import unsupervised
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.tree import CHARACTERS, Numbers, Root, TreePlan, alphabet_of, root_of
from vlm3_jax.model.vlm import VLM
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec, image_layout
from vlm3_jax.processor.prompt import prompt_sample
from vlm3_jax.records import View, encode_image

# More questions than there are places.
ASKED = [[f"d{x:02d},{y:02d}" for x, y in ((12, 30), (55, 7), (99, 99), (3, 64), (71, 20), (8, 41))], ["far?", "or 3"]]
PLAN = TreePlan(12, 0.0, 4)


@pytest.fixture(scope="module")
def engine(counting) -> Engine:
    return make_engine(counting)


def make_engine(folder, keep_bytes: int = 0) -> Engine:
    sizes = {"image_sets": 2, "questions": 2, "max_new_tokens": 8, "keep_bytes": keep_bytes}
    return Engine(*hf.load(folder), ChatFormat.from_dir(folder), VisionSpec.from_dir(folder), **sizes)


@pytest.fixture(scope="module")
def images(counting):
    spec, rng = VisionSpec.from_dir(counting), np.random.default_rng(5)
    sizes = (32, 24), (40, 32)
    views = [View(encode_image(blocks(rng, size), "i"), Camera(50.0, 50.0, 16, 12, *size)) for size in sizes]
    return [(image_layout(view, spec),) for view in views]


@pytest.fixture(scope="module")
def found(engine, images):
    return engine.explore(images, ASKED, PLAN)


@functools.cache
def forward(cfg):
    """The plain forward pass: params, batch -> logits."""
    return jax.jit(lambda params, batch: VLM(cfg, params).logits(batch))


def chain(engine, layouts, question: str, head: list[int], number: str) -> tuple[float, float]:
    """Of an answer that begins with the tokens `head`, by one plain forward pass: the probability that it goes on with
    these characters, and of these that no further digit or point follows.
    """
    prompt = prompt_sample(layouts, question, engine.chat)
    tail = [*prompt.suffix_tokens[0].tolist(), *head]
    alphabet = alphabet_of(engine.chat)
    digits = [int(alphabet[CHARACTERS.index(character)]) for character in number]
    tokens = np.array([*prompt.prefix_tokens, *tail, *digits], np.int32)
    start, count = prompt.suffix_positions[0][0, 0], len(tail) + len(digits)
    after = np.broadcast_to(np.arange(start, start + count, dtype=np.int32), (3, count))
    places = np.concatenate([prompt.prefix_positions, after], 1)
    sample = unsupervised(tokens, places, prompt.visual_slot, prompt.images)
    budget = RowBudget(96, 128, 1)
    batch = pack([[sample]], [[[layout.load(engine.spec) for layout in layouts]]], budget, engine.spec)
    logits = np.asarray(forward(engine.cfg)(engine.params, batch), np.float64)
    logits = logits[0, len(prompt.prefix_tokens) + len(tail) - 1 :]
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return share[np.arange(len(digits)), digits].prod(), 1 - share[len(digits), alphabet].sum()


def totals(numbers: Numbers) -> dict[str, float]:
    """A text that was cut and one that ended are two leaves; of both the sum."""
    total = {}
    for text, probability in zip(numbers.texts, numbers.probabilities):
        total[text] = total.get(text, 0) + probability
    return total


def heads_of(engine, layouts, asked) -> list[list[int] | None]:
    """The tokens before the number of each greedy answer."""
    prompt = prompt_sample(layouts, asked, engine.chat)
    (answers,) = engine.generate([prompt], [[layout.load(engine.spec) for layout in layouts]])
    alphabet = alphabet_of(engine.chat)
    digits = [next((i for i, token in enumerate(answer) if token in alphabet[:-1]), None) for answer in answers]
    return [None if first is None else answer[:first] for answer, first in zip(answers, digits, strict=True)]


def test_probabilities_are_those_of_the_forward_pass(engine, images, found):
    """To a thousandth, of the likeliest number that was cut and of the likeliest that ended."""
    lengths = set()
    for layouts, asked, of_image in zip(images, ASKED, found, strict=True):
        for question, head, numbers in zip(asked, heads_of(engine, layouts, asked), of_image, strict=True):
            total = totals(numbers.numbers)
            assert (head is not None) == bool(total)
            if head is None:
                continue
            lengths.add(len(head))
            assert numbers.text.startswith(engine.chat.decode(head))
            assert 0 < sum(total.values()) <= 1
            cut = max((text for text in total if len(text) == 4 and "." in text), key=total.get)
            assert total[cut] == pytest.approx(chain(engine, layouts, question, head, cut)[0], rel=1e-3)
            ended = max((text for text in total if "." not in text), key=total.get)
            assert total[ended] == pytest.approx(np.prod(chain(engine, layouts, question, head, ended)), rel=1e-3)
    assert {0, 1, 2} < lengths


def test_the_answers_are_greedy(engine, images, found):
    assert [[one.text for one in row] for row in found] == engine.answer(images, ASKED)


def test_questions_do_not_see_each_other(engine, images, found):
    """Alone or beside others: the same trees."""
    for k in (0, 2):
        ((alone,),) = engine.explore(images[:1], [ASKED[0][k : k + 1]], PLAN)
        assert alone.numbers.texts
        ours, theirs = totals(alone.numbers), totals(found[0][k].numbers)
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-9)


def test_what_was_read_before_is_not_read_again(counting, images):
    """Trees stand on the context that answers have left; images are seen once."""
    keeping, asked = make_engine(counting, keep_bytes=1 << 28), [ASKED[0][:1]]
    keeping.answer(images[:1], asked)
    calls = []
    for name in ("see", "read"):
        program = getattr(keeping._programs, name)
        counted = lambda *args, name=name, program=program: calls.append(name) or program(*args)  # noqa: E731
        keeping._programs = keeping._programs._replace(**{name: counted})
    assert keeping.explore(images[:1], asked, PLAN)[0][0].numbers.texts
    assert calls == []


def test_where_numbers_begin():
    """At the first digit, or the point before it; not where a point is a part of another token."""
    words = {1: "about", 2: " .", 3: "wide..."}
    chat = types.SimpleNamespace(decode=lambda ids: words.get(ids[0], "x"))
    alphabet = np.arange(10, 21)
    question, point = [5, 6, 7], 20
    for answer, root in [
        ([12, 13, 14], Root(7, 2)),
        ([1, 12], Root(1, 3)),
        ([1, 9, 12, 9, 13], Root(9, 4)),
        ([1, point, 12], Root(1, 3)),
        ([point, 12], Root(7, 2)),
        ([1, point, 9, 12], Root(9, 5)),
        ([1, 2, 12], None),
        ([3, 12], None),
        ([1, point], None),
        ([], None),
    ]:
        assert root_of(question, answer, alphabet, chat) == root, answer


def test_numbers_of_texts():
    found = Numbers(("1.25", "1.3", "10"), np.array([0.5, 0.3, 0.1]))
    assert found.values.tolist() == [1.25, 1.3, 10]
    assert found.unit == pytest.approx(0.01)
