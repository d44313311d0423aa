"""Random problems, most of them too hard for the precision of their inputs: an answer is right, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unrolled.ops import MesaState, mesa
from unrolled.ops.mesa_solve.condition import trust_each

METHODS = ("reference", "recurrent", "chunk", "cg", "auto")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PER_STEP = ("q", "k", "v", "decay", "input_gate")
HOPELESS = 1e12  # condition number, scaled to a unit diagonal, from which float64 may refuse


def draw(seed: int) -> dict[str, Any]:
    """Gates, decays, ridges 1e-8 to 1e8 (one for all, or one a channel), repeated, zero, few, large and small keys."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=g))

    def one_of(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=g))]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    t, dk, dv = one_of(1, 2, 5, 17, 40), one_of(1, 2, 5, 8), one_of(1, 3)
    q, k, v = normal(1, 2, t, dk), normal(1, 2, t, dk), normal(1, 2, t, dv)
    match one_of("random", "repeated", "zero", "few", "first", "ones"):
        case "repeated":
            k = k[:, :, :1].expand_as(k)
        case "zero":
            k = k * (torch.rand(1, 2, t, 1, generator=g) > 0.5)
        case "few":
            k = k[:, :, torch.randint(min(t, 2), (t,), generator=g)]
        case "first":
            k = k * (torch.arange(t) == 0)[:, None]
        case "ones":
            q, k, v = torch.ones_like(q), torch.ones_like(k), torch.ones_like(v)
    dtype = one_of(*DTYPES)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    ridges = torch.tensor([[10 ** uniform(-8, 8) for _ in range(dk)] for _ in range(2)], dtype=arithmetic)
    gate = torch.rand(1, 2, t, generator=g) * (torch.rand(1, 2, t, generator=g) > 0.2)
    slowest = one_of(1e-3, 0.5, 0.9, 0.99)
    decay = slowest + (1 - slowest) * torch.rand(1, 2, t, generator=g)
    return {
        "q": q.to(dtype),
        "k": (k * one_of(1e-2, 1.0, 1.0, 30.0)).to(dtype),
        "v": v.to(dtype),
        "ridge": ridges if one_of(True, False) else ridges[:, :1].expand(2, dk).contiguous(),
        "decay": one_of(None, None, decay.to(arithmetic)),
        "input_gate": one_of(None, gate.to(arithmetic)),
        "ridge_decays": one_of(True, False),
    }


def truth(a: dict[str, Any]) -> tuple[Tensor, float]:
    """Outputs by least squares on the keys themselves (QR, whose condition number is the root of the systems'), and the
    largest condition number of a system."""
    q, k, v, ridge = (a[name].double() for name in ("q", "k", "v", "ridge"))
    steps = torch.arange(q.shape[2])
    logs = torch.zeros(q.shape[1:3]) if a["decay"] is None else a["decay"][0].log()
    total = logs.double().cumsum(-1)
    gate = torch.ones_like(total) if a["input_gate"] is None else a["input_gate"][0].double()
    weight = (gate[:, None] * (total[:, :, None] - total[:, None]).exp()).where(steps[:, None] >= steps, 0).sqrt()
    scale = total.exp() if a["ridge_decays"] else torch.ones_like(total)
    root = torch.diag_embed((scale[..., None] * ridge[:, None]).sqrt())
    rows = torch.cat([weight[..., None] * k[0, :, None], root], dim=2)  # [h, t, t + dk, dk]
    targets = torch.cat([weight[..., None] * v[0, :, None], root.new_zeros(*root.shape[:3], v.shape[-1])], dim=2)
    size = rows.norm(dim=2, keepdim=True)
    orthogonal, upper = torch.linalg.qr(rows / size)
    weights = torch.linalg.solve_triangular(upper, orthogonal.mT @ targets, upper=True) / size.mT
    return (q[0, :, :, None] @ weights)[None, :, :, 0], float(torch.linalg.cond(upper).square().max())


def served(a: dict[str, Any], method: str) -> bool:
    return not (method == "recurrent" and a["decay"] is not None and not a["ridge_decays"])


