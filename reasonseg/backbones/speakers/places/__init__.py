"""Places in words: how vision-language models say where a thing is, and what that means in
pixels.
"""
