"""Pictures beside other people's answers, where the built data are at hand."""

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.frozen import FrozenQuestions
from vlm3_jax.evaluate.manifest import BUILT, Manifest
from vlm3_jax.evaluate.scoring import read_cells
from vlm3_jax.evaluate.thumbnails import write_thumbnails
from vlm3_jax.evaluate.worst import worst_of
from vlm3_jax.model import sizes
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.tasks.protocol import RELEASE


def write_pictures(found: Manifest, folder: storage.AnyPath) -> None:
    """Thumbnails for a report of the answers in a local folder; none where the manifest lies apart from its shards."""
    built = storage.path(found.name).parent.parent
    if storage.is_remote(folder) or not (built / BUILT).is_file():
        return
    spec = VisionSpec.of(sizes.released("4b"))
    try:
        asked = FrozenQuestions(found, RELEASE[found.asked.benchmark.task], spec, built)
    except UserError:
        return
    write_thumbnails(folder, asked, worst_of(read_cells(folder)))
