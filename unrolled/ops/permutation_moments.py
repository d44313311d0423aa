"""Exact first three moments of T = sum_ij A_ij B_p(i)p(j) over all permutations p, for any square matrices A and B.

T^e is a sum over e pairs of indices (i1, j1), ..., (ie, je). Which of these 2e indices coincide is a pattern, a
partition of them; a permutation keeps the pattern and takes every choice of v distinct indices to every other equally
often, so

    E[T^e] = sum over patterns of S(A) S(B) / (n (n-1) ... (n - v + 1)),

with S the sum over all choices of distinct indices of that pattern. S follows from the sums in which indices of
different blocks may be equal too (Moebius inversion over coarser partitions), and these are small contractions: leaves
of the graph whose edges are the pairs fold into vectors, and what is left is a number of parallel edges or a triangle.
Patterns that differ by the order of the factors (for symmetric matrices: of a pair too) are computed once.

For matrices with zero row sums these are the moments of Kazi-Aoual et al. 1995; for hollow ones those of Mantel 1967
and Siemiatycki 1978. Cost: O(n^2), and one product A A for the third moment; for
matrices of few factors O(n) but for one sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

Pattern = tuple[int, ...]  # block of each of the 2e indices, blocks numbered as they appear
Edge = tuple[int, int]


@dataclass(frozen=True)
class OrbitSums:
    """S of the module docstring for one matrix: per order e = 1, 2, 3 one number for each class of patterns."""

    n: int
    symmetric: bool
    sums: tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Factors:
    """A symmetric [n, n] matrix as left right', both [n, r] float64; without its diagonal if `hollow`."""

    left: Tensor
    right: Tensor
    hollow: bool

    @classmethod
    def of_kernel(cls, x: Tensor, *, hollow: bool) -> Factors:
        """The linear kernel of centred features [n, d], U-centred if `hollow`, over its Frobenius norm."""
        n, x = len(x), x.double()
        left, right = x, x
        if hollow:  # k - s1' - 1s' + c off the diagonal, see `gram.u_center`
            shift = -x.square().sum(1) / (n - 2)
            level = shift.sum() / (n - 1)
            one = torch.ones_like(shift)
            left, right = torch.stack([shift, one], 1), torch.stack([-one, level - shift], 1)
            left, right = torch.cat([x, left], 1), torch.cat([x, right], 1)
        norm = cls(left, right, hollow).squares(torch.ones_like(x[:, 0])).sum().sqrt()
        return cls(left / norm, right, hollow)

    @property
    def on(self) -> Tensor:
        """[n] diagonal of left right', which a hollow matrix lacks."""
        return (self.left * self.right).sum(1)

    def squares(self, v: Tensor) -> Tensor:
        """[n] products of the matrix of squared entries with v [n]."""
        product = ((self.left @ (self.right.T @ (v[:, None] * self.right))) * self.left).sum(1)
        return product - self.on.square() * v if self.hollow else product


def orbit_sums(matrix: Tensor | Factors | Any, *, symmetric: bool) -> OrbitSums:
    """Of a [n, n] tensor or SciPy sparse matrix; `symmetric` must be the same for both matrices of a pair."""
    graph: _Graph
    if isinstance(matrix, Factors):
        graph = _Factored(matrix)
    else:
        graph = _Sparse(matrix) if sparse.issparse(matrix) else _Dense(matrix, symmetric=symmetric)
    return OrbitSums(graph.n, symmetric, tuple(_sums(graph, order, symmetric) for order in (1, 2, 3)))  # type: ignore[arg-type]


def permutation_moments(a: Sequence[OrbitSums], b: Sequence[OrbitSums]) -> np.ndarray:
    """[3, len(a), len(b)] raw moments E[T], E[T^2], E[T^3] of every pair."""
    out = []
    for order in (1, 2, 3):
        classes = _classes(order, a[0].symmetric)
        weight = np.array([each.count / max(1, math.perm(a[0].n, each.vertices)) for each in classes.kinds])
        left, right = (np.stack([each.sums[order - 1] for each in side]) for side in (a, b))
        out.append((left * weight) @ right.T)
    return np.stack(out)


@dataclass(frozen=True)
class _Kind:
    pattern: Pattern
    vertices: int
    count: int


@dataclass(frozen=True)
class _Classes:
    kinds: list[_Kind]
    moebius: np.ndarray


