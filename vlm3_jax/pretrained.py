"""From a name to an opened model: its folder, its numbers, its processor, how it is asked, and its weights.

Training, answers, evaluation, verify, plan and convert all start here, so a name means the same to each of them.
"""

import dataclasses
import functools
import pathlib

from jax.sharding import Mesh

from vlm3_jax import storage
from vlm3_jax.checkpoint import fingerprint, hf, locate, peft, tiny
from vlm3_jax.checkpoint.sources import Source, open_source
from vlm3_jax.errors import UserError
from vlm3_jax.files import Fields
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.storage import AnyPath
from vlm3_jax.storage.folders import fetched, put_folder, scratch
from vlm3_jax.tasks import protocol
from vlm3_jax.tasks.protocol import Protocol


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An opened model; each part is read when it is first asked for.

    `name`: what was asked for. `located`: where its files and weights lie, of an adapter those of its base. `adapter`:
    the (local) PEFT folder that is merged into them on loading, if it is one.
    """

    name: str
    located: locate.Located
    adapter: pathlib.Path | None = None

    @property
    def folder(self) -> pathlib.Path:
        """What holds config.json, tokenizer and processor settings."""
        return self.located.files

    @functools.cached_property
    def cfg(self) -> VLMConfig:
        """The architecture's numbers."""
        return VLMConfig.from_dir(self.folder)

    @functools.cached_property
    def chat(self) -> ChatFormat:
        """Tokenizer and chat template."""
        return ChatFormat.from_dir(self.folder)

    @functools.cached_property
    def spec(self) -> VisionSpec:
        """What images become."""
        return VisionSpec.from_dir(self.folder)

    @functools.cached_property
    def protocols(self) -> dict[str, Protocol]:
        """How it is asked, by task, as far as vlm3.json tells."""
        own = protocol.read(self.adapter) if self.adapter else {}
        return protocol.read(self.folder) | own

    @functools.cached_property
    def source(self) -> Source:
        """The weights, of which only the headers have been read."""
        source = open_source(self.located)
        return peft.PeftSource(source, self.adapter) if self.adapter else source

    @property
    def is_hf(self) -> bool:
        """Whether transformers can load `folder` and gets these weights."""
        return self.located.is_hf and not self.adapter

    def fingerprint(self) -> str:
        """What tells this model from others, of all files that have a say in its answers (`checkpoint.fingerprint`)."""
        located = self.located
        own = [locate.whole(located.weights)] if located.is_hf else [self.folder, located.weights]
        return fingerprint.of([*own, *([self.adapter] if self.adapter else [])])

    def params(self, mesh: Mesh | None = None, dtype: str | None = None) -> dict:
        """The parameters as jax arrays, spread over a mesh by the axis rules of parallel/mesh.py (None: one device).

        Nested as in the parameter table. Every shard is read and converted by itself, so host memory holds one at a
        time. `dtype` None keeps what is stored. UserError names the file and tensor that is wrong.
        """
        # Looking at a model's files needs no jax.
        import jax

        from vlm3_jax.model import params as parameters
        from vlm3_jax.parallel import mesh as meshes

        if dtype is not None and dtype not in hf.DTYPES:
            raise UserError(f"dtype: {dtype!r} is unknown; choose one of {', '.join(hf.DTYPES)}")
        alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = parameters.flatten(meshes.param_shardings(self.cfg, mesh)) if mesh else {}

        def like(row):
            kind = hf.DTYPES[dtype] if dtype else self.source.dtype(row)
            return jax.ShapeDtypeStruct(row.shape, kind, sharding=shardings.get(row.path, alone))

        return hf.place(self.source, parameters.nest({row.path: like(row) for row in self.source.rows}))

    def base_name(self) -> str:
        """Of a training workdir: what PEFT may call the model that the run began with, a hub name or a path.

        "" of anything else. UserError if the run's config.json does not tell, or if transformers cannot load it.
        """
        workdir = self.located.workdir
        if workdir is None:
            return ""
        fields = Fields.read(workdir / "config.json")
        began = open(fields.text("model"), workdir, fields.integer("seed", 0), base=fields.text("base", ""))
        if not began.is_hf:
            raise UserError(
                f"{began.name}: the run began with it, but transformers cannot load it; name a base by --base"
            )
        local = began.name.startswith("tiny:") or storage.path(began.name).exists()
        return str(began.located.home.absolute()) if local else began.name


def open(
    name, workdir=".", seed: int = 0, *, step: int | None = None, base: str = "", export: bool = True
) -> Pretrained:
    """The model that `name` stands for. UserError if there is none.

    `name`: an HF directory, a hub name, a converted checkpoint, a training workdir (its export, or its newest step
    until it is finished; the newest step or `step` where `export` is false), a PEFT adapter folder (on the model that
    it names, or on `base`), or "tiny:SIZE" (made of `seed` once, in `workdir`).
    """
    name, base = str(name), str(base)
    if not name:
        raise UserError(
            "no model is given: set --config.model (or --model) to an HF directory, a hub name or tiny:demo"
        )
    folder = _folder(name, storage.path(workdir), seed, export and step is None)
    if locate.is_workdir(folder) or not (folder / peft.CONFIG).is_file() or locate.has_weights(folder):
        if base:
            raise UserError(f"{name}: is no PEFT adapter, so it has no base; leave --base {base} out")
        return Pretrained(name, locate.locate(folder, step))
    if step is not None:
        raise UserError(f"{name}: not a training workdir, so it has no step {step}")
    under = base or peft.base_name(folder)
    if storage.path(under).absolute() == folder.absolute():
        raise UserError(f"{name}: is its own base; name the model that it adapts by --base")
    below = open(under, workdir, seed)
    if below.adapter:
        raise UserError(
            f"{below.name}: is an adapter itself, but the base of {name} must be a model; name one by --base"
        )
    return Pretrained(name, below.located, fetched(folder, lambda name: name.endswith(locate.SMALL + locate.WEIGHTS)))


def _folder(name: str, workdir: AnyPath, seed: int, export: bool) -> AnyPath:
    if name.startswith("tiny:"):
        size = name.removeprefix("tiny:")
        folder = workdir / f"tiny-{size}-{seed}"
        if (folder / "config.json").exists():
            return folder
        if storage.is_remote(folder):
            put_folder(tiny.make(scratch(folder), size, seed), folder, "config.json")
            return folder
        return tiny.make(folder, size, seed)
    folder = storage.path(name)
    if export and (folder / "export" / "config.json").is_file():
        return folder / "export"
    # A workdir has a config.json too, that of the run.
    there = locate.is_workdir(folder) or any((folder / file).is_file() for file in ("config.json", peft.CONFIG))
    return folder if there else locate.fetch(name)
