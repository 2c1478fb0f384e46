"""Writes docs/datasets.md from the list of builders; with --check it only says whether the page is as it should be.

python tools/datasets_page.py [--check]
"""

import argparse
import inspect
import pathlib
import sys

from vlm3_jax import mixtures
from vlm3_jax.builders import registry
from vlm3_jax.builders.common import Builder

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "datasets.md"
# What mixtures call the folders, and in which order they are printed.
FOLDERS = {"depth": "Depth", "pairs": "Pairs of views", "objects": "Objects", "bench": "Evaluation"}
HEAD = """\
# Data sets

This page is written by `python tools/datasets_page.py` from the builders in `data/`; a test tells when it is old.

    pip install "vlm3-jax[builders]"
    vlm3 data build --list
    vlm3 data build taskonomy --raw=/raw/omnidata --split=train --workers=16

turns a folder as it is published into ArrayRecord shards, by default where the shipped mixtures look for them
(`$VLM3_DATA/FOLDER/NAME/train`, held-out splits under `held_out`). [data.md](data.md#building-data-sets) says what it
promises. Licences are those of the raw data: read them before you build or train. "Fixture" means that the builder was
tried on files that its test writes in the original layout from a world whose depth and poses are known, not on original
ones; doubts are what only these could settle, and `vlm3 data check` on what you have built settles most of them. In the
column of splits the held-out one is in brackets.

`--raw` is the folder in which the first names of the layout stand. In a layout CAPITALS and <...> are names that vary,
braces hold what stands side by side or one of several endings, square brackets what may be missing.
"""


def page() -> str:
    """The whole page."""
    table = registry.table()
    parts = [HEAD]
    for folder, title in FOLDERS.items():
        builders = [builder for builder in table.values() if builder.folder == folder]
        if builders:
            parts.append(f"## {title}\n\n{_table(builders)}")
            parts += [_section(builder) for builder in builders]
    missing = sorted({*mixtures.DEPTH.weights, *mixtures.PAIRS.weights, *mixtures.OBJECTS.weights} - table.keys())
    if missing:
        parts.append(f"## Without a builder\n\nOf the sets that the shipped mixtures name: {', '.join(missing)}.\n")
    return "\n".join(parts)


def _table(builders: list[type[Builder]]) -> str:
    rows = ["| set | name | splits | records hold | tried on | test |", "|---|---|---|---|---|---|"]
    for one in builders:
        splits = ", ".join(f"[{split}]" if split == one.held_out else split for split in one.splits)
        cells = (one.title, f"`{one.name}`", splits, one.labels, one.checked, f"[test](../{one.test})")
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _section(one: type[Builder]) -> str:
    lines = [f"### {one.title} (`{one.name}`)", "", inspect.cleandoc(one.__doc__ or ""), ""]
    lines += [f"- Layout: `{one.layout}`", f"- Licence: {one.licence}"]
    lines += [f"- Needs: {', '.join(one.needs)} (extra `builders`)"] if one.needs else []
    lines += ["- `--depthlm`: labels as DepthLM's curators stored them"] if one.honours_depthlm else []
    lines += [f"- Doubt: {doubt}" for doubt in one.doubts]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes the page, or compares it; 1 if it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    args = parser.parse_args()
    text = page()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is out of date: python tools/datasets_page.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
