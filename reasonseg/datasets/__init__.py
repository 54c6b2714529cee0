"""Data sets as samples. One file a kind; `layouts/` reads your own folders, `synthetic/` draws
scenes.
"""
