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
# # 1. Tossing a coin
#
# The smallest Bayesian model there is, on 350,757 real coin flips. It has an exact answer, so everything
# that approximate inference does here can be checked.
#
# **Goals.** After this notebook you can
#
# 1. say what prior, likelihood, posterior and posterior predictive are, in formulas and in code;
# 2. explain why maximum likelihood is overconfident after three flips, and why nobody cares after a
#    million;
# 3. fit a posterior by stochastic variational inference, swap the guide by one word, and ask how wrong it
#    is;
# 4. notice that a model does not fit the data, and mend the model.

# %%
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # widgets are not needed here
warnings.filterwarnings("ignore", message="An output with one or more elements was resized")  # of torch's binomial

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch

import bayeszoo as bz

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The model
#
# $$\pi \sim \text{Beta}(\alpha, \beta), \qquad x_n \mid \pi \sim \text{Bern}(\pi)$$
#
# $\pi$ is the chance of heads, unknown, and $\text{Beta}(1, 1)$ is the uniform distribution $U(0, 1)$:
# before the first flip every chance is as good as another.

# %%
model = bz.models.CoinFlip(alpha=1.0, beta=1.0)
model

# %% [markdown]
# ## The data
#
# Forty-eight people tossed coins and wrote down whether the coin landed on the side that it had started on
# (Bartoš et al. 2023). "Heads", $x_n = 1$, means *same side* from here on. The published table holds
# counts, no order of the flips. Where we want flips one after another, we put them into **an order drawn
# at random with a seed**: it is not the order in which they were tossed. The model does not mind, its
# flips are exchangeable.

# %%
flips = bz.data.load("coin_flips", form="sequence", seed=0)
print(flips)
print(flips.note)
print(flips.origin)

# %% [markdown]
# ## From prior to posterior
#
# Bayes' rule multiplies the prior with one factor for every flip:
#
# $$p(\pi \mid x_{1..N}) \propto \pi^{\alpha - 1} (1 - \pi)^{\beta - 1} \prod_{n=1}^{N}
# \pi^{x_n} (1 - \pi)^{1 - x_n} \;\Rightarrow\; \text{Beta}(\alpha + \text{heads}, \beta + \text{tails})$$

# %%
first = flips.select(slice(0, 10))
heads = float(first.observed.sum())
posterior = model.exact_posterior(first)["pi"]
print(f"after {len(first)} flips with {heads:.0f} heads: Beta({posterior.concentration1:g}, {posterior.concentration0:g})")

# %% [markdown]
# **Before you look:** the standard deviation of the posterior after 10 flips is about 0.12. How many flips
# does it take to make it ten times smaller?

# %%
_, ax = plt.subplots(figsize=(6.5, 3.6))
bz.plots.plot_coin_updates(flips, at=(0, 1, 3, 10, 100, 1000), model=model, ax=ax)
_ = ax.set(title="real flips in a seeded random order", ylim=(0, 28))

# %% [markdown]
# A hundred times as many: the width falls like $1/\sqrt{N}$.
#
# The posterior after some flips is the prior for those that follow. Two steps end where one big step ends:

# %%
rest = flips.select(slice(10, 1000))
two_steps = model.update(first).exact_posterior(rest)["pi"]
one_step = model.exact_posterior(flips.select(slice(0, 1000)))["pi"]
print("two steps:", two_steps.concentration1.item(), two_steps.concentration0.item())
print("one step: ", one_step.concentration1.item(), one_step.concentration0.item())

# %% [markdown]
# ## Three answers to one question
#
# How will the coin land next? With the lecture's numbering, $N - 1$ flips are known and $x_N$ is the next
# one.
#
# | | formula |
# |---|---|
# | maximum likelihood (MLE) | $\pi^* = \frac{1}{N-1} \sum_{n<N} x_n$ |
# | maximum a posteriori (MAP) | $\arg\max_\pi p(\pi \mid x_{<N})$; with the uniform prior the same as MLE |
# | full Bayes | $\int \pi \, p(\pi \mid x_{<N}) \, d\pi = \frac{1 + \sum_{n<N} x_n}{N + 1}$ |
#
# Toss three heads in a row, so $N - 1 = 3$:

