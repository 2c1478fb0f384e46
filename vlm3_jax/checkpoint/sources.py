"""Where parameters are read from, one HF tensor or layer at a time: HF directories, Orbax items, memory.

A source knows its `cfg`, the table's `rows`, the local folder of its small `files` and its `home`, the folder that was
opened; `value(row, layer)` is one layer of a parameter in our layout (the whole of one that is not stacked) and
`dtype(row)` what all its layers fit in.
"""

import contextlib
import functools
import itertools
import json
import math
import pathlib
from typing import Protocol

import numpy as np

from vlm3_jax.checkpoint.copying import DTYPES
from vlm3_jax.checkpoint.locate import INDEX, SINGLE, Located, locate, whole
from vlm3_jax.checkpoint.safetensors_file import NAMES, SafetensorsFile
from vlm3_jax.errors import UserError
from vlm3_jax.files import Fields
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.params import Param
from vlm3_jax.storage import AnyPath, is_remote

# In .zarray; another dtype is no parameter's.
ZARR_DTYPES = {"<f4": DTYPES["float32"], "bfloat16": DTYPES["bfloat16"], "<f2": DTYPES["float16"]}
HEAD = "lm_head.weight"
# In the .zattrs of an array whose HF tensors have another shape than the table's: experts with exchanged axes.
HF_SHAPE = "hf_shape"
# Chunks of a checkpoint that are read at the same time: each is in memory as a whole.
_READS = {"file_io_concurrency": {"limit": 2}, "data_copy_concurrency": {"limit": 2}}


class Source(Protocol):
    """What the writers and loaders ask of a source."""

    cfg: VLMConfig
    rows: tuple[Param, ...]
    files: pathlib.Path
    home: AnyPath

    def dtype(self, row: Param) -> np.dtype:
        """The dtype of a parameter."""

    def hf_shape(self, row: Param) -> tuple[int, ...]:
        """The shape in which its HF tensors are (or were) stored: `row.hf_shape` or another that `row.accepts`."""

    def value(self, row: Param, layer: int) -> np.ndarray:
        """One layer [row.layer_shape], perhaps a view of the file."""


def open_source(where) -> Source:
    """The source in a folder, or `Located`; its headers are read and checked. UserError names what is wrong."""
    located = where if isinstance(where, Located) else locate(where)
    return HFSource(whole(located.weights), located.home) if located.is_hf else CheckpointSource(located)


