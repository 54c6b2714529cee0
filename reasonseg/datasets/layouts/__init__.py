"""Layouts of your own images and masks on disk. One file per layout, each with `entries(root)`."""
