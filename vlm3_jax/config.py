"""The base configuration: every field with its meaning (allowed values: config_rules.py), files and overrides."""

import difflib
import importlib.util
import pathlib

import ml_collections

from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.tasks import protocol as protocols
from vlm3_jax.tasks.protocol import Protocol

# The fields whose names are those of components.
TABLES = ("data.components", "eval.components", "data.groups")


def base() -> ml_collections.ConfigDict:
    """The defaults: the recipe of the paper (AdamW, cosine, clip 0.02) on whatever devices there are."""
    config = ml_collections.ConfigDict()
    # HF directory (or hub name) whose weights, tokenizer, chat template and processor settings are used. "tiny:demo"
    # and "tiny:test" make a random tiny model in the workdir.
    config.model = ""
    # Of a PEFT adapter folder as `model`: its base, where that is not the one that it names.
    config.base = ""
    # Where checkpoints, metrics, the quarantine and the exported model go.
    config.workdir = ""
    # Seed of the data order, the questions drawn and the random weights of a tiny model; at least 0.
    config.seed = 0

    config.mesh = mesh = ml_collections.ConfigDict()
    # Devices = replica x fsdp x tensor; -1 takes what the others leave.
    mesh.replica, mesh.fsdp, mesh.tensor = 1, -1, 1
    # Devices that a CPU counts as (0: one). As many as cores, with a replica on each, are faster than one of all cores.
    mesh.cpu_devices = 0

    # What `vlm3 demo` renders: how the second camera of a scene moves, "orbit" or "crane" (vlm3_jax/synth/options.py).
    config.synth = ml_collections.ConfigDict({"motion": "orbit"})

    config.data = data = ml_collections.ConfigDict()
    # The mixture: name -> component_config(...), below. The weights are relative to each other.
    data.components = ml_collections.ConfigDict()
    # What weighs them: "table" (each one's `weight`), "uniform", "size" (their records), "size^0.5", "unimax:4" (even,
    # at most so many epochs) or a file (.json, as `vlm3 data sweep` writes it). Weight 0 leaves one out in any case.
    data.weights = "table"
    # Groups of components, such as the sets of a task: name -> group_config(...), below. A group is weighed as one
    # component is, and its weight divided among those that name it by the group's own rule.
    data.groups = ml_collections.ConfigDict()
    # "turns" (one conversation, every answer supervised) or "independent" (a question sees the images and itself only).
    data.mode = "turns"
    # A row holds at most so many tokens, patches and supervised tokens (`vlm3 data mix` proposes them).
    data.row_tokens, data.row_patches, data.row_targets = 7168, 16384, 1024
    # Attention on lists of blocks: at most so many pairs of blocks of `pair_block` tokens (patches) see each other in a
    # row (`vlm3 data mix` proposes them). pair_block 0: every pair of tokens is looked at.
    data.pair_block, data.pairs, data.patch_pairs = 0, 0, 0
    # Rows of the global batch (fixed for a run's life; a multiple of replica x fsdp and of the number of hosts).
    data.rows = 8
    # A sample larger than a row, or than its lists of blocks: "crop" (centre crop with its camera) or "error".
    data.oversize = "crop"
    # Weight of the first token of every answer in the loss; the others weigh 1.
    data.first_answer_weight = 1.0
    # The run stops if a larger share of the samples, from 0 to 1, is unusable.
    data.max_bad_fraction = 0.01
    # Decoding threads (0: none) and batches prepared ahead.
    data.workers, data.prefetch = 4, 2
    # Reading a record or an image that fails or takes longer (seconds) is tried once more, then set aside.
    data.worker_timeout_s = 120.0

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 5.5e-5
    optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay = 0.9, 0.999, 1e-8, 0.0
    # Largest global norm of the gradient; 0 does not clip.
    optimizer.clip = 0.02
    # "cosine", "linear_tail" (constant, then straight down over the last `tail` of the run) or "constant".
    optimizer.schedule = "cosine"
    # Warm-up as a share of the run, the share of the rate at its end, and the length of a linear tail.
    optimizer.warmup, optimizer.final, optimizer.tail = 0.1, 0.0, 0.25
    # Factors on the learning rate by group of parameters ("merger" includes the DeepStack mergers).
    optimizer.rates = ml_collections.ConfigDict(dict.fromkeys(parameters.GROUPS, 1.0))

    config.train = train = ml_collections.ConfigDict()
    # Length of the run: the schedule counts samples, since a step holds as many as fit its rows.
    train.samples = 0
    # Samples that a step is meant to hold on average (0: no wish). It only makes `vlm3 data mix` compare, and say how
    # many rows come closest.
    train.batch = 0
    # Stop after so many steps whatever the schedule says; 0: when all samples are seen.
    train.max_steps = 0
    # Batches whose gradients are added up before an update.
    train.accumulation = 1
    # "float32" or "bfloat16" compute (parameters and moments stay float32); what the backward
    # pass makes again: "none", "minimal" (no large products), "full", or "offload" (as minimal, kept on the host).
    train.dtype, train.remat = "bfloat16", "full"
    # What works through pairs of blocks: "auto" (the kernel for the devices, if there is one), "pallas" (that kernel,
    # or an error) or "xla".
    train.attention = "auto"
    # Groups of parameters that stay as they are: vision, merger, decoder, embeddings. No gradient is computed for them
    # and no moments are kept. "bfloat16" stores their matrices in half the bytes; what is released in bfloat16, as
    # Qwen3-VL is, loses nothing by it.
    train.freeze, train.frozen_dtype = (), "float32"
    # LoRA: with a rank above 0 the whole model is frozen, and low-rank adapters scaled by alpha / rank are trained
    # beside the weights that `targets` name: regular expressions over names (q_proj) or paths (text.layers.q_proj).
    # The default takes the seven linears of the decoder. The export holds the sums.
    train.lora = lora = ml_collections.ConfigDict()
    lora.rank, lora.alpha, lora.targets = 0, 16.0, (".*_proj",)
    # Weight of the load-balance loss of experts (transformers' router_aux_loss_coef); dense models have none.
    train.balance = 0.001
    # Weight of the mean square of the log of the softmax's denominator (PaLM's z-loss; 1e-4 there); 0: none.
    train.z_loss = 0.0
    # A step whose loss or gradient is not finite changes nothing; so many in a row stop the run.
    train.max_skipped = 5
    # In steps: a line of metrics, a checkpoint (0: only at the end), the held-out loss (0: at the start and the end).
    train.log_every, train.save_every, train.eval_every = 10, 500, 500
    # "FIRST:LAST": steps recorded for xprof into WORKDIR/profile (or --profile FIRST:LAST); "": none.
    train.profile = ""
    # Project on Weights & Biases that gets the numbers too ("": none); needs pip install 'vlm3-jax[wandb]'.
    train.wandb = ""
    # Checkpoints kept: the newest so many; those of every so many steps (0: none), saved even if save_every skips
    # them; and the one of the lowest held-out loss, such as "eval_loss/depth" ("": none), saved at every evaluation.
    train.keep, train.keep_every, train.keep_best = 2, 0, ""
    # dtype of the HF directory written at the end; "" writes none.
    train.export = "bfloat16"

    config.eval = evaluation = ml_collections.ConfigDict()
    # Held-out data: name -> component_config(...), as in data.components.
    evaluation.components = ml_collections.ConfigDict()
    # At most so many records of each component for the answers, and so many batches of rows for the held-out loss.
    evaluation.records, evaluation.loss_batches = 256, 4
    # Image sets and questions of each answered at once, and the longest answer in tokens.
    evaluation.image_sets, evaluation.questions, evaluation.max_new_tokens = 8, 16, 256
    # "float32" or "bfloat16": what the weights are held in and answers are computed in, spread over `mesh`.
    evaluation.dtype = "float32"
    # "model" always; "blind" (images blanked) and "shuffled" (images of other records) as reference rows.
    evaluation.variants = ("model", "blind", "shuffled")
    return config


