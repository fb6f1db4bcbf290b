# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Approximate inference
#
# Bayes' rule divides by an integral over all parameters, which can rarely be done. Variational inference
# replaces it by an optimisation. Two unknown prices, a line, two groups: here the integrals *can* be done,
# so we see what is optimised, what is lost, and from how noisy a signal it learns.
#
# **Goals.** After this notebook you can
#
# 1. say what mean field does to a correlated posterior, before you fit it;
# 2. split $\log p(\mathcal{D})$ into ELBO and KL, and watch one grow while the other shrinks;
# 3. explain why $\text{KL}(q \,\|\, p)$ picks one hill and $\text{KL}(p \,\|\, q)$ covers both, and catch a
#    fit that has missed one;
# 4. write down REINFORCE and the reparametrisation trick, and measure how much noisier the first is.

# %%
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # widgets are not needed here

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch.distributions import kl_divergence

import bayeszoo as bz

plt.rcParams["figure.dpi"] = 80
BLUE, ORANGE, RED, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"


def ring(mean, covariance, prob=0.9):
    """The ellipse (2, 200) that holds so much of a normal distribution."""
    turn = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(turn), np.sin(turn)]) * np.sqrt(-2 * np.log1p(-prob))
    return np.asarray(mean)[:, None] + np.linalg.cholesky(np.asarray(covariance)) @ circle


# %% [markdown]
# ## Two unknowns, one bill
#
# One coffee and three rolls cost 7.40 euros, tip included. What does a coffee cost, and what a roll? Before
# the bill we believe 3 ± 1 euros and 1 ± 0.5 euros; the tip makes the bill uncertain by 0.3:
#
# $$\theta_\text{coffee} \sim \mathcal{N}(3, 1^2), \quad \theta_\text{roll} \sim \mathcal{N}(1, 0.5^2), \qquad
# y \mid \theta \sim \mathcal{N}(\theta_\text{coffee} + 3 \theta_\text{roll}, 0.3^2)$$
#
# A linear regression on one observation: the posterior is a Gaussian with two dimensions.


# %%
def bill_with(noise):
    """The model, with another uncertainty of the bill."""
    return bz.models.BayesianLinearRegression(
        dim=2, prior_mean=[3.0, 1.0], prior_scale=[1.0, 0.5], noise_scale=noise, intercept=False
    )


order = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
paid = torch.tensor([7.4], dtype=torch.float64)
bill = bz.data.Data({"x": order}, paid, name="one bill", feature_names=("coffee", "roll"))

model = bill_with(0.3)
posterior = model.exact_posterior(bill)["theta"]
mu, Sigma = posterior.mean, posterior.covariance_matrix
sd = Sigma.diagonal().sqrt()
rho = Sigma[0, 1] / (sd[0] * sd[1])
print(f"coffee {mu[0]:.2f} ± {sd[0]:.2f}, roll {mu[1]:.2f} ± {sd[1]:.2f}, correlation {rho:.2f}")

# %% [markdown]
# If somebody tells us the price of the roll, what do we know about the coffee? For a joint Gaussian the
# conditional is Gaussian. With $x$ the coffee, $y$ the roll and $\rho_{xy}$ their covariance
#
# $$x \mid y \sim \mathcal{N}\left( \mu_x + \frac{\rho_{xy}}{\sigma_y^2} (y - \mu_y), \;\;
# \sigma_x^2 - \frac{\rho_{xy}^2}{\sigma_y^2} \right)$$
#
# The lecture divides by $\sigma_x^2$ in the mean, a slip: the variance that belongs there is that of what
# was *observed*. We can check both. Draw many pairs, and keep those whose roll costs what we were told.

# %%
told = 1.9
slope = Sigma[0, 1] / Sigma[1, 1]
slip = Sigma[0, 1] / Sigma[0, 0]
left_over = Sigma[0, 0] - Sigma[0, 1] ** 2 / Sigma[1, 1]
torch.manual_seed(0)
pairs = posterior.sample((400_000,))
kept = pairs[(pairs[:, 1] - told).abs() < 0.02, 0]
print(f"kept {len(kept)} pairs: mean {kept.mean():.3f}, sd {kept.std():.3f}")
print(f"corrected formula:    mean {mu[0] + slope * (told - mu[1]):.3f}, sd {left_over.sqrt():.3f}")
print(f"as the lecture has it: mean {mu[0] + slip * (told - mu[1]):.3f}")

