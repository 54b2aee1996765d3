"""Prompts that begin alike share a row of a pass: what they have in common is read once.

All prompts of a model begin with the same tokens of its template, the questions of a benchmark with the same shots, and
the options of a question with the question. Under a causal model a token depends on nothing but what precedes it, so
that a row may hold a tree of tokens, of which each reads the path that leads to it, at the position that it has there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_cmp.model.batching import Batch

MOST_TOKENS = 2048
"""Of a row that several prompts share."""
MOST_PROMPTS = 64
"""That share a row."""
LINEAR_WORK = 6
"""What a block's matrices cost a token, in widths: as much as attention to six times as many tokens as d."""


@dataclass(frozen=True)
class Pack:
    """Prompts that go into one row, by their indices, and the tokens that it takes."""

    prompts: tuple[int, ...]
    tokens: int

    def size(self) -> int:
        """How many prompts it has."""
        return len(self.prompts)

    def of(self, indices: Sequence[int]) -> Pack:
        """The pack of prompts that are some of others, by the indices that they have among those."""
        return Pack(tuple(indices[index] for index in self.prompts), self.tokens)


def packs(
    sequences: Sequence[Sequence[int]],
    width: int,
    most: int,
    longest: int = MOST_TOKENS,
    fits: Callable[[Pack], bool] = lambda _: True,
) -> list[Pack]:
    """Prompts in packs, so that reading them costs least; the shortest packs first.

    Of the prompts in lexicographic order neighbours share most, and what is found is the cheapest way to cut that order
    into rows: sharing saves tokens, and each token reads a longer row.

    Parameters
    ----------
    sequences
        Token ids of each prompt.
    width
        Of the residual stream, which says what attention costs beside the rest.
    most
        Prompts that may share a row; 1: none do.
    longest
        Tokens of a row that several share.
    fits
        Whether memory allows a pack of several; one that does not fit is made anew of at most half as many.
    """
    order = sorted(range(len(sequences)), key=lambda index: (sequences[index], index))
    found = _cut([sequences[index] for index in order], width, min(most, MOST_PROMPTS), longest)
    result = []
    for begin, end, tokens in found:
        pack = Pack(tuple(order[begin:end]), tokens)
        if end - begin == 1 or fits(pack):
            result.append(pack)
            continue
        halves = packs([sequences[index] for index in pack.prompts], width, (end - begin) // 2, longest, fits)
        result += [half.of(pack.prompts) for half in halves]
    return sorted(result, key=lambda pack: (pack.tokens, pack.prompts))


def _cut(sequences: Sequence[Sequence[int]], width: int, most: int, longest: int) -> list[tuple[int, int, int]]:
    """Where sorted prompts are cut into packs at the least cost: begin, end and tokens of each."""
    lengths = list(map(len, sequences))
    shared = [0, *itertools.starmap(_in_common, itertools.pairwise(sequences))]
    least: list[tuple[int, int, int]] = [(0, 0, 0)]  # of the prompts before each: cost, begin and tokens of the last
    for end in range(1, len(sequences) + 1):
        options, after = [], 0
        for begin in range(end - 1, max(-1, end - 1 - most), -1):
            tokens = lengths[begin] + after
            if begin < end - 1 and tokens > longest:
                break
            options.append((least[begin][0] + tokens * (LINEAR_WORK * width + tokens), begin, tokens))
            after += lengths[begin] - shared[begin]
        least.append(min(options))
    found, end = [], len(sequences)
    while end:
        _, begin, tokens = least[end]
        found.append((begin, end, tokens))
        end = begin
    return found


@dataclass(frozen=True)
class PackedBatch(Batch):
    """Rows of tokens that several prompts share; what is wanted of a prompt is found along its path.

    `ids` (r, t) and `mask` (r, t) are of the rows, which are padded on the right.
    """

    positions: Int[Tensor, "r t"]
    reads: Float[Tensor, "r 1 t t"]
    """Zero where a token reads another, and as good as -∞ elsewhere: what is added to attention's scores."""
    where: Int[Tensor, "n s"]
    there: Bool[Tensor, "n s"]

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[Sequence[int]]], *, pad: int, dtype: torch.dtype, device: torch.device
    ) -> PackedBatch:
        """The batch of some rows, each of the token ids of its prompts.

        The prompts are in the order of the rows and, in a row, in that in which they are given.
        """
        trees = [_tree(sequences) for sequences in rows]
        size = max(len(tokens) for tokens, _ in trees)
        ids = torch.full((len(rows), size), pad)
        mask = torch.zeros((len(rows), size), dtype=torch.bool)
        positions = torch.zeros((len(rows), size), dtype=torch.long)
        reads = torch.eye(size, dtype=torch.bool).repeat(len(rows), 1, 1)
        longest = max(len(path) for _, paths in trees for path in paths)
        where, there = [], []
        for row, (tokens, paths) in enumerate(trees):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
            for path in map(torch.tensor, paths):
                positions[row, path] = torch.arange(len(path))
                reads[row, path[:, None], path] |= torch.ones(len(path), len(path), dtype=torch.bool).tril()
                left = longest - len(path)
                where.append(torch.cat([path[:1].expand(left), path]) + row * size)
                there.append(torch.arange(longest) >= left)
        bias = torch.zeros(reads.shape, dtype=dtype).masked_fill(~reads, torch.finfo(dtype).min)[:, None]
        parts = (ids, mask, positions, bias, torch.stack(where), torch.stack(there))
        return cls(*(part.to(device) for part in parts))

    @property
    def position_ids(self) -> Int[Tensor, "r t"]:
        """Positions counted from each prompt's first token."""
        return self.positions

    @property
    def paths(self) -> Int[Tensor, "n s"]:
        """Where in `ids.flatten()` the tokens of each prompt are, padded on the left with the first."""
        return self.where

    @property
    def path_mask(self) -> Bool[Tensor, "n s"]:
        """Where `paths` is no padding."""
        return self.there

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What `forward` is given."""
        return {"input_ids": self.ids, "attention_mask": self.reads, "position_ids": self.positions}

    def repeated(self, times: int) -> PackedBatch:
        """The batch `times` times over, one copy after the other."""
        rows, first = len(self.ids), torch.arange(times, device=self.ids.device) * self.ids.numel()
        return PackedBatch(
            self.ids.repeat(times, 1),
            self.mask.repeat(times, 1),
            self.positions.repeat(times, 1),
            self.reads.expand(times, -1, -1, -1) if rows == 1 else self.reads.repeat(times, 1, 1, 1),
            (self.where + first[:, None, None]).flatten(0, 1),
            self.there.repeat(times, 1),
        )

    def last(self, x: Float[Tensor, "r t d"], n: int = 1) -> Float[Tensor, "n m d"]:
        """Of what there is for every token of the rows, that of each prompt's last `n` tokens."""
        return x.flatten(0, 1)[self.where[:, -n:].to(x.device)]

    def __len__(self) -> int:
        return len(self.where)


def _in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    return next((n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def _tree(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The tokens of a row, and the path of each prompt through it; neighbours share what they begin with."""
    tokens: list[int] = []
    paths: list[list[int]] = []
    for index, sequence in enumerate(sequences):
        shared = _in_common(sequences[index - 1], sequence) if index else 0
        path = [*(paths[-1][:shared] if index else ()), *range(len(tokens), len(tokens) + len(sequence) - shared)]
        tokens += sequence[shared:]
        paths.append(path)
    return tokens, paths
