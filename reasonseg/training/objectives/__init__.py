"""What the stages of training minimise. One file a kind; `objective: language` in YAML chooses
`language.py`.
"""
