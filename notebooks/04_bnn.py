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
# # 4. Bayesian neural networks
#
# "Instead of learning a single neural network that would solve the problem, we learn a distribution over
# networks that solve the problem", says the lecture. Here you see what such a distribution is, how far the
# usual approximations are from it, and what it buys.
#
# **Goals.** After this notebook you can
#
# 1. draw functions from a prior over weights, and say what scale, width and depth do to them;
# 2. hold the error bars of five guides against those of the true posterior, and say where each falls short;
# 3. read accuracy, NLL, Brier score, ECE and a reliability diagram, and tell where Bayes does not win;
# 4. notice pictures of unknown classes by their predictive uncertainty, and split it in two;
# 5. weigh $k$ networks against one, in accuracy and in time.

# %%
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # widgets are not needed here

import types

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch

import bayeszoo as bz

plt.rcParams["figure.dpi"] = 80
BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#D55E00"

SIZE = "small"  # or "full": MNIST in place of the shipped digits and larger networks, for a GPU
full = SIZE == "full"

# %% [markdown]
# ## A network is a function with random weights
#
# $$\theta \sim p(\theta), \qquad f_n = \text{net}_\theta(x_n), \qquad
# y_n \sim \mathcal{N}(f_n, \sigma^2) \;\; \text{or} \;\; \text{Categorical}(\text{softmax} f_n)$$
#
# `BayesianNN` takes any torch network and gives every weight a prior. Nobody has an opinion about a weight,
# but about functions one has. So look at those: draw weights, run the network, repeat. The default prior,
# `fan_in`, is $\mathcal{N}(0, 2 / \text{inputs of the unit})$ for weights and $\mathcal{N}(0, 1)$ for biases.
#
# **Before you look:** with 200 hidden units in place of 20, every output is a sum of ten times as many terms.
# What does that do to the functions under `fan_in`, and what if all weights have sd 1?


# %%
def functions_of_prior(hidden, scale, inputs, draws=150):
    """f (draws, len(inputs)) of networks drawn from the prior."""
    net = bz.models.networks.mlp(1, hidden, 1, "tanh").double()
    model = bz.models.BayesianNN(net, "gaussian", prior=bz.models.weight_priors.Normal(scale), noise_scale=0.1)
    drawn = (bz.data.simulate(model, n=len(inputs), seed=seed, inputs={"x": inputs}).truth for seed in range(draws))
    return torch.stack([model.outputs(dict(weights), inputs) for weights in drawn])


grid = torch.linspace(-4, 4, 161, dtype=torch.float64)[:, None]
priors = {
    "20 units, fan_in": ([20], "fan_in"),
    "200 units, fan_in": ([200], "fan_in"),
    "200 units, sd 1": ([200], 1.0),
    "3 x 20 units, sd 1": ([20, 20, 20], 1.0),
}
_, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
for ax, (name, (hidden, scale)) in zip(axes, priors.items(), strict=True):
    f = functions_of_prior(hidden, scale, grid)
    ax.plot(grid, f[:10].T, lw=1)
    ax.set(xlabel="x", title=name)
    steep = (f.diff(dim=1).abs().amax(1) / 0.05).median()
    print(f"{name:20} sd of f(0) {f[:, 80].std():5.2f}   steepest slope {steep:5.1f} (median of 150 functions)")
_ = axes[0].set_ylabel("f(x)")

# %% [markdown]
# Under `fan_in` ten times the width leaves the size of the functions as it was. With sd 1 for every weight
# it grows with the root of the width, and depth makes functions jump: that prior believes in steps. The prior
# on weights is a prior on functions, whether you looked at it or not.
#
# ## A gap in the data
#
# Thirty points from a function that the prior itself has drawn, with known noise, and none of them between
# -0.8 and 0.5. So the model is right, and whatever goes wrong below is due to the approximation.

