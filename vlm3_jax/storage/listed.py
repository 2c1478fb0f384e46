"""A folder in a bucket that is listed once: what is asked of names then costs no request."""

import fnmatch
from collections.abc import Iterator

from vlm3_jax.storage import AnyPath, is_remote
from vlm3_jax.storage.buckets import Missing
from vlm3_jax.storage.paths import BucketPath, Stat


def listed(folder: AnyPath) -> AnyPath:
    """The folder with all that is in it as it is now, a request for each 1,000 objects; a local one as it is.

    For what looks into many small files and writes none.
    """
    if not is_remote(folder):
        return folder
    objects: dict[str, Stat] = {}
    folders: dict[str, set[str]] = {}
    for path, stat in folder.walk():
        objects[path.key] = stat
        key = path.key
        while key != folder.key:
            above, _, name = key.rpartition("/")
            names = folders.setdefault(above, set())
            if name in names:
                break
            names.add(name)
            key = above
    return ListedPath(folder, folder.key, objects, folders)


class ListedPath(BucketPath):
    """A path in a folder that was listed; its content is read from the bucket."""

    __slots__ = ("_folders", "_objects", "_top")

    def __init__(self, top: BucketPath, key: str, objects: dict[str, Stat], folders: dict[str, set[str]]):
        super().__init__(top.scheme, top.bucket, key)
        self._top, self._objects, self._folders = top, objects, folders

    def _with(self, key: str) -> BucketPath:
        path = BucketPath(self.scheme, self.bucket, key)
        top = self._top.key
        if top and key != top and not key.startswith(f"{top}/"):
            return path
        return ListedPath(self._top, key, self._objects, self._folders)

    def is_file(self) -> bool:
        """Whether there was such an object."""
        return self.key in self._objects

    def is_dir(self) -> bool:
        """Whether there was an object in such a folder."""
        return self.key in self._folders

    def iterdir(self) -> Iterator[BucketPath]:
        """What lay in the folder, by name. Missing if there was none."""
        if not self.is_dir():
            raise Missing(str(self), "no such folder")
        yield from (self / name for name in sorted(self._folders[self.key]))

    def glob(self, pattern: str) -> Iterator[BucketPath]:
        """As of a path in a bucket."""
        head, _, rest = pattern.partition("/")
        if "**" in pattern:
            raise ValueError(f"{pattern}: no ** in buckets; use rglob")
        for name in fnmatch.filter(sorted(self._folders.get(self.key, ())), head):
            if rest:
                yield from (self / name).glob(rest)
            else:
                yield self / name

    def walk(self) -> list[tuple[BucketPath, Stat]]:
        """All objects at any depth with what `stat` says of them, sorted."""
        inside = f"{self.key}/" if self.key else ""
        return sorted((self._with(key), stat) for key, stat in self._objects.items() if key.startswith(inside))

    def files(self) -> list[tuple[BucketPath, Stat]]:
        """The objects that lay right in the folder, with what `stat` says of them, sorted."""
        return [(path, path.stat()) for path in self.iterdir() if path.is_file()] if self.is_dir() else []

    def stat(self) -> Stat:
        """Size and version of an object; Missing if there was none."""
        try:
            return self._objects[self.key]
        except KeyError:
            raise Missing(str(self), "no such object") from None