# %%
three_heads = bz.data.Data(inputs={}, observed=torch.ones(3, dtype=torch.float64), name="three heads")
N = len(three_heads) + 1
print(f"MLE        {model.maximum_likelihood(three_heads)['pi']:.3f}")
print(f"MAP        {model.maximum_a_posteriori(three_heads)['pi']:.3f}")
print(f"full Bayes {model.exact_predictive(three_heads).probs:.3f}   by hand: {(1 + 3) / (N + 1):.3f}")

# %% [markdown]
# MLE is *certain* that tails will never come: one tail later its likelihood is zero. Full Bayes says 0.8,
# as it averages over every $\pi$ that could have given three heads.
#
# **Before you look:** a prior Beta(2, 2) prefers fair coins a little. Where will MAP lie, and which of the
# three are still apart after 1,000 flips?

# %%
careful = bz.models.CoinFlip(alpha=2.0, beta=2.0)
answers = {
    "MLE": model.maximum_likelihood(three_heads)["pi"],
    "MAP, Beta(1, 1)": model.maximum_a_posteriori(three_heads)["pi"],
    "MAP, Beta(2, 2)": careful.maximum_a_posteriori(three_heads)["pi"],
    "Bayes, Beta(1, 1)": model.exact_predictive(three_heads).probs,
    "Bayes, Beta(2, 2)": careful.exact_predictive(three_heads).probs,
}
_, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
colours = ["#D55E00", "#E69F00", "#E69F00", "#0072B2", "#0072B2"]
left.barh(list(answers), [float(p) for p in answers.values()], color=colours)
for row, p in enumerate(answers.values()):
    left.text(float(p) - 0.02, row, f"{float(p):.2f}", va="center", ha="right", color="white")
left.set(title="after three heads", xlabel="chance that the next flip is heads", xlim=(0, 1))
left.invert_yaxis()
bz.plots.plot_coin_answers(flips.select(slice(0, 10_000)), model=careful, ax=right)
_ = right.set_title("as real flips arrive (seeded random order)")

# %% [markdown]
# They meet as data grow: the posterior collapses to a point, and every sensible summary of a point is that
# point.
#
# ## The same posterior by SVI
#
# Most models have no formula for the posterior. Variational inference picks, within a family $q_\Lambda$
# (the *guide*), the member closest to it, by minimising the negative ELBO:
#
# $$\text{loss} = -\mathbb{E}_{q(\pi)} \left[ \log p(x, \pi) - \log q(\pi) \right]
# = -\log p(x) + \text{KL}(q(\pi) \,\|\, p(\pi \mid x))$$
#
# So the loss can never fall below $-\log p(x)$, which this model knows, and what is left over *is* the
# distance to the truth. `"beta"` is the coin's matching guide, as the posterior is a Beta distribution.

# %%
fit = bz.fit(model, first, guide="beta", seed=0, progress=False)
fit

# %% [markdown]
# **Swap the guide by changing one word.** `mean_field` is a normal distribution on the scale of $\log
# \frac{\pi}{1 - \pi}$, squeezed back into (0, 1); `exact` hands the model's own posterior over; `map` is a
# single point, which has no KL: its loss is a surrogate.

# %%
fits = {"beta": fit}
for guide in ("exact", "mean_field", "map"):
    fits[guide] = bz.fit(model, first, guide=guide, seed=0, progress=False)
floor = -model.log_evidence(first).item()
print(f"exact posterior: mean {posterior.mean:.4f}, sd {posterior.stddev:.4f}; -log p(x) = {floor:.4f} nats\n")
for guide, one in fits.items():
    pi = one.sample(4000)["pi"]
    gap = f"{one.loss - floor:+.4f} ± {one.loss_error:.4f}" if one.objective == "elbo" else "none (surrogate)"
    print(f"{guide:10}  mean {pi.mean():.4f}  sd {pi.std():.4f}  loss + log p(x) = {gap}")

# %% [markdown]
# **Before you look:** the posterior after ten flips is skewed. Which guide can follow the skew?

