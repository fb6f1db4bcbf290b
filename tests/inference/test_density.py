"""Sums over the states of discrete latents, by hand."""

import pyro
import pyro.distributions as dist
import torch

import bayeszoo as bz
from bayeszoo.inference.target.density import discrete_marginals


def chained(x=None, *, num_data=None, index=None):
    th = pyro.sample("th", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    a = pyro.sample("a", dist.Categorical(torch.tensor([0.3, 0.7])))
    with pyro.plate("data", num_data or len(x), subsample=index):
        b = pyro.sample("b", dist.Categorical(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])[a]))
        pyro.sample("x", dist.Normal(th[b], 1.0), obs=x)


def test_probabilities_of_states_that_depend_on_others():
    x = torch.tensor([-1.0, 0.2, 2.0, 2.5], dtype=torch.float64)
    data = bz.data.Data({}, {"x": x})
    fit = bz.fit(chained, data, "mean_field", steps=30, progress=False, compile=False)
    th = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    found = discrete_marginals(fit.program, chained, data.bind(chained), {"th": th})
    prior, given = torch.tensor([0.3, 0.7]), torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    each = given[:, None] * dist.Normal(th, 1.0).log_prob(x[:, None]).exp()  # (a, row, b)
    joint = prior * each.sum(2).prod(1)
    p_a = joint / joint.sum()
    p_b = (p_a[:, None, None] * each / each.sum(2, keepdim=True)).sum(0)
    torch.testing.assert_close(found["a"], p_a.to(found["a"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["b"], p_b.to(found["b"]), rtol=1e-5, atol=1e-6)
    in_the_guide = bz.fit(chained, data, "mean_field", steps=100, discrete="guide", progress=False, compile=False)
    assert in_the_guide.losses[-1] < in_the_guide.losses[0] + 5