# %% [markdown]
# **Before you look:** the line of conditional means runs through the ellipse. Through its long axis?

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
roll = torch.linspace(0.3, 2.4, 100, dtype=torch.float64)
for prob, shade in ((0.99, "#e4e4e4"), (0.9, "#cccccc"), (0.5, "#aaaaaa")):
    left.fill(*ring(mu, Sigma, prob), color=shade, lw=0)
left.plot(mu[0] + slope * (roll - mu[1]), roll, color=BLUE, label="corrected: $\\rho_{xy} / \\sigma_y^2$")
left.plot(mu[0] + slip * (roll - mu[1]), roll, color=RED, ls="--", label="as printed: $\\rho_{xy} / \\sigma_x^2$")
left.axhline(told, color="black", lw=1, ls=":", label=f"roll = {told}")
left.set(xlabel="coffee, $x$", ylabel="roll, $y$", xlim=(0, 6.5), ylim=(0.3, 2.4), title="the posterior: 50, 90, 99 %")
left.legend(frameon=False, fontsize=8, loc="upper right")

x = torch.linspace(0, 6.5, 400, dtype=torch.float64)
right.hist(kept, bins=40, density=True, color="lightgrey", label="kept draws")
right.plot(x, dist.Normal(mu[0] + slope * (told - mu[1]), left_over.sqrt()).log_prob(x).exp(), color=BLUE, label="corrected")
right.plot(
    x, dist.Normal(mu[0] + slip * (told - mu[1]), left_over.sqrt()).log_prob(x).exp(), color=RED, ls="--", label="as printed"
)
right.plot(x, dist.Normal(mu[0], sd[0]).log_prob(x).exp(), color="black", lw=1, ls=":", label="coffee, roll unknown")
right.set(xlabel="coffee, $x$", ylabel="density", xlim=(0, 6.5), title=f"coffee, given that a roll costs {told}")
_ = right.legend(frameon=False, fontsize=8)

# %% [markdown]
# It does not. A horizontal line holds all the coffees that go with one roll, and their mean is the middle of
# what the ellipse cuts out of that line. So the means run a little steeper than the long axis, through the
# highest and the lowest point of each ellipse.
#
# ## What mean field keeps
#
# Mean field looks for the best $q(\theta) = q(\theta_1) q(\theta_2)$. For a Gaussian posterior with
# precision $P = \Sigma^{-1}$ the answer is known: the right means, and variances
#
# $$s_i^2 = \frac{1}{P_{ii}} = \sigma_i^2 (1 - \rho^2), \qquad \rho = \frac{\rho_{xy}}{\sigma_x \sigma_y}$$
#
# This is the variance of the *conditional* above: how uncertain the coffee would be if the roll were known.
# Mean field reports it as how uncertain the coffee is. The divergence that remains depends on the
# correlation alone, $\text{KL}(q \,\|\, p) = -\frac{1}{2} \log(1 - \rho^2)$.

# %%
fits = {
    guide: bz.fit(model, bill, guide=guide, steps=400, num_particles=10, progress=False)  # the guide, by one word
    for guide in ("mean_field", "full_rank")
}
print("marginal sds, exact   ", sd.numpy().round(3))
print("1 / sqrt(P_ii)        ", torch.linalg.inv(Sigma).diagonal().rsqrt().numpy().round(3))
for guide, one in fits.items():
    print(f"{guide:10} sds        ", one.sample(4000)["theta"].std(0).numpy().round(3))

# %% [markdown]
# **Before you look:** a smaller tip uncertainty ties the two prices closer together. Where do mean field's
# sds go when the bill becomes exact, and where do they have to go?

