"""The benchmark's rival computes what it says."""

import pytest
import torch
from bench_step import rivals
from timing import round_robin, summary


@pytest.mark.parametrize("mh", [True, False])
def test_the_report_energy_is_ours_without_the_prior(mh):
    ours, report, _ = rivals(2, mh)
    x = torch.rand(8, ours.nx)
    h = ours.encoder(x)
    mine = ours.likelihood.energy(ours.decoder(h @ ours.phi.T), x).sum()
    torch.testing.assert_close(report.energy(x, h, report.phi).double(), mine, rtol=1e-6, atol=0)


def test_the_report_gradient_is_that_of_the_last_state_alone():
    _, report, _ = rivals(3, False)
    x = torch.rand(8, 784)
    loss = report.loss(x)
    loss.backward()
    expected = report.energy(x, report.encoder(x), report.phi) / len(x)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (grad,) = torch.autograd.grad(expected, report.decoder[0].weight)
    torch.testing.assert_close(report.decoder[0].weight.grad, grad)


def test_rivals_take_turns():
    order = []
    seconds = round_robin(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=20, warmup=1
    )
    assert order == ["a", "b"] + ["a", "b"] * 20
    rows = summary(seconds, against="b")
    assert rows["b"]["ratio"] == 1
    assert rows["a"]["low"] <= rows["a"]["ms"] <= rows["a"]["high"]