class HFSource:
    """An HF directory. Tensors are views of memory-mapped files; `asked` counts the bytes that `region` gave.

    `home`: the folder in a bucket that `folder` is a copy of.
    """

    def __init__(self, folder, home: AnyPath | None = None):
        self.files, self.asked = pathlib.Path(folder), 0
        self.home = home or self.files
        self.cfg = VLMConfig.from_dir(self.files)
        self.rows = parameters.table(self.cfg)
        self._where = self._key_index()
        self._check_keys()
        self._files = {name: SafetensorsFile(self.files / name) for name in sorted(set(self._where.values()))}
        for row in self.rows:
            for key in row.hf_keys:
                shape = self._file(key).entry(key).shape
                if not row.accepts(shape):
                    where = self.files / self._where[key]
                    raise UserError(f"{where}: {key} has shape {shape}, the config says {row.hf_shape}")
        if self.cfg.text.tie_word_embeddings and HEAD in self._where:
            self._check_head()

    def dtype(self, row):
        """The widest dtype of the layers."""
        return functools.reduce(np.promote_types, {NAMES[self._file(key).entry(key).dtype] for key in row.hf_keys})

    def hf_shape(self, row):
        """As the first layer is stored."""
        return self._file(row.hf_keys[0]).entry(row.hf_keys[0]).shape

    def value(self, row, layer):
        """A view of the mapped file in our layout (a copy of the small patch kernel)."""
        return row.from_hf(self._tensor(row, layer, ahead=True))

    def region(self, row, layer, index: tuple[slice, ...]) -> np.ndarray:
        """A part of `value`; what lies outside is not read."""
        tensor = self._tensor(row, layer)
        value = row.from_hf(tensor)
        part = value[index]
        # A value that is no view of the file has been read as a whole.
        self.asked += part.nbytes if np.may_share_memory(value, tensor) else tensor.nbytes
        return part

    def _tensor(self, row, layer, ahead=False) -> np.ndarray:
        key = row.hf_keys[layer]
        return self._file(key).tensor(key, ahead)

    def state(self) -> list:
        """What changes when the weights do: name, size and time of each file, as JSON has it."""
        return file_state(file.path for file in self._files.values())

    def _file(self, key) -> SafetensorsFile:
        return self._files[self._where[key]]

    def _key_index(self) -> dict[str, str]:
        """{HF key: file name} from the index, or from the single file."""
        folder = self.files
        # As transformers: beside a single file the index counts for nothing.
        if (folder / SINGLE).exists():
            return dict.fromkeys(SafetensorsFile(folder / SINGLE).entries, SINGLE)
        if not (folder / INDEX).exists():
            raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}")
        where = Fields.read(folder / INDEX).tree.get("weight_map")
        if not isinstance(where, dict):
            raise UserError(f"{folder / INDEX}: weight_map is missing")
        for key, name in where.items():
            if not isinstance(name, str):
                raise UserError(f"{folder / INDEX}: weight_map of {key} is {name!r}, expected a file name")
            if pathlib.PurePath(name).name != name:
                raise UserError(f"{folder / INDEX}: file name {name!r} leaves the model directory")
        return where

    def _check_keys(self) -> None:
        expected = {key for row in self.rows for key in row.hf_keys}
        unexpected = set(self._where) - expected
        if self.cfg.text.tie_word_embeddings:
            # Some writers store the tied head once more.
            unexpected.discard(HEAD)
        described = "not part of the model its config.json describes"
        for keys, what in ((expected - set(self._where), "missing"), (unexpected, described)):
            _refuse(self.files, sorted(keys), what)

    def _check_head(self) -> None:
        """UserError if a tied model stores a head of its own: transformers would use it, whatever the config says."""
        (embed,) = next(row.hf_keys for row in self.rows if row.path == ("text", "embed"))
        one, other = (self._file(key).tensor(key) for key in (HEAD, embed))
        parts = range(0, max(len(one), len(other)), 4096)
        if one.shape != other.shape or any((one[i : i + 4096] != other[i : i + 4096]).any() for i in parts):
            raise UserError(
                f"{self.files / self._where[HEAD]}: {HEAD} is not the embedding, though config.json says "
                "tie_word_embeddings; set it to false there to use this head, or take the tensor out"
            )