# %%
noises = (4.0, 1.5, 0.8, 0.5, 0.3, 0.15)
found = []  # (correlation, sd of mean field / exact sd, KL and its error)
for noise in noises:
    one = bill_with(noise)
    exact = one.exact_posterior(bill)["theta"]
    fit = bz.fit(one, bill, guide="mean_field", steps=300, num_particles=10, progress=False)
    kl = fit.loss + one.log_evidence(bill).item()
    S = exact.covariance_matrix
    share = fit.sample(4000)["theta"].std(0) / S.diagonal().sqrt()
    found.append((float(-S[0, 1] / (S[0, 0] * S[1, 1]).sqrt()), float(share[0]), kl, fit.loss_error))
strength, share, kl, error = np.array(found).T

_, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
bz.plots.plot_contours(fits, "theta", ax=left).set_title("two guides, one bill")
r = np.linspace(0, 0.995, 300)
middle.plot(r, np.sqrt(1 - r**2), color="black", lw=1, label="$\\sqrt{1 - \\rho^2}$")
middle.plot(strength, share, "o", color=BLUE, label="fits, mean field")
middle.axhline(1, color="grey", ls=":", lw=1)
middle.set(xlabel="$|\\rho|$", ylabel="sd of q / exact sd", ylim=(0, 1.08), title="too sure of itself")
right.plot(r, -0.5 * np.log(1 - r**2), color="black", lw=1, label="$-\\frac{1}{2} \\log(1 - \\rho^2)$")
right.errorbar(strength, kl, 2 * error, fmt="o", color=BLUE, label="fits, loss + log p(D)")
right.set(xlabel="$|\\rho|$", ylabel="KL(q || p), nats", ylim=(0, None), title="what is lost")
for ax in (middle, right):
    ax.legend(frameon=False, fontsize=8)

# %% [markdown]
# With a perfect bill mean field is *certain* of both prices, although the bill says only what they sum to.
#
# ## One number, two parts
#
# Why does the optimiser never need the true posterior? Because of one identity,
#
# $$\underbrace{\log p(\mathcal{D})}_{\text{does not move}} =
# \underbrace{\mathbb{E}_{q} \log p(\mathcal{D} \mid \theta) - \text{KL}(q(\theta) \,\|\, p(\theta))}_{\text{ELBO}}
# \; + \; \text{KL}(q(\theta) \,\|\, p(\theta \mid \mathcal{D}))$$
#
# What the ELBO gains, the KL loses. The ELBO can be estimated from draws of $q$; the other KL cannot be
# known without the answer. Here we have the answer, a line through twelve points with known noise, and can
# compute **each term on its own** after every step.

# %%
sigma = 1.0
line = bz.models.BayesianLinearRegression(dim=1, prior_scale=1.0, noise_scale=sigma)
generator = torch.Generator().manual_seed(3)
inputs = 0.5 + 2 * torch.rand(12, 1, dtype=torch.float64, generator=generator)
points = bz.data.simulate(line, n=12, seed=5, inputs={"x": inputs})
X, y = torch.cat([torch.ones_like(inputs), inputs], 1), points.observed
truth = line.exact_posterior(points)["theta"]
prior = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
evidence = line.log_evidence(points).item()


def terms(q):
    """E_q log p(D | theta), KL(q || prior) and KL(q || posterior) in nats, none of them from another."""
    wide = ((X @ q.covariance_matrix) * X).sum() / (2 * sigma**2)
    likelihood = dist.Normal(X @ q.mean, sigma).log_prob(y).sum() - wide
    return float(likelihood), float(kl_divergence(q, prior)), float(kl_divergence(q, truth))


# %% [markdown]
# The families of the package begin where the posterior is, so there would be little to see. A guide is any
# Pyro module that draws the model's latents, so we write our own, which begins at the prior:
# $q(\theta \mid \Lambda) = \mathcal{N}(\theta \mid m, L L^T)$ with $\Lambda = (m, C)$, and $L$ made of $C$.


# %%
def gaussian(m, C, correlated):
    """q(theta) for Lambda = (m, C): C has log sds on its diagonal and, if wanted, correlations below it."""
    L = C.diagonal().exp().diag_embed() + correlated * C.tril(-1)
    return dist.MultivariateNormal(m, scale_tril=L)


class Guide(PyroModule):
    """A normal that starts as the prior."""

    def __init__(self, correlated):
        super().__init__()
        self.correlated = correlated
        self.m = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.C = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def forward(self, x, y=None, num_data=None):
        return pyro.sample("theta", gaussian(self.m, self.C, self.correlated))