@cache
def _classes(order: int, symmetric: bool) -> _Classes:
    """Classes of patterns, and the matrix that takes sums over free indices to sums over distinct ones."""
    members: dict[Pattern, list[Pattern]] = {}
    for pattern in _partitions(2 * order):
        members.setdefault(_canonical(pattern, symmetric), []).append(pattern)
    kinds = [_Kind(pattern, max(pattern) + 1, len(group)) for pattern, group in members.items()]
    place = {kind.pattern: i for i, kind in enumerate(kinds)}
    moebius = np.zeros((len(kinds), len(kinds)))
    for i, kind in enumerate(kinds):
        for merge in _partitions(kind.vertices):
            sizes = [merge.count(block) for block in set(merge)]
            sign = math.prod((-1) ** (size - 1) * math.factorial(size - 1) for size in sizes)
            coarser = _numbered(merge[block] for block in kind.pattern)
            moebius[i, place[_canonical(coarser, symmetric)]] += sign
    return _Classes(kinds, moebius)


def _partitions(n: int) -> list[Pattern]:
    """All set partitions of n things."""
    partitions: list[Pattern] = [(0,)]
    for _ in range(n - 1):
        partitions = [(*p, block) for p in partitions for block in range(max(p) + 2)]
    return partitions


def _numbered(blocks: Any) -> Pattern:
    names: dict[int, int] = {}
    return tuple(names.setdefault(block, len(names)) for block in blocks)


@cache
def _canonical(pattern: Pattern, symmetric: bool) -> Pattern:
    edges = list(itertools.pairwise(pattern))[::2]
    turns = list(itertools.product((False, True), repeat=len(edges))) if symmetric else [(False,) * len(edges)]
    return min(
        _numbered(v for (i, j), turned in zip(shuffled, turn, strict=True) for v in ((j, i) if turned else (i, j)))
        for shuffled in itertools.permutations(edges)
        for turn in turns
    )


def _sums(graph: _Graph, order: int, symmetric: bool) -> np.ndarray:
    classes, known = _classes(order, symmetric), {}
    free = np.zeros(len(classes.kinds))
    for i, kind in enumerate(classes.kinds):
        value = 1.0
        for component in _components(list(itertools.pairwise(kind.pattern))[::2]):
            key = _canonical(_numbered(v for edge in component for v in edge), symmetric)
            if key not in known:
                known[key] = _contract(graph, list(itertools.pairwise(key))[::2])
            value *= known[key]
        free[i] = value
    distinct: np.ndarray = classes.moebius @ free
    return distinct


def _components(edges: list[Edge]) -> list[list[Edge]]:
    parts: list[list[Edge]] = []
    for edge in edges:
        touching = [part for part in parts if any(set(edge) & set(other) for other in part)]
        parts = [part for part in parts if part not in touching] + [[e for part in touching for e in part] + [edge]]
    return parts


def _contract(graph: _Graph, edges: list[Edge]) -> float:
    """Sum over all values of the vertices of the product of A over the edges of a connected graph."""
    weight = {vertex: graph.ones() for edge in edges for vertex in edge}
    for vertex, other in list(edges):
        if vertex == other:
            weight[vertex] = weight[vertex] * graph.diagonal()
            edges.remove((vertex, other))
    return _fold(graph, edges, weight)


def _fold(graph: _Graph, edges: list[Edge], weight: dict[int, Any]) -> float:
    leaves = [v for v in weight if sum(v in edge for edge in edges) == 1]
    if leaves:
        leaf = leaves[0]
        edge = next(e for e in edges if leaf in e)
        other = edge[1] if edge[0] == leaf else edge[0]
        moved = graph.product(weight.pop(leaf), transposed=edge[0] == leaf)
        weight[other] = weight[other] * moved
        edges.remove(edge)
        return _fold(graph, edges, weight)
    if not edges:
        (only,) = weight.values()
        return float(only.sum())
    if len(weight) == 2:
        (u, left), (_, right) = weight.items()
        forward = sum(edge[0] == u for edge in edges)
        return graph.parallel(forward, len(edges) - forward, left, right)
    starts = {edge[0] for edge in edges}
    return graph.triangles(cyclic=len(starts) == 3)


