"""The stated model of a step's time and memory, from shapes alone. Per device and update; bytes and FLOPs.

Time is the longest of three: arithmetic at the peak, memory traffic at full bandwidth, exchange at the speed of all
links; each is what the program has to do at least, so the time is a bound, and runs take longer by `1 / reached`.

Arithmetic: what flops.py counts, on full rows (empty places are computed too) and on the pairs of blocks that attention
looks at, plus what the backward pass makes again: attention's scores always (kernels make them and the gradient of the
weights twice: seven products for five), the head's logits always, and under remat "full" each layer without its last
product, under "minimal" its output projections. Nothing of a vision tower in which nothing is trained is made again or
kept.
Memory traffic: the weights in bf16 read once in each of three passes and written twice as gathered; the inputs and
outputs of every product, in bf16, in each pass; attention's keys and values once a pair of blocks; at the end of the
update 32 bytes a trained value (moments, weights, gradient).
Exchange, where no compiled program says it: bf16 weights gathered over fsdp in each pass (three under "full", else two)
and their gradients scattered; the token table gathered once, its gradient summed in float32; gradients summed over
replica; two sums of activations a layer and pass over tensor.
Memory: float32 weights and moments by their shardings; gradients (twice when accumulated); the batch; what remat keeps;
the largest layer's intermediate values; two gathered layers; the token table with its gradient; a chunk of logits.
"""

import dataclasses
import math

import jax.numpy as jnp

from vlm3_jax.model import flops
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.planning.collectives import Traffic
from vlm3_jax.planning.samples import Rows
from vlm3_jax.train.step import TARGET_CHUNK
from vlm3_jax.train.trainable import Trainable

PASSES = {"none": 3, "minimal": 3.3, "full": 4, "offload": 3.3}


