"""Data without torch: queries, answers, samples, images, masks, and their files."""
