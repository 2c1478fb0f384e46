import json

import pytest

from vlm3_jax.errors import UserError
from vlm3_jax.formats import json_items


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_items_are_found_without_parsing(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_items, "CHUNK_BYTES", chunk)
    rows = [{"a": 'quo"te \\ [', "b": [[1, {"c": "}"}]]}, {}, {"t": 'ü\\"]' * 20, "n": 1}, {"x": "\\"}]
    path = tmp_path / "a.json"
    forms = [json.dumps(rows), json.dumps(rows, indent=2), " \n" + json.dumps(rows, ensure_ascii=False)]
    forms += ["\n".join(map(json.dumps, rows)), "\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n"]
    for form in forms:
        data = form.encode()
        path.write_bytes(data)
        spans = json_items.item_spans(path)
        assert [json.loads(data[first : first + length]) for first, length in spans.tolist()] == rows
        assert list(json_items.rows(path)) == rows
    for form, why in (
        ('[{"a": 1}', "cut off"),
        ("[]", "no items"),
        ("3", "expected a JSON list"),
        ('["a"]', "expected a list of JSON objects"),
        ("[1]", "expected a list of JSON objects"),
        ('[{"a": 1}, 17', "expected a list of JSON objects"),
        ("", "expected a JSON list"),
        ("nonsense", "expected a JSON list"),
    ):
        path.write_text(form)
        with pytest.raises(UserError, match=why):
            json_items.item_spans(path)
    path.write_text("[]")
    assert list(json_items.rows(path)) == []
    path.write_text('[{"a": 1}, {"a": 1]}]')
    with pytest.raises(UserError, match=r"a\.json: the item at byte 11 is not JSON"):
        list(json_items.rows(path))
    monkeypatch.setattr(json_items, "MAX_ITEM_BYTES", 50)
    for form in (json.dumps([{"a": "x" * 200}] * 2), json.dumps({"a": "x" * 200})):
        path.write_text(form)
        with pytest.raises(UserError, match=r"the item at byte [01] is longer than 50 bytes"):
            json_items.item_spans(path)