class CheckpointSource:
    """The Orbax item `params` of a converted checkpoint or of a training step, its arrays under their dotted names."""

    def __init__(self, located: Located):
        import tensorstore

        from vlm3_jax.storage.orbax import kvstore

        self.files, self.home, self.weights = located.files, located.home, located.weights.absolute()
        self.cfg = VLMConfig.from_dir(self.files)
        self.rows = parameters.table(self.cfg)
        folder = kvstore(self.weights)
        ocdbt = (self.weights / "manifest.ocdbt").exists()
        self._kvstore = {"driver": "ocdbt", "base": folder} if ocdbt else folder
        self._context = tensorstore.Context(_READS)
        try:
            store = tensorstore.KvStore.open(self._kvstore).result()
            self._keys = {key.decode() for key in store.list().result()}
            self.lora = self._adapters()
            self._pairs = self.lora.pairs() if self.lora else {}
            stored = (*self.rows, *(row for pair in self._pairs.values() for row in pair))
            self._arrays = {row: self._metadata(store, row) for row in stored}
        except (ValueError, OSError) as error:
            raise UserError(f"{self.weights}: cannot be read ({_first_line(error)})") from None
        names = {row.name for row in stored}
        found = {key.rpartition("/")[0] for key in self._keys if key.endswith("/.zarray")}
        _refuse(self.weights, sorted(found - names), "not part of the model its config.json describes")
        if not ocdbt:
            self._check_sizes()
        self._open = functools.cache(self._open_array)

    def dtype(self, row):
        """The stored dtype; float32 where adapters are merged in."""
        return DTYPES["float32"] if row in self._pairs else self._arrays[row]["dtype"]

    def hf_shape(self, row):
        """As it was when the checkpoint was converted; the table's in a training step."""
        return self._arrays[row]["hf_shape"]

    def value(self, row, layer):
        """One layer, read into memory, with what its adapters add; of an adapter's own row (`lora.pairs`) as it is."""
        value = self._read(row, layer)
        if row not in self._pairs:
            return value
        return self.lora.merge(value, *(self._read(each, layer) for each in self._pairs[row]))

    def region(self, row, layer, index: tuple[slice, ...]) -> np.ndarray:
        """A part of `value`."""
        return self.value(row, layer)[index]

    def _read(self, row, layer):
        if self._arrays[row]["raw"]:
            return self._mapped(row, layer)
        try:
            array = self._open(row)
            return (array[layer] if row.stacked else array).read().result()
        except (ValueError, OSError) as error:
            raise UserError(f"{self.weights}: {row.name} cannot be read ({_first_line(error)})") from None

    def _mapped(self, row, layer) -> np.ndarray:
        """A layer whose chunks are files of plain bytes: a view of the mapped file, or of several a copy."""
        array = self._arrays[row]
        place, shape = ((layer // array["chunks"][0],), row.layer_shape) if row.stacked else ((), row.shape)
        chunks = array["chunks"][1:] if row.stacked else array["chunks"]
        parts = []
        for part in range(shape[0] // chunks[0]):
            name = ".".join(map(str, (*place, part, *[0] * (len(shape) - 1))))
            mapped = np.memmap(self.weights / row.name / name, array["dtype"], "r").view(np.ndarray)
            mapped = mapped.reshape(array["chunks"])
            parts.append(mapped[layer % array["chunks"][0]] if row.stacked else mapped)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def restore(self, wanted: dict[Param, object]) -> dict:
        """Parameters as jax arrays (nested dict) by Orbax; `wanted`: a jax.ShapeDtypeStruct with a sharding each."""
        import orbax.checkpoint as ocp

        abstract = parameters.nest({row.path: like for row, like in wanted.items()})
        from vlm3_jax.storage.orbax import orbax_path

        if is_remote(self.weights):
            # The checkpointer would want a mark that Orbax leaves in buckets only.
            with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
                return handler.restore(orbax_path(self.weights), args=ocp.args.StandardRestore(abstract))
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(self.weights, abstract)

    def state(self) -> list:
        """What changes when the weights do: name, size and version of each file, as JSON has it."""
        if is_remote(self.weights):
            return [[str(path), *stat] for path, stat in self.weights.walk()]
        return file_state(path for path in self.weights.rglob("*") if path.is_file())

    @property
    def merges(self) -> bool:
        """Whether adapters are stored apart, so that a value is not just what is stored."""
        return bool(self._pairs)

    def _adapters(self):
        """The adapters (a `Lora`) that the facts of the training step tell of, or None."""
        facts = self.weights.parent / "meta" / "metadata"
        found = Fields.read(facts, null=True).child("facts") if facts.exists() else ()
        if "lora" not in found:
            return None
        from vlm3_jax.model.adapters import Lora

        settings = found.child("lora")
        names = settings.texts("targets")
        targets = tuple(row for row in self.rows if row.name in names)
        return Lora(settings.integer("rank"), settings.number("alpha"), targets)

    def _open_array(self, row):
        import tensorstore

        store = self._kvstore | {"path": f"{self._kvstore.get('path', '')}{row.name}/"}
        # A chunk that is not there would be read as zeros.
        spec = {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}
        return tensorstore.open(spec, open=True, context=self._context).result()

    def _metadata(self, store, row) -> dict:
        """`dtype`, `chunks` and `raw` (chunks are files of plain bytes) of an array that has all its chunks."""
        if f"{row.name}/.zarray" not in self._keys:
            raise UserError(f"{self.weights}: parameter {row.name} missing")
        tree = self._zarray(store, row)
        if tuple(tree["shape"]) != row.shape:
            raise UserError(f"{self.weights}: {row.name} has shape {tuple(tree['shape'])}, the config says {row.shape}")
        if tree["dtype"] not in ZARR_DTYPES:
            supported = ", ".join(DTYPES)
            raise UserError(f"{self.weights}: {row.name} is stored as {tree['dtype']}, supported are {supported}")
        for key in _chunk_keys(row, tree["chunks"]):
            if key not in self._keys:
                raise UserError(f"{self.weights}: chunk {key} missing")
        chunks = tuple(tree["chunks"])
        cut = 1 if row.stacked else 0
        even = row.shape[cut] % chunks[cut] == 0 and chunks[cut + 1 :] == row.shape[cut + 1 :]
        plain = tree["compressor"] is tree.get("filters") is None and tree.get("order") == "C"
        raw = plain and even and self._kvstore["driver"] == "file"
        kind = {"dtype": ZARR_DTYPES[tree["dtype"]], "chunks": chunks, "raw": raw}
        return kind | {"hf_shape": self._stored_hf_shape(store, row)}

    def _stored_hf_shape(self, store, row) -> tuple[int, ...]:
        key = f"{row.name}/.zattrs"
        if row.layout != "experts" or key not in self._keys:
            return row.hf_shape
        try:
            shape = tuple(json.loads(store.read(key).result().value)[HF_SHAPE])
            if row.accepts(shape):
                return shape
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{self.weights}/{key}: not the attributes of an expert's weights")

    def _zarray(self, store, row) -> dict:
        """The parsed .zarray, its fields of the types that zarr gives them."""
        try:
            tree = json.loads(store.read(f"{row.name}/.zarray").result().value)
            shapes = tree["shape"], tree["chunks"]
            whole = all(type(n) is int and n > 0 for shape in shapes for n in shape)
            if whole and len(tree["shape"]) == len(tree["chunks"]) and {"dtype", "compressor"} <= tree.keys():
                return tree
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise UserError(f"{self.weights}/{row.name}/.zarray: not a zarr array")

    def _check_sizes(self) -> None:
        for row, array in self._arrays.items():
            size = math.prod(array["chunks"]) * array["dtype"].itemsize
            for key in _chunk_keys(row, array["chunks"]) if array["raw"] else ():
                found = (self.weights / key).stat().st_size
                if found != size:
                    raise UserError(f"{self.weights / key}: truncated or altered ({found:,} bytes, expected {size:,})")


class ParamsSource:
    """Parameters in memory (nested dict of numpy or jax arrays) beside the files of a model directory."""

    def __init__(self, cfg: VLMConfig, params: dict, files):
        self.cfg, self.rows, self.files = cfg, parameters.table(cfg), pathlib.Path(files)
        self.home = self.files
        self._flat = {path: np.asarray(value) for path, value in parameters.flatten(params).items()}

    def dtype(self, row):
        """The array's."""
        return self._flat[row.path].dtype

    def hf_shape(self, row):
        """The table's."""
        return row.hf_shape

    def value(self, row, layer):
        """A view."""
        return self._flat[row.path][layer] if row.stacked else self._flat[row.path]


def file_state(paths) -> list:
    """What changes when local files do."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(paths)]


def _chunk_keys(row, chunks):
    counts = (range(-(-size // chunk)) for size, chunk in zip(row.shape, chunks, strict=True))
    return (f"{row.name}/{'.'.join(map(str, index))}" for index in itertools.product(*counts))


def _refuse(folder, keys, what):
    if keys:
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        raise UserError(f"{folder}: tensor {keys[0]}{more} {what}")


def _first_line(error) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
