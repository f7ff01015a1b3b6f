"""Giving room back: dead segments are unlinked, mostly dead ones are compacted."""
