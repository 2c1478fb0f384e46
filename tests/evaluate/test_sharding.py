"""The plan, the answers as they come, and their merging: the same to the byte however the work was done."""

import dataclasses
import json

import numpy as np
import pytest
from evaluate_toys import SPEC, Truthful, count, make_questions, mixed_questions

from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import Again, UserError
from vlm3_jax.evaluate import parts, plan
from vlm3_jax.evaluate.answering import Share, shown
from vlm3_jax.evaluate.items import briefs
from vlm3_jax.evaluate.run import evaluate
from vlm3_jax.records import ImageRef

VARIANTS = ("model", "blind", "shuffled")


class Numbered:
    """Answers that tell what the call was: how many records it held and which place each had."""

    def __init__(self, fail_after: int | None = None):
        self.calls, self.fail_after = 0, fail_after

    def answer(self, images, questions):
        if self.calls == self.fail_after:
            raise InterruptedError("killed")
        self.calls += 1
        return [
            [f"{len(images)} {place} {sum(layout.final[0] for layout in layouts)} {len(asked)}" for _ in asked]
            for place, (layouts, asked) in enumerate(zip(images, questions, strict=True))
        ]


def run(answerer, asked, out, processes=1, **fields):
    """All processes of a run, one after the other, the first last, since it waits for the others."""
    fields = {"progress": False, "records_per_call": 4, **fields}
    for process in reversed(range(processes)):
        results = evaluate(answerer, asked, out, share=Share(process, processes), **fields)
    return results, (out / "predictions.jsonl").read_bytes()


@pytest.fixture
def asked():
    return mixed_questions()


@pytest.fixture
def whole(asked, tmp_path):
    return run(Numbered(), asked, tmp_path / "whole")[1]


@pytest.mark.parametrize("processes", [2, 3, 40])
def test_any_number_of_processes_gives_the_same_bytes(asked, whole, tmp_path, processes):
    answerer = Numbered()
    assert run(answerer, asked, tmp_path / "out", processes)[1] == whole
    assert answerer.calls == len(plan.make_units(briefs(asked), VARIANTS, 4))


def test_kills_and_other_numbers_of_processes_give_the_same_bytes(asked, whole, tmp_path):
    out, calls = tmp_path / "out", 0
    for kill, processes in enumerate((1, 3, 2, 1, 4)):
        answerer = Numbered(fail_after=2)
        for process in range(processes):
            with pytest.raises(InterruptedError):
                evaluate(answerer, asked, out, share=Share(process, processes), progress=False, records_per_call=4)
        calls += answerer.calls
        # What a kill in the middle of writing leaves.
        file = next((out / "parts").rglob("*.jsonl"))
        with file.open("ab") as torn:
            torn.write(b'{"place": [0, 1, ' if kill % 2 else b"x" * 100_000)
    last = Numbered()
    assert run(last, asked, out, 2)[1] == whole
    assert calls + last.calls == len(plan.make_units(briefs(asked), VARIANTS, 4)), "nothing is asked twice"
    again = Numbered()
    assert run(again, asked, out)[1] == whole
    assert again.calls == 0


def test_units_hold_all_records_in_every_variant(asked):
    about = briefs(asked)
    units = plan.make_units(about, VARIANTS, 4)
    for number, name in enumerate(VARIANTS):
        mine = [unit for unit in units if unit.variant == number]
        assert {unit.name for unit in mine} == {name}
        assert sorted(n for unit in mine for n in unit.records) == list(range(len(asked)))
        patches = [about[n].patches for unit in mine for n in unit.records]
        assert patches == sorted(patches), "images of similar size share a call"


def test_answers_missing_are_said(asked, tmp_path):
    with pytest.raises(Again, match=rf"\d+ of {3 * count(asked)} answers are missing; run the same command again"):
        evaluate(Numbered(), asked, tmp_path, share=Share(0, 2), progress=False, records_per_call=4)


@pytest.mark.parametrize("change", [{"settings": {"model": "other"}}, {"seed": 1}, {"records_per_call": 5}])
def test_answers_under_other_settings_are_not_taken(asked, tmp_path, change):
    run(Numbered(), asked, tmp_path, settings={"model": "one"})
    answerer = Numbered()
    run(answerer, asked, tmp_path, **{"settings": {"model": "one"}, **change})
    assert answerer.calls > 0