def train(correlated):
    """The fit, and the terms after every step (steps, 3)."""
    record = []

    def note(state):  # called after every step
        m, C = (p.detach() for p in state.parameters.values())
        record.append(terms(gaussian(m, C, correlated)))

    fit = bz.fit(
        line, points, guide=Guide(correlated), optimizer=0.05, schedule="cosine", steps=800, callbacks=[note], progress=False
    )
    return fit, np.array(record)


runs = {"mean field": train(0.0), "full rank": train(1.0)}
for name, (_, record) in runs.items():
    likelihood, kl_prior, kl_posterior = record.T
    total = likelihood - kl_prior + kl_posterior
    print(f"{name:10}  ELBO + KL - log p(D) over all steps: at most {np.abs(total - evidence).max():.0e} nats")

# %% [markdown]
# **Before you look:** the sum is a constant. For which of the two guides can the KL reach zero?

# %%
_, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
step = np.arange(1, 801)
low, high = evidence - 13, evidence + 3
for ax, (name, (fit, record)) in zip(axes, runs.items(), strict=True):
    likelihood, kl_prior, kl_posterior = record.T
    elbo = likelihood - kl_prior
    ax.fill_between(step, low, elbo, color="#56B4E9", alpha=0.6, lw=0, label="ELBO")
    ax.fill_between(step, elbo, elbo + kl_posterior, color=ORANGE, alpha=0.6, lw=0, label="KL(q || posterior)")
    ax.plot(step, -np.array(fit.losses), ".", ms=2, color=BLUE, alpha=0.5, label="ELBO from one draw: what Adam sees")
    ax.axhline(evidence, color="black", lw=1.5, label="log p(D), exact")
    ax.set(xlim=(1, 800), ylim=(low, high), xlabel="step", title=name)
    ax.text(785, low + 0.6, f"KL at the end: {kl_posterior[-1]:.3f} nats", ha="right", fontsize=9)
axes[0].set_ylabel("nats")
_ = axes[0].legend(frameon=True, fontsize=8, loc="lower left")

# %% [markdown]
# The full-rank family contains the posterior and all but arrives. Mean field's band stays open, at the
# value that the formula above gives. The dots are estimates from a single draw. Some lie *above*
# $\log p(\mathcal{D})$: only their mean is a bound. Full rank's scatter less and less, as
# $\log p(\mathcal{D}, \theta) - \log q(\theta)$ is the same for every $\theta$ once $q$ is the posterior.
#
# ## The other KL
#
# KL is not symmetric. $\text{KL}(q \,\|\, p) = \mathbb{E}_q \log \frac{q}{p}$ punishes $q$ for being where
# $p$ is not; $\text{KL}(p \,\|\, q) = \mathbb{E}_p \log \frac{p}{q}$ punishes it for *not* being where $p$
# is. On one tilted hill the second would have kept the exact sds. The difference is greater where there are
# two hills.
#
# Twenty numbers come from two groups with unknown means:
#
# $$\mu_1, \mu_2 \sim \mathcal{N}(0, 3^2), \qquad
# x_n \mid \mu \sim \tfrac{1}{2} \mathcal{N}(\mu_1, 1) + \tfrac{1}{2} \mathcal{N}(\mu_2, 1)$$
#
# Nothing says which group is the first: whatever holds for $(\mu_1, \mu_2)$ holds for $(\mu_2, \mu_1)$.


# %%
def two_groups(x=None, *, num_data=None):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2, dtype=torch.float64), 3.0).to_event(1))
    half = dist.Categorical(torch.ones(2, dtype=torch.float64))
    with pyro.plate("data", num_data or len(x)):
        hills = dist.Normal(mu.unsqueeze(-2), 1.0)
        return pyro.sample("x", dist.MixtureSameFamily(half, hills), obs=x)


