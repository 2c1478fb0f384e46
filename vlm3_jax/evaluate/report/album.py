"""The pictures inside a page, as many as it has room for."""

import base64
import dataclasses

# Encoded pictures beyond this are left out and counted, so that the file stays below 8 MB.
PICTURE_BYTES = 5_500_000


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    alt: str
    src: str


class Album:
    """Takes pictures in while the file has room for them."""

    def __init__(self):
        self.room, self.left_out = PICTURE_BYTES, 0

    def add(self, alt: str, data: bytes | None) -> Picture | None:
        """The picture as a data URL; None if there is none or it no longer fits."""
        if data is None:
            return None
        if len(data) > self.room:
            self.left_out += 1
            return None
        self.room -= len(data)
        kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
        return Picture(alt, f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
