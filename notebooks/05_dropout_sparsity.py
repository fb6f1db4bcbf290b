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
# # 5. Dropout and sparsity
#
# Dropout multiplies a network's units by random zeros while it learns. Read as inference, the zeros are
# latent variables. From there it takes two steps, first noise whose size is learned, then a noise of its own
# for each weight, to a network that says which of its weights it does not need.
#
# **Goals.** After this notebook you can
#
# 1. say which prior makes the KL of dropout zero, and what that costs;
# 2. explain how the central limit theorem turns a fixed rate into a parameter;
# 3. choose between eight ways to train one network, knowing what each of them optimises;
# 4. read $\log \alpha$ of a weight, watch a network lose 98 % of its weights, and take them out of it.

# %%
import io
import math
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # widgets are not needed here

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image
from PIL import Image as Picture

import bayeszoo as bz

plt.rcParams["figure.dpi"] = 80
BLUE, ORANGE, RED, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#888888"

SIZE = "small"  # "full": MNIST, 784-300-100-10, the paper's 200 epochs; best on a GPU. The text is about "small"
SEED = 0

# %% [markdown]
# Small: 1,797 digits of 8 x 8 pixels, half of them to learn from, half to test on, and a network
# 64-100-50-10 with 11,900 weights. Some thirteen for each labelled picture.

# %%
torch.manual_seed(SEED)
if SIZE == "full":
    train, test = (bz.data.load("mnist", split=split) for split in ("train", "test"))
    net = bz.models.networks.lenet_300_100()
    common = {"batch_size": 100, "optimizer": 1e-3, "schedule": "linear"}
    epochs, sparse_epochs, random_epochs, compiled = 50, 200, 50, True
else:
    train, test = bz.data.load("digits").split(0.5, seed=SEED)
    net = bz.models.networks.mlp(64, [100, 50], 10)
    common = {"batch_size": 128, "optimizer": 1e-2, "schedule": "cosine"}
    epochs, sparse_epochs, random_epochs, compiled = 140, 300, 100, False  # compiling costs more than it saves here
common |= {"seed": SEED, "progress": False, "compile": compiled}
side = math.isqrt(train.inputs["x"][0].numel())

normal = bz.models.BayesianNN(net, prior=bz.models.weight_priors.Normal(1.0))  # w ~ N(0, 1), biases too
log_uniform = bz.models.BayesianNN(net, prior="log_uniform")  # p(w) = 1 / |w|
print(train)
print(f"{len(train)} to learn from, {len(test)} to test on, {sum(p.numel() for p in net.parameters()):,} weights and biases")

# %% [markdown]
# ## Zeros as latent variables
#
# A layer's weights $\Lambda$ are multiplied by a mask, one for each weight (**DropConnect**) or one for each
# input of the layer, that is for each column of its weight matrix (**dropout**):
#
# $$\theta_{ij} = \Lambda_{ij} \frac{m_{ij}}{1 - p}, \qquad m_{ij} \sim \text{Bernoulli}(1 - p)$$
#
# (The division keeps $\mathbb{E} \, \theta = \Lambda$.) The lecture says that "for some prior" the KL term
# is missing. Not for a prior on the *weights*: $q$ puts a share $p$ of its mass on exactly zero, and the KL
# of such a spike to any normal distribution is infinite. It is missing if we call the **masks** the latent
# variables and the weights parameters: let the prior of $m$ be the same Bernoulli distribution as $q(m)$,
# then $\text{KL}(q(m) \,\|\, p(m)) = 0$, exactly, and
#
# $$\text{ELBO} = \mathbb{E}_{q(m)} \sum_{n=1}^N \log p(y_n \mid x_n, \Lambda, m) - 0$$
#
# This is what dropout maximises. A fit says so: its objective is a *surrogate* for everybody who had a prior
# on the weights in mind, and the loss carries its own name.

# %%
fits = {
    name: bz.fit(normal, train, guide=name, guide_options={"rate": 0.2}, epochs=epochs, **common)
    for name in ("mc_dropout", "dropconnect")
}
for name, fit in fits.items():
    misfit = -fit.log_likelihood(1000).sum(1)  # -log p(y | x, mask), summed over the data, for each draw
    error = misfit.std() / 1000**0.5
    print(f"{name:12} {fit.objective}: {fit.loss_name}")
    print(f"{'':12} loss {fit.loss:.1f} ± {fit.loss_error:.1f} nats, misfit alone {misfit.mean():.1f} ± {error:.1f}")