def sample_groups(distance):
    """Ten numbers around -distance / 2 and ten around distance / 2."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(20, dtype=torch.float64, generator=generator)
    return bz.data.Data({}, noise + distance / 2 * torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(10))


# %% [markdown]
# Two unknowns fit on a grid, so $p(\mu \mid x)$, $\log p(x)$ and both divergences are sums. The Gaussian
# with the smallest $\text{KL}(p \,\|\, q)$ needs no optimiser: it has the mean and covariance of $p$
# (moment matching). The one with the smallest $\text{KL}(q \,\|\, p)$ is what `bz.fit` looks for. Four
# restarts begin at different places.

# %%
ticks = torch.linspace(-6, 6, 241, dtype=torch.float64)
grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1)  # (241, 241, 2)
cell = float(ticks[1] - ticks[0]) ** 2


class OnGrid:
    """The exact posterior of two groups on the grid."""

    def __init__(self, data):
        each = dist.Normal(grid.unsqueeze(-2), 1.0).log_prob(data.observed[:, None])  # (241, 241, N, 2)
        joint = (torch.logsumexp(each, -1) - np.log(2)).sum(-1) + dist.Normal(0.0, 3.0).log_prob(grid).sum(-1)
        self.log_evidence = float(torch.logsumexp(joint.flatten(), 0)) + np.log(cell)
        self.log_p = joint - self.log_evidence
        self.weight = self.log_p.exp() * cell
        self.mean = (self.weight[..., None] * grid).sum((0, 1))
        centred = grid - self.mean
        self.covariance = torch.einsum("ij,ija,ijb->ab", self.weight, centred, centred)

    def divergences(self, q):
        """KL(q || p) and KL(p || q) in nats."""
        log_q = q.log_prob(grid)
        mass = log_q.exp() * cell
        return float((mass * (log_q - self.log_p)).sum()), float((self.weight * (self.log_p - log_q)).sum())


distances = (1.0, 2.5, 4.0)
data_of = {d: sample_groups(d) for d in distances}
exact_of = {d: OnGrid(data) for d, data in data_of.items()}
fit_of = {
    d: bz.fit(
        two_groups,
        data,
        guide="full_rank",
        optimizer=0.1,
        schedule="cosine",
        steps=400,
        num_particles=10,
        restarts=4,
        progress=False,
    )
    for d, data in data_of.items()
}
tree_of = {d: fit.to_arviz(log_likelihood=False, predictive=False, prior=False) for d, fit in fit_of.items()}

# %% [markdown]
# **Before you look:** which of the two Gaussians puts its centre where the posterior has almost no mass?

# %%
_, axes = plt.subplots(2, 3, figsize=(11.5, 7), layout="constrained", height_ratios=[3, 2])
for (top, bottom), distance in zip(axes.T, distances, strict=True):
    exact = exact_of[distance]
    order_of_mass = exact.weight.flatten().sort(descending=True).values
    levels = [float(order_of_mass[int((order_of_mass.cumsum(0) < p).sum())]) for p in (0.99, 0.9, 0.5)]
    top.contourf(ticks, ticks, exact.weight.T, levels=[*levels, 1], colors=["#e4e4e4", "#cccccc", "#aaaaaa"])
    restarts = tree_of[distance]["posterior"]["mu"].values  # (restart, draw, 2)
    for chain in restarts:
        top.plot(*ring(chain.mean(0), np.cov(chain.T)), color=BLUE, lw=1.5)
    top.plot(*ring(exact.mean, exact.covariance), color=RED, lw=1.8, ls="--")
    top.set(xlim=(-4.2, 4.2), ylim=(-4.2, 4.2), aspect="equal", xlabel="$\\mu_1$", title=f"groups {distance:g} apart")
    # The density of mu_1 - mu_2: sums of the grid along its diagonals.
    difference = (grid[..., 0] - grid[..., 1]).flatten()
    width = float(ticks[1] - ticks[0])
    bins = np.arange(-8.0 - width / 2, 8.0 + width, 2 * width)
    density, edges = np.histogram(difference, bins=bins, weights=exact.weight.flatten(), density=True)
    centre = (edges[1:] + edges[:-1]) / 2
    bottom.fill_between(centre, density, color="lightgrey", label="exact posterior")
    for k, chain in enumerate(restarts):
        gap = chain[:, 0] - chain[:, 1]
        fitted = dist.Normal(gap.mean(), gap.std()).log_prob(torch.as_tensor(centre)).exp()
        bottom.plot(centre, fitted, color=BLUE, lw=1.5, label="" if k else "min KL(q || p), 4 restarts")
    spread = exact.covariance[0, 0] + exact.covariance[1, 1] - 2 * exact.covariance[0, 1]
    matched = dist.Normal(exact.mean[0] - exact.mean[1], spread.sqrt()).log_prob(torch.as_tensor(centre)).exp()
    bottom.plot(centre, matched, color=RED, lw=1.8, ls="--", label="min KL(p || q), moments")
    bottom.set(xlabel="$\\mu_1 - \\mu_2$", xlim=(-7, 7), ylim=(0, 1.05))
axes[0, 0].set_ylabel("$\\mu_2$")
axes[1, 0].set_ylabel("density")
_ = axes[1, 0].legend(frameon=False, fontsize=8, loc="upper right")

# %% [markdown]
# Far apart, $\text{KL}(q \,\|\, p)$ settles on one hill and describes it well (**mode seeking**), and which
# one depends on where it began. $\text{KL}(p \,\|\, q)$ covers everything (**mass covering**) and is
# centred in the valley. Where the hills nearly touch, so do the answers. In numbers, for the groups 4
# apart:

# %%
distance = 4.0
fit, exact = fit_of[distance], exact_of[distance]
draws = fit.sample(4000)["mu"]
candidates = {
    "min KL(q || p), bz.fit": dist.MultivariateNormal(draws.mean(0), draws.T.cov()),
    "min KL(p || q), moments": dist.MultivariateNormal(exact.mean, exact.covariance),
}
for name, q in candidates.items():
    forward, backward = exact.divergences(q)
    print(f"{name:24}  KL(q || p) {forward:6.2f}   KL(p || q) {backward:6.2f}  nats")
print(f"\nbz.fit's own account: loss + log p(x) = {fit.loss + exact.log_evidence:.3f} nats; log 2 = {np.log(2):.3f}")

# %% [markdown]
# One of two equal hills is half of the mass: wherever $q$ is, $\log \frac{q}{p} = \log 2$. Missing half of
# the posterior costs 0.69 nats, no more, and the weights $p / q$ of $q$'s own draws cannot see it. They are
# all alike: read the line of k-hat, nearly every draw is effective. (Where a restart's k-hat is above 0.67,
# that is about the far tails of its own hill, which are the prior's.) What does see it are the **restarts**.

# %%
print(fit.diagnose())

# %% [markdown]
# Restarts become ArviZ chains, and chains that disagree have a large `r_hat` (1.0 is right). Where the
# hills touch, all restarts end in one place.

# %%
summaries = {d: az.summary(tree, kind="all")[["mean", "sd", "r_hat"]] for d, tree in tree_of.items()}
print("\n\n".join(f"groups {d:g} apart\n{summary}" for d, summary in summaries.items()))

# %% [markdown]
# Here the missed hill tells the same story with the names swapped, so one hill is enough. In general it is
# not. Variational inference takes $\text{KL}(q \,\|\, p)$ not because it is the better one, but because it
# can be computed: $\text{KL}(p \,\|\, q)$ is an average over the posterior, which we do not have.
#
# ## Where the gradient comes from
#
# To climb the ELBO we need the gradient of $\mathbb{E}_{q(\theta \mid \Lambda)} f(\theta)$ with
# $f = \log \frac{p(\mathcal{D}, \theta)}{q(\theta \mid \Lambda)}$, and the draws depend on $\Lambda$
# themselves. Two ways:
#
# | | one draw gives |
# |---|---|
# | REINFORCE | $f(\theta) \, \nabla_\Lambda \log q(\theta \mid \Lambda)$ |
# | the same with a baseline $b$ | $(f(\theta) - b) \, \nabla_\Lambda \log q(\theta \mid \Lambda)$ |
# | reparametrisation | $\nabla_\Lambda f(m + s \varepsilon)$, $\;\varepsilon \sim \mathcal{N}(0, 1)$ |
#
# $f$ itself contains $\Lambda$. The lecture leaves out the term
# $\mathbb{E}_q[\nabla f] = -\mathbb{E}_q[\nabla \log q]$ without a word; it may, because
# $\mathbb{E}_q[\nabla \log q] = \int \nabla q \, d\theta = \nabla 1 = 0$. For the same reason a constant
# $b$ changes nothing *on average*. REINFORCE only needs values of $f$; the reparametrisation needs its
# derivative. By hand, for the line of above and mean field:


# %%
def log_joint(theta):
    """log p(D, theta) of the line, (S,) for theta (S, 2)."""
    return prior.log_prob(theta) + dist.Normal(theta @ X.T, sigma).log_prob(y).sum(-1)


def surrogate(name, m, s, baseline=0.0):
    """What to differentiate for an estimate of the ELBO's gradient, (S,) for m and s (S, 2)."""
    q = dist.Normal(m, s).to_event(1)
    theta = q.rsample()
    if name == "reparametrised":
        return log_joint(theta) - q.log_prob(theta)
    theta = theta.detach()  # no gradient through the draw
    f = (log_joint(theta) - q.log_prob(theta)).detach()
    return (f - baseline) * q.log_prob(theta)


