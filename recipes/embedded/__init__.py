"""The recipe of the embedded model: its configs, objectives and scripts."""
