"""The loop over steps: eager and compiled, its noise, its optimiser, where it begins and when it ends."""