class _Dense:
    def __init__(self, matrix: Tensor, *, symmetric: bool):
        self._a, self._symmetric = matrix.double(), symmetric
        self.n = len(matrix)
        self._products: dict[tuple[bytes, bool], Tensor] = {}
        self._powers: dict[tuple[int, int], Tensor] = {}
        self._triangles: dict[bool, float] = {}

    def ones(self) -> Tensor:
        return self._a.new_ones(self.n)

    def diagonal(self) -> Tensor:
        return self._a.diagonal()

    def product(self, v: Tensor, *, transposed: bool) -> Tensor:
        transposed = transposed and not self._symmetric
        key = v.cpu().numpy().tobytes(), transposed  # many patterns share their leaves
        if key not in self._products:
            self._products[key] = self._a.T @ v if transposed else self._a @ v
        return self._products[key]

    def parallel(self, forward: int, backward: int, left: Tensor, right: Tensor) -> float:
        return float(left @ (self._power(forward, backward) @ right))

    def triangles(self, *, cyclic: bool) -> float:
        cyclic = cyclic and not self._symmetric
        if cyclic not in self._triangles:
            small = self._a.float()  # a relative error of 1e-6 is nothing to a third moment
            if self._symmetric:
                self._triangles[cyclic] = _symmetric_triangles(small)
            else:
                self._triangles[cyclic] = float(((small @ small) * (self._a.T if cyclic else self._a)).sum())
        return self._triangles[cyclic]

    def _power(self, forward: int, backward: int) -> Tensor:
        if self._symmetric:
            forward, backward = forward + backward, 0
        if (forward, backward) not in self._powers:
            if forward + backward == 1:
                power = self._a if forward else self._a.T
            elif forward:
                power = self._power(forward - 1, backward) * self._a
            else:
                power = self._power(0, backward - 1) * self._a.T
            self._powers[forward, backward] = power
        return self._powers[forward, backward]


def _symmetric_triangles(a: Tensor) -> float:
    """Trace of the cube of a symmetric matrix, from the blocks of its square on and above the diagonal."""
    n, total = len(a), 0.0
    block = max(256, math.ceil(n / 8))
    for start in range(0, n, block):
        rows = slice(start, start + block)
        parts = (a[rows] @ a[:, start:]) * a[rows, start:]
        total += float(2 * parts.sum(dtype=torch.float64) - parts[:, :block].sum(dtype=torch.float64))
    return total


class _Sparse:
    def __init__(self, matrix: Any):
        self._a = sparse.csr_array(matrix).astype(np.float64)
        self._t = self._a.T.tocsr()
        self.n = self._a.shape[0]
        self._products: dict[tuple[bytes, bool], np.ndarray] = {}
        self._powers: dict[tuple[int, int], Any] = {}
        self._square: Any = None

    def ones(self) -> np.ndarray:
        return np.ones(self.n)

    def diagonal(self) -> np.ndarray:
        diagonal: np.ndarray = self._a.diagonal()
        return diagonal

    def product(self, v: np.ndarray, *, transposed: bool) -> np.ndarray:
        key = v.tobytes(), transposed
        if key not in self._products:
            self._products[key] = (self._t if transposed else self._a) @ v
        return self._products[key]

    def parallel(self, forward: int, backward: int, left: np.ndarray, right: np.ndarray) -> float:
        if (forward, backward) not in self._powers:
            factors = [each.power(count) for each, count in ((self._a, forward), (self._t, backward)) if count]
            self._powers[forward, backward] = factors[0] if len(factors) == 1 else factors[0].multiply(factors[1])
        return float(left @ (self._powers[forward, backward] @ right))

    def triangles(self, *, cyclic: bool) -> float:
        if self._square is None:
            self._square = self._a @ self._a
        return float(self._square.multiply(self._t if cyclic else self._a).sum())


class _Factored:
    def __init__(self, matrix: Factors):
        self._a, self._on = matrix, matrix.on
        self.n = len(matrix.left)

    def ones(self) -> Tensor:
        return torch.ones_like(self._on)

    def diagonal(self) -> Tensor:
        return torch.zeros_like(self._on) if self._a.hollow else self._on

    def product(self, v: Tensor, *, transposed: bool) -> Tensor:
        product: Tensor = self._a.left @ (self._a.right.T @ v)
        return product - self._on * v if self._a.hollow else product

    def parallel(self, forward: int, backward: int, left: Tensor, right: Tensor) -> float:
        if forward + backward < 3:
            of = self._a.squares(right) if forward + backward == 2 else self.product(right, transposed=False)
            return float(left @ of)
        total = 0.0
        for rows in torch.arange(self.n).split(64):  # a block of entries stays in cache
            entries = self._a.left[rows] @ self._a.right.T
            total += float(left[rows] @ ((entries * entries * entries) @ right))
        return total - float((left * self._on**3) @ right) if self._a.hollow else total

    def triangles(self, *, cyclic: bool) -> float:
        inner = self._a.right.T @ self._a.left
        whole = float((inner @ inner * inner.T).sum())
        if not self._a.hollow:
            return whole
        paths = ((self._a.left @ inner) * self._a.right).sum(1)  # diagonal of the square of left right'
        return whole - 3 * float(self._on @ paths) + 2 * float((self._on**3).sum())


_Graph = _Dense | _Sparse | _Factored
