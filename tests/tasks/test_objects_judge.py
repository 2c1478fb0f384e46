"""The judge of free-text answers, case by case."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm3_jax.tasks import objects_answers as answers
from vlm3_jax.tasks.objects_words import _RELATION, OPPOSITE, with_unit

BOXES = [[10, 20, 30, 40], [500, 600, 700, 800]]
A, B = "bounding box region (10, 20, 30, 40)", "bounding box region (500, 600, 700, 800)"


@pytest.mark.parametrize(
    ("word", "text", "said"),
    [
        # Polarity at the start.
        ("left", "Yes, A is to the left of B.", True),
        ("left", "No.", False),
        ("left", "yes", True),
        ("behind", "Correct, A is behind B.", True),
        ("behind", "Incorrect, A is not behind B.", False),
        ("behind", "Indeed, A is further from the viewer.", True),
        ("big", "That's right, it is bigger.", True),
        ("big", "That is not true.", False),
        ("big", "Definitely not.", False),
        ("big", "Not quite, A is smaller.", False),
        ("big", "Well, yes.", True),
        ("big", "I think no, it is small.", False),
        ("big", "It is.", True),
        ("big", "It isn't.", False),
        ("big", "Nothing to see", None),
        ("big", "Yesterday", None),
        # "right" as polarity and as direction.
        ("big", "Right, A is bigger.", True),
        ("left", "Right, A is to the left of B.", True),
        ("left", "Right. A is to the right of B.", False),
        ("right", "Right.", True),
        ("left", "Right.", False),
        ("left", "Right of it.", False),
        ("right", "Left.", False),
        # A statement: the word itself, its opposite, negation, exchanged regions.
        ("below", "A is below B.", True),
        ("below", "A is beneath B.", True),
        ("below", "A is above B.", False),
        ("below", "A is not below B.", False),
        ("below", "A isn't above B.", True),
        ("below", "B is below A.", False),
        ("above", "B is lower than A.", True),
        ("above", "Compared to B, A is higher.", True),
        ("front", "It is closer to the viewer than B.", True),
        ("front", "A is not behind but in front of B.", True),
        ("wide", "A is less wide than B.", False),
        ("wide", "A has a greater width than B.", True),
        ("wide", "A has a smaller width than B.", False),
        ("tall", "A is not as tall as B.", False),
        ("tall", "B has less height than A.", True),
        ("thin", "Region [1] is thinner than Region [0].", False),
        ("thin", "The first region is narrower than the second one.", True),
        ("thin", "The latter is narrower.", False),
        ("wide", "A does not exceed B in width.", False),
        ("big", "A occupies less space than B.", False),
        # Corrections.
        ("left", "In fact, A is either to the right of or directly aligned with B.", False),
        ("left", "Actually, A is not necessarily left of B; it may be on the right side.", False),
        ("front", "Yes, A is in front of B. Actually, A is behind B.", False),
        ("behind", "Actually, A is in front of B.", False),
        ("behind", "In fact, A is behind B.", True),
        ("left", "No, but in fact B is to the right of A.", True),
        ("left", "Yes, in fact.", True),
        ("left", "No. Actually, yes.", True),
        ("left", "A is not actually to the left of B.", False),
        ("short", "I cannot tell.", None),
        ("short", "", None),
        ("short", "42", None),
    ],
)
def test_predicates(word, text, said):
    text = re.sub(r"\bA\b", A, re.sub(r"\bB\b", B, text))
    assert answers.predicate(text, word, BOXES) is said


@pytest.mark.parametrize(
    ("word", "text", "chosen"),
    [
        ("big", "A", 0),
        ("big", "B.", 1),
        ("big", "(500, 600, 700, 800)", 1),
        ("big", "[10, 20, 30, 40] is.", 0),
        ("big", "The one that is bigger is B.", 1),
        ("big", "A is bigger.", 0),
        ("big", "A is smaller.", 1),
        ("big", "A is not bigger.", 1),
        ("big", "Between A and B, B is larger.", 1),
        ("big", "Of A and B, it is B.", 1),
        ("big", "B is bigger than A.", 1),
        ("big", "Than A, B is bigger.", 1),
        ("wide", "Region [1] has more width.", 1),
        ("left", "The second one is more to the right.", 0),
        ("left", "Further to the left is A, not B.", 0),
        ("left", "A is on the left. Actually, B is on the left.", 1),
        ("front", "Closer to the viewer is B.", 1),
        ("tall", "Standing taller between the two is Region [1].", 1),
        ("left", "From the viewer's perspective, Region [1] appears more on the left side.", 1),
        # One number misquoted: the nearer box.
        ("front", "bounding box region (500, 601, 700, 800)", 1),
        ("front", "bigger", None),
        ("front", "", None),
    ],
)
def test_choices(word, text, chosen):
    text = re.sub(r"\bA\b", A, re.sub(r"\bB\b", B, text))
    assert answers.choice(text, word, BOXES) == chosen


@given(st.sampled_from(sorted(OPPOSITE)), st.booleans())
def test_opposite_words_turn_a_choice_around(word, negated):
    text = f"{B} is {'not ' if negated else ''}{_RELATION[OPPOSITE[word]]} {A}."
    assert answers.choice(text, word, BOXES) == int(negated)
    assert answers.predicate(text, word, BOXES) is not negated


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5 meters", 1.5),
        ("The width of bounding box region (1, 2, 3, 4) is 45.00 inches.", 45 * 0.0254),
        ("120 cm", 1.2),
        ("3 feet", 0.9144),
        ("5 feet 3 inches", 5 * 0.3048 + 3 * 0.0254),
        ("5 ft and 6 in", 5 * 0.3048 + 6 * 0.0254),
        ("1 foot", 0.3048),
        ("2m", 2),
        ("1 centimetre", 0.01),
        ("around 6 in", 0.1524),
        ("2 in the image, 3 meters", 3),
        ("1.2", 1.2),
        ("Region [0] is large", None),
        ("two", None),
        ("7 pixels", None),
    ],
)
def test_lengths(text, value):
    assert answers.metres(text) == (value if value is None else pytest.approx(value))


@given(st.floats(0.05, 500), st.integers(0, 1000))
def test_every_written_unit_reads_back(value, seed):
    assert answers.metres(with_unit(value, np.random.default_rng(seed))) == pytest.approx(value, rel=0.01, abs=5e-3)


def test_units_by_magnitude():
    rng = np.random.default_rng(0)

    def shares(value):
        units = [with_unit(value, rng).split()[1] for _ in range(2000)]
        return {unit: units.count(unit) / 2000 for unit in set(units)}

    assert shares(0.5) == pytest.approx({"centimeters": 0.2, "inches": 0.8}, abs=0.04)
    assert shares(2) == pytest.approx({"meters": 0.5, "feet": 0.5}, abs=0.04)
    assert shares(5) == pytest.approx({"meters": 0.7, "feet": 0.3}, abs=0.04)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("at 3 o'clock.", 3),
        ("around the 10 o’clock direction", 10),
        ("twelve o'clock", 12),
        ("7", 7),
        ("13 o'clock", None),
        ("0", None),
        ("2.5", None),
        ("left", None),
    ],
)
def test_hours(text, value):
    assert answers.hour(text) == value
