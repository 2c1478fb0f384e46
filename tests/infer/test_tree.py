"""The tree of digits: its probabilities are those of the plain forward pass, and nothing is counted twice."""

import numpy as np
import pytest

from tests.support import blocks
from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import unsupervised
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.tree import CHARACTERS, QUESTIONS, Numbers, TreePlan, explore
from vlm3_jax.model.vlm import VLM
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec, image_layout
from vlm3_jax.processor.prompt import prompt_sample
from vlm3_jax.records import View, encode_image

ASKED = [f"d{x:02d},{y:02d}" for x, y in ((12, 30), (55, 7), (99, 99))]
HEADS = ["", "about ", "<think> The point is around "]


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    cfg, params = hf.load(tiny_model)
    # Numbers are likely, so that the trees have many branches.
    chat = ChatFormat.from_dir(tiny_model)
    return Engine(cfg, params, chat, VisionSpec.from_dir(tiny_model), max_new_tokens=4)


@pytest.fixture(scope="module")
def layout(tiny_model):
    view = View(encode_image(blocks(np.random.default_rng(5), (32, 24)), "i"), Camera(50.0, 50.0, 16, 12, 32, 24))
    return image_layout(view, VisionSpec.from_dir(tiny_model))


def chain(engine, layout, question: str, head: str, number: str) -> tuple[float, float]:
    """Of an answer that begins with `head`, by one plain forward pass: the probability that it goes on with these
    characters, and of these that no further digit or point follows.
    """
    prompt = prompt_sample((layout,), question, engine.chat)
    tail = [*prompt.suffix_tokens[0].tolist(), *engine.chat.encode_text(head)]
    digits = [engine.chat.encode_text(character)[0] for character in number]
    tokens = np.array([*prompt.prefix_tokens, *tail, *digits], np.int32)
    start, count = prompt.suffix_positions[0][0, 0], len(tail) + len(digits)
    after = np.broadcast_to(np.arange(start, start + count, dtype=np.int32), (3, count))
    places = np.concatenate([prompt.prefix_positions, after], 1)
    sample = unsupervised(tokens, places, prompt.visual_slot, prompt.images)
    batch = pack([[sample]], [[[layout.load(engine.spec)]]], RowBudget(96, layout.n_patches, 1), engine.spec)
    logits = np.asarray(VLM(engine.cfg, engine.params).logits(batch), np.float64)[
        0, len(prompt.prefix_tokens) + len(tail) - 1 :
    ]
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    alphabet = [engine.chat.encode_text(character)[0] for character in CHARACTERS]
    return share[np.arange(len(digits)), digits].prod(), 1 - share[len(digits), alphabet].sum()


def test_probabilities_are_those_of_the_forward_pass(engine, layout):
    found = explore(engine, layout, ASKED, [f"{head}1.5" for head in HEADS], TreePlan(12, 0.0, 4))
    for question, head, numbers in zip(ASKED, HEADS, found, strict=True):
        assert 0 < numbers.probabilities.sum() <= 1
        # A text that was cut and one that ended are two leaves; the sum over both is what is compared.
        total = {}
        for text, probability in zip(numbers.texts, numbers.probabilities):
            total[text] = total.get(text, 0) + probability
        cut = max((text for text in total if len(text) == 4 and "." in text), key=total.get)
        assert total[cut] == pytest.approx(chain(engine, layout, question, head, cut)[0], rel=1e-3)
        ended = max((text for text in total if "." not in text), key=total.get)
        assert total[ended] == pytest.approx(np.prod(chain(engine, layout, question, head, ended)), rel=1e-3)


def test_questions_do_not_see_each_other(engine, layout):
    """Alone or among others, more than one call holds: the same trees."""
    questions = [f"d{k:02d},50" for k in range(QUESTIONS + 2)]
    together = explore(engine, layout, questions, ["2.0"] * len(questions))
    for k in (0, QUESTIONS, QUESTIONS + 1):
        (alone,) = explore(engine, layout, [questions[k]], ["2.0"])
        assert alone.texts == together[k].texts
        np.testing.assert_allclose(alone.probabilities, together[k].probabilities, rtol=1e-4)


def test_answers_without_a_number_have_no_tree(engine, layout):
    found = explore(engine, layout, ASKED[:2], ["far away", ""])
    assert [numbers.texts for numbers in found] == [(), ()]


def test_numbers_of_texts():
    found = Numbers(("1.25", "1.3", "10"), np.array([0.5, 0.3, 0.1]))
    assert found.values.tolist() == [1.25, 1.3, 10]
    assert found.unit == pytest.approx(0.01)
