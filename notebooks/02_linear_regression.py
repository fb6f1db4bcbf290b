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
# # 2. Bayesian linear regression
#
# Many parameters that depend on each other, and still an exact answer. Here one sees what a posterior over
# *functions* is, what a guide can and cannot follow, and how a fit says that its model is wrong.
#
# **Goals.** After this notebook you can
#
# 1. derive the posterior over coefficients and the predictive distribution, and find each term in code;
# 2. tell what is lost by MLE and MAP when there are few data per parameter;
# 3. predict which posteriors mean field gets wrong, and by how much;
# 4. fit a real table, read its coefficients in their own units, and catch a wrong noise level.

# %%
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # widgets are not needed here

import arviz as az
import matplotlib.pyplot as plt
import torch

import bayeszoo as bz

plt.rcParams["figure.dpi"] = 80
BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#D55E00"

# %% [markdown]
# ## The model
#
# $$\theta \sim \mathcal{N}(\mu_0, \sigma_0^2 I), \qquad
# y_n \mid x_n, \theta \sim \mathcal{N}(\theta^T x_n, \sigma^2)$$
#
# Each $x_n$ gets a leading one, so $\theta_0$ is the intercept. We let the model itself invent a true line
# and 20 points around it: the lecture's data, "generated using the same $\theta^*$".

# %%
sigma = 0.5
line = bz.models.BayesianLinearRegression(dim=1, prior_mean=0.0, prior_scale=1.0, noise_scale=sigma)
generator = torch.Generator().manual_seed(184)  # one whose first points lie apart
x = 4 * torch.rand(20, 1, dtype=torch.float64, generator=generator) - 2
data = bz.data.simulate(line, n=20, seed=16, inputs={"x": x})
theta_true = data.truth["theta"]
print(data)
print("true intercept and slope:", theta_true.numpy().round(2))

# %% [markdown]
# ## From prior to posterior
#
# Prior and likelihood are Gaussian in $\theta$, so the posterior is, too:
#
# $$p(\theta \mid \mathcal{D}) = \mathcal{N}(\theta \mid \mu_N, \Sigma_N), \qquad
# \Sigma_N^{-1} = \sigma_0^{-2} I + \sigma^{-2} X^T X, \qquad
# \mu_N = \Sigma_N \left( \sigma_0^{-2} \mu_0 + \sigma^{-2} X^T y \right)$$
#
# (The lecture's denominator $p(\mathcal{D})$ is $p(y_{1..N} \mid x_{1..N})$: inputs are conditioned on,
# not modelled.) By hand, and by the model:

# %%
X = torch.cat([torch.ones_like(x), x], 1)
Sigma_N = torch.linalg.inv(torch.eye(2) / 1.0**2 + X.T @ X / sigma**2)
mu_N = Sigma_N @ (X.T @ data.observed / sigma**2)
posterior = line.exact_posterior(data)["theta"]
print("by hand  ", mu_N.numpy(), Sigma_N.diagonal().sqrt().numpy())
print("the model", posterior.mean.numpy(), posterior.stddev.numpy())

# %% [markdown]
# **Before you look:** one point does not fix a line, but it rules out most. Which shape must the posterior
# over (intercept, slope) have after the first point, and which after the second?

# %%
grid = torch.linspace(-2.2, 2.2, 60, dtype=torch.float64)
ticks = torch.linspace(-3, 3, 140, dtype=torch.float64)
plane = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1)
_, axes = plt.subplots(2, 4, figsize=(11.5, 5.6), layout="constrained", sharex="row", sharey="row")
for (top, bottom), N in zip(axes.T, (1, 2, 5, 20), strict=True):
    part = data.select(slice(0, N))
    theta = line.exact_posterior(part)["theta"]
    torch.manual_seed(0)
    for intercept, slope in theta.sample((25,)).tolist():
        top.plot(grid, intercept + slope * grid, color=BLUE, lw=0.6, alpha=0.5)
    top.plot(grid, theta_true[0] + theta_true[1] * grid, color="black", ls="--", lw=1.2)
    top.scatter(part.inputs["x"][:, 0], part.observed, color=ORANGE, edgecolor="black", lw=0.5, s=28, zorder=3)
    top.set(title=f"N = {N}", ylim=(-4, 4), xlabel="x")
    density = theta.log_prob(plane).exp()
    bottom.contourf(ticks, ticks, density / density.max(), levels=[0.01, 0.1, 0.3, 0.6, 1], cmap="Blues")
    bottom.plot(*theta_true, marker="*", ms=11, ls="", color="black")
    bottom.set(xlabel="intercept $\\theta_0$")
