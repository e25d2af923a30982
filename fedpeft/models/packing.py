"""Positions of the real tokens of a padded batch in one packed sequence, and attention on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STEP = 32
"""Packed tokens are filled up to a multiple of this, because oneDNN creates a kernel for every size of a product."""

Group = tuple[slice, slice]
"""Adjacent clients with equally many tokens each, and their tokens."""


@dataclass
class Packing:
    """Positions of the tokens of a padded batch (B, T) in the packed sequence (1, N).

    Attributes:
        places: indices of the real tokens among the B * T, (n,) with n <= N; the rest of N is filled up.
        runs: (rows, tokens) of adjacent rows of equal length; together they contain the n tokens.
        groups: groups of clients, in order.
        shape: (B, T).
        size: N.
        attended: number of calls of `attend`.
    """

    places: Tensor
    runs: tuple[tuple[int, int], ...]
    groups: tuple[Group, ...]
    shape: tuple[int, int]
    size: int
    attended: int = 0

    @classmethod
    def from_mask(cls, mask: Tensor, clients: int) -> Packing:
        """Create the packing for a mask (B, T) of real tokens, at least one in a row.

        Each client has B / `clients` adjacent rows.
        """
        lengths = mask.sum(1).tolist()
        runs: list[tuple[int, int]] = []
        for length in lengths:
            if runs and runs[-1][1] == length:
                runs[-1] = (runs[-1][0] + 1, length)
            else:
                runs.append((1, length))
        each = len(lengths) // clients
        groups: list[Group] = []
        end = 0
        for k in range(clients):
            tokens = sum(lengths[k * each : (k + 1) * each])
            whose, before = groups[-1] if groups else (slice(0, 0), slice(0, 0))
            if groups and before.stop - before.start == tokens * (whose.stop - whose.start):
                groups[-1] = (slice(whose.start, k + 1), slice(before.start, end + tokens))
            else:
                groups.append((slice(k, k + 1), slice(end, end + tokens)))
            end += tokens
        size = -(-end // STEP) * STEP
        places = mask.flatten().nonzero().flatten()
        return cls(places, tuple(runs), tuple(groups), (mask.shape[0], mask.shape[1]), size)

    def pack(self, x: Tensor) -> Tensor:
        """Pack (B, T, ...) to (1, N, ...), filled up with zeros."""
        packed = x.new_zeros(self.size, *x.shape[2:])
        packed[: len(self.places)] = x.flatten(0, 1).index_select(0, self.places)
        return packed.unsqueeze(0)

    def pad(self, x: Tensor) -> Tensor:
        """Unpack (1, N, d) to (B, T, d), with zeros for padding."""
        flat = x.new_zeros(self.shape[0] * self.shape[1], x.shape[-1])
        return flat.index_copy(0, self.places, x[0, : len(self.places)]).view(*self.shape, -1)

    def attend(self, attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Apply a padded attention function to (1, heads, N, width) each without padding: (1, N, heads, width).

        Args:
            attention: takes (B, heads, T, width) three times and returns (B, T, heads, width).
            query: queries of the packed tokens.
            key: keys of the packed tokens.
            value: values of the packed tokens.
        """
        self.attended += 1
        sizes = [rows * tokens for rows, tokens in self.runs]
        rest = self.size - sum(sizes)
        cut = [torch.split(t[0].transpose(0, 1), [*sizes, rest]) for t in (query, key, value)]
        outputs = [
            attention(*(part.unflatten(0, run).transpose(1, 2) for part in parts)).flatten(0, 1)
            for run, *parts in zip(self.runs, *cut, strict=False)
        ]
        outputs.append(cut[0][-1].new_zeros(rest, *outputs[0].shape[1:]))
        return torch.cat(outputs).unsqueeze(0)
