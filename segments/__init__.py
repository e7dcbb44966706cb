"""Rated segments of videos: the task of YouTube-8M's third challenge, from ratings to files."""