axes[0, 0].set_ylabel("y, posterior lines")
_ = axes[1, 0].set_ylabel("slope $\\theta_1$")

# %% [markdown]
# The dashed line and the star are the truth. One point leaves a ridge (raise the intercept, lower the
# slope), the second cuts across it, twenty leave a dot: the posterior collapses to $\theta^*$.
#
# ## How sure are we of a prediction?
#
# Integrate the lines out, and the predictive distribution is Gaussian with the variance
#
# $$\sigma_N^2(x) = \underbrace{\sigma^2}_{\text{noise}}
# + \underbrace{x^T \Sigma_N x}_{\text{not knowing } \theta}$$
#
# The lecture writes one $\sigma_N^2$; it depends on $x$.

# %%
five = data.select(slice(0, 5))
theta = line.exact_posterior(five)["theta"]
far = torch.linspace(-6, 6, 121, dtype=torch.float64)
predictive = line.exact_predictive(five, far[:, None])
rows = torch.stack([torch.ones_like(far), far], 1)
by_hand = sigma**2 + ((rows @ theta.covariance_matrix) * rows).sum(1)
print("largest difference:", (by_hand - predictive.variance).abs().max().item())

# %% [markdown]
# **Before you look:** where is the band narrowest, and what is its width for $x \to \infty$?

# %%
_, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
mean, sd = predictive.mean, predictive.stddev
ax.fill_between(far, mean - 2 * sd, mean + 2 * sd, color="#56B4E9", alpha=0.35, lw=0, label="$\\pm 2 \\sigma_N(x)$")
ax.plot(far, mean - 2 * sigma, color=RED, lw=1, ls="--", label="$\\pm 2 \\sigma$: noise alone")
ax.plot(far, mean + 2 * sigma, color=RED, lw=1, ls="--")
ax.plot(far, mean, color=BLUE, label="mean")
ax.plot(far, theta_true[0] + theta_true[1] * far, color="black", lw=1, ls=":", label="truth")
ax.scatter(five.inputs["x"][:, 0], five.observed, color=ORANGE, edgecolor="black", lw=0.5, zorder=3)
ax.set(xlabel="x", ylabel="y", title="five points")
_ = ax.legend(frameon=False, fontsize=8, ncols=2)

# %% [markdown]
# ## Guides over the exact contours
#
# Now as if there were no formula. A guide $q_\Lambda(\theta)$ minimises $-\text{ELBO} = -\log p(y \mid x)
# + \text{KL}(q \,\|\, p(\theta \mid \mathcal{D}))$. Mean field takes one normal for each coefficient,
# without correlation. Where the posterior is normal with precision $P = \Sigma_N^{-1}$, the best such $q$
# has the right means and the sds $1 / \sqrt{P_{ii}}$: what is left of each coefficient's uncertainty if
# all the *others were known*. We move the inputs away from zero, so that intercept and slope are strongly
# correlated.

# %%
shifted = bz.data.simulate(line, n=20, seed=16, inputs={"x": x + 3})
fits = {
    guide: bz.fit(line, shifted, guide=guide, seed=0, progress=False)  # the guide, by one word
    for guide in ("map", "mean_field", "full_rank")
}
Sigma = line.exact_posterior(shifted)["theta"].covariance_matrix
print("exact sds             ", Sigma.diagonal().sqrt().numpy().round(4))
print("1 / sqrt(P_ii)        ", torch.linalg.inv(Sigma).diagonal().rsqrt().numpy().round(4))
for guide in ("mean_field", "full_rank"):
    print(f"{guide:10} sds        ", fits[guide].sample(4000)["theta"].std(0).numpy().round(4))

# %% [markdown]
# **Before you look:** the exact contours are a thin, tilted ellipse. Draw mean field's best axis-parallel
# ellipse into it, in your mind.

# %%
_, ax = plt.subplots(figsize=(6, 4.4), layout="constrained")
_ = bz.plots.plot_contours(fits, "theta", ax=ax)

# %% [markdown]
# Its predictions suffer less than its sds, but here `diagnose()` does not let it pass:

# %%
print(fits["mean_field"].diagnose())

# %%
print(fits["full_rank"].diagnose())

# %% [markdown]
# ## Few data per parameter
#
# Polynomials are linear in their coefficients: $x \mapsto (1, x, x^2, \dots, x^d)$ and nothing else
# changes. The data are a wave with noise; the degree is 9 where there are enough points and $N - 1$ below,
# as with more coefficients than points the MLE is not unique (the model refuses to name one).
#
# | | prediction at x |
# |---|---|
# | MLE | $\mathcal{N}(\theta_\text{MLE}^T x, \sigma^2)$, least squares |
# | MAP | $\mathcal{N}(\theta_\text{MAP}^T x, \sigma^2)$, the posterior's mode |
# | Bayes | $\mathcal{N}(\mu_N^T x, \sigma^2 + x^T \Sigma_N x)$, the whole posterior |

