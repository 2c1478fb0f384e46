"""Records: what every source yields, whatever the data set looked like on disk.

A record holds one or two views (an image that is not decoded yet, its camera, its pose) and the labels it has; one that
is a conversation in words alone has no view. It is turned into bytes with msgpack for ArrayRecord files; nothing in it
is ever unpickled.
"""

import dataclasses
import hashlib
import io
import typing
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vlm3_jax.camera import Camera, Resize
from vlm3_jax.errors import BadRecord
from vlm3_jax.records.conversation import Conversation
from vlm3_jax.records.dense import DepthMap, Mask
from vlm3_jax.records.labels import DepthPoints, Matches, Objects
from vlm3_jax.shapes import UInt8
from vlm3_jax.storage import AnyPath, is_remote, patiently

MAX_IMAGE_BYTES = 256 * 2**20
MAX_IMAGE_PIXELS = 200_000_000
# Pillow knows more, and would start other programs on the data for some of them.
FORMATS = ("JPEG", "PNG", "WEBP")
# Ours goes before Pillow's own limit, which would warn of photos of 90 megapixels and refuse those of 180.
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_IMAGE_PIXELS)
# Unusable parts of a label that are told one by one.
MOST_PARTS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRef:
    """An image whose size is known; `load` reads its pixels.

    Exactly one of `path`, `data` (encoded JPEG, PNG or WebP bytes) and `pixels` (uint8 [height, width, 3], of an image
    that somebody handed over decoded) is given; `name` is what errors call it.
    """

    width: int
    height: int
    name: str
    path: AnyPath | None = None
    data: bytes | None = None
    pixels: np.ndarray | None = None

    @classmethod
    def of_bytes(cls, data: bytes, name: str) -> "ImageRef":
        """The image in the bytes of a file, its size read from their header; BadRecord if they are none of FORMATS."""
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                return cls(*opened.size, name, data=data)
        except UnidentifiedImageError:
            raise BadRecord(f"{name}: no {', '.join(FORMATS)} file") from None
        # Damaged headers make Pillow raise all kinds of errors.
        except Exception as error:
            raise BadRecord(f"{name}: cannot read the image ({error})") from None

    def load(self) -> UInt8[np.ndarray, "height width 3"]:
        """Decoded pixels, uint8 [height, width, 3], RGB.

        BadRecord if the image is missing, damaged, of another size, of more than 8 bits a value or to be turned by its
        EXIF orientation; Unreadable if the storage fails twice.
        """
        return self.pixels if self.pixels is not None else np.asarray(self.picture())

    def picture(self, decode_jpeg: Callable[[bytes], np.ndarray | None] | None = None) -> Image.Image | np.ndarray:
        """The same as an RGB image of Pillow, which spares copies to who goes on with that. Errors as in `load`.

        Of a JPEG of three colours it is what `decode_jpeg` makes of the encoded bytes, unless that is None.
        """
        if self.pixels is not None:
            return Image.fromarray(self.pixels)
        data = self.data if self.data is not None else self._read()
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            self._check(image)
            if decode_jpeg and (image.format, image.mode) == ("JPEG", "RGB") and orientation(image) == 1:
                decoded = decode_jpeg(data)
                if decoded is not None:
                    return decoded
            # Converting would copy, and decode; what is RGB already is decoded by `load` alone.
            image.load()
            picture = as_rgb(image)
            # Some programs apply it and others do not, so the labels may be of either.
            if (turn := orientation(image)) != 1:
                raise BadRecord(f"{self.name}: its EXIF orientation is {turn}; store it as it is seen, without the tag")
            return picture
        except (BadRecord, MemoryError):
            raise
        except UnidentifiedImageError:
            raise BadRecord(f"{self.name}: cannot decode the image (no {', '.join(FORMATS)} file)") from None
        # Damaged bytes make Pillow raise all kinds of errors.
        except Exception as error:
            raise BadRecord(f"{self.name}: cannot decode the image ({error})") from None

    def digest(self) -> bytes:
        """SHA-256 of its encoded bytes (of its pixels where it was handed over decoded). BadRecord as in `load`."""
        if self.pixels is not None:
            return hashlib.sha256(np.ascontiguousarray(self.pixels)).digest()
        return hashlib.sha256(self.data if self.data is not None else self._read()).digest()

    def _check(self, image: Image.Image) -> None:
        """BadRecord if the pixels, not decoded yet, cannot be used."""
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise BadRecord(f"{self.name}: {image.width} x {image.height} pixels is above {MAX_IMAGE_PIXELS}")
        if image.size != (self.width, self.height):
            raise BadRecord(
                f"{self.name}: the image is {image.width} x {image.height}, its labels say {self.width} x {self.height}"
            )
        # Pillow would clip these at 255, most of them to white; "I;16", "I" and "F" are 16 and 32 bits a pixel.
        if image.mode[0] in "IF":
            raise BadRecord(f"{self.name}: an image of 16 or more bits a pixel ({image.mode}); convert it to 8 bits")

    def _read(self) -> bytes:
        try:
            return patiently(self._bytes, self.name)
        except FileNotFoundError:
            raise BadRecord(f"{self.name}: no such image file") from None
        except OSError as error:
            raise BadRecord(f"{self.name}: cannot read the image ({error.strerror})") from None

    def _bytes(self) -> bytes:
        if is_remote(self.path):
            # It looks at the size by itself.
            return self.path.read_bytes(MAX_IMAGE_BYTES)
        size = self.path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise BadRecord(f"{self.name}: {size} bytes is above the limit of {MAX_IMAGE_BYTES}")
        return self.path.read_bytes()