def component_config(**fields) -> ml_collections.ConfigDict:
    """A component of a mixture: a source, the task it trains and how its images and questions are made.

    UserError for a field that does not exist, naming the nearest one.
    """
    config = ml_collections.ConfigDict()
    # What the files are (vlm3_jax/kinds.py): "records" (ArrayRecord shards), "depthlm", "rgbd", "wai", "colmap",
    # "conversations", "realestate10k", "gta_sfm".
    config.kind = "records"
    # A file (a shard, jsonl, json), a folder, or a glob pattern of shards.
    config.path = ""
    # depthlm, conversations, colmap, realestate10k: the folder of the images; "" takes the one where the kind has them.
    config.images = ""
    # depthlm, rgbd: what the depths are, "distance" (to the camera centre) or "z"; no default because both occur.
    config.depth_kind = ""
    # rgbd: metres a unit of the depth maps (0: millimetres in PNG, metres in npy and EXR, TUM's 1/5000). colmap: metres
    # a unit of the model; 0: not known, so no depths.
    config.depth_scale = 0.0
    # rgbd, wai (without covisibility), realestate10k, gta_sfm: how many frames the two of a pair lie apart, as (1, 5).
    config.gaps = ()
    # wai: a list of scenes (.txt, .json, .npy; "": all), the modality that is the depth, and that of a mask whose
    # pixels above 0 have labels ("-" before its name: the others).
    config.scenes, config.depth, config.mask = "", "depth", ""
    # conversations: the camera of images that tell none: "FX,FY,CX,CY" (px), "fov:60" or "35mm:26".
    config.camera = ""
    # All kinds of files in place: "train" or "held_out" takes a part, cut by scene; the share that is held out.
    config.part, config.held_out = "", 0.1
    # "depth", "objects", "correspondence", "pose" or "conversation".
    config.task = "depth"
    # Share of the mixture (of its group), relative to other components, where the rule is "table"; 0 leaves it out.
    config.weight = 1.0
    # The group (data.groups) that it is weighed in; "": none.
    config.group = ""
    # How the questions are asked (vlm3_jax/tasks/protocol.py): "release", "paper" or "short".
    config.protocol = "release"
    # In place of the protocol's own: how images are resized ("focal:1000", "focal:750:per_axis", "longest:1024",
    # "as_is"; "": its own), coordinates in [0, coord_range) and at most so many questions a record (0: its own).
    config.resize, config.coord_range, config.questions = "", 0, 0
    # The release's optional step-by-step suffix of the correspondence question.
    config.think = False
    # Depth: the point is shown by an arrow drawn into the image (DepthLM's markers), one question an image.
    config.marker = False
    # Probability that a record is mirrored left to right.
    config.flip = 0.0
    # Pairs with a smaller covisibility are left out (they are counted as passed over, not as bad).
    config.covisibility_min = 0.0
    # Typical (width, height, focal length) of the stored images in px, and how many records there are (0: not known):
    # `vlm3 plan` works without the data.
    config.size, config.records = (), 0
    # Only the records [first, first + limit) are used; limit 0: all from `first` on.
    config.first = 0
    config.limit = 0
    return _filled(config, fields, "component")


