"""Files of dense values: PNG of one channel, npy, EXR; decoded from bytes, their size read from their headers."""

import io
import struct
import tempfile

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlm3_jax.errors import BadRecord
from vlm3_jax.storage import AnyPath, is_remote, patiently

MAX_MAP_BYTES = 512 * 2**20
MAX_MAP_PIXELS = 200_000_000
# Enough for the header of any of them; of an EXR file with a long preview it is not.
HEADER_BYTES = 1 << 16
# Pillow's modes of a PNG whose values are numbers, not colours.
STEPS = ("I;16", "I", "I;16B", "I;16L", "I;16N")
# The channel of an EXR file that holds its depth; one of "R", "G" and "B" are three times the same.
CHANNELS = ("Z", "Y", "R", "V")


def read(path: AnyPath, name: str, most: int | None = None) -> bytes:
    """The bytes of a file (the first `most`), at most 512 MiB. BadRecord if it cannot be read."""

    def whole() -> bytes:
        if most is not None and is_remote(path):
            return path.read_range(0, min(most, path.stat().st_size))
        if most is not None:
            with path.open("rb") as file:
                return file.read(most)
        size = path.stat().st_size
        if size > MAX_MAP_BYTES:
            raise BadRecord(f"{name}: {size} bytes is above the limit of {MAX_MAP_BYTES}")
        return path.read_bytes()

    try:
        return patiently(whole, name)
    except FileNotFoundError:
        raise BadRecord(f"{name}: no such file") from None
    except OSError as error:
        raise BadRecord(f"{name}: cannot be read ({error.strerror})") from None


def decode(data: bytes, suffix: str, name: str, bits: int = 16) -> np.ndarray:
    """The values [H, W] of a file with this suffix, of a PNG with so many `bits` at least. BadRecord if it has none."""
    if suffix not in _DECODERS:
        raise BadRecord(f"{name}: a map is a file that ends in {', '.join(_DECODERS)}")
    if suffix == ".png":
        return png(data, name, STEPS if bits == 16 else (*STEPS, "1", "L", "P"), f"one channel of {bits} bits")
    return _DECODERS[suffix](data, name)


def size(path: AnyPath, name: str) -> tuple[int, int]:
    """Width and height of the map in a file. BadRecord if its header does not tell."""
    suffix = path.suffix.lower()
    if suffix not in _SIZES:
        raise BadRecord(f"{name}: a map is a file that ends in {', '.join(_SIZES)}")
    try:
        width, height = _SIZES[suffix](read(path, name, HEADER_BYTES))
    except (ValueError, EOFError, KeyError, struct.error, UnidentifiedImageError, OSError) as error:
        raise BadRecord(f"{name}: cannot read its header ({error})") from None
    if not 0 < width * height <= MAX_MAP_PIXELS:
        raise BadRecord(f"{name}: {width} x {height} pixels, at most {MAX_MAP_PIXELS}")
    return width, height


def read_npy(data: bytes, name: str) -> np.ndarray:
    """The numbers of an npy file; BadRecord if it holds anything else (nothing is unpickled)."""
    try:
        values = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise BadRecord(f"{name}: not a readable npy file of numbers ({error})") from None
    if values.dtype.kind not in "iufb":
        raise BadRecord(f"{name}: expected numbers, got {values.dtype}")
    return values


def _map_of_npy(data: bytes, name: str) -> np.ndarray:
    values = read_npy(data, name)
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


def png(data: bytes, name: str, modes=STEPS, what: str = "one channel of 16 bits") -> np.ndarray:
    """The values of a PNG, [H, W] or [H, W, channels]. BadRecord if it is none of these `modes` of Pillow (`what`)."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.width * image.height > MAX_MAP_PIXELS:
            raise BadRecord(f"{name}: {image.width} x {image.height} pixels is above {MAX_MAP_PIXELS}")
        if image.mode not in modes:
            raise BadRecord(f"{name}: expected a PNG of {what}, this one is {image.mode}")
        return np.asarray(image)
    except (BadRecord, MemoryError):
        raise
    # Damaged bytes make Pillow raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{name}: cannot decode the map ({error})") from None


def _exr(data: bytes, name: str) -> np.ndarray:
    try:
        import OpenEXR
    except ImportError:
        raise BadRecord(f'{name}: reading EXR needs OpenEXR; pip install "vlm3-jax[builders]"') from None
    try:
        # It reads files only.
        with tempfile.NamedTemporaryFile(suffix=".exr") as file:
            file.write(data)
            file.flush()
            with OpenEXR.File(file.name, separate_channels=True) as opened:
                channels = {key: np.array(value.pixels) for key, value in opened.channels().items()}
    # Damaged bytes make it raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{name}: cannot decode the map ({error})") from None
    key = next((key for key in CHANNELS if key in channels), None)
    if key is None and len(channels) != 1:
        raise BadRecord(f"{name}: of its channels {sorted(channels)} none is called {', '.join(CHANNELS)}")
    return channels[key] if key else next(iter(channels.values()))


_DECODERS = {".png": None, ".npy": _map_of_npy, ".exr": _exr}


def _npy_size(data: bytes) -> tuple[int, int]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, _ = read_header(file)
    if not 2 <= len(shape) <= 3:
        raise ValueError(f"shape {shape}")
    return shape[1], shape[0]


def _png_size(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data), formats=["PNG"]).size


def _exr_size(data: bytes) -> tuple[int, int]:
    """From the attribute dataWindow. OpenEXR's layout: magic, version; of each attribute name, type, size, value."""
    magic, _ = struct.unpack_from("<II", data)
    if magic != 20000630:
        raise ValueError("no EXR file")
    place = 8
    while data[place]:
        end = data.index(b"\0", place)
        name, place = data[place:end], end + 1
        place = data.index(b"\0", place) + 1
        (length,) = struct.unpack_from("<I", data, place)
        place += 4
        if name == b"dataWindow":
            left, top, right, bottom = struct.unpack_from("<4i", data, place)
            return right - left + 1, bottom - top + 1
        place += length
        if place >= len(data):
            raise ValueError("its header is too long")
    raise ValueError("it has no data window")


_SIZES = {".png": _png_size, ".npy": _npy_size, ".exr": _exr_size}