def orientation(image: Image.Image) -> int:
    """How a decoded image is turned or mirrored to be seen: its EXIF orientation, 1 (as stored) if it has none."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    # Damaged EXIF makes Pillow raise all kinds of errors, and says nothing about the pixels.
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


def as_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, its transparency left away."""
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns of the way that leaves it away at once.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def encode_image(pixels: np.ndarray, name: str) -> ImageRef:
    """uint8 [H, W, 3] -> an ImageRef that holds the pixels as PNG (lossless)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return ImageRef(pixels.shape[1], pixels.shape[0], name, data=buffer.getvalue())


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """One image with its camera and, where known, its 4x4 camera-to-world pose (OpenCV).

    As stored, the camera is that of the stored image. `flip`: the image is the stored one mirrored left to right.
    `crop` (left, top, full width, full height): the camera's image is cut at (left, top) from the one resized to full
    size. `final`: the stored image is not of its camera's size but of that which the vision tower sees, resized twice
    already.
    """

    image: ImageRef
    camera: Camera
    world_T_cam: np.ndarray | None = None
    flip: bool = False
    crop: tuple[int, int, int, int] | None = None
    final: bool = False

    def seen_by(self, camera: Camera) -> "View":
        """The view after a resize, or after a crop: a camera of the same focal lengths that sees a smaller image."""
        old = self.camera
        if (camera.fx, camera.fy) != (old.fx, old.fy) or (camera.width, camera.height) == (old.width, old.height):
            return dataclasses.replace(self, camera=camera)
        left, top, *full = self.crop or (0, 0, old.width, old.height)
        crop = (left + round(old.cx - camera.cx), top + round(old.cy - camera.cy), *full)
        return dataclasses.replace(self, camera=camera, crop=crop)

    def mirrored(self) -> "View":
        """The stored view mirrored left to right: pixel x becomes W - 1 - x, also of the principal point.

        A pose T becomes F T F with F = diag(-1, 1, 1, 1), the rotation of the mirrored world.
        """
        sign = np.array([-1, 1, 1, 1], np.float32)
        camera = dataclasses.replace(self.camera, cx=self.camera.width - 1 - self.camera.cx)
        pose = None if self.world_T_cam is None else sign[:, None] * self.world_T_cam * sign
        return dataclasses.replace(self, camera=camera, world_T_cam=pose, flip=not self.flip)


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One item of a source. `id` is unique within the source; `metric` says whether poses are in metres.

    `scene`: the scene, log, house or sequence that it was taken in; held-out data and looks for leaks go by it.
    `depth_maps` and `masks` are no labels yet: `draw_labels` draws points, matches and objects from them when the
    record is read.
    """

    id: str
    views: tuple[View, ...]
    depth: tuple[DepthPoints, ...] = ()
    objects: tuple[Objects, ...] = ()
    matches: Matches | None = None
    covisibility: float | None = None
    metric: bool = True
    scene: str = ""
    depth_maps: tuple[DepthMap, ...] = ()
    conversation: Conversation | None = None
    masks: tuple[Mask, ...] = ()

    @property
    def cameras(self) -> list[Camera]:
        """The cameras of its views."""
        return [view.camera for view in self.views]

    @property
    def labels(self) -> tuple:
        """All its labels."""
        return tuple(label for name in LABELS for label in _several(getattr(self, name)))

    def map_labels(self, change) -> "Record":
        """The record with `change(label)` in place of every label."""

        def changed(value):
            found = tuple(map(change, _several(value)))
            return found if isinstance(value, tuple) else next(iter(found), None)

        return dataclasses.replace(self, **{name: changed(getattr(self, name)) for name in LABELS})


