"""The recipe of the packaged model `photo`: its configs, objectives and scripts."""
