import pytest

from vlm3_jax.evaluate import published

TASKS = ("depth", "objects", "correspondence", "pose")
# (task, model): published means that their own entries do not give.
ODD = {("depth", "Qwen3-VL-4B"), ("correspondence", "DKM")}


@pytest.mark.parametrize("task", TASKS)
def test_every_row_has_an_entry_for_every_column(task):
    tables = published.table(task)
    assert tables
    for table in tables:
        assert all(len(row.values) == len(table.columns) for row in table.rows)
        assert len({row.model for row in table.rows}) == len(table.rows)
        header, *rows = table.cells()
        assert {len(row) for row in rows} == {len(header)}


def test_vlm3_depth_mean_follows_from_its_entries():
    (table,) = published.table("depth")
    vlm3 = table.rows[0]
    assert vlm3.model == "VLM3-4B"
    assert round(vlm3.mean_of_entries(table.averaged), 3) == vlm3.published == 0.904


@pytest.mark.parametrize("task", ["depth", "correspondence", "pose"])
def test_published_means_follow_from_their_entries_except_two(task):
    (table,) = published.table(task)
    for row in table.rows:
        mean = row.mean_of_entries(table.averaged)
        if mean is None or row.published is None or (task, row.model) in ODD:
            continue
        assert mean == pytest.approx(row.published, abs=0.51 * 10**-table.digits), row.model


@pytest.mark.parametrize(
    ("task", "model", "theirs", "ours"),
    [("correspondence", "DKM", "41.30", "40.93"), ("depth", "Qwen3-VL-4B", "0.101", "0.097")],
)
def test_means_that_do_not_follow_are_shown_beside_ours(task, model, theirs, ours):
    (table,) = published.table(task)
    (row,) = [cells for cells in table.cells() if cells[0] == model]
    assert row[-2:] == [theirs, ours]


def test_error_mean_of_objects_leaves_the_direction_out():
    error = published.table("objects")[2]
    assert not error.higher_is_better
    assert [round(row.mean_of_entries(error.averaged), 2) for row in error.rows] == [0.35, 0.37]


def test_unknown_task_and_partial_rows():
    assert published.table("cooking") == ()
    (table,) = published.table("depth")
    assert table.cells()[-1][0].startswith("MoGe-2")
    assert table.cells()[-1][-1] == "–"