# The fields of a record that hold labels: a tuple of them, or one or none.
LABELS = {"depth": DepthPoints, "objects": Objects, "matches": Matches, "conversation": Conversation}


def _several(value) -> tuple:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def unify(record: Record, rule: Resize) -> Record:
    """The record with every camera as the resize rule makes it and every label in pixels of the resized images.

    Images stay as stored: `processor.image` resizes the pixels to the new camera's size when they are decoded.
    """
    return with_cameras(record, [rule.camera(view.camera) for view in record.views])


def with_cameras(record: Record, cameras) -> Record:
    """The record as seen through resized or cropped `cameras` (one a view); labels are mapped, none is removed."""
    _need_drawn(record)
    old = record.cameras
    views = tuple(view.seen_by(camera) for view, camera in zip(record.views, cameras, strict=True))
    return dataclasses.replace(record.map_labels(lambda label: label.seen_by(old, cameras)), views=views)


def flip(record: Record) -> Record:
    """The stored record mirrored left to right: every label stays exact for the mirrored images.

    Flip before `unify`: resizing assumes stored images.
    """
    _need_drawn(record)
    views = tuple(view.mirrored() for view in record.views)
    return dataclasses.replace(record.map_labels(lambda label: label.mirrored(record.cameras)), views=views)


def _need_drawn(record: Record) -> None:
    """Maps belong to the stored images, and would be left behind."""
    if record.depth_maps or record.masks:
        raise ValueError(f"{record.id}: draw_labels comes before anything is done to the images")


def keep_inside(record: Record) -> Record:
    """The record without the labels that a crop has moved out of its images (boxes: not wholly inside)."""
    return record.map_labels(lambda label: label.kept(label.inside(record.cameras)))


class Removed(typing.NamedTuple):
    """Parts of a label that are unusable: their number, `label` (which they are) and `reason`."""

    count: int
    label: str
    reason: str


def removed_parts(label, field: str, sound: np.ndarray) -> Removed:
    """The parts of a label that are not sound (bool [N]); the first few of them with what they hold."""
    bad = np.flatnonzero(~sound)
    shown = ", ".join(f"[{n}] {label.part(n)}" for n in bad[:MOST_PARTS].tolist())
    more = f" and {len(bad) - MOST_PARTS:,} more" if len(bad) > MOST_PARTS else ""
    return Removed(len(bad), f"{field}{shown}{more}", f"not {label.RULE}")


def keep_sound(record: Record) -> tuple[Record, tuple[Removed, ...]]:
    """The stored record without what no question can be asked about, and which parts of labels that was.

    BadRecord, with the rule of the labels, if it had some and none is left.
    """
    labels = [(name, n, label) for name in LABELS for n, label in enumerate(_several(getattr(record, name)))]
    masks = [label.sound(record.cameras) for _, _, label in labels]
    if all(mask.all() for mask in masks):
        return record, ()
    if not any(mask.any() for mask in masks) and not (record.depth_maps or record.masks):
        rules = dict.fromkeys(label.RULE for (_, _, label), mask in zip(labels, masks, strict=True) if len(mask))
        raise BadRecord(f"none of its {sum(map(len, masks))} labels is {', or '.join(rules)}")
    removed = tuple(
        removed_parts(label, f"{name}[{n}]" if isinstance(getattr(record, name), tuple) else name, mask)
        for (name, n, label), mask in zip(labels, masks, strict=True)
        if not mask.all()
    )
    return record.map_labels(lambda label: label.kept(label.sound(record.cameras))), removed
