"""How people lay out their own images and masks on disk. One file a layout, each with
`entries(root)`.
"""