# %%
_, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", sharey=True)
grid = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
for ax, guide in zip(axes, ("beta", "mean_field", "map"), strict=True):
    ax.fill_between(grid, posterior.log_prob(grid).exp(), color="lightgrey", label="exact posterior")
    pi = fits[guide].sample(4000)["pi"].numpy()
    if fits[guide].objective == "elbo":
        ax.hist(
            pi,
            bins=40,
            range=(0, 1),
            density=True,
            histtype="step",
            color="#0072B2",
            lw=1.5,
            label="draws of the guide",
        )
    else:
        ax.axvline(pi[0], color="#0072B2", label="the point")
    ax.set(title=f'guide="{guide}"', xlabel="$\\pi$", xlim=(0, 1))
    ax.legend(frameon=False, fontsize=8, loc="upper left")
_ = axes[0].set_ylabel("density")

# %% [markdown]
# ### How wrong is it?
#
# `fit.diagnose()` asks: did the optimiser converge, do the importance weights $p / q$ behave (k-hat), do
# corrected and raw moments agree, and, since this model knows the truth, how far off are mean and sd?

# %%
print(fits["mean_field"].diagnose())

# %% [markdown]
# Mean and sd are right within a few per cent, and the KL is a hundredth of a nat. Why the doubt, then? On
# the scale of $\log \frac{\pi}{1 - \pi}$ a Beta's tails fall like $e^{-|u|}$, a normal's like $e^{-u^2}$:
# far out the posterior has mass where the guide has almost none, so the weights $p / q$ have a heavy tail,
# and k-hat measures exactly that. For the mean of $\pi$ it does not matter; for the chance of a very
# unfair coin it would.

# %% [markdown]
# ### The same through ArviZ
#
# A fit becomes an ArviZ tree with everything that its plots and summaries ask for.

# %%
tree = fits["mean_field"].to_arviz()
az.summary(tree, kind="stats")

# %%
_ = az.plot_dist(tree, figure_kwargs={"figsize": (6, 3)})

# %% [markdown]
# ## Forty-eight people, one coin?
#
# Now all the flips, as the table has them: 48 rows, $x_n$ same sides out of $m_n$ flips of person $n$.
# With one chance $\pi$ for everybody, $x_n \sim \text{Binomial}(m_n, \pi)$.

# %%
people = bz.data.load("coin_flips")
one_coin = bz.fit(bz.models.CoinFlip(), people, guide="beta", seed=0, progress=False)
one_tree = one_coin.to_arviz()
az.summary(one_tree, kind="stats", round_to=4)

# %% [markdown]
# Very sure of itself: same side with probability 0.508 ± 0.001, not a fair coin. But does it describe
# *these* data? A **posterior predictive check** simulates the table again from the fit and compares
# something that we care about. We care about the spread between people:
#
# $$T(x) = \sum_{n=1}^{48} \frac{(x_n - m_n \bar{\pi})^2}{m_n \bar{\pi} (1 - \bar{\pi})}, \qquad
# \bar{\pi} = \frac{\sum_n x_n}{\sum_n m_n}$$
#
# If one chance serves all, each person adds about 1, and $T$ is about 48.

# %%
m = people.inputs["total_count"].numpy()


def spread(x):
    """T(x), for tables x of shape (..., 48)."""
    share = x.sum(-1, keepdims=True) / m.sum()
    return ((x - m * share) ** 2 / (m * share * (1 - share))).sum(-1)


real = spread(people.observed.numpy())
simulated = spread(one_tree["posterior_predictive"]["x"].values[0].astype(float))
print(f"T: real {real:.0f}; simulated {simulated.mean():.0f} ± {simulated.std():.0f}")

# %% [markdown]
# The real people differ far more than one coin allows. The model is wrong, and its tiny error bar with it.
#
# ## Each person's own coin
#
# The mend: everybody has an own chance, drawn from a population whose mean $\mu$ and concentration
# $\kappa$ are inferred too.
#
# $$\pi_n \sim \text{Beta}(\mu \kappa, (1 - \mu) \kappa), \qquad x_n \sim \text{Binomial}(m_n, \pi_n)$$
#
# The package knows this model's exact posterior too, and `guide="exact"` takes it. SVI's own guide for it
# is one word away, `guide="structured"` (it takes some ten seconds; try it).