def test_an_image_that_was_replaced_is_asked_about_again(tmp_path):
    asked = make_questions("depth", 6)
    _, first = run(Numbered(), asked, tmp_path, processes=2)
    ref = asked[2].images[0].ref
    brighter = ImageRef(
        ref.width, ref.height, ref.name, pixels=np.minimum(ref.load().astype(int) + 9, 255).astype("u1")
    )
    images = (dataclasses.replace(asked[2].images[0], ref=brighter),)
    asked[2] = dataclasses.replace(asked[2], images=images)
    answerer = Truthful(asked)
    _, second = run(answerer, asked, tmp_path)
    # Its unit as the model sees it, and the one that shows it with another record's questions; grey stays grey.
    units = plan.make_units(briefs(asked), VARIANTS, 4)
    assert len(answerer.asked) == sum(len(u.records) for u in units if 2 in u.donors and u.name != "blind")
    told = [json.loads(row)["prediction"] for row in second.splitlines()]
    assert sum("meters" in text for text in told) >= count(asked[2:3])
    assert first != second


def test_images_are_decoded_before_they_are_asked_for(tmp_path):
    asked, seen = make_questions("pose", 3), []

    class Looking(Numbered):
        def answer(self, images, questions):
            seen.extend(layout.patches is not None for layouts in images for layout in layouts)
            return super().answer(images, questions)

    run(Looking(), asked, tmp_path, spec=SPEC)
    assert len(seen) == 3 * 3 * 2
    assert all(seen)


def test_a_record_without_an_image_is_set_aside_in_all_variants(tmp_path):
    asked = make_questions("depth", 6)
    broken = ImageRef(96, 64, "broken.png", data=b"no image")
    asked[4] = dataclasses.replace(asked[4], images=(dataclasses.replace(asked[4].images[0], ref=broken),))
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 0.5)
    results, _ = run(Numbered(), asked, tmp_path / "out", spec=SPEC, quarantine=quarantine)
    # Its own questions, and those of the record that would have been shown its image.
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all("broken.png: cannot decode" in row["reason"] for row in rows)
    assert results.entries[0].records == 4
    with pytest.raises(UserError, match="2 of 6 samples were unusable"):
        run(Numbered(), asked, tmp_path / "out", spec=SPEC)


def test_two_commands_do_not_write_to_one_file(tmp_path):
    with (
        parts.Parts(tmp_path),
        pytest.raises(UserError, match=r"00000\.jsonl: another vlm3 eval is writing here"),
    ):
        parts.Parts(tmp_path)
    parts.Parts(tmp_path).close()


def test_what_is_no_answer_is_named(asked, tmp_path):
    run(Numbered(), asked, tmp_path)
    (file,) = (tmp_path / "parts").rglob("*.jsonl")
    file.write_text('{"place": [0, 1]}\n')
    with pytest.raises(UserError, match=r"00000\.jsonl, line 1: not an answer of vlm3 eval; delete the file"):
        run(Numbered(), asked, tmp_path)


def variant_images(asked, variant, seed=0):
    """What is shown with each record's questions."""
    donors = plan.shuffled(briefs(asked), seed)
    return [shown(own.images, asked[donor].images, variant) for own, donor in zip(asked, donors, strict=True)]


@pytest.mark.parametrize("records", [2, 3, 7])
def test_shuffled_is_a_derangement_within_the_component_with_the_same_sizes(records):
    asked = make_questions("pose", records) + make_questions("depth", records, component="other")
    images = variant_images(asked, "shuffled", seed=5)
    names = {of.component: {p.ref.name for g in asked if g.component == of.component for p in g.images} for of in asked}
    for questions, layouts in zip(asked, images, strict=True):
        for own, other in zip(questions.images, layouts, strict=True):
            assert other.ref is not own.ref
            assert other.ref.name in names[questions.component]
            assert (other.size, other.final, other.grid) == (own.size, own.final, own.grid)
            assert other.load(SPEC).shape == own.load(SPEC).shape
    taken = [layouts[0].ref.name for of, layouts in zip(asked, images, strict=True) if of.component == "other"]
    assert len(set(taken)) == records
    again = variant_images(asked, "shuffled", seed=5)
    assert [[p.ref for p in layouts] for layouts in again] == [[p.ref for p in layouts] for layouts in images]


def test_a_mirrored_donor_stays_mirrored():
    asked = make_questions("depth", 2)
    mirrored = tuple(dataclasses.replace(p, flip=True) for p in asked[0].images)
    asked[0] = dataclasses.replace(asked[0], images=mirrored)
    first, second = variant_images(asked, "shuffled", seed=0)
    assert not first[0].flip
    assert second[0].flip


def test_blind_images_are_constant():
    asked = make_questions("pose", 2)
    pixels = [layout.load(SPEC) for layouts in variant_images(asked, "blind", 0) for layout in layouts]
    assert all((p == 128).all() for p in pixels)
    assert pixels[0].shape == asked[0].images[0].load(SPEC).shape