S = 20_000
start = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)  # q is the prior
b = evidence - terms(prior)[2]  # the ELBO there
names = {"REINFORCE": ("reinforce", 0.0), "with a baseline": ("reinforce", b), "reparametrised": ("reparametrised", 0.0)}
gradients = {}
for label, (name, baseline) in names.items():
    torch.manual_seed(0)
    m, s = (t.expand(S, 2).clone().requires_grad_() for t in start)
    surrogate(name, m, s, baseline).sum().backward()
    gradients[label] = m.grad[:, 1]  # of the slope's mean, one for each draw
exact_gradient = (X.T @ (y - X @ start[0]) / sigma**2 - start[0])[1]
print(f"{'exact':16} {exact_gradient:8.2f}")
for label, g in gradients.items():
    print(f"{label:16} {g.mean():8.2f} ± {g.std() / S**0.5:.2f}   sd of one draw {g.std():7.1f}")

# %% [markdown]
# `bz.inference.gradient_variance` measures the same for any model and guide, over all parameters, with
# error bars on variance and bias.

# %%
check = bz.inference.gradient_variance(
    line, Guide(0.0), points, ("reinforce", "reinforce_baseline", "reparametrized"), num_samples=4000
)
print(check, "\n")
for label, name in zip(names, check.estimators, strict=True):
    print(f"variance for the slope's mean: {label:16} by hand {gradients[label].var():9.0f}", end="   ")
    print(f"measured {check[name].per_parameter['guide.m'][1]:9.0f}")

