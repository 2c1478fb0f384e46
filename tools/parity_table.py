"""Writes docs/parity.md: the size of the gate, the largest difference of each piece, what each negative test causes.

Run: python tools/parity_table.py            (about five minutes on two cores; needs the test extra)
     python tools/parity_table.py --out=FILE
"""

import argparse
import importlib.metadata
import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.model import negatives  # noqa: E402
from tests.model import reference as ref  # noqa: E402
from vlm3_jax.checkpoint import hf, tiny  # noqa: E402
from vlm3_jax.model import params as parameters  # noqa: E402
from vlm3_jax.model.sizes import NAMES, released  # noqa: E402
from vlm3_jax.verify import verify  # noqa: E402

IMAGES = [[], [(24, 40)], [(64, 24), (16, 48), (40, 40)], [(20, 90), (33, 17)], [(8, 8), (120, 8)], [(48, 32)] * 4]


def main() -> None:
    """Measures everything and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "parity.md")
    out = parser.parse_args().out
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    parts = [
        "# Parity with transformers",
        "Written by `python tools/parity_table.py`; do not edit. Random weights, norms and biases randomised, CPU, "
        f"float32, matrix products at the highest precision; {versions}.",
        "The gate: over all valid positions, mean KL(theirs || ours) computed in float64 lies in [0, 1e-9], and no "
        "logit differs by more than 1e-4. `tests/model/test_parity.py` holds it.",
        *_gates(),
        *_pieces(),
        *_negatives(),
        *_sizes(),
    ]
    out.write_text("\n\n".join(parts) + "\n")
    print(out)


def _table(head, rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _gates():
    rows = []
    for kind in ref.KINDS:
        print(f"gate: {kind}", file=sys.stderr)
        pair, rng = ref.pair(kind), np.random.default_rng(0)
        samples = [ref.row(rng, sizes) for sizes in IMAGES]
        packed = ref.our_logits(pair, ref.to_batch(pair, [samples, []]))[0]
        theirs = np.concatenate([ref.their_logits(pair, sample) for sample in samples])
        kl, difference = ref.gate(packed[: len(theirs)], theirs)
        text, vision = pair.cfg.text, pair.cfg.vision
        shape = f"{text.layers} x {text.hidden_size}, {text.heads}/{text.kv_heads} heads"
        shape += f", {text.experts} experts" if text.experts else ""
        shape += f"; vision {vision.depth} x {vision.hidden_size}, taps {', '.join(map(str, vision.taps))}"
        positions = f"{len(theirs)} ({len(theirs) * theirs.shape[1]:,} logits)"
        rows.append((kind, shape, positions, f"{kl:.1e}", f"{difference:.1e}"))
    yield "## The gate"
    yield (
        f"{len(IMAGES)} samples with 0 to 4 images each, packed into one row on our side, one by one on theirs. "
        "`plain` is ordinary; no power of two divides the sizes of `odd`; `moe` has experts in every layer."
    )
    yield _table(("model", "shape", "positions", "mean KL", "largest difference"), rows)


def _pieces():
    print("pieces", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        columns = {}
        for size in ("test", "moe"):
            path = tiny.make(pathlib.Path(folder) / size, size)
            columns[size] = {p.name: p for p in verify(*hf.load(path), path).pieces}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))

    def cell(size, name):
        piece = columns[size].get(name)
        return f"{piece.difference:.1e} ({piece.relative:.1e})" if piece else ""

    yield "## The pieces"
    yield (
        "Largest difference of every intermediate, and in brackets the same over the root mean square of the piece "
        "(`vlm3 verify MODEL` prints this for any checkpoint), for the tiny models `tiny:test` (dense) and `tiny:moe`."
    )
    yield _table(("piece", *columns), [(f"`{name}`", *(cell(size, name) for size in columns)) for name in names])


def _negatives():
    rows = []
    for piece in negatives.PIECES:
        print(f"without: {piece}", file=sys.stderr)
        kl, difference = negatives.measure(piece)
        rows.append((piece, f"{kl:.1e}", f"{difference:.1e}", "no" if kl <= 1e-9 and difference <= 1e-4 else "yes"))
    yield "## What the gate sees"
    yield "Each piece switched off or replaced by its usual mistake, one at a time; every one must fail the gate."
    yield _table(("without", "mean KL", "largest difference", "fails"), rows)


def _sizes():
    rows = []
    for name in (n for n in NAMES if n != "cpu"):
        cfg = released(name)
        table = parameters.table(cfg)
        groups = {g: sum(r.size for r in table if r.group == g) for g in parameters.GROUPS}
        tensors = sum(len(row.hf_keys) for row in table)
        rows.append((name, tensors, f"{parameters.count(cfg):,}", *(f"{n / 1e9:.3f}" for n in groups.values())))
    yield "## The released sizes"
    yield (
        "The parameter table is a bijection onto the tensors of transformers' models of these sizes, with equal shapes "
        "(`tests/model/test_params.py`). Groups in thousand millions of parameters."
    )
    yield _table(("size", "tensors", "parameters", *parameters.GROUPS), rows)


if __name__ == "__main__":
    main()