# %% [markdown]
# Loss and misfit are two estimates of the same number: nothing is added to the misfit. The $\mathcal{N}(0, 1)$ of the
# model plays no part here; only the noise keeps the weights from fitting every quirk of the data.
# `guide_options={"l2": True}` adds Gal and Ghahramani's penalty, which stands for the KL of a smoothed $q$.
#
# **Before you look:** below are weights of the second layer (rows are its units, columns its inputs), black
# where one draw of the guide is zero. Which of the two guides gives stripes, and in which direction?

# %%
x_test, y_test = test.inputs["x"], test.observed
layers = [name for name in normal.sites if name.endswith("weight")]
draws = {name: fit.sample(300) for name, fit in fits.items()}


def class_probs(fit, weights, x):
    """Probabilities (S, N, K) of the classes for draws of the weights."""
    weights = {name: value.to(fit.device) for name, value in weights.items()}
    with torch.no_grad():
        return torch.vmap(lambda one: fit.model.outputs(one, x.to(fit.device)))(weights).softmax(-1).cpu()


masks = class_probs(fits["mc_dropout"], draws["mc_dropout"], x_test[:300])
doubt = int(torch.special.entr(masks.mean(0)).sum(-1).argmax())  # the least certain

_, axes = plt.subplots(1, 4, figsize=(12.5, 3.1), layout="constrained", width_ratios=[2, 2, 1, 2.2])
for ax, name in zip(axes, draws, strict=False):
    zero = draws[name][layers[1]][0] == 0
    ax.imshow(zero, cmap="Greys", aspect="auto", interpolation="nearest")
    ax.set(title=f"{name}: {zero.float().mean():.0%} zeros", xlabel="input of layer 2")
axes[0].set_ylabel("unit of layer 2")
axes[2].imshow(x_test[doubt].reshape(side, side), cmap="Greys")
axes[2].set(title=f"a {y_test[doubt]}", xticks=[], yticks=[])
axes[3].boxplot(masks[:, doubt].numpy(), positions=range(10), widths=0.6, sym=".", flierprops={"ms": 2})
axes[3].plot(range(10), masks[:, doubt].mean(0), "D", color=RED, ms=5, label="mean of 300 masks")
axes[3].set(xlabel="class", ylabel="probability", title="what 300 masks say of it", ylim=(-0.02, 1.02))
_ = axes[3].legend(frameon=False, fontsize=8)

# %% [markdown]
# The picture is the one of the first 300 test digits about which the average is the least certain. Every mask
# is a network of its own, and here they disagree. Dropout as everybody uses it switches the
# masks off at test time and predicts with the mean weights $\Lambda$; as inference, it averages over them:
#
# $$p(y \mid x, \mathcal{D}) \approx \frac{1}{S} \sum_{s=1}^S p(y \mid x, \Lambda, m^{(s)})$$
#
# **Before you look:** the mean weights have never been trained as they are. Will they be better or worse
# than a single mask? Than the average of a hundred?

# %%
curve = fits["mc_dropout"].averaging_curve(test, ks=(1, 2, 5, 10, 30, 100))
print(curve)
_, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
bz.plots.plot_averaging(curve, "accuracy", ax=left)
_ = bz.plots.plot_averaging(curve, "nll", ax=right)

# %% [markdown]
# A single mask is the worst of the three. The mean weights classify as well as the average of a hundred masks, at
# a hundredth of its time: "single network also work", says the lecture. What the average buys is better
# probabilities: from about ten masks on its negative log likelihood is below that of the mean weights.
#
# ## The central limit theorem
#
# What should $p$ be? The ELBO above cannot tell: the KL is zero at every $p$, because the prior moves along,
# and the misfit is lowest without any noise. Besides, there is no gradient through a zero or a one. The
# lecture's way out: a unit sums over many inputs, so look at the sum,
#
# $$a = \sum_i \Lambda_i x_i \frac{m_i}{1 - p}, \qquad
# \mathbb{E} \, a = \sum_i \Lambda_i x_i, \qquad
# \text{Var} \, a = \alpha \sum_i \Lambda_i^2 x_i^2, \quad \alpha = \frac{p}{1 - p}$$
#
# With many terms of similar size $a$ is nearly normal, whatever the masks are. And the same normal
# distribution comes from weights with normal noise, $\theta_i = \Lambda_i (1 + \sqrt{\alpha} \,
# \varepsilon_i)$: **Gaussian dropout**. Here $\alpha$ is any positive number and has a gradient.
#
# **Before you look:** with three inputs a unit's sum takes eight values. Are some forty enough for a normal?
# Always?