# %% [markdown]
# More than a factor of ten, for two parameters and twelve points. Real tables have more of both. `diabetes` has ten
# columns; we take more and more of its rows, and measure where a mean-field fit begins. A fourth estimator
# joins in, *sticking the landing*: reparametrisation without that part of the gradient which is zero on
# average. It pays where $q$ can hold the posterior (exercise 3), and mean field cannot.
#
# **Before you look:** REINFORCE multiplies by $f$, about $\log p(\mathcal{D})$. What do ten times as many
# rows do to its variance, and what to that of the reparametrised gradient?

# %%
table = bz.data.load("diabetes")
regression = bz.models.BayesianLinearRegression(dim=table.dim)
estimators = ("reinforce", "reinforce_baseline", "reparametrized", "sticking_the_landing")
sizes = (25, 75, 200, 442)
measured = [bz.inference.gradient_variance(regression, "mean_field", table.select(slice(0, N)), estimators) for N in sizes]

_, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
bins = np.linspace(-900, 700, 120)
for (label, g), colour in zip(gradients.items(), (RED, ORANGE, BLUE), strict=True):
    left.hist(g, bins=bins, density=True, histtype="step", lw=1.5, color=colour, label=f"{label}, sd {g.std():.0f}")
left.axvline(exact_gradient, color="black", ls=":", label="the exact gradient")
left.set(yscale="log", xlabel="gradient from one draw", ylabel="density", title="the line, slope's mean, 20,000 draws")
left.legend(frameon=False, fontsize=8)
for name, colour, marker in zip(estimators, (RED, ORANGE, BLUE, GREEN), "sDo^", strict=True):
    values = [(m[name].variance, 2 * m[name].variance_error) for m in measured]
    right.errorbar(sizes, *zip(*values, strict=True), fmt=f"-{marker}", ms=5, color=colour, label=name)
