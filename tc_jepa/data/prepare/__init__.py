"""Preparing data: images with captions, labels or masks, from files of several layouts, as a TFDS dataset.

sources.py has the table of layouts. Images are stored as the bytes that they came in; they are decoded once as a check.
Each split keeps the order of its origin, however many processes are used.
"""
