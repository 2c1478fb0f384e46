"""Answers: the images are read once, then all questions about them are answered side by side from the shared cache.

This is the host's part (what goes into which call, who sits where, cutting); the device's is `infer/decode.py`, whose
letters are used here. Shapes come in buckets, so that few programs are compiled; answers depend on them by rounding
only.
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlm3_jax.errors import NotFinite, UserError
from vlm3_jax.infer.buckets import bucket
from vlm3_jax.infer.decode import BROKEN, Context, Until, programs
from vlm3_jax.infer.drafts import NO_LIMIT, Drafts
from vlm3_jax.infer.kept import Kept
from vlm3_jax.infer.lanes import side_by_side
from vlm3_jax.infer.places import Places, Seated, Written
from vlm3_jax.infer.prefix import content, prefix_batch, with_shared_head
from vlm3_jax.infer.sampling import GREEDY, Draw, Sampling, identity
from vlm3_jax.infer.tree import Numbers, TreePlan, alphabet_of, grow, root_of
from vlm3_jax.infer.weights import layer_by_layer
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import ImageLayout, VisionSpec
from vlm3_jax.processor.prompt import Prompt, prompt_sample

# New tokens that the caches have room for at first; longer answers make them grow.
FIRST_ROOM = 64
# Tokens of questions that go through the model at once: more are faster until they no longer fit a CPU's cache.
_FILL_TOKENS = {"cpu": 1024}
_FILL_ELSEWHERE = 8192
# On a CPU the questions of a call are answered in so many lanes, if they have so many places.
_LANES, _FOR_LANES = 2, 32
# The questions' own caches take at most so much.
_MOST_BYTES = 1 << 31
# Trees grow at once as long as their nodes have at most so many logits.
_MOST_LOGITS = 1 << 26


class Call(NamedTuple):
    """Work for the device: (number of a prompt, its questions) for each of up to `rows` image sets, B = `rows`."""

    parts: list[tuple[int, list[int]]]
    rows: int
    places: int


class Explored(NamedTuple):
    """A greedy answer, and its first number in all likely forms."""

    text: str
    numbers: Numbers


@dataclasses.dataclass
class Engine:
    """Answers of one model.

    `image_sets`: how many image sets and `questions`: how many questions of each are answered side by side; an image
    set with many questions gets the places of several. `max_new_tokens`: the length at which an answer is cut. `mesh`:
    what `params` are sharded over, if they are; image sets are spread over its replica and fsdp axes where these divide
    their number. `keep_bytes`: so much of what was seen and read is kept for later calls about the same images, and
    drafts are learnt from call to call; with 0 a call depends on nothing before it.
    """

    cfg: VLMConfig
    params: dict
    chat: ChatFormat
    spec: VisionSpec
    dtype: jnp.dtype = jnp.float32
    mesh: Mesh | None = None
    image_sets: int = 8
    questions: int = 16
    max_new_tokens: int = 256
    keep_bytes: int = 0

    def __post_init__(self):
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens!r}, but must be a whole number of at least 1")
        if self.mesh is not None and self.mesh.size == 1:
            self.mesh = None
        if self.mesh is None:
            on_cpu = jax.default_backend() == "cpu"
            self.params = jax.device_put(layer_by_layer(self.params) if on_cpu else self.params)
        shape = {} if self.mesh is None else self.mesh.shape
        self._spread = self.mesh is not None and self.image_sets % (shape["replica"] * shape["fsdp"]) == 0
        self._programs = programs(self.cfg, self.dtype, self.mesh, self._spread)
        self._kept, self._drafts = Kept(self.keep_bytes), [Drafts() for _ in range(_LANES)]
        self._compiling = threading.Lock()

    def answer(
        self,
        images: Sequence[tuple[ImageLayout, ...]],
        questions: Sequence[Sequence[str]],
        sampling: Sampling = GREEDY,
    ) -> list[list[str]]:
        """The answers to all questions about each image set, in the order given."""
        answers = self._generate(*self._prompts(images, questions), sampling)
        return [[self.chat.decode(tokens) for tokens, _ in rows] for rows in answers]

    def explore(
        self,
        images: Sequence[tuple[ImageLayout, ...]],
        questions: Sequence[Sequence[str]],
        plan: TreePlan = TreePlan(),  # noqa: B008
    ) -> list[list[Explored]]:
        """As `answer`, greedily, and with each answer the probabilities of what may stand in its number's place."""
        answers = self._generate(*self._prompts(images, questions), GREEDY, plan)
        return [[Explored(self.chat.decode(tokens), numbers) for tokens, numbers in rows] for rows in answers]

    def _prompts(self, images, questions):
        """The prompts, and what loads the patches of one by its number."""
        prompts = [prompt_sample(layouts, asked, self.chat) for layouts, asked in zip(images, questions, strict=True)]
        return prompts, lambda i: [layout.load(self.spec) for layout in prompts[i].images]

    def generate(
        self,
        prompts: Sequence[Prompt],
        patches: Sequence[Sequence[np.ndarray]],
        sampling: Sampling = GREEDY,
    ) -> list[list[list[int]]]:
        """New token ids of every question of every prompt, up to (not with) the first stop token.

        `patches`: for each prompt those of its images in order, what `ImageLayout.load` gives: uint8 still patches [n,
        C * p * p], or float32 [n, C * T * p * p], already normalised; one kind in all prompts. Prompts and
        questions may be of any number and length; those of similar size share a call to the device.
        """
        answers = self._generate(prompts, lambda i: patches[i], sampling)
        return [[tokens for tokens, _ in rows] for rows in answers]

    def _generate(self, prompts, load: Callable[[int], Sequence[np.ndarray]], sampling: Sampling, plan=None):
        """(tokens, numbers) of all questions; the patches of a prompt are loaded when its turn comes.

        With a `plan` trees are grown, else the numbers are empty.
        """
        answers = [[([], Numbers()) for _ in prompt.suffix_tokens] for prompt in prompts]
        for call in self._calls(prompts):
            asked = [_only(prompts[i], chosen) for i, chosen in call.parts]
            patches = [load(i) for i, _ in call.parts]
            for b, q, row, numbers in self._call(asked, patches, call, sampling, plan):
                i, chosen = call.parts[b]
                answers[i][chosen[q]] = _until(row, self.chat.stop_ids), numbers
        return answers

    def _calls(self, prompts: Sequence[Prompt]) -> list[Call]:
        """Prompts of similar size share a call; one with many questions has it for itself."""
        total, most = self.image_sets * self.questions, self._most_places(prompts)
        parts, alone = [], []
        for i, prompt in enumerate(prompts):
            size = sum(layout.n_patches for layout in prompt.images), len(prompt.prefix_tokens)
            asked = list(range(len(prompt.suffix_tokens)))
            if self.mesh is None and 2 * len(asked) >= total:
                alone.append((i, asked))
            elif asked:
                # The rows of a mesh are all there: each gets some of the questions.
                pieces = 1 if self.mesh is None else min(self.image_sets, -(-len(asked) // self.questions))
                parts += [(size, i, asked[piece::pieces]) for piece in range(pieces)]
        parts.sort(key=lambda part: part[0])
        groups = [parts[first : first + self.image_sets] for first in range(0, len(parts), self.image_sets)]
        calls = [Call([part], 1, min(bucket(len(part[1]), 1), max(1, min(total, most)))) for part in alone]
        for group in groups:
            rows = self.image_sets if self.mesh is not None else min(self.image_sets, bucket(len(group), 1))
            widest = bucket(max(len(asked) for *_, asked in group), 1)
            places = max(1, min(widest, total // rows, most // rows))
            calls.append(Call([(i, asked) for _, i, asked in group], rows, places))
        return calls

    def _most_places(self, prompts: Sequence[Prompt]) -> int:
        """How many questions' own caches are held at once."""
        text = self.cfg.text
        longest = max((len(tokens) for prompt in prompts for tokens in prompt.suffix_tokens), default=0)
        column = 2 * text.layers * text.kv_heads * text.head_dim * jnp.dtype(self.dtype).itemsize
        return max(1, _MOST_BYTES // (column * (longest + self.max_new_tokens)))

    def _call(self, prompts: list[Prompt], patches, call: Call, sampling: Sampling, plan: TreePlan | None):
        """Yields (number of the prompt, of its question, token ids with the stop token, numbers) as they are ready."""
        identities = None if sampling.greedy else _identities(prompts, patches)
        prompts = [with_shared_head(prompt) for prompt in prompts]
        context = self._context(prompts, patches, call.rows)
        # The same for all lanes, so that they share their programs.
        longest = bucket(max(len(tokens) for prompt in prompts for tokens in prompt.suffix_tokens), 8, 8)
        lanes = self._lanes(call)
        call = call._replace(places=-(-call.places // lanes))

        def lane(i: int):
            # Whose questions are whose is settled here, and not by the clock: so answers come out the same every time.
            own = [_only(prompt, range(i, len(prompt.suffix_tokens), lanes)) for prompt in prompts]
            drawn = identities and [of_prompt[i::lanes] for of_prompt in identities]
            drafts = self._drafts[i] if self.keep_bytes else Drafts()
            for b, q, *answer in self._lane(own, context, call, longest, sampling, drawn, drafts, plan):
                yield b, i + q * lanes, *answer

        return side_by_side([lane(i) for i in range(lanes)])

    def _lanes(self, call: Call) -> int:
        """In how many lanes the questions of a call are answered."""
        idle = self.mesh is None and jax.default_backend() == "cpu" and (os.cpu_count() or 1) >= _LANES
        return _LANES if idle and call.rows * call.places >= _FOR_LANES and call.places >= _LANES else 1

    def _lane(self, prompts: list[Prompt], context, call: Call, longest: int, sampling, identities, drafts, plan):
        """As `_call`, one question after the other taking a place; `longest` tokens of a question at most."""
        lengths = [[len(tokens) for tokens in prompt.suffix_tokens] for prompt in prompts]
        room = min(FIRST_ROOM, self.max_new_tokens)
        run, stops = self._programs, np.array(self.chat.stop_ids, np.int32)
        drawn = identities is not None
        # Calls return before their work is done, except when they compile: that once, and not in each lane.
        with self._compiling:
            state = run.open(context, places=call.places, columns=longest + room, room=room, drawn=drawn)
        places = Places(lengths, call.rows, call.places)
        at_once = _at_once() // (call.rows * longest)
        at_once = min(call.places, max(1, at_once))
        while not places.empty:
            while (called := places.seat(at_once)) is not None:
                asked = self._asked(prompts, called, longest)
                draw = _draw(sampling, identities, called)
                with self._compiling:
                    state = run.fill(self.params, context, state, *asked, self.max_new_tokens, stops, draw)
            before = Written.of(state)
            draft, steps = (None, NO_LIMIT) if drawn else drafts.plan(before, jax.default_backend())
            wake = max(1, min(at_once, call.places // 4)) * int(places.waiting.sum()) or NO_LIMIT
            until = Until(self.max_new_tokens, wake, places.waiting, steps)
            with self._compiling:
                if draft is None:
                    state = run.proceed(self.params, context, state, until, stops, _draw(sampling))
                else:
                    state = run.verify(self.params, context, state, self._put(draft), until, stops)
            written = self._finite(Written.of(state))
            if draft is not None:
                drafts.judge(draft, before, written)
            # Trees grow side by side: so many as make room for others, or all.
            ready = plan is None or written.done.all() or (written.done & places.waiting[:, None]).sum() >= wake
            left = places.leave(written.done & ready)
            answers = [written.answer(b, place) for b, place, _ in left]
            numbers = self._numbers(prompts, context, state, left, answers, plan)
            for (b, _, question), answer, one in zip(left, answers, numbers, strict=True):
                if not drawn:
                    drafts.learn(answer)
                yield b, question, answer, one
            if (written.count >= room)[~written.done].any():
                room = min(2 * room, self.max_new_tokens)
                with self._compiling:
                    state = run.grow(state, room=room)

    def _numbers(self, prompts, context, state, left, answers, plan: TreePlan | None) -> list[Numbers]:
        """The trees of those who leave their places, (b, place, question), with these answers."""
        found = [Numbers()] * len(left)
        if plan is None:
            return found
        alphabet, roots, waiting = alphabet_of(self.chat), {}, [[] for _ in range(len(context.start))]
        for i, ((b, _, question), answer) in enumerate(zip(left, answers, strict=True)):
            if (root := root_of(prompts[b].suffix_tokens[question], answer, alphabet, self.chat)) is not None:
                roots[i] = root
                waiting[b].append(i)
        tokens = min(_at_once(), _MOST_LOGITS // self.cfg.text.vocab_size)
        at_once = max(1, tokens // (len(waiting) * plan.width))
        at_once = min(at_once, bucket(max(map(len, waiting)), 1))
        columns = jax.tree.leaves(state.own)[0].shape[-1]
        for first in range(0, max(map(len, waiting)), at_once):
            trees = {(b, r): i for b, own in enumerate(waiting) for r, i in enumerate(own[first : first + at_once])}
            place = np.zeros((len(waiting), at_once), np.int32)
            for at, i in trees.items():
                place[at] = left[i][1]
            with self._compiling:
                grown = self._programs.take(state, self._put(place), more=plan.room)

            def follow(fed):
                nonlocal grown
                with self._compiling:
                    grown, logs = self._programs.follow(self.params, context, grown, self._put(fed), alphabet)
                return np.exp(np.asarray(logs))

            made = grow(follow, {at: roots[i] for at, i in trees.items()}, place.shape, columns, alphabet, plan)
            for at, numbers in made.items():
                found[trees[at]] = numbers
        return found

    def _finite(self, written: Written) -> Written:
        if (written.tokens == BROKEN).any():
            raise NotFinite(
                f"{self.chat.model_dir}: logits are not finite: its weights hold NaN or infinity, or values too large "
                f"for {jnp.dtype(self.dtype).name}"
            )
        return written

    def _context(self, prompts: list[Prompt], patches, rows: int) -> Context:
        """The prefixes of `rows` image sets; those of single ones are kept."""
        # Kernels of other devices have not been measured in answers; a mesh would loop over rows of all its devices.
        pairs = self.mesh is None and jax.default_backend() == "cpu"
        shown, text, start = prefix_batch(prompts, patches, rows, self.spec, pairs)
        if self.keep_bytes and len(prompts) == rows == 1:
            pixels = content(shown)
            key = "read", content(text), pixels
            return self._kept.get(key, lambda: self._read(shown, text, start, ("seen", pixels)))
        return self._read(shown, text, start)

    def _read(self, shown, text, start, key=None) -> Context:
        def see():
            return self._programs.see(self.params, self._put(shown))

        seen = see() if key is None else self._kept.get(key, see)
        return self._programs.read(self.params, seen, *self._put((text, start)))

    def _asked(self, prompts: list[Prompt], called: Seated, longest: int):
        """suffix int32 [B, R, M], lengths [B, R] and places [B, R] on the device."""
        lengths = np.zeros(called.question.shape, np.int32)
        for b, r in zip(*np.nonzero(called.question >= 0)):
            lengths[b, r] = len(prompts[b].suffix_tokens[called.question[b, r]])
        # Half and a quarter of the longest are sizes too: few programs, and short questions do not pay for long ones.
        sizes = [size for size in (longest // 4, longest // 2) if size >= max(8, lengths.max())]
        suffix = np.zeros((*lengths.shape, (*sizes, longest)[0]), np.int32)
        for b, r in zip(*np.nonzero(lengths)):
            suffix[b, r, : lengths[b, r]] = prompts[b].suffix_tokens[called.question[b, r]]
        return self._put((suffix, lengths, called.place))

    def _put(self, arrays):
        """Arrays with image sets as their first axis, where the mesh wants them."""
        if self.mesh is None:
            return arrays
        return jax.device_put(
            arrays, meshes.batch_sharding(self.mesh) if self._spread else meshes.replicated(self.mesh)
        )


def _identities(prompts: Sequence[Prompt], patches) -> list[np.ndarray]:
    """uint32 [questions, 2] for each prompt: what draws depend on."""
    found = []
    for prompt, arrays in zip(prompts, patches, strict=True):
        shown = identity([prompt.prefix_tokens, *arrays])
        found.append(np.stack([identity([shown, tokens]) for tokens in prompt.suffix_tokens]))
    return found


def _draw(sampling: Sampling, identities=None, called: Seated | None = None) -> Draw | None:
    """For those who are called, or for all in their places."""
    if called is None or sampling.greedy:
        return Draw.make(sampling, None)
    rows = np.zeros((*called.question.shape, 2), np.uint32)
    for b, r in zip(*np.nonzero(called.question >= 0)):
        rows[b, r] = identities[b][called.question[b, r]]
    return Draw.make(sampling, rows)


def _at_once() -> int:
    """How many tokens of questions, or of trees, go through the model at once."""
    return _FILL_TOKENS.get(jax.default_backend(), _FILL_ELSEWHERE)


def _only(prompt: Prompt, chosen: Sequence[int]) -> Prompt:
    """The prompt with the chosen questions."""
    return dataclasses.replace(
        prompt,
        suffix_tokens=tuple(prompt.suffix_tokens[q] for q in chosen),
        suffix_positions=tuple(prompt.suffix_positions[q] for q in chosen),
    )


def _until(row: list[int], stops: Sequence[int]) -> list[int]:
    """The tokens before the first stop token."""
    return row[: next((i for i, token in enumerate(row) if token in stops), len(row))]