# %%
H, sigma = (50 if full else 20), 0.1
torch.manual_seed(0)
net = bz.models.networks.mlp(1, [H], 1, "tanh").double()
model = bz.models.BayesianNN(net, "gaussian", noise_scale=sigma, init="prior")
u = torch.rand(30, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
x = torch.cat([-2 + 1.2 * u[:15], 0.5 + 1.2 * u[15:]])
data = bz.data.simulate(model, n=30, seed=1, inputs={"x": x})
y = data.observed
truth = model.outputs(dict(data.truth), grid)
print(data, "\nweights:", sum(w.numel() for w in data.truth.values()))

# %% [markdown]
# So few weights are not too many for a Markov chain that samples the **true posterior**. Hamiltonian Monte
# Carlo, 32 chains side by side: a trajectory of 30 gradient steps, then accept or reject. It is our judge;
# with the 266,610 weights of a network for MNIST there is none.

# %%
sd = {"fc1.weight": 2**0.5, "fc1.bias": 1.0, "fc2.weight": (2 / H) ** 0.5, "fc2.bias": 1.0}  # the fan_in prior
D = 3 * H + 1


def weights_of(z):
    """Sites of the model for z (..., D), which are standard normal under the prior."""
    parts = zip(sd.items(), z.split([H, H, H, 1], -1), strict=True)
    w = {name: scale * part for (name, scale), part in parts}
    return w | {"fc1.weight": w["fc1.weight"].unsqueeze(-1), "fc2.weight": w["fc2.weight"].unsqueeze(-2)}


def f_of(z, x):
    """net_theta(x), (C, N) for z (C, D): the same network, for many thetas at once."""
    w = weights_of(z)
    hidden = torch.tanh(x.T.unsqueeze(-1) * w["fc1.weight"].mT + w["fc1.bias"].unsqueeze(-2))
    return (hidden @ w["fc2.weight"].mT).squeeze(-1) + w["fc2.bias"]


def energy(z):
    """-log p(D, z) up to a constant, (C,), and its gradient."""
    z = z.detach().requires_grad_()
    U = 0.5 * z.square().sum(1) + 0.5 * (f_of(z, x) - y).square().sum(1) / sigma**2
    return U.detach(), torch.autograd.grad(U.sum(), z)[0]


def hmc(chains=32, warm_up=200, draws=200, leaps=30, step=0.02):
    """Draws of z, (chains, draws, D)."""
    torch.manual_seed(0)
    z = torch.randn(chains, D, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([z], lr=0.05)
    for _ in range(200):  # downhill, to begin near the data
        adam.zero_grad()
        z.grad = energy(z)[1]
        adam.step()
    z, kept = z.detach(), []
    U, gradient = energy(z)
    for number in range(warm_up + draws):
        p = torch.randn_like(z)
        before = U + 0.5 * p.square().sum(1)
        e = step * (0.8 + 0.4 * torch.rand(chains, 1, dtype=torch.float64))
        new, p = z, p - 0.5 * e * gradient
        for _ in range(leaps):
            new = new + e * p
            new_U, new_gradient = energy(new)
            p = p - e * new_gradient
        p = p + 0.5 * e * new_gradient
        accept = (before - new_U - 0.5 * p.square().sum(1)).exp().clamp(max=1).nan_to_num(0)
        yes = torch.rand(chains, dtype=torch.float64) < accept
        z, U = torch.where(yes[:, None], new, z), torch.where(yes, new_U, U)
        gradient = torch.where(yes[:, None], new_gradient, gradient)
        if number < warm_up:
            step *= np.exp(0.05 * (float(accept.mean()) - 0.8))  # towards 80 % accepted
        else:
            kept.append(z)
    return torch.stack(kept, 1)


z = hmc()
chains = f_of(z.flatten(0, 1), grid).unflatten(0, z.shape[:2])  # (chains, draws, inputs)
exact = chains.flatten(0, 1)
one = {name: w[0] for name, w in weights_of(z[:, -1]).items()}
print("our f and the model's:", float((f_of(z[:1, -1], grid) - model.outputs(one, grid)).abs().max()))
r_hat, ess = (check(chains[..., ::16].numpy(), chain_axis=0, draw_axis=1) for check in (az.rhat, az.ess))
print(f"over f at 11 inputs: r_hat at most {r_hat.max():.3f}, at least {ess.min():.0f} effective draws of {len(exact)}")

# %% [markdown]
# Now what networks are fitted with in practice. Each is one word; the last panel has another *model*, whose
# hidden layer stays as it was drawn, so that only the last layer is uncertain. That is linear regression
# on 20 random features, and its posterior is exactly normal.
#
# **Before you look:** which of the five can have error bars that depend on the distance to the data?

# %%
settings = {"optimizer": 0.02, "schedule": "cosine", "progress": False}
fits = {
    "map": bz.fit(model, data, guide="map", steps=1000, **settings),
    "mean_field": bz.fit(model, data, guide="mean_field", steps=1200, restarts=4, **settings),
    "mc_dropout": bz.fit(model, data, guide="mc_dropout", guide_options={"rate": 0.1}, steps=1200, **settings),
    "ensemble": bz.fit(model, data, guide="ensemble", guide_options={"members": 10, "prior": False}, steps=1000, **settings),
}
random_features = bz.models.BayesianNN(net, "gaussian", noise_scale=sigma, bayesian="last", freeze=True)
fits["last layer, laplace"] = bz.fit(random_features, data, guide="laplace", progress=False)
predictions = {guide: fit.predict(grid, n=500) for guide, fit in fits.items()}

bands = {"HMC: the posterior": (exact.mean(0), exact.std(0))}
bands |= {guide: (p.mean, p.epistemic.sqrt()) for guide, p in predictions.items()}
_, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained", sharex=True, sharey=True)
for ax, (name, (mean, spread)) in zip(axes.flat, bands.items(), strict=True):
    ax.fill_between(grid[:, 0], mean - 2 * spread, mean + 2 * spread, color="#56B4E9", alpha=0.4, lw=0, label="f, ± 2 sd")
    ax.plot(grid, mean, color=BLUE, lw=1.2, label="mean")
    ax.plot(grid, truth, color="black", ls="--", lw=1, label="the true function")
    ax.scatter(x, y, color=ORANGE, edgecolor="black", lw=0.5, s=18, zorder=3)
    ax.set(title=name, ylim=(-1.2, 3.2))
axes[0, 0].legend(frameon=False, fontsize=8)

places = {"in the data (-1.4)": 52, "in the gap (-0.15)": 77, "outside (-4)": 0, "outside (4)": 160}
print(f"{'sd of f':22}", *(f"{place:>19}" for place in places))
for name, (_, spread) in bands.items():
    print(f"{name:22}", *(f"{spread[i]:19.3f}" for i in places.values()))

# %% [markdown]
# The posterior is sure at the data, and wide in the gap and outside. Against it:
#
# - **MAP** is one function. It has no error bars at all.
# - **mean field** is too unsure at the data and much too sure away from them. Single weights may only move
#   alone, and what keeps $f$ at the data while it moves elsewhere is a movement of many weights at once.
# - **dropout** has about the same band everywhere. Its noise has a fixed rate: it was never asked how many
#   data there are, nor where.
# - the **ensemble** of ten maximum-likelihood fits disagrees where there are no data: outside about as much as
#   the posterior, in this gap less than half as much. At the data it is four times too sure: all members have
#   seen the same noise and follow it alike.
# - the **last layer** alone is right at the data, and its band grows outside; its answer is exact. But it knows
#   nothing of other features than the twenty it was given, and in the gap it is sure, and wrong.
#
# In numbers: what `diagnose` says of mean field when it is given the chains as a reference.

# %%
draws = {name: w.flatten(0, 1) for name, w in weights_of(z).items()}
moments = {what: {name: getattr(w, what)(0) for name, w in draws.items()} for what in ("mean", "std")}
reference = types.SimpleNamespace(draws=draws, mean=moments["mean"], sd=moments["std"])
print(fits["mean_field"].diagnose(reference))

# %% [markdown]
# Networks are compared in $f$, not weight by weight: exchange two hidden units, or flip the signs around
# one, and all weights differ while no prediction does. (The lecture's posterior that "collapses to
# $\theta^*$" needs a model whose parameters can be told apart.) The same in ArviZ, where the four restarts
# are chains: `f` is among the variables.

# %%
tree = fits["mean_field"].to_arviz(500, functions=grid[::40])
print(az.summary(tree, var_names=["f"])[["mean", "sd", "r_hat"]], "\n")
for name in ("f", "fc1.weight", "fc1.bias", "fc2.weight"):
    r_hats = az.summary(tree, var_names=[name], kind="diagnostics", round_to="none")["r_hat"]
    print(f"{name:11} median r_hat {r_hats.median():.2f}, worst {r_hats.max():.2f}")

# %% [markdown]
# Weights of different restarts disagree; functions agree where data hold them (-2 and 2), and less so elsewhere.
#
# Where does mean field's band at the data come from? Each outgoing weight gets the sd that would be left if all
# the *other weights were known* (notebooks 2 and 3), about $\sigma$ over the root of $\sum_n h_n^2$ for a unit
# with the values $h_n$. Then $H$ units and a bias make independent noise of variance $\sigma^2 / N$ each:

# %%
outgoing = fits["mean_field"].sample(1000)["fc2.weight"][:, 0].std(0)
print(
    f"sds of outgoing weights, mean field: {outgoing.min():.3f} to {outgoing.max():.3f}; under the prior {sd['fc2.weight']:.3f}"
)
print(
    f"sigma sqrt((H + 1) / N) = {sigma * ((H + 1) / 30) ** 0.5:.3f}; mean field's sd of f at the data {bands['mean_field'][1][52]:.3f}"
)

# %% [markdown]
# The wider the network, the worse: more weights, each of them sharp, and none that makes up for another. The
# last layer's own fit has the correlations. Its posterior is normal, so `laplace` is exact:

# %%
print(fits["last layer, laplace"].diagnose())

# %% [markdown]
# The band of a *new observation* has two parts, and they call for different things: against `aleatoric`
# noise nothing helps, against `epistemic` uncertainty more data do.

# %%
p = predictions["mean_field"]
_, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
ax.stackplot(grid[:, 0], p.aleatoric, p.epistemic, colors=[ORANGE, "#56B4E9"], alpha=0.7, labels=["aleatoric", "epistemic"])
ax.plot(grid, p.total, color="black", lw=1, label="total")
ax.plot(grid, sigma**2 + exact.var(0), color=RED, lw=1, ls="--", label="total, HMC")
ax.set(xlabel="x", ylabel="variance of y", title="mean field", ylim=(0, 0.15), xlim=(-4, 4))
_ = ax.legend(frameon=False, fontsize=8)

# %% [markdown]
# ## Digits: the objective, and what it pays for
#
# $$\Lambda_* = \arg\max_\Lambda \;\; \mathbb{E}_{q} \Big[ \sum_{n=1}^N \log p(y_n \mid x_n, \theta) \Big]
# \; - \; \text{KL}(q(\theta \mid \Lambda) \,\|\, p(\theta))$$
#
# In the lecture the KL stands inside the bracket, after the sum's terms, and reads as if it were one of
# them. It counts **once**, for the whole data set; counted with each of the $N$ observations it would leave all
# data together the weight of a single one. On a minibatch of $B$ rows it is the likelihood that is scaled, by $N / B$.
#
# A network with some thousand weights, and either few labels or more:

# %%
if full:  # from BAYESZOO_DATA, or downloaded by torchvision
    pool, test = bz.data.load("mnist", split="train"), bz.data.load("mnist", split="test")
    hidden, label_counts, steps, rate = [400, 400], (1000, 10_000), 3000, 0.001
else:
    pool, test = bz.data.load("digits").split(2 / 3, seed=0)
    hidden, label_counts, steps, rate = [50], (100, 1000), 700, 0.01
few, many = label_counts
pixels = pool.inputs["x"][0].numel()


def classifier(classes=10, scale=1.0):
    torch.manual_seed(0)
    net = bz.models.networks.mlp(pixels, hidden, classes)
    return bz.models.BayesianNN(net, prior=bz.models.weight_priors.Normal(scale))


def fit_pictures(guide, pictures, scale=1.0, **options):
    """The guide, by one word; mean field has an sd to find for every weight, and gets more and longer steps."""
    model = classifier(5 if int(pictures.observed.max()) < 5 else 10, scale)
    longer = 2 if guide == "mean_field" else 1
    return bz.fit(
        model, pictures, guide=guide, guide_options=options, batch_size=100, steps=longer * steps,
        optimizer=(2 * longer - 1) * rate, schedule="cosine", progress=False,
    )  # fmt: skip


GUIDES = {"map": {}, "mean_field": {}, "mc_dropout": {}, "ensemble": {"members": 5}}
labelled = {n: bz.data.few_labels(pool, n, seed=0) for n in label_counts}
trained = {(n, g): fit_pictures(g, labelled[n], **options) for n in label_counts for g, options in GUIDES.items()}
predicted = {key: fit.predict(test.inputs, n=100, keep_draws=False) for key, fit in trained.items()}
weights = sum(site.numel() for site in trained[few, "map"].sample(1).values())
print(f"{weights} weights, {len(test)} pictures to be judged by\n")
print("labels  guide         accuracy    NLL  Brier    ECE")
for (n, guide), prediction in predicted.items():
    s = prediction.scores(test)
    print(f"{n:6}  {guide:12} {s.accuracy:9.3f} {s.nll:6.3f} {s.brier:6.3f} {s.ece:6.3f}")

# %% [markdown]
# NLL and the Brier score judge the whole distribution over classes; ECE asks whether a stated 80 % comes
# true four times in five.
#
# **Before you look:** a point above the diagonal is right more often than it says. On which side do you
# expect mean field, whose weights are noisy?

# %%
_, axes = plt.subplots(1, 2, figsize=(10.5, 5), layout="constrained")
for ax, n in zip(axes, label_counts, strict=True):
    bz.plots.plot_reliability({g: predicted[n, g] for g in GUIDES}, test, bins=10, ax=ax)
    ax.text(0.04, 0.94, f"{n} labels", fontsize=10)

# %% [markdown]
# Above it. Averaged over weights that all move on their own, probabilities become flat: mean field is right far
# more often than it says, and has the worst NLL, Brier score and ECE with few labels and with many (its accuracy
# catches up). With few labels MAP and the ensemble are too modest as well, which is the prior's work and which
# more labels undo. The five members begin at different weights and end at functions so much alike that the
# ensemble hardly beats one of them. Dropout is the best calibrated with few labels. So Bayes *by mean field*
# does not win here, where the lecture's argument, many weights for few data, would have it win most clearly.
# (One split of one data set; the figure's ECEs are over 10 bins, the table's over 15.)
#
# Why does mean field do so badly? Look at what its objective is made of. A network that knows nothing, and
# says 10 % for every class, has $\mathbb{E}_q \log p = -N \log 10$ and may keep all weights at the prior,
# at no KL.

# %%
narrow = fit_pictures("mean_field", labelled[few], scale=0.2)
rows = [(few, 0.2, narrow), (few, 1.0, trained[few, "mean_field"]), (many, 1.0, trained[many, "mean_field"])]
print("labels  prior sd   N log 10   -E log p       KL   loss = -ELBO   accuracy")
for n, scale, fit in rows:
    likelihood = float(fit.log_likelihood(200).double().sum(1).mean())
    accuracy = fit.predict(test.inputs, n=100, keep_draws=False).scores(test).accuracy
    print(
        f"{n:6} {scale:9} {n * np.log(10):10.0f} {-likelihood:10.0f} {fit.loss + likelihood:8.0f} {fit.loss:14.0f} {accuracy:10.3f}"
    )

# %% [markdown]
# Under the narrow prior nothing was learned: almost no KL, the loss of a network that knows nothing, the
# accuracy of a blind guess. Under the wide one most digits are recognised; but the sds of its weights cost more
# nats than all labels together are worth, $N \log 10$, and the loss is *higher*. Whoever chose the prior by
# the ELBO would choose the network that has learned nothing. This is no failure of the evidence, but of a bound
# on it: mean field must make every weight sharp, one by one, to hold a function still. With the larger number of
# labels the bound beats guessing easily; the KL is still most of it.
#
# ## Out of the domain
#
# Train on the digits 0 to 4 alone, and show the network 5 to 9. It must answer with a class that it knows;
# it can only do so with doubt. The doubt of class probabilities is their entropy, and it splits, too:
#
# $$\underbrace{\text{H}\Big[\tfrac{1}{S} \sum_s p(y \mid x, \theta^s)\Big]}_{\text{total}} =
# \underbrace{\tfrac{1}{S} \sum_s \text{H}\big[p(y \mid x, \theta^s)\big]}_{\text{aleatoric}} +
# \underbrace{\text{mutual information of } y \text{ and } \theta}_{\text{epistemic}}$$
#
# AUROC is the chance that an unknown picture gets more doubt than a known one: 0.5 is guessing.

# %%
known = pool.select(pool.observed < 5)
inside, outside = test.select(test.observed < 5), test.select(test.observed >= 5)

five = {guide: fit_pictures(guide, known, **options) for guide, options in GUIDES.items()}
doubts = {g: tuple(fit.predict(d.inputs, n=100, keep_draws=False) for d in (inside, outside)) for g, fit in five.items()}
print("              accuracy, NLL on 0-4    AUROC by total  aleatoric  epistemic    sure (> 90 %) of a 5-9")
for guide, (near, far) in doubts.items():
    s = near.scores(inside)
    parts = ("total", "aleatoric", "epistemic")
    by = [bz.inference.auroc(*(getattr(p, part).round(decimals=9) for p in (near, far))) for part in parts]
    sure = float((far.probs.max(1).values > 0.9).double().mean())
    print(f"{guide:12} {s.accuracy:9.3f} {s.nll:9.3f} {by[0]:17.3f} {by[1]:10.3f} {by[2]:10.3f} {sure:15.3f}")

# %% [markdown]
# **Before you look:** what is the epistemic part of MAP?

# %%
_, axes = plt.subplots(2, 3, figsize=(12, 5.6), layout="constrained")
shown = [("map", "total"), ("ensemble", "total"), ("mean_field", "total")]
shown += [("ensemble", "epistemic"), ("mean_field", "aleatoric"), ("mean_field", "epistemic")]
for ax, (guide, part) in zip(axes.flat, shown, strict=True):
    bz.plots.plot_entropies(*doubts[guide], part=part, names=("0-4", "5-9"), bins=30, ax=ax)
    ax.set_title(f"{guide}: {ax.get_title()}", fontsize=10)

# %% [markdown]
# Zero: it has one set of weights, so it can say that two classes are alike, but not that it has never seen such
# a thing. All the same its total entropy finds most of the strangers, hardly fewer than mean field's. Where they
# differ is in how sure they are: more than 90 % sure of a class is mean field with one stranger in ten, MAP and
# the ensemble with one in four, dropout with more. The price stands on the left of the table: mean field has the
# worst NLL on the digits that it knows. Its doubt is larger everywhere. An AUROC sees only the order: the
# ensemble's mutual information is mostly below a hundredth of a nat, and sorts pictures as well as any.
#
# ## One network, $k$ networks, mean weights
#
# "Actually using the ensemble is costly: $k$ times slow", says the lecture, and "single network also work".
# `averaging_curve` measures both: accuracy and NLL of $k$ draws averaged, of the one network whose weights
# are the posterior means, and the time of each.

# %%
curve = trained[many, "mean_field"].averaging_curve(test, ks=(1, 2, 5, 10, 30, 100))
print(curve)

# %% [markdown]
# **Before you look:** one draw of the weights is a noisy network. Is the network of the *mean* weights one,
# too?

# %%
_, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
for ax, score in zip(axes, ("accuracy", "nll", "seconds"), strict=True):
    bz.plots.plot_averaging(curve, score, ax=ax)

# %% [markdown]
# No: the noise of a draw is gone, and its signal stays. One *draw* of mean field's weights errs three times as
# often; between ten and thirty must be averaged, at as many times the price, to reach the accuracy that the
# mean weights have in one pass. Their NLL is better even than that of a hundred networks, whose average is the
# modest one from above. What one network cannot have is the epistemic part.
#
# ## What can be checked, and what cannot
#
# Importance weights $p / q$ told us in earlier notebooks how far a fit is from the posterior. Over thousands
# of weights one such ratio is never even, for any guide. `diagnose` says so, and what to look at instead:

# %%
print(trained[many, "mean_field"].diagnose(held_out=test))

# %% [markdown]
# The held-out line is worth more than all weights $p / q$: it has found the modesty of the reliability
# diagram by itself. LOO does not work either where $q$ is far from the posterior.
#
# What stays of the lecture's case for Bayesian networks? The posterior itself, by HMC, did all that was
# promised. Cheap approximations each keep a part of it: the ensemble the width far from the data, mean field the
# doubt about strangers, the last layer the right width at the data at hardly any cost, dropout good
# probabilities from few labels. None is right because it is called Bayesian; score it on held-out data.
#
# ## Exercise
#
# 1. Count the KL $N$ times, as the slip reads: `bz.fit(model, data, guide="mean_field", kl_weight=30.0, ...)`
#    on the thirty points. What is left of the fit, and why?
# 2. Set `rate` of the dropout on the thirty points to 0.02 and to 0.4. Which one is right at the data, which
#    one in the gap? Is there one for both?
# 3. Let only the last layer of the digits' network be Bayesian: `bz.models.BayesianNN(net, bayesian="last")`,
#    mean field, 100 labels. Compare NLL and ECE with the table above, and count the latents.
# 4. Show the four fits `five` pictures of noise, `fit.predict(torch.rand(500, 64))`. Are they easier to notice
#    than the digits 5 to 9, and for whom are they not?