# %%
rate = 0.2
alpha = rate / (1 - rate)
Lambda = {name: value.detach().cpu() for name, value in fits["mc_dropout"].guide.points().items()}
hidden = (x_test[doubt].flatten() @ Lambda["fc1.weight"].T + Lambda["fc1.bias"]).relu()
terms = Lambda["fc2.weight"] * hidden  # (units of layer 2, inputs that are not zero)
terms = terms[:, hidden > 0]
largest = (terms.square().max(1).values / terms.square().sum(1)).sort()  # share of one term in the variance
typical, worst = terms[largest.indices[len(terms) // 2]], terms[largest.indices[-1]]
torch.manual_seed(SEED)


def against_normal(part):
    """Sums under 50,000 masks, their normal limit, and the largest distance of the two distribution functions."""
    sums = ((torch.rand(50_000, len(part)) >= rate) * part / (1 - rate)).sum(1).sort().values
    limit = torch.distributions.Normal(part.sum(), (alpha * part.square().sum()).sqrt())
    return sums, limit, float((limit.cdf(sums) - torch.linspace(0, 1, len(sums))).abs().max())


cases = {
    "three inputs of a typical unit": typical[:3],
    f"its {len(typical)} active inputs": typical,
    "the unit with the most unequal terms": worst,
}
_, axes = plt.subplots(1, 3, figsize=(11.5, 3.2), layout="constrained")
for ax, (title, part) in zip(axes, cases.items(), strict=True):
    sums, limit, gap = against_normal(part)
    ax.hist(sums, bins=120, density=True, color=ORANGE, alpha=0.7, label="dropout, 50,000 masks")
    at = torch.linspace(sums[0], sums[-1], 300)
    ax.plot(at, limit.log_prob(at).exp(), color=BLUE, label="normal, same mean and variance")
    ax.set(xlabel="$a$", yticks=[], ylim=(0, 1.25 * ax.get_ylim()[1]))
    share = part.square().max() / part.square().sum()
    ax.set_title(f"{title}\ndistance {gap:.3f}, largest term {share:.0%} of the variance", size=9)
axes[0].set_ylabel("density")
axes[0].legend(frameon=False, fontsize=8, loc="upper left")
gaps = sorted(against_normal(part)[2] for part in terms)
print(f"distance of the distribution functions, {len(terms)} units: median {gaps[len(gaps) // 2]:.3f}, largest {gaps[-1]:.3f}")

# %% [markdown]
# Roughly, for most units. The theorem asks for many terms of similar size, not just for many: where one term
# has a large share of the variance, the sum shows whether that one was dropped, however many others there are.
# So Gaussian dropout is a close relative of dropout and not the same thing.
#
# Two families learn their rate, and need a prior that gives a KL to weigh it with:
#
# | `guide=` | noise | what pulls the rate up |
# |---|---|---|
# | `"gaussian_dropout"` | normal, $\alpha$ for each layer (or unit, or weight) | the log-uniform prior, below |
# | `"concrete_dropout"` | masks between 0 and 1 that are nearly always at an end | the entropy of the masks |
#
# A callback is called after every step, and sees the step's number and loss, the parameters by name, and the guide.


# %%
class Watch:
    """A callback that keeps what `look` says of the guide after some of the steps."""

    def __init__(self, look, steps):
        self.look, self.steps, self.seen = look, set(steps), {}

    def __call__(self, progress):
        if progress.step in self.steps:
            self.seen[progress.step] = self.look(progress.guide)


def rates_of(guide):
    """Dropout rate of each layer; a noise alpha counts as alpha / (1 + alpha)."""
    if hasattr(guide, "learned_rates"):
        return list(guide.learned_rates().values())
    return [float(alpha.mean().sigmoid()) for alpha in guide.log_alpha().values()]


steps_an_epoch = len(train) // common["batch_size"]
watched = {}
for name, model in (("concrete_dropout", normal), ("gaussian_dropout", log_uniform)):
    watched[name] = Watch(rates_of, range(1, epochs * steps_an_epoch + 1, steps_an_epoch))
    fits[name] = bz.fit(model, train, guide=name, epochs=epochs, callbacks=[watched[name]], **common)
    print(f"{name:16}", "  ".join(f"{k} {v:.3f}" for k, v in zip(layers, rates_of(fits[name].guide), strict=True)))
    print(f"{'':16} {fits[name].objective}: {fits[name].loss_name}")

# %% [markdown]
# **Before you look:** a layer of which many weights are superfluous can afford more noise. Which of the three
# layers, 64 x 100, 100 x 50 and 50 x 10, will end with the lowest rate?

# %%
_, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for ax, (name, watch) in zip(axes, watched.items(), strict=True):
    at = np.array(list(watch.seen)) / steps_an_epoch
    for layer, line, colour in zip(layers, np.array(list(watch.seen.values())).T, (BLUE, ORANGE, GREEN), strict=True):
        ax.plot(at, line, color=colour, label=layer)
    ax.axhline(0.2, color="black", ls=":", lw=1, label="the fixed rate of above")
    ax.set(title=name, xlabel="epoch", ylim=(0, 1))
axes[0].set_ylabel("dropout rate")
_ = axes[0].legend(frameon=False, fontsize=8)

# %% [markdown]
# The two disagree. Concrete dropout hardly touches the pixels and drops most in the second layer; Gaussian dropout
# drowns the first two layers in noise and spares the last. Look at what pulls. The KL to the log-uniform prior
# counts once for each weight, and one $\alpha$ answers for 6,400 weights in the first layer and 5,000 in the second, but
# for 500 in the last. The entropy of the masks counts once for each *input* of a layer: 64, 100 and 50. A learned rate
# is the data's answer to a question that the prior has asked.
#
# ## The family side by side
#
# Four more, with the same network, batches, optimiser and number of epochs. `sparse_vd` is the subject of the next
# section. Of `map` and `ensemble` each draw is a point, so `map` predicts with one network and the ensemble with five.

# %%
for name in ("map", "ensemble", "mean_field", "sparse_vd"):
    model = log_uniform if name == "sparse_vd" else normal
    fits[name] = bz.fit(model, train, guide=name, epochs=epochs, **common)

order = ("map", "ensemble", "mc_dropout", "dropconnect", "concrete_dropout", "mean_field", "gaussian_dropout", "sparse_vd")
predictions = {name: fits[name].predict(test.inputs, n=100) for name in order}
scores = {name: predictions[name].scores(test) for name in order}
priors = dict.fromkeys(order, "N(0, 1)") | dict.fromkeys(("mc_dropout", "dropconnect"), "unused")
priors |= dict.fromkeys(("gaussian_dropout", "sparse_vd"), "1 / |w|")
print(f"{'guide':17} {'prior':8} {'objective':9}  accuracy    NLL     ECE   ms a step")
for name in order:
    fit, score = fits[name], scores[name]
    ms = 1000 * fit.timings["steps"] / len(fit.losses)
    print(f"{name:17} {priors[name]:8} {fit.objective:9}   {score.accuracy:.4f}  {score.nll:.4f}  {score.ece:.4f}  {ms:6.2f}")
print(f"\nstandard error of an accuracy of 0.96: {math.sqrt(0.96 * 0.04 / len(test)):.4f}")

# %% [markdown]
# **Before you look:** a point *above* the diagonal belongs to a network that is right more often than it
# believes. Who will lie there, those with little noise in their weights, or those with much?

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
bz.plots.plot_reliability({k: predictions[k] for k in ("map", "mc_dropout", "concrete_dropout")}, test, ax=left)
_ = bz.plots.plot_reliability({k: predictions[k] for k in ("mean_field", "gaussian_dropout", "sparse_vd")}, test, ax=right)

# %% [markdown]
# Those with much. (The bars are wide where few pictures fall: on the left, nearly everywhere but at the right end.) What
# the table says, and what it does not:
#
# - `mc_dropout` has the best likelihood, without any prior on the weights, and `concrete_dropout` the best accuracy. Both
#   are ahead of `map`, by little.
# - `map` is well calibrated, and an ensemble of five such modes gains next to nothing over one of them.
# - `mean_field`, the only one with a proper bound, has two or three times the negative log likelihood of `map`: it blurs
#   thousands of weights independently and then doubts what it gets right. It also needs more steps, says its diagnosis below.
# - `gaussian_dropout` has by far the worst. One $\alpha$ for a whole layer is a blunt tool in the hands of that prior.
# - `sparse_vd` pays for its zeros with two or three points of accuracy. With 900 pictures that is its price; we come to it.
#
# That is one split of one small data set. Two other seeds, which also split the data otherwise, moved all rows by
# a percentage point or so, and neighbours changed places; the sentences above were still true.

# %%
print(fits["mean_field"].diagnose(held_out=test))
print(f"\nsparse_vd\n{str(fits['sparse_vd'].diagnose()).splitlines()[-1]}")

# %% [markdown]
# Thousands of weights are too many for importance weights; the diagnosis says so, and looks at values of the
# function instead. Of a surrogate there is less to check; its last note says what to look at. ArviZ gets these values
# as `f`. Here are the logits of the doubtful digit from above, as the mean-field posterior and the masks see them:

# %%
for name in ("mean_field", "mc_dropout"):
    options = {"weights": False, "log_likelihood": False, "predictive": False, "prior": False}
    tree = fits[name].to_arviz(500, functions=x_test[[doubt]], **options)
    summary = az.summary(tree, var_names=["f"], kind="stats")
    print(f"{name}\n{summary.iloc[:, :2].T}\n")

# %% [markdown]
# ## A noise of its own for each weight
#
# Sparse variational dropout (Molchanov, Ashukha, Vetrov 2017) gives every weight its own $\alpha$:
#
# $$q(\theta_i) = \mathcal{N}(\theta_i \mid \mu_i, \alpha_i \mu_i^2), \qquad p(\theta_i) \propto \frac{1}{|\theta_i|}$$
#
# Under this prior the KL depends on $\alpha_i$ alone. It is an integral over one standard normal variable,
#
# $$-\text{KL}(\alpha) = \tfrac{1}{2} \log \alpha - \mathbb{E}_{\varepsilon} \log |1 + \sqrt{\alpha} \, \varepsilon| + C
# \;\approx\; k_1 \sigma(k_2 + k_3 \log \alpha) - \tfrac{1}{2} \log(1 + \alpha^{-1}) - k_1$$
#
# with $k = (0.63576, 1.8732, 1.48695)$. The prior has no finite integral, so nothing fixes $C$, and the loss is
# again a surrogate; $C = -\frac{1}{2}(\gamma + \log 2) \approx -0.6352$ makes the KL vanish for
# $\alpha \to \infty$.
#
# **Before you look:** the ELBO adds $-\text{KL}$. Which $\alpha$ does the prior want?

# %%
log_alpha = torch.linspace(-8, 8, 65, dtype=torch.float64)
constant = -(np.euler_gamma + math.log(2)) / 2
width = 1e-4
noise = torch.arange(-9 + width / 2, 9, width, dtype=torch.float64)
density = torch.distributions.Normal(0.0, 1.0).log_prob(noise).exp() * width
log_size = torch.stack([((1 + (la / 2).exp() * noise).abs().log() * density).sum() for la in log_alpha])
by_quadrature = 0.5 * log_alpha - log_size + constant
formula = -bz.models.weight_priors.log_uniform_kl(log_alpha)
print(f"largest error of the formula: {(formula - by_quadrature).abs().max():.4f} nats")
print(f"left limit 0.5 log alpha + C with C = {constant:.4f}; right limit 0, at log alpha = 8: {formula[-1]:.5f}")

_, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
left.plot(log_alpha, formula, color=BLUE, label="the formula")
left.plot(log_alpha[::4], by_quadrature[::4], "o", color=ORANGE, ms=5, label="quadrature")
left.plot(log_alpha, 0.5 * log_alpha + constant, color=GREY, ls="--", lw=1, label="$\\frac{1}{2} \\log \\alpha + C$")
left.axvline(3, color="black", ls=":", label="$\\log \\alpha = 3$: rate 0.95")
left.set(xlabel="$\\log \\alpha$", ylabel="−KL, nats a weight", ylim=(-4.5, 0.5))
left.legend(frameon=False, fontsize=8, loc="lower right")
w = torch.linspace(-8, 10, 600)
for la, colour in ((-3.0, GREEN), (0.0, ORANGE), (3.0, BLUE)):
    q = torch.distributions.Normal(1.0, math.exp(la / 2))
    right.plot(w, q.log_prob(w).exp(), color=colour, label=f"$\\log \\alpha = {la:g}$")
right.axvline(0, color="black", lw=1, ls=":")
right.set(xlabel="$\\theta_i / \\mu_i$", ylabel="density", title="one weight", ylim=(0, 0.8))
_ = right.legend(frameon=False, fontsize=8)

# %% [markdown]
# As large as possible. But the slope of the curve gives out: below $\log \alpha = 0$ a step of one is worth half a
# nat or a little more, and at 3 all that is left to gain is 0.025 nats. So a weight that the data hold on to keeps a small
# $\alpha$ and pays for it, and one that they do not hold on to drifts off. At $\log \alpha = 3$ its sd is
# 4.5 times its mean, and whether it is there or zero no longer matters: it is cut.
#
# One detail decides whether this can be trained. In $\theta = \mu (1 + \sqrt{\alpha} \, \varepsilon)$ the gradient
# for $\mu$ is multiplied by $1 + \sqrt{\alpha} \, \varepsilon$, pure noise where $\alpha$ is large; in the additive
# form $\theta = \mu + \sigma \varepsilon$ it is multiplied by 1, with $\sigma$ free and $\log \alpha = \log \sigma^2 - \log
# \mu^2$. The lecture writes the first, the guide trains the second. And the KL is switched on slowly:
# against weights that have learned nothing yet, the prior would win.

# %% [markdown]
# ## Sparsification in action
#
# We train for longer, and look at means and $\log \alpha$ of the first layer after chosen epochs.


# %%
def first_layer(guide):
    """Mean and log alpha (units, pixels) of the first layer, and how many weights are left in each layer."""
    alphas = guide.log_alpha()
    left = [int((alpha <= 3).sum()) for alpha in alphas.values()]
    return guide.points()[layers[0]].detach().cpu().clone(), alphas[layers[0]].cpu(), left


shown = np.unique(np.geomspace(1, sparse_epochs, 30).round().astype(int))
watch = Watch(first_layer, shown * steps_an_epoch)
sparse_fit = bz.fit(log_uniform, train, guide="sparse_vd", epochs=sparse_epochs, callbacks=[watch], **common)
history = {step // steps_an_epoch: seen for step, seen in watch.seen.items()}
total = sum(Lambda[name].numel() for name in layers)
strip = [int(shown[np.abs(shown - share * sparse_epochs).argmin()]) for share in (0, 0.03, 0.06, 0.1, 0.3, 1)]
for epoch in strip:
    weight = sparse_fit.guide.kl_weight(epoch * steps_an_epoch, sparse_epochs * steps_an_epoch)
    left = history[epoch][2]
    share = sum(left) / total
    print(f"epoch {epoch:3}   KL weight {weight:.2f}   weights with log alpha <= 3: {sum(left):6,} = {share:6.1%}", left)

# %% [markdown]
# **Before you look:** in the film rows are hidden units and columns are pixels, row by row of the picture. Will the weights
# go one by one, all over the place, or in rows and columns?


# %%
def draw(axes, epoch, rows):
    """Weights, log alpha and the pixels that are still read, into three axes."""
    mean, alpha, _ = history[epoch]
    kept = alpha <= 3
    cells = {"aspect": "auto", "interpolation": "nearest"}
    axes[0].imshow(torch.where(kept, mean, 0.0)[rows], cmap="RdBu", vmin=-1, vmax=1, **cells)
    axes[1].imshow(alpha[rows], cmap="viridis", vmin=-6, vmax=6, **cells)
    axes[2].imshow(kept.sum(0).reshape(side, side), cmap="Greys", norm="symlog", vmin=0, vmax=len(kept))
    for ax in axes:
        ax.set(xticks=[], yticks=[])


rows = (history[sparse_epochs][1] <= 3).sum(1).sort(descending=True, stable=True).indices  # units that survive on top
figure, axes = plt.subplots(1, 3, figsize=(8.6, 3.1), layout="constrained", dpi=64, width_ratios=[1.3, 1.3, 1])
frames = []
for epoch in history:
    for ax in axes:
        ax.clear()
    draw(axes, epoch, rows)
    axes[0].set_title(f"epoch {epoch}: {sum(history[epoch][2]) / total:.1%} of all weights", size=9)
    axes[1].set_title("$\\log \\alpha$ (yellow: noise)", size=9)
    axes[2].set_title("weights left, a pixel", size=9)
    figure.canvas.draw()
    frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
plt.close(figure)

palette = Picture.fromarray(np.concatenate(frames[:: len(frames) // 6])).quantize(64)  # one set of colours for all frames
pictures = [Picture.fromarray(frame).quantize(palette=palette, dither=Picture.Dither.NONE) for frame in frames]
film = io.BytesIO()
pause = [350] * (len(pictures) - 1) + [3000]
pictures[0].save(film, format="PNG", save_all=True, append_images=pictures[1:], duration=pause, loop=0)  # an animated PNG
print(f"{len(pictures)} frames, {len(film.getvalue()) / 1000:.0f} kB")
Image(film.getvalue(), format="png")

# %% [markdown]
# The same as a strip, for paper:

# %%
_, axes = plt.subplots(3, 6, figsize=(9.6, 4.6), layout="constrained", height_ratios=[2, 2, 1.5], dpi=64)
for column, epoch in zip(axes.T, strip, strict=True):
    draw(column, epoch, rows)
    column[0].set_title(f"epoch {epoch}: {sum(history[epoch][2]) / total:.1%}", size=9)
for ax, text in zip(axes[:, 0], ("weights (units x pixels)", "$\\log \\alpha$", "weights left"), strict=True):
    ax.set_ylabel(text, size=9)

# %% [markdown]
# The data say which weights they need while the KL is still small: at epoch 9 stripes have formed in $\log \alpha$. Vertical
# stripes are pixels; they come every eight columns, from the left and right edges of the picture. Horizontal ones are units.
# Most weights go while the KL is switched on, up to epoch 30, and the long rest of the training trims what
# is left. In the end most rows are empty: those units read nothing at all.
#
# **Before you look:** a pixel that is white on every picture has no influence on the likelihood. What happens to its
# weights? And where, on a picture of 8 x 8, would you expect the last ones?

# %%
alpha = history[sparse_epochs][1]
kept = (alpha <= 3).sum(0)
pixels = train.inputs["x"].flatten(1)
spread = pixels.std(0)
corners = [0, side - 1, side * (side - 1), side * side - 1]
blind = ((alpha <= 3).sum(1) == 0).sum()
print(f"pixels that no unit reads: {(kept == 0).sum()} of {side**2}; units that read no pixel: {blind} of {len(alpha)}")
print(f"weights left at the four corners: {kept[corners].tolist()}; sd of these pixels: {spread[corners].numpy().round(2)}")
outer = kept.reshape(side, side)[:, [0, -1]].sum()
print(f"weights left in the outermost columns: {outer}, elsewhere: {kept.sum() - outer}")

_, axes = plt.subplots(1, 4, figsize=(12.5, 3), layout="constrained", width_ratios=[1, 1, 1, 1.5])
maps = {"mean of the pictures": pixels.mean(0), "sd of each pixel": spread, "weights left": kept}
for ax, (title, values) in zip(axes, maps.items(), strict=False):
    image = ax.imshow(values.reshape(side, side), cmap="Greys")
    ax.set(title=title, xticks=[], yticks=[])
    plt.colorbar(image, ax=ax, shrink=0.8)
axes[3].plot(spread, kept, "o", color=BLUE, alpha=0.6)
_ = axes[3].set(xlabel="sd of the pixel", ylabel="weights left", title="one point a pixel")

# %% [markdown]
# A pixel that never changes leaves its weights to the KL alone, and $\log \alpha$ rises until they are cut: the corners
# and nearly all of the outermost columns are not read. Where pixels vary most, most weights stay, but even there it is
# a handful out of a hundred.
#
# ## Taking the weights out
#
# `fit.sparsify()` sets the weights with $\log \alpha > 3$ to zero, removes units that nothing enters or
# nothing reads, stores what is left in the form that runs fastest here, and returns an ordinary torch network.

# %%
sparse = sparse_fit.sparsify()
print(sparse)
print()
print(sparse.network)

# %% [markdown]
# Is it still the same function? We cut by hand, without removing anything, and compare. And what did cutting cost?

# %%
mu, noisy = sparse_fit.guide.points(), sparse_fit.guide.log_alpha()


def cut(threshold):
    """Logits on the test data of the network with mean weights, zero above the threshold, and how many are left."""
    with torch.no_grad():
        weights = {name: torch.where(noisy[name] <= threshold, mu[name], 0.0) for name in mu}
        logits = sparse_fit.model.outputs(weights, x_test.to(sparse_fit.device)).cpu()
    return logits, sum(int((alpha <= threshold).sum()) for alpha in noisy.values())


with torch.no_grad():
    pruned = sparse.network(x_test)
print(f"pruned network against the cut by hand: largest difference of a logit {(pruned - cut(3.0)[0]).abs().max():.1g}")


def judged(logits):
    """Accuracy and negative log likelihood of one network."""
    return float((logits.argmax(1) == y_test).float().mean()), float(torch.nn.functional.cross_entropy(logits, y_test))


averaged = sparse_fit.scores(test, n=100)
print(f"average of 100 draws                      accuracy {averaged.accuracy:.4f}, NLL {averaged.nll:.4f}")
for text, logits in (("mean weights, none cut", cut(math.inf)[0]), ("pruned network", pruned)):
    accuracy, nll = judged(logits)
    print(f"{text:41} accuracy {accuracy:.4f}, NLL {nll:.4f}")
print(f"map, all {total:,} weights                   accuracy {scores['map'].accuracy:.4f}, NLL {scores['map'].nll:.4f}")

# %% [markdown]
# **Before you look:** the threshold 3 is a convention. How much would accuracy and size change at 1, or at 5?

# %%
thresholds = np.linspace(-7, 9, 65)
swept = [cut(t) for t in thresholds]
_, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
left.hist(torch.cat([alpha.flatten().cpu() for alpha in noisy.values()]).clamp(-8, 14), bins=110, color=BLUE)
left.axvline(3, color="black", ls=":")
left.set(xlabel="$\\log \\alpha$", ylabel="weights", yscale="log", title="all weights, after training")
right.plot(thresholds, [judged(logits)[0] for logits, _ in swept], color=BLUE, label="accuracy")
right.plot(thresholds, [left_over / total for _, left_over in swept], color=RED, label="share of weights left")
right.axvline(3, color="black", ls=":")
right.set(xlabel="threshold for $\\log \\alpha$", ylim=(0, 1))
_ = right.legend(frameon=False, fontsize=8, loc="center right")
for t in (1, 3, 5):
    logits, left_over = cut(t)
    print(f"threshold {t}: {left_over:4} weights, accuracy {judged(logits)[0]:.4f}")

# %% [markdown]
# Hardly. The weights that matter sit around $\log \alpha = -3$, few lie near the threshold, and everything right of it
# is noise, of which one may keep as much as one likes without changing the answers.
#
# What does change them is the training. Cutting costs nothing worth mentioning, nor does predicting with one network
# instead of a hundred. But the network that has all its weights (`map`) is still one or two points better. The prior's wish for
# noise is the same for 900 pictures as for 60,000, and only the data oppose it. On MNIST, the
# paper reports 1.92 % errors for 784-300-100-10 with one weight in 68 left; `SIZE = "full"` is that experiment.
#
# ## Nothing to learn
#
# Large networks can learn random labels by heart (Zhang et al. 2017). Molchanov et al. asked what sparse
# variational dropout does with them. **Before you look:** what would you want it to do?

# %%
generator = torch.Generator().manual_seed(SEED)
shuffled = train.observed[torch.randperm(len(train), generator=generator)]
nonsense = bz.data.Data(train.inputs, shuffled, name="shuffled labels", num_classes=10)
for guide, model in (("mle", normal), ("sparse_vd", log_uniform)):
    fit = bz.fit(model, nonsense, guide=guide, epochs=random_epochs, **common)
    score = fit.scores(nonsense, n=20)
    print(f"{guide:10} accuracy on its own shuffled labels {score.accuracy:.3f}, loss {fit.loss:8.1f} nats")
print(f"{'':10} N log 10 = {len(train) * math.log(10):.1f} nats\n")
try:
    fit.sparsify()
except ValueError as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# Maximum likelihood learns most of the nonsense by heart, and is not done yet. Sparse variational dropout finds nothing to
# hold on to: its loss is that of guessing, $N \log 10$, every weight becomes noise, and `sparsify()` refuses to
# return a network that would give the same answer to every picture. (The error says what would help if the labels
# had been meant seriously.)
#
# ## Exercise
#
# 1. Draw the averaging curve of `fits["dropconnect"]`. How many masks does it take until their average has a lower negative
#    log likelihood than the mean weights?
# 2. Give Gaussian dropout an $\alpha$ for each weight, `guide_options={"share": "weight"}`, and call `sparsify()`. It has
#    the prior and the KL of `sparse_vd`, but the multiplicative form. How accurate is it, and how much does it prune?
#    Draw a histogram of `fit.guide.log_alpha()`: how far have they come?
# 3. Mean field knows mean and sd of each weight, too: print `fits["mean_field"].sparsify()`. Why does it keep so many more?
# 4. Fit `sparse_vd` without the slow start, with `kl_weight=1.0`, and then with `kl_weight=0.1`. What does `sparsify()` say
#    of both? Why is the second no approximation of the posterior any more?
