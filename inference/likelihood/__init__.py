"""The likelihood of single observations whose latents are integrated out, and what an approximate posterior loses of it."""
