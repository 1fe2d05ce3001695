"""Models: what their files say, what goes with what, where they come from."""