@dataclasses.dataclass(frozen=True)
class Load:
    """One device's part of an update: `rows` at once, `accumulation` times, on a mesh (replica, fsdp, tensor).

    `row_bytes`: of one row of a batch. `kernels`: whether attention's pairs are worked through by kernels.
    """

    cfg: VLMConfig
    trainable: Trainable
    budget: object
    typical: Rows
    row_bytes: int
    mesh: tuple[int, int, int]
    rows: int
    accumulation: int
    remat: str
    kernels: bool = False

    @property
    def samples(self) -> float:
        """Samples of the whole mesh in one update."""
        return self.typical.samples * self.rows * self.accumulation * self.mesh[0] * self.mesh[1]

    @property
    def sizes(self) -> dict[str, int]:
        """The mesh as `mesh.resolve` takes it."""
        return dict(zip(meshes.AXES, self.mesh))

    def useful(self) -> float:
        """Useful FLOPs of one sample (flops.py)."""
        trained, adapters = self.trainable.trained_groups, self.trainable.adapters
        return flops.training(self.cfg, self.typical.lengths, trained, adapters) / self.typical.samples

    def arithmetic(self) -> float:
        """FLOPs that one device executes in an update."""
        b, looked_at = self.budget, self.typical.looked_at
        chunk = min(TARGET_CHUNK, b.targets)
        executed = flops.Lengths(b.tokens, b.patches, -(-b.targets // chunk) * chunk, *looked_at)
        parts = flops.forward(self.cfg, executed)
        seeing = self._seeing
        attention = (1.5 if self.kernels else 0.5) + (self.remat == "full")
        again = parts["head"] + attention * (parts["decoder_attention"] + seeing * parts["vision_attention"])
        t, v = self.cfg.text, self.cfg.vision
        out, down = t.heads * t.head_dim, t.intermediate_size if not t.experts else t.experts_per_token * t.expert_size
        layer = t.hidden_size * (2 * (out + t.kv_heads * t.head_dim) + 3 * down)
        block = 4 * v.hidden_size + 2 * v.intermediate_size
        shares = {
            "full": (1 - down * t.hidden_size / layer, 1 - v.intermediate_size / block),
            "none": (0.0, 0.0),
        }.get(self.remat, (out * t.hidden_size / layer, v.hidden_size / block))
        again += shares[0] * parts["decoder"] + seeing * shares[1] * parts["vision"]
        trained, adapters = self.trainable.trained_groups, self.trainable.adapters
        row = flops.training(self.cfg, executed, trained, adapters) + again
        return row * self.rows * self.accumulation / self.mesh[2]

    @property
    def _seeing(self) -> bool:
        """Whether a gradient passes through the vision tower."""
        return "vision" in {*self.trainable.trained_groups, *(row.group for row in self.trainable.adapters)}

    def memory_traffic(self) -> float:
        """Bytes that one device reads and writes in its memory in an update."""
        t, v, b, passes = self.cfg.text, self.cfg.vision, self.budget, PASSES[self.remat]
        tensor, (pairs, patch_pairs) = self.mesh[2], self.typical.looked_at
        weights = 2 * 5 * parameters.count(self.cfg) / tensor
        C, wide = t.head_dim, t.intermediate_size if not t.experts else t.experts_per_token * t.expert_size
        token = 4 * t.hidden_size + (3 * t.heads + 2 * t.kv_heads) * C + 3 * wide
        patch = 9 * v.hidden_size + 2 * v.intermediate_size
        activations = t.layers * b.tokens * token + v.depth * b.patches * patch
        block = b.pair_block or 128
        attention = t.layers * pairs / block * 2 * t.kv_heads * C + v.depth * patch_pairs / block * 2 * v.hidden_size
        once = passes * 2 * (activations + attention) / tensor * self.rows + weights
        return once * self.accumulation + 8 * self._local(trained=True)

    def exchange(self) -> Traffic:
        """What the model says devices receive in an update."""
        t, v, b = self.cfg.text, self.cfg.vision, self.budget
        replica, fsdp, tensor = self.mesh
        cut = {row.path: meshes.resolve(row, self.sizes)[0] for row in self.trainable.rows}
        found: dict = {}

        def add(kind, axis, n, size):
            if n > 1:
                times = 2 if kind == "all-reduce" else 1
                found[kind, (axis,)] = found.get((kind, (axis,)), 0.0) + times * size * (n - 1) / n * self.accumulation

        passes = 3 if self.remat == "full" else 2
        for row in self.trainable.rows:
            trained = row.path in self.trainable.trained
            size = 2 * row.size / (tensor if "tensor" in cut[row.path] else 1)
            if row.path == ("text", "embed"):
                add("all-gather", "fsdp", fsdp, size)
                add("all-reduce", "fsdp", fsdp, 2 * size * trained)
            elif "fsdp" in cut[row.path]:
                add("all-gather", "fsdp", fsdp, size * passes)
                add("reduce-scatter", "fsdp", fsdp, size * trained)
            else:
                add("all-reduce", "fsdp", fsdp, size * trained)
            add("all-reduce", "replica", replica, size / (fsdp if "fsdp" in cut[row.path] else 1) * trained)
        sums = 2 * passes * 2 * self.rows * (t.layers * b.tokens * t.hidden_size + v.depth * b.patches * v.hidden_size)
        add("all-reduce", "tensor", tensor, sums)
        return Traffic(found)

    def state(self) -> float:
        """Bytes of parameters and moments on one device, each by its sharding."""
        return self._local() + 2 * self._local(trained=True)

    def _local(self, trained: bool = False) -> float:
        """Bytes of the parameters, or of the trained ones, on one device."""
        rows = self.trainable.trained_rows if trained else self.trainable.rows
        return sum(self._held(row) * jnp.dtype(self.trainable.dtype(row)).itemsize for row in rows)

    def _held(self, row: parameters.Param) -> float:
        """Values of a parameter on one device."""
        spec = meshes.resolve(row, self.sizes)[0]
        return row.size / math.prod(self.sizes[axis] for axis in spec if axis)

    def arguments(self) -> float:
        """Bytes of state and batch on one device."""
        return self.state() + self.row_bytes * self.rows * self.accumulation

    def temporaries(self) -> float:
        """Bytes alive at the fullest moment beside the arguments: an estimate, see above."""
        t, v, b, tensor = self.cfg.text, self.cfg.vision, self.budget, self.mesh[2]
        gradients = self._local(trained=True) * (2 if self.accumulation > 1 else 1)
        tokens, patches = b.tokens * self.rows, b.patches * self.rows
        depth = v.depth * self._seeing
        kept = t.layers * tokens * t.hidden_size + depth * patches * v.hidden_size
        named = t.layers * tokens * ((2 * t.heads + 2 * t.kv_heads) * t.head_dim + 2 * t.intermediate_size)
        named += depth * patches * (4 * v.hidden_size + v.intermediate_size)
        kept += {"full": 0, "offload": 0, "minimal": named / tensor, "none": 2 * named / tensor}[self.remat]
        working = 2 * tokens * (3 * t.intermediate_size + 4 * t.heads * t.head_dim) / tensor
        working = max(working, 2 * patches * (2 * v.intermediate_size + 8 * v.hidden_size) / tensor)
        taps = (len(v.taps) + 1) * patches / v.merge_size**2 * t.hidden_size
        layer = parameters.count(self.cfg) / (t.layers + v.depth) / tensor
        table = t.vocab_size * t.hidden_size * 8 / (tensor if t.vocab_size % tensor == 0 else 1)
        logits = 3 * 4 * self.rows * TARGET_CHUNK * t.vocab_size / tensor
        return gradients + 2 * (kept + working + 2 * taps + 2 * layer) + table + logits

    def fallbacks(self) -> list[tuple[meshes.Fallback, float]]:
        """Parameter axes that no mesh axis divides, with the float32 bytes of that parameter on every device."""
        return [
            (fallback, 4 * self._held(row))
            for row in self.trainable.rows
            for fallback in meshes.resolve(row, self.sizes)[1]
        ]
