"""Writes a complete tiny model directory: python tools/make_tiny_checkpoint.py OUT [--size demo|test] [--seed 0]."""

import argparse

from vlm3_jax.checkpoint import tiny


def main() -> None:
    """Parses the arguments and writes the directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="directory to write (config, weights, tokenizer, processor)")
    parser.add_argument("--size", default="demo", choices=sorted(tiny.SIZES))
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    args = parser.parse_args()
    print(tiny.make(args.out, args.size, args.seed))


if __name__ == "__main__":
    main()
