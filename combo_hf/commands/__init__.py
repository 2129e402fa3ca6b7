"""Sub-commands of `combo-hf`, a file a group; each has `register(commands)`."""
