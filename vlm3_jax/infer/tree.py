"""The probabilities of a number's digits: a tree of continuations, grown on the caches of the question and its answer.

A greedy answer tells one number; the model has an opinion on all others. Up to the number's first digit the answer is
taken as it is, then every likely digit is followed, level by level, all questions side by side: a node is one token
that sees the images, the question, the answer's first words and the nodes above it.

Here is the host's part; the engine's programs run the nodes. Letters as in `infer/decode.py`: B image sets, R trees of
each, W nodes of a level, U own tokens, A tokens that numbers are made of.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vlm3_jax.infer.buckets import bucket
from vlm3_jax.infer.decode import Fed
from vlm3_jax.processor.chat import ChatFormat

CHARACTERS = "0123456789."


@dataclasses.dataclass(frozen=True)
class TreePlan:
    """`width`: nodes of a level that are followed at most, `least`: the probability of the least likely of them.

    `levels`: tokens of a number at most; `decimals`: digits behind the point after which nothing is followed.
    """

    width: int = 16
    least: float = 0.003
    levels: int = 6
    decimals: int = 2

    @property
    def room(self) -> int:
        """Columns that the nodes of a tree take."""
        return self.width * (self.levels - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """What a model may write in place of a number: `texts` with their `probabilities` float64 [n] (sum at most 1).

    None where its answer holds no number. A number that was not followed to its end counts as if it ended there.
    """

    texts: tuple[str, ...] = ()
    probabilities: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    @property
    def values(self) -> np.ndarray:
        """The numbers, float64 [n]."""
        return np.array([float(text) for text in self.texts])

    @property
    def unit(self) -> float:
        """What the last digit of the most probable one counts."""
        return 10.0 ** -len(self.texts[int(np.argmax(self.probabilities))].partition(".")[2])


class Root(NamedTuple):
    """The `token` before a number, and the `column` of the question's own tokens that is its."""

    token: int
    column: int


def alphabet_of(chat: ChatFormat) -> np.ndarray:
    """The token of each of `CHARACTERS`, int32 [A]: Qwen's tokenizer splits numbers into digits."""
    ids = [chat.encode_text(character) for character in CHARACTERS]
    assert all(len(one) == 1 for one in ids), "a digit is more than one token"
    return np.array(ids, np.int32)[:, 0]


def root_of(question: Sequence[int], answer: Sequence[int], alphabet: np.ndarray, chat: ChatFormat) -> Root | None:
    """Where the first number of an answer begins, both as tokens; None if it has none."""
    *digits, point = alphabet.tolist()
    first = next((place for place, token in enumerate(answer) if token in digits), None)
    if first and answer[first - 1] == point:
        first -= 1
    elif first and chat.decode([answer[first - 1]]).endswith("."):
        # Where the number begins, within this token, no tree can.
        first = None
    if first is None:
        return None
    return Root(int(answer[first - 1] if first else question[-1]), len(question) + first - 1)


@dataclasses.dataclass
class _Node:
    """`text` of the number so far; `path`: the columns of the nodes above it and its own."""

    text: str
    probability: float
    path: tuple[int, ...] = ()


@dataclasses.dataclass
class _Tree:
    """Its `level` of nodes that was run last, and the `leaves` so far: (text, probability)."""

    root: Root
    level: list[_Node] = dataclasses.field(default_factory=lambda: [_Node("", 1.0)])
    leaves: list[tuple[str, float]] = dataclasses.field(default_factory=list)


def grow(
    follow: Callable[[Fed], np.ndarray],
    roots: Mapping[tuple[int, int], Root],
    shape: tuple[int, int],
    columns: int,
    alphabet: np.ndarray,
    plan: TreePlan,
) -> dict[tuple[int, int], Numbers]:
    """The tree of each root, by its place (b, r) in `shape` = (B, R).

    `follow` runs tokens and gives the probabilities [B, R, W, A] of the `alphabet` after each; `columns` are taken by
    questions and answers, behind which there are `plan.room` for nodes.
    """
    trees = {place: _Tree(root) for place, root in roots.items()}
    end = columns + plan.room
    fed = _nobody(shape, 1, end)
    for place, tree in trees.items():
        token, column = tree.root
        fed.tokens[place], fed.offsets[place], fed.columns[place] = token, column, column
        fed.seen[place][:, : column + 1] = True
    for depth in range(plan.levels):
        probabilities = follow(fed)
        for place, tree in trees.items():
            tree.level = _children(tree, probabilities[place], plan, last=depth == plan.levels - 1)
        widest = max((len(tree.level) for tree in trees.values()), default=0)
        if not widest:
            break
        fed = _nobody(shape, min(plan.width, bucket(widest, 4, 1)), end)
        for place, tree in trees.items():
            for w, node in enumerate(tree.level):
                column = columns + w
                node.path = (*node.path, column)
                fed.tokens[place][w], fed.columns[place][w] = alphabet[CHARACTERS.index(node.text[-1])], column
                fed.seen[place][w, list(node.path)] = True
            fed.offsets[place] = tree.root.column + 1 + depth
            fed.seen[place][: len(tree.level), : tree.root.column + 1] = True
        columns += fed.tokens.shape[2]
    return {place: _numbers(tree.leaves) for place, tree in trees.items()}


def _nobody(shape: tuple[int, int], width: int, columns: int) -> Fed:
    """No tokens yet."""
    tokens, offsets = np.zeros((2, *shape, width), np.int32)
    return Fed(tokens, offsets, np.full_like(tokens, columns), np.zeros((*tokens.shape, columns), bool))


def _children(tree: _Tree, probabilities, plan: TreePlan, last: bool) -> list[_Node]:
    """The nodes below, the likely ones; all other ways on become leaves, as does an end of the number."""
    found, leaves = [], tree.leaves
    for parent, row in zip(tree.level, probabilities):
        if _is_number(parent.text):
            leaves.append((parent.text, parent.probability * max(0.0, 1.0 - float(row.sum()))))
        for character, share in zip(CHARACTERS, row.tolist()):
            if character != "." or "." not in parent.text:
                found.append(_Node(parent.text + character, parent.probability * share, parent.path))
    found.sort(key=lambda node: -node.probability)
    followed = []
    for node in found:
        done = len(node.text.partition(".")[2]) >= plan.decimals
        if not done and not last and node.probability >= plan.least and len(followed) < plan.width:
            followed.append(node)
        # How many digits a number before its point will have is not known; behind it, further ones change little.
        elif _is_number(node.text) and "." in node.text:
            leaves.append((node.text, node.probability))
    return followed


def _numbers(leaves: list[tuple[str, float]]) -> Numbers:
    return Numbers(tuple(text for text, _ in leaves), np.array([probability for _, probability in leaves]))


def _is_number(text: str) -> bool:
    return any(character.isdigit() for character in text)