def group_config(**fields) -> ml_collections.ConfigDict:
    """A group of components of a mixture. UserError for a field that does not exist, naming the nearest one."""
    config = ml_collections.ConfigDict()
    # Share of the mixture, relative to the other groups and the components without one, if data.weights is "table".
    config.weight = 1.0
    # What divides it among the group's components: as data.weights.
    config.weights = "table"
    return _filled(config, fields, "group")


def _filled(config, fields, what: str) -> ml_collections.ConfigDict:
    for field, value in fields.items():
        if field not in config:
            near = difflib.get_close_matches(field, config.keys(), 1, 0)
            raise UserError(f"data: a {what} has no field {field!r}; did you mean {near[0]!r}?")
        try:
            config[field] = value
        except TypeError:
            wanted = type(config[field]).__name__
            raise UserError(f"data: field {field!r} of a {what} must be of type {wanted}, got {value!r}") from None
    return config


def protocol_of(fields) -> Protocol:
    """How a component asks: its named protocol with the component's own fields in place. ValueError for a bad one."""
    changes = {field: fields[field] for field in ("resize", "coord_range", "questions", "think", "marker")}
    return protocols.given(fields.task, fields.protocol, **changes)


def load(name: str) -> ml_collections.ConfigDict:
    """The config of a file, or of a bare name such as "demo" (configs/ of the project), with ":argument" passed on.

    UserError if there is no such file or name.
    """
    name, _, argument = name.partition(":")
    path = pathlib.Path(name)
    if path.suffix != ".py":
        path = config_dir() / f"{name}.py"
    if not path.is_file():
        known = sorted(p.stem for p in config_dir().glob("*.py"))
        raise UserError(f"--config: no file {path}; shipped configs are {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"vlm3_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def config_dir() -> pathlib.Path:
    """Where the shipped configs are: beside the package in a checkout, inside it when installed."""
    inside = pathlib.Path(__file__).parent / "configs"
    return inside if inside.is_dir() else pathlib.Path(__file__).parent.parent / "configs"


def override(config: ml_collections.ConfigDict, assignments: list[str]) -> None:
    """Applies `field.sub=value` strings; the value takes the field's type.

    A component that is not there yet is added if its path is among the assignments, a group by any of its fields.
    UserError names an unknown field.
    """
    given = {assignment.partition("=")[0] for assignment in assignments}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--config.{assignment}: write --config.{field}=VALUE")
        node, keys = config, field.split(".")
        for place, key in enumerate(keys):
            if not isinstance(node, ml_collections.ConfigDict) or key not in node:
                above = ".".join(keys[:place])
                is_group = above == "data.groups"
                if not key or above not in TABLES or not (is_group or f"{above}.{key}.path" in given):
                    raise UserError(f"--config.{field}: the config has no field {key!r}{hint(node, above, key)}")
                node[key] = group_config() if is_group else component_config()
            parent, node = node, node[key]
        parent[keys[-1]] = _parse(field, text, node)


def hint(node, above: str, key: str) -> str:
    """What may have been meant by a field that is not there."""
    near = difflib.get_close_matches(key, list(node.keys()) if hasattr(node, "keys") else [], 1, 0.4)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return meant + (f"; a new component needs its path (--config.{above}.{key}.path=...)" if above in TABLES else "")


def _parse(field: str, text: str, old):
    try:
        if isinstance(old, ml_collections.ConfigDict):
            raise ValueError("it is a group of fields")
        if isinstance(old, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(old, tuple):
            parts = [part for part in text.split(",") if part]
            kind = {"size": float, "gaps": int}.get(field.rpartition(".")[2], str)
            return tuple(map(kind, parts))
        return type(old)(text)
    except (ValueError, KeyError) as error:
        raise UserError(f"--config.{field}={text}: not a {type(old).__name__} ({error})") from None
