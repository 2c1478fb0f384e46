"""What a run is made of, built from its config: model directory, chat format, data, mesh."""

import dataclasses
import functools
import operator
import pathlib
import zlib

import jax
import numpy as np
from jax.sharding import Mesh

from vlm3_jax import config as configs
from vlm3_jax.checkpoint import locate, tiny
from vlm3_jax.data.chat import ChatFormat
from vlm3_jax.data.component import Component, SampleSettings
from vlm3_jax.data.image import VisionSpec
from vlm3_jax.data.loader import Loader
from vlm3_jax.data.mixture import Mixture, build_components
from vlm3_jax.data.packing import RowBudget, fits, pack
from vlm3_jax.data.plan import BadSample, PlanState, open_state
from vlm3_jax.data.quarantine import Quarantine, bad_lines
from vlm3_jax.data.samples import Sample
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.train import distributed
from vlm3_jax.train import mesh as meshes
from vlm3_jax.train.goodput import Goodput

# Of the loader's numbers those that add up over accumulated batches; the others are means.
SUMMED = ("wait_s", "bad", "skipped")
# And those that are told of all processes' rows.
COUNTED = ("bad", "skipped")


def resolve_model(name: str, workdir, seed: int = 0) -> pathlib.Path:
    """The model folder that `name` stands for; `hf.load` takes it, and config and tokenizer lie in it.

    `name`: an HF directory, a converted checkpoint, a training workdir (its export, or its newest step until it is
    finished), "tiny:SIZE" (made once, in the workdir) or a hub name. UserError if there is none.
    """
    if not name:
        raise UserError(
            "no model is given: set --config.model (or --model) to an HF directory, a hub name or tiny:demo"
        )
    if name.startswith("tiny:"):
        size = name.removeprefix("tiny:")
        folder = pathlib.Path(workdir) / f"tiny-{size}-{seed}"
        return folder if (folder / "config.json").exists() else tiny.make(folder, size, seed)
    folder = pathlib.Path(name)
    if (folder / "export" / "config.json").is_file():
        return folder / "export"
    if locate.is_workdir(folder):
        return locate.locate(folder).files
    # A workdir has a config.json too, that of the run.
    return folder if (folder / "config.json").is_file() else locate.fetch(name)


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run that do not change while it runs."""

    config: object
    workdir: pathlib.Path
    model_dir: pathlib.Path
    cfg: VLMConfig
    chat: ChatFormat
    spec: VisionSpec
    budget: RowBudget

    @classmethod
    def from_config(cls, config) -> "Setup":
        """Opens the model directory; UserError names what is missing."""
        configs.check(config)
        if not config.workdir:
            raise UserError("no workdir is given: set --workdir to the folder for checkpoints, metrics and the export")
        workdir = pathlib.Path(config.workdir)
        with distributed.first_before_others("model"):
            model_dir = resolve_model(config.model, workdir, config.seed)
        return cls(
            config=config,
            workdir=workdir,
            model_dir=model_dir,
            cfg=VLMConfig.from_dir(model_dir),
            chat=ChatFormat.from_dir(model_dir),
            spec=VisionSpec.from_dir(model_dir),
            budget=RowBudget.from_config(config.data),
        )

    @functools.cached_property
    def mesh(self) -> Mesh:
        """All devices as the config arranges them; UserError if they are another number.

        Made when it is first asked for: data can be looked at on any machine.
        """
        return meshes.make_mesh(self.config.mesh.replica, self.config.mesh.fsdp, self.config.mesh.tensor)

    def settings(self) -> SampleSettings:
        """How records become samples in this run."""
        data = self.config.data
        return SampleSettings(self.chat, self.spec, self.budget, data.mode, data.first_answer_weight, data.oversize)

    def components(self, table) -> list[Component]:
        """The components of a mixture table (training or held-out)."""
        return build_components(table, self.settings(), self.config.data.max_bad_fraction)


class Feed:
    """The training data of this process: batches with leading axis `accumulation` where that is above 1.

    `stop`: a list that becomes non-empty where this process is to stop. `goodput` is told how long `next` waits for
    data; the exchange behind that, which also waits for the step under way, is no part of it.
    """

    def __init__(self, setup: Setup, components: list[Component], saved: PlanState | None, goodput: Goodput):
        config, data = setup.config, setup.config.data
        lengths = {c.name: len(c) for c in components}
        weights = {c.name: c.entry.weight for c in components}
        plan = open_state(lengths, weights, data.rows, saved, config.seed)
        # Stream r fills row r, wherever it lies.
        self._mine = meshes.process_rows(setup.mesh, data.rows)
        self.stop: list = []
        self._goodput = goodput
        self._phases = plan.phases
        self._accumulation = config.train.accumulation
        self._loader = Loader(
            Mixture(components, config.seed, plan.phases),
            PlanState(plan.cursors[self._mine], plan.phases),
            data.rows,
            setup.budget,
            setup.spec,
            workers=data.workers,
            prefetch=data.prefetch,
            worker_timeout_s=data.worker_timeout_s,
            quarantine=Quarantine(quarantine_file(setup.workdir), data.max_bad_fraction),
        )
        self.plan = plan

    def next(self):
        """The next batch, and then `plan` lies behind it. None in all processes alike if some process is to stop.

        (Arrays of this process's rows, what these hold, the loader's stats, in which the counts `COUNTED` are of all
        processes, and of the global batch the number of samples and the checksum of their ids.)
        """
        if self.stop and jax.process_count() == 1:
            return None
        with self._goodput.spent_on("wait"):
            parts = [next(self._loader) for _ in range(self._accumulation)]
        arrays = parts[0].arrays
        if len(parts) > 1:
            arrays = {key: np.stack([part.arrays[key] for part in parts]) for key in arrays}
        held = functools.reduce(operator.add, [part.lengths for part in parts])
        stats = {key: [part.stats[key] for part in parts] for key in parts[0].stats}
        stats = {key: float((np.sum if key in SUMMED else np.mean)(values)) for key, values in stats.items()}
        ids = [[zlib.crc32("\n".join(row).encode()) for row in part.ids] for part in parts]
        # Last, since with several processes it waits for the step under way.
        found = distributed.gather(
            {
                "rows": self._mine,
                "counts": np.array([stats[key] for key in COUNTED]),
                "cursors": parts[-1].state.cursors,
                "ids": np.array(ids, np.uint32).T,
                "samples": np.array([[len(row) for row in part.ids] for part in parts]).T,
                "stop": np.array(bool(self.stop)),
            }
        )
        if found["stop"].any():
            return None
        # In the order of the rows; a row that several processes bring counts once.
        _, order = np.unique(found["rows"], return_index=True)
        cursors, ids, samples = (np.concatenate(found[key])[order] for key in ("cursors", "ids", "samples"))
        self.plan = PlanState(cursors, self._phases)
        stats |= dict(zip(COUNTED, distributed.over_rows(found["rows"], found["counts"]).tolist(), strict=True))
        return arrays, held, stats, int(samples.sum()), zlib.crc32(ids.T.tobytes())

    def close(self) -> None:
        """Stops the decoding threads."""
        self._loader.close()


def quarantine_file(workdir: pathlib.Path) -> pathlib.Path:
    """Where this process notes what it sets aside; the first has the plain name."""
    number = jax.process_index()
    return workdir / (f"quarantine-{number}.jsonl" if number else "quarantine.jsonl")


def held_out_batches(
    setup: Setup, component: Component, batches: int, quarantine: Quarantine
) -> tuple[list[dict], list[list[int]]]:
    """This process's rows of at most `batches` batches of a component's first records, and the tokens of all answers.

    The same records give the same questions every time, so losses of different steps can be compared. What is broken
    goes to `quarantine`: lines and labels that all processes meet (the first notes them), and samples of this process's
    rows with an image that cannot be read, which are masked.
    """
    first = jax.process_index() == 0
    quarantine.write(bad_lines(component) if first else [])
    rows: list[list[Sample]] = []
    for index in range(len(component)):
        try:
            sample = component.sample(index, (setup.config.seed, index), f"{component.name}/{index}")
        except BadRecord as error:
            bad = BadSample(f"{component.name}/{index}", component.name, str(component.source.path), str(error))
            quarantine.add(1, [bad] if first else [])
            continue
        if sample is None:
            continue
        if not rows or not fits([*rows[-1], sample], setup.budget):
            if len(rows) == batches * setup.config.data.rows:
                break
            rows.append([])
        rows[-1].append(sample)
        quarantine.add(1, [])
    answers = [answer for row in rows for sample in row for answer in answer_tokens(sample)]
    size = setup.config.data.rows
    rows += [[] for _ in range(-len(rows) % size)]
    mine = meshes.process_rows(setup.mesh, size)
    packed = []
    for start in range(0, len(rows), size):
        own = [rows[start + i] for i in mine]
        pixels = [[_pixels(sample, component.name, setup.spec, quarantine) for sample in row] for row in own]
        packed.append(pack(own, pixels, setup.budget, setup.spec))
    return packed, answers


def count_in_all(aside: Quarantine, setup: Setup) -> None:
    """Makes `aside` count what all processes have set aside of their held-out rows. UserError if too much."""
    own, rows = aside.bad, meshes.process_rows(setup.mesh, setup.config.data.rows)
    found = distributed.gather({"rows": rows, "bad": np.array(own)})
    aside.bad = int(distributed.over_rows(found["rows"], found["bad"]))
    # A process that has set none aside cannot name one, and is ended by those that can.
    if own:
        aside.check()


def _pixels(sample: Sample, source: str, spec: VisionSpec, quarantine: Quarantine) -> list[np.ndarray | None]:
    """The patches of a sample's images; None, which masks the sample, for one that cannot be read."""
    pixels, bad = [], []
    for plan in sample.images:
        try:
            pixels.append(plan.load(spec))
        except BadRecord as error:
            pixels.append(None)
            bad.append(BadSample(sample.id, source, plan.ref.name, str(error)))
    quarantine.add(0, bad[:1])
    return pixels


def answer_tokens(sample: Sample) -> list[list[int]]:
    """The supervised tokens of each answer of a sample."""
    cuts = np.flatnonzero(np.diff(sample.target_slot) != 1) + 1
    return [part.tolist() for part in np.split(sample.target_tokens, cuts)]
