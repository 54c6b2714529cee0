"""Layouts of your own images and masks on disk. One file a layout, each with `entries(root)`."""