# %%
own_coins = bz.fit(bz.models.HierarchicalCoin(), people, guide="exact", seed=0, progress=False)
own_tree = own_coins.to_arviz()
az.summary(own_tree, var_names=["mu", "kappa"], kind="stats", round_to=4)

# %% [markdown]
# **Before you look:** the people differ in how often they flipped (701 to 20,100 times). Whose estimate
# moves furthest from the raw share, and where to?

# %%
_, ax = plt.subplots(figsize=(7, 8))
_ = bz.plots.plot_people(own_coins, ax=ax)

# %% [markdown]
# Small samples that lie far out are pulled furthest towards the population ("shrinkage"): person 48's 60 %
# from 2,800 flips becomes 58 %. Large samples stay where they are, and so do small ones that lie near the
# middle already, such as person 18's, but even they get a narrower interval from what the others have
# shown.
#
# **Before you look:** draw *new* people from the fitted population, let them flip as often as the real
# ones, and compute $T$. Will the real value lie inside now?

# %%
rng = np.random.default_rng(0)
draws = own_tree["posterior"].ds.isel(chain=0)
mu, kappa = draws["mu"].values[:, None], draws["kappa"].values[:, None]
new_people = rng.beta(mu * kappa, (1 - mu) * kappa, size=(len(mu), 48))
from_population = spread(rng.binomial(m.astype(int), new_people).astype(float))

_, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
bins = np.geomspace(20, 1500, 60)
ax.hist(simulated, bins=bins, color="#E69F00", alpha=0.8, label="one coin for all")
ax.hist(from_population, bins=bins, color="#0072B2", alpha=0.7, label="each person's own coin")
ax.axvline(real, color="black", lw=2, label=f"the real people: {real:.0f}")
ax.set(
    xscale="log",
    xlabel="T, spread between people",
    ylabel="simulated tables",
    title="posterior predictive check",
)
ax.legend(frameon=False)
print(
    f"share of simulated tables with more spread: one coin {np.mean(simulated >= real):.3f}, "
    f"own coins {np.mean(from_population >= real):.3f}"
)

# %% [markdown]
# ## Which model predicts better?
#
# Leave-one-out cross-validation asks how well each observation is predicted from the others. What *one*
# is, is our decision: here **the unit is the person**, a row of the table, since new people are what we
# would predict next (and 350,757 flips times 1,000 draws would not fit into memory).
#
# The warning that we silence says that LOO is unreliable for single people in the second model: each
# $\pi_n$ is known from person $n$'s flips alone, so a posterior without them is far from the one with
# them. The table of k-hats shows it. Where the evidence $p(x) = \int p(x \mid \theta) p(\theta) d\theta$
# is known, as here, it settles the matter without LOO.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    print(one_coin.loo(), "\n")
    print(own_coins.loo())

# %%
evidence = {
    "one coin": bz.models.CoinFlip().log_evidence(people).item(),
    "own coins": bz.models.HierarchicalCoin().log_evidence(people).item(),
}
for name, value in evidence.items():
    print(f"log p(x), {name:9}  {value:9.1f} nats")
print(f"the data are e^{evidence['own coins'] - evidence['one coin']:.0f} times likelier with each person's own coin")

# %% [markdown]
# ## Exercise
#
# 1. Change one word so that the ten flips are fitted by `guide="laplace"`. Which of the numbers that
#    `diagnose()` prints gives it away?
# 2. Fit `HierarchicalCoin` with `guide="mean_field"` and call `diagnose()`. `kappa` and the `pi` are no
#    longer tied together in the guide: which sds does it get wrong, and in which direction?
# 3. After three heads, which prior Beta($a$, $a$) makes full Bayes say 0.6? First on paper with $\frac{a +
#    3}{2a + 3}$, then with `bz.models.CoinFlip(a, a).exact_predictive(three_heads)`.
