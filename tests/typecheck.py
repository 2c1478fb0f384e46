"""What checks types and shapes while tests run: beartype, which takes whole numbers for floats as PEP 484 does."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
