"""Figures of one moment of a training, and of its whole course.

They are made without pyplot, so that no global figure state of the caller is touched.
"""
