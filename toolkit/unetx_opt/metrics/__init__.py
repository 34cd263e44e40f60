"""Masks to figures: overlap, boundary distance, bootstrap intervals, and the gates that decide on them."""
