"""A normal that scores its own draws: the same density, the same gradients, and no digits lost where its factor is singular."""

import pyro.distributions as dist
import torch

from bayeszoo.guides.own_draws import OwnDraws
from bayeszoo.guides.path_derivative import PathDerivative


def parameters() -> tuple[torch.Tensor, torch.Tensor]:
    loc = torch.randn(4, dtype=torch.float64, requires_grad=True)
    tril = torch.randn(4, 4, dtype=torch.float64).tril(-1) + torch.diag(torch.rand(4, dtype=torch.float64) + 0.5)
    return loc, tril.requires_grad_()


def test_own_and_foreign_values_have_the_normal_density() -> None:
    torch.manual_seed(0)
    loc, tril = parameters()
    ours, theirs = OwnDraws(loc, scale_tril=tril), dist.MultivariateNormal(loc, scale_tril=tril)
    for value in (ours.rsample(), torch.randn(4, dtype=torch.float64)):
        assert torch.allclose(ours.log_prob(value), theirs.log_prob(value), rtol=1e-12)


def test_gradients_are_those_of_the_solved_form() -> None:
    torch.manual_seed(1)
    loc, tril = parameters()

    def gradients(make, frozen) -> list[torch.Tensor]:
        torch.manual_seed(2)
        live = make(loc, scale_tril=tril)
        fn = live if frozen is None else PathDerivative(live, frozen(loc.detach(), scale_tril=tril.detach()))
        u = fn.rsample()
        by_loc, by_tril = torch.autograd.grad(u.sin().sum() - fn.log_prob(u), [loc, tril])
        return [by_loc, by_tril.tril()]  # above the diagonal the solved form has gradients of entries that are not there

    for ours, theirs in zip(
        gradients(OwnDraws, None) + gradients(OwnDraws, OwnDraws),
        gradients(dist.MultivariateNormal, None) + gradients(dist.MultivariateNormal, dist.MultivariateNormal),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_nearly_singular_factor_keeps_the_score_of_its_draws() -> None:
    torch.manual_seed(3)
    size = 30
    # Entries of ten below a diagonal of one: the condition number is far beyond single precision.
    tril = 10 * torch.randn(size, size).tril(-1) + torch.eye(size)
    q = OwnDraws(torch.zeros(size), scale_tril=tril)
    u = q.rsample()
    entropy = size / 2 * (1 + torch.log(torch.tensor(2 * torch.pi)))  # log det L is 0
    # -log q is the entropy within 6 sds of half a chi-squared with 30 degrees of freedom.
    assert abs(float(-q.log_prob(u) - entropy)) < 6 * (size / 2) ** 0.5
    assert abs(float(-dist.MultivariateNormal(torch.zeros(size), scale_tril=tril).log_prob(u) - entropy)) > 1e6
