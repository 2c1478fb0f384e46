"""Sizes of compiled programs: few, so that few are compiled."""


def bucket(size: int, unit: int, steps: int = 2) -> int:
    """The next size in multiples of `unit`: a power of two, or one of those that cut the way to the next in `steps`."""
    units = max(1, -(-size // unit))
    power = 1 << (units - 1).bit_length()
    step = max(1, power // (2 * steps))
    return unit * -(-units // step) * step
