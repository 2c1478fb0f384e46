"""Fixtures of the tests of the tasks."""

import pytest
from records_for_tests import random_record

from vlm3_jax.records import Record


@pytest.fixture
def record(rng) -> Record:
    """Two views with labels for all four tasks."""
    return random_record(rng)