right.set(xscale="log", yscale="log", xlabel="rows N", ylabel="variance, nats$^2$", title="diabetes, 12 latents, mean field")
right.set_xticks(sizes, [str(N) for N in sizes])
right.minorticks_off()
right.legend(frameon=False, fontsize=8)
ratio = measured[-1].factor("reparametrized", "reinforce")
print(f"N = 442: the variance of REINFORCE is {ratio[0]:,.0f} ± {ratio[1]:,.0f} times that of the reparametrised gradient")

# %% [markdown]
# So many draws would one have to average to get the same quality. $f$ grows like $N$, and the variance like
# $N^2$. A baseline takes that away; what then remains between REINFORCE and the reparametrisation is that
# the first knows only *how good* a draw was, and the second also in which direction it would be better.
#
# Finally the three at work: the same line, the same Adam, one draw a step, five seeds; the divergence left
# is computed exactly.


# %%
def learn(name, baseline, seed, steps=400):
    """KL(q || posterior) after every step of gradient ascent by hand."""
    torch.manual_seed(seed)
    m = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    log_s = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([m, log_s], lr=0.05)
    remaining = []
    for _ in range(steps):
        adam.zero_grad()
        (-surrogate(name, m, log_s.exp(), baseline).sum()).backward()
        adam.step()
        q = dist.MultivariateNormal(m[0].detach(), scale_tril=log_s[0].detach().exp().diag_embed())
        remaining.append(float(kl_divergence(q, truth)))
    return np.array(remaining)


curves = {
    label: np.array([learn(name, baseline, seed) for seed in range(5)])
    for label, (name, baseline) in (
        ("REINFORCE", ("reinforce", 0.0)),
        ("with a baseline", ("reinforce", evidence)),
        ("reparametrised", ("reparametrised", 0.0)),
    )
}

# %% [markdown]
# **Before you look:** all three follow the same gradient on average. Will they end at the same place?

# %%
V = truth.covariance_matrix
best = -0.5 * np.log(1 - float(V[0, 1] ** 2 / (V[0, 0] * V[1, 1])))  # the formula for mean field
_, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
for (label, kl), colour in zip(curves.items(), (RED, ORANGE, BLUE), strict=True):
    ax.plot(kl.T, color=colour, lw=0.7, alpha=0.4)
    ax.plot(np.median(kl, 0), color=colour, lw=2, label=f"{label} (median of 5)")
ax.axhline(best, color="black", ls=":", label="the best that mean field can do")
ax.set(yscale="log", xlabel="step", ylabel="KL(q || posterior), nats", xlim=(0, 400))
_ = ax.legend(frameon=False, fontsize=8)

# %% [markdown]
# On average all three follow the same gradient, and with steps small enough all three would arrive. With
# the same step, REINFORCE is still far off when the reparametrised gradient has long been there: "random
# search in disguise", says the lecture. (As a baseline we gave it $\log p(\mathcal{D})$, which is known
# here; elsewhere one takes a running mean of $f$.) What stays of REINFORCE is its generality: it needs no
# derivative of $f$, so $\theta$ may be discrete.
#
# ## Exercise
#
# 1. Is mean field always too sure of itself? Compare the sds of `fits["mean_field"].predict({"x": order})`
#    and `fits["full_rank"].predict({"x": order})` for the same order again, and for two coffees,
#    `order = torch.tensor([[2.0, 0.0]], dtype=torch.float64)`. On paper: the variance of
#    $\theta_\text{coffee} + 3 \theta_\text{roll}$ under both.
# 2. A flow could hold both hills. Fit the groups 4 apart with `guide="iaf"` and the settings of above (some
#    ten seconds). Does it? Which of the two KLs is to blame?
# 3. Call `bz.inference.gradient_variance(bz.fit(line, points, guide="full_rank"))`. Two of the estimators
#    have no variance left. Which, and why just those? (What is $f(\theta)$ where $q$ is the posterior?)