# %%
noise = 0.25


def powers(x, degree):
    """Columns x, x^2, ..., x^degree."""
    return torch.stack([x**d for d in range(1, degree + 1)], 1)


generator = torch.Generator().manual_seed(304)  # one whose first points lie apart
wave_x = 2 * torch.rand(500, dtype=torch.float64, generator=generator) - 1
wave_y = torch.sin(4 * wave_x) + noise * torch.randn(500, dtype=torch.float64, generator=generator)

# %% [markdown]
# **Before you look:** for Gaussians mode and mean agree. So which part of a MAP prediction differs from
# full Bayes?

# %%
at = torch.linspace(-1.15, 1.15, 150, dtype=torch.float64)
sizes = (5, 12, 50, 500)
_, axes = plt.subplots(3, 4, figsize=(11.5, 6.6), layout="constrained", sharex=True, sharey=True)
for column, N in zip(axes.T, sizes, strict=True):
    degree = min(9, N - 1)
    model = bz.models.BayesianLinearRegression(dim=degree, prior_scale=3.0, noise_scale=noise)
    sample = bz.data.Data({"x": powers(wave_x[:N], degree)}, wave_y[:N])
    new = powers(at, degree)
    bayes = model.exact_predictive(sample, new)
    points = {
        "MLE": model.maximum_likelihood(sample)["theta"],
        "MAP": model.maximum_a_posteriori(sample)["theta"],
    }
    answers = {k: (model.predict_mean(theta, new), torch.full_like(at, noise)) for k, theta in points.items()}
    answers["Bayes"] = (bayes.mean, bayes.stddev)
    for ax, (mean, sd), colour in zip(column, answers.values(), (RED, ORANGE, BLUE), strict=True):
        ax.fill_between(at, mean - 2 * sd, mean + 2 * sd, color=colour, alpha=0.25, lw=0)
        ax.plot(at, mean, color=colour)
        ax.plot(at, torch.sin(4 * at), color="black", ls=":", lw=1)
        ax.scatter(wave_x[:N], wave_y[:N], s=12 if N < 100 else 2, color="black", alpha=0.6, lw=0)
        ax.set(ylim=(-3, 3))
    column[0].set_title(f"N = {N}, degree {degree}")
for row, name in zip(axes, ("MLE", "MAP", "Bayes"), strict=True):
    row[0].set_ylabel(name)

# %% [markdown]
# MLE goes through every point and is sure of it. MAP's prior keeps the curve tame, but its band is as
# narrow where there are no data. Bayes alone widens there. At 500 points, fifty for each coefficient, the
# three look alike inside the data: what counts is data *per parameter*, and neural networks have little.
#
# ## When the noise is not known
#
# $\sigma \sim \text{HalfNormal}(1)$ makes the noise a latent variable. The posterior is no longer
# Gaussian, but it still is so *given* $\sigma$, and one integral remains, which the model does by
# quadrature:
#
# $$p(\sigma \mid y) \propto p(\sigma) \int p(y \mid \theta, \sigma) p(\theta) \, d\theta, \qquad
# p(\theta \mid y) = \int \mathcal{N}(\theta \mid \mu_N(\sigma), \Sigma_N(\sigma))
# p(\sigma \mid y) \, d\sigma$$

# %%
unknown = bz.models.BayesianLinearRegression(dim=1)
exact = unknown.exact_posterior(data)
unknown_fit = bz.fit(unknown, data, guide="full_rank", seed=0, progress=False)
print(f"true noise {sigma}, exact posterior of sigma {exact.mean['sigma']:.3f} ± {exact.sd['sigma']:.3f}")
az.summary(unknown_fit.to_arviz(), kind="stats")

# %% [markdown]
# **Before you look:** on which side will the posterior of $\sigma$ have its longer tail?

# %%
_, ax = plt.subplots(figsize=(6, 3), layout="constrained")
s = torch.linspace(0.2, 1.1, 200, dtype=torch.float64)
ax.fill_between(s, exact.sigma.log_prob(s).exp(), color="lightgrey", label="exact, by quadrature")
draws = unknown_fit.sample(4000)["sigma"].numpy()
ax.hist(draws, bins=45, range=(0.2, 1.1), density=True, histtype="step", color=BLUE, lw=1.5, label="full_rank")
ax.axvline(sigma, color="black", ls=":", label="truth")
ax.set(xlabel="$\\sigma$", ylabel="density")
_ = ax.legend(frameon=False)

