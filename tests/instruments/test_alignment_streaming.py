from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unrolled.alignment as al

SCRIPT = """
import json, sys
import torch, torch.distributed as dist
import unrolled.alignment as al
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
x, y = torch.load(f"{folder}/data.pt", weights_only=True)
cka, knn, empty = al.StreamingCKA(), al.StreamingMetric("mutual_knn", k=4), al.StreamingMetric("cka")
rows = slice(0, 40) if rank == 0 else slice(40, 100)  # unequal shares
for part in torch.arange(100)[rows].split(25):
    cka.update(x[part], y[part]); knn.update(x[part], y[part])
if rank == 1:
    empty.update(x, y)  # the other process has seen nothing
values = [cka.compute(), cka.compute(), knn.compute(), empty.compute()]
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(values, file)
dist.destroy_process_group()
"""


def pair(n: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    shared = torch.randn(n, 4, dtype=torch.float64)
    return shared @ torch.randn(4, 9).double() + torch.randn(n, 9).double(), shared @ torch.randn(4, 7).double() + 1


@pytest.mark.parametrize("unbiased", [False, True])
def test_batches_add_up_to_the_whole(unbiased: bool) -> None:
    x, y = pair()
    stream = al.StreamingCKA(unbiased=unbiased)
    for a, b in zip(x.split(33), y.split(33), strict=True):
        stream.update(a, b)
    assert stream.compute() == pytest.approx(al.cka(x, y, unbiased=unbiased), abs=1e-9)
    stream.reset()
    stream.update(y, y)
    assert stream.compute() == pytest.approx(1)


@pytest.mark.parametrize("name", sorted(set(al.METRICS) - {"pls_predictivity"}))
def test_every_metric_streams(name: str) -> None:
    x, y = pair(60)
    stream = al.StreamingMetric(name)
    for a, b in zip(x.split(17), y.split(17), strict=True):
        stream.update(a, b)
    assert stream.compute() == pytest.approx(al.get_metric(name)(x, y))


def test_far_from_the_origin_a_center_keeps_the_digits() -> None:
    x, y = pair()
    stream = al.StreamingCKA(center_x=torch.full((9,), 1e6))
    stream.update(x + 1e6, y)
    assert stream.compute() == pytest.approx(al.cka(x, y, unbiased=True), abs=1e-6)


def test_bad_batches_are_refused_and_not_added() -> None:
    x, y = pair()
    for stream in (al.StreamingCKA(), al.StreamingMetric("cka", unbiased=True)):
        stream.update(x, y)
        value = stream.compute()
        with pytest.raises(ValueError, match="same b"):
            stream.update(x, y[:3])
        with pytest.raises(ValueError, match="x has NaN"):
            stream.update(x * float("nan"), y)
        with pytest.raises(ValueError, match="widths changed"):
            stream.update(x[:, :2], y)
        assert stream.compute() == value
    with pytest.raises(ValueError, match="call update first"):
        al.StreamingMetric("cka").compute()
    with pytest.raises(ValueError, match="at least 4 samples"):
        al.StreamingCKA().compute()
    constant = al.StreamingCKA(unbiased=False)
    constant.update(torch.ones(5, 2), torch.randn(5, 2))
    with pytest.raises(ValueError, match="zero variance"):
        constant.compute()


@pytest.mark.slow
def test_two_processes_see_one_data_set(tmp_path: Path) -> None:
    x, y = pair()
    torch.save((x, y), tmp_path / "data.pt")
    processes = [subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), str(tmp_path)]) for rank in range(2)]
    for process in processes:
        process.wait(timeout=300)
    # judged by the files: a process may abort while tearing down its threads after the work is done
    expected = [al.cka(x, y, unbiased=True)] * 2 + [al.mutual_knn(x, y, 4), al.cka(x, y)]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected, abs=1e-9)


LOSSES = [
    al.cka_loss,
    lambda x, y: al.cka_loss(x, y, unbiased=False),
    al.procrustes_loss,
    al.rsa_loss,
    al.soft_knn_loss,
]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_have_right_gradients_and_vanish_on_agreement(loss) -> None:  # type: ignore[no-untyped-def]
    x, y = pair(12)
    y = y[:, :5] + 0.1 * torch.randn(12, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (x[:, :4].clone().requires_grad_(), y.requires_grad_()), atol=1e-5)
    rotation = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    assert float(loss(x, x @ rotation)) == pytest.approx(0, abs=1e-9)
    assert float(loss(x, torch.randn(12, 9))) > 0.01
    with pytest.raises(ValueError, match="same b"):
        loss(x, y[:3])
    with pytest.raises(ValueError, match="needs at least"):
        loss(x[:1], y[:1])


def test_the_cosine_loss_is_of_paired_rows_of_one_width() -> None:
    x, y = pair(12)
    y = y[:, :5]
    expected = 1 - torch.nn.functional.cosine_similarity(x[:, :5], y, dim=1).mean()
    torch.testing.assert_close(al.cosine_loss(x[:, :5], y), expected)
    assert float(al.cosine_loss(3 * y, y)) == pytest.approx(0, abs=1e-12)
    one = x[:1, :5].clone().requires_grad_()
    assert torch.autograd.gradcheck(al.cosine_loss, (one, y[:1].clone().requires_grad_()))
    with pytest.raises(ValueError, match="x and y have 4 and 5 features; map one"):
        al.cosine_loss(x[:, :4], y)


def test_losses_are_the_metrics_and_descend() -> None:
    x, y = pair(50)
    assert float(al.cka_loss(x, y)) == pytest.approx(1 - al.cka(x, y, unbiased=True))
    assert float(al.procrustes_loss(x, y)) == pytest.approx(1 - al.procrustes(x, y, kind="similarity"))
    assert float(al.rsa_loss(x, y)) == pytest.approx(1 - al.rsa(x, y, method="pearson", dissimilarity="cosine"))
    moving = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
    before = al.cka(moving, y)
    optimizer = torch.optim.Adam([moving], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        al.cka_loss(moving, y).backward()
        optimizer.step()
    assert al.cka(moving, y) > before + 0.3
    half = al.cka_loss(x.bfloat16(), y.bfloat16())
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match="temperature"):
        al.soft_knn_loss(x, y, temperature=0.0)