def assert_right(out: Tensor, expected: Tensor, name: object) -> None:
    """To a thousandth of the largest output, beside the rounding of the outputs' dtype."""
    kind = torch.finfo(out.dtype)
    expected = expected.clamp(-kind.max, kind.max)
    rounding = 2 * kind.eps * expected.abs() + kind.smallest_normal * kind.eps
    error = (out.double() - expected).abs() - rounding
    assert float(error.max()) <= 1e-3 * float(expected.abs().max()), name


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_is_right_or_refused(method: str) -> None:
    refused = 0
    for seed in range(80):
        a = draw(seed)
        if not served(a, method):
            continue
        expected, condition = truth(a)
        try:
            for grad in (False, True):  # two ways: outputs alone, and solutions for the gradients
                out = mesa(**a | {"q": a["q"].clone().requires_grad_(grad)}, method=method)
                assert out.dtype == a["q"].dtype
                assert_right(out.detach(), expected, (seed, grad))
        except ValueError as error:
            if condition <= HOPELESS or "too small for these keys, even in torch.float64" not in str(error):
                raise
            refused += 1
            _, residual = mesa(**a, method=method, return_residual=True)  # whoever asks is shown
            assert residual.shape == expected.shape[:3]
    assert refused <= 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("key", "ridge", "dtype"),
    [(1.0, 1e-7, torch.float32), (1.0, 1e-8, torch.float32), (30.0, 1e-7, torch.float32), (30.0, 1e-14, torch.float64)],
)
def test_one_key_far_above_the_ridge(method: str, key: float, ridge: float, dtype: torch.dtype) -> None:
    ones = torch.ones(1, 1, 1, 1, dtype=dtype)
    out = mesa(ones, key * ones, ones, ridge, method=method)
    assert float(out) == pytest.approx(key / (key * key + ridge), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_packed_carried_and_decoded_is_what_one_pass_gives(method: str) -> None:
    for seed in range(24):
        a = draw(seed)
        t = a["q"].shape[2]
        if not served(a, method) or t < 5 or truth(a)[1] > HOPELESS:
            continue
        expected = truth(a)[0]

        def part(span: slice, a: dict[str, Any] = a) -> dict[str, Any]:
            return a | {name: None if a[name] is None else a[name][:, :, span] for name in PER_STEP}

        packed, alone = mesa(**a, method=method, cu_seqlens=torch.tensor([0, t - 3, t])), mesa(**part(slice(t - 3)))
        assert_right(packed[:, :, : t - 3], alone.double(), seed)
        assert_right(packed[:, :, : t - 3], expected[:, :, : t - 3], seed)
        pieces, state = mesa(**part(slice(t - 3)), method=method, return_state=True)
        for step in range(t - 3, t):
            out, state = mesa(**part(slice(step, step + 1)), method=method, state=state, return_state=True)
            assert isinstance(state, MesaState)
            pieces = torch.cat([pieces, out], dim=2)
        assert_right(pieces, expected, seed)


def gradients(a: dict[str, Any], method: str) -> dict[str, Tensor]:
    leaves = {n: x.clone().requires_grad_() if isinstance(x, Tensor) else x for n, x in a.items()}
    out = mesa(**leaves, method=method)
    wave = (
        torch.linspace(0.1, 9.7, out.numel(), dtype=torch.float64).sin().bfloat16().view(out.shape)
    )  # which every dtype holds
    (out.double() * wave).sum().backward()
    return {n: x.grad.double() for n, x in leaves.items() if isinstance(x, Tensor)}


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_float64_reference(method: str) -> None:
    """Of a scaling of each argument, beside the largest of them: those of gates and decays may cancel to nothing."""
    for seed in range(60):
        a = draw(seed)
        if a["q"].dtype == torch.float16 or not served(a, method) or truth(a)[1] > 1e10:
            continue
        wide = {n: x.double() if isinstance(x, Tensor) else x for n, x in a.items()}
        expected, found = gradients(wide, "reference"), gradients(a, method)
        largest = max(float((wide[n] * expected[n]).abs().max()) for n in expected)
        tolerance = 2e-2 if a["q"].dtype == torch.bfloat16 else 2e-3
        for name, gradient in found.items():
            error = float((wide[name] * (gradient - expected[name])).abs().max())
            assert error <= tolerance * largest, (seed, name)


def test_what_fell_back_to_float64_goes_on_in_float64() -> None:
    q = k = v = torch.ones(1, 1, 3, 1)
    _, state = mesa(q, k, v, 1e-8, return_state=True)
    assert state.gram.dtype == torch.float64
    _, easy = mesa(q, k, v, 1.0, return_state=True)
    assert easy.gram.dtype == torch.float32


@pytest.mark.parametrize("method", ["reference", "recurrent", "chunk", "cg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_between_right_and_hopeless_nothing_is_percents_off(method: str, dtype: torch.dtype) -> None:
    """One key has a closed form; from a condition number of some 1e12 float64 holds no third digit of it."""
    g = torch.Generator().manual_seed(1)
    refused = []
    for exponent in (8, 10, 11, 12, 12.5, 13, 14, 16):
        q, k = (torch.randn(1, 1, 1, 16, generator=g).to(dtype) for _ in range(2))
        square = float(k.double().square().sum())
        ridge = square / 10**exponent
        exact = float((q.double() * k.double()).sum()) / (square + ridge)
        try:
            out = float(mesa(q, k, torch.ones(1, 1, 1, 1, dtype=dtype), ridge, method=method))
        except ValueError:
            refused.append(exponent)
        else:
            assert out == pytest.approx(exact, rel=1e-2), exponent
    assert {12.5, 13, 14, 16} <= set(refused) <= {12, 12.5, 13, 14, 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoding_refuses_what_a_whole_sequence_refuses(dtype: torch.dtype) -> None:
    """Step by step with the inverse carried along; the exact answer is of a key that repeats, orthogonal to another."""
    g = torch.Generator().manual_seed(2)
    refused = []
    for exponent in (8, 10, 11, 12.5, 13, 14, 16):
        k = torch.linalg.qr(torch.randn(16, 2, generator=g).double())[0].mT[None, None].to(dtype)  # two orthogonal keys
        v = torch.tensor([1.0, -2.0], dtype=dtype)[None, None, :, None]
        ridge = 10.0**-exponent
        q = torch.randn(1, 1, 1, 16, generator=g).to(dtype)
        state, out = None, torch.zeros(())
        try:
            for t in (0, 1, 0):
                out, state = mesa(q, k[:, :, t, None], v[:, :, t, None], ridge, state=state, return_state=True)
        except ValueError:
            refused.append(exponent)
        else:
            first, second = (q.double() @ k.double().mT).flatten().tolist()
            assert float(out) == pytest.approx(2 * first / (2 + ridge) - 2 * second / (1 + ridge), rel=1e-2), exponent
    assert {12.5, 13, 14, 16} <= set(refused) <= {11, 12.5, 13, 14, 16}


@pytest.mark.parametrize("method", ["auto", "reference", "recurrent", "chunk", "cg"])
@pytest.mark.parametrize("easy", [1.0, 100.0])
@pytest.mark.parametrize("ridge", [1e-6, 1e-7, 1e-8, 1e-9])
def test_a_channel_that_no_key_has_does_not_hide_the_others(method: str, easy: float, ridge: float) -> None:
    """The system of such a channel is easy, and its solution may be larger than what float32 loses in the others."""
    k = torch.tensor([[[[0.0, 0.6, 0.8]]]])
    out = mesa(torch.tensor([[[[easy, 0.5, 0.0]]]]), k, torch.ones(1, 1, 1, 1), ridge, method=method)
    assert float(out) == pytest.approx(0.3 / (1 + ridge), rel=1e-4)


def test_decoding_goes_on_in_float64_where_an_easy_channel_would_hide_the_others() -> None:
    q, k = torch.tensor([[[[1.0, 0.5, 0.0]]]]), torch.tensor([[[[0.0, 0.3, 0.4]]]])
    state = None
    for _ in range(5):
        out, state = mesa(q, k, torch.ones(1, 1, 1, 1), 1e-9, state=state, return_state=True)
        assert float(out) == pytest.approx(0.6, rel=1e-4)


def collinear(gap: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two keys apart by `gap`, in turns, [1, 1, 4, 2], and the opposite values that they come with."""
    turned = torch.tensor([[0.76, -0.64], [0.64, 0.76]], dtype=torch.float64)
    k = (torch.tensor([[1.0, 0.0], [1.0, gap]], dtype=torch.float64) @ turned)[[0, 1, 0, 1]]
    return k.to(dtype)[None, None], torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=dtype)[None, None, :, None]


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gap", [3e-2, 3e-3, 1e-3, 3e-4])
def test_queries_among_collinear_keys_find_their_values(method: str, gap: float, decoded: bool) -> None:
    """A solution of such a query is small, and so is its residual, while what is read off it may mean nothing."""
    k, v = collinear(gap, torch.float32)
    ridge = 1e-6 * gap * gap
    if not decoded:
        out = mesa(k, k, v, ridge, method=method)
    else:
        pieces, state = [], None
        for t in range(4):
            now = k[:, :, t : t + 1]
            piece, state = mesa(now, now, v[:, :, t : t + 1], ridge, method=method, state=state, return_state=True)
            pieces.append(piece)
        out = torch.cat(pieces, dim=2)
    torch.testing.assert_close(out, v, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gap", [1e-6, 1e-7, 3e-8])
def test_queries_among_keys_that_float64_cannot_tell_apart_are_refused(method: str, gap: float) -> None:
    k, v = collinear(gap, torch.float64)
    with pytest.raises(ValueError, match=r"too small for these keys, even in torch\.float64"):
        mesa(k, k, v, 1e-6 * gap * gap, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_query_that_is_the_only_key_needs_no_ridge_to_speak_of(method: str) -> None:
    k = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    assert float(mesa(k, k, k[..., :1], 1e-14, method=method)) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_an_easy_head_does_not_speak_for_a_hard_one(method: str) -> None:
    """Each of a batch is judged by itself, and what is easy stays as right as alone."""
    hard, easy = collinear(1e-3, torch.float32), collinear(1.0, torch.float32)
    k, v = (torch.cat(both, dim=1) for both in zip(hard, easy, strict=True))
    ridge = torch.tensor([1e-12, 1e-3])
    out = mesa(k, k, v, ridge, method=method)
    torch.testing.assert_close(out[:, :1], hard[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(out[:, 1:], mesa(easy[0], easy[0], easy[1], 1e-3), rtol=0, atol=1e-4)


def test_where_only_the_bound_of_the_rows_holds_float32_is_kept() -> None:
    """Many steps add up in the trace, which says nothing of how far apart the eigenvalues are."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.nn.functional.normalize(torch.randn(1, 1, 3000, 16, generator=g), dim=-1) for _ in range(3))
    for grad in (False, True):
        out, state = mesa(q.clone().requires_grad_(grad), k, v, 0.25, return_state=True)
        assert state.gram.dtype == torch.float32
        assert_right(out.detach(), mesa(q.double(), k.double(), v.double(), 0.25), grad)


@pytest.mark.parametrize("method", METHODS)
def test_solutions_that_overflow_are_no_proof_of_themselves(method: str) -> None:
    """One key whose channels are decades apart, as every query: of some solutions float32 makes 1e20 and more."""
    answered = 0
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        k = torch.randn(5, generator=g) * 10 ** (10 * torch.rand(5, generator=g) - 3)
        v, c = torch.randn(2, 2, generator=g)
        ridge = 10 ** (-8 + 2 * torch.rand(5, generator=g))
        reach = (k.double().square() / ridge.double()).sum()
        exact = v.double() * float(c[0]) * reach / (1 + reach)
        q = (c[0] * k)[None, None, None]
        try:
            out = mesa(q, k[None, None, None], v[None, None, None], ridge[None], method=method)
        except ValueError:
            continue
        answered += 1
        torch.testing.assert_close(out[0, 0, 0].double(), exact, rtol=1e-2, atol=0)
    assert answered


def test_infinite_pairs_are_not_trusted() -> None:
    systems = torch.full((3, 3), 1e6)  # plus a ridge that float32 does not hold
    for size in (1.0, 1e17, torch.inf, torch.nan):
        assert not bool(trust_each(systems, torch.full((3,), 1e-12), torch.full((3,), size), False)), size