# %% [markdown]
# ## A real table
#
# How far did diabetes progress in a year, from ten measurements of 442 people? Inputs and target are
# standardised for the fit, and the scale travels with it: predictions come back in the table's own units.

# %%
table = bz.data.load("diabetes")
train, test = table.split(0.8, seed=0)
diabetes = bz.fit(bz.models.BayesianLinearRegression(dim=train.dim), train, guide="full_rank", seed=0, progress=False)
print(diabetes.diagnose(held_out=test))

# %%
prediction = diabetes.predict(test.inputs)
low, high = prediction.interval(0.9)
y = test.unscaled().observed
print(
    f"held out: {((low <= y) & (y <= high)).double().mean():.0%} inside the 90 % intervals; "
    f"root mean squared error {(prediction.mean - y).square().mean().sqrt():.0f}, "
    f"sd of the target {y.std():.0f}"
)

# %% [markdown]
# **Before you look:** `s1` to `s4` are blood fats that are computed from each other. What does that do to
# the uncertainty of their coefficients?
#
# Coefficients in their own units: points of progression for each year of age, unit of body mass index, and
# so on. (They differ in size, so there are two figures. The intercept is left out.)

# %%
original = diabetes.sample(2000, units="original")
names = diabetes.to_arviz(log_likelihood=False, predictive=False, prior=False)["posterior"]["feature"].values
coefficients = az.from_dict(
    {"posterior": {"theta": original["theta"].numpy()[None]}},
    coords={"feature": names},
    dims={"theta": ["feature"]},
)
large = ["sex", "s4", "s5"]
small = [name for name in names if name not in (*large, "intercept")]
for group, height in ((large, 2.4), (small, 3.4)):
    az.plot_forest(coefficients, coords={"feature": group}, combined=True, figure_kwargs={"figsize": (6.5, height)})
    plt.gcf().axes[-1].axvline(0, color="grey", ls="--", lw=1)

# %% [markdown]
# Body mass index, blood pressure and `s5` matter; the blood fats could trade their effects among each
# other, and so each alone is hardly known. Full rank sees that, mean field would not.
#
# ## A wrong noise level, and how it shows
#
# Suppose we had set $\sigma = 0.3$ of the target's sd because somebody told us so. Fit, then simulate the
# table again from the posterior and compare the spread of the residuals with the real one.

# %%
told = bz.models.BayesianLinearRegression(dim=train.dim, noise_scale=0.3)
wrong = bz.fit(told, train, guide="exact", seed=0, progress=False)

# %% [markdown]
# **Before you look:** all that the left model could learn from the data it has learnt, its posterior is
# exact. Will the simulated residuals look like the real ones? And those of the model that infers $\sigma$?

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
bz.plots.plot_residual_check(wrong, ax=left)
left.set_title("noise set to 0.3")
bz.plots.plot_residual_check(diabetes, ax=right)
_ = right.set(title="noise inferred", ylim=(0, 100))

# %% [markdown]
# The same through ArviZ: the density of simulated tables (thin) and of the real one, in standardised
# units, first with noise 0.3, then with the noise inferred. The wrong model's tables are too narrow at
# both ends. Inferring the noise mends the width, but the real scores are skewed in a way that *no* normal
# noise around this plane reproduces: the better model is not the last one. The check of the residuals' sd
# alone would not have told.

# %%
az.plot_ppc_dist(wrong.to_arviz(), num_samples=40, figure_kwargs={"figsize": (6.5, 3)})
_ = az.plot_ppc_dist(diabetes.to_arviz(), num_samples=40, figure_kwargs={"figsize": (6.5, 3)})

# %% [markdown]
# An exact posterior of a wrong model is still wrong: `diagnose()` asks whether the *inference* is right, a
# posterior predictive check whether the *model* is. LOO sees it as well:

# %%
for name, one in (("noise set to 0.3", wrong), ("noise inferred", diabetes)):
    with warnings.catch_warnings():  # some people weigh so much in the wrong model that LOO itself warns
        warnings.simplefilter("ignore", UserWarning)
        elpd = one.loo()
    print(f"{name:17}  elpd_loo {elpd.elpd:8.1f} ± {elpd.se:.1f} nats")

# %% [markdown]
# ## Exercise
#
# 1. Change one word to fit the diabetes table with `guide="mean_field"`. Which sds does `diagnose()`
#    complain of, and why just those? Then try `"low_rank"`.
# 2. Centre the inputs of the shifted line (`x - x.mean()`) and fit mean field again. Why is it right now?
# 3. Give the polynomial of degree 9 with `N = 12` the prior scales 0.3 and 30. Compare
#    `model.log_evidence(sample)`: which prior do the data prefer, and would you have chosen it from the
#    figure?
