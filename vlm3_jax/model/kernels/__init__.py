"""Pallas kernels of attention over pairs of blocks: `attend.py` is the way in, one file for each kind of device."""
